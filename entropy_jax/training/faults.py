"""Numbers that are not finite: refused updates are counted and dumped for replay, and a run that cannot recover is stopped.

The train step keeps what is not finite out of the parameters, on the device, and says so in its metric `update/rejected`. Here the host
hears of it, at most one step later. A dump is the folder `faults/step_00000012/` of the workdir:

    batch.npz     the batch that the body got (with several processes batch_process_0.npz ..., the rows that each process holds)
    inputs.npz    the body's third result, where it has one: what the update was computed from
    fault.json    step, key, which metrics were not finite, the last finite values, the newest checkpoint, how to replay
"""

import contextlib
import json
import math
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entropy_jax.training.checkpoints import is_key
from entropy_jax.training.files import replacing, say, write_atomically
from entropy_jax.types import PyTree, UserError

REJECTED = 'update/rejected'  # fraction of the step's updates that were refused
TOTAL = 'faults/total'  # steps with a refused update so far
FOLDER = 'faults'
FAULT = 'fault.json'
MAX_DUMPS = 10


class NonFiniteError(ArithmeticError):
  """Not finite: one sentence with the step, the metric, the last finite values, the dump and the last good checkpoint."""


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


def split_row(row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """(the finite values, the others)."""
  bad = {name: value for name, value in sorted(row.items()) if not math.isfinite(value)}
  return {name: value for name, value in row.items() if name not in bad}, bad


def describe(bad: Mapping[str, Any]) -> str:
  """
  >>> describe({'loss': float('nan'), 'norm': float('inf')})
  'loss is nan (so is norm)'
  """
  names = list(bad)
  if not names:
    return 'a loss or gradient is not finite'
  others = f' (so {"is" if len(names) == 2 else "are"} {", ".join(names[1:6])})' if names[1:] else ''
  return f'{names[0]} is {bad[names[0]]}{others}'


class Faults:
  """Counts and dumps the steps with a refused update, and says when to give up.

  Args:
    workdir: gets faults/.
    max_rejected: so many such steps in a row are too many.
  """

  def __init__(self, workdir: Path, max_rejected: int):
    self.folder, self.max_rejected = workdir / FOLDER, max_rejected
    self.in_a_row, self.total = 0, 0
    self.last_finite: dict[str, Any] | None = None  # step, values: the newest metrics of a step with no refused update

  def state(self) -> dict[str, Any]:
    """What a checkpoint keeps, so that an interrupted run stops at the same step as an undisturbed one, and says the same."""
    return {'in_a_row': self.in_a_row, 'total': self.total, 'last_finite': self.last_finite}

  def set_state(self, state: Mapping[str, Any] | None) -> None:
    """None: a checkpoint from before faults were counted."""
    if state is not None:
      self.in_a_row, self.total, self.last_finite = state['in_a_row'], state['total'], state['last_finite']

  def count(self, rejected: bool) -> bool:
    """Counts a step; whether that was one refused too many."""
    self.in_a_row = self.in_a_row + 1 if rejected else 0
    self.total += rejected
    return self.in_a_row >= self.max_rejected

  def dump(self, step: int, key: jax.Array, batch: PyTree, inputs: PyTree, facts: Mapping[str, Any]) -> str:
    """Writes the dump of a step and keeps the newest MAX_DUMPS; a dump that fails stops nothing.

    Returns:
      Where it is, or why it is not there, for a message.
    """
    folder = self.folder / f'step_{step:08d}'
    try:
      folder.mkdir(parents=True, exist_ok=True)
      parts = {name: tree for name, tree in (('batch', batch), ('inputs', inputs)) if tree is not None}
      described = {name: _write_arrays(folder / _file_name(name), tree) for name, tree in parts.items()}
      if jax.process_index() == 0:
        content = {'step': step, 'processes': jax.process_count(), **_describe_key(key), **facts, **self.state(), **described}
        content['replay'] = _how_to_replay(folder, step, facts.get('checkpoint'))
        write_atomically(folder / FAULT, json.dumps(content, indent=2) + '\n')
        for old in sorted(self.folder.glob('step_*'))[:-MAX_DUMPS]:
          shutil.rmtree(old)
    except (OSError, ValueError, RuntimeError) as error:  # a body that donated its batch leaves nothing to dump
      return f'its batch could not be dumped ({" ".join(str(error).split())})'
    return f'its batch is in {folder} (the newest {MAX_DUMPS} are kept)'

  def tell(self, description: str, step: int, what: str, where: str) -> None:
    """The one line to stderr that each such step gets."""
    if jax.process_index() == 0:
      count = f'{self.in_a_row} in a row of at most {self.max_rejected}, {self.total} in this run'
      say(f'{description}: step {step}: update refused, {what}; {count}; {where}')


def _how_to_replay(folder: Path, step: int, checkpoint: int | None) -> str:
  call = f'step, key, batch, inputs = entropy_jax.training.faults.replay({str(folder)!r})'
  if checkpoint is None:
    start = f'the initial state after {step} steps'
  else:
    start = f'checkpoint {checkpoint}' + (f' after {step - checkpoint} more steps' if step > checkpoint else '')
  return f'{call}; then body(state, batch, key), where state is that of {start}; inputs is what the body computed its update from.'


def _file_name(name: str) -> str:
  return f'{name}.npz' if jax.process_count() == 1 else f'{name}_process_{jax.process_index()}.npz'


def _describe_key(key: jax.Array) -> dict[str, Any]:
  implementation = str(jax.random.key_impl(key)) if is_key(key) else None
  return {'key': np.asarray(jax.random.key_data(key)).tolist(), 'key_implementation': implementation}


def _part(entry: Any) -> str | int:
  """A step of a leaf's path: the index in a sequence, the name in anything else."""
  if isinstance(entry, jax.tree_util.SequenceKey):
    return entry.idx
  return str(getattr(entry, 'name', getattr(entry, 'key', entry)))


def _joined(shards: Sequence[Any], shape: Sequence[int], dtype: Any) -> np.ndarray:
  """The box that these shards of an array of this shape fill."""
  boxes = [[range(*part.indices(size)) for part, size in zip(shard.index, shape)] for shard in shards]
  low = [min(box[axis].start for box in boxes) for axis in range(len(shape))]
  high = [max(box[axis].stop for box in boxes) for axis in range(len(shape))]
  whole = np.zeros(np.subtract(high, low), dtype)
  for box, shard in zip(boxes, shards):
    whole[tuple(slice(r.start - start, r.stop - start) for r, start in zip(box, low))] = np.asarray(shard.data)
  return whole


def local_rows(x: Any) -> np.ndarray:
  """The part of an array that this process holds, all of it where that is all."""
  if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
    return np.asarray(x)
  return _joined(x.addressable_shards, x.shape, x.dtype)


def _write_arrays(path: Path, tree: PyTree) -> list[dict[str, Any]]:
  """Writes the leaves as .npz without pickle; returns what `_read_arrays` needs to build the tree again."""
  described: list[dict[str, Any]] = []
  with replacing(path) as file, zipfile.ZipFile(file, 'w') as archive:
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
      implementation = str(jax.random.key_impl(leaf)) if is_key(leaf) else None
      array = local_rows(leaf if implementation is None else jax.random.key_data(leaf))
      if array.dtype.kind == 'O':
        array = np.asarray([str(item) for item in array.ravel()], str).reshape(array.shape)
      described.append({'path': [_part(k) for k in keys], 'dtype': str(array.dtype), 'key_implementation': implementation})
      # numpy has no word for bfloat16 and its like: their bits go in as whole numbers.
      stored = array.view(f'u{array.dtype.itemsize}') if array.dtype.kind == 'V' else array
      with archive.open(_member(described[-1]['path']) + '.npy', 'w', force_zip64=True) as member:
        np.lib.format.write_array(member, np.asanyarray(stored), allow_pickle=False)
  return described


def _member(path: list[str | int]) -> str:
  return '/'.join(str(part) for part in path) or 'value'


def _read_arrays(path: Path, described: list[dict[str, Any]]) -> Any:
  """The tree: dicts by name (of whatever had names), lists, arrays bit for bit, typed keys."""
  root: dict[str, Any] = {}
  with open(path, 'rb') as file, np.load(file, allow_pickle=False) as archive:
    for leaf in described:
      stored = archive[_member(leaf['path'])]
      dtype = jnp.dtype(leaf['dtype']) if not leaf['dtype'].startswith('<U') else stored.dtype
      value = stored.view(dtype) if stored.dtype != dtype else stored
      if leaf['key_implementation'] is not None:
        value = jax.random.wrap_key_data(jnp.asarray(value), impl=leaf['key_implementation'])
      if not leaf['path']:
        return value
      place = root
      for part in leaf['path'][:-1]:
        place = place.setdefault(part, {})
      place[leaf['path'][-1]] = value
  return _as_lists(root)


def _as_lists(tree: Any) -> Any:
  if not isinstance(tree, dict):
    return tree
  if tree and all(isinstance(part, int) for part in tree):
    return [_as_lists(tree[part]) for part in sorted(tree)]
  return {name: _as_lists(value) for name, value in tree.items()}


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
  try:
    yield
  except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
    raise UserError(f'faults: {folder} is no whole dump ({type(error).__name__}: {error}); give a folder of WORKDIR/{FOLDER}.') from None


def replay(folder: str | Path) -> tuple[int, jax.Array, Any, Any]:
  """Reads a dump back.

  Args:
    folder: such as WORKDIR/faults/step_00000012.

  Returns:
    (step, key of the step, batch, inputs): what the body was called with beside its state, and its third result, None where it had none.
    Containers come back as dicts by name and as lists, arrays with every bit. Of several processes, the part of this one.
  """
  folder = Path(folder)
  with _readable(folder):
    content = json.loads((folder / FAULT).read_text(encoding='utf-8'))
    suffix = '' if content['processes'] == 1 else f'_process_{jax.process_index()}'
    trees = {name: _read_arrays(folder / f'{name}{suffix}.npz', content[name]) for name in ('batch', 'inputs') if name in content}
    key = jnp.asarray(content['key'], jnp.uint32)
    if content['key_implementation'] is not None:
      key = jax.random.wrap_key_data(key, impl=content['key_implementation'])
    return content['step'], key, trees.get('batch'), trees.get('inputs')
