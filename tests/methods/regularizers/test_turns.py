"""EPO: a band without a gradient, bit by bit, its schedule and history by loops; and the smooth band of ours, which acts."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective
from entropy_jax.methods import regularizers, surrogates
from entropy_jax.methods.regularizers import turns
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

BATCH = helpers.token_batch(seed=3, B=6, T=8)
MASK, H, OLD_H = (np.asarray(x) for x in (BATCH.mask_BxT, BATCH.entropy_BxT, BATCH.old_entropy_BxT))
TURN = np.where(np.arange(8) == 3, -1, np.arange(8) // 2 + np.array([0, 0, 1, 0, 0, 1])[:, None])  # 0 to 4, and tokens of no turn
PLAIN = {'coef': 0.3, 'max_turns': 4, 'first_turn': 0}


@functools.cache
def method(name, **hyper):
  chain = objective.chain(surrogates.ppo_clip(), getattr(regularizers, name)(**hyper))

  def run(state, entropy, old_entropy, turn, mask):
    def loss(logp, entropy):
      fields = {'logp_BxT': logp, 'entropy_BxT': entropy, 'old_entropy_BxT': old_entropy, 'segment_BxT': turn, 'mask_BxT': mask}
      batch = BATCH.replace(**fields)
      planned, new, metrics = chain.plan(state, batch)
      return chain.loss(planned, batch).compute(), (new, planned[name], metrics)

    (value, (new, planned, metrics)), gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(BATCH.logp_BxT, entropy)
    return value, gradient, new, planned, metrics

  return chain.init(BATCH), jax.jit(run)


def update(name, state=None, entropy=H, old_entropy=OLD_H, turn=TURN, mask=MASK, **hyper):
  initial, run = method(name, **hyper)
  arrays = (jnp.asarray(x) for x in (entropy, old_entropy, turn.astype(np.int32), mask))
  value, gradient, new, planned, _ = run(initial if state is None else state, *arrays)
  return float(value), jax.tree.map(np.asarray, gradient), new, planned


@functools.cache
def bonus():
  value, gradient, _, _ = update('entropy_bonus', coef=0.3)
  return value, gradient


def turn_means(entropy, mask, max_turns=4):
  """Turn -> mean entropy, in which the last place is shared; a loop."""
  found = {}
  for i, t in np.argwhere(mask & (TURN >= 0)):
    found.setdefault(min(TURN[i, t], max_turns - 1), []).append(float(entropy[i, t]))
  return {u: np.mean(x) for u, x in found.items()}


class TestSmoothingWeight:
  @pytest.mark.parametrize(
    ('epoch', 'weight'), [(0, 1.0), (37, 0.87456), (75, 0.82707), (76, 0.76863), (112, 0.18211), (150, 0.03983)]
  )
  def test_card_values(self, epoch, weight):
    np.testing.assert_allclose(turns.smoothing_weight(jnp.float32(epoch), epochs=150.0), weight, atol=1e-5)


class TestEpo:
  def band(self, entropy, past=1.0, **hyper):
    """Value of smoothing w_k p for tokens of one turn."""
    entropy = jnp.array([entropy], jnp.float32)
    arrays = jnp.full_like(entropy, past), jnp.float32(1.0), jnp.zeros(entropy.shape, jnp.int32), jnp.ones(entropy.shape, bool)
    return np.asarray(regularizers.epo.function(entropy, *arrays, coef=1.0, **hyper) + entropy)[0]

  def test_card_values(self):
    found = self.band([0.7, 1.0, 1.3])
    np.testing.assert_allclose(found, [0.1, 0, 0.1], atol=1e-6)
    np.testing.assert_allclose(found.mean(), 0.0667, atol=1e-4)

  def test_bounds_are_strict(self):
    np.testing.assert_allclose(self.band([1.2, 1.1999, 0.8, 0.8001]), [0.1, 0, 0.1, 0], atol=1e-6)

  def test_a_band_without_ends_holds_everything_but_zero(self):
    np.testing.assert_allclose(self.band([0.0, 1e-6, 5.0], low=0.0, high=math.inf), [0.1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(self.band([0.0, 1e-6], past=0.0, low=0.0, high=math.inf), [0.1, 0], atol=1e-6)

  @pytest.mark.parametrize('mode', ['token', 'sequence'])
  def test_the_gradient_is_that_of_the_bonus_bitwise(self, mode):
    value, gradient, _, planned = update('epo', mode=mode, alpha=0.5, **PLAIN)
    bonus_value, bonus_gradient = bonus()
    assert value != bonus_value and float(planned['band_weight']) == 1  # the band is there
    for got, expected in zip(gradient, bonus_gradient):
      np.testing.assert_array_equal(got.view(np.int32), expected.view(np.int32))

  @pytest.mark.parametrize('mode', ['token', 'sequence'])
  def test_value_against_a_loop(self, mode):
    value, _, _, planned = update('epo', mode=mode, alpha=0.5, smoothing=2.0, **PLAIN)
    past = turn_means(OLD_H, MASK)
    total = 0.0
    for i, t in np.argwhere(MASK & (TURN >= 0)):
      u = min(TURN[i, t], 3)
      same = MASK[i] & (TURN[i] >= 0) & (np.minimum(TURN[i], 3) == u)
      h = H[i, t] if mode == 'token' else H[i][same].mean()
      total += 0.5 * (not 0.8 * past[u] < h < 1.2 * past[u])
      np.testing.assert_allclose(planned['turn_entropy_BxT'][i, t], past[u], rtol=1e-5)
    np.testing.assert_allclose(value - bonus()[0], 0.3 * 2.0 * total / MASK.sum(), rtol=1e-4)
    assert 0 < total < 0.5 * (MASK & (TURN >= 0)).sum()

  @pytest.mark.parametrize('memory', [1.0, 0.5])
  def test_history_against_a_loop(self, memory):
    state, past, rng = None, {}, np.random.default_rng(0)
    for k in range(4):
      old = rng.uniform(0.1, 2, H.shape).astype(np.float32)
      mask = MASK & (np.arange(8) < 8 - 2 * k)  # later updates have fewer turns
      _, _, state, planned = update('epo', state, H, old, TURN, mask, memory=memory, **PLAIN)
      for u, mean in turn_means(old, mask).items():
        past.setdefault(u, []).append(mean)
      for i, t in np.argwhere(mask & (TURN >= 0)):
        x = past[min(TURN[i, t], 3)]
        weights = memory ** np.arange(len(x))[::-1]
        np.testing.assert_allclose(planned['turn_entropy_BxT'][i, t], np.average(x, weights=weights), rtol=1e-5)
    assert len(past[3]) < len(past[0]) == 4
    assert int(state['epo']['num_updates']) == 4

  def test_no_valid_token_changes_nothing(self):
    _, _, state, _ = update('epo', **PLAIN)
    value, gradient, after, _ = update('epo', state, mask=np.zeros_like(MASK), **PLAIN)
    assert value == 0 and not np.any(gradient)
    chex.assert_trees_all_equal(after, state)

  def test_the_band_waits_for_a_late_turn(self):
    weight = lambda **hyper: float(update('epo', **hyper)[3]['band_weight'])
    assert weight(max_turns=50) == 0  # no turn reaches 25
    assert weight(max_turns=8) == 1  # turn 4 does
    assert weight(max_turns=50, first_turn=5) == 0 and weight(max_turns=50, first_turn=4) == 1

  def test_schedule(self):
    # Two updates an epoch, four epochs: k = 0, 0, 1, 1, 2, 2, 3
    state, found = None, []
    for _ in range(7):
      _, _, state, planned = update('epo', state, epochs=4.0, updates_per_epoch=2, **PLAIN)
      found.append(float(planned['band_weight']))
    half = [1 - 0.2 * (1 - math.exp(-k)) for k in (0, 0, 1, 1, 2, 2)]
    np.testing.assert_allclose(found, [*half, 0.8 * math.exp(-1.5)], rtol=1e-5)

  @pytest.mark.parametrize(
    ('hyper', 'message'),
    [({'low': 1.3}, 'give low <= high'), ({'mode': 'turn'}, 'is not one of token, sequence'), ({'max_turns': 2.5}, 'whole number')],
  )
  def test_bad_input(self, hyper, message):
    with pytest.raises(UserError, match=message):
      regularizers.epo(**hyper)


class TestEpoSmooth:
  def test_gradient_outside_the_band(self):
    # h = 1, band (.8, 1.2): -(1 + 1) below, -1 inside, -(1 - 1) above; with smoothing 3: -4, -1, +2
    arrays = jnp.ones((1, 3)), jnp.float32(1.0), jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 3), bool)
    penalty = lambda h, c: jnp.sum(regularizers.epo_smooth.function(h, *arrays, coef=1.0, smoothing=c))
    entropy = jnp.array([[0.7, 1.0, 1.3]])
    for smoothing, expected in ((1.0, [-2, -1, 0]), (3.0, [-4, -1, 2])):
      np.testing.assert_allclose(jax.grad(penalty)(entropy, smoothing)[0], expected, rtol=1e-6)
    np.testing.assert_allclose(penalty(entropy, 1.0), -(3.0 - 0.1 - 0.1), rtol=1e-6)

  @pytest.mark.parametrize('mode', ['token', 'sequence'])
  def test_against_a_loop(self, mode):
    _, (_, gradient), _, _ = update('epo_smooth', mode=mode, **{**PLAIN, 'smoothing': 2.0})
    past, expected = turn_means(OLD_H, MASK), np.where(MASK, -0.3, 0)
    for i, t in np.argwhere(MASK & (TURN >= 0)):
      u = min(TURN[i, t], 3)
      same = MASK[i] & (TURN[i] >= 0) & (np.minimum(TURN[i], 3) == u)
      h = H[i, t] if mode == 'token' else H[i][same].mean()
      # in mode sequence all n tokens of the turn carry the distance, and each moves the mean by 1 / n
      expected[i, t] -= 0.3 * 2.0 * (float(h < 0.8 * past[u]) - float(h > 1.2 * past[u]))
    np.testing.assert_allclose(gradient, expected / MASK.sum(), rtol=1e-5, atol=1e-8)
    assert len(np.unique(np.round(expected, 6))) == 4  # masked, below, inside, above

  def test_limits_are_the_bonus(self):
    for hyper in ({'smoothing': 0.0}, {'low': 0.0, 'high': math.inf}):
      value, gradient, _, _ = update('epo_smooth', **{**PLAIN, **hyper})
      np.testing.assert_allclose(value, bonus()[0], rtol=1e-6)
      np.testing.assert_allclose(gradient[1], bonus()[1][1], rtol=1e-6)

  def test_acts_from_the_first_turn_on(self):
    assert float(update('epo_smooth', coef=0.3)[3]['band_weight']) == 1
