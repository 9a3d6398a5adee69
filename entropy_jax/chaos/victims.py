"""A command that is to be harmed: started in a folder, watched from outside, ended when the moment has come.

What a process is doing is read from a small file that it shares: `witness/sitecustomize.py`, imported before the program, lets the clock
of the training loop note there what it is measuring. The program itself is the one that users run, and the note outlives a SIGKILL.
"""

import contextlib
import dataclasses
import os
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from entropy_jax.training.checkpoints import MANIFEST

WITNESS = Path(__file__).resolve().parent / 'witness'
START, STEP, SAVE, FIRST_SAVE, EVALUATE, BETWEEN = 'start', 'step', 'save', 'first save', 'evaluate', 'between'
PHASES = (START, STEP, SAVE, FIRST_SAVE, EVALUATE, BETWEEN)
TRAINING = (STEP, SAVE, EVALUATE)
# Flags for XLA: less of every start of a process is compiling, which takes half the time without the fusion emitters.
QUICK = '--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false'
_OF_NAME = {'evaluate': EVALUATE, 'checkpoint': SAVE}  # what the clock calls it; every other name is part of a step


class StoppedError(Exception):
  """The matrix itself was asked to stop."""


@dataclasses.dataclass(frozen=True)
class Victim:
  """How to start it.

  Attributes:
    command: workdir -> the command line.
    folder: where it is started.
    environment: what is added to this process's.
    stop: set when the matrix itself is stopped; whatever waits for a process then ends it.
  """

  command: Callable[[Path], Sequence[str]]
  folder: Path
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
  stop: threading.Event = dataclasses.field(default_factory=threading.Event)

  @contextlib.contextmanager
  def started(self, workdir: Path, notes: Path, *, user: int | None = None) -> Iterator['Running']:
    """The process, killed on the way out if it still runs; `notes` gets what it says and what it does."""
    notes.mkdir(parents=True, exist_ok=True)
    said, watch = notes / 'said.txt', (notes / 'doing').absolute()
    watch.unlink(missing_ok=True)
    path = os.pathsep.join([str(WITNESS), str(self.folder), os.environ.get('PYTHONPATH', '')]).rstrip(os.pathsep)
    environment = {**os.environ, **self.environment, 'PYTHONPATH': path, 'ENTROPY_JAX_WITNESS': str(watch)}
    with open(said, 'w', encoding='utf-8') as file:
      process = subprocess.Popen(
        list(self.command(workdir)), cwd=self.folder, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL, user=user
      )
    try:
      yield Running(process, said, watch, self.stop)
    finally:
      if process.poll() is None:
        process.kill()
      process.wait()

  def finish(self, workdir: Path, notes: Path, *, user: int | None = None, timeout: float = 600.0) -> tuple[int, str]:
    """Runs it to its end: (exit code, what it said)."""
    with self.started(workdir, notes, user=user) as running:
      return running.wait(timeout), running.said()


class Running:
  """A process of a victim."""

  def __init__(self, process: subprocess.Popen, said: Path, watch: Path, stop: threading.Event):
    self._process, self._said, self._watch, self._stop = process, said, watch, stop

  def said(self) -> str:
    return self._said.read_text(encoding='utf-8', errors='replace')

  def ended(self) -> int | None:
    """Its exit code, or None while it runs."""
    if self._stop.is_set():
      raise StoppedError
    return self._process.poll()

  def wait(self, timeout: float = 600.0) -> int:
    """Its exit code, as a shell gives it."""
    deadline = time.monotonic() + timeout
    while (code := self.ended()) is None:
      if time.monotonic() > deadline:
        raise TimeoutError(f'the process did not end within {timeout:g} s; the last it said is {self.said()[-300:]!r}')
      time.sleep(0.01)
    return code if code >= 0 else 128 - code

  def send(self, number: int) -> float:
    """Sends a signal; returns when."""
    now = time.time()
    self._process.send_signal(number)
    return now

  def _doing(self) -> tuple[str, int]:
    """What its clock measures, '' for nothing, and the steps it has finished; '' and 0 before it trains."""
    noted = self._watch.read_bytes() if self._watch.exists() else b''
    if len(noted) < 20:
      return '', 0
    return noted[:16].decode(errors='replace').strip(), struct.unpack('<I', noted[16:20])[0]

  def phase(self) -> str:
    """What it is doing, or was doing when it ended."""
    name, finished = self._doing()
    if finished == 0 and name != 'checkpoint':
      return START  # tracing and compiling belong to the start of a process
    return _OF_NAME.get(name, STEP) if name else BETWEEN

  def steps(self) -> int:
    """How many steps it has finished, or had when it ended."""
    return self._doing()[1]

  def until(self, wanted: Sequence[str], *, timeout: float) -> bool:
    """Waits until it does one of these; False if it ended or the time is over."""
    deadline = time.monotonic() + timeout
    while self.ended() is None and time.monotonic() < deadline:
      if self.phase() in wanted:
        return True
      time.sleep(0.001)
    return False

  def until_training(self, timeout: float = 300.0) -> bool:
    """Waits until its first step is made and it goes on in the loop."""
    return self.until(TRAINING, timeout=timeout)


def is_first_save(workdir: Path) -> bool:
  """From what a process left that was killed in a save: whether its run folder held no whole checkpoint yet."""
  for intent in workdir.rglob('checkpoints/saving-*'):
    step = intent.name.removeprefix('saving-')
    if not any(path.parent.name != step for path in intent.parent.glob(f'*/{MANIFEST}')):
      return True
  return False


def complete_checkpoints(workdir: Path) -> list[Path]:
  """Folders of all complete checkpoints under the workdir.

  The process may be running: what is in a step's folder is not walked through, and a folder that goes meanwhile is passed over.
  """
  found = list[Path]()
  for place, names, _ in os.walk(workdir):
    if Path(place).name == 'checkpoints':
      found += [Path(place, name) for name in sorted(names) if Path(place, name, MANIFEST).exists()]
      names.clear()
  return found


def newest_save(workdir: Path) -> float | None:
  """When the newest complete checkpoint under the workdir was written, in seconds of the system's clock."""
  times = []
  for folder in complete_checkpoints(workdir):
    with contextlib.suppress(FileNotFoundError):  # older steps are deleted meanwhile
      times.append((folder / MANIFEST).stat().st_mtime)
  return max(times, default=None)
