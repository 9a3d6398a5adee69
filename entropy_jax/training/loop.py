"""The one training loop: a run that can be killed at any moment and, started again, ends with the same bits.

The order of an iteration is a promise that resuming rests on:

    evaluate(old state) -> save -> next(batch) -> step -> write(metrics of the previous step)

Row k of metrics.jsonl belongs to the policy after k updates: the evaluation of that policy, where one is due, and the
metrics of the step that starts from it. A checkpoint of step k is saved when all rows before k are on the disk and are
finite, and it holds everything the rest of the run depends on: the state, the data iterator, the key, the evaluation
waiting for row k, the best so far. What is restored, in order: state, key (compared), data iterator, evaluation, best;
then the rows from k on are dropped and the loop goes on at k.
The key of step k is fold_in(key, k), so no key has to be carried along.
"""

import contextlib
import fcntl
import math
import os
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from entropy_jax.training.checkpoints import Checkpoints, say
from entropy_jax.training.progress import Clock, Progress, pick
from entropy_jax.training.writers import METRICS, MetricWriter
from entropy_jax.transform import nearest
from entropy_jax.types import PyTree, UserError

Row = dict[str, float | int | bool]
TOKENS = 'num_tokens'  # the metric from which tokens per second are made


class NonFiniteError(ArithmeticError):
  """Not finite: one sentence with the step, the metric, the last finite values and the last good checkpoint."""


class Interrupted(SystemExit):
  """SIGTERM or SIGINT came, the run is checkpointed and can be resumed; uncaught, the process exits with code 0."""

  def __init__(self, message: str):
    super().__init__(0)
    self.message = message


class DataIterator(Protocol):
  """Batches in an order that its state fixes."""

  def next(self) -> Mapping[str, Any]: ...

  def get_state(self) -> Any:
    """What JSON can hold; `set_state` of it makes the following batches come again."""

  def set_state(self, state: Any) -> None: ...


class Pending(NamedTuple):
  """A step whose metrics are still being computed."""

  step: int
  metrics: Mapping[str, Any]
  evaluation: Row | None


class _Signals:
  """Notes the first SIGTERM or SIGINT instead of dying of it; a second one acts as ever."""

  def __init__(self) -> None:
    self.received: int | None = None
    self._before: dict[int, Any] = {}

  def __enter__(self) -> '_Signals':
    if threading.current_thread() is threading.main_thread():  # no other thread may ask for signals
      self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *unused: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number: int, unused: object) -> None:
    if self.received is not None:
      signal.signal(number, self._before[number])
      signal.raise_signal(number)
      return
    self.received = number
    name = signal.Signals(number).name
    os.write(2, f'\n{name}: finishing the step, then a checkpoint; once more to stop at once.\n'.encode())

  def stop(self) -> bool:
    """Whether any process got a signal, so that all stop at the same step."""
    mine = self.received is not None
    return mine if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(mine)).any())


@contextlib.contextmanager
def _only_one(workdir: Path) -> Iterator[None]:
  """Refuses a second process on the same workdir; the lock dies with its process, however it dies."""
  if jax.process_index() != 0:
    yield
    return
  with open(workdir / '.lock', 'w', encoding='utf-8') as file:
    try:
      fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      busy = f'workdir: another process is training in {workdir}'
      raise UserError(f'{busy}; wait for its end, or give another --workdir.') from None
    yield


def _fetch(metrics: Mapping[str, Any]) -> Row:
  """Metrics as Python numbers, which repr writes exactly."""
  row: Row = {}
  for name, value in jax.device_get(dict(metrics)).items():
    if np.shape(value) != ():
      raise ValueError(f'metric {name!r} has shape {np.shape(value)}; reduce it to a scalar')
    row[name] = np.asarray(value).item()
  return row


@jax.jit
def _bad_leaves(leaves: list[jax.Array], strict: list[bool]) -> jax.Array:
  return jnp.stack([jnp.where(s, ~jnp.isfinite(x), jnp.isnan(x)).any() for x, s in zip(leaves, strict)])


def first_bad_leaf(state: PyTree) -> str | None:
  """Path of the first leaf that no good state has: NaN anywhere, or an infinity under `params`.

  Elsewhere an infinity can be meant: a bound that is off, a best value before the first.
  """
  paths, leaves = [], []
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    dtype = leaf.dtype if hasattr(leaf, 'dtype') else np.asarray(leaf).dtype
    if jnp.issubdtype(dtype, jnp.inexact):
      paths.append(jax.tree_util.keystr(path))
      leaves.append(leaf)
  if not leaves:
    return None
  bad = np.asarray(_bad_leaves(leaves, ['params' in path for path in paths]))
  return next((path for path, is_bad in zip(paths, bad) if is_bad), None)


class _Rows:
  """Turns fetched metrics into rows: refuses what is not finite, then writes, shows and hands on."""

  def __init__(
    self,
    writer: MetricWriter,
    progress: Progress,
    clock: Clock,
    log_every: int,
    on_metrics: Callable[[int, Row], None] | None,
    where_good: Callable[[], str],
  ):
    self._writer, self._progress, self._clock = writer, progress, clock
    self._log_every, self._on_metrics, self._where_good = log_every, on_metrics, where_good
    self._last: tuple[int, Row] | None = None

  def check(self, step: int, row: Row) -> None:
    bad = [name for name in sorted(row) if not math.isfinite(row[name])]
    if bad:
      self.fail(step, f'{bad[0]} is {row[bad[0]]}' + (f' (so are {", ".join(bad[1:6])})' if bad[1:] else ''), bad)

  def fail(self, step: int, what: str, names: list[str]) -> None:
    """Raises NonFiniteError with the last finite values of these metrics and of the most telling others."""
    self._writer.flush()
    before = 'no finite values came before'
    if self._last is not None:
      row = self._last[1]
      shown = {name: row[name] for name in names if name in row} | pick(row, ('loss', 'gradient_norm', 'entropy'))
      values = ', '.join(f'{name} {value:.6g}' for name, value in list(shown.items())[:6]) or 'nothing of the kind'
      before = f'the last finite values, of step {self._last[0]}, are {values}'
    raise NonFiniteError(
      f'step {step}: {what}; {before}; {self._where_good()}; the same command would end here again,'
      ' so change the settings (a smaller learning rate, clipping by max_grad_norm) and give another --workdir.'
    )

  def write(self, pending: Pending) -> None:
    """Waits for the metrics of a step and writes them with the evaluation of the policy that the step started from."""
    row = _fetch(pending.metrics)
    self.check(pending.step, row)
    evaluation = pending.evaluation or {}
    twice = sorted(row.keys() & evaluation.keys())
    if twice:
      raise ValueError(f'metric {twice[0]!r} comes from the step and from the evaluation; rename one')
    self._last = (pending.step, row)
    self.put(pending.step, row | evaluation, due=pending.step % self._log_every == 0 or bool(evaluation))

  def put(self, step: int, row: Row, *, due: bool = True, done: int | None = None) -> None:
    timings = self._clock.collect()
    if TOKENS in row:
      timings['tokens_per_second'] = row[TOKENS] / max(timings['seconds'], 1e-9)
    if due:
      self._writer.write(step, row)
      self._writer.write_timings(step, timings)
      if self._on_metrics is not None:
        self._on_metrics(step, row)
    self._progress.update(step + 1 if done is None else done, row, timings.get('tokens_per_second'))


def _better(best: dict[str, Any] | None, rule: tuple[str, str] | None, step: int, row: Row) -> dict[str, Any] | None:
  """The best so far, after this evaluation."""
  if rule is None:
    return best
  name, direction = rule
  if name not in row:
    raise UserError(f'best: the evaluation has no metric {name!r}.{nearest(name, sorted(row))}')
  sign = {'max': 1.0, 'min': -1.0}[direction]
  if best is None or sign * row[name] > sign * best['value']:
    return {'metric': name, 'value': row[name], 'step': step}
  return best


def _check_arguments(**values: int) -> None:
  for key, value in values.items():
    least = 0 if key == 'evaluate_every' else 1
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
      raise UserError(f'training: {key}={value!r} is not a whole number of at least {least}; give one.')


def _check_restored(workdir: Path, step: int, num_steps: int, host: Mapping[str, Any], key_data: list[int]) -> None:
  if host['key'] != key_data:
    raise UserError(f'training: {workdir} holds a run of another seed; give its seed, or another --workdir.')
  if step > num_steps:
    where = f'{workdir} holds step {step}, beyond num_steps={num_steps}'
    raise UserError(f'training: {where}; give more steps, or another --workdir.')


def train(
  *,
  workdir: str | os.PathLike[str],
  num_steps: int,
  state: PyTree,
  body: Callable[[PyTree, Mapping[str, Any], jax.Array], tuple[PyTree, Mapping[str, Any]]],
  data: DataIterator | None,
  key: jax.Array,
  checkpoint_every: int,
  evaluate: Callable[[PyTree, jax.Array], Mapping[str, Any]] | None = None,
  evaluate_every: int = 0,
  log_every: int = 1,
  description: str = 'train',
  on_metrics: Callable[[int, Row], None] | None = None,
  best: tuple[str, str] | None = None,
  keep: int = 3,
  asynchronous: bool = False,
  progress: str = 'auto',
  tensorboard: bool = True,
  clock: Clock | None = None,
  transfer_guard: str = 'allow',
) -> PyTree:
  """Trains to `num_steps` updates; called again on the same workdir, goes on where it stopped.

  Args:
    workdir: gets metrics.jsonl, timings.jsonl, tensorboard/ and checkpoints/.
    num_steps: updates of the whole run, at least 1.
    state: parameters, optimizer, objective state, in one pytree: the start, or the template of what is restored. `body`
      may donate its buffers.
    body: (state, batch, key of the step) -> (state, metrics: scalars by name). Must be deterministic.
    data: where batches come from; None: body gets an empty batch.
    key: root PRNG key.
    checkpoint_every: steps between checkpoints; one is always saved at the end.
    evaluate: (state, key) -> metrics, called on the state before the step. Must be deterministic.
    evaluate_every: steps between evaluations, the first before any update; the last at the end (0: only there).
    log_every: steps between rows. Every step's metrics are checked all the same.
    description: stands before the progress.
    on_metrics: called with each row as it is written.
    best: (metric of the evaluation, 'max' or 'min') whose best value and step are kept, as `best/METRIC` and
      `best/step` in the evaluation's row.
    keep: checkpoints that stay.
    asynchronous: write checkpoints in the background.
    progress: 'auto', 'bar', 'lines' or 'silent'.
    tensorboard: also write TensorBoard files.
    clock: the one that `body` measures its parts with, if it does; they come out in timings.jsonl.
    transfer_guard: 'disallow' refuses implicit transfers between host and device in `body`, 'log' reports them.

  Returns:
    The state after `num_steps` updates.

  Raises:
    UserError: a value out of range; a workdir of another run or in use; no good checkpoint left.
    NonFiniteError: a metric is not finite, or the state that would be checkpointed is not; nothing of it is saved.
    Interrupted: after SIGTERM or SIGINT, checkpointed.

  Limits: bitwise equality holds for the same versions, device kind and count.
  """
  every = {'checkpoint_every': checkpoint_every, 'evaluate_every': evaluate_every, 'log_every': log_every}
  _check_arguments(num_steps=num_steps, keep=keep, **every)
  if best is not None and (evaluate is None or best[1] not in ('max', 'min')):
    raise UserError(f"training: best={best!r} needs evaluate, and 'max' or 'min' as its second part; give both.")
  workdir = Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  clock = Clock() if clock is None else clock
  key_data = np.asarray(jax.random.key_data(key)).ravel().tolist()
  with contextlib.ExitStack() as stack:
    stack.enter_context(_only_one(workdir))
    checkpoints = Checkpoints(workdir / 'checkpoints', keep=keep, asynchronous=asynchronous)
    stack.callback(checkpoints.close)
    step, evaluation, leader = 0, None, None
    rows_saved = 0
    restored = checkpoints.restore_latest(state)
    if restored is not None:
      step, state, host = restored
      _check_restored(workdir, step, num_steps, host, key_data)
      if step == num_steps:
        return state
      if data is not None:
        data.set_state(host['data'])
      evaluation, leader, rows_saved = host['evaluation'], host['best'], host['rows']
      say(f'{description}: resuming at step {step} of {num_steps} from {workdir}')
    signals = stack.enter_context(_Signals())
    writer = MetricWriter(workdir, step, tensorboard=tensorboard)
    stack.callback(writer.close)
    if jax.process_index() == 0 and writer.rows < rows_saved:
      found = f'{writer.rows} of {rows_saved} rows before step {step}'
      say(f'{workdir / METRICS} has {found}: the others were lost outside of training.')
    bar = Progress(num_steps, initial=step, description=description, mode=progress)
    stack.callback(bar.close)
    saved = step  # the newest step that a restart would find; 0 is the start

    def where_good() -> str:
      at = f'step {saved} in {checkpoints.directory}' if saved else 'none yet'
      return f'the last good checkpoint is {at}'

    rows = _Rows(writer, bar, clock, log_every, on_metrics, where_good)
    pending: Pending | None = None

    def settle() -> None:
      """Every step made so far is written and known to be finite."""
      nonlocal pending
      done, pending = pending, None
      if done is not None:
        rows.write(done)

    while True:
      # The order is a promise, see above: evaluate(old state) -> save -> next(batch) -> step -> write(previous).
      stop, last = signals.stop(), step == num_steps
      due = last or (evaluate_every > 0 and step % evaluate_every == 0)
      if evaluate is not None and due and evaluation is None and (last or not stop):
        settle()
        with clock.measure('evaluate'):
          stream = jax.random.fold_in(jax.random.fold_in(key, step), zlib.crc32(b'evaluate'))
          evaluation = _fetch(evaluate(state, stream))
        rows.check(step, evaluation)
        leader = _better(leader, best, step, evaluation)
        if leader is not None:
          evaluation |= {f'best/{leader["metric"]}': leader['value'], 'best/step': leader['step']}
      if step > saved and (stop or last or step % checkpoint_every == 0):
        settle()
        if last and evaluation is not None:
          rows.put(step, evaluation, done=step)
          evaluation = None
        writer.flush()
        bad = first_bad_leaf(state)
        if bad is not None:
          rows.fail(step, f'state{bad} is not finite', [])
        with clock.measure('save'):
          position = None if data is None else data.get_state()
          host = {'key': key_data, 'data': position, 'evaluation': evaluation, 'best': leader, 'rows': writer.rows}
          checkpoints.save(step, state, host)
          saved = step
      if stop:
        checkpoints.wait()
        where = f'step {step} of {num_steps}, checkpointed in {workdir}'
        message = f'{description}: stopped at {where}; the same command goes on from there.'
        say(message)
        raise Interrupted(message)
      if last:
        checkpoints.wait()
        return state
      with clock.measure('next'):
        batch = {} if data is None else data.next()
      with clock.measure('step'), jax.transfer_guard(transfer_guard):
        state, metrics = body(state, batch, _step_key(key, step))
      settle()  # fetches the metrics of the step before, while the device computes this one
      pending, evaluation, step = Pending(step, metrics, evaluation), None, step + 1


def _step_key(key: jax.Array, step: int) -> jax.Array:
  with jax.transfer_guard('allow'):
    return jax.random.fold_in(key, step)
