"""Reading run folders: what a run logs comes back as arrays, and what is damaged is said in one sentence."""

import json

import numpy as np
import pytest

from entropy_jax.analysis import runs
from entropy_jax.types import UserError


def write(directory, *lines):
  directory.mkdir(parents=True, exist_ok=True)
  texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
  (directory / 'metrics.jsonl').write_text('\n'.join(texts))
  return directory


class TestLoadMetrics:
  def test_keys_become_columns_and_absent_or_null_is_nan(self, tmp_path):
    write(tmp_path, {'step': 0, 'a/x': 1.5, 'b/y': 2}, {'step': 2, 'a/x': None}, {'step': 4, 'b/y': -1})
    found = runs.load_metrics(tmp_path)
    assert set(found) == {'step', 'a/x', 'b/y'}
    assert found['step'].dtype == np.int64 and found['step'].tolist() == [0, 2, 4]
    np.testing.assert_array_equal(found['a/x'], [1.5, np.nan, np.nan])
    np.testing.assert_array_equal(found['b/y'], [2.0, np.nan, -1.0])

  def test_rows_are_sorted_by_step(self, tmp_path):
    write(tmp_path, {'step': 3, 'a/x': 30.0}, {'step': 1, 'a/x': 10.0})
    found = runs.load_metrics(tmp_path)
    assert found['step'].tolist() == [1, 3] and found['a/x'].tolist() == [10.0, 30.0]

  def test_non_finite_numbers_and_booleans_are_kept(self, tmp_path):
    write(tmp_path, '{"step": 0, "a/x": NaN, "a/y": -Infinity, "a/z": true}')
    found = runs.load_metrics(tmp_path)
    assert np.isnan(found['a/x'][0]) and found['a/y'][0] == -np.inf and found['a/z'][0] == 1.0

  @pytest.mark.parametrize('torn', ['{"step": 1', '{"step": 1, "a/x": 2.', '{"st', '{'])
  def test_torn_last_line_is_left_out_with_a_note(self, tmp_path, torn, caplog):
    write(tmp_path, {'step': 0, 'a/x': 1.0}, torn)
    with caplog.at_level('WARNING'):
      found = runs.load_metrics(tmp_path)
    assert found['step'].tolist() == [0]
    assert 'line 2 is torn' in caplog.text

  @pytest.mark.parametrize(
    'lines, says',
    [
      (['{"step": 0', '{"step": 1}'], 'line 1 is no JSON object'),
      (['{"step": 0}', '{"a/x": 1}'], 'line 2 holds no integer "step"'),
      (['{"step": true}'], 'no integer "step"'),
      (['[1, 2]', '{"step": 1}'], 'line 1 holds no integer "step"'),
      (['{"step": 5}', '{"step": 5}'], 'step 5 twice'),
      (['{"step": 5, "a/x": "high"}'], "a/x = 'high' at step 5"),
      (['{"step": 5, "a/x": [1, 2]}'], 'a/x = .1, 2. at step 5'),
      ([''], 'holds no logged step'),
      (['{"st'], 'holds no logged step'),
    ],
  )
  def test_damage_is_an_error(self, tmp_path, lines, says):
    write(tmp_path, *lines)
    with pytest.raises(UserError, match=says):
      runs.load_metrics(tmp_path)

  def test_folder_without_a_run(self, tmp_path):
    with pytest.raises(UserError, match=r'is no run folder, it holds no metrics\.jsonl'):
      runs.load_metrics(tmp_path)


class TestLoadConfigAndEnvironment:
  def test_round_trip(self, tmp_path):
    (tmp_path / 'config.json').write_text('{"seed": 3}')
    (tmp_path / 'environment.json').write_text('{"git_commit": "abc"}')
    assert runs.load_config(tmp_path) == {'seed': 3}
    assert runs.load_environment(tmp_path) == {'git_commit': 'abc'}

  @pytest.mark.parametrize('content, says', [(None, 'does not exist'), ('{"a"', 'is no JSON'), ('[]', 'holds a list')])
  def test_damage_is_an_error(self, tmp_path, content, says):
    if content is not None:
      (tmp_path / 'config.json').write_text(content)
    with pytest.raises(UserError, match=says):
      runs.load_config(tmp_path)


class TestFindRunsAndLoadStudy:
  def test_nested_runs_by_relative_path(self, tmp_path):
    write(tmp_path / 'kl_cov' / 'seed_1', {'step': 0, 'a/x': 1.0})
    write(tmp_path / 'grpo' / 'seed_0', {'step': 0, 'a/x': 2.0})
    write(tmp_path, {'step': 0, 'a/x': 3.0})
    (tmp_path / 'figures').mkdir()
    assert runs.find_runs(tmp_path) == [tmp_path, tmp_path / 'grpo' / 'seed_0', tmp_path / 'kl_cov' / 'seed_1']
    study = runs.load_study(str(tmp_path))
    assert {name: run['a/x'][0] for name, run in study.items()} == {'.': 3.0, 'grpo/seed_0': 2.0, 'kl_cov/seed_1': 1.0}

  def test_of_a_study_that_goes_on(self, tmp_path, vanishes):
    write(tmp_path / 'grpo', {'step': 0, 'a/x': 2.0})
    (tmp_path / 'grpo' / 'checkpoints' / '3.orbax-checkpoint-tmp').mkdir(parents=True)
    vanishes.add(str(tmp_path / 'grpo' / 'checkpoints' / '3.orbax-checkpoint-tmp'))
    assert runs.find_runs(tmp_path) == [tmp_path / 'grpo']

  def test_no_run_is_an_error(self, tmp_path):
    with pytest.raises(UserError, match='holds no run'):
      runs.find_runs(tmp_path)
    with pytest.raises(UserError, match='is no folder'):
      runs.load_study(tmp_path / 'absent')


class TestStackRuns:
  def test_common_steps_and_logged_rows_only(self):
    nan = np.nan
    a = {'step': np.array([0, 1, 2, 3]), 'a/x': np.array([1.0, nan, 3.0, 4.0])}
    b = {'step': np.array([0, 1, 2]), 'a/x': np.array([5.0, nan, nan])}
    # Step 3 is only in a; step 1 was logged by neither; step 2 by a alone, and stays.
    step_N, value_RxN = runs.stack_runs([a, b], 'a/x')
    assert step_N.tolist() == [0, 2]
    np.testing.assert_array_equal(value_RxN, [[1.0, 3.0], [5.0, nan]])

  def test_no_common_step_gives_an_empty_curve(self):
    a, b = ({'step': np.array([i]), 'a/x': np.array([1.0])} for i in (0, 1))
    step_N, value_RxN = runs.stack_runs([a, b], 'a/x')
    assert step_N.shape == (0,) and value_RxN.shape == (2, 0)

  def test_unknown_metric_names_the_nearest(self):
    run = {'step': np.array([0]), 'policy/entropy': np.array([1.0])}
    with pytest.raises(UserError, match=r"no metric policy/entrpy.*Did you mean 'policy/entropy'"):
      runs.stack_runs([run], 'policy/entrpy')
    with pytest.raises(UserError, match='It holds policy/entropy, step'):
      runs.stack_runs([run], 'zzz')
    with pytest.raises(UserError, match='no run was given'):
      runs.stack_runs([], 'a/x')


class TestOrdered:
  def test_known_names_first(self):
    assert runs.ordered({'b', 'whole', 'a', 'fused'}, ('whole', 'fused', 'absent')) == ['whole', 'fused', 'a', 'b']
