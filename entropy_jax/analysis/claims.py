"""Claims: a statement, a criterion in code written before the run, and the verdict of its 95 % interval over seeds."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from entropy_jax.analysis import statistics
from entropy_jax.types import UserError

REPRODUCED = 'reproduced'
NOT_REPRODUCED = 'not reproduced'
INCONCLUSIVE = 'inconclusive'
VERDICTS = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE)
LEVEL = 0.95
Interval = tuple[float, float]


class Criterion(Protocol):
  """What the whole interval must satisfy; `text` is the `criterion` field of the claim.

  A criterion gives 'reproduced' when every point of the interval satisfies it, 'not reproduced' when no point does, and
  'inconclusive' when some do or when the value or an end is not finite (matched success never reached, too few seeds).
  """

  @property
  def text(self) -> str: ...

  def verdict(self, value: float, interval: Interval) -> str: ...


def _verdict(value: float, interval: Interval, satisfied: bool, violated: bool) -> str:
  if not all(math.isfinite(x) for x in (value, *interval)):
    return INCONCLUSIVE
  return REPRODUCED if satisfied else NOT_REPRODUCED if violated else INCONCLUSIVE


@dataclasses.dataclass(frozen=True)
class Above:
  """Reproduced when the whole interval is above `threshold`, the smallest effect that counts.

  With `threshold > 0` a precise null is 'not reproduced'; with 0 it stays 'inconclusive' for ever.
  """

  threshold: float

  @property
  def text(self) -> str:
    return f'95 % interval entirely above {self.threshold:g}'

  def verdict(self, value: float, interval: Interval) -> str:
    return _verdict(value, interval, interval[0] > self.threshold, interval[1] <= self.threshold)


@dataclasses.dataclass(frozen=True)
class Below:
  """Reproduced when the whole interval is below `threshold`."""

  threshold: float

  @property
  def text(self) -> str:
    return f'95 % interval entirely below {self.threshold:g}'

  def verdict(self, value: float, interval: Interval) -> str:
    return _verdict(value, interval, interval[1] < self.threshold, interval[0] >= self.threshold)


@dataclasses.dataclass(frozen=True)
class Between:
  """Reproduced when the whole interval is in [low, high]."""

  low: float
  high: float

  def __post_init__(self):
    if not self.low < self.high:
      raise UserError(f'Between(low={self.low}, high={self.high}) is empty: low must be less than high.')

  @property
  def text(self) -> str:
    return f'95 % interval inside [{self.low:g}, {self.high:g}]'

  def verdict(self, value: float, interval: Interval) -> str:
    low, high = interval
    return _verdict(value, interval, self.low <= low and high <= self.high, high < self.low or low > self.high)


@dataclasses.dataclass(frozen=True)
class Null:
  """An expected null: reproduced when the interval excludes every effect larger than `margin`, either way.

  This is an equivalence test: a wide interval around zero is 'inconclusive', so few seeds cannot prove the absence of
  an effect.
  """

  margin: float

  def __post_init__(self):
    if not self.margin > 0:
      raise UserError(f'Null(margin={self.margin}) must be positive: give the smallest effect that would count.')

  @property
  def text(self) -> str:
    return f'expected null: 95 % interval inside [-{self.margin:g}, {self.margin:g}]'

  def verdict(self, value: float, interval: Interval) -> str:
    return Between(-self.margin, self.margin).verdict(value, interval)


@dataclasses.dataclass(frozen=True)
class Claim:
  """One row of claims.json.

  Attributes:
    id: unique in its file.
    paper: authors or title and arXiv id.
    statement: what the paper says, as one sentence.
    metric: what was measured, in words, with its unit.
    value: the measured value; NaN (null in the file) where there is none.
    interval: 95 % interval over seeds, (low, high).
    baseline: what it is compared with; '' for none.
    criterion: the text of the criterion, fixed before the run.
    verdict: one of VERDICTS.
  """

  id: str
  paper: str
  statement: str
  metric: str
  value: float
  interval: Interval
  baseline: str
  criterion: str
  verdict: str

  def __post_init__(self):
    if not self.id:
      raise UserError('a claim has an empty id: give it a short unique name.')
    if self.verdict not in VERDICTS:
      raise UserError(f'claim {self.id} has verdict {self.verdict!r}: it must be one of {", ".join(VERDICTS)}.')


def judge(
  *,
  id: str,
  paper: str,
  statement: str,
  metric: str,
  value: float,
  interval: Interval,
  criterion: Criterion,
  baseline: str = '',
) -> Claim:
  """The claim for a value whose 95 % interval was made elsewhere (over the steps of a fitted law, for example)."""
  value, interval = float(value), (float(interval[0]), float(interval[1]))
  verdict = criterion.verdict(value, interval)
  return Claim(id, paper, statement, metric, value, interval, baseline, criterion.text, verdict)


def decide(
  *,
  id: str,
  paper: str,
  statement: str,
  metric: str,
  samples: np.ndarray,
  criterion: Criterion,
  paired_with: np.ndarray | None = None,
  baseline: str = '',
  statistic: statistics.Statistic = np.mean,
  bounds: Interval | None = None,
  min_samples: int = 5,
  num_bootstrap: int = 10_000,
  seed: int = 0,
) -> Claim:
  """The claim that one value a seed supports.

  Args:
    samples: [R], one value a seed, at matched success where methods are compared.
    criterion: compares the interval, see `Above`, `Below`, `Between` and `Null`.
    paired_with: [R], the baseline's value for the same seeds; the claim is then about samples - paired_with.
    statistic: over seeds.
    bounds: the range that the statistic cannot leave (a share or a correlation); not used for differences of it.
    min_samples: with fewer seeds the verdict is 'inconclusive', whatever the interval.

  Returns:
    the claim, its interval from the studentised bootstrap. A seed that is NaN (it never reached the matched success)
    makes the claim 'inconclusive': leaving it out would compare the lucky seeds only.
  """
  samples = np.asarray(samples, np.float64)
  if paired_with is not None:
    paired_with = np.asarray(paired_with, np.float64)
    if paired_with.shape != samples.shape:
      raise UserError(
        f'claim {id} pairs {samples.size} seeds with {paired_with.size} of its baseline: run both with the same seeds.'
      )
    samples = samples - paired_with
  finite = samples.size > 0 and bool(np.all(np.isfinite(samples)))
  value = float(statistic(samples, axis=-1)) if finite else float('nan')
  interval = statistics.bootstrap_interval(
    samples, statistic=statistic, level=LEVEL, num_samples=num_bootstrap, seed=seed, bounds=bounds
  )
  claim = judge(
    id=id, paper=paper, statement=statement, metric=metric, value=value, interval=interval, criterion=criterion,
    baseline=baseline,
  )
  text = f'{criterion.text}, at least {min_samples} seeds'
  verdict = claim.verdict if samples.size >= min_samples else INCONCLUSIVE
  return dataclasses.replace(claim, criterion=text, verdict=verdict)


def write_claims(path: str | pathlib.Path, claims: Sequence[Claim]) -> None:
  """claims.json, replaced at once, so a reader never sees half of it; what is not finite is null."""
  seen: set[str] = set()
  for claim in claims:
    if claim.id in seen:
      raise UserError(f'claim id {claim.id} occurs twice: ids must be unique in {path}.')
    seen.add(claim.id)
  rows = [_jsonable(dataclasses.asdict(claim)) for claim in claims]
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + '.partial')
  partial.write_text(json.dumps(rows, indent=2, allow_nan=False, ensure_ascii=False) + '\n', encoding='utf-8')
  os.replace(partial, path)


def _jsonable(row: dict[str, Any]) -> dict[str, Any]:
  finite = lambda x: x if math.isfinite(x) else None
  return row | {'value': finite(row['value']), 'interval': [finite(x) for x in row['interval']]}


def read_claims(path: str | pathlib.Path) -> list[Claim]:
  """The claims of a file that `write_claims` wrote; null is NaN."""
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f'{path} does not exist: give the claims.json of a finished run.')
  names = [field.name for field in dataclasses.fields(Claim)]
  number = lambda x: float('nan') if x is None else float(x)
  try:
    rows = json.loads(path.read_text(encoding='utf-8'))
    if any(set(row) != set(names) for row in rows):
      raise ValueError('fields')
    ends = [(number(row['interval'][0]), number(row['interval'][1])) for row in rows]
    return [Claim(**row | {'value': number(row['value']), 'interval': end}) for row, end in zip(rows, ends)]
  except UserError:
    raise
  except (ValueError, TypeError, LookupError) as error:
    raise UserError(
      f'{path} is damaged, each claim must hold exactly {", ".join(names)}: run the study again.'
    ) from error
