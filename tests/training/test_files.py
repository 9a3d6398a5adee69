"""training/files.py: nothing half changed, a disk's failures in one sentence, one run a workdir."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from entropy_jax.training.files import Lock, StorageError, closing, storage_error, told_as, write_atomically
from entropy_jax.types import UserError
from tests.training import tiny_run

ROOT = Path(__file__).resolve().parents[2]
HOLD = 'import fcntl, sys; f = open(sys.argv[1], "w"); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()'


class TestLateReports:
  """What other threads still say of a disk that failed is dropped after the sentence; everything else is shown as ever."""

  PROGRAM = """
import asyncio, errno, gc, sys, threading
from entropy_jax.training import files

full = ValueError("RESOURCE_EXHAUSTED: Error writing x [os_error_code='28']")

async def fails(error):
  raise error

async def forgotten(error):
  task = asyncio.ensure_future(fails(error))
  await asyncio.sleep(0)

def raises(error):
  raise error

files.hush_late_reports()
files.hush_late_reports()
for error in (full, RuntimeError('Event loop is closed'), KeyError('a mistake')):
  asyncio.run(forgotten(error))
  gc.collect()
  thread = threading.Thread(target=raises, args=(error,))
  thread.start()
  thread.join()
raise files.StorageError(errno.ENOSPC, 'nobody caught this', 'here')
"""

  def test_of_the_same_failure_are_dropped(self):
    done = subprocess.run([sys.executable, '-c', self.PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and 'RESOURCE_EXHAUSTED' not in done.stderr and 'Event loop' not in done.stderr
    assert done.stderr.count("KeyError: 'a mistake'") == 2 and 'nobody caught this' in done.stderr.splitlines()[-1]


class TestStorageError:
  def test_is_one_sentence_with_place_reason_and_remedy(self):
    error = StorageError(errno.ENOSPC, 'the checkpoint could not be saved', '/runs/a')
    assert str(error).startswith('the checkpoint could not be saved (/runs/a: No space left on device); make room, or give a --workdir')
    assert error.errno == errno.ENOSPC and error.filename == '/runs/a'

  def test_found_in_causes_and_in_what_tensorstore_says(self):
    told = ValueError("OUT_OF_RANGE: Failed to write 9 bytes to file 7: File too large [os_error_code='27']")
    assert storage_error(told, 'x', 'y').errno == errno.EFBIG
    try:
      try:
        raise OSError(errno.EROFS, 'Read-only file system')
      except OSError as cause:
        raise RuntimeError('orbax') from cause
    except RuntimeError as error:
      assert storage_error(error, 'x', 'y').errno == errno.EROFS
    assert storage_error(ValueError('shape'), 'x', 'y') is None

  def test_told_as_leaves_other_errors_alone(self):
    with pytest.raises(StorageError, match='rows could not be written'), told_as('rows could not be written', 'a'):
      raise OSError(errno.EIO, 'Input/output error')
    with pytest.raises(KeyError), told_as('x', 'a'):
      raise KeyError


class TestWriteAtomically:
  def test_leaves_the_old_text_when_it_fails(self, tmp_path, monkeypatch):
    path = tmp_path / 'a.json'
    write_atomically(path, 'old')

    def full(descriptor):
      raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
      write_atomically(path, 'new')
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


class TestClosing:
  def test_the_first_error_stays_the_error(self, capfd):
    def close():
      raise OSError('and the disk is full')

    with pytest.raises(KeyError), closing(close):
      raise KeyError
    assert 'while stopping: and the disk is full' in capfd.readouterr().err
    with pytest.raises(OSError, match='disk is full'), closing(close):
      pass


class TestLock:
  def held(self, path):
    other = subprocess.Popen([sys.executable, '-c', HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == '1\n'
    return other

  def test_another_process_is_refused_until_it_ends(self, tmp_path):
    with self.held(tmp_path / '.lock') as other:
      with pytest.raises(UserError, match='another process is training'):
        tiny_run.run(tmp_path)
      assert not (tmp_path / 'metrics.jsonl').exists()
      other.communicate('\n')
    tiny_run.run(tmp_path, num_steps=1)

  def test_dies_with_its_process(self, tmp_path):
    with self.held(tmp_path / '.lock') as other:
      other.kill()
      other.communicate()
    with Lock(tmp_path):
      pass

  def test_another_thread_is_refused(self, tmp_path):
    refused = []

    def second():
      try:
        with Lock(tmp_path):
          pass
      except UserError as error:
        refused.append(str(error))

    with Lock(tmp_path):
      thread = threading.Thread(target=second)
      thread.start()
      thread.join()
    assert len(refused) == 1
    second()
    assert len(refused) == 1  # free again

  def test_what_stands_in_the_file_does_not_matter(self, tmp_path):
    (tmp_path / '.lock').write_bytes(b'\x00\xff garbage')
    with Lock(tmp_path):
      assert (tmp_path / '.lock').read_bytes() == b''
    (tmp_path / '.lock').unlink()
    (tmp_path / '.lock').mkdir()
    with Lock(tmp_path):
      assert (tmp_path / '.lock').is_file()

  def test_a_full_directory_in_its_place_is_told(self, tmp_path):
    (tmp_path / '.lock').mkdir()
    (tmp_path / '.lock' / 'a').touch()
    with pytest.raises(StorageError, match='the workdir cannot be locked'), Lock(tmp_path):
      pass

  def test_removed_under_the_run_it_is_taken_again(self, tmp_path):
    with Lock(tmp_path) as lock:
      lock.hold()
      (tmp_path / '.lock').unlink()
      lock.hold()
      command = [sys.executable, '-c', HOLD.replace('lockf(f, fcntl.LOCK_EX)', 'lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)')]
      other = subprocess.run([*command, str(tmp_path / '.lock')], capture_output=True, text=True, check=False)
      assert other.returncode == 1 and 'BlockingIOError' in other.stderr

  def test_taken_by_another_after_removal_stops_the_run(self, tmp_path):
    with Lock(tmp_path) as lock:
      (tmp_path / '.lock').unlink()
      with self.held(tmp_path / '.lock') as other:
        with pytest.raises(UserError, match='another process is training'):
          lock.hold()
        other.communicate('\n')

  def test_a_file_system_without_locks_is_said(self, tmp_path, monkeypatch, capfd):
    def none(*unused):
      raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr('fcntl.lockf', none)
    with Lock(tmp_path):
      pass
    assert 'this file system has no locks' in capfd.readouterr().err

  def test_a_directory_that_cannot_be_written(self):
    with pytest.raises(StorageError, match='the workdir cannot be made'):
      tiny_run.run(Path('/proc/1/nothing'))

  @pytest.mark.parametrize('refused', [True, False])
  def test_all_processes_stop_if_process_0_cannot(self, tmp_path, monkeypatch, refused):
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    monkeypatch.setattr(multihost_utils, 'broadcast_one_to_all', lambda mine: np.asarray(refused))
    if refused:
      with pytest.raises(UserError, match='process 0 could not lock'), Lock(tmp_path):
        pass
    else:
      with Lock(tmp_path) as lock:
        lock.hold()
    assert list(tmp_path.iterdir()) == []
