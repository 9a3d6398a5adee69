"""Checkpoints that are whole, or are not used: orbax arrays, a JSON host part, and a digest of every file.

A checkpoint is the directory `STEP/`: the arrays, written by orbax, and `manifest.json`, written last and atomically,
which holds the host part (data iterator, metric rows, best so far), the path, shape and dtype of every leaf, and the
size and SHA-256 of every file. Orbax alone restores flipped bits without a word; here every byte is verified first.

    interrupted: `*.orbax-checkpoint-tmp`, or a STEP without manifest beside `saving-STEP` -> ignored and cleared
    damaged: a file or the manifest missing, truncated or altered -> moved to `damaged/`, loudly; the newest good used
    foreign: whole, but of another structure than the run's state -> UserError

The order of a save: `saving-STEP`, arrays, manifest, remove `saving-STEP`, delete steps beyond `keep`. A save that fails
(a full disk) takes away what it has written, leaves the older steps as they are, and raises StorageError. With several
processes each calls every method; process 0 writes manifests and chooses what is restored.
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from entropy_jax.training.files import hush_late_reports, storage_error, told_as
from entropy_jax.training.files import say as say  # experiments and flags take it from here
from entropy_jax.training.files import write_atomically as write_atomically
from entropy_jax.types import PyTree, UserError

FORMAT = 1
MANIFEST = 'manifest.json'
ITEM = 'state'
DAMAGED = 'damaged'


class DamagedError(Exception):
  """A checkpoint whose bytes are not those that were saved."""


def _canonical(value: Any) -> str:
  return json.dumps(value, sort_keys=True, separators=(',', ':'))


def _digest(path: Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def is_key(leaf: Any) -> bool:
  """Whether it is a typed PRNG key, or an array of them."""
  return hasattr(leaf, 'dtype') and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(state: PyTree) -> list[dict[str, Any]]:
  """Path, shape and dtype of every leaf, as JSON: equal for equal structures."""

  def one(path: Any, leaf: Any) -> dict[str, Any]:
    leaf = leaf if hasattr(leaf, 'dtype') else np.asarray(leaf)
    return {'path': jax.tree_util.keystr(path), 'shape': list(leaf.shape), 'dtype': str(leaf.dtype)}

  return [one(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)]


def _stored(leaf: Any) -> Any:
  """The leaf as an array that orbax saves bit for bit."""
  if is_key(leaf):
    return jax.random.key_data(leaf)
  return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _name(index: int) -> str:
  return f'{index:05d}'


def _first_difference(saved: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> str:
  saved_by, wanted_by = ({leaf['path']: leaf for leaf in leaves} for leaves in (saved, wanted))
  for path in [leaf['path'] for leaf in wanted] + [leaf['path'] for leaf in saved]:
    if path not in saved_by:
      return f'it has no {path}, which this run has'
    if path not in wanted_by:
      return f'it has {path}, which this run has not'
    old, new = saved_by[path], wanted_by[path]
    if old != new:
      return f'{path} is {old["dtype"]}{old["shape"]} in it and {new["dtype"]}{new["shape"]} in this run'
  return 'its leaves stand in another order'


class Checkpoints:
  """The checkpoints of one run; see the module docstring.

  Args:
    directory: made if it is missing.
    keep: how many of the newest steps stay, at least 1.
    asynchronous: `save` returns when the state is copied to the host; files and manifest are written meanwhile.
    report: takes the messages about damage.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    keep: int = 3,
    asynchronous: bool = False,
    report: Callable[[str], None] = say,
  ):
    if not isinstance(keep, int) or isinstance(keep, bool) or keep < 1:
      raise UserError(f'checkpoints: keep={keep!r} is not a whole number of at least 1; give one.')
    self.directory = Path(directory).absolute()
    self._keep, self._report = keep, report
    with told_as('checkpoints cannot be written', self.directory):
      self.directory.mkdir(parents=True, exist_ok=True)
      if jax.process_index() == 0:
        self._clear_interrupted()
    self._asynchronous, self._manager = asynchronous, self._open(asynchronous)
    self._worker = concurrent.futures.ThreadPoolExecutor(1) if asynchronous else None
    self._unfinished: concurrent.futures.Future[None] | None = None

  def _open(self, asynchronous: bool) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
      cleanup_tmp_directories=True, enable_async_checkpointing=asynchronous, save_root_metadata=False
    )
    return ocp.CheckpointManager(self.directory, options=options, item_handlers={ITEM: ocp.PyTreeCheckpointHandler()})

  def steps(self) -> list[int]:
    """Steps in the directory as it is now, ascending; damaged ones are among them until they are restored from."""
    return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit() and path.is_dir())

  def newest(self) -> int | None:
    """The newest step whose save is complete; its bytes are not verified."""
    return max((step for step in self.steps() if (self.directory / str(step) / MANIFEST).exists()), default=None)

  def save(self, step: int, state: PyTree, host: Mapping[str, Any]) -> None:
    """Saves a pytree of arrays and what else the run needs.

    Args:
      step: larger than every step saved so far.
      state: jax and numpy arrays, typed PRNG keys and Python numbers; any dtype, any sharding.
      host: what JSON can hold.

    Raises:
      StorageError: this save failed, or an asynchronous one before it.
    """
    self.wait()
    text = _canonical(dict(host))  # first, so that what JSON cannot hold costs nothing
    if step in self.steps():
      raise ValueError(f'step {step} is already saved in {self.directory}')
    leaves = [_stored(leaf) for leaf in jax.tree.leaves(state)]
    # Orbax refuses arrays of zero size: their shape and dtype, in the manifest, are all there is to them.
    arrays = {_name(i): leaf for i, leaf in enumerate(leaves) if leaf.size} | {'step': np.asarray(step)}
    content = {'format': FORMAT, 'step': step, 'leaves': _describe(state), 'host': json.loads(text)}
    with self._undone_on_failure(step):
      if jax.process_index() == 0:
        self._intent(step).touch()
      saved = self._manager.save(step, args=ocp.args.Composite(**{ITEM: ocp.args.PyTreeSave(arrays)}), force=True)
      assert saved, f'orbax did not save step {step}'
    if self._worker is None:
      self._finish(step, content)
    else:
      self._unfinished = self._worker.submit(self._finish, step, content)

  def restore_latest(self, template: PyTree) -> tuple[int, PyTree, dict[str, Any]] | None:
    """The newest good checkpoint, or None where nothing was ever saved.

    Args:
      template: structure, shapes, dtypes and shardings to restore to; its values are not read.

    Returns:
      (step, state, host), bit for bit as saved.

    Raises:
      UserError: all checkpoints are damaged, or the newest good one has another structure than the template.
    """
    self.wait()
    step = self._agree(self._choose() if jax.process_index() == 0 else -1)
    self._manager.reload()  # in every process: process 0 may have cleared or moved what the others saw at their start
    if step < 0:
      return None
    content = json.loads((self.directory / str(step) / MANIFEST).read_text(encoding='utf-8'))['content']
    wanted = _describe(template)
    if content['format'] != FORMAT:
      found = f'{self.directory / str(step)} has format {content["format"]}, and this version reads format {FORMAT}'
      raise UserError(f'checkpoint {found}; use the version it was made with, or give another --workdir.')
    if content['leaves'] != wanted:
      difference = _first_difference(content['leaves'], wanted)
      raise UserError(
        f'checkpoint {self.directory / str(step)} belongs to another run: {difference};'
        ' give another --workdir, or the settings it was made with.'
      )
    return step, self._read(step, template), content['host']

  def wait(self) -> None:
    """Returns when the last save is complete; raises what went wrong in it."""
    unfinished, self._unfinished = self._unfinished, None
    if unfinished is not None:
      unfinished.result()

  def close(self) -> None:
    try:
      self.wait()
    finally:
      if self._worker is not None:
        self._worker.shutdown()
      self._manager.close()
      self._sweep()

  def _sweep(self) -> None:
    """Removes what a thread below orbax wrote after its failed save was cleared; a manager that is open may be looking at it."""
    if jax.process_index() == 0:
      for path in self.directory.glob('*.orbax-checkpoint-tmp*'):
        shutil.rmtree(path, ignore_errors=True)

  def _intent(self, step: int) -> Path:
    return self.directory / f'saving-{step}'

  def _clear_interrupted(self) -> None:
    for intent in self.directory.glob('saving-*'):
      interrupted = self.directory / intent.name.removeprefix('saving-')
      if interrupted.is_dir() and not (interrupted / MANIFEST).exists():
        shutil.rmtree(interrupted)
      intent.unlink()
    for path in self.directory.glob('deleting-*'):
      shutil.rmtree(path)

  def _clear(self, step: int) -> None:
    """Removes what a failed save of this step left; its intent only once nothing else is there, for the next start to clear the rest."""
    for _ in range(10):
      for path in self._partial(step):
        shutil.rmtree(path, ignore_errors=True)
      time.sleep(0.05)  # a thread below orbax may still write into it, or make it anew
      if not self._partial(step):
        self._intent(step).unlink(missing_ok=True)
        break

  def _partial(self, step: int) -> list[Path]:
    return [path for path in (self.directory / str(step), *self.directory.glob(f'{step}.orbax-checkpoint-tmp*')) if path.exists()]

  @contextlib.contextmanager
  def _undone_on_failure(self, step: int) -> Iterator[None]:
    """Clears a save that fails, so that the step can be saved again, in this process or by the next."""
    hush_late_reports()
    try:
      yield
    except Exception as error:
      if jax.process_count() == 1:  # orbax would raise an asynchronous failure again at each later call
        with contextlib.suppress(Exception):
          self._manager.close()
      if jax.process_index() == 0:
        with contextlib.suppress(OSError):  # what cannot be cleared now is ignored by the next start
          self._clear(step)
      if jax.process_count() == 1:
        self._manager = self._open(self._asynchronous)
      failure = storage_error(error, f'the checkpoint of step {step} could not be saved, the older ones are untouched', self.directory)
      if failure is None:
        raise
      raise failure from error

  def _finish(self, step: int, content: dict[str, Any]) -> None:
    with self._undone_on_failure(step):
      self._manager.wait_until_finished()
      if jax.process_index() != 0:
        return
      folder = self.directory / str(step)
      paths = sorted(path for path in folder.rglob('*') if path.is_file())
      content['files'] = {str(path.relative_to(folder)): [path.stat().st_size, _digest(path)] for path in paths}
      digest = hashlib.sha256(_canonical(content).encode()).hexdigest()
      write_atomically(folder / MANIFEST, _canonical({'content': content, 'sha256': digest}))
    try:
      self._intent(step).unlink()
      for old in [s for s in self.steps() if s < step][: -(self._keep - 1) or None]:
        doomed = self.directory / f'deleting-{old}'
        os.replace(self.directory / str(old), doomed)  # a half-deleted step must not look like a damaged one
        shutil.rmtree(doomed)
    except OSError as error:  # the new step is whole: what is left over costs space alone
      self._report(f'{self.directory}: checkpoints beyond the newest {self._keep} could not be deleted ({error.strerror}).')

  def _verify(self, step: int) -> None:
    folder = self.directory / str(step)
    try:
      raw = (folder / MANIFEST).read_bytes()
      sealed = json.loads(raw.decode())
      content, digest = sealed['content'], sealed['sha256']
      files: dict[str, list[Any]] = content['files']
    except FileNotFoundError:
      raise DamagedError(f'{MANIFEST} is missing') from None
    except OSError as error:
      raise _unreadable(MANIFEST, error) from None
    except (ValueError, KeyError, TypeError):
      raise DamagedError(f'{MANIFEST} is altered') from None
    # Compared in writing too, so that not even a changed blank passes.
    whole = _canonical(sealed).encode() == raw and hashlib.sha256(_canonical(content).encode()).hexdigest() == digest
    if not whole or content['step'] != step:
      raise DamagedError(f'{MANIFEST} is altered')
    for name, (size, expected) in files.items():
      path = folder / name
      if not path.is_file():
        raise DamagedError(f'{name} is missing')
      if path.stat().st_size != size:
        raise DamagedError(f'{name} has {path.stat().st_size} bytes instead of {size}')
      try:
        digest = _digest(path)
      except OSError as error:
        raise _unreadable(name, error) from None
      if digest != expected:
        raise DamagedError(f'{name} is altered')

  def _choose(self) -> int:
    """The newest good step; -1 where there is none, -2 where all are damaged: then nothing is moved."""
    damage: dict[int, str] = {}
    for step in reversed(self.steps()):
      try:
        self._verify(step)
      except DamagedError as error:
        damage[step] = str(error)
        continue
      for bad, why in damage.items():
        try:
          moved = f'moved to {self._move_aside(bad)}'
        except OSError as error:  # a read-only directory can still be restored from
          moved = f'it could not be moved away ({error.strerror})'
        self._report(f'DAMAGED CHECKPOINT {self.directory / str(bad)}: {why}; {moved}, falling back to step {step}.')
      return step
    for bad, why in damage.items():
      self._report(f'DAMAGED CHECKPOINT {self.directory / str(bad)}: {why}.')
    return -2 if damage else -1

  def _agree(self, step: int) -> int:
    if jax.process_count() > 1:
      step = int(multihost_utils.broadcast_one_to_all(np.asarray(step)))
    if step == -2:
      mend = 'restore the directory from a copy, or give another --workdir to start anew'
      raise UserError(f'checkpoints: every one in {self.directory} is damaged; {mend}.')
    return step

  def _move_aside(self, step: int) -> Path:
    folder = self.directory / DAMAGED
    folder.mkdir(exist_ok=True)
    names = [str(step), *(f'{step}-{i}' for i in range(2, 1000))]
    target = next(folder / name for name in names if not (folder / name).exists())
    os.replace(self.directory / str(step), target)
    return target

  def _read(self, step: int, template: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(template)
    abstract = [jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf for leaf in leaves]
    abstract = [leaf if hasattr(leaf, 'dtype') else np.asarray(leaf) for leaf in abstract]
    # A leaf that was committed to devices goes back to them; any other stays free to follow its operands.
    shardings = [None if is_key(leaf) else _committed_sharding(leaf) for leaf in leaves]
    arguments: dict[str, ocp.RestoreArgs] = {'step': ocp.RestoreArgs(restore_type=np.ndarray)}
    for i, (leaf, sharding) in enumerate(zip(abstract, shardings)):
      if leaf.size and sharding is None:
        arguments[_name(i)] = ocp.RestoreArgs(restore_type=np.ndarray)
      elif leaf.size:
        arguments[_name(i)] = ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)
    restore = ocp.args.PyTreeRestore(item=dict.fromkeys(arguments, 0), restore_args=arguments)
    arrays = self._manager.restore(step, args=ocp.args.Composite(**{ITEM: restore}))[ITEM]
    values = [arrays[_name(i)] if leaf.size else np.zeros(leaf.shape, leaf.dtype) for i, leaf in enumerate(abstract)]
    return jax.tree.unflatten(structure, [_as_leaf(value, leaf) for value, leaf in zip(values, leaves)])


def _unreadable(name: str, error: OSError) -> Exception:
  """A disk that cannot give a file back has damaged it; a file that this user may not read has not been."""
  if error.errno in (errno.EACCES, errno.EPERM):
    return storage_error(error, f'{name} of a checkpoint cannot be read', error.filename or name) or error
  return DamagedError(f'{name} cannot be read ({error.strerror})')


def _committed_sharding(leaf: Any) -> Any:
  if isinstance(leaf, jax.Array):
    return leaf.sharding if leaf.committed else None
  return getattr(leaf, 'sharding', None)


def _as_leaf(value: Any, leaf: Any) -> Any:
  """The restored array as the kind of thing the template has in its place."""
  if isinstance(leaf, np.ndarray | np.generic):
    return np.asarray(value, leaf.dtype) if isinstance(leaf, np.ndarray) else leaf.dtype.type(value)
  if not hasattr(leaf, 'dtype'):
    return type(leaf)(value)
  if is_key(leaf):  # the spec of a key's sharding also places its data, which has one more axis
    return jax.random.wrap_key_data(_placed(value, _committed_sharding(leaf)), impl=str(jax.random.key_impl(leaf)))
  return value if isinstance(value, jax.Array) else _placed(value, _committed_sharding(leaf))


def _placed(value: Any, sharding: Any) -> jax.Array:
  """On these devices; where other processes hold some of them, this process gives its own part."""
  if sharding is None or sharding.is_fully_addressable:
    return jax.device_put(value, sharding)
  return jax.make_array_from_callback(np.shape(value), sharding, lambda index: np.asarray(value)[index])
