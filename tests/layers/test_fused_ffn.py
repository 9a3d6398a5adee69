"""ScFuFFN: one matrix in the place of two, and its two scales."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from entropy_jax.layers import fused_ffn

RNG = np.random.default_rng(0)
X, UP, DOWN = (RNG.normal(size=shape).astype(np.float32) for shape in ((2, 3, 4), (4, 16), (16, 4)))


class TestFuse:
  def test_is_the_mlp_with_the_identity(self):
    params = {'fused': {'kernel': fused_ffn.fuse(UP, DOWN)}, 'alpha': jnp.float32(1), 'beta': jnp.float32(1)}
    got = jax.jit(fused_ffn.ScaledFusedFFN().apply)({'params': params}, X)
    want = X.astype(np.float64) + X.astype(np.float64) @ UP @ DOWN
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)

  def test_bfloat16_is_multiplied_in_float32(self):
    assert fused_ffn.fuse(jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 2), jnp.bfloat16)).dtype == jnp.float32


class TestScaledSum:
  def test_by_hand(self):
    # 3 * 2 + 8 / 4
    assert fused_ffn.scaled_sum(jnp.array([2.0]), jnp.array([8.0]), 4.0, 3.0).tolist() == [8.0]

  def test_gradient(self):
    args = (jnp.array([2.0, -1.0]), jnp.array([8.0, 0.5]), jnp.float32(1.5), jnp.float32(0.7))
    check_grads(fused_ffn.scaled_sum, args, order=1, modes=['rev'], rtol=1e-2)


class TestScaledFusedFFN:
  def test_starts_at_one(self):
    y, params = fused_ffn.ScaledFusedFFN().init_with_output(jax.random.key(0), X)
    assert jax.tree.map(jnp.shape, params['params']) == {'fused': {'kernel': (4, 4)}, 'alpha': (), 'beta': ()}
    np.testing.assert_allclose(y, X + X @ np.array(params['params']['fused']['kernel']), rtol=1e-5, atol=1e-6)

  def test_zero_matrix_is_the_identity(self):
    params = {'fused': {'kernel': jnp.zeros((4, 4))}, 'alpha': jnp.float32(1), 'beta': jnp.float32(1)}
    np.testing.assert_array_equal(fused_ffn.ScaledFusedFFN().apply({'params': params}, X), X)

  def test_takes_another_linear_map(self):
    class Doubled(nn.Module):
      features: int
      use_bias: bool
      dtype: jnp.dtype
      kernel_init: nn.initializers.Initializer

      @nn.compact
      def __call__(self, x):
        return 2 * x @ self.param('weight', self.kernel_init, (x.shape[-1], self.features), jnp.float32)

    for dense in (Doubled, functools.partial(Doubled)):
      y, params = fused_ffn.ScaledFusedFFN(dense=dense).init_with_output(jax.random.key(0), X)
      np.testing.assert_allclose(y, X + 2 * X @ np.array(params['params']['fused']['weight']), rtol=1e-5, atol=1e-6)

  def test_bfloat16(self):
    layer = fused_ffn.ScaledFusedFFN(dtype=jnp.dtype('bfloat16'))
    y, params = jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.asarray(X, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('float32')}
