"""chaos/kills.py: where the moments lie, that killed runs are the undisturbed one, and that one which is not is found out."""

import collections
import json
import signal

import pytest

from entropy_jax.chaos import kills, victims
from tests.chaos.conftest import make_victim


def nothing(workdir):
  """The tiny victim makes its own folder."""


class TestPlan:
  def test_hundred_kills_are_spread_as_documented(self):
    runs = kills.Plan(100, starts=10, window=1.5).moments()
    moments = [moment for run in runs for moment in run]
    aims = collections.Counter(moment.aim for moment in moments)
    assert aims == {'any': 60, 'step': 10, 'save': 10, 'evaluate': 10, 'first save': 10, 'start': 10}
    assert len(runs) == 14 and {len(run) for run in runs} <= {7, 8}  # 110 at 8 a run
    assert all(moment.aim != 'first save' for run in runs for moment in run[1:])
    uniform = [moment.delay for moment in moments if moment.aim == 'any']
    assert 0.0 <= min(uniform) < 0.2 and 1.3 < max(uniform) <= 1.5

  def test_signals_take_turns_and_the_seed_decides(self):
    plan = kills.Plan(20, (signal.SIGTERM, signal.SIGINT), per_run=5)
    moments = [moment for run in plan.moments() for moment in run]
    assert collections.Counter(moment.signal for moment in moments) == {signal.SIGTERM: 10, signal.SIGINT: 10}
    assert plan.moments() == plan.moments() != kills.Plan(20, (signal.SIGTERM, signal.SIGINT), per_run=5, seed=1).moments()

  def test_few_are_only_uniform(self):
    assert [[moment.aim for moment in run] for run in kills.Plan(2).moments()] == [['any', 'any']]


class TestCampaign:
  def test_killed_runs_end_with_the_same_bits_and_a_stopped_campaign_goes_on(self, victim, whole, tmp_path):
    plan = kills.Plan(4, starts=1, window=0.5, start_window=1.0)
    first = kills.Campaign(victim, plan, tmp_path, whole, nothing)
    moments = first._moments[0]
    ending = first._end(0, moments[0], tmp_path / 'run_0')  # what a matrix that was stopped here has in its journal
    first._write(kills.ENDINGS, ending._asdict())
    endings, runs = kills.Campaign(victim, plan, tmp_path, whole, nothing).run('kills')
    assert len(endings) >= 5 and endings[0] == ending and [e.aim for e in endings[:5]] == [m.aim for m in moments]
    assert all(e.code == 137 for e in endings) and sum(row['endings'] for row in runs) == 5
    assert [row['differences'] for row in runs] == [[]] * len(runs) and runs[-1]['last']
    # The victim's first save takes a few hundredths of a second: a busy machine may hit the next one.
    assert endings[0].phase in (victims.FIRST_SAVE, victims.SAVE) and not (tmp_path / 'run_0').exists()
    rows = kills.kill_rows(endings, runs, 5)
    assert rows[0].passed and rows[0].measured == '5/5 bitwise equal' and rows[1].passed
    again, _ = kills.Campaign(victim, plan, tmp_path, whole, nothing).run('kills')
    assert again == endings  # done is done

  def test_a_run_that_forgets_is_found_out(self, whole, tmp_path):
    endings, runs = kills.Campaign(make_victim('forgetful'), kills.Plan(1, window=0.3), tmp_path, whole, nothing).run('kills')
    assert any('metrics.jsonl differs' in name for name in runs[-1]['differences'])
    assert (tmp_path / 'run_0').exists()  # kept, for who wants to know why
    rows = kills.kill_rows(endings, runs, 1)
    assert not rows[0].passed and rows[0].measured == '0/1 bitwise equal' and 'Run 0:' in rows[0].detail and not rows[1].passed

  def test_signals_save_within_a_step(self, victim, whole, tmp_path):
    plan = kills.Plan(2, (signal.SIGTERM, signal.SIGINT), window=0.4)
    endings, runs = kills.Campaign(victim, plan, tmp_path, whole, nothing).run('signals')
    assert [e.code for e in endings] == [143, 130]
    rows = kills.signal_rows(endings, runs, 2)
    assert all(row.passed for row in rows), rows
    late = kills.signal_rows([e._replace(steps_after=2) for e in endings], runs, 2)
    assert late[0].passed and not late[1].passed


def ending(**changes):
  usual = {'run': 0, 'aim': 'any', 'phase': 'step', 'signal': 9, 'code': 137, 'training_seconds': 1.0, 'lost_seconds': 0.5}
  return kills.Ending(**usual | {'start_seconds': 4.0, 'saved_seconds': 0.0, 'exit_seconds': 0.1, 'steps_after': 0} | changes)


class TestKillRows:
  RUN = {'run': 0, 'endings': 4, 'differences': [], 'last': True}

  def test_a_phase_that_was_not_hit_is_told(self):
    endings = [ending(phase=phase) for phase in ('step', 'step', 'evaluate', 'evaluate')]
    rows = kills.kill_rows(endings, [self.RUN], 4)
    assert rows[0].passed and rows[1].passed and not rows[2].passed and rows[2].detail == 'Not hit: save.'
    assert 'median 0.50 s' in rows[0].detail

  def test_a_first_save_is_a_save(self):
    endings = [ending(phase=phase) for phase in ('step', 'first save', 'evaluate', 'evaluate')]
    assert all(row.passed for row in kills.kill_rows(endings, [self.RUN], 4))

  def test_too_few_kills_do_not_pass(self):
    assert not kills.kill_rows([ending()], [self.RUN | {'endings': 1}], 4)[0].passed


def test_an_undisturbed_run_that_fails_says_so(victim, tmp_path):
  broken = kills.dataclasses.replace(victim, command=lambda workdir: ['false'])
  with pytest.raises(RuntimeError, match='undisturbed run ended with 1'):
    kills.undisturbed(broken, tmp_path, nothing)
  assert json.loads(json.dumps(ending()._asdict()))['aim'] == 'any'
