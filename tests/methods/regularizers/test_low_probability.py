"""Lp-Reg: the card's numbers of both forms, selections by loops, the gradient in the logits, and its limits."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from entropy_jax import objective
from entropy_jax.methods import regularizers, surrogates
from entropy_jax.methods.regularizers import low_probability
from entropy_jax.ops import categorical
from entropy_jax.types import RunFacts, TokenBatch, UserError

pytestmark = pytest.mark.usefixtures('strict_dtypes')

B, T, V = 6, 10, 12
RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(B, T, V)) * 1.5).astype(np.float32)
OLD_LOGITS = (LOGITS + RNG.normal(size=(B, T, V)) * 0.5).astype(np.float32)
TOKEN = np.argmax(OLD_LOGITS + RNG.gumbel(size=OLD_LOGITS.shape), axis=-1)
A = RNG.normal(size=(B, T)).astype(np.float32)
MASK = np.arange(T) < np.array([10, 3, 7, 10, 1, 8])[:, None]
PROBS, OLD_PROBS = (scipy.special.softmax(z.astype(np.float64), axis=-1) for z in (LOGITS, OLD_LOGITS))
FACTS = RunFacts(updates_per_rollout=1, group_size=8, num_tokens=100_000, aggregate='token_mean')


def sampled(x):
  return np.take_along_axis(x, TOKEN[..., None], axis=-1)[..., 0]


@functools.cache
def compiled(name, **hyper):
  """(logits, advantage) -> (penalty's part of the loss, its gradient in the logits, planned, metrics), scored from the rows."""
  chain = objective.chain(surrogates.reinforce(), getattr(regularizers, name)(**hyper))

  def run(logits, advantage):
    old_logp, old_entropy = categorical.token_log_prob_and_entropy(jnp.array(OLD_LOGITS), jnp.array(TOKEN))

    def loss(logits):
      logp, entropy = categorical.token_log_prob_and_entropy(logits, jnp.array(TOKEN))
      batch = TokenBatch(
        tokens_BxN=jnp.zeros((B, T + 1), jnp.int32),
        token_mask_BxN=jnp.ones((B, T + 1), bool),
        mask_BxT=jnp.array(MASK),
        group_B=jnp.zeros(B, jnp.int32),
        reward_B=jnp.zeros(B),
        old_logp_BxT=old_logp,
        old_entropy_BxT=old_entropy,
        logp_BxT=logp,
        entropy_BxT=entropy,
        key=jax.random.key(0),
        stats={s.name: s.fn(logits) for s in chain.stats if s.of == 'current'},
        old_stats={s.name: s.fn(jnp.array(OLD_LOGITS)) for s in chain.stats if s.of == 'behaviour'},
        advantage_BxT=advantage,
      )
      planned, _, metrics = chain.plan(chain.init(batch), batch)
      penalty = chain.reduce(chain.parts(planned, batch)[name], batch.mask_BxT, planned['num_sequences'])
      return penalty.compute(), (planned, metrics)

    (value, (planned, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(logits)
    return value, gradient, planned[name]['chosen_BxT'], metrics

  return jax.jit(run)


def update(name, logits=LOGITS, advantage=A, **hyper):
  value, gradient, chosen, metrics = compiled(name, **hyper)(jnp.array(logits), jnp.array(advantage))
  return float(value), np.asarray(gradient), np.asarray(chosen), {k.split('/')[-1]: float(v) for k, v in metrics.items()}


def proxy(p, threshold, filter):
  q = np.where(p > threshold * (p.max(axis=-1, keepdims=True) if filter == 'min_p' else 1.0), p, 0)
  return q, np.maximum(q.sum(axis=-1), 1e-300)


class TestLpReg:
  HYPER = {'fraction': 0.6, 'threshold': 0.1, 'coef': 0.7}

  def test_card_values(self):
    # kept mass .99: KL = -ln .99 = .0100503 at the held token (p = .04 > .012), nothing where the token itself is filtered
    logp, kl = np.log([[0.04, 0.004, 0.6, 0.25]]).astype(np.float32), np.full((1, 4), 0.0100503, np.float32)
    largest, advantage = np.full((1, 4), np.log(0.6), np.float32), np.full((1, 4), -1.0, np.float32)
    # places .75 * 3 = 2.25: the quantile lies between .25 and .6
    plan = jax.jit(lambda *x: low_probability.lp_reg_plan(*x, fraction=0.75))
    planned, metrics = plan(logp, largest, kl, advantage, np.ones((1, 4), bool))
    assert planned['chosen_BxT'].tolist() == [[True, False, False, True]]
    penalty = regularizers.lp_reg.function(jnp.array(kl), planned['chosen_BxT'], coef=2.0)
    np.testing.assert_allclose(penalty, [[0.0201006, 0, 0, 0.0201006]], rtol=1e-5)
    np.testing.assert_allclose(metrics['kl'], 0.0100503, rtol=1e-5)
    np.testing.assert_allclose(metrics['quantile'], math.exp(0.75 * math.log(0.25) + 0.25 * math.log(0.6)), rtol=1e-5)

  @pytest.mark.parametrize('filter', ['min_p', 'fixed'])
  def test_against_a_loop(self, filter):
    value, gradient, chosen, metrics = update('lp_reg', filter=filter, **self.HYPER)
    p, (q, mass) = sampled(PROBS), proxy(PROBS, 0.1, filter)
    # The quantile of probabilities and the exponential of that of log-probabilities lie between the same two order statistics.
    held = MASK & (p < np.quantile(p[MASK], 0.6)) & (A < 0) & (sampled(q) > 0)
    assert 2 < held.sum() < (MASK & (A < 0)).sum()
    np.testing.assert_array_equal(chosen, held)
    kl = np.where(held, -np.log(mass), 0)
    np.testing.assert_allclose(value, 0.7 * kl.sum() / MASK.sum(), atol=2e-6)
    np.testing.assert_allclose(metrics['kl'], kl[held].mean(), rtol=1e-5)
    expected = np.where(held[..., None], 0.7 * (PROBS - q / mass[..., None]) / MASK.sum(), 0)
    np.testing.assert_allclose(gradient, expected, atol=2e-6)

  def test_positive_advantages_are_untouched(self):
    value, gradient, chosen, _ = update('lp_reg', advantage=np.abs(A), **self.HYPER)
    assert not chosen.any()
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, np.zeros_like(gradient), atol=1e-6)

  def test_threshold_zero_is_no_penalty(self):
    value, gradient, chosen, _ = update('lp_reg', fraction=0.6, threshold=0.0)
    assert chosen.any()
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, np.zeros_like(gradient), atol=1e-6)

  def test_equal_probabilities_have_none_below_their_quantile(self):
    flat = np.full((1, 5), -1.0, np.float32)
    planned, _ = jax.jit(low_probability.lp_reg_plan)(flat, flat * 0, flat * 0, flat, np.ones((1, 5), bool))
    assert not planned['chosen_BxT'].any()

  def test_notes(self):
    texts = [n(FACTS._replace(num_tokens=50)) for n in regularizers.lp_reg().notes]
    assert 'lp_reg: fraction=0.01 of at most 50 tokens' in texts[0]

  @pytest.mark.parametrize(('hyper', 'message'), [({'threshold': 1.0}, r'outside \[0, 1\)'), ({'filter': 'minp'}, "Did you mean 'min_p'")])
  def test_bad_input(self, hyper, message):
    with pytest.raises(UserError, match=message):
      regularizers.lp_reg(**hyper)


class TestLpRegReleased:
  HYPER = {'fraction': 0.5, 'threshold': 0.1, 'coef': 0.7}

  def one(self, logp, old_logp):
    """(value, gradient) of two tokens of p = .04 of the card's row, one of them now at `logp`."""
    kl = jnp.full((1, 2), -np.log(0.99), jnp.float32)
    largest, advantage, mask = jnp.full((1, 2), np.log(0.6), jnp.float32), jnp.full((1, 2), -1.0), jnp.ones((1, 2), bool)

    @jax.jit
    def run(lp, old_lp):
      planned, _ = low_probability.lp_reg_released_plan(lp, old_lp, largest, kl, advantage, mask, None, fraction=1.0)
      penalty = lambda lp: regularizers.lp_reg_released.function(lp, planned['proxy_logp_BxT'], planned['chosen_BxT'])[0, 0]
      return jax.value_and_grad(penalty)(lp)

    value, gradient = run(jnp.full((1, 2), logp, jnp.float32), jnp.full((1, 2), old_logp, jnp.float32))
    return float(value), float(gradient[0, 0])

  def test_card_values_where_nothing_moved(self):
    # t = ln(.04 / .99): k3 = 1 / .99 - 1 + ln .99 = 5.067e-5, gradient 1 - 1 / .99
    value, gradient = self.one(np.log(0.04), np.log(0.04))
    np.testing.assert_allclose(value, 5.067e-5, rtol=5e-3)
    np.testing.assert_allclose(gradient, -0.010101, rtol=1e-4)

  def test_card_values_of_a_fallen_token(self):
    # e^x = .040404 / .01 = 4.0404: 4.0404 - ln 4.0404 - 1 = 1.644059, gradient 1 - 4.0404
    value, gradient = self.one(np.log(0.01), np.log(0.04))
    np.testing.assert_allclose([value, gradient], [1.644059, -3.040404], rtol=1e-5)

  def test_a_filtered_token_and_one_that_rose_are_let_go(self):
    assert self.one(np.log(0.001), np.log(0.004)) == (0.0, 0.0)  # .004 < .012
    assert self.one(np.log(0.05), np.log(0.04)) == (0.0, 0.0)  # above t

  def test_no_gradient_beyond_the_bound_of_the_value(self):
    # e^x - x - 1 = 10 at x = 2.61: a token 13.6 times less probable than t
    assert self.one(np.log(0.040404) - 2.7, np.log(0.04)) == (10.0, 0.0)
    assert self.one(np.log(0.040404) - 2.5, np.log(0.04))[1] < -10

  @pytest.mark.parametrize('hyper', [{'filter': 'min_p'}, {'filter': 'fixed'}, {'filter': 'min_p', 'positive_fraction': 0.4}])
  def test_against_a_loop(self, hyper):
    value, gradient, chosen, metrics = update('lp_reg_released', **self.HYPER, **hyper)
    lp = np.log(sampled(PROBS))
    q, mass = proxy(OLD_PROBS, 0.1, hyper['filter'])
    t = np.where(sampled(q) > 0, np.log(np.maximum(sampled(q), 1e-300) / mass), -1e4)
    held = np.zeros(MASK.shape, bool)
    for side, fraction in ((MASK & (A < 0), 0.5), (MASK & (A > 0), hyper.get('positive_fraction', 0.0))):
      num = max(1, math.floor(fraction * side.sum()))
      if num > 1:
        held |= side & (lp <= np.sort(lp[side])[num - 1]) & (lp < t)
    assert held.sum() > 2 and (held & (A > 0)).any() == ('positive_fraction' in hyper)
    np.testing.assert_array_equal(chosen, held)
    x = np.where(held, t - lp, 0)
    k3 = np.exp(x) - x - 1
    np.testing.assert_allclose(value, 0.7 * np.minimum(k3, 10).sum() / MASK.sum(), rtol=1e-4)
    np.testing.assert_allclose(metrics['penalty'], np.minimum(k3, 10)[held].mean(), rtol=1e-4)
    slope = np.where(held & (k3 < 10), 0.7 * (1 - np.exp(x)) / MASK.sum(), 0)
    expected = slope[..., None] * (np.eye(V)[TOKEN] - PROBS)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)

  def test_one_candidate_is_skipped(self):
    negative = MASK & (A < 0)
    num = int(negative.sum())
    *_, chosen, _ = update('lp_reg_released', fraction=1.5 / num, threshold=0.1)
    assert not chosen.any()

  def test_positive_advantages_are_untouched(self):
    value, _, chosen, _ = update('lp_reg_released', advantage=np.abs(A), **self.HYPER)
    assert not chosen.any()
    np.testing.assert_allclose(value, 0, atol=1e-6)

  def test_its_base_does_not_clip_negative_advantages(self):
    # low=1: the bound 0 of the ratio is never reached, so the released bypass of the clip changes nothing
    log_ratio = jnp.log(jnp.array([[1e-3, 0.5, 1.0, 9.0, 11.0, 50.0]]))
    objective_of = lambda x, **more: jnp.sum(surrogates.ppo_clip.function(x, jnp.full((1, 6), -1.0), low=1.0, high=9.0, **more))
    np.testing.assert_allclose(jax.jit(jax.grad(objective_of))(log_ratio), -jnp.exp(log_ratio), rtol=1e-5)
    # the paper's clip(r, 0, 10) stops it above 10
    slope = jax.jit(jax.grad(functools.partial(objective_of, dual_clip=10.0)))(log_ratio)
    np.testing.assert_allclose(slope, np.where(log_ratio < np.log(10), -np.exp(log_ratio), 0.0), rtol=1e-5)

  def test_notes(self):
    texts = lambda n: [note(FACTS._replace(num_tokens=n)) for note in regularizers.lp_reg_released().notes]
    assert texts(200) == [None] and 'raise fraction to at least 2/199' in texts(199)[0]
