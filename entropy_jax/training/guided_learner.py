"""Entropy-guided attention as a learner: a decoder whose loss has a penalty on attention entropies away from learnt thresholds, and which
logs the entropy of every head.

The penalty needs the attention logits of the very forward pass that gives the loss, so that loss and penalty share one backward pass.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropy_jax.layers import attention as attention_layers
from entropy_jax.layers import logits
from entropy_jax.measures import attention
from entropy_jax.models import policy, transformer
from entropy_jax.ops import auxiliary, masked
from entropy_jax.training.learners import Batch, Learner
from entropy_jax.types import Metrics, Params, UserError


class Guide(NamedTuple):
  """The penalty of `ops.auxiliary.entropy_guided_penalty`, with thresholds for every layer and head.

  Attributes:
    coef: lambda of `entropy_guided_loss` with the mean over layers, heads and queries. The released trainer's 1e-5 of a sum over batches
      of 128 sequences of 128 tokens is 1e-5 * 128 * 128 = .164 of a mean.
    tolerance: gamma.
    start: of every threshold.
  """

  coef: float
  tolerance: float = 0.2
  start: float = 0.5


def head_name(head: int, measure: str) -> str:
  """The name under which a measure of one head is logged, one number a layer.

  >>> head_name(2, 'entropy')
  'head_2/entropy'
  """
  return f'head_{head}/{measure}'


def guided_decoder(config: transformer.DecoderConfig, guide: Guide | None = None) -> Learner:
  """A causal model of tokens with or without the penalty.

  Args:
    config: of the model; its maps are dense.
    guide: None for cross entropy alone, and then the parameters are those of the model.

  Returns:
    A learner whose parameters are, with a guide, {'model': those of the model, 'thresholds': {'block_I': ...}}. Its loss is cross entropy
    plus penalty; `held_out_loss` is cross entropy alone. Logged of every layer and head are its entropy relative to uniform attention and
    its threshold; of every layer its largest logit.

  Gradient: of the penalty to attention and thresholds.
  """
  if config.has_state:
    raise UserError(f"linear is {config.linear!r}: the entropy-guided learner takes 'dense'.")
  model = transformer.Decoder(config)
  thresholds = logits.EntropyThreshold(config.num_heads, start=0.5 if guide is None else guide.start)
  blocks = [f'block_{i}' for i in range(config.num_layers)]

  def init(key: jax.Array) -> Params:
    params = transformer.transformer_policy(config).init(key)
    if guide is None:
      return params
    return {'model': params, 'thresholds': {name: thresholds.init(key)['params'] for name in blocks}}

  def forward(params: Params, tokens_BxT: jax.Array) -> tuple[jax.Array, policy.AttentionLogits]:
    mask = jnp.ones(tokens_BxT.shape, bool)
    variables: dict[str, Any] = {'params': params if guide is None else params['model']}
    found, sown = model.apply(variables, tokens_BxT, mask, mutable=['attention'])
    return found, policy.AttentionLogits(policy.stacked_logits(sown['attention'], blocks), attention_layers.causal_mask(mask))

  def cross_entropy(logits_BxTxV: jax.Array, batch: Batch) -> jax.Array:
    losses = auxiliary.token_losses(logits_BxTxV, batch.target_BxT, batch.mask_BxT, z_coef=None)
    return masked.mean(losses.cross_entropy_BxT, batch.mask_BxT)

  def learnt(params: Params) -> jax.Array:
    return jnp.stack([jnp.asarray(thresholds.apply({'params': params['thresholds'][name]})) for name in blocks])

  def loss(params: Params, batch: Batch) -> jax.Array:
    logits_BxTxV, seen = forward(params, batch.inputs)
    found = cross_entropy(logits_BxTxV, batch)
    return found if guide is None else found + penalty(learnt(params), seen, guide)

  def measure(params: Params, batch: Batch) -> Metrics:
    logits_BxTxV, seen = forward(jax.lax.stop_gradient(params), batch.inputs)
    entropy = attention.attention_entropy(*seen)
    by_head = {'entropy': attention.normalised_entropy(entropy, seen.mask_BxQxK).compute()}
    if guide is not None:
      by_head['threshold'] = learnt(params)
    found = {
      'held_out_loss': cross_entropy(logits_BxTxV, batch),
      'largest_logit': jnp.max(attention.largest_logit(*seen), axis=-1),
    }
    return found | {head_name(h, name): x[:, h] for name, x in by_head.items() for h in range(config.num_heads)}

  return Learner(init, loss, lambda params: params, measure, lambda params: {})


def penalty(threshold_LxH: jax.Array, seen: policy.AttentionLogits, guide: Guide) -> jax.Array:
  """The guide's term of the loss: coef times the mean penalty over layers, heads and queries.

  Args:
    threshold_LxH: r of every layer and head.
    seen: the attention logits of a batch, all of whose queries count.
    guide: of the study.

  Gradient: to logits and thresholds.
  """
  entropy_LxBxHxQ = attention.attention_entropy(*seen)
  L, B, _, Q = entropy_LxBxHxQ.shape
  every_BxQ = jnp.ones((B, Q), bool)
  terms = [
    auxiliary.entropy_guided_loss(
      auxiliary.entropy_guided_penalty(entropy_LxBxHxQ[i], threshold_LxH[i], every_BxQ, num_keys=Q, tolerance=guide.tolerance),
      every_BxQ,
      coef=guide.coef,
      reduction='mean',
    )
    for i in range(L)
  ]
  merged = terms[0]
  for term in terms[1:]:
    merged = merged.merge(term)
  return merged.compute()
