"""Reward shaping: the card's lengths by hand, both forms beyond the limit, and how rewards reach the advantages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import transform
from entropy_jax.methods import advantages, rewards
from entropy_jax.methods.rewards import shaping
from entropy_jax.objective import chain
from entropy_jax.types import TokenBatch, UserError

pytestmark = pytest.mark.usefixtures('strict_dtypes')

LENGTH = np.array([80, 90, 100, 110], np.float32)
MASK = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
OUTCOME = np.array([1.0, 1.0, 0.0, 0.0], np.float32)
OLD = np.where(MASK, np.float32(-1.0) - np.arange(4, dtype=np.float32)[:, None], np.float32(np.nan))
REF = np.where(MASK, np.float32(-1.5), np.float32(-np.inf))

likelihood = transform.surrogate('likelihood', lambda logp_BxT, advantage_BxT: advantage_BxT * logp_BxT)


def token_batch():
  return TokenBatch(
    tokens_BxN=jnp.zeros((4, 5), jnp.int32),
    token_mask_BxN=jnp.ones((4, 5), bool),
    mask_BxT=jnp.array(MASK),
    group_B=jnp.array([3, 9, 9, 3]),
    reward_B=jnp.array(OUTCOME),
    old_logp_BxT=jnp.array(OLD),
    old_entropy_BxT=jnp.array(OLD),
    logp_BxT=jnp.array(OLD),
    entropy_BxT=jnp.array(OLD),
    ref_logp_BxT=jnp.array(REF),
    key=jax.random.key(0),
  )


def prepare(*transforms):
  objective = chain(*transforms, likelihood())
  batch, _, metrics = jax.jit(objective.prepare)(objective.init(token_batch()), token_batch())
  return batch, metrics


class TestSoftOverlong:
  def test_by_hand(self):
    # limit 100, buffer 20: 80 is free, 90 is 10 / 20 over, 100 is 20 / 20 over, 110 is 30 / 20 over
    reward, metrics = shaping.soft_overlong_reward(jnp.zeros(4), jnp.array(LENGTH), max_length=100, buffer=20)
    np.testing.assert_allclose(reward, [0, -0.5, -1, -1], rtol=1e-6)
    assert float(metrics['penalised_fraction']) == 0.75
    reward, _ = shaping.soft_overlong_reward(
      jnp.zeros(4), jnp.array(LENGTH), max_length=100, buffer=20, bounded=False
    )
    np.testing.assert_allclose(reward, [0, -0.5, -1, -1.5], rtol=1e-6)

  @pytest.mark.parametrize('bounded', [True, False])
  def test_piecewise(self, bounded):
    def piecewise(n):
      if n <= 48:
        return 0.0
      if n <= 64 or not bounded:
        return (48 - n) / 16
      return -1.0

    length = np.arange(0, 90, dtype=np.float32)
    fn = jax.jit(lambda r, n: shaping.soft_overlong_reward(r, n, max_length=64, buffer=16, factor=2.0, bounded=bounded))
    actual, _ = fn(np.ones(90, np.float32), length)
    np.testing.assert_allclose(actual, [1 + 2 * piecewise(n) for n in length.tolist()], rtol=1e-6)

  def test_factor_zero_changes_nothing(self):
    reward, _ = shaping.soft_overlong_reward(jnp.array(OUTCOME), jnp.array(LENGTH), max_length=100, buffer=20, factor=0)
    np.testing.assert_array_equal(reward, OUTCOME)

  def test_in_a_chain_replaces_the_outcome(self):
    # lengths 4, 3, 2, 0; limit 4, buffer 2: penalties 2 / 2, 1 / 2, 0, 0
    batch, metrics = prepare(rewards.soft_overlong(max_length=4, buffer=2), advantages.dr_grpo())
    np.testing.assert_allclose(batch.reward_B, [0, 0.5, 0, 0])
    np.testing.assert_allclose(metrics['reward/soft_overlong/penalised_fraction'], 0.5)
    np.testing.assert_allclose(batch.advantage_BxT[:, 0], [0, 0.25, -0.25, 0])  # group 9 has (.5, 0), group 3 (0, 0)

  def test_refuses_bad_hyper_parameters(self):
    with pytest.raises(UserError, match=r'max_length has no default; give max_length= a value in \(0, inf\)'):
      rewards.soft_overlong(buffer=20)
    with pytest.raises(UserError, match=r'buffer=0 is outside \(0, inf\)'):
      rewards.soft_overlong(max_length=100, buffer=0)
    with pytest.raises(UserError, match=r'buffer=200 exceeds max_length=100; give one in \(0, 100\]'):
      prepare(rewards.soft_overlong(max_length=100, buffer=200), advantages.dr_grpo())


class TestKlInReward:
  def test_by_hand(self):
    # pi_old = .5, pi_ref = .25: k1 = ln 2 = .693147, reward -.1 * .693147
    reward, metrics = shaping.reference_kl_reward(
      jnp.log(jnp.array([[0.5]])), jnp.log(jnp.array([[0.25]])), jnp.array([[True]]), coef=0.1
    )
    np.testing.assert_allclose(reward, [[-0.0693147]], rtol=1e-6)
    np.testing.assert_allclose(metrics['kl'], 0.693147, rtol=1e-6)

  def test_garbage_in_masked_slots(self):
    reward, metrics = jax.jit(shaping.reference_kl_reward)(OLD, REF, MASK)
    # k1 = .5, -.5, -1.5 in rows of 4, 3 and 2 tokens; mean (2 - 1.5 - 3) / 9
    expected = np.where(MASK, np.array([-0.5, 0.5, 1.5, 0.0])[:, None] * 1e-3, 0.0)
    np.testing.assert_allclose(reward, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics['kl'], -2.5 / 9, rtol=1e-6)

  def test_in_a_chain_adds_to_the_return(self):
    batch, _ = prepare(rewards.kl_in_reward(coef=0.1), advantages.rloo())
    np.testing.assert_array_equal(batch.reward_B, OUTCOME)
    # sums of -.1 k1: -.2, .15, .3, 0; returns .8, 1.15, .3, 0. RLOO: group 3 +-.8, group 9 +-.85
    expected = np.where(MASK, np.array([0.8, 0.85, -0.85, -0.8])[:, None], 0.0)
    np.testing.assert_allclose(batch.advantage_BxT, expected, rtol=1e-5)

  def test_same_policy_changes_nothing(self):
    reward, metrics = shaping.reference_kl_reward(jnp.array(OLD), jnp.array(OLD), jnp.array(MASK))
    np.testing.assert_array_equal(reward, np.zeros(MASK.shape))
    assert float(metrics['kl']) == 0.0

  def test_both_rewards_compose(self):
    batch, _ = prepare(
      rewards.soft_overlong(max_length=4, buffer=2), rewards.kl_in_reward(coef=0.1), advantages.dr_grpo()
    )
    # returns: group 3 (0 - .2, 0), group 9 (.5 + .15, 0 + .3); halves of the differences -.2 and .35
    np.testing.assert_allclose(batch.advantage_BxT[:3, 0], [-0.1, 0.175, -0.175], rtol=1e-5)
