"""Tests of entropy_jax.types."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.types import Ratio, Room, TokenBatch, UserError, follows_sequences, take_rows
from tests import helpers


class TestRatio:
  def test_parts_merge_to_the_whole(self):
    # (1 + 6) / (1 + 3) = 1.75; the mean of the parts' means would be (1 + 2) / 2 = 1.5
    merged = Ratio(jnp.float32(1), jnp.float32(1)).merge(Ratio(jnp.float32(6), jnp.float32(3)))
    assert merged.compute() == 1.75

  def test_merging_is_associative_and_has_a_zero(self):
    a, b, c = (Ratio(jnp.float32(n), jnp.float32(d)) for n, d in ((1, 2), (3, 4), (5, 8)))
    chex.assert_trees_all_equal(a.merge(b).merge(c), a.merge(b.merge(c)))
    chex.assert_trees_all_equal(a.merge(Ratio(jnp.float32(0), jnp.float32(0))), a)

  def test_nothing_counted_is_zero_with_a_finite_gradient(self):
    value, gradient = jax.value_and_grad(lambda n: Ratio(n, jnp.float32(0)).compute())(jnp.float32(0))
    assert value == 0 and gradient == 0

  def test_gradient_is_one_over_den(self):
    gradient = jax.grad(lambda n, d: Ratio(n, d).compute(), argnums=(0, 1))(jnp.float32(3), jnp.float32(4))
    np.testing.assert_allclose(gradient, (1 / 4, -3 / 16), rtol=1e-6)

  def test_den_may_be_negative_and_arrays_divide_by_entry(self):
    ratio = Ratio(jnp.array([1.0, 2.0, 0.0]), jnp.array([-2.0, 0.0, 5.0]))
    assert ratio.compute().tolist() == [-0.5, 0.0, 0.0]

  def test_is_a_pytree(self):
    assert len(jax.tree.leaves(Ratio(jnp.float32(1), jnp.float32(2)))) == 2


class TestRoom:
  def test_order_is_that_of_the_data(self):
    assert [room.name for room in sorted(Room)] == ['REWARD', 'ADVANTAGE', 'WEIGHT', 'SURROGATE', 'REGULARIZER']


class TestUserError:
  def test_is_a_value_error(self):
    with pytest.raises(ValueError, match='one sentence'):
      raise UserError('one sentence')


class TestFollowsSequences:
  @pytest.mark.parametrize('name', ['reward_B', 'chosen_BxT', 'att_BxHxQxK', 'ratio_Bx1'])
  def test_yes(self, name: str):
    assert follows_sequences(name)

  @pytest.mark.parametrize('name', ['scale', 'threshold', 'num_sequences', 'table_SxV', 'number_b', 'x_Base'])
  def test_no(self, name: str):
    assert not follows_sequences(name)


class TestTokenBatch:
  def test_is_frozen(self):
    with pytest.raises(dataclasses.FrozenInstanceError):
      helpers.token_batch().reward_B = jnp.zeros(8)

  def test_optional_fields_are_absent_by_default(self):
    full = helpers.token_batch()
    needed = {f.name: getattr(full, f.name) for f in dataclasses.fields(full) if f.default is f.default_factory is dataclasses.MISSING}
    bare = TokenBatch(**needed)
    assert bare.stats == {} and bare.old_stats == {}
    assert all(getattr(bare, f.name) is None for f in dataclasses.fields(bare) if f.default is None)
    assert bare.ref_logp_BxT is None

  def test_passes_through_jit(self):
    batch = helpers.token_batch(stats=('a',))
    chex.assert_trees_all_equal(jax.jit(lambda b: b)(batch.replace(key=None)), batch.replace(key=None))


class TestTakeRows:
  def test_takes_rows_of_what_follows_sequences(self):
    batch = helpers.token_batch(stats=('a',), old_stats=('b',))
    part = take_rows(batch, 2, 3)
    for name in ('tokens_BxN', 'mask_BxT', 'group_B', 'reward_B', 'logp_BxT', 'value_BxT', 'sequence_B', 'truncated_B'):
      np.testing.assert_array_equal(getattr(part, name), getattr(batch, name)[2:5])
    np.testing.assert_array_equal(part.stats['a'], batch.stats['a'][2:5])
    np.testing.assert_array_equal(part.old_stats['b'], batch.old_stats['b'][2:5])
    assert part.key is batch.key

  def test_scalars_and_absent_fields_go_everywhere(self):
    adaptive = {'inner': {}, 'scale': jnp.float32(2)}
    planned = {'num_sequences': jnp.float32(4), 'kl_cov': {'chosen_BxT': jnp.eye(4, dtype=bool)}, 'adaptive': adaptive}
    part = take_rows(planned, 1, 2)
    assert part['num_sequences'] == 4 and part['adaptive']['scale'] == 2
    np.testing.assert_array_equal(part['kl_cov']['chosen_BxT'], np.eye(4, dtype=bool)[1:3])
    assert take_rows(helpers.token_batch().replace(value_BxT=None), 0, 2).value_BxT is None

  def test_start_may_be_traced(self):
    rows = jax.jit(lambda start: take_rows({'x_B': jnp.arange(6)}, start, 2)['x_B'])(4)
    assert rows.tolist() == [4, 5]

  def test_a_statistic_called_like_a_scalar_still_has_rows(self):
    batch = helpers.token_batch(stats=('varentropy',))
    assert take_rows(batch, 0, 2).stats['varentropy'].shape == (2, 6)
