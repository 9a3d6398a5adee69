"""Temperatures that follow the entropy: the cards' numbers, row by row in numpy, and what a sampled batch leaves for the next one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from entropy_jax.methods import samplers
from entropy_jax.ops import categorical, entropy_scale
from entropy_jax.types import UserError

Z = np.random.default_rng(0).normal(0, 1.5, (9, 6)).astype(np.float32)
H = scipy.stats.entropy(np.exp(Z.astype(np.float64)), axis=1)
# The batch of the HAPO card: pivot .8, h = (-1, -.632718, -.316359, 0, 1)
CARD = np.array([[0.01, 0.05, 0.2, 0.8, 1.6]], np.float32)
ALL = np.ones((1, 5), bool)


def logits_of_entropy(entropy):
  """Two-token logits (0, x) of this entropy, by bisection."""
  low, high = 0.0, 30.0
  for _ in range(80):
    middle = (low + high) / 2
    p = 1 / (1 + np.exp(-middle))
    low, high = (middle, high) if scipy.stats.entropy([p, 1 - p]) > entropy else (low, middle)
  return np.array([0.0, low], np.float32)


class TestDualTemperatureLogits:
  def test_rows_by_their_entropy(self):
    level = float(np.median(H)) + 1e-3
    got = jax.jit(functools.partial(samplers.dual_temperature_logits, level=level, high=1.7, low=0.6))(Z)
    np.testing.assert_allclose(got, Z / np.where(level < H, 1.7, 0.6)[:, None], rtol=1e-6)
    assert 0 < np.sum(level < H) < len(H)

  def test_equal_temperatures_are_one(self):
    np.testing.assert_allclose(samplers.dual_temperature_logits(Z, high=1.3, low=1.3), Z / 1.3, rtol=1e-6)
    np.testing.assert_array_equal(samplers.dual_temperature_logits(Z), Z)  # the default changes nothing

  def test_the_level_itself_is_not_a_fork(self):
    z = jnp.zeros((1, 4))
    entropy = float(categorical.entropy(z)[0])
    np.testing.assert_array_equal(samplers.dual_temperature_logits(z + 1.0, level=entropy, high=2.0), z + 1.0)
    np.testing.assert_array_equal(samplers.dual_temperature_logits(z + 1.0, level=entropy - 1e-3, high=2.0), z + 0.5)

  def test_gradient_holds_the_temperature(self):
    grad = jax.jit(jax.grad(lambda z: jnp.sum(samplers.dual_temperature_logits(z, level=float(np.median(H)) + 1e-3, high=2.0))))(Z)
    np.testing.assert_allclose(grad, np.where(np.median(H) + 1e-3 < H, 0.5, 1.0)[:, None] * np.ones_like(Z), rtol=1e-6)

  def test_impossible_tokens_stay_impossible(self):
    got = samplers.dual_temperature_logits(jnp.array([[0.0, -jnp.inf, 0.0]]), high=2.0)
    np.testing.assert_array_equal(got, [[0.0, -np.inf, 0.0]])


class TestDualTemperature:
  def test_is_the_function_without_a_state(self):
    sampler = samplers.dual_temperature(level=1.0, high=1.5, low=0.5)
    want = samplers.dual_temperature_logits(Z, level=1.0, high=1.5, low=0.5)
    np.testing.assert_array_equal(sampler.bind(sampler.init())(Z), want)

  @pytest.mark.parametrize('kwargs', [{'high': 0.0}, {'low': -1.0}, {'level': -0.1}])
  def test_refuses(self, kwargs):
    with pytest.raises(UserError, match=f'dual_temperature: {next(iter(kwargs))}='):
      samplers.dual_temperature(**kwargs)


class TestEntropyScaledLogits:
  def test_card(self):
    # tau = .5: T = 1 + .5 h = (.5, .683641, .841821, 1, 1.5), released (1.5, 1.316359, 1.158179, 1, 1.5)
    z = jnp.stack([jnp.array(logits_of_entropy(h)) for h in CARD[0, :3]])
    stats = entropy_scale.scale(CARD, ALL)
    h = np.array([-1.0, -0.632718, -0.316359])
    for form, sign in (('intended', 1.0), ('released', -1.0)):
      got = samplers.entropy_scaled_logits(z, stats, tau=0.5, form=form)
      np.testing.assert_allclose(got[:, 1] / z[:, 1], 1 / (1 + 0.5 * sign * h), rtol=1e-4)

  def test_default_is_five_percent(self):
    stats = entropy_scale.scale(CARD, ALL)
    wide = jnp.zeros((1, 5))  # ln 5 = 1.609 nats, above the largest of the batch: h = 1
    np.testing.assert_allclose(samplers.entropy_scaled_logits(wide + 1.0, stats), (wide + 1.0) / 1.05, rtol=1e-6)

  def test_no_strength_is_the_logits(self):
    np.testing.assert_array_equal(samplers.entropy_scaled_logits(Z, entropy_scale.scale(CARD, ALL), tau=0.0), Z)

  def test_entropy_moves_with_the_sign_of_h(self):
    stats = entropy_scale.scale(H[None].astype(np.float32), np.ones((1, 9), bool))
    h = entropy_scale.standardised(jnp.array(H, jnp.float32), stats)
    change = categorical.entropy(samplers.entropy_scaled_logits(Z, stats, tau=0.3)) - categorical.entropy(jnp.array(Z))
    np.testing.assert_array_equal(np.sign(np.where(np.abs(change) > 1e-5, change, 0.0)), np.sign(h))
    assert np.any(np.array(h) > 0) and np.any(np.array(h) < 0)


class TestAdaptiveTemperature:
  def test_first_batch_is_plain(self):
    sampler = samplers.adaptive_temperature(tau=0.5)
    np.testing.assert_array_equal(sampler.bind(sampler.init())(Z), Z)

  def test_remembers_the_scale_of_the_last_batch(self):
    sampler = samplers.adaptive_temperature(tau=0.5)
    state = jax.jit(sampler.remember)(sampler.init(), CARD, ALL)
    np.testing.assert_allclose([state['c'], state['s']], [np.log(0.8), 2.420400], rtol=1e-5)
    want = samplers.entropy_scaled_logits(Z, entropy_scale.scale(CARD, ALL), tau=0.5)
    np.testing.assert_allclose(sampler.bind(state)(Z), want, rtol=1e-6)

  def test_nothing_sampled_changes_nothing(self):
    sampler = samplers.adaptive_temperature()
    state = sampler.remember(sampler.init(), CARD, ALL)
    after = sampler.remember(state, np.full_like(CARD, np.nan), ~ALL)
    assert jax.tree.map(float, after) == jax.tree.map(float, state)

  def test_state_goes_through_scan(self):
    sampler = samplers.adaptive_temperature()
    stacked = jnp.stack([CARD, 2 * CARD])
    state, _ = jax.jit(lambda: jax.lax.scan(lambda s, h: (sampler.remember(s, h, ALL), None), sampler.init(), stacked))()
    np.testing.assert_allclose(state['c'], np.log(1.6), rtol=1e-5)

  @pytest.mark.parametrize('kwargs', [{'tau': 1.0}, {'quantile': 80}, {'form': 'as_released'}])
  def test_refuses(self, kwargs):
    with pytest.raises(UserError, match=f'adaptive_temperature: {next(iter(kwargs))}='):
      samplers.adaptive_temperature(**kwargs)
