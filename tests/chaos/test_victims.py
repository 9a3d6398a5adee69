"""chaos/victims.py: what a process does is seen from outside, and nothing of it outlives its context."""

import os
import signal
import struct

import pytest

from entropy_jax.chaos import victims
from entropy_jax.training.checkpoints import MANIFEST


class TestVictim:
  def test_is_watched_and_killed(self, victim, tmp_path):
    with victim.started(tmp_path / 'run', tmp_path / 'notes') as running:
      assert running.phase() == victims.START and running.steps() == 0
      assert running.until_training(120.0), running.said()
      assert running.steps() >= 1
      for phase in (victims.SAVE, victims.EVALUATE, victims.STEP):
        assert running.until((phase,), timeout=20.0), phase
      running.send(signal.SIGKILL)
      assert running.wait() == 137
      assert running.phase() in (*victims.TRAINING, victims.BETWEEN)  # the note outlives the process
    assert victims.newest_save(tmp_path / 'run') is not None

  def test_leaving_the_context_ends_the_process(self, victim, tmp_path):
    with victim.started(tmp_path / 'run', tmp_path / 'notes') as running:
      number = running._process.pid
    with pytest.raises(ProcessLookupError):
      os.kill(number, 0)

  def test_a_matrix_that_stops_takes_its_processes_along(self, victim, tmp_path):
    with pytest.raises(victims.StoppedError), victim.started(tmp_path / 'run', tmp_path / 'notes') as running:
      victim.stop.set()
      try:
        running.wait()
      finally:
        victim.stop.clear()
    assert running._process.poll() is not None


class TestPhase:
  @pytest.mark.parametrize(
    ('name', 'steps', 'expected'),
    [
      ('', 0, victims.START),
      ('step', 0, victims.START),  # the first step compiles
      ('checkpoint', 0, victims.SAVE),
      ('', 4, victims.BETWEEN),
      ('data', 4, victims.STEP),
      ('generate', 4, victims.STEP),
      ('evaluate', 4, victims.EVALUATE),
      ('checkpoint', 4, victims.SAVE),
    ],
  )
  def test_of_a_note(self, tmp_path, name, steps, expected):
    running = victims.Running(None, tmp_path / 'said', tmp_path / 'doing', victims.threading.Event())
    assert running.phase() == victims.START  # no note yet
    (tmp_path / 'doing').write_bytes(name.encode().ljust(16) + struct.pack('<I', steps))
    assert (running.phase(), running.steps()) == (expected, steps)


def test_first_save_is_told_from_later_ones(tmp_path):
  folder = tmp_path / 'a' / 'checkpoints'
  (folder / '4').mkdir(parents=True)
  assert not victims.is_first_save(tmp_path)
  (folder / 'saving-4').touch()
  assert victims.is_first_save(tmp_path)
  (folder / '4' / MANIFEST).touch()  # of the step that is being saved: written, not yet declared
  assert victims.is_first_save(tmp_path)
  (folder / '2').mkdir()
  (folder / '2' / MANIFEST).touch()
  assert not victims.is_first_save(tmp_path)


def test_checkpoints_of_a_run_that_goes_on(tmp_path, vanishes):
  folder = tmp_path / 'a' / 'checkpoints'
  for step in ('4', '6', '8', '8.orbax-checkpoint-tmp'):
    (folder / step / 'state').mkdir(parents=True)
  for step in ('4', '6'):
    (folder / step / MANIFEST).touch()
    os.utime(folder / step / MANIFEST, (int(step), int(step)))
  (tmp_path / 'b').mkdir()
  vanishes.update(map(str, (tmp_path / 'b', folder / '8', folder / '8' / 'state', folder / '8.orbax-checkpoint-tmp')))
  assert victims.complete_checkpoints(tmp_path) == [folder / '4', folder / '6'] and victims.newest_save(tmp_path) == 6.0
