"""chaos/table.py: what is done is kept, what failed is tried again, and nothing that raises stops the rest."""

import json

import pytest

from entropy_jax.chaos.table import RESULTS, Row, Trial, failures, read_results, run_trials
from entropy_jax.types import UserError


def row(name, passed=True, **changes):
  return Row(name, 'w', 'a', 'm', passed, **changes)


class TestRunTrials:
  def test_done_trials_are_not_run_again_and_failed_ones_are(self, tmp_path, capsys):
    calls = []
    works = [False]

    def one(folder):
      calls.append('one')
      return [row('one'), row('one', seconds=3.0)]

    def two(folder):
      calls.append('two')
      assert not folder.exists()
      folder.mkdir()
      return [row('two'), row('two', passed=works[0])]

    trials = [Trial('one', 'first', one), Trial('two', 'second', two)]
    now = iter(range(100)).__next__  # each trial takes one tick
    results = run_trials(trials, tmp_path, now=now)
    assert [r.seconds for r in results['one']] == [1, 3.0] and [r.id for r in failures(results)] == ['two']
    assert json.loads((tmp_path / RESULTS).read_text())['two'][1]['passed'] is False
    works[0] = True
    results = run_trials(trials, tmp_path)
    assert calls == ['one', 'two', 'two'] and failures(results) == [] and (tmp_path / 'two.failed').is_dir()
    assert read_results(tmp_path) == results
    assert '1 of 2 trials were done before' in capsys.readouterr().err

  def test_one_that_raises_is_a_row(self, tmp_path):
    def broken(folder):
      raise ValueError('no such\n  thing')

    trials = [Trial('a', 'breaks', broken), Trial('b', 'works', lambda folder: [row('b')])]
    results = run_trials(trials, tmp_path)
    (failed,) = failures(results)
    assert failed.id == 'a' and failed.detail == 'ValueError: no such thing' and results['b'][0].passed

  def test_an_interruption_is_no_finding(self, tmp_path):
    def stopped(folder):
      raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
      run_trials([Trial('a', 'works', lambda folder: [row('a')]), Trial('b', 'stops', stopped)], tmp_path)
    assert list(read_results(tmp_path)) == ['a']


def test_damaged_results_are_told(tmp_path):
  (tmp_path / RESULTS).write_text('{"R1": [{"id"')
  with pytest.raises(UserError, match=r'results.json is damaged; delete it'):
    read_results(tmp_path)
