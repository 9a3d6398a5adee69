"""training/loop.py: equal bits whatever interrupts, the order of an iteration, stops on what is not finite, signals."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.training import loop
from entropy_jax.training.files import StorageError
from entropy_jax.training.loop import Interrupted, NonFiniteError, first_bad_leaf
from entropy_jax.training.progress import Clock
from entropy_jax.types import UserError
from tests.training import tiny_run
from tests.training.test_writers import full_disk

ROOT = Path(__file__).resolve().parents[2]
MOMENTS = ['before manifest', 'in first save', 'after row', 'terminated']


class CrashError(Exception):
  """Stands for whatever ends a process."""


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """(bits of the final state, metrics.jsonl) of the run that nothing interrupts."""
  workdir = tmp_path_factory.mktemp('whole')
  return tiny_run.bits(tiny_run.run(workdir)), (workdir / 'metrics.jsonl').read_bytes()


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
  """moment -> (workdir, exit code, stderr) of a process that ended there; all run at once."""
  folder = tmp_path_factory.mktemp('killed')
  environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(jax.config.jax_compilation_cache_dir)}
  processes = {}
  for moment in MOMENTS:
    command = [sys.executable, '-m', 'tests.training.tiny_run', str(folder / moment), moment]
    processes[moment] = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
  ended = {}
  for moment, process in processes.items():
    stderr = process.communicate(timeout=120)[1]
    ended[moment] = folder / moment, process.returncode, stderr
  return ended


def crash_at(step, where):
  """Arguments of a run that crashes at this step, in the body, the data, the evaluation, or as its row is written."""

  def hit(now):
    if now == step:
      raise CrashError

  if where == 'body':
    return {'body': lambda state, batch, key: (hit(int(state['count'])), tiny_run.step(state, batch, key))[1]}
  if where == 'evaluation':
    return {'evaluate': lambda state, key: (hit(int(state['count'])), tiny_run.evaluate(state, key))[1]}
  if where == 'row':
    return {'on_metrics': lambda now, row: hit(now)}
  data = tiny_run.Batches()
  hand_out = data.next
  data.next = lambda: (hit(data.position), hand_out())[1]
  return {'data': data}


class TestResume:
  # 4 and 8 are checkpoints: a crash in the body there comes right after a save, one in the evaluation right before.
  @pytest.mark.parametrize(
    ('step', 'where'),
    [(0, 'body'), (3, 'data'), (4, 'body'), (4, 'evaluation'), (6, 'row'), (8, 'data'), (11, 'body'), (12, 'evaluation'), (12, 'row')],
  )
  def test_equals_the_uninterrupted_run_bit_for_bit(self, whole, tmp_path, step, where):
    with pytest.raises(CrashError):
      tiny_run.run(tmp_path, **crash_at(step, where))
    state = tiny_run.run(tmp_path)
    assert tiny_run.bits(state) == whole[0]
    assert (tmp_path / 'metrics.jsonl').read_bytes() == whole[1]

  def test_twice_and_with_background_checkpoints(self, whole, tmp_path):
    for step in (5, 9):
      with pytest.raises(CrashError):
        tiny_run.run(tmp_path, asynchronous=True, **crash_at(step, 'body'))
    state = tiny_run.run(tmp_path, asynchronous=True)
    assert tiny_run.bits(state) == whole[0]
    assert (tmp_path / 'metrics.jsonl').read_bytes() == whole[1]

  def test_every_row_is_there_once(self, whole):
    rows = [json.loads(line) for line in whole[1].splitlines()]
    assert [row['step'] for row in rows] == list(range(13))
    # evaluate_every = 2, and the final policy has an evaluation but makes no step
    assert [row['step'] for row in rows if 'eval/score' in row] == [0, 2, 4, 6, 8, 10, 12]
    assert 'loss' not in rows[12] and rows[0]['tokens/scored'] == 16 and rows[0]['eval/big'] is True

  def test_best_so_far_goes_through_the_checkpoint(self, whole):
    rows = [r for r in map(json.loads, whole[1].splitlines()) if 'eval/score' in r]
    for i, row in enumerate(rows):
      best = max(rows[: i + 1], key=lambda r: r['eval/score'])
      assert (row['best/eval/score'], row['best/step']) == (best['eval/score'], best['step'])
    # A best that is older than the checkpoints is what a restart could lose (TestResume compares those runs with this one).
    assert rows[-1]['best/step'] < 4

  def test_evaluation_waiting_for_its_row_is_not_made_twice(self, tmp_path):
    with pytest.raises(CrashError):
      tiny_run.run(tmp_path, **crash_at(4, 'body'))
    seen = []

    def evaluate(state, key):
      seen.append(int(state['count']))
      return tiny_run.evaluate(state, key)

    tiny_run.run(tmp_path, evaluate=evaluate)
    assert seen == [6, 8, 10, 12]  # that of step 4 came with the checkpoint

  def test_damaged_newest_checkpoint_still_ends_with_the_same_bits(self, whole, tmp_path, capsys):
    with pytest.raises(CrashError):
      tiny_run.run(tmp_path, **crash_at(10, 'body'))
    (tmp_path / 'checkpoints' / '8' / 'state' / 'manifest.ocdbt').unlink()
    assert tiny_run.bits(tiny_run.run(tmp_path)) == whole[0]
    assert (tmp_path / 'metrics.jsonl').read_bytes() == whole[1]
    assert 'falling back to step 4' in capsys.readouterr().err

  def test_finished_run_returns_at_once(self, whole, tmp_path):
    tiny_run.run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.jsonl')}
    state = tiny_run.run(tmp_path, body=None, evaluate=tiny_run.evaluate)  # a body that cannot be called
    assert tiny_run.bits(state) == whole[0]
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.jsonl')}

  def test_other_seed_is_refused(self, tmp_path):
    tiny_run.run(tmp_path, num_steps=4)
    with pytest.raises(UserError, match='another seed'):
      tiny_run.run(tmp_path, key=jax.random.key(1))

  def test_fewer_steps_than_made_are_refused(self, tmp_path):
    tiny_run.run(tmp_path, num_steps=4)
    with pytest.raises(UserError, match='holds step 4, beyond num_steps=3'):
      tiny_run.run(tmp_path, num_steps=3)

  def test_lost_rows_are_reported(self, tmp_path, capsys):
    with pytest.raises(CrashError):
      tiny_run.run(tmp_path, **crash_at(5, 'body'))
    (tmp_path / 'metrics.jsonl').unlink()
    tiny_run.run(tmp_path)
    assert 'has 0 of 4 rows before step 4' in capsys.readouterr().err


class TestKilled:
  @pytest.mark.parametrize('moment', MOMENTS[:3])
  def test_sigkill_changes_no_bit(self, whole, killed, moment):
    workdir, code, stderr = killed[moment]
    assert code == -signal.SIGKILL, stderr
    assert tiny_run.bits(tiny_run.run(workdir)) == whole[0]
    assert (workdir / 'metrics.jsonl').read_bytes() == whole[1]
    assert not (workdir / 'checkpoints' / 'damaged').exists()

  def test_sigterm_checkpoints_and_exits_with_143(self, whole, killed):
    workdir, code, stderr = killed['terminated']
    assert code == 143, stderr
    # the signal comes inside the step from 6 to 7, which is finished
    assert f'SIGTERM came, stopped at step 7 of 12, checkpointed in {workdir}; exit code 143; the same command' in stderr
    assert (workdir / 'checkpoints' / '7' / 'manifest.json').exists()
    assert tiny_run.bits(tiny_run.run(workdir)) == whole[0]
    assert (workdir / 'metrics.jsonl').read_bytes() == whole[1]


class TestSignals:
  @pytest.mark.parametrize('step', [0, 3, 7, 11])  # 3 and 7: the stop falls on a checkpoint; 11: on the end
  def test_sigint_stops_after_the_step_and_resumes(self, whole, tmp_path, step, capfd):
    def body(state, batch, key):
      if int(state['count']) == step:
        signal.raise_signal(signal.SIGINT)
      return tiny_run.step(state, batch, key)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as caught:
      tiny_run.run(tmp_path, body=body)
    assert caught.value.code == 130 and f'step {step + 1} of 12' in caught.value.message
    assert signal.getsignal(signal.SIGINT) is before
    assert tiny_run.bits(tiny_run.run(tmp_path)) == whole[0]
    assert (tmp_path / 'metrics.jsonl').read_bytes() == whole[1]
    assert 'SIGINT: finishing the step' in capfd.readouterr().err

  def test_a_second_signal_stops_at_once(self, tmp_path):
    def body(state, batch, key):
      signal.raise_signal(signal.SIGINT)
      signal.raise_signal(signal.SIGINT)
      raise AssertionError('the second signal did nothing')

    # A suite started in the background inherits an ignored SIGINT; a user at a terminal has Python's own handler.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
      with pytest.raises(KeyboardInterrupt):
        tiny_run.run(tmp_path, body=body)
    finally:
      signal.signal(signal.SIGINT, before)


class TestBetter:
  def test_only_a_strictly_better_value_replaces_the_best(self):
    best = loop._better(None, ('a', 'min'), 0, {'a': 2.0})
    assert best == {'metric': 'a', 'value': 2.0, 'step': 0}
    assert loop._better(best, ('a', 'min'), 1, {'a': 2.0}) == best and loop._better(best, ('a', 'max'), 1, {'a': 1.0}) == best
    assert loop._better(best, ('a', 'min'), 1, {'a': 1.0})['step'] == 1 and loop._better(best, ('a', 'max'), 1, {'a': 3.0})['step'] == 1
    assert loop._better(None, None, 1, {'a': 1.0}) is None


class TestNonFinite:
  def poisoned(self, at, name, value):
    def body(state, batch, key):
      now = int(state['count'])
      state, metrics = tiny_run.step(state, batch, key)
      if now == at:
        metrics[name] = jnp.asarray(value, jnp.float32)
        state['params']['w'] = state['params']['w'] * value
      return state, metrics

    return body

  @pytest.mark.parametrize(('at', 'good'), [(2, 'none yet'), (7, 'step 4 in '), (8, 'step 8 in '), (11, 'step 8 in ')])
  def test_stops_and_saves_nothing_of_it(self, tmp_path, at, good):
    with pytest.raises(NonFiniteError) as caught:
      tiny_run.run(tmp_path, body=self.poisoned(at, 'loss', np.nan))
    text = str(caught.value)
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert text.startswith(f'step {at}: loss is nan') and f'the last good checkpoint is {good}' in text and '\n' not in text
    assert f'of step {at - 1}, are loss {rows[-1]["loss"]:.6g}' in text
    assert [row['step'] for row in rows] == list(range(at))
    steps = sorted(int(p.name) for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit())
    assert steps == [s for s in (4, 8) if s <= at]

  def test_goes_on_from_the_last_good_checkpoint_once_mended(self, whole, tmp_path):
    with pytest.raises(NonFiniteError, match='gradient_norm is inf'):
      tiny_run.run(tmp_path, body=self.poisoned(9, 'gradient_norm', np.inf))
    assert tiny_run.bits(tiny_run.run(tmp_path)) == whole[0]
    assert (tmp_path / 'metrics.jsonl').read_bytes() == whole[1]

  def test_finite_metrics_with_a_bad_state_are_not_checkpointed(self, tmp_path):
    def body(state, batch, key):
      state, metrics = tiny_run.step(state, batch, key)
      state['params']['w'] = jnp.where(state['count'] == 4, jnp.inf, state['params']['w'])
      return state, metrics

    with pytest.raises(NonFiniteError, match=r"state\['params'\]\['w'\] is not finite"):
      tiny_run.run(tmp_path, body=body, evaluate=None, best=None)
    assert not [p for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit()]

  def test_evaluation_is_watched_too(self, tmp_path):
    with pytest.raises(NonFiniteError, match='step 0: eval/score is nan'):
      tiny_run.run(tmp_path, evaluate=lambda state, key: {'eval/score': jnp.nan})

  def test_first_bad_leaf(self):
    good = {'params': {'w': jnp.ones(2)}, 'bound': jnp.inf, 'n': 3, 'k': jax.random.key(0)}
    assert first_bad_leaf(good) is None
    assert first_bad_leaf({**good, 'params': {'w': jnp.array([1.0, -jnp.inf])}}) == "['params']['w']"
    assert first_bad_leaf({**good, 'bound': jnp.nan}) == "['bound']"
    assert first_bad_leaf({'n': 3}) is None


class TestOrder:
  def test_evaluate_save_next_step_write_previous(self, tmp_path, monkeypatch):
    seen = []
    data = tiny_run.Batches()
    hand_out = data.next
    data.next = lambda: (seen.append('next'), hand_out())[1]
    save = loop.Checkpoints.save
    monkeypatch.setattr(loop.Checkpoints, 'save', lambda self, step, *rest: (seen.append(f'save {step}'), save(self, step, *rest))[1])

    def body(state, batch, key):
      seen.append(f'step {int(state["count"])}')
      return tiny_run.step(state, batch, key)

    def evaluate(state, key):
      seen.append(f'evaluate {int(state["count"])}')
      return tiny_run.evaluate(state, key)

    tiny_run.run(
      tmp_path, num_steps=3, data=data, body=body, evaluate=evaluate, evaluate_every=2, checkpoint_every=2,
      on_metrics=lambda step, row: seen.append(f'write {step}'),
    )  # fmt: skip
    # Rows come one step late, but before an evaluation or a save; the batch of a step is drawn after the save before it.
    assert seen == [
      'evaluate 0', 'next', 'step 0',
      'next', 'step 1', 'write 0',
      'write 1', 'evaluate 2', 'save 2', 'next', 'step 2',
      'write 2', 'evaluate 3', 'write 3', 'save 3',
    ]  # fmt: skip

  def test_key_of_a_step_is_folded_in(self, tmp_path):
    seen = []

    def body(state, batch, key):
      seen.append(jax.random.key_data(key).tolist())
      return state, {}

    tiny_run.run(tmp_path, num_steps=3, body=body, evaluate=None, best=None)
    root = jax.random.key(0)
    assert seen == [jax.random.key_data(jax.random.fold_in(root, k)).tolist() for k in range(3)]

  def test_log_every_leaves_rows_out_and_still_checks_them(self, tmp_path):
    tiny_run.run(tmp_path, num_steps=7, log_every=3, evaluate=None, best=None)
    assert [json.loads(line)['step'] for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()] == [0, 3, 6]
    poisoned = TestNonFinite().poisoned(8, 'loss', np.nan)
    with pytest.raises(NonFiniteError, match='step 8'):
      tiny_run.run(tmp_path, num_steps=12, log_every=3, evaluate=None, best=None, body=poisoned)


class TestTimings:
  def timings(self, workdir):
    return [json.loads(line) for line in (workdir / 'timings.jsonl').read_text().splitlines()]

  def test_are_apart_and_complete(self, tmp_path):
    begin = time.monotonic()
    tiny_run.run(tmp_path, num_steps=4, num_devices=4)
    passed = time.monotonic() - begin
    rows = self.timings(tmp_path)
    assert [row['step'] for row in rows] == [0, 1, 2, 3, 4]
    for row in rows[:4]:
      parts = ('data', 'step', 'update', 'evaluate', 'checkpoint')
      assert {f'seconds/{name}' for name in parts[:3]} <= row.keys()
      assert sum(row.get(f'seconds/{name}', 0) for name in parts) <= row['seconds'] + 1e-5
      # tiny_run counts 16 tokens and 4 sequences a step
      seconds = row['seconds']
      assert row['tokens_per_second/scored'] == row['tokens_per_second'] == pytest.approx(16 / seconds, rel=1e-3, abs=1e-4)
      assert row['examples_per_second'] == pytest.approx(4 / seconds, rel=1e-3, abs=1e-4)
      assert row['examples_per_second_per_device'] == pytest.approx(1 / seconds, rel=1e-3, abs=1e-4)
    assert 'seconds/evaluate' in rows[2] and 'seconds/evaluate' not in rows[3] and 'seconds/checkpoint' in rows[4]
    assert sum(row['seconds'] for row in rows) <= passed
    assert 'seconds' not in (tmp_path / 'metrics.jsonl').read_text()

  def test_a_row_has_the_seconds_of_its_own_step(self, tmp_path):
    clock = Clock()

    def body(state, batch, key):
      with clock.measure('generate'):
        time.sleep(0.03 if int(state['count']) % 2 else 0.01)
      return tiny_run.step(state, batch, key)

    # Evaluations make the loop wait for the step before, which must not move seconds from one row to another.
    tiny_run.run(tmp_path, num_steps=9, evaluate_every=3, body=body, clock=clock)
    found = [row['seconds/generate'] for row in self.timings(tmp_path)[:9]]
    assert all((0.03 if step % 2 else 0.01) <= seconds < (9 if step % 2 else 0.03) for step, seconds in enumerate(found))

  def test_no_second_and_no_token_is_left_out_between_rows(self, tmp_path):
    def body(state, batch, key):
      time.sleep(0.01)
      state, metrics = tiny_run.step(state, batch, key)
      return state, metrics | {'tokens/prompt': jnp.float32(8), 'tokens/generated': jnp.float32(100)}

    tiny_run.run(tmp_path, num_steps=10, log_every=4, evaluate=None, best=None, body=body, checkpoint_every=3)
    rows = self.timings(tmp_path)
    assert [row['step'] for row in rows] == [0, 4, 8, 10]
    for row, steps in zip(rows, (1, 4, 4)):
      assert row['seconds/step'] >= 0.01 * steps
      assert row['tokens_per_second'] == row['tokens_per_second/generated'] == pytest.approx(100 * steps / row['seconds'], rel=1e-3)
      assert row['tokens_per_second/prompt'] == pytest.approx(8 * steps / row['seconds'], rel=1e-3)
    assert 'seconds/checkpoint' in rows[1]  # that of step 3

  def test_compiling_is_marked(self, tmp_path):
    tiny_run.run(tmp_path, num_steps=4, body=jax.jit(lambda state, batch, key: tiny_run.step(state, batch, key)))
    rows = self.timings(tmp_path)
    assert rows[0]['seconds'] >= rows[0]['seconds/compile'] > 0 and 'seconds/compile' not in rows[2]

  def test_bodies_without_counts_have_no_rates(self, tmp_path):
    tiny_run.run(tmp_path, num_steps=1, body=lambda state, batch, key: (state, {}), evaluate=None, best=None)
    assert not any('per_second' in name for row in self.timings(tmp_path) for name in row)


# Orbax abandons the event loop of a write that failed while tensorstore's threads still report to it.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
class TestStorage:
  def test_a_disk_that_fills_up_stops_the_run_which_goes_on_later(self, tmp_path):
    def body(state, batch, key):  # rows so long that metrics.jsonl is the largest file
      state, metrics = tiny_run.step(state, batch, key)
      return state, metrics | {f'room/metric_{i}': np.float32(i) for i in range(200)}

    state = tiny_run.run(tmp_path / 'whole', body=body)
    lines = (tmp_path / 'whole' / 'metrics.jsonl').read_bytes().splitlines(keepends=True)
    with full_disk(sum(map(len, lines[:6])) + 1000), pytest.raises(StorageError, match='a row could not be written'):
      tiny_run.run(tmp_path / 'full', body=body)
    assert (tmp_path / 'full' / 'metrics.jsonl').read_bytes() == b''.join(lines[:6])
    assert tiny_run.bits(tiny_run.run(tmp_path / 'full', body=body)) == tiny_run.bits(state)
    assert (tmp_path / 'full' / 'metrics.jsonl').read_bytes() == b''.join(lines)

  @pytest.mark.parametrize('asynchronous', [False, True])
  def test_a_checkpoint_that_does_not_fit_leaves_the_older_one(self, whole, tmp_path, asynchronous):
    def body(state, batch, key):
      if int(state['count']) == 7:
        while not (tmp_path / 'checkpoints' / '4' / 'manifest.json').exists():
          time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / 'metrics.jsonl').stat().st_size + 2, resource.RLIM_INFINITY))
        (tmp_path / 'timings.jsonl').write_bytes(b'')
      return tiny_run.step(state, batch, key)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
      with pytest.raises(StorageError):
        tiny_run.run(tmp_path, body=body, asynchronous=asynchronous)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['4']
    assert tiny_run.bits(tiny_run.run(tmp_path)) == whole[0]
    assert (tmp_path / 'metrics.jsonl').read_bytes() == whole[1]

  def test_the_reason_is_not_hidden_by_what_fails_while_stopping(self, tmp_path, monkeypatch, capfd):
    def broken(self):
      raise StorageError(28, 'rows could not be brought to the disk', 'metrics.jsonl')

    with monkeypatch.context() as patch:
      patch.setattr(loop.MetricWriter, 'close', broken)
      with pytest.raises(CrashError):
        tiny_run.run(tmp_path, **crash_at(2, 'body'))
    assert 'while stopping: rows could not be brought to the disk' in capfd.readouterr().err

  def test_a_lock_taken_by_another_run_stops_this_one_before_it_saves(self, tmp_path, monkeypatch):
    def taken(self):
      raise UserError('workdir: another process is training')

    monkeypatch.setattr(loop.Lock, 'hold', taken)
    with pytest.raises(UserError, match='another process'):
      tiny_run.run(tmp_path)
    assert not [p for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit()]


class TestArguments:
  @pytest.mark.parametrize(
    ('changes', 'text'),
    [
      ({'num_steps': 0}, 'num_steps=0'),
      ({'checkpoint_every': 0}, 'checkpoint_every=0'),
      ({'log_every': 1.5}, 'log_every=1.5'),
      ({'evaluate_every': -1}, 'evaluate_every=-1'),
      ({'best': ('eval/score', 'up')}, "'max' or 'min'"),
      ({'best': ('eval/scor', 'max')}, "Did you mean 'eval/score'"),
    ],
  )
  def test_refused(self, tmp_path, changes, text):
    with pytest.raises(UserError, match=text):
      tiny_run.run(tmp_path, **changes)

  def test_metrics_must_be_scalars_with_one_owner(self, tmp_path):
    with pytest.raises(ValueError, match="'a' has shape"):
      tiny_run.run(tmp_path / 'a', body=lambda s, b, k: (s, {'a': jnp.ones(2)}))
    with pytest.raises(ValueError, match="'eval/score' comes from the step and from the evaluation"):
      tiny_run.run(tmp_path / 'b', body=lambda s, b, k: (s, {'eval/score': jnp.ones(())}))

  def test_transfer_guard_reaches_the_body(self, tmp_path):
    with pytest.raises(Exception, match='Disallowed host-to-device transfer'):
      tiny_run.run(tmp_path, transfer_guard='disallow')  # the batch is numpy
