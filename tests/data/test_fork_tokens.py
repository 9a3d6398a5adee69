"""fork_tokens: the reward looks at the forks alone, and the exact success is that of enumeration and of sampling."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from entropy_jax.data import fork_tokens, tabular_task

SMALL = {'num_prompts': 2, 'num_tokens': 4, 'vocab_size': 3, 'good_probability': 0.4}


def softmax(z: np.ndarray) -> np.ndarray:
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


class TestForkTokens:
  def test_exact_success_is_that_of_enumeration(self):
    task = fork_tokens.make(jax.random.key(3), **SMALL)
    success_M = jax.jit(task.success)(task.table_MxTxSxV)
    p_MxTxV = softmax(np.asarray(task.table_MxTxSxV)[:, :, 0])
    answers = np.array(list(itertools.product(range(3), repeat=4)), np.int32)
    for prompt in range(2):
      reward = np.asarray(task.reward(jnp.full(len(answers), prompt), jnp.asarray(answers)))
      chance = np.prod([p_MxTxV[prompt, t, answers[:, t]] for t in range(4)], axis=0)
      np.testing.assert_allclose(success_M[prompt], np.sum(chance * reward), rtol=1e-5)

  def test_only_the_forks_decide(self):
    task = fork_tokens.make(jax.random.key(0))
    rng = np.random.default_rng(0)
    prompt_B = jnp.asarray(rng.integers(0, 16, 1024))
    tokens = rng.integers(0, 32, (1024, 6))
    tokens[:32, [0, 3]] = 0  # token 0 is good everywhere
    other = tokens.copy()
    other[:, [1, 2, 4, 5]] = rng.integers(0, 32, (1024, 4))
    reward = jax.jit(task.reward)
    reward_B = np.asarray(reward(prompt_B, jnp.asarray(tokens)))
    np.testing.assert_array_equal(reward_B, reward(prompt_B, jnp.asarray(other)))
    assert np.all(reward_B[:32] == 1) and 0.01 < reward_B[32:].mean() < 0.1  # about (1 / 32 + .15)^2

  def test_initial_state_matches_the_card(self):
    # Appendix P of the card: initial entropy 1.992, success .035, for one instance; here over 8 instances.
    def initial(key):
      task = fork_tokens.make(key)
      return tabular_task.entropy(task, task.table_MxTxSxV), task.success(task.table_MxTxSxV).mean()

    entropy, success = jax.jit(jax.vmap(initial))(jax.random.split(jax.random.key(1), 8))
    np.testing.assert_allclose(entropy['all'].mean(), 1.99, atol=0.05)
    np.testing.assert_allclose(success.mean(), 0.03, atol=0.012)
    # Two of six positions are forks.
    np.testing.assert_allclose(entropy['all'], (2 * entropy['fork'] + 4 * entropy['settled']) / 6, rtol=1e-5)
    assert np.all(entropy['fork'] > entropy['settled'] + 1)

  def test_annotations_say_what_the_tokens_mean(self):
    task = fork_tokens.make(jax.random.key(0), **SMALL)
    found = task.annotate(jnp.asarray([[1, 0, 0, 2], [1, 2, 2, 2], [2, 0, 0, 1]], jnp.int32))
    assert found['answer_B'].tolist() == [5, 5, 7]  # 1 * 3 + 2, whatever is between; 2 * 3 + 1
    assert found['segment_BxT'].tolist() == [[0, 1, 2, 3]] * 3
    assert found['planning_BxT'].tolist() == [[1, 0, 0, 2]] * 3  # two strategic phrases, at positions 0 and 3


class TestDiversity:
  def test_is_that_of_enumeration(self):
    task = fork_tokens.make(jax.random.key(3), **SMALL)
    found = jax.jit(lambda table: fork_tokens.diversity(task, table))(task.table_MxTxSxV)
    p_MxTxV = softmax(np.asarray(task.table_MxTxSxV, np.float64)[:, :, 0])
    pairs = list(itertools.product(range(3), repeat=2))
    answers = np.array([[a, 0, 0, b] for a, b in pairs], np.int32)
    entropy, passes = [], []
    for prompt in range(2):
      reward = np.asarray(task.reward(jnp.full(len(answers), prompt), jnp.asarray(answers)))
      chance = np.array([p_MxTxV[prompt, 0, a] * p_MxTxV[prompt, 3, b] for a, b in pairs]) * reward
      p = chance[chance > 0] / chance.sum()
      entropy.append(-np.sum(p * np.log(p)))
      passes.append(1 - (1 - chance.sum()) ** 16)
    np.testing.assert_allclose(found['correct_answer_entropy'], np.mean(entropy), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found['pass_at_16'], np.mean(passes), rtol=1e-5)
