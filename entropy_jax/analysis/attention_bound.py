"""Rows of attention in files, and what they say of the bound: how many are below it in each of its forms, and how near others come.

Everything is read from the run folder, so an old run can be judged again. The tolerances and criteria below are fixed: the theorem allows
no row below its bound, so what is left to state is what float32 may add to that.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np
from numpy.typing import ArrayLike

from entropy_jax.analysis import runs
from entropy_jax.analysis.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, Claim, Interval, judge
from entropy_jax.measures import attention_bound
from entropy_jax.training.files import replacing, write_atomically
from entropy_jax.training.writers import METRICS, format_row
from entropy_jax.types import UserError

ROWS = 'rows.npz'
SHAPE = ('num_tokens', 'width', 'head_dim')
SOURCES = ('random', 'trained', 'adversarial', 'tight')
FORMS = {
  'weights_whole': 'weights and all tokens: ||W_K W_Q^T|| ||X||^2',
  'weights': 'weights and the tokens seen: ||W_K W_Q^T|| ||X_{1:i}||^2',
  'query_key': 'queries and keys: ||q_i|| ||K||',
  'centred': 'the row itself: ||a_i - mean(a_i)||',
}
PAPER = 'Zhai et al., Stabilizing Transformer Training by Preventing Attention Entropy Collapse, arXiv 2303.06296, Theorem 3.1'
# A row is below its bound if H < (1 - RTOL) LB(T, (1 + S_RTOL) s). The arithmetic of float32 is good for about 1e-6 of s, of H and of LB;
# an error in s is one of g times that in LB, which falls like e^-g, so it is allowed for in s itself.
S_RTOL, RTOL = 1e-5, 1e-5
UNDERSTATED = 0.9  # a check that cannot fail is none: with this share of s, every row of the constructed layer must be below its bound
ATTAINED = 1e-5  # nats
ORDER_RTOL = 1e-4
LOGITS_RTOL = 1e-4
_BLOCK = 16384

_bound = jax.jit(attention_bound.lower_bound)
_below = jax.jit(lambda H, T, s: attention_bound.is_violated(H, attention_bound.lower_bound(T, (1 + S_RTOL) * s), rtol=RTOL))


def _in_blocks(function: Callable[..., jax.Array], *arrays: ArrayLike) -> np.ndarray:
  """The function of numpy arrays, elementwise in blocks of one size, so that it is compiled once."""
  inputs = np.broadcast_arrays(*(np.asarray(x, np.float32) for x in arrays))
  size, shape = inputs[0].size, inputs[0].shape
  blocks = zip(*(np.pad(x.ravel(), (0, -size % _BLOCK)).reshape(-1, _BLOCK) for x in inputs))
  found = [np.asarray(function(*block)) for block in blocks]
  return np.concatenate(found)[:size].reshape(shape) if found else np.zeros(shape, bool)


def lower_bound(num_keys: ArrayLike, s: ArrayLike) -> np.ndarray:
  """`attention_bound.lower_bound` of numpy arrays."""
  return _in_blocks(_bound, num_keys, s)


# --- files ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Part:
  """The rows of one part of the study.

  Attributes:
    source: one of SOURCES.
    cells: what each cell is, by name, from the part's metrics.
    cell_N, num_keys_N, entropy_N: of each row of attention.
    s: form -> s_N, for the forms that hold here.
  """

  source: str
  cells: Mapping[str, np.ndarray]
  cell_N: np.ndarray
  num_keys_N: np.ndarray
  entropy_N: np.ndarray
  s: Mapping[str, np.ndarray]

  def bound(self, form: str) -> np.ndarray:
    """The bound of every row in one of its forms, nats."""
    return lower_bound(self.num_keys_N, self.s[form])

  def distance(self, form: str) -> np.ndarray:
    """|H - LB| of every row, nats, for the s within its rounding that is the nearest."""
    low, high = (lower_bound(self.num_keys_N, (1.0 + sign * S_RTOL) * self.s[form]) for sign in (1, -1))
    return np.maximum(np.maximum(low - self.entropy_N, self.entropy_N - high), 0.0)

  def below(self, form: str, *, share: float = 1.0) -> np.ndarray:
    """Which rows are below their bound by more than the tolerance; `share` of s is used."""
    return _in_blocks(_below, self.entropy_N, self.num_keys_N, share * self.s[form])


def save(folder: pathlib.Path, measured: Mapping[str, np.ndarray], cells: Sequence[Mapping[str, float]]) -> None:
  """Writes the rows that count and a line of metrics for each cell; the latter comes last and says that the part is done.

  Args:
    folder: SOURCE/PART of the study.
    measured: 'entropy', 'num_keys', 'counted' and the s of some of FORMS, each with a first axis of cells.
    cells: what each cell is; a 'step' is the number of its line.
  """
  counted = np.asarray(measured['counted'], bool)
  cell_N = np.nonzero(counted)[0]
  arrays = {name: np.asarray(measured[name])[counted] for name in ('entropy', 'num_keys', *FORMS) if name in measured}
  folder.mkdir(parents=True, exist_ok=True)
  with replacing(folder / ROWS) as file:
    np.savez_compressed(file, cell=cell_N.astype(np.int32), **arrays)
  slack = {form: arrays['entropy'] - lower_bound(arrays['num_keys'], arrays[form]) for form in FORMS if form in arrays}
  least = {'entropy/smallest': arrays['entropy'], **{f'slack/{form}': x for form, x in slack.items()}}
  lines = []
  for i, cell in enumerate(cells):
    here = cell_N == i
    summary = {'rows': int(here.sum()), **{name: float(x[here].min(initial=math.inf)) for name, x in least.items()}}
    known = {name: value for name, value in {**summary, **cell}.items() if math.isfinite(value) and name != 'step'}
    lines.append(format_row(int(cell.get('step', i)), known))
  write_atomically(folder / METRICS, ''.join(f'{line}\n' for line in lines))


def is_done(folder: pathlib.Path) -> bool:
  return (folder / METRICS).exists()


def load(workdir: pathlib.Path) -> dict[str, Part]:
  """Every finished part by its place, sources in their order."""
  found = {}
  for source in SOURCES:
    for metrics in sorted((workdir / source).glob(f'*/{METRICS}')):
      with np.load(metrics.parent / ROWS, allow_pickle=False) as arrays:
        s = {form: arrays[form] for form in FORMS if form in arrays}
        rows = (arrays['cell'], arrays['num_keys'], arrays['entropy'])
      found[f'{source}/{metrics.parent.name}'] = Part(source, runs.load_metrics(metrics.parent), *rows, s)
  if not found:
    raise UserError(f'{workdir} holds no rows of attention: give the workdir of a run of experiments.attention_bound.')
  return found


# --- claims -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class NoRow:
  """Reproduced when no row of at least `least` fails; one that does decides, however few there are."""

  num_rows: int
  least: int

  @property
  def text(self) -> str:
    return f'no row of at least {self.least:,}' if self.least > 1 else 'no row'

  def verdict(self, value: float, interval: Interval) -> str:
    return NOT_REPRODUCED if value > 0 else REPRODUCED if self.num_rows >= self.least else INCONCLUSIVE


@dataclasses.dataclass(frozen=True)
class AtMost:
  """Reproduced when a number that has no error of sampling is at most `threshold`."""

  threshold: float

  @property
  def text(self) -> str:
    return f'at most {self.threshold:g}'

  def verdict(self, value: float, interval: Interval) -> str:
    return INCONCLUSIVE if not math.isfinite(value) else REPRODUCED if value <= self.threshold else NOT_REPRODUCED


def _claim(id: str, statement: str, metric: str, value: float, criterion: NoRow | AtMost) -> Claim:
  interval = (value, value)
  return judge(id=id, paper=PAPER, statement=statement, metric=metric, value=value, interval=interval, criterion=criterion)


def smallest_slack(parts: Iterable[Part]) -> dict[tuple[float, float], float]:
  """The least entropy above the bound at the s that was asked for, by (T, s) of the cells, over all parts: how near a search came."""
  found: dict[tuple[float, float], float] = {}
  for part in parts:
    tokens = part.cells['num_tokens']
    for i, (T, s) in enumerate(zip(tokens.tolist(), part.cells['s'].tolist())):
      rows = (part.cell_N == i) & (part.num_keys_N == T)
      slack = part.entropy_N[rows].min(initial=np.float32(math.inf)) - lower_bound(T, s)
      found[T, s] = min(float(slack), found.get((T, s), math.inf))
  return found


def claims(parts: Mapping[str, Part], *, min_rows: int) -> list[Claim]:
  """Everything that the study decides; all of it is counted or the largest of its kind, so intervals are points."""
  found = []
  for form, words in FORMS.items():
    holding = [part for part in parts.values() if form in part.s]
    num_rows = sum(part.entropy_N.size for part in holding)
    by_source = {source: sum(p.entropy_N.size for p in holding if p.source == source) for source in SOURCES}
    told = ', '.join(f'{count:,} {source}' for source, count in by_source.items() if count)
    metric = f'rows with H < (1 - {RTOL:g}) LB(T, s + {S_RTOL:g} s), of {num_rows:,} ({told})'
    value = float(sum(part.below(form).sum() for part in holding))
    found.append(_claim(f'holds/{form}', f'No row is below the bound with s from {words}.', metric, value, NoRow(num_rows, min_rows)))
  tight = [part for part in parts.values() if part.source == 'tight']
  if tight:
    gap = max(float(np.abs(p.entropy_N - lower_bound(p.num_keys_N, p.cells['s'][p.cell_N])).max()) for p in tight)
    metric = 'largest |H - LB| of its first row (nats), with s as asked for'
    found.append(_claim('tight/attained', 'The constructed layer attains the bound.', metric, gap, AtMost(ATTAINED)))
    gap = max(float(part.distance(form).max()) for part in tight for form in part.s)
    metric = f'largest |H - LB| of its first row (nats), with s in every form, which is known to {S_RTOL:g} of itself'
    found.append(_claim('tight/in_every_form', 'Every form of s says that it does.', metric, gap, AtMost(ATTAINED)))
    missed = sum(int((~part.below(form, share=UNDERSTATED)).sum()) for part in tight for form in part.s)
    checked = sum(part.entropy_N.size * len(part.s) for part in tight)
    statement = f'The check notices an s that is {1 - UNDERSTATED:.0%} too small, on the constructed layer.'
    found.append(_claim('tight/noticed', statement, f'rows not found below that bound, of {checked}', float(missed), NoRow(checked, 1)))
  spheres = [part for place, part in parts.items() if place.startswith('adversarial/sphere')]
  if spheres:
    worst = max(map(abs, smallest_slack(spheres).values()))
    statement = 'Gradient descent on the sphere of logits ends at the bound.'
    metric = '|least entropy found - LB| (nats), largest over numbers of keys and s'
    found.append(_claim('sphere/reaches', statement, metric, worst, AtMost(ATTAINED)))
  longer, compared = 0, 0
  for part in parts.values():
    for form in part.s.keys() - {'centred'}:
      longer += int(np.sum(~(part.s['centred'] <= part.s[form] * (1 + ORDER_RTOL))))
      compared += part.entropy_N.size
  metric = f'rows whose centred norm is above s of another form by {ORDER_RTOL:g} of it, of {compared:,} comparisons'
  found.append(_claim('order/centred', 'The centred row gives the smallest s.', metric, float(longer), NoRow(compared, min_rows)))
  learned = [part for place, part in parts.items() if place.startswith('trained/learned')]
  if learned:
    worst = max(float(part.cells['logits_error'].max()) for part in learned)
    statement = "The trained decoders with learnt positions have the theorem's logits, X W_Q W_K^T X^T / sqrt(head_dim)."
    metric = 'largest difference to the logits that they attend with, over the largest logit'
    found.append(_claim('trained/products', statement, metric, worst, AtMost(LOGITS_RTOL)))
  return found


def check(found: Sequence[Claim]) -> None:
  """Raises ArithmeticError if a row is below its bound: either the theorem or this code is wrong, and the code is nearer."""
  broken = [claim for claim in found if claim.id.startswith('holds/') and claim.value > 0]
  if broken:
    raise ArithmeticError('; '.join(f'{claim.id}: {claim.value:.0f} {claim.metric}' for claim in broken))
