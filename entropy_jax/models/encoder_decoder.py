"""An encoder-decoder from the decoder's blocks: an encoder of source tokens, and a causal decoder with attention to what it made.

Sequences are padded on the right; what stands in padding reaches nothing. Under norm='deepnorm' both stacks have their own constants.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from entropy_jax.layers import attention, block, logits, placement, scanned
from entropy_jax.models import policy
from entropy_jax.types import Params, PyTree, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(block.BlockConfig):
  """Shape and variants of both stacks: those of `layers.block.BlockConfig`, and of what stands around their blocks.

  Attributes:
    num_layers: of the encoder.
    num_decoder_layers: None for as many as the encoder has.
    source_vocab_size, target_vocab_size: V of either side.
    source_length, target_length: longest sequences that are accepted.
    positions: 'rotary', with an even head_dim, or 'learned'; attention to the source has no rotation.
    rope_theta: base of the rotary frequencies.
    tie_embeddings: the head is the transposed embedding of the target. Neither it nor an untied head is reparametrised by `linear`.
    final_logit_cap: of the logits of the vocabulary, None for none.
  """

  source_vocab_size: int
  target_vocab_size: int
  source_length: int
  target_length: int
  num_decoder_layers: int | None = None
  positions: str = 'learned'
  rope_theta: float = 10000.0
  tie_embeddings: bool = True
  final_logit_cap: float | None = None

  def __post_init__(self) -> None:
    super().__post_init__()
    sizes = ('source_vocab_size', 'target_vocab_size', 'source_length', 'target_length', 'num_decoder_layers')
    block.check_sizes(self, sizes)
    block.check_choices(self, {'positions': ('rotary', 'learned')})
    block.check_positive(self, ('rope_theta', 'final_logit_cap'))
    self.no_abf('encoder-decoder')
    if self.positions == 'rotary' and self.head_size % 2:
      raise UserError(f"head_dim is {self.head_size}: rotary positions turn pairs, so give an even one or positions='learned'.")

  @property
  def decoder_layers(self) -> int:
    return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers

  def deepnorm(self, part: str) -> placement.DeepNorm | None:
    """DeepNorm's constants for the 'encoder' or the 'decoder', None under another norm."""
    if self.norm != 'deepnorm':
      return None
    own, other = (self.num_layers, self.decoder_layers) if part == 'encoder' else (self.decoder_layers, self.num_layers)
    return placement.deepnorm(own, part=part, other_layers=other)


@struct.dataclass
class Memory:
  """What the decoder reads of the source."""

  tokens_BxSxD: jax.Array
  mask_BxS: jax.Array  # bool

  def seen_by(self, num_queries: int) -> jax.Array:
    """mask_BxQxS: every target token sees every real source token."""
    B, S = self.mask_BxS.shape
    return jnp.broadcast_to(self.mask_BxS[:, None], (B, num_queries, S))


@struct.dataclass
class TargetCache:
  """What decoding keeps: one slot for each of T target tokens, and the source as each layer sees it."""

  layers: tuple[attention.KeyValue, ...]  # [B, Hkv, T, head_dim] each
  source: tuple[attention.KeyValue, ...]  # [B, Hkv, S, head_dim] each
  memory: Memory
  index: jax.Array  # int32 scalar, the next slot


class EncoderDecoder(nn.Module):
  """Source and target tokens to the logits of the next target token.

  Parameters: source_embed [V, D], target_embed [V, D], source_position [S, D] and target_position [T, D] (learned positions),
  encoder_block_i and decoder_block_i as in `layers.block.Block`, encoder_norm and final_norm (pre), unembed [D, V] (untied).

  Attributes:
    config: shape and variants.
    stack: what makes the blocks, `layers.block.stack` or `layers.scanned.stack`.
  """

  config: EncoderDecoderConfig
  stack: Callable[..., list[Any]] = block.stack

  def setup(self) -> None:
    c = self.config
    start = nn.initializers.normal(c.width**-0.5)
    self.source_embed = self.param('source_embed', start, (c.source_vocab_size, c.width), jnp.float32)
    self.target_embed = self.param('target_embed', start, (c.target_vocab_size, c.width), jnp.float32)
    if c.positions == 'learned':
      self.source_position = self.param('source_position', start, (c.source_length, c.width), jnp.float32)
      self.target_position = self.param('target_position', start, (c.target_length, c.width), jnp.float32)
    self.encoder_block = self.stack(c, num_positions=c.source_length, deepnorm=c.deepnorm('encoder'))
    below = dataclasses.replace(c, num_layers=c.decoder_layers)
    self.decoder_block = self.stack(below, num_positions=c.target_length, deepnorm=c.deepnorm('decoder'), cross=True)
    if placement.has_final_norm(c.norm):
      self.encoder_norm, self.final_norm = block.norm_of(c)(), block.norm_of(c)()
    if not c.tie_embeddings:
      self.unembed = self.param('unembed', nn.initializers.lecun_normal(), (c.width, c.target_vocab_size), jnp.float32)

  def __call__(self, source_BxS: jax.Array, source_mask_BxS: jax.Array, target_BxT: jax.Array, target_mask_BxT: jax.Array) -> jax.Array:
    """logits_BxTxV: position t has read the source and the target tokens up to t, and predicts the next."""
    memory = self.encode(source_BxS, source_mask_BxS)
    check_length('target_length', self.config.target_length, target_BxT.shape[1])
    positions_BxT = attention.positions(target_mask_BxT)
    x, turn = self._inputs('target', jnp.where(target_mask_BxT, target_BxT, 0), positions_BxT)
    seen = attention.causal_mask(target_mask_BxT)
    source = block.Source(memory.tokens_BxSxD, memory.seen_by(target_BxT.shape[1]))
    for one in self.decoder_block:
      x, _, _ = one(x, seen, positions_BxT, turn, source=source)
    return self._head(x)

  def encode(self, source_BxS: jax.Array, source_mask_BxS: jax.Array) -> Memory:
    """The source as the decoder reads it."""
    check_length('source_length', self.config.source_length, source_BxS.shape[1])
    positions_BxS = attention.positions(source_mask_BxS)
    x, turn = self._inputs('source', jnp.where(source_mask_BxS, source_BxS, 0), positions_BxS)
    seen = attention.full_mask(source_mask_BxS)
    for one in self.encoder_block:
      x, _, _ = one(x, seen, positions_BxS, turn)
    return Memory(self.encoder_norm(x) if placement.has_final_norm(self.config.norm) else x, source_mask_BxS)

  def start(self, source_BxS: jax.Array, source_mask_BxS: jax.Array, first_B: jax.Array, num_tokens: int) -> tuple[TargetCache, jax.Array]:
    """Reads the source and the first target token, makes room for num_tokens with it, and returns the logits of the second."""
    c = self.config
    check_length('target_length', c.target_length, num_tokens)
    memory = self.encode(source_BxS, source_mask_BxS)
    empty = jnp.zeros((source_BxS.shape[0], c.kv_heads, num_tokens, c.head_size), c.dtype)
    room = (attention.KeyValue(empty, empty),) * c.decoder_layers
    # The first token makes the keys and values of the source, which the others read.
    return self._read(TargetCache(room, (), memory, jnp.int32(0)), first_B)

  def step(self, cache: TargetCache, token_B: jax.Array) -> tuple[TargetCache, jax.Array]:
    """Appends one token to every row; returns the logits of the next."""
    return self._read(cache, token_B)

  def _read(self, cache: TargetCache, token_B: jax.Array) -> tuple[TargetCache, jax.Array]:
    B, T = token_B.shape[0], cache.layers[0].key.shape[2]
    positions_Bx1 = jnp.broadcast_to(cache.index.reshape(1, 1), (B, 1))
    x, turn = self._inputs('target', token_B[:, None], positions_Bx1)
    seen = jnp.broadcast_to((jnp.arange(T) <= cache.index)[None, None], (B, 1, T))
    layers, sources = [], []
    for i, one in enumerate(self.decoder_block):
      source = block.Source(cache.source[i] if cache.source else cache.memory.tokens_BxSxD, cache.memory.seen_by(1))
      x, kv, source_kv = one(x, seen, positions_Bx1, turn, cache.layers[i], cache.index, source)
      layers.append(kv)
      if source_kv is not None:  # as every block that reads a source has
        sources.append(source_kv)
    return TargetCache(tuple(layers), tuple(sources), cache.memory, cache.index + 1), self._head(x)[:, 0]

  def _inputs(self, side: str, tokens_BxN: jax.Array, positions_BxN: jax.Array) -> tuple[jax.Array, attention.Rotation | None]:
    c = self.config
    x = jnp.take(self.source_embed if side == 'source' else self.target_embed, tokens_BxN, axis=0)
    if c.positions == 'learned':
      table = self.source_position if side == 'source' else self.target_position
      return (x + jnp.take(table, positions_BxN, axis=0)).astype(c.dtype), None
    return x.astype(c.dtype), attention.rotation(positions_BxN, attention.rotary_frequencies(c.head_size, theta=c.rope_theta))

  def _head(self, x_BxTxD: jax.Array) -> jax.Array:
    c = self.config
    if placement.has_final_norm(c.norm):
      x_BxTxD = self.final_norm(x_BxTxD)
    kernel = (self.target_embed.T if c.tie_embeddings else self.unembed).astype(c.dtype)
    logits_BxTxV = jnp.matmul(x_BxTxD.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)
    return logits.soft_cap(logits_BxTxV, cap=c.final_logit_cap)


def check_length(key: str, longest: int, length: int) -> None:
  """Refuses sequences that are too long."""
  if length > longest:
    raise UserError(f'{key} is {longest}, but the sequences have {length} tokens: raise {key} or shorten them.')


class Translator(NamedTuple):
  """A model from source to target sequences. All functions are pure; sequences are padded on the right.

  Attributes:
    init: key -> params, as in models/policy.py.
    logits: (params, source_BxS, source_mask_BxS, target_BxT, target_mask_BxT) -> logits_BxTxV, float32: the target is what the decoder
      is given, beginning of sequence first, and position t predicts what comes after it.
    greedy: (params, source_BxS, source_mask_BxS, num_tokens, bos_id=, eos_id=) -> (tokens_BxT, mask_BxT): the most probable token at
      every step until the end of sequence, which the mask includes; 0 behind it.
    attention: (params, *inputs of logits) -> {'encoder', 'decoder', 'cross': `policy.AttentionLogits`}, differentiable.
    advance: params -> params, once after every optimizer update, as in `Policy`.
  """

  init: Callable[[jax.Array], Params]
  logits: Callable[[Params, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
  greedy: Callable[..., tuple[jax.Array, jax.Array]]
  attention: Callable[[Params, jax.Array, jax.Array, jax.Array, jax.Array], dict[str, policy.AttentionLogits]]
  advance: Callable[[Params], Params]


def translator(config: EncoderDecoderConfig, *, scan: bool = False) -> Translator:
  """The encoder-decoder as pure functions; params are float32 whatever config.dtype.

  Args:
    config: of the model.
    scan: whether both stacks are `layers.scanned.ScannedBlocks`, for deep models: quick to compile, and without `greedy`.
  """
  model = policy.pure(EncoderDecoder(config, scanned.stack if scan else block.stack), has_state=config.has_state)

  def init(key: jax.Array) -> Params:
    token, real = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
    return model.init(key, token, real, token, real)

  def greedy(
    params: Params, source_BxS: jax.Array, source_mask_BxS: jax.Array, num_tokens: int, *, bos_id: int, eos_id: int
  ) -> tuple[jax.Array, jax.Array]:
    B = source_BxS.shape[0]
    cache, logits_BxV = model.call('start', params, source_BxS, source_mask_BxS, jnp.full(B, bos_id, jnp.int32), num_tokens)

    def choose(logits_BxV: jax.Array, open_B: jax.Array) -> tuple[jax.Array, jax.Array]:
      token_B = jnp.where(open_B, jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32), 0)
      return token_B, open_B & (token_B != eos_id)

    def one(carry: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
      cache, token_B, open_B = carry
      cache, logits_BxV = model.call('step', params, cache, token_B)
      next_B, still_B = choose(logits_BxV, open_B)
      return (cache, next_B, still_B), (next_B, open_B)

    first_B, open_B = choose(logits_BxV, jnp.ones(B, bool))
    _, (tokens, real) = jax.lax.scan(one, (cache, first_B, open_B), length=num_tokens - 1)
    tokens_BxT = jnp.concatenate([first_B[None], tokens]).T
    return tokens_BxT, jnp.concatenate([jnp.ones((1, B), bool), real]).T

  def read(params: Params, *inputs: jax.Array) -> dict[str, policy.AttentionLogits]:
    _, source_mask_BxS, _, target_mask_BxT = inputs
    sown: PyTree = model.sown('__call__', params, *inputs)
    encoder = [f'encoder_block_{i}' for i in range(config.num_layers)]
    decoder = [f'decoder_block_{i}' for i in range(config.decoder_layers)]
    seen = Memory(jnp.zeros(0), source_mask_BxS).seen_by(target_mask_BxT.shape[1])
    if scan:
      sown = scanned.unstack(sown)
    return {
      'encoder': policy.AttentionLogits(policy.stacked_logits(sown, encoder), attention.full_mask(source_mask_BxS)),
      'decoder': policy.AttentionLogits(policy.stacked_logits(sown, decoder), attention.causal_mask(target_mask_BxT)),
      'cross': policy.AttentionLogits(policy.stacked_logits(sown, decoder, 'cross_attention'), seen),
    }

  return Translator(init, functools.partial(model.call, '__call__'), greedy, read, model.advance)
