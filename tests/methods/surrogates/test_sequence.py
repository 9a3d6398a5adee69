"""Sequence-level surrogates: the cards' numbers, the equality of the two forms of GSPO, gradients, limits and notes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.methods import surrogates
from entropy_jax.methods.surrogates import sequence
from entropy_jax.ops.aggregation import sequence_mean_token_mean
from entropy_jax.types import RunFacts

pytestmark = pytest.mark.usefixtures('strict_dtypes')

FACTS = RunFacts(updates_per_rollout=4, group_size=8, num_tokens=4096, aggregate='sequence_mean_token_mean')
RNG = np.random.default_rng(0)
# Rows: s = exp(0), s = exp(.5) clipped for A > 0, s = exp(-.5) clipped for A < 0, and an empty row.
DELTA = jnp.array([[0.1, -0.3, 0.2], [0.7, 0.3, 0.0], [-0.5, 0.0, 0.0], [0.0, 0.0, 0.0]])
MASK = jnp.array([[True, True, True], [True, True, False], [True, False, False], [False] * 3])
ADVANTAGE = jnp.broadcast_to(jnp.array([[1.0], [2.0], [-1.0], [0.0]]), (4, 3))


def mean_value_and_gradient(objective, delta=DELTA, mask=MASK):
  """Value and gradient of the mean over sequences of the token mean."""

  def total(d):
    return sequence_mean_token_mean()(objective(d), mask, jnp.float32(4.0)).compute()

  value, gradient = jax.jit(jax.value_and_grad(total))(delta)
  return float(value), np.asarray(gradient)


def notes(transform, facts=FACTS):
  return [text for text in (note(facts) for note in transform.notes) if text is not None]


def gspo(low, high):
  return lambda d: sequence.gspo_objective(d, ADVANTAGE, MASK, low=low, high=high)


def gspo_token(low, high):
  logp_old = jnp.full((4, 3), -1.5)
  return lambda d: sequence.gspo_token_objective(logp_old + d, d, ADVANTAGE, MASK, low=low, high=high)


class TestGspo:
  def test_card_value(self):
    x = jax.jit(sequence.gspo_objective)(DELTA, ADVANTAGE, MASK)
    np.testing.assert_allclose(x[0], [1.0, 1.0, 1.0], rtol=1e-6)  # exp((.1 - .3 + .2) / 3) = 1
    np.testing.assert_allclose(x[1], [2 * (1 + 4e-4)] * 3, rtol=1e-6)  # exp(.5) = 1.65 is held at 1 + 4e-4
    np.testing.assert_allclose(x[2], [-(1 - 3e-4)] * 3, rtol=1e-6)  # exp(-.5) = .61 is held at 1 - 3e-4

  def test_gradient_is_ratio_times_advantage_over_length(self):
    _, gradient = mean_value_and_gradient(gspo(0.3, 0.4))
    # 3 sequences count; row 0: 1 * 1 / 3 tokens; rows 1 and 2 are clipped
    np.testing.assert_allclose(gradient, np.array([[1 / 9] * 3, [0] * 3, [0] * 3, [0] * 3]), rtol=1e-6)
    _, gradient = mean_value_and_gradient(gspo(1.0, 9.0))
    expected = np.array([[1 / 9] * 3, [np.exp(0.5) * 2 / 6] * 2 + [0], [-np.exp(-0.5) / 3, 0, 0], [0] * 3])
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)

  def test_clip_fraction(self):
    _, metrics = jax.jit(surrogates.gspo.plan)(DELTA, ADVANTAGE, MASK, low=3e-4, high=4e-4)
    np.testing.assert_allclose(metrics['clip_fraction'], 3 / 6, rtol=1e-6)  # rows 1 and 2 hold 2 + 1 of 6 tokens

  def test_notes(self):
    assert notes(surrogates.gspo()) == []
    assert notes(surrogates.gspo(), FACTS._replace(aggregate='sequence_mean_token_sum')) == []  # LUSPO
    for aggregate in ('token_mean', 'token_sum_over_constant', 'token_sum_over_capacity'):
      assert 'sequence_mean_token_mean' in notes(surrogates.gspo(), FACTS._replace(aggregate=aggregate))[0]
    assert 'reinforce' in notes(surrogates.gspo(), FACTS._replace(updates_per_rollout=1))[0]


class TestGspoToken:
  @pytest.mark.parametrize(('low', 'high'), [(3e-4, 4e-4), (0.3, 0.4), (1.0, 9.0)])
  def test_equals_gspo_when_the_advantage_is_constant_in_the_sequence(self, low, high):
    value, gradient = mean_value_and_gradient(gspo(low, high))
    token_value, token_gradient = mean_value_and_gradient(gspo_token(low, high))
    np.testing.assert_allclose(token_value, value, rtol=1e-6)
    np.testing.assert_allclose(token_gradient, gradient, rtol=1e-5, atol=1e-8)

  def test_every_token_its_own_advantage(self):
    advantage = jnp.array([[1.0, -2.0, 0.5]])
    delta, mask, logp = DELTA[:1] + 0.1, MASK[:1], jnp.full((1, 3), -2.0)
    one = lambda lp: jnp.sum(sequence.gspo_token_objective(lp, delta, advantage, mask, low=0.5, high=0.5))
    # s = exp(.1) for every token; the gradient is s A_t
    np.testing.assert_allclose(jax.jit(jax.grad(one))(logp), np.exp(0.1) * advantage, rtol=1e-6)

  def test_bound_of_the_ratio(self):
    far = jnp.full((1, 3), 50.0)
    x = jax.jit(sequence.gspo_token_objective)(far, far, jnp.full((1, 3), -1.0), MASK[:1])
    np.testing.assert_allclose(x, np.full((1, 3), -np.exp(10.0)), rtol=1e-6)

  def test_notes(self):
    assert notes(surrogates.gspo_token()) == []
    assert 'gspo_token' in notes(surrogates.gspo_token(), FACTS._replace(aggregate='token_mean'))[0]


class TestGmpo:
  CARD = jnp.array([[0.6, -0.6, 0.1]])

  @pytest.mark.parametrize(
    ('advantage', 'ratio', 'open_tokens'),
    [
      (1.0, 0.967216, [0, 1, 1]),  # c = (.4, -.6, .1), exp(-.1 / 3)
      (-1.0, 1.105171, [1, 0, 1]),  # c = (.6, -.4, .1), exp(.3 / 3)
      (0.0, 1.0, [0, 0, 0]),  # sign(0) = 0: c = 0
    ],
  )
  def test_card_values_and_gradient(self, advantage, ratio, open_tokens):
    a, mask = jnp.full((1, 3), advantage), MASK[:1]
    total = lambda d: sequence_mean_token_mean()(sequence.gmpo_objective(d, a, mask), mask, jnp.float32(1.0)).compute()
    value, gradient = jax.jit(jax.value_and_grad(total))(self.CARD)
    np.testing.assert_allclose(value, advantage * ratio, rtol=1e-6)
    # A ratio / n at tokens that are not clipped, exactly 0 at the others
    np.testing.assert_allclose(gradient[0], advantage * ratio / 3 * np.array(open_tokens), rtol=1e-6)

  def test_against_a_loop(self):
    delta, advantage = RNG.normal(size=(5, 6)) * 0.5, RNG.normal(size=(5, 1)) * np.ones((1, 6))
    mask = RNG.random((5, 6)) < 0.7
    found = jax.jit(sequence.gmpo_objective)(jnp.float32(delta), jnp.float32(advantage), jnp.array(mask), low=0.3, high=0.5)
    for row in range(5):
      c = []
      for t in np.nonzero(mask[row])[0]:
        d = delta[row, t]
        c.append(min(d, 0.5) if advantage[row, t] > 0 else max(d, -0.3))
      np.testing.assert_allclose(found[row], advantage[row] * np.exp(np.mean(c)), rtol=1e-5)

  def test_empty_sequence_is_zero(self):
    assert not np.any(jax.jit(sequence.gmpo_objective)(DELTA, ADVANTAGE, MASK)[3])

  def test_clip_fraction(self):
    _, metrics = jax.jit(surrogates.gmpo.plan)(self.CARD, jnp.ones((1, 3)), MASK[:1], low=0.4, high=0.4)
    np.testing.assert_allclose(metrics['clip_fraction'], 1 / 3, rtol=1e-6)

  def test_notes(self):
    assert notes(surrogates.gmpo()) == []
    assert 'gmpo' in notes(surrogates.gmpo(), FACTS._replace(aggregate='sequence_mean_token_sum'))[0]
    assert 'gmpo' in notes(surrogates.gmpo(), FACTS._replace(aggregate='token_mean'))[0]
