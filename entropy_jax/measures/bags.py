"""What is measured of classified bags: how well a score separates two kinds, and how widely attention spreads over a bag's instances."""

import jax
import jax.numpy as jnp

from entropy_jax.measures import attention
from entropy_jax.ops import masked
from entropy_jax.types import Ratio


def auc(score_xN: jax.Array, positive_xN: jax.Array, mask_xN: jax.Array) -> Ratio:
  """Area under the ROC curve: the share of the pairs (positive, negative) in which the positive has the higher score, ties half.

  Args:
    score_xN: float [..., N], finite where it counts.
    positive_xN: bool [..., N].
    mask_xN: bool [..., N], those that count.

  Returns:
    Ratio [...] of pairs, with den 0 where one of the kinds is missing.

  Gradient: none.
  Limits: .5 for equal scores; unchanged by any growing function of the scores. N^2 comparisons a row.

  >>> score, positive = jnp.array([.9, .1, .5, .5]), jnp.array([True, False, True, False])
  >>> float(auc(score, positive, jnp.ones(4, bool)).compute())      # of 4 pairs 3 are won and one is a tie
  0.875
  """
  score = jnp.where(mask_xN, score_xN.astype(jnp.float32), 0.0)
  above = (score[..., :, None] > score[..., None, :]).astype(jnp.float32)
  tie = (score[..., :, None] == score[..., None, :]).astype(jnp.float32)
  pairs = (positive_xN & mask_xN)[..., :, None] & (~positive_xN & mask_xN)[..., None, :]
  won = jnp.sum(jnp.where(pairs, above + 0.5 * tie, 0.0), axis=(-2, -1))
  return Ratio(won, jnp.sum(pairs, axis=(-2, -1), dtype=jnp.float32))


def bag_attention(logits_BxHxK: jax.Array, mask_BxK: jax.Array, is_target_BxK: jax.Array) -> dict[str, Ratio]:
  """How attention lies over each bag of known instances, mean over heads.

  Args:
    logits_BxHxK: attention logits, anything where masked.
    mask_BxK: bool, the instances; at least one in every bag.
    is_target_BxK: bool, the instances that make a bag positive.

  Returns:
    Ratios [B]; the sum of numerators over the sum of denominators is the mean over any set of bags.
    entropy: nats, and relative_entropy: over its maximum, the logarithm of the bag's size (0 for a bag of one).
    Of the bags that hold both kinds, with denominator 0 for others: instance_auc, how well attention separates the targets from the others,
    and instances_per_target, exp(entropy) over the number of targets: below 1 where attention leaves targets out.

  Gradient: none of use.
  """
  entropy_BxH = attention.attention_entropy(logits_BxHxK[:, :, None, :], mask_BxK[:, None, :])[..., 0]
  largest_B = jnp.log(masked.count(mask_BxK, axis=-1))
  several_B = largest_B > 0
  relative_BxH = jnp.where(several_B[:, None], entropy_BxH / jnp.where(several_B, largest_B, 1.0)[:, None], 0.0)
  wide = lambda x_BxK: jnp.broadcast_to(x_BxK[:, None, :], logits_BxHxK.shape)
  found = auc(logits_BxHxK, wide(is_target_BxK), wide(mask_BxK))
  both_B = found.den[:, 0] > 0
  targets_B = jnp.maximum(masked.count(is_target_BxK & mask_BxK, axis=-1), 1.0)

  def of(value_BxH: jax.Array, counted_B: jax.Array) -> Ratio:
    return Ratio(masked.zero(jnp.mean(value_BxH, axis=-1), counted_B), counted_B.astype(jnp.float32))

  return {
    'entropy': of(entropy_BxH, jnp.ones_like(both_B)),
    'relative_entropy': of(relative_BxH, jnp.ones_like(both_B)),
    'instance_auc': of(found.compute(), both_B),
    'instances_per_target': of(jnp.exp(entropy_BxH) / targets_B[:, None], both_B),
  }
