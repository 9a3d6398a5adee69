"""Dynamic sampling: which prompts teach, and the accumulator's order, truncation, limit and reuse."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.methods import selection
from entropy_jax.types import UserError

informative = jax.jit(selection.informative_B)


def batch(*prompts):
  """Rows of prompts given as (id, metrics), dealt out in turn so that the groups are interleaved."""
  longest = max(len(metrics) for _, metrics in prompts)
  dealt = [(p, m[i]) for i in range(longest) for p, m in prompts if i < len(m)]
  group, metric = np.array([p for p, _ in dealt], np.int32), np.array([m for _, m in dealt], np.float32)
  rows = {'tokens_BxT': np.stack([group, np.arange(len(group))], axis=1), 'reward_B': metric}
  return rows, metric, group


class TestInformativeB:
  def test_card(self):
    # (1, 1, 1) and (0, 0, 0) are dropped, (1, 0, 1) is kept
    _, metric, group = batch((5, [1, 1, 1]), (8, [0, 0, 0]), (2, [1, 0, 1]))
    kept = informative(metric, group)
    np.testing.assert_array_equal(kept, group == 2)
    assert kept.dtype == bool

  def test_population_std_loop(self):
    rng = np.random.default_rng(0)
    group = rng.integers(0, 12, 40).astype(np.int32)
    metric = rng.integers(0, 2, 40).astype(np.float32)
    expected = [len(metric[group == g]) == 1 or metric[group == g].std() > 0 for g in group]
    assert 0 < sum(expected) < 40
    np.testing.assert_array_equal(informative(jnp.array(metric), jnp.array(group)), expected)

  def test_rounding_is_no_difference(self):
    # numpy's std of seven times .1 in float32 is not 0
    assert not np.any(informative(jnp.full(7, 0.1), jnp.zeros(7, jnp.int32)))

  def test_group_of_one_is_kept(self):
    np.testing.assert_array_equal(informative(jnp.array([0.0]), jnp.array([4])), [True])


class TestDynamicSampling:
  def test_accumulates_drops_and_truncates(self):
    sampling = selection.DynamicSampling(num_prompts=3)
    assert not sampling.add(*batch((9, [1, 0]), (4, [1, 1]), (7, [0, 0])))  # 9 teaches
    assert not sampling.add(*batch((1, [0, 0])))  # none teaches
    assert sampling.add(*batch((6, [0, 1, 1]), (2, [1, 1]), (3, [0, 1]), (5, [1, 0])))  # 6, 3, and 5 is one too many
    chosen = sampling.take()
    np.testing.assert_array_equal(chosen.rows['tokens_BxT'][:, 0], [9, 9, 6, 3, 6, 3, 6])
    np.testing.assert_array_equal(chosen.group_B, [0, 0, 1, 2, 1, 2, 1])
    np.testing.assert_array_equal(chosen.rows['reward_B'], [1, 0, 0, 0, 1, 1, 1])
    assert chosen.group_B.dtype == np.int32
    assert chosen.num_batches == 3
    assert chosen.informative_fraction == 4 / 8  # 9, 6, 3 and 5 of eight prompts

  def test_rows_are_unchanged_when_all_teach(self):
    rows, metric, group = batch((9, [1, 0]), (4, [0, 1]))
    sampling = selection.DynamicSampling(num_prompts=2)
    assert sampling.add(rows, metric, group)
    chosen = sampling.take()
    np.testing.assert_array_equal(chosen.rows['tokens_BxT'], rows['tokens_BxT'])
    np.testing.assert_array_equal(chosen.group_B, [0, 1, 0, 1])
    assert chosen.informative_fraction == 1.0

  def test_two_visits_of_a_prompt_are_two_groups(self):
    sampling = selection.DynamicSampling(num_prompts=2)
    sampling.add(*batch((9, [1, 0])))
    assert sampling.add(*batch((9, [1, 0])))
    np.testing.assert_array_equal(sampling.take().group_B, [0, 0, 1, 1])

  def test_starts_empty_after_take(self):
    sampling = selection.DynamicSampling(num_prompts=1, max_num_batches=2)
    sampling.add(*batch((1, [1, 0]), (2, [1, 0])))
    sampling.take()
    assert not sampling.add(*batch((3, [1, 1])))  # the second prompt of the first batch was dropped
    assert sampling.add(*batch((4, [0, 1])))
    chosen = sampling.take()
    assert set(chosen.rows['tokens_BxT'][:, 0].tolist()) == {4}
    assert chosen.num_batches == 2

  def test_gives_up_after_the_last_batch(self):
    sampling = selection.DynamicSampling(num_prompts=2, max_num_batches=2)
    assert not sampling.add(*batch((1, [1, 0])))
    with pytest.raises(UserError, match=r'2 generation batches gave 1 informative prompts of num_prompts=2; raise max'):
      sampling.add(*batch((2, [1, 1])))

  def test_enough_in_the_last_batch_is_enough(self):
    sampling = selection.DynamicSampling(num_prompts=2, max_num_batches=2)
    sampling.add(*batch((1, [1, 0])))
    assert sampling.add(*batch((2, [1, 0])))

  @pytest.mark.parametrize('no_limit', [0, -1])
  def test_no_limit(self, no_limit):
    sampling = selection.DynamicSampling(num_prompts=1, max_num_batches=no_limit)
    assert not any(sampling.add(*batch((i, [1, 1]))) for i in range(5))
    assert sampling.add(*batch((5, [1, 0])))
    assert sampling.take().informative_fraction == 1 / 6

  def test_collect_is_add_until_enough_and_take(self):
    batches = [batch((9, [1, 0]), (4, [1, 1])), batch((1, [0, 0])), batch((6, [0, 1]), (2, [1, 0])), batch((3, [0, 1]))]
    drawn = iter(batches)
    chosen = selection.DynamicSampling(num_prompts=2).collect(drawn.__next__)
    np.testing.assert_array_equal(chosen.rows['tokens_BxT'][:, 0], [9, 9, 6, 6])
    assert chosen.num_batches == 3 and next(drawn) is batches[3]  # not one batch more than it needs
    by_hand = selection.DynamicSampling(num_prompts=2)
    assert [by_hand.add(*b) for b in batches[:3]] == [False, False, True]
    chex.assert_trees_all_equal(chosen, by_hand.take())

  def test_collect_carries_nothing_from_one_step_to_the_next(self):
    sampling = selection.DynamicSampling(num_prompts=2, max_num_batches=3)
    batches = [batch((9, [1, 0])), batch((6, [0, 1]), (2, [1, 0]))]

    def broken_off():
      if sampling._num_batches:
        raise KeyboardInterrupt
      return batches[0]

    with pytest.raises(KeyboardInterrupt):
      sampling.collect(broken_off)
    for _ in range(2):  # and a third prompt is dropped each time
      chosen = sampling.collect(iter(batches).__next__)
      np.testing.assert_array_equal(chosen.rows['tokens_BxT'][:, 0], [9, 9, 6, 6])
      assert chosen.num_batches == 2 and chosen.informative_fraction == 1.0

  def test_collect_gives_up(self):
    with pytest.raises(UserError, match='3 generation batches gave 0 informative prompts'):
      selection.DynamicSampling(num_prompts=1, max_num_batches=3).collect(lambda: batch((1, [1, 1])))

  @pytest.mark.parametrize('num_prompts', [0, -3, 1.5])
  def test_refuses_bad_numbers(self, num_prompts):
    with pytest.raises(UserError, match=f'dynamic_sampling: num_prompts={num_prompts}'):
      selection.DynamicSampling(num_prompts=num_prompts)

  def test_programming_errors(self):
    sampling = selection.DynamicSampling(num_prompts=1)
    with pytest.raises(AssertionError, match='call add until it returns True'):
      sampling.take()
    rows, metric, group = batch((1, [1, 0]))
    with pytest.raises(AssertionError, match='must agree in their leading axis'):
      sampling.add(rows, metric[:1], group)
