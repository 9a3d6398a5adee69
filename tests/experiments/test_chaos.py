"""`make chaos-tiny` on the shipped study: what a user starts, killed, stopped, without room on the disk; wrong configs.

The trials that need no process of the study have tests of their own in tests/chaos.
"""

import json
import os
import subprocess
import sys

import pytest

from configs import chaos as chaos_config
from entropy_jax.chaos import kills
from entropy_jax.training.writers import read_rows
from entropy_jax.types import UserError
from experiments import chaos
from tests.experiments.conftest import ROOT, environment


def run(workdir, *overrides):
  config = f'--config={ROOT / "configs" / "chaos.py"}:tiny'
  command = [sys.executable, '-m', 'experiments.chaos', config, f'--workdir={workdir}', *overrides]
  variables = environment() | {'JAX_PLATFORMS': 'cpu'}
  return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=900, check=False)


# The victim of :tiny, with fewer steps between the moments at which it is harmed.
VICTIM = chaos_config.get_config('tiny').victim.overrides.replace('countdown.num_steps=40', 'countdown.num_steps=12')
assert 'countdown.num_steps=12' in VICTIM
SMALL = (
  '--config.trials=R1,R2,R4,R5',
  '--config.kills.number=4',
  '--config.signals.number=2',
  '--config.damage.flips=9',
  f'--config.victim.overrides={VICTIM}',
  f'--config.victim.cache_dir={ROOT / ".cache" / "jax-studies"}',
)


@pytest.fixture(scope='module')
def matrix(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('chaos')
  return workdir, run(workdir, *SMALL)


class TestMatrix:
  def test_everything_is_as_asked(self, matrix):
    workdir, done = matrix
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((workdir / 'results.json').read_text())
    assert list(results) == ['R1', 'R2', 'R4', 'R5'] and all(row['passed'] for rows in results.values() for row in rows)
    measured = {row['what']: row['measured'] for rows in results.values() for row in rows}
    assert measured['5 SIGKILLs of the study, 4 of them after training began'] == '5/5 bitwise equal'
    assert measured['2 signals to the study (1 SIGINT, 1 SIGTERM)'] == '2/2 exit codes, 2/2 bitwise equal'

  def test_kills_are_kept_with_their_phase(self, matrix):
    endings = [kills.Ending(**row) for row in read_rows(matrix[0] / 'R1' / kills.ENDINGS)]
    phases = {ending.phase for ending in endings}
    assert phases >= {'step', 'evaluate'} and phases & {'save', 'first save'}
    assert not any(path.name.startswith('run_') and path.is_dir() for path in (matrix[0] / 'R1').iterdir())

  def test_report_holds_the_table_and_the_figures(self, matrix):
    text = (matrix[0] / 'report.html').read_text()
    assert text.count('data:image/png;base64,') == 2 and '✗' not in text and 'Everything came out as asked.' in text

  def test_the_same_command_has_nothing_left_to_do(self, matrix):
    workdir, _ = matrix
    before = (workdir / 'results.json').read_bytes()
    done = run(workdir, *SMALL)
    assert done.returncode == 0 and '4 of 4 trials were done before' in done.stderr
    assert (workdir / 'results.json').read_bytes() == before

  def test_nothing_stays_mounted(self, matrix):
    assert not os.path.ismount(matrix[0] / 'R5' / 'disk')


class TestMistakes:
  @pytest.mark.parametrize(
    ('key', 'value', 'sentence'),
    [
      ('trials', 'R1,R16', "'R16' is none of R1, R2, R3"),
      ('victim.name', 'entropy_mechanisms', 'there is no experiments/entropy_mechanisms.py'),
      ('layouts.methods', 'kl_covv', "Did you mean 'kl_cov'"),
      ('kills.number', 0, 'kills.number=0'),
    ],
  )
  def test_one_sentence_before_anything_runs(self, tmp_path, key, value, sentence):
    config = chaos_config.get_config('tiny')
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as raised:
      chaos.main(config, tmp_path)
    assert sentence in str(raised.value) and '\n' not in str(raised.value) and not list(tmp_path.iterdir())


def test_a_row_that_is_not_as_asked_ends_with_1(tmp_path):
  # A victim that cannot run: the trial raises, the report is written, and the exit code says it.
  done = run(tmp_path, '--config.trials=R4', '--config.victim.overrides=countdown.nothing=1')
  assert done.returncode == 1 and 'R4, damaged checkpoints: it raised' in done.stderr
  assert '✗' in (tmp_path / 'report.html').read_text() and 'countdown.nothing' in (tmp_path / 'results.json').read_text()
