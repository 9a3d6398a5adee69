"""The categorical leaf against scipy, closed-form gradients, enumeration, and rows with impossible tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.test_util import check_grads

from entropy_jax.ops import categorical

pytestmark = pytest.mark.usefixtures('strict_dtypes')

P = np.array([0.5, 0.3, 0.2])
LOGITS = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32) * 3
HOLES = np.where(np.arange(7) % 3 == 1, -np.inf, LOGITS).astype(np.float32)  # tokens 1 and 4 are impossible
NOTHING = np.full((2, 4), -np.inf, np.float32)


def rows(logits):
  return scipy.special.softmax(np.asarray(logits, np.float64), axis=-1)


class TestLogProbs:
  def test_against_scipy(self):
    np.testing.assert_allclose(categorical.log_probs(jnp.array(LOGITS)), scipy.special.log_softmax(LOGITS, axis=-1), rtol=2e-6)

  def test_impossible_tokens(self):
    logp = categorical.log_probs(jnp.array(HOLES))
    np.testing.assert_allclose(logp, scipy.special.log_softmax(HOLES, axis=-1), rtol=2e-6)
    assert bool(jnp.all(jnp.isneginf(logp[:, 1])))

  def test_a_row_without_any_possible_token_is_uniform(self):
    np.testing.assert_allclose(categorical.log_probs(jnp.array(NOTHING)), np.full((2, 4), -np.log(4)), rtol=1e-6)

  def test_gradient_towards_impossible_logits_is_zero(self):
    grad = jax.grad(lambda z: jnp.sum(categorical.log_probs(z)[:, 0]))(jnp.array(HOLES))
    expected = np.eye(7)[0] - rows(HOLES)  # one-hot - p
    np.testing.assert_allclose(grad, expected, atol=1e-6)
    assert bool(jnp.all(grad[:, 1] == 0))

  def test_bfloat16_is_computed_in_float32(self):
    assert categorical.log_probs(jnp.array(LOGITS, jnp.bfloat16)).dtype == jnp.float32


class TestWeightedSum:
  def test_zero_weight_silences_anything(self):
    p, x = jnp.array([0.5, 0.5, 0.0]), jnp.array([2.0, 4.0, -jnp.inf])
    assert float(categorical.weighted_sum(p, x)) == 3  # .5 * 2 + .5 * 4
    grad_p, grad_x = jax.grad(categorical.weighted_sum, argnums=(0, 1))(p, x)
    np.testing.assert_array_equal(grad_p, [2, 4, 0])
    np.testing.assert_array_equal(grad_x, [0.5, 0.5, 0])


class TestEntropy:
  def test_card_values(self):
    # -(.5 ln .5 + .3 ln .3 + .2 ln .2) = .346574 + .361192 + .321888
    np.testing.assert_allclose(categorical.entropy(jnp.log(jnp.array(P))), 1.0296530, rtol=1e-6)
    np.testing.assert_allclose(categorical.entropy(jnp.zeros(32)), 3.465736, rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(-categorical.entropy(jnp.log(jnp.array(P)))), 0.357131, rtol=2e-6)

  @pytest.mark.parametrize('logits', [LOGITS, HOLES])
  def test_against_scipy(self, logits):
    np.testing.assert_allclose(categorical.entropy(jnp.array(logits)), scipy.stats.entropy(rows(logits), axis=-1), rtol=2e-6)

  def test_shift_of_the_logits_changes_nothing(self):
    np.testing.assert_allclose(categorical.entropy(jnp.array(LOGITS + 50)), categorical.entropy(jnp.array(LOGITS)), rtol=2e-5)

  @pytest.mark.parametrize('logits', [LOGITS, HOLES])
  def test_gradient_in_closed_form(self, logits):
    p = rows(logits)
    expected = -p * (np.log(np.where(p > 0, p, 1)) + scipy.stats.entropy(p, axis=-1)[:, None])
    grad = jax.jit(jax.grad(lambda z: jnp.sum(categorical.entropy(z))))(jnp.array(logits))
    np.testing.assert_allclose(grad, expected, atol=2e-6)
    np.testing.assert_allclose(jnp.sum(grad, axis=-1), np.zeros(5), atol=2e-6)

  def test_gradient_by_finite_differences(self):
    check_grads(jax.jit(categorical.entropy), (jnp.array(LOGITS[0] / 3),), order=1, modes=['rev'], atol=1e-2, rtol=1e-2)

  @pytest.mark.parametrize(
    ('row', 'value'),
    [([0.0, -np.inf], 0.0), ([-np.inf] * 4, np.log(4)), ([1e4, 0.0], 0.0), ([3e38, -3e38], 0.0), ([-1e4, -1e4], np.log(2))],
  )
  def test_degenerate_rows_are_finite_in_value_and_gradient(self, row, value):
    got, grad = jax.value_and_grad(categorical.entropy)(jnp.array(row))
    np.testing.assert_allclose(got, value, atol=1e-6)
    np.testing.assert_allclose(grad, np.zeros(len(row)), atol=1e-6)

  def test_never_negative(self):
    peaked = jnp.array(np.random.default_rng(1).normal(size=(500, 50)) * 30, jnp.float32)
    assert float(jnp.min(categorical.entropy(peaked))) >= 0


class TestEntropyGradient:
  def test_card_values(self):
    np.testing.assert_allclose(categorical.entropy_gradient(jnp.log(jnp.array(P))), [-0.168253, 0.052296, 0.115957], atol=1e-6)

  @pytest.mark.parametrize('logits', [LOGITS, HOLES, NOTHING])
  def test_equals_automatic_differentiation(self, logits):
    grad = jax.jit(jax.grad(lambda z: jnp.sum(categorical.entropy(z))))(jnp.array(logits))
    np.testing.assert_allclose(categorical.entropy_gradient(jnp.array(logits)), grad, atol=2e-6)


class TestTokenLogProb:
  def test_picks_the_token(self):
    token = jnp.array([0, 3, 6, 2, 5])
    expected = scipy.special.log_softmax(LOGITS, axis=-1)[np.arange(5), np.asarray(token)]
    np.testing.assert_allclose(categorical.token_log_prob(jnp.array(LOGITS), token), expected, rtol=2e-6)

  def test_gradient_is_one_hot_minus_p(self):
    grad = jax.grad(categorical.token_log_prob)(jnp.log(jnp.array(P)), jnp.array(1))
    np.testing.assert_allclose(grad, [-0.5, 0.7, -0.2], rtol=2e-6)

  def test_impossible_token(self):
    value, grad = jax.value_and_grad(categorical.token_log_prob)(jnp.array([0.0, 0.0, -jnp.inf]), jnp.array(2))
    assert float(value) == -np.inf
    assert bool(jnp.all(jnp.isfinite(grad)))


class TestTokenLogProbAndEntropy:
  @pytest.mark.parametrize('logits', [LOGITS, HOLES, NOTHING])
  def test_equals_the_two_alone(self, logits):
    token = jnp.arange(len(logits)) % 4
    logp, entropy = categorical.token_log_prob_and_entropy(jnp.array(logits), token)
    np.testing.assert_allclose(logp, categorical.token_log_prob(jnp.array(logits), token), rtol=1e-6)
    np.testing.assert_allclose(entropy, categorical.entropy(jnp.array(logits)), rtol=1e-6)

  def test_gradient_is_finite_with_impossible_tokens(self):
    grad = jax.grad(lambda z: sum(jnp.sum(x) for x in categorical.token_log_prob_and_entropy(z, jnp.zeros(5, jnp.int32))))(jnp.array(HOLES))
    assert bool(jnp.all(jnp.isfinite(grad)))
    assert bool(jnp.all(grad[:, 1] == 0))


class TestCovariance:
  def test_by_hand(self):
    # p = (.5, .3, .2), x = (1, 2, 4), y = (2, 0, 1): E[xy] = 1 + 0 + .8 = 1.8, E[x] = 1.9, E[y] = 1.2, 1.8 - 2.28 = -.48
    cov = categorical.covariance(jnp.array(P), jnp.array([1.0, 2, 4]), jnp.array([2.0, 0, 1]))
    np.testing.assert_allclose(cov, -0.48, rtol=1e-6)

  def test_against_numpy_weights(self):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 5, 7))
    p = rows(LOGITS)
    expected = [np.cov(x[i], y[i], aweights=p[i], ddof=0)[0, 1] for i in range(5)]
    got = categorical.covariance(*(jnp.array(v, jnp.float32) for v in (p, x, y)))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)

  def test_is_computed_centred(self):
    # An offset of 1e4 would cost every digit of E[xy] - E[x] E[y] = 1e8 + ... in float32.
    x = jnp.array([1.0, 2, 4]) + 1e4
    np.testing.assert_allclose(categorical.covariance(jnp.array(P), x, x), 1.29, rtol=1e-2)  # .5 + 1.2 + 3.2 - 1.9^2

  def test_impossible_token(self):
    p, x = jnp.array([0.5, 0.5, 0.0]), jnp.array([1.0, 3.0, -jnp.inf])
    grad = jax.grad(lambda x: categorical.covariance(p, x, jnp.array([0.0, 2.0, jnp.nan])))(x)
    # .5 (-1)(-1) + .5 (1)(1) = 1; gradient p (y - E y) = .5 (-1, 1)
    assert float(categorical.covariance(p, x, jnp.array([0.0, 2.0, jnp.nan]))) == 1
    np.testing.assert_allclose(grad, [-0.5, 0.5, 0], atol=1e-7)


class TestKlDivergence:
  def test_against_scipy(self):
    other = LOGITS[::-1].copy()
    expected = scipy.stats.entropy(rows(LOGITS), rows(other), axis=-1)
    np.testing.assert_allclose(categorical.kl_divergence(jnp.array(LOGITS), jnp.array(other)), expected, rtol=2e-5)

  def test_impossible_on_either_side(self):
    p, q = jnp.array([0.0, -jnp.inf]), jnp.array([0.0, 0.0])
    np.testing.assert_allclose(categorical.kl_divergence(p, q), np.log(2), rtol=1e-6)  # 1 ln(1 / .5)
    assert float(categorical.kl_divergence(q, p)) == np.inf
    assert float(categorical.kl_divergence(p, p)) == 0

  def test_gradient(self):
    # d KL(p || q) / d z_q = q - p
    p, q = jnp.array([0.0, 1.0, -jnp.inf]), jnp.array([1.0, 0.0, -jnp.inf])
    grad = jax.grad(categorical.kl_divergence, argnums=1)(p, q)
    np.testing.assert_allclose(grad, rows(q) - rows(p), atol=1e-6)
