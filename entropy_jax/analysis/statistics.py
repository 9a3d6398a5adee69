"""Statistics over few seeds: intervals with honest coverage at 5 to 8 runs, values at matched success, agreement.

Coverage of nominal 95 % intervals of a mean, in percent, measured by simulation (1500 data sets each, standard error
0.6 to 1.1):

  runs  population   percentile  bca   t     studentised
  5     normal       85          85    95    95
  5     exponential  78          80    89    94
  5     log-normal   74          75    83    90
  8     normal       87          87    94    93
  8     exponential  84          85    89    93
  8     log-normal   78          81    85    91
  20    exponential  90          91    92    94

The percentile and BCa bootstraps are far too narrow at the numbers of seeds that a study affords; the studentised
bootstrap says most nearly what it covers on skewed populations, and as nearly as t on the normal one, at the price of
width (a third wider than t at 5 normal runs): it is the default. With 8 seeds its width is that of t plus a tenth.
"""

from collections.abc import Callable

import numpy as np
from scipy import special  # scipy.stats takes a second to import, and every experiment imports this file

from entropy_jax.types import UserError

Statistic = Callable[..., np.ndarray]
Interval = tuple[float, float]
METHODS = ('studentised', 't', 'bca', 'percentile')


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
  """Mean of the middle half: floor(R / 4) of the lowest and as many of the highest values are left out.

  Limits: equals the mean for R < 4 (nothing is left out).
  Reference: Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice, arXiv 2108.13264,
  section 4.3.

  >>> float(interquartile_mean(np.array([0., 1., 2., 100.])))
  1.5
  """
  sorted_values = np.moveaxis(np.sort(np.asarray(values, np.float64), axis=axis), axis, -1)
  num_values = sorted_values.shape[-1]
  cut = num_values // 4
  return np.mean(sorted_values[..., cut : num_values - cut], axis=-1)


def bootstrap_interval(
  values_R: np.ndarray,
  *,
  statistic: Statistic = np.mean,
  level: float = 0.95,
  num_samples: int = 10_000,
  seed: int = 0,
  method: str = 'studentised',
  bounds: Interval | None = None,
) -> Interval:
  """Two-sided bootstrap interval of a statistic over independent runs.

  studentised: [s - q(1 - alpha/2) e, s - q(alpha/2) e], q the quantiles of (s* - s) / e* over resamples, e the
  jackknife standard error.
  t:           s -+ t(1 - alpha/2, R - 1) e.
  percentile:  [q(alpha/2), q(1 - alpha/2)], q the quantiles of s*; bca: the same, corrected for bias and acceleration.

  Args:
    values_R: one value a run.
    statistic: a smooth reduction that takes `axis` (np.mean, interquartile_mean; the jackknife error of a median is not
      consistent).
    level: coverage aimed at, in (0, 1).
    num_samples: resamples drawn (unused by t).
    seed: of the resampling; equal arguments give equal intervals.
    method: one of METHODS; the module's table says what each one covers at 5 and 8 runs.
    bounds: the range that the statistic cannot leave; the interval is cut to it.

  Returns:
    (low, high); (NaN, NaN) for fewer than 2 runs or where a value is not finite.

  Limits: a point when all runs agree. Where more than alpha/2 of the resamples repeat one value (few distinct values)
    the studentised end is unbounded, and the end of t stands in.
  Reference: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 11, 12 and 14.
  """
  values_R = np.asarray(values_R, np.float64)
  if values_R.ndim != 1:
    raise UserError(f'values_R has shape {values_R.shape}, one value a run is needed: reduce the other axes first.')
  if not 0 < level < 1:
    raise UserError(f'level = {level} is not in (0, 1): use 0.95 for a 95 % interval.')
  if method not in METHODS:
    raise UserError(f'method = {method!r} is unknown: use one of {", ".join(METHODS)}.')
  num_runs = values_R.size
  if num_runs < 2 or not np.all(np.isfinite(values_R)):
    return float('nan'), float('nan')
  estimate = float(statistic(values_R, axis=-1))
  if np.ptp(values_R) == 0:
    return estimate, estimate
  tails = np.array([(1 - level) / 2, (1 + level) / 2])
  error = float(_jackknife_error(values_R[None], statistic)[0])
  ends = estimate + special.stdtrit(num_runs - 1, tails) * error
  if method != 't':
    index_MxR = np.random.default_rng(seed).integers(0, num_runs, (num_samples, num_runs))
    resampled_MxR = values_R[index_MxR]
    drawn_M = statistic(resampled_MxR, axis=-1)
    if method == 'studentised':
      # Rounding leaves a spread of 1e-17 where a resample repeats one value: that is a zero error, not a huge t.
      error_M = np.where(np.ptp(resampled_MxR, axis=-1) == 0, 0.0, _jackknife_error(resampled_MxR, statistic))
      with np.errstate(divide='ignore', invalid='ignore'):
        t_M = np.nan_to_num((drawn_M - estimate) / error_M, nan=0.0, posinf=np.inf, neginf=-np.inf)
      pivotal = estimate - np.quantile(t_M, tails, method='inverted_cdf')[::-1] * error
      ends = np.where(np.isfinite(pivotal), pivotal, ends)
    elif method == 'bca':
      ends = np.quantile(drawn_M, _bca_tails(values_R, drawn_M, estimate, tails, statistic))
    else:
      ends = np.quantile(drawn_M, tails)
  if bounds is not None:
    ends = np.clip(ends, *bounds)
  return float(ends[0]), float(ends[1])


def mean_with_interval(values_R: np.ndarray, *, bounds: Interval | None = None, digits: int = 3) -> str:
  """'mean [low, high]' for a table, with the 95 % interval; how many runs have a number where not all have.

  >>> mean_with_interval(np.array([2.0, 2.0])), mean_with_interval(np.array([2.0, np.nan]))
  ('2 [2, 2]', '1 of 2 seeds')
  """
  values_R = np.asarray(values_R, np.float64)
  if not np.all(np.isfinite(values_R)):
    return f'{np.isfinite(values_R).sum()} of {values_R.size} seeds'
  low, high = bootstrap_interval(values_R, bounds=bounds)
  return f'{np.mean(values_R):.{digits}g} [{low:.{digits}g}, {high:.{digits}g}]'


def _leave_one_out(values_MxR: np.ndarray, statistic: Statistic) -> np.ndarray:
  """The statistic without each run in turn, [M, R]."""
  columns = [statistic(np.delete(values_MxR, run, axis=-1), axis=-1) for run in range(values_MxR.shape[-1])]
  return np.stack(columns, axis=-1)


def _jackknife_error(values_MxR: np.ndarray, statistic: Statistic) -> np.ndarray:
  """sqrt((R - 1) / R sum_r (s_(r) - mean s_(.))^2): for the mean, exactly std(ddof=1) / sqrt(R), which is cheaper."""
  num_runs = values_MxR.shape[-1]
  if statistic is np.mean:
    return np.std(values_MxR, axis=-1, ddof=1) / np.sqrt(num_runs)
  return np.std(_leave_one_out(values_MxR, statistic), axis=-1) * np.sqrt(num_runs - 1)


def _bca_tails(
  values_R: np.ndarray, drawn_M: np.ndarray, estimate: float, tails: np.ndarray, statistic: Statistic
) -> np.ndarray:
  """The quantiles that BCa reads instead of alpha/2 and 1 - alpha/2."""
  below = np.mean(drawn_M < estimate) + 0.5 * np.mean(drawn_M == estimate)
  bias = special.ndtri(np.clip(below, 1 / drawn_M.size, 1 - 1 / drawn_M.size))
  left_R = _leave_one_out(values_R[None], statistic)[0]
  pull_R = np.mean(left_R) - left_R
  spread = np.sum(pull_R**2) ** 1.5
  acceleration = np.sum(pull_R**3) / (6 * spread) if spread > 0 else 0.0
  shifted = bias + special.ndtri(tails)
  return special.ndtr(bias + shifted / (1 - acceleration * shifted))


def paired_difference_interval(
  a_R: np.ndarray,
  b_R: np.ndarray,
  *,
  statistic: Statistic = np.mean,
  level: float = 0.95,
  num_samples: int = 10_000,
  seed: int = 0,
  method: str = 'studentised',
) -> Interval:
  """Interval of the statistic of a - b, run r of a paired with run r of b (same seed): whole pairs are resampled.

  Limits: what the seeds share (initialisation, prompts) cancels, so the interval is narrower than that of two
    independent groups where the runs are correlated, and wider where they are anti-correlated.
  """
  a_R, b_R = np.asarray(a_R, np.float64), np.asarray(b_R, np.float64)
  if a_R.shape != b_R.shape:
    raise UserError(f'a_R has shape {a_R.shape} and b_R {b_R.shape}: a paired comparison needs the same seeds in both.')
  return bootstrap_interval(
    a_R - b_R, statistic=statistic, level=level, num_samples=num_samples, seed=seed, method=method
  )


def probability_of_improvement(a_R: np.ndarray, b_R: np.ndarray) -> float:
  """P(a > b) + P(a = b) / 2 for runs of a and b drawn independently: the Mann-Whitney U of a over the number of pairs.

  >>> probability_of_improvement(np.array([1., 3.]), np.array([1., 2.]))   # pairs: tie, loss, win, win
  0.625
  """
  a_R, b_R = np.asarray(a_R, np.float64), np.asarray(b_R, np.float64)
  if not (a_R.size and b_R.size and np.all(np.isfinite(a_R)) and np.all(np.isfinite(b_R))):
    return float('nan')
  difference = a_R[:, None] - b_R[None, :]
  return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def value_at_success(success_xN: np.ndarray, value_xN: np.ndarray, level: float) -> np.ndarray:
  """The value where success first rises to a level, by linear interpolation between the two logged steps around it.

  Args:
    success_xN: [N] or [R, N], success along training.
    value_xN: same shape, the quantity to compare (entropy).
    level: the matched success.

  Returns:
    float64 scalar or [R]; NaN where success never rises to the level (also where it starts above it and stays there).

  Limits: logged steps at which either is NaN are left out. A noisy success curve crosses early: smooth both curves the
    same way, or use the exact success probability.
  """
  success_xN, value_xN = np.asarray(success_xN, np.float64), np.asarray(value_xN, np.float64)
  if success_xN.shape != value_xN.shape:
    raise UserError(f'success has shape {success_xN.shape} and value {value_xN.shape}: log both at the same steps.')
  if success_xN.ndim > 1:
    return np.array([value_at_success(s, v, level) for s, v in zip(success_xN, value_xN)])
  both_N = np.isfinite(success_xN) & np.isfinite(value_xN)
  success_N, value_N = success_xN[both_N], value_xN[both_N]
  if success_N.size and success_N[0] == level:
    return np.asarray(value_N[0])
  rises = np.flatnonzero((success_N[:-1] < level) & (success_N[1:] >= level))
  if not rises.size:
    return np.asarray(np.nan)
  i = rises[0]
  share = (level - success_N[i]) / (success_N[i + 1] - success_N[i])
  return np.asarray(value_N[i] + share * (value_N[i + 1] - value_N[i]))


def _finite_pairs(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  x, y = np.asarray(x, np.float64).ravel(), np.asarray(y, np.float64).ravel()
  if x.shape != y.shape:
    raise UserError(f'x has {x.size} values and y {y.size}: give pairs.')
  both = np.isfinite(x) & np.isfinite(y)
  return x[both], y[both]


def correlation(x: np.ndarray, y: np.ndarray) -> float:
  """Pearson correlation over the pairs that are finite in both; NaN for fewer than 2 or where either is constant."""
  x, y = _finite_pairs(x, y)
  if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
    return float('nan')
  return float(np.corrcoef(x, y)[0, 1])


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
  """Spearman rank correlation, ties given their mean rank; NaN as in `correlation`.

  >>> rank_correlation(np.array([1., 2., 3.]), np.array([1., 100., 10.]))
  0.5
  """
  x, y = _finite_pairs(x, y)
  return correlation(_mean_ranks(x), _mean_ranks(y))


def _mean_ranks(x_N: np.ndarray) -> np.ndarray:
  """Ranks from 1, those of equal values replaced by their mean."""
  _, place_N, count_U = np.unique(x_N, return_inverse=True, return_counts=True)
  return (np.cumsum(count_U) - (count_U - 1) / 2)[place_N]


def sign_agreement(x: np.ndarray, y: np.ndarray) -> float:
  """Share of the pairs with the same sign, of those where both are finite and neither is 0; NaN if none is.

  >>> sign_agreement(np.array([1., -2., 3., 0.]), np.array([5., -1., -1., 1.]))
  0.6666666666666666
  """
  x, y = _finite_pairs(x, y)
  signed = (x != 0) & (y != 0)
  return float(np.mean(np.sign(x[signed]) == np.sign(y[signed]))) if np.any(signed) else float('nan')
