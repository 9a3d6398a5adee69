"""What a run measures, in files: metrics.jsonl is the record, TensorBoard a view of it, timings.jsonl the wall clock.

metrics.jsonl holds one JSON object a logged step: first `step`, then the other keys sorted, floats in the shortest
decimal that reads back exactly. It holds no time of day and no duration, so that equal runs leave bitwise equal files,
interrupted or not. Seconds and tokens per second go to timings.jsonl.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import jax
from tensorboardX import SummaryWriter

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


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """The rows of a metrics or timings file; a last line torn by a kill is left out."""
  with open(path, encoding='utf-8') as file:
    return [json.loads(line) for line in file if line.endswith('\n')]


def drop_rows(path: Path, start_step: int) -> int:
  """Cuts a file of rows at the first row of `start_step` or later, torn last line included.

  Returns:
    How many rows are left.

  Raises:
    UserError: a line among those to keep is not a row.
  """
  if not path.exists():
    return 0
  kept, end = 0, 0
  with open(path, 'r+b') as file:
    for line in file:
      if not line.endswith(b'\n'):
        break
      found = _STEP.match(line)
      if found is None:
        where = f'{path}: line {kept + 1} is not a metrics row'
        raise UserError(f'{where}; restore the file from a copy, or give another --workdir.')
      if int(found.group(1)) >= start_step:
        break
      kept, end = kept + 1, end + len(line)
    file.truncate(end)
  return kept


class MetricWriter:
  """Writes metric rows, on process 0 only.

  Args:
    workdir: holds metrics.jsonl, timings.jsonl and tensorboard/.
    start_step: rows of this step and later are of a run that was killed after its last checkpoint; they are dropped.
    tensorboard: False writes the two JSON files alone.
  """

  def __init__(self, workdir: str | os.PathLike[str], start_step: int = 0, *, tensorboard: bool = True):
    self.rows = 0  # rows in metrics.jsonl
    self._metrics: IO[str] | None = None
    self._timings: IO[str] | None = None
    self._tensorboard: SummaryWriter | None = None
    if jax.process_index() != 0:
      return
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    self.rows = drop_rows(workdir / METRICS, start_step)
    drop_rows(workdir / TIMINGS, start_step)
    self._metrics = open(workdir / METRICS, 'a', encoding='utf-8')  # noqa: SIM115
    self._timings = open(workdir / TIMINGS, 'a', encoding='utf-8')  # noqa: SIM115
    if tensorboard:
      self._tensorboard = SummaryWriter(str(workdir / 'tensorboard'), purge_step=start_step)

  def write(self, step: int, values: Mapping[str, float | int | bool]) -> None:
    """Appends one row; values are finite Python numbers."""
    if self._metrics is None:
      return
    self._metrics.write(format_row(step, values) + '\n')
    self.rows += 1
    if self._tensorboard is not None:
      for name, value in values.items():
        self._tensorboard.add_scalar(name, float(value), step)

  def write_timings(self, step: int, seconds: Mapping[str, float]) -> None:
    """Appends one row of wall-clock figures."""
    if self._timings is not None:
      self._timings.write(format_row(step, {k: round(v, 6) for k, v in seconds.items() if math.isfinite(v)}) + '\n')

  def flush(self) -> None:
    """Returns when every row is on the disk: a checkpoint may then say that they are."""
    for file in (self._metrics, self._timings):
      if file is not None:
        file.flush()
        os.fsync(file.fileno())
    if self._tensorboard is not None:
      self._tensorboard.flush()

  def close(self) -> None:
    if self._metrics is None or self._metrics.closed:
      return
    self.flush()
    for file in (self._metrics, self._timings, self._tensorboard):
      if file is not None:
        file.close()
