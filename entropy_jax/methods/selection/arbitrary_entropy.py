"""Arbitrary entropy policy optimisation: hold the entropy at a target by imitating correct responses of another temperature.

    temperature = next_temperature(entropy)                 # entropy: the estimate of the previous step, 0 at the start
    extra       = responses to the first quarter of the prompts, sampled at that temperature
    batch, m    = replace_rows(batch, extra, advantage of extra, entropy)
    (the caller scores all rows at temperature 1 and puts that into old_logp_BxT and old_entropy_BxT)
    entropy     = policy.monte_carlo_entropy(batch.old_logp_BxT, batch.mask_BxT).compute()

Correct responses that were sampled hotter than the policy lie where it is less sure than its own; to raise their probability raises the
entropy, and with colder ones it falls. The controller is two comparisons with the target, so its state is the one number `entropy`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import masked
from entropy_jax.types import Metrics, PyTree, TokenBatch, UserError

INITIAL_ENTROPY = 0.0  # before the first step: the first extra responses are hot


def next_temperature(
  entropy: jax.Array | float, *, target: float = 0.5, high: float = 1.2, low: float = 0.8
) -> jax.Array:
  """The temperature of the extra responses: high where the entropy is at or below the target, low where it is above.

  Args:
    entropy: float32 scalar, nats, of the previous step.
    target: H*, nats.
    high: > 1.
    low: in (0, 1).

  >>> [round(float(next_temperature(h)), 2) for h in (.3, .5, .6)]
  [1.2, 1.2, 0.8]
  """
  transform.check_range('arbitrary_entropy', 'target', target, '[0, inf)')
  transform.check_range('arbitrary_entropy', 'high', high, '[1, inf)')
  transform.check_range('arbitrary_entropy', 'low', low, '(0, 1]')
  return jnp.where(jnp.asarray(entropy, jnp.float32) <= target, jnp.float32(high), jnp.float32(low))


def num_imitated(
  num_kept: jax.Array, entropy: jax.Array | float, *, target: float = 0.5, most: int = 60
) -> jax.Array:
  """How many rows are replaced, n = min(most, kept), and floor(n / 2) where the entropy is above the target, int32.

  >>> [int(num_imitated(jnp.int32(kept), h)) for kept, h in ((7, .3), (7, .6), (90, .5), (0, .3))]
  [7, 3, 60, 0]
  """
  transform.check_range('arbitrary_entropy', 'most', most, '[0, inf)')
  n = jnp.minimum(num_kept, most).astype(jnp.int32)
  return jnp.where(jnp.asarray(entropy, jnp.float32) > target, n // 2, n)


def _first_rows(batch: TokenBatch, extra: TokenBatch) -> tuple[PyTree, PyTree]:
  """The per-sequence arrays of both, which must be the same ones with rows of the same shape."""

  def of(one: TokenBatch) -> dict[str, PyTree]:
    names = {f.name for f in dataclasses.fields(one)} - {'key', 'imitated_B', 'advantage_BxT'}
    return {name: getattr(one, name) for name in sorted(names) if getattr(one, name) is not None}

  mine, theirs = of(batch), of(extra)
  paths = [[path for path, _ in jax.tree_util.tree_leaves_with_path(one)] for one in (mine, theirs)]
  if paths[0] != paths[1]:
    only = sorted(mine.keys() ^ theirs.keys()) or 'other statistics'
    raise UserError(f'arbitrary_entropy: the batch and the extra responses do not hold the same fields ({only}); fill them the same way.')
  for name, x, y in zip(mine, mine.values(), theirs.values()):
    if any(a.shape[1:] != b.shape[1:] for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y))):
      raise UserError(f'arbitrary_entropy: {name} has rows of another shape in the extra responses; pad both to the same lengths.')
  return mine, theirs


def replace_rows(
  batch: TokenBatch,
  extra: TokenBatch,
  extra_advantage_B: jax.Array,
  entropy: jax.Array | float,
  *,
  target: float = 0.5,
  most: int = 60,
  above: float = 0.05,
) -> tuple[TokenBatch, Metrics]:
  """Puts the n first correct extra responses in the places of the n first rows: kept[:n] ++ batch[n:].

  Args:
    batch: B ordinary responses, sampled at temperature 1; advantage_BxT may be set.
    extra: M responses sampled at `next_temperature`, with the same fields and lengths; sequence_B, where it is set, must name no
      row of the batch.
    extra_advantage_B: float32 [M], GRPO's advantage of the extra responses among themselves; above `above` a row may be imitated.
    entropy: of the previous step, as given to `next_temperature`.
    target, most: as `num_imitated`.
    above: a row is kept where its advantage exceeds this.

  Returns:
    (batch, metrics). The batch has B rows, imitated_B set, True in the n first rows, and, where it had advantages, 1 on the tokens of
    these rows. Their groups are their own, of one row each, numbered below all others, so that they enter no other group's mean. Metrics:
    num_kept, num_imitated, and entropy_error, the entropy minus the target.

  The behaviour scores are still those of the sampling: old_logp_BxT of an imitated row belongs to another temperature. Before the update
  the caller must score all rows at temperature 1 (`rollout.score`) and replace old_logp_BxT and old_entropy_BxT, so that every ratio
  starts at 1: the method has no importance weight for the temperature.

  Gradient: none.
  Limits: the batch itself where no extra row is kept. Prompts that are never solved contribute nothing. With the base advantage left to the
    objective, what remains of a group of which rows were replaced is compared within itself; give advantage_BxT, of the whole groups,
    to have it as released.
  Reference: Wang et al., Arbitrary Entropy Policy Optimization: Entropy Is Controllable in Reinforcement Fine-tuning, arXiv 2510.08141.
  Differs: the released code fails where no row is kept.
  """
  mine, theirs = _first_rows(batch, extra)
  B, M = batch.group_B.shape[0], extra.group_B.shape[0]
  keep_M = jax.lax.stop_gradient(extra_advantage_B) > above
  num_kept = jnp.sum(keep_M, dtype=jnp.int32)
  n = jnp.minimum(num_imitated(num_kept, entropy, target=target, most=most), B)
  place_B = jnp.arange(B, dtype=jnp.int32)
  imitated_B = place_B < n
  source_B = jnp.argsort(~keep_M, stable=True)[jnp.minimum(place_B, M - 1)]  # the kept rows in their order, then the others

  def put(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(imitated_B.reshape((B,) + (1,) * (x.ndim - 1)), y[source_B], x)

  fields = jax.tree.map(put, mine, theirs)
  own_group_B = jnp.min(batch.group_B) - 1 - place_B
  fields['group_B'] = jnp.where(imitated_B, own_group_B, batch.group_B)
  advantage_BxT = batch.advantage_BxT
  if advantage_BxT is not None:
    ones_BxT = masked.zero(jnp.ones_like(advantage_BxT), fields['mask_BxT'])
    advantage_BxT = jnp.where(imitated_B[:, None], ones_BxT, advantage_BxT)
  metrics = {
    'num_kept': num_kept.astype(jnp.float32),
    'num_imitated': n.astype(jnp.float32),
    'entropy_error': jnp.asarray(entropy, jnp.float32) - target,
  }
  return batch.replace(**fields, imitated_B=imitated_B, advantage_BxT=advantage_BxT), metrics
