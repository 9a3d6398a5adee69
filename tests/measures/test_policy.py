"""Policy entropy measures: hand values, numpy loops, merging of slices, garbage in masked slots, sampling with its standard error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from entropy_jax.measures import policy
from entropy_jax.ops import categorical

pytestmark = pytest.mark.usefixtures('strict_dtypes')

MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]], bool)
CLEAN = np.array([[1, 2, 3, 0], [7, 0, 0, 0], [0, 0, 0, 0], [4, 6, 0, 0]], np.float32)
X = jnp.array(np.where(MASK, CLEAN, np.array([np.nan, np.inf, -np.inf, 1e30], np.float32)))
M = jnp.array(MASK)
EMPTY = jnp.zeros_like(M)
CLASS = jnp.array([[0, 1, 2, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 5, 0, 0]])

MEASURES = {
  'token': policy.token_entropy,
  'sequence': policy.sequence_entropy,
  'response': policy.response_entropy,
  'class': lambda x, m: policy.entropy_by_class(x, CLASS[: len(x)], m, num_classes=3),
  'position': policy.entropy_by_position,
  'monte_carlo': policy.monte_carlo_entropy,
}


@pytest.mark.parametrize('name', MEASURES)
class TestEveryMean:
  def test_garbage_reaches_neither_value_nor_gradient(self, name):
    value = jax.jit(jax.value_and_grad(lambda x: jnp.sum(MEASURES[name](x, M).compute())))
    (got, grad), (clean, clean_grad) = value(X), value(jnp.array(CLEAN))
    np.testing.assert_array_equal(got, clean)
    np.testing.assert_array_equal(grad, clean_grad)
    assert not np.any(np.asarray(grad)[~MASK])
    assert np.any(np.asarray(grad)[MASK])

  def test_empty_mask_is_zero(self, name):
    value, grad = jax.jit(jax.value_and_grad(lambda x: jnp.sum(MEASURES[name](x, EMPTY).compute())))(X)
    assert float(value) == 0
    assert not np.any(grad)

  def test_slices_merge_to_the_whole(self, name):
    if name == 'class':  # the classes belong to the rows
      parts = [policy.entropy_by_class(X[i : i + 2], CLASS[i : i + 2], M[i : i + 2], num_classes=3) for i in (0, 2)]
    else:
      parts = [MEASURES[name](X[i : i + 2], M[i : i + 2]) for i in (0, 2)]
    np.testing.assert_allclose(parts[0].merge(parts[1]).compute(), MEASURES[name](X, M).compute(), rtol=1e-6)


class TestTokenEntropy:
  def test_by_hand(self):
    assert float(policy.token_entropy(X, M).compute()) == pytest.approx(23 / 6)  # (1 + 2 + 3 + 7 + 4 + 6) / 6


class TestSequenceEntropy:
  def test_by_hand(self):
    assert float(policy.sequence_entropy(X, M).compute()) == pytest.approx(14 / 3)  # (2 + 7 + 5) / 3, the empty row not counted

  def test_equals_tokens_for_equal_lengths(self):
    full = jnp.ones_like(M)
    pair = [f(jnp.array(CLEAN), full).compute() for f in (policy.sequence_entropy, policy.token_entropy)]
    np.testing.assert_allclose(*pair, rtol=1e-6)


class TestResponseEntropy:
  def test_by_hand(self):
    assert float(policy.response_entropy(X, M).compute()) == pytest.approx(23 / 3)  # (6 + 7 + 10) / 3

  def test_chain_rule_by_enumeration(self):
    # Two tokens over a vocabulary of 3, the second row of logits depends on the first token: all 9 responses, weighted by probability.
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=3), rng.normal(size=(3, 3))
    p1, p2 = np.exp(first) / np.exp(first).sum(), np.exp(second) / np.exp(second).sum(-1, keepdims=True)
    joint = (p1[:, None] * p2).ravel()
    rows = [(scipy.stats.entropy(p1), scipy.stats.entropy(p2[i])) for i in range(3) for _ in range(3)]
    sums = [float(policy.response_entropy(jnp.array([row]), jnp.ones((1, 2), bool)).compute()) for row in rows]
    assert np.dot(joint, sums) == pytest.approx(scipy.stats.entropy(joint), rel=1e-6)


class TestEntropyByClass:
  def test_by_hand(self):
    # class 0: (1 + 4) / 2; class 1: (2 + 7) / 2; class 2: 3 / 1; the token of class 5 is counted nowhere.
    ratio = policy.entropy_by_class(X, CLASS, M, num_classes=3)
    np.testing.assert_allclose(ratio.compute(), [2.5, 4.5, 3], rtol=1e-6)
    np.testing.assert_array_equal(ratio.den, [2, 2, 1])

  def test_one_class_is_the_token_mean(self):
    ratio = policy.entropy_by_class(X, jnp.zeros_like(CLASS), M, num_classes=1)
    np.testing.assert_allclose(ratio.compute()[0], policy.token_entropy(X, M).compute(), rtol=1e-6)


class TestEntropyByPosition:
  def test_by_hand(self):
    # (1 + 7 + 4) / 3, (2 + 6) / 2, 3 / 1, none
    np.testing.assert_allclose(policy.entropy_by_position(X, M).compute(), [4, 4, 3, 0], rtol=1e-6)


class TestMonteCarloEntropy:
  def test_within_three_standard_errors_at_temperature_one_and_low_when_sampled_colder(self):
    logits = jax.random.normal(jax.random.key(0), (1000, 32)) * 2.0
    mask = jnp.ones((1, 1000), bool)
    exact = float(jnp.mean(categorical.entropy(logits)))

    @jax.jit
    def sampled(temperature):
      token = jax.random.categorical(jax.random.key(1), logits / temperature)
      return categorical.token_log_prob(logits, token)[None]

    logp = sampled(1.0)
    error = float(jnp.std(logp)) / np.sqrt(1000)
    assert abs(float(policy.monte_carlo_entropy(logp, mask).compute()) - exact) < 3 * error
    assert float(policy.monte_carlo_entropy(sampled(0.8), mask).compute()) < exact - 3 * error

  def test_gradient_has_expectation_zero(self):
    # sum_k p_k d(-ln p_k)/dz = 0 for p = (.5, .3, .2): it is no gradient of the entropy.
    p = jnp.array([0.5, 0.3, 0.2])
    one = jnp.ones((1, 1), bool)

    def estimate(z, k):
      return policy.monte_carlo_entropy(categorical.token_log_prob(z, k)[None, None], one).compute()

    grads = np.asarray(jax.jit(jax.vmap(jax.grad(estimate), in_axes=(None, 0)))(jnp.log(p), jnp.arange(3)))
    np.testing.assert_allclose(grads[0], [-0.5, 0.3, 0.2], rtol=1e-5)  # p - one-hot
    np.testing.assert_allclose(np.asarray(p) @ grads, np.zeros(3), atol=1e-6)


class TestEffectiveNumber:
  def test_uniform_and_card_value(self):
    assert float(policy.effective_number(categorical.entropy(jnp.zeros(32)))) == pytest.approx(32, rel=1e-5)
    # H = 1.0296530 for (.5, .3, .2); e^-H = .357131
    assert float(policy.effective_number(jnp.float32(1.0296530))) == pytest.approx(1 / 0.357131, rel=1e-5)


class TestInverseSimpson:
  @pytest.mark.parametrize(('p', 'value'), [((0.5, 0.3, 0.2), 1 / 0.38), ((1.0, 0.0), 1.0), ((0.25,) * 4, 4.0), ((0.5, 0.5, 0.0), 2.0)])
  def test_by_hand(self, p, value):
    assert float(policy.inverse_simpson(jnp.log(jnp.array(p)))) == pytest.approx(value, rel=1e-6)

  def test_never_above_the_entropy_number(self):
    logits = jax.random.normal(jax.random.key(3), (200, 12)) * 3.0
    gap = jax.jit(lambda z: policy.effective_number(categorical.entropy(z)) - policy.inverse_simpson(z))(logits)
    assert float(jnp.min(gap)) > -1e-4

  def test_gradient_is_finite_at_impossible_tokens_and_zero_at_uniform(self):
    grad = jax.jit(jax.grad(policy.inverse_simpson))
    assert np.asarray(grad(jnp.array([0.0, 1.0, -jnp.inf])))[2] == 0
    assert np.all(np.isfinite(grad(jnp.array([0.0, 1.0, -jnp.inf]))))
    np.testing.assert_allclose(grad(jnp.zeros(5)), np.zeros(5), atol=1e-6)

  def test_as_a_vocabulary_statistic(self):
    stat = policy.inverse_simpson_stat
    assert (stat.name, stat.of) == ('inverse_simpson', 'current')
    assert stat.fn(jnp.zeros((2, 3, 8), jnp.bfloat16)).shape == (2, 3)
