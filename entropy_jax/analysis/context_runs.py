"""The folder of the context-extension study as arrays by task and extension: losses and attention entropies by position and update."""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from entropy_jax.analysis import figures, runs
from entropy_jax.training.position_learner import bin_name
from entropy_jax.training.sweeps import column
from entropy_jax.types import UserError

BASELINE = 'none'
ORDER = (BASELINE, 'scale', 'abf', 'entropy_abf')  # in figures and tables
SHORT = 'short'  # folder of the models trained at the short length
MOST_EXTENSIONS = len(figures.COLORS)
UNTUNED, TUNED = 0, -1  # places among the measures


@dataclasses.dataclass(frozen=True)
class Extended:
  """One extension, all seeds. Measure 0 is of the start, before any update at the tuned length.

  Attributes:
    step_C: updates made before each measure.
    loss_RxCxJ: mean cross entropy of every bin of positions, nats; NaN where a bin has no target.
    entropy_RxCxLxJ: mean entropy of every layer's attention in every bin, nats.
  """

  step_C: np.ndarray
  loss_RxCxJ: np.ndarray
  entropy_RxCxLxJ: np.ndarray


@dataclasses.dataclass(frozen=True)
class Task:
  """One task: its extensions by name, BASELINE among them, and its lengths in positions.

  Attributes:
    context: c, trained on.
    tuned_context: tuned on.
    longest: measured on.
    bin_size: positions of a bin.
    exempt: layers at the bottom that the scaling of logits leaves alone.
  """

  name: str
  extensions: Mapping[str, Extended]
  context: int
  tuned_context: int
  longest: int
  bin_size: int
  exempt: int

  @property
  def positions(self) -> np.ndarray:
    """The last position of every bin, [J]."""
    return np.arange(1, self.longest // self.bin_size + 1) * self.bin_size

  def loss(self, name: str, first: int, last: int, measure: int) -> np.ndarray:
    """Mean loss over positions first + 1 .. last, both multiples of the size of a bin, [R]; of the bins that have a target."""
    loss_RxJ = self.extensions[name].loss_RxCxJ[:, measure, first // self.bin_size : last // self.bin_size]
    return np.mean(loss_RxJ[:, self._has_target[first // self.bin_size : last // self.bin_size]], axis=-1)

  @property
  def _has_target(self) -> np.ndarray:
    """Bins with a target, [J]: some have none, in every model alike; what is NaN in all of them at the start counts as such."""
    return np.any([np.isfinite(x.loss_RxCxJ[:, 0]).any(axis=0) for x in self.extensions.values()], axis=0)

  def growth(self, name: str, layers: slice, *, start: int, end: int, measure: int = UNTUNED) -> np.ndarray:
    """Entropy of the bin that ends at position `end` minus that of the bin that ends at `start`, nats, mean over layers, [R]."""
    entropy_RxLxJ = self.extensions[name].entropy_RxCxLxJ[:, measure, layers]
    at = lambda position: entropy_RxLxJ[..., position // self.bin_size - 1]
    return np.mean(at(end) - at(start), axis=-1)

  @property
  def early(self) -> slice:
    """The layers that are exempt."""
    return slice(None, self.exempt)

  @property
  def late(self) -> slice:
    """The layers that are scaled."""
    return slice(self.exempt, None)


def extended(folder: pathlib.Path, *, num_seeds: int, log_every: int, num_bins: int, num_layers: int) -> Extended:
  """The runs of one extension, in the folder of its name."""
  found = [runs.load_metrics(folder / f'seed_{k}') for k in range(num_seeds)]
  num_rows = len(found[0]['step'])
  if any(len(run['step']) != num_rows for run in found):
    raise UserError(f'{folder} holds seeds of unequal length: delete the folder and run the study again.')
  step_C = np.arange(0, num_rows, log_every)
  rows = lambda name: np.array([run[column(folder.name, name)][step_C] for run in found])
  entropy = lambda i: np.stack([rows(f'layer_{i}/{bin_name("entropy", j)}') for j in range(num_bins)], axis=-1)
  return Extended(
    step_C=step_C,
    loss_RxCxJ=np.stack([rows(bin_name('loss', j)) for j in range(num_bins)], axis=-1),
    entropy_RxCxLxJ=np.stack([entropy(i) for i in range(num_layers)], axis=-2),
  )


def load(workdir: pathlib.Path) -> dict[str, Task]:
  """The tasks of a finished study that were run."""
  config = runs.load_config(workdir)
  about = {
    'num_seeds': config['num_seeds'],
    'log_every': config['tuning']['log_every'],
    'num_bins': config['longest'] // config['bin_size'],
    'num_layers': config['num_layers'],
  }
  exempt = min(fields.get('entropy_abf_exempt', 2) for fields in config['extensions'].values())
  lengths = {key: config[key] for key in ('context', 'tuned_context', 'longest', 'bin_size')}
  names = runs.ordered(config['extensions'], ORDER)
  return {
    task: Task(task, {name: extended(workdir / task / name, **about) for name in names}, exempt=exempt, **lengths)
    for task, num_steps in config[SHORT]['num_steps'].items()
    if num_steps
  }
