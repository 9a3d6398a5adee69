"""Clip-Cov: the card's numbers, eligibility, exact random choice, limits and notes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective
from entropy_jax.methods import surrogates, weights
from entropy_jax.types import RunFacts, TokenBatch, UserError

pytestmark = pytest.mark.usefixtures('strict_dtypes')

FACTS = RunFacts(updates_per_rollout=8, group_size=8, num_tokens=100_000, aggregate='token_mean')
KEY = jax.random.key(0)
LOGP = np.log([[0.9, 0.05, 0.6, 0.1]]).astype(np.float32)  # covariances 2.746531, -.758553, -.967800, 1.235939
ADVANTAGE = np.array([[2.0, 0.5, -1.0, -1.5]], np.float32)
ONES = np.ones((1, 4), bool)
RNG = np.random.default_rng(0)
MANY_LOGP = RNG.normal(size=(10, 50)).astype(np.float32) * 2 - 3
MANY_A = RNG.normal(size=(10, 50)).astype(np.float32)
MANY_MASK = RNG.random((10, 50)) < 0.8
IDENTITY = RNG.permutation(100)[:10].astype(np.int32)
jitted = jax.jit(weights.clip_cov.function, static_argnames='fraction')


def weight(logp=LOGP, delta=None, advantage=ADVANTAGE, mask=ONES, key=KEY, sequence=None, **hyper):
  sequence = np.arange(len(mask), dtype=np.int32) if sequence is None else sequence
  delta = np.zeros_like(logp) if delta is None else np.asarray(delta, np.float32)
  bounds = {'cov_low': 1.0, 'cov_high': 5.0, 'clip_low': 1.0, 'clip_high': 1.0}  # always given: one compilation a shape
  w, metrics = jitted(logp, delta, advantage, mask, key, sequence, **{'fraction': 2e-4, **bounds, **hyper})
  return np.asarray(w), {k: float(v) for k, v in metrics.items()}


def update(*transforms):
  """(loss, gradient, weight) of the 10 by 50 batch, with ratios that PPO clips here and there."""
  batch = TokenBatch(
    tokens_BxN=jnp.zeros((10, 50), jnp.int32),
    token_mask_BxN=jnp.array(MANY_MASK),
    mask_BxT=jnp.array(MANY_MASK),
    group_B=jnp.zeros(10, jnp.int32),
    reward_B=jnp.zeros(10),
    old_logp_BxT=jnp.array(MANY_LOGP + 0.4 * np.sin(np.arange(50, dtype=np.float32))[None]),
    old_entropy_BxT=jnp.zeros((10, 50)),
    logp_BxT=jnp.array(MANY_LOGP),
    entropy_BxT=jnp.zeros((10, 50)),
    key=KEY,
    advantage_BxT=jnp.array(MANY_A),
    sequence_B=jnp.array(IDENTITY),
  )
  chain = objective.chain(*transforms)

  @jax.jit
  def run():
    planned, _, _ = chain.plan(chain.init(batch), batch)
    loss, gradient = jax.value_and_grad(lambda lp: chain.loss(planned, batch.replace(logp_BxT=lp)).compute())(batch.logp_BxT)
    return loss, gradient, planned.get('clip_cov', {'weight_BxT': 1.0})['weight_BxT']

  return jax.tree.map(np.asarray, run())


class TestClipCov:
  def test_card_values(self):
    # Tokens 0 and 3 lie in (1, 5); floor(.5 * 4) = 2 takes both
    w, metrics = weight(fraction=0.5)
    assert w.tolist() == [[0.0, 1.0, 1.0, 0.0]]
    assert metrics['num_eligible'] == 2 and metrics['selected_fraction'] == 0.5
    np.testing.assert_allclose(metrics['covariance_mean'], 0.564029, atol=1e-6)
    np.testing.assert_allclose(metrics['covariance_p99'], 2.701213, atol=1e-5)  # 1.235939 + .97 (2.746531 - 1.235939)

  def test_at_least_one_however_small_the_fraction(self):
    w, metrics = weight()  # floor(2e-4 * 4) = 0, raised to 1
    assert w.sum() == 3 and metrics['selected_fraction'] == 0.25
    assert w[0, 1] == 1 and w[0, 2] == 1

  def test_every_eligible_token_is_as_likely(self):
    # One of two over 1000 keys: standard error sqrt(.25 / 1000) = .016
    keys = jax.random.split(KEY, 1000)
    function = lambda k: weights.clip_cov.function(LOGP, np.zeros_like(LOGP), ADVANTAGE, ONES, k, None)[0]
    frequency = 1 - np.asarray(jax.jit(jax.vmap(function))(keys)).mean(0)[0]
    np.testing.assert_allclose(frequency, [0.5, 0.0, 0.0, 0.5], atol=4 * 0.016)

  def test_never_more_than_are_eligible(self):
    assert weight(fraction=1.0)[0].tolist() == [[0.0, 1.0, 1.0, 0.0]]

  def test_bounds_are_strict(self):
    # A = (1, -1), lp = (-1, -3): both covariances are exactly 1; two padded tokens follow
    logp, advantage = np.array([[-1.0, -3.0, 9.0, 9.0]], np.float32), np.array([[1.0, -1.0, 9.0, 9.0]], np.float32)
    pair = {'logp': logp, 'advantage': advantage, 'mask': np.array([[True, True, False, False]])}
    assert weight(**pair, fraction=1.0)[1]['num_eligible'] == 0
    assert weight(**pair, fraction=1.0, cov_low=0.99)[1]['num_eligible'] == 2
    assert weight(**pair, fraction=1.0, cov_low=0.0, cov_high=1.0)[1]['num_eligible'] == 0

  def test_tokens_that_ppo_clips_are_not_eligible(self):
    # r = e^.9 = 2.46 > 2 with A > 0 is clipped, r = .01 with A < 0 is not: 1 - clip_low = 0
    delta = [[0.9, 0.0, 0.0, np.log(0.01)]]
    assert weight(delta=delta, fraction=1.0)[0].tolist() == [[1.0, 1.0, 1.0, 0.0]]
    # with clips of .2 the last token (A < 0, r < .8) is clipped too
    assert weight(delta=delta, fraction=1.0, clip_low=0.2, clip_high=0.2)[1]['num_eligible'] == 0
    # a large ratio with A < 0, or a small one with A > 0, is never clipped
    assert weight(delta=[[-3.0, 0.0, 0.0, 3.0]], fraction=1.0, clip_low=0.2, clip_high=0.2)[1]['num_eligible'] == 2

  def test_exact_count(self):
    n = MANY_MASK.sum()
    w, metrics = weight(MANY_LOGP, None, MANY_A, MANY_MASK, fraction=0.05)
    assert metrics['num_eligible'] > n * 0.05
    assert (w == 0).sum() == n // 20
    assert not np.any((w == 0) & ~MANY_MASK)

  def test_quantile_bounds_replace_absolute_ones(self):
    score = (MANY_A - MANY_A[MANY_MASK].mean()) * (MANY_LOGP - MANY_LOGP[MANY_MASK].mean())
    low, high = np.quantile(score[MANY_MASK], [0.8, 0.95])
    w, _ = weight(MANY_LOGP, None, MANY_A, MANY_MASK, fraction=1.0, low_quantile=0.8, high_quantile=0.95)
    np.testing.assert_array_equal(w == 0, MANY_MASK & (score > low) & (score < high))
    # one quantile leaves the other bound absolute
    w, _ = weight(MANY_LOGP, None, MANY_A, MANY_MASK, fraction=1.0, low_quantile=0.8, high_quantile=None, cov_high=3.0)
    np.testing.assert_array_equal(w == 0, MANY_MASK & (score > low) & (score < 3.0))

  def test_same_tokens_for_permuted_rows_and_more_padding(self):
    order = RNG.permutation(10)
    w, _ = weight(MANY_LOGP, None, MANY_A, MANY_MASK, sequence=IDENTITY, fraction=0.05)
    moved, _ = weight(MANY_LOGP[order], None, MANY_A[order], MANY_MASK[order], sequence=IDENTITY[order], fraction=0.05)
    np.testing.assert_array_equal(moved, w[order])
    wide = lambda x, fill: np.pad(x, ((0, 0), (0, 5)), constant_values=fill)
    padded, _ = weight(
      wide(MANY_LOGP, np.nan), wide(np.zeros_like(MANY_A), np.nan), wide(MANY_A, np.inf), wide(MANY_MASK, False),
      sequence=IDENTITY, fraction=0.05,
    )
    np.testing.assert_array_equal(padded[:, :50][MANY_MASK], w[MANY_MASK])

  def test_other_key_other_tokens(self):
    first, _ = weight(MANY_LOGP, None, MANY_A, MANY_MASK, fraction=0.05)
    other, _ = weight(MANY_LOGP, None, MANY_A, MANY_MASK, key=jax.random.key(1), fraction=0.05)
    assert np.any(first != other)

  def test_gradient_is_exactly_zero_on_chosen_tokens_and_unchanged_on_others(self):
    _, plain, _ = update(surrogates.ppo_clip(low=1.0, high=1.0))
    _, gradient, w = update(weights.clip_cov(fraction=0.05), surrogates.ppo_clip(low=1.0, high=1.0))
    assert (w[MANY_MASK] == 0).sum() == MANY_MASK.sum() // 20
    np.testing.assert_array_equal(gradient, np.where(w == 0, 0.0, plain))  # the divisor does not change

  def test_nothing_eligible_is_ppo(self):
    plain = update(surrogates.ppo_clip())
    found = update(weights.clip_cov(fraction=0.5, cov_low=1e6, cov_high=2e6), surrogates.ppo_clip())
    np.testing.assert_array_equal(found[0], plain[0])
    np.testing.assert_array_equal(found[1], plain[1])

  def test_notes(self):
    text = lambda facts, **hyper: [t for t in (n(facts) for n in weights.clip_cov(**hyper).notes) if t is not None]
    assert text(FACTS) == []
    assert 'fraction=0.0002 of at most 1000 tokens' in text(FACTS._replace(num_tokens=1000))[0]
    assert 'cov_low=5 is not below cov_high=1' in text(FACTS, cov_low=5.0, cov_high=1.0)[0]
    assert 'low_quantile=0.9 is not below high_quantile=0.5' in text(FACTS, low_quantile=0.9, high_quantile=0.5)[0]
    assert text(FACTS, low_quantile=0.98, high_quantile=1.0, cov_low=5.0, cov_high=1.0) == []  # replaced

  @pytest.mark.parametrize('hyper', [{'fraction': 0.0}, {'fraction': 2.0}, {'low_quantile': 1.5}, {'clip_low': -0.1}])
  def test_bad_input(self, hyper):
    with pytest.raises(UserError, match='is outside'):
      weights.clip_cov(**hyper)
