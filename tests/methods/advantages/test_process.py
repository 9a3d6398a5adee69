"""PRIME: leave-one-out of each source, a loop as oracle, limits, and the chain with the implicit process reward."""

import functools

import jax
import numpy as np
import pytest

from entropy_jax import objective, transform
from entropy_jax.methods import advantages, rewards
from entropy_jax.methods.advantages import process
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

likelihood = transform.surrogate('likelihood', lambda logp_BxT, advantage_BxT: advantage_BxT * logp_BxT)


@functools.cache
def compiled(**hyper):
  return jax.jit(functools.partial(advantages.prime.function, **hyper))


class TestSourceRloo:
  def test_card_value(self):
    # PRIME's outcomes (1, 0, 0, 1): 4/3 - 2/3 and 0 - 2/3
    reward, group = np.float32([[1], [0], [0], [1]]), np.zeros(4, np.int32)
    value = process.source_rloo(reward, group, np.ones((4, 1), bool))
    np.testing.assert_allclose(value[:, 0], np.array([1, -1, -1, 1]) * 2 / 3, rtol=1e-6)

  def test_equal_payment_leaves_exactly_nothing(self):
    value = process.source_rloo(np.full((3, 1), 0.7, np.float32), np.zeros(3, np.int32), np.ones((3, 1), bool))
    np.testing.assert_array_equal(value, np.zeros((3, 1)))


class TestPrime:
  def oracle(self, batch, dense, weights=(5.0, 5.0), whiten=True):
    """The released form: n / (n - 1) r - sum of the members' means / (n - 1), source by source, then sums from the end."""
    mask, group, outcome = (np.asarray(x) for x in (batch.mask_BxT, batch.group_B, batch.reward_B))
    B, T = mask.shape
    result = np.zeros((B, T))
    last = [max((t for t in range(T) if mask[b, t]), default=None) for b in range(B)]
    for b in range(B):
      same = [j for j in range(B) if group[j] == group[b]]
      n = len(same)
      factor = n / (n - 1) if n > 1 else 1.0
      process_sum = sum(dense[j][mask[j]].mean() for j in same) / (n - 1) if n > 1 else 0.0
      outcome_sum = sum(outcome[j] for j in same) / (n - 1) if n > 1 else 0.0
      later = 0.0
      for t in reversed(range(T)):
        if mask[b, t]:
          later += weights[0] * (factor * dense[b, t] - process_sum)
          later += weights[1] * (factor * outcome[b] - outcome_sum) if t == last[b] else 0.0
          result[b, t] = later
    if whiten:
      valid = result[mask]
      result = np.where(mask, (result - valid.mean()) / np.sqrt(valid.var(ddof=1) + 1e-8), 0.0)
    return result

  @pytest.mark.parametrize('hyper', [{}, {'process': 2.0, 'outcome': 1.0, 'whiten': False}])
  def test_against_a_loop(self, hyper):
    batch = helpers.token_batch(seed=7, B=10, T=6)
    mask, dense = np.asarray(batch.mask_BxT), np.asarray(batch.token_reward_BxT)
    both = np.where(mask, dense, np.nan)
    for b in range(10):
      both[b, np.flatnonzero(mask[b])[-1]] += np.asarray(batch.reward_B)[b]
    value, _ = compiled(**hyper)(both.astype(np.float32), batch.reward_B, batch.group_B, batch.mask_BxT)
    expected = self.oracle(batch, dense, (hyper.get('process', 5.0), hyper.get('outcome', 5.0)), hyper.get('whiten', True))
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)

  def test_outcome_alone_is_rloo(self):
    reward, group = np.float32([1, 0, 0, 1]), np.zeros(4, np.int32)
    dense = np.float32([[0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 1]])
    value, metrics = compiled(outcome=1.0, whiten=False)(dense, reward, group, np.ones((4, 3), bool))
    np.testing.assert_allclose(value, np.repeat(np.float32([[1], [-1], [-1], [1]]) * 2 / 3, 3, axis=1), rtol=1e-5)
    assert float(metrics['process_return']) == 0.0
    np.testing.assert_allclose(metrics['outcome_return'], 2 / 3, rtol=1e-6)

  def test_equal_outcomes_are_exactly_zero(self):
    reward, group = np.full(4, 0.7, np.float32), np.array([3, 3, 3, 8], np.int32)[[0, 1, 2, 0]]
    dense = np.zeros((4, 3), np.float32)
    dense[:, -1] = 0.7
    value, _ = compiled()(dense, reward, group, np.ones((4, 3), bool))
    np.testing.assert_array_equal(value, np.zeros((4, 3)))

  def test_in_a_chain_with_the_implicit_reward(self):
    batch = helpers.token_batch(seed=8).replace(token_reward_BxT=None)
    chain = objective.chain(rewards.implicit_prm(skip_last=True, normalize=True), advantages.prime(), likelihood())
    prepared, _, metrics = jax.jit(chain.prepare)(chain.init(batch), batch)
    dense = np.asarray(prepared.token_reward_BxT)
    np.testing.assert_allclose(prepared.advantage_BxT, self.oracle(batch, dense), rtol=1e-4, atol=1e-4)
    assert float(metrics['advantage/prime/process_return']) > 0

  def test_bad_input(self):
    with pytest.raises(UserError, match=r'^prime: process=-1 is outside'):
      advantages.prime(process=-1)
