"""What the attention of a policy did in a rollout, in metrics: entropy, largest logit and sinks of every layer, at the queries that chose
the tokens of the responses, so that they stand beside the policy's entropy of the same tokens."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from entropy_jax.measures import attention
from entropy_jax.models.policy import Policy
from entropy_jax.parallel.split import WHOLE, Split
from entropy_jax.types import Metrics, Params, Ratio, TokenBatch, UserError, take_rows


def check(policy: Policy) -> None:
  """Refuses a policy whose attention cannot be read."""
  if policy.attention is None:
    raise UserError('attention=True: this policy has no attention that could be measured; leave it off.')


def measures(policy: Policy, params: Params, batch: TokenBatch, *, num_slices: int = 1, split: Split = WHOLE) -> Metrics:
  """The measures of `measures.attention` over the rows that predict a response token.

  Args:
    policy: the policy; its `attention` is read, which changes no output.
    params: its parameters.
    batch: this part's rows of a rollout.
    num_slices: logits are held for one of so many slices of the rows at a time; the result does not depend on it.
    split: how rows lie over devices.

  Returns:
    For every layer I `attention/layer_I/NAME`, and over layers `attention/NAME`, of
    entropy: relative to uniform attention over the same keys, in [0, 1], mean over heads; mean over layers.
    largest_logit: of all heads; the largest of all layers.
    sink_rate: share of sequences and heads in which the first token gets more than 0.3 of the attention; mean over layers.

  Gradient: none.
  Limits: one forward pass, and logits [L, B / num_slices, H, N, N] at a time. Sink rates of few keys are large without any sink.
  """
  check(policy)
  read = policy.attention
  assert read is not None
  num_rows, num_tokens = batch.mask_BxT.shape
  size = num_rows // num_slices

  def one(start: jax.Array) -> attention.AttentionSummary:
    part = batch.replace(key=None)
    part = part if num_slices == 1 else take_rows(part, start, size)
    # The last token predicts nothing, and the position before a response token is what chose it.
    logits, mask = read(jax.lax.stop_gradient(params), part.tokens_BxN[:, :-1], part.token_mask_BxN[:, :-1])
    num_before = mask.shape[1] - num_tokens
    return attention.summarise(logits, mask, jnp.pad(part.mask_BxT, ((0, 0), (num_before, 0))))

  parts = jax.lax.map(one, jnp.arange(num_slices) * size)
  added = lambda ratio: split.total(jax.tree.map(lambda x: jnp.sum(x, axis=(0, -1)), ratio))  # over slices, heads and parts
  largest_PxL = split.gather(jnp.max(parts.largest_logit, axis=(0, -1))[None])
  entropy: Ratio = added(parts.normalised)
  by_layer = {'entropy': entropy.compute(), 'largest_logit': jnp.max(largest_PxL, axis=0), 'sink_rate': added(parts.sink).compute()}
  over: dict[str, Callable[[jax.Array], jax.Array]] = {'entropy': jnp.mean, 'largest_logit': jnp.max, 'sink_rate': jnp.mean}
  found = {f'attention/{name}': over[name](x_L) for name, x_L in by_layer.items()}
  return found | {f'attention/layer_{i}/{name}': x for name, x_L in by_layer.items() for i, x in enumerate(x_L)}
