"""Whether two finished runs are the same, bit for bit: every leaf of the last checkpoints, what stands beside it, every metrics row."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entropy_jax.training.checkpoints import MANIFEST, Checkpoints, is_key
from entropy_jax.training.writers import METRICS
from entropy_jax.types import PyTree

_KEYS = ('threefry2x32', 'rbg', 'unsafe_rbg')


class _WholePath:
  """The key of a leaf whose place in the saved tree is written out in full."""

  def __init__(self, text: str):
    self._text = text

  def __str__(self) -> str:
    return self._text

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _WholePath) and other._text == self._text

  def __hash__(self) -> int:
    return hash(self._text)


@jax.tree_util.register_pytree_with_keys_class
class Leaves:
  """The leaves of a checkpoint by the paths in its manifest: restores a run's state without the program that made it."""

  def __init__(self, by_path: dict[str, Any]):
    self.by_path = by_path

  def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
    return [(_WholePath(path), leaf) for path, leaf in self.by_path.items()], tuple(self.by_path)

  @classmethod
  def tree_unflatten(cls, paths: tuple[str, ...], leaves: Any) -> 'Leaves':
    return cls(dict(zip(paths, leaves)))


def _empty(shape: list[int], dtype: str) -> Any:
  if not dtype.startswith('key<'):
    return np.zeros(shape, jnp.dtype(dtype))
  keys = [jax.random.key(0, impl=name) for name in _KEYS]
  key = next(key for key in keys if str(key.dtype) == dtype)
  return jnp.broadcast_to(key, shape)


def template(checkpoints: Path) -> Leaves:
  """What `Checkpoints.restore_latest` needs for any of the checkpoints in the folder."""
  manifest = max(checkpoints.glob(f'*/{MANIFEST}'), key=lambda path: int(path.parent.name))
  leaves = json.loads(manifest.read_text(encoding='utf-8'))['content']['leaves']
  return Leaves({leaf['path']: _empty(leaf['shape'], leaf['dtype']) for leaf in leaves})


def load(checkpoints: Path) -> tuple[int, Leaves, dict[str, Any]]:
  """The newest good checkpoint: (step, state, host)."""
  manager = Checkpoints(checkpoints)
  try:
    found = manager.restore_latest(template(checkpoints))
  finally:
    manager.close()
  assert found is not None, f'{checkpoints} holds no checkpoint'
  return found


def digests(state: PyTree) -> dict[str, str]:
  """A digest of dtype, shape and bytes of every leaf, by path."""
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    head = f'{array.dtype}{array.shape}'.encode()
    found[jax.tree_util.keystr(path)] = hashlib.sha256(head + array.tobytes()).hexdigest()
  return found


def file_digests(folder: Path, pattern: str = '*') -> dict[str, str]:
  """SHA-256 of every file under the folder whose path matches."""
  files = sorted(path for path in folder.rglob(pattern) if path.is_file())
  return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def fingerprint(workdir: Path) -> dict[str, str]:
  """What must be the same in an undisturbed and in a harmed run: what -> digest or value.

  It holds, for every run folder under the workdir, metrics.jsonl as bytes and the number of its rows, and of the last checkpoint the
  step, every leaf, and the host part (data iterator, evaluation that waits, best so far, key, counters).
  """
  found = {}
  for path in sorted(workdir.rglob(METRICS)):
    name, content = str(path.relative_to(workdir)), path.read_bytes()
    found[name] = hashlib.sha256(content).hexdigest()
    found[f'{name} rows'] = str(content.count(b'\n'))
  for folder in sorted(workdir.rglob('checkpoints')):
    if folder.is_dir() and any(folder.glob(f'*/{MANIFEST}')):
      name = str(folder.relative_to(workdir))
      step, state, host = load(folder)
      found |= {f'{name} step': str(step), f'{name} host': json.dumps(host, sort_keys=True)}
      found |= {f'{name} {path}': digest for path, digest in digests(state).items()}
  return found


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
  """What is missing, too much or different."""
  return [
    f'{name} {"differs" if name in expected and name in found else "is missing" if name in expected else "should not be there"}'
    for name in sorted(expected.keys() | found.keys())
    if expected.get(name) != found.get(name)
  ]
