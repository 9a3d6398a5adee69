"""Renyi-2 measures against enumeration over tokens, automatic differentiation of ln p, and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.measures import policy, renyi
from entropy_jax.ops import categorical, vocabulary

pytestmark = pytest.mark.usefixtures('strict_dtypes')
Z = np.random.default_rng(0).normal(0, 1.5, (6, 5)).astype(np.float32)


class TestExpectedSquaredScore:
  def test_card(self):
    # 1 - (.25 + .25), 1 - (.81 + .01), 1 - 4 / 16
    for p, want in (([0.5, 0.5], 0.5), ([0.9, 0.1], 0.18), ([0.25] * 4, 0.75)):
      np.testing.assert_allclose(renyi.expected_squared_score(jnp.log(jnp.array(p))), want, rtol=1e-6)

  def test_is_the_mean_squared_gradient_of_the_log_prob(self):
    score = jax.vmap(jax.jacobian(categorical.log_probs))(Z)  # [row, token, logit]
    p = jax.nn.softmax(Z)
    want = np.einsum('rt,rtj->r', p, np.square(score))
    np.testing.assert_allclose(jax.jit(renyi.expected_squared_score)(Z), want, rtol=1e-5)
    np.testing.assert_allclose(want, 1 - np.exp(-np.array(renyi.collision_entropy(Z))), rtol=1e-5)

  def test_is_exact_for_a_nearly_certain_row(self):
    # 1 - p^2 - (1 - p)^2 = 2 (1 - p) p with 1 - p = e^-20: about 4.122e-9, where 1 - sum p^2 in float32 is 0
    z = jnp.array([20.0, 0.0])
    assert float(1 - vocabulary.collision_probability(z)) == 0.0
    q = np.exp(-20.0) / (1 + np.exp(-20.0))
    np.testing.assert_allclose(renyi.expected_squared_score(z), 2 * q * (1 - q), rtol=1e-5)

  def test_impossible_tokens(self):
    z = jnp.array([0.0, -jnp.inf, 0.0, -jnp.inf])
    value, grad = jax.value_and_grad(renyi.expected_squared_score)(z)
    np.testing.assert_allclose(value, 0.5, rtol=1e-6)
    np.testing.assert_allclose(grad, np.zeros(4), atol=1e-7)

  def test_gradient(self):
    grad = jax.grad(lambda z: renyi.expected_squared_score(z).sum())(jnp.array(Z))
    p = np.asarray(jax.nn.softmax(Z), np.float64)
    want = -2 * p * (p - np.sum(p**2, axis=1, keepdims=True))  # d(-sum p^2)/dz_j = -2 p_j (p_j - sum p^2)
    np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-6)


class TestCollisionEntropy:
  def test_by_hand(self):
    np.testing.assert_allclose(renyi.collision_entropy(jnp.log(jnp.array([0.5, 0.3, 0.2]))), -np.log(0.38), rtol=1e-6)

  def test_never_above_shannon_and_equal_on_uniform_rows(self):
    h2, h1 = renyi.collision_entropy(Z), categorical.entropy(jnp.array(Z))
    assert np.all(np.array(h2) < np.array(h1))
    np.testing.assert_allclose(renyi.collision_entropy(jnp.zeros(7)), np.log(7), rtol=1e-6)
    np.testing.assert_allclose(np.exp(h2), policy.inverse_simpson(jnp.array(Z)), rtol=1e-5)

  def test_certain_row(self):
    z = jnp.array([0.0, -jnp.inf])
    assert float(renyi.collision_entropy(z)) == 0.0
    assert np.isfinite(jax.grad(renyi.collision_entropy)(z)).all()


class TestSquaredScore:
  def test_every_token(self):
    p = np.asarray(jax.nn.softmax(Z), np.float64)
    want = np.stack([np.sum((np.eye(5)[a] - p) ** 2, axis=1) for a in range(5)], axis=1)
    expected = jnp.broadcast_to(renyi.expected_squared_score(jnp.array(Z))[:, None], Z.shape)
    np.testing.assert_allclose(renyi.squared_score(categorical.log_probs(jnp.array(Z)), expected), want, rtol=1e-4)

  def test_mean_over_the_policy_is_expected(self):
    expected = renyi.expected_squared_score(jnp.array(Z))
    logp = categorical.log_probs(jnp.array(Z))
    got = jnp.sum(jnp.exp(logp) * renyi.squared_score(logp, jnp.broadcast_to(expected[:, None], Z.shape)), axis=1)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


class TestStats:
  def test_names_and_functions(self):
    assert renyi.expected_squared_score_stat.fn is renyi.expected_squared_score
    assert renyi.collision_entropy_stat.fn is renyi.collision_entropy
    assert renyi.collision_entropy_stat.name == 'collision_entropy' and renyi.collision_entropy_stat.of == 'current'
