"""Files that a crash cannot leave half changed, failures of a disk in one sentence, and the lock on a workdir."""

import contextlib
import errno
import fcntl
import functools
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from entropy_jax.types import UserError

MEND = 'make room, or give a --workdir that can be written; the same command goes on from the newest checkpoint'
_OS_CODE = re.compile(r"os_error_code='(\d+)'")  # how tensorstore, below orbax, tells the errno
# How orbax's threads begin to print the error that it raises a moment later.
_RAISED_TOO = ('_SignalingThread.run() raised', 'Save Finalize thread', 'Handler Commit operations')
_held: set[Path] = set()  # workdirs in which this process trains


def say(text: str) -> None:
  """One line to stderr."""
  print(text, file=sys.stderr, flush=True)


class StorageError(OSError):
  """A disk that is full, read-only or broken; `str` is one sentence with what failed, where, why and what to do."""

  def __init__(self, number: int, what: str, path: str | os.PathLike[str]):
    super().__init__(number, os.strerror(number), str(path))
    self.what = what

  def __str__(self) -> str:
    return f'{self.what} ({self.filename}: {self.strerror}); {MEND}.'


def storage_error(error: BaseException, what: str, path: str | os.PathLike[str]) -> StorageError | None:
  """The StorageError that `error` amounts to, through its causes and tensorstore's texts; None where no disk is at fault."""
  seen: BaseException | None = error
  while seen is not None:
    if isinstance(seen, StorageError):
      return seen
    told = _OS_CODE.search(str(seen))
    number = seen.errno if isinstance(seen, OSError) else int(told.group(1)) if told else None
    if number:
      return StorageError(number, what, path)
    seen = seen.__cause__ or seen.__context__
  return None


def _is_late(error: BaseException | None) -> bool:
  """Whether it is what a thread below orbax reports of one of many writes, whose failure is raised where the save was asked for."""
  if isinstance(error, RuntimeError):
    return str(error) == 'Event loop is closed'
  return isinstance(error, ValueError) and 'Error writing' in str(error) and _OS_CODE.search(str(error)) is not None


@functools.cache
def hush_late_reports() -> None:
  """Of a save that fails for the disk, tensorstore's many writes end in their own time and would print a traceback each, and orbax's
  threads one more before it raises the same error, which is told in one sentence.

  What is dropped is those reports alone: what the save raises, and any other error that nobody catches, is shown as ever.
  """
  logging.getLogger('absl').addFilter(lambda record: not any(text in record.getMessage() for text in _RAISED_TOO))
  logging.getLogger('asyncio').addFilter(lambda record: not (record.exc_info and _is_late(record.exc_info[1])))
  uncaught, unraisable, threaded = sys.excepthook, sys.unraisablehook, threading.excepthook
  sys.excepthook = lambda kind, error, trace: None if _is_late(error) else uncaught(kind, error, trace)
  sys.unraisablehook = lambda report: None if _is_late(report.exc_value) else unraisable(report)
  threading.excepthook = lambda report: None if _is_late(report.exc_value) else threaded(report)


@contextlib.contextmanager
def told_as(what: str, path: str | os.PathLike[str]) -> Iterator[None]:
  """Turns an OSError inside into a StorageError."""
  try:
    yield
  except OSError as error:
    raise (storage_error(error, what, path) or error) from error


@contextlib.contextmanager
def closing(close: Callable[[], Any]) -> Iterator[None]:
  """Calls `close` in the end; beside an error that is on its way already, what `close` raises is only said."""
  try:
    yield
  except BaseException:
    try:
      close()
    except Exception as error:
      say(f'while stopping: {" ".join(str(error).split())}')
    raise
  close()


def sync_directory(directory: Path) -> None:
  """Returns when the names in the directory are on the disk."""
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
  """A file to write to, which takes the place of `path` when all of it is on the disk, and is gone if it fails."""
  partial = path.with_name(path.name + '.tmp')
  try:
    with open(partial, 'wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, path)
  except BaseException:
    with contextlib.suppress(OSError):
      partial.unlink(missing_ok=True)
    raise
  sync_directory(path.parent)


def write_atomically(path: Path, text: str) -> None:
  """The file holds either what it held before or the whole text, whatever happens meanwhile."""
  with replacing(path) as file:
    file.write(text.encode())


class Lock:
  """Refuses a second training run in a workdir; a context.

  It covers processes of this host, and other threads of this process; it dies with its process, however that dies. It covers other
  hosts only where the shared file system carries POSIX locks between them (NFS 4 and Lustre with -o flock do, buckets mounted by FUSE do
  not): there, nothing but care keeps two hosts apart. Of the processes of one run, process 0 takes it, and all stop if it cannot.
  What stands in the file does not matter; if the file is removed while a run holds it, the run takes the new one at its next `hold`.
  """

  def __init__(self, workdir: Path):
    self._workdir, self._path = workdir.resolve(), workdir / '.lock'
    self._file: IO[bytes] | None = None

  def __enter__(self) -> 'Lock':
    problem: Exception | None = None
    if jax.process_index() == 0:
      try:
        if self._workdir in _held:
          raise self._busy()
        self._take()
        _held.add(self._workdir)
      except (UserError, StorageError) as error:
        problem = error
    if jax.process_count() > 1 and bool(multihost_utils.broadcast_one_to_all(np.asarray(problem is not None))) and problem is None:
      problem = UserError(f'workdir: process 0 could not lock {self._workdir}; its message says why.')
    if problem is not None:
      raise problem
    return self

  def __exit__(self, *unused: object) -> None:
    if self._file is not None:
      _held.discard(self._workdir)
      self._file.close()

  def hold(self) -> None:
    """Raises UserError where another run has come into the workdir, because the lock file was removed under this one."""
    if self._file is None:
      return
    mine = os.fstat(self._file.fileno())
    with contextlib.suppress(FileNotFoundError):
      there = os.stat(self._path)
      if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
        return
    self._file.close()
    self._take()

  def _busy(self) -> UserError:
    busy = f'workdir: another process is training in {self._workdir}'
    return UserError(f'{busy}; wait for its end, or give another --workdir.')

  def _take(self) -> None:
    with told_as('the workdir cannot be locked', self._path):
      if self._path.is_dir():
        os.rmdir(self._path)  # whatever made a directory of it: an empty one is no loss
      self._file = open(self._path, 'ab')  # noqa: SIM115
      try:
        fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
          self._file.close()
          raise self._busy() from None
        say(f'{self._path}: this file system has no locks ({error.strerror}); see to it that no other process trains here.')
      with contextlib.suppress(OSError):
        os.ftruncate(self._file.fileno(), 0)  # an empty file is no result, see app.prepare_workdir
