"""Studies of many objectives on one table: what they leave, what they do again, and what stops them."""

import functools
import json

import jax
import numpy as np
import pytest

from entropy_jax import compose
from entropy_jax.data import fork_tokens
from entropy_jax.training import loop, tables

SMALL = functools.partial(fork_tokens.make, num_prompts=2, num_tokens=4, vocab_size=3)
TASK = tables.Task(SMALL, (fork_tokens.diversity,))
SETTINGS = tables.Settings(num_steps=2, group_size=4, num_epochs=1, learning_rate=1.0)


def run(directory, *lines, settings=SETTINGS):
  objectives = {line: (compose.objective(line), {'': settings}) for line in lines}
  tables.study(TASK, objectives, directory, num_seeds=2, seed=0, description='small')


class TestStudy:
  def test_leaves_whole_files_and_does_only_what_is_missing(self, tmp_path):
    run(tmp_path, 'grpo', 'reinforce')
    files = {path: path.read_bytes() for path in sorted(tmp_path.rglob('metrics.jsonl'))}
    assert [path.relative_to(tmp_path).as_posix() for path in files] == [
      f'{line}/seed_{k}/metrics.jsonl' for line in ('grpo', 'reinforce') for k in range(2)
    ]
    rows = [json.loads(line) for line in next(iter(files.values())).decode().splitlines()]
    assert [row['step'] for row in rows] == [0, 1, 2]
    assert {'exact/success', 'exact/pass_at_16', 'exact/correct_answer_entropy', 'rollout/reward'} <= set(rows[0])
    assert 'exact/success' in rows[2] and 'rollout/reward' not in rows[2]
    # The first policy is the instance's, which depends on the seed alone.
    first = {path: json.loads(content.decode().splitlines()[0])['exact/success'] for path, content in files.items()}
    values = list(first.values())
    assert values[0] == values[2] and values[1] == values[3] and values[0] != values[1]

    times = {path: path.stat().st_mtime_ns for path in files}
    lost = tmp_path / 'grpo' / 'seed_1' / 'metrics.jsonl'
    lost.unlink()
    run(tmp_path, 'grpo', 'reinforce')
    assert {path: path.read_bytes() for path in files} == files
    kept = tmp_path / 'reinforce' / 'seed_0' / 'metrics.jsonl'
    assert kept.stat().st_mtime_ns == times[kept]
    assert not list(tmp_path.rglob('*.partial'))

  def test_methods_get_the_fields_that_they_need(self, tmp_path):
    run(tmp_path, 'seed_grpo(alpha=1.0)')  # reads answer_B
    assert len(list(tmp_path.rglob('metrics.jsonl'))) == 2


  def test_settings_share_a_program_and_change_nothing(self, tmp_path):
    objective = compose.objective('grpo + adaptive_entropy(target=0.5)')
    parts = {'short': SETTINGS, 'long': tables.Settings(num_steps=3, group_size=4, num_epochs=2, learning_rate=0.5)}
    tables.study(TASK, {'it': (objective, parts)}, tmp_path / 'shared', num_seeds=2, seed=0, description='small')
    for part, settings in parts.items():
      tables.study(TASK, {'it': (objective, {part: settings})}, tmp_path / 'alone', num_seeds=2, seed=0, description='small')
      for k in range(2):
        shared, alone = (
          [json.loads(line) for line in (tmp_path / where / part / 'it' / f'seed_{k}' / 'metrics.jsonl').read_text().splitlines()]
          for where in ('shared', 'alone')
        )
        assert len(shared) == len(alone) == settings.num_steps + 1
        for one, other in zip(shared, alone, strict=True):
          assert one.keys() == other.keys()
          np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-5, atol=1e-6)


class TestWriteCurves:
  def test_curves_of_a_step_are_one_row_shorter(self, tmp_path):
    tables.write_curves(tmp_path / 'run' / 'metrics.jsonl', {'a': np.array([1.0, 2.0]), 'b': np.array([3.0])}, 'it')
    rows = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    assert rows == [{'step': 0, 'a': 1.0, 'b': 3.0}, {'step': 1, 'a': 2.0}]

  def test_what_is_not_finite_is_named_and_not_written(self, tmp_path):
    with pytest.raises(loop.NonFiniteError, match='small, grpo, seed 1: a is nan at step 1; use a smaller learning_rate'):
      tables.write_curves(tmp_path / 'metrics.jsonl', {'a': np.array([1.0, np.nan])}, 'small, grpo, seed 1')
    assert not (tmp_path / 'metrics.jsonl').exists()

  def test_a_comparison_goes_on_without_what_is_not_finite(self, tmp_path, capfd):
    curves = {'a': np.array([1.0, np.nan, np.inf]), 'b': np.array([3.0, 4.0])}
    tables.write_curves(tmp_path / 'metrics.jsonl', curves, 'small, grpo, seed 1', strict=False)
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert rows == [{'step': 0, 'a': 1.0, 'b': 3.0}, {'step': 1, 'b': 4.0}, {'step': 2}]
    captured = capfd.readouterr()
    assert 'small, grpo, seed 1: a is nan at step 1, in 2 steps in all' in captured.out + captured.err


def test_absent_fields_are_those_that_no_task_fills():
  task = SMALL(jax.random.key(0))
  assert not tables.ABSENT & set(task.annotate(np.zeros((1, 4), np.int32)))
