"""A classifier of bags: instances are encoded one by one, pooled by gated attention, and the bag is classified (ABMIL)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from entropy_jax.layers import block, mil_pooling
from entropy_jax.models import policy
from entropy_jax.types import Params, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MilConfig:
  """Shape of the model.

  Attributes:
    num_features: F, numbers of an instance; an image is flat.
    widths: of the encoder's maps, each without bias and followed by ReLU; the last one is D. One map is the method, for features that a
      trained model gave.
    attention_width: of the gated attention.
    num_heads: H, attention scores of an instance; the classifier reads the bag of every head.
    num_classes: of a bag.
  """

  num_features: int
  widths: tuple[int, ...]
  attention_width: int
  num_heads: int = 1
  num_classes: int = 2

  def __post_init__(self) -> None:
    block.check_sizes(self, ('num_features', 'attention_width', 'num_heads', 'num_classes'))
    if not self.widths or not all(isinstance(width, int) and not isinstance(width, bool) and width >= 1 for width in self.widths):
      raise UserError(f'widths is {self.widths!r}: give at least one positive integer, the width of a map of the encoder.')


class BagLogits(NamedTuple):
  """logits_BxV of the classes of bags and logits_BxHxK of the attention to their instances; float32."""

  logits_BxV: jax.Array
  attention_BxHxK: jax.Array


class MilNet(nn.Module):
  """Bags to the logits of their classes.

  Parameters: encoder_i/kernel, attention of `layers.mil_pooling.GatedAttention`, head/{kernel, bias}.
  """

  config: MilConfig

  @nn.compact
  def __call__(self, instances_BxKxF: jax.Array, mask_BxK: jax.Array, sharpness: jax.Array) -> BagLogits:
    c = self.config
    if instances_BxKxF.shape[-1] != c.num_features:
      raise UserError(f'instances have {instances_BxKxF.shape[-1]} features: give {c.num_features}, or set num_features.')
    z = jnp.where(mask_BxK[:, :, None], instances_BxKxF.astype(jnp.float32), 0.0)
    for i, width in enumerate(c.widths):
      z = nn.relu(nn.Dense(width, use_bias=False, name=f'encoder_{i}')(z))
    scores = mil_pooling.GatedAttention(c.attention_width, c.num_heads, name='attention')(z) * sharpness
    bag_BxHxD = mil_pooling.pool(z, scores, mask_BxK)
    return BagLogits(nn.Dense(c.num_classes, name='head')(bag_BxHxD.reshape(bag_BxHxD.shape[0], -1)), scores)


class BagClassifier(NamedTuple):
  """A model of bags. All functions are pure.

  Attributes:
    init: key -> params.
    logits: (params, instances_BxKxF, mask_BxK bool, sharpness) -> BagLogits. The attention logits are multiplied by sharpness, float32
      scalar that may be traced: 1 is the method, 0 is mean pooling.
  """

  init: Callable[[jax.Array], Params]
  logits: Callable[..., BagLogits]


def bag_classifier(config: MilConfig) -> BagClassifier:
  """The model as pure functions.

  Reference: Ilse, Tomczak and Welling, Attention-based Deep Multiple Instance Learning, arXiv 1802.04712.
  """
  model = policy.pure(MilNet(config), has_state=False)
  none = (jnp.zeros((1, 1, config.num_features)), jnp.ones((1, 1), bool), jnp.float32(1.0))
  return BagClassifier(lambda key: model.init(key, *none), functools.partial(model.call, '__call__'))
