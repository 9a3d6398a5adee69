"""The warm-up of self-imitation: which rows it scales, and when its clock ticks."""

import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.methods import weights
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')


class TestSelfImitationWarmup:
  def test_scale_of_successive_updates(self):
    batch = helpers.token_batch()
    transform = weights.self_imitation_warmup(num_updates=4.0)
    state, marked = transform.init(batch), np.asarray(batch.imitated_B)[:, None] & np.asarray(batch.mask_BxT)
    for gamma in (0.0, 0.146447, 0.5, 0.853553, 1.0, 1.0):  # (1 - cos(pi t / 4)) / 2
      planned, state, metrics = transform.plan(state, batch)
      w = np.asarray(planned['weight_BxT'])
      np.testing.assert_allclose(w[marked], gamma, atol=1e-6)
      np.testing.assert_array_equal(w[np.asarray(batch.mask_BxT) & ~marked], 1.0)
      np.testing.assert_allclose(metrics['coefficient'], gamma, atol=1e-6)
    assert int(state['num_updates']) == 6

  def test_an_update_without_tokens_does_not_count(self):
    batch = helpers.token_batch()
    transform = weights.self_imitation_warmup()
    empty = batch.replace(mask_BxT=jnp.zeros_like(batch.mask_BxT))
    _, state, _ = transform.plan(transform.init(batch), empty)
    assert int(state['num_updates']) == 0

  def test_bad_input(self):
    with pytest.raises(UserError, match='is outside'):
      weights.self_imitation_warmup(num_updates=0.0)
