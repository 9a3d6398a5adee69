"""KL penalties: the cards' numbers, expected gradients by enumeration over three tokens, the controller against a loop, and notes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective, transform
from entropy_jax.methods import regularizers, surrogates
from entropy_jax.methods.regularizers.kl import kl_estimate, kl_penalty
from entropy_jax.ops import categorical
from entropy_jax.types import RunFacts, TokenBatch, UserError

pytestmark = pytest.mark.usefixtures('strict_dtypes')

FACTS = RunFacts(updates_per_rollout=4, group_size=8, num_tokens=4096, aggregate='token_mean')
P, Q, U = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5]), np.array([0.4, 0.4, 0.2])
LOGITS = jnp.log(jnp.array(P, jnp.float32))
GRADIENT_PQ = [0.320702, -0.082466, -0.238236]  # of KL(p || q): p_j (ln p_j / q_j - KL)
GRADIENT_QP = [0.3, 0.0, -0.3]  # of KL(q || p): p - q


def expected(behaviour=P, **hyper):
  """Value and gradient in the logits of E_{a ~ behaviour}[penalty(a)], every token enumerated; the sampling carries no gradient."""

  def mean(z):
    logp = categorical.log_probs(z)
    k = kl_penalty(logp, jnp.log(jnp.array(Q, jnp.float32)), logp - jnp.log(jnp.array(behaviour, jnp.float32)), coef=1.0, **hyper)
    return jnp.sum(jnp.array(behaviour, jnp.float32) * k)

  value, gradient = jax.jit(jax.value_and_grad(mean))(LOGITS)
  return float(value), np.asarray(gradient)


def make_batch(logp, ref, mask):
  zeros = jnp.zeros(mask.shape)
  return TokenBatch(
    tokens_BxN=jnp.zeros(mask.shape, jnp.int32),
    token_mask_BxN=mask,
    mask_BxT=mask,
    group_B=jnp.zeros(mask.shape[0], jnp.int32),
    reward_B=jnp.zeros(mask.shape[0]),
    old_logp_BxT=logp,
    old_entropy_BxT=zeros,
    logp_BxT=logp,
    entropy_BxT=zeros,
    key=jax.random.key(0),
    advantage_BxT=zeros,
    ref_logp_BxT=ref,
  )


def notes(lifted, facts=FACTS):
  return [text for text in (note(facts) for note in lifted.notes) if text is not None]


class TestKl:
  @pytest.mark.parametrize(
    ('estimator', 'value'),
    # d = ln(.5 / .25) = .693147; d^2 / 2; e^-d + d - 1 = .5 + .693147 - 1
    [('k1', 0.693147), ('absolute', 0.693147), ('k2', 0.240227), ('k3', 0.193147)],
  )
  def test_card_values(self, estimator, value):
    lp, ref = jnp.log(jnp.float32(0.5)), jnp.log(jnp.float32(0.25))
    np.testing.assert_allclose(kl_penalty(lp, ref, lp, coef=2.0, estimator=estimator), 2 * value, rtol=1e-5)

  @pytest.mark.parametrize(
    ('estimator', 'value', 'gradient'),
    [
      ('k1', 0.274887, [0.0, 0.0, 0.0]),  # unbiased value, useless gradient
      ('k2', 0.293856, GRADIENT_PQ),  # biased value, the right gradient
      ('k3', 0.274887, GRADIENT_QP),  # unbiased value, the gradient of the other KL
    ],
  )
  def test_expectation_by_enumeration(self, estimator, value, gradient):
    found_value, found_gradient = expected(estimator=estimator)
    np.testing.assert_allclose(found_value, value, rtol=1e-5)
    np.testing.assert_allclose(found_gradient, gradient, atol=1e-6)

  def test_the_closed_forms_above(self):
    kl = np.sum(P * np.log(P / Q))
    np.testing.assert_allclose(kl, 0.274887, atol=1e-6)
    np.testing.assert_allclose(P * (np.log(P / Q) - kl), GRADIENT_PQ, atol=1e-6)
    np.testing.assert_allclose(P - Q, GRADIENT_QP, atol=1e-12)

  @pytest.mark.parametrize('estimator', ['k1', 'absolute', 'k2', 'k3'])
  def test_straight_through_has_the_value_of_k_and_the_gradient_of_k2(self, estimator):
    value, _ = expected(estimator=estimator)
    found_value, found_gradient = expected(estimator=estimator, straight_through=True)
    np.testing.assert_allclose(found_value, value, rtol=1e-5)
    np.testing.assert_allclose(found_gradient, GRADIENT_PQ, atol=1e-6)

  @pytest.mark.parametrize('estimator', ['k1', 'k3'])
  @pytest.mark.parametrize('behaviour', [P, U])
  def test_bias_correction_gives_the_kl_and_its_gradient_off_policy(self, estimator, behaviour):
    value, gradient = expected(behaviour, estimator=estimator, bias_correction=True)
    np.testing.assert_allclose(value, 0.274887, rtol=1e-5)
    np.testing.assert_allclose(gradient, GRADIENT_PQ, atol=1e-6)

  @pytest.mark.parametrize('estimator', ['absolute', 'k2', 'k3'])
  def test_nothing_at_the_reference(self, estimator):
    lp = jnp.array([-1.0, -3.0])
    value, gradient = jax.jit(jax.value_and_grad(lambda x: jnp.sum(kl_penalty(x, lp, x - lp, estimator=estimator))))(lp)
    assert float(value) == 0 and gradient.tolist() == [0.0, 0.0]

  def test_k3_is_bounded(self):
    # d = -3: e^3 - 4 = 16.1 is held at 10, without gradient; d = -2: e^2 - 3 = 4.389056, with gradient 1 - e^2; d = 50 is held at 20
    d = jnp.array([-3.0, -2.0, 50.0, -50.0])
    estimate = jax.jit(jax.vmap(jax.value_and_grad(lambda x: kl_estimate(x, jnp.float32(0.0), estimator='k3'))))
    value, gradient = estimate(d)
    np.testing.assert_allclose(value, [10.0, 4.389056, 10.0, 10.0], rtol=1e-6)
    np.testing.assert_allclose(gradient, [0.0, 1 - np.exp(2.0), 0.0, 0.0], rtol=1e-6)

  def test_k3_is_exact_near_zero(self):
    d = np.float32(1e-4)
    np.testing.assert_allclose(kl_estimate(jnp.float32(d), jnp.float32(0.0), estimator='k3'), 5e-9, rtol=1e-2)

  def test_in_a_chain(self):
    mask = jnp.array([[True, True], [True, False]])
    logp, ref = jnp.array([[-1.0, -2.0], [-0.5, jnp.nan]]), jnp.array([[-1.5, -2.0], [-1.5, jnp.inf]])
    chain = objective.chain(surrogates.reinforce(), regularizers.kl(coef=0.3, estimator='k2'))

    @jax.jit
    def run(logp):
      batch = make_batch(logp, ref, mask)
      planned, _, metrics = chain.plan(chain.init(batch), batch)
      return jax.value_and_grad(lambda lp: chain.loss(planned, batch.replace(logp_BxT=lp)).compute())(logp), metrics

    (loss, gradient), metrics = run(logp)
    np.testing.assert_allclose(metrics['regularizer/kl/kl'], 0.625 / 3, rtol=1e-6)  # (.5^2 / 2 + 0 + 1 / 2) / 3
    np.testing.assert_allclose(loss, 0.3 * 0.625 / 3, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0.05, 0.0], [0.1, 0.0]], atol=1e-7)  # .3 d / 3

  def test_notes(self):
    assert notes(regularizers.kl()) == []
    assert 'zero gradient' in notes(regularizers.kl(estimator='k1'))[0]
    assert notes(regularizers.kl(estimator='k1', straight_through=True)) == []
    assert notes(regularizers.kl(estimator='k1', bias_correction=True)) == []

  def test_bad_input(self):
    with pytest.raises(UserError, match="estimator='k4' is not one of k1, absolute, k2, k3"):
      regularizers.kl(estimator='k4')
    batch = make_batch(jnp.zeros((1, 1)), None, jnp.ones((1, 1), bool))
    chain = objective.chain(surrogates.reinforce(), regularizers.kl())
    with pytest.raises(UserError, match='reads ref_logp_BxT, which this run does not provide'):
      chain.plan(chain.init(batch), batch)


class TestAdaptiveKl:
  MASK = jnp.array([[True, True], [True, False], [False, False]])

  def test_against_a_loop(self):
    chain = objective.chain(surrogates.reinforce(), regularizers.adaptive_kl(target=0.1, horizon=10, initial=0.5, estimator='k2'))

    @jax.jit
    def step(state, d):
      batch = make_batch(d, jnp.zeros_like(d), self.MASK)
      planned, state, metrics = chain.plan(state, batch)
      return chain.loss(planned, batch).compute(), state, metrics

    state = chain.init(make_batch(jnp.zeros((3, 2)), jnp.zeros((3, 2)), self.MASK))
    coefficient = 0.5
    for size in (2.0, 0.1, 0.46, 0.0, 1.0):
      d = size * np.array([[1.0, 0.5], [-1.0, 9.0], [9.0, 9.0]], np.float32)
      loss, state, metrics = step(state, d)
      k = d**2 / 2
      # applied before it moves; the loss is a token mean, the controller's KL a mean over the two non-empty sequences
      np.testing.assert_allclose(loss, coefficient * (k[0, 0] + k[0, 1] + k[1, 0]) / 3, rtol=1e-5, atol=1e-9)
      np.testing.assert_allclose(metrics['regularizer/adaptive_kl/coefficient'], coefficient, rtol=1e-5)
      current = ((k[0, 0] + k[0, 1]) / 2 + k[1, 0]) / 2
      np.testing.assert_allclose(metrics['regularizer/adaptive_kl/sequence_kl'], current, rtol=1e-5, atol=1e-9)
      coefficient *= 1 + min(max(current / 0.1 - 1, -0.2), 0.2) * 2 / 10
    np.testing.assert_allclose(state['adaptive_kl']['controller']['coefficient'], coefficient, rtol=1e-5)

  def test_infinite_horizon_is_the_kl_penalty(self):
    d = jnp.array([[0.4, -0.3], [1.0, 2.0], [0.0, 0.0]])
    losses = []
    for regularizer in (regularizers.kl(coef=0.7), regularizers.adaptive_kl(target=0.1, horizon=float('inf'), initial=0.7)):
      chain = objective.chain(surrogates.reinforce(), regularizer)
      batch = make_batch(d, jnp.zeros_like(d), self.MASK)
      run = jax.jit(lambda batch, chain=chain: chain.loss(chain.plan(chain.init(batch), batch)[0], batch).compute())
      losses.append(float(run(batch)))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    assert losses[0] > 0

  def test_is_a_method_with_required_hyper_parameters(self):
    assert isinstance(regularizers.adaptive_kl, transform.Method)
    with pytest.raises(UserError, match=r'target has no default; give target= a value in \(0, inf\)'):
      regularizers.adaptive_kl(horizon=10_000)
    assert 'zero gradient' in notes(regularizers.adaptive_kl(target=0.1, horizon=10, estimator='k1'))[0]
