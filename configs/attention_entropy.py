"""Attention entropy: which transformers keep training as the learning rate grows, and what the entropy of their attention does meanwhile.

Command:  python -m experiments.attention_entropy --config=configs/attention_entropy.py --workdir=DIR
          `:essential` is a part of it, with the same runs: pre-LN and sigmaReparam on two tasks, in a workdir of its own. `:tiny` is the
          same study in less than a minute, for a look and for tests; its verdicts are inconclusive by construction (2 seeds).
Expected: that sigmaReparam is stable where the entropy of pre-LN collapses does not reproduce by its criterion on `unigram` (share 0 of
          the rates), inconclusive on `digits` (0.33 [0, 1] without and 0.11 [0, 0.59] with pre-LN) and on `source_bytes`, where no run
          counts as failed (see the notes of the report). Its entropy holds where that of pre-LN falls below 0.1, and sigmaReparam with
          pre-LN has the smallest loss on `digits` and `unigram` (0.79 [0.13, 1.45] and 3.09 [3.03, 3.15] nats against 1.13 and 3.19).
          Norms of maps are their gains within 2e-7 in the median where the rate decays (`digits`, `source_bytes`), the worst map at a best
          rate within 1.7 %; within 3e-4 and 10 % for sigmaReparam under the constant rate of `unigram`. No row of attention of 29 million
          is below its bound.
Time:     969 s of processor time in all, compilation included: about 8 minutes on 2 CPU cores; `:essential` about 2 minutes.
Claims:   predictions of the method card at learning rate 3e-2 on `unigram`, a largest stable rate and a learning-rate sensitivity for every
          variant, that sigmaReparam is stable where the baseline's entropy collapses, and that power iteration keeps up with training.

Every variant has the same initial kernels (those that it scales, it scales), the same batches in the same order, the same schedule, no
warmup, no weight decay and no clipping. On `digits` and `source_bytes` the rate decays to 0, which lets power iteration catch up with the
kernels; on `unigram` and `copy` it is constant, as in the pilot whose predictions are tested there. `copy` is left out of the default
study for its time; --config.copy.num_steps=150 runs it. Sizes, rates and criteria were fixed before the study was run.
"""

from typing import Any

import ml_collections

from configs import common
from entropy_jax.training import ranges
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

ConfigDict = ml_collections.ConfigDict
VARIANTS = ('', 'essential', 'tiny')
SEQUENCE_TASKS = ('source_bytes', 'unigram', 'copy')
TASKS = ('digits', *SEQUENCE_TASKS)

# What each key may be: entropy_jax/training/ranges.py. What keys may not be together: `validate` of the experiment.
RANGES = ranges.LAUNCH | {
  'seed': 'int [0, 2147483647]',
  'rates': 'numbers (0, inf)',
  'num_seeds': 'int [1, 10000]',
  'tail': 'int [1, inf)',
  'width': 'int [1, inf)',
  'num_heads': 'int [1, inf)',
  'mlp_width': 'int [1, inf)',
  'optimizer.name': 'adam | adamw | lars | lion | rmsprop | sgd',
  'optimizer.b1': '[0, 1)',
  'optimizer.b2': '[0, 1)',
  'optimizer.momentum': '[0, 1) or None',
  'optimizer.weight_decay': '[0, inf)',
  'optimizer.warmup_steps': 'int [0, inf)',
  **{
    f'{task}.{key}': allowed
    for task in TASKS
    for key, allowed in {
      'num_steps': 'int [0, inf)',
      'schedule': 'constant | linear | cosine',
      'log_every': 'int [1, inf)',
      'batch_size': 'int [1, inf)',
      'num_held_out': 'int [1, inf)',
      'num_layers': 'int [1, inf)',
    }.items()
  },
  'digits.patch_size': 'int [1, 8]',
  **{f'{task}.length': 'int [4, inf)' for task in SEQUENCE_TASKS},
  'variants.*': 'decoder',
}


def _variants() -> ConfigDict:
  """Name -> the fields of `layers.block.BlockConfig` that make it; all others are those of the experiment.

  `pre_ln` is the baseline of every comparison. The cap of the logits is the card's for this size, 10.
  """
  return ConfigDict({
    'pre_ln': {'norm': 'pre'},
    'post_ln': {'norm': 'post'},
    'deepnorm': {'norm': 'deepnorm'},
    'qk_norm': {'norm': 'pre', 'qk_norm': 'layer'},
    'soft_cap': {'norm': 'pre', 'logit_cap': 10.0},
    'sigma_reparam': {'norm': 'none', 'linear': 'sigma_reparam'},
    'sigma_reparam_gain_sigma': {'norm': 'none', 'linear': 'sigma_reparam', 'gain_init': 'sigma'},
    'sigma_reparam_pre_ln': {'norm': 'pre', 'linear': 'sigma_reparam'},
    'spectral_norm': {'norm': 'none', 'linear': 'spectral_norm'},
  })  # fmt: skip


def _task(**settings: Any) -> ConfigDict:
  return ConfigDict({'num_layers': 2, **settings})


def get_config(variant: str = '') -> ConfigDict:
  """The study; variant '', 'essential' or 'tiny'."""
  if variant not in VARIANTS:
    close = nearest(variant, VARIANTS)
    raise UserError(f'--config: configs/attention_entropy.py has no variant {variant!r}; allowed: essential, tiny, or none.{close}')
  config = ConfigDict()
  common.run_settings(config)
  config.seed = 0  # root of every key and of every order of examples
  config.rates = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)  # learning rates
  # Paired over variants and rates: seed k has the same batches, and the same kernels at the start wherever the shapes are the same.
  config.num_seeds = 3
  config.tail = 20  # the final loss is the mean of so many last updates
  config.width = 64
  config.num_heads = 4
  config.mlp_width = 128
  config.optimizer = ConfigDict()
  config.optimizer.name = 'adam'  # or adamw, lars, lion, rmsprop, sgd
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.98
  config.optimizer.momentum = ml_collections.config_dict.placeholder(float)  # sgd, lars and rmsprop; None for none
  config.optimizer.weight_decay = 0.0  # adamw, lars and lion
  config.optimizer.warmup_steps = 0
  # num_steps: updates, 0 leaves the task out; schedule: constant, or linear or cosine, where the rate is 0 at the end; log_every: updates
  # between two measures of num_held_out examples that are not trained on; length: tokens of a sequence. Equal settings make `unigram` and
  # `copy` one compiled program.
  config.digits = _task(num_steps=150, schedule='cosine', log_every=15, batch_size=16, num_held_out=64, patch_size=2)
  config.source_bytes = _task(num_steps=120, schedule='cosine', log_every=12, batch_size=8, num_held_out=16, length=33)
  config.unigram = _task(num_steps=150, schedule='constant', log_every=15, batch_size=6, num_held_out=6, length=65)
  config.copy = _task(num_steps=0, schedule='constant', log_every=15, batch_size=6, num_held_out=6, length=65)
  config.variants = _variants()

  if variant == 'essential':
    config.source_bytes.num_steps = 0
    config.variants = ConfigDict({name: config.variants[name] for name in ('pre_ln', 'sigma_reparam')})

  if variant == 'tiny':
    config.rates = (1e-3, 3e-2)
    config.num_seeds = 2
    config.tail = 5
    config.width, config.num_heads, config.mlp_width = 16, 2, 16
    for task in TASKS:
      config[task].num_layers = 1
    config.digits.num_steps = config.unigram.num_steps = 20
    config.digits.log_every = config.unigram.log_every = 10
    config.unigram.length = 17
    config.source_bytes.num_steps = config.copy.num_steps = 0
    config.variants = ConfigDict({name: config.variants[name] for name in ('pre_ln', 'sigma_reparam')})
  return config
