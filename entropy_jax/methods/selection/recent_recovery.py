"""Recent sample recovery: informative groups that one training step has no room for are trained on in the next.

`dynamic_sampling` draws until it has N informative prompts and throws the rest away; here the rest waits in a pool, first in, first out.
The pool is a pytree of arrays of fixed shape and its functions are pure, so it stands in the state that a checkpoint saves, and a step
that is broken off has changed nothing. `collect` is the loop of a training step on the host, between generation and training.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from entropy_jax import transform
from entropy_jax.methods.selection.dynamic_sampling import informative_B
from entropy_jax.types import PyTree, UserError


class GroupPool(struct.PyTreeNode):
  """C places for groups of G responses; the first `num` hold groups, in order of arrival.

  Attributes:
    rows: pytree of [C, G, ...], zeros in empty places.
    serial_C: int32, the number that each group got when it arrived, from 0; -1 in empty places. No number comes twice.
    step_C: int32, training step in which the group was sampled, -1 in empty places.
    num: int32, groups in the pool.
    num_arrived: int32, groups ever added.
    num_lost: int32, groups ever dropped because the pool was full.
  """

  rows: PyTree
  serial_C: jax.Array
  step_C: jax.Array
  num: jax.Array
  num_arrived: jax.Array
  num_lost: jax.Array

  @property
  def capacity(self) -> int:
    return self.serial_C.shape[0]


def empty_pool(example: PyTree, capacity: int) -> GroupPool:
  """A pool without groups.

  Args:
    example: one group, [G, ...] in every leaf; may be abstract, its values are not read. Keep the reward and the behaviour log-probs
      among the leaves: advantages are computed from stored rewards, and the groups of an earlier step are off-policy.
    capacity: C. N + P - 1, for N groups a step of P a generation batch, is enough for ever where `collect` draws when short; where it
      always draws, what does not fit is lost, oldest first, and counted.
  """
  transform.check_range('recent_recovery', 'capacity', capacity, '[1, inf)')
  if capacity != int(capacity):
    raise UserError(f'recent_recovery: capacity={capacity!r} is no whole number; give an integer from 1.')
  rows = jax.tree.map(lambda x: jnp.zeros((int(capacity), *x.shape), x.dtype), example)
  none_C, zero = jnp.full((int(capacity),), -1, jnp.int32), jnp.zeros((), jnp.int32)
  return GroupPool(rows, none_C, none_C, zero, zero, zero)


def add_groups(pool: GroupPool, rows: PyTree, keep_P: jax.Array, step: jax.Array | int) -> GroupPool:
  """The pool with the kept groups of one generation batch behind what it holds, in their order; where it is full, the oldest are lost.

  Args:
    pool: before.
    rows: pytree of [P, G, ...].
    keep_P: bool, which groups to add: the informative ones.
    step: int32, the training step.
  """
  chex.assert_trees_all_equal_structs(rows, pool.rows)
  C, P = pool.capacity, keep_P.shape[0]
  arrived = jnp.sum(keep_P, dtype=jnp.int32)
  # All groups in order of arrival: those of the pool in places 0.., then the kept ones.
  place_P = jnp.where(keep_P, pool.num + jnp.cumsum(keep_P, dtype=jnp.int32) - 1, C + P)
  lost = jnp.maximum(pool.num + arrived - C, 0)

  def line(old: jax.Array, new: jax.Array, fill: int) -> jax.Array:
    assert old.shape[1:] == new.shape[1:] and old.dtype == new.dtype, f'{new.dtype}{new.shape} does not go into {old.dtype}{old.shape}'
    tail = jnp.full((P, *old.shape[1:]), fill, old.dtype)
    long = jnp.concatenate([old, tail]).at[place_P].set(new, mode='drop')
    return jax.lax.dynamic_slice_in_dim(long, lost, C)

  serial_P = pool.num_arrived + jnp.cumsum(keep_P, dtype=jnp.int32) - 1
  return GroupPool(
    rows=jax.tree.map(lambda old, new: line(old, new, 0), pool.rows, rows),
    serial_C=line(pool.serial_C, serial_P, -1),
    step_C=line(pool.step_C, jnp.full((P,), step, jnp.int32), -1),
    num=jnp.minimum(pool.num + arrived, C),
    num_arrived=pool.num_arrived + arrived,
    num_lost=pool.num_lost + lost,
  )


def take_groups(pool: GroupPool, num: int) -> tuple[PyTree, jax.Array, jax.Array, GroupPool]:
  """The `num` groups that arrived first, and the pool without them; it must hold as many.

  Returns:
    (rows [num, G, ...], serial [num], step [num], pool).
  """
  taken = jax.tree.map(lambda x: x[:num], (pool.rows, pool.serial_C, pool.step_C))

  def rest(x: jax.Array, fill: int) -> jax.Array:
    return jnp.concatenate([x[num:], jnp.full((min(num, len(x)), *x.shape[1:]), fill, x.dtype)])

  after = pool.replace(
    rows=jax.tree.map(lambda x: rest(x, 0), pool.rows),
    serial_C=rest(pool.serial_C, -1),
    step_C=rest(pool.step_C, -1),
    num=pool.num - num,
  )
  return *taken, after


class Recovered(NamedTuple):
  """The batch of one training step.

  Attributes:
    rows: [N G, ...], the responses of a prompt in succession.
    group_B: int32, prompts numbered from 0 in order of arrival.
    serial_N: int32, the groups' numbers in the pool; none comes a second time in a run.
    step_N: int32, the training step in which each group was sampled; older than now for recovered ones.
    num_batches: generation batches drawn in this step.
    informative_fraction: informative groups over all that were drawn in this step; NaN where none was.
  """

  rows: PyTree
  group_B: np.ndarray
  serial_N: np.ndarray
  step_N: np.ndarray
  num_batches: int
  informative_fraction: float


_add = jax.jit(add_groups)
_take = jax.jit(take_groups, static_argnums=1)
_informative = jax.jit(informative_B)


def collect(
  pool: GroupPool,
  draw: Callable[[], tuple[PyTree, Any]],
  *,
  num_groups: int,
  step: int,
  draws: str = 'always',
  max_num_batches: int = 0,
) -> tuple[Recovered, GroupPool]:
  """The training batch of one step: what the pool holds, then generation batches until there are enough informative groups.

  Args:
    pool: from the previous step; unchanged if this one is broken off.
    draw: makes the next generation batch, (rows [P, G, ...], metric [P, G]); a group is informative where the metric differs in it.
    num_groups: N, groups of a training batch, at most the pool's capacity.
    step: the training step now.
    draws: 'always', at least one generation batch a step, so that a step never trains on old groups alone unless N of them wait (the
      paper), or 'when_short', none where the pool already holds enough.
    max_num_batches: generation batches after which too few groups are an error; 0 or less for no limit.

  Returns:
    (the batch, the pool for the next step).

  Raises:
    UserError: too few groups after max_num_batches, or a pool smaller than num_groups.

  Limits: exactly `dynamic_sampling` when the pool is emptied after every step. No importance correction is made for recovered groups. With
    several processes give `draw` the rows of all of them.
  Reference: Confucius3-Math: A Lightweight High-Performance Reasoning LLM for Chinese K-12 Mathematics Learning, recent sample recovery.
    No code was released; what the paper does with an overflow larger than a batch is not said.
  """
  transform.check_range('recent_recovery', 'num_groups', num_groups, '[1, inf)')
  transform.check_range('recent_recovery', 'draws', draws, 'always | when_short')
  if num_groups > pool.capacity:
    raise UserError(f'recent_recovery: num_groups={num_groups} exceeds the capacity {pool.capacity} of the pool; make the pool larger.')
  num_batches = num_seen = num_kept = 0
  have = int(jax.device_get(pool.num))
  while have < num_groups or (draws == 'always' and num_batches == 0):
    if 0 < max_num_batches <= num_batches:
      raise UserError(
        f'recent_recovery: after {num_batches} generation batches there are {have} informative groups of num_groups={num_groups}; raise '
        f'max_num_batches={max_num_batches} (0 is no limit), or give prompts that are neither always nor never solved.'
      )
    rows, metric = draw()
    metric_PxG = np.asarray(metric, np.float32)
    P, G = metric_PxG.shape
    group_P = np.arange(P, dtype=np.int32)
    keep_P = jax.device_get(_informative(*jax.device_put((metric_PxG.ravel(), np.repeat(group_P, G))))).reshape(P, G)[:, 0]
    pool = _add(pool, *jax.device_put((rows, keep_P, np.int32(step))))
    num_batches, num_seen, num_kept = num_batches + 1, num_seen + P, num_kept + int(np.sum(keep_P))
    have = int(jax.device_get(pool.num))
  *taken, pool = _take(pool, num_groups)
  rows, serial_N, step_N = jax.device_get(taken)
  group_size = jax.tree.leaves(rows)[0].shape[1]
  batch = Recovered(
    rows=jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows),
    group_B=np.repeat(np.arange(num_groups, dtype=np.int32), group_size),
    serial_N=serial_N,
    step_N=step_N,
    num_batches=num_batches,
    informative_fraction=num_kept / num_seen if num_seen else float('nan'),
  )
  return batch, pool
