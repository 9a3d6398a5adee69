"""Several studies, as many at a time as the machine has room for.

    python -m experiments NAME[.VARIANT] ... [--out=runs] [--at_once=N]

NAME is that of a file in configs/; its workdir is OUT/NAME[.VARIANT]. One study alone keeps the terminal, with its bars. Of several the
first has precedence, so name the longest first: the others compute where it leaves a core idle. Every line has its study's name before
it; one that fails does not stop the others. SIGINT and SIGTERM go to all that run, which save; those that
wait do not start, and the same command goes on with all of them. Afterwards OUT/index.html has a card for every report in OUT.

Exit codes: 0 all are done; 2 a mistake of this command; 130 and 143 after a signal; else that of the first study that failed.
"""

import argparse
import collections
import contextlib
import importlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from entropy_jax.analysis import report
from entropy_jax.training.progress import duration
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
LATER = 10  # the `nice` of all but the first
MOST = 4  # at a time on any machine: each has a compiler, and matrices that use more than one core


class Ended(NamedTuple):
  """How a study ended.

  Attributes:
    code: as a shell tells it, 128 + the number of a signal that ended it.
    seconds: from start to end.
    last: line of its output.
  """

  code: int
  seconds: float
  last: str


def command(given: str, out: pathlib.Path) -> list[str]:
  """The command line of a study given as NAME[.VARIANT].

  Raises:
    UserError: there is no such config or variant.
  """
  name, _, variant = given.partition('.')
  modules = {path.stem for path in (ROOT / 'experiments').glob('*.py')}
  studies = {path.stem: [m for m in modules if f'{path.stem}_'.startswith(f'{m}_')] for path in (ROOT / 'configs').glob('*.py')}
  names = sorted(study for study, found in studies.items() if found and study != '__init__')
  if name not in names:
    raise UserError(f'{given}: there is no study {name!r}; the studies are {", ".join(names)}.{nearest(name, names)}')
  variants = importlib.import_module(f'configs.{name}').VARIANTS
  if variant not in variants:
    close = nearest(variant, variants)
    raise UserError(f'{given}: {name} has no variant {variant!r}; allowed: {", ".join(filter(None, variants))}, or none.{close}')
  module = max(studies[name], key=len)
  config = f'configs/{name}.py{variant and ":" + variant}'
  return [sys.executable, '-m', f'experiments.{module}', f'--config={config}', f'--workdir={out / given}']


def room() -> int:
  """How many studies this machine can run at a time: as many as this process may use cores, up to MOST; one where there is an accelerator.

  Only one process can hold a TPU, and one takes most of a GPU's memory. A process of its own looks, since looking holds them too.
  """
  look = subprocess.run([sys.executable, '-c', 'import jax; print(jax.default_backend())'], capture_output=True, text=True, check=False)
  return min(len(os.sched_getaffinity(0)), MOST) if look.stdout.strip() == 'cpu' else 1


class Together:
  """Runs commands by name, so many at a time."""

  def __init__(self, commands: Mapping[str, Sequence[str]], at_once: int):
    self._waiting = collections.deque(enumerate(commands.items()))
    self._at_once = at_once
    self._running: dict[str, subprocess.Popen[str]] = {}
    self._lock = threading.Lock()
    self._signal: int | None = None
    self._told = set[str]()  # who has had the signal
    self.ended: dict[str, Ended] = {}

  def run(self) -> int | None:
    """Until all have ended; the signal that came, if one did."""
    before = {number: signal.signal(number, self._forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
      workers = [threading.Thread(target=self._work) for _ in range(self._at_once)]
      for worker in workers:
        worker.start()
      for worker in workers:
        while worker.is_alive():  # a join without end would keep Python from handling signals
          worker.join(0.1)
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)
    return self._signal

  def _forward(self, number: int, _: Any) -> None:
    self._signal = number
    for name, process in list(self._running.items()):
      self._told.add(name)
      process.send_signal(number)

  def _work(self) -> None:
    while (started := self._start_next()) is not None:
      name, process = started
      begin, last = time.monotonic(), ''
      with process:
        assert process.stdout is not None
        for line in process.stdout:
          last = line.rstrip() or last
          self._say(f'{name}: {line.rstrip()}')
        code = process.wait()
      self.ended[name] = Ended(code if code >= 0 else 128 - code, time.monotonic() - begin, last)
      del self._running[name]

  def _start_next(self) -> tuple[str, subprocess.Popen[str]] | None:
    with self._lock:
      if self._signal is not None or not self._waiting:
        return None
      place, (name, line) = self._waiting.popleft()
      # A group of its own: a terminal's Ctrl-C comes to this process alone, which hands it on once.
      pipe: dict[str, Any] = {'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'process_group': 0}
      environment = os.environ | {'PYTHONUNBUFFERED': '1'}
      process = subprocess.Popen(line, text=True, errors='replace', cwd=ROOT, env=environment, **pipe)
      self._running[name] = process
      if place:
        with contextlib.suppress(ProcessLookupError):  # it has ended
          os.setpriority(os.PRIO_PROCESS, process.pid, max(LATER, os.getpriority(os.PRIO_PROCESS, 0)))
    if self._signal is not None and name not in self._told:  # it came while the process was started
      process.send_signal(self._signal)
    return name, process

  def _say(self, text: str) -> None:
    with self._lock:
      print(text, flush=True)


def summary(names: Sequence[str], ended: Mapping[str, Ended], out: pathlib.Path) -> list[str]:
  """A line a study: how long it took and where its report is, or what it said last."""
  lines = []
  for name in names:
    if name not in ended:
      lines.append(f'{name}: not started')
    elif (found := ended[name]).code:
      lines.append(f'{name}: exit code {found.code} after {duration(found.seconds)}: {found.last}')
    else:
      lines.append(f'{name}: {duration(found.seconds)}, {out / name / "report.html"}')
  return lines


def write_index(out: pathlib.Path) -> pathlib.Path | None:
  """A page with a card for every report under the folder of workdirs; None if there is none."""
  reports = sorted(out.glob('*/report.html'))
  return report.write_index(out / 'index.html', [report.read_entry(path) for path in reports], title='Studies') if reports else None


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the studies of the command line; the exit code."""
  parser = argparse.ArgumentParser(prog='python -m experiments', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('studies', nargs='+', metavar='NAME[.VARIANT]')
  parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('runs'), help='folder of the workdirs')
  parser.add_argument('--at_once', type=int, default=0, help='studies at a time; 0: what the machine has room for')
  given = parser.parse_args(argv)
  out = given.out.absolute()
  try:
    if given.at_once < 0:
      raise UserError(f'--at_once={given.at_once} is no number of studies; give at least 1, or 0 for what the machine has room for.')
    commands = {name: command(name, out) for name in given.studies}
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  if len(commands) == 1:
    os.chdir(ROOT)
    (line,) = commands.values()
    os.execv(line[0], line)
  try:
    together = Together(commands, given.at_once or room())
  except KeyboardInterrupt:
    return 130
  stopped = together.run()
  print('\n'.join(summary(list(commands), together.ended, given.out)), flush=True)
  if stopped is not None:
    print('stopped: the same command goes on.', file=sys.stderr)
    return 128 + stopped
  if (index := write_index(out)) is not None:
    print(f'Open {index}')
  codes = [together.ended[name].code if name in together.ended else 1 for name in commands]
  return next(filter(None, codes), 0)


if __name__ == '__main__':
  sys.exit(main())
