"""The one transformer block, attention and MLP on a residual stream, with every variant that studies compare set by a frozen configuration.

Decoder, vision encoder and encoder-decoder (models/) are stacks of it. Where `BlockConfig.linear` is not 'dense' a model has state, the
collection 'spectral' of layers/spectral.py: the forward pass reads it, and whoever trains makes one `spectral.advance` an update.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from entropy_jax.layers import activations, attention, fused_ffn, norms, placement, sigma_reparam, spectral
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

_PLACEMENTS = tuple(placement.PLACEMENTS.split(' | '))
_CHOICES: dict[str, tuple[str | None, ...]] = {
  'linear': ('dense', 'sigma_reparam', 'spectral_norm'),
  'gain_init': spectral.GAIN_INITS,
  'kernel_init': ('fan_in', 'vision', 'speech'),
  'norm': _PLACEMENTS,
  'norm_kind': ('rms', 'layer'),
  'qk_norm': (None, 'rms', 'layer', 'l2'),
  'activation': ('swiglu', *activations.NAMES.split(' | '), 'fused'),
  'softmax_temperature': (None, 'softplus', 'clip'),
  'dtype': ('float32', 'bfloat16'),
}


def check_sizes(config: Any, keys: Sequence[str]) -> None:
  """Refuses a field that is no positive integer; None passes where it is the default."""
  defaults = {field.name: field.default for field in dataclasses.fields(config)}
  for key in keys:
    value = getattr(config, key)
    optional = value is None and defaults[key] is None
    if not optional and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
      raise UserError(f'{key} is {value!r}: give a positive integer.')


def check_choices(config: Any, table: Mapping[str, Sequence[str | None]]) -> None:
  """Refuses a field that is not one of its names."""
  for key, allowed in table.items():
    value = getattr(config, key)
    if value not in allowed:
      close = nearest(str(value), [name for name in allowed if name is not None])
      raise UserError(f'{key} is {value!r}: choose one of {", ".join(map(str, allowed))}.{close}')


def check_positive(config: Any, keys: Sequence[str]) -> None:
  """Refuses a field that is not above 0; None passes."""
  for key in keys:
    value = getattr(config, key)
    if value is not None and not value > 0:
      raise UserError(f'{key} is {value!r}: give a positive number.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
  """Shape and variants of a stack of blocks.

  Attributes:
    width: D, of the residual stream.
    num_layers: L.
    num_heads: query heads H.
    num_kv_heads: key-value heads, a divisor of num_heads; None for num_heads.
    head_dim: None for width / num_heads.
    mlp_width: hidden width of the MLP; 'fused' has none and does not read it.
    qkv_bias: biases on query, key and value; no other map of a block has one.
    linear: 'dense'; 'sigma_reparam', every map (gain / sigma) W; 'spectral_norm', W / sigma. Every map of a block is one matrix, query, key
      and value too. Embeddings and the decoders' heads, tied or not, stay as they are.
    gain_init: gains of 'sigma_reparam' start at 'one', or at 'sigma', the norm of the kernel, as the dense map would start.
    kernel_init: 'fan_in', where outputs of branches are scaled by the depth so that the variance of the stream does not grow with it,
      and Xavier's with DeepNorm's gains under norm='deepnorm'; 'vision' and 'speech' as in layers/sigma_reparam.py, for every map. With
      maps of a given norm this sets how fast they turn and not where they start.
    norm: 'pre' x + f(norm(x)) and a last norm; 'post' norm(x + f(x)); 'none' x + f(x); 'deepnorm' norm(alpha x + f(x)).
    norm_kind: 'rms', or 'layer' with scale and bias.
    norm_eps: of every normalisation.
    qk_norm: normalisation of query and key heads, 'rms', 'layer' or 'l2'; None for none.
    activation: 'swiglu'; a name of layers/activations.py for down(activation(up(x))); 'fused' for ScFuFFN, with norm='none' alone.
    logit_cap: of the attention logits, None for none.
    sink: a learnt sink logit for every head.
    softmax_temperature: form of the learnt temperature of every head and position, 'softplus' or 'clip'; None for none.
    entropy_abf_window: context length of pretraining, for Entropy-ABF's scaling of queries; None for none. Causal attention only.
    entropy_abf_exempt: layers at the bottom that Entropy-ABF leaves alone.
    dtype: of the arithmetic, 'float32' or 'bfloat16'; parameters, norms, softmax and logits are float32 always.
    remat: recompute each block in the backward pass, for memory.
  """

  width: int
  num_layers: int
  num_heads: int
  mlp_width: int
  num_kv_heads: int | None = None
  head_dim: int | None = None
  qkv_bias: bool = False
  linear: str = 'dense'
  gain_init: str = 'one'
  kernel_init: str = 'fan_in'
  norm: str = 'pre'
  norm_kind: str = 'rms'
  norm_eps: float = 1e-6
  qk_norm: str | None = None
  activation: str = 'swiglu'
  logit_cap: float | None = None
  sink: bool = False
  softmax_temperature: str | None = None
  entropy_abf_window: int | None = None
  entropy_abf_exempt: int = 2
  dtype: str = 'float32'
  remat: bool = False

  def __post_init__(self) -> None:
    check_sizes(self, ('width', 'num_layers', 'num_heads', 'mlp_width', 'num_kv_heads', 'head_dim', 'entropy_abf_window'))
    check_choices(self, _CHOICES)
    check_positive(self, ('norm_eps', 'logit_cap'))
    if self.head_dim is None and self.width % self.num_heads:
      raise UserError(
        f'num_heads is {self.num_heads}, which does not divide width ({self.width}): choose a divisor or give head_dim.'
      )
    if self.num_heads % self.kv_heads:
      raise UserError(f'num_kv_heads is {self.kv_heads}: choose a divisor of num_heads ({self.num_heads}).')
    if self.gain_init != 'one' and self.linear != 'sigma_reparam':
      raise UserError(f"gain_init is {self.gain_init!r} while linear is {self.linear!r}: set it to 'one', or linear='sigma_reparam'.")
    if self.kernel_init != 'fan_in' and self.norm == 'deepnorm':
      raise UserError(f"kernel_init is {self.kernel_init!r}, but DeepNorm scales a start of its own: give 'fan_in', or another norm.")
    if self.activation == 'fused' and self.norm != 'none':
      raise UserError(f"activation is 'fused', which replaces MLP and residual sum, while norm is {self.norm!r}: give norm='none'.")
    if self.entropy_abf_window == 1 or self.entropy_abf_exempt < 0:
      raise UserError(
        f'entropy_abf_window is {self.entropy_abf_window!r} and entropy_abf_exempt {self.entropy_abf_exempt!r}: '
        'give a window of at least 2, or None, and at least 0 layers.'
      )

  @property
  def kv_heads(self) -> int:
    return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

  @property
  def head_size(self) -> int:
    return self.width // self.num_heads if self.head_dim is None else self.head_dim

  @property
  def has_state(self) -> bool:
    """Whether a model of such blocks has the collection 'spectral'."""
    return self.linear != 'dense'

  def no_abf(self, model: str) -> None:
    """For models whose queries see keys behind them, where the number of keys is not the position."""
    if self.entropy_abf_window is not None:
      raise UserError(f'entropy_abf_window is {self.entropy_abf_window!r}, which is for causal attention: set it to None for the {model}.')


def dense_of(config: BlockConfig) -> Callable[..., Any]:
  """What makes the linear maps of a model, called as nn.Dense is."""
  if config.linear == 'sigma_reparam':
    return functools.partial(sigma_reparam.SigmaReparamDense, gain_init=config.gain_init)
  return sigma_reparam.SpectralNormDense if config.linear == 'spectral_norm' else nn.Dense


def init_of(
  config: BlockConfig, matrix: str, *, num_branches: int = 1, deepnorm: placement.DeepNorm | None = None
) -> nn.initializers.Initializer:
  """How the kernel of a map starts.

  Args:
    config: says which start.
    matrix: 'query', 'key', 'value', 'output', 'gate', 'up', 'down', or any other for a map outside of the blocks.
    num_branches: that are added to the stream, 2L or 3L, for 'output' and 'down'.
    deepnorm: constants of the stack under norm='deepnorm'.
  """
  if config.kernel_init == 'vision':
    return sigma_reparam.vision_init()
  if config.kernel_init == 'speech':
    return sigma_reparam.speech_init()
  if deepnorm is not None:
    return placement.deepnorm_init(matrix, beta=deepnorm.beta)
  # The stream is a sum of branches: scaled down so that its variance at the start does not grow with depth.
  scale = num_branches**-0.5 if matrix in ('output', 'down') else 1.0
  return nn.initializers.variance_scaling(scale**2, 'fan_in', 'truncated_normal')


def norm_of(config: BlockConfig) -> Callable[..., Any]:
  """What makes the normalisations of a model, called with a name."""
  return functools.partial(norms.RMSNorm if config.norm_kind == 'rms' else norms.LayerNorm, eps=config.norm_eps)


class MLP(nn.Module):
  """down(silu(gate(x)) * up(x)) for 'swiglu', down(activation(up(x))) otherwise.

  Reference: Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202, eq. 6.
  """

  hidden: int
  activation: str
  dense: Callable[..., Any]
  kernel_init: Callable[[str], nn.initializers.Initializer]
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BxNxD: jax.Array) -> jax.Array:
    def dense(size: int, name: str) -> Any:
      return self.dense(size, use_bias=False, dtype=self.dtype, kernel_init=self.kernel_init(name), name=name)

    width = x_BxNxD.shape[-1]
    x_RxD = x_BxNxD.reshape(-1, width)  # matrices, see layers/attention.py
    if self.activation == 'swiglu':
      hidden = nn.silu(dense(self.hidden, 'gate')(x_RxD)) * dense(self.hidden, 'up')(x_RxD)
    else:
      hidden = activations.Activation(self.activation, name='between')(dense(self.hidden, 'up')(x_RxD))
    return dense(width, 'down')(hidden).reshape(x_BxNxD.shape)


class Source(NamedTuple):
  """What a block with cross-attention reads beside its stream.

  Attributes:
    tokens: [B, K, D], or the keys and values that the block made of it before.
    mask_BxQxK: bool.
  """

  tokens: jax.Array | attention.KeyValue
  mask_BxQxK: jax.Array


class Block(nn.Module):
  """Attention, with a source attention to that, then MLP, each added to the stream.

  Parameters: attention_norm, attention/{query, key, value, output[, query_norm, key_norm | query_key_norm][, softmax][, sink]}, the same
  with cross_ before it, mlp_norm, and mlp/{gate, up, down}, mlp/{up, down[, between]} or mlp/{fused, alpha, beta}.

  Attributes:
    config: shape and variants.
    layer: its number in the stack, from 0.
    num_positions: of its stream, for a temperature of the softmax.
    deepnorm: constants of the stack; None for those of a stack alone.
    cross: whether it reads a source.
  """

  config: BlockConfig
  layer: int = 0
  num_positions: int = 1
  deepnorm: placement.DeepNorm | None = None
  cross: bool = False

  @nn.compact
  def __call__(
    self,
    x_BxNxD: jax.Array,
    mask_BxQxK: jax.Array,
    positions_BxN: jax.Array,
    turn: attention.Rotation | None = None,
    cache: attention.KeyValue | attention.Slots | None = None,
    index: jax.Array | int = 0,
    source: Source | None = None,
  ) -> tuple[jax.Array, Any, Any]:
    """The stream after the block, its keys and values, and those of the source; arguments as in `attention.Attention`."""
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    deepnorm = (self.deepnorm or placement.deepnorm(c.num_layers)) if c.norm == 'deepnorm' else None
    start = functools.partial(init_of, c, num_branches=(3 if self.cross else 2) * c.num_layers, deepnorm=deepnorm)
    alpha = None if deepnorm is None else deepnorm.alpha

    def norm(name: str) -> Callable[[jax.Array], jax.Array] | None:
      return None if c.norm == 'none' else norm_of(c)(name=name)

    def attend(name: str, abf_window: int | None = None) -> attention.Attention:
      return attention.Attention(
        num_heads=c.num_heads,
        num_kv_heads=c.kv_heads,
        head_dim=c.head_size,
        qkv_bias=c.qkv_bias,
        qk_norm=c.qk_norm,
        norm_eps=c.norm_eps,
        dense=dense_of(c),
        kernel_init=start,
        temperature=c.softmax_temperature,
        num_positions=self.num_positions,
        logit_cap=c.logit_cap,
        has_sink=c.sink,
        abf_window=abf_window,
        dtype=dtype,
        name=name,
      )

    around = norm('attention_norm')
    read = placement.branch_input(x_BxNxD, around, placement=c.norm)
    window = c.entropy_abf_window if self.layer >= c.entropy_abf_exempt else None
    out, kv = attend('attention', window)(read, mask_BxQxK, positions_BxN, turn, cache, index)
    x = placement.add_branch(x_BxNxD, out, around, placement=c.norm, alpha=alpha)

    source_kv = None
    if self.cross:
      if source is None:
        raise UserError('source is None: a block with cross=True reads a source.')
      around = norm('cross_attention_norm')
      read = placement.branch_input(x, around, placement=c.norm)
      out, source_kv = attend('cross_attention')(read, source.mask_BxQxK, positions_BxN, source=source.tokens)
      x = placement.add_branch(x, out, around, placement=c.norm, alpha=alpha)

    if c.activation == 'fused':
      mlp = fused_ffn.ScaledFusedFFN(dtype=dtype, kernel_init=start('down'), dense=dense_of(c), name='mlp')
      return mlp(x.reshape(-1, c.width)).reshape(x.shape), kv, source_kv
    around = norm('mlp_norm')
    out = MLP(c.mlp_width, c.activation, dense_of(c), start, dtype, name='mlp')(placement.branch_input(x, around, placement=c.norm))
    return placement.add_branch(x, out, around, placement=c.norm, alpha=alpha), kv, source_kv


def stack(config: BlockConfig, **options: Any) -> list[Block]:
  """The blocks of a stack, to be made in the setup of a model; options as of `Block`."""
  block = nn.remat(Block) if config.remat else Block
  return [block(config, layer=i, **options) for i in range(config.num_layers)]
