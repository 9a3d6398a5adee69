"""Empirical support: the published counts, curves over the budget, answers against tokens, and the two theorems of the zero support."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from entropy_jax.measures import diversity, support
from entropy_jax.ops import categorical
from entropy_jax.types import UserError


class TestSupport:
  def test_card(self):
    # P = 2388, E = 48, S = 175: 2388 / 2563, 48 / 2436, their harmonic mean, (48 - 175) / 2611
    found = support.Support(preserved=2388, expanded=48, shrunk=175)
    values = [found.retention, found.discovery, found.discovery_score, found.net_change]
    np.testing.assert_allclose(values, [0.931721, 0.019704, 0.038593, -0.048640], atol=5e-7)

  def test_as_much_found_as_lost(self):
    assert support.Support(10, 4, 4).net_change == 0.0

  def test_the_base_itself(self):
    found = support.support([True, False, True], [True, False, True])
    assert (found.retention, found.discovery, found.discovery_score, found.net_change) == (1.0, 0.0, 0.0, 0.0)
    assert found == support.Support(2, 0, 0, 1, found.empty)

  def test_nothing_is_nan_or_zero(self):
    found = support.support([False], [False])
    assert all(math.isnan(x) for x in (found.retention, found.discovery, found.discovery_score, found.net_change))
    found = support.support([False], [False], empty=0.0)
    assert (found.retention, found.discovery, found.discovery_score, found.net_change) == (0.0, 0.0, 0.0, 0.0)


class TestSupportThreshold:
  def test_card(self):
    assert float(support.support_threshold(8192)) == pytest.approx(3.657e-4, abs=5e-8)

  def test_an_answer_at_the_threshold_is_missed_with_probability_zeta(self):
    # (1 - eps)^k -> zeta: for k = 10^6 to six digits
    eps = float(support.support_threshold(1_000_000, zeta=0.2))
    assert (1 - eps) ** 1_000_000 == pytest.approx(0.2, abs=1e-6)
    np.testing.assert_allclose(support.support_threshold([1, 2]), -np.log(0.05) / np.array([1, 2]))

  @pytest.mark.parametrize(('k', 'zeta'), [(0, 0.05), (8, 0.0), (8, 1.0)])
  def test_refuses(self, k, zeta):
    with pytest.raises(UserError, match='support: '):
      support.support_threshold(k, zeta=zeta)


class TestSupportCounts:
  def test_all_four_cells_and_wrong_answers_count_nowhere(self):
    cells = list(itertools.product([False, True], repeat=3))
    base, trained, correct = (np.array(x) for x in zip(*cells))
    assert support.support(base, trained, correct, empty=0.0) == support.Support(1, 1, 1, 1, 0.0)
    assert support.support(base, trained, empty=0.0) == support.Support(2, 2, 2, 2, 0.0)

  def test_refuses(self):
    with pytest.raises(UserError, match=r'support: base, trained and correct have shapes \(1,\), \(2,\) and \(1,\)'):
      support.support([True], [True, False])
    with pytest.raises(UserError, match=r'support: trained holds int64; give True or False'):
      support.support([True], [3])


class TestSupportFromProbabilities:
  def test_by_hand(self):
    # k = 10: eps = .29957; correct answers 0, 1, 2: in both, lost, found
    found = support.support_from_probabilities([0.4, 0.3, 0.1, 0.2], [0.5, 0.1, 0.3, 0.1], [True, True, True, False], k=10, empty=0.0)
    assert found == support.Support(1, 1, 1, 0, 0.0)


class TestSupportFromSamples:
  def test_once_is_enough(self):
    found = support.support_from_samples([0, 3, 1, 0], [1, 1, 0, 0], empty=0.0)
    assert found == support.Support(preserved=1, expanded=1, shrunk=1, neither=1, empty=0.0)

  def test_pass_at_k_of_the_card(self):
    # the companion measure lives in diversity: n = 10, c = 2: 1 - (8 * 7 * 6) / (10 * 9 * 8)
    assert diversity.pass_at_k([2], 10)[0, 2] == pytest.approx(0.533333, abs=5e-7)


class TestSupportCurve:
  def test_sharpening_gains_at_small_budgets_and_loses_at_large_ones(self):
    # 300 correct answers share .1 of the base by Zipf's law; training puts .95 on them and squares their odds.
    zipf = 1 / np.arange(1, 301)
    base, trained = 0.1 * zipf / zipf.sum(), 0.95 * zipf**2 / np.sum(zipf**2)
    budgets = [16, 64, 256, 4096, 65536, 2**24]
    curve = support.support_curve(base, trained, np.ones(300, bool), budgets, empty=0.0)
    change = [found.net_change for found in curve]
    assert change[0] == 1.0 and change[1] > 0.5 and change[4] < 0  # the first sign change
    assert change[-1] == 0.0  # with samples enough both reach all answers
    for k, found in zip(budgets, curve):
      in_base, in_trained = base > -np.log(0.05) / k, trained > -np.log(0.05) / k
      assert found.preserved == np.sum(in_base & in_trained) and found.shrunk == np.sum(in_base & ~in_trained)


class TestAnswerEntropy:
  def test_scipy(self):
    answers = list('aabacddd')
    want = scipy.stats.entropy([3, 1, 1, 3])
    assert support.answer_entropy(answers) == pytest.approx(want)
    assert support.answer_entropy('aaa') == 0.0 and support.answer_entropy([]) == 0.0

  def test_is_low_by_the_number_of_distinct_answers(self):
    # uniform over 8, n = 400: biased by about (8 - 1) / 800 = .00875 nats
    rng = np.random.default_rng(0)
    gaps = [np.log(8) - support.answer_entropy(rng.integers(0, 8, 400).tolist()) for _ in range(400)]
    assert np.mean(gaps) == pytest.approx(7 / 800, abs=4 * np.std(gaps) / 20)


class TestEntropyChange:
  def test_decoupling_of_the_card(self):
    # token entropy .44 -> .52 while the answers of both problems fall from ln 2 to 0
    found = support.entropy_change(0.44, 0.52, [['7', '8'], ['1', '2']], [['7', '7'], ['1', '1']])
    assert found.token == pytest.approx(0.08) and found.answer == pytest.approx(-np.log(2)) and found.num_samples == 2
    assert found.decoupled

  def test_together_is_not_decoupled(self):
    assert not support.entropy_change(0.5, 0.4, [['7', '8']], [['7', '7']]).decoupled
    assert not support.entropy_change(0.4, 0.5, [['7', '7']], [['7', '8']]).decoupled

  @pytest.mark.parametrize('trained', [[['7', '8', '9']], [], [['7', '8'], ['1', '2']]])
  def test_refuses_unequal_samples(self, trained):
    with pytest.raises(UserError, match='the same number of samples'):
      support.entropy_change(0.4, 0.5, [['7', '8']], trained)


class TestTracePerplexity:
  def test_by_hand(self):
    logp = jnp.log(jnp.array([[0.5, 0.125, 0.9], [0.25, 1.0, 1.0]])).at[0, 2].set(jnp.nan)
    mask = jnp.array([[True, True, False], [True, True, False]])
    # exp((ln 2 + ln 8 + ln 4 + 0) / 4) = 2^1.5
    np.testing.assert_allclose(support.trace_perplexity(logp, mask), 2**1.5, rtol=1e-6)

  def test_uniform_model(self):
    np.testing.assert_allclose(support.trace_perplexity(jnp.full((2, 3), -np.log(9)), jnp.ones((2, 3), bool)), 9.0, rtol=1e-5)


class TestTilted:
  def test_entropy_can_rise(self):
    # q = (.9, .1), R = (0, 1), beta = 1: e / (9 + e) = .232; the entropy goes from .325 to .542
    logp = support.tilted(jnp.log(jnp.array([0.9, 0.1])), jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(jnp.exp(logp), [0.768, 0.232], atol=5e-4)
    np.testing.assert_allclose(categorical.entropy(logp), 0.542, atol=5e-4)

  def test_ratios_among_equal_rewards_are_kept(self):
    q = jnp.array([0.4, 0.3, 0.2, 0.1])
    pi = jnp.exp(support.tilted(jnp.log(q), jnp.array([0.0, 1.0, 0.0, 1.0]), beta=3.0))
    np.testing.assert_allclose(pi[1] / pi[3], 3.0, rtol=1e-5)
    np.testing.assert_allclose(pi[0] / pi[2], 2.0, rtol=1e-5)
    np.testing.assert_allclose(pi[1] + pi[3], 0.4 * np.exp(3) / (0.4 * np.exp(3) + 0.6), rtol=1e-5)

  def test_what_the_base_cannot_say_is_not_learnt(self):
    logp = support.tilted(jnp.array([0.0, -jnp.inf]), jnp.array([0.0, 100.0]))
    np.testing.assert_array_equal(logp, [0.0, -np.inf])

  def test_on_policy_updates_keep_a_zero_at_zero(self):
    # REINFORCE with sampled tokens on logits of which one is -inf, and only that one is rewarded most
    reward = jnp.array([0.0, 1.0, 0.2, 5.0])

    def step(logits, key):
      token = jax.random.categorical(key, logits, shape=(16,))
      advantage = reward[token] - reward[token].mean()
      return logits + 0.5 * jax.grad(lambda z: jnp.mean(advantage * categorical.log_probs(z)[token]))(logits), token

    start = jnp.array([0.5, 0.0, -0.5, -jnp.inf])
    logits, tokens = jax.jit(lambda: jax.lax.scan(step, start, jax.random.split(jax.random.key(0), 200)))()
    assert float(logits[3]) == -np.inf and not np.any(tokens == 3)
    assert float(jax.nn.softmax(logits)[1]) > 0.9  # it did learn
