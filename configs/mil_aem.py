"""Attention-entropy maximisation: does a bag classifier whose attention is kept wide do better on bags that it has not seen?

Command:  python -m experiments.mil_aem --config=configs/mil_aem.py --workdir=DIR
          `:tiny` is the same study in less than a minute, for a look and for tests; its verdicts are inconclusive by construction
          (2 seeds).
Expected: the table of the report.
Time:     budgeted at 2 minutes on 2 CPU cores.
Claims:   predictions of the method card: attention entropy grows with lambda, the test AUC is largest in between, above attention pooling
          alone and above mean pooling, which the largest lambda comes near; and whether it beats stopping early.

`gaussian` is the card's task, with 60 bags to train on. `digits` and `digit_kinds` have 30 bags of handwritten digits; the first is
positive with one digit, the second with one of four, of which training mostly shows the first. The number of these bags was set by looking
at plain attention alone, so that it learns something and not everything; grid and criteria were fixed before the study was run.
"""

from typing import Any

import ml_collections

from configs import common
from entropy_jax.training import ranges
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

ConfigDict = ml_collections.ConfigDict
VARIANTS = ('', 'tiny')
DIGIT_TASKS = ('digits', 'digit_kinds')
TASKS = ('gaussian', *DIGIT_TASKS)

# What each key may be: entropy_jax/training/ranges.py. What keys may not be together: `validate` of the experiment.
RANGES = ranges.LAUNCH | {
  'seed': 'int [0, 2147483647]',
  'num_seeds': 'int [1, 10000]',
  'coefs': 'numbers [0, inf)',
  'annealed': 'bool',
  'log_every': 'int [1, inf)',
  'attention_width': 'int [1, inf)',
  'optimizer.learning_rate': '(0, inf)',
  'optimizer.schedule': 'constant | linear | cosine',
  'optimizer.weight_decay': '[0, inf)',
  **{
    f'{task}.{key}': allowed
    for task in TASKS
    for key, allowed in {
      'num_steps': 'int [0, inf)',
      'batch_size': 'int [1, inf)',
      'width': 'int [1, inf)',
      'depth': 'int [1, inf)',
      'num_train': 'int [2, inf)',
      'num_validation': 'int [2, inf)',
      'num_test': 'int [2, inf)',
      'min_targets': 'int [1, inf)',
      'max_targets': 'int [1, inf)',
      'first_share': '[0, 1]',
    }.items()
  },
  'gaussian.size': 'int [1, inf)',
  'gaussian.num_features': 'int [1, inf)',
  'gaussian.shift': '[0, inf)',
  'gaussian.num_kinds': 'int [1, inf)',
  **{
    f'{task}.{key}': allowed
    for task in DIGIT_TASKS
    for key, allowed in {'kinds': 'numbers [0, 9]', 'min_size': 'int [1, inf)', 'max_size': 'int [1, inf)'}.items()
  },
}


def _task(**settings: Any) -> ConfigDict:
  # first_share: of the positive bags of training and validation, those that are of the first kind whatever chance says.
  shared = {'num_steps': 400, 'batch_size': 6, 'num_train': 60, 'num_validation': 60, 'num_test': 300}
  return ConfigDict(shared | settings)


def get_config(variant: str = '') -> ConfigDict:
  """The study; variant '' or 'tiny'."""
  if variant not in VARIANTS:
    close = nearest(variant, VARIANTS)
    raise UserError(f'--config: configs/mil_aem.py has no variant {variant!r}; allowed: tiny, or none.{close}')
  config = ConfigDict()
  common.run_settings(config)
  config.seed = 0  # root of every key, of all bags and of their order
  config.num_seeds = 8  # paired over settings: seed k has the same bags, batches and initial parameters at every lambda
  config.coefs = (0.0, 0.01, 0.1, 1.0, 10.0)  # lambda; 0, plain attention pooling, is one of them. Mean pooling is trained beside them.
  config.annealed = True  # every lambda above 0 once more, falling to 0 along a half-cosine
  config.log_every = 40  # updates between two measures
  config.attention_width = 32
  config.optimizer = ConfigDict()  # AdamW
  config.optimizer.learning_rate = 3e-3
  config.optimizer.schedule = 'cosine'  # to 0 at the end; or constant, linear
  config.optimizer.weight_decay = 1e-5
  # num_steps: updates, 0 leaves the task out. width, depth: of the encoder of instances; a depth of 1 is the method's.
  config.gaussian = _task(
    width=32, depth=1, size=200, num_features=16, shift=3.0, num_kinds=4, first_share=0.7, min_targets=10, max_targets=20
  )
  # Equal shapes make the two one compiled program.
  sizes = {'num_train': 30, 'width': 32, 'depth': 2, 'min_size': 20, 'max_size': 40, 'min_targets': 2, 'max_targets': 4}
  config.digits = _task(kinds=(9,), first_share=0.0, **sizes)
  config.digit_kinds = _task(kinds=(9, 7, 3, 1), first_share=0.7, **sizes)

  if variant == 'tiny':
    config.num_seeds = 2
    config.coefs = (0.0, 1.0)
    config.log_every = 10
    config.attention_width = 8
    config.gaussian.num_steps = config.digits.num_steps = 0
    task = config.digit_kinds
    task.num_steps, task.num_train, task.num_validation, task.num_test, task.width = 40, 12, 12, 20, 16
    task.min_size, task.max_size = 6, 10
  return config
