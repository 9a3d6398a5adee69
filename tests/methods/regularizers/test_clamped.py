"""AEnt: the card's coefficients, the controller against a loop with its warm-up and box, and where the gradient goes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.methods import regularizers
from entropy_jax.ops import categorical
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

STAT = 'clamped_entropy@0.2'
BATCH = helpers.token_batch(stats=(STAT,))
MASK, ENTROPY = np.asarray(BATCH.mask_BxT), np.asarray(BATCH.stats[STAT])
CARD = {'adaptive': True, 'coef': 2e-4, 'low': 0.05, 'high': 0.23, 'minimum': 1e-5, 'maximum': 3e-3}


@functools.cache
def aent(**hyper):
  return helpers.entropy_term(regularizers.aent(**hyper), BATCH, STAT)


def update(state=None, entropy=ENTROPY, mask=MASK, **hyper):
  initial, run = aent(**hyper)
  entropy = jnp.broadcast_to(jnp.asarray(entropy, jnp.float32), mask.shape)
  value, gradient, new, metrics = run(initial if state is None else state, entropy, jnp.asarray(mask))
  return float(value), np.asarray(gradient), new, {k: float(v) for k, v in metrics.items()}


class TestAent:
  @pytest.mark.parametrize(('entropy', 'coefficient'), [(0.02, 2.3e-4), (0.1, 2e-4), (0.5, 1e-5)])
  def test_card_values(self, entropy, coefficient):
    # 2e-4 + 1e-3 (.05 - .02); inside the band; 2e-4 - 1e-3 (.5 - .23) = -7e-5, boxed
    _, _, state, metrics = update(entropy=entropy, **CARD)
    np.testing.assert_allclose(metrics['coefficient'], 2e-4, rtol=1e-6)  # that of this update
    np.testing.assert_allclose(state['aent']['coefficient'], coefficient, rtol=1e-5)

  def test_value_and_gradient(self):
    value, gradient, _, metrics = update(coef=0.3)
    np.testing.assert_allclose(value, -0.3 * ENTROPY[MASK].mean(), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.where(MASK, -0.3 / MASK.sum(), 0.0), rtol=1e-6)
    np.testing.assert_allclose(metrics['entropy'], ENTROPY[MASK].mean(), rtol=1e-5)

  def test_fixed_by_default(self):
    _, _, state, _ = update(entropy=0.01, coef=0.3)
    np.testing.assert_allclose(state['aent']['coefficient'], 0.3, rtol=1e-6)

  def test_against_a_loop(self):
    hyper = {'adaptive': True, 'coef': 0.2, 'low': 0.4, 'high': 0.6, 'step': 0.5, 'minimum': 0.1, 'maximum': 0.3, 'warm_up': 2}
    state, coefficient = None, 0.2
    for k, entropy in enumerate([0.1, 0.1, 0.3, 0.1, 0.2, 0.5, 0.7, 0.9, 1.5, 0.6, 0.4, 0.39]):
      value, gradient, state, _ = update(state, entropy, **hyper)
      np.testing.assert_allclose(value, -coefficient * entropy, rtol=1e-5)
      np.testing.assert_allclose(gradient[MASK], -coefficient / MASK.sum(), rtol=1e-5)  # none through the coefficient
      if k >= 2:
        error = min(0, entropy - 0.4) + max(0, entropy - 0.6)
        coefficient = min(max(coefficient - 0.5 * error, 0.1), 0.3)

  def test_no_valid_token_changes_nothing(self):
    initial, _ = aent(**CARD)
    value, gradient, state, _ = update(None, 0.02, np.zeros_like(MASK), **CARD)
    assert value == 0 and not gradient.any()
    chex.assert_trees_all_equal(state, initial)

  def test_what_is_dropped_has_no_gradient(self):
    # Ten tokens, clamp .3: the three least probable ones; a small clamp is the entropy bonus
    logits = jnp.array(np.random.default_rng(0).normal(size=10), jnp.float32)
    stat = regularizers.aent(clamp=0.3).stats[0].fn
    gradient = np.asarray(jax.jit(jax.grad(stat))(logits))
    assert (gradient == 0).sum() == 3 and (gradient[np.argsort(logits)[:3]] == 0).all()
    bonus = regularizers.aent(clamp=0.09).stats[0].fn
    np.testing.assert_allclose(jax.jit(jax.grad(bonus))(logits), categorical.entropy_gradient(logits), atol=1e-6)

  @pytest.mark.parametrize(
    ('hyper', 'message'),
    [
      ({'clamp': 1.0}, r'clamp=1.0 is outside \[0, 1\)'),
      ({'low': 0.6}, 'give low <= high'),
      ({'adaptive': True, 'coef': 0.1}, 'give minimum <= coef <= maximum'),
    ],
  )
  def test_bad_input(self, hyper, message):
    with pytest.raises(UserError, match=message):
      regularizers.aent(**hyper)
