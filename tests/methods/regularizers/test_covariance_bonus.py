"""TEA-RL: the card's weights, a loop over sequences, and the two gradients: with a constant weight and the literal one."""

import functools

import jax
import numpy as np
import pytest
import scipy.special

from entropy_jax import objective
from entropy_jax.methods import regularizers, surrogates
from entropy_jax.methods.regularizers import covariance_bonus
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

BATCH = helpers.token_batch(seed=2)
MASK, LOGP, A, H = (np.asarray(x) for x in (BATCH.mask_BxT, BATCH.logp_BxT, BATCH.advantage_BxT, BATCH.entropy_BxT))


@jax.jit
def weight(logp, advantage, mask, upper=5.0):
  planned, metrics = covariance_bonus.tea_rl_plan(logp, advantage, mask, upper=upper)
  return covariance_bonus.tea_weight(logp, advantage, mask, **planned, upper=upper), metrics


def expected_weight(logp, advantage, mask, means=None, scale=10.0, upper=5.0):
  logp, advantage = logp.astype(np.float64), advantage.astype(np.float64)
  mean_logp, mean_advantage = means or (logp[mask].mean(), advantage[mask].mean())
  w = np.zeros(mask.shape)
  for i, m in enumerate(mask):
    if m.any():
      cov = (advantage[i][m] - mean_advantage) * (logp[i][m] - mean_logp)
      w[i, m] = np.minimum(scale * scipy.special.softmax(cov), upper)
  return w


@functools.cache
def update(**hyper):
  """(gradient to the log-probabilities, gradient to the entropies) of what the bonus adds to the loss."""
  chains = [objective.chain(surrogates.reinforce(), *more) for more in ((), (regularizers.tea_rl(**hyper),))]

  @jax.jit
  def run():
    def loss(logp, entropy):
      batch = BATCH.replace(logp_BxT=logp, entropy_BxT=entropy)
      plain, full = (c.loss(c.plan(c.init(batch), batch)[0], batch).compute() for c in chains)
      return full - plain

    return jax.value_and_grad(loss, argnums=(0, 1))(BATCH.logp_BxT, BATCH.entropy_BxT)

  return jax.tree.map(np.asarray, run())


class TestTeaWeight:
  def test_card_values(self):
    # A = +1: softmax of lp - mean lp = ln(.9, .5, .1) is (.6, .333, .067); 10 times it, bounded by 5. A = -1: softmax of -lp.
    logp = np.log([[0.9, 0.5, 0.1]] * 2).astype(np.float32)
    advantage = np.array([[1.0] * 3, [-1.0] * 3], np.float32)
    w, _ = weight(logp, advantage, np.ones((2, 3), bool))
    np.testing.assert_allclose(w, [[5.0, 3.333333, 0.666667], [0.847458, 1.525424, 5.0]], rtol=1e-5)

  def test_equal_advantages_give_every_token_the_same(self):
    # A bound of 4.9: a sequence of two has 10 / 2 = 5 each, and at a bound of 5 the last bit would say whether it is reached.
    w, metrics = weight(LOGP, np.full_like(A, 0.7), MASK, upper=4.9)
    each = np.minimum(10 / MASK.sum(axis=1, keepdims=True), 4.9)
    np.testing.assert_allclose(w, np.where(MASK, each, 0), rtol=1e-5)
    np.testing.assert_allclose(metrics['bounded_fraction'], np.mean((each * MASK)[MASK] >= 4.9), rtol=1e-5)

  def test_against_a_loop(self):
    garbage = np.where(MASK, LOGP, np.nan)
    w, metrics = weight(garbage.astype(np.float32), A, MASK)
    expected = expected_weight(LOGP, A, MASK)
    np.testing.assert_allclose(w, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics['weight_mean'], expected[MASK].mean(), rtol=1e-5)

  def test_adds_up_to_the_scale_before_the_bound(self):
    logp = np.log([[0.3, 0.5, 0.2, 0.4]]).astype(np.float32)
    w, _ = weight(logp, np.ones((1, 4), np.float32) * np.array([[1, -1, 0.5, 0]], np.float32), np.ones((1, 4), bool))
    assert (np.asarray(w) < 5).all()
    np.testing.assert_allclose(np.sum(w), 10, rtol=1e-6)

  def test_an_empty_row_and_large_covariances_are_finite(self):
    mask = np.array([[False, False], [True, True]])
    logp = np.array([[np.nan, np.inf], [-1e4, -1e-3]], np.float32)
    w, _ = weight(logp, np.array([[np.nan, 0.0], [-50.0, 50.0]], np.float32), mask)
    np.testing.assert_allclose(w, [[0.0, 0.0], [5.0, 5.0]], rtol=1e-6)  # the two covariances are equal


class TestTeaRl:
  def test_value_and_gradient(self):
    w = expected_weight(LOGP, A, MASK)
    value, (to_logp, to_entropy) = update(coef=0.3)
    np.testing.assert_allclose(value, -0.3 * (w * H)[MASK].mean(), rtol=1e-4)
    np.testing.assert_allclose(to_entropy, np.where(MASK, -0.3 * w / MASK.sum(), 0), rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(to_logp, np.zeros(MASK.shape), atol=1e-7)

  def test_literal_gradient_by_finite_differences(self):
    # The means stay where they are
    means = LOGP[MASK].astype(np.float64).mean(), A[MASK].astype(np.float64).mean()
    penalty = lambda logp: -0.3 * (expected_weight(logp, A, MASK, means) * H)[MASK].mean()
    value, (to_logp, to_entropy) = update(coef=0.3, detach=False)
    for i, t in np.argwhere(MASK):
      bump = np.zeros(MASK.shape)
      bump[i, t] = 1e-5
      slope = (penalty(LOGP + bump) - penalty(LOGP - bump)) / 2e-5
      np.testing.assert_allclose(to_logp[i, t], slope, rtol=1e-3, atol=2e-6)
    assert np.abs(to_logp).max() > 1e-3
    detached_value, (_, detached) = update(coef=0.3)
    np.testing.assert_allclose(value, detached_value, rtol=1e-6)
    np.testing.assert_allclose(to_entropy, detached, rtol=1e-6)

  def test_bad_input(self):
    with pytest.raises(UserError, match='detach=1 is not true or false'):
      regularizers.tea_rl(detach=1)
