"""STEER: the card's numbers in both modes, numpy oracles, limits, and the exact entropy change of the other metric."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective
from entropy_jax.methods import surrogates, weights
from entropy_jax.ops import categorical
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

NAMES = ('mode', 'minimum', 'maximum', 'floor')
STATIC = {'static_argnames': ('mode', 'minimum', 'entropy'), 'compiler_options': {'xla_backend_optimization_level': 0}}
jitted = jax.jit(weights.steer.function, **STATIC)
exact = jax.jit(weights.steer_discriminator.function, static_argnames=('mode', 'minimum'))
LOGP = jnp.log(jnp.array([[0.9, 0.5, 0.1, 0.02]]))
ENTROPY = jnp.array([[0.4, 0.8, 1.0, 1.2]])
ADVANTAGE = jnp.array([[1.0, -1.0, 1.0, -1.0]])
ONES = jnp.ones((1, 4), bool)


def weight(logp=LOGP, old_logp=LOGP, entropy=ENTROPY, old_entropy=ENTROPY, advantage=ADVANTAGE, mask=ONES, **hyper):
  w, metrics = jitted(logp, old_logp, entropy, old_entropy, advantage, mask, **hyper)
  return np.asarray(w), metrics


def of_influence(q, mask, mode, minimum, maximum, floor):
  """The weight of |influence| by the card's formulas."""
  top, bottom = q[mask].max(), q[mask].min()
  if mode == 'exp':
    return np.clip(np.exp(np.log(minimum) / max(top, floor) * q), minimum, 1.0)
  return maximum - (q - bottom) * (maximum - minimum) / (top - bottom)


class TestSteer:
  def test_card_values(self):
    # Omega = (.029464, -.053426, -1.172327, 2.657783)
    w, metrics = weight()
    np.testing.assert_allclose(w, [[0.997529, 0.995524, 0.906262, 0.8]], atol=2e-6)
    np.testing.assert_allclose(metrics['influence_max'], 2.657783, rtol=1e-6)
    np.testing.assert_allclose(metrics['influence_mean'], (0.029464 + 0.053426 + 1.172327 + 2.657783) / 4, rtol=1e-5)
    w, _ = weight(mode='linear')
    np.testing.assert_allclose(w, [[1.2, 1.196353, 1.026069, 0.8]], atol=2e-6)

  @pytest.mark.parametrize('hyper', [{}, {'minimum': 0.1}, {'mode': 'linear'}, {'floor': 1e4}, {'entropy': 'behaviour', 'floor': 0.0}])
  def test_against_numpy(self, hyper):
    batch = helpers.token_batch(seed=3)
    mask = np.asarray(batch.mask_BxT)
    lp, old, advantage, current, behaviour = (
      np.asarray(x, np.float64)
      for x in (batch.logp_BxT, batch.old_logp_BxT, batch.advantage_BxT, batch.entropy_BxT, batch.old_entropy_BxT)
    )
    entropy = behaviour if hyper.get('entropy') == 'behaviour' else current
    q = np.abs(advantage / np.exp(old) * np.exp(lp) * (1 - np.exp(lp)) * (lp + entropy))
    full = {'mode': 'exp', 'minimum': 0.8, 'maximum': 1.2, 'floor': 0.02, **hyper}
    expected = of_influence(q, mask, *(full[name] for name in NAMES))
    w, _ = jitted(
      batch.logp_BxT, batch.old_logp_BxT, batch.entropy_BxT, batch.old_entropy_BxT, batch.advantage_BxT, batch.mask_BxT, **hyper
    )
    np.testing.assert_allclose(np.asarray(w)[mask], expected[mask], rtol=2e-5)

  def test_a_quiet_batch_is_damped_less(self):
    # max |Omega| = 2.657783e-3 is below the floor: exp(ln(.8) * .002657783 / .02) = .970783
    np.testing.assert_allclose(weight(advantage=1e-3 * ADVANTAGE)[0][0, 3], 0.970783, atol=2e-6)
    np.testing.assert_allclose(weight(advantage=1e-3 * ADVANTAGE, floor=0.0)[0], weight()[0], rtol=1e-5)

  def test_no_influence_has_the_largest_weight(self):
    for mode, largest in (('exp', 1.0), ('linear', 1.2)):
      w, _ = weight(jnp.array([[0.0, -1.0, -2.0, -3.0]]), advantage=jnp.array([[1.0, 0.0, 1.0, -1.0]]), mode=mode)
      np.testing.assert_allclose(w[0, :2], [largest, largest], atol=1e-6)  # pi = 1, and A = 0

  def test_equal_influences_in_linear_mode(self):
    same = weight(jnp.full((1, 4), -1.0), jnp.full((1, 4), -1.0), jnp.ones((1, 4)), mode='linear', minimum=0.5, maximum=1.2)[0]
    np.testing.assert_allclose(same, [[0.85] * 4], rtol=1e-6)

  def test_finite_where_the_old_probability_vanishes(self):
    w, metrics = weight(old_logp=jnp.array([[-200.0, -1.0, -1.0, -1.0]]))
    assert w[0, 0] == np.float32(0.8) and np.isfinite(float(metrics['influence_max']))
    np.testing.assert_allclose(w[0, 1:], 1.0, atol=1e-4)  # one outlier flattens all others

  def test_masked_slots_and_an_empty_batch(self):
    mask = jnp.array([[True, True, True, False]])
    bad = LOGP.at[0, 3].set(jnp.nan)
    w, _ = weight(bad, bad, ENTROPY.at[0, 3].set(jnp.inf), ENTROPY, ADVANTAGE, mask)
    logp, entropy, advantage, three = (x[:, :3] for x in (LOGP, ENTROPY, ADVANTAGE, mask))
    np.testing.assert_allclose(w[:, :3], weight(logp, logp, entropy, entropy, advantage, three)[0], rtol=1e-6)
    for mode in ('exp', 'linear'):
      assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(weight(bad, bad, mask=~ONES, mode=mode)))

  def test_minimum_one_is_ppo(self):
    batch = helpers.token_batch(seed=3)

    def gradient(*transforms):
      chain = objective.chain(*transforms, surrogates.ppo_clip())
      planned, _, _ = chain.plan(chain.init(batch), batch)
      return jax.grad(lambda lp: chain.loss(planned, batch.replace(logp_BxT=lp)).compute())(batch.logp_BxT)

    plain = jax.jit(gradient)()
    np.testing.assert_array_equal(jax.jit(lambda: gradient(weights.steer(minimum=1.0, maximum=1.0)))(), plain)

  @pytest.mark.parametrize('hyper', [{'minimum': 0.0}, {'maximum': 0.5}, {'mode': 'log'}, {'floor': -1.0}, {'entropy': 'old'}])
  def test_bad_input(self, hyper):
    with pytest.raises(UserError, match=r'is outside|is not one of'):
      weights.steer(**hyper)


class TestSteerDiscriminator:
  @pytest.mark.parametrize('mode', ['exp', 'linear'])
  def test_against_numpy(self, mode):
    batch = helpers.token_batch(seed=3, stats=('expected_discriminator',))
    mask = np.asarray(batch.mask_BxT)
    lp, old, advantage, entropy, expected = (
      np.asarray(x, np.float64)
      for x in (batch.logp_BxT, batch.old_logp_BxT, batch.advantage_BxT, batch.entropy_BxT, batch.stats['expected_discriminator'])
    )
    q = np.abs(np.exp(lp - old) * advantage * (np.exp(lp) * (entropy + lp) - expected))
    w, metrics = exact(
      batch.logp_BxT, batch.logp_BxT - batch.old_logp_BxT, batch.entropy_BxT, batch.stats['expected_discriminator'],
      batch.advantage_BxT, batch.mask_BxT, mode=mode,
    )
    np.testing.assert_allclose(np.asarray(w)[mask], of_influence(q, mask, mode, 0.8, 1.2, 0.02)[mask], rtol=2e-5)
    np.testing.assert_allclose(metrics['influence_max'], q[mask].max(), rtol=1e-5)

  def test_influence_is_the_entropy_change_of_a_step(self):
    # a GRPO step of size 1e-3 on token 2 of p = (.5, .3, .2), A = -1: dH = -alpha (S - E[S]) = 1e-3 (S - E[S]), measured in the card
    p = jnp.array([0.5, 0.3, 0.2])
    logits, entropy = jnp.log(p), categorical.entropy(jnp.log(p))
    (stat,) = weights.steer_discriminator().stats
    one = lambda x: jnp.reshape(x, (1, 1))
    _, metrics = exact(one(jnp.log(p[2])), jnp.zeros((1, 1)), one(entropy), one(stat.fn(logits)), -jnp.ones((1, 1)), jnp.ones((1, 1), bool))
    stepped = logits - 1e-3 * (jnp.array([0.0, 0.0, 1.0]) - p)
    change = float(categorical.entropy(stepped) - entropy)
    np.testing.assert_allclose(1e-3 * float(metrics['influence_max']), abs(change), rtol=2e-2)
    np.testing.assert_allclose(float(metrics['influence_max']), 0.161203, atol=1e-6)  # the card's 1.61203e-4 at alpha = 1e-3
