"""Run folders as arrays: metrics.jsonl, config.json, environment.json, and all runs of a study."""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from entropy_jax.transform import nearest
from entropy_jax.types import UserError

METRICS = 'metrics.jsonl'
Path = str | pathlib.Path
RunMetrics = dict[str, np.ndarray]


def load_metrics(directory: Path) -> RunMetrics:
  """The logged curves of one run, by key, in the order of their steps.

  Args:
    directory: a run folder, holding `metrics.jsonl`: one JSON object a logged step, with `step` and `room/name` keys.

  Returns:
    `step`: int64 [N], strictly increasing; every other key: float64 [N], NaN in the rows that lack it (or hold null).

  Limits: a torn last line (the run was killed while writing it) is left out with a note in the log; a torn line
    anywhere else, a row without a step and a step logged twice are errors.
  """
  path = pathlib.Path(directory) / METRICS
  if not path.is_file():
    raise UserError(f'{directory} is no run folder, it holds no {METRICS}: give the workdir of a run that has started.')
  rows: dict[int, Mapping[str, Any]] = {}
  lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
  for number, line in enumerate(lines, start=1):
    try:
      row = json.loads(line)
    except json.JSONDecodeError as error:
      if number == len(lines):
        logging.warning('%s: line %d is torn and was left out.', path, number)
        break
      raise UserError(
        f'{path} is damaged, line {number} is no JSON object: delete the line or run again from a new workdir.'
      ) from error
    step = row.get('step') if isinstance(row, dict) else None
    if not isinstance(step, int) or isinstance(step, bool):
      raise UserError(f'{path} is damaged, line {number} holds no integer "step": delete the line or run again.')
    if step in rows:
      raise UserError(f'{path} holds step {step} twice, again at line {number}: give each run a workdir of its own.')
    rows[step] = row
  if not rows:
    raise UserError(f'{path} holds no logged step: let the run log at least one step before reading it.')
  step_N = np.array(sorted(rows), np.int64)
  names = sorted({name for row in rows.values() for name in row} - {'step'})
  return {'step': step_N} | {
    name: np.array([_as_float(path, step, name, rows[step].get(name)) for step in step_N.tolist()]) for name in names
  }


def _as_float(path: pathlib.Path, step: int, name: str, value: Any) -> float:
  if value is None:
    return float('nan')
  if not isinstance(value, int | float):
    raise UserError(f'{path} holds {name} = {value!r} at step {step}: a metric is one number, log others elsewhere.')
  return float(value)


def load_config(directory: Path) -> dict[str, Any]:
  """The resolved config of a run (`config.json`)."""
  return _load_object(pathlib.Path(directory) / 'config.json')


def ordered(names: Iterable[str], first: Sequence[str]) -> list[str]:
  """Names in the order of `first`, and those that it does not have behind, by name: a config.json has lost the order of its groups.

  >>> ordered(['a', 'fused', 'whole'], ('whole', 'fused'))
  ['whole', 'fused', 'a']
  """
  return sorted(names, key=lambda name: (first.index(name) if name in first else len(first), name))


def load_environment(directory: Path) -> dict[str, Any]:
  """Versions, devices and git commit of a run (`environment.json`)."""
  return _load_object(pathlib.Path(directory) / 'environment.json')


def _load_object(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_file():
    raise UserError(f'{path} does not exist: give the workdir of a run that has started.')
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise UserError(f'{path} is damaged, it is no JSON: run again from a new workdir.') from error
  if not isinstance(found, dict):
    raise UserError(f'{path} holds a {type(found).__name__}, a JSON object is needed: run again from a new workdir.')
  return found


def find_runs(root: Path) -> list[pathlib.Path]:
  """Every run folder at or below `root` (a folder with metrics.jsonl), sorted by path."""
  root = pathlib.Path(root)
  if not root.is_dir():
    raise UserError(f'{root} is no folder: give the workdir of a run or a folder of runs.')
  found = sorted(pathlib.Path(place) for place, _, names in os.walk(root) if METRICS in names)  # a folder may go while a run goes on
  if not found:
    raise UserError(f'{root} holds no run, no {METRICS} at or below it: give the workdir of a run or a folder of runs.')
  return found


def load_study(root: Path) -> dict[str, RunMetrics]:
  """The metrics of every run at or below `root`, by the run's path relative to `root` ('.' for `root` itself)."""
  return {path.relative_to(root).as_posix(): load_metrics(path) for path in find_runs(root)}


def stack_runs(runs: Sequence[RunMetrics], name: str) -> tuple[np.ndarray, np.ndarray]:
  """One metric of several runs of one setting, side by side.

  Args:
    runs: what `load_metrics` returned for each run.
    name: the metric's key.

  Returns:
    step_N: int64, the steps at which every run logged the metric.
    value_RxN: float64, finite where the runs logged a finite number.

  Limits: steps that only some of the runs reached are left out, so that every column holds all seeds.
  """
  if not runs:
    raise UserError(f'no run was given to read {name} from: give at least one.')
  for index, run in enumerate(runs):
    if name not in run:
      raise UserError(f'run {index} holds no metric {name}.{nearest(name, sorted(run)) or " It holds " + ", ".join(sorted(run)) + "."}')
  logged = [dict(zip(run['step'].tolist(), run[name].tolist())) for run in runs]
  steps = sorted(step for step in logged[0] if all(step in row for row in logged))
  value_RxN = np.array([[row[step] for step in steps] for row in logged], np.float64).reshape(len(runs), len(steps))
  somewhere_N = ~np.all(np.isnan(value_RxN), axis=0)
  return np.array(steps, np.int64)[somewhere_N], value_RxN[:, somewhere_N]
