import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from entropy_jax.layers import norms


class TestRmsNormalize:
  def test_by_hand(self):
    # mean(x^2) = (1 + 9 + 4 + 2) / 4 = 4, so y = scale * x / 2
    x = jnp.array([[1.0, -3.0, 2.0, jnp.sqrt(2.0)]])
    y = norms.rms_normalize(x, jnp.array([1.0, 2.0, 4.0, 0.0]), eps=1e-12)
    np.testing.assert_allclose(y, [[0.5, -3.0, 4.0, 0.0]], rtol=1e-6)

  def test_eps_enters_under_the_root(self):
    # mean(x^2) = 1, 1 / sqrt(1 + 3) = .5
    np.testing.assert_allclose(norms.rms_normalize(jnp.ones(2), jnp.ones(2), eps=3.0), [0.5, 0.5], rtol=1e-6)

  def test_scale_of_the_input_does_not_matter(self):
    x = jax.random.normal(jax.random.key(0), (3, 8))
    a, b = (norms.rms_normalize(k * x, jnp.ones(8), eps=1e-12) for k in (1.0, 1e3))
    np.testing.assert_allclose(a, b, rtol=1e-5)

  def test_zeros_stay_finite_in_value_and_gradient(self):
    y, g = jax.value_and_grad(lambda x: norms.rms_normalize(x, jnp.ones(4), eps=1e-6).sum())(jnp.zeros(4))
    assert y == 0 and jnp.all(jnp.isfinite(g))

  def test_gradient(self):
    x = jax.random.normal(jax.random.key(1), (2, 5))
    f = jax.jit(lambda x, s: norms.rms_normalize(x, s, eps=1e-6))
    check_grads(f, (x, jnp.arange(1.0, 6.0)), order=1, modes=['rev'], rtol=1e-2)

  def test_bfloat16_is_summed_in_float32(self):
    # In bfloat16, 256 + 1 = 256: summing 4096 ones there would stop early.
    x = jnp.ones((1, 4096), jnp.bfloat16)
    y = norms.rms_normalize(x, jnp.ones(4096), eps=0.0)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y.astype(jnp.float32), np.ones((1, 4096)))


class TestRMSNorm:
  def test_starts_at_scale_one(self):
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    layer = norms.RMSNorm(eps=1e-6)
    params = layer.init(jax.random.key(1), x)
    np.testing.assert_array_equal(params['params']['scale'], np.ones(8))
    np.testing.assert_allclose(jnp.mean(jnp.square(layer.apply(params, x)), axis=-1), np.ones((2, 3)), rtol=1e-4)


class TestLayerNorm:
  def test_by_hand(self):
    # mean 2, variance (1 + 1 + 4 + 4) / 4 = 2.5: sqrt(2.5 + eps) = 2; then scale 2 and bias 1
    params = {'scale': jnp.full(4, 2.0), 'bias': jnp.ones(4)}
    y = norms.LayerNorm(eps=1.5).apply({'params': params}, jnp.array([[1.0, 3.0, 0.0, 4.0]]))
    np.testing.assert_allclose(y, [[0.0, 2.0, -1.0, 3.0]], atol=1e-6)

  def test_starts_with_mean_zero_and_variance_one(self):
    x = 1e4 + jax.random.normal(jax.random.key(0), (2, 3, 8))  # a mean that a variance E[x^2] - E[x]^2 would not survive
    y, params = norms.LayerNorm().init_with_output(jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, params['params']) == {'scale': (8,), 'bias': (8,)}
    np.testing.assert_allclose(jnp.mean(y, axis=-1), np.zeros((2, 3)), atol=1e-2)
    np.testing.assert_allclose(jnp.var(y, axis=-1), np.ones((2, 3)), rtol=1e-2)

  def test_keeps_bfloat16(self):
    y, params = norms.LayerNorm().init_with_output(jax.random.key(1), jnp.ones((2, 4), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16 and params['params']['scale'].dtype == jnp.float32
