"""Entropy-guided attention: what attention does when a language model loses its other nonlinearities, and whether guiding its entropy
helps.

Command:  python -m experiments.entropy_guided_lm --config=configs/entropy_guided_lm.py --workdir=DIR
          `:tiny` is the same study in less than a minute, for a look and for tests; its verdicts are inconclusive by construction
          (2 seeds).
Expected: the table of the report.
Time:     budgeted at 3.5 minutes on 2 CPU cores.
Claims:   the paper's order of losses along its ladder of models, overload of early and collapse of late layers without normalisation and
          activation, what the scaled fused MLP mends of it, and what the penalty does; and the method card's predictions of entropies.

All variants have the same batches in the same order, and the same kernels at the start wherever the shapes are the same. Sizes, learning
rate, warm-up and clipping are those of the card's pilot; variants, penalties and criteria were fixed before the study was run, after
one-seed pilots that chose the number of steps.
"""

from typing import Any

import ml_collections

from configs import common
from entropy_jax.training import ranges
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

ConfigDict = ml_collections.ConfigDict
VARIANTS = ('', 'tiny')

# What each key may be: entropy_jax/training/ranges.py. What keys may not be together: `validate` of the experiment.
RANGES = ranges.LAUNCH | {
  'seed': 'int [0, 2147483647]',
  'num_seeds': 'int [1, 10000]',
  'num_steps': 'int [1, inf)',
  'log_every': 'int [1, inf)',
  'batch_size': 'int [1, inf)',
  'num_held_out': 'int [1, inf)',
  'length': 'int [4, inf)',
  'width': 'int [1, inf)',
  'num_heads': 'int [1, inf)',
  'num_layers': 'int [1, inf)',
  'mlp_width': 'int [1, inf)',
  'optimizer.name': 'adam | adamw | lion | rmsprop | sgd',
  'optimizer.learning_rate': '(0, inf)',
  'optimizer.b1': '[0, 1)',
  'optimizer.b2': '[0, 1)',
  'optimizer.weight_decay': '[0, inf)',
  'optimizer.warmup_steps': 'int [0, inf)',
  'optimizer.max_grad_norm': '(0, inf) or None',
  'tolerance': '[0, inf)',
  'threshold_start': '[0, 1]',
  'penalties.*': '(0, inf)',
  'variants.*': 'decoder',
}


def _variants() -> ConfigDict:
  """Name -> the fields of `layers.block.BlockConfig` that make it, in the order in which nonlinearities are taken away and amends made.

  `ln_gelu` is the whole model that all others are compared with.
  """
  fused_t = {'norm': 'none', 'activation': 'fused', 'softmax_temperature': 'softplus'}
  found: dict[str, dict[str, Any]] = {
    'ln_gelu': {'norm': 'pre', 'activation': 'gelu'},
    'ln': {'norm': 'pre', 'activation': 'identity'},
    'gelu': {'norm': 'none', 'activation': 'gelu'},
    'relu': {'norm': 'none', 'activation': 'relu'},
    'softmax_only': {'norm': 'none', 'activation': 'identity'},
    'fused': {'norm': 'none', 'activation': 'fused'},
    'fused_t': dict(fused_t),
    'guided': dict(fused_t),
    'guided_strong': dict(fused_t),
  }
  return ConfigDict(found)


def get_config(variant: str = '') -> ConfigDict:
  """The study; variant '' or 'tiny'."""
  if variant not in VARIANTS:
    close = nearest(variant, VARIANTS)
    raise UserError(f'--config: configs/entropy_guided_lm.py has no variant {variant!r}; allowed: tiny, or none.{close}')
  config = ConfigDict()
  common.run_settings(config)
  config.seed = 0  # root of every key and of every order of rows
  config.num_seeds = 3  # paired over variants: seed k has the same batches
  config.num_steps = 360  # updates
  config.log_every = 20  # updates between two measures of num_held_out rows that are not trained on
  config.batch_size = 8
  config.num_held_out = 32
  config.length = 65  # bytes of a row, one more than the context length
  config.width = 64
  config.num_heads = 4
  config.num_layers = 4
  config.mlp_width = 128
  config.optimizer = ConfigDict()
  config.optimizer.name = 'adam'  # or adamw, lion, rmsprop, sgd
  config.optimizer.learning_rate = 3e-3
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.98
  config.optimizer.weight_decay = 0.0  # adamw and lion
  config.optimizer.warmup_steps = 50
  config.optimizer.max_grad_norm = 1.0  # None for no clipping
  config.tolerance = 0.2  # gamma: how far, as a share of ln(context length), an entropy may be from its threshold at no cost
  config.threshold_start = 0.5  # of every head, a share of ln(context length)
  # Variant -> lambda of its penalty, with the mean over layers, heads and queries. The paper's 1e-5 of a sum over a batch of 128 rows of
  # 128 tokens is .164 of a mean; the other is large enough to overrule the loss.
  config.penalties = ConfigDict({'guided': 0.164, 'guided_strong': 1.0})
  config.variants = _variants()

  if variant == 'tiny':
    config.num_seeds = 2
    config.num_steps, config.log_every = 20, 10
    config.batch_size, config.num_held_out, config.length = 4, 8, 17
    config.width, config.num_heads, config.num_layers, config.mlp_width = 16, 2, 2, 16
    config.optimizer.warmup_steps = 5
    config.penalties = ConfigDict({'guided': 0.164})
    config.variants = ConfigDict({name: config.variants[name] for name in ('ln_gelu', 'softmax_only', 'guided')})
  return config
