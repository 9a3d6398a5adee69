"""HAPO's scale of entropy: the card's numbers, a numpy oracle, and what a sampler does with an earlier batch's statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.ops import entropy_scale
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

FIVE = jnp.array([[0.01, 0.05, 0.2, 0.8, 1.6]])
ALL = jnp.ones((1, 5), bool)
jitted = jax.jit(entropy_scale.hapo_entropy, static_argnames='form', compiler_options={'xla_backend_optimization_level': 0})


def oracle(entropy, mask, quantile, form):
  """h-hat by sorting the valid entropies in numpy."""
  log = np.log(np.maximum(np.asarray(entropy, np.float64)[mask], 1e-8))
  c = np.sort(log)[round(quantile * (log.size - 1))]
  h = (log - c) / np.sqrt(max(np.mean((log - c) ** 2), 1e-8))
  low = h.min() if h.min() < 0 else -1.0
  out = np.zeros(mask.shape)
  out[mask] = [x / h.max() if x > 0 else x / (low if form == 'released' else -low) for x in h]
  return out


class TestHapoEntropy:
  def test_card_values(self):
    # pivot: number round(.8 * 4) = 3, H = .8; the smallest is -1, ln(.05 / .8) / ln(80) = -.632718, ln(.2 / .8) / ln(80) = -.316359
    h, stats = jitted(FIVE, ALL)
    np.testing.assert_allclose(h, [[-1.0, -0.632718, -0.316359, 0.0, 1.0]], atol=1e-6)
    np.testing.assert_allclose(stats['s'], 2.420400, atol=1e-6)
    np.testing.assert_allclose(np.exp(stats['c']), 0.8, rtol=1e-6)

  def test_released_sign(self):
    h, _ = jitted(FIVE, ALL, form='released')
    np.testing.assert_allclose(h, [[1.0, 0.632718, 0.316359, 0.0, 1.0]], atol=1e-6)

  @pytest.mark.parametrize('form', ['intended', 'released'])
  @pytest.mark.parametrize('quantile', [0.0, 0.5, 0.8, 1.0])
  def test_against_numpy(self, form, quantile):
    batch = helpers.token_batch(seed=4)
    expected = oracle(batch.entropy_BxT, np.asarray(batch.mask_BxT), quantile, form)
    np.testing.assert_allclose(jitted(batch.entropy_BxT, batch.mask_BxT, quantile=quantile, form=form)[0], expected, atol=2e-6)

  def test_masked_slots_may_hold_anything(self):
    wide = jnp.array([[0.01, jnp.nan, 0.05, 0.2, jnp.inf, 0.8, 1.6, -5.0]])
    mask = jnp.array([[True, False, True, True, False, True, True, False]])
    h, stats = jitted(wide, mask)
    expected, plain = jitted(FIVE, ALL)
    np.testing.assert_allclose(h[mask], expected[0], atol=1e-6)
    assert not np.any(h[~mask])
    for name, value in plain.items():
      np.testing.assert_allclose(stats[name], value, atol=1e-6)

  def test_equal_entropies_up_to_rounding_are_zero(self):
    h, _ = jitted(jnp.array([[0.7, 0.7000001, 0.6999999, 0.7, 0.7]]), ALL)
    assert not np.any(h)

  def test_degenerate(self):
    h, stats = jitted(jnp.zeros((1, 5)), ALL)
    assert not np.any(h) and float(stats['s']) == np.float32(1e-4)
    h, stats = jitted(FIVE, ~ALL)
    assert not np.any(h) and [float(stats[name]) for name in ('c', 'h_max', 'h_min')] == [0.0, 0.0, 0.0]

  def test_no_gradient(self):
    gradient = jax.grad(lambda entropy: jnp.sum(entropy_scale.hapo_entropy(entropy, ALL)[0] ** 2))(FIVE)
    assert not np.any(gradient)


class TestStandardised:
  def test_an_earlier_batch_bounds_it(self):
    _, stats = jitted(FIVE, ALL)
    found = entropy_scale.standardised(jnp.array([0.0, 0.001, 0.8, 1.1313708, 5.0]), stats)
    np.testing.assert_allclose(found, [-1.0, -1.0, 0.0, 0.5, 1.0], atol=1e-5)  # ln(sqrt 2) / ln 2 = .5

  def test_nothing_above_the_pivot(self):
    # pivot at the largest: what is above it in a later batch has no scale, and is 0
    stats = entropy_scale.scale(FIVE, ALL, quantile=1.0)
    np.testing.assert_allclose(entropy_scale.standardised(jnp.array([3.0, 1.6, 0.01]), stats), [0.0, 0.0, -1.0], atol=1e-6)
