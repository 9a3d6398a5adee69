"""Imitation inside a batch: rows, limits, and the direction in which imitating samples of another temperature moves entropy."""

import jax
import numpy as np
import pytest

from entropy_jax import objective
from entropy_jax.methods import advantages, surrogates
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')


class TestImitate:
  def test_rows(self):
    batch = helpers.with_garbage(helpers.token_batch())
    value, metrics = jax.jit(advantages.imitate.function)(batch.advantage_BxT, batch.imitated_B, batch.mask_BxT)
    mask, imitated = np.asarray(batch.mask_BxT), np.asarray(batch.imitated_B)
    expected = np.where(mask, np.where(imitated[:, None], 1.0, np.asarray(batch.advantage_BxT)), 0.0)
    np.testing.assert_array_equal(value, expected.astype(np.float32))
    np.testing.assert_allclose(metrics['imitated_fraction'], mask[imitated].sum() / mask.sum(), rtol=1e-6)

  def test_nothing_imitated_is_the_base(self):
    base = np.float32([[0.5, -1.0]])
    value, _ = advantages.imitate.function(base, np.array([False]), np.ones((1, 2), bool))
    np.testing.assert_array_equal(value, base)

  def test_everything_imitated_is_maximum_likelihood(self):
    batch = helpers.token_batch()
    batch = batch.replace(imitated_B=np.ones(8, bool))
    chain = objective.chain(advantages.grpo(), advantages.imitate(), surrogates.reinforce())
    plain = objective.chain(advantages.unit(), surrogates.reinforce())

    def gradient(chain):
      @jax.jit
      def run():
        prepared, state, _ = chain.prepare(chain.init(batch), batch)
        planned, _, _ = chain.plan(state, prepared)
        return jax.grad(lambda logp: chain.loss(planned, prepared.replace(logp_BxT=logp)).compute())(batch.logp_BxT)

      return np.asarray(run())

    np.testing.assert_array_equal(gradient(chain), gradient(plain))

  @pytest.mark.parametrize(('temperature', 'expected'), [(0.8, -0.0109511), (1.2, 0.0074741), (1.0, 0.0)])
  def test_entropy_follows_the_temperature_of_what_is_imitated(self, temperature, expected):
    # With R = 1 the expected step in the logits is q - p, q = softmax(ln p / T);
    # dH = sum_j dH/dz_j (q_j - p_j), dH/dz_j = -p_j (ln p_j + H)
    p = np.array([0.5, 0.3, 0.2])
    q = p ** (1 / temperature)
    q /= q.sum()
    slope = -p * (np.log(p) - np.sum(p * np.log(p)))
    np.testing.assert_allclose(np.sum(slope * (q - p)), expected, atol=1e-7)
