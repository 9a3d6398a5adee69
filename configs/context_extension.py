"""Context extension: Entropy-ABF against a change of the rotary base alone, of models trained on short sequences and extended to long ones.

Command:  python -m experiments.context_extension --config=configs/context_extension.py --workdir=DIR
          `:tiny` is the same study in less than a minute, for a look and for tests; its verdicts are inconclusive by construction
          (2 seeds).
Expected: the table of the report.
Time:     budgeted at 3 minutes on 2 CPU cores.
Claims:   of the paper, that the logit scaling adds to the change of base after tuning, needs few updates, and holds at twice the tuned
          length; of the method card, what each does to the entropy of attention before tuning.

Every extension of a seed starts from the same short-trained parameters and is tuned on the same batches. Tasks and
numbers of steps were chosen in one-seed pilots that showed losses and entropies; extensions and criteria were fixed before the study was
run, all but one: a model that has forgotten its task does not hold it at any length, which entropy_jax/analysis/context_extension.py says.
"""

from typing import Any

import ml_collections

from configs import common
from entropy_jax.training import ranges
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

ConfigDict = ml_collections.ConfigDict
VARIANTS = ('', 'tiny')
TASKS = ('source_bytes', 'recall')

# What each key may be: entropy_jax/training/ranges.py. What keys may not be together: `validate` of the experiment.
RANGES = ranges.LAUNCH | {
  'seed': 'int [0, 2147483647]',
  'num_seeds': 'int [1, 10000]',
  'context': 'int [4, inf)',
  'tuned_context': 'int [4, inf)',
  'longest': 'int [4, inf)',
  'bin_size': 'int [1, inf)',
  'lag': 'int [1, inf)',
  'num_symbols': 'int [2, 256]',
  'num_held_out': 'int [1, inf)',
  'width': 'int [1, inf)',
  'num_heads': 'int [1, inf)',
  'num_layers': 'int [1, inf)',
  'mlp_width': 'int [1, inf)',
  'optimizer.name': 'adam | adamw | lion | rmsprop | sgd',
  'optimizer.b1': '[0, 1)',
  'optimizer.b2': '[0, 1)',
  'optimizer.weight_decay': '[0, inf)',
  'optimizer.max_grad_norm': '(0, inf) or None',
  'short.batch_size': 'int [1, inf)',
  'short.learning_rate': '(0, inf)',
  'short.warmup_steps': 'int [0, inf)',
  **{f'short.num_steps.{task}': 'int [0, inf)' for task in TASKS},
  'tuning.num_steps': 'int [1, inf)',
  'tuning.log_every': 'int [1, inf)',
  'tuning.batch_size': 'int [1, inf)',
  'tuning.learning_rate': '(0, inf)',
  'tuning.warmup_steps': 'int [0, inf)',
  'extensions.*': 'decoder',
}


def _extensions() -> ConfigDict:
  """Name -> the fields of `models.transformer.DecoderConfig` that it replaces; `none` is the baseline of every comparison.

  The base is the paper's. `scale` is the logit scaling without it.
  """
  found: dict[str, dict[str, Any]] = {
    'none': {'rope_theta': 1e4},
    'scale': {'rope_theta': 1e4, 'entropy_abf_window': 64},
    'abf': {'rope_theta': 5e5},
    'entropy_abf': {'rope_theta': 5e5, 'entropy_abf_window': 64},
  }
  return ConfigDict(found)


def get_config(variant: str = '') -> ConfigDict:
  """The study; variant '' or 'tiny'."""
  if variant not in VARIANTS:
    close = nearest(variant, VARIANTS)
    raise UserError(f'--config: configs/context_extension.py has no variant {variant!r}; allowed: tiny, or none.{close}')
  config = ConfigDict()
  common.run_settings(config)
  config.seed = 0  # root of every key and of every order of rows
  config.num_seeds = 3
  config.context = 64  # c, positions that the models are trained on
  config.tuned_context = 256  # positions that they are tuned on
  config.longest = 512  # positions that they are measured on
  config.bin_size = 16  # positions of a bin of the measures, a divisor of all three
  config.lag = 16  # `recall`: how far back the token lies that is to be named
  config.num_symbols = 32  # `recall`: tokens that sequences are drawn from
  config.num_held_out = 8  # sequences measured, not trained on
  config.width = 64
  config.num_heads = 4
  config.num_layers = 4
  config.mlp_width = 128
  config.optimizer = ConfigDict()
  config.optimizer.name = 'adam'  # or adamw, lion, rmsprop, sgd
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.98
  config.optimizer.weight_decay = 0.0  # adamw and lion
  config.optimizer.max_grad_norm = 1.0  # None for no clipping
  config.short = ConfigDict()  # training at `context`
  config.short.batch_size = 8
  config.short.learning_rate = 3e-3
  config.short.warmup_steps = 50
  config.short.num_steps = ConfigDict({'source_bytes': 500, 'recall': 250})  # updates, 0 leaves the task out
  config.tuning = ConfigDict()  # of every extension at `tuned_context`
  config.tuning.num_steps = 20
  config.tuning.log_every = 10  # updates between two measures
  config.tuning.batch_size = 4
  config.tuning.learning_rate = 1e-3
  config.tuning.warmup_steps = 0
  config.extensions = _extensions()

  if variant == 'tiny':
    config.num_seeds = 2
    config.context, config.tuned_context, config.longest, config.bin_size, config.lag = 16, 32, 64, 8, 4
    config.num_held_out = 2
    config.width, config.num_heads, config.num_layers, config.mlp_width = 16, 2, 3, 16
    config.short.batch_size, config.short.warmup_steps = 4, 5
    config.short.num_steps = ConfigDict({'source_bytes': 0, 'recall': 20})
    config.tuning.num_steps, config.tuning.log_every, config.tuning.batch_size = 4, 2, 2
    config.extensions = ConfigDict({
      'none': {'rope_theta': 1e4},
      'abf': {'rope_theta': 5e5},
      'entropy_abf': {'rope_theta': 5e5, 'entropy_abf_window': 16},
    })  # fmt: skip
  return config
