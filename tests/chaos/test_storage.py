"""chaos/storage.py: the small disk and its judge; with the real command it runs in tests/experiments/test_chaos.py."""

import errno
import os
import shutil
import subprocess
import sys

import pytest

from entropy_jax.chaos import storage
from entropy_jax.chaos.victims import Victim
from entropy_jax.training.checkpoints import MANIFEST


def checkpoint(workdir, step, content=b'x'):
  folder = workdir / 'checkpoints' / str(step)
  folder.mkdir(parents=True)
  (folder / 'array').write_bytes(content)
  (folder / MANIFEST).write_text('{}')
  return folder


class TestSmallDisk:
  def test_fills_and_refuses_where_it_may_be_mounted(self, tmp_path):
    with storage.small_disk(tmp_path / 'disk') as mounted:
      assert mounted == os.path.ismount(tmp_path / 'disk')
      if mounted:
        assert shutil.disk_usage(tmp_path / 'disk').total == storage.SIZE
        with storage.filled(tmp_path / 'disk', 8192):
          assert shutil.disk_usage(tmp_path / 'disk').free <= 8192
          with pytest.raises(OSError, match='No space left') as caught:
            (tmp_path / 'disk' / 'more').write_bytes(bytes(100_000))
          assert caught.value.errno == errno.ENOSPC
        (tmp_path / 'disk' / 'more').write_bytes(bytes(100_000))
        with storage.read_only(tmp_path / 'disk'), pytest.raises(OSError, match='Read-only'):
          (tmp_path / 'disk' / 'even_more').touch()
    assert not os.path.ismount(tmp_path / 'disk')

  def test_a_limit_on_files_is_an_error_of_the_write(self, tmp_path):
    # The first write is cut at the limit, the second has no room at all.
    writes = [sys.executable, '-c', 'import sys; f = open(sys.argv[1], "wb", 0); f.write(bytes(5000)); f.write(b"x")']
    victim = Victim(lambda workdir: [*writes, str(workdir)], tmp_path)
    done = subprocess.run(storage._limited_command(victim, 1000, tmp_path / 'file'), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and 'File too large' in done.stderr and (tmp_path / 'file').stat().st_size == 1000


class TestJudge:
  GOOD = 'resuming\nerror: the disk is full; make room.\n'

  def test_one_sentence_and_untouched_steps_are_good(self, tmp_path):
    checkpoint(tmp_path, 2)
    before = storage.checkpoint_files(tmp_path)
    assert storage.judge('full', 2, self.GOOD, before, tmp_path).good
    assert not storage.judge('full', 1, self.GOOD, before, tmp_path).good
    assert not storage.judge('full', 2, 'Traceback (most recent call last)\n' + self.GOOD, before, tmp_path).clear
    assert not storage.judge('full', 2, 'killed', before, tmp_path).clear
    (tmp_path / 'checkpoints' / '2' / 'array').write_bytes(b'y')
    assert not storage.judge('full', 2, self.GOOD, before, tmp_path).untouched

  def test_incomplete_steps_do_not_count(self, tmp_path):
    checkpoint(tmp_path, 2)
    (checkpoint(tmp_path, 4) / MANIFEST).unlink()
    assert set(storage.checkpoint_files(tmp_path)) == {'checkpoints/2/array', f'checkpoints/2/{MANIFEST}'}
    assert storage.size_of_checkpoint(tmp_path) == 2 * 4096  # two blocks
