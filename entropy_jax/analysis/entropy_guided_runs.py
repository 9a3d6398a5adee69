"""The folder of the entropy-guided study as arrays by variant, and what follows from the entropies of heads: bands, overload,
collapse."""

import dataclasses
import pathlib
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from entropy_jax.analysis import figures, runs
from entropy_jax.measures import attention
from entropy_jax.training.guided_learner import head_name
from entropy_jax.training.sweeps import LOSS, column
from entropy_jax.types import UserError

BASELINE = 'ln_gelu'
# The order in which nonlinearities are taken away and amends made.
LADDER = (BASELINE, 'ln', 'gelu', 'relu', 'softmax_only', 'fused', 'fused_t', 'guided', 'guided_strong')
MOST_VARIANTS = len(figures.COLORS)
NUM_BANDS = 4  # quarters of the range from 0 to the largest entropy of a head that was seen


@dataclasses.dataclass(frozen=True)
class Trained:
  """One variant, all seeds.

  Attributes:
    step_C: updates made before each measure.
    loss_RxN: of every update's batch, the penalty included; NaN from where a run diverged.
    held_out_RxC: cross entropy of rows that are not trained on, nats a byte.
    entropy_RxCxLxH: of every head, relative to uniform attention, mean over rows and queries.
    threshold_RxCxLxH: of every head, a share of ln(context length); None without a penalty.
    largest_logit_RxCxL: of every layer.
  """

  step_C: np.ndarray
  loss_RxN: np.ndarray
  held_out_RxC: np.ndarray
  entropy_RxCxLxH: np.ndarray
  threshold_RxCxLxH: np.ndarray | None
  largest_logit_RxCxL: np.ndarray

  @property
  def final_loss(self) -> np.ndarray:
    """Held-out loss at the end, [R]."""
    return self.held_out_RxC[:, -1]

  @property
  def late_entropy(self) -> np.ndarray:
    """Of every head, the mean over the last fifth of the measures, [R, L, H]; NaN where one of them is."""
    return np.mean(self.entropy_RxCxLxH[:, -max(round(0.2 * len(self.step_C)), 1) :], axis=1)

  def layer_entropy(self, layer: int) -> np.ndarray:
    """Late entropy of a layer, mean over heads, [R]."""
    return np.mean(self.late_entropy[:, layer], axis=-1)


@dataclasses.dataclass(frozen=True)
class Ladder:
  """The study: its variants by name, BASELINE among them."""

  variants: Mapping[str, Trained]

  @property
  def baseline(self) -> Trained:
    return self.variants[BASELINE]

  @property
  def most(self) -> float:
    """The largest entropy of a head in any variant, seed and measure, which ends the range of the bands."""
    every = [x.entropy_RxCxLxH for x in self.variants.values()]
    return float(max(np.max(x, initial=0.0, where=np.isfinite(x)) for x in every))

  def shares(self, name: str) -> dict[str, np.ndarray]:
    """`measures.attention.head_shares` of a variant at the end, by name: overload, collapse and undefined, [R] each."""
    most = jnp.asarray(self.most)
    found = [attention.head_shares(jnp.asarray(entropy_LxH), most=most) for entropy_LxH in self.variants[name].late_entropy]
    return {key: np.array([getattr(one, key) for one in found], np.float64) for key in ('overload', 'collapse', 'undefined')}

  def bands(self, name: str) -> np.ndarray:
    """Share of the heads of all seeds in every band, [L, C, NUM_BANDS], from collapse to overload; what is not finite is in none."""
    entropy_LxCxM = np.moveaxis(self.variants[name].entropy_RxCxLxH, 0, -1)  # [C, L, H, R]
    C, L, H, R = entropy_LxCxM.shape
    entropy_LxCxM = entropy_LxCxM.reshape(C, L, H * R).transpose(1, 0, 2)
    place = np.clip(np.floor(np.nan_to_num(entropy_LxCxM) / max(self.most, 1e-12) * NUM_BANDS), 0, NUM_BANDS - 1)
    inside = (place[..., None] == np.arange(NUM_BANDS)) & np.isfinite(entropy_LxCxM)[..., None]
    return np.mean(inside, axis=2)


def trained(folder: pathlib.Path, *, num_seeds: int, log_every: int) -> Trained:
  """The runs of one variant, in the folder of its name."""
  found = [runs.load_metrics(folder / f'seed_{k}') for k in range(num_seeds)]
  num_rows = len(found[0]['step'])
  if any(len(run['step']) != num_rows for run in found):
    raise UserError(f'{folder} holds seeds of unequal length: delete the folder and run the study again.')
  step_C = np.arange(log_every, num_rows, log_every)
  names = {key.split('/', 1)[1] for key in found[0] if '/' in key}

  def rows(name: str, kept: np.ndarray | slice = step_C) -> np.ndarray:
    return np.array([run[column(folder.name, name)][kept] for run in found])

  def count(fits: str) -> int:
    return max(int(name.split('/')[0].removeprefix('layer_')) for name in names if name.endswith(fits)) + 1

  num_layers = count('/largest_logit')
  num_heads = sum(name.startswith('layer_0/head_') and name.endswith('/entropy') for name in names)

  def by_head(measure: str) -> np.ndarray:
    layer = lambda i: np.stack([rows(f'layer_{i}/{head_name(h, measure)}') for h in range(num_heads)], axis=-1)
    return np.stack([layer(i) for i in range(num_layers)], axis=-2)

  return Trained(
    step_C=step_C,
    loss_RxN=rows(LOSS, slice(0, num_rows - 1)),
    held_out_RxC=rows('held_out_loss'),
    entropy_RxCxLxH=by_head('entropy'),
    threshold_RxCxLxH=by_head('threshold') if f'layer_0/{head_name(0, "threshold")}' in names else None,
    largest_logit_RxCxL=np.stack([rows(f'layer_{i}/largest_logit') for i in range(num_layers)], axis=-1),
  )


def load(workdir: pathlib.Path) -> Ladder:
  """The variants of a finished study."""
  config = runs.load_config(workdir)
  about = {'num_seeds': config['num_seeds'], 'log_every': config['log_every']}
  return Ladder({name: trained(workdir / name, **about) for name in runs.ordered(config['variants'], LADDER)})
