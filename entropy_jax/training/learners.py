"""What a sweep trains: a model with its supervised loss, and with what is logged of its attention, as pure functions of one tree.

Logged are entropy and largest logit of every layer, spectral norms and gains of the query and key maps, and the theorem's lower bound with
the rows that it was held against.

For studies: `decoder` and `classifier` make a `Learner`, `next_tokens` and `classes` its batches. A study that logs or trains something
else makes its own `Learner` from `mean_loss` and the `..._measures`, each of which is a function of parameters or logits alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from entropy_jax.layers import attention as attention_layers
from entropy_jax.layers import block, spectral
from entropy_jax.measures import attention, attention_bound
from entropy_jax.models import policy, transformer, vision
from entropy_jax.ops import auxiliary, masked
from entropy_jax.ops import spectral as norms
from entropy_jax.types import Metrics, Params, PyTree


class Batch(NamedTuple):
  """Examples with their targets.

  Attributes:
    inputs: what the model reads: tokens_BxT int32, images_BxHxWxC float32, or a tuple of arrays.
    target_BxT: int32, the class to predict at every position; T = 1 for one class an image.
    mask_BxT: bool, the targets that count.
  """

  inputs: PyTree
  target_BxT: jax.Array
  mask_BxT: jax.Array


class Learner(NamedTuple):
  """A model with its loss. All functions are pure.

  Attributes:
    init: key -> params.
    loss: (params, batch) -> mean cross entropy of the targets that count, nats; differentiable.
    advance: params -> params, once after every optimizer update.
    measure: (params, batch) -> what is logged while it trains: scalars, and one number a layer, [L].
    finish: params -> what is logged of the trained model, scalars.
  """

  init: Callable[[jax.Array], Params]
  loss: Callable[[Params, Batch], jax.Array]
  advance: Callable[[Params], Params]
  measure: Callable[[Params, Batch], Metrics]
  finish: Callable[[Params], Metrics]


def next_tokens(tokens_xN: jax.Array, *, first: int = 1) -> Batch:
  """The batch that predicts tokens first .. N - 1 from those before them.

  >>> batch = next_tokens(jnp.array([[5, 6, 7, 8]]), first=2)
  >>> batch.inputs.tolist(), batch.target_BxT.tolist(), batch.mask_BxT.tolist()
  ([[5, 6, 7]], [[6, 7, 8]], [[False, True, True]])
  """
  target = tokens_xN[..., 1:].astype(jnp.int32)
  counted_T = jnp.arange(1, tokens_xN.shape[-1]) >= first
  counted_xT = jnp.broadcast_to(counted_T.reshape((1,) * (target.ndim - 1) + (-1,)), target.shape)
  return Batch(tokens_xN[..., :-1].astype(jnp.int32), target, counted_xT)


def classes(images_xHxWxC: jax.Array, label_x: jax.Array) -> Batch:
  """The batch of one class an image."""
  return Batch(images_xHxWxC, label_x[..., None].astype(jnp.int32), jnp.ones((*label_x.shape, 1), bool))


def decoder(config: transformer.DecoderConfig, *, num_bound_examples: int = 2) -> Learner:
  """A causal model of tokens.

  Args:
    config: of the model.
    num_bound_examples: how many examples of a measured batch the norms of inputs are computed of; each costs an eigenvalue problem a layer.
  """
  model = transformer.transformer_policy(config)
  read = model.attention
  assert read is not None
  return _learner(
    model.init,
    lambda params, tokens_BxT: model.logits(params, tokens_BxT, jnp.ones(tokens_BxT.shape, bool)),
    lambda params, tokens_BxT: read(params, tokens_BxT, jnp.ones(tokens_BxT.shape, bool)),
    model.advance,
    config,
    has_products=config.positions == 'learned',
    num_bound_examples=num_bound_examples,
  )


def classifier(config: vision.VisionConfig, *, num_bound_examples: int = 2) -> Learner:
  """A vision encoder, arguments as of `decoder`."""
  model = vision.vision_classifier(config)
  logits = lambda params, images_BxHxWxC: model.logits(params, images_BxHxWxC)[:, None]
  return _learner(model.init, logits, model.attention, model.advance, config, has_products=True, num_bound_examples=num_bound_examples)


def _learner(
  init: Callable[[jax.Array], Params],
  logits: Callable[[Params, jax.Array], jax.Array],
  read: Callable[[Params, jax.Array], policy.AttentionLogits],
  advance: Callable[[Params], Params],
  config: block.BlockConfig,
  *,
  has_products: bool,
  num_bound_examples: int,
) -> Learner:
  def loss(params: Params, batch: Batch) -> jax.Array:
    return mean_loss(logits(params, batch.inputs), batch)

  def measure(params: Params, batch: Batch) -> Metrics:
    params = jax.lax.stop_gradient(params)
    seen, inputs_L = reading(read, params, batch.inputs)
    found = held_out_measures(logits(params, batch.inputs), batch)
    found |= attention_measures(seen) | map_measures(params, config.num_layers)
    # With QK-norm or rotations the logits are no X W X^T, and the theorem says nothing in terms of the weights.
    if has_products and config.qk_norm is None:
      few = slice(None, num_bound_examples)
      found |= bound_measures(
        policy.AttentionLogits(seen.logits_LxBxHxQxK[:, few], seen.mask_BxQxK[few]), [x[few] for x in inputs_L], params, config
      )
    return found

  return Learner(init, loss, advance, measure, gain_measures)


def mean_loss(logits_BxTxV: jax.Array, batch: Batch) -> jax.Array:
  """Mean cross entropy of the targets that count, nats."""
  losses = auxiliary.token_losses(logits_BxTxV, batch.target_BxT, batch.mask_BxT, z_coef=None)
  return masked.mean(losses.cross_entropy_BxT, batch.mask_BxT)


def held_out_measures(logits_BxTxV: jax.Array, batch: Batch) -> Metrics:
  """Loss, and the share of the targets that count that are the most probable class."""
  right_BxT = jnp.argmax(logits_BxTxV, axis=-1) == batch.target_BxT
  accuracy = masked.mean(right_BxT.astype(jnp.float32), batch.mask_BxT)
  return {'held_out_loss': mean_loss(logits_BxTxV, batch), 'held_out_accuracy': accuracy}


def gain_measures(params: Params) -> Metrics:
  """'PATH/norm_over_gain' of every reparametrised map; nothing for a model without any."""
  if set(params) != {'params', 'spectral'}:
    return {}
  found = spectral.spectral_norms(params['params'], params['spectral'])
  return {name: value for name, value in found.items() if name.endswith('/norm_over_gain')}


def reading(read: Callable[..., policy.AttentionLogits], *inputs: Any) -> tuple[policy.AttentionLogits, list[jax.Array]]:
  """read(*inputs), and what the attention of every layer read in that call, x_BxTxD each, from the first block on.

  Limits: not with rematerialised blocks, whose values do not leave them.
  """
  found: dict[tuple[str, ...], jax.Array] = {}

  def record(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
    if isinstance(context.module, attention_layers.Attention) and context.method_name == '__call__':
      found[context.module.path] = args[0]
    return call(*args, **kwargs)

  with nn.intercept_methods(record):
    logits = read(*inputs)
  order = sorted(found, key=lambda path: [int(part.rsplit('_', 1)[1]) for part in path if part.startswith('block_')])
  return logits, [found[path] for path in order]


def attention_measures(seen: policy.AttentionLogits) -> Metrics:
  """Of every layer [L]: entropy relative to uniform attention, mean over heads, and the largest logit.

  Of all rows that are finite: how many were held against the sharpest form of the lower bound, and how many violate it.
  """
  logits, mask = seen
  entropy_LxBxHxQ = attention.attention_entropy(logits, mask)
  bound = attention_bound.row_bound(attention_bound.centred_row_norm(logits, mask), mask)
  finite = jnp.isfinite(entropy_LxBxHxQ)
  return {
    'entropy': attention.over_heads(attention.normalised_entropy(entropy_LxBxHxQ, mask)).compute(),
    'largest_logit': jnp.max(attention.largest_logit(logits, mask), axis=-1),
    'bounded_rows': jnp.sum(finite, dtype=jnp.float32),
    'violations': jnp.sum(finite & attention_bound.is_violated(entropy_LxBxHxQ, bound), dtype=jnp.float32),
  }


def map_measures(params: Params, num_layers: int, names: tuple[str, ...] = ('query', 'key')) -> Metrics:
  """Of every layer [L]: spectral norms of maps of its attention as they act, and the sizes of their gains where they have some."""
  trained, folded = policy.plain_params(params), folded_params(params)
  found = {}
  for name in names:
    found[f'{name}_norm'] = norms.spectral_norm(_by_layer(folded, num_layers, name, 'kernel'))
    if 'gain' in trained['block_0']['attention'][name]:
      found[f'{name}_gain'] = jnp.abs(_by_layer(trained, num_layers, name, 'gain'))
  return found


def _by_layer(params: Params, num_layers: int, name: str, leaf: str) -> jax.Array:
  """A parameter of a map of the attention of every layer, [L, ...]: one program for all, which compiles faster than one for each."""
  return jnp.stack([params[f'block_{i}']['attention'][name][leaf] for i in range(num_layers)])


def bound_measures(seen: policy.AttentionLogits, inputs_L: list[jax.Array], params: Params, config: block.BlockConfig) -> Metrics:
  """The theorem's quantities of every layer [L], of the queries that see all keys.

  Returns:
    scale: the largest s = ||W_K W_Q^T||_2 ||X||_2^2 / sqrt(head_dim) over heads and examples; weight_norm: the largest ||W_K W_Q^T||_2 over
    heads; least_entropy: the smallest entropy of a row, nats, which is at least `lower_bound` of the number of keys and scale.
  """
  folded, x_LxBxTxD = folded_params(params), jnp.stack(inputs_L)
  num_layers, D = len(inputs_L), x_LxBxTxD.shape[-1]
  whole_BxQ = jnp.all(seen.mask_BxQxK, axis=-1)
  entropy_LxBxHxQ = attention.attention_entropy(*seen)
  rows = jnp.broadcast_to(whole_BxQ[None, :, None], entropy_LxBxHxQ.shape)
  query = _by_layer(folded, num_layers, 'query', 'kernel').reshape(num_layers, D, config.num_heads, config.head_size)
  key = _by_layer(folded, num_layers, 'key', 'kernel').reshape(num_layers, D, config.kv_heads, config.head_size)
  real = jnp.ones(x_LxBxTxD.shape[1:3], bool)
  # Mapped and not vmapped: `ops.spectral` says why.
  scale_of = lambda layer: attention_bound.weight_scale(layer[0], layer[1], layer[2], real, causal=False)
  s_LxBxHxT = jax.lax.map(scale_of, (x_LxBxTxD, query, key))
  weight_LxH = jax.lax.map(lambda layer: attention_bound.head_norm(*layer), (query, key))
  return {
    'scale': jnp.max(s_LxBxHxT, axis=(1, 2, 3)),
    'weight_norm': jnp.max(weight_LxH, axis=-1),
    'least_entropy': jnp.min(jnp.where(rows, entropy_LxBxHxQ, jnp.inf), axis=(1, 2, 3)),
  }


def folded_params(params: Params) -> Params:
  """The trained parameters with every map's kernel as it acts."""
  return spectral.fold(params['params'], params['spectral']) if set(params) == {'params', 'spectral'} else params
