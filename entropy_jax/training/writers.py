"""What a run measures, in files: metrics.jsonl is the record, TensorBoard a view of it, timings.jsonl the wall clock.

metrics.jsonl holds one JSON object a logged step: first `step`, then the other keys sorted, floats in the shortest
decimal that reads back exactly. It holds no time of day and no duration, so that equal runs leave bitwise equal files,
interrupted or not. Seconds, and what was done in a second, go to timings.jsonl.

Each row goes to the system in one piece and at once, so that a kill tears the last line at most, and what a full disk
takes of a line is taken back.
"""

import contextlib
import json
import math
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from entropy_jax.training.files import replacing, say, told_as
from entropy_jax.types import UserError

METRICS = 'metrics.jsonl'
TIMINGS = 'timings.jsonl'
_STEP = re.compile(rb'\{"step": (\d+)[,}]')


def format_row(step: int, values: Mapping[str, float | int | bool]) -> str:
  """One line of JSON: `step` first, the other keys sorted.

  >>> format_row(3, {'loss': 0.1, 'entropy': 2.0})
  '{"step": 3, "entropy": 2.0, "loss": 0.1}'
  """
  if 'step' in values:
    raise ValueError("a metric is called 'step', which is the name of the row's own step; rename it")
  return json.dumps({'step': step, **{name: values[name] for name in sorted(values)}}, allow_nan=False)


def _is_row(line: bytes) -> bool:
  if not _STEP.match(line):
    return False
  try:
    return isinstance(json.loads(line), dict)
  except ValueError:
    return False


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """The rows of a metrics or timings file; a last line torn by a kill is left out."""
  with open(path, 'rb') as file:
    return [json.loads(line) for line in file if line.endswith(b'\n')]


def _whole_lines(path: Path) -> Iterator[bytes]:
  with open(path, 'rb') as file:
    yield from (line for line in file if line.endswith(b'\n'))


def drop_rows(path: Path, start_step: int) -> int:
  """Cuts a file of rows at the first row of `start_step` or later, torn last line included.

  Returns:
    How many rows are left.

  Raises:
    UserError: a line among those to keep is not a row, or is not of a later step than the row before it.
  """
  if not path.exists():
    return 0
  kept, end, before = 0, 0, -1
  for line in _whole_lines(path):
    found = _STEP.match(line)
    step = int(found.group(1)) if found else -1
    if step >= start_step:
      break
    if step <= before or not _is_row(line):
      where = f'{path}: line {kept + 1} is not a metrics row' + (f' of a step after {before}' if found else '')
      raise UserError(f'{where}; restore the file from a copy, or give another --workdir.')
    kept, end, before = kept + 1, end + len(line), step
  if end < path.stat().st_size:
    os.truncate(path, end)
  return kept


def _mend_timings(path: Path, start_step: int) -> None:
  """As `drop_rows`, for what is not the record: lines that are no rows are left out, and said, and stop nothing."""
  if not path.exists():
    return
  lines = list(_whole_lines(path))
  kept = [line for line in lines if _is_row(line)]
  if len(kept) < len(lines):
    say(f'{path}: {len(lines) - len(kept)} lines are no rows and are left out.')
  earlier = [line for line in kept if json.loads(line)['step'] < start_step]
  if sum(map(len, earlier)) < path.stat().st_size:
    with replacing(path) as file:
      file.writelines(earlier)


class _Lines:
  """A file that grows by whole lines. What a failed write left of a line is cut off, at once or before the next one."""

  def __init__(self, path: Path):
    self._path = path
    self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    self._end = os.fstat(self._file).st_size
    self._torn = self.closed = False

  def append(self, line: str) -> None:
    data = line.encode() + b'\n'
    with told_as('a row could not be written', self._path):
      if self._torn:
        self._cut()
      self._torn = True
      try:
        left = data
        while left:
          left = left[os.write(self._file, left) :]
      except OSError:
        with contextlib.suppress(OSError):
          self._cut()
        raise
      self._torn = False
    self._end += len(data)

  def _cut(self) -> None:
    os.ftruncate(self._file, self._end)
    self._torn = False

  def sync(self) -> None:
    with told_as('rows could not be brought to the disk', self._path):
      os.fsync(self._file)

  def close(self) -> None:
    if not self.closed:
      self.closed = True
      with told_as('rows could not be brought to the disk', self._path):
        try:
          os.fsync(self._file)
        finally:
          os.close(self._file)


class _TensorBoard:
  """An event file. It is a view of metrics.jsonl: where it cannot be written, that is said once, and the run goes on.

  Written in this thread: tensorboardX's own writer has a thread for it, and waits forever once a full disk has ended that.
  """

  def __init__(self, folder: Path, start_step: int):
    self._folder = folder
    self._events: RecordWriter | None = None
    with self._given_up_on_failure():
      folder.mkdir(exist_ok=True)
      # Readers look for the first four parts of the name; the others keep two starts within a second apart.
      name = f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{start_step}'
      self._events = RecordWriter(str(folder / name))
      self._write(file_version='brain.Event:2')
      # Readers drop what an earlier start of the run wrote of this step and later.
      self._write(step=start_step, session_log=SessionLog(status=SessionLog.START))

  def add(self, step: int, values: Mapping[str, float]) -> None:
    with self._given_up_on_failure():
      shown = [Summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()]
      self._write(step=step, summary=Summary(value=shown))

  def flush(self) -> None:
    with self._given_up_on_failure():
      if self._events is not None:
        self._events.flush()

  def close(self) -> None:
    with self._given_up_on_failure():
      if self._events is not None:
        self._events.close()
      self._events = None

  def _write(self, **content: Any) -> None:
    if self._events is not None:
      self._events.write(Event(wall_time=time.time(), **content).SerializeToString())

  @contextlib.contextmanager
  def _given_up_on_failure(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      events, self._events = self._events, None
      with contextlib.suppress(OSError):  # closing writes what is left, which fails again, and closes all the same
        if events is not None:
          events.close()
      say(f'{self._folder} gets nothing more ({error.strerror}); metrics.jsonl is the record.')


class MetricWriter:
  """Writes metric rows, on process 0 only.

  Args:
    workdir: holds metrics.jsonl, timings.jsonl and tensorboard/.
    start_step: rows of this step and later are of a run that was killed after its last checkpoint; they are dropped.
    tensorboard: False writes the two JSON files alone.

  Attributes:
    rows: how many are in metrics.jsonl.

  Raises:
    StorageError: from each method, where the disk is full, read-only or broken. No line is torn by it.
  """

  def __init__(self, workdir: str | os.PathLike[str], start_step: int = 0, *, tensorboard: bool = True):
    self.rows = 0
    self._metrics: _Lines | None = None
    self._timings: _Lines | None = None
    self._tensorboard: _TensorBoard | None = None
    if jax.process_index() != 0:
      return
    workdir = Path(workdir)
    with told_as('metrics cannot be written', workdir):
      workdir.mkdir(parents=True, exist_ok=True)
      self.rows = drop_rows(workdir / METRICS, start_step)
      _mend_timings(workdir / TIMINGS, start_step)
      self._metrics = _Lines(workdir / METRICS)
      self._timings = _Lines(workdir / TIMINGS)
    if tensorboard:
      self._tensorboard = _TensorBoard(workdir / 'tensorboard', start_step)

  def write(self, step: int, values: Mapping[str, float | int | bool]) -> None:
    """Appends one row; values are finite Python numbers."""
    if self._metrics is None:
      return
    self._metrics.append(format_row(step, values))
    self.rows += 1
    if self._tensorboard is not None:
      self._tensorboard.add(step, values)

  def write_timings(self, step: int, timings: Mapping[str, float]) -> None:
    """Appends one row of wall-clock figures; TensorBoard has them under `timing/`."""
    if self._timings is None:
      return
    rounded = {name: round(value, 6) for name, value in timings.items() if math.isfinite(value)}
    self._timings.append(format_row(step, rounded))
    if self._tensorboard is not None:
      self._tensorboard.add(step, {f'timing/{name}': value for name, value in rounded.items()})

  def flush(self) -> None:
    """Returns when every row is on the disk: a checkpoint may then say that they are."""
    for part in (self._metrics, self._timings):
      if part is not None and not part.closed:
        part.sync()
    if self._tensorboard is not None:
      self._tensorboard.flush()

  def close(self) -> None:
    """Brings everything to the disk; a second call does nothing."""
    with contextlib.ExitStack() as stack:
      for part in (self._tensorboard, self._timings, self._metrics):
        if part is not None:
          stack.callback(part.close)
    self._tensorboard = None
