"""The reliability matrix: real runs are killed, stopped, damaged, starved and confused on purpose, and compared with undisturbed ones.

Command:  make chaos            (or: python -m experiments.chaos --config=configs/chaos.py --workdir=DIR)
          make chaos-tiny       (`:tiny`: the same trials, each with a few cases)
Expected: every row of the table as asked, exit code 0; with any row that is not, exit code 1.
Time:     about 45 minutes on 2 CPU cores; `:tiny` a few minutes. README.md has the table.
"""

import ml_collections

from configs import common
from entropy_jax.training import ranges
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

ConfigDict = ml_collections.ConfigDict
VARIANTS = ('', 'tiny')

RANGES = ranges.LAUNCH | {
  'seed': 'int [0, 2147483647]',
  'trials': 'text',
  'at_once': 'int [1, inf)',
  'victim.name': 'text',
  'victim.variant': 'text',
  'victim.overrides': 'text',
  'victim.cache_dir': 'text',
  'kills.number': 'int [1, inf)',
  'kills.starts': 'int [0, inf)',
  'kills.per_run': 'int [1, inf)',
  'kills.window': '(0, inf)',
  'signals.number': 'int [1, inf)',
  'signals.per_run': 'int [1, inf)',
  'resume.every': 'int [1, inf)',
  'damage.flips': 'int [1, inf)',
  'storage.cases': 'int [1, inf)',
  'fuzz.cases': 'int [5, inf)',
  'numerics.steps': 'int [1, inf)',
  'torn.crashes': 'int [2, inf)',
  'layouts.number': 'int [1, 4]',
  'layouts.num_steps': 'int [1, inf)',
  'layouts.methods': 'text',
  'layouts.steps_each': 'int [1, inf)',
}


def get_config(variant: str = '') -> ConfigDict:
  """The matrix; variant '' or 'tiny'."""
  if variant not in VARIANTS:
    close = nearest(variant, VARIANTS)
    raise UserError(f'--config: configs/chaos.py has no variant {variant!r}; allowed: tiny, or none.{close}')
  config = ConfigDict()
  common.run_settings(config)
  config.seed = 0  # of every random moment, place and value
  config.trials = 'R1,R2,R3,R4,R5,R6,R12,R15,P,E'  # which, and in which order
  config.at_once = 2  # runs that are harmed at a time

  # A run of seconds whose steps, saves and evaluations take about as long as each other.
  config.victim = ConfigDict()
  config.victim.name = 'entropy_mechanism'  # of experiments/ and configs/
  config.victim.variant = 'tiny'
  config.victim.overrides = (  # KEY=VALUE, separated by blanks
    'tabular.num_seeds=0 countdown.num_seeds=1 countdown.dataset=countdown/three countdown.warm_start.num_steps=6 countdown.num_steps=40 '
    'countdown.num_prompts=16 countdown.group_size=16 countdown.num_eval_samples=4 countdown.checkpoint_every=2 countdown.evaluate_every=3'
  )
  config.victim.cache_dir = 'cache'  # of compiled programs, under the workdir unless absolute

  config.kills = ConfigDict()  # R1
  config.kills.number = 100  # after training began
  config.kills.starts = 10  # more of them, while the process starts
  config.kills.per_run = 8
  config.kills.window = 1.6  # seconds of training within which the uniform moments lie
  config.signals = ConfigDict()  # R2
  config.signals.number = 20
  config.signals.per_run = 5
  config.resume = ConfigDict()  # R3
  config.resume.every = 1  # each so manieth cell of the grid
  config.damage = ConfigDict()  # R4
  config.damage.flips = 200  # of single bytes, and a fifth as many cuts and deletions
  config.storage = ConfigDict()  # R5
  config.storage.cases = 5  # amounts of room on the full disk, from none to half of a checkpoint
  config.fuzz = ConfigDict()  # R6
  config.fuzz.cases = 1000
  config.numerics = ConfigDict()  # R12
  config.numerics.steps = 10  # harmed in each of reward, logits and gradient
  config.torn = ConfigDict()  # R15
  config.torn.crashes = 20
  config.layouts = ConfigDict()  # P and E
  config.layouts.number = 4  # how many of the layouts: pmap, fsdp, and each with two processes
  config.layouts.num_steps = 20
  config.layouts.methods = 'clip_cov,kl_cov,top_entropy,adaptive_entropy,composed'
  config.layouts.steps_each = 6  # steps on each number of devices

  if variant == 'tiny':
    config.kills.number = 6
    config.kills.starts = 1
    config.signals.number = 4
    config.resume.every = 29
    config.damage.flips = 20
    config.storage.cases = 1
    config.fuzz.cases = 100
    config.numerics.steps = 4
    config.torn.crashes = 4
    config.layouts.number = 1
    config.layouts.num_steps = 3
    config.layouts.methods = 'composed'
    config.layouts.steps_each = 2
  return config
