"""ARES's token-weighted KL: where it is relaxed, by which factor, its gradient, and its limit, the plain penalty."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective
from entropy_jax.methods import regularizers, surrogates
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')


@functools.cache
def run(name, **hyper):
  """(loss, gradient, planned) of a batch under the penalty alone: the advantages are 0."""
  chain = objective.chain(surrogates.reinforce(), getattr(regularizers, name)(**hyper))

  @jax.jit
  def call(batch):
    planned, _, metrics = chain.plan(chain.init(batch), batch)
    loss, gradient = jax.value_and_grad(lambda lp: chain.loss(planned, batch.replace(logp_BxT=lp)).compute())(batch.logp_BxT)
    return loss, gradient, planned[name], metrics

  return call


def make(**fields):
  batch = helpers.token_batch(seed=1, B=8, T=6)
  return batch.replace(advantage_BxT=jnp.zeros((8, 6), jnp.float32), **fields)


class TestAresKl:
  def test_windows_and_difficulty_by_hand(self):
    # One response a row: windows of 2 above tau = mean of the maxima (percentile 1), (0 * 7 + 4) / 8 = .5. Row 0: means 0, 2, 4, 2, 0.
    entropy = np.zeros((8, 6), np.float32)
    entropy[0, 2:4] = 4.0
    group = np.array([1, 2, 2, 2, 3, 3, 3, 4], np.int32)  # accuracies 1, 1/3, 0, 0
    reward = np.array([1, 1, 0, 0, 0, 0, 0, 0], np.float32)
    batch = make(mask_BxT=jnp.ones((8, 6), bool), old_entropy_BxT=entropy, group_B=group, reward_B=reward)
    _, _, planned, metrics = run('ares_kl', width=2, percentile=1.0, relief=0.25, easy=2.0, medium=3.0, hard=5.0)(batch)
    expected = np.repeat(np.array([2, 3, 3, 3, 5, 5, 5, 5], np.float32)[:, None], 6, axis=1)
    expected[0, 1:5] *= 0.25  # the windows at 1, 2 and 3 hold tokens 1 to 4
    np.testing.assert_allclose(planned['weight_BxT'], expected, rtol=1e-6)
    np.testing.assert_allclose(metrics['regularizer/ares_kl/threshold'], 0.5, rtol=1e-6)
    np.testing.assert_allclose(metrics['regularizer/ares_kl/inside_fraction'], 4 / 48, rtol=1e-6)

  def test_gradient_is_the_weighted_estimator_s(self):
    # k3 = e^-d + d - 1: dk3/dlogp = 1 - e^-d
    batch = make()
    _, gradient, planned, _ = run('ares_kl', coef=0.5, width=1, percentile=0.5, hard=2.0)(batch)
    mask, d = np.asarray(batch.mask_BxT), np.asarray(batch.logp_BxT, np.float64) - np.asarray(batch.ref_logp_BxT)
    expected = np.where(mask, 0.5 * np.asarray(planned['weight_BxT']) * (1 - np.exp(-d)), 0.0) / mask.sum()
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-8)
    assert len(set(np.asarray(planned['weight_BxT'])[mask].tolist())) > 1

  @pytest.mark.parametrize('estimator', ['k2', 'k3'])
  def test_without_relief_it_is_the_plain_penalty(self, estimator):
    batch = make()
    weighted = run('ares_kl', coef=0.1, relief=1.0, estimator=estimator)(batch)
    plain = run('kl', coef=0.1, estimator=estimator)(batch)
    np.testing.assert_allclose(weighted[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(weighted[1], plain[1], rtol=1e-6)

  def test_bad_input(self):
    with pytest.raises(UserError, match=r'^ares_kl: relief=2 is outside \[0, 1\]'):
      regularizers.ares_kl(relief=2)
