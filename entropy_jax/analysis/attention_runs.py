"""The folder of the attention-entropy study as arrays by task and variant, [K, R, ...] over learning rates and seeds, and what follows
from a sweep alone: final losses, which runs are stable, where entropy has collapsed.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from entropy_jax.analysis import runs
from entropy_jax.measures import sensitivity
from entropy_jax.training.sweeps import LOSS, column
from entropy_jax.types import UserError

BASELINE = 'pre_ln'
MOST_VARIANTS = 9  # that a figure can tell apart
# Classes that guessing chooses among: a run that has learnt nothing has the loss ln of it.
NUM_CLASSES = {'digits': 10, 'source_bytes': 256, 'unigram': 32, 'copy': 32}
COLLAPSED = 0.1  # entropy relative to uniform attention, of the lowest layer: the method card's number
LAYERED = ('entropy', 'largest_logit', 'scale', 'least_entropy', 'weight_norm', 'query_norm', 'key_norm', 'query_gain', 'key_gain')
SINGLE = ('held_out_loss', 'held_out_accuracy', 'bounded_rows', 'violations')


@dataclasses.dataclass(frozen=True)
class Swept:
  """One variant on one task.

  Attributes:
    rate_K: learning rates, growing.
    loss_KxRxN: of every update; NaN from where a run diverged.
    log_step_C: updates made before each measure.
    layered: name of LAYERED -> [K, R, C, L], of what the variant logs.
    single: name of SINGLE -> [K, R, C].
    norm_over_gain_KxRxM: of all M reparametrised maps after training; M = 0 without any.
    map_names: their paths.
    initial_loss: of guessing.
    tail: how many last updates make the final loss.
  """

  rate_K: np.ndarray
  loss_KxRxN: np.ndarray
  log_step_C: np.ndarray
  layered: Mapping[str, np.ndarray]
  single: Mapping[str, np.ndarray]
  norm_over_gain_KxRxM: np.ndarray
  map_names: Sequence[str]
  initial_loss: float
  tail: int

  @functools.cached_property
  def final_loss(self) -> np.ndarray:
    """Mean loss over the last updates, [K, R]; NaN where one of them is not finite."""
    return np.mean(self.loss_KxRxN[..., -self.tail :], axis=-1)

  @functools.cached_property
  def clamped(self) -> np.ndarray:
    """Final losses, no larger than guessing, which is also that of a diverged run, [K, R]."""
    return np.asarray(sensitivity.clamped_loss(jnp.asarray(self.final_loss.T), self._initial)).T.astype(np.float64)

  @property
  def _initial(self) -> jnp.ndarray:
    return jnp.full(self.final_loss.shape[1], self.initial_loss)

  @property
  def best_loss(self) -> np.ndarray:
    """The smallest final loss of every seed, [R]."""
    return np.min(self.clamped, axis=0)

  @property
  def best_rate(self) -> int:
    """Which learning rate has the smallest final loss, mean over seeds."""
    return int(np.argmin(np.mean(self.clamped, axis=1)))

  @functools.cached_property
  def largest_stable(self) -> np.ndarray:
    """`sensitivity.largest_stable_rate` of every seed, against its own best loss, [R]; NaN where nothing was learnt at any rate."""
    rate_R = np.asarray(sensitivity.largest_stable_rate(jnp.asarray(self.rate_K), jnp.asarray(self.final_loss.T), self._initial))
    # float32 has rounded the rates, which are one of the grid's.
    near = self.rate_K[np.argmin(np.abs(np.log(self.rate_K)[:, None] - np.log(np.maximum(rate_R, 1e-30))[None]), axis=0)]
    return np.where(rate_R > 0, near, np.nan)

  @property
  def stable(self) -> np.ndarray:
    """Which runs are at a rate that is not above the largest stable one of their seed, bool [K, R]."""
    return self.rate_K[:, None] <= self.largest_stable[None]

  def lr_sensitivity(self, best_R: np.ndarray | None = None) -> np.ndarray:
    """`sensitivity.lr_sensitivity` of every seed, [R]; with best_R, the mean distance from that loss instead."""
    best = None if best_R is None else jnp.asarray(best_R)
    return np.asarray(sensitivity.lr_sensitivity(jnp.asarray(self.final_loss.T), self._initial, best_x=best), np.float64)

  def late(self, values_KxRxCxL: np.ndarray) -> np.ndarray:
    """Of every layer, the mean over the last fifth of the measures that are finite, [K, R, L]; NaN where none is."""
    K, R, C, L = values_KxRxCxL.shape
    kept = np.full((K, R, L), np.nan)
    for k, r, i in np.ndindex(K, R, L):
      finite = values_KxRxCxL[k, r, :, i][np.isfinite(values_KxRxCxL[k, r, :, i])]
      if finite.size:
        kept[k, r, i] = np.mean(finite[-max(round(0.2 * C), 1) :])
    return kept

  @property
  def lowest_entropy(self) -> np.ndarray:
    """Late entropy of the layer where it is lowest, relative to uniform attention, [K, R]."""
    return np.min(self.late(self.layered['entropy']), axis=-1)

  @property
  def mean_entropy(self) -> np.ndarray:
    """Late entropy, mean over layers, relative to uniform attention, [K, R]."""
    return np.mean(self.late(self.layered['entropy']), axis=-1)

  @property
  def collapsed(self) -> np.ndarray:
    """Which runs fail with collapsed entropy, bool [K, R]: above the largest stable rate, the lowest layer's entropy below COLLAPSED.

    Low entropy alone is no collapse: tasks that need sharp attention lower it and learn.
    """
    return ~self.stable & (self.lowest_entropy < COLLAPSED)

  def at(self, rate: float) -> int | None:
    """The place of a learning rate in the grid, None where it is not in it."""
    found = np.flatnonzero(np.isclose(self.rate_K, rate, rtol=1e-6))
    return int(found[0]) if found.size else None


@dataclasses.dataclass(frozen=True)
class Sweeps:
  """One task.

  Attributes:
    task: its name.
    num_keys: that the last query sees.
    variants: BASELINE among them.
    schedule: of the learning rate: 'constant', 'linear' or 'cosine'.
  """

  task: str
  num_keys: int
  variants: Mapping[str, Swept]
  schedule: str = 'constant'

  @property
  def baseline(self) -> Swept:
    return self.variants[BASELINE]

  @property
  def best_loss(self) -> np.ndarray:
    """The smallest final loss of every seed over variants and rates, [R]."""
    return np.min([swept.best_loss for swept in self.variants.values()], axis=0)


def _stacked(found: Sequence[runs.RunMetrics], rates: Sequence[float], name: str, rows: np.ndarray | slice) -> np.ndarray:
  """One column of every rate and seed, [K, R, rows]; a column that no row has is NaN throughout."""
  absent = np.full(len(found[0]['step']), np.nan)
  return np.array([[run[column(rate, name)][rows] if column(rate, name) in run else absent[rows] for run in found] for rate in rates])


def swept(folder: pathlib.Path, rates: Sequence[float], *, num_seeds: int, log_every: int, initial_loss: float, tail: int) -> Swept:
  """The runs of one variant."""
  rates = sorted(rates)
  found = [runs.load_metrics(folder / f'seed_{k}') for k in range(num_seeds)]
  num_rows = len(found[0]['step'])
  if any(len(run['step']) != num_rows for run in found):
    raise UserError(f'{folder} holds seeds of unequal length: delete the folder and run the study again.')
  log_step_C = np.arange(log_every, num_rows, log_every)
  names = {key.split('/', 1)[1] for key in found[0] if '/' in key}
  num_layers = sum(name.startswith('layer_') and name.endswith('/entropy') for name in names)
  layered = {
    name: np.stack([_stacked(found, rates, f'layer_{i}/{name}', log_step_C) for i in range(num_layers)], axis=-1)
    for name in LAYERED
    if f'layer_0/{name}' in names
  }
  maps = sorted(name for name in names if name.startswith('final/') and name.endswith('/norm_over_gain'))
  ratio = [_stacked(found, rates, name, np.array([num_rows - 1]))[..., 0] for name in maps]
  return Swept(
    rate_K=np.array(rates),
    loss_KxRxN=_stacked(found, rates, LOSS, slice(0, num_rows - 1)),
    log_step_C=log_step_C,
    layered=layered,
    single={name: _stacked(found, rates, name, log_step_C) for name in SINGLE},
    norm_over_gain_KxRxM=np.stack(ratio, axis=-1) if ratio else np.zeros((len(rates), num_seeds, 0)),
    map_names=[name.removeprefix('final/').removesuffix('/norm_over_gain') for name in maps],
    initial_loss=initial_loss,
    tail=tail,
  )


def load(workdir: pathlib.Path) -> dict[str, Sweeps]:
  """The sweeps of a finished study by task."""
  config, found = runs.load_config(workdir), {}
  for task, classes in NUM_CLASSES.items():
    settings = config[task]
    if not settings['num_steps']:
      continue
    num_keys = (8 // settings['patch_size']) ** 2 if task == 'digits' else settings['length'] - 1
    variants = {
      name: swept(
        workdir / task / name,
        config['rates'],
        num_seeds=config['num_seeds'],
        log_every=settings['log_every'],
        initial_loss=math.log(classes),
        tail=config['tail'],
      )
      for name in sorted(config['variants'], key=lambda name: name != BASELINE)  # which is drawn dark
    }
    found[task] = Sweeps(task, num_keys, variants, settings['schedule'])
  return found
