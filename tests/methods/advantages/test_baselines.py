"""Critic, greedy and optimal-token baselines: values by hand, double sums as oracles, limits, and what they read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import transform
from entropy_jax.methods import advantages
from entropy_jax.methods.advantages import baselines, group, whitened
from entropy_jax.objective import chain
from entropy_jax.types import TokenBatch, UserError

pytestmark = pytest.mark.usefixtures('strict_dtypes')

# Two prompts, three responses and two, interleaved; the fourth response has a hole, as a tool's output leaves one.
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1], [1, 0, 0, 0]], bool)
GROUP = np.array([6, 1, 6, 1, 6], np.int32)
RNG = np.random.default_rng(0)
GARBAGE = np.array([np.nan, np.inf, -np.inf, np.nan], np.float32)


def spoil(x):
  """x with garbage in the masked slots."""
  return np.where(MASK, x.astype(np.float32), GARBAGE)


REWARD = RNG.normal(size=MASK.shape).astype(np.float32)
VALUE = RNG.normal(size=MASK.shape).astype(np.float32)
LOGITS = RNG.normal(size=(*MASK.shape, 5)).astype(np.float32)
PI = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=-1, keepdims=True)
CHOSEN = PI[..., 2]  # every sampled token is number 2
COLLISION = (PI**2).sum(axis=-1)

likelihood = transform.surrogate('likelihood', lambda logp_BxT, advantage_BxT: advantage_BxT * logp_BxT)


remax = jax.jit(baselines.remax_advantage)
gae = jax.jit(baselines.gae_advantage, static_argnames='whiten')
otb = jax.jit(baselines.optimal_token_baseline_advantage)
returns_to_go = jax.jit(whitened.returns_to_go)


def places(i):
  return [t for t in range(MASK.shape[1]) if MASK[i, t]]


def token_batch(**fields):
  zeros = jnp.array(spoil(np.zeros(MASK.shape)))
  batch = TokenBatch(
    tokens_BxN=jnp.zeros((5, 5), jnp.int32),
    token_mask_BxN=jnp.ones((5, 5), bool),
    mask_BxT=jnp.array(MASK),
    group_B=jnp.array(GROUP),
    reward_B=jnp.array([1.0, 0.0, 0.0, 1.0, 0.5]),
    old_logp_BxT=jnp.array(spoil(np.log(CHOSEN))),
    old_entropy_BxT=zeros,
    logp_BxT=zeros,
    entropy_BxT=zeros,
    key=jax.random.key(0),
  )
  return batch.replace(**fields)


def prepared_advantage(estimator, **fields):
  objective = chain(estimator, likelihood())
  batch = token_batch(**fields)
  return np.asarray(jax.jit(objective.prepare)(objective.init(batch), batch)[0].advantage_BxT)


class TestRemax:
  def test_by_hand(self):
    # returns to go (.5 + 1, 1) = (1.5, 1) minus a greedy reward of .25
    actual = remax(jnp.array([[0.5, 1.0]]), jnp.array([0.25]), jnp.ones((1, 2), bool))
    np.testing.assert_allclose(actual, [[1.25, 0.75]], rtol=1e-6)

  def test_loop(self):
    greedy = np.array([0.5, 0.0, 1.0, -1.0, 2.0], np.float32)
    expected = np.zeros(MASK.shape)
    for i in range(len(MASK)):
      for t in places(i):
        expected[i, t] = sum(float(REWARD[i, s]) for s in places(i) if s >= t) - greedy[i]
    actual = remax(spoil(REWARD), greedy, MASK)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)

  def test_in_a_chain_outcome_minus_greedy(self):
    actual = prepared_advantage(advantages.remax(), baseline_reward_B=jnp.full(5, 0.5))
    np.testing.assert_allclose(actual, np.where(MASK, np.array([[0.5], [-0.5], [-0.5], [0.5], [0.0]]), 0.0))

  def test_says_what_is_missing(self):
    with pytest.raises(UserError, match='remax reads baseline_reward_B, which this run does not provide'):
      prepared_advantage(advantages.remax())


class TestGae:
  def test_by_hand(self):
    # d = (0 + .5 - .5, 0, 1 - .5) = (0, 0, .5); A = (.95^2 * .5, .95 * .5, .5)
    reward, value, mask = jnp.array([[0.0, 0.0, 1.0]]), jnp.full((1, 3), 0.5), jnp.ones((1, 3), bool)
    actual = gae(reward, value, mask, whiten=False)
    np.testing.assert_allclose(actual, [[0.45125, 0.475, 0.5]], rtol=1e-6)
    # mean .475417, deviations (-.024167, -.000417, .024583), variance .0011884 / 2 = .00059427,
    # root of it plus 1e-8 .0243778
    actual = gae(reward, value, mask)
    np.testing.assert_allclose(actual, [[-0.991336, -0.017092, 1.008428]], atol=5e-6)

  @pytest.mark.parametrize(('discount', 'trace'), [(1.0, 0.95), (0.9, 0.5), (0.9, 0.0), (0.99, 1.0)])
  def test_double_sum(self, discount, trace):
    expected = np.zeros(MASK.shape)
    for i in range(len(MASK)):
      at = places(i)
      later = [float(VALUE[i, t]) for t in at[1:]] + [0.0]
      d = [float(REWARD[i, t]) + discount * v - float(VALUE[i, t]) for t, v in zip(at, later, strict=True)]
      for a, t in enumerate(at):
        expected[i, t] = sum((discount * trace) ** (b - a) * d[b] for b in range(a, len(at)))
    actual = gae(spoil(REWARD), spoil(VALUE), MASK, discount=discount, trace=trace, whiten=False)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)

  def test_trace_one_is_return_minus_value(self):
    arrays = jnp.array(spoil(REWARD)), jnp.array(spoil(VALUE)), jnp.array(MASK)
    actual = gae(*arrays, discount=0.9, trace=1.0, whiten=False)
    returns = returns_to_go(arrays[0], arrays[2], discount=0.9)
    np.testing.assert_allclose(actual, np.where(MASK, returns - VALUE, 0.0), rtol=1e-5, atol=1e-6)

  def test_no_critic_is_reinforce_plus_plus(self):
    zeros = jnp.zeros(MASK.shape)
    actual = gae(jnp.array(spoil(REWARD)), zeros, jnp.array(MASK), trace=1.0)
    expected = jax.jit(whitened.reinforce_plus_plus_advantage)(jnp.array(spoil(REWARD)), jnp.array(MASK))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)

  def test_perfect_critic_leaves_nothing(self):
    returns = returns_to_go(jnp.array(spoil(REWARD)), jnp.array(MASK))
    actual = gae(jnp.array(spoil(REWARD)), returns, jnp.array(MASK), whiten=False)
    np.testing.assert_allclose(actual, np.zeros(MASK.shape), atol=1e-6)

  def test_in_a_chain(self):
    value = jnp.array(spoil(VALUE))
    actual = prepared_advantage(advantages.gae(whiten=False, trace=1.0), value_BxT=value)
    outcome = np.array([1.0, 0.0, 0.0, 1.0, 0.5])[:, None]
    np.testing.assert_allclose(actual, np.where(MASK, outcome - VALUE, 0.0), rtol=1e-5, atol=1e-6)

  def test_refuses_a_trace_below_zero(self):
    with pytest.raises(UserError, match=r'gae: trace=-0.1 is outside \[0, 1\]'):
      advantages.gae(trace=-0.1)


class TestOptimalTokenBaseline:
  def call(self, reward, group_B=GROUP, mask=MASK, chosen=CHOSEN, collision=COLLISION):
    arrays = reward, np.log(chosen).astype(np.float32), collision.astype(np.float32)
    arrays = [np.where(mask, x.astype(np.float32), np.float32(np.nan)) for x in arrays]
    return np.asarray(otb(*arrays, group_B, mask))

  def weights(self):
    w = np.zeros(MASK.shape)
    for i in range(len(MASK)):
      for t in places(i):
        # squared norm of one-hot(token) - pi, computed as such
        w[i, t] = sum(((np.arange(5) == 2) - PI[i, s].astype(float)) @ ((np.arange(5) == 2) - PI[i, s].astype(float))
                      for s in places(i) if s <= t)
    return w

  def test_by_hand(self):
    # two responses of two tokens from two-way choices, pi = .5 and .8 all along, rewards 1 and 0 at the end:
    # w = 1 - 1 + .5 = .5 and 1 - 1.6 + .68 = .08, W = (.5, 1) and (.08, .16), B = .5 / .58 = 1 / 1.16 = .862069
    chosen = np.array([[0.5, 0.5], [0.8, 0.8]])
    collision = np.array([[0.5, 0.5], [0.68, 0.68]])
    reward = np.array([[0.0, 1.0], [0.0, 0.0]])
    actual = self.call(reward, np.zeros(2, np.int32), np.ones((2, 2), bool), chosen, collision)
    np.testing.assert_allclose(actual, [[0.137931] * 2, [-0.862069] * 2], rtol=1e-5)

  def test_loop(self):
    w = self.weights()
    expected = np.zeros(MASK.shape)
    go = lambda i, t: sum(float(REWARD[i, s]) for s in places(i) if s >= t)
    for i in range(len(MASK)):
      for t in places(i):
        peers = [j for j in range(len(MASK)) if GROUP[j] == GROUP[i] and MASK[j, t]]
        expected[i, t] = go(i, t) - sum(w[j, t] * go(j, t) for j in peers) / sum(w[j, t] for j in peers)
    np.testing.assert_allclose(self.call(REWARD), expected, rtol=1e-4, atol=1e-5)

  def test_weighted_sum_is_zero_at_every_position(self):
    weighted = self.weights() * self.call(REWARD)
    for prompt in (6, 1):
      np.testing.assert_allclose(weighted[prompt == GROUP].sum(axis=0), np.zeros(4), atol=1e-5)

  def test_equal_weights_are_dr_grpo(self):
    outcome = np.array([1.0, 0.0, 0.0, 1.0, 0.5], np.float32)
    reward = np.concatenate([np.zeros((5, 3)), outcome[:, None]], axis=1)
    half = np.full((5, 4), 0.5)
    expected = jax.jit(group.dr_grpo_advantage)(jnp.array(outcome), jnp.array(GROUP))
    actual = self.call(reward, mask=np.ones((5, 4), bool), chosen=half, collision=half)
    np.testing.assert_allclose(actual, np.repeat(np.asarray(expected)[:, None], 4, axis=1), rtol=1e-5, atol=1e-6)

  def test_alone_has_no_baseline(self):
    actual = self.call(REWARD, np.arange(5, dtype=np.int32))
    expected = returns_to_go(jnp.array(spoil(REWARD)), jnp.array(MASK))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)

  def test_alone_at_a_position_learns_nothing_there(self):
    assert self.call(REWARD)[0, 3] == 0.0  # responses 2 and 4 of prompt 6 have ended

  def test_certain_tokens_are_finite(self):
    ones = np.ones(MASK.shape)
    actual = self.call(REWARD, chosen=ones, collision=ones)  # W = 0 everywhere, so there is no baseline
    expected = returns_to_go(jnp.array(spoil(REWARD)), jnp.array(MASK))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)

  def test_in_a_chain(self):
    objective = chain(advantages.optimal_token_baseline(), likelihood())
    (stat,) = objective.stats
    assert (stat.name, stat.of) == ('collision_probability', 'behaviour')
    old_stats = {stat.name: jnp.array(spoil(np.asarray(stat.fn(jnp.array(LOGITS)))))}
    actual = prepared_advantage(advantages.optimal_token_baseline(), old_stats=old_stats)
    outcome = np.zeros(MASK.shape, np.float32)
    for i, r in enumerate([1.0, 0.0, 0.0, 1.0, 0.5]):
      outcome[i, places(i)[-1]] = r
    np.testing.assert_allclose(actual, self.call(outcome), rtol=1e-5, atol=1e-6)

  def test_says_what_was_not_scored(self):
    with pytest.raises(UserError, match="reads the vocabulary statistic 'collision_probability', which was not scored"):
      prepared_advantage(advantages.optimal_token_baseline())


class TestUnit:
  def test_one_on_every_valid_token(self):
    np.testing.assert_array_equal(prepared_advantage(advantages.unit()), MASK.astype(np.float32))

  def test_loss_is_the_negative_log_likelihood(self):
    objective = chain(advantages.unit(), likelihood())
    batch = token_batch(logp_BxT=jnp.array(spoil(np.log(CHOSEN))))
    batch, state, _ = objective.prepare(objective.init(batch), batch)
    planned, _, _ = objective.plan(state, batch)
    np.testing.assert_allclose(objective.loss(planned, batch).compute(), -np.log(CHOSEN[MASK]).mean(), rtol=1e-5)
