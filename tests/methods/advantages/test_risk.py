"""RiskPO: the card's numbers, score identities by quadrature, bundles against a loop, the tracker, credit, and what goes wrong."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from entropy_jax import objective
from entropy_jax.methods import advantages, surrogates
from entropy_jax.methods.advantages import risk
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

KEY = jax.random.key(0)
BATCH = helpers.token_batch(seed=3, B=24)
LOW, HIGH = jnp.float32(1.0), jnp.float32(4.0)
# Four prompts of four responses each, interleaved.
GROUP = np.array([9, 2, 5, 30] * 4, np.int32)
REWARD = np.random.default_rng(1).integers(0, 2, 16).astype(np.float32)


@functools.cache
def compiled(hyper):
  return jax.jit(functools.partial(advantages.riskpo.function, **dict(hyper)))


@functools.cache
def samples_of(bundle, pairing):
  return jax.jit(functools.partial(risk.bundle_samples, bundle=bundle, pairing=pairing))


def riskpo(return_B=REWARD, group_B=GROUP, sequence_B=None, low=0.5, high=1.5, key=KEY, **hyper):
  sequence_B = np.arange(len(return_B), dtype=np.int32) if sequence_B is None else sequence_B
  a, metrics = compiled(tuple(hyper.items()))(
    jnp.asarray(return_B, jnp.float32), jnp.asarray(group_B), jnp.asarray(sequence_B), key, jnp.float32(low), jnp.float32(high)
  )
  return np.asarray(a), {name: float(value) for name, value in metrics.items()}


def bundles(return_B=REWARD, group_B=GROUP, sequence_B=None, key=KEY, bundle=2, pairing='random'):
  sequence_B = np.arange(len(return_B), dtype=np.int32) if sequence_B is None else sequence_B
  return jax.tree.map(np.asarray, samples_of(bundle, pairing)(jnp.asarray(return_B), jnp.asarray(group_B), jnp.asarray(sequence_B), key))


class TestMixedValueAtRisk:
  SCORES = jnp.arange(6.0)

  @pytest.mark.parametrize(
    ('hyper', 'expected'),
    [
      # 1.5 times -(1 - x)^+, plus clip(x, 1, 4) - 4
      ({}, [-4.5, -3, -2, -1, 0, 0]),
      # (1.5 / .2 times -(1 - x)^+ + (clip - 4) / .6) / 2.5
      ({'form': 'released'}, [-5, -2, -1.3333, -0.6667, 0, 0]),
      ({'form': 'released', 'natural_baseline': False}, [-3, 0, 0.6667, 1.3333, 2, 2]),
      ({'natural_baseline': False}, [-1.5, 0, 1, 2, 3, 3]),
      # risk seeking: 1.5 (x - 4)^+ in place of the lower tail; released over 1 - beta = .2 and 2.5: 3 at x = 5
      ({'tail': 'upper'}, [-3, -3, -2, -1, 0, 1.5]),
      ({'tail': 'upper', 'form': 'released'}, [-2, -2, -1.3333, -0.6667, 0, 3]),
      ({'tail_weight': 0.0}, [-3, -3, -2, -1, 0, 0]),
    ],
  )
  def test_card_values(self, hyper, expected):
    np.testing.assert_allclose(risk.mixed_value_at_risk(self.SCORES, LOW, HIGH, **hyper), expected, atol=5e-5)

  def test_score_identities(self):
    # R ~ N(theta, 1), score R - theta, alpha = .2, beta = .8: E[tail score] = alpha and E[middle score] = beta - alpha
    low, high = scipy.stats.norm.ppf([0.2, 0.8])
    x = np.linspace(-8, 8, 20_001)
    density = scipy.stats.norm.pdf(x)
    args = jnp.asarray(x, jnp.float32), jnp.float32(low), jnp.float32(high)
    middle = np.asarray(risk.mixed_value_at_risk(*args, tail_weight=0.0))
    tail = np.asarray(risk.mixed_value_at_risk(*args, tail_weight=1.0)) - middle
    for influence, expected in ((tail, 0.2), (middle, 0.6)):
      np.testing.assert_allclose(scipy.integrate.trapezoid(influence * x * density, x), expected, rtol=1e-4)

  def test_all_of_the_range_is_the_mean(self):
    # q_a, q_b at the smallest and the largest score: R - max, the mean up to a baseline
    np.testing.assert_array_equal(risk.mixed_value_at_risk(self.SCORES, jnp.float32(0), jnp.float32(5)), self.SCORES - 5)

  def test_crossed_quantiles_count_as_one(self):
    crossed = risk.mixed_value_at_risk(self.SCORES, jnp.float32(2), jnp.float32(1))
    np.testing.assert_allclose(crossed, [-3, -1.5, 0, 0, 0, 0])


class TestBundleSamples:
  def test_each_sample_takes_one_response_of_each_prompt(self):
    found = bundles()
    members = collections.defaultdict(list)
    for i in range(16):
      members[int(found.sample_B[i])].append(i)
    assert len(members) == 8
    for rows in members.values():
      # prompts in the order of their ids: (2, 5) and (9, 30)
      assert sorted(GROUP[rows].tolist()) in ([2, 5], [9, 30])
      np.testing.assert_allclose(found.score_B[rows], np.full(2, REWARD[rows].sum()))
      assert found.first_B[rows].sum() == 1
    np.testing.assert_array_equal(found.bundle_B, np.where(GROUP > 5, 1, 0))

  def test_given_order_pairs_the_jth_responses(self):
    identity = np.random.default_rng(0).permutation(16).astype(np.int32)
    found = bundles(sequence_B=identity, pairing='given')
    for prompts in ((2, 5), (9, 30)):
      first, second = (sorted(np.flatnonzero(prompt == GROUP), key=lambda i: identity[i]) for prompt in prompts)
      np.testing.assert_array_equal(found.sample_B[first], found.sample_B[second])

  def test_permutations_are_independent_and_uniform(self):
    # of 2 x 2 responses, the first two meet with probability 1/2; 400 keys: standard error .025
    group = np.array([0, 0, 1, 1], np.int32)
    pair = jax.vmap(lambda k: risk.bundle_samples(jnp.zeros(4), jnp.asarray(group), jnp.arange(4), k, bundle=2).sample_B)
    samples = np.asarray(jax.jit(pair)(jax.random.split(KEY, 400)))
    assert abs(np.mean(samples[:, 0] == samples[:, 2]) - 0.5) < 0.1

  def test_follows_the_identity_of_the_rows(self):
    identity = np.random.default_rng(0).permutation(16).astype(np.int32) + 50
    order = np.random.default_rng(2).permutation(16)
    found, moved = bundles(sequence_B=identity), bundles(REWARD[order], GROUP[order], identity[order])
    np.testing.assert_array_equal(moved.sample_B, found.sample_B[order])
    np.testing.assert_array_equal(moved.score_B, found.score_B[order])

  def test_what_is_missing_counts_like_the_mean(self):
    # prompts of 3, 1 and 2 responses in one bundle of five: samples of 3, 2 and 1 responses, each scored as if there were five
    group = np.array([0, 0, 0, 1, 2, 2], np.int32)
    reward = np.array([1, 0, 1, 1, 0, 1], np.float32)
    found = bundles(reward, group, bundle=5, pairing='given')
    assert found.sample_B.tolist() == [0, 1, 2, 0, 0, 1]
    # (1, 1, 0), (0, 1), (1): means 2/3, 1/2, 1
    np.testing.assert_allclose(found.score_B, 5 * np.array([2 / 3, 1 / 2, 1, 2 / 3, 2 / 3, 1 / 2]), rtol=1e-6)
    assert found.first_B.sum() == 3

  def test_the_last_bundle_may_be_small(self):
    found = bundles(bundle=3)
    np.testing.assert_array_equal(found.bundle_B, np.where(GROUP == 30, 1, 0))
    np.testing.assert_allclose(found.score_B[GROUP == 30], 3 * REWARD[GROUP == 30])


class TestRiskpo:
  @pytest.mark.parametrize(
    ('form', 'scale', 'credit'),
    [('paper', 'none', 'uniform'), ('released', 'bundle', 'std'), ('paper', 'bundle', 'score'), ('released', 'none', 'sum_mean')],
  )
  def test_loop(self, form, scale, credit):
    reward = np.asarray(BATCH.reward_B, np.float64)
    group, identity = np.asarray(BATCH.group_B), np.asarray(BATCH.sequence_B)
    low, high = 0.2, 4.0
    hyper = {'bundle': 2, 'form': form, 'scale': scale, 'credit': credit, 'pairing': 'given'}
    actual, metrics = riskpo(reward, group, identity, low, high, **hyper)
    prompts = sorted(set(group.tolist()))
    expected = np.zeros(24)
    for first in range(0, len(prompts), 2):
      ranked = {p: sorted(np.flatnonzero(group == p), key=lambda i: identity[i]) for p in prompts[first : first + 2]}
      samples = [[rows[j] for rows in ranked.values() if j < len(rows)] for j in range(max(map(len, ranked.values())))]
      scores = np.array([2 * reward[rows].mean() for rows in samples])
      for rows, x in zip(samples, scores, strict=True):
        middle, tail = np.clip(x, low, high) - high, -max(low - x, 0.0)
        a = 1.5 * tail + middle if form == 'paper' else (1.5 * tail / 0.2 + middle / (0.8 - 0.2)) / 2.5
        if len(scores) == 1 or np.ptp(scores) < 1e-9:
          a = 0.0
        elif scale == 'bundle':
          a /= scores.std(ddof=1) + 1e-6
        centred = np.array([reward[i] - reward[group == group[i]].mean() for i in rows])
        for i, own in zip(rows, centred, strict=True):
          share = 1.0
          if credit == 'std':
            deviation = reward[group == group[i]].std(ddof=1) if np.sum(group == group[i]) > 1 else 0.0
            share = 1.0 if deviation <= 1e-3 else 1 / deviation
          elif credit == 'score':
            share = 0.5 if reward[i] > 0.5 else 1.5
          elif credit == 'sum_mean':
            share = 1 / len(rows) if abs(centred.sum()) < 1e-6 else own / centred.sum()
          expected[i] = a * share
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)
    assert (actual != 0).sum() > 10
    np.testing.assert_allclose(metrics['active_fraction'], np.mean(actual != 0))

  def test_all_advantages_are_negative_or_not_by_the_baseline(self):
    assert (riskpo(bundle=2)[0] <= 0).all() and (riskpo(bundle=2)[0] < 0).any()
    assert (riskpo(bundle=2, natural_baseline=False, tail_weight=0.0)[0] >= 0).all()

  def test_equal_scores_teach_nothing_and_blow_nothing_up(self):
    # all wrong: each sample of the bundle scores 0, far below q_a; the deviation is 0
    wrong = np.zeros(16, np.float32)
    for hyper in ({}, {'scale': 'bundle', 'credit': 'sum_mean'}):
      np.testing.assert_array_equal(riskpo(wrong, low=2.0, high=3.0, bundle=2, **hyper)[0], np.zeros(16))
    # scores that differ by rounding alone, .1 + .2 + .3 in two orders
    reward = np.array([0.1, 0.3, 0.2, 0.2, 0.3, 0.1], np.float32)
    group = np.array([0, 0, 1, 1, 2, 2], np.int32)
    a, _ = riskpo(reward, group, low=2.0, high=3.0, bundle=3, scale='bundle', pairing='given')
    np.testing.assert_array_equal(a, np.zeros(6))

  def test_shares_of_a_sample_sum_to_its_advantage(self):
    found = bundles(bundle=2)
    uniform, shared = riskpo(bundle=2)[0], riskpo(bundle=2, credit='sum_mean')[0]
    for sample in range(8):
      rows = found.sample_B == sample
      np.testing.assert_allclose(shared[rows].sum(), uniform[rows][0], rtol=1e-4, atol=1e-5)

  def test_quantiles_of_the_bundle(self):
    # the released fall-back: linear quantiles of the bundle's four scores in place of the tracked ones
    found = bundles(bundle=2)
    actual, _ = riskpo(bundle=2, quantiles='bundle', low=-99.0, high=99.0)
    for bundle in (0, 1):
      scores = found.score_B[(found.bundle_B == bundle) & found.first_B]
      low, high = np.quantile(scores, [0.2, 0.8])
      rows = found.bundle_B == bundle
      x = found.score_B[rows]
      expected = 1.5 * np.minimum(x - low, 0) + np.clip(x, low, high) - high if np.ptp(scores) > 0 else 0 * x
      np.testing.assert_allclose(actual[rows], expected, rtol=1e-4, atol=1e-6)

  def test_follows_its_rows(self):
    identity = np.random.default_rng(0).permutation(24).astype(np.int32)
    reward, group = np.asarray(BATCH.reward_B), np.asarray(BATCH.group_B)
    order = np.random.default_rng(5).permutation(24)
    hyper = {'bundle': 3, 'scale': 'bundle', 'quantiles': 'bundle', 'credit': 'std'}
    actual, _ = riskpo(reward, group, identity, **hyper)
    moved, _ = riskpo(reward[order], group[order], identity[order], **hyper)
    assert np.abs(actual).max() > 0.1
    np.testing.assert_allclose(moved, actual[order], rtol=1e-4, atol=1e-5)

  def test_in_a_chain_function_and_tracker_see_the_same_samples(self):
    chain = objective.chain(advantages.riskpo(bundle=2), surrogates.reinforce())
    batch = BATCH.replace(token_reward_BxT=None)
    prepared, state, metrics = jax.jit(chain.prepare)(chain.init(batch), batch)
    values = {name.split('/')[-1]: float(x) for name, x in metrics.items()}
    np.testing.assert_allclose(state['riskpo']['quantile_S'][jnp.array([3, 15])], [values['low_quantile'], values['high_quantile']])
    a = np.asarray(prepared.advantage_BxT)
    assert (a <= 0).all() and (a < 0).any()

  def test_bad_hyper_parameters(self):
    with pytest.raises(UserError, match=r'alpha=0\.8 is not below beta=0\.2'):
      advantages.riskpo(alpha=0.8, beta=0.2)
    with pytest.raises(UserError, match=r'bundle=2\.5 is not a whole number'):
      advantages.riskpo(bundle=2.5)
    with pytest.raises(UserError, match='bundle=0 is outside'):
      advantages.riskpo(bundle=0)
    with pytest.raises(UserError, match="Did you mean 'sum_mean'"):
      advantages.riskpo(credit='sum-mean')


class TestTrackQuantiles:
  MASK = jnp.ones((16, 1), bool)
  ROWS = jnp.arange(16, dtype=jnp.int32)

  def start(self):
    return {'quantile_S': jnp.zeros(19, jnp.float32), 'num_rollouts': jnp.zeros((), jnp.int32)}

  @functools.cached_property
  def step(self):
    return jax.jit(lambda state, reward, group: risk.track_quantiles(state, reward, group, self.ROWS, KEY, self.MASK, bundle=2))

  def test_first_rollout_starts_and_later_ones_move(self):
    found = bundles()
    scores = found.score_B[found.first_B]
    values, state, _ = self.step(self.start(), jnp.asarray(REWARD), jnp.asarray(GROUP))
    expected = np.quantile(scores, np.arange(1, 20) / 20)
    np.testing.assert_allclose(state['quantile_S'], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([values['low_quantile'], values['high_quantile']], np.quantile(scores, [0.2, 0.8]), atol=1e-6)

    better = np.minimum(REWARD + 0.75, 1.0).astype(np.float32)
    found = bundles(better)
    scores = found.score_B[found.first_B]
    values, moved, _ = self.step(state, jnp.asarray(better), jnp.asarray(GROUP))
    assert float(values['low_quantile']) == float(state['quantile_S'][3]), 'judged by what was known before'
    below = (scores[None, :] < expected[:, None] - 1e-4).mean(axis=1)
    np.testing.assert_allclose(moved['quantile_S'], expected + 0.1 * (np.arange(1, 20) / 20 - below), rtol=1e-5, atol=1e-6)
    assert int(moved['num_rollouts']) == 2

  def test_rests_where_the_level_is_reached(self):
    # 16 prompts, bundles of one, scores 0.5/16 ... 15.5/16: with q_s = s about s of the scores are below; from far away it comes back
    scores = (np.arange(16) + 0.5).astype(np.float32) / 16
    group = jnp.arange(16, dtype=jnp.int32)
    step = lambda state, _: (risk.track_quantiles(state, jnp.asarray(scores), group, self.ROWS, KEY, self.MASK, bundle=1)[1], None)
    far = {'quantile_S': jnp.full(19, 3.0, jnp.float32), 'num_rollouts': jnp.ones((), jnp.int32)}
    final = jax.jit(lambda state: jax.lax.scan(step, state, None, length=600)[0])(far)
    np.testing.assert_allclose(final['quantile_S'], np.arange(1, 20) / 20, atol=0.05)

  def test_nearest_tracked_level(self):
    state = {'quantile_S': jnp.arange(19, dtype=jnp.float32), 'num_rollouts': jnp.ones((), jnp.int32)}
    track = functools.partial(risk.track_quantiles, bundle=2, alpha=0.22, beta=0.999)
    values, _, _ = jax.jit(track)(state, jnp.asarray(REWARD), jnp.asarray(GROUP), self.ROWS, KEY, self.MASK)
    assert (float(values['low_quantile']), float(values['high_quantile'])) == (3.0, 18.0)

  def test_a_rollout_without_tokens_changes_nothing(self):
    state = {'quantile_S': jnp.arange(19, dtype=jnp.float32), 'num_rollouts': jnp.int32(4)}
    track = jax.jit(functools.partial(risk.track_quantiles, bundle=2))
    _, new, _ = track(state, jnp.asarray(REWARD), jnp.asarray(GROUP), self.ROWS, KEY, ~self.MASK)
    np.testing.assert_array_equal(new['quantile_S'], state['quantile_S'])
    assert int(new['num_rollouts']) == 4
