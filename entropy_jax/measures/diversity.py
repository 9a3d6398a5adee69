"""Success and diversity of answers on the host: unbiased pass@k and maj@k for every k at once, avg@k, and the number of distinct answers.

Counts or answers go in, float64 numpy comes out. A problem is sampled n times and c of the answers are correct.
"""

import collections
import dataclasses
import functools
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import scipy.special
from numpy.typing import ArrayLike, NDArray

from entropy_jax.types import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class PassAtK:
  """Mean pass@k over problems with a percentile interval at `level`, for every k in `k_K`."""

  k_K: Ints
  mean_K: Floats
  low_K: Floats
  high_K: Floats
  level: float
  num_problems: int


def pass_at_k(num_correct: ArrayLike, num_samples: ArrayLike, *, max_k: int | None = None) -> Floats:
  """Unbiased pass@k = 1 - C(n - c, k) / C(n, k), the chance that k of the n samples, drawn without replacement, hold a correct one.

  Args:
    num_correct: int, [P] (or a scalar), c of every problem, in [0, n].
    num_samples: int, n of all problems, or [P] where it differs.
    max_k: largest k; None for the smallest n.

  Returns:
    [P, max_k], float64; column k - 1 is pass@k. Computed as 1 - prod_{j < k} (n - c - j) / (n - j), which neither overflows nor cancels.

  Raises:
    UserError: k > n, k < 1, c outside [0, n], counts that are not integers.

  Limits: c / n at k = 1, whether any sample is correct at k = n, 0 at c = 0, 1 as soon as k > n - c.
  Reference: Chen et al., Evaluating Large Language Models Trained on Code, arXiv 2107.03374, Eq. 1.
  Differs: 1 - (1 - c / n)^k, which is the mean of the best of k draws with replacement, is biased low: .684 for c = 1 and n = k = 4, where
    one of the samples is correct for sure.

  >>> pass_at_k([2], 10)[0, :3].round(6).tolist()
  [0.2, 0.377778, 0.533333]
  """
  c_P = np.atleast_1d(_integers('num_correct', num_correct))
  n_P = np.broadcast_to(_integers('num_samples', num_samples), c_P.shape)
  if c_P.size == 0:
    raise UserError('num_correct holds no problem: give at least one count.')
  if n_P.min() < 1:
    raise UserError(f'num_samples={n_P.min()} is no sample: give at least 1 for every problem.')
  if c_P.min() < 0 or np.any(c_P > n_P):
    worst = int(np.argmax(np.maximum(c_P - n_P, -c_P)))
    raise UserError(f'num_correct={c_P[worst]} of problem {worst} is not within its {n_P[worst]} samples: give 0 to {n_P[worst]}.')
  last = int(n_P.min()) if max_k is None else max_k
  _check_k(last, int(n_P.min()))
  j_K = np.arange(last)
  failing_PxK = np.maximum(n_P[:, None] - c_P[:, None] - j_K, 0) / (n_P[:, None] - j_K)
  return 1.0 - np.cumprod(failing_PxK, axis=1)


def mean_pass_at_k(
  num_correct: ArrayLike,
  num_samples: ArrayLike,
  *,
  k: Iterable[int] | None = None,
  level: float = 0.95,
  num_resamples: int = 2000,
  seed: int = 0,
) -> PassAtK:
  """Mean over problems of the unbiased pass@k, with a bootstrap interval over problems.

  Args:
    num_correct, num_samples: as `pass_at_k`.
    k: the values wanted, each in [1, smallest n]; None for all of them.
    level: of the interval, in (0, 1).
    num_resamples: bootstrap draws of the set of problems.
    seed: of the bootstrap.

  Returns:
    PassAtK. The interval is about other problems of the same kind: problems are resampled, their samples are not.

  Raises:
    UserError: as `pass_at_k`.

  Limits: with one problem the interval is [0, 1], because one problem says nothing about others. When all problems agree (none is solved,
    say) the interval has no width, which is a property of the bootstrap and no certainty.
  """
  _check_level(level)
  smallest = int(np.min(_integers('num_samples', num_samples)))
  k_K = np.arange(1, smallest + 1) if k is None else np.atleast_1d(_integers('k', list(k)))
  if k_K.size == 0:
    raise UserError('k is empty: give at least one k, or None for all of them.')
  for one in (int(k_K.min()), int(k_K.max())):
    _check_k(one, smallest)
  value_PxK = pass_at_k(num_correct, num_samples, max_k=int(k_K.max()))[:, k_K - 1]
  num_problems = len(value_PxK)
  if num_problems == 1:
    low_K, high_K = np.zeros(k_K.size), np.ones(k_K.size)
  else:
    # A resample of problems is a multinomial count of each, and all resampled means are then one matrix product.
    uniform_P = np.full(num_problems, 1.0 / num_problems)
    count_RxP = np.random.default_rng(seed).multinomial(num_problems, uniform_P, size=num_resamples)
    mean_RxK = count_RxP.astype(np.float64) @ value_PxK / num_problems
    low_K, high_K = np.quantile(mean_RxK, [(1 - level) / 2, (1 + level) / 2], axis=0)
  return PassAtK(k_K, value_PxK.mean(axis=0), low_K, high_K, level, num_problems)


MOST_VOTES = 1000  # with more, numbers of subsets are no float64 any more


def maj_at_k(
  answers: Sequence[Sequence[Hashable | None]], correct: Sequence[Sequence[bool]], *, max_k: int | None = None
) -> Floats:
  """Unbiased maj@k, the chance that the most frequent answer of k of the n samples, drawn without replacement, is correct.

      maj@k = 1 / C(n, k) sum over subsets S of k samples of mean over the answers a that are most frequent in S of r_a

  with r_a = 1 where the answer a is correct and 0 where not. Exact: subsets are counted by how often the most frequent answer occurs in
  them and how many answers do as often, a polynomial an answer, and never listed.

  Args:
    answers: P problems of n normalised answers each, equal where they say the same; None for no answer, which has no vote.
    correct: P x n, whether each is correct. Where equal answers were judged differently, r_a is the share of a's samples that are correct.
    max_k: largest k; None for the smallest n.

  Returns:
    [P, max_k], float64; column k - 1 is maj@k.

  Raises:
    UserError: k > n, k < 1, lengths that differ, no sample, or more than 1000 of a problem.

  Limits: c / n at k = 1 where every sample without an answer is wrong; maj@2 = maj@1 where every sample has an answer, because a tie of two
    is shared; the vote of all samples at k = n. No sample of S with an answer counts as wrong.
  Reference: Wang et al., Self-Consistency Improves Chain of Thought Reasoning in Language Models, arXiv 2203.11171, section 2, is the vote.
  Differs: public evaluations take the vote of the first k samples, or the mean over some subsets, which is this with noise; and break ties
    by the order of samples, which favours nobody on average as well.

  >>> maj_at_k([['7', '7', '3']], [[True, True, False]]).round(6).tolist()     # pairs: 77 is right, 73 and 73 are ties
  [[0.666667, 0.666667, 1.0]]
  """
  if len(answers) != len(correct) or not answers:
    raise UserError(f'answers are of {len(answers)} problems and correct of {len(correct)}: give both of the same problems, one at least.')
  tables = []
  for problem, (given, flags) in enumerate(zip(answers, correct, strict=True)):
    if len(given) != len(flags) or not 0 < len(given) <= MOST_VOTES:
      raise UserError(
        f'problem {problem} has {len(given)} answers and {len(flags)} judgements: give as many of both, from 1 to {MOST_VOTES}.'
      )
    count, right = collections.Counter(given), collections.Counter(a for a, flag in zip(given, flags, strict=True) if flag)
    tables.append((tuple(sorted((c, right[a]) for a, c in count.items() if a is not None)), count[None]))
  smallest = min(len(given) for given in answers)
  last = smallest if max_k is None else max_k
  _check_k(last, smallest)
  return np.stack([_votes(counts, silent, last) for counts, silent in tables])


@functools.lru_cache(4096)  # most problems of a set are answered alike
def _votes(counts: tuple[tuple[int, int], ...], silent: int, max_k: int) -> Floats:
  """maj@k for k = 1 ... max_k of a problem with answers that occur c times, `right` of them correct, and `silent` samples without one."""
  voting = [(c, right / c, scipy.special.comb(c, np.arange(c + 1))) for c, right in counts]
  won_K = np.zeros(max_k + 1)  # sum of shared credits over the subsets of k samples with an answer
  for most in range(1, min(max((c for c, *_ in voting), default=0), max_k) + 1):
    # ways[j, t]: subsets of j samples of the answers so far, none more than `most` times and t of them as often; credit: of those t.
    ways, credit = np.zeros((2, max_k + 1, max_k // most + 1))
    ways[0, 0] = 1.0
    for c, share, subsets in voting:
      new_ways, new_credit = np.zeros_like(ways), np.zeros_like(credit)
      for i, number in enumerate(subsets[:most]):
        new_ways[i:] += number * ways[: max_k + 1 - i]
        new_credit[i:] += number * credit[: max_k + 1 - i]
      if c >= most:
        new_ways[most:, 1:] += subsets[most] * ways[: max_k + 1 - most, :-1]
        new_credit[most:, 1:] += subsets[most] * (credit + share * ways)[: max_k + 1 - most, :-1]
      ways, credit = new_ways, new_credit
    won_K += (credit[:, 1:] / np.arange(1, credit.shape[1])).sum(axis=1)
  mute_K = scipy.special.comb(silent, np.arange(max_k + 1))
  total = silent + sum(c for c, _ in counts)
  return np.convolve(won_K, mute_K)[1 : max_k + 1] / scipy.special.comb(total, np.arange(1, max_k + 1))


@dataclasses.dataclass(frozen=True)
class AvgAtK:
  """Mean success of k samples a problem, with an interval at `level`."""

  mean: float
  low: float
  high: float
  level: float


def avg_at_k(num_correct: ArrayLike, num_samples: ArrayLike, *, level: float = 0.95) -> AvgAtK:
  """avg@k = mean over problems of c / k, the success of one sample, with Wilson's interval for other samples of the same problems.

  Args:
    num_correct: int, [P] (or a scalar), c of every problem, in [0, k].
    num_samples: int, k of all problems, or [P] where it differs.
    level: of the interval, in (0, 1).

  Returns:
    AvgAtK; the interval is that of N = P^2 / sum(1 / k) throws of one coin, P k of them where k is the same.

  Raises:
    UserError: as `pass_at_k`.

  Limits: problems of unequal difficulty scatter less than one coin, so the interval is wider than need be and never too narrow; it has a
    width even where all or none are solved. It says nothing of other problems: for that, resample them as `mean_pass_at_k` does at k = 1.
  Reference: Wilson, Probable Inference, the Law of Succession, and Statistical Inference (1927).

  >>> found = avg_at_k([5, 5], 10)
  >>> found.mean, round(found.low, 4), round(found.high, 4)     # (.5 +- 1.96 sqrt(.25 / 20 + 1.96^2 / 1600)) about .5
  (0.5, 0.2993, 0.7007)
  """
  _check_level(level)
  share_P = pass_at_k(num_correct, num_samples, max_k=1)[:, 0]
  n_P = np.broadcast_to(_integers('num_samples', num_samples), share_P.shape)
  mean, throws = float(share_P.mean()), len(share_P) ** 2 / float((1.0 / n_P).sum())
  z2 = float(scipy.special.ndtri((1 + level) / 2)) ** 2 / throws
  centre = (mean + z2 / 2) / (1 + z2)
  half = np.sqrt(z2 * (mean * (1 - mean) + z2 / 4)) / (1 + z2)
  return AvgAtK(mean, max(float(centre - half), 0.0), min(float(centre + half), 1.0), level)


def answer_counts(answers: Iterable[Hashable], correct: Iterable[bool] | None = None) -> Ints:
  """How often each distinct answer to one problem occurs, most frequent first; of the correct ones alone where `correct` is given."""
  kept = list(answers)
  if correct is not None:
    flags = [bool(flag) for flag in correct]
    if len(flags) != len(kept):
      raise UserError(f'correct has {len(flags)} entries for {len(kept)} answers: give one for every answer.')
    kept = [answer for answer, flag in zip(kept, flags, strict=True) if flag]
  return np.array([count for _, count in collections.Counter(kept).most_common()], np.int64)


def distinct_answers(answers: Iterable[Hashable], correct: Iterable[bool] | None = None) -> int:
  """Number of distinct (correct) answers to one problem.

  >>> distinct_answers(['1+2', '2+1', '1+2', '7'], [True, True, True, False])
  2
  """
  return len(answer_counts(answers, correct))


def effective_answers(counts: ArrayLike) -> float:
  """exp of the entropy of the empirical distribution of answers, -sum_a (c_a / n) ln(c_a / n): the effective number of answers.

  Args:
    counts: int, how often each distinct answer occurs (`answer_counts`).

  Returns:
    In [1, number of answers], and 0 with no answer.

  Limits: the number of answers when all occur equally often. Biased low by about (distinct - 1) / (2 n) nats, so compare models at the same
    number of samples only.

  >>> round(effective_answers([2, 1, 1]), 6)     # exp(1.5 ln 2) = 2 sqrt 2
  2.828427
  """
  share = np.asarray(counts, np.float64)
  return float(np.exp(np.sum(scipy.special.entr(share / share.sum())))) if share.sum() > 0 else 0.0


def distinct_at_k(counts: ArrayLike, num_samples: int, *, max_k: int | None = None) -> Floats:
  """Unbiased expected number of distinct answers among k of the n samples, sum_a (1 - C(n - c_a, k) / C(n, k)), for every k.

  Args:
    counts: int, how often each (correct) answer occurs among the samples.
    num_samples: n, wrong answers included when only correct ones are counted.
    max_k: largest k; None for n.

  Returns:
    [max_k], float64; pass@k when there is one correct answer, and the number of distinct answers at k = n.

  Raises:
    UserError: as `pass_at_k`.

  >>> distinct_at_k([1, 1], 3).round(6).tolist()
  [0.666667, 1.333333, 2.0]
  """
  c_A = np.atleast_1d(_integers('counts', counts))
  if c_A.size == 0:
    last = num_samples if max_k is None else max_k
    _check_k(last, num_samples)
    return np.zeros(last)
  return pass_at_k(c_A, num_samples, max_k=max_k).sum(axis=0)


def _check_level(level: float) -> None:
  if not 0.0 < level < 1.0:
    raise UserError(f'level={level} is not a confidence level: give a number between 0 and 1, such as 0.95.')


def _check_k(k: int, num_samples: int) -> None:
  if not 1 <= k <= num_samples:
    raise UserError(
      f'k={k} cannot be estimated from {num_samples} samples a problem: give k from 1 to {num_samples}, or sample more.'
    )


def _integers(name: str, values: ArrayLike) -> Ints:
  array = np.asarray(values)
  if array.size == 0:
    return np.zeros(array.shape, np.int64)
  if not np.issubdtype(array.dtype, np.integer):
    whole = np.issubdtype(array.dtype, np.floating) and bool(np.all(array == np.floor(array)))
    if not whole or not bool(np.all(np.isfinite(array))):
      raise UserError(f'{name}={values!r} must be whole numbers: give counts.')
  return array.astype(np.int64)
