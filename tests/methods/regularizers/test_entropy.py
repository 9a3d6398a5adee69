"""The entropy bonus and its controller: the card's numbers, the lagged gate against a loop, and the direction of the gradient."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective, transform
from entropy_jax.methods import regularizers, surrogates
from entropy_jax.ops import categorical
from entropy_jax.types import Room, TokenBatch, UserError

pytestmark = pytest.mark.usefixtures('strict_dtypes')

MASK = jnp.array([[True, True, False], [True, False, False]])


def make_batch(entropy, mask=MASK):
  entropy = jnp.broadcast_to(jnp.asarray(entropy, jnp.float32), mask.shape)
  zeros = jnp.zeros(mask.shape)
  return TokenBatch(
    tokens_BxN=jnp.zeros(mask.shape, jnp.int32),
    token_mask_BxN=mask,
    mask_BxT=mask,
    group_B=jnp.zeros(2, jnp.int32),
    reward_B=jnp.zeros(2),
    old_logp_BxT=zeros,
    old_entropy_BxT=zeros,
    logp_BxT=zeros,
    entropy_BxT=entropy,
    key=jax.random.key(0),
    advantage_BxT=zeros + 1.0,
  )


@functools.cache
def adaptive(**hyper):
  """(initial state, jitted entropy -> (coefficient, state, metrics)) of a chain with the adaptive bonus."""
  chain = objective.chain(surrogates.reinforce(), regularizers.adaptive_entropy(**hyper))

  def step(state, entropy, mask):
    planned, state, metrics = chain.plan(state, make_batch(entropy, mask))
    return planned['adaptive_entropy']['scale'], state, metrics

  return chain.init(make_batch(0.0)), jax.jit(step)


class TestEntropyBonus:
  def loss_and_gradient(self, coef):
    chain = objective.chain(surrogates.reinforce(), regularizers.entropy_bonus(coef=coef))

    def loss(entropy):
      batch = make_batch(entropy)
      planned, _, _ = chain.plan(chain.init(batch), batch)
      return chain.loss(planned, batch).compute()

    return jax.jit(jax.value_and_grad(loss))(jnp.array([[0.5, 1.0, jnp.nan], [3.0, jnp.nan, jnp.inf]]))

  def test_value_and_gradient(self):
    loss, gradient = self.loss_and_gradient(0.1)
    np.testing.assert_allclose(loss, -0.15, rtol=1e-6)  # -.1 (.5 + 1 + 3) / 3; the surrogate, -A lp, is 0
    np.testing.assert_allclose(gradient, np.where(MASK, -0.1 / 3, 0.0), rtol=1e-6)

  def test_zero_coefficient_is_the_baseline(self):
    loss, gradient = self.loss_and_gradient(0.0)
    assert float(loss) == 0 and not np.any(gradient)

  def test_a_step_along_the_bonus_raises_entropy(self):
    # z moves by -eta dL/dz = eta coef dH/dz, so dH/d eta = coef |dH/dz|^2 with dH/dz = (-.168253, .052296, .115957)
    logits, coef = jnp.log(jnp.array([0.5, 0.3, 0.2])), 0.3
    bonus = lambda z: -regularizers.entropy_bonus.function(categorical.entropy(z), coef=coef)
    step = jax.jit(jax.grad(bonus))(logits)
    _, slope = jax.jit(lambda v: jax.jvp(categorical.entropy, (logits,), (v,)))(step)
    np.testing.assert_allclose(slope, coef * (0.168253**2 + 0.052296**2 + 0.115957**2), rtol=1e-5)

  def test_bad_coefficient(self):
    with pytest.raises(UserError, match=r'coef=-0.1 is outside \[0, inf\)'):
      regularizers.entropy_bonus(coef=-0.1)


class TestAdaptiveEntropy:
  def test_card_values(self):
    state, step = adaptive(initial=0.01)
    applied, state, _ = step(state, 0.1, MASK)  # no entropy was seen before: off
    assert float(applied) == 0
    np.testing.assert_allclose(state['adaptive_entropy']['controller']['coefficient'], 0.015, rtol=1e-6)  # .1 <= .2: .01 + .005
    applied, state, metrics = step(state, 0.3, MASK)  # the last entropy was .1: on, with .015
    np.testing.assert_allclose(applied, 0.015, rtol=1e-6)
    np.testing.assert_allclose(metrics['regularizer/adaptive_entropy/next_coefficient'], 0.01, rtol=1e-6)  # .3 > .2
    applied, state, _ = step(state, 0.3, MASK)  # the last entropy was .3: gated off
    assert float(applied) == 0
    np.testing.assert_allclose(state['adaptive_entropy']['controller']['coefficient'], 0.005, rtol=1e-6)

  def test_against_a_loop(self):
    hyper = {'target': 0.5, 'step': 0.1, 'minimum': 0.05, 'maximum': 0.4, 'initial': 0.2}
    state, step = adaptive(**hyper)
    coefficient, last = 0.2, float('inf')
    for entropy in [0.9, 0.4, 0.5, 0.3, 0.2, 0.1, 0.6, 0.7, 0.8, 0.9, 0.2, 0.9]:
      expected = coefficient if last <= 0.5 else 0.0
      coefficient = min(coefficient + 0.1, 0.4) if entropy <= 0.5 else max(coefficient - 0.1, 0.05)
      last = entropy
      applied, state, metrics = step(state, entropy, MASK)
      np.testing.assert_allclose(applied, expected, rtol=1e-5, atol=1e-7)
      np.testing.assert_allclose(metrics['regularizer/adaptive_entropy/coefficient'], expected, rtol=1e-5, atol=1e-7)
      np.testing.assert_allclose(metrics['regularizer/adaptive_entropy/entropy'], entropy, rtol=1e-6)

  def test_no_valid_token_changes_nothing(self):
    state, step = adaptive(initial=0.01)
    _, after, _ = step(state, 0.1, MASK & False)
    chex.assert_trees_all_equal(after, state)

  def test_state_keeps_its_structure(self):
    state, step = adaptive(initial=0.01)
    _, after, _ = step(state, 0.1, MASK)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)

  def test_loss_is_the_bonus_with_the_planned_coefficient(self):
    chain = objective.chain(surrogates.reinforce(), regularizers.adaptive_entropy(initial=0.25, target=1.0))

    def loss(entropy, state):
      batch = make_batch(entropy)
      planned, state, _ = chain.plan(state, batch)
      return chain.loss(planned, batch).compute(), state

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (first, state), gradient = run(jnp.float32(0.5), chain.init(make_batch(0.0)))
    assert float(first) == 0 and float(gradient) == 0
    (second, _), gradient = run(jnp.float32(0.8), state)
    np.testing.assert_allclose(second, -0.255 * 0.8, rtol=1e-6)  # the coefficient has risen from .25 by .005
    np.testing.assert_allclose(gradient, -0.255, rtol=1e-6)  # none through the coefficient

  def test_is_a_method_like_the_others(self):
    method = regularizers.adaptive_entropy
    assert isinstance(method, transform.Method) and method.room == Room.REGULARIZER
    assert method.defaults() == {'target': 0.2, 'step': 0.005, 'minimum': 0.0, 'maximum': 1.0, 'initial': 0.0}
    assert set(method.ranges) == set(method.defaults())
    assert method(name='other', target=0.4).name == 'other'

  @pytest.mark.parametrize(
    ('hyper', 'message'),
    [
      ({'target': -1.0}, r'target=-1.0 is outside \[0, inf\)'),
      ({'coef': 1.0}, "unknown hyper-parameter 'coef'"),
      ({'minimum': 0.1}, 'give minimum <= initial <= maximum'),
      ({'initial': 2.0}, 'initial=2.0 is not between'),
    ],
  )
  def test_bad_input(self, hyper, message):
    with pytest.raises(UserError, match=message):
      regularizers.adaptive_entropy(**hyper)
