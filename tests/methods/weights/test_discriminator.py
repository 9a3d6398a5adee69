"""Clip_B and Clip_V: the card's numbers, numpy oracles, normalisation, the cap, and that batches without outliers are left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective
from entropy_jax.methods import surrogates, weights
from entropy_jax.ops import categorical
from entropy_jax.types import RunFacts, UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

FAST = {'xla_backend_optimization_level': 0}
clip_b = jax.jit(weights.clip_b.function, static_argnames='normalize', compiler_options=FAST)
clip_v = jax.jit(weights.clip_v.function, static_argnames=('max_fraction', 'normalize', 'form'), compiler_options=FAST)
P = np.array([0.7, 0.2, 0.08, 0.02])
E_NAME = 'expected_discriminator'


def row():
  """(lp, H, E[S]) of the card's four tokens, all of one vocabulary row: D = (-.146229, .351916, .334310, .261603), std .203184."""
  entropy = -np.sum(P * np.log(P))
  expected = np.sum(P**2 * (entropy + np.log(P)))
  return tuple(jnp.asarray(x, jnp.float32)[None] for x in (np.log(P), np.full(4, entropy), np.full(4, expected)))


def discriminator(batch):
  lp, entropy = np.asarray(batch.old_logp_BxT, np.float64), np.asarray(batch.old_entropy_BxT, np.float64)
  return np.exp(lp) * (entropy + lp)


class TestClipB:
  SCORE = jnp.array([[0.15, 0.10, -0.30, -0.02, 0.05, -0.35]])  # at p = 1, S is the entropy that is given
  ADVANTAGE = jnp.array([[1.0, 1.0, 1.0, -1.0, -1.0, -1.0]])

  def weight(self, **hyper):
    return clip_b(jnp.zeros((1, 6)), self.SCORE, self.ADVANTAGE, jnp.ones((1, 6), bool), **hyper)

  def test_card_values(self):
    # mean -.061667, std .193685: below -.061667 - .193685 = -.255 lie -.30 (A > 0, protected) and -.35
    w, metrics = self.weight(mu=1.0)
    np.testing.assert_allclose(w, [[1.2, 1.2, 1.2, 1.2, 1.2, 0.0]], rtol=1e-6)  # 6 / 5
    np.testing.assert_allclose(metrics['discriminator_mean'], -0.061667, atol=1e-6)
    np.testing.assert_allclose(metrics['discriminator_std'], 0.193685, atol=1e-6)
    np.testing.assert_allclose(metrics['selected_fraction'], 1 / 6, rtol=1e-6)

  def test_normalize_all(self):
    assert self.weight(mu=1.0, normalize='all')[0].tolist() == [[1.0, 1.0, 1.0, 1.0, 1.0, 0.0]]

  @pytest.mark.parametrize('mu', [2.5, float('inf')])
  def test_no_outlier_changes_nothing(self, mu):
    assert self.weight(mu=mu)[0].tolist() == [[1.0] * 6]

  @pytest.mark.parametrize('mu', [0.0, 0.5, 1.0])
  def test_against_numpy(self, mu):
    batch = helpers.token_batch(seed=2, B=12, T=9)
    mask, score = np.asarray(batch.mask_BxT), discriminator(batch)
    centred = score - score[mask].mean()
    dropped = mask & (np.asarray(batch.advantage_BxT) < 0) & (centred < -mu * score[mask].std())
    assert 0 < dropped.sum() < (mask & (np.asarray(batch.advantage_BxT) < 0)).sum()
    expected = np.where(dropped, 0.0, mask.sum() / (mask.sum() - dropped.sum()))
    w, _ = clip_b(batch.old_logp_BxT, batch.old_entropy_BxT, batch.advantage_BxT, batch.mask_BxT, mu=mu)
    np.testing.assert_allclose(w, expected, rtol=1e-6)

  def test_equal_scores_up_to_rounding_have_no_outliers(self):
    entropy = jnp.array([[0.4, 0.4, 0.39999998, 0.4, 0.4, 0.4]])
    w, _ = clip_b(jnp.zeros((1, 6)), entropy, -jnp.ones((1, 6)), jnp.ones((1, 6), bool), mu=0.1)
    assert w.tolist() == [[1.0] * 6]

  def test_masked_slots_and_an_empty_batch(self):
    entropy = jnp.concatenate([self.SCORE, jnp.full((1, 2), jnp.nan)], axis=1)
    wide = jnp.concatenate([self.ADVANTAGE, jnp.full((1, 2), -1.0)], axis=1)
    logp = jnp.concatenate([jnp.zeros((1, 6)), jnp.full((1, 2), jnp.inf)], axis=1)
    mask = jnp.arange(8)[None] < 6
    w, _ = clip_b(logp, entropy, wide, mask, mu=1.0)
    np.testing.assert_allclose(w[0, :6], [1.2, 1.2, 1.2, 1.2, 1.2, 0.0], rtol=1e-6)
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(clip_b(logp, entropy, wide, ~mask & mask, mu=1.0)))

  def test_loss_is_the_mean_over_kept_tokens(self):
    batch = helpers.token_batch(seed=2, B=12, T=9)
    chain = objective.chain(weights.clip_b(mu=0.5), surrogates.reinforce())

    @jax.jit
    def run(logp):
      planned, _, _ = chain.plan(chain.init(batch), batch)
      return jax.value_and_grad(lambda lp: chain.loss(planned, batch.replace(logp_BxT=lp)).compute())(logp), planned

    (loss, gradient), planned = run(batch.logp_BxT)
    kept = np.asarray(planned['clip_b']['weight_BxT']) > 0
    advantage, logp = (np.asarray(x, np.float64)[kept] for x in (batch.advantage_BxT, batch.logp_BxT))
    np.testing.assert_allclose(loss, -np.mean(advantage * logp), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(gradient)[kept], -advantage / kept.sum(), rtol=1e-5)
    assert not np.any(np.asarray(gradient)[~kept])

  @pytest.mark.parametrize('hyper', [{'mu': -1.0}, {'normalize': 'none'}])
  def test_bad_input(self, hyper):
    with pytest.raises(UserError, match=r'is outside|is not one of'):
      weights.clip_b(**hyper)


class TestClipV:
  def weight(self, advantage=(-1.0, -1.0, -1.0, -1.0), **hyper):
    logp, entropy, expected = row()
    return clip_v(logp, entropy, expected, jnp.array([advantage]), jnp.ones((1, 4), bool), jnp.array([0]), **hyper)

  def test_card_values(self):
    logp, entropy, expected = row()
    d = np.asarray(expected) - np.exp(logp) * (np.asarray(entropy) + logp)
    np.testing.assert_allclose(d, [[-0.146229, 0.351916, 0.334310, 0.261603]], atol=1e-6)
    # the statistic it reads: S is least not for the least likely token but near p = e^(-H - 1) = .16
    np.testing.assert_allclose(weights.clip_v().stats[0].fn(jnp.log(jnp.asarray(P, jnp.float32))), expected[0, 0], rtol=1e-6)
    # mu std = .203: tokens 1, 2, 3 are above it; floor(.5 * 4) = 2 may go
    w, metrics = self.weight(mu=1.0, max_fraction=0.5)
    np.testing.assert_allclose(w, [[2.0, 0.0, 0.0, 2.0]], rtol=1e-6)
    assert float(metrics['candidate_fraction']) == 0.75 and float(metrics['selected_fraction']) == 0.5

  def test_at_least_one_however_small_the_fraction(self):
    np.testing.assert_allclose(self.weight(mu=1.0, max_fraction=1e-4)[0], [[4 / 3, 0.0, 4 / 3, 4 / 3]], rtol=1e-6)

  def test_threshold_is_not_centred(self):
    # mean D = .2004: centred, token 1 would have to exceed .2004 + 1.5 * .2032 = .505; uncentred .305 lets tokens 1 and 2 go
    np.testing.assert_allclose(self.weight(mu=1.5, max_fraction=1.0)[0], [[2.0, 0.0, 0.0, 2.0]], rtol=1e-6)

  def test_positive_advantages_are_kept(self):
    np.testing.assert_allclose(self.weight((-1.0, 1.0, 1.0, 0.0), mu=1.0, max_fraction=1.0)[0], [[1.0] * 4], rtol=1e-6)

  def test_released_form_drops_zero_advantages_beyond_the_cap(self):
    advantage = (-1.0, 0.0, -1.0, 0.0)  # candidates: token 2; above the threshold with A = 0: tokens 1 and 3
    np.testing.assert_allclose(self.weight(advantage, mu=1.0, max_fraction=0.25)[0], [[4 / 3, 4 / 3, 0.0, 4 / 3]], rtol=1e-6)
    w, metrics = self.weight(advantage, mu=1.0, max_fraction=0.25, form='released')
    np.testing.assert_allclose(w, [[4.0, 0.0, 0.0, 0.0]], rtol=1e-6)
    assert float(metrics['selected_fraction']) == 0.75

  def test_mu_infinite_changes_nothing(self):
    assert self.weight(mu=float('inf'))[0].tolist() == [[1.0] * 4]

  @pytest.mark.parametrize(('mu', 'max_fraction'), [(0.0, 1.0), (0.5, 0.05), (1.0, 1.0)])
  def test_against_numpy(self, mu, max_fraction):
    batch = helpers.token_batch(seed=6, B=12, T=9, old_stats=(E_NAME,))
    mask, advantage = np.asarray(batch.mask_BxT), np.asarray(batch.advantage_BxT)
    d = np.asarray(batch.old_stats[E_NAME], np.float64) - discriminator(batch)
    candidate = mask & (advantage < 0) & (d > mu * d[mask].std())
    num = min(max(int(max_fraction * mask.sum()), 1), candidate.sum())
    dropped = np.zeros(mask.shape, bool)
    for index in sorted(np.argwhere(candidate).tolist(), key=lambda i: -d[tuple(i)])[:num]:
      dropped[tuple(index)] = True
    assert dropped.any()
    w, _ = clip_v(
      batch.old_logp_BxT, batch.old_entropy_BxT, batch.old_stats[E_NAME], batch.advantage_BxT, batch.mask_BxT, batch.sequence_B,
      mu=mu, max_fraction=max_fraction,
    )
    np.testing.assert_allclose(w, np.where(dropped, 0.0, mask.sum() / (mask.sum() - num)), rtol=1e-6)

  def test_sign_of_the_discriminator(self):
    # dropping it keeps entropy: pushing down a token with D > 0 sharpens the row
    logits = jnp.log(jnp.asarray(P, jnp.float32))
    step = 1e-2 * (jnp.asarray(P, jnp.float32) - jnp.array([0.0, 1.0, 0.0, 0.0]))  # A < 0 on token 1
    assert float(categorical.entropy(logits + step) - categorical.entropy(logits)) < 0

  def test_notes_and_bad_input(self):
    facts = RunFacts(updates_per_rollout=4, group_size=8, num_tokens=1000, aggregate='token_mean')
    (note,) = [n(facts) for n in weights.clip_v().notes]
    assert 'max_fraction=0.0001 of at most 1000 tokens' in note
    for hyper in ({'mu': -1.0}, {'max_fraction': 0.0}, {'form': 'old'}):
      with pytest.raises(UserError, match=r'is outside|is not one of'):
        weights.clip_v(**hyper)
