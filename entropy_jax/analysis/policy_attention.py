"""What a folder of the study of policy entropy and attention entropy says: numbers of every run, and claims with their criteria.

Everything is read from the run folder, so an old run can be judged again. The criteria below are fixed. No paper asks these questions, so
the predictions are this project's, but for the law and the covariance identity.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from entropy_jax.analysis import runs, statistics
from entropy_jax.analysis.claims import Above, Below, Claim, Criterion, Null, decide
from entropy_jax.measures import law
from entropy_jax.types import UserError

BASELINE, HELD = 'pre_ln', 'pre_ln_held'  # the second is the control: the baseline's decoder with its policy entropy held
MOST_RUNS = 9  # that a figure can tell apart
MIN_BLOCKS = 4
MECHANISM = 'Cui et al., The Entropy Mechanism of RL for Reasoning Language Models, arXiv 2505.22617'
OWN = 'Prediction of this project'
POLICY, ATTENTION, SUCCESS = 'policy/entropy', 'attention/entropy', 'rollout/reward'
PREDICTED, MEASURED, COVARIANCE = 'policy/entropy_change_predicted', 'policy/entropy_change', 'policy/covariance'
# The smallest differences that count: of attention entropy relative to uniform, of the law's a (in success by exp(nats), where its largest
# possible value is (1 - 1/V) / (V - 1) = 1 / V = 0.17 for six digits), of its b and of R^2, and of a correlation.
ATTENTION_MARGIN, A_MARGIN, B_MARGIN, FIT_MARGIN, CORRELATION_MARGIN = 0.05, 0.02, 0.05, 0.05, 0.05


@dataclasses.dataclass(frozen=True)
class Trained:
  """The seeds of one variant.

  Attributes:
    runs: a seed each, in order.
    block: updates whose mean is a point.
  """

  runs: Sequence[runs.RunMetrics]
  block: int

  def curve(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """(step_N, value_RxN)."""
    return runs.stack_runs(self.runs, metric)

  def points(self, metric: str) -> np.ndarray:
    """Mean of every block of updates, [R, C]; NaN where one of them has no finite number."""
    value_RxN = np.array([run[metric] for run in self.runs])
    return value_RxN.reshape(len(self.runs), -1, self.block).mean(axis=-1)

  def change(self, metric: str) -> np.ndarray:
    """Last block minus first, [R]."""
    points_RxC = self.points(metric)
    return points_RxC[:, -1] - points_RxC[:, 0]

  def fall(self, metric: str) -> np.ndarray:
    """1 - last block / first block, [R]."""
    points_RxC = self.points(metric)
    return 1.0 - points_RxC[:, -1] / points_RxC[:, 0]

  def together(self, *, changes: bool) -> np.ndarray:
    """Correlation over training of attention entropy with policy entropy, of their points or of the changes between these, [R]."""
    pairs = zip(self.points(ATTENTION), self.points(POLICY))
    of = (lambda x_C: np.diff(x_C)) if changes else (lambda x_C: x_C)
    return np.array([statistics.correlation(of(a_C), of(h_C)) for a_C, h_C in pairs])

  def over_steps(self, first: str, second: str, *, sign: float = 1.0, ranks: bool = False) -> np.ndarray:
    """Correlation of two metrics over the updates of a seed, [R]."""
    correlate = statistics.rank_correlation if ranks else statistics.correlation
    return np.array([correlate(sign * run[first], run[second]) for run in self.runs])

  @functools.cached_property
  def law(self) -> dict[str, np.ndarray]:
    """a, b and r_squared of the law R = -a exp(H) + b of every seed, [R]; NaN where its entropy moved too little to fit."""
    fits: list[law.LawFit | None] = []
    for run in self.runs:
      try:
        fits.append(law.fit_law(run[POLICY], run[SUCCESS], num_resamples=1))  # seeds give the intervals
      except UserError:
        fits.append(None)
    return {name: np.array([math.nan if fit is None else getattr(fit, name) for fit in fits]) for name in ('a', 'b', 'r_squared')}


def load(workdir: pathlib.Path) -> dict[str, Trained]:
  """Every variant of a study's folder, the baseline first and the control last."""
  config = runs.load_config(workdir)
  names = [BASELINE, *(name for name in config['variants'] if name != BASELINE), HELD]
  seeds = range(config['num_seeds'])
  return {name: Trained([runs.load_metrics(workdir / name / f'seed_{k}') for k in seeds], config['block']) for name in names}


def claims(found: Mapping[str, Trained]) -> list[Claim]:
  """Everything that the study decides, by variant; what is compared is paired by seed with the baseline."""
  base = found[BASELINE]
  free = {name: trained for name, trained in found.items() if name != HELD}
  decided = []
  for name, trained in free.items():
    decided += _entropies(name, trained)
  held = found[HELD]
  decided += [
    _claim(
      f'{HELD}/policy_entropy_is_held', 'The control holds policy entropy.', 'relative fall of policy entropy over training',
      held.fall(POLICY), Below(0.5),
    ),
    _claim(
      f'{HELD}/attention_entropy_stays', 'Where policy entropy is held, attention entropy falls less.',
      'change of attention entropy, minus that of the baseline', held.change(ATTENTION), Above(ATTENTION_MARGIN),
      paired_with=base.change(ATTENTION), baseline=BASELINE,
    ),
  ]  # fmt: skip
  for name, trained in free.items():
    decided += _law(name, trained, base.law)
  for name, trained in free.items():
    decided += _identity(name, trained, base)
  return decided


def _claim(id: str, statement: str, metric: str, samples: np.ndarray, criterion: Criterion, *, paper: str = OWN, **more: Any) -> Claim:
  return decide(id=id, paper=paper, statement=statement, metric=metric, samples=samples, criterion=criterion, **more)


def _entropies(name: str, trained: Trained) -> list[Claim]:
  """Both entropies fall, and one with the other."""
  correlation: dict[str, Any] = {'bounds': (-1.0, 1.0)}
  return [
    _claim(
      f'{name}/policy_entropy_collapses', 'Without any control the policy entropy collapses.',
      'relative fall of policy entropy over training', trained.fall(POLICY), Above(0.5), paper=MECHANISM,
    ),
    _claim(
      f'{name}/attention_entropy_falls', 'Attention entropy falls while policy entropy collapses.',
      'change over training of attention entropy relative to uniform', trained.change(ATTENTION), Below(-ATTENTION_MARGIN),
    ),
    _claim(
      f'{name}/attention_follows_policy', 'Attention entropy is low when policy entropy is low.',
      f'correlation of the two over training, points of {trained.block} updates', trained.together(changes=False), Above(0.5),
      **correlation,
    ),
    _claim(
      f'{name}/attention_moves_with_policy', 'Attention entropy moves when policy entropy moves.',
      f'correlation of their changes from {trained.block} updates to the next {trained.block}', trained.together(changes=True), Above(0.0),
      **correlation,
    ),
  ]  # fmt: skip


def _law(name: str, trained: Trained, base: Mapping[str, np.ndarray]) -> list[Claim]:
  """The law holds, with the coefficients of the baseline."""
  values = trained.law
  found = [
    _claim(
      f'{name}/law_fits', 'Success obeys R = -a exp(H) + b.', 'R^2 of the fit to a seed', values['r_squared'], Above(0.9), paper=MECHANISM
    )
  ]
  if name == BASELINE:
    return found
  for key, what, said, margin in (
    ('a', 'a', 'The slope of the law is that of the baseline.', A_MARGIN),
    ('b', 'b', 'The intercept of the law is that of the baseline.', B_MARGIN),
    ('r_squared', 'R^2', 'The law fits as well as in the baseline.', FIT_MARGIN),
  ):
    metric = f'{what}, minus that of the baseline'
    found.append(_claim(f'{name}/law_{key}', said, metric, values[key], Null(margin), paired_with=base[key], baseline=BASELINE))
  return found


def _identity(name: str, trained: Trained, base: Trained) -> list[Claim]:
  """The covariance identity predicts the change of entropy of every update."""
  correlation: dict[str, Any] = {'bounds': (-1.0, 1.0)}
  predicted = trained.over_steps(PREDICTED, MEASURED)
  found = [
    _claim(
      f'{name}/change_is_predicted', 'The first-order covariance form predicts the entropy change of every update.',
      'correlation of predicted and measured change over the updates of a seed', predicted, Above(0.95), paper=MECHANISM, **correlation,
    ),
    _claim(
      f'{name}/covariance_ranks_the_change', 'A larger covariance of log-probability and advantage goes with a larger fall of entropy.',
      'rank correlation of minus the covariance with the measured change, over updates',
      trained.over_steps(COVARIANCE, MEASURED, sign=-1.0, ranks=True), Above(0.0), paper=MECHANISM, **correlation,
    ),
  ]  # fmt: skip
  if name != BASELINE:
    found.append(
      _claim(
        f'{name}/predicted_as_well', 'The identity holds as well as in the baseline.',
        'correlation of predicted and measured change, minus that of the baseline', predicted, Null(CORRELATION_MARGIN),
        paired_with=base.over_steps(PREDICTED, MEASURED), baseline=BASELINE,
      )
    )  # fmt: skip
    found.append(
      _claim(
        f'{name}/keeps_attention_entropy', 'Attention entropy falls less than in the baseline.',
        'change of attention entropy, minus that of the baseline', trained.change(ATTENTION), Above(0.0),
        paired_with=base.change(ATTENTION), baseline=BASELINE,
      )
    )  # fmt: skip
  return found
