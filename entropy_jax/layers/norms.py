"""Normalisation layers, computed in float32 whatever comes in."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def rms_normalize(x_xD: jax.Array, scale_D: jax.Array, *, eps: float) -> jax.Array:
  """Root mean square normalisation: y = scale * x / sqrt(mean_D(x^2) + eps).

  Args:
    x_xD: [..., D], any float type.
    scale_D: [D], float32.
    eps: > 0; keeps a row of zeros at 0.

  Returns:
    [..., D] in the type of x; the arithmetic is float32.

  Gradient: through x and scale.
  Limits: unchanged when x is multiplied by a positive constant, up to eps.
  Reference: Zhang and Sennrich, Root Mean Square Layer Normalization, arXiv 1910.07467, eq. 4 (no eps there).
  """
  x = x_xD.astype(jnp.float32)
  inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
  return (x * inverse * scale_D.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x_xD.dtype)


class RMSNorm(nn.Module):
  """`rms_normalize` with a learnt scale that starts at 1.

  Attributes:
    eps: > 0.
  """

  eps: float = 1e-6

  @nn.compact
  def __call__(self, x_xD: jax.Array) -> jax.Array:
    scale = self.param('scale', nn.initializers.ones_init(), (x_xD.shape[-1],), jnp.float32)
    return rms_normalize(x_xD, scale, eps=self.eps)


class LayerNorm(nn.Module):
  """y = scale * (x - mean_D(x)) / sqrt(var_D(x) + eps) + bias, with a learnt scale that starts at 1 and a bias that starts at 0.

  Attributes:
    eps: > 0.

  Reference: Ba, Kiros and Hinton, Layer Normalization, arXiv 1607.06450, eq. 4 (no eps there).
  """

  eps: float = 1e-6

  @nn.compact
  def __call__(self, x_xD: jax.Array) -> jax.Array:
    shape = (x_xD.shape[-1],)
    scale = self.param('scale', nn.initializers.ones_init(), shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros_init(), shape, jnp.float32)
    x = x_xD.astype(jnp.float32)
    y = rms_normalize(x - jnp.mean(x, axis=-1, keepdims=True), scale, eps=self.eps)
    return (y + bias.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x_xD.dtype)
