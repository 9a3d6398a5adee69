"""The tool curriculum: the card's numbers, which segments count, and when its clock ticks."""

import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.methods import rewards
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

ONE = jnp.float32(1.0)


class TestToolUse:
  def test_card_values(self):
    # three calls: + .3; ten or more: + 1; none: nothing
    segment = jnp.stack([jnp.minimum(jnp.arange(12), last) for last in (2, 9, 11)] + [jnp.full(12, -1)])
    found, metrics = rewards.tool_use.function(jnp.array([1.0, 0.0, 0.0, 0.5]), segment, jnp.ones((4, 12), bool), ONE)
    np.testing.assert_allclose(found, [1.3, 1.0, 1.0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(metrics['num_calls'], (3 + 10 + 12 + 0) / 4, rtol=1e-6)

  def test_masked_tokens_are_no_steps(self):
    segment, mask = jnp.array([[0, 1, 99], [5, -1, -7]]), jnp.array([[True, True, False], [False, False, False]])
    found, metrics = rewards.tool_use.function(jnp.zeros(2), segment, mask, ONE)
    np.testing.assert_allclose(found, [0.2, 0.0], rtol=1e-6)
    assert float(metrics['num_calls']) == 2.0

  def test_curriculum(self):
    batch = helpers.token_batch()
    transform = rewards.tool_use(num_rollouts=2.0)
    steps = np.where(np.asarray(batch.mask_BxT), np.asarray(batch.segment_BxT), -1).max(1) + 1
    state = transform.init(batch)
    for mu in (1.0, 0.5, 0.0, 0.0):  # (1 + cos(pi t / 2)) / 2
      planned, state, metrics = transform.plan(state, batch)
      np.testing.assert_allclose(planned['reward_B'], np.asarray(batch.reward_B) + mu * np.minimum(0.1 * steps, 1.0), rtol=1e-5, atol=1e-6)
      np.testing.assert_allclose(metrics['coefficient'], mu, atol=1e-6)
    _, after, _ = transform.plan(state, batch.replace(mask_BxT=jnp.zeros_like(batch.mask_BxT)))
    assert int(after['num_rollouts']) == int(state['num_rollouts']) == 4

  def test_constant(self):
    batch = helpers.token_batch()
    transform = rewards.tool_use(schedule='constant', num_rollouts=1.0)
    _, state, _ = transform.plan(transform.init(batch), batch)
    assert float(transform.plan(state, batch)[2]['coefficient']) == 1.0

  @pytest.mark.parametrize('hyper', [{'per_call': -0.1}, {'num_rollouts': 0.0}, {'schedule': 'linear'}])
  def test_bad_input(self, hyper):
    with pytest.raises(UserError, match=r'is outside|is not one of'):
      rewards.tool_use(**hyper)
