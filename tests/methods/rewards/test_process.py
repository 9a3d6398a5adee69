"""The implicit process reward and its losses: the card's numbers, the soft expectation by enumeration, closed-form gradients."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.methods import rewards
from entropy_jax.methods.rewards import process
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

jitted = jax.jit(rewards.implicit_prm.function, static_argnames=('beta', 'skip_last', 'normalize'))


class TestImplicitPrm:
  def test_card_value(self):
    # two tokens of probability .9 and .1 against a uniform reference: ln(.9 / .5) and ln(.1 / .5)
    p = np.log(np.float32([[0.9, 0.1]]))
    value, metrics = jitted(p, np.log(np.float32([[0.5, 0.5]])), np.ones((1, 2), bool), beta=1.0)
    np.testing.assert_allclose(value, [[0.587787, -1.609438]], rtol=1e-5)
    np.testing.assert_allclose(metrics['outcome'], 0.587787 - 1.609438, rtol=1e-5)

  def test_the_reference_itself_earns_nothing(self):
    batch = helpers.token_batch()
    value, _ = jitted(batch.ref_logp_BxT, batch.ref_logp_BxT, batch.mask_BxT)
    np.testing.assert_array_equal(value, np.zeros(batch.mask_BxT.shape))

  def test_sums_to_the_outcome_whatever_is_masked(self):
    batch = helpers.token_batch()
    dirty = helpers.with_garbage(batch)
    value, _ = jitted(dirty.process_logp_BxT, dirty.ref_logp_BxT, dirty.mask_BxT, beta=0.05)
    outcome = jax.jit(process.outcome_logits)(dirty.process_logp_BxT, dirty.ref_logp_BxT, dirty.mask_BxT)
    ratio, mask = np.asarray(batch.process_logp_BxT) - np.asarray(batch.ref_logp_BxT), np.asarray(batch.mask_BxT)
    expected = [0.05 * sum(ratio[b][mask[b]].tolist()) for b in range(8)]
    np.testing.assert_allclose(np.sum(value, axis=1), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(outcome, expected, rtol=1e-5, atol=1e-7)

  def test_prime_leaves_the_last_token_to_the_outcome(self):
    mask = np.array([[True, True, True, False], [False, True, False, True]])
    ratio = np.float32([[1.0, 2.0, 4.0, np.nan], [np.inf, 3.0, np.nan, 5.0]])
    value, _ = jitted(ratio, np.zeros((2, 4), np.float32), mask, beta=1.0, skip_last=True)
    np.testing.assert_array_equal(value, [[1, 2, 0, 0], [0, 3, 0, 0]])

  def test_prime_divides_by_the_largest_return_to_go(self):
    # returns to go 7, 6, 4 and -8, -5
    ratio = np.float32([[1.0, 2.0, 4.0], [-3.0, -5.0, np.nan]])
    mask = np.array([[True, True, True], [True, True, False]])
    value, metrics = jitted(ratio, np.zeros((2, 3), np.float32), mask, beta=1.0, normalize=True)
    np.testing.assert_allclose(metrics['divisor'], 8.000001, rtol=1e-6)
    np.testing.assert_allclose(value, np.array([[1, 2, 4], [-3, -5, 0]]) / 8.000001, rtol=1e-6)

  def test_bad_input(self):
    with pytest.raises(UserError, match=r'^implicit_prm: beta=0 is outside \(0, inf\)'):
      rewards.implicit_prm(beta=0)


class TestProcessValues:
  def test_is_the_soft_expectation_of_the_outcome(self):
    # Every response of two tokens out of three, random model and reference: q_t = beta ln E_ref[exp(r(y) / beta) | y_<=t]
    rng = np.random.default_rng(0)
    beta = 0.3
    first, second = (rng.dirichlet(np.ones(3), size=n).astype(np.float32) for n in ((2,), (2, 3)))  # [model or reference, (before,) token]
    responses = list(itertools.product(range(3), repeat=2))
    logp = np.log([[[first[m][a], second[m][a, b]] for a, b in responses] for m in range(2)]).astype(np.float32)
    q = np.asarray(jax.jit(functools.partial(process.process_values, beta=beta))(logp[0], logp[1], np.ones((9, 2), bool)))
    outcome = {y: q[i, 1] for i, y in enumerate(responses)}
    for i, (a, _) in enumerate(responses):
      soft = beta * np.log(sum(second[1][a, b] * np.exp(outcome[a, b] / beta) for b in range(3)))
      np.testing.assert_allclose(q[i, 0], soft, atol=1e-6)
      mean = sum(second[1][a, b] * outcome[a, b] for b in range(3))
      assert mean <= soft + 1e-6 <= max(outcome[a, b] for b in range(3)) + 2e-6
    root = beta * np.log(sum(first[1][a] * second[1][a, b] * np.exp(outcome[a, b] / beta) for a, b in responses))
    np.testing.assert_allclose(root, 0.0, atol=1e-6)  # before the first token nothing is known


class TestOutcomeCrossEntropy:
  LOGIT, LABEL = np.float32([2.0, -1.0, 0.5]), np.float32([1.0, 0.0, 0.0])

  def test_value(self):
    p = 1 / (1 + np.exp(-self.LOGIT))
    expected = -np.mean(self.LABEL * np.log(p) + (1 - self.LABEL) * np.log(1 - p))
    np.testing.assert_allclose(process.outcome_cross_entropy(self.LOGIT, self.LABEL).compute(), expected, rtol=1e-6)

  def test_gradient(self):
    gradient = jax.grad(lambda x: process.outcome_cross_entropy(x, self.LABEL).compute())(jnp.array(self.LOGIT))
    np.testing.assert_allclose(gradient, (1 / (1 + np.exp(-self.LOGIT)) - self.LABEL) / 3, rtol=1e-5)

  def test_the_reference_has_ln_2_and_parts_merge(self):
    assert float(process.outcome_cross_entropy(jnp.zeros(3), jnp.array(self.LABEL)).compute()) == pytest.approx(np.log(2))
    parts = [process.outcome_cross_entropy(self.LOGIT[i], self.LABEL[i]) for i in (slice(0, 1), slice(1, 3))]
    whole = process.outcome_cross_entropy(self.LOGIT, self.LABEL)
    np.testing.assert_allclose(parts[0].merge(parts[1]).compute(), whole.compute(), rtol=1e-6)

  def test_extreme_logits_stay_finite(self):
    loss = lambda x: process.outcome_cross_entropy(x, jnp.array([0.0, 1.0])).compute()
    value, gradient = jax.value_and_grad(loss)(jnp.array([200.0, -200.0]))
    np.testing.assert_allclose(value, 200.0)
    np.testing.assert_allclose(gradient, [0.5, -0.5])


class TestOutcomePreference:
  def test_value_and_gradient(self):
    # differences 2 and -1: ln(1 + e^-2) = .126928 and ln(1 + e) = 1.313262
    chosen, rejected = jnp.array([1.0, 0.0]), jnp.array([-1.0, 1.0])
    loss = lambda c, r: process.outcome_preference(c, r).compute()
    np.testing.assert_allclose(loss(chosen, rejected), (0.126928 + 1.313262) / 2, atol=1e-6)
    for_chosen, for_rejected = jax.grad(loss, argnums=(0, 1))(chosen, rejected)
    expected = -1 / (1 + np.exp([2.0, -1.0])) / 2
    np.testing.assert_allclose(for_chosen, expected, rtol=1e-5)
    np.testing.assert_allclose(for_rejected, -expected, rtol=1e-5)

  def test_the_reference_has_ln_2(self):
    assert float(process.outcome_preference(jnp.zeros(2), jnp.zeros(2)).compute()) == pytest.approx(np.log(2))

  def test_reaches_every_valid_token_of_the_model(self):
    batch = helpers.token_batch(B=4)

    def loss(logp_BxT):
      logit_B = process.outcome_logits(logp_BxT, batch.ref_logp_BxT, batch.mask_BxT, beta=0.5)
      return process.outcome_preference(logit_B[:2], logit_B[2:]).compute()

    gradient = np.asarray(jax.jit(jax.grad(loss))(batch.process_logp_BxT))
    assert (gradient[:2] <= 0).all() and (gradient[2:] >= 0).all()
    np.testing.assert_array_equal(gradient != 0, batch.mask_BxT)
