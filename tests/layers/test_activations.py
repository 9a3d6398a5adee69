"""CRReLU and the entropy theory behind it; activations by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from jax.test_util import check_grads

from entropy_jax.layers import activations
from entropy_jax.types import UserError


class TestCrrelu:
  def test_card_values(self):
    x = jnp.array([0.0, 1.0, -1.0, -0.5, 0.5, 3.0, -3.0])
    want = [0.0, 1.00606531, -0.00606531, -0.00441248, 0.50441248, 3.00033327, -0.00033327]
    np.testing.assert_allclose(activations.crrelu(x, 0.01), want, rtol=2e-6)

  def test_zero_epsilon_is_relu(self):
    x = np.linspace(-4, 4, 33, dtype=np.float32)
    np.testing.assert_array_equal(activations.crrelu(x, 0.0), np.maximum(x, 0))

  def test_gradients(self):
    to_x, to_epsilon = jax.jit(jax.vmap(jax.grad(activations.crrelu, argnums=(0, 1)), (0, None)))(
      jnp.array([1e-6, -1e-6, 1.0, -2.0]), jnp.float32(0.01)
    )
    # [x > 0] + .01 (1 - x^2) exp(-x^2 / 2): 1.01, .01, 1, .01 (-3) e^-2; x exp(-x^2 / 2): 0, 0, e^-.5, -2 e^-2
    np.testing.assert_allclose(to_x, [1.01, 0.01, 1.0, -0.03 * np.exp(-2)], rtol=1e-5)
    np.testing.assert_allclose(to_epsilon, [0.0, 0.0, 0.60653066, -2 * np.exp(-2)], atol=2e-6)
    check_grads(activations.crrelu, (jnp.array([0.7, -1.3]), jnp.float32(0.3)), order=1, modes=['rev'], rtol=1e-2)

  def test_minimum_of_the_negative_branch_is_at_minus_one(self):
    x = np.linspace(-4, -0.01, 400, dtype=np.float32)
    assert abs(x[np.argmin(activations.crrelu(x, 0.01))] + 1) < 0.01

  def test_extreme_inputs(self):
    x = jnp.array([-1e30, -50.0, 50.0, 1e30])
    value, grad = jax.jit(jax.vmap(jax.value_and_grad(activations.crrelu), (0, None)))(x, 0.01)
    np.testing.assert_allclose(value, [0, 0, 50, 1e30], rtol=1e-6)
    np.testing.assert_array_equal(grad, [0, 0, 1, 1])
    assert jax.eval_shape(activations.crrelu, x.astype(jnp.bfloat16), 0.01).dtype == jnp.bfloat16

  def test_entropy_of_the_positive_branch(self):
    # H(g(X)) - H(X) = E ln g'(X) for the odd continuation g of the positive branch; g'(x) is CRReLU's slope at |x|
    x = np.linspace(-10, 10, 20_001)
    slope_at = jax.jit(jax.vmap(jax.grad(activations.crrelu), (0, None)))
    for epsilon, want in ((0.01, 0.00351638), (-0.01, -0.00355488), (0.1, 0.0335208), (-0.1, -0.0373835)):
      slope = slope_at((np.abs(x) + 1e-9).astype(np.float32), epsilon)
      got = scipy.integrate.trapezoid(np.log(np.array(slope, np.float64)) * scipy.stats.norm.pdf(x), x)
      np.testing.assert_allclose(got, want, atol=2e-6)

  def test_entropy_rises_with_epsilon(self):
    # d H / d epsilon at 0 = E (1 - X^2) exp(-X^2 / 2) = 1 / (2 sqrt 2): the start at +.01 raises the entropy
    x = np.linspace(-10, 10, 20_001)
    bump = jax.jit(jax.vmap(jax.grad(lambda x: activations.crrelu(x, 1.0) - activations.crrelu(x, 0.0))))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(scipy.integrate.trapezoid(np.array(bump) * scipy.stats.norm.pdf(x), x), 0.353553, atol=1e-5)


class TestCRReLU:
  def test_one_learnt_scalar(self):
    x = jnp.array([[1.0, -1.0]])
    y, params = activations.CRReLU().init_with_output(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, params) == {'params': {'epsilon': ()}}
    np.testing.assert_allclose(y, [[1.00606531, -0.00606531]], rtol=1e-5)
    np.testing.assert_allclose(activations.CRReLU().apply({'params': {'epsilon': -1.0}}, x), [[1 - 0.6065307, 0.6065307]], rtol=1e-5)


class TestWafbc:
  def test_makes_a_normal_uniform(self):
    p = (np.arange(1000) + 0.5) / 1000
    y = activations.wafbc(jnp.asarray(scipy.stats.norm.ppf(p), jnp.float32), low=-2.0, high=1.0)
    np.testing.assert_allclose(y, -2 + 3 * p, atol=1e-5)

  def test_entropy_is_the_largest_on_the_interval(self):
    # H(f(X)) = H(X) + E ln f'(X) = ln(high - low)
    x = np.linspace(-5, 5, 4001)
    slope = jax.jit(jax.vmap(jax.grad(lambda x: activations.wafbc(x, low=-2.0, high=1.0))))(jnp.asarray(x, jnp.float32))
    weight = scipy.stats.norm.pdf(x)
    entropy = scipy.stats.norm.entropy() + scipy.integrate.trapezoid(np.log(slope) * weight, x)
    np.testing.assert_allclose(entropy, np.log(3), atol=1e-4)


class TestActivation:
  X = jnp.array([-2.0, -0.5, 0.0, 1.5])

  @pytest.mark.parametrize(
    'name, oracle',
    [
      ('relu', lambda x: np.maximum(x, 0)),
      ('gelu', lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))),
      ('gelu_exact', lambda x: x * scipy.stats.norm.cdf(x)),
      ('silu', lambda x: x / (1 + np.exp(-x))),
      ('wafbc', lambda x: 2 * scipy.stats.norm.cdf(x) - 1),
      ('identity', lambda x: x),
    ],
  )
  def test_by_name(self, name, oracle):
    y, params = activations.Activation(name).init_with_output(jax.random.key(0), self.X)
    assert params == {}
    np.testing.assert_allclose(y, oracle(np.array(self.X)), atol=1e-6)

  def test_crrelu_learns(self):
    y, params = activations.Activation('crrelu').init_with_output(jax.random.key(0), self.X)
    assert jax.tree.map(jnp.shape, params) == {'params': {'crrelu': {'epsilon': ()}}}
    np.testing.assert_array_equal(y, activations.crrelu(self.X, 0.01))

  def test_refuses(self):
    with pytest.raises(UserError, match="Did you mean 'gelu'"):
      activations.Activation('geluu').init(jax.random.key(0), self.X)
