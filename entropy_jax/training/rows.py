"""From the metrics of a step, still being computed, to its row in metrics.jsonl, its timings, and what the progress shows."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from entropy_jax.training.faults import REJECTED, TOTAL, Faults, NonFiniteError, describe, split_row
from entropy_jax.training.progress import Clock, Progress, pick
from entropy_jax.training.writers import MetricWriter

Row = dict[str, float | int | bool]
TOKENS = 'tokens/'  # metrics that count tokens of a kind: prompt, generated, scored
EXAMPLES = 'rollout/num_sequences'
HEADLINE = ('generated', 'scored', 'prompt')  # tokens_per_second is that of the first that there is


class Pending(NamedTuple):
  """A step whose metrics are still being computed, with all that a dump of it would need."""

  step: int
  metrics: Mapping[str, Any]
  evaluation: Row | None
  batch: Any
  inputs: Any
  seconds: Mapping[str, float]  # the clock's, up to where the device was left to it


def fetch(metrics: Mapping[str, Any]) -> Row:
  """Metrics as Python numbers, which repr writes exactly."""
  row: Row = {}
  for name, value in jax.device_get(dict(metrics)).items():
    if np.shape(value) != ():
      raise ValueError(f'metric {name!r} has shape {np.shape(value)}; reduce it to a scalar')
    row[name] = np.asarray(value).item()
  return row


def rates(seconds: float, counts: Mapping[str, float], num_devices: int) -> dict[str, float]:
  """What was done in a second, from the counts of tokens by kind and of sequences.

  >>> counts = {'tokens/prompt': 10.0, 'tokens/scored': 40.0, 'rollout/num_sequences': 8.0}
  >>> rates(2.0, counts, num_devices=4)  # doctest: +NORMALIZE_WHITESPACE
  {'tokens_per_second/prompt': 5.0, 'tokens_per_second/scored': 20.0, 'tokens_per_second': 20.0,
   'examples_per_second': 4.0, 'examples_per_second_per_device': 1.0}
  """
  seconds = max(seconds, 1e-9)
  kinds = {name.removeprefix(TOKENS): count / seconds for name, count in counts.items() if name.startswith(TOKENS)}
  found = {f'tokens_per_second/{kind}': rate for kind, rate in kinds.items()}
  headline = next((kind for kind in HEADLINE if kind in kinds), None)
  if headline is not None:
    found['tokens_per_second'] = kinds[headline]
  if EXAMPLES in counts:
    found['examples_per_second'] = counts[EXAMPLES] / seconds
    found['examples_per_second_per_device'] = found['examples_per_second'] / num_devices
  return found


def added(total: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
  """
  >>> added({'a': 1.0, 'b': 2.0}, {'b': 3.0, 'c': 4.0})
  {'a': 1.0, 'b': 5.0, 'c': 4.0}
  """
  return {**total, **{name: total.get(name, 0.0) + value for name, value in more.items()}}


class Rows:
  """Turns fetched metrics into rows: refuses what is not finite, then writes, shows and hands on.

  Args:
    writer, progress, clock, faults: where things go.
    step_key: step -> its key.
    last_good: the newest checkpoint, as (step or None, where checkpoints are).
    compile_seconds: seconds of compiling since the last call.
    description: stands before messages.
    log_every: steps between rows; a step with a refused update has one in any case.
    num_devices: for the figures per device.
    on_metrics: called with each row as it is written.
  """

  def __init__(
    self,
    *,
    writer: MetricWriter,
    progress: Progress,
    clock: Clock,
    faults: Faults,
    step_key: Callable[[int], jax.Array],
    last_good: Callable[[], tuple[int | None, str]],
    compile_seconds: Callable[[], float],
    description: str,
    log_every: int,
    num_devices: int,
    on_metrics: Callable[[int, Row], None] | None,
  ):
    self._writer, self._progress, self._clock, self._faults = writer, progress, clock, faults
    self._step_key, self._last_good, self._compile_seconds = step_key, last_good, compile_seconds
    self._description, self._log_every, self._num_devices, self._on_metrics = description, log_every, num_devices, on_metrics
    self._seconds: dict[str, float] = {}  # since the last row that was written, so that no second of the run is left out
    self._counts: dict[str, float] = {}

  def check(self, step: int, row: Row) -> None:
    """Stops the run where a value is not finite."""
    _, bad = split_row(row)
    if bad:
      self.fail(step, describe(bad), list(bad))

  def fail(self, step: int, what: str, names: list[str], where: str = '') -> None:
    """Raises NonFiniteError with the last finite values of these metrics and of the most telling others."""
    self._writer.flush()
    before = 'no finite values came before'
    last = self._faults.last_finite
    if last is not None:
      row = last['values']
      shown = {name: row[name] for name in names if name in row} | pick(row, ('loss', 'gradient_norm', 'entropy'))
      values = ', '.join(f'{name} {value:.6g}' for name, value in list(shown.items())[:6]) or 'nothing of the kind'
      before = f'the last finite values, of step {last["step"]}, are {values}'
    good, directory = self._last_good()
    checkpoint = f'the last good checkpoint is {"none yet" if good is None else f"step {good} in {directory}"}'
    raise NonFiniteError(
      f'step {step}: {what}; {before}; {where}{checkpoint}; the same command would end here again,'
      ' so change the settings (a smaller learning rate, clipping by max_grad_norm) and give another --workdir.'
    )

  def write(self, pending: Pending) -> None:
    """Waits for the metrics of a step and writes them with the evaluation of the policy that the step started from."""
    with self._clock.measure('update'):
      row = fetch(pending.metrics)
    self._seconds = added(self._seconds, pending.seconds)
    self._counts = added(self._counts, {name: value for name, value in row.items() if name.startswith(TOKENS) or name == EXAMPLES})
    evaluation = pending.evaluation or {}
    twice = sorted(row.keys() & evaluation.keys())
    if twice:
      raise ValueError(f'metric {twice[0]!r} comes from the step and from the evaluation; rename one')
    rejected = row.get(REJECTED, 0.0) > 0
    if not rejected:
      self.check(pending.step, row)
    finite, bad = split_row(row)
    too_many = self._faults.count(rejected)
    if self._faults.total:
      finite[TOTAL] = self._faults.total
    where = self._dump(pending, row, bad) if rejected else ''
    if not rejected:
      self._faults.last_finite = {'step': pending.step, 'values': row}
    self.put(pending.step, finite | evaluation, due=pending.step % self._log_every == 0 or bool(evaluation) or rejected)
    if too_many:
      refused = f'the update was refused, {self._faults.in_a_row} of {self._faults.max_rejected} allowed in a row'
      self.fail(pending.step, f'{describe(bad)} and {refused}', list(bad), f'{where}; ')

  def _dump(self, pending: Pending, row: Row, bad: Row) -> str:
    step = pending.step
    facts = {
      'rejected': row[REJECTED],
      'not_finite': {name: str(value) for name, value in bad.items()},
      'checkpoint': self._last_good()[0],
    }
    where = self._faults.dump(step, self._step_key(step), pending.batch, pending.inputs, facts)
    self._faults.tell(self._description, step, describe(bad), where)
    return where

  def put(self, step: int, row: Row, *, due: bool = True, done: int | None = None) -> None:
    """Writes a row with its timings if it is due, and shows it."""
    timings = self._timings()
    if due:
      self._writer.write(step, row)
      if done is None:
        self._writer.write_timings(step, timings)
        self._seconds, self._counts = {}, {}
      if self._on_metrics is not None:
        self._on_metrics(step, row)
    self._progress.update(step + 1 if done is None else done, row, timings.get('tokens_per_second'))

  def finish(self, step: int) -> None:
    """Writes the timings after the last row: evaluation and checkpoint of the final state."""
    self._writer.write_timings(step, self._timings())
    self._writer.flush()

  def collect(self) -> dict[str, float]:
    """The clock's seconds since the last call, and those of compiling within them."""
    compiling = self._compile_seconds()
    return self._clock.collect() | ({'seconds/compile': compiling} if compiling else {})

  def _timings(self) -> dict[str, float]:
    """Seconds, and what was done in one, since the last written row."""
    self._seconds = added(self._seconds, self.collect())
    return self._seconds | rates(self._seconds['seconds'], self._counts, self._num_devices)
