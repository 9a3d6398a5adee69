"""Training on the tokens where the policy is undecided: a few percent of the tokens of a chain of thought (the forks, "wait", "suppose")
carry most of its entropy, and reinforcement learning works mainly through them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import masked, selection
from entropy_jax.transform import Note
from entropy_jax.types import Metrics, Ratio, RunFacts


def top_entropy_weight(
  entropy_BxT: jax.Array,
  mask_BxT: jax.Array,
  sequence_B: jax.Array | None,
  *,
  keep: float = 0.2,
  normalize: str = 'kept',
  side: str = 'top',
  rule: str = 'count',
) -> tuple[jax.Array, Metrics]:
  """Keeps the K = max(1, ceil(keep N)) tokens of largest entropy of the whole batch (the 80/20 rule).

    w = N / K on kept tokens, 0 elsewhere (normalize='kept');  w = 1 on kept tokens, 0 elsewhere (normalize='all')

  Args:
    entropy_BxT: float32 [B, T], entropy of the current policy at every token, nats.
    mask_BxT: bool [B, T].
    sequence_B: int [B] or None, identity of the rows, by which ties are broken.
    keep: fraction of the N valid tokens to keep, in (0, 1].
    normalize: 'kept' makes the token mean one over the kept tokens (the denominator counts only them); 'all' leaves N, so the
      gradient is smaller by about keep.
    side: 'top' keeps the largest entropies, 'bottom' the smallest (the paper's control, with keep=0.8).
    rule: 'count' keeps exactly K tokens; 'quantile' keeps what is at or above the (1 - keep)-quantile, ties included.

  Returns:
    (weight [B, T], metrics: selected_fraction, and threshold, the entropy at the edge of what is kept).

  Gradient: none; the objective's gradient is exactly 0 on tokens that are not kept.
  Limits: keep=1 leaves the objective as it is.
  Reference: Wang et al., Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning for LLM Reasoning,
    arXiv 2506.01939.
  Differs: the released code takes floor(keep N + 0.9999) tokens of every micro-batch; here they are taken from the whole batch. TRL
    keeps what is at or above a quantile and normalises by all tokens: rule='quantile', normalize='all'. Penalties are not weighted: they
    act on all tokens.

  >>> w, _ = top_entropy_weight(jnp.array([[.1, .2, .3], [.4, .5, .6]]), jnp.ones((2, 3), bool), None)
  >>> w.tolist()
  [[0.0, 0.0, 0.0], [0.0, 3.0, 3.0]]
  """
  num_tokens = jnp.sum(mask_BxT, dtype=jnp.int32)
  score_BxT = entropy_BxT if side == 'top' else -entropy_BxT
  if rule == 'count':
    kept_BxT = selection.top(score_BxT, mask_BxT, selection.fraction_of(num_tokens, keep, round_up=True), sequence_B)
  else:
    edge = selection.quantile(score_BxT, mask_BxT, 1.0 - keep)
    kept_BxT = mask_BxT & (selection.coarse(score_BxT) >= selection.coarse(edge))
  scale = Ratio(masked.count(mask_BxT), masked.count(kept_BxT)).compute() if normalize == 'kept' else jnp.float32(1.0)
  metrics = {
    'selected_fraction': masked.mean(kept_BxT.astype(jnp.float32), mask_BxT),
    'threshold': masked.extreme(entropy_BxT, kept_BxT, largest=side == 'bottom'),
  }
  return jnp.where(kept_BxT, scale, 0.0), metrics


def note_normalize(name: str) -> Note:
  """The note of a method that keeps a part of the tokens and multiplies by N / K: a mean over the kept ones for one aggregation only."""

  def note(facts: RunFacts, *, hyper: Mapping[str, Any]) -> str | None:
    if hyper['normalize'] != 'kept' or facts.aggregate == 'token_mean' or hyper['keep'] == 1:
      return None
    return (
      f"{name}: normalize='kept' multiplies by N / K, which is a mean over the kept tokens with aggregate='token_mean' only, and "
      f"this run has {facts.aggregate!r}: set aggregate='token_mean', or normalize='all'."
    )

  return note


top_entropy = transform.weight(
  'top_entropy',
  top_entropy_weight,
  keep='(0, 1]',
  normalize='kept | all',
  side='top | bottom',
  rule='count | quantile',
  notes=(transform.note_fraction('top_entropy', 'keep'), note_normalize('top_entropy')),
)
