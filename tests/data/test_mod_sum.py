"""mod_sum: success, state visits and the entropy of correct answers against enumeration of every answer."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.data import mod_sum, tabular_task
from entropy_jax.types import Phase

ANSWERS = np.array(list(itertools.product(range(3), repeat=3)), np.int32)


@pytest.fixture(scope='module')
def task():
  made = mod_sum.make(jax.random.key(2), num_prompts=3, num_tokens=3, vocab_size=3)
  return made._replace(success=jax.jit(made.success), visits=jax.jit(made.visits), reward=jax.jit(made.reward))


def chances(task, prompt: int) -> np.ndarray:
  """Probability of every answer, by walking it token by token."""
  table = np.asarray(task.table_MxTxSxV, np.float64)
  found = []
  for answer in ANSWERS:
    state, chance = 0, 1.0
    for t, token in enumerate(answer):
      e = np.exp(table[prompt, t, state])
      chance *= e[token] / e.sum()
      state = (state + token) % 3
    found.append(chance)
  return np.array(found)


def rewards(task, prompt: int) -> np.ndarray:
  return np.asarray(task.reward(jnp.full(len(ANSWERS), prompt), jnp.asarray(ANSWERS)))


class TestModSum:
  def test_success_is_that_of_enumeration(self, task):
    for prompt in range(3):
      expected = np.sum(chances(task, prompt) * rewards(task, prompt))
      np.testing.assert_allclose(task.success(task.table_MxTxSxV)[prompt], expected, rtol=1e-5)

  def test_a_third_of_the_answers_is_correct(self, task):
    # 3^3 answers, each sum equally often: 9 correct ones a prompt (216 of 6^4 by default).
    assert all(rewards(task, prompt).sum() == 9 for prompt in range(3))

  def test_visits_are_those_of_enumeration(self, task):
    visits = np.asarray(task.visits(task.table_MxTxSxV))
    np.testing.assert_allclose(visits.sum(-1), 1.0, rtol=1e-5)
    for prompt in range(3):
      chance = chances(task, prompt)
      for t in range(3):
        state = ANSWERS[:, :t].sum(axis=1) % 3
        np.testing.assert_allclose(visits[prompt, t], [chance[state == s].sum() for s in range(3)], rtol=1e-4, atol=1e-7)

  def test_correct_answer_entropy_is_that_of_enumeration(self, task):
    expected = []
    for prompt in range(3):
      p = chances(task, prompt) * rewards(task, prompt)
      p = p[p > 0] / p.sum()
      expected.append(-np.sum(p * np.log(p)))
    np.testing.assert_allclose(mod_sum.correct_answer_entropy(task, task.table_MxTxSxV), np.mean(expected), rtol=1e-5)

  def test_uniform_policy_has_the_largest_entropies(self, task):
    uniform = jnp.zeros_like(task.table_MxTxSxV)
    np.testing.assert_allclose(mod_sum.correct_answer_entropy(task, uniform), np.log(9), rtol=1e-5)
    np.testing.assert_allclose(tabular_task.entropy(task, uniform)['all'], np.log(3), rtol=1e-6)
    np.testing.assert_allclose(task.success(uniform), 1 / 3, rtol=1e-5)

  def test_pass_at_16_of_the_uniform_policy(self, task):
    found = mod_sum.diversity(task, jnp.zeros_like(task.table_MxTxSxV))['pass_at_16']
    np.testing.assert_allclose(found, 1 - (2 / 3) ** 16, rtol=1e-5)

  def test_annotations_say_what_the_tokens_mean(self, task):
    found = task.annotate(jnp.asarray([[0, 1, 2], [2, 1, 0], [0, 1, 2]], jnp.int32))
    assert found['answer_B'].tolist() == [5, 21, 5]  # 0 * 9 + 1 * 3 + 2; 2 * 9 + 1 * 3 + 0
    assert found['segment_BxT'].tolist() == [[0, 1, 2]] * 3
    assert found['planning_BxT'].tolist() == [[1, 1, 0]] * 3
    assert found['phase_BxT'].tolist() == [[Phase.THINK, Phase.THINK, Phase.ANSWER]] * 3
    assert all(value.dtype == jnp.int32 for value in found.values())
