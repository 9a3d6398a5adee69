"""sigmaReparam without what transformers are trained with: images without warmup, decay, norm or adaptive optimizer, and deep post-norm.

Command:  python -m experiments.sigma_reparam_recipes --config=configs/sigma_reparam_recipes.py --workdir=DIR
          `:tiny` is the same study in less than a minute, for a look and for tests; its verdicts are inconclusive by construction
          (2 seeds).
Expected: the tables of the report.
Time:     budgeted at 6 minutes on 2 CPU cores.
Claims:   on `digits`, that a vision transformer of sigmaReparam without warmup, weight decay, layer norm or adaptive optimizer comes within
          one point of the tuned baseline, with SGD and with LARS, and that the same recipe without sigmaReparam does not; on a translation
          task, that post-norm encoder-decoders fail at some depth at which sigmaReparam, and DeepNorm, still train.

Every recipe is tuned as much as the others: the same number of learning rates, on a part of the training set, from seeds that the figures
do not have. Criteria were fixed before any run; grids of learning rates and the start of the gains were set after a first run in which the
best of two recipes lay at the edge of their grids.
"""

import ml_collections

from configs import common
from entropy_jax.training import ranges
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

ConfigDict = ml_collections.ConfigDict
VARIANTS = ('', 'tiny')
PARTS = ('digits', 'translation')
_SIZES = dict.fromkeys(('width', 'num_heads', 'mlp_width', 'log_every', 'batch_size', 'num_seeds'), 'int [1, inf)')

# What each key may be: entropy_jax/training/ranges.py. What keys may not be together: `validate` of the experiment.
RANGES = ranges.LAUNCH | {
  'seed': 'int [0, 2147483647]',
  **{f'{part}.{key}': allowed for part in PARTS for key, allowed in (_SIZES | {'num_steps': 'int [0, inf)'}).items()},
  'digits.num_tuning_seeds': 'int [1, inf)',
  'digits.num_layers': 'int [1, inf)',
  'digits.patch_size': 'int [1, 8]',
  'digits.recipes.*.model': 'decoder',
  'digits.recipes.*.rates': 'numbers (0, inf)',
  'digits.recipes.*.optimizer.name': 'adamw | lars | sgd',
  'digits.recipes.*.optimizer.b2': '[0, 1)',
  'digits.recipes.*.optimizer.momentum': '[0, 1)',
  'digits.recipes.*.optimizer.trust_coefficient': '(0, inf)',
  'digits.recipes.*.optimizer.warmup_steps': 'int [0, inf)',
  'digits.recipes.*.optimizer.weight_decay': '[0, inf)',
  'translation.depths': 'numbers [1, inf)',
  'translation.rates': 'numbers (0, inf)',
  'translation.num_held_out': 'int [1, inf)',
  'translation.tail': 'int [1, inf)',
  'translation.b1': '[0, 1)',
  'translation.b2': '[0, 1)',
  **{f'translation.{key}': 'int [1, inf)' for key in ('num_adjectives', 'num_nouns', 'num_verbs', 'max_clauses')},
  'translation.max_adjectives': 'int [0, inf)',
  'translation.variants.*': 'decoder',
}

PRE, NONE = {'norm': 'pre'}, {'norm': 'none'}
SIGMA = NONE | {'linear': 'sigma_reparam', 'gain_init': 'sigma'}  # as the published vision layers start


def _recipes(num_steps: int) -> ConfigDict:
  """Name -> model, optimizer and learning rates. `tuned` is the baseline; all have the same cosine decay of the learning rate."""
  adamw = {'name': 'adamw', 'b2': 0.98, 'weight_decay': 0.05, 'warmup_steps': num_steps // 10}
  sgd = {'name': 'sgd', 'momentum': 0.9}
  lars = {'name': 'lars', 'momentum': 0.9, 'trust_coefficient': 0.1}
  small, large = (3e-3, 1e-2, 3e-2, 1e-1), (1e-2, 3e-2, 1e-1, 3e-1)
  return ConfigDict({
    'tuned': {'model': PRE, 'optimizer': adamw, 'rates': small},
    'pre_ln_sgd': {'model': PRE, 'optimizer': sgd, 'rates': large},
    'no_ln_adamw': {'model': NONE, 'optimizer': adamw, 'rates': small},
    'no_ln_sgd': {'model': NONE, 'optimizer': sgd, 'rates': large},
    'sigma_reparam_sgd': {'model': SIGMA, 'optimizer': sgd, 'rates': large},
    'sigma_reparam_lars': {'model': SIGMA, 'optimizer': lars, 'rates': large},
  })  # fmt: skip


def _variants() -> ConfigDict:
  """Name -> the fields of `layers.block.BlockConfig` that make it; `post_ln` is the baseline.

  `sigma_reparam_post_ln` starts its kernels as the published post-norm models do, a standard deviation of 0.1 for every map.
  """
  return ConfigDict({
    'post_ln': {'norm': 'post'},
    'deepnorm': {'norm': 'deepnorm'},
    'sigma_reparam_post_ln': {'norm': 'post', 'linear': 'sigma_reparam', 'kernel_init': 'speech'},
  })


def get_config(variant: str = '') -> ConfigDict:
  """The study; variant '' or 'tiny'."""
  if variant not in VARIANTS:
    close = nearest(variant, VARIANTS)
    raise UserError(f'--config: configs/sigma_reparam_recipes.py has no variant {variant!r}; allowed: tiny, or none.{close}')
  config = ConfigDict()
  common.run_settings(config)
  config.seed = 0  # root of every key, of every order of examples and of every sentence
  # num_steps: updates, 0 leaves the part out; log_every: updates between two measures.
  config.digits = ConfigDict({'width': 32, 'num_heads': 4, 'mlp_width': 64, 'num_layers': 2, 'patch_size': 2})
  config.digits.update({'batch_size': 32, 'num_steps': 500, 'log_every': 250, 'num_seeds': 8})
  config.digits.num_tuning_seeds = 3  # of the search for the learning rate; num_seeds others make the figures
  config.digits.recipes = _recipes(config.digits.num_steps)
  config.translation = ConfigDict({'width': 32, 'num_heads': 2, 'mlp_width': 64})
  config.translation.update({'batch_size': 8, 'num_steps': 150, 'log_every': 75, 'num_seeds': 3})
  config.translation.depths = (8, 16, 32)  # layers of the encoder, and as many of the decoder
  config.translation.rates = (1e-3, 3e-3)  # learning rates, constant
  config.translation.b1 = 0.9  # of Adam
  config.translation.b2 = 0.98
  config.translation.tail = 20  # the final loss is the mean of so many last updates
  config.translation.num_held_out = 32
  config.translation.variants = _variants()
  # The language pair, see data/translation.py: sentences of one or two clauses, at most 7 tokens with their end.
  config.translation.num_adjectives = config.translation.num_nouns = config.translation.num_verbs = 4
  config.translation.max_clauses = 2
  config.translation.max_adjectives = 1

  if variant == 'tiny':
    config.digits.update({'width': 16, 'mlp_width': 16, 'num_layers': 1, 'num_steps': 20, 'log_every': 10, 'patch_size': 4})
    config.digits.num_seeds, config.digits.num_tuning_seeds = 3, 1
    config.digits.recipes = ConfigDict({
      name: {**recipe, 'rates': recipe['rates'][1:3]}
      for name, recipe in _recipes(20).to_dict().items()
      if name in ('tuned', 'pre_ln_sgd', 'sigma_reparam_sgd')
    })  # fmt: skip
    config.translation.update({'width': 16, 'mlp_width': 16, 'num_steps': 20, 'log_every': 10, 'num_seeds': 2, 'tail': 5})
    config.translation.depths, config.translation.rates = (1, 2), (3e-3, 3e-2)
    config.translation.variants = ConfigDict({name: _variants()[name] for name in ('post_ln', 'sigma_reparam_post_ln')})
  return config
