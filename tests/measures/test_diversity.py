"""pass@k against enumeration and exact binomials, its interval, and the numbers of distinct answers."""

import itertools
import math

import numpy as np
import pytest

from entropy_jax.measures import diversity
from entropy_jax.types import UserError


def exact(n, c, k):
  """1 - C(n - c, k) / C(n, k) in exact integers."""
  return 1 - math.comb(n - c, k) / math.comb(n, k)


class TestPassAtK:
  def test_card_value(self):
    # 1 - C(8, 3) / C(10, 3) = 1 - 56 / 120
    assert diversity.pass_at_k(2, 10)[0, 2] == pytest.approx(0.533333, abs=1e-6)

  @pytest.mark.parametrize(('n', 'c'), [(5, 2), (6, 0), (6, 6), (4, 1)])
  def test_by_enumeration_of_every_subset(self, n, c):
    for k in range(1, n + 1):
      subsets = list(itertools.combinations(range(n), k))
      share = sum(any(i < c for i in subset) for subset in subsets) / len(subsets)
      assert diversity.pass_at_k(c, n)[0, k - 1] == pytest.approx(share, abs=1e-12)

  def test_exact_binomials_at_1024_samples(self):
    counts = np.array([0, 1, 3, 100, 512, 1000, 1024])
    got = diversity.pass_at_k(counts, 1024)
    assert got.shape == (7, 1024)
    expected = [[exact(1024, int(c), k) for k in (1, 2, 17, 256, 1023, 1024)] for c in counts]
    np.testing.assert_allclose(got[:, [0, 1, 16, 255, 1022, 1023]], expected, rtol=1e-11)
    assert np.all(np.diff(got, axis=1) >= -1e-15)

  def test_is_unbiased(self):
    # E over c ~ Binomial(n, q) of pass@k is 1 - (1 - q)^k, by enumeration of c.
    n, q = 12, 0.3
    weight = [math.comb(n, c) * q**c * (1 - q) ** (n - c) for c in range(n + 1)]
    mean = np.array(weight) @ diversity.pass_at_k(np.arange(n + 1), n)
    np.testing.assert_allclose(mean, 1 - (1 - q) ** np.arange(1, n + 1), rtol=1e-12)

  def test_one_of_four_at_four_is_certain(self):
    # The biased estimator 1 - (1 - 1/4)^4 gives .684.
    assert diversity.pass_at_k(1, 4)[0, 3] == 1

  def test_numbers_of_samples_that_differ(self):
    got = diversity.pass_at_k([1, 2], [4, 6])
    assert got.shape == (2, 4)
    np.testing.assert_allclose(got, [[exact(4, 1, k) for k in range(1, 5)], [exact(6, 2, k) for k in range(1, 5)]])
    assert diversity.pass_at_k([1, 2], [4, 6], max_k=2).shape == (2, 2)

  @pytest.mark.parametrize(
    ('args', 'kwargs', 'words'),
    [
      (([1], 4), {'max_k': 5}, ['k=5', '4 samples', '1 to 4']),
      (([1], 4), {'max_k': 0}, ['k=0', '1 to 4']),
      (([1, 5], 4), {}, ['num_correct=5', 'problem 1', '0 to 4']),
      (([-1], 4), {}, ['num_correct=-1']),
      (([0.5], 4), {}, ['num_correct', 'whole numbers']),
      (([np.nan], 4), {}, ['num_correct', 'whole numbers']),
      (([True], 4), {}, ['num_correct', 'whole numbers']),
      (([], 4), {}, ['num_correct', 'no problem']),
      (([0], 0), {}, ['num_samples=0']),
    ],
  )
  def test_refusals(self, args, kwargs, words):
    with pytest.raises(UserError) as error:
      diversity.pass_at_k(*args, **kwargs)
    assert all(word in str(error.value) for word in words), error.value


def vote_by_enumeration(answers, correct, k):
  """Mean over every subset of k samples of the shared credit of its most frequent answers."""
  total, subsets = 0.0, list(itertools.combinations(range(len(answers)), k))
  for subset in subsets:
    said = [answers[i] for i in subset if answers[i] is not None]
    most = max((said.count(a) for a in said), default=0)
    winners = {a for a in said if said.count(a) == most}
    for winner in winners:
      own = [correct[i] for i in range(len(answers)) if answers[i] == winner]
      total += sum(own) / len(own) / len(winners)
  return total / len(subsets)


class TestMajAtK:
  @pytest.mark.parametrize(
    ('answers', 'correct'),
    [
      ('aab', (1, 1, 0)),
      ('aabbbc', (1, 1, 0, 0, 0, 0)),
      ('aabbccdd', (0, 0, 1, 1, 0, 0, 0, 0)),
      ('abcdefg', (0, 0, 0, 1, 0, 0, 0)),
      ('aaaa', (1, 1, 1, 1)),
      (['a', None, 'b', None, 'a', 'b', 'b'], (1, 0, 0, 0, 1, 0, 0)),
      ([None, None, None], (0, 0, 0)),
      ('aaabbb', (1, 0, 1, 0, 0, 0)),  # equal answers that were judged differently
      ('aabb', (1, 1, 1, 1)),  # two answers, both right
    ],
    ids=str,
  )
  def test_by_enumeration_of_every_subset(self, answers, correct):
    found = diversity.maj_at_k([list(answers)], [list(map(bool, correct))])
    expected = [vote_by_enumeration(list(answers), correct, k) for k in range(1, len(answers) + 1)]
    np.testing.assert_allclose(found[0], expected, rtol=1e-12, atol=1e-15)

  def test_random_problems_by_enumeration(self):
    rng = np.random.default_rng(0)
    answers = rng.integers(0, 4, (20, 9)).tolist()
    correct = [[a == 0 for a in row] for row in answers]
    found = diversity.maj_at_k(answers, correct, max_k=5)
    expected = [[vote_by_enumeration(a, c, k) for k in range(1, 6)] for a, c in zip(answers, correct)]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)

  def test_by_hand(self):
    # 3 of aabbb: C(5, 3) = 10 subsets; a wins where both a's are in, 3 of them.
    assert diversity.maj_at_k(['aabbb'], [[True, True, False, False, False]])[0, 2] == pytest.approx(0.3)

  def test_is_unbiased(self):
    # Answers a, b, c with chances .5, .3, .2: the mean over all draws of 5 of maj@3 is the chance that a wins the vote of 3.
    chance = {'a': 0.5, 'b': 0.3, 'c': 0.2}
    draws = lambda n: [(d, math.prod(chance[x] for x in d)) for d in itertools.product('abc', repeat=n)]
    mean = sum(p * diversity.maj_at_k([d], [[x == 'a' for x in d]])[0, 2] for d, p in draws(5))
    truth = sum(p * vote_by_enumeration(list(d), [x == 'a' for x in d], 3) for d, p in draws(3))
    assert mean == pytest.approx(truth, rel=1e-12)

  def test_two_answers_at_1000_samples(self):
    # With 600 of 1000 right, a vote of k is won as often as a hypergeometric draw exceeds k / 2, ties by half.
    found = diversity.maj_at_k(['a' * 600 + 'b' * 400], [[True] * 600 + [False] * 400], max_k=40)[0]
    for k in (1, 2, 17, 40):
      ways = [math.comb(600, i) * math.comb(400, k - i) for i in range(k + 1)]
      won = sum(w * (1.0 if 2 * i > k else 0.5 if 2 * i == k else 0.0) for i, w in enumerate(ways))
      assert found[k - 1] == pytest.approx(won / math.comb(1000, k), rel=1e-11)

  @pytest.mark.parametrize(
    ('answers', 'correct', 'max_k', 'words'),
    [
      (['ab'], [[True]], None, 'problem 0 has 2 answers and 1 judgements'),
      ([''], [[]], None, 'problem 0 has 0 answers'),
      (['a' * 1001], [[True] * 1001], None, 'from 1 to 1000'),
      ([], [], None, 'answers are of 0 problems'),
      (['ab', 'a'], [[True, True]], None, 'answers are of 2 problems and correct of 1'),
      (['ab', 'a'], [[True, True], [True]], 2, 'k=2 cannot be estimated from 1 samples'),
    ],
  )
  def test_refused(self, answers, correct, max_k, words):
    with pytest.raises(UserError, match=words):
      diversity.maj_at_k(answers, correct, max_k=max_k)


class TestAvgAtK:
  def test_wilson_by_hand(self):
    # p = .3, N = 20, z = 1.959964: centre (.3 + .096036) / 1.192073, half 1.959964 sqrt(.3 * .7 / 20 + .002401) / 1.192073
    found = diversity.avg_at_k([1, 5], 10)
    assert found.mean == pytest.approx(0.3)
    np.testing.assert_allclose((found.low, found.high), (0.145478, 0.518972), atol=1e-5)

  def test_numbers_of_samples_that_differ(self):
    # The mean of shares, 1/2 and 3/4, not of samples; its variance for one coin is p q (1/2 + 1/4) / 4 = p q / (16 / 3).
    found = diversity.avg_at_k([1, 3], [2, 4])
    same = diversity.avg_at_k([1000], [1600])
    assert found.mean == same.mean == 0.625
    assert found.high - found.low > 5 * (same.high - same.low)

  def test_holds_its_level(self):
    # Problems of unequal difficulty, 4 samples each: at least 95 % of the intervals hold the mean of the chances.
    rng = np.random.default_rng(0)
    chance_P = rng.uniform(0, 1, 30)
    found = [diversity.avg_at_k(rng.binomial(4, chance_P), 4) for _ in range(400)]
    inside = np.mean([x.low <= chance_P.mean() <= x.high for x in found])
    assert inside >= 0.95

  def test_has_a_width_where_nothing_is_solved(self):
    found = diversity.avg_at_k([0, 0], 4)
    assert found.mean == found.low == 0.0 and 0.2 < found.high < 0.4  # z^2 / (8 + z^2) = .3244
    with pytest.raises(UserError, match=r'level=1.0 is not a confidence level'):
      diversity.avg_at_k([1], 2, level=1.0)


class TestMeanPassAtK:
  COUNTS = np.random.default_rng(0).binomial(16, np.random.default_rng(1).beta(1, 2, size=80))

  def test_mean_and_choice_of_k(self):
    every = diversity.mean_pass_at_k(self.COUNTS, 16)
    some = diversity.mean_pass_at_k(self.COUNTS, 16, k=(1, 4, 16))
    np.testing.assert_array_equal(every.k_K, np.arange(1, 17))
    np.testing.assert_allclose(every.mean_K, diversity.pass_at_k(self.COUNTS, 16).mean(axis=0))
    np.testing.assert_allclose(some.mean_K, every.mean_K[[0, 3, 15]])
    assert (some.num_problems, some.level) == (80, 0.95)

  def test_interval_is_the_classical_one_at_k_1(self):
    got = diversity.mean_pass_at_k(self.COUNTS, 16, k=[1], num_resamples=4000)
    value = self.COUNTS / 16
    half = 1.96 * value.std(ddof=1) / np.sqrt(80)
    assert got.low_K[0] == pytest.approx(value.mean() - half, abs=0.15 * half)
    assert got.high_K[0] == pytest.approx(value.mean() + half, abs=0.15 * half)

  def test_interval_covers_the_truth(self):
    rng = np.random.default_rng(2)
    hits = 0
    for seed in range(200):
      solved = rng.binomial(8, rng.beta(1, 1, size=60))  # mean pass@1 of such problems is 1/2
      got = diversity.mean_pass_at_k(solved, 8, k=[1], num_resamples=300, seed=seed)
      hits += got.low_K[0] <= 0.5 <= got.high_K[0]
    assert 0.88 <= hits / 200 <= 0.99

  def test_one_problem_says_nothing_about_others(self):
    got = diversity.mean_pass_at_k([3], 8, k=[2])
    assert (got.low_K[0], got.high_K[0]) == (0, 1)

  def test_seed(self):
    a, b, c = (diversity.mean_pass_at_k(self.COUNTS, 16, seed=s).low_K for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.any(a != c)

  @pytest.mark.parametrize(('k', 'word'), [([17], 'k=17'), ([0, 3], 'k=0'), ([], 'k is empty'), ([1.5], 'whole numbers')])
  def test_refuses_k(self, k, word):
    with pytest.raises(UserError, match=word):
      diversity.mean_pass_at_k(self.COUNTS, 16, k=k)

  def test_refuses_level(self):
    with pytest.raises(UserError, match='level=95'):
      diversity.mean_pass_at_k(self.COUNTS, 16, level=95)


class TestAnswerCounts:
  def test_most_frequent_first(self):
    np.testing.assert_array_equal(diversity.answer_counts(['a', 'b', 'b', 'c', 'b', 'c']), [3, 2, 1])
    np.testing.assert_array_equal(diversity.answer_counts([(1, 2), (1, 2), 3], [True, False, True]), [1, 1])
    assert diversity.answer_counts([]).size == 0

  def test_refuses_unequal_lengths(self):
    with pytest.raises(UserError, match='2 entries for 3 answers'):
      diversity.answer_counts([1, 2, 3], [True, False])


class TestDistinctAnswers:
  def test_all_and_correct(self):
    answers = ['1+2', '2+1', '1+2', '7']
    assert diversity.distinct_answers(answers) == 3
    assert diversity.distinct_answers(answers, [True, True, True, False]) == 2
    assert diversity.distinct_answers(answers, [False] * 4) == 0


class TestEffectiveAnswers:
  @pytest.mark.parametrize(('counts', 'value'), [([5], 1), ([3, 3, 3], 3), ([2, 1, 1], 2 * math.sqrt(2)), ([], 0), ([4, 0], 1)])
  def test_by_hand(self, counts, value):
    # (2, 1, 1): entropy .5 ln 2 + 2 * .25 ln 4 = 1.5 ln 2
    assert diversity.effective_answers(counts) == pytest.approx(value)


class TestDistinctAtK:
  def test_by_enumeration(self):
    samples = ['a', 'a', 'b', 'c', None]  # None: a wrong answer
    got = diversity.distinct_at_k([2, 1, 1], 5)
    for k in range(1, 6):
      sizes = [len(set(s) - {None}) for s in itertools.combinations(samples, k)]
      assert got[k - 1] == pytest.approx(np.mean(sizes))

  def test_one_answer_is_pass_at_k(self):
    np.testing.assert_allclose(diversity.distinct_at_k([3], 9, max_k=4), diversity.pass_at_k(3, 9, max_k=4)[0])

  def test_no_answer(self):
    np.testing.assert_array_equal(diversity.distinct_at_k([], 3), [0, 0, 0])
    with pytest.raises(UserError, match='k=4'):
      diversity.distinct_at_k([], 3, max_k=4)
