"""Whitened advantages: values by hand, loops over the valid tokens as oracles, constant batches, holes in the mask."""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.methods import advantages
from entropy_jax.methods.advantages import group, whitened
from entropy_jax.types import UserError

pytestmark = pytest.mark.usefixtures('strict_dtypes')

# Lengths 4, 2, 3 and 0; the third response has a hole, as a tool's output leaves one.
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0]], bool)
REWARD = np.array([[0, 0.5, 0, 1], [0, -1, 9, 9], [0.25, 7, 0, 2], [5, 5, 5, 5]], np.float32)
GARBAGE = np.where(MASK, REWARD, np.array([np.nan, np.inf, -np.inf, 1e30], np.float32))


whiten_tokens = jax.jit(whitened.whiten_tokens)
reinforce_plus_plus = jax.jit(whitened.reinforce_plus_plus_advantage)
reinforce_plus_plus_baseline = jax.jit(whitened.reinforce_plus_plus_baseline_advantage)


def loop_returns(discount):
  """Each valid token's return by a double sum over the later valid tokens of its row."""
  result = np.zeros(MASK.shape)
  for i in range(MASK.shape[0]):
    places = [t for t in range(MASK.shape[1]) if MASK[i, t]]
    for a, t in enumerate(places):
      result[i, t] = sum(discount ** (b - a) * float(REWARD[i, places[b]]) for b in range(a, len(places)))
  return result


def loop_whiten(x):
  valid = [float(v) for v, m in zip(x.ravel(), MASK.ravel(), strict=True) if m]
  mean, variance = statistics.fmean(valid), statistics.variance(valid)
  return np.where(MASK, (x - mean) / np.sqrt(variance + 1e-8), 0.0)


class TestWhitenTokens:
  def test_loop(self):
    np.testing.assert_allclose(whiten_tokens(GARBAGE, MASK), loop_whiten(REWARD), rtol=1e-5)

  def test_mean_zero_and_variance_one(self):
    valid = np.asarray(whiten_tokens(jnp.array(GARBAGE), jnp.array(MASK)))[MASK]
    np.testing.assert_allclose([valid.mean(), valid.var(ddof=1)], [0, 1], atol=1e-5)

  @pytest.mark.parametrize('value', [0.1, 1e4 / 3])
  def test_equal_values_are_exactly_zero(self, value):
    # The rounding of the mean, about 1e-8 relative, would otherwise come out divided by sqrt(1e-8).
    x = jnp.where(jnp.array(MASK), value, jnp.nan)
    np.testing.assert_array_equal(whiten_tokens(x, jnp.array(MASK)), np.zeros(MASK.shape))

  @pytest.mark.parametrize('num_valid', [0, 1])
  def test_too_few_to_compare(self, num_valid):
    mask = jnp.arange(4)[None, :] < num_valid
    np.testing.assert_array_equal(whiten_tokens(jnp.full((1, 4), 3.0), mask), np.zeros((1, 4)))


class TestReturnsToGo:
  @pytest.mark.parametrize('discount', [0.0, 0.5, 0.99, 1.0])
  def test_loop(self, discount):
    actual = jax.jit(functools.partial(whitened.returns_to_go, discount=discount))(GARBAGE, MASK)
    np.testing.assert_allclose(actual, loop_returns(discount), rtol=1e-6)

  def test_discount_zero_is_the_reward(self):
    actual = jax.jit(functools.partial(whitened.returns_to_go, discount=0.0))(GARBAGE, MASK)
    np.testing.assert_array_equal(actual, np.where(MASK, REWARD, np.float32(0.0)))


class TestReinforcePlusPlus:
  def test_by_hand(self):
    # returns [[1, 1], [0, 0]]: mean 1/2, variance 4 / 4 / 3; .5 / sqrt(1 / 3 + 1e-8) = .866025
    reward = jnp.array([[0.0, 1.0], [0.0, 0.0]])
    actual = reinforce_plus_plus(reward, jnp.ones((2, 2), bool))
    np.testing.assert_allclose(actual, [[0.866025] * 2, [-0.866025] * 2], rtol=1e-6)

  @pytest.mark.parametrize('discount', [0.5, 1.0])
  def test_loop(self, discount):
    fn = jax.jit(functools.partial(whitened.reinforce_plus_plus_advantage, discount=discount))
    np.testing.assert_allclose(fn(GARBAGE, MASK), loop_whiten(loop_returns(discount)), rtol=1e-5)

  def test_padding_changes_nothing(self):
    wide = np.pad(GARBAGE, ((0, 0), (0, 3)), constant_values=np.nan)
    wide_mask = np.pad(MASK, ((0, 0), (0, 3)))
    fn = reinforce_plus_plus
    np.testing.assert_allclose(fn(wide, wide_mask)[:, :4], fn(GARBAGE, MASK), rtol=1e-6)

  def test_equal_outcomes_are_exactly_zero(self):
    reward = jnp.array([[0.0, 0.1], [0.0, 0.1], [0.0, 0.1]])
    actual = reinforce_plus_plus(reward, jnp.ones((3, 2), bool))
    np.testing.assert_array_equal(actual, np.zeros((3, 2)))

  def test_refuses_a_discount_above_one(self):
    with pytest.raises(UserError, match=r'discount=1.5 is outside \[0, 1\]'):
      advantages.reinforce_plus_plus(discount=1.5)


class TestReinforcePlusPlusBaseline:
  GROUP = np.array([8, 2, 8, 2], np.int32)
  RETURN = np.array([1.0, 0.25, 0.0, 0.75], np.float32)

  def test_by_hand(self):
    # one group (1, 0), one token each: centred (.5, -.5), variance .5; .5 / sqrt(.5 + 1e-8) = .707107
    actual = reinforce_plus_plus_baseline(
      jnp.array([1.0, 0.0]), jnp.zeros(2, jnp.int32), jnp.ones((2, 1), bool)
    )
    np.testing.assert_allclose(actual, [[0.707107], [-0.707107]], rtol=1e-6)

  def test_loop(self):
    # group means .5 and .5, so the centred rewards are (.5, -.25, -.5, .25)
    centred = np.broadcast_to(np.array([0.5, -0.25, -0.5, 0.25])[:, None], MASK.shape)
    actual = reinforce_plus_plus_baseline(self.RETURN, self.GROUP, MASK)
    np.testing.assert_allclose(actual, loop_whiten(centred), rtol=1e-5)

  def test_equal_lengths_are_scaled_dr_grpo(self):
    mask = np.ones((4, 3), bool)
    actual = reinforce_plus_plus_baseline(self.RETURN, self.GROUP, mask)
    dr_grpo = np.asarray(jax.jit(group.dr_grpo_advantage)(jnp.array(self.RETURN), jnp.array(self.GROUP)))
    spread = np.repeat(dr_grpo, 3).std(ddof=1)
    np.testing.assert_allclose(actual, np.repeat(dr_grpo[:, None] / spread, 3, axis=1), rtol=1e-5)

  def test_equal_groups_are_exactly_zero(self):
    rewards = jnp.array([0.1, 0.7, 0.1, 0.7])
    fn = reinforce_plus_plus_baseline
    np.testing.assert_array_equal(fn(rewards, self.GROUP, MASK), np.zeros(MASK.shape))
