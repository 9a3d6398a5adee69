"""The lower bound of attention entropy, held against random, trained and adversarial weights, in every form that it has.

Command:  python -m experiments.attention_bound --config=configs/attention_bound.py --workdir=DIR
          `:tiny` is the same study in less than a minute, for a look and for tests; it has too few rows for a verdict on the forms.
Expected: no row below its bound, and the constructed layer within 1e-5 nats of it; the rest is in the tables of the report.
Time:     budgeted at 3 minutes on 2 CPU cores.
Claims:   Theorem 3.1 of arXiv 2303.06296 in four forms, that it is attained, and that gradient descent finds nothing below it.

Tolerances and criteria are constants of entropy_jax/analysis/attention_bound.py.
"""

import ml_collections

from configs import common
from entropy_jax.training import ranges
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

ConfigDict = ml_collections.ConfigDict
VARIANTS = ('', 'tiny')
_S = 'numbers (0, 60]'  # e^-s must stay in float32

# What each key may be: entropy_jax/training/ranges.py. What keys may not be together: `validate` of the experiment.
RANGES = ranges.LAUNCH | {
  'seed': 'int [0, 2147483647]',
  'min_rows': 'int [1, inf)',
  'random.shapes': 'settings',
  'random.s': _S,
  'random.rows_per_cell': 'int [1, inf)',
  'random.num_sequences': 'int [1, inf)',
  'random.num_heads': 'int [1, inf)',
  'random.spread': '[0, 5]',
  'tight.num_tokens': 'numbers [2, inf)',
  'tight.s': _S,
  'tight.num_frames': 'int [1, inf)',
  'adversarial.shapes': 'settings',
  'adversarial.s': _S,
  'adversarial.num_starts': 'int [1, inf)',
  'adversarial.num_steps': 'int [1, inf)',
  'adversarial.num_snapshots': 'int [1, inf)',
  'adversarial.learning_rate': '(0, inf)',
  'trained.learned_rates': 'numbers (0, inf)',
  'trained.rotary_rates': 'numbers (0, inf)',
  'trained.num_steps': 'int [1, inf)',
  'trained.num_snapshots': 'int [1, inf)',
  'trained.batch_size': 'int [1, inf)',
  'trained.num_sequences': 'int [2, inf)',
  'trained.vocab_size': 'int [2, inf)',
  'trained.concentration': '(0, inf)',
  'trained.decoder': 'decoder',
}


def _shapes(*shapes: tuple[int, int, int]) -> list[dict[str, int]]:
  return [{'num_tokens': tokens, 'width': width, 'head_dim': head_dim} for tokens, width, head_dim in shapes]


def get_config(variant: str = '') -> ConfigDict:
  """The study; variant '' or 'tiny'."""
  if variant not in VARIANTS:
    close = nearest(variant, VARIANTS)
    raise UserError(f'--config: configs/attention_bound.py has no variant {variant!r}; allowed: tiny, or none.{close}')
  config = ConfigDict()
  common.run_settings(config)
  config.seed = 0  # root of every key
  config.min_rows = 100_000  # with fewer, the claims about the forms are inconclusive
  # Every shape with every s, full and causal, with and without padding: one cell each.
  config.random = ConfigDict()
  config.random.shapes = _shapes((4, 8, 4), (16, 32, 8), (64, 64, 16), (128, 64, 64))
  config.random.s = (0.5, 1.0, 3.0, 5.0, 10.0, 30.0)
  config.random.rows_per_cell = 2000  # at least; padding and rows with one key are not counted
  config.random.num_sequences = 4  # that share weights
  config.random.num_heads = 4
  config.random.spread = 2.0  # sizes of tokens are e^(spread u n), u uniform for each sequence and n normal for each token
  config.tight = ConfigDict()
  config.tight.num_tokens = (2, 4, 16, 64, 128, 197)
  config.tight.s = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
  config.tight.num_frames = 4  # random pairs of directions that the layer is built on
  config.adversarial = ConfigDict()
  config.adversarial.shapes = _shapes((4, 4, 2), (16, 8, 4), (64, 16, 8), (128, 16, 8))
  config.adversarial.s = (0.5, 1.0, 3.0, 5.0, 10.0, 30.0)
  config.adversarial.num_starts = 4  # of the descent, for every shape and s
  config.adversarial.num_steps = 400  # Adam
  config.adversarial.num_snapshots = 5  # of the rows, evenly over the steps, beside that of the start
  config.adversarial.learning_rate = 0.05
  # In-context unigrams: the tokens of a sequence are independent draws from its own distribution, so that even attention is best.
  config.trained = ConfigDict()
  config.trained.learned_rates = (0.001, 0.03)  # one decoder with learnt positions each: healthy, and collapsed
  config.trained.rotary_rates = (0.03,)
  config.trained.num_steps = 150  # Adam without warmup
  config.trained.num_snapshots = 5
  config.trained.batch_size = 16
  config.trained.num_sequences = 4  # whose rows are measured, half of them with padding
  config.trained.vocab_size = 32
  config.trained.concentration = 0.3  # of the Dirichlet distribution that the distributions are drawn from
  config.trained.decoder = ConfigDict({
    'width': 64, 'num_layers': 4, 'num_heads': 4, 'mlp_width': 256, 'max_length': 64, 'norm_kind': 'layer', 'activation': 'relu',
  })  # fmt: skip
  if variant == 'tiny':
    config.random.shapes = _shapes((4, 8, 4), (16, 16, 8))
    config.random.s = (1.0, 5.0)
    config.random.rows_per_cell = 200
    config.tight.num_tokens = (2, 16)
    config.tight.s = (1.0, 5.0)
    config.tight.num_frames = 1
    config.adversarial.shapes = _shapes((4, 4, 2))
    config.adversarial.s = (1.0, 5.0)
    config.adversarial.num_starts = 4
    config.adversarial.num_snapshots = 2
    config.trained.num_steps = 8
    config.trained.num_snapshots = 2
    config.trained.decoder.width = 16
    config.trained.decoder.num_layers = 2
    config.trained.decoder.num_heads = 2
    config.trained.decoder.mlp_width = 32
    config.trained.decoder.max_length = 16
  return config
