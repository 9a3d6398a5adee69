"""Worker processes that may be killed: a task that hangs costs its deadline, one that crashes costs itself, and nothing else is lost.

No signal handlers, no threads and no pickle: a worker is a program that speaks JSON lines on its standard streams, so a pool works from any
thread of a program that holds accelerators. A worker is a pair of processes. The first says {"ready": pid} when its child waits for a task,
and {"ended": pid} when that child is dead; it keeps the dead child's number from being given away until it reads a line, and then starts
another child, whose start is a fork of what is loaded already. The child reads tasks and answers each by {"value": ...}.
"""

import contextlib
import enum
import json
import os
import selectors
import signal
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

from entropy_jax.types import UserError

START_SECONDS = 120.0  # within which a worker must be ready, loading included
MAX_STARTS = 5  # of one worker in a run, beside those of its children


class Ending(enum.Enum):
  """How a task ended that has no value."""

  TIMED_OUT = 'timed_out'
  CRASHED = 'crashed'


class _Worker:
  """One pair of processes and what is known of it."""

  def __init__(self, command: Sequence[str]):
    self.process = subprocess.Popen(
      list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True, bufsize=0
    )
    self.child = 0  # process id; 0 while there is none to kill
    self.task: int | None = None
    self.until = time.monotonic() + START_SECONDS  # of the task, or of being ready
    self.heard = b''

  @property
  def idle(self) -> bool:
    return self.child > 0 and self.task is None

  def send(self, line: bytes) -> bool:
    """False where nobody reads any more."""
    assert self.process.stdin is not None
    try:
      self.process.stdin.write(line + b'\n')
    except OSError:
      return False
    return True

  def messages(self) -> list[dict[str, Any]] | None:
    """What has come since; None where the worker is gone or says what it should not."""
    assert self.process.stdout is not None
    part = os.read(self.process.stdout.fileno(), 1 << 16)
    if not part:
      return None
    *lines, self.heard = (self.heard + part).split(b'\n')
    try:
      found = [json.loads(line) for line in lines]
    except ValueError:
      return None
    return found if all(isinstance(message, dict) for message in found) else None

  def kill_child(self) -> None:
    """Ends the child; that it ended is said by the worker."""
    os.kill(self.child, signal.SIGKILL)
    self.child, self.task, self.until = 0, None, time.monotonic() + START_SECONDS

  def stop(self) -> None:
    """Ends both processes."""
    with contextlib.suppress(ProcessLookupError):  # both are gone
      os.killpg(self.process.pid, signal.SIGKILL)  # a session of its own: worker and child; not yet waited for, so the number is theirs
    self.process.wait()
    for stream in (self.process.stdin, self.process.stdout):
      if stream is not None:
        stream.close()


def _stop_all(workers: list[_Worker]) -> None:
  while workers:
    workers.pop().stop()


class DeadlinePool:
  """Runs tasks on workers that start on first use and live until `close`, the end of a `with`, or that of the program.

  Attributes:
    command: the program of a worker and its arguments.
    num_workers: at most so many run at once.
    deadline: seconds from sending a task to killing the child that has it.
  """

  def __init__(self, command: Sequence[str], *, num_workers: int, deadline: float):
    if num_workers < 1:
      raise UserError(f'num_workers={num_workers}: must be at least 1; give a positive integer.')
    if not 0 < deadline < float('inf'):
      raise UserError(f'deadline={deadline}: must be in (0, inf); give the seconds that a task may take.')
    self.command, self.num_workers, self.deadline = list(command), num_workers, deadline
    self._workers: list[_Worker] = []
    self._lock = threading.Lock()
    self._finalizer = weakref.finalize(self, _stop_all, self._workers)

  def __enter__(self) -> 'DeadlinePool':
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends every worker; the next run starts others."""
    with self._lock:
      _stop_all(self._workers)

  def start(self) -> None:
    """Starts every worker and waits until all are ready, which a measurement wants to leave out of its time."""
    with self._lock:
      _Run(self, []).prepare(self.num_workers)

  def run(self, tasks: Sequence[Any], *, wall_limit: float | None = None) -> list[Any]:
    """The value of every task, or an `Ending`.

    Args:
      tasks: what can be said in JSON, each.
      wall_limit: seconds after which what is not done has TIMED_OUT; None for no limit beside that of each task, which bounds the whole
        by ceil(tasks / workers) deadlines and as many forks. The start of the first worker is not counted.

    Returns:
      As many values as tasks, in their order.
    """
    if not tasks:
      return []
    with self._lock:
      run = _Run(self, [json.dumps(task).encode() for task in tasks])
      run.prepare(1)
      return run.finish(wall_limit)


class _Run:
  """The tasks of one call, over the workers of a pool."""

  def __init__(self, pool: DeadlinePool, lines: list[bytes]):
    self.pool, self.lines, self.workers = pool, lines, pool._workers
    self.results: list[Any] = [Ending.TIMED_OUT] * len(lines)
    self.pending = deque(range(len(lines)))
    self.starts = 0
    wanted = min(pool.num_workers, len(lines)) if lines else pool.num_workers
    while len(self.workers) < wanted:
      self.workers.append(_Worker(pool.command))

  def prepare(self, num_ready: int) -> None:
    """Waits until so many workers are ready."""
    while sum(worker.child > 0 for worker in self.workers) < num_ready:
      self._step(float('inf'))

  def finish(self, wall_limit: float | None) -> list[Any]:
    end = float('inf') if wall_limit is None else time.monotonic() + wall_limit
    while (self.pending or any(worker.task is not None for worker in self.workers)) and time.monotonic() < end:
      for worker in [worker for worker in self.workers if worker.idle]:
        if self.pending:
          self._assign(worker)
      self._step(end)
    for worker in self.workers:
      if worker.task is not None:
        worker.kill_child()
    return self.results

  def _assign(self, worker: _Worker) -> None:
    task = self.pending.popleft()
    worker.task, worker.until = task, time.monotonic() + self.pool.deadline
    if not worker.send(self.lines[task]):
      self._replace(worker)

  def _step(self, end: float) -> None:
    """Waits for a message or a deadline, and acts on what came."""
    waiting = [worker for worker in self.workers if not worker.idle]
    until = min([end, *(worker.until for worker in waiting)])
    with selectors.DefaultSelector() as selector:
      for worker in self.workers:
        assert worker.process.stdout is not None
        selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
      ready = [key.data for key, _ in selector.select(max(0.0, until - time.monotonic()))]
    for worker in ready:
      messages = worker.messages()
      if messages is None:
        self._replace(worker)
        continue
      for message in messages:
        self._hear(worker, message)
    now = time.monotonic()
    for worker in [worker for worker in self.workers if not worker.idle and worker.until <= now]:
      if worker.task is not None:
        worker.kill_child()  # its result stays TIMED_OUT
      else:
        self._replace(worker)

  def _hear(self, worker: _Worker, message: dict[str, Any]) -> None:
    if 'ready' in message:
      worker.child = message['ready']
    elif 'ended' in message:
      if worker.task is not None:
        self.results[worker.task] = Ending.CRASHED
      worker.child, worker.task, worker.until = 0, None, time.monotonic() + START_SECONDS
      worker.send(b'')  # where nobody reads, the end of its output is the next thing to come
    elif 'error' in message:
      _stop_all(self.workers)
      raise UserError(f'command={" ".join(self.pool.command[-2:])!r}: the worker cannot start ({message["error"]}); install what it needs.')
    elif worker.task is not None and 'value' in message:
      self.results[worker.task], worker.task = message['value'], None

  def _replace(self, worker: _Worker) -> None:
    """Another pair of processes in the place of one that is gone."""
    if worker.task is not None:
      self.results[worker.task] = Ending.CRASHED
    worker.stop()
    self.workers.remove(worker)
    self.starts += 1
    if self.starts > MAX_STARTS * self.pool.num_workers:
      _stop_all(self.workers)
      raise UserError(f'command={" ".join(self.pool.command[-2:])!r}: the worker ends as soon as it starts; run it by hand to see why.')
    self.workers.append(_Worker(self.pool.command))
