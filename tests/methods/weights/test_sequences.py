"""Weights of whole sequences and of the sampler's mismatch: values, boundaries, and gradients through a chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective
from entropy_jax.methods import surrogates, weights
from entropy_jax.types import TokenBatch, UserError

pytestmark = pytest.mark.usefixtures('strict_dtypes')

MASK = jnp.array([[True, True, True], [True, False, False], [True, True, False]])
LOGP = jnp.array([[-1.0, -2.0, -3.0], [-1.0, jnp.nan, jnp.nan], [-0.5, -0.5, jnp.inf]])
off_policy = jax.jit(weights.off_policy_sequence_mask.function)
sampler = jax.jit(weights.sampler_importance.function, static_argnames='mode')
BATCH = TokenBatch(
  tokens_BxN=jnp.zeros((3, 3), jnp.int32),
  token_mask_BxN=MASK,
  mask_BxT=MASK,
  group_B=jnp.zeros(3, jnp.int32),
  reward_B=jnp.zeros(3),
  old_logp_BxT=LOGP,
  old_entropy_BxT=jnp.zeros((3, 3)),
  logp_BxT=LOGP,
  entropy_BxT=jnp.zeros((3, 3)),
  key=jax.random.key(0),
  advantage_BxT=jnp.broadcast_to(jnp.array([[1.0], [-1.0], [-2.0]]), (3, 3)),
)


def gradient(batch, *transforms):
  chain = objective.chain(*transforms, surrogates.reinforce())

  @jax.jit
  def run(batch):
    planned, _, _ = chain.plan(chain.init(batch), batch)
    return jax.grad(lambda lp: chain.loss(planned, batch.replace(logp_BxT=lp)).compute())(batch.logp_BxT)

  return np.asarray(run(batch))


PLAIN = np.where(MASK, -np.array([[1.0], [-1.0], [-2.0]]) / 6, 0.0)  # -A / N


class TestDropTruncated:
  def test_value_and_metrics(self):
    w, metrics = weights.drop_truncated.function(jnp.array([False, True, True]), MASK)
    np.testing.assert_array_equal(np.asarray(w)[np.asarray(MASK)], [1, 1, 1, 0, 0, 0])
    np.testing.assert_allclose(metrics['selected_fraction'], 0.5)  # 3 of 6 tokens

  def test_gradient_is_zero_there_and_unchanged_elsewhere(self):
    found = gradient(BATCH.replace(truncated_B=jnp.array([False, False, True])), weights.drop_truncated())
    np.testing.assert_allclose(found, PLAIN * np.array([[1.0], [1.0], [0.0]]), rtol=1e-6)

  def test_none_truncated_is_the_plain_objective(self):
    found = gradient(BATCH.replace(truncated_B=jnp.zeros(3, bool)), weights.drop_truncated())
    np.testing.assert_array_equal(found, gradient(BATCH))

  def test_absent_field(self):
    with pytest.raises(UserError, match='drop_truncated reads truncated_B'):
      gradient(BATCH, weights.drop_truncated())


class TestOffPolicySequenceMask:
  # Mean of sampler - current: row 0 (.2 + .4 + .6) / 3 = .4, row 1 .5, row 2 (.3 + .1) / 2 = .2
  SAMPLER = LOGP + jnp.array([[0.2, 0.4, 0.6], [0.5, 9.0, 9.0], [0.3, 0.1, 9.0]])

  @pytest.mark.parametrize(
    ('threshold', 'keeps'),
    [
      (0.3, [1, 0, 1]),  # row 0 has A >= 0; row 1 drifted by .5
      (0.1, [1, 0, 0]),
      (0.6, [1, 1, 1]),
      (float('inf'), [1, 1, 1]),
    ],
  )
  def test_keeps(self, threshold, keeps):
    w, metrics = off_policy(LOGP, self.SAMPLER, BATCH.advantage_BxT, MASK, threshold=threshold)
    expected = np.array(keeps)[:, None] * np.ones((1, 3))
    np.testing.assert_array_equal(w, expected)
    np.testing.assert_allclose(metrics['selected_fraction'], 1 - expected[np.asarray(MASK)].mean(), rtol=1e-6)

  def test_the_threshold_itself_is_kept(self):
    engine, logp, a = (np.full((1, 1), x, np.float32) for x in (-1.0, -1.5, -1.0))
    w, _ = off_policy(logp, engine, a, np.ones((1, 1), bool), threshold=0.5)
    assert w.tolist() == [[1.0]]

  def test_gradient(self):
    found = gradient(BATCH.replace(sampler_logp_BxT=self.SAMPLER), weights.off_policy_sequence_mask(threshold=0.3))
    np.testing.assert_allclose(found, PLAIN * np.array([[1.0], [0.0], [1.0]]), rtol=1e-6)

  def test_threshold_is_required(self):
    with pytest.raises(UserError, match='threshold has no default'):
      weights.off_policy_sequence_mask()


class TestSamplerImportance:
  OLD = jnp.log(jnp.array([[0.6, 0.1, 0.8]]))
  SAMPLER = jnp.log(jnp.array([[0.4, 0.2, 0.1]]))  # ratios 1.5, .5, 8
  ONES = jnp.ones((1, 3), bool)

  def test_truncate(self):
    w, metrics = sampler(self.OLD, self.SAMPLER, self.ONES)
    np.testing.assert_allclose(w, [[1.5, 0.5, 3.0]], rtol=1e-6)
    np.testing.assert_allclose(metrics['weight_mean'], 5 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics['selected_fraction'], 1 / 3, rtol=1e-6)

  def test_mask(self):
    w, _ = sampler(self.OLD, self.SAMPLER, self.ONES, mode='mask')
    np.testing.assert_allclose(w, [[1.5, 0.5, 0.0]], rtol=1e-6)

  def test_agreement_is_the_plain_objective(self):
    found = gradient(BATCH.replace(sampler_logp_BxT=LOGP), weights.sampler_importance())
    np.testing.assert_array_equal(found, gradient(BATCH))

  def test_gradient_is_weighted(self):
    found = gradient(BATCH.replace(sampler_logp_BxT=LOGP - jnp.log(2.0)), weights.sampler_importance())
    np.testing.assert_allclose(found, 2 * PLAIN, rtol=1e-5)

  @pytest.mark.parametrize('hyper', [{'maximum': 0.0}, {'mode': 'clip'}])
  def test_bad_input(self, hyper):
    with pytest.raises(UserError, match=r'is outside|is not one of'):
      weights.sampler_importance(**hyper)
