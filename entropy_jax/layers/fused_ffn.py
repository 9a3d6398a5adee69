"""The MLP of a block without normalisation and activation: two matrices in a row are one, with two learnt scales (ScFuFFN)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def fuse(up_DxM: jax.Array, down_MxD: jax.Array) -> jax.Array:
  """W_in W_out, [D, D] in float32: what an MLP with the identity as activation computes.

  >>> fuse(jnp.array([[1., 2.]]), jnp.array([[3.], [4.]])).tolist()
  [[11.0]]
  """
  return jnp.matmul(up_DxM.astype(jnp.float32), down_MxD.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)


def scaled_sum(x_xD: jax.Array, out_xD: jax.Array, alpha: jax.Array | float, beta: jax.Array | float) -> jax.Array:
  """beta x + out / alpha, in the type of x; the arithmetic is float32.

  Args:
    x_xD: the stream after attention.
    out_xD: x W_F.
    alpha, beta: scalars; alpha that learns its way through 0 is not finite there.

  Gradient: through all four.
  """
  total = beta * x_xD.astype(jnp.float32) + out_xD.astype(jnp.float32) / alpha
  return total.astype(x_xD.dtype)


class ScaledFusedFFN(nn.Module):
  """ScFuFFN: beta x + (1 / alpha) x W_F, the residual connection included.

  For blocks without normalisation and activation, in the place of x + MLP(x). Two learnt scalars a layer keep its deep layers' attention
  from collapsing.

  Attributes:
    dtype: of the product; parameters are float32.
    kernel_init: of W_F [D, D], parameter fused/kernel.
    dense: what makes the linear map, called as dense(D, use_bias=False, dtype=..., kernel_init=..., name='fused'); a reparametrised map
      of that signature may stand in its place.

  Gradient: through x, W_F, alpha and beta.
  Limits: the identity for W_F = 0 and beta = 1; with `fuse` the unfused MLP with the identity as activation, for alpha = beta = 1.
  Reference: Jha and Reagen, Entropy-Guided Attention for Private LLMs, arXiv 2501.03489 (official figure). UNCONFIRMED: the start of
    alpha and beta, here 1.
  """

  dtype: jnp.dtype = jnp.dtype('float32')
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  dense: Callable[..., Any] = nn.Dense

  @nn.compact
  def __call__(self, x_xD: jax.Array) -> jax.Array:
    make = self.dense
    out = make(x_xD.shape[-1], use_bias=False, dtype=self.dtype, kernel_init=self.kernel_init, name='fused')(x_xD)
    alpha = self.param('alpha', nn.initializers.ones_init(), (), jnp.float32)
    beta = self.param('beta', nn.initializers.ones_init(), (), jnp.float32)
    return scaled_sum(x_xD, out, alpha, beta)
