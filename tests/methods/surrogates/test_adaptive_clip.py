"""Adaptive clips: the cards' numbers, loops in numpy over every token, closed-form gradients, limits to PPO, and user errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective
from entropy_jax.methods import advantages, surrogates
from entropy_jax.methods.surrogates import adaptive_clip
from entropy_jax.types import RunFacts, UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

FAST = {'xla_backend_optimization_level': 0}
FACTS = RunFacts(updates_per_rollout=4, group_size=8, num_tokens=4096, aggregate='token_mean')
FIVE = jnp.array([[0.01, 0.05, 0.2, 0.8, 1.6]])
ALL = jnp.ones((1, 5), bool)


def off_policy(seed: int = 2, **given):
  """A batch whose ratios leave the ranges here and there: ln r is N(0, .5)."""
  batch = helpers.token_batch(seed=seed, B=10, T=8, **given)
  noise = np.random.default_rng(seed).normal(0, 0.5, batch.logp_BxT.shape)
  return batch.replace(old_logp_BxT=batch.logp_BxT - jnp.asarray(noise, jnp.float32))


def ppo_term(r, a, low, high, dual_clip):
  """(value, slope of ln pi) of one token, with the branches of the minimum written out."""
  held = min(max(r, 1 - low), 1 + high) * a
  value, slope = (held, 0.0) if held < r * a else (r * a, r * a)
  return (dual_clip * a, 0.0) if a < 0 and value < dual_clip * a else (value, slope)


def per_token(function, batch, *fields):
  """The objective of every token and its derivative by its log-probability."""

  def total(logp):
    value = function(logp - batch.old_logp_BxT, batch.advantage_BxT, *fields)
    return jnp.sum(jnp.where(batch.mask_BxT, value, 0.0)), value

  (_, value), slope = jax.jit(jax.value_and_grad(total, has_aux=True), compiler_options=FAST)(batch.logp_BxT)
  return np.asarray(value), np.asarray(slope)


def against(expected, batch, value, slope):
  """Compares with (value, slope) of every valid token."""
  for i, t in np.argwhere(np.asarray(batch.mask_BxT)):
    r = float(np.exp(np.float64(batch.logp_BxT[i, t] - batch.old_logp_BxT[i, t])))
    v, s = expected(i, t, r, float(batch.advantage_BxT[i, t]))
    np.testing.assert_allclose((value[i, t], slope[i, t]), (v, s), rtol=2e-5, atol=1e-6, err_msg=f'token {i}, {t}')
  assert not slope[~np.asarray(batch.mask_BxT)].any()


def chain_gradient(batch, *transforms):
  """The gradient of the loss of a chain with its plan, with respect to log-probability and entropy."""
  chain = objective.chain(*transforms)

  def run(floats):
    prepared, state, _ = chain.prepare(chain.init(batch), batch.replace(**floats))
    planned, _, metrics = chain.plan(state, prepared)
    return chain.loss(planned, prepared).compute(), metrics

  floats = {'logp_BxT': batch.logp_BxT, 'entropy_BxT': batch.entropy_BxT}
  (loss, metrics), gradient = jax.jit(jax.value_and_grad(run, has_aux=True), compiler_options=FAST)(floats)
  return loss, gradient, metrics


class TestHapoClip:
  def test_ranges_of_the_card(self):
    low, high = adaptive_clip.hapo_ranges(jnp.array([-1.0, -0.5, 0.0, 0.5, 1.0]), low=0.2, high=0.3, alpha=1.0)
    np.testing.assert_allclose(low, [0.4, 0.3, 0.2, 0.2, 0.2], rtol=1e-6)
    np.testing.assert_allclose(high, [0.3, 0.3, 0.3, 0.45, 0.6], rtol=1e-6)

  def test_redistribution_of_the_card(self):
    # adapted zones: h = -1: (.8, 1.1); h = 1: (.9, 1.2); h = -.5: (.85, 1.1)
    h = jnp.array([-1.0, -1.0, 1.0, 1.0, -0.5])
    r = jnp.array([1.0, 1.15, 1.1, 1.25, 0.9])
    low, high = adaptive_clip.hapo_ranges(h, low=0.2, high=0.2, alpha=1.0)
    found = adaptive_clip.hapo_redistributed(r, jnp.full(5, -2.0), h, low, high, beta=1.0)
    # inside with h = -1: 0; outside: A; h = 1 inside: A; outside: 2 A; inside with h = -.5: A / 2
    np.testing.assert_allclose(found, [0.0, -2.0, -2.0, -4.0, -1.0], atol=1e-6)

  @pytest.mark.parametrize('form', ['intended', 'released'])
  def test_against_a_loop(self, form):
    batch = off_policy()
    hyper = {'low': 0.2, 'high': 0.28, 'alpha': 0.7, 'beta': 0.9}
    plan = jax.jit(functools.partial(adaptive_clip.hapo_clip_plan, **hyper, quantile=0.6, form=form), compiler_options=FAST)
    planned, metrics = plan(batch.logp_BxT - batch.old_logp_BxT, batch.advantage_BxT, batch.entropy_BxT, batch.mask_BxT)
    function = functools.partial(adaptive_clip.hapo_clip_objective, **hyper, dual_clip=2.0)
    value, slope = per_token(function, batch, planned['h_BxT'])
    counts = {'clipped': 0, 'moved': 0}

    def expected(i, t, r, a):
      h = float(planned['h_BxT'][i, t])
      low = 0.2 * (1 - 0.7 * h) if h <= 0 else 0.2
      high = 0.28 * (1 + 0.7 * h) if h > 0 else 0.28
      inside = 1 - low / 2 < r < 1 + high / 2
      moved = a * (1 + 0.9 * h) if inside == (h <= 0) else a
      counts['moved'] += moved != a
      counts['clipped'] += min(max(r, 1 - low), 1 + high) * moved < r * moved
      return ppo_term(r, moved, low, high, 2.0)

    against(expected, batch, value, slope)
    num = np.asarray(batch.mask_BxT).sum()
    assert 0 < counts['clipped'] < num and 0 < counts['moved'] < num
    np.testing.assert_allclose(metrics['clip_fraction'], counts['clipped'] / num, rtol=1e-6)
    np.testing.assert_allclose(metrics['redistributed_fraction'], counts['moved'] / num, rtol=1e-6)
    entropy = np.sort(np.asarray(batch.entropy_BxT)[np.asarray(batch.mask_BxT)])
    np.testing.assert_allclose(metrics['pivot_entropy'], entropy[round(0.6 * (num - 1))], rtol=1e-5)

  def test_on_policy_low_entropies_are_lowered_and_the_released_form_raises_them(self):
    # r = 1, A = 1: in the neutral zone A (1 + h) for h <= 0, and A for h > 0
    for form, expected in (('intended', [0.0, 0.367282, 0.683641, 1.0, 1.0]), ('released', [1.0, 1.0, 1.0, 1.0, 1.0])):
      planned, _ = adaptive_clip.hapo_clip_plan(
        jnp.zeros((1, 5)), jnp.ones((1, 5)), FIVE, ALL, low=0.2, high=0.2, alpha=1.0, beta=1.0, form=form
      )
      value = adaptive_clip.hapo_clip_objective(jnp.zeros((1, 5)), jnp.ones((1, 5)), planned['h_BxT'])
      np.testing.assert_allclose(value, [expected], atol=1e-6)

  def test_nothing_to_adapt_is_ppo(self):
    batch = off_policy()
    plain = chain_gradient(batch, surrogates.ppo_clip(low=0.2, high=0.28, dual_clip=10.0))
    found = chain_gradient(batch, surrogates.hapo_clip(low=0.2, high=0.28, alpha=0.0, beta=0.0))
    np.testing.assert_array_equal(found[0], plain[0])
    np.testing.assert_array_equal(found[1]['logp_BxT'], plain[1]['logp_BxT'])
    equal = batch.replace(entropy_BxT=jnp.full_like(batch.entropy_BxT, 0.3))
    np.testing.assert_array_equal(chain_gradient(equal, surrogates.hapo_clip(low=0.2, high=0.28))[1]['logp_BxT'], plain[1]['logp_BxT'])

  def test_no_gradient_through_the_entropy(self):
    assert not np.any(chain_gradient(off_policy(), surrogates.hapo_clip())[1]['entropy_BxT'])

  @pytest.mark.parametrize('hyper', [{'low': 1.5}, {'beta': 2.0}, {'alpha': -1.0}, {'dual_clip': 0.5}, {'form': 'old'}, {'quantile': 2.0}])
  def test_bad_input(self, hyper):
    with pytest.raises(UserError, match=r'is outside|is not one of'):
      surrogates.hapo_clip(**hyper)


class TestEchoClip:
  def epsilon(self, value, mask=None, **hyper):
    value = jnp.asarray(value, jnp.float32)
    mask = jnp.ones(value.shape, bool) if mask is None else mask
    zeros = jnp.zeros(value.shape)
    planned, metrics = adaptive_clip.echo_clip_plan(zeros, zeros, value, mask, **hyper)
    return np.asarray(planned['epsilon_B']), metrics

  def test_card_values(self):
    found, metrics = self.epsilon([[0.0], [0.1], [0.2], [0.5], [1.0]])
    np.testing.assert_allclose(found, [0.197302, 0.196010, 0.194125, 0.182120, 0.125], atol=1e-6)
    np.testing.assert_allclose(metrics['epsilon_mean'], found.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics['confidence_mean'], 0.36, rtol=1e-6)

  def test_only_the_tail_counts(self):
    mask = jnp.array([[True] * 4, [True, True, False, False], [False] * 4])
    confidence = [[1.0, 1.0, 0.0, 1.0], [0.0, 1.0, np.nan, np.inf], [np.nan] * 4]
    found, metrics = self.epsilon(confidence, mask, window=2)
    # tails .5, .5 and, without a token, 0
    np.testing.assert_allclose(found, [0.182120, 0.182120, 0.197302], atol=1e-6)
    np.testing.assert_allclose(metrics['confidence_mean'], 0.5, rtol=1e-6)

  def test_deepconf_is_not_held_at_one(self):
    # .05 + .15 sigmoid(4 (1 - ln 5)) = .05 + .15 * .080339
    np.testing.assert_allclose(self.epsilon([[1.609438]], confidence='deepconf')[0], [0.062051], atol=1e-6)
    np.testing.assert_allclose(self.epsilon([[1.609438]])[0], [0.125], atol=1e-6)

  @pytest.mark.parametrize('confidence', ['meanprob', 'deepconf', 'sampled'])
  def test_against_a_loop(self, confidence):
    transform = surrogates.echo_clip(confidence=confidence, num=2, window=3, dual_clip=2.0)
    names = [stat.name for stat in transform.stats]
    assert names == ([] if confidence == 'sampled' else [f'confidence@{confidence},2'])
    batch = off_policy(old_stats=names)
    planned, state, metrics = transform.plan(transform.init(batch), batch)
    assert state == {}
    value, slope = per_token(functools.partial(adaptive_clip.echo_clip_objective, dual_clip=2.0), batch, planned['epsilon_B'])
    mask = np.asarray(batch.mask_BxT)
    c = np.exp(np.minimum(np.asarray(batch.old_logp_BxT, np.float64), 0)) if not names else np.asarray(batch.old_stats[names[0]])
    clipped = []

    def expected(i, t, r, a):
      tail = [c[i, s] for s in range(mask.shape[1]) if mask[i, s]][-3:]
      epsilon = 0.05 + 0.15 / (1 + np.exp(-4 * (1 - np.mean(tail))))
      clipped.append(min(max(r, 1 - epsilon), 1 + epsilon) * a < r * a)
      return ppo_term(r, a, epsilon, epsilon, 2.0)

    against(expected, batch, value, slope)
    np.testing.assert_allclose(metrics['clip_fraction'], np.mean(clipped), rtol=1e-6)

  def test_equal_bounds_are_ppo(self):
    batch = off_policy(old_stats=('confidence@meanprob,1',))
    plain = chain_gradient(batch, surrogates.ppo_clip(low=0.25, high=0.25, dual_clip=3.0))
    found = chain_gradient(batch, surrogates.echo_clip(minimum=0.25, maximum=0.25, num=1))
    np.testing.assert_allclose(found[1]['logp_BxT'], plain[1]['logp_BxT'], rtol=1e-6)
    np.testing.assert_allclose(found[0], plain[0], rtol=1e-6)

  def test_stands_beside_the_shaping_that_reads_the_same_confidence(self):
    batch = off_policy(old_stats=('confidence@meanprob,2',))
    shaping = advantages.echo_shaping(confidence='meanprob', num=2)
    loss, _, _ = chain_gradient(batch, advantages.grpo(), shaping, surrogates.echo_clip(num=2))
    assert np.isfinite(float(loss))

  def test_notes(self):
    text = lambda **hyper: [t for t in (n(FACTS) for n in surrogates.echo_clip(**hyper).notes) if t is not None]
    assert 'the mean of 5 probabilities is at most 1/5' in text()[0]
    assert text(num=1) == text(confidence='sampled') == text(minimum=0.1, maximum=0.1) == []

  @pytest.mark.parametrize('hyper', [{'minimum': 0.3}, {'maximum': 1.5}, {'kappa': -1.0}, {'confidence': 'mean'}, {'num': 0}, {'num': 1.5}])
  def test_bad_input(self, hyper):
    with pytest.raises(UserError, match=r'is outside|is not one of|is no number of tokens'):
      surrogates.echo_clip(**hyper)


class TestAgenticAepoClip:
  def test_card_values(self):
    ratio = jnp.array([[1.5, 1.5, 1.1, 1.1, 0.5, 0.5]])
    advantage = jnp.array([[1.0, -1.0, 1.0, -1.0, -1.0, 1.0]])
    value, back = jax.vjp(lambda log_ratio: surrogates.agentic_aepo_clip.function(log_ratio, advantage), jnp.log(ratio))
    (gradient,) = back(jnp.ones((1, 6)))
    np.testing.assert_allclose(value, [[1.28, -1.5, 1.1, -1.1, -0.8, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(gradient, [[1.28, -1.5, 1.1, -1.1, 0.0, 0.5]], rtol=1e-6)

  def test_value_is_that_of_ppo_and_gradient_is_not(self):
    batch = off_policy()
    plain = chain_gradient(batch, surrogates.ppo_clip(low=0.2, high=0.28))
    found = chain_gradient(batch, surrogates.agentic_aepo_clip(low=0.2, high=0.28))
    np.testing.assert_allclose(found[0], plain[0], rtol=1e-6)
    mask, advantage = np.asarray(batch.mask_BxT), np.asarray(batch.advantage_BxT)
    r = np.exp(np.asarray(batch.logp_BxT - batch.old_logp_BxT))
    held, clipped = mask & (advantage > 0) & (r > 1.28), mask & (advantage < 0) & (r < 0.8)
    assert held.any() and clipped.any()
    ppo, aepo = np.asarray(plain[1]['logp_BxT']), np.asarray(found[1]['logp_BxT'])
    assert not ppo[held].any() and not aepo[clipped].any()
    np.testing.assert_allclose(aepo[held], -1.28 * advantage[held] / mask.sum(), rtol=1e-5)
    np.testing.assert_allclose(aepo[~held], ppo[~held], rtol=1e-6)
    np.testing.assert_allclose(found[2]['surrogate/agentic_aepo_clip/held_fraction'], held.sum() / mask.sum(), rtol=1e-6)
    np.testing.assert_allclose(found[2]['surrogate/agentic_aepo_clip/clip_fraction'], clipped.sum() / mask.sum(), rtol=1e-6)

  def test_the_gradient_stays_at_huge_ratios(self):
    gradient = jax.grad(lambda lr: jnp.sum(surrogates.agentic_aepo_clip.function(lr, jnp.array([[1.0, -1.0]]))))(jnp.array([[50.0, -50.0]]))
    np.testing.assert_allclose(gradient, [[1.28, 0.0]], rtol=1e-6)

  def test_notes(self):
    text = lambda facts: [t for t in (n(facts) for n in surrogates.agentic_aepo_clip().notes) if t is not None]
    assert text(FACTS) == []
    assert 'agentic_aepo_clip: with one update per rollout' in text(FACTS._replace(updates_per_rollout=1))[0]

  @pytest.mark.parametrize('hyper', [{'low': 1.5}, {'high': -0.1}])
  def test_bad_input(self, hyper):
    with pytest.raises(UserError, match='is outside'):
      surrogates.agentic_aepo_clip(**hyper)
