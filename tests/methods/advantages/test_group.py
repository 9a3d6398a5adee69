"""Group advantages: values by hand, plain loops as oracles, identities, and the expected update by enumeration."""

import functools
import itertools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import transform
from entropy_jax.methods import advantages
from entropy_jax.methods.advantages import group as family
from entropy_jax.objective import chain
from entropy_jax.types import TokenBatch, UserError

pytestmark = pytest.mark.usefixtures('strict_dtypes')

ONE = jnp.zeros(4, jnp.int32)  # four responses to one prompt
HALF = jnp.array([1.0, 0.0, 0.0, 1.0])
QUARTER = jnp.array([1.0, 0.0, 0.0, 0.0])

# Groups of 4, 3 and 2 members and one of 1 (id 1000), interleaved; the rewards of group 7 are all equal.
GROUP = np.array([40, -3, 7, 40, 1000, -3, 40, 7, -3, 40], np.int32)
RETURN = np.array([1.0, 0.0, 0.1, 0.0, 0.7, 1.0, 0.25, 0.1, 1.0, -0.5], np.float32)
LENGTH = np.array([2, 4, 4, 10, 3, 1, 7, 2, 5, 6], np.float32)
NAMES = ('dr_grpo', 'grpo', 'rloo', 'opo', 'gpg', 'grpo_pass_at_k')
CENTRED = ('dr_grpo', 'grpo', 'rloo', 'gpg')


@functools.cache
def compiled(name, hyper):
  return jax.jit(functools.partial(getattr(advantages, name).function, **dict(hyper)))


def call(name, return_B, group_B, length_B=None, **hyper):
  """The pure function of a method, compiled once for each shape, whatever it reads."""
  length_B = jnp.ones(len(return_B)) if length_B is None else length_B
  middle = (jnp.asarray(length_B),) if name == 'opo' else ()
  return compiled(name, tuple(hyper.items()))(jnp.asarray(return_B), *middle, jnp.asarray(group_B))


def rows_of(i):
  return [j for j in range(len(GROUP)) if GROUP[j] == GROUP[i]]


def check(actual, oracle, rtol=2e-6):
  expected = [oracle(i, [float(RETURN[j]) for j in rows_of(i)]) for i in range(len(GROUP))]
  np.testing.assert_allclose(actual, np.array(expected, np.float32), rtol=rtol, atol=1e-6)


def token_batch(**fields):
  """Ten responses of up to 10 tokens with the lengths above; what is masked holds garbage."""
  mask = np.arange(10)[None] < LENGTH[:, None]
  garbage = np.where(mask, np.float32(-1.0), np.float32(np.nan))
  batch = TokenBatch(
    tokens_BxN=jnp.zeros((10, 11), jnp.int32),
    token_mask_BxN=jnp.concatenate([jnp.ones((10, 1), bool), jnp.array(mask)], axis=1),
    mask_BxT=jnp.array(mask),
    group_B=jnp.array(GROUP),
    reward_B=jnp.array(RETURN),
    old_logp_BxT=jnp.array(garbage),
    old_entropy_BxT=jnp.array(garbage),
    logp_BxT=jnp.array(garbage),
    entropy_BxT=jnp.array(garbage),
    key=jax.random.key(0),
  )
  return batch.replace(**fields)


likelihood = transform.surrogate('likelihood', lambda logp_BxT, advantage_BxT: advantage_BxT * logp_BxT)


class TestDrGrpo:
  def test_by_hand(self):
    # (1, 0, 0, 1): mean 1/2. (1, 0, 0, 0): mean 1/4.
    np.testing.assert_allclose(call('dr_grpo', HALF, ONE), [0.5, -0.5, -0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(call('dr_grpo', QUARTER, ONE), [0.75, -0.25, -0.25, -0.25], rtol=1e-6)

  def test_loop(self):
    check(call('dr_grpo', RETURN, GROUP), lambda i, r: RETURN[i] - (statistics.fmean(r) if len(r) > 1 else 0))

  def test_two_members_lose_half_their_difference(self):
    np.testing.assert_allclose(call('dr_grpo', [3.0, 1.0], jnp.zeros(2, jnp.int32)), [1.0, -1.0], rtol=1e-6)

  def test_refuses_hyper_parameters(self):
    with pytest.raises(UserError, match="unknown hyper-parameter 'epsilon'"):
      advantages.dr_grpo(epsilon=1e-6)


class TestGrpo:
  def test_by_hand(self):
    # (1, 0, 0, 1): std = sqrt(4 / 4 / 3) = .577350; .5 / (.577350 + 1e-6) = .866024
    np.testing.assert_allclose(call('grpo', HALF, ONE), [0.866024, -0.866024, -0.866024, 0.866024], rtol=1e-6)
    # (1, 0, 0, 0): std = sqrt((9 + 1 + 1 + 1) / 16 / 3) = .5; .75 / .500001 = 1.499997, .25 / .500001 = .499999
    np.testing.assert_allclose(call('grpo', QUARTER, ONE), [1.499997] + [-0.499999] * 3, rtol=1e-6)

  def test_epsilon_of_trl(self):
    # .5 / (.577350 + 1e-4) = .865875
    np.testing.assert_allclose(call('grpo', HALF, ONE, epsilon=1e-4)[0], 0.865875, rtol=1e-6)

  def test_loop(self):
    def oracle(i, r):
      return (RETURN[i] - statistics.fmean(r)) / (statistics.stdev(r) + 1e-6) if len(r) > 1 else RETURN[i] / (1 + 1e-6)

    check(call('grpo', RETURN, GROUP), oracle)

  def test_batch_scale(self):
    spread = statistics.stdev(RETURN.tolist()) + 1e-6
    expected = np.asarray(call('dr_grpo', RETURN, GROUP)) / spread
    np.testing.assert_allclose(call('grpo', RETURN, GROUP, scale='batch'), expected, rtol=1e-5)

  def test_scale_none_is_dr_grpo(self):
    np.testing.assert_array_equal(call('grpo', RETURN, GROUP, scale='none'), call('dr_grpo', RETURN, GROUP))

  def test_two_members_are_told_apart_by_sign_alone(self):
    # std of (a, b) is |a - b| / sqrt 2, so A = +-1 / sqrt 2 whatever the rewards are
    expected = [0.70710678, -0.70710678]
    np.testing.assert_allclose(call('grpo', [30.0, 10.0], jnp.zeros(2, jnp.int32)), expected, rtol=1e-6)

  @pytest.mark.parametrize('scale', ['group', 'batch', 'none'])
  def test_equal_rewards_in_the_whole_batch(self, scale):
    np.testing.assert_array_equal(call('grpo', np.full(4, 0.1, np.float32), ONE, scale=scale), np.zeros(4))

  def test_refuses_bad_hyper_parameters(self):
    with pytest.raises(UserError, match=r'epsilon=0 is outside \(0, inf\)'):
      advantages.grpo(epsilon=0)
    with pytest.raises(UserError, match="Did you mean 'batch'"):
      advantages.grpo(scale='bach')

  def test_in_a_chain(self):
    objective = chain(advantages.grpo(), likelihood())
    batch = token_batch()

    @jax.jit
    def step(batch, logp_BxT):
      batch, state, _ = objective.prepare(objective.init(batch), batch)
      planned, _, _ = objective.plan(state, batch)
      loss = lambda logp: objective.loss(planned, batch.replace(logp_BxT=logp)).compute()
      return batch, *jax.value_and_grad(loss)(logp_BxT)

    prepared, loss, gradient = step(batch, batch.logp_BxT)
    valid = np.asarray(batch.mask_BxT)
    per_token = np.where(valid, np.asarray(call('grpo', RETURN, GROUP))[:, None], np.float32(0.0))
    np.testing.assert_allclose(prepared.advantage_BxT, per_token, rtol=1e-6)
    # token_mean of -A lp with lp = -1: +mean of A; its gradient is -A / N
    np.testing.assert_allclose(loss, per_token.sum() / valid.sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, -per_token / valid.sum(), rtol=1e-5)

  def test_dense_rewards_count(self):
    objective = chain(advantages.grpo(), likelihood())
    dense = jnp.where(token_batch().mask_BxT, 0.25, jnp.nan)
    batch, _, _ = jax.jit(objective.prepare)(objective.init(token_batch()), token_batch(token_reward_BxT=dense))
    expected = call('grpo', RETURN + np.float32(0.25) * LENGTH, GROUP)
    np.testing.assert_allclose(batch.advantage_BxT[:, 0], expected, rtol=1e-5)


class TestRloo:
  def test_by_hand(self):
    # (1, 0, 0, 1): others of a success have mean 1/3, of a failure 2/3. (1, 0, 0, 0): 0 and 1/3.
    np.testing.assert_allclose(call('rloo', HALF, ONE), [2 / 3, -2 / 3, -2 / 3, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(call('rloo', QUARTER, ONE), [1, -1 / 3, -1 / 3, -1 / 3], rtol=1e-6)

  def test_loop_over_the_others(self):
    def oracle(i, r):
      others = [float(RETURN[j]) for j in rows_of(i) if j != i]
      return RETURN[i] - (statistics.fmean(others) if others else 0.0)

    check(call('rloo', RETURN, GROUP), oracle)

  def test_is_scaled_dr_grpo(self):
    size = np.array([len(rows_of(i)) for i in range(len(GROUP))])
    correction = np.where(size > 1, size / np.maximum(size - 1, 1), 1.0)
    np.testing.assert_allclose(call('rloo', RETURN, GROUP), correction * call('dr_grpo', RETURN, GROUP), rtol=1e-6)


class TestOpo:
  def test_by_hand(self):
    # rewards (1, 0, 0, 0) and lengths (2, 4, 4, 10): baseline 2 / 20 = .1
    actual = call('opo', QUARTER, ONE, jnp.array([2.0, 4.0, 4.0, 10.0]))
    np.testing.assert_allclose(actual, [0.9, -0.1, -0.1, -0.1], rtol=1e-6)

  def test_loop(self):
    def oracle(i, r):
      if len(r) == 1:
        return RETURN[i]
      weighted = sum(float(LENGTH[j]) * float(RETURN[j]) for j in rows_of(i))
      return RETURN[i] - weighted / sum(float(LENGTH[j]) for j in rows_of(i))

    check(call('opo', RETURN, GROUP, LENGTH), oracle)

  def test_equal_lengths_are_dr_grpo(self):
    equal = np.full(len(GROUP), 5.0, np.float32)
    np.testing.assert_allclose(
      call('opo', RETURN, GROUP, equal), call('dr_grpo', RETURN, GROUP), rtol=1e-5, atol=1e-7
    )

  def test_tokens_sum_to_zero(self):
    weighted = np.asarray(call('opo', RETURN, GROUP, LENGTH)) * LENGTH
    for prompt in (40, -3, 7):
      assert abs(weighted[prompt == GROUP].sum()) < 1e-5

  def test_reads_the_lengths_of_the_batch(self):
    objective = chain(advantages.opo(), likelihood())
    batch, _, _ = jax.jit(objective.prepare)(objective.init(token_batch()), token_batch())
    np.testing.assert_allclose(batch.advantage_BxT[:, 0], call('opo', RETURN, GROUP, LENGTH), rtol=1e-6)

  def test_empty_responses(self):
    np.testing.assert_allclose(call('opo', HALF, ONE, np.zeros(4, np.float32)), HALF)  # no length, no baseline


class TestGpg:
  def test_by_hand(self):
    # (1, 0, 0, 0): alpha = 4 / 1, 4 * .75 = 3 and 4 * -.25 = -1. (1, 0, 0, 1): alpha = 4 / 2, 2 * .5 = 1.
    np.testing.assert_allclose(call('gpg', QUARTER, ONE), [3, -1, -1, -1], rtol=1e-6)
    np.testing.assert_allclose(call('gpg', HALF, ONE), [1, -1, -1, 1], rtol=1e-6)

  def test_loop(self):
    alpha = len(RETURN) / sum(r != 0 for r in RETURN.tolist())
    check(call('gpg', RETURN, GROUP), lambda i, r: alpha * (RETURN[i] - (statistics.fmean(r) if len(r) > 1 else 0)))

  def test_no_reward_at_all(self):
    np.testing.assert_array_equal(call('gpg', np.zeros(4, np.float32), ONE), np.zeros(4))

  def test_all_rewarded_is_dr_grpo(self):
    rewards = RETURN + np.float32(2.0)
    np.testing.assert_allclose(call('gpg', rewards, GROUP), call('dr_grpo', rewards, GROUP), rtol=1e-6)


class TestGrpoPassAtK:
  def test_by_hand(self):
    # (1, 0, 0, 0): (1 - 0) / (.5 + 1e-6) = 1.999996
    np.testing.assert_allclose(call('grpo_pass_at_k', QUARTER, ONE), [1.999996, 0, 0, 0], rtol=1e-6)
    # (.2, .9, .5, 0): mean .4, squares .04 + .25 + .01 + .16 = .46, std .391578; (.9 - .5) / .391579 = 1.021506
    spread = jnp.array([0.2, 0.9, 0.5, 0.0])
    np.testing.assert_allclose(call('grpo_pass_at_k', spread, ONE), [0, 1.021506, 0, 0], rtol=2e-6)

  def test_loop(self):
    def oracle(i, r):
      first, second = sorted(r, reverse=True)[:2] if len(r) > 1 else (0.0, 0.0)
      leads = len(r) > 1 and float(RETURN[i]) == first and first > second
      return (first - second) / (statistics.stdev(r) + 1e-6) if leads else 0.0

    check(call('grpo_pass_at_k', RETURN, GROUP), oracle)

  def test_tied_best_learn_nothing(self):
    np.testing.assert_array_equal(call('grpo_pass_at_k', HALF, ONE), np.zeros(4))

  def test_one_right_of_many(self):
    # one 1 among G: std = 1 / sqrt(G), so A = sqrt(G)
    rewards = np.eye(1, 10, 3, dtype=np.float32)[0]
    np.testing.assert_allclose(call('grpo_pass_at_k', rewards, np.zeros(10, np.int32))[3], 10**0.5, rtol=1e-5)

  def test_alone_leads_nobody(self):
    assert float(call('grpo_pass_at_k', RETURN, GROUP)[4]) == 0.0


class TestEveryGroupAdvantage:
  @pytest.mark.parametrize('name', CENTRED)
  def test_sums_to_zero_over_each_group(self, name):
    actual = np.asarray(call(name, RETURN, GROUP))
    for prompt in (40, -3, 7):
      assert abs(actual[prompt == GROUP].sum()) < 1e-5

  @pytest.mark.parametrize('name', [n for n in NAMES if n != 'grpo_pass_at_k'])
  def test_alone_keeps_its_reward(self, name):
    # baseline 0 and scale 1; GRPO divides by 1 + 1e-6, GPG multiplies by alpha = 10 / 8, two of ten being 0
    alpha = 10 / 8 if name == 'gpg' else 1.0
    np.testing.assert_allclose(call(name, RETURN, GROUP, LENGTH)[4], 0.7 * alpha, rtol=2e-6)

  @pytest.mark.parametrize('name', NAMES)
  @pytest.mark.parametrize('value', [0.1, 1.0, -3.3, 0.0])
  def test_equal_rewards_are_exactly_zero(self, name, value):
    group = np.repeat(np.array([2, 5], np.int32), [7, 3])  # a sum of seven or of three, divided, need not give it back
    np.testing.assert_array_equal(call(name, np.full(10, value, np.float32), group, LENGTH), np.zeros(10))

  @pytest.mark.parametrize('name', NAMES)
  def test_follows_its_rows(self, name):
    order = np.random.default_rng(1).permutation(len(GROUP))
    permuted = call(name, RETURN[order], GROUP[order], LENGTH[order])
    np.testing.assert_allclose(permuted, call(name, RETURN, GROUP, LENGTH)[order], rtol=1e-5, atol=1e-7)

  @pytest.mark.parametrize('name', ['dr_grpo', 'grpo', 'rloo', 'opo'])
  def test_a_shift_of_all_rewards_changes_nothing(self, name):
    several = GROUP != 1000  # a response alone has no baseline
    shifted = np.asarray(call(name, RETURN + np.float32(4.0), GROUP, LENGTH))[several]
    np.testing.assert_allclose(shifted, np.asarray(call(name, RETURN, GROUP, LENGTH))[several], rtol=1e-4, atol=1e-5)

  @pytest.mark.parametrize('name', NAMES)
  def test_carries_no_gradient_into_the_rollout(self, name):
    objective = chain(getattr(advantages, name)(), likelihood())

    def total(reward_B):
      batch, _, _ = objective.prepare(objective.init(token_batch()), token_batch(reward_B=reward_B))
      return jnp.sum(batch.advantage_BxT**2)

    value, gradient = jax.jit(jax.value_and_grad(total))(jnp.array(RETURN))
    assert float(value) > 0
    np.testing.assert_array_equal(gradient, np.zeros(len(GROUP)))


class TestExpectedUpdate:
  """For binary rewards, on-policy, E[(1 / G) sum_i A_i grad log pi(o_i)] = c grad p: all 4^4 outcomes, enumerated."""

  PI = np.array([0.5, 0.3, 0.15, 0.05])
  RIGHT = np.array([1.0, 0.0, 1.0, 0.0])

  def expected_update(self, name):
    outcomes = np.array(list(itertools.product(range(4), repeat=4)))  # 256 groups of 4 responses, one token each
    group_B = np.repeat(np.arange(256, dtype=np.int32), 4)
    advantage = np.asarray(call(name, self.RIGHT[outcomes].ravel().astype(np.float32), group_B)).reshape(256, 4)
    score = np.eye(4)[outcomes] - self.PI  # d ln pi(o) / d logits
    chance = self.PI[outcomes].prod(axis=1)
    return np.einsum('n,ni,niv->v', chance, advantage / 4, score)

  @pytest.mark.parametrize(
    ('name', 'constant'),
    [
      ('dr_grpo', 0.75),  # (G - 1) / G
      ('opo', 0.75),  # equal lengths
      ('rloo', 1.0),  # unbiased
      # k right of 4: std_k = sqrt(k (4 - k) / 12), so c = sum_k Bin(k; .65) sqrt(12 k (4 - k)) / 16 / (.65 * .35)
      # = (.111475 * 6 + .310538 * 6.928203 + .384475 * 6) / 16 / .2275 = 5.127166 / 3.64
      ('grpo', 1.40856),
      # only one right of 4 teaches, with A = 2: (1 / 4) 2 (4 p (1 - p)^3) grad p / p = 2 * .35^3
      ('grpo_pass_at_k', 0.08575),
    ],
  )
  def test_is_along_the_gradient_of_success(self, name, constant):
    p = float(self.PI @ self.RIGHT)  # .65
    gradient = self.PI * (self.RIGHT - p)
    np.testing.assert_allclose(self.expected_update(name), constant * gradient, rtol=1e-5, atol=1e-8)


def test_the_room_exports_every_lift_of_the_family():
  lifted = {v.name for v in vars(family).values() if isinstance(v, transform.Method)}
  assert lifted == set(NAMES) <= set(advantages.__all__)
