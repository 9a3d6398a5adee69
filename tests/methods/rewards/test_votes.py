"""TTRL and EMPO: the cards' numbers, counters as oracles, ties, missing answers, filters, and the advantages that GRPO makes of them."""

import collections
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import transform
from entropy_jax.methods import advantages, rewards
from entropy_jax.methods.rewards import votes
from entropy_jax.objective import chain
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

likelihood = transform.surrogate('likelihood', lambda logp_BxT, advantage_BxT: advantage_BxT * logp_BxT)
RNG = np.random.default_rng(0)
ANSWER = RNG.integers(-1, 4, 40).astype(np.int32)
GROUP = (RNG.integers(0, 7, 40) * 11 - 20).astype(np.int32)
GROUP[-1] = 1000
ANSWER[GROUP[0] == GROUP] = -1  # a group in which nobody answers
CORRECT = RNG.integers(0, 2, 40).astype(np.float32)


@functools.cache
def compiled_ttrl(**hyper):
  return jax.jit(functools.partial(rewards.ttrl.function, **hyper))


@functools.cache
def compiled_empo(**hyper):
  return jax.jit(functools.partial(rewards.empo.function, **hyper))


def filled(values, fill, dtype):
  return np.pad(np.asarray(values, dtype), (0, 8 - len(values)), constant_values=fill)


def ttrl(answers, correct=None, **hyper):
  """One group of up to eight: the rest of the batch is a group of its own, without answers, whose metrics are all known."""
  num = len(answers)
  correct = np.zeros(num) if correct is None else correct
  group = np.where(np.arange(8) < num, 5, 9).astype(np.int32)
  value, metrics = compiled_ttrl(**hyper)(filled(correct, 0, np.float32), filled(answers, -1, np.int32), group, None)
  # The other group has ratio 0, no label, reward accuracy 1 (0 = 0), nothing correct: undo its share of the means.
  other = {'majority_ratio': 0, 'label_accuracy': 0, 'reward_accuracy': 1, 'ground_truth_ratio': 0, 'pass_at_n': 0}
  both = {k: float(v) for k, v in metrics.items()}
  return np.asarray(value)[:num].tolist(), both if num == 8 else {k: 2 * both[k] - other[k] for k in both}


def empo(answers, **hyper):
  group = np.where(np.arange(8) < len(answers), 5, 9).astype(np.int32)
  value, _ = compiled_empo(**hyper)(filled(answers, -1, np.int32), group)
  return np.asarray(value)[: len(answers)]


def grpo(reward, group):
  return np.asarray(jax.jit(advantages.grpo.function)(np.asarray(reward, np.float32), np.asarray(group, np.int32)))


class TestMajority:
  def test_against_a_counter(self):
    label, number = jax.jit(votes.majority)(ANSWER, GROUP)
    for b in range(40):
      counter = collections.Counter(int(a) for a in ANSWER[GROUP[b] == GROUP] if a >= 0)
      best = max(counter.values(), default=0)
      assert int(number[b]) == best
      assert int(label[b]) == min((a for a, n in counter.items() if n == best), default=-1)


class TestTtrl:
  def test_card_values(self):
    # answers a a b c: a has 2 of 4 votes
    value, metrics = ttrl([0, 0, 1, 2], correct=[0, 0, 1, 0])  # the truth is b
    assert value == [1, 1, 0, 0] and metrics['majority_ratio'] == 0.5
    assert metrics['label_accuracy'] == 0 and metrics['reward_accuracy'] == 0.25 and metrics['pass_at_n'] == 1
    _, metrics = ttrl([0, 0, 1, 2])  # the truth is not among them
    assert metrics['reward_accuracy'] == 0.5 and metrics['pass_at_n'] == 0
    # a b c d e e, truth f: the label is wrong, and still 4 of 6 rewards are right
    value, metrics = ttrl([0, 1, 2, 3, 4, 4])
    assert value == [0, 0, 0, 0, 1, 1] and metrics['label_accuracy'] == 0
    np.testing.assert_allclose(metrics['reward_accuracy'], 4 / 6, rtol=1e-6)
    _, metrics = ttrl([0, 0, 1, 2], correct=[1, 1, 0, 0])
    assert metrics['label_accuracy'] == metrics['reward_accuracy'] == 1 and metrics['ground_truth_ratio'] == 0.5

  def test_a_missing_answer_counts_in_the_ratio_alone(self):
    value, metrics = ttrl([3, -1, -1, -1])
    assert value == [1, 0, 0, 0] and metrics['majority_ratio'] == 0.25
    assert ttrl([-1, -1, -1])[0] == [0, 0, 0]

  def test_smallest_answer_wins_a_tie(self):
    assert ttrl([2, 1, 1, 2, 0])[0] == [0, 1, 1, 0, 0]

  def test_relabelling_the_answers_changes_nothing(self):
    votes_of = lambda answers: ttrl(answers)[0]
    assert votes_of([0, 0, 1, 2]) == votes_of([7, 7, 4, 0]) == votes_of([2, 2, 9, 8])

  def test_the_verifier_does_not_enter(self):
    assert ttrl([0, 0, 1], correct=[0, 0, 1])[0] == ttrl([0, 0, 1], correct=[1, 1, 0])[0] == [1, 1, 0]

  @pytest.mark.parametrize(('num_agreeing', 'positive', 'negative'), [(1, 3.0, -1 / 3), (5, 1.0, -1.0), (9, 1 / 3, -3.0)])
  def test_advantages_depend_on_the_majority_ratio_alone(self, num_agreeing, positive, negative):
    # p of 10: sqrt((1 - p) / p) and -sqrt(p / (1 - p)) with the population's deviation; GRPO's has ddof 1: times sqrt(9 / 10)
    reward = np.arange(10) < num_agreeing
    advantage = grpo(reward, np.zeros(10))
    np.testing.assert_allclose(advantage[[0, -1]], np.array([positive, negative]) * math.sqrt(0.9), rtol=1e-4)

  def test_unanimity_teaches_nothing(self):
    np.testing.assert_array_equal(grpo(ttrl([4, 4, 4])[0], np.zeros(3)), np.zeros(3))

  def test_trained_responses_alone_have_an_advantage(self):
    # votes 1 1 0 1 0; the first three by identity are trained: mean 2/3, which the other two get
    value, metrics = ttrl([0, 0, 1, 0, 2], trained=3)
    np.testing.assert_allclose(value, [1, 1, 0, 2 / 3, 2 / 3], rtol=1e-6)
    assert metrics['majority_ratio'] == pytest.approx(0.6)  # all five vote
    trained = jax.jit(advantages.dr_grpo.function)(np.float32([1, 1, 0]), np.zeros(3, np.int32))
    everyone = jax.jit(advantages.dr_grpo.function)(np.float32(value), np.zeros(5, np.int32))
    np.testing.assert_allclose(everyone, [*trained, 0, 0], atol=1e-6)

  def test_trained_responses_are_the_first_by_identity(self):
    answer, group = np.array([0, 0, 1, 0, 2, 2, 2, 2], np.int32), np.array([5] * 4 + [9] * 4, np.int32)
    identity = np.array([40, 10, 30, 20, 3, 2, 1, 0], np.int32)
    value, _ = compiled_ttrl(trained=2)(np.zeros(8, np.float32), answer, group, identity)
    np.testing.assert_allclose(value, [1, 1, 1, 1, 1, 1, 1, 1])  # identities 10 and 20 agree: mean 1 for the others
    order = RNG.permutation(40)
    identity = RNG.permutation(40).astype(np.int32)
    first, _ = compiled_ttrl(trained=3)(CORRECT, ANSWER, GROUP, identity)
    moved, _ = compiled_ttrl(trained=3)(CORRECT[order], ANSWER[order], GROUP[order], identity[order])
    np.testing.assert_array_equal(moved, np.asarray(first)[order])

  def test_in_a_chain(self):
    batch = helpers.token_batch(seed=2)
    objective = chain(rewards.ttrl(), advantages.dr_grpo(), likelihood())
    prepared, _, metrics = jax.jit(objective.prepare)(objective.init(batch), batch)
    expected, _ = compiled_ttrl()(batch.reward_B, batch.answer_B, batch.group_B, batch.sequence_B)
    np.testing.assert_array_equal(prepared.reward_B, expected)
    assert 0 < metrics['reward/ttrl/majority_ratio'] <= 1

  def test_bad_input(self):
    with pytest.raises(UserError, match=r'trained=2.5 is no number of responses'):
      rewards.ttrl(trained=2.5)
    with pytest.raises(UserError, match=r'trained=0 is outside \[1, inf\)'):
      rewards.ttrl(trained=0)


class TestEmpo:
  COUNTS = (0, 0, 0, 0, 1, 1, 2)  # 4, 2, 1

  def test_card_values(self):
    value = empo(self.COUNTS)
    np.testing.assert_allclose(value, [0.571429] * 4 + [0.285714] * 2 + [0.142857], atol=1e-6)
    np.testing.assert_allclose(value.mean(), 21 / 49, rtol=1e-6)  # .428571: (16 + 4 + 1) / 49
    advantage = grpo(value, np.zeros(7))
    np.testing.assert_allclose(advantage[[0, 4, 6]], [0.774592, -0.774592, -1.549185], atol=1e-5)

  def test_shannon_entropy_is_reported(self):
    _, metrics = compiled_empo()(np.array(self.COUNTS, np.int32), np.zeros(7, np.int32))
    np.testing.assert_allclose(metrics['answer_entropy'], 0.955700, atol=1e-6)
    np.testing.assert_allclose(metrics['frequency'], 21 / 49, rtol=1e-6)

  def test_mean_reward_is_the_collision_probability(self):
    value = np.asarray(compiled_empo(empty_alone=True)(ANSWER, GROUP)[0], np.float64)
    for g in set(GROUP.tolist()):
      inside = ANSWER[g == GROUP]
      counts = [*collections.Counter(a for a in inside.tolist() if a >= 0).values(), *[1] * int((inside < 0).sum())]
      np.testing.assert_allclose(value[g == GROUP].mean(), sum((n / len(inside)) ** 2 for n in counts), rtol=1e-6)

  @pytest.mark.parametrize('answers', [[3, 3, 3, 3], [0, 1, 2, 3], [0, 0, 1, 1]])
  def test_one_answer_all_different_or_a_draw_teach_nothing(self, answers):
    for hyper in ({}, {'high': 1.0}):
      np.testing.assert_array_equal(grpo(empo(answers, **hyper), np.zeros(4)), np.zeros(4))

  def test_missing_answers(self):
    np.testing.assert_allclose(empo([0, 0, -1, -1]), [0.5, 0.5, 0, 0])
    np.testing.assert_allclose(empo([0, 0, -1, -1], empty=-0.5), [0.5, 0.5, -0.5, -0.5])
    np.testing.assert_allclose(empo([0, 0, -1, -1], empty_alone=True), [0.5, 0.5, 0.25, 0.25])

  def test_groups_of_different_answers_are_dropped_at_one(self):
    np.testing.assert_array_equal(empo([0, 1, 2, 3, 4], high=1.0), np.zeros(5))
    np.testing.assert_allclose(empo([0, 0, 2, 3, 4], high=1.0), [0.4, 0.4, 0.2, 0.2, 0.2], rtol=1e-6)
    np.testing.assert_array_equal(empo([0, 1, 2, -1], high=1.0, empty=-0.5), [0, 0, 0, -0.5])

  def test_entropy_thresholds(self):
    # counts (2, 1, 1): H = 1.5 ln 2, three quarters of ln 4
    kept = [0.5, 0.5, 0.25, 0.25]
    for hyper, expected in (({'high': 0.74}, [0] * 4), ({'high': 0.76}, kept), ({'low': 0.76}, [0] * 4), ({'low': 0.74}, kept)):
      np.testing.assert_allclose(empo([0, 0, 1, 2], **hyper), expected, rtol=1e-6)
    np.testing.assert_array_equal(empo([1, 1, 1, 1], low=0.0), np.zeros(4))  # certain already

  def test_minimum_frequency(self):
    np.testing.assert_array_equal(empo([0, 1, 2, 3, 4], min_frequency=0.25), np.zeros(5))  # .2 < .25
    np.testing.assert_allclose(empo([0, 1, 2, 3], min_frequency=0.25), [0.25] * 4)  # not below
    np.testing.assert_allclose(empo([6], min_frequency=1.0), [1.0])  # a single answer is not several

  def test_in_a_chain(self):
    batch = helpers.token_batch(seed=2)
    objective = chain(rewards.empo(), advantages.grpo(), likelihood())
    prepared, _, _ = jax.jit(objective.prepare)(objective.init(batch), batch)
    np.testing.assert_array_equal(prepared.reward_B, compiled_empo()(batch.answer_B, batch.group_B)[0])
    assert jnp.any(prepared.advantage_BxT != 0)

  def test_bad_input(self):
    with pytest.raises(UserError, match=r'^empo: high=1.5 is outside \[0, 1\]'):
      rewards.empo(high=1.5)
