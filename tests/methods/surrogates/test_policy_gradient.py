"""Token-level surrogates: the cards' numbers, closed-form gradients, limits and build-time notes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.methods import surrogates
from entropy_jax.methods.surrogates import policy_gradient
from entropy_jax.types import RunFacts, UserError

pytestmark = pytest.mark.usefixtures('strict_dtypes')

FACTS = RunFacts(updates_per_rollout=4, group_size=8, num_tokens=4096, aggregate='token_mean')
# (A, r):              (1, 1.5) (1, .5) (-1, .5) (-1, 1.5) (-1, 5)
ADVANTAGE = jnp.array([[1.0, 1.0, -1.0, -1.0, -1.0]])
RATIO = jnp.array([[1.5, 0.5, 0.5, 1.5, 5.0]])
LOG_RATIO = jnp.log(RATIO)


def value_and_gradient(objective):
  """(objective [T], its gradient with respect to the log-ratio [T])."""

  def total(log_ratio):
    x = objective(log_ratio)
    return jnp.sum(x), x

  (_, x), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(LOG_RATIO)
  return np.asarray(x)[0], np.asarray(gradient)[0]


def notes(transform, facts=FACTS):
  return [text for text in (note(facts) for note in transform.notes) if text is not None]


class TestReinforce:
  def test_value_and_gradient(self):
    logp, advantage = jnp.array([[-1.0, -2.0, -0.5]]), jnp.array([[1.0, -0.5, 0.0]])
    # 1 * -1, -.5 * -2, 0 * -.5
    assert policy_gradient.reinforce_objective(logp, advantage).tolist() == [[-1.0, 1.0, 0.0]]
    gradient = jax.jit(jax.grad(lambda lp: jnp.sum(policy_gradient.reinforce_objective(lp, advantage))))(logp)
    np.testing.assert_array_equal(gradient, advantage)

  def test_takes_no_hyper_parameter(self):
    with pytest.raises(UserError, match=r"unknown hyper-parameter 'low'; allowed: none"):
      surrogates.reinforce(low=0.2)


class TestImportance:
  def test_value_and_gradient_are_advantage_times_ratio(self):
    x, gradient = value_and_gradient(lambda d: policy_gradient.importance_objective(d, ADVANTAGE))
    np.testing.assert_allclose(x, [1.5, 0.5, -0.5, -1.5, -5.0], rtol=1e-6)
    np.testing.assert_allclose(gradient, x, rtol=1e-6)

  def test_is_ppo_without_bounds(self):
    plain = value_and_gradient(lambda d: policy_gradient.importance_objective(d, ADVANTAGE))
    ppo = value_and_gradient(lambda d: policy_gradient.ppo_clip_objective(d, ADVANTAGE, low=1.0, high=float('inf')))
    np.testing.assert_array_equal(plain, ppo)

  def test_far_ratios_stay_finite(self):
    far = jnp.array([[50.0, -50.0]])
    x, gradient = jax.jit(jax.value_and_grad(lambda d: jnp.sum(policy_gradient.importance_objective(d, jnp.array([[1.0, -1.0]])))))(far)
    np.testing.assert_allclose(x, np.exp(20.0) - np.exp(-20.0), rtol=1e-6)
    np.testing.assert_array_equal(gradient, [[0.0, 0.0]])


class TestPpoClip:
  def test_card_values(self):
    x, gradient = value_and_gradient(lambda d: policy_gradient.ppo_clip_objective(d, ADVANTAGE))
    # losses -1.2 (held at 1 + .2), -.5, .8 (held at 1 - .2), 1.5, 5
    np.testing.assert_allclose(x, [1.2, 0.5, -0.8, -1.5, -5.0], rtol=1e-6)
    np.testing.assert_allclose(gradient, [0.0, 0.5, 0.0, -1.5, -5.0], rtol=1e-6)

  def test_clip_higher(self):
    x, _ = value_and_gradient(lambda d: policy_gradient.ppo_clip_objective(d, ADVANTAGE, high=0.28))
    np.testing.assert_allclose(x, [1.28, 0.5, -0.8, -1.5, -5.0], rtol=1e-6)

  def test_dual_clip(self):
    x, gradient = value_and_gradient(lambda d: policy_gradient.ppo_clip_objective(d, ADVANTAGE, dual_clip=3.0))
    np.testing.assert_allclose(x, [1.2, 0.5, -0.8, -1.5, -3.0], rtol=1e-6)  # -1 * 5 is raised to -1 * 3
    np.testing.assert_allclose(gradient, [0.0, 0.5, 0.0, -1.5, 0.0], rtol=1e-6)

  def test_delta(self):
    x, gradient = value_and_gradient(lambda d: policy_gradient.ppo_clip_objective(d, ADVANTAGE, delta=4.0))
    np.testing.assert_allclose(x, [1.2, 0.5, -0.8, -1.5, -4.0], rtol=1e-6)  # min(5, 4) * -1
    np.testing.assert_allclose(gradient, [0.0, 0.5, 0.0, -1.5, 0.0], rtol=1e-6)

  def test_against_a_loop(self):
    rng = np.random.default_rng(0)
    d, a = rng.normal(size=(4, 9)), rng.normal(size=(4, 9))
    found = jax.jit(lambda d, a: policy_gradient.ppo_clip_objective(d, a, low=0.1, high=0.3, dual_clip=1.5))(
      jnp.float32(d), jnp.float32(a)
    )
    for i in np.ndindex(4, 9):
      r, adv = np.exp(d[i]), a[i]
      loss = max(-adv * r, -adv * min(max(r, 0.9), 1.3))  # verl's loss form
      loss = min(loss, -adv * 1.5) if adv < 0 else loss
      np.testing.assert_allclose(found[i], -loss, rtol=1e-5)

  def test_gradient_on_the_bound_and_at_one_is_whole(self):
    # Tied branches: a minimum would halve the gradient of the clip on the bound itself.
    gradient = jax.jit(jax.grad(lambda d: policy_gradient.ppo_clip_objective(d, jnp.float32(2.0), low=0.5, high=1.0)))
    np.testing.assert_allclose(gradient(jnp.log(jnp.float32(2.0))), 4.0, rtol=1e-6)
    np.testing.assert_allclose(gradient(jnp.float32(0.0)), 2.0, rtol=1e-6)

  def test_metrics_count_branches_taken(self):
    mask = jnp.ones((1, 5), bool)
    kwargs = {'low': 0.2, 'high': 0.2, 'dual_clip': 3.0, 'delta': 4.0}
    _, metrics = jax.jit(lambda: policy_gradient.ppo_clip_plan(LOG_RATIO, ADVANTAGE, mask, **kwargs))()
    # clipped: tokens 0 and 2 of 5, although |r - 1| > .2 at all five; dual clip and delta hold the last one
    np.testing.assert_allclose(metrics['clip_fraction'], 0.4, rtol=1e-6)
    np.testing.assert_allclose(metrics['dual_clip_fraction'], 0.2, rtol=1e-6)
    np.testing.assert_allclose(metrics['delta_fraction'], 0.2, rtol=1e-6)
    off = jax.jit(lambda: policy_gradient.ppo_clip_plan(LOG_RATIO, ADVANTAGE, mask, **{**kwargs, 'dual_clip': None, 'delta': None})[1])()
    assert set(off) == {'clip_fraction'}

  def test_notes(self):
    assert notes(surrogates.ppo_clip()) == []
    assert notes(surrogates.ppo_clip(high=0.28)) == []
    assert 'below low=0.2' in notes(surrogates.ppo_clip(high=0.1))[0]  # a note, not an error
    assert 'clip-higher' in notes(surrogates.ppo_clip(high=0.28), FACTS._replace(updates_per_rollout=1))[0]
    assert notes(surrogates.ppo_clip(), FACTS._replace(updates_per_rollout=1)) == []
    assert 'delta=1.1' in notes(surrogates.ppo_clip(delta=1.1))[0]

  @pytest.mark.parametrize(
    ('hyper', 'message'),
    [
      ({'low': 1.5}, r'low=1.5 is outside \[0, 1\]'),
      ({'dual_clip': 1.0}, r'dual_clip=1.0 is outside \(1, inf\)'),
      ({'hihg': 0.28}, "Did you mean 'high'"),
    ],
  )
  def test_bad_input(self, hyper, message):
    with pytest.raises(UserError, match=message):
      surrogates.ppo_clip(**hyper)
