"""Where the current policy is the behaviour policy, every surrogate has the gradient of reinforce (sequences of equal length)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective
from entropy_jax.methods import regularizers, surrogates
from entropy_jax.types import TokenBatch

pytestmark = pytest.mark.usefixtures('strict_dtypes')

RNG = np.random.default_rng(0)
B, T = 4, 5
LOGP = jnp.array(RNG.normal(size=(B, T)) - 2, jnp.float32)
ADVANTAGE_B = np.array([1.0, -0.5, 0.0, 2.0])
MASK = jnp.broadcast_to(jnp.arange(T) < 3, (B, T))
BATCH = TokenBatch(
  tokens_BxN=jnp.zeros((B, T), jnp.int32),
  token_mask_BxN=MASK,
  mask_BxT=MASK,
  group_B=jnp.zeros(B, jnp.int32),
  reward_B=jnp.zeros(B),
  old_logp_BxT=LOGP,
  old_entropy_BxT=jnp.ones((B, T)),
  logp_BxT=LOGP,
  entropy_BxT=jnp.ones((B, T)),
  key=jax.random.key(0),
  advantage_BxT=jnp.broadcast_to(jnp.array(ADVANTAGE_B, jnp.float32)[:, None], (B, T)),
)
EXTREME = {
  'sapo': {'temperature_positive': 7.0, 'temperature_negative': 0.2},
  'ppo_clip': {'low': 0.0, 'high': 0.0, 'dual_clip': 3.0, 'delta': 4.0},
  'gspo': {'low': 0.0, 'high': 0.0},
  'gspo_token': {'low': 0.0, 'high': 0.0},
  'gmpo': {'low': 0.0, 'high': 0.0},
  'cispo': {'low': 0.0, 'high': 0.0},
}


def gradient(*transforms, aggregate='sequence_mean_token_mean'):
  chain = objective.chain(*transforms, aggregate=aggregate)
  old_stats = {stat.name: jnp.full((B, T), 0.2) for stat in chain.stats}

  def loss(logp):
    batch = BATCH.replace(logp_BxT=logp, old_stats=old_stats)
    planned, _, _ = chain.plan(chain.init(batch), batch)
    return chain.loss(planned, batch).compute()

  return np.asarray(jax.jit(jax.grad(loss))(LOGP))


EXPECTED = np.where(np.asarray(MASK), -ADVANTAGE_B[:, None] / 12, 0.0)  # the mean over 4 * 3 tokens of -A lp


@pytest.mark.parametrize('name', surrogates.__all__)
def test_defaults(name):
  np.testing.assert_allclose(gradient(getattr(surrogates, name)()), EXPECTED, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize('name', EXTREME)
def test_tightest_bounds(name):
  # Nothing is clipped at a ratio of exactly 1, however tight the clip is.
  np.testing.assert_allclose(gradient(getattr(surrogates, name)(**EXTREME[name])), EXPECTED, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize('name', ['reinforce', 'ppo_clip', 'cispo', 'vespo'])
def test_token_mean_agrees_for_equal_lengths(name):
  np.testing.assert_allclose(gradient(getattr(surrogates, name)(), aggregate='token_mean'), EXPECTED, rtol=1e-6, atol=1e-8)


def test_kl_cov_adds_nothing():
  found = gradient(surrogates.importance(), regularizers.kl_cov(fraction=0.5, coef=100.0))
  np.testing.assert_allclose(found, EXPECTED, rtol=1e-6, atol=1e-8)
