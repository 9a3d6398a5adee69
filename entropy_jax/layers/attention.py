"""Attention, written out: rotary positions, grouped key-value heads, float32 softmax, an explicit cache, and what stands between the
products and the softmax (layers/logits.py).

Keys and values lie as [B, H, K, D] (sequence inside heads), so that both products are plain batched matrix products. A decoding step
reads slots, whose keys lie as [B, H, D, K]: one query a row is a vector, and both of its products run along rows as they lie.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from entropy_jax.layers import logits, norms, qk_norm
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


def positions(mask_BxN: jax.Array) -> jax.Array:
  """Position of every real token among the real ones, int32 [B, N], from 0; that of padding is some position of the row.

  >>> positions(jnp.array([[False, True, True, False]])).tolist()
  [[0, 0, 1, 1]]
  """
  return jnp.maximum(jnp.cumsum(mask_BxN, axis=1, dtype=jnp.int32) - 1, 0)


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


def full_mask(mask_BxN: jax.Array) -> jax.Array:
  """Which keys a query of an encoder may see: all real tokens and itself, mask_BxQxK; padding queries stay finite as in `causal_mask`.

  >>> full_mask(jnp.array([[True, True, False]]))[0].astype(int).tolist()
  [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
  """
  return mask_BxN[:, None, :] | jnp.eye(mask_BxN.shape[1], dtype=bool)[None]


def attention_logits(query_BxHxQxD: jax.Array, key_BxHxKxD: jax.Array) -> jax.Array:
  """q . k / sqrt(D) in float32, before any mask.

  Args:
    query_BxHxQxD: [B, H, Q, D].
    key_BxHxKxD: [B, Hkv, K, D] with H a multiple of Hkv; query head h reads key head h // (H / Hkv).

  Returns:
    logits_BxHxQxK, float32.
  """
  B, H, Q, D = query_BxHxQxD.shape
  Hkv, K = key_BxHxKxD.shape[1:3]
  # Query heads that share a key head are rows of one product: the keys are never repeated.
  grouped = query_BxHxQxD.reshape(B, Hkv, (H // Hkv) * Q, D)
  logits = jnp.einsum('BHQD,BHKD->BHQK', grouped, key_BxHxKxD, preferred_element_type=jnp.float32)
  return logits.reshape(B, H, Q, K) * (D**-0.5)


Change = Callable[[jax.Array], jax.Array] | None


def attend(
  query_BxHxQxD: jax.Array,
  key_BxHxKxD: jax.Array,
  value_BxHxKxD: jax.Array,
  mask_BxQxK: jax.Array,
  *,
  change: Change = None,
  sink_H: jax.Array | None = None,
) -> jax.Array:
  """softmax_K(change(q . k / sqrt(D))) v: softmax in float32, products in the type of the values.

  Args:
    query_BxHxQxD: [B, H, Q, D].
    key_BxHxKxD: [B, Hkv, K, D].
    value_BxHxKxD: [B, Hkv, K, D].
    mask_BxQxK: bool; a row that is False everywhere averages all values, and is 0 where there is a sink.
    change: of the logits before the mask, such as a cap; None for none.
    sink_H: `logits.attention_weights`.

  Returns:
    [B, H, Q, D] in the type of the values.
  """
  B, H, Q, D = query_BxHxQxD.shape
  Hkv, K = key_BxHxKxD.shape[1:3]
  logits_BxHxQxK = attention_logits(query_BxHxQxD, key_BxHxKxD)
  if change is not None:
    logits_BxHxQxK = change(logits_BxHxQxK)
  p = logits.attention_weights(logits_BxHxQxK, mask_BxQxK, sink_H).astype(value_BxHxKxD.dtype)
  out = jnp.einsum('BHQK,BHKD->BHQD', p.reshape(B, Hkv, (H // Hkv) * Q, K), value_BxHxKxD)
  return out.reshape(B, H, Q, D)


class KeyValue(NamedTuple):
  """What one layer keeps of the tokens it has read, [B, Hkv, N, head_dim] each, normalised and rotated already."""

  key: jax.Array
  value: jax.Array

  def written(self, new: 'KeyValue', index: jax.Array | int) -> 'KeyValue':
    """These with new tokens from the slot `index` on."""
    write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, index, axis=2)
    return KeyValue(write(self.key, new.key), write(self.value, new.value))


class Slots(NamedTuple):
  """`KeyValue` for steps of one token: keys [B, Hkv, head_dim, N], values [B, Hkv, N, head_dim]."""

  key: jax.Array
  value: jax.Array

  @classmethod
  def of(cls, kv: KeyValue, num_free: int) -> 'Slots':
    """What was read, and room for num_free tokens behind it."""
    after = ((0, 0), (0, 0), (0, num_free), (0, 0))
    return cls(jnp.pad(kv.key.swapaxes(2, 3), after[:2] + after[3:] + after[2:3]), jnp.pad(kv.value, after))

  def written(self, new: KeyValue, index: jax.Array | int) -> 'Slots':
    """These with a new token in the slot `index`."""
    key = jax.lax.dynamic_update_slice_in_dim(self.key, new.key.swapaxes(2, 3), index, axis=3)
    return Slots(key, jax.lax.dynamic_update_slice_in_dim(self.value, new.value, index, axis=2))

  def attend(self, query_BxHx1xD: jax.Array, mask_Bx1xK: jax.Array, *, change: Change = None, sink_H: jax.Array | None = None) -> jax.Array:
    """`attend` of one query a row."""
    B, H, _, D = query_BxHx1xD.shape
    Hkv, K = self.value.shape[1:3]
    grouped = query_BxHx1xD.reshape(B, Hkv, H // Hkv, D)
    products = lambda a, b: jnp.einsum('BHGI,BHIJ->BHGJ', a, b, preferred_element_type=jnp.float32)
    logits_BxHx1xK = products(grouped, self.key).reshape(B, H, 1, K) * (D**-0.5)
    if change is not None:
      logits_BxHx1xK = change(logits_BxHx1xK)
    p = logits.attention_weights(logits_BxHx1xK, mask_Bx1xK, sink_H).astype(self.value.dtype)
    return products(p.reshape(B, Hkv, H // Hkv, K), self.value).astype(self.value.dtype).reshape(B, H, 1, D)


class Attention(nn.Module):
  """Multi-head attention with grouped key-value heads, of tokens to themselves or to a source.

  It sows its logits, scaled, tempered and capped but not masked, as 'logits' into the collection 'attention': apply(..., mutable=
  ['attention']) returns them, and they cost nothing otherwise.

  Attributes:
    num_heads, num_kv_heads, head_dim: H, Hkv (divides H) and D of a head.
    qkv_bias: biases on query, key and value (Qwen2).
    qk_norm: 'rms' normalises each query and key head before the rotation with a scale from 1 (Qwen3: query_norm, key_norm); 'layer' and
      'l2' are those of layers/qk_norm.py; None for none.
    norm_eps: of that normalisation.
    dense: makes the linear maps, called as nn.Dense is.
    kernel_init: 'query', 'key', 'value' or 'output' -> how that map starts.
    temperature: form of `logits.SoftmaxTemperature`, None for none.
    num_positions: how many positions have a temperature.
    logit_cap: of `logits.soft_cap`, None for none.
    has_sink: whether every head has a learnt sink logit.
    abf_window: of `logits.entropy_abf_scale`, None for none.
    dtype: of the arithmetic; parameters, logits and the softmax are float32.
  """

  num_heads: int
  num_kv_heads: int
  head_dim: int
  qkv_bias: bool = False
  qk_norm: str | None = None
  norm_eps: float = 1e-6
  dense: Callable[..., Any] = nn.Dense
  kernel_init: Callable[[str], nn.initializers.Initializer] = lambda matrix: nn.initializers.lecun_normal()
  temperature: str | None = None
  num_positions: int = 1
  logit_cap: float | None = None
  has_sink: bool = False
  abf_window: int | None = None
  dtype: jnp.dtype = jnp.dtype('float32')

  @nn.compact
  def __call__(
    self,
    x_BxQxD: jax.Array,
    mask_BxQxK: jax.Array,
    positions_BxQ: jax.Array,
    turn: Rotation | None = None,
    cache: KeyValue | Slots | None = None,
    index: jax.Array | int = 0,
    source: jax.Array | KeyValue | None = None,
  ) -> tuple[jax.Array, Any]:
    """Reads Q tokens.

    Args:
      x_BxQxD: inputs.
      mask_BxQxK: bool, which keys each of the Q tokens sees; K = Q, or the length of the cache or of the source.
      positions_BxQ: int, from 0, for a temperature and Entropy-ABF.
      turn: rotation of the Q tokens, None for none.
      cache: None to attend over x alone; else x is written at [index, index + Q) and the whole cache is attended over. Slots take Q = 1.
      index: int32 scalar.
      source: None for self-attention; [B, K, D] for what keys and values are made of instead, or those that an earlier call made.

    Returns:
      (out_BxQxD, the keys and values attended over, of the kind of the cache).
    """
    B, Q, width = x_BxQxD.shape
    # Matrices, not batches of them, in the products: the backward pass takes half the time on a processor.
    x_RxD = x_BxQxD.reshape(B * Q, width)

    def heads(x_RxD: jax.Array, name: str, number: int) -> jax.Array:
      dense = self.dense(
        number * self.head_dim, use_bias=self.qkv_bias, dtype=self.dtype, kernel_init=self.kernel_init(name), name=name
      )
      return dense(x_RxD).reshape(B, -1, number, self.head_dim)

    def place(x_BxNxHxD: jax.Array) -> jax.Array:
      x = x_BxNxHxD.transpose(0, 2, 1, 3)
      return rotate(x, turn) if turn is not None else x

    query = heads(x_RxD, 'query', self.num_heads)
    if isinstance(source, KeyValue):
      kv = source
      query = place(self._normalised(query, query)[0])
    else:
      of = x_RxD if source is None else source.reshape(-1, source.shape[-1])
      query, key = self._normalised(query, heads(of, 'key', self.num_kv_heads))
      query, kv = place(query), KeyValue(place(key), heads(of, 'value', self.num_kv_heads).transpose(0, 2, 1, 3))
    held = kv if cache is None else cache.written(kv, index)
    if self.abf_window is not None:
      query = logits.scale_queries(query, positions_BxQ, window=self.abf_window, layer=0, exempt_layers=0)

    def change(logits_BxHxQxK: jax.Array) -> jax.Array:
      if self.temperature is not None:
        temper = logits.SoftmaxTemperature(self.num_heads, self.num_positions, form=self.temperature, name='softmax')
        logits_BxHxQxK = temper(logits_BxHxQxK, positions_BxQ)
      logits_BxHxQxK = logits.soft_cap(logits_BxHxQxK, cap=self.logit_cap)
      self.sow('attention', 'logits', logits_BxHxQxK)
      return logits_BxHxQxK

    sink_H = logits.SinkLogit(self.num_heads, name='sink')() if self.has_sink else None
    how: dict[str, Any] = {'change': change, 'sink_H': sink_H}
    out = held.attend(query, mask_BxQxK, **how) if isinstance(held, Slots) else attend(query, held.key, held.value, mask_BxQxK, **how)
    out = out.transpose(0, 2, 1, 3).reshape(B * Q, -1)
    dense = self.dense(width, use_bias=False, dtype=self.dtype, kernel_init=self.kernel_init('output'), name='output')
    return dense(out).reshape(B, Q, width), held

  @nn.nowrap
  def _normalised(self, query_BxNxHxD: jax.Array, key_BxNxHxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    if self.qk_norm is None:
      return query_BxNxHxD, key_BxNxHxD
    if self.qk_norm == 'rms':
      norm = lambda name, x: norms.RMSNorm(eps=self.norm_eps, name=name)(x)
      return norm('query_norm', query_BxNxHxD), norm('key_norm', key_BxNxHxD)
    return qk_norm.QKNorm(form=self.qk_norm, eps=self.norm_eps, name='query_key_norm')(query_BxNxHxD, key_BxNxHxD)
