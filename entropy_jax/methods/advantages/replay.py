"""Self-imitation: what was once better than the policy usually is now is imitated again. The baseline is the median over the history of
groups, not the group's own mean, because a replayed response has no group of fresh ones beside it.

SPEAR's chain for replayed rows, marked in `TokenBatch.imitated_B` and scored against the policy that sampled them: an advantage such as
`dr_grpo`, then `self_imitation_replay`; the weights `self_imitation_warmup` and clip_cov(fraction=0.02, cov_low=1, cov_high=40,
clip_low=0.2, clip_high=0.28); the surrogate ppo_clip(low=0.2, high=0.28, dual_clip=10).
"""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import groups, masked, selection
from entropy_jax.types import Metrics, Planned, PyTree, Ratio

_EPSILON = 1e-6  # beside the median standard deviation


def empty_history(*, history: int = 10240) -> PyTree:
  """No group seen yet: means and deviations of the last `history` groups, in a ring, and how many groups there have been."""
  zeros = jnp.zeros(int(history), jnp.float32)
  return {'means': zeros, 'deviations': zeros, 'num_groups': jnp.int32(0)}


def push_groups(state: PyTree, return_B: jax.Array, group_B: jax.Array, counted_B: jax.Array) -> PyTree:
  """The history with the mean and the standard deviation (ddof 1) of every group that has a counted row, over its counted rows.

  Args:
    state: what `empty_history` made.
    return_B: float32 [B].
    group_B: int [B], prompt ids.
    counted_B: bool [B].

  Returns:
    the state, of the same structure; groups enter in the order of their ids and push out the oldest.

  >>> state = push_groups(empty_history(history=3), jnp.array([1., 0., 5., 2.]), jnp.array([9, 9, 4, 9]), jnp.array([True] * 4))
  >>> state['means'].tolist(), int(state['num_groups'])             # group 4, then group 9: (1 + 0 + 2) / 3
  ([5.0, 1.0, 0.0], 2)
  """
  capacity, num_rows = state['means'].shape[0], return_B.shape[0]
  num_B = groups.sum(counted_B.astype(jnp.float32), group_B)
  mean_B = Ratio(groups.sum(jnp.where(counted_B, return_B, 0.0), group_B), num_B).compute()
  smallest_B = groups.min(jnp.where(counted_B, return_B, jnp.inf), group_B)
  equal_B = groups.max(jnp.where(counted_B, return_B, -jnp.inf), group_B) == smallest_B
  mean_B = jnp.where(equal_B, smallest_B, mean_B)  # the rounding of a mean would put equal rewards above it
  squares_B = groups.sum(jnp.where(counted_B, (return_B - mean_B) ** 2, 0.0), group_B)
  deviation_B = jnp.sqrt(Ratio(squares_B, jnp.maximum(num_B - 1.0, 0.0)).compute())

  row_B = jnp.arange(num_rows, dtype=jnp.int32)
  first_B = counted_B & (groups.min(jnp.where(counted_B, row_B, num_rows), group_B) == row_B)  # one row speaks for its group
  rank_B = jnp.zeros(num_rows, jnp.int32).at[jnp.lexsort((group_B, ~first_B))].set(row_B)
  num_new = jnp.sum(first_B, dtype=jnp.int32)
  enters_B = first_B & (rank_B >= num_new - capacity)
  place_B = jnp.where(enters_B, (state['num_groups'] + rank_B) % capacity, capacity)  # beyond the end: dropped
  return {
    'means': state['means'].at[place_B].set(mean_B, mode='drop'),
    'deviations': state['deviations'].at[place_B].set(deviation_B, mode='drop'),
    'num_groups': state['num_groups'] + num_new,
  }


def _median(x: jax.Array, num_groups: jax.Array) -> jax.Array:
  return selection.quantile(x, jnp.arange(x.shape[0]) < num_groups, 0.5)


def _remembered(state: PyTree, normalize: bool) -> tuple[Planned, PyTree, Metrics]:
  baseline = _median(state['means'], state['num_groups'])
  scale = _median(state['deviations'], state['num_groups']) + _EPSILON if normalize else jnp.float32(1.0)
  return {'baseline': baseline, 'scale': scale}, state, {'baseline': baseline}


def remember_groups(
  state: PyTree, return_B: jax.Array, group_B: jax.Array, mask_BxT: jax.Array, *, normalize: bool = False
) -> tuple[Planned, PyTree, Metrics]:
  """Puts every group of the batch into the history, then reads the medians off it."""
  return _remembered(push_groups(state, return_B, group_B, jnp.any(mask_BxT, axis=1)), normalize)


def remember_fresh_groups(
  state: PyTree, return_B: jax.Array, group_B: jax.Array, mask_BxT: jax.Array, imitated_B: jax.Array, *, normalize: bool = False
) -> tuple[Planned, PyTree, Metrics]:
  """Puts what was sampled for this batch, not what is replayed, into the history, then reads the medians off it."""
  return _remembered(push_groups(state, return_B, group_B, jnp.any(mask_BxT, axis=1) & ~imitated_B), normalize)


def self_imitation_advantage(
  return_B: jax.Array, mask_BxT: jax.Array, baseline: jax.Array, scale: jax.Array
) -> tuple[jax.Array, Metrics]:
  """How far a response beats the median of the history, A = max(R - P50(group means), 0): only what is better is learnt.

  Args:
    return_B: float32 [B].
    mask_BxT: bool [B, T].
    baseline, scale: float32 scalars, remembered: P50 of the mean rewards of the last `history` groups, this batch's included; and 1, or
      P50 of their standard deviations plus 1e-6.
    normalize: divides A by the second.
    history: whole number of groups, at least 1.

  Returns:
    (A >= 0, float32 [B], metrics: baseline, imitated_fraction).

  Gradient: none, advantages are planned.
  Limits: all 0 where no response beats the median. There is nothing negative: entropy falls faster than under a group's own mean.
  Reference: Qin et al., Learn the Ropes, Then Trust the Wins: Self-imitation with Progressive Exploration for Agentic Reinforcement
    Learning, arXiv 2509.22601 (SPEAR).
  Differs: SPEAR takes it for a buffer of old responses, in updates of its own, and removes what is not positive; here every response of
    the batch is judged, and what is not positive has advantage 0 but still counts in the number of tokens.

  >>> A, _ = self_imitation_advantage(jnp.array([1., 0.]), jnp.ones((2, 1), bool), jnp.float32(.25), jnp.float32(1.))
  >>> A.tolist()                                              # P50 of (0, 0, .5, 1) is .25
  [0.75, 0.0]
  """
  advantage_B = jnp.maximum(return_B - baseline, 0.0) / scale
  imitated = masked.mean((advantage_B > 0.0).astype(jnp.float32), jnp.any(mask_BxT, axis=1))
  return advantage_B, {'imitated_fraction': imitated}


def self_imitation_replay_advantage(
  advantage_BxT: jax.Array,
  return_B: jax.Array,
  imitated_B: jax.Array,
  mask_BxT: jax.Array,
  baseline: jax.Array,
  scale: jax.Array,
  *,
  decay: float | None = None,
) -> tuple[jax.Array, Metrics]:
  """Gives replayed responses the self-imitation advantage, max(R - P50(group means), 0), and leaves fresh ones as they are.

  Args:
    advantage_BxT: float32 [B, T], of the transform before it in the chain, or as the batch brings it.
    return_B: float32 [B].
    imitated_B: bool [B], the replayed rows.
    mask_BxT: bool [B, T].
    baseline, scale: float32 scalars, remembered as in `self_imitation_advantage`, from fresh rows alone.
    decay: None, or d in (0, 1]: replayed rows keep d times the advantage that they come with.
    normalize, history: as in `self_imitation_advantage`.

  Returns:
    (A, float32 [B, T], metrics: baseline, imitated_fraction, the fraction of replayed rows with A > 0).

  Gradient: none, advantages are planned.
  Limits: without replayed rows it changes nothing. Before any fresh group was seen the baseline is 0.
  Reference: Qin et al., arXiv 2509.22601 (SPEAR).
  Differs: SPEAR makes updates of replayed rows alone: give a batch whose rows are all marked, and the history stays. A group's median is
    over what the rewards were when it was seen, shaped rewards included.

  >>> A, R, marked, mask = jnp.full((3, 1), -.5), jnp.array([1., 0., 0.]), jnp.array([True, True, False]), jnp.ones((3, 1), bool)
  >>> self_imitation_replay_advantage(A, R, marked, mask, jnp.float32(.25), jnp.float32(1.))[0][:, 0].tolist()
  [0.75, 0.0, -0.5]
  """
  if decay is None:
    replayed_BxT = jnp.broadcast_to((jnp.maximum(return_B - baseline, 0.0) / scale)[:, None], advantage_BxT.shape)
  else:
    replayed_BxT = decay * advantage_BxT
  used_B = jnp.any(mask_BxT & (replayed_BxT > 0.0), axis=1)
  imitated = masked.mean(used_B.astype(jnp.float32), imitated_B & jnp.any(mask_BxT, axis=1))
  return jnp.where(imitated_B[:, None], replayed_BxT, advantage_BxT), {'imitated_fraction': imitated}


self_imitation = transform.advantage(
  'self_imitation', self_imitation_advantage, init=empty_history, remember=remember_groups, history='[1, inf)'
)
self_imitation_replay = transform.advantage(
  'self_imitation_replay',
  self_imitation_replay_advantage,
  init=empty_history,
  remember=remember_fresh_groups,
  decay='(0, 1]',
  history='[1, inf)',
)
