"""The covariance theory: the cards' numbers, enumeration, jvp and finite differences as oracles, and the theorem on a 64-state bandit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from entropy_jax.measures import dynamics
from entropy_jax.ops import categorical

pytestmark = pytest.mark.usefixtures('strict_dtypes')

P = np.array([0.5, 0.3, 0.2])
Z = jnp.log(jnp.array(P, jnp.float32))
A = jnp.array([0.5, -0.5, -0.5])  # reward on action 0, minus its probability
RARE = jnp.array([-0.2, -0.2, 0.8])  # reward on the rare action
RNG = np.random.default_rng(0)
LOGITS = jnp.array(RNG.normal(size=(6, 9)), jnp.float32)
REWARD = jnp.array(RNG.normal(size=(6, 9)), jnp.float32)
sequence_covariance = jax.jit(dynamics.sequence_covariance, static_argnames='natural')
covariance_summary = jax.jit(dynamics.covariance_summary, static_argnames='bound')
top_fraction_mean = jax.jit(dynamics.top_fraction_mean, static_argnames='fraction')
HOLES = jnp.where(jnp.arange(9) % 4 == 2, -jnp.inf, LOGITS)


def probs(logits):
  return scipy.special.softmax(np.asarray(logits, np.float64), axis=-1)


def cov(p, x, y):
  """Covariance by a loop over outcomes in float64."""
  support = [j for j in range(len(p)) if p[j] > 0]
  mean_x, mean_y = sum(p[j] * x[j] for j in support), sum(p[j] * y[j] for j in support)
  return sum(p[j] * (x[j] - mean_x) * (y[j] - mean_y) for j in support)


class TestCentreAdvantage:
  def test_expectation_is_zero_and_centred_is_kept(self):
    centred = dynamics.centre_advantage(LOGITS, REWARD)
    np.testing.assert_allclose(np.sum(probs(LOGITS) * np.asarray(centred), axis=-1), np.zeros(6), atol=1e-6)
    np.testing.assert_allclose(dynamics.centre_advantage(Z, A), A, atol=1e-7)


class TestPolicyGradientCovariance:
  def test_card_values(self):
    # E[ln p p A] - E[ln p] E[p A] with A = (.5, -.5, -.5)
    np.testing.assert_allclose(dynamics.policy_gradient_covariance(Z, A), 0.0615033, rtol=2e-6)
    np.testing.assert_allclose(dynamics.policy_gradient_covariance(Z, RARE), -0.0322407, rtol=2e-6)

  def test_against_a_loop_also_with_impossible_tokens(self):
    for logits in (LOGITS, HOLES):
      p, r = probs(logits), np.asarray(REWARD, np.float64)
      with np.errstate(divide='ignore'):
        expected = [cov(p[i], np.log(p[i]), p[i] * (r[i] - p[i] @ r[i])) for i in range(6)]
      np.testing.assert_allclose(dynamics.policy_gradient_covariance(logits, REWARD), expected, rtol=1e-4, atol=1e-6)

  def test_zero_for_uniform_rows_and_for_no_advantage(self):
    np.testing.assert_allclose(dynamics.policy_gradient_covariance(jnp.zeros((6, 9)), REWARD), np.zeros(6), atol=1e-7)
    np.testing.assert_array_equal(dynamics.policy_gradient_covariance(LOGITS, jnp.zeros((6, 9))), np.zeros(6))

  def test_a_constant_in_the_advantage_changes_nothing(self):
    pair = [dynamics.policy_gradient_covariance(LOGITS, REWARD + c) for c in (0.0, 3.0)]
    np.testing.assert_allclose(*pair, atol=1e-6)

  def test_gradient_is_finite_with_impossible_tokens(self):
    grads = jax.jit(jax.grad(lambda z, r: jnp.sum(dynamics.policy_gradient_covariance(z, r)), argnums=(0, 1)))(HOLES, REWARD)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in grads)


class TestNaturalPolicyGradientCovariance:
  def test_card_values(self):
    np.testing.assert_allclose(dynamics.natural_policy_gradient_covariance(Z, A), 0.1682529, rtol=2e-6)
    np.testing.assert_allclose(dynamics.natural_policy_gradient_covariance(Z, RARE), -0.1159570, rtol=2e-6)

  def test_against_a_loop(self):
    p = probs(LOGITS)
    expected = [cov(p[i], np.log(p[i]), np.asarray(REWARD[i])) for i in range(6)]
    np.testing.assert_allclose(dynamics.natural_policy_gradient_covariance(LOGITS, REWARD), expected, rtol=1e-4, atol=1e-6)

  def test_zero_for_uniform_rows(self):
    np.testing.assert_allclose(dynamics.natural_policy_gradient_covariance(jnp.zeros((6, 9)), REWARD), np.zeros(6), atol=1e-6)


class TestPredictedEntropyChange:
  def test_is_the_derivative_of_the_entropy_along_the_change(self):
    for logits in (LOGITS, HOLES):
      _, tangent = jax.jvp(categorical.entropy, (logits,), (REWARD,))
      np.testing.assert_allclose(dynamics.predicted_entropy_change(logits, REWARD), tangent, atol=3e-6)

  def test_central_difference_in_float64(self):
    z, d, e = np.asarray(LOGITS, np.float64), np.asarray(REWARD, np.float64), 1e-5
    slope = (scipy.stats.entropy(probs(z + e * d), axis=-1) - scipy.stats.entropy(probs(z - e * d), axis=-1)) / (2 * e)
    np.testing.assert_allclose(dynamics.predicted_entropy_change(LOGITS, REWARD), slope, atol=3e-6)

  def test_a_constant_change_is_no_change(self):
    np.testing.assert_allclose(dynamics.predicted_entropy_change(LOGITS, jnp.full((6, 9), 2.5)), np.zeros(6), atol=1e-6)
    pair = [dynamics.predicted_entropy_change(LOGITS, REWARD + c) for c in (0.0, 3.0)]
    np.testing.assert_allclose(*pair, atol=2e-6)

  def test_nan_change_of_an_impossible_token_does_not_matter(self):
    change = HOLES * 1.1 - HOLES  # -inf minus -inf
    assert bool(jnp.any(jnp.isnan(change)))
    assert bool(jnp.all(jnp.isfinite(dynamics.predicted_entropy_change(HOLES, change))))


class TestPredictedEntropyChangePolicyGradient:
  def test_card_value_and_lemma(self):
    # -1e-2 * .0615033 against the exact -6.16892e-4
    predicted = dynamics.predicted_entropy_change_policy_gradient(Z, A, 1e-2)
    np.testing.assert_allclose(predicted, -6.15033e-4, rtol=3e-6)
    np.testing.assert_allclose(predicted, dynamics.predicted_entropy_change(Z, 1e-2 * jnp.array(P, jnp.float32) * A), rtol=1e-5)
    np.testing.assert_allclose(dynamics.measured_entropy_change(Z, Z + 1e-2 * jnp.array(P, jnp.float32) * A), -6.16892e-4, atol=3e-7)


class TestPredictedEntropyChangeNaturalPolicyGradient:
  def test_card_value_and_lemma(self):
    predicted = dynamics.predicted_entropy_change_natural_policy_gradient(Z, A, 1e-2)
    np.testing.assert_allclose(predicted, -1.68253e-3, rtol=3e-6)
    np.testing.assert_allclose(predicted, dynamics.predicted_entropy_change(Z, 1e-2 * A), rtol=1e-5)
    np.testing.assert_allclose(dynamics.measured_entropy_change(Z, Z + 1e-2 * A), -1.69501e-3, atol=3e-7)


class TestSecondOrderCoefficient:
  def test_card_values(self):
    np.testing.assert_allclose(dynamics.second_order_coefficient(Z, jnp.array(P, jnp.float32) * A), -0.0371992, rtol=1e-5)
    # Var_p(A) = .25; (A - E A)^2 is constant, so the second part vanishes
    np.testing.assert_allclose(dynamics.second_order_coefficient(Z, A), -0.25, rtol=1e-6)

  def test_is_the_second_derivative_along_the_direction(self):
    def slope(z):
      return jax.jvp(categorical.entropy, (z,), (REWARD,))[1]

    for logits in (LOGITS, HOLES):
      second = jax.jit(lambda z: jax.jvp(slope, (z,), (REWARD,))[1])(logits)
      np.testing.assert_allclose(dynamics.second_order_coefficient(logits, REWARD), second, rtol=1e-4, atol=1e-5)

  def test_uniform_row_is_minus_the_variance(self):
    got = dynamics.second_order_coefficient(jnp.zeros((6, 9)), REWARD)
    np.testing.assert_allclose(got, -np.var(np.asarray(REWARD), axis=-1), rtol=1e-5)


class TestMeasuredEntropyChange:
  def test_against_scipy(self):
    expected = scipy.stats.entropy(probs(LOGITS + REWARD), axis=-1) - scipy.stats.entropy(probs(LOGITS), axis=-1)
    np.testing.assert_allclose(dynamics.measured_entropy_change(LOGITS, LOGITS + REWARD), expected, atol=2e-6)


class TestEntropyDiscriminator:
  def test_card_values(self):
    np.testing.assert_allclose(dynamics.entropy_discriminator(Z), [0.168253, -0.052296, -0.115957], atol=1e-6)
    z = jnp.log(jnp.array([0.7, 0.2, 0.08, 0.02]))
    s = dynamics.entropy_discriminator(z)
    np.testing.assert_allclose(s, [0.346629, -0.151516, -0.133910, -0.061203], atol=1e-6)
    np.testing.assert_allclose(dynamics.expected_discriminator(z) - s, [-0.146229, 0.351916, 0.334310, 0.261603], atol=1e-6)

  def test_one_logit_moved(self):
    # dz = 1e-3 e_0: exact -1.68378e-4, first order -1e-3 * .168253
    move = jnp.array([1e-3, 0.0, 0.0])
    np.testing.assert_allclose(dynamics.predicted_entropy_change(Z, move), -1e-3 * dynamics.entropy_discriminator(Z)[0], rtol=1e-4)
    np.testing.assert_allclose(dynamics.measured_entropy_change(Z, Z + move), -1.68378e-4, atol=3e-7)

  def test_sums_to_zero_and_changes_sign_at_exp_minus_entropy(self):
    s = dynamics.entropy_discriminator(LOGITS)
    np.testing.assert_allclose(jnp.sum(s, axis=-1), np.zeros(6), atol=2e-6)
    threshold = np.exp(-scipy.stats.entropy(probs(LOGITS), axis=-1))[:, None]
    np.testing.assert_array_equal(np.asarray(s) > 0, probs(LOGITS) > threshold)

  def test_uniform_is_zero_and_impossible_is_zero(self):
    np.testing.assert_allclose(dynamics.entropy_discriminator(jnp.zeros(9)), np.zeros(9), atol=1e-7)
    assert not np.any(np.asarray(dynamics.entropy_discriminator(HOLES))[:, 2::4])


class TestTokenDiscriminator:
  def test_picks_from_the_row(self):
    token = jnp.array([0, 1, 2, 3, 4, 5])
    got = dynamics.token_discriminator(*categorical.token_log_prob_and_entropy(LOGITS, token))
    row = dynamics.entropy_discriminator(LOGITS)
    np.testing.assert_allclose(got, np.asarray(row)[np.arange(6), np.asarray(token)], atol=1e-6)

  def test_impossible_token_is_zero_with_finite_gradient(self):
    value, grad = jax.value_and_grad(dynamics.token_discriminator)(jnp.float32(-jnp.inf), jnp.float32(1.0))
    assert float(value) == 0 == float(grad)


class TestExpectedDiscriminator:
  def test_card_value_and_both_forms(self):
    np.testing.assert_allclose(dynamics.expected_discriminator(Z), 0.0452463, rtol=3e-6)
    p = probs(LOGITS)
    expected = scipy.stats.entropy(p, axis=-1) * np.sum(p**2, -1) + np.sum(p**2 * np.log(p), -1)
    np.testing.assert_allclose(dynamics.expected_discriminator(LOGITS), expected, atol=1e-6)

  def test_degenerate_rows(self):
    rows = jnp.array([[0.0, 0, 0], [0.0, -jnp.inf, -jnp.inf]])
    value, grad = jax.value_and_grad(lambda z: jnp.sum(dynamics.expected_discriminator(z)))(rows)
    np.testing.assert_allclose(value, 0, atol=1e-7)
    assert bool(jnp.all(jnp.isfinite(grad)))

  def test_as_a_vocabulary_statistic(self):
    stat = dynamics.expected_discriminator_stat
    assert (stat.name, stat.of) == ('expected_discriminator', 'current')
    np.testing.assert_array_equal(stat.fn(LOGITS), dynamics.expected_discriminator(LOGITS))


@jax.jit
def every_token(logits_V):
  """Token-level arrays with one column for every token of the vocabulary: an enumeration of what can be sampled."""
  num = logits_V.shape[0]
  logp, entropy = categorical.token_log_prob_and_entropy(jnp.broadcast_to(logits_V, (num, num)), jnp.arange(num))
  expected = jnp.broadcast_to(dynamics.expected_discriminator(logits_V), (num,))
  return logp[None], entropy[None], expected[None]


class TestPredictedEntropyChangeToken:
  def test_card_value(self):
    # alpha = 1e-3, k = 2: -1e-3 (-.115957 - .0452463) = 1.61203e-4; exact 1.61127e-4
    change = dynamics.predicted_entropy_change_token(*every_token(Z), jnp.full((1, 3), 1e-3))
    np.testing.assert_allclose(change[0, 2], 1.61203e-4, rtol=1e-5)
    moved = Z + 1e-3 * (jnp.array([0.0, 0, 1]) - jnp.array(P, jnp.float32))
    np.testing.assert_allclose(dynamics.measured_entropy_change(Z, moved), 1.61127e-4, atol=3e-7)

  def test_is_the_lemma_for_the_gradient_of_one_token(self):
    z = LOGITS[0]
    change = dynamics.predicted_entropy_change_token(*every_token(z), jnp.full((1, 9), 0.3))
    moves = 0.3 * (jnp.eye(9) - jnp.exp(categorical.log_probs(z))[None])
    lemma = dynamics.predicted_entropy_change(jnp.broadcast_to(z, (9, 9)), moves)
    np.testing.assert_allclose(change[0], lemma, atol=1e-6)

  def test_expectation_over_the_policy_is_zero(self):
    # Corollary 3.4: E_{k ~ p}[S_k - E S] = 0
    for i in range(6):
      change = dynamics.predicted_entropy_change_token(*every_token(LOGITS[i]), jnp.ones((1, 9)))
      assert abs(float(np.asarray(change[0], np.float64) @ probs(LOGITS[i]))) < 1e-6

  def test_batch_mean_over_samples_is_far_below_the_discriminator(self):
    # Corollary 3.5: on-policy the batch mean of S - E S vanishes, at the rate of a sample mean, while S itself does not.
    logits = jax.random.normal(jax.random.key(4), (20_000, 16)) * 2.0
    token = jax.random.categorical(jax.random.key(5), logits)
    logp, entropy = categorical.token_log_prob_and_entropy(logits, token)
    expected = dynamics.expected_discriminator(logits)
    gap = -dynamics.predicted_entropy_change_token(logp, entropy, expected, jnp.ones_like(logp))
    assert abs(float(jnp.mean(gap))) < 3 * float(jnp.std(gap)) / np.sqrt(20_000)
    assert abs(float(jnp.mean(gap))) < 0.05 * float(jnp.mean(dynamics.token_discriminator(logp, entropy)))

  def test_link_to_theorem_one(self):
    # E_{k ~ p}[A_k (S_k - E S)] = Cov_p(ln p, p A) for centred A, term by term enumerated.
    for i in range(6):
      a = dynamics.centre_advantage(LOGITS[i], REWARD[i])
      change = dynamics.predicted_entropy_change_token(*every_token(LOGITS[i]), a[None])
      link = -np.asarray(change[0], np.float64) @ probs(LOGITS[i])
      np.testing.assert_allclose(link, dynamics.policy_gradient_covariance(LOGITS[i], REWARD[i]), atol=1e-6)


class TestTokenCovariance:
  P4 = jnp.array([[0.9, 0.05], [0.6, 0.1]])
  A4 = jnp.array([[2.0, 0.5], [-1.0, -1.5]])
  FULL = jnp.ones((2, 2), bool)

  def test_card_values(self):
    score, mean = dynamics.token_covariance(jnp.log(self.P4), self.A4, self.FULL)
    np.testing.assert_allclose(score.ravel(), [2.746531, -0.758553, -0.967800, 1.235939], rtol=2e-6)
    np.testing.assert_allclose(mean.compute(), 0.564029, rtol=2e-6)

  def test_mean_is_the_population_covariance(self):
    rng = np.random.default_rng(3)
    logp, adv, mask = -rng.exponential(size=(4, 5)), rng.normal(size=(4, 5)), rng.random((4, 5)) < 0.6
    _, mean = dynamics.token_covariance(jnp.array(logp, jnp.float32), jnp.array(adv, jnp.float32), jnp.array(mask))
    np.testing.assert_allclose(mean.compute(), np.cov(logp[mask], adv[mask], ddof=0)[0, 1], rtol=1e-5)
    assert float(mean.den) == mask.sum()

  def test_padding_changes_nothing_and_scores_zero(self):
    garbage = jnp.array([[jnp.nan], [-jnp.inf]])
    logp, adv = (jnp.concatenate([x, garbage], axis=1) for x in (jnp.log(self.P4), self.A4))
    mask = jnp.array([[True, True, False]] * 2)
    score, mean = dynamics.token_covariance(logp, adv, mask)
    plain, plain_mean = dynamics.token_covariance(jnp.log(self.P4), self.A4, self.FULL)
    np.testing.assert_allclose(score[:, :2], plain, rtol=1e-6)
    np.testing.assert_array_equal(score[:, 2], [0, 0])
    np.testing.assert_allclose(mean.compute(), plain_mean.compute(), rtol=1e-6)

  def test_carries_no_gradient(self):
    grads = jax.grad(lambda x, a: jnp.sum(dynamics.token_covariance(x, a, self.FULL)[0] ** 2), argnums=(0, 1))(jnp.log(self.P4), self.A4)
    assert not any(np.any(g) for g in grads)

  def test_empty_mask_is_zero(self):
    score, mean = dynamics.token_covariance(jnp.log(self.P4), self.A4, jnp.zeros((2, 2), bool))
    assert not np.any(score)
    assert float(mean.compute()) == 0


def loop_sequence_covariance(logp, advantage, mask, group, natural):
  """Per prompt, numpy's covariance over its responses; the mean over prompts with two responses or more."""
  values = []
  for g in sorted(set(group.tolist())):
    rows = [i for i in range(len(group)) if group[i] == g and mask[i].any()]
    if len(rows) >= 2:
      level = np.array([logp[i][mask[i]].mean() for i in rows])
      other = advantage[rows] if natural else np.exp(level) * advantage[rows]
      values.append(np.cov(level, other, ddof=0)[0, 1])
  return np.mean(values), len(values)


@pytest.mark.parametrize('natural', [False, True])
class TestSequenceCovariance:
  def test_by_hand(self, natural):
    # One prompt, two responses with mean log-probability ln .8 and ln .2 and A = 1, -1: mean l = ln .4, l - mean = +-ln 2.
    # Theorem 2: ln 2 * 1; Theorem 1: e^l A = (.8, -.2), centred +-.5: .5 ln 2.
    logp = jnp.log(jnp.array([[0.8, 0.8], [0.2, 0.5]]))
    mask = jnp.array([[True, True], [True, False]])
    ratio = sequence_covariance(logp, jnp.array([1.0, -1.0]), mask, jnp.array([7, 7]), natural=natural)
    np.testing.assert_allclose(ratio.compute(), np.log(2) * (1 if natural else 0.5), rtol=1e-6)
    assert float(ratio.den) == pytest.approx(1)

  def test_unequal_interleaved_groups_against_a_loop(self, natural):
    rng = np.random.default_rng(5)
    group = np.array([4, 9, 4, -1, 9, 4, 9, 9, 30, 30])  # sizes 3, 4, 1 and 2, one member of 30 without a token
    logp, advantage = -rng.exponential(size=(10, 6)), rng.normal(size=10)
    mask = np.arange(6) < rng.integers(1, 7, size=10)[:, None]
    mask[9] = False
    expected, num = loop_sequence_covariance(logp, advantage, mask, group, natural)
    logp[~mask], advantage[9] = np.nan, np.nan
    fn = functools.partial(sequence_covariance, natural=natural)
    args = [jnp.array(logp, jnp.float32), jnp.array(advantage, jnp.float32), jnp.array(mask), jnp.array(group)]
    np.testing.assert_allclose(fn(*args).compute(), expected, rtol=1e-5)
    assert float(fn(*args).den) == pytest.approx(num)
    order = rng.permutation(10)
    np.testing.assert_allclose(fn(*(x[order] for x in args)).compute(), expected, rtol=1e-5)

  def test_slices_of_whole_prompts_merge(self, natural):
    logp, advantage = jnp.log(jnp.array(RNG.random((6, 3)), jnp.float32)), jnp.array(RNG.normal(size=6), jnp.float32)
    mask, group = jnp.ones((6, 3), bool), jnp.array([0, 0, 1, 1, 1, 1])
    whole = sequence_covariance(logp, advantage, mask, group, natural=natural)
    parts = [sequence_covariance(logp[s], advantage[s], mask[s], group[s], natural=natural) for s in (slice(0, 2), slice(2, 6))]
    np.testing.assert_allclose(parts[0].merge(parts[1]).compute(), whole.compute(), rtol=1e-5)

  def test_groups_of_one_and_gradient(self, natural):
    logp, mask = jnp.log(jnp.array([[0.8], [0.2]])), jnp.ones((2, 1), bool)
    ratio = sequence_covariance(logp, jnp.array([1.0, -1.0]), mask, jnp.array([0, 1]), natural=natural)
    assert float(ratio.den) == 0 == float(ratio.compute())

    def of(x):
      return sequence_covariance(x, jnp.array([1.0, -1.0]), mask, jnp.array([0, 0]), natural=natural).compute()

    assert float(of(logp)) > 0
    assert not np.any(jax.grad(of)(logp))


class TestTopFractionMean:
  def test_by_hand(self):
    score = jnp.array([[5.0, 1.0, 3.0], [4.0, 2.0, jnp.nan]])
    mask = jnp.array([[True] * 3, [True, True, False]])
    assert float(top_fraction_mean(score, mask, fraction=0.4)) == 4.5  # 2 of 5: (5 + 4) / 2
    assert float(top_fraction_mean(score, mask, fraction=1e-4)) == 5.0  # at least one token
    assert float(top_fraction_mean(score, mask, fraction=1.0)) == 3.0  # all five
    assert float(top_fraction_mean(score, jnp.zeros_like(mask), fraction=1.0)) == 0


class TestCovarianceSummary:
  def test_against_numpy(self):
    rng = np.random.default_rng(6)
    score, mask = rng.normal(size=(40, 25)), rng.random((40, 25)) < 0.7
    dirty = jnp.array(np.where(mask, score, np.nan), jnp.float32)
    got = covariance_summary(dirty, jnp.array(mask), bound=1.0)
    valid = score[mask]
    best = np.sort(valid)[::-1][: int(0.02 * valid.size)]
    expected = {
      'mean': valid.mean(),
      'p50': np.quantile(valid, 0.5),
      'p99': np.quantile(valid, 0.99),
      'max': valid.max(),
      'top_2_percent': best.mean(),
      'fraction_above': (valid > 1).mean(),
    }
    assert got.keys() == expected.keys()
    for name, value in expected.items():
      np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)

  def test_bound_off_and_empty(self):
    got = covariance_summary(jnp.full((1, 2), jnp.nan), jnp.zeros((1, 2), bool))
    assert 'fraction_above' not in got
    assert all(float(value) == 0 for value in got.values())


STATES, VOCAB, STEPS = 64, 32, 200


@functools.partial(jax.jit, static_argnames=('natural', 'steps'))
def bandit(logits_SxV, reward_SxV, step_size, natural, steps):
  """Exact expected updates of a tabular softmax; mean over states of (measured, predicted, second-order) change at every step."""
  predict = (
    dynamics.predicted_entropy_change_natural_policy_gradient if natural else dynamics.predicted_entropy_change_policy_gradient
  )

  def step(z_SxV, _):
    advantage_SxV = dynamics.centre_advantage(z_SxV, reward_SxV)
    direction_SxV = advantage_SxV if natural else jnp.exp(categorical.log_probs(z_SxV)) * advantage_SxV
    after_SxV = z_SxV + step_size * direction_SxV
    measured = jnp.mean(dynamics.measured_entropy_change(z_SxV, after_SxV))
    second = 0.5 * step_size**2 * jnp.mean(dynamics.second_order_coefficient(z_SxV, direction_SxV))
    return after_SxV, (measured, jnp.mean(predict(z_SxV, reward_SxV, step_size)), second)

  return jax.lax.scan(step, logits_SxV, None, length=steps)[1]


@pytest.mark.parametrize(('natural', 'step_size'), [(False, 0.5), (True, 0.05)], ids=['policy_gradient', 'natural_policy_gradient'])
class TestTheoremOnABandit:
  """64 states, 32 actions, logits N(0, 1), reward 1 on each action with probability .15."""

  LOGITS = jax.random.normal(jax.random.key(0), (STATES, VOCAB))
  REWARD = jax.random.bernoulli(jax.random.key(1), 0.15, (STATES, VOCAB)).astype(jnp.float32)

  def run(self, step_size, natural, steps):
    return [np.asarray(x, np.float64) for x in bandit(self.LOGITS, self.REWARD, jnp.float32(step_size), natural, steps)]

  def test_prediction_follows_the_measured_change(self, natural, step_size):
    measured, predicted, _ = self.run(step_size, natural, STEPS)
    assert np.corrcoef(measured, predicted)[0, 1] >= 0.999
    assert np.abs(measured - predicted).sum() / np.abs(measured).sum() <= 0.02
    assert np.mean(predicted < 0) >= 0.95  # the covariance is positive on most steps
    assert measured.sum() < -0.3  # and the entropy really fell

  def test_second_order_explains_the_residual(self, natural, step_size):
    measured, predicted, second = self.run(step_size, natural, STEPS)
    assert np.abs(measured - predicted - second).sum() <= 0.2 * np.abs(measured - predicted).sum()

  def test_residual_quarters_when_the_step_halves(self, natural, step_size):
    residuals = []
    for size in (step_size, step_size / 2):
      measured, predicted, _ = self.run(size, natural, 1)
      residuals.append(float((measured - predicted)[0]))
    assert 3.8 <= residuals[0] / residuals[1] <= 4.2


class TestTokenFormOnSampledTokens:
  def test_summed_over_a_batch_it_follows_the_measured_change(self):
    # REINFORCE on 64 sampled tokens a state: the logits move by sum_k alpha_k (e_k - p).
    logits = TestTheoremOnABandit.LOGITS
    reward = TestTheoremOnABandit.REWARD

    def step(z_SxV, key):
      token_Sx64 = jax.random.categorical(key, z_SxV, axis=-1, shape=(64, STATES)).T
      logp = jnp.take_along_axis(categorical.log_probs(z_SxV), token_Sx64, axis=-1)
      entropy = jnp.broadcast_to(categorical.entropy(z_SxV)[:, None], (STATES, 64))
      got = jnp.take_along_axis(reward, token_Sx64, axis=-1)
      alpha = 0.5 / 64 * (got - jnp.mean(got, axis=-1, keepdims=True))
      expected = jnp.broadcast_to(dynamics.expected_discriminator(z_SxV)[:, None], (STATES, 64))
      predicted = jnp.sum(dynamics.predicted_entropy_change_token(logp, entropy, expected, alpha)) / STATES
      p_SxV = jnp.exp(categorical.log_probs(z_SxV))
      move = jnp.einsum('sk,skv->sv', alpha, jax.nn.one_hot(token_Sx64, VOCAB)) - jnp.sum(alpha, axis=-1, keepdims=True) * p_SxV
      return z_SxV + move, (jnp.mean(dynamics.measured_entropy_change(z_SxV, z_SxV + move)), predicted)

    keys = jax.random.split(jax.random.key(2), 60)
    measured, predicted = jax.jit(lambda z: jax.lax.scan(step, z, keys))(logits)[1]
    assert np.corrcoef(measured, predicted)[0, 1] >= 0.99
