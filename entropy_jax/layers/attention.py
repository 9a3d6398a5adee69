"""Causal self-attention, written out: rotary positions, grouped key-value heads, float32 softmax and an explicit cache.

Keys and values lie as [B, H, K, D] (sequence inside heads), so that both products are plain batched matrix products and a
decoding step reads the cache without transposing it.
"""

import dataclasses
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from entropy_jax.layers import norms
from entropy_jax.types import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
  """Llama 3's stretching of the slow rotary frequencies for contexts longer than the first one trained on.

  Attributes:
    factor: > 1, by how much the slowest frequencies are divided.
    low_freq_factor: frequencies with fewer than this many turns in the original context are divided by factor.
    high_freq_factor: frequencies with more turns than this are kept; between the two the change is gradual.
    original_max_position: length of the original context.
  """

  factor: float = 32.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_position: int = 8192

  def __post_init__(self) -> None:
    if not self.factor > 1:
      raise UserError(f'rope_scaling.factor is {self.factor!r}: give a number above 1, or rope_scaling=None for no scaling.')
    if not 0 < self.low_freq_factor < self.high_freq_factor:
      raise UserError(
        f'rope_scaling.low_freq_factor is {self.low_freq_factor!r}: give a number between 0 and high_freq_factor '
        f'({self.high_freq_factor!r}), both excluded.'
      )
    if self.original_max_position < 1:
      raise UserError(f'rope_scaling.original_max_position is {self.original_max_position!r}: give a positive length.')


def rotary_frequencies(head_dim: int, *, theta: float = 10000.0, scaling: RopeScaling | None = None) -> np.ndarray:
  """Angle by position of each pair of a head: f_i = theta^(-2i / head_dim), stretched by `scaling`.

  With n = original_max_position f / (2 pi) turns in the original context, scaling gives f / factor for n < low, f for n > high and
  ((1 - s) / factor + s) f with s = (n - low) / (high - low) between.

  Args:
    head_dim: even.
    theta: > 0, base of the geometric series.
    scaling: None for none.

  Returns:
    [head_dim / 2], float32.

  Reference: Su et al., RoFormer, arXiv 2104.09864, eq. 15; scaling: Llama Team, The Llama 3 Herd of Models, arXiv 2407.21783
  (released code).

  >>> rotary_frequencies(4, theta=100.)
  array([1. , 0.1], dtype=float32)
  """
  f = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
  if scaling is not None:
    turns = scaling.original_max_position * f / (2 * math.pi)
    s = np.clip((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor), 0, 1)
    f = ((1 - s) / scaling.factor + s) * f
  return f.astype(np.float32)


class Rotation(NamedTuple):
  """Cosine and sine of every position's angles, [B, N, head_dim / 2], float32: computed once for all layers."""

  cos: jax.Array
  sin: jax.Array


def rotation(positions_BxN: jax.Array, frequencies: np.ndarray) -> Rotation:
  """The rotation of int positions [B, N]."""
  angle = positions_BxN.astype(jnp.float32)[..., None] * jnp.asarray(frequencies)[None, None, :]
  return Rotation(jnp.cos(angle), jnp.sin(angle))


def rotate(x_BxHxNxD: jax.Array, turn: Rotation) -> jax.Array:
  """Turns the pairs (x_i, x_{i + D/2}) by the position's angles, so that products of queries and keys see only differences.

  Args:
    x_BxHxNxD: queries or keys, D even.
    turn: angles [B, N, D / 2].

  Returns:
    [B, H, N, D] in the type of x; the arithmetic is float32.

  Differs: pairs are the two halves of the head, as in the Hugging Face weights of Llama and Qwen; the paper pairs neighbours, which
  is the same up to a permutation of the head's channels.
  """
  a, b = jnp.split(x_BxHxNxD.astype(jnp.float32), 2, axis=-1)
  cos, sin = turn.cos[:, None], turn.sin[:, None]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BxHxNxD.dtype)


def causal_mask(mask_BxN: jax.Array) -> jax.Array:
  """Which keys a query may see: earlier real tokens and itself, mask_BxQxK.

  A real query is a real key too, so "itself" changes padding queries only: they see at least one key, stay finite and never look
  ahead, and no real query ever sees a padding key.

  >>> causal_mask(jnp.array([[False, True, True]]))[0].astype(int).tolist()
  [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
  """
  n = jnp.arange(mask_BxN.shape[1])
  earlier, self_ = n[None, :] < n[:, None], n[None, :] == n[:, None]
  return (earlier[None] & mask_BxN[:, None, :]) | self_[None]


def attention_logits(query_BxHxQxD: jax.Array, key_BxHxKxD: jax.Array, mask_BxQxK: jax.Array) -> jax.Array:
  """q . k / sqrt(D) in float32, the lowest finite number where the mask is False.

  Args:
    query_BxHxQxD: [B, H, Q, D].
    key_BxHxKxD: [B, Hkv, K, D] with H a multiple of Hkv; query head h reads key head h // (H / Hkv).
    mask_BxQxK: bool.

  Returns:
    logits_BxHxQxK, float32: the attention distribution is their softmax over K.
  """
  B, H, Q, D = query_BxHxQxD.shape
  Hkv, K = key_BxHxKxD.shape[1:3]
  # Query heads that share a key head are rows of one product: the keys are never repeated.
  grouped = query_BxHxQxD.reshape(B, Hkv, (H // Hkv) * Q, D)
  logits = jnp.einsum('BHQD,BHKD->BHQK', grouped, key_BxHxKxD, preferred_element_type=jnp.float32)
  logits = logits.reshape(B, H, Q, K) * (D**-0.5)
  return jnp.where(mask_BxQxK[:, None], logits, jnp.finfo(jnp.float32).min)


def attend(query_BxHxQxD: jax.Array, key_BxHxKxD: jax.Array, value_BxHxKxD: jax.Array, mask_BxQxK: jax.Array) -> jax.Array:
  """softmax_K(q . k / sqrt(D)) v: softmax in float32, products in the type of the values.

  Args:
    query_BxHxQxD: [B, H, Q, D].
    key_BxHxKxD: [B, Hkv, K, D].
    value_BxHxKxD: [B, Hkv, K, D].
    mask_BxQxK: bool; a row that is False everywhere averages all values.

  Returns:
    [B, H, Q, D] in the type of the values.
  """
  B, H, Q, D = query_BxHxQxD.shape
  Hkv, K = key_BxHxKxD.shape[1:3]
  p = jax.nn.softmax(attention_logits(query_BxHxQxD, key_BxHxKxD, mask_BxQxK), axis=-1).astype(value_BxHxKxD.dtype)
  out = jnp.einsum('BHQK,BHKD->BHQD', p.reshape(B, Hkv, (H // Hkv) * Q, K), value_BxHxKxD)
  return out.reshape(B, H, Q, D)


class KeyValue(NamedTuple):
  """What one layer keeps of the tokens it has read, [B, Hkv, N, head_dim] each, rotated already."""

  key: jax.Array
  value: jax.Array


class SelfAttention(nn.Module):
  """Multi-head self-attention with grouped key-value heads.

  Attributes:
    num_heads, num_kv_heads, head_dim: H, Hkv (divides H) and D of a head.
    qkv_bias: biases on query, key and value (Qwen2).
    qk_norm: RMSNorm of each query and key head before the rotation (Qwen3).
    norm_eps: of that RMSNorm.
    output_scale: multiplies the standard deviation with which the output projection starts.
    dtype: of the arithmetic; parameters and the softmax are float32.
  """

  num_heads: int
  num_kv_heads: int
  head_dim: int
  qkv_bias: bool = False
  qk_norm: bool = False
  norm_eps: float = 1e-6
  output_scale: float = 1.0
  dtype: jnp.dtype = jnp.dtype('float32')

  @nn.compact
  def __call__(
    self,
    x_BxNxD: jax.Array,
    mask_BxQxK: jax.Array,
    turn: Rotation | None = None,
    cache: KeyValue | None = None,
    index: jax.Array | int = 0,
  ) -> tuple[jax.Array, KeyValue]:
    """Reads N tokens.

    Args:
      x_BxNxD: inputs.
      mask_BxQxK: bool, which keys each of the N tokens sees; K = N, or the length of the cache.
      turn: rotation of the N tokens, None for none.
      cache: None to attend over x alone; else x is written at [index, index + N) and the whole cache is attended over.
      index: int32 scalar.

    Returns:
      (out_BxNxD, the keys and values attended over).
    """
    B, N, width = x_BxNxD.shape
    # Matrices, not batches of them, in the products: the backward pass takes half the time on a processor.
    x_RxD = x_BxNxD.reshape(B * N, width)

    def heads(name: str, number: int) -> jax.Array:
      dense = nn.Dense(number * self.head_dim, use_bias=self.qkv_bias, dtype=self.dtype, name=name)
      x = dense(x_RxD).reshape(B, N, number, self.head_dim)
      if self.qk_norm and name != 'value':
        x = norms.RMSNorm(eps=self.norm_eps, name=f'{name}_norm')(x)
      x = x.transpose(0, 2, 1, 3)
      return rotate(x, turn) if turn is not None and name != 'value' else x

    query = heads('query', self.num_heads)
    kv = KeyValue(heads('key', self.num_kv_heads), heads('value', self.num_kv_heads))
    if cache is not None:
      write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, index, axis=2)
      kv = KeyValue(write(cache.key, kv.key), write(cache.value, kv.value))
    out = attend(query, kv.key, kv.value, mask_BxQxK).transpose(0, 2, 1, 3).reshape(B * N, -1)
    start = nn.initializers.variance_scaling(self.output_scale**2, 'fan_in', 'truncated_normal')
    out = nn.Dense(width, use_bias=False, dtype=self.dtype, kernel_init=start, name='output')(out)
    return out.reshape(B, N, width), kv
