"""A vision transformer from the decoder's blocks: patches, learnt positions, attention in both directions, a class of the whole image."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from entropy_jax.layers import block, placement
from entropy_jax.models import policy
from entropy_jax.types import Params, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(block.BlockConfig):
  """Shape and variants of the encoder: those of `layers.block.BlockConfig`, and of what stands around its blocks.

  Attributes:
    image_size: height and width of an image, in pixels.
    channels: of a pixel.
    patch_size: side of a patch, a divisor of image_size.
    num_classes: of the head. `linear` is for the embedding of the patches and the head too.
    pool: what the head reads, the 'mean' of the patches, or a learnt 'token' that stands before them.
  """

  image_size: int
  channels: int
  patch_size: int
  num_classes: int
  pool: str = 'mean'

  def __post_init__(self) -> None:
    super().__post_init__()
    block.check_sizes(self, ('image_size', 'channels', 'patch_size', 'num_classes'))
    block.check_choices(self, {'pool': ('mean', 'token')})
    self.no_abf('vision encoder')
    if self.image_size % self.patch_size:
      raise UserError(f'patch_size is {self.patch_size}: choose a divisor of image_size ({self.image_size}).')

  @property
  def num_tokens(self) -> int:
    """N: the patches, and the token of the class."""
    return (self.image_size // self.patch_size) ** 2 + (self.pool == 'token')


def patches(images_BxHxWxC: jax.Array, patch_size: int) -> jax.Array:
  """Square patches from left to right and top to bottom, [B, patches, patch_size^2 C]: a linear map of them is a convolution.

  >>> patches(jnp.arange(16.).reshape(1, 4, 4, 1), 2)[0].astype(int).tolist()
  [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
  """
  B, height, width, C = images_BxHxWxC.shape
  rows, columns = height // patch_size, width // patch_size
  x = images_BxHxWxC.reshape(B, rows, patch_size, columns, patch_size, C)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, rows * columns, patch_size**2 * C)


class VisionEncoder(nn.Module):
  """Images to the logits of their classes.

  Parameters: patch/{kernel, bias}, position [N, D], class_token [D] (pool='token'), block_i as in `layers.block.Block`, final_norm (pre),
  head/{kernel, bias}.
  """

  config: VisionConfig

  def setup(self) -> None:
    c = self.config
    dense = functools.partial(block.dense_of(c), dtype=jnp.dtype(c.dtype))
    self.patch = dense(c.width, kernel_init=block.init_of(c, 'patch'))
    self.position = self.param('position', nn.initializers.normal(0.02), (c.num_tokens, c.width), jnp.float32)
    if c.pool == 'token':
      self.class_token = self.param('class_token', nn.initializers.zeros_init(), (c.width,), jnp.float32)
    self.block = block.stack(c, num_positions=c.num_tokens)
    if placement.has_final_norm(c.norm):
      self.final_norm = block.norm_of(c)()
    self.head = block.dense_of(c)(c.num_classes, kernel_init=block.init_of(c, 'head'))

  def __call__(self, images_BxHxWxC: jax.Array) -> jax.Array:
    """logits_BxV of the classes, float32."""
    return self.head(self.pooled(images_BxHxWxC).astype(jnp.float32))

  def pooled(self, images_BxHxWxC: jax.Array) -> jax.Array:
    """What the head reads, [B, D]."""
    c = self.config
    shape = (c.image_size, c.image_size, c.channels)
    if images_BxHxWxC.shape[1:] != shape:
      raise UserError(f'images have shape {images_BxHxWxC.shape[1:]}: give {shape}, or set image_size and channels.')
    x_RxD = self.patch(patches(images_BxHxWxC, c.patch_size).reshape(-1, c.patch_size**2 * c.channels))
    B = images_BxHxWxC.shape[0]
    x_BxNxD = x_RxD.reshape(B, -1, c.width)
    if c.pool == 'token':
      token = jnp.broadcast_to(self.class_token.astype(x_BxNxD.dtype)[None, None], (B, 1, c.width))
      x_BxNxD = jnp.concatenate([token, x_BxNxD], axis=1)
    x_BxNxD = x_BxNxD + self.position.astype(x_BxNxD.dtype)[None]
    positions_BxN = jnp.broadcast_to(jnp.arange(c.num_tokens)[None], (B, c.num_tokens))
    for one in self.block:
      x_BxNxD, _, _ = one(x_BxNxD, full_view(B, c.num_tokens), positions_BxN)
    if placement.has_final_norm(c.norm):
      x_BxNxD = self.final_norm(x_BxNxD)
    return x_BxNxD[:, 0] if c.pool == 'token' else jnp.mean(x_BxNxD, axis=1, dtype=jnp.float32)


def full_view(num_sequences: int, num_tokens: int) -> jax.Array:
  """mask_BxQxK of tokens that all see all."""
  return jnp.ones((num_sequences, num_tokens, num_tokens), bool)


class Classifier(NamedTuple):
  """A model of images. All functions are pure.

  Attributes:
    init: key -> params, as in models/policy.py.
    logits: (params, images_BxHxWxC float) -> logits_BxV of the classes, float32.
    attention: (params, images_BxHxWxC) -> `policy.AttentionLogits`, differentiable.
    advance: params -> params, once after every optimizer update, as in `Policy`.
  """

  init: Callable[[jax.Array], Params]
  logits: Callable[[Params, jax.Array], jax.Array]
  attention: Callable[[Params, jax.Array], policy.AttentionLogits]
  advance: Callable[[Params], Params]


def vision_classifier(config: VisionConfig) -> Classifier:
  """The encoder as pure functions; params are float32 whatever config.dtype."""
  model = policy.pure(VisionEncoder(config), has_state=config.has_state)

  def init(key: jax.Array) -> Params:
    return model.init(key, jnp.zeros((1, config.image_size, config.image_size, config.channels)))

  def read(params: Params, images_BxHxWxC: jax.Array) -> policy.AttentionLogits:
    sown = model.sown('pooled', params, images_BxHxWxC)
    logits = policy.stacked_logits(sown, [f'block_{i}' for i in range(config.num_layers)])
    return policy.AttentionLogits(logits, full_view(images_BxHxWxC.shape[0], config.num_tokens))

  return Classifier(init, functools.partial(model.call, '__call__'), read, model.advance)
