"""training/signals.py: one signal asks, all processes answer alike, the exit code tells. Runs that are stopped are in test_loop.py."""

import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from entropy_jax.training.signals import Interrupted, Signals, exit_code


class TestExitCode:
  def test_is_what_a_shell_reports(self):
    ended = subprocess.run(['sh', '-c', 'sh -c "kill -TERM \\$\\$"; echo $?'], capture_output=True, text=True, check=True)
    assert int(ended.stdout.strip()) == exit_code(signal.SIGTERM) == 143
    assert exit_code(signal.SIGINT) == 130

  def test_uncaught_it_ends_the_process_with_that_code(self):
    program = 'from entropy_jax.training.signals import Interrupted; raise Interrupted("stopped", 15)'
    assert subprocess.run([sys.executable, '-c', program], check=False).returncode == 143

  def test_it_goes_through_a_handler_of_exceptions(self):
    with pytest.raises(SystemExit) as caught:
      try:
        raise Interrupted('stopped at step 3', signal.SIGINT)
      except Exception:
        raise AssertionError('taken for a failure') from None
    assert caught.value.code == 130 and caught.value.message == 'stopped at step 3'


class TestSignals:
  @pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
  def test_notes_and_puts_the_handlers_back(self, number, capfd):
    before = signal.getsignal(number)
    with Signals() as signals:
      assert signals.stop() is None
      signal.raise_signal(number)
      assert signals.stop() == number
    assert signal.getsignal(number) is before
    assert f'{number.name}: finishing the step' in capfd.readouterr().err

  def test_another_thread_has_none(self):
    seen = []

    def enter():
      with Signals() as signals:
        seen.append(signals.stop())

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [None] and signal.getsignal(signal.SIGTERM) is before

  @pytest.mark.parametrize(('others', 'stop'), [([0, 0], None), ([0, 15], 15), ([2, 15], 15), ([2, 0], 2)])
  def test_all_processes_get_the_same_answer(self, monkeypatch, others, stop):
    monkeypatch.setattr(jax, 'process_count', lambda: 3)
    monkeypatch.setattr(multihost_utils, 'process_allgather', lambda mine: np.stack([mine, *map(np.int32, others)]))
    assert Signals().stop() == stop
