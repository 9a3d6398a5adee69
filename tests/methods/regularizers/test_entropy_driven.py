"""The gradient that EDGE-GRPO's released loss has beside the advantage's, against that loss written down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective
from entropy_jax.methods import advantages, regularizers, surrogates
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

BATCH = helpers.token_batch(seed=3, B=12)
ON_POLICY = BATCH.replace(old_logp_BxT=BATCH.logp_BxT, old_entropy_BxT=BATCH.entropy_BxT, token_reward_BxT=None, advantage_BxT=None)


def gradients(*extra):
  """(loss, gradient in log-probabilities, gradient in entropies) of EDGE-GRPO on-policy."""
  chain = objective.chain(advantages.edge_grpo(), surrogates.ppo_clip(), *extra)

  @jax.jit
  def run(batch):
    batch, state, _ = chain.prepare(chain.init(batch), batch)
    planned, _, _ = chain.plan(state, batch)
    loss = lambda logp, entropy: chain.loss(planned, batch.replace(logp_BxT=logp, entropy_BxT=entropy)).compute()
    return jax.value_and_grad(loss, argnums=(0, 1))(batch.logp_BxT, batch.entropy_BxT)

  loss, (logp, entropy) = run(ON_POLICY)
  return np.asarray(loss), np.asarray(logp), np.asarray(entropy)


class TestEdgeGrpoEntropy:
  def test_is_the_released_loss(self):
    mask, group, reward, entropy = (np.asarray(x) for x in (BATCH.mask_BxT, BATCH.group_B, BATCH.reward_B, BATCH.entropy_BxT))
    h = np.array([row[m].mean() for row, m in zip(entropy, mask, strict=True)])
    expected = np.zeros(mask.shape)
    for i in range(12):
      rows = group == group[i]
      r = reward[rows]
      base = (reward[i] - r.mean()) / (r.std(ddof=1) + 1e-4) if len(r) > 1 else reward[i] / (1 + 1e-4)
      # the loss is -(1 / N) sum_i n_i GRPO_i mean_g(h) / h_i with mean_g(h) held fixed, and dh_i / dH_it = 1 / n_i
      expected[i, mask[i]] = base * h[rows].mean() / h[i] ** 2 / mask.sum()
    with_it, without = gradients(regularizers.edge_grpo_entropy()), gradients()
    np.testing.assert_allclose(with_it[2], expected, rtol=1e-4, atol=1e-6)
    assert not without[2].any()
    np.testing.assert_array_equal(with_it[1], without[1])
    np.testing.assert_allclose(with_it[0], without[0], rtol=1e-6)  # the value does not change

  def test_lowers_the_entropy_of_successes(self):
    penalty = lambda h, a: regularizers.edge_grpo_entropy.function(h, a, jnp.ones((1, 2), bool), coef=0.5).sum()
    h = jnp.array([[0.2, 0.6]])
    # .5 A / .4, two tokens over two entropies
    np.testing.assert_allclose(jax.grad(penalty)(h, jnp.full((1, 2), 2.0)), np.full((1, 2), 2.5), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(penalty)(h, jnp.full((1, 2), -2.0)), np.full((1, 2), -2.5), rtol=1e-5)

  def test_bad_hyper_parameters(self):
    with pytest.raises(UserError, match='coef=-1 is outside'):
      regularizers.edge_grpo_entropy(coef=-1)
