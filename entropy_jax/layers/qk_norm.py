"""Normalisation of query and key heads, which bounds attention logits whatever the projections have become."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.layers import norms

FORMS = 'layer | rms | l2'


def l2_normalize(x_xD: jax.Array, *, eps: float = 1e-6) -> jax.Array:
  """x / sqrt(sum_D x^2 + eps), float32.

  Gradient: finite at 0.
  Limits: unchanged when x is multiplied by a positive constant, up to eps.

  >>> [round(x, 6) for x in l2_normalize(jnp.array([3., 4.]), eps=0.).tolist()]
  [0.6, 0.8]
  """
  x = x_xD.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + eps)


class QKNorm(nn.Module):
  """Normalises every query and key over its head, before the rotation and before a cache is written.

  The attention that follows divides by sqrt(D), in every form.

    'layer': LayerNorm without bias, scales g_q and g_k of shape [D] from 1, shared by the heads (ViT-22B).
    'rms':   x / sqrt(mean x^2 + eps) (1 + scale), scales of shape [D] from 0 (Gemma 3).
    'l2':    logits g q.k / (|q| |k|) with one learnt scalar g; the query brings g sqrt(D), which the attention divides by sqrt(D).

  Attributes:
    form: 'layer', 'rms' or 'l2'.
    eps: > 0, under the root.
    l2_start: g at the start of 'l2'; None for sqrt(D), the bound that the other forms start with.

  Gradient: through both inputs and the scales.
  Limits: at the start |logit| <= sqrt(D) in every form, so that the entropy of attention is at least
    `logits.entropy_floor(keys, sqrt(D))`; later at most max|g_q g_k| sqrt(D), or |g|: the scales can grow and nothing caps them.
    Unchanged when a query or a key is multiplied by a positive constant, up to eps.
  Reference: 'layer' Dehghani et al., Scaling Vision Transformers to 22 Billion Parameters, arXiv 2302.05442; 'rms' Gemma Team, Gemma 3
    Technical Report, arXiv 2503.19786 (released code); 'l2' Henry et al., Query-Key Normalization for Transformers, arXiv 2010.04245.
    UNCONFIRMED: the details of 'l2' (where g starts, the epsilon); the paper is said to start g at log2(L^2 - L) for sequences of L
    tokens.
  Differs: Qwen 3 (`norms.RMSNorm` on each) holds 1 + scale of 'rms' as one parameter that starts at 1: the same function, but weight
    decay pulls it to 0 instead of 1.
  """

  form: str = 'layer'
  eps: float = 1e-6
  l2_start: float | None = None

  @nn.compact
  def __call__(self, query_BxHxQxD: jax.Array, key_BxHxKxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both normalised.

    Args:
      query_BxHxQxD: [..., D], before the rotation.
      key_BxHxKxD: [..., D], any number of heads.

    Returns:
      (query, key) in their own types; the arithmetic is float32.
    """
    transform.check_range('qk_norm', 'form', self.form, FORMS)
    if self.form == 'l2':
      D = query_BxHxQxD.shape[-1]
      start = D**0.5 if self.l2_start is None else self.l2_start
      g = self.param('scale', nn.initializers.constant(start), (), jnp.float32)
      query = l2_normalize(query_BxHxQxD, eps=self.eps) * (g * D**0.5)
      key = l2_normalize(key_BxHxKxD, eps=self.eps)
      return query.astype(query_BxHxQxD.dtype), key.astype(key_BxHxKxD.dtype)

    def one(x: jax.Array, name: str) -> jax.Array:
      if self.form == 'rms':
        scale = self.param(f'{name}_scale', nn.initializers.zeros_init(), (x.shape[-1],), jnp.float32)
        return norms.rms_normalize(x, 1.0 + scale, eps=self.eps)
      # The fast variance E[x^2] - E[x]^2 loses its digits where the mean of a head is large.
      norm = nn.LayerNorm(epsilon=self.eps, use_bias=False, use_fast_variance=False, dtype=jnp.float32, name=f'{name}_norm')
      return norm(x).astype(x.dtype)

    return one(query_BxHxQxD, 'query'), one(key_BxHxKxD, 'key')
