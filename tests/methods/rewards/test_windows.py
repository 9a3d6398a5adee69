"""ARES: the card's numbers for both forms, counting by loops, what is remembered between batches, degenerate batches."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import transform
from entropy_jax.methods import advantages, rewards
from entropy_jax.methods.rewards import windows
from entropy_jax.objective import chain
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

likelihood = transform.surrogate('likelihood', lambda logp_BxT, advantage_BxT: advantage_BxT * logp_BxT)
EASY, MEDIUM, HARD = range(3)


@functools.cache
def compiled(form):
  return jax.jit(functools.partial(rewards.ares.function, form=form))


def change(form, correct, num, bucket, target, scale):
  """What a response of one prompt earns beyond its outcome."""
  outcome = np.float32([correct])
  as_array = lambda x: np.float32([x])
  value, _ = compiled(form)(outcome, as_array(num), np.array([bucket], np.int32), as_array(target), as_array(scale))
  return float(value[0]) - correct


class TestHuber:
  def test_both_branches_meet(self):
    x = np.float32([0.0, 1.0, 2.0, 3.0])
    np.testing.assert_allclose(windows.huber(x, np.float32(2.0)), [0.0, 0.25, 1.0, 2.0])


class TestAres:
  def test_card_values_of_the_paper(self):
    # lambda = (6 - 5) / (8 / 3) = .375 for N = (4, 6, 8): the wrong response with N = 8 pays .375 * 3
    assert change('paper', 0, 8, EASY, 5, 0.375) == pytest.approx(-1.125)
    assert change('paper', 0, 4, EASY, 5, 0.375) == 0  # an easy prompt may be answered with fewer
    assert change('paper', 0, 4, MEDIUM, 5, 0.375) == pytest.approx(-0.375)
    assert change('paper', 0, 8, HARD, 5, 0.375) == 0  # a hard one with more
    assert change('paper', 0, 3, HARD, 5, 0.375) == pytest.approx(-0.75)
    assert change('paper', 1, 8, EASY, 5, 0.375) == 0  # correct responses are left alone

  @pytest.mark.parametrize(
    ('correct', 'num', 'bucket', 'expected'),
    [
      (1, 15, EASY, -0.3571),  # margin 1.5, huber(3.5; 2) = 2.5, 2.5 / 3.5 * .5
      (1, 20, EASY, -0.5),  # the cap
      (1, 10, EASY, 0.0),
      (1, 5, EASY, 0.0),
      (1, 5, MEDIUM, -0.0947),  # margin 2.5, huber(2.5; 3) = 1.0417, / 5.5 * .5
      (1, 15, MEDIUM, -0.0947),
      (1, 10, HARD, 0.4575),  # cap .6, sigmoid(3.5 / 3) * .6
      (1, 5, HARD, -0.01125),  # huber(1.5; 4) = .28125, .5 * .28125 / 7.5 * .6
      (0, 10, EASY, 0.15),  # sigmoid(0) * .5 * .6
      (0, 4, MEDIUM, 0.20),
      (0, 10, HARD, 0.30),
      (0, 15, EASY, 0.6 * 0.5 / (1 + np.exp(-3.5 / 2))),
    ],
  )
  def test_card_values_of_the_released_code(self, correct, num, bucket, expected):
    assert change('released', correct, num, bucket, 10, 0.5) == pytest.approx(expected, abs=5e-5)

  def memory(self, entropies, correct, group, state=None, mask=None, **hyper):
    entropies = np.asarray(entropies, np.float32)
    mask = np.ones(entropies.shape, bool) if mask is None else mask
    state = windows.ares_state() if state is None else state
    arrays = entropies, np.asarray(correct, np.float32), np.asarray(group, np.int32), mask
    values, state, metrics = remember(tuple(sorted(hyper.items())))(state, *arrays)
    return types.SimpleNamespace(**{k: np.asarray(v) for k, v in values.items()}), state, metrics

  # Windows of one token above the mean of the medians: responses with 0, 1 and 2 of three high ones; tau = (0 + 0 + 2) / 3
  H = [[0.0, 0.0, 0.0], [0.0, 0.0, 2.0], [2.0, 0.0, 2.0]]
  ONE = {'width': 1, 'percentile': 0.5}

  def test_same_batch_target_does_nothing(self):
    values, state, _ = self.memory(self.H, [1, 0, 0], [3, 3, 3], **self.ONE)
    assert values.num_windows_B.tolist() == [0, 1, 2]
    assert values.bucket_B.tolist() == [MEDIUM] * 3
    assert values.target_B.tolist() == [1, 1, 1] and values.scale_B.tolist() == [0, 0, 0]
    assert state['target'].tolist() == [0, 1, 0] and state['known'].tolist() == [False, True, False]

  def test_lagged_target_acts(self):
    # N* = .5 remembered, mean 1, variance 2/3: lambda = .5 / (2/3) = .75; then N* = .9 * .5 + .1 * 1
    state = windows.ares_state(initial=0.5)
    values, new, metrics = self.memory(self.H, [1, 0, 0], [3, 3, 3], state, **self.ONE)
    np.testing.assert_allclose(values.scale_B, 0.75, rtol=1e-5)
    np.testing.assert_allclose(new['target'], [0.5, 0.55, 0.5], rtol=1e-6)
    np.testing.assert_allclose(metrics['windows_medium'], 1.0)
    # the two wrong ones of a medium prompt, N = 1 and 2: -.75 * .5 and -.75 * 1.5
    reward, _ = compiled('paper')(
      np.float32([1, 0, 0]), values.num_windows_B, values.bucket_B, values.target_B, values.scale_B
    )
    np.testing.assert_allclose(reward, [1.0, -0.375, -1.125], rtol=1e-5)

  def test_lambda_is_not_negative(self):
    values, _, _ = self.memory(self.H, [1, 0, 0], [3, 3, 3], windows.ares_state(initial=2.0), **self.ONE)
    assert values.scale_B.tolist() == [0, 0, 0]

  def test_equal_counts_above_the_target_stay_finite(self):
    H = [[0.0, 0.0, 2.0]] * 3
    values, _, _ = self.memory(H, [1, 0, 0], [3, 3, 3], windows.ares_state(initial=0.5), **self.ONE)
    assert np.isfinite(values.scale_B).all() and (values.scale_B > 0).all()

  def test_counts_windows_that_are_full(self):
    # w = 2, tau = 1.6, the one percentile; means 1, 1.5, 3, 2.5 | - at the end; above tau: two
    H, mask = [[0.0, 2.0, 1.0, 5.0, 0.0, 9.0]], np.array([[True, True, True, True, True, False]])
    values, _, metrics = self.memory(H, [1], [3], mask=mask, width=2, percentile=0.65)
    np.testing.assert_allclose(metrics['threshold'], 1.6, rtol=1e-5)  # place 2.6 of (0, 0, 1, 2, 5): 1 + .6
    assert values.num_windows_B.tolist() == [2]

  def test_released_form_remembers_threshold_and_caps(self):
    # w = 1 after the token: windows (0, 0), (0, 2), (0, 2); medians 0, 1, 1, whose median is 1; N = 0, 1, 1
    values, state, _ = self.memory(self.H, [1, 0, 0], [3, 3, 3], form='released', **self.ONE)
    assert values.num_windows_B.tolist() == [0, 1, 1]
    np.testing.assert_allclose(state['threshold'], 1.0)
    assert values.target_B.tolist() == [1, 1, 1]  # round(2/3)
    np.testing.assert_allclose(values.scale_B, 0.5)
    np.testing.assert_allclose(state['cap'], [0.5, 0.5 + 0.05 * (2 / 3 - 1), 0.5], rtol=1e-6)
    # then tau = .99 * 1 + .01 * 2 after a batch twice as uncertain
    _, state, _ = self.memory(np.array(self.H) * 2, [1, 0, 0], [3, 3, 3], state, form='released', **self.ONE)
    np.testing.assert_allclose(state['threshold'], 1.01, rtol=1e-6)
    assert int(state['num_updates']) == 2

  def test_hard_prompts_move_the_cap_the_other_way(self):
    _, state, _ = self.memory(self.H, [0, 0, 0], [3, 3, 3], form='released', **self.ONE)
    np.testing.assert_allclose(state['cap'], [0.5, 0.5, 0.5 - 0.05 * (2 / 3 - 1)], rtol=1e-6)

  @pytest.mark.parametrize('form', ['paper', 'released'])
  def test_a_batch_without_tokens_changes_nothing(self, form):
    state = {**windows.ares_state(initial=2.0), 'threshold': jnp.float32(0.7), 'num_updates': jnp.int32(3)}
    mask = np.zeros((3, 3), bool)
    _, new, _ = self.memory(np.full((3, 3), np.nan), [1, 0, 0], [3, 3, 3], state, mask=mask, form=form, **self.ONE)
    jax.tree.map(np.testing.assert_array_equal, state, new)

  @pytest.mark.parametrize('form', ['paper', 'released'])
  def test_in_a_chain_over_two_batches(self, form):
    batch = helpers.token_batch(seed=1, B=12, T=8)
    batch = batch.replace(reward_B=jnp.asarray(batch.reward_B > 0, jnp.float32), token_reward_BxT=None)
    objective = chain(rewards.ares(form=form, width=1, percentile=0.5), advantages.dr_grpo(), likelihood())
    prepare = jax.jit(objective.prepare)
    first, state, _ = prepare(objective.init(batch), batch)
    more = batch.replace(old_entropy_BxT=batch.old_entropy_BxT.at[:, ::2].set(0.01))  # many more windows above a lower threshold
    second, _, metrics = prepare(state, more)
    wrong, right = np.asarray(batch.reward_B) == 0, np.asarray(batch.reward_B) == 1
    if form == 'paper':
      np.testing.assert_array_equal(first.reward_B, batch.reward_B)  # no target yet
      np.testing.assert_array_equal(second.reward_B[right], 1.0)
      assert (np.asarray(second.reward_B)[wrong] <= 0).all()
    else:
      assert (np.asarray(first.reward_B)[wrong] > 0).all()  # the constant of sigmoid(0)
    assert np.isfinite(np.asarray(second.advantage_BxT)).all() and 'reward/ares/target_hard' in metrics

  def test_bad_input(self):
    with pytest.raises(UserError, match=r"form='code' is not one of paper, released"):
      rewards.ares(form='code')
    with pytest.raises(UserError, match=r'decay=2 is outside \[0, 1\]'):
      rewards.ares(decay=2)


@functools.cache
def remember(hyper):
  return jax.jit(functools.partial(windows.ares_memory, **dict(hyper)))
