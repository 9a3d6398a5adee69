"""CANON: the card's numbers, identities with Dr.GRPO, a loop over halves, and the schedules of mu."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective
from entropy_jax.methods import advantages, surrogates
from entropy_jax.methods.advantages import conditional
from entropy_jax.types import RunFacts, UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

BATCH = helpers.token_batch(seed=3, B=24)
CARD_R = np.array([1, 1, 0, 1, 0, 0, 1, 0], np.float32)  # in the order of rising entropy: m_low = .75, m_high = .25
HIGH = np.arange(8) >= 4


@functools.cache
def compiled(hyper):
  return jax.jit(functools.partial(advantages.canon.function, **dict(hyper)))


def canon(reward_B, entropy_BxT, mu, length_B=None, group_B=None, mask_BxT=None, sequence_B=None, **hyper):
  B = len(reward_B)
  mask_BxT = np.ones(np.shape(entropy_BxT), bool) if mask_BxT is None else mask_BxT
  length_B = np.ones(B, np.float32) if length_B is None else np.asarray(length_B, np.float32)
  group_B = np.zeros(B, np.int32) if group_B is None else group_B
  sequence_B = np.arange(B, dtype=np.int32) if sequence_B is None else sequence_B
  a, metrics = compiled(tuple(hyper.items()))(
    jnp.asarray(reward_B, jnp.float32), jnp.asarray(entropy_BxT, jnp.float32), jnp.asarray(length_B), jnp.asarray(mask_BxT),
    jnp.asarray(group_B), jnp.asarray(sequence_B), jnp.float32(mu),
  )  # fmt: skip
  return np.asarray(a), {key: float(value) for key, value in metrics.items()}


def of_card(mu, order=range(8), **hyper):
  """The card's group, its rows in another order than that of their entropies."""
  order = np.array(list(order))
  a, metrics = canon(CARD_R[order], (0.1 + 0.1 * np.arange(8))[order][:, None], mu, **hyper)
  return a[np.argsort(order)], metrics


class TestCanon:
  def test_card_values(self):
    shuffled = [5, 2, 7, 0, 1, 6, 3, 4]
    inter, metrics = of_card(1.0, shuffled)
    np.testing.assert_allclose(inter, [0.75, 0.75, -0.25, 0.75, -0.75, -0.75, 0.25, -0.75])
    np.testing.assert_allclose(of_card(0.0, shuffled)[0], [0.25, 0.25, -0.75, 0.25, -0.25, -0.25, 0.75, -0.25])
    assert metrics == {'inter_weight': 1.0, 'gap': -0.5}

  def test_a_success_of_the_worse_half_is_worth_more_within(self):
    intra, _ = of_card(0.0)
    assert intra[6] == 0.75 > intra[0] == 0.25

  def test_half_of_each_is_dr_grpo(self):
    np.testing.assert_allclose(of_card(0.5)[0], CARD_R - 0.5, rtol=1e-6)

  def test_equal_halves_are_dr_grpo_for_every_mu(self):
    reward = [1, 0, 0, 1, 0, 1, 1, 0]
    for mu in (0.0, 0.3, 1.0):
      np.testing.assert_allclose(canon(reward, np.arange(8)[:, None], mu)[0], np.array(reward) - 0.5, rtol=1e-6)

  def test_sums_and_gap(self):
    reward = np.random.default_rng(0).normal(size=8).astype(np.float32)
    inter, intra = (canon(reward, np.arange(8)[:, None], mu)[0] for mu in (1.0, 0.0))
    np.testing.assert_allclose([inter.sum(), intra[HIGH].sum(), intra[~HIGH].sum()], np.zeros(3), atol=1e-5)
    gap = reward[HIGH].mean() - reward[~HIGH].mean()
    np.testing.assert_allclose(inter[HIGH].mean(), gap, rtol=1e-5)
    np.testing.assert_allclose(inter[HIGH].mean(), 2 * (reward[HIGH].mean() - reward.mean()), rtol=1e-5)  # twice Dr.GRPO's

  def test_alpha_weighs_the_low_entropies(self):
    # low half: alpha R - m_high = .9 R - .25; high half: R - alpha m_low = R - .675
    inter, _ = of_card(1.0, alpha=0.9)
    np.testing.assert_allclose(inter, [0.65, 0.65, -0.25, 0.65, -0.675, -0.675, 0.325, -0.675], rtol=1e-5)

  def test_alpha_weighs_the_long_responses(self):
    # the same halves by length: long half alpha R - m_short = .9 R - .75, short half R - alpha m_long = R - .225
    inter, _ = canon(CARD_R, np.zeros((8, 1)), 1.0, length_B=np.arange(1, 9), metric='length', alpha=0.9)
    np.testing.assert_allclose(inter, [0.775, 0.775, -0.225, 0.775, -0.75, -0.75, 0.15, -0.75], rtol=1e-5)

  def test_beta_moves_the_halves_of_inter_alone(self):
    shifted, plain = of_card(1.0, beta=0.125)[0], of_card(1.0)[0]
    np.testing.assert_allclose(shifted - plain, np.where(HIGH, 0.125, -0.125), rtol=1e-5)
    np.testing.assert_array_equal(of_card(0.0, beta=0.125)[0], of_card(0.0)[0])

  def test_an_odd_group_has_a_larger_high_half(self):
    # entropies 0, 1, 2: the low half is the first alone
    np.testing.assert_allclose(canon([1, 0, 1], np.arange(3)[:, None], 1.0)[0], [0.5, -1.0, 0.0])

  def test_ties_follow_the_identity(self):
    # three rows: whoever comes first is alone in the low half
    first = canon([1, 0, 0], np.full((3, 1), 0.5), 1.0, sequence_B=np.array([0, 1, 2]))[0]
    last = canon([1, 0, 0], np.full((3, 1), 0.5), 1.0, sequence_B=np.array([9, 1, 2]))[0]
    np.testing.assert_allclose([first, last], [[1.0, -1.0, -1.0], [1.0, -0.5, 0.0]])

  @pytest.mark.parametrize('metric', ['entropy', 'length'])
  def test_loop(self, metric):
    mask, group = np.asarray(BATCH.mask_BxT), np.asarray(BATCH.group_B)
    reward, identity = np.asarray(BATCH.reward_B), np.asarray(BATCH.sequence_B)
    entropy, length = np.asarray(BATCH.old_entropy_BxT), mask.sum(1)
    score = np.array([h[m].mean() for h, m in zip(entropy, mask, strict=True)]) if metric == 'entropy' else length
    actual, metrics = canon(
      reward, np.where(mask, entropy, np.nan), 0.3, length, group, mask, identity, metric=metric, alpha=0.8, beta=0.1
    )
    gaps = []
    for i, prompt in enumerate(group):
      rows = sorted(np.flatnonzero(group == prompt), key=lambda j: (score[j], identity[j]))
      low, high = rows[: len(rows) // 2], rows[len(rows) // 2 :]
      if not low:
        assert actual[i] == reward[i]
        gaps.append(0.0)
        continue
      is_high = i in high
      own, other = (high, low) if is_high else (low, high)
      own_mean, other_mean = reward[own].mean(), reward[other].mean()
      weighted = is_high if metric == 'length' else not is_high
      inter = 0.8 * reward[i] - other_mean if weighted else reward[i] - 0.8 * other_mean
      inter += 0.1 if is_high else -0.1
      np.testing.assert_allclose(actual[i], 0.3 * inter + 0.7 * (reward[i] - own_mean), rtol=1e-4, atol=1e-5)
      gaps.append(reward[high].mean() - reward[low].mean())
    np.testing.assert_allclose(metrics['gap'], np.mean(gaps), rtol=1e-4)

  @pytest.mark.parametrize('value', [0.1, 1.0, -3.3])
  def test_equal_rewards_are_exactly_zero(self, value):
    np.testing.assert_array_equal(canon(np.full(7, value), np.arange(7)[:, None], 0.7)[0], np.zeros(7))

  def test_mu_arrives_in_a_chain(self):
    chain = objective.chain(advantages.canon(mu=0.0), surrogates.reinforce())
    prepared, state, metrics = jax.jit(chain.prepare)(chain.init(BATCH), BATCH.replace(token_reward_BxT=None))
    args = (BATCH.old_entropy_BxT, 0.0, BATCH.mask_BxT.sum(1), BATCH.group_B, BATCH.mask_BxT, BATCH.sequence_B)
    expected = np.where(BATCH.mask_BxT, canon(BATCH.reward_B, *args)[0][:, None], np.float32(0))
    np.testing.assert_allclose(prepared.advantage_BxT, expected, rtol=1e-5, atol=1e-6)
    assert int(state['canon']['num_rollouts']) == 1 and float(metrics['advantage/canon/inter_weight']) == 0

  def test_bad_hyper_parameters(self):
    with pytest.raises(UserError, match=r'mu=1.5 is outside \[0, 1\]'):
      advantages.canon(mu=1.5)
    with pytest.raises(UserError, match="Did you mean 'accuracy'"):
      advantages.canon(schedule='acuracy')
    with pytest.raises(UserError, match=r'floor=0\.8 is above peak=0\.6'):
      advantages.canon(schedule='cosine', floor=0.8)

  def test_notes(self):
    facts = RunFacts(updates_per_rollout=1, group_size=8, num_tokens=100, aggregate='token_mean')
    text = lambda **hyper: [t for t in (n(facts) for n in advantages.canon(**hyper).notes) if t is not None]
    assert text() == text(mu=0.5) == text(schedule='cosine') == []
    assert "mu=0.5 is not used with schedule='cosine'" in text(schedule='cosine', mu=0.5)[0]


class TestRememberInterWeight:
  ONES = jnp.ones((4, 1), bool)

  def weights(self, num, **hyper):
    """mu of so many successive rollouts whose mean reward is 3/4."""
    step = functools.partial(conditional.remember_inter_weight, **hyper)

    def body(state, _):
      values, state, _ = step(state, jnp.array([1.0, 1.0, 1.0, 0.0]), self.ONES)
      return state, values['inter_weight']

    return np.asarray(jax.jit(lambda state: jax.lax.scan(body, state, None, length=num)[1])({'num_rollouts': jnp.zeros((), jnp.int32)}))

  def test_constant(self):
    np.testing.assert_array_equal(self.weights(3, mu=0.25), np.full(3, 0.25))

  def test_driven_by_accuracy(self):
    np.testing.assert_allclose(self.weights(2, schedule='accuracy'), [0.75, 0.75])
    np.testing.assert_allclose(self.weights(2, schedule='inaccuracy'), [0.25, 0.25])

  def test_accuracy_stays_a_weight(self):
    values, _, _ = conditional.remember_inter_weight({'num_rollouts': jnp.int32(0)}, jnp.full(4, -1.0), self.ONES, schedule='accuracy')
    assert float(values['inter_weight']) == 0.0

  @pytest.mark.parametrize(('schedule', 'peak', 'floor'), [('cosine', 0.6, 0.0), ('cosine_reversed', 1.0, 0.4)])
  def test_restarts(self, schedule, peak, floor):
    # the weight s rises to peak over 30 rollouts and falls along half a cosine of 40, again and again; 150 rollouts in the paper
    actual = self.weights(150, schedule=schedule, peak=peak, floor=floor)
    for t in range(150):
      s = peak * (t + 1) / 30 if t < 30 else floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * ((t - 30) % 40) / 40))
      np.testing.assert_allclose(actual[t], s if schedule == 'cosine_reversed' else 1 - s, rtol=1e-5, atol=1e-6)
    restarts = actual[[29, 30, 70, 110]]
    np.testing.assert_allclose(restarts, np.full(4, peak if schedule == 'cosine_reversed' else 1 - peak), rtol=1e-6)

  def test_no_warmup(self):
    np.testing.assert_allclose(self.weights(2, schedule='cosine', warmup=0, period=2), [0.4, 0.7], rtol=1e-6)

  def test_a_rollout_without_tokens_is_not_counted(self):
    state = {'num_rollouts': jnp.int32(5)}
    _, new, _ = conditional.remember_inter_weight(state, jnp.ones(4), ~self.ONES)
    assert int(new['num_rollouts']) == 5
