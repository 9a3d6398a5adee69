"""SIREN: peaks of a sequence, the squared distance of the whole batch in value and gradient, and the anchor's memory."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective
from entropy_jax.methods import regularizers, surrogates
from entropy_jax.methods.regularizers import nucleus
from entropy_jax.types import RunFacts, UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

STAT = 'nucleus_entropy@0.8'
BATCH = helpers.token_batch(seed=1, B=6, T=8, stats=(STAT,))
MASK, ENTROPY = np.asarray(BATCH.mask_BxT), np.asarray(BATCH.stats[STAT])
peaks = jax.jit(nucleus.peaks, static_argnames='quantile')


@functools.cache
def siren(**hyper):
  return helpers.entropy_term(regularizers.siren(**hyper), BATCH, STAT)


def update(state=None, entropy=ENTROPY, mask=MASK, **hyper):
  initial, run = siren(**hyper)
  value, gradient, new, metrics = run(initial if state is None else state, jnp.asarray(entropy), jnp.asarray(mask))
  return float(value), np.asarray(gradient), new, {k: float(v) for k, v in metrics.items()}


def expected(entropy, mask, quantile, positions='peaks'):
  """(h, dh/dH) by a loop over sequences in float64."""
  gradient, means = np.zeros(mask.shape), []
  chosen = []
  for i, (h, m) in enumerate(zip(entropy.astype(np.float64), mask)):
    if m.any():
      peak = m & (h > np.quantile(h[m], quantile)) if positions == 'peaks' else m
      if peak.any():
        chosen.append((i, peak))
        means.append(h[peak].mean())
  for i, peak in chosen:
    gradient[i, peak] = 1 / (len(chosen) * peak.sum())
  return np.mean(means), gradient


class TestPeaks:
  def test_card_values(self):
    # .1 ... 1: the .8-quantile is .82 = .8 + .2 (.9 - .8), and two tokens are above it
    found = peaks(jnp.arange(1.0, 11.0)[None] / 10, jnp.ones((1, 10), bool), quantile=0.8)
    assert np.flatnonzero(found[0]).tolist() == [8, 9]

  def test_by_sequence_and_over_valid_tokens_alone(self):
    found = np.asarray(peaks(jnp.asarray(np.where(MASK, ENTROPY, np.nan)), jnp.asarray(MASK), quantile=0.5))
    for i, mask in enumerate(MASK):
      np.testing.assert_array_equal(found[i], mask & (ENTROPY[i] > np.median(ENTROPY[i][mask])))

  def test_strict(self):
    # Five equal entropies have no peak; of (1, 2, 2, 2, 2, 3), whose .8-quantile is 2, only the 3 is above
    assert not np.asarray(peaks(jnp.ones((1, 6)), jnp.ones((1, 6), bool), quantile=0.8)).any()
    found = peaks(jnp.array([[1.0, 2.0, 2.0, 2.0, 2.0, 3.0]]), jnp.ones((1, 6), bool), quantile=0.8)
    assert np.flatnonzero(found[0]).tolist() == [5]


class TestSiren:
  @pytest.mark.parametrize('positions', ['peaks', 'all'])
  def test_squared_distance_of_the_whole_batch(self, positions):
    # d/dH of coef (h - a)^2 is 2 coef (h - a) dh/dH, whatever the lengths are
    h, gradient = expected(ENTROPY, MASK, 0.5, positions)
    value, got, _, metrics = update(coef=0.3, quantile=0.5, anchor=0.2, positions=positions)
    np.testing.assert_allclose(value, 0.3 * (h - 0.2) ** 2, rtol=1e-5)
    np.testing.assert_allclose(got, 0.6 * (h - 0.2) * gradient, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose([metrics['entropy'], metrics['anchor']], [h, 0.2], rtol=1e-5)
    np.testing.assert_allclose(metrics['peak_fraction'], (gradient > 0).sum() / MASK.sum(), rtol=1e-5)

  def test_it_pulls_from_both_sides(self):
    _, above, _, _ = update(coef=0.3, quantile=0.5, anchor=0.2)
    _, below, _, _ = update(coef=0.3, quantile=0.5, anchor=5.0)
    assert (above >= 0).all() and above.any() and (below <= 0).all() and below.any()

  def test_the_first_batch_is_the_anchor(self):
    h, slope = expected(ENTROPY, MASK, 0.5)
    value, gradient, state, metrics = update(coef=0.3, quantile=0.5)
    assert abs(value) < 1e-9 and not gradient.any() and metrics['penalty'] == 0
    np.testing.assert_allclose(metrics['anchor'], h, rtol=1e-5)
    # The second batch has half the entropy, and the anchor stays for the third
    for _ in range(2):
      value, gradient, state, metrics = update(state, ENTROPY / 2, coef=0.3, quantile=0.5)
      np.testing.assert_allclose(value, 0.3 * (h / 2) ** 2, rtol=1e-5)
      np.testing.assert_allclose(gradient, -0.3 * h * slope, rtol=1e-5, atol=1e-8)

  def test_a_batch_without_a_peak_changes_nothing(self):
    initial, _ = siren(coef=0.3, quantile=0.5)
    for mask in (np.zeros_like(MASK), np.zeros_like(MASK) | (np.arange(8) == 0)):  # nothing, and one token a sequence
      value, gradient, state, metrics = update(None, ENTROPY, mask, coef=0.3, quantile=0.5)
      assert value == 0 and not gradient.any() and metrics['peak_fraction'] == 0
      chex.assert_trees_all_equal(state, initial)
    _, _, state, _ = update(coef=0.3, quantile=0.5)
    _, gradient, after, _ = update(state, ENTROPY, np.zeros_like(MASK), coef=0.3, quantile=0.5)
    chex.assert_trees_all_equal(after, state)

  def test_a_given_anchor_needs_no_memory(self):
    initial, _ = siren(coef=0.3, quantile=0.5, anchor=0.2)
    _, _, state, _ = update(coef=0.3, quantile=0.5, anchor=0.2)
    chex.assert_trees_all_equal(state, initial)

  def test_forms(self):
    assert [s.name for s in regularizers.siren().stats] == [STAT]
    assert [s.name for s in regularizers.siren(form='released', mass=0.9).stats] == ['nucleus_entropy@0.9,crossing=False']
    # p = (.5, .25, .15, .10) at mass .8
    logits = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.10]))
    values = [float(jax.jit(regularizers.siren(form=form).stats[0].fn)(logits)) for form in ('paper', 'released')]
    np.testing.assert_allclose(values, [0.980990, 0.636514], atol=1e-6)

  def test_notes(self):
    facts = RunFacts(updates_per_rollout=1, group_size=8, num_tokens=1000, aggregate='token_mean')
    chain = objective.chain(surrogates.reinforce(), regularizers.siren(), aggregate='sequence_mean_token_sum')
    assert 'siren: aggregate=sequence_mean_token_sum' in chain.warnings(facts)[0]
    assert objective.chain(surrogates.reinforce(), regularizers.siren()).warnings(facts) == []

  @pytest.mark.parametrize(
    ('hyper', 'message'),
    [({'mass': 0.0}, r'mass=0.0 is outside \(0, 1\]'), ({'form': 'relased'}, "Did you mean 'released'"), ({'anchor': -1.0}, 'anchor=-1.0')],
  )
  def test_bad_input(self, hyper, message):
    with pytest.raises(UserError, match=message):
      regularizers.siren(**hyper)
