"""The replay buffer: the ring by hand and against a deque, age, uniform sampling, what is returned of too few rows, resuming."""

import collections
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.rollout import buffer as replay
from entropy_jax.training.checkpoints import Checkpoints
from entropy_jax.types import UserError

add = jax.jit(replay.add)
usable = jax.jit(replay.usable, static_argnames='max_age')
sample = jax.jit(replay.sample, static_argnums=2)


def rows(*names):
  """One row per number, of two leaves."""
  name = np.array(names, np.int32).reshape(-1)
  return {'name_B': name, 'old_logp_BxT': -np.stack([name, name + 0.5], axis=1).astype(np.float32)}


def filled(capacity, *batches):
  """A buffer after these batches, one a step."""
  buffer = replay.empty(rows(0), capacity)
  for step, names in enumerate(batches):
    buffer = add(buffer, rows(*names), step)
  return buffer


class TestEmpty:
  def test_takes_shapes_and_dtypes_from_the_example(self):
    example = {'x': jax.ShapeDtypeStruct((7, 2), jnp.bfloat16), 'mask': jax.ShapeDtypeStruct((7,), bool)}
    buffer = replay.empty(example, 3)
    assert buffer.rows['x'].shape == (3, 2) and buffer.rows['x'].dtype == jnp.bfloat16 and buffer.rows['mask'].dtype == bool
    assert buffer.capacity == 3 and not np.any(usable(buffer, 0))

  @pytest.mark.parametrize('capacity', [0, -1, 2.0, True])
  def test_refuses_other_capacities(self, capacity):
    with pytest.raises(UserError, match=f'capacity={capacity}'):
      replay.empty(rows(0), capacity)


class TestAdd:
  def test_ring_by_hand(self):
    # Capacity 3: 1 2 | 3 4 wraps, 4 overwrites 1 | 5 overwrites 2
    buffer = filled(3, [1, 2])
    assert buffer.rows['name_B'].tolist() == [1, 2, 0] and buffer.step_C.tolist() == [0, 0, -1] and int(buffer.next_slot) == 2
    buffer = filled(3, [1, 2], [3, 4])
    assert buffer.rows['name_B'].tolist() == [4, 2, 3] and buffer.step_C.tolist() == [1, 0, 1] and int(buffer.next_slot) == 1
    buffer = filled(3, [1, 2], [3, 4], [5])
    assert buffer.rows['name_B'].tolist() == [4, 5, 3] and buffer.step_C.tolist() == [1, 2, 1] and int(buffer.next_slot) == 2
    np.testing.assert_array_equal(buffer.rows['old_logp_BxT'], [[-4, -4.5], [-5, -5.5], [-3, -3.5]])

  def test_only_kept_rows_go_in(self):
    buffer = add(filled(3, [1]), rows(2, 3, 4), 1, np.array([False, True, False]))
    assert buffer.rows['name_B'].tolist() == [1, 3, 0] and buffer.step_C.tolist() == [0, 1, -1]
    chex.assert_trees_all_equal(add(buffer, rows(8, 9, 9), 2, np.zeros(3, bool)), buffer)  # none

  def test_more_rows_than_slots_leave_the_last(self):
    # 1 in slot 0, then 2..6 into 3 slots: the last three, 4 5 6, are numbers 2 3 4 of their batch, in slots (1 + 2, 3, 4) % 3
    buffer = add(filled(3, [1]), rows(2, 3, 4, 5, 6), 1)
    assert buffer.rows['name_B'].tolist() == [4, 5, 6] and int(buffer.next_slot) == (1 + 5) % 3

  def test_against_a_deque(self):
    rng = np.random.default_rng(0)
    buffer, oracle, names = replay.empty(rows(0), 5), collections.deque(maxlen=5), itertools.count(1)
    for step in range(40):
      batch, keep = [next(names) for _ in range(4)], rng.random(4) < 0.6
      buffer = add(buffer, rows(*batch), step, keep)
      oracle.extend((name, step) for name, kept in zip(batch, keep) if kept)
      found = [(n, s) for n, s in zip(buffer.rows['name_B'].tolist(), buffer.step_C.tolist()) if s >= 0]
      assert sorted(found) == sorted(oracle)

  def test_goes_through_scan(self):
    def one(buffer, step):
      return replay.add(buffer, {'name_B': step[None]}, step), None

    buffer, _ = jax.jit(lambda b: jax.lax.scan(one, b, jnp.arange(7)))(replay.empty({'name_B': jnp.zeros(1, jnp.int32)}, 4))
    assert buffer.rows['name_B'].tolist() == [4, 5, 6, 3] == buffer.step_C.tolist()

  def test_programming_errors(self):
    buffer = replay.empty(rows(0), 2)
    with pytest.raises(AssertionError, match='structs'):
      replay.add(buffer, {'name_B': np.zeros(1, np.int32)}, 0)
    with pytest.raises(AssertionError, match='does not go into'):
      replay.add(buffer, rows(1) | {'name_B': np.zeros(1, np.float32)}, 0)


class TestUsable:
  def test_age(self):
    buffer = filled(4, [1], [2], [3])  # steps 0, 1, 2 and an empty slot; at step 3 their ages are 3, 2, 1
    assert usable(buffer, 3, max_age=2).tolist() == [False, True, True, False]
    assert usable(buffer, 3, max_age=0).tolist() == [False] * 4
    assert usable(buffer, 2, max_age=0).tolist() == [False, False, True, False]  # of this very step
    assert usable(buffer, 10**6).tolist() == [True, True, True, False]


class TestClear:
  def test_is_empty_again(self):
    chex.assert_trees_all_equal(replay.clear(filled(3, [1, 2], [3, 4])), replay.empty(rows(0), 3))


class TestSample:
  def test_rows_stay_whole_and_come_once(self):
    buffer = filled(6, [1, 2, 3], [4, 5])
    for seed in range(20):
      found, valid = sample(buffer, jax.random.key(seed), 3, usable(buffer, 1))
      assert valid.all() and len(set(found['name_B'].tolist())) == 3 and 0 not in found['name_B']
      np.testing.assert_array_equal(found['old_logp_BxT'][:, 1], -(found['name_B'] + 0.5))

  def test_fewer_than_asked(self):
    buffer = filled(6, [1, 2], [3], [4])
    found, valid = sample(buffer, jax.random.key(0), 5, usable(buffer, 2, max_age=1))  # 3 and 4 are young enough
    assert valid.tolist() == [True, True, False, False, False] and sorted(found['name_B'].tolist()) == [0, 0, 0, 3, 4]
    assert found['name_B'][2:].tolist() == [0, 0, 0] and not np.any(found['old_logp_BxT'][2:])

  def test_none(self):
    buffer = filled(3, [1, 2, 3])
    found, valid = sample(buffer, jax.random.key(0), 2, jnp.zeros(3, bool))
    assert not valid.any() and not found['name_B'].any()

  def test_every_subset_is_equally_likely(self):
    # 2 of the 4 usable of 6 slots: 6 subsets, 6,000 draws; chi-square with 5 degrees of freedom exceeds 20.5 with probability 0.001
    buffer = filled(6, [1, 2, 3, 4, 5])
    wanted = usable(buffer, 0) & (buffer.rows['name_B'] != 3)
    draw = functools.partial(replay.sample, buffer, num=2, usable_C=wanted)
    found, _ = jax.jit(jax.vmap(lambda key: draw(key)))(jax.random.split(jax.random.key(1), 6000))
    counts = collections.Counter(tuple(sorted(pair)) for pair in found['name_B'].tolist())
    assert set(counts) == set(itertools.combinations([1, 2, 4, 5], 2))
    assert sum((n - 1000) ** 2 / 1000 for n in counts.values()) < 20.5
    # The first place is no favourite's either: 4 rows, 3 degrees of freedom, 16.3.
    first = np.bincount(found['name_B'][:, 0], minlength=6)[[1, 2, 4, 5]]
    assert ((first - 1500) ** 2 / 1500).sum() < 16.3

  @pytest.mark.parametrize('num', [0, 4, 1.0])
  def test_refuses_other_numbers(self, num):
    buffer = filled(3, [1])
    with pytest.raises(UserError, match=rf'num={num} is not a whole number in 1\.\.3'):
      replay.sample(buffer, jax.random.key(0), num, usable(buffer, 0))


class TestCheckpoint:
  def test_goes_on_as_if_never_saved(self, tmp_path):
    def go_on(buffer):
      for step in (2, 3):
        found, _ = sample(buffer, jax.random.key(step), 4, usable(buffer, step, max_age=2))
        buffer = add(buffer, found, step)
      return buffer

    before = filled(5, [1, 2], [3, 4])
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, {'buffer': before}, {})
    _, restored, _ = checkpoints.restore_latest({'buffer': replay.empty(rows(0), 5)})
    checkpoints.close()
    chex.assert_trees_all_equal(restored['buffer'], before)
    chex.assert_trees_all_equal(go_on(restored['buffer']), go_on(before))
    assert 0 < int(jnp.sum(before.step_C >= 0)) < 5  # an empty slot was among what was saved
