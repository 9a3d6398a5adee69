"""KL-Cov: the card's numbers, limits, which tokens are selected, and its build-time notes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective
from entropy_jax.methods import regularizers, surrogates
from entropy_jax.types import RunFacts, TokenBatch, UserError

pytestmark = pytest.mark.usefixtures('strict_dtypes')

FACTS = RunFacts(updates_per_rollout=8, group_size=8, num_tokens=100_000, aggregate='token_mean')
LOGP = np.log([[0.9, 0.05, 0.6, 0.1]])
DELTA = np.array([[0.1, 0.0, -0.1, 0.2]])
ADVANTAGE = np.array([[2.0, 0.5, -1.0, -1.5]])
RNG = np.random.default_rng(0)
ORDER = np.array([3, 0, 4, 1, 2])
plan = jax.jit(regularizers.kl_cov.plan, static_argnames='fraction')


def make_batch(logp, delta, advantage, mask=None, sequence=None):
  mask = np.ones(np.shape(logp), bool) if mask is None else mask
  num = len(mask)
  logp = jnp.asarray(logp, jnp.float32)
  return TokenBatch(
    tokens_BxN=jnp.zeros(mask.shape, jnp.int32),
    token_mask_BxN=jnp.array(mask),
    mask_BxT=jnp.array(mask),
    group_B=jnp.zeros(num, jnp.int32),
    reward_B=jnp.zeros(num),
    old_logp_BxT=logp - jnp.asarray(delta, jnp.float32),
    old_entropy_BxT=jnp.zeros(mask.shape),
    logp_BxT=logp,
    entropy_BxT=jnp.zeros(mask.shape),
    key=jax.random.key(0),
    advantage_BxT=jnp.asarray(advantage, jnp.float32),
    sequence_B=jnp.arange(num) if sequence is None else jnp.array(sequence),
  )


def run(batch, *transforms):
  """(loss, gradient in logp, planned, metrics) of one update."""
  chain = objective.chain(*transforms)

  @jax.jit
  def update(batch):
    planned, _, metrics = chain.plan(chain.init(batch), batch)
    loss, gradient = jax.value_and_grad(lambda lp: chain.loss(planned, batch.replace(logp_BxT=lp)).compute())(batch.logp_BxT)
    return loss, gradient, planned, metrics

  return jax.tree.map(np.asarray, update(batch))


def chosen(batch, *, fraction):
  arrays = (batch.logp_BxT, batch.logp_BxT - batch.old_logp_BxT, batch.advantage_BxT, batch.mask_BxT, batch.sequence_B)
  return np.asarray(plan(*arrays, fraction=fraction)[0]['chosen_BxT'])


CARD = make_batch(LOGP, DELTA, ADVANTAGE)
# Two advantages and few log-probabilities, as a tabular policy has them: most scores are tied.
TIED_LOGP, TIED_A = np.log(RNG.choice([0.1, 0.5, 0.9], (5, 8))), RNG.choice([-0.5, 1.5], (5, 1)) * np.ones((1, 8))
TIED_MASK = np.arange(8)[None] < np.array([8, 3, 0, 6, 5])[:, None]
IDENTITY = np.array([12, 5, 33, 2, 8])


class TestKlCov:
  def test_card_values(self):
    plain, _, _, _ = run(CARD, surrogates.importance())
    # -(2 e^.1 + .5 - e^-.1 - 1.5 e^.2) / 4 = -(2.210342 + .5 - .904837 - 1.832104) / 4
    np.testing.assert_allclose(plain, 0.0066499, atol=1e-6)
    # K = max(1, floor(.002 * 4)) = 1: token 0, covariance 2.75, adds 1 * |.1| / 4
    loss, gradient, planned, metrics = run(CARD, surrogates.importance(), regularizers.kl_cov())
    assert planned['kl_cov']['chosen_BxT'].tolist() == [[True, False, False, False]]
    np.testing.assert_allclose(loss, 0.0316499, atol=1e-6)
    np.testing.assert_allclose(gradient[0, 0], (-2 * np.exp(0.1) + 1) / 4, rtol=1e-5)
    np.testing.assert_allclose(gradient[0, 1], -0.5 / 4, rtol=1e-6)
    np.testing.assert_allclose(metrics['regularizer/kl_cov/selected_fraction'], 0.25)
    np.testing.assert_allclose(metrics['regularizer/kl_cov/penalty'], 0.025, rtol=1e-5)
    np.testing.assert_allclose(metrics['regularizer/kl_cov/covariance_mean'], 0.564029, atol=1e-6)
    # .99 of the way from rank 0 to rank 3 is 2.97: 1.235939 + .97 (2.746531 - 1.235939)
    np.testing.assert_allclose(metrics['regularizer/kl_cov/covariance_p99'], 2.701213, atol=1e-5)

  def test_zero_coefficient_is_importance(self):
    with_penalty = run(CARD, surrogates.importance(), regularizers.kl_cov(fraction=0.5, coef=0.0))
    plain = run(CARD, surrogates.importance())
    np.testing.assert_array_equal(with_penalty[0], plain[0])
    np.testing.assert_array_equal(with_penalty[1], plain[1])

  def test_exactly_zero_gradient_at_zero_log_ratio(self):
    penalty = jax.grad(lambda d: jnp.sum(regularizers.kl_cov.function(d, jnp.ones(3, bool), coef=7.0)))(jnp.zeros(3))
    assert penalty.tolist() == [0.0, 0.0, 0.0]
    on_policy = make_batch(LOGP, 0 * DELTA, ADVANTAGE)
    found = run(on_policy, surrogates.importance(), regularizers.kl_cov(fraction=1.0, coef=7.0))
    np.testing.assert_allclose(found[1], -ADVANTAGE / 4, rtol=1e-6)  # reinforce

  def test_gradient_is_the_sign_on_chosen_tokens_alone(self):
    gradient = jax.grad(lambda d: jnp.sum(regularizers.kl_cov.function(d, jnp.array([True, True, False]), coef=3.0)))
    assert gradient(jnp.array([0.2, -50.0, 0.2])).tolist() == [3.0, -3.0, 0.0]

  @pytest.mark.parametrize(('fraction', 'count'), [(2e-4, 1), (0.1, 2), (0.5, 11), (1.0, 22)])
  def test_exact_count_under_ties(self, fraction, count):
    batch = make_batch(TIED_LOGP, 0 * TIED_A, TIED_A, TIED_MASK, IDENTITY)
    found = chosen(batch, fraction=fraction)
    assert found.sum() == count  # max(1, floor(fraction * 22))
    assert not np.any(found & ~TIED_MASK)

  def test_largest_covariances_against_sorting(self):
    logp, advantage = RNG.normal(size=(5, 8)) - 2, RNG.normal(size=(5, 8))
    score = (advantage - advantage[TIED_MASK].mean()) * (logp - logp[TIED_MASK].mean())
    cut = np.sort(score[TIED_MASK])[-6]
    found = chosen(make_batch(logp, 0 * logp, advantage, TIED_MASK), fraction=0.3)  # floor(6.6)
    np.testing.assert_array_equal(found, TIED_MASK & (score >= cut))

  def test_same_tokens_for_permuted_rows_and_more_padding(self):
    found = chosen(make_batch(TIED_LOGP, 0 * TIED_A, TIED_A, TIED_MASK, IDENTITY), fraction=0.3)
    moved = chosen(make_batch(TIED_LOGP[ORDER], 0 * TIED_A, TIED_A[ORDER], TIED_MASK[ORDER], IDENTITY[ORDER]), fraction=0.3)
    np.testing.assert_array_equal(moved, found[ORDER])
    wide = lambda x, fill: np.pad(x, ((0, 0), (0, 3)), constant_values=fill)
    padded = make_batch(wide(TIED_LOGP, np.nan), wide(0 * TIED_A, 0), wide(TIED_A, np.inf), wide(TIED_MASK, False), IDENTITY)
    np.testing.assert_array_equal(chosen(padded, fraction=0.3), wide(found, False))

  def test_notes(self):
    text = lambda facts, **hyper: [t for t in (n(facts) for n in regularizers.kl_cov(**hyper).notes) if t is not None]
    assert text(FACTS) == []
    assert 'no-op' in text(FACTS._replace(updates_per_rollout=1))[0]
    floor = text(FACTS._replace(num_tokens=400))[0]  # .002 * 400 = .8
    assert 'fraction=0.002 of at most 400 tokens' in floor and 'at least 1/400' in floor
    assert text(FACTS._replace(num_tokens=500)) == []

  @pytest.mark.parametrize('hyper', [{'fraction': 0.0}, {'fraction': 1.5}, {'coef': -1.0}])
  def test_bad_input(self, hyper):
    with pytest.raises(UserError, match='is outside'):
      regularizers.kl_cov(**hyper)
