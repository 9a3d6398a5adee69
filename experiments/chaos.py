"""The reliability matrix, for real: what a run must survive is done to it, and what came out is compared with what was asked.

Kills at random moments, signals that ask, resumption of every kind of state, damaged checkpoints, full and read-only disks, wrong
configs, numbers that are not finite, crashes in the middle of a line, other devices. The victim is a shipped experiment, started by its
own command in its own process.

    python -m experiments.chaos --config=configs/chaos.py --workdir=DIR     # or :tiny

Leaves DIR/report.html (open it), DIR/results.json with one entry a trial, and a folder a trial. The same command on the same DIR does the
trials that are not done, goes on inside those that kill, and tries again what failed. Exit code 1 where a row is not as asked.
"""

import functools
import importlib
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.chaos import RANGES
from entropy_jax.chaos import damage, fuzz, kills, layouts, matrix, numerics, resume, storage, table, torn
from entropy_jax.chaos.table import Row, Trial
from entropy_jax.chaos.victims import QUICK, Victim
from entropy_jax.training import app, ranges
from entropy_jax.training.files import say
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

ROOT = Path(__file__).resolve().parent.parent


def main(config: Any, workdir: Path) -> None:
  """Runs the trials that are not done, writes the report, and ends with code 1 where something is not as asked."""
  trials, started = validate(config, workdir), time.monotonic()
  results = table.run_trials(trials, workdir)
  path = matrix.write(workdir, results, time.monotonic() - started)
  failed = table.failures(results)
  print(f'report: {path}')
  if failed:
    say(f'{len(failed)} rows are not as asked, the first: {failed[0].id}, {failed[0].what}: {failed[0].measured}; see {path}.')
    sys.exit(1)


def validate(config: Any, workdir: Path) -> list[Trial]:
  """The trials of a right config; a mistake is told before any of them runs."""
  plain = app.resolve(config)
  ranges.check(plain, RANGES)
  ranges.check_launch(plain)
  if jax.process_count() > 1:
    raise UserError('config: distributed: the matrix runs in one process and starts its own; leave it empty.')
  known = {trial.id: trial for trial in _Matrix(config, workdir).trials()}
  chosen = [name.strip() for name in config.trials.split(',') if name.strip()]
  for name in chosen:
    if name not in known:
      raise UserError(f'config: trials={config.trials!r}: {name!r} is none of {", ".join(known)}.{nearest(name, list(known))}')
  for name in config.layouts.methods.split(','):
    if name not in layouts.METHODS:
      raise UserError(f'config: layouts.methods: {name!r} is none of {", ".join(layouts.METHODS)}.{nearest(name, list(layouts.METHODS))}')
  for folder in ('experiments', 'configs'):
    if not (ROOT / folder / f'{config.victim.name}.py').is_file():
      file = f'{folder}/{config.victim.name}.py'
      raise UserError(f'config: victim.name={config.victim.name!r}: there is no {file}; give the name of an experiment.')
  return [known[name] for name in chosen]


def _afresh(run: Callable[[Path], Sequence[Row]]) -> Callable[[Path], Sequence[Row]]:
  """For a trial that does not go on where it was stopped: in an empty folder."""

  def emptied(folder: Path) -> Sequence[Row]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return run(folder)

  return emptied


class _Matrix:
  """The trials of a config, and what they share: the victim and its undisturbed run."""

  def __init__(self, config: Any, workdir: Path):
    self._config, self._workdir = config, workdir.absolute()
    cache = str(self._workdir / config.victim.cache_dir)
    environment = {
      'JAX_PLATFORMS': 'cpu',  # several at a time, which an accelerator does not allow
      'XLA_FLAGS': QUICK,
      'JAX_COMPILATION_CACHE_DIR': cache,
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }
    self._victim = Victim(self._command, ROOT, environment)

  def trials(self) -> list[Trial]:
    found = {
      'R1': ('SIGKILL at random moments', self._kills),
      'R2': ('SIGTERM and SIGINT at random moments', self._signals),
      'R3': ('every kind of state, resumed twice', _afresh(self._resume)),
      'R4': ('damaged checkpoints', _afresh(self._damage)),
      'R5': ('full disk, read-only folder, two processes', _afresh(self._storage)),
      'R6': ('wrong configs', _afresh(self._fuzz)),
      'R12': ('numbers that are not finite', _afresh(self._numerics)),
      'R15': ('crashes of the metric writer', _afresh(self._torn)),
      'P': ('the same numbers on other devices', _afresh(self._equality)),
      'E': ('resumed on other numbers of devices', _afresh(self._elastic)),
    }
    return [Trial(name, what, run) for name, (what, run) in found.items()]

  def _command(self, workdir: Path) -> list[str]:
    victim = self._config.victim
    overrides = [f'--config.{override}' for override in victim.overrides.split()]
    # Prepared once, by the undisturbed run.
    overrides.append(f'--config.countdown.data_dir={self._workdir / "data"}')
    given = f'--config={ROOT / "configs" / victim.name}.py' + (f':{victim.variant}' if victim.variant else '')
    return [sys.executable, '-m', f'experiments.{victim.name}', given, f'--workdir={workdir}', *overrides]

  @staticmethod
  def _prepare(workdir: Path) -> None:
    workdir.mkdir(parents=True)

  def _whole(self) -> Path:
    return kills.undisturbed(self._victim, self._workdir / 'undisturbed', self._prepare)

  def _campaign(self, plan: kills.Plan, folder: Path, description: str) -> tuple[list[kills.Ending], list[dict[str, Any]]]:
    return kills.Campaign(self._victim, plan, folder, self._whole(), self._prepare).run(description)

  def _kills(self, folder: Path) -> Sequence[Row]:
    given, config = self._config.kills, self._config
    spread = {'window': given.window, 'per_run': given.per_run, 'at_once': config.at_once}
    plan = kills.Plan(given.number, starts=given.starts, seed=config.seed, **spread)
    return kills.kill_rows(*self._campaign(plan, folder, 'R1 kills'), given.number + given.starts)

  def _signals(self, folder: Path) -> Sequence[Row]:
    given, config = self._config.signals, self._config
    spread = {'window': config.kills.window, 'per_run': given.per_run, 'at_once': config.at_once}
    plan = kills.Plan(given.number, (signal.SIGTERM, signal.SIGINT), seed=config.seed + 1, **spread)
    return kills.signal_rows(*self._campaign(plan, folder, 'R2 signals'), given.number)

  def _resume(self, folder: Path) -> Sequence[Row]:
    return matrix.grid_rows(resume.run_grid(folder, resume.cells()[:: self._config.resume.every]))

  def _damage(self, folder: Path) -> Sequence[Row]:
    newest = max(self._whole().rglob('checkpoints'), key=lambda path: path.stat().st_mtime)
    return damage.rows(damage.run(newest, folder, self._config.damage.flips, seed=self._config.seed))

  def _storage(self, folder: Path) -> Sequence[Row]:
    cases = self._config.storage.cases
    rooms = np.linspace(0.0, 0.5, cases).tolist() if cases > 1 else [0.4]  # more than half may do: an older step makes room
    return storage.run(self._victim, folder, self._whole(), self._prepare, rooms)

  def _fuzz(self, folder: Path) -> Sequence[Row]:
    bases, check = self._bases()
    cases = fuzz.generate(self._config.seed, bases, num_cases=self._config.fuzz.cases)
    return matrix.fuzz_rows(fuzz.run(cases, check, folder), fuzz.run(fuzz.shipped(bases), check, folder))

  def _bases(self) -> tuple[list[fuzz.Base], Callable[[list[str]], None]]:
    """The victim's shipped configs, and what refuses a wrong one."""
    name = self._config.victim.name
    experiment, file = importlib.import_module(f'experiments.{name}'), importlib.import_module(f'configs.{name}')
    bases = []
    for variant in file.VARIANTS:
      argument = f'{ROOT / "configs" / name}.py' + (f':{variant}' if variant else '')
      config, _ = app.parse(['chaos', f'--config={argument}', '--workdir=runs'])
      bases.append(fuzz.Base(argument, app.resolve(config), file.RANGES, experiment.ABSENT))
    return bases, functools.partial(_check, experiment.validate)

  def _numerics(self, folder: Path) -> Sequence[Row]:
    given = self._config.numerics.steps
    outcomes = [numerics.harmed_run(folder / place, place, given, seed=self._config.seed) for place in numerics.PLACES]
    return numerics.rows(outcomes, numerics.stopped_run(folder / 'stopped'))

  def _torn(self, folder: Path) -> Sequence[Row]:
    return torn.rows(torn.run(folder, self._config.torn.crashes))

  def _equality(self, folder: Path) -> Sequence[Row]:
    given = self._config.layouts
    chosen = layouts.LAYOUTS[: given.number]
    return matrix.equality_rows(layouts.equality(folder, given.methods.split(','), chosen, given.num_steps))

  def _elastic(self, folder: Path) -> Sequence[Row]:
    num_devices = (1, 8, 2)
    found = layouts.elastic(folder, num_devices=num_devices, steps_each=self._config.layouts.steps_each)
    return matrix.elastic_rows(found, num_devices)


def _check(validate: Callable[[Any], Any], argv: list[str]) -> None:
  """What the victim's command does before anything runs."""
  config, _ = app.parse(argv)
  validate(config)


if __name__ == '__main__':
  app.run(main)
