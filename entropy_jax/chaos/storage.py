"""A disk without room, a folder that cannot be written, two processes in one: one sentence, nothing older harmed, and the run goes on.

The disk is a small tmpfs, filled with one file and mounted read-only, where this process may mount. Where it may not, writes fail at a
limit on the size of a file, and the folder is written by a user who may not. The rows say which.
"""

import contextlib
import dataclasses
import functools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from entropy_jax.chaos import compare
from entropy_jax.chaos.table import Row
from entropy_jax.chaos.victims import Victim, complete_checkpoints
from entropy_jax.training.checkpoints import MANIFEST

SIZE = 64 << 20  # of the disk
MISTAKE_CODE = 2
NOBODY = 65534
FILLER = 'filler'


class Case(NamedTuple):
  """One start on a disk that refuses.

  Attributes:
    what: what was wrong with it.
    code: exit code.
    said: the last line on stderr.
    untouched: every file of every checkpoint that was there is there, bit for bit.
    clear: one sentence as the last line, and no traceback.
  """

  what: str
  code: int
  said: str
  untouched: bool
  clear: bool

  @property
  def good(self) -> bool:
    return self.code == MISTAKE_CODE and self.untouched and self.clear


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
  """Mounts a tmpfs of SIZE there; whether that was permitted."""
  folder.mkdir(parents=True, exist_ok=True)
  mounted = shutil.which('mount') is not None and _mount('-t', 'tmpfs', '-o', f'size={SIZE}', 'none', str(folder))
  try:
    yield mounted
  finally:
    if mounted:
      subprocess.run(['umount', str(folder)], check=False, capture_output=True)


def _mount(*arguments: str) -> bool:
  return subprocess.run(['mount', *arguments], check=False, capture_output=True).returncode == 0


@contextlib.contextmanager
def filled(folder: Path, left: int) -> Iterator[None]:
  """Leaves only so many bytes of the disk free."""
  filler = folder / FILLER
  free = shutil.disk_usage(folder).free - left
  with open(filler, 'wb') as file:
    os.posix_fallocate(file.fileno(), 0, max(free, 1))
  try:
    yield
  finally:
    filler.unlink()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
  if not _mount('-o', 'remount,ro', str(folder)):
    raise RuntimeError(f'{folder} could not be remounted read-only')
  try:
    yield
  finally:
    _mount('-o', 'remount,rw', str(folder))


def _limited_command(victim: Victim, size: int, workdir: Path) -> list[str]:
  """The command, with files that cannot grow beyond so many bytes; Python ignores the signal and gets an error from the write."""
  return ['prlimit', f'--fsize={size}', *victim.command(workdir)]


def checkpoint_files(workdir: Path) -> dict[str, str]:
  """Digests of all files of all complete checkpoints."""
  found = dict[str, str]()
  for folder in complete_checkpoints(workdir):
    place = folder.relative_to(workdir)
    found |= {f'{place}/{name}': digest for name, digest in compare.file_digests(folder).items()}
  return found


def size_of_checkpoint(workdir: Path) -> int:
  """Bytes of the newest complete checkpoint, as a disk counts them."""
  newest = max(complete_checkpoints(workdir), key=lambda folder: (folder / MANIFEST).stat().st_mtime)
  return sum(path.stat().st_blocks * 512 for path in newest.rglob('*'))


def start_and_kill(victim: Victim, workdir: Path, notes: Path, seconds: float) -> None:
  """Trains so long after the first checkpoint, and is killed."""
  with victim.started(workdir, notes) as running:
    deadline = time.monotonic() + 300.0
    while not complete_checkpoints(workdir) and running.ended() is None and time.monotonic() < deadline:
      time.sleep(0.02)
    running.until_training(60.0)
    time.sleep(seconds)
    if running.ended() is not None:
      raise RuntimeError(f'the run finished before it could be killed: {running.said()[-300:]}')
    running.send(signal.SIGKILL)
    running.wait()


def judge(what: str, code: int, said: str, before: dict[str, str], workdir: Path) -> Case:
  """What became of a start on a disk that refuses."""
  after = checkpoint_files(workdir)
  untouched = all(after.get(name) == digest for name, digest in before.items())
  lines = [line for line in said.strip().splitlines() if line.strip()]
  last = lines[-1] if lines else ''
  sentence = last.startswith('error: ') and last.endswith('.') and 'Traceback' not in said
  return Case(what, code, last, untouched, sentence)


def full_disk(victim: Victim, disk: Path, workdir: Path, notes: Path, rooms: Sequence[float], mounted: bool) -> list[Case]:
  """Starts the command with room for only a fraction of a checkpoint."""
  cases = []
  size = size_of_checkpoint(workdir)
  for room in rooms:
    what = f'room for {room:.0%} of a checkpoint'
    before = checkpoint_files(workdir)
    if mounted:
      with filled(disk, int(room * size)):
        code, said = victim.finish(workdir, notes)
    else:
      largest = max(path.stat().st_size for path in workdir.rglob('checkpoints/**/*') if path.is_file())
      what = f'files of at most {room:.0%} of the largest of a checkpoint'
      command = functools.partial(_limited_command, victim, int(room * largest))
      code, said = dataclasses.replace(victim, command=command).finish(workdir, notes)
    cases.append(judge(what, code, said, before, workdir))
  return cases


def unwritable(victim: Victim, disk: Path, workdir: Path, notes: Path, mounted: bool) -> Case:
  """Starts the command in a folder that it cannot write."""
  before = checkpoint_files(workdir)
  if mounted:
    with read_only(disk):
      code, said = victim.finish(workdir, notes)
    return judge('mounted read-only', code, said, before, workdir)
  if os.geteuid() == 0:
    code, said = victim.finish(workdir, notes, user=NOBODY)
    return judge(f'of another user (uid {NOBODY})', code, said, before, workdir)
  folders = [workdir, *(path for path in workdir.rglob('*') if path.is_dir())]
  modes = [(folder, folder.stat().st_mode) for folder in folders]
  for folder, mode in modes:
    folder.chmod(mode & ~0o222)
  try:
    code, said = victim.finish(workdir, notes)
  finally:
    for folder, mode in modes:
      folder.chmod(mode)
  return judge('without the permission to write', code, said, before, workdir)


def two_writers(victim: Victim, workdir: Path, notes: Path) -> tuple[list[int], Case]:
  """Starts the command twice at once on one folder: (both exit codes, ascending; what became of the one that was refused)."""
  with victim.started(workdir, notes / 'one') as one, victim.started(workdir, notes / 'other') as other:
    ended = sorted(((process.wait(), process.said()) for process in (one, other)), key=lambda end: end[0])
  (_, _), (code, said) = ended
  case = judge('started at the same time', code, said, {}, workdir)
  return [end[0] for end in ended], case._replace(clear=case.clear and 'another process is training' in case.said)


def run(
  victim: Victim, folder: Path, whole: Path, prepare: Callable[[Path], None], rooms: Sequence[float], *, id: str = 'R5'
) -> list[Row]:
  """The rows of R5.

  Args:
    victim: the command.
    folder: where the disk is mounted and the runs are.
    whole: the undisturbed run.
    prepare: makes the workdir of a run.
    rooms: fractions of a checkpoint for which there is room.
  """
  shutil.rmtree(folder, ignore_errors=True)
  disk, notes = folder / 'disk', folder / 'notes'
  began = time.monotonic()
  with small_disk(disk) as mounted:
    workdir = disk / 'run'
    prepare(workdir)
    start_and_kill(victim, workdir, notes, 0.5)
    full = full_disk(victim, disk, workdir, notes, rooms, mounted)
    seconds_full, began = time.monotonic() - began, time.monotonic()
    refused = unwritable(victim, disk, workdir, notes, mounted)
    seconds_refused = time.monotonic() - began
    code, said = victim.finish(workdir, notes)
    expected = compare.fingerprint(whole)
    wrong = compare.differences(expected, compare.fingerprint(workdir)) if code == 0 else [f'exit code {code}: {said[-300:]}']
  began = time.monotonic()
  prepare(folder / 'shared')
  codes, refused_one = two_writers(victim, folder / 'shared', notes)
  wrong_one = compare.differences(expected, compare.fingerprint(folder / 'shared'))
  how = 'a tmpfs, filled with one file' if mounted else 'a limit on the size of files, for want of the permission to mount a small disk'
  then = 'the same command with room again ends bitwise equal' if not wrong else f'then: {"; ".join(wrong[:5])}'
  bad = next((case for case in full if not case.good), full[0])
  return [
    Row(
      id,
      f'disk full, {len(full)} amounts of room',
      'exit code 2, one sentence, older steps untouched, and with room again the same end, bit for bit',
      f'{sum(case.good for case in full)}/{len(full)} as asked, {"equal" if not wrong else "not equal"} afterwards',
      all(case.good for case in full) and not wrong,
      seconds_full,
      f'By {how}. {bad.what}: exit code {bad.code}, {bad.said!r}; {then}.',
    ),
    Row(
      id,
      'folder that cannot be written',
      'exit code 2, one sentence, older steps untouched, and the same end, bit for bit, when it can',
      f'{"as asked" if refused.good else "not as asked"}, {"equal" if not wrong else "not equal"} afterwards',
      refused.good and not wrong,
      seconds_refused,
      f'{refused.what[0].upper()}{refused.what[1:]}: exit code {refused.code}, {refused.said!r}; {then}.',
    ),
    Row(
      id,
      'two processes started at once on the same folder',
      'one is refused with exit code 2 and one sentence, the other ends bitwise equal',
      f'exit codes {codes[0]} and {codes[1]}, {"equal" if not wrong_one else "not equal"}',
      codes == [0, MISTAKE_CODE] and refused_one.good and not wrong_one,
      time.monotonic() - began,
      f'{refused_one.said!r} {"; ".join(wrong_one[:5])}'.strip(),
    ),
  ]
