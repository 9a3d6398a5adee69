"""The one decoder: a causal transformer set by a frozen configuration, for small studies and for published families.

It covers Qwen2, Qwen2.5, Qwen3 and Llama 3 (models/presets.py) and the architectural variants that studies compare: pre-, post- or no
normalisation, learned or rotary positions. Prompts are padded on the left and responses on the right; the content of padding is replaced
at entry, so that it can reach nothing.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from entropy_jax.layers import attention, norms
from entropy_jax.models.policy import Policy
from entropy_jax.transform import nearest
from entropy_jax.types import Params, UserError

_CHOICES = {'positions': ('rotary', 'learned'), 'norm': ('pre', 'post', 'none'), 'dtype': ('float32', 'bfloat16')}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
  """Shape and variants of the decoder.

  Attributes:
    vocab_size: V.
    width: D, of the residual stream.
    num_layers: L.
    num_heads: query heads H.
    num_kv_heads: key-value heads, a divisor of num_heads; None for num_heads.
    head_dim: None for width / num_heads; even with rotary positions.
    mlp_width: hidden width of the SwiGLU MLP.
    max_length: longest N = P + T that is accepted; size of the table of learned positions.
    positions: 'rotary' or 'learned'.
    rope_theta: base of the rotary frequencies.
    rope_scaling: Llama 3's, None for none.
    qkv_bias: biases on query, key and value.
    qk_norm: RMSNorm on query and key heads.
    norm: 'pre' x + f(norm(x)) and a last norm; 'post' norm(x + f(x)); 'none' x + f(x).
    norm_eps: of every RMSNorm.
    tie_embeddings: the head is the transposed embedding.
    dtype: of the arithmetic, 'float32' or 'bfloat16'; parameters, softmax and logits are float32 always.
    remat: recompute each block in the backward pass, for memory.
  """

  vocab_size: int
  width: int
  num_layers: int
  num_heads: int
  mlp_width: int
  max_length: int
  num_kv_heads: int | None = None
  head_dim: int | None = None
  positions: str = 'rotary'
  rope_theta: float = 10000.0
  rope_scaling: attention.RopeScaling | None = None
  qkv_bias: bool = False
  qk_norm: bool = False
  norm: str = 'pre'
  norm_eps: float = 1e-6
  tie_embeddings: bool = True
  dtype: str = 'float32'
  remat: bool = False

  def __post_init__(self) -> None:
    sizes = ('vocab_size', 'width', 'num_layers', 'num_heads', 'mlp_width', 'max_length', 'num_kv_heads', 'head_dim')
    for key in sizes:
      value = getattr(self, key)
      optional = key in ('num_kv_heads', 'head_dim') and value is None
      if not optional and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise UserError(f'{key} is {value!r}: give a positive integer.')
    for key, allowed in _CHOICES.items():
      value = getattr(self, key)
      if value not in allowed:
        raise UserError(f'{key} is {value!r}: choose one of {", ".join(allowed)}.{nearest(str(value), allowed)}')
    for key in ('rope_theta', 'norm_eps'):
      if not getattr(self, key) > 0:
        raise UserError(f'{key} is {getattr(self, key)!r}: give a positive number.')
    if self.head_dim is None and self.width % self.num_heads:
      raise UserError(
        f'num_heads is {self.num_heads}, which does not divide width ({self.width}): choose a divisor or give head_dim.'
      )
    if self.num_heads % self.kv_heads:
      raise UserError(f'num_kv_heads is {self.kv_heads}: choose a divisor of num_heads ({self.num_heads}).')
    if self.positions == 'rotary' and self.head_size % 2:
      raise UserError(f"head_dim is {self.head_size}: rotary positions turn pairs, so give an even one or positions='learned'.")
    if self.rope_scaling is not None and self.positions != 'rotary':
      raise UserError(f"rope_scaling is set while positions is {self.positions!r}: set it to None or positions='rotary'.")

  @property
  def kv_heads(self) -> int:
    return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

  @property
  def head_size(self) -> int:
    return self.width // self.num_heads if self.head_dim is None else self.head_dim


@struct.dataclass
class DecoderCache:
  """What decoding keeps: one slot for each of N = P + T positions, the same slot for every row."""

  layers: tuple[attention.KeyValue, ...]  # [B, Hkv, N, head_dim] each
  real_BxN: jax.Array  # bool, slots that hold a token of the sequence
  position_B: jax.Array  # int32, position of the next token: the number of real tokens so far
  index: jax.Array  # int32 scalar, the next slot


class MLP(nn.Module):
  """SwiGLU: down(silu(gate(x)) * up(x)).

  Reference: Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202, eq. 6.
  """

  hidden: int
  output_scale: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BxNxD: jax.Array) -> jax.Array:
    dense = lambda size, name, **kwargs: nn.Dense(size, use_bias=False, dtype=self.dtype, name=name, **kwargs)
    start = nn.initializers.variance_scaling(self.output_scale**2, 'fan_in', 'truncated_normal')
    x_RxD = x_BxNxD.reshape(-1, x_BxNxD.shape[-1])  # matrices, see layers/attention.py
    gated = nn.silu(dense(self.hidden, 'gate')(x_RxD)) * dense(self.hidden, 'up')(x_RxD)
    return dense(x_BxNxD.shape[-1], 'down', kernel_init=start)(gated).reshape(x_BxNxD.shape)


class Block(nn.Module):
  """Attention, then MLP, each added to the stream."""

  config: DecoderConfig

  @nn.compact
  def __call__(
    self,
    x_BxNxD: jax.Array,
    mask_BxQxK: jax.Array,
    turn: attention.Rotation | None,
    cache: attention.KeyValue | None = None,
    index: jax.Array | int = 0,
  ) -> tuple[jax.Array, attention.KeyValue]:
    c = self.config
    # The stream is a sum of 2L outputs: scaled down so that its variance at the start does not grow with depth.
    scale, dtype = (2 * c.num_layers) ** -0.5, jnp.dtype(c.dtype)

    def norm(x: jax.Array, name: str, place: str) -> jax.Array:
      return norms.RMSNorm(eps=c.norm_eps, name=name)(x) if c.norm == place else x

    attend = attention.SelfAttention(
      num_heads=c.num_heads,
      num_kv_heads=c.kv_heads,
      head_dim=c.head_size,
      qkv_bias=c.qkv_bias,
      qk_norm=c.qk_norm,
      norm_eps=c.norm_eps,
      output_scale=scale,
      dtype=dtype,
      name='attention',
    )
    out, kv = attend(norm(x_BxNxD, 'attention_norm', 'pre'), mask_BxQxK, turn, cache, index)
    x = norm(x_BxNxD + out, 'attention_norm', 'post')
    out = MLP(c.mlp_width, scale, dtype, name='mlp')(norm(x, 'mlp_norm', 'pre'))
    return norm(x + out, 'mlp_norm', 'post'), kv


class Decoder(nn.Module):
  """Token ids to hidden states and logits; `start` and `step` are the same network with a cache.

  Parameters: embed [V, D], position [max_length, D] (learned positions), block_i/{attention_norm, attention/{query, key, value, output,
  query_norm, key_norm}, mlp_norm, mlp/{gate, up, down}}, final_norm (pre), unembed/kernel [D, V] (untied).
  """

  config: DecoderConfig

  def setup(self) -> None:
    c = self.config
    start = nn.initializers.normal(c.width**-0.5)
    self.embed = self.param('embed', start, (c.vocab_size, c.width), jnp.float32)
    if c.positions == 'learned':
      self.position = self.param('position', start, (c.max_length, c.width), jnp.float32)
    block = nn.remat(Block) if c.remat else Block
    self.block = [block(c) for _ in range(c.num_layers)]
    if c.norm == 'pre':
      self.final_norm = norms.RMSNorm(eps=c.norm_eps)
    if not c.tie_embeddings:
      self.unembed = self.param('unembed', nn.initializers.lecun_normal(), (c.width, c.vocab_size), jnp.float32)

  def __call__(self, tokens_BxN: jax.Array, mask_BxN: jax.Array) -> jax.Array:
    """Logits, so that init makes every parameter."""
    return self.head(self.hidden(tokens_BxN, mask_BxN))

  def hidden(self, tokens_BxN: jax.Array, mask_BxN: jax.Array) -> jax.Array:
    """hidden_BxNxD of whole sequences."""
    self._check_length(tokens_BxN.shape[1])
    return self._prefill(tokens_BxN, mask_BxN)[0]

  def head(self, hidden_xD: jax.Array) -> jax.Array:
    """logits_...xV in float32."""
    kernel = self.embed.T if self.config.tie_embeddings else self.unembed
    kernel = kernel.astype(self.config.dtype)
    return jnp.matmul(hidden_xD.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)

  def start(self, tokens_BxP: jax.Array, mask_BxP: jax.Array, num_tokens: int) -> tuple[DecoderCache, jax.Array]:
    """Reads the prompt and makes room for num_tokens."""
    P = tokens_BxP.shape[1]
    self._check_length(P + num_tokens)
    hidden, layers = self._prefill(tokens_BxP, mask_BxP)
    room = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, num_tokens), (0, 0)))
    cache = DecoderCache(
      layers=tuple(attention.KeyValue(room(kv.key), room(kv.value)) for kv in layers),
      real_BxN=jnp.pad(mask_BxP, ((0, 0), (0, num_tokens))),
      position_B=jnp.sum(mask_BxP, axis=1, dtype=jnp.int32),
      index=jnp.int32(P),
    )
    return cache, self.head(hidden[:, -1])

  def step(self, cache: DecoderCache, token_B: jax.Array) -> tuple[DecoderCache, jax.Array]:
    """Appends one token to every row."""
    slot = jnp.arange(cache.real_BxN.shape[1]) == cache.index
    real_BxN = cache.real_BxN | slot[None]
    x, turn = self._inputs(token_B[:, None], cache.position_B[:, None])
    layers = []
    for block, kv in zip(self.block, cache.layers, strict=True):
      x, kv = block(x, real_BxN[:, None], turn, kv, cache.index)
      layers.append(kv)
    cache = DecoderCache(tuple(layers), real_BxN, cache.position_B + 1, cache.index + 1)
    return cache, self.head(self._last_norm(x)[:, 0])

  def _prefill(self, tokens_BxN: jax.Array, mask_BxN: jax.Array) -> tuple[jax.Array, list[attention.KeyValue]]:
    # Ids in padding may be anything, even out of range: they are replaced before they are looked up.
    tokens = jnp.where(mask_BxN, tokens_BxN, 0)
    positions = jnp.maximum(jnp.cumsum(mask_BxN, axis=1, dtype=jnp.int32) - 1, 0)
    x, turn = self._inputs(tokens, positions)
    seen = attention.causal_mask(mask_BxN)
    layers = []
    for block in self.block:
      x, kv = block(x, seen, turn)
      layers.append(kv)
    return self._last_norm(x), layers

  def _inputs(self, tokens_BxN: jax.Array, positions_BxN: jax.Array) -> tuple[jax.Array, attention.Rotation | None]:
    c = self.config
    x = jnp.take(self.embed, tokens_BxN, axis=0)
    turn = None
    if c.positions == 'learned':
      x = x + jnp.take(self.position, positions_BxN, axis=0)
    else:
      frequencies = attention.rotary_frequencies(c.head_size, theta=c.rope_theta, scaling=c.rope_scaling)
      turn = attention.rotation(positions_BxN, frequencies)
    return x.astype(c.dtype), turn

  def _last_norm(self, x_BxNxD: jax.Array) -> jax.Array:
    return self.final_norm(x_BxNxD) if self.config.norm == 'pre' else x_BxNxD

  def _check_length(self, length: int) -> None:
    if length > self.config.max_length:
      raise UserError(
        f'max_length is {self.config.max_length}, but prompt and response have {length} tokens: raise max_length or shorten them.'
      )


def transformer_policy(config: DecoderConfig) -> Policy:
  """The decoder as a `Policy`; params are float32 whatever config.dtype."""
  model = Decoder(config)

  def init(key: jax.Array) -> Params:
    return model.init(key, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))['params']

  def call(method: str, params: Params, *args: Any) -> Any:
    return model.apply({'params': params}, *args, method=method)

  return Policy(
    init=init,
    hidden=functools.partial(call, 'hidden'),
    head=functools.partial(call, 'head'),
    start=functools.partial(call, 'start'),
    step=functools.partial(call, 'step'),
  )


def num_parameters(config: DecoderConfig) -> int:
  """Number of parameters, from the shapes alone."""
  shapes = jax.eval_shape(transformer_policy(config).init, jax.random.key(0))
  return sum(x.size for x in jax.tree.leaves(shapes))
