"""Token-level group average: the card's numbers, a loop over tokens, the fallback and the limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.methods import advantages
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

BATCH = helpers.token_batch(seed=3, B=24)
REWARD, GROUP = np.asarray(BATCH.reward_B), np.asarray(BATCH.group_B)
LENGTH = np.asarray(BATCH.mask_BxT).sum(1)
SEVERAL = [g for g in set(GROUP.tolist()) if np.sum(g == GROUP) > 1]


@functools.cache
def compiled(name, hyper):
  return jax.jit(functools.partial(getattr(advantages, name).function, **dict(hyper)))


def tlga(return_B, length_B, group_B=None, **hyper):
  group_B = np.zeros(len(return_B), np.int32) if group_B is None else group_B
  arrays = jnp.asarray(return_B, jnp.float32), jnp.asarray(length_B, jnp.float32), jnp.asarray(group_B)
  a, metrics = compiled('tlga', tuple(hyper.items()))(*arrays)
  return np.asarray(a), float(metrics['fallback_fraction'])


def grpo(return_B, group_B):
  return np.asarray(compiled('grpo', ())(jnp.asarray(return_B, jnp.float32), jnp.asarray(group_B)))


class TestTlga:
  def test_card_values(self):
    # R = (1, 0), n = (1, 3): mu = .25, sigma = sqrt(.25 .75) = .433013; .75 / .433014, -.25 / .433014
    a, fallback = tlga([1, 0], [1, 3])
    np.testing.assert_allclose(a, [1.732047, -0.577349], rtol=1e-6)
    np.testing.assert_allclose(a @ [1, 3], 0.0, atol=1e-6)
    assert fallback == 0

  def test_loop_over_tokens(self):
    actual, _ = tlga(REWARD, LENGTH, GROUP)
    for i, prompt in enumerate(GROUP):
      rows = prompt == GROUP
      if rows.sum() == 1:
        np.testing.assert_allclose(actual[i], REWARD[i] / (1 + 1e-6), rtol=1e-6)
        continue
      tokens = np.repeat(REWARD[rows].astype(np.float64), LENGTH[rows])
      expected = (REWARD[i] - tokens.mean()) / (tokens.std() + 1e-6)
      assert abs(expected) < 5
      np.testing.assert_allclose(actual[i], expected, rtol=1e-4, atol=1e-5)

  def test_tokens_sum_to_zero(self):
    a, _ = tlga(REWARD, LENGTH, GROUP)
    for prompt in SEVERAL:
      assert abs((a * LENGTH)[prompt == GROUP].sum()) < 1e-4

  def test_equal_lengths_are_grpo_of_the_population(self):
    a, _ = tlga(REWARD, np.full(24, 5), GROUP)
    for prompt in SEVERAL:
      r = REWARD[prompt == GROUP].astype(np.float64)
      np.testing.assert_allclose(a[prompt == GROUP], (r - r.mean()) / (r.std() + 1e-6), rtol=1e-4, atol=1e-5)

  def test_large_advantages_fall_back_for_the_whole_group(self):
    # one success of 1 token beside 26 tokens of failure: A = sqrt(26) = 5.1 >= 5; with 24, sqrt(24) = 4.9. The other group stays.
    reward, group = [1, 0, 1, 0], np.array([0, 0, 3, 3], np.int32)
    a, fallback = tlga(reward, [1, 26, 1, 3], group)
    np.testing.assert_array_equal(a[:2], grpo([1, 0], np.zeros(2, np.int32)))
    np.testing.assert_allclose(a[2:], [1.732047, -0.577349], rtol=1e-6)
    assert fallback == 0.5
    a, fallback = tlga(reward, [1, 24, 1, 3], group)
    np.testing.assert_allclose(a[:2], [24**0.5, -(24**-0.5)], rtol=1e-5)
    assert fallback == 0
    np.testing.assert_array_equal(tlga(reward, [1, 26, 1, 3], group, limit=1.0)[0], grpo(reward, group))
    np.testing.assert_allclose(tlga(reward, [1, 26, 1, 3], group, limit=np.inf)[0][0], 26**0.5, rtol=1e-5)

  def test_a_response_without_tokens_does_not_decide(self):
    # lengths (0, 3, 3): mu and sigma are those of (0, 1), and the empty success of reward 9 is 17 deviations away
    a, fallback = tlga([9, 0, 1], [0, 3, 3])
    np.testing.assert_allclose(a[1:], [-1, 1], rtol=1e-5)
    assert fallback == 0

  @pytest.mark.parametrize('value', [0.1, 1.0])
  def test_equal_rewards_are_exactly_zero(self, value):
    np.testing.assert_array_equal(tlga(np.full(7, value), np.arange(1, 8))[0], np.zeros(7))

  def test_bad_hyper_parameters(self):
    with pytest.raises(UserError, match='limit=0 is outside'):
      advantages.tlga(limit=0)
