"""A replay buffer of fixed shape: a ring of rows that remembers the training step in which each row was made.

It is a pytree of arrays and the functions are pure, so a buffer goes through `jit` and `lax.scan`, is updated on the device, and is
checkpointed with the state that it stands in. A row is whatever the caller gives, one entry of every leaf's leading axis: keep the
behaviour log-probs among them (`old_logp_BxT`), because replayed rows are off-policy and the ratio is to the policy that sampled them.
"""

import chex
import jax
import jax.numpy as jnp
from flax import struct

from entropy_jax.types import PyTree, UserError


class ReplayBuffer(struct.PyTreeNode):
  """C slots, of which the filled ones hold the newest rows that were added.

  Attributes:
    rows: pytree of [C, ...], zeros in slots that were never filled.
    step_C: int32, the training step given when the slot was filled, -1 in an empty slot.
    next_slot: int32, the slot that the next row goes to: the oldest one once the ring is full.
  """

  rows: PyTree
  step_C: jax.Array
  next_slot: jax.Array

  @property
  def capacity(self) -> int:
    return self.step_C.shape[0]


def empty(example: PyTree, capacity: int) -> ReplayBuffer:
  """A buffer without rows.

  Args:
    example: rows as `add` will get them, [B, ...] in every leaf for any B; may be abstract. Their values are not read.
    capacity: C, at least 1.

  >>> buffer = empty({'reward_B': jnp.zeros(2)}, 3)
  >>> buffer = add(buffer, {'reward_B': jnp.array([5., 6.])}, 0)
  >>> buffer.rows['reward_B'].tolist(), buffer.step_C.tolist()
  ([5.0, 6.0, 0.0], [0, 0, -1])
  """
  if not isinstance(capacity, int) or isinstance(capacity, bool) or capacity < 1:
    raise UserError(f'replay buffer: capacity={capacity!r} is not a whole number of at least 1; give one.')
  rows = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype), example)
  return ReplayBuffer(rows, jnp.full((capacity,), -1, jnp.int32), jnp.zeros((), jnp.int32))


def add(buffer: ReplayBuffer, rows: PyTree, step: jax.Array | int, keep_B: jax.Array | None = None) -> ReplayBuffer:
  """The buffer with these rows in it, in their order, the oldest of the ring overwritten.

  Args:
    buffer: before.
    rows: pytree of [B, ...] with the structure, dtypes and trailing shapes of the buffer's.
    step: int32 scalar >= 0, the training step that the rows belong to, not smaller than in earlier calls.
    keep_B: bool [B], rows to add; None for all. Of more than C such rows the last C remain.
  """
  chex.assert_trees_all_equal_structs(rows, buffer.rows)
  new, old = jax.tree.leaves(rows), jax.tree.leaves(buffer.rows)
  for x, slots in zip(new, old):
    assert (x.shape[1:], x.dtype) == (slots.shape[1:], slots.dtype), f'{x.dtype}{x.shape} does not go into {slots.dtype}{slots.shape}'
  num_rows = new[0].shape[0]
  keep = jnp.ones((num_rows,), bool) if keep_B is None else keep_B
  place = jnp.cumsum(keep, dtype=jnp.int32) - 1  # of each kept row among the kept
  total = jnp.sum(keep, dtype=jnp.int32)
  # Every slot is written at most once, so the scatter has one outcome: rows that a later one would overwrite go nowhere, like the rest.
  stays = keep & (place >= total - buffer.capacity)
  slot = jnp.where(stays, (buffer.next_slot + place) % buffer.capacity, buffer.capacity)
  written = jax.tree.map(lambda slots, x: slots.at[slot].set(x, mode='drop'), buffer.rows, rows)
  step_C = buffer.step_C.at[slot].set(jnp.asarray(step, jnp.int32), mode='drop')
  return ReplayBuffer(written, step_C, (buffer.next_slot + total) % buffer.capacity)


def usable(buffer: ReplayBuffer, step: jax.Array | int, *, max_age: int | None = None) -> jax.Array:
  """bool [C]: slots that hold a row of age step - step_C <= max_age; None for any age.

  A row that is too old stays in its slot until the ring comes round, and is never sampled.
  """
  filled_C = buffer.step_C >= 0
  return filled_C if max_age is None else filled_C & (step - buffer.step_C <= max_age)


def clear(buffer: ReplayBuffer) -> ReplayBuffer:
  """The buffer as `empty` makes it."""
  return ReplayBuffer(
    jax.tree.map(jnp.zeros_like, buffer.rows), jnp.full_like(buffer.step_C, -1), jnp.zeros_like(buffer.next_slot)
  )


def sample(buffer: ReplayBuffer, key: jax.Array, num: int, usable_C: jax.Array) -> tuple[PyTree, jax.Array]:
  """`num` rows drawn without replacement, every subset of the usable rows equally likely.

  Args:
    buffer: where from; it is left as it is.
    key: PRNG key.
    num: rows to return, in 1..C.
    usable_C: bool [C], from `usable`, and'ed with what else a row must fulfil (a reward above the baseline of now).

  Returns:
    (rows [num, ...], valid [num] bool). Of fewer usable rows than num all are returned, in the first places; the places that remain hold
    zeros and are not valid, so that they drop out of every mean once the mask of a row is and'ed with it.

  Reference: Qin et al., Learn the Ropes, Then Trust the Wins: Self-imitation with Progressive Exploration for Agentic Reinforcement
    Learning (SPEAR), arXiv 2509.22601, whose replay draws a random subset of the rows of at most max_age steps.
  """
  if not isinstance(num, int) or isinstance(num, bool) or not 1 <= num <= buffer.capacity:
    allowed = f'a whole number in 1..{buffer.capacity}, the capacity'
    raise UserError(f'replay buffer: num={num!r} is not {allowed}; give one, or a larger capacity.')
  # Usable slots first, each part in a random order: integers only, so there are no ties that would favour a slot.
  order_C = jax.random.permutation(key, buffer.capacity)
  chosen = order_C[jnp.argsort(~usable_C[order_C], stable=True)][:num]
  valid = usable_C[chosen]

  def take(slots: jax.Array) -> jax.Array:
    return jnp.where(valid.reshape((num,) + (1,) * (slots.ndim - 1)), slots[chosen], jnp.zeros((), slots.dtype))

  return jax.tree.map(take, buffer.rows), valid
