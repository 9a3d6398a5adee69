"""The reliability matrix as data: rows with what was asked and what was measured, kept in a file so that a stopped matrix goes on."""

import dataclasses
import json
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from entropy_jax.training.files import say, write_atomically
from entropy_jax.training.progress import duration
from entropy_jax.types import UserError

RESULTS = 'results.json'


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the matrix.

  Attributes:
    id: of the matrix, such as 'R1'; several rows may share it.
    what: what was done to the run.
    asked: what must come out, written before the trial.
    measured: what came out, such as '100/100 equal'.
    passed: whether that is what was asked.
    seconds: what the row took; 0 lets the table fill in the trial's.
    detail: how it was done and what else was seen; in a row that failed, what the first failure was.
  """

  id: str
  what: str
  asked: str
  measured: str
  passed: bool
  seconds: float = 0.0
  detail: str = ''


@dataclasses.dataclass(frozen=True)
class Trial:
  """Work that gives rows; `run` gets a folder of its own, which holds what an earlier call that was stopped left there."""

  id: str
  what: str
  run: Callable[[Path], Sequence[Row]]


def read_results(workdir: Path) -> dict[str, list[Row]]:
  """The rows of the trials that are done, by trial."""
  path = workdir / RESULTS
  if not path.exists():
    return {}
  try:
    found: dict[str, list[dict[str, Any]]] = json.loads(path.read_text(encoding='utf-8'))
    return {trial: [Row(**row) for row in rows] for trial, rows in found.items()}
  except (ValueError, TypeError, AttributeError):
    raise UserError(f'{path} is damaged; delete it to run every trial again, or give another --workdir.') from None


def write_results(workdir: Path, results: dict[str, list[Row]]) -> None:
  rows = {trial: [dataclasses.asdict(row) for row in found] for trial, found in results.items()}
  write_atomically(workdir / RESULTS, json.dumps(rows, indent=2, ensure_ascii=False) + '\n')


def run_trials(trials: Sequence[Trial], workdir: Path, *, now: Callable[[], float] = time.monotonic) -> dict[str, list[Row]]:
  """Runs the trials that have no entry in results.json yet, one after the other; each is entered as soon as it is done.

  A trial that raises is a row that failed, with the exception as its detail, and the others still run. The same command tries again
  what failed, from the beginning; what the trial left is kept as FOLDER.failed.

  Returns:
    rows by trial, in the order of `trials`.
  """
  done = read_results(workdir)
  for name in [name for name, rows in done.items() if not all(row.passed for row in rows)]:
    del done[name]
    if (workdir / name).exists():
      shutil.rmtree(workdir / f'{name}.failed', ignore_errors=True)
      (workdir / name).rename(workdir / f'{name}.failed')
  left = [trial for trial in trials if trial.id not in done]
  if len(left) < len(trials):
    say(f'{len(trials) - len(left)} of {len(trials)} trials were done before: {workdir / RESULTS} holds their rows.')
  found = dict(done)
  for number, trial in enumerate(left, start=len(trials) - len(left) + 1):
    say(f'[{number}/{len(trials)}] {trial.id}: {trial.what}')
    begin = now()
    try:
      rows = list(trial.run(workdir / trial.id))
    except Exception as error:  # whatever went wrong is the finding, and the other trials do not depend on it
      text = ' '.join(f'{type(error).__name__}: {error}'.split())
      rows = [Row(trial.id, trial.what, 'the trial ends', 'it raised', False, now() - begin, text[:1000])]
      say(traceback.format_exc())
    seconds = now() - begin
    rows = [row if row.seconds else dataclasses.replace(row, seconds=seconds) for row in rows]
    found[trial.id] = done[trial.id] = rows
    write_results(workdir, done)
    for row in rows:
      say(f'    {"ok  " if row.passed else "FAIL"} {row.what}: {row.measured} ({duration(row.seconds)})')
      if not row.passed:
        say(f'         asked: {row.asked}; {row.detail}')
  return {trial.id: found[trial.id] for trial in trials}


def failures(results: dict[str, list[Row]]) -> list[Row]:
  return [row for rows in results.values() for row in rows if not row.passed]
