"""The folder of the entropy-control study: where each run lies, what its metrics.jsonl holds, and all of it as arrays by controller."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from entropy_jax.analysis import control, runs

TASKS = ('fork_tokens', 'mod_sum')
HERE, REFERENCE, PUBLISHED = 'here', 'reference', 'published'
ENTROPY, SUCCESS, OWN, COEFFICIENT = 'entropy', 'success', 'own_entropy', 'coefficient'


def column(target: float, name: str) -> str:
  """The key in metrics.jsonl of what belongs to one target."""
  return f'target_{target:g}/{name}'


def columns(curves: Mapping[str, Any], targets: Sequence[float]) -> dict[str, Any]:
  """What is kept of the curves of a run, [K, N] each, by the keys of metrics.jsonl.

  A regularizer's own statistic and coefficient are those that it logs as `entropy` and `coefficient`.
  """
  kept = {ENTROPY: curves['exact/entropy_all'], SUCCESS: curves['exact/success']}
  for key, values in curves.items():
    if key.startswith('regularizer/'):
      name = {'entropy': OWN, 'coefficient': COEFFICIENT}.get(key.rsplit('/', 1)[1])
      kept |= {} if name is None else {name: values}
  kept |= {key.removeprefix('rollout/'): values for key, values in curves.items() if key in ('rollout/temperature', 'rollout/num_imitated')}
  return {column(target, name): values[k] for name, values in kept.items() for k, target in enumerate(targets)}


def tuning_folder(controller: pathlib.Path, setting: int, seed: int) -> pathlib.Path:
  """Of one run with one setting of a controller."""
  return controller / 'tuning' / f'setting_{setting}' / f'seed_{seed}'


def stacked(folders: Sequence[pathlib.Path], targets: Sequence[float], name: str) -> np.ndarray | None:
  """One quantity of several runs, [K, R, N]; None where the controller does not log it."""
  found = [runs.load_metrics(folder) for folder in folders]
  if column(targets[0], name) not in found[0]:
    return None
  return np.stack([runs.stack_runs(found, column(target, name))[1] for target in targets])


def chosen(
  controller: pathlib.Path, targets: Sequence[float], *, num_settings: int, num_seeds: int, settle_by: int, each_target: bool
) -> np.ndarray:
  """The setting that a controller is reported with at each target, [K]: see `control.choose`."""
  if num_settings == 1:
    return np.zeros(len(targets), int)
  errors = []
  for i in range(num_settings):
    entropy_KxRxN = stacked([tuning_folder(controller, i, k) for k in range(num_seeds)], targets, ENTROPY)
    assert entropy_KxRxN is not None
    errors.append([control.tracking_error(curves, target, start=settle_by) for curves, target in zip(entropy_KxRxN, targets)])
  return control.choose(np.array(errors), each_target=each_target)


@dataclasses.dataclass(frozen=True)
class Controlled:
  """The reported runs of one controller: curves are [K, R, N], over targets, seeds and rollouts."""

  origin: str
  settings: Sequence[Mapping[str, float]]
  chosen_K: np.ndarray
  entropy_KxRxN: np.ndarray
  success_KxRxN: np.ndarray
  own_KxRxN: np.ndarray | None

  def setting(self) -> str:
    """The chosen setting in words."""
    said = [', '.join(f'{name} {value:g}' for name, value in self.settings[i].items()) for i in self.chosen_K]
    return said[0] if len(set(said)) == 1 else '; '.join(said)


@dataclasses.dataclass(frozen=True)
class Testbed:
  """One task: what every controller did with every target."""

  name: str
  targets: Sequence[float]
  settle_by: int
  band: float
  controllers: Mapping[str, Controlled]

  def of(self, origin: str) -> list[str]:
    return [name for name, c in self.controllers.items() if c.origin == origin]

  def floor(self) -> float:
    """The entropy at which the reference ends by itself, mean over seeds: only above it must a controller raise entropy."""
    return float(np.mean(control.final_mean(self.controllers[self.of(REFERENCE)[0]].entropy_KxRxN[0])))

  def above(self) -> np.ndarray:
    """Which targets lie above the reference's own entropy, bool [K]."""
    return np.asarray(self.targets) > self.floor()

  def error(self, name: str, *, own: bool = False) -> np.ndarray:
    """Mean absolute tracking error, [K, R], of the mean token entropy, or of the statistic that the controller itself holds."""
    held = self.controllers[name]
    values = held.own_KxRxN if own else held.entropy_KxRxN
    assert values is not None
    return self._each(lambda curves, target: control.tracking_error(curves, target, start=self.settle_by), values)

  def each(self, measure: Callable[[np.ndarray, float], np.ndarray], name: str) -> np.ndarray:
    """A measure (entropy_RxN, target) -> [R] at every target, [K, R]."""
    return self._each(measure, self.controllers[name].entropy_KxRxN)

  def _each(self, measure: Callable[[np.ndarray, float], np.ndarray], values_KxRxN: np.ndarray) -> np.ndarray:
    return np.array([measure(curves, target) for curves, target in zip(values_KxRxN, self.targets)])

  def best(self, over_K: np.ndarray) -> str:
    """The published controller with the smallest mean error over these targets and the reported seeds.

    It is chosen among the reported numbers themselves, in its favour.
    """
    return min(self.of(PUBLISHED), key=lambda name: float(np.mean(self.error(name)[over_K])))


def load(workdir: pathlib.Path) -> dict[str, Testbed]:
  """The testbeds of a finished study by name."""
  config = runs.load_config(workdir)
  targets, found = config['targets'], {}
  for task in TASKS:
    if not config[task]['num_steps']:
      continue
    held = {}
    for name, given in config['controllers'].items():
      folder, settle_by = workdir / task / name, config[task]['settle_by']
      folders = [folder / f'seed_{k}' for k in range(config['num_seeds'])]
      chosen_K = chosen(
        folder,
        targets,
        num_settings=len(given['settings']),
        num_seeds=config['num_tuning_seeds'],
        settle_by=settle_by,
        each_target=given['chosen'] == 'each_target',
      )
      entropy, success = stacked(folders, targets, ENTROPY), stacked(folders, targets, SUCCESS)
      assert entropy is not None and success is not None
      held[name] = Controlled(given['origin'], given['settings'], chosen_K, entropy, success, stacked(folders, targets, OWN))
    found[task] = Testbed(task, targets, config[task]['settle_by'], config['band'], held)
  return found
