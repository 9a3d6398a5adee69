"""SIGTERM and SIGINT, which ask a run to stop: it ends its step, saves a checkpoint and exits with 128 + the signal's number."""

import os
import signal
import threading
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


class Interrupted(SystemExit):
  """A signal came and the run is checkpointed. Uncaught, the process exits with code 143 (SIGTERM) or 130 (SIGINT).

  Not 0: a scheduler or a restart loop must tell an interrupted run, which the same command goes on with, from a finished one.
  """

  def __init__(self, message: str, number: int):
    super().__init__(exit_code(number))
    self.message = message


def exit_code(number: int) -> int:
  """What a shell reports for a process that a signal ended.

  >>> exit_code(signal.SIGTERM), exit_code(signal.SIGINT)
  (143, 130)
  """
  return 128 + int(number)


class Signals:
  """Notes the first SIGTERM or SIGINT instead of dying of it; a second one acts as ever. A context.

  Limits: only the main thread can ask for signals, in any other nothing is noted. Enter it after jax.distributed is initialised, whose
  preemption service would otherwise take SIGTERM.
  """

  def __init__(self) -> None:
    self.received: int | None = None
    self._before: dict[int, Any] = {}

  def __enter__(self) -> 'Signals':
    if threading.current_thread() is threading.main_thread():
      self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *unused: object) -> None:
    for number, handler in self._before.items():
      # None: a handler that was not installed from Python, which cannot be put back.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)

  def _note(self, number: int, unused: object) -> None:
    if self.received is not None:
      before = self._before[number]
      signal.signal(number, signal.SIG_DFL if before is None else before)
      signal.raise_signal(number)
      return
    self.received = number
    name = signal.Signals(number).name
    os.write(2, f'\n{name}: finishing the step, then a checkpoint; once more to stop at once.\n'.encode())

  def stop(self) -> int | None:
    """The signal that any process got, the same in all of them, so that all stop at the same step with the same code."""
    if jax.process_count() == 1:
      return self.received
    numbers = multihost_utils.process_allgather(np.asarray(self.received or 0, np.int32))
    return int(np.max(numbers)) or None
