"""The one decoder: a causal transformer set by a frozen configuration, for small studies and for published families.

It covers Qwen2, Qwen2.5, Qwen3 and Llama 3 (models/presets.py) and every variant of layers/block.py. Prompts are padded on the left and
responses on the right; the content of padding is replaced at entry, so that it can reach nothing.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from entropy_jax.layers import attention, block, logits, placement
from entropy_jax.models import policy
from entropy_jax.models.policy import Policy
from entropy_jax.ops.unembedding import Unembedding
from entropy_jax.types import Params, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(block.BlockConfig):
  """Shape and variants of the decoder: those of `layers.block.BlockConfig`, and of what stands around its blocks.

  Attributes:
    vocab_size: V.
    max_length: longest N = P + T that is accepted; size of the table of learned positions and of those of softmax temperatures.
    positions: 'rotary', with an even head_dim, or 'learned'.
    rope_theta: base of the rotary frequencies.
    rope_scaling: Llama 3's, None for none.
    tie_embeddings: the head is the transposed embedding. Neither it nor an untied head is reparametrised by `linear`.
    final_logit_cap: of the logits of the vocabulary, None for none.
  """

  vocab_size: int
  max_length: int
  positions: str = 'rotary'
  rope_theta: float = 10000.0
  rope_scaling: attention.RopeScaling | None = None
  tie_embeddings: bool = True
  final_logit_cap: float | None = None

  def __post_init__(self) -> None:
    super().__post_init__()
    block.check_sizes(self, ('vocab_size', 'max_length'))
    block.check_choices(self, {'positions': ('rotary', 'learned')})
    block.check_positive(self, ('rope_theta', 'final_logit_cap'))
    if self.positions == 'rotary' and self.head_size % 2:
      raise UserError(f"head_dim is {self.head_size}: rotary positions turn pairs, so give an even one or positions='learned'.")
    if self.rope_scaling is not None and self.positions != 'rotary':
      raise UserError(f"rope_scaling is set while positions is {self.positions!r}: set it to None or positions='rotary'.")


@struct.dataclass
class DecoderCache:
  """What decoding keeps: one slot for each of N = P + T positions, the same slot for every row."""

  layers: tuple[attention.Slots, ...]
  real_BxN: jax.Array  # bool, slots that hold a token of the sequence
  position_B: jax.Array  # int32, position of the next token: the number of real tokens so far
  index: jax.Array  # int32 scalar, the next slot


class Decoder(nn.Module):
  """Token ids to hidden states and logits; `start` and `step` are the same network with a cache.

  Parameters: embed [V, D], position [max_length, D] (learned positions), block_i as in `layers.block.Block`, final_norm (pre), unembed
  [D, V] (untied).
  """

  config: DecoderConfig

  def setup(self) -> None:
    c = self.config
    start = nn.initializers.normal(c.width**-0.5)
    self.embed = self.param('embed', start, (c.vocab_size, c.width), jnp.float32)
    if c.positions == 'learned':
      self.position = self.param('position', start, (c.max_length, c.width), jnp.float32)
    self.block = block.stack(c, num_positions=c.max_length)
    if placement.has_final_norm(c.norm):
      self.final_norm = block.norm_of(c)()
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
    logits_xV = jnp.matmul(hidden_xD.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)
    return logits.soft_cap(logits_xV, cap=self.config.final_logit_cap)

  def start(self, tokens_BxP: jax.Array, mask_BxP: jax.Array, num_tokens: int) -> tuple[DecoderCache, jax.Array]:
    """Reads the prompt and makes room for num_tokens."""
    P = tokens_BxP.shape[1]
    self._check_length(P + num_tokens)
    hidden, layers = self._prefill(tokens_BxP, mask_BxP)
    cache = DecoderCache(
      layers=tuple(attention.Slots.of(kv, num_tokens) for kv in layers),
      real_BxN=jnp.pad(mask_BxP, ((0, 0), (0, num_tokens))),
      position_B=jnp.sum(mask_BxP, axis=1, dtype=jnp.int32),
      index=jnp.int32(P),
    )
    return cache, self.head(hidden[:, -1])

  def step(self, cache: DecoderCache, token_B: jax.Array) -> tuple[DecoderCache, jax.Array]:
    """Appends one token to every row."""
    slot = jnp.arange(cache.real_BxN.shape[1]) == cache.index
    real_BxN = cache.real_BxN | slot[None]
    positions_Bx1 = cache.position_B[:, None]
    x, turn = self._inputs(token_B[:, None], positions_Bx1)
    layers = []
    for one, kv in zip(self.block, cache.layers, strict=True):
      x, kv, _ = one(x, real_BxN[:, None], positions_Bx1, turn, kv, cache.index)
      layers.append(kv)
    cache = DecoderCache(tuple(layers), real_BxN, cache.position_B + 1, cache.index + 1)
    return cache, self.head(self._last_norm(x)[:, 0])

  def _prefill(self, tokens_BxN: jax.Array, mask_BxN: jax.Array) -> tuple[jax.Array, list[attention.KeyValue]]:
    # Ids in padding may be anything, even out of range: they are replaced before they are looked up.
    tokens = jnp.where(mask_BxN, tokens_BxN, 0)
    positions_BxN = attention.positions(mask_BxN)
    x, turn = self._inputs(tokens, positions_BxN)
    seen = attention.causal_mask(mask_BxN)
    layers = []
    for one in self.block:
      x, kv, _ = one(x, seen, positions_BxN, turn)
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
    return self.final_norm(x_BxNxD) if placement.has_final_norm(self.config.norm) else x_BxNxD

  def _check_length(self, length: int) -> None:
    if length > self.config.max_length:
      raise UserError(
        f'max_length is {self.config.max_length}, but prompt and response have {length} tokens: raise max_length or shorten them.'
      )


def transformer_policy(config: DecoderConfig) -> Policy:
  """The decoder as a `Policy`; params are float32 whatever config.dtype."""
  model = policy.pure(Decoder(config), has_state=config.has_state)

  def init(key: jax.Array) -> Params:
    return model.init(key, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))

  def read(params: Params, tokens_BxN: jax.Array, mask_BxN: jax.Array) -> policy.AttentionLogits:
    sown = model.sown('hidden', params, tokens_BxN, mask_BxN)
    names = [f'block_{i}' for i in range(config.num_layers)]
    return policy.AttentionLogits(policy.stacked_logits(sown, names), attention.causal_mask(mask_BxN))

  def unembedding(params: Params) -> Unembedding:
    trained = policy.plain_params(params)
    kernel = trained['embed'] if config.tie_embeddings else trained['unembed']
    return Unembedding(kernel, not config.tie_embeddings, config.final_logit_cap, config.dtype)

  return Policy(
    init=init,
    hidden=functools.partial(model.call, 'hidden'),
    head=functools.partial(model.call, 'head'),
    start=functools.partial(model.call, 'start'),
    step=functools.partial(model.call, 'step'),
    advance=model.advance,
    attention=read,
    unembedding=unembedding,
  )


def num_parameters(config: DecoderConfig) -> int:
  """Number of parameters, from the shapes alone; the vectors u of reparametrised maps are state and do not count."""
  shapes = jax.eval_shape(transformer_policy(config).init, jax.random.key(0))
  return sum(x.size for x in jax.tree.leaves(policy.plain_params(shapes)))
