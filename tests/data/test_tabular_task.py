"""What all tabular tasks share: names of token strings, pass@k, means under the policy's own visits."""

import jax
import jax.numpy as jnp
import numpy as np

from entropy_jax.data import fork_tokens, tabular_task

SMALL = {'num_prompts': 2, 'num_tokens': 4, 'vocab_size': 3, 'good_probability': 0.4}


class TestStringId:
  def test_is_the_number_in_base_v(self):
    tokens = jnp.asarray([[0, 0, 0], [0, 1, 2], [2, 2, 2]], jnp.int32)
    assert tabular_task.string_id(tokens, 3).tolist() == [0, 5, 26]

  def test_no_two_strings_share_one(self):
    grids = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing='ij'), -1).reshape(-1, 3)
    assert sorted(tabular_task.string_id(jnp.asarray(grids), 4).tolist()) == list(range(64))


class TestPassAt:
  def test_one_sample_is_the_success_and_more_is_more(self):
    task = fork_tokens.make(jax.random.key(3), **SMALL)
    success_M = np.asarray(task.success(task.table_MxTxSxV), np.float64)
    np.testing.assert_allclose(tabular_task.pass_at(task, task.table_MxTxSxV, 1), success_M.mean(), rtol=1e-5)
    np.testing.assert_allclose(tabular_task.pass_at(task, task.table_MxTxSxV, 4), np.mean(1 - (1 - success_M) ** 4), rtol=1e-5)


class TestAnnotate:
  def test_a_task_need_not_say_what_its_tokens_mean(self):
    task = fork_tokens.make(jax.random.key(3), **SMALL)
    silent = tabular_task.TabularTask(**{name: value for name, value in task._asdict().items() if name != 'annotate'})
    assert silent.annotate(jnp.zeros((2, 4), jnp.int32)) == {}
