"""Importance ratios: values, the bound at 20, and gradients, at 0 above all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from entropy_jax.ops import ratios

pytestmark = pytest.mark.usefixtures('strict_dtypes')

DELTA = jnp.array([[0.1, -0.3, 0.2, jnp.nan], [0.5, jnp.inf, jnp.nan, 0.0], [jnp.nan, 1.0, 2.0, 3.0]])
MASK = jnp.array([[True, True, True, False], [True, False, False, False], [False] * 4])


class TestImportance:
  def test_values_and_bound(self):
    x = jnp.array([0.0, np.log(1.5), -50.0, 50.0])
    np.testing.assert_allclose(ratios.importance(x), [1.0, 1.5, np.exp(-20), np.exp(20)], rtol=1e-6)

  def test_gradient(self):
    gradient = jax.jit(jax.vmap(jax.grad(ratios.importance)))(jnp.array([0.0, np.log(1.5), -50.0, 50.0]))
    np.testing.assert_allclose(gradient, [1.0, 1.5, 0.0, 0.0], rtol=1e-6)


class TestSequenceMean:
  def test_card_value(self):
    # (.1 - .3 + .2) / 3 = 0 and .5 / 1; an empty sequence has 0
    np.testing.assert_allclose(ratios.sequence_mean(DELTA, MASK), [0.0, 0.5, 0.0], atol=1e-7)

  def test_gradient_is_one_over_length(self):
    gradient = jax.jit(jax.grad(lambda d: jnp.sum(ratios.sequence_mean(d, MASK))))(DELTA)
    np.testing.assert_allclose(gradient, [[1 / 3, 1 / 3, 1 / 3, 0], [1, 0, 0, 0], [0, 0, 0, 0]], rtol=1e-6)


class TestSequenceValueTokenGradient:
  def test_value_of_the_sequence_gradient_of_the_token(self):
    value_B, logp = jnp.array([0.3, -0.2]), jnp.array([[-1.0, -2.0], [-0.5, -4.0]])
    np.testing.assert_allclose(ratios.sequence_value_token_gradient(value_B, logp), [[0.3, 0.3], [-0.2, -0.2]], rtol=1e-6)
    weights = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    weighted = lambda v, lp: jnp.sum(weights * ratios.sequence_value_token_gradient(v, lp))
    to_sequence, to_logp = jax.jit(jax.grad(weighted, argnums=(0, 1)))(value_B, logp)
    np.testing.assert_array_equal(to_sequence, [0, 0])
    np.testing.assert_array_equal(to_logp, weights)


class TestAbsolute:
  def test_value(self):
    assert ratios.absolute(jnp.array([-2.0, 0.0, 3.0])).tolist() == [2.0, 0.0, 3.0]

  def test_gradient_is_zero_at_zero(self):
    assert jax.jit(jax.vmap(jax.grad(ratios.absolute)))(jnp.array([-2.0, 0.0, 3.0])).tolist() == [-1.0, 0.0, 1.0]
    # Two ways to score one token differ by about 1e-6: no gradient from that, either way, though the value is exact.
    assert jax.jit(jax.vmap(jax.grad(ratios.absolute)))(jnp.array([-1e-6, 1e-6, 1e-4])).tolist() == [0.0, 0.0, 1.0]
    assert float(ratios.absolute(jnp.float32(-1e-6))) == jnp.float32(1e-6)
    check_grads(ratios.absolute, (jnp.array([0.7, -0.4]),), order=1, modes=['rev'], atol=1e-2, rtol=1e-2)
