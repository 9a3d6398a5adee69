"""Runs that are ended again and again, by SIGKILL or by a signal that asks, and the comparison with the run that nothing ended.

A run is started, ended at its moment, started again, until all its moments are used; then it may finish, and is compared. The moments:
three fifths are uniform over a window of training, one tenth each waits for a step, a save, the first save of a run folder, an
evaluation. Further kills, beyond the number that was asked, hit the start of a process.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from entropy_jax.chaos import compare
from entropy_jax.chaos.table import Row
from entropy_jax.chaos.victims import (
  EVALUATE,
  FIRST_SAVE,
  PHASES,
  SAVE,
  START,
  STEP,
  TRAINING,
  Running,
  Victim,
  is_first_save,
  newest_save,
)
from entropy_jax.training.progress import Progress
from entropy_jax.training.writers import read_rows

ANY = 'any'
ENDINGS, RUNS = 'endings.jsonl', 'runs.jsonl'


class Moment(NamedTuple):
  """When a process is ended.

  Attributes:
    aim: 'any', uniform over the window of training; 'start', uniform over the start of the process; else the phase to wait for.
    delay: seconds into the window, or into the phase once it is seen.
    signal: that ends it.
  """

  aim: str
  delay: float
  signal: int


class Ending(NamedTuple):
  """An ended process, as the journal keeps it.

  Attributes:
    run: number of the run.
    aim, phase: where it was to be hit, and what it was doing.
    signal, code: that was sent, and the exit code as a shell gives it.
    training_seconds: from the first step of the process to its end; 0 if there was none.
    lost_seconds: of training that the next process has to do again: since the newest complete save, or since training began.
    start_seconds: from the start of the process to the first step.
    saved_seconds: from the signal to the end of the last save; for signals that ask.
    exit_seconds: from the signal to the end of the process.
    steps_after: steps that were finished after the signal.
  """

  run: int
  aim: str
  phase: str
  signal: int
  code: int
  training_seconds: float
  lost_seconds: float
  start_seconds: float
  saved_seconds: float
  exit_seconds: float
  steps_after: int


@dataclasses.dataclass(frozen=True)
class Plan:
  """How many endings, and how they are spread.

  Attributes:
    number: endings after training began.
    signals: taken in turn.
    window: seconds of training within which the uniform moments lie.
    starts: further endings while a process starts.
    start_window: seconds from the start of a process within which these lie.
    per_run: endings of one run before it may finish.
    at_once: runs at a time.
    seed: of the moments.
  """

  number: int
  signals: Sequence[int] = (signal.SIGKILL,)
  window: float = 1.6
  starts: int = 0
  start_window: float = 4.0
  per_run: int = 8
  at_once: int = 2
  seed: int = 0

  def moments(self) -> list[list[Moment]]:
    """The moments of each run; a first save can only be hit before any other, so such a moment comes first."""
    rng = random.Random(self.seed)
    tenth = max(self.number // 10, 1) if self.number >= 4 else 0
    aims = [aim for aim in (STEP, SAVE, EVALUATE) for _ in range(tenth)] + [START] * self.starts
    aims += [ANY] * (self.number + self.starts - len(aims) - tenth)
    rng.shuffle(aims)
    count = max(-(-(len(aims) + tenth) // self.per_run), 1)
    runs = [[FIRST_SAVE] * (i < tenth) for i in range(count)]
    runs[0] += [FIRST_SAVE] * max(tenth - count, 0)
    for aim in aims:
      min(runs, key=len).append(aim)
    reach = {ANY: self.window, START: self.start_window, FIRST_SAVE: 0.05}  # a first save is soon over, and there is one a run
    signals = itertools.cycle(self.signals)
    return [[Moment(aim, rng.uniform(0.0, reach.get(aim, 0.03)), next(signals)) for aim in run] for run in runs]


def undisturbed(victim: Victim, folder: Path, prepare: Callable[[Path], None]) -> Path:
  """The workdir of the run to compare with, which is made once."""
  whole, done = folder / 'whole', folder / 'whole.done'
  if not done.exists():
    shutil.rmtree(whole, ignore_errors=True)
    prepare(whole)
    code, said = victim.finish(whole, folder / 'notes' / 'whole')
    if code != 0:
      raise RuntimeError(f'the undisturbed run ended with {code}: {said[-500:]}')
    done.touch()
  return whole


def _journal(path: Path) -> list[dict[str, Any]]:
  return read_rows(path) if path.exists() else []


class Campaign:
  """All the endings of a plan. Its folder keeps a journal, so that a campaign that is stopped goes on at the run it was in.

  Args:
    victim: the command.
    plan: what is done to it.
    folder: holds the runs and the journal.
    whole: the run to compare with.
    prepare: makes the workdir of a run before its first start.
  """

  def __init__(self, victim: Victim, plan: Plan, folder: Path, whole: Path, prepare: Callable[[Path], None]):
    self._victim, self._plan, self._folder, self._prepare = victim, plan, folder, prepare
    self._moments = plan.moments()
    self._expected = compare.fingerprint(whole)
    self._lock = threading.Lock()
    folder.mkdir(parents=True, exist_ok=True)
    self._endings = [Ending(**row) for row in _journal(folder / ENDINGS)]
    self._runs = _journal(folder / RUNS)

  def run(self, description: str) -> tuple[list[Ending], list[dict[str, Any]]]:
    """(every ending, every run with what differed in it)."""
    total = sum(map(len, self._moments))
    self._bar = Progress(total, initial=min(len(self._endings), total), description=description, shown=())
    finished = {row['run'] for row in self._runs if row['last']}
    left = [i for i in range(len(self._moments)) if i not in finished]
    with concurrent.futures.ThreadPoolExecutor(self._plan.at_once) as pool:
      waiting = [pool.submit(self._one, i) for i in left]
      try:
        for done in concurrent.futures.as_completed(waiting):
          done.result()
      except BaseException:
        self._victim.stop.set()
        pool.shutdown(cancel_futures=True)
        raise
      finally:
        self._bar.close()
    return list(self._endings), list(self._runs)

  def _write(self, name: str, row: dict[str, Any]) -> None:
    with open(self._folder / name, 'a', encoding='utf-8') as file:
      file.write(json.dumps(row) + '\n')

  def _notes(self, number: int) -> Path:
    return self._folder / 'notes' / f'run_{number}'

  def _one(self, number: int) -> None:
    """One run with all its moments; where it finishes before one of them, it is compared and another run takes its place."""
    workdir, moments = self._folder / f'run_{number}', self._moments[number]
    while True:
      made = sum(ending.run == number for ending in self._endings)
      code, said = 0, ''
      if made < len(moments):
        found = self._end(number, moments[made], workdir)
        if isinstance(found, Ending):
          with self._lock:
            self._endings.append(found)
            self._write(ENDINGS, found._asdict())
            self._bar.update(min(len(self._endings), sum(map(len, self._moments))), {})
          continue
        code, said = found
      else:
        code, said = self._victim.finish(workdir, self._notes(number))
      wrong = [f'exit code {code}: {said[-300:]}'] if code else compare.differences(self._expected, compare.fingerprint(workdir))
      with self._lock:
        before = sum(row['endings'] for row in self._runs if row['run'] == number)
        row = {'run': number, 'endings': made - before, 'differences': wrong, 'last': made >= len(moments) or bool(code)}
        self._runs.append(row)
        self._write(RUNS, row)
      if not wrong:
        shutil.rmtree(workdir)  # one that differs stays, for who wants to know why
      elif not row['last']:
        workdir.rename(workdir.with_name(f'{workdir.name}_differs_{made}'))
      if row['last']:
        return

  def _end(self, number: int, moment: Moment, workdir: Path) -> Ending | tuple[int, str]:
    """Starts the run and ends it at the moment; (exit code, what it said) if it finished before."""
    if not workdir.exists():
      self._prepare(workdir)
    asks = moment.signal != signal.SIGKILL
    with self._victim.started(workdir, self._notes(number)) as running:
      began = time.time()
      if moment.aim != START:
        running.until_training()
      training = time.time()
      if moment.aim in (START, ANY):
        _sleep(moment.delay, running)
      else:
        if moment.aim != FIRST_SAVE:
          _sleep(moment.delay * 10, running)  # not only the first of its kind in a process
        wanted = (SAVE,) if moment.aim == FIRST_SAVE else (moment.aim,)
        for delay in (moment.delay, moment.delay / 4, 0.0):  # shorter where the phase was over before
          running.until(wanted, timeout=10.0)
          _sleep(delay, running)
          if running.phase() in wanted:
            break
      if asks:
        running.until(TRAINING, timeout=60.0)  # outside of training a signal ends a process as it ends any other
      phase, steps = running.phase(), running.steps()
      sent = running.send(moment.signal)
      code = running.wait(120.0)
      gone = time.time()
      if code != 128 + moment.signal:
        return code, running.said()
      phase = phase if asks else running.phase()
      more = running.steps() - steps
      if phase == SAVE and not asks and is_first_save(workdir):
        phase = FIRST_SAVE
    saved = newest_save(workdir)
    since = max(training, saved or 0.0)
    begun = moment.aim != START
    return Ending(
      run=number,
      aim=moment.aim,
      phase=phase,
      signal=moment.signal,
      code=code,
      training_seconds=sent - training if begun else 0.0,
      lost_seconds=max(sent - since, 0.0) if begun else 0.0,
      start_seconds=training - began if begun else 0.0,
      saved_seconds=max((saved or 0.0) - sent, 0.0) if asks else 0.0,
      exit_seconds=gone - sent,
      steps_after=more,
    )


def _sleep(seconds: float, running: Running) -> None:
  """Sleeps, no longer than the process lives."""
  deadline = time.monotonic() + seconds
  while running.ended() is None and (left := deadline - time.monotonic()) > 0:
    time.sleep(min(left, 0.01))


def _quantiles(values: Sequence[float]) -> str:
  if not values:
    return 'none'
  return f'median {np.median(values):.2f} s, most {max(values):.2f} s'


def _by_phase(endings: Sequence[Ending]) -> str:
  return ', '.join(f'{sum(e.phase == phase for e in endings)} in {phase}' for phase in PHASES if any(e.phase == phase for e in endings))


def _first_wrong(runs: Sequence[dict[str, Any]]) -> str:
  found = next((row for row in runs if row['differences']), None)
  return '' if found is None else f' Run {found["run"]}: {"; ".join(found["differences"][:5])}.'


def kill_rows(endings: Sequence[Ending], runs: Sequence[dict[str, Any]], number: int, *, id: str = 'R1') -> list[Row]:
  """The rows of R1."""
  equal = sum(row['endings'] for row in runs if not row['differences'])
  total = len(endings)
  training = [e for e in endings if e.aim != START]
  hit = {SAVE if e.phase == FIRST_SAVE else e.phase for e in endings}  # a first save is a save
  missing = [phase for phase in (STEP, SAVE, EVALUATE) if phase not in hit]
  rows_wrong = sum(any('metrics.jsonl' in name for name in row['differences']) for row in runs)
  again = _quantiles([e.start_seconds for e in training])
  detail = (
    f'{_by_phase(endings)}; {len(runs)} runs; training to do again: {_quantiles([e.lost_seconds for e in training])}; '
    f'time to the first step of a process: {again}.{_first_wrong(runs)}'
  )
  done = total >= number
  return [
    Row(
      id,
      f'{total} SIGKILLs of the study, {len(training)} of them after training began',
      f'{number} of {number} kills in runs whose parameters, optimizer, controllers and metrics end bitwise equal',
      f'{equal}/{total} bitwise equal',
      done and equal == total,
      detail=detail,
    ),
    Row(
      id,
      'metric rows of those runs',
      'none lost, none doubled',
      f'metrics.jsonl bitwise equal in {len(runs) - rows_wrong}/{len(runs)} runs',
      done and rows_wrong == 0,
      detail='Every metrics.jsonl of a run is compared as bytes with that of the undisturbed run.',
    ),
    Row(
      id,
      'when the kills hit',
      'in a step, in a save and in an evaluation',
      _by_phase(endings),
      not missing,
      detail=f'Not hit: {", ".join(missing)}.' if missing else 'Read from the stack of the process just before, and from what it left.',
    ),
  ]


def signal_rows(endings: Sequence[Ending], runs: Sequence[dict[str, Any]], number: int, *, id: str = 'R2') -> list[Row]:
  """The rows of R2."""
  equal = sum(row['endings'] for row in runs if not row['differences'])
  total = len(endings)
  coded = sum(e.code == 128 + e.signal for e in endings)
  in_time = sum(e.steps_after <= 1 for e in endings)
  names = ', '.join(f'{sum(e.signal == s for e in endings)} {signal.Signals(s).name}' for s in sorted({e.signal for e in endings}))
  exits = _quantiles([e.exit_seconds for e in endings])
  return [
    Row(
      id,
      f'{total} signals to the study ({names})',
      f'{number} of {number} exit with 143 or 130, resume, and end bitwise equal',
      f'{coded}/{total} exit codes, {equal}/{total} bitwise equal',
      total >= number and coded == equal == total,
      detail=f'{_by_phase(endings)}; from the signal to the end of the process: {exits}.{_first_wrong(runs)}',
    ),
    Row(
      id,
      'steps between the signal and its save',
      'at most the one that was being made',
      f'{in_time}/{total}; saved after: {_quantiles([e.saved_seconds for e in endings])}',
      in_time == total,
      detail='Steps are counted by the process. 0 s where the signal came as a save ended; an evaluation that was running is ended too.',
    ),
  ]
