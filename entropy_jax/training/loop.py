"""The one training loop: a run that can be killed at any moment and, started again, ends with the same bits.

The order of an iteration is a promise that resuming rests on:

    evaluate(old state) -> save -> next(batch) -> step -> write(metrics of the previous step)

Row k of metrics.jsonl belongs to the policy after k updates: the evaluation of that policy, where one is due, and the
metrics of the step that starts from it. A checkpoint of step k is saved when all rows before k are on the disk and are
finite, and it holds everything the rest of the run depends on: the state (of its frozen parts a digest), the data iterator,
the key, the evaluation waiting for row k, the best so far, the count of faults. What is restored, in order: state, key (compared), data
iterator, evaluation, best, faults; then the rows from k on are dropped and the loop goes on at k.
The key of step k is fold_in(key, k), so no key has to be carried along.

A step whose update was refused on the device, because its loss or gradient was not finite (metric `update/rejected`
above 0), has a row without what is not finite and a dump in faults/; `max_rejected` of them in a row stop the run.
Anything else that is not finite stops it at once. A row is written one step late, so that is when a fault is seen.
"""

import os
import signal
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from entropy_jax.training.checkpoints import Checkpoints
from entropy_jax.training.faults import Faults, first_bad_leaf
from entropy_jax.training.faults import NonFiniteError as NonFiniteError
from entropy_jax.training.files import Lock, closing, say, told_as
from entropy_jax.training.frozen import FROZEN, check_digests, digests
from entropy_jax.training.profiling import CompileSeconds, Profile
from entropy_jax.training.progress import Clock, Progress
from entropy_jax.training.rows import Pending, Row, Rows, fetch
from entropy_jax.training.signals import Interrupted, Signals, exit_code
from entropy_jax.training.writers import METRICS, MetricWriter
from entropy_jax.transform import nearest
from entropy_jax.types import PyTree, UserError, frozen_of, with_frozen, without_frozen

# (state, batch, key of the step) -> (state, metrics) or (state, metrics, inputs)
Body = Callable[[PyTree, Mapping[str, Any], jax.Array], tuple[Any, ...]]


class DataIterator(Protocol):
  """Batches in an order that its state fixes."""

  def next(self) -> Mapping[str, Any]: ...

  def get_state(self) -> Any:
    """What JSON can hold; `set_state` of it makes the following batches come again."""

  def set_state(self, state: Any) -> None: ...


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
  body: Body,
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
  max_rejected: int = 3,
  profile_steps: tuple[int, int] | None = None,
  num_devices: int | None = None,
) -> PyTree:
  """Trains to `num_steps` updates; called again on the same workdir, goes on where it stopped.

  Args:
    workdir: gets metrics.jsonl, timings.jsonl, tensorboard/, checkpoints/, and at need faults/ and profile/.
    num_steps: updates of the whole run, at least 1.
    state: parameters, optimizer, objective state, in one pytree: the start, or the template of what is restored. `body`
      may donate its buffers. What is `types.Frozen` in it is not saved: checkpoints hold its digest, and a run that goes on
      must be given the same.
    body: (state, batch, key of the step) -> (state, metrics: scalars by name), and as a third value, if it likes, what
      the update was computed from (arrays in any pytree): fetched and dumped if the update is refused. Must be
      deterministic, and donate nothing of the batch or of the third value.
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
    max_rejected: steps in a row with a refused update (metric `update/rejected` above 0) that stop the run.
    profile_steps: (first, last) steps of which a profiler trace is written.
    num_devices: that the run uses, for the examples per second of one; None: all.

  Returns:
    The state after `num_steps` updates.

  Raises:
    UserError: a value out of range; a workdir of another run or in use; no good checkpoint left.
    NonFiniteError: a metric is not finite though the update was applied, or the state that would be checkpointed is
      not, or too many updates in a row were refused; nothing that is not finite is saved.
    StorageError: the disk is full, read-only or broken; older checkpoints and the rows written so far are untouched.
    Interrupted: after SIGTERM or SIGINT, checkpointed; a SystemExit with code 143 or 130.

  Limits: bitwise equality holds for the same versions, device kind and count.
  """
  every = {'checkpoint_every': checkpoint_every, 'evaluate_every': evaluate_every, 'log_every': log_every}
  _check_arguments(num_steps=num_steps, keep=keep, max_rejected=max_rejected, **every)
  if best is not None and (evaluate is None or best[1] not in ('max', 'min')):
    raise UserError(f"training: best={best!r} needs evaluate, and 'max' or 'min' as its second part; give both.")
  workdir = Path(workdir)
  with told_as('the workdir cannot be made', workdir):
    workdir.mkdir(parents=True, exist_ok=True)
  clock = Clock() if clock is None else clock
  key_data = np.asarray(jax.random.key_data(key)).ravel().tolist()
  with ExitStack() as stack:
    compiling = stack.enter_context(CompileSeconds())
    lock = stack.enter_context(Lock(workdir))
    checkpoints = Checkpoints(workdir / 'checkpoints', keep=keep, asynchronous=asynchronous)
    stack.enter_context(closing(checkpoints.close))
    step, evaluation, leader, rows_saved = 0, None, None, 0
    faults = Faults(workdir, max_rejected)
    frozen = frozen_of(state)
    fixed = digests(frozen)
    restored = checkpoints.restore_latest(without_frozen(state))
    if restored is not None:
      step, state, host = restored
      _check_restored(workdir, step, num_steps, host, key_data)
      check_digests(workdir, host.get(FROZEN, {}), fixed)
      state = with_frozen(state, frozen)
      if step == num_steps:
        return state
      if data is not None:
        data.set_state(host['data'])
      evaluation, leader, rows_saved = host['evaluation'], host['best'], host['rows']
      faults.set_state(host.get('faults'))
      if jax.process_index() == 0:
        say(f'{description}: resuming at step {step} of {num_steps} from {workdir}')
    signals = stack.enter_context(Signals())
    profile = stack.enter_context(Profile(workdir, profile_steps, num_steps=num_steps))
    writer = MetricWriter(workdir, step, tensorboard=tensorboard)
    stack.enter_context(closing(writer.close))
    if jax.process_index() == 0 and writer.rows < rows_saved:
      found = f'{writer.rows} of {rows_saved} rows before step {step}'
      say(f'{workdir / METRICS} has {found}: the others were lost outside of training.')
    bar = Progress(num_steps, initial=step, description=description, mode=progress)
    stack.callback(bar.close)
    rows = Rows(
      writer=writer,
      progress=bar,
      clock=clock,
      faults=faults,
      step_key=lambda k: _step_key(key, k),
      last_good=lambda: (checkpoints.newest(), str(checkpoints.directory)),
      compile_seconds=compiling.collect,
      description=description,
      log_every=log_every,
      num_devices=jax.device_count() if num_devices is None else num_devices,
      on_metrics=on_metrics,
    )
    saved = step  # the newest step that a restart would find, once its save is complete; 0 is the start
    pending: Pending | None = None

    def settle() -> None:
      """Every step made so far is written, and nothing that is not finite was applied."""
      nonlocal pending
      done, pending = pending, None
      if done is not None:
        rows.write(done)

    while True:
      # The order is a promise, see above: evaluate(old state) -> save -> next(batch) -> step -> write(previous).
      stop, last = signals.stop(), step == num_steps
      due = last or (evaluate_every > 0 and step % evaluate_every == 0)
      if evaluate is not None and due and evaluation is None and (last or stop is None):
        settle()
        with clock.measure('evaluate'):
          stream = jax.random.fold_in(jax.random.fold_in(key, step), zlib.crc32(b'evaluate'))
          evaluation = fetch(evaluate(state, stream))
        rows.check(step, evaluation)
        leader = _better(leader, best, step, evaluation)
        if leader is not None:
          evaluation |= {f'best/{leader["metric"]}': leader['value'], 'best/step': leader['step']}
      if step > saved and (stop is not None or last or step % checkpoint_every == 0):
        settle()
        if last and evaluation is not None:
          rows.put(step, evaluation, done=step)
          evaluation = None
        writer.flush()
        changing = without_frozen(state)
        bad = first_bad_leaf(changing)
        if bad is not None:
          rows.fail(step, f'state{bad} is not finite', [])
        lock.hold()
        with clock.measure('checkpoint'):
          host = {'key': key_data, 'data': None if data is None else data.get_state(), 'evaluation': evaluation}
          host |= {FROZEN: fixed} if fixed else {}
          checkpoints.save(step, changing, host | {'best': leader, 'rows': writer.rows, 'faults': faults.state()})
          saved = step
      if stop is not None:
        checkpoints.wait()
        raise _interrupted(stop, description, step, num_steps, workdir)
      if last:
        with clock.measure('checkpoint'):
          checkpoints.wait()
        rows.finish(step)
        return state
      with clock.measure('data'):
        batch = {} if data is None else data.next()
      with clock.measure('step'), profile.step(step), jax.transfer_guard(transfer_guard):
        state, metrics, *inputs = body(state, batch, _step_key(key, step))
      profile.after(step, metrics)
      seconds = rows.collect()
      settle()  # fetches the metrics of the step before, while the device computes this one
      pending = Pending(step, metrics, evaluation, batch, inputs[0] if inputs else None, seconds)
      evaluation, step = None, step + 1


def _interrupted(number: int, description: str, step: int, num_steps: int, workdir: Path) -> Interrupted:
  name, code = signal.Signals(number).name, exit_code(number)
  kept = f'checkpointed in {workdir}' if step else f'before any update in {workdir}'
  where = f'stopped at step {step} of {num_steps}, {kept}'
  message = f'{description}: {name} came, {where}; exit code {code}; the same command goes on from there.'
  if jax.process_index() == 0:
    say(message)
  return Interrupted(message, number)


def _step_key(key: jax.Array, step: int) -> jax.Array:
  with jax.transfer_guard('allow'):
    return jax.random.fold_in(key, step)
