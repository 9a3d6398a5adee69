"""The token covariance against the card's numbers, numpy, and its invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.ops import covariance

pytestmark = pytest.mark.usefixtures('strict_dtypes')

LOGP = jnp.log(jnp.array([[0.9, 0.05, 0.6, 0.1]]))
ADVANTAGE = jnp.array([[2.0, 0.5, -1.0, -1.5]])
ALL = jnp.ones((1, 4), bool)
token_covariance = jax.jit(covariance.token_covariance)


class TestTokenCovariance:
  def test_card_values(self):
    # mean A = 0; mean lp = (-.105361 - 2.995732 - .510826 - 2.302585) / 4 = -1.478626
    # 2 (1.373265), .5 (-1.517106), -1 (.967800), -1.5 (-.823959)
    score = token_covariance(LOGP, ADVANTAGE, ALL)
    np.testing.assert_allclose(score[0], [2.746531, -0.758553, -0.967800, 1.235939], atol=1e-6)
    np.testing.assert_allclose(np.asarray(score).mean(), 0.564029, atol=1e-6)

  def test_mean_is_numpys_covariance(self):
    rng = np.random.default_rng(0)
    logp, advantage, mask = rng.normal(size=(5, 7)), rng.normal(size=(5, 7)), rng.random((5, 7)) < 0.6
    score = token_covariance(jnp.float32(logp), jnp.float32(advantage), jnp.array(mask))
    expected = np.cov(logp[mask], advantage[mask], ddof=0)[0, 1]
    np.testing.assert_allclose(np.asarray(score).sum() / mask.sum(), expected, rtol=1e-5)

  def test_masked_slots_may_hold_anything(self):
    bad = jnp.array([[jnp.nan, jnp.inf]])
    score = token_covariance(
      jnp.concatenate([LOGP, bad], 1), jnp.concatenate([ADVANTAGE, -bad], 1), jnp.array([[True] * 4 + [False] * 2])
    )
    np.testing.assert_allclose(score[:, :4], token_covariance(LOGP, ADVANTAGE, ALL), rtol=1e-6)
    assert score[0, 4:].tolist() == [0.0, 0.0]

  @pytest.mark.parametrize('constant', [0.0, 0.3, -1 / 3])
  def test_constant_advantage_scores_exactly_zero(self, constant):
    # Seven times .3 sums to 2.1000001 in float32: a plain mean would leave a rounding error for the selection to rank.
    logp = jnp.linspace(-5.0, -0.1, 7)[None]
    assert not np.any(token_covariance(logp, jnp.full((1, 7), constant, jnp.float32), jnp.ones((1, 7), bool)))

  def test_no_gradient(self):
    grads = jax.jit(jax.grad(lambda lp, a: jnp.sum(token_covariance(lp, a, ALL) ** 2), argnums=(0, 1)))(LOGP, ADVANTAGE)
    assert not np.any(grads[0]) and not np.any(grads[1])

  def test_no_valid_token(self):
    assert not np.any(token_covariance(LOGP, ADVANTAGE, ~ALL))


class TestSummary:
  def test_against_numpy(self):
    score = np.random.default_rng(1).normal(size=(4, 50)).astype(np.float32)
    mask = np.arange(50)[None] < np.array([50, 10, 0, 37])[:, None]
    found = jax.jit(covariance.summary)(jnp.array(score), jnp.array(mask))
    np.testing.assert_allclose(found['covariance_mean'], score[mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(found['covariance_p99'], np.quantile(score[mask], 0.99), rtol=1e-5)
