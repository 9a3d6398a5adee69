"""Surrogates without a hard gate: the cards' numbers, closed-form gradients, limits and notes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from entropy_jax.methods import surrogates
from entropy_jax.methods.surrogates import soft
from entropy_jax.types import RunFacts, UserError

pytestmark = pytest.mark.usefixtures('strict_dtypes')

sapo = jax.jit(soft.sapo_objective)
vespo = jax.jit(soft.vespo_objective)
FACTS = RunFacts(updates_per_rollout=4, group_size=8, num_tokens=4096, aggregate='token_mean')


def notes(transform, facts=FACTS):
  return [text for text in (note(facts) for note in transform.notes) if text is not None]


class TestCispo:
  LOG_RATIO = jnp.log(jnp.array([[1.5, 0.5, 1.0, 7.0]]))

  def coefficients(self, **hyper):
    """d objective / d logp at A = 1, with the log-ratio held: the clipped ratio."""
    total = lambda lp: jnp.sum(soft.cispo_objective(lp, self.LOG_RATIO, jnp.ones((1, 4)), **hyper))
    return jax.jit(jax.grad(total))(jnp.full((1, 4), -1.0))[0]

  def test_card_values(self):
    np.testing.assert_allclose(self.coefficients(low=0.2, high=0.2), [1.2, 0.8, 1.0, 1.2], rtol=1e-6)
    np.testing.assert_allclose(self.coefficients(form='trl', high=5.0), [1.5, 0.5, 1.0, 5.0], rtol=1e-6)

  def test_no_lower_bound_by_default(self):
    np.testing.assert_allclose(self.coefficients(), [1.2, 0.5, 1.0, 1.2], rtol=1e-6)

  def test_the_two_forms_agree(self):
    np.testing.assert_allclose(self.coefficients(high=0.5), self.coefficients(form='trl', high=1.5), rtol=1e-6)

  def test_no_gradient_through_the_ratio(self):
    # As in a run: the log-ratio moves with logp. The gradient is clip(r) A, not zero where clipped.
    old = -1.0 - self.LOG_RATIO
    a = jnp.array([[2.0, -1.0, 1.0, -1.0]])
    gradient = jax.jit(jax.grad(lambda lp: jnp.sum(soft.cispo_objective(lp, lp - old, a, low=0.2, high=0.2))))(jnp.full((1, 4), -1.0))
    np.testing.assert_allclose(gradient, [[2.4, -0.8, 1.0, -1.2]], rtol=1e-6)

  def test_clip_fraction(self):
    _, metrics = surrogates.cispo.plan(self.LOG_RATIO, jnp.ones((1, 4), bool), low=None, high=0.2, form='verl')
    np.testing.assert_allclose(metrics['clip_fraction'], 0.5)

  def test_notes(self):
    assert notes(surrogates.cispo()) == []
    assert 'high=5' in notes(surrogates.cispo(form='trl'))[0]  # high=.2 read as the bound itself
    assert notes(surrogates.cispo(form='trl', high=5.0)) == []
    assert 'low=0.2 is not used' in notes(surrogates.cispo(form='trl', high=5.0, low=0.2))[0]
    assert 'reinforce' in notes(surrogates.cispo(), FACTS._replace(updates_per_rollout=1))[0]

  def test_bad_form(self):
    with pytest.raises(UserError, match=r"form='TRL' is not one of verl, trl"):
      surrogates.cispo(form='TRL')


class TestSapo:
  def test_card_values(self):
    one, two = jnp.zeros((1, 1)), jnp.log(jnp.full((1, 1), 2.0))
    positive, negative = jnp.ones((1, 1)), jnp.full((1, 1), -1.0)
    np.testing.assert_allclose(sapo(one, positive), [[2.0]], rtol=1e-6)  # (4 / 1) sigmoid(0)
    np.testing.assert_allclose(sapo(one, negative), [[-1.904762]], rtol=1e-6)  # -(4 / 1.05) / 2
    np.testing.assert_allclose(sapo(two, positive), [[2.924234]], rtol=1e-6)  # 4 sigmoid(1)

  @pytest.mark.parametrize('tau', [0.1, 1.0, 1.05, 20.0])
  def test_slope_one_on_policy_for_every_temperature(self, tau):
    hyper = {'temperature_positive': tau, 'temperature_negative': tau}
    for a in (2.0, -3.0):
      gradient = jax.jit(jax.grad(lambda d, a=a: soft.sapo_objective(d, jnp.float32(a), **hyper)))(jnp.float32(0.0))
      np.testing.assert_allclose(gradient, a, rtol=1e-6)

  def test_gradient(self):
    a = jnp.array([1.0, -1.0, 0.5])
    check_grads(lambda d: soft.sapo_objective(d, a), (jnp.array([0.3, -0.2, 0.5]),), order=1, modes=['rev'], atol=1e-2, rtol=1e-2)
    far = jax.jit(jax.grad(lambda d: jnp.sum(soft.sapo_objective(d, a))))(jnp.array([50.0, 50.0, -50.0]))
    np.testing.assert_allclose(far, [0.0, 0.0, 0.0], atol=1e-7)

  def test_small_temperature_is_importance_up_to_a_constant(self):
    d = jnp.array([0.3, -0.4])
    hyper = {'temperature_positive': 1e-3, 'temperature_negative': 1e-3}
    gradient = jax.jit(jax.grad(lambda d: jnp.sum(soft.sapo_objective(d, jnp.array([1.0, -1.0]), **hyper))))(d)
    np.testing.assert_allclose(gradient, np.exp(d) * np.array([1.0, -1.0]), rtol=1e-5)

  def test_notes(self):
    assert notes(surrogates.sapo()) == []
    assert 'sapo' in notes(surrogates.sapo(), FACTS._replace(updates_per_rollout=1))[0]


class TestVespo:
  @pytest.mark.parametrize(
    ('advantage', 'w', 'phi'),
    [
      (1.0, 1.0, 1.0),  # exp(3 + 0 - 3)
      (1.0, 2 / 3, 1.208125),  # e^3 (2/3)^2 e^-2 = 4 e / 9, the largest of the positive pair
      (1.0, 2.0, 0.199148),  # e^3 4 e^-6
      (-1.0, 1.0, 1.0),
      (-1.0, 1.5, 1.241593),  # e^2 1.5^3 e^-3, the largest of the negative pair
    ],
  )
  def test_card_values(self, advantage, w, phi):
    # w is the product over the tokens of the sequence: split it over two of them. A lp = -A.
    delta = jnp.array([[0.5 * np.log(w), 0.5 * np.log(w), 9.0]], jnp.float32)
    mask, logp = jnp.array([[True, True, False]]), jnp.full((1, 3), -1.0)
    x = vespo(logp, delta, jnp.full((1, 3), advantage), mask)
    np.testing.assert_allclose(x[0, :2], [-advantage * phi] * 2, rtol=1e-5)

  def test_no_gradient_through_phi(self):
    old, a, mask = jnp.array([[-1.2, -0.8]]), jnp.array([[1.0, 1.0]]), jnp.ones((1, 2), bool)
    logp = jnp.full((1, 2), -1.0)  # log-ratios .2 and -.2: w = 1, phi = 1
    gradient = jax.jit(jax.grad(lambda lp: jnp.sum(soft.vespo_objective(lp, lp - old, a, mask))))(logp)
    np.testing.assert_allclose(gradient, [[1.0, 1.0]], rtol=1e-6)

  @pytest.mark.parametrize('far', [50.0, -50.0])
  def test_far_ratios_stay_finite(self, far):
    delta, mask = jnp.full((2, 3), far), jnp.ones((2, 3), bool)
    a = jnp.array([[1.0] * 3, [-1.0] * 3])
    x, gradient = jax.jit(jax.value_and_grad(lambda lp: jnp.sum(soft.vespo_objective(lp, delta, a, mask))))(jnp.full((2, 3), -1.0))
    assert np.isfinite(x) and np.all(np.isfinite(gradient))
    np.testing.assert_allclose(gradient, np.zeros((2, 3)), atol=1e-6)

  def test_notes(self):
    assert notes(surrogates.vespo()) == []
    assert 'vespo' in notes(surrogates.vespo(), FACTS._replace(updates_per_rollout=1))[0]
