"""Recent sample recovery against a plain list: order, no group twice, nothing lost, checkpoints, and dynamic sampling as its limit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.methods import selection
from entropy_jax.methods.selection import recent_recovery as rsr
from entropy_jax.training.checkpoints import Checkpoints
from entropy_jax.types import UserError

G, P = 3, 5
EXAMPLE = {'name': jnp.zeros((G, 2), jnp.int32), 'reward': jnp.zeros((G,))}
add = jax.jit(rsr.add_groups)
take = jax.jit(rsr.take_groups, static_argnums=1)


class Stream:
  """Generation batches of P groups of G with names (group, member); each group is informative with probability `rate`."""

  def __init__(self, seed, rate=0.6):
    self.rng, self.rate, self.made, self.informative = np.random.default_rng(seed), rate, 0, []

  def __call__(self):
    group = np.arange(self.made, self.made + P)
    self.made += P
    mixed = self.rng.uniform(size=P) < self.rate
    reward = np.where(mixed[:, None], [1.0, 0.0, 1.0], self.rng.integers(0, 2, (P, 1))).astype(np.float32)
    self.informative += group[mixed].tolist()
    name = np.stack([np.repeat(group[:, None], G, axis=1), np.tile(np.arange(G), (P, 1))], axis=2).astype(np.int32)
    return {'name': name, 'reward': reward}, reward


def names(batch):
  """The group of each G rows of a batch, whose members must stand in their order."""
  rows = batch.rows['name'].reshape(-1, G, 2)
  np.testing.assert_array_equal(rows[:, :, 1], np.tile(np.arange(G), (len(rows), 1)))
  assert np.all(rows[:, :, 0] == rows[:, :1, 0])
  return rows[:, 0, 0].tolist()


class TestAddGroups:
  def test_order_and_serials(self):
    rows, _ = Stream(0)()
    pool = add(rsr.empty_pool(EXAMPLE, 6), rows, jnp.array([True, False, True, True, False]), 4)
    pool = add(pool, rows, jnp.array([False, False, False, True, False]), 5)
    np.testing.assert_array_equal(pool.rows['name'][:, 0, 0], [0, 2, 3, 3, 0, 0])
    np.testing.assert_array_equal(pool.serial_C, [0, 1, 2, 3, -1, -1])
    np.testing.assert_array_equal(pool.step_C, [4, 4, 4, 5, -1, -1])
    assert (int(pool.num), int(pool.num_arrived), int(pool.num_lost)) == (4, 4, 0)

  def test_a_full_pool_loses_the_oldest_and_counts_them(self):
    rows, _ = Stream(0)()
    pool = add(rsr.empty_pool(EXAMPLE, 4), rows, jnp.array([True, True, False, True, False]), 0)
    pool = add(pool, rows, jnp.ones(5, bool), 1)  # more than it holds
    np.testing.assert_array_equal(pool.rows['name'][:, 0, 0], [1, 2, 3, 4])
    np.testing.assert_array_equal(pool.serial_C, [4, 5, 6, 7])
    assert (int(pool.num), int(pool.num_arrived), int(pool.num_lost)) == (4, 8, 4)

  def test_foreign_rows(self):
    with pytest.raises(AssertionError, match='does not go into'):
      rsr.add_groups(rsr.empty_pool(EXAMPLE, 4), {'name': np.zeros((P, G, 3), np.int32), 'reward': np.zeros((P, G))}, np.ones(P, bool), 0)


class TestTakeGroups:
  def test_first_in_first_out(self):
    rows, _ = Stream(0)()
    pool = add(rsr.empty_pool(EXAMPLE, 7), rows, jnp.ones(5, bool), 2)
    taken, serial, step, pool = take(pool, 3)
    np.testing.assert_array_equal(taken['name'][:, 0, 0], [0, 1, 2])
    np.testing.assert_array_equal(serial, [0, 1, 2])
    np.testing.assert_array_equal(step, [2, 2, 2])
    np.testing.assert_array_equal(pool.rows['name'][:, 0, 0], [3, 4, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(pool.serial_C, [3, 4] + [-1] * 5)
    assert int(pool.num) == 2 and pool.capacity == 7

  def test_structure_never_changes(self):
    def turn(pool, key):
      keep = jax.random.uniform(key, (P,)) < 0.9
      pool = rsr.add_groups(pool, jax.tree.map(lambda x: jnp.zeros((P, *x.shape), x.dtype), EXAMPLE), keep, 0)
      *_, pool = rsr.take_groups(pool, 2)
      return pool, pool.num

    pool, num = jax.jit(lambda: jax.lax.scan(turn, rsr.empty_pool(EXAMPLE, 40), jax.random.split(jax.random.key(0), 6)))()
    assert int(pool.num) == int(num[-1]) == int(pool.num_arrived) - 12


class TestCollect:
  @pytest.mark.parametrize('draws', ['always', 'when_short'])
  def test_against_a_list(self, draws):
    N, stream = 4, Stream(1)
    pool, line, used = rsr.empty_pool(EXAMPLE, 64), [], []
    for step in range(12):
      before, made = len(stream.informative), stream.made
      batch, pool = rsr.collect(pool, stream, num_groups=N, step=step, draws=draws)
      line += stream.informative[before:]
      assert names(batch) == line[:N]
      line, used = line[N:], used + line[:N]
      assert batch.num_batches == (stream.made - made) // P
      if draws == 'always':
        assert batch.num_batches >= 1
      if batch.num_batches:
        assert batch.informative_fraction == (len(stream.informative) - before) / (stream.made - made)
      else:
        assert np.isnan(batch.informative_fraction)
      assert int(pool.num) == len(line) and int(pool.num_lost) == 0
      np.testing.assert_array_equal(batch.serial_N, np.arange(step * N, step * N + N))
      np.testing.assert_array_equal(batch.group_B, np.repeat(np.arange(N), G))
      assert np.all(batch.step_N <= step)
    assert len(used) == len(set(used)) == 12 * N
    assert used == stream.informative[: 12 * N]  # nothing is skipped
    assert np.any(batch.step_N < 11)  # something was recovered

  def test_when_short_needs_room_for_one_batch_beyond_the_step(self):
    pool, stream = rsr.empty_pool(EXAMPLE, 4 + P - 1), Stream(2, rate=0.95)
    for step in range(20):
      _, pool = rsr.collect(pool, stream, num_groups=4, step=step, draws='when_short')
    assert int(pool.num_lost) == 0

  def test_draws_fewer_groups_than_dynamic_sampling(self):
    # about 4.75 informative groups a batch for 3 a step: .63 batches instead of one
    recovered, dropped = Stream(3, rate=0.95), Stream(3, rate=0.95)
    pool, sampling = rsr.empty_pool(EXAMPLE, 16), selection.DynamicSampling(num_prompts=3)

    def draw():
      rows, metric = dropped()
      return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows), metric.ravel(), np.repeat(np.arange(P), G)

    for step in range(15):
      _, pool = rsr.collect(pool, recovered, num_groups=3, step=step, draws='when_short')
      sampling.collect(draw)
    assert recovered.made < 0.8 * dropped.made

  def test_is_dynamic_sampling_when_the_pool_is_emptied(self):
    stream, other = Stream(4), Stream(4)
    sampling = selection.DynamicSampling(num_prompts=4)

    def draw():
      rows, metric = other()
      return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows), metric.ravel(), np.repeat(np.arange(P), G)

    for step in range(5):
      batch, _ = rsr.collect(rsr.empty_pool(EXAMPLE, 8), stream, num_groups=4, step=step)
      chosen = sampling.collect(draw)
      chex.assert_trees_all_equal(batch.rows, chosen.rows)
      np.testing.assert_array_equal(batch.group_B, chosen.group_B)
      assert batch.num_batches == chosen.num_batches

  def test_survives_a_checkpoint(self, tmp_path):
    stream = Stream(5)
    _, pool = rsr.collect(rsr.empty_pool(EXAMPLE, 16), stream, num_groups=4, step=0)
    assert int(pool.num) > 0
    saved = Checkpoints(tmp_path)
    saved.save(1, pool, {'made': stream.made})
    step, restored, _ = saved.restore_latest(rsr.empty_pool(EXAMPLE, 16))
    saved.close()
    assert step == 1
    chex.assert_trees_all_equal(restored, pool)
    state = stream.rng.bit_generator.state
    went_on, _ = rsr.collect(pool, stream, num_groups=4, step=1)
    stream.rng.bit_generator.state, stream.made = state, stream.made - P * went_on.num_batches
    resumed, _ = rsr.collect(restored, stream, num_groups=4, step=1)
    chex.assert_trees_all_equal(went_on, resumed)

  def test_a_step_that_is_broken_off_changes_nothing(self):
    stream = Stream(6)
    _, pool = rsr.collect(rsr.empty_pool(EXAMPLE, 16), stream, num_groups=4, step=0)
    before = jax.tree.map(np.array, pool)

    def interrupted():
      if stream.made > 3 * P:
        raise KeyboardInterrupt
      return stream()

    with pytest.raises(KeyboardInterrupt):
      for step in range(1, 5):
        rsr.collect(pool, interrupted, num_groups=16, step=step)
    chex.assert_trees_all_equal(pool, before)

  def test_gives_up(self):
    with pytest.raises(UserError, match='recent_recovery: after 2 generation batches there are 0 informative groups of num_groups=3'):
      rsr.collect(rsr.empty_pool(EXAMPLE, 8), Stream(0, rate=0.0), num_groups=3, step=0, max_num_batches=2)

  @pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
      ({'num_groups': 9}, r'num_groups=9 exceeds the capacity 8 of the pool'),
      ({'num_groups': 0}, r'num_groups=0 is outside \[1, inf\)'),
      ({'num_groups': 2, 'draws': 'never'}, "draws='never' is not one of always, when_short"),
    ],
  )
  def test_refuses(self, kwargs, message):
    with pytest.raises(UserError, match=f'recent_recovery: {message}'):
      rsr.collect(rsr.empty_pool(EXAMPLE, 8), Stream(0), step=0, **kwargs)

  @pytest.mark.parametrize('capacity', [0, 2.5])
  def test_refuses_capacity(self, capacity):
    with pytest.raises(UserError, match=f'recent_recovery: capacity={capacity}'):
      rsr.empty_pool(EXAMPLE, capacity)
