"""data/rewards.py: the table of rewards and their sum."""

import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.data import rewards
from entropy_jax.data.answer_verifier import AnswerVerifier, Verdict
from entropy_jax.data.rewards import REWARDS, Context, build
from entropy_jax.methods.rewards import shaping
from entropy_jax.types import UserError


@pytest.fixture
def verifier():
  return AnswerVerifier(use_math_verify=False)


class TestAccuracy:
  def test_is_of_the_verdict(self):
    found = {verdict: rewards.accuracy('', '', Context(verdict=verdict)) for verdict in Verdict}
    assert found == {verdict: float(verdict is Verdict.CORRECT) for verdict in Verdict}


class TestThinkAnswer:
  @pytest.mark.parametrize(
    ('completion', 'value'),
    [
      ('<think>a</think><answer>5</answer>', 1.0),
      (' <think>\na\n</think>\n\n<answer> 5 </answer>\n', 1.0),
      ('<think>a</think> so <answer>5</answer>', 0.0),
      ('<think>a</think><answer>5</answer> done', 0.0),
      ('well <think>a</think><answer>5</answer>', 0.0),
      ('<think> </think><answer>5</answer>', 0.0),
      ('<think>a</think><answer></answer>', 0.0),
      ('<think>a<answer>5</answer></think>', 0.0),
      ('<answer>5</answer><think>a</think>', 0.0),
      ('<think>a</think><think>b</think><answer>5</answer>', 0.0),
      ('<think>a</think><answer>5</answer></answer>', 0.0),
      ('<think>a</think><answer>5', 0.0),
      ('', 0.0),
    ],
  )
  def test_structure(self, completion, value):
    assert rewards.think_answer(completion, '5', Context()) == value

  def test_opened_by_the_prompt(self):
    assert rewards.think_answer('a</think><answer>5</answer>', '5', Context(), opened=True) == 1.0
    assert rewards.think_answer('<think>a</think><answer>5</answer>', '5', Context(), opened=True) == 0.0


class TestOneBox:
  def test_one_and_not_more(self):
    found = [rewards.one_box(text, '5', Context()) for text in (r'\boxed{6}', r'\boxed{5} \boxed{6}', '#### 5', r'\boxed{}')]
    assert found == [1.0, 0.0, 0.0, 0.0]


class TestHashLine:
  def test_one_and_not_more(self):
    assert [rewards.hash_line(text, '5', Context()) for text in ('#### 6', '#### 5\n#### 6', r'\boxed{5}')] == [1.0, 0.0, 0.0]

  def test_not_that_of_the_prompt(self):
    prompt = 'What is 2 + 3? As in\n#### 5'
    assert rewards.hash_line(prompt, '5', Context(prompt=prompt)) == 0.0


class TestFinished:
  def test_is_of_the_context(self):
    assert rewards.finished('', '', Context(finished=True)) == 1.0 and rewards.finished('', '', Context(finished=False)) == 0.0


class TestCountdown:
  @pytest.mark.parametrize(
    ('completion', 'right', 'numbers'),
    [
      ('3*5+7', 1.0, 1.0),
      (' 7+3*5\n', 1.0, 1.0),
      ('3*7+5', 0.0, 1.0),
      ('3*5', 0.0, 0.0),
      ('22', 0.0, 0.0),
      ('3*5+7=22', 0.0, 0.0),
      ('__import__("os")', 0.0, 0.0),
      ('', 0.0, 0.0),
    ],
  )
  def test_is_of_the_expression(self, completion, right, numbers):
    given = (completion, '3 5 7=22:', Context())
    assert (rewards.countdown(*given), rewards.countdown_numbers(*given)) == (right, numbers)

  def test_refuses_another_reference(self):
    with pytest.raises(UserError, match="problem='22': is no countdown problem"):
      rewards.countdown('3*5+7', '22', Context())


class TestRewardSum:
  def test_weights_and_metrics(self, verifier):
    total = build({'accuracy': 1.0, 'one_box': {'weight': 0.5}, 'finished': -0.25}, verifier)
    reward_B, metrics = total([r'\boxed{5}', r'\boxed{6}', '#### 5', ''], ['5'] * 4, finished_B=np.array([True, True, True, False]))
    # accuracy 1 0 1 0, one_box 1 1 0 0, finished 1 1 1 0
    np.testing.assert_allclose(reward_B, [1 + 0.5 - 0.25, 0.5 - 0.25, 1 - 0.25, 0.0])
    assert reward_B.dtype == np.float32
    assert metrics == {
      'reward/accuracy': 0.5,
      'reward/one_box': 0.5,
      'reward/finished': 0.75,
      'reward/sum': pytest.approx((1.25 + 0.25 + 0.75) / 4),
      'reward/parsed': 3.0,
      'reward/timed_out': 0.0,
      'reward/rejected': 1.0,
    }
    assert all(type(value) is float for value in metrics.values())

  def test_without_a_verifier_nothing_is_counted(self):
    reward_B, metrics = build({'countdown': 1.0, 'finished': 0.0}, None)(['3+5', '3*5'], ['3 5=8:'] * 2, finished_B=[True, False])
    assert reward_B.tolist() == [1.0, 0.0]
    assert metrics == {'reward/countdown': 0.5, 'reward/finished': 0.5, 'reward/sum': 0.5}
    with pytest.raises(UserError, match=r'rewards\.accuracy: is that of the verdict on the answer, and there is no verifier'):
      build({'accuracy': 1.0}, None)

  def test_a_row_of_the_table_is_all_that_a_new_reward_needs(self, verifier, monkeypatch):
    def brevity(completion, reference, context, *, limit=10):
      return float(len(completion) <= limit and context.prompt == 'p')

    monkeypatch.setitem(REWARDS, 'brevity', brevity)
    total = build({'brevity': {'weight': 2, 'limit': 3}}, verifier)
    assert total(['abc', 'abcd'], ['', ''], prompts=['p', 'p'])[0].tolist() == [2.0, 0.0]
    with pytest.raises(UserError, match=r"rewards.brevity.limits: is not one of weight, limit; give one of these. Did you mean 'limit'"):
      build({'brevity': {'weight': 1, 'limits': 3}}, verifier)

  def test_the_objective_shapes_it_by_length(self, verifier):
    reward_B, _ = build({'accuracy': 1.0}, verifier)([r'\boxed{5}'] * 2, ['5', '5'])
    shaped_B, _ = shaping.soft_overlong_reward(jnp.asarray(reward_B), jnp.array([80.0, 90.0]), max_length=100, buffer=20)
    assert shaped_B.tolist() == [1.0, 0.5]

  def test_empty_batch(self, verifier):
    reward_B, metrics = build({'accuracy': 1.0}, verifier)([], [])
    assert reward_B.shape == (0,) and metrics['reward/sum'] == 0.0

  def test_refuses_what_is_not_finite(self, verifier, monkeypatch):
    monkeypatch.setitem(REWARDS, 'broken', lambda completion, reference, context: float('nan') if completion else 0.0)
    with pytest.raises(UserError, match=r'rewards.broken: is nan for completion 1 of the batch; give a finite number'):
      build({'broken': 1.0}, verifier)(['', 'a'], ['', ''])


class TestBuild:
  @pytest.mark.parametrize(
    ('config', 'message'),
    [
      ({}, r'rewards=\{\}: must name at least one of accuracy, think_answer, one_box, hash_line, finished'),
      ({'acuracy': 1.0}, r"rewards.acuracy: is not one of .*Did you mean 'accuracy'"),
      ({'accuracy': 'one'}, "rewards.accuracy.weight='one': must be a finite number"),
      ({'accuracy': float('nan')}, 'rewards.accuracy.weight=nan'),
      ({'accuracy': True}, 'rewards.accuracy.weight=True'),
      ({'think_answer': {'opened': True}}, 'rewards.think_answer.weight=None'),
      ({'accuracy': {'weight': 1, 'opened': True}}, 'rewards.accuracy.opened: is not one of weight; give one of these'),
    ],
  )
  def test_refuses(self, verifier, config, message):
    with pytest.raises(UserError, match=message):
      build(config, verifier)
