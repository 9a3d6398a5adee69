"""What a training body asks of a parallel mode, whichever it is: place a state, hand out rows, compile a function of them."""

import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from entropy_jax.types import PyTree, UserError, frozen_of, with_frozen, without_frozen


class Kind(enum.Enum):
  """What an argument or a result of a compiled function is, which decides where it lies."""

  STATE = 'state'  # parameters, or a train state
  ROWS = 'rows'  # leading axis = sequences, cut over the devices
  WHOLE = 'whole'  # the same everywhere: keys, metrics


STATE, ROWS, WHOLE = Kind


class Parallel(NamedTuple):
  """One parallel mode on some devices. All modes give the same numbers for the same seed.

  Attributes:
    name: 'pmap', 'fsdp' or 'jit'.
    num_devices: over which rows are cut, of all processes.
    build: (function that makes a state, *its arguments) -> the state, made where it will live; donate=positions.
    rows: tree of numpy arrays, this process's block of rows -> the same on its devices.
    local: tree of ROWS results -> numpy arrays of this process's block of rows.
    compile: (fn, takes=kinds, gives=kinds, donate=positions) -> compiled fn. `fn(split, *arguments)` is written for its own rows, see
      `Split`; it returns a tuple with one value a kind of `gives`. What is `types.Frozen` in a state is never donated, and is the same in
      the state that comes back, which has the frozen parts of the first one that was given.
    shardings: tree of abstract parameters -> where each of them will live, for what is read from files; None: on the default device.
  """

  name: str
  num_devices: int
  build: Callable[..., PyTree]
  rows: Callable[[PyTree], PyTree]
  local: Callable[[PyTree], PyTree]
  compile: Callable[..., Callable[..., Any]]
  shardings: Callable[[PyTree], PyTree] | None = None


def devices_of(num_devices: int) -> list[jax.Device]:
  """The first num_devices devices, 0 for all, in the order in which rows are cut: process after process.

  Raises:
    UserError: there are not so many, or several processes would not all take part.
  """
  # Not jax.devices() as it comes: on some pods neighbours in it belong to different hosts, and each host reads one block of rows.
  devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
  if not 0 <= num_devices <= len(devices):
    raise UserError(f'config.num_devices={num_devices}: there are {len(devices)} devices; give 0 for all, or 1 to {len(devices)}.')
  if num_devices not in (0, len(devices)) and jax.process_count() > 1:
    raise UserError(
      f'config.num_devices={num_devices}: {jax.process_count()} processes use all their {len(devices)} devices; give 0, or start one.'
    )
  return devices[: num_devices or len(devices)]


def check_rows(key: str, num_rows: int, parallel: Parallel) -> None:
  """Refuses a number of sequences that the devices do not divide, before anything compiles."""
  if num_rows % parallel.num_devices:
    fitting = parallel.num_devices * max(round(num_rows / parallel.num_devices), 1)
    raise UserError(
      f'{key}: {num_rows} sequences cannot be cut evenly over {parallel.num_devices} devices; give {fitting}, or set config.num_devices.'
    )


def blocks(x: jax.Array) -> np.ndarray:
  """This process's rows of an array that is cut along its leading axis, in order."""
  first: dict[int, np.ndarray] = {}
  for shard in x.addressable_shards:  # replicas of a block, where an array is on more devices than it has blocks, count once
    first.setdefault(shard.index[0].start or 0 if shard.index else 0, np.asarray(shard.data))
  return np.concatenate([first[start] for start in sorted(first)])


def each(kinds: Sequence[Kind], values: Sequence[PyTree], what: dict[Kind, Callable[[PyTree], PyTree]]) -> tuple[PyTree, ...]:
  """Every value as `what` makes it of its kind; unchanged where `what` has nothing for it."""
  return tuple(what[kind](value) if kind in what else value for kind, value in zip(kinds, values, strict=True))


def apart(compiler: Callable[..., Callable[..., Any]]) -> Callable[..., Callable[..., Any]]:
  """`Parallel.compile` of a mode, with the frozen parts of states as one argument more, never donated and in no result."""

  def compile_lean(
    fn: Callable[..., Any], *, takes: Sequence[Kind], gives: Sequence[Kind], donate: Sequence[int] = ()
  ) -> Callable[..., Any]:
    def joined(split: Any, frozen: Sequence[tuple[PyTree, ...]], *arguments: PyTree) -> tuple[PyTree, ...]:
      left = iter(frozen)
      whole = [with_frozen(x, next(left)) if kind is STATE else x for kind, x in zip(takes, arguments, strict=True)]
      return each(gives, fn(split, *whole), {STATE: without_frozen})

    compiled = compiler(joined, takes=(STATE, *takes), gives=gives, donate=[i + 1 for i in donate])

    def call(*arguments: PyTree) -> tuple[PyTree, ...]:
      frozen = tuple(frozen_of(x) for kind, x in zip(takes, arguments, strict=True) if kind is STATE)
      results = compiled(frozen, *each(takes, arguments, {STATE: without_frozen}))
      return each(gives, results, {STATE: lambda state: with_frozen(state, frozen[0]) if frozen_of(state) else state})

    return call

  return compile_lean
