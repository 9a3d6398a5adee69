"""Entropy to order: how well each controller holds the entropy of a policy at a target, over a grid of targets, while the policy learns.

The controllers: Skywork's adaptive entropy bonus, AEnt, TER, arbitrary entropy policy optimisation, EPO, SIREN, and this library's
`model_based_entropy`, which reads the entropy ledger of every update. Each has one setting for all targets, the best of equally many on
seeds of its own (EPO, which knows no target, has one for each). Criteria are code, in entropy_jax/analysis/control_report.py.

    python -m experiments.entropy_control --config=configs/entropy_control.py --workdir=DIR     # or :tiny

Leaves DIR/report.html (open it), DIR/claims.json, DIR/figures/, and a run folder a seed: DIR/TASK/CONTROLLER/seed_K, and those of the
tuning, DIR/TASK/CONTROLLER/tuning/setting_I/seed_K. The same command on the same DIR goes on where it stopped.
"""

import inspect
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from configs.entropy_control import RANGES
from entropy_jax import catalog, compose
from entropy_jax.analysis import control_report, control_runs
from entropy_jax.data import fork_tokens, mod_sum
from entropy_jax.data.tabular_task import TabularTask
from entropy_jax.parallel import processes
from entropy_jax.training import app, mixers, ranges, scanned, tables
from entropy_jax.training.writers import METRICS
from entropy_jax.types import Metrics, UserError

TASKS: dict[str, Callable[[jax.Array], TabularTask]] = {'fork_tokens': fork_tokens.make, 'mod_sum': mod_sum.make}
ROLLOUTS: dict[str, Callable[..., scanned.Mixer]] = {
  'sampled': lambda *, target: scanned.NO_MIXER,
  'arbitrary_entropy': mixers.arbitrary_entropy,
}
TARGET = 'target'
FIRST_TUNING_SEED = 1_000_000  # more than there are reported seeds
MOST_CONTROLLERS = 9  # that a figure can tell apart


class Controller(NamedTuple):
  """One controller, for a config that `validate` has seen.

  Attributes:
    spec: of its objective; hyper-parameters that are `target` or a name in the settings stand for numbers.
    rollout: key of ROLLOUTS.
    settings: the numbers of each setting by name.
    each_target: whether the setting is chosen for each target alone.
  """

  spec: Mapping[str, Any]
  rollout: str
  settings: tuple[Mapping[str, float], ...]
  each_target: bool

  def parts(self, values: Mapping[str, Any]) -> tuple[Any, scanned.Mixer]:
    """(objective, mixer) for `target` and the numbers of a setting, which may be values of a traced program."""
    objective = catalog.build(bind(self.spec, values))
    taken = inspect.signature(ROLLOUTS[self.rollout]).parameters
    return objective, ROLLOUTS[self.rollout](**{name: value for name, value in values.items() if name in taken})


def bind(spec: Any, values: Mapping[str, Any]) -> Any:
  """The spec with each text that is a name in values replaced by what it stands for."""
  if isinstance(spec, str):
    return values.get(spec, spec)
  if isinstance(spec, Mapping):
    return {key: item if key == 'name' else bind(item, values) for key, item in spec.items()}
  return [bind(item, values) for item in spec] if isinstance(spec, list) else spec


def _names(spec: Any) -> set[str]:
  """Every text in the spec that may stand for a number."""
  if isinstance(spec, str):
    return {spec}
  if isinstance(spec, Mapping):
    return set().union(*(_names(item) for key, item in spec.items() if key != 'name'))
  return set().union(*map(_names, spec)) if isinstance(spec, list) else set()


def main(config: Any, workdir: pathlib.Path) -> None:
  """Runs whatever of the study is not done yet, then writes claims, figures and the report."""
  started = time.monotonic()
  with processes.agreed():
    controllers = validate(config)
  for task in TASKS:
    if config[task].num_steps:
      run_task(task, config, controllers, workdir / task)
  with processes.agreed():  # so that the others wait for the report
    if jax.process_index() == 0:
      for claim in control_report.report(workdir, seconds=time.monotonic() - started):
        print(f'{claim.verdict:>16}  {claim.id}: {claim.value:.3g} [{claim.interval[0]:.3g}, {claim.interval[1]:.3g}]  ({claim.criterion})')
      print(f'report: {workdir / "report.html"}')


def validate(config: Any) -> dict[str, Controller]:
  """Every mistake that the config can hold, each setting of each controller built once from its numbers; compiles nothing.

  Raises:
    UserError: key, value and what is allowed.
  """
  plain = app.resolve(config)
  ranges.check(plain, RANGES)
  ranges.check_launch(plain)
  if not any(plain[task]['num_steps'] for task in TASKS):
    raise UserError(f'config: num_steps=0 of {" and ".join(TASKS)} leaves nothing to run; give one of them at least 1.')
  for task in TASKS:
    num_steps, settle_by = plain[task]['num_steps'], plain[task]['settle_by']
    if num_steps and settle_by >= num_steps:
      raise UserError(f'config: {task}.settle_by={settle_by} leaves nothing of {task}.num_steps={num_steps}; give less than {num_steps}.')
  given = plain['controllers']
  origins = {origin: [name for name, c in given.items() if c['origin'] == origin] for origin in ('published', 'here', 'reference')}
  if not origins['published'] or len(origins['here']) != 1 or len(origins['reference']) != 1:
    counts = ', '.join(f'{len(names)} {origin}' for origin, names in origins.items())
    raise UserError(f'config: controllers has origins {counts}; give at least one published, one here and one reference.')
  if len(given) - 1 > MOST_CONTROLLERS:
    raise UserError(f'config: controllers has {len(given) - 1} besides the reference; a figure can tell {MOST_CONTROLLERS} apart.')
  sizes = {name: len(c['settings']) for name, c in given.items() if c['origin'] != 'reference'}
  if len(set(sizes.values())) > 1:
    raise UserError(f'config: controllers have unequal numbers of settings ({sizes}); give each as many as the others.')
  return {name: _controller(name, c, plain['targets']) for name, c in given.items()}


def _controller(name: str, given: Mapping[str, Any], targets: list[float]) -> Controller:
  key = f'controllers.{name}'
  with ranges.naming(f'{key}.objective'):
    spec = compose.parse(given['objective'])
    catalog.check_reads(spec, tables.ABSENT - ({'imitated_B'} if given['rollout'] == 'arbitrary_entropy' else set()))
  found = Controller(spec, given['rollout'], tuple(given['settings']), given['chosen'] == 'each_target')
  known = _names(spec) | set(inspect.signature(ROLLOUTS[found.rollout]).parameters)
  for setting in found.settings:
    for unused in setting.keys() - (known - {TARGET}):
      raise UserError(f'config: {key}.settings has {unused!r}, which {key}.objective={given["objective"]!r} does not name; name it there.')
    for target in targets:
      with ranges.naming(f'{key}.objective'):
        found.parts({**setting, TARGET: target})
  return found


def run_task(task: str, config: Any, controllers: Mapping[str, Controller], directory: pathlib.Path) -> None:
  """Every controller on one task: one compiled scan a controller, its targets vmapped, its numbers values of the program."""
  settings, targets_K = config[task], np.asarray(config.targets, np.float32)
  options, root = tables.compiler_options(), jax.random.key(config.seed)
  measured = jax.jit(
    jax.vmap(lambda key, table: scanned.measure(TASKS[task], key, table), (None, 0)), compiler_options=options
  )  # fmt: skip

  def run(name: str) -> None:
    controller = controllers[name]

    def one(key: jax.Array, values: Mapping[str, jax.Array]) -> tuple[Metrics, jax.Array]:
      objective, mixer = controller.parts(values)
      return scanned.train(
        TASKS[task],
        key,
        objective=objective,
        tx=optax.sgd(settings.learning_rate),
        num_steps=settings.num_steps,
        group_size=settings.group_size,
        num_epochs=settings.num_epochs,
        mixer=mixer,
      )

    train = jax.jit(jax.vmap(one, (None, 0)), compiler_options=options)

    def missing(folder: pathlib.Path, seed: int, chosen_K: np.ndarray) -> None:
      file = folder / METRICS
      if file.exists():
        return
      numbers = {key: np.array([controller.settings[i][key] for i in chosen_K], np.float32) for key in controller.settings[0]}
      key = jax.random.fold_in(root, seed)
      per_step, found = train(key, {**numbers, TARGET: targets_K})
      curves = jax.device_get(control_runs.columns({**per_step, **measured(key, found)}, config.targets))
      tables.write_curves(file, curves, f'{task}, {name}, {folder.name}')

    if len(controller.settings) > 1:
      for i in range(len(controller.settings)):
        for k in range(config.num_tuning_seeds):
          missing(control_runs.tuning_folder(directory / name, i, k), FIRST_TUNING_SEED + k, np.full(targets_K.size, i))
    chosen_K = control_runs.chosen(
      directory / name,
      config.targets,
      num_settings=len(controller.settings),
      num_seeds=config.num_tuning_seeds,
      settle_by=settings.settle_by,
      each_target=controller.each_target,
    )
    for k in range(config.num_seeds):
      missing(directory / name / f'seed_{k}', k, chosen_K)

  tables.two_at_a_time(run, list(controllers), f'{task}, {len(config.targets)} targets, controller')


if __name__ == '__main__':
  app.run(main)
