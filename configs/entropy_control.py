"""Entropy to order: how well each controller holds the entropy of a policy at a target while it learns.

Command:  python -m experiments.entropy_control --config=configs/entropy_control.py --workdir=DIR
          `:tiny` is the same study in less than a minute, for a look and for tests; its verdicts are inconclusive by construction
          (2 seeds).
Expected: mean tracking error over targets of 0.3 to 1.5 nats on fork_tokens / mod_sum, 5 seeds: model_based 0.002 / 0.004 nats, the best
          published controller 0.010 (ter) / 0.011 (adaptive_entropy); paired difference -0.008 [-0.017, -0.004] / -0.006 [-0.007, -0.004].
Time:     11 minutes on 2 CPU cores, other work beside it.
Claims:   that of every published controller about its target, and that `model_based_entropy` tracks more closely than the best of them.

Every controller has as many settings, `NUM_SETTINGS`, as every other. They are tried on seeds of their own, and the one with the smallest
mean tracking error over targets and tuning seeds runs on the seeds that are reported. The ranges of the grids come from single runs with
other seeds; grids and criteria were fixed before the study was run.
"""

import ml_collections

from configs import common
from entropy_jax.training import ranges
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

ConfigDict = ml_collections.ConfigDict
VARIANTS = ('', 'tiny')
NUM_SETTINGS = 5

# What each key may be: entropy_jax/training/ranges.py. What keys may not be together: `validate` of the experiment.
RANGES = ranges.LAUNCH | {
  'seed': 'int [0, 2147483647]',
  'targets': 'numbers (0, inf)',
  'num_seeds': 'int [1, 10000]',
  'num_tuning_seeds': 'int [1, 10000]',
  'band': '(0, inf)',
  **{
    f'{task}.{key}': allowed
    for task in ('fork_tokens', 'mod_sum')
    for key, allowed in {
      'num_steps': 'int [0, inf)',
      'settle_by': 'int [0, inf)',
      'group_size': 'int [1, inf)',
      'num_epochs': 'int [1, inf)',
      'learning_rate': '(0, inf)',
    }.items()
  },
  'controllers.*.objective': 'text',
  'controllers.*.rollout': 'sampled | arbitrary_entropy',
  'controllers.*.settings': 'settings',
  'controllers.*.chosen': 'over_targets | each_target',
  'controllers.*.origin': 'published | here | reference',
}


def _controller(
  objective: str, *, rollout: str = 'sampled', chosen: str = 'over_targets', origin: str = 'published', **grid: tuple[float, ...]
) -> ConfigDict:
  """One controller; in its line, `target` and the names of the grid stand for numbers."""
  count = len(next(iter(grid.values()))) if grid else 1
  settings = [{name: values[i] for name, values in grid.items()} for i in range(count)]
  return ConfigDict({'objective': objective, 'rollout': rollout, 'settings': settings, 'chosen': chosen, 'origin': origin})


def _controllers() -> ConfigDict:
  """The published controllers, this library's, and GRPO without any.

  The coefficients belong to tables and plain gradient descent: they are 10 to 1000 times those of the papers. AEnt and SIREN hold a
  statistic of their own, the entropy of a part of the vocabulary; `siren_mean` is SIREN with the whole of it at every position, which makes
  its anchor a target of the mean entropy. EPO knows no target: its coefficient is chosen for each target.
  """
  return ConfigDict({
    'grpo': _controller('grpo', origin='reference'),
    'adaptive_entropy': _controller('grpo + adaptive_entropy(target=target, step=step)', step=(0.001, 0.003, 0.01, 0.03, 0.1)),
    'aent': _controller(
      'grpo + aent(adaptive=True, low=target, high=target, step=step, minimum=0.0, maximum=1.0)', step=(0.01, 0.03, 0.1, 0.3, 1.0)
    ),
    'ter': _controller('grpo + ter(target=target, coef=coef)', coef=(0.05, 0.1, 0.2, 0.5, 1.0)),
    'aepo': _controller(
      'grpo + imitate', rollout='arbitrary_entropy', high=(1.2, 1.35, 1.5, 2.0, 3.0), low=(0.8, 0.74, 0.67, 0.5, 0.33)
    ),
    'epo': _controller('grpo + epo(coef=coef, max_turns=6)', chosen='each_target', coef=(0.01, 0.03, 0.06, 0.2, 0.5)),
    'epo_smooth': _controller('grpo + epo_smooth(coef=coef, max_turns=6)', chosen='each_target', coef=(0.01, 0.03, 0.06, 0.2, 0.5)),
    'siren': _controller('grpo + siren(anchor=target, coef=coef)', coef=(0.1, 0.3, 1.0, 3.0, 10.0)),
    'siren_mean': _controller('grpo + siren(anchor=target, coef=coef, mass=1.0, positions=all)', coef=(0.3, 1.0, 3.0, 10.0, 30.0)),
    'model_based': _controller(
      'grpo + model_based_entropy(target=target, horizon=horizon)', origin='here', horizon=(1.0, 2.0, 4.0, 8.0, 16.0)
    ),
  })  # fmt: skip


def get_config(variant: str = '') -> ConfigDict:
  """The study; variant '' or 'tiny'."""
  if variant not in VARIANTS:
    close = nearest(variant, VARIANTS)
    raise UserError(f'--config: configs/entropy_control.py has no variant {variant!r}; allowed: tiny, or none.{close}')
  config = ConfigDict()
  common.run_settings(config)
  config.seed = 0  # root of every key
  config.targets = (0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5)  # H*, nats a token
  # Paired over controllers and targets: seed k has the same instance and rollout noise in each.
  config.num_seeds = 5
  config.num_tuning_seeds = 2  # others than the reported ones; on them each controller's setting is chosen
  config.band = 0.05  # nats: an entropy this close to its target is held
  config.fork_tokens = ConfigDict()
  config.fork_tokens.num_steps = 150  # rollouts; 0 leaves the task out
  config.fork_tokens.settle_by = 60  # the tracking error is that of the rollouts from here on
  config.fork_tokens.group_size = 16  # responses per prompt
  config.fork_tokens.num_epochs = 1  # full-batch updates per rollout
  config.fork_tokens.learning_rate = 100.0  # SGD on the token-mean loss
  config.mod_sum = ConfigDict()
  config.mod_sum.num_steps = 150
  config.mod_sum.settle_by = 60
  config.mod_sum.group_size = 8
  config.mod_sum.num_epochs = 1
  config.mod_sum.learning_rate = 180.0
  config.controllers = _controllers()  # name -> how it acts, and the settings among which one is chosen

  if variant == 'tiny':
    config.targets = (0.7, 1.3)
    config.num_seeds = 2
    config.num_tuning_seeds = 1
    config.fork_tokens.num_steps = 12
    config.fork_tokens.settle_by = 6
    config.mod_sum.num_steps = 0
    for name in ('adaptive_entropy', 'aent', 'epo', 'epo_smooth', 'siren', 'siren_mean'):
      del config.controllers[name]
    for name in ('ter', 'aepo', 'model_based'):
      config.controllers[name].settings = config.controllers[name].settings[1:3]
  return config
