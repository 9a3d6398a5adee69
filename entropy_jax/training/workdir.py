"""What a run writes down before it starts, and how it recognises the workdir of another run."""

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from entropy_jax.parallel import processes
from entropy_jax.training.files import say, write_atomically
from entropy_jax.training.ranges import LAUNCH
from entropy_jax.types import UserError

CONFIG, ENVIRONMENT = 'config.json', 'environment.json'
PACKAGES = ('entropy_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'grain', 'array-record')
VISIBLE_SECONDS = 20.0  # within which what one host wrote has to show on the others


def _flat(value: Any, prefix: str = '') -> dict[str, Any]:
  if isinstance(value, dict) and value:
    parts = [_flat(value[key], f'{prefix}.{key}' if prefix else key) for key in value]
    return {path: leaf for part in parts for path, leaf in part.items()}
  return {prefix: value}


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, str, str] | None:
  """(key, value in old, value in new) of the first key that differs, or None.

  >>> first_difference({'a': 1, 'b': {'c': 2}}, {'a': 1, 'b': {'c': 3}})
  ('b.c', '2', '3')
  >>> first_difference({'a': [{'x': 1, 'y': 2}]}, {'a': [{'y': 2, 'x': 1}]}) is None     # the order of keys is no difference
  True
  """
  a, b = _flat(dict(old)), _flat(dict(new))
  for key in sorted(a.keys() | b.keys()):
    left, right = (json.dumps(flat[key], sort_keys=True) if key in flat else 'absent' for flat in (a, b))
    if left != right:
      return key, left, right
  return None


def _holds_results(workdir: Path) -> bool:
  """Whether anything was made there beside the description of the run and empty files."""
  ignored = {CONFIG, ENVIRONMENT, 'tensorboard', '.lock'}
  made = [p for top in workdir.iterdir() if top.name not in ignored for p in [top, *top.rglob('*')]]
  return any(p.is_file() and p.stat().st_size > 0 for p in made)


def _git_commit() -> str | None:
  """The commit of the source tree, with '+changes' where it was edited; None where it is no git tree."""
  root = Path(__file__).resolve().parents[2]
  if not (root / '.git').exists():
    return None

  def git(*arguments: str) -> str:
    command = ['git', *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

  try:
    return git('rev-parse', 'HEAD') + ('+changes' if git('status', '--porcelain') else '')
  except (OSError, subprocess.SubprocessError):
    return None


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def environment() -> dict[str, Any]:
  """What a result depends on beside the config."""
  devices = jax.devices()
  return {
    'python': platform.python_version(),
    'packages': {name: _version(name) for name in PACKAGES},
    'devices': {'platform': devices[0].platform, 'kind': devices[0].device_kind, 'count': len(devices)},
    'processes': jax.process_count(),
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'git_commit': _git_commit(),
    'command': shlex.join(['python', *sys.orig_argv[1:]]),
  }


def prepare(workdir: Path, config: Mapping[str, Any]) -> None:
  """Writes config.json and environment.json, or finds the same config there and resumes; process 0 writes, and all hear its verdict.

  Args:
    workdir: made where it does not exist; one folder for all processes.
    config: every key as resolved. The keys of `ranges.LAUNCH` may differ from those of the run that is there: config.json gets the newest.

  Raises:
    UserError: the directory cannot be written, or holds results of another config; the processes have different configs or directories.
  """
  resolved = json.loads(json.dumps(config))
  with processes.agreed():
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      (workdir / '.lock').touch()
      if jax.process_index() == 0:
        _claim(workdir, resolved)
    except OSError as error:
      raise UserError(f'--workdir: {workdir} cannot be written ({error.strerror}); give a directory that can.') from None
  if jax.process_count() > 1:
    _check_one(workdir, resolved)


def _claim(workdir: Path, resolved: dict[str, Any]) -> None:
  known, here = workdir / CONFIG, environment()
  if not (known.exists() and _holds_results(workdir)):
    write_atomically(known, json.dumps(resolved, indent=2, sort_keys=True) + '\n')
    write_atomically(workdir / ENVIRONMENT, json.dumps(here, indent=2) + '\n')
    return
  try:
    old = json.loads(known.read_text(encoding='utf-8'))
  except ValueError:
    raise UserError(f'--workdir: {known} is damaged; restore it from a copy, or give another --workdir.') from None
  difference = first_difference(_without_launch(old), _without_launch(resolved))
  if difference is not None:
    key, before, now = difference
    raise UserError(
      f'--workdir: {workdir} holds a run with {key}={before}, and this one has {key}={now};'
      ' give another --workdir, or the same config to resume.'
    )
  missing = object()
  changed = [key for key in LAUNCH if old.get(key, missing) != resolved.get(key, missing)]
  if changed:
    told = ', '.join(f'{key} was {json.dumps(old[key]) if key in old else "absent"}, is {json.dumps(resolved.get(key))}' for key in changed)
    say(f'{known}: {told}; the run goes on, for its numbers do not depend on that.')
    write_atomically(known, json.dumps(resolved, indent=2, sort_keys=True) + '\n')
  _note_changes(workdir / ENVIRONMENT, here)


def _without_launch(config: Mapping[str, Any]) -> dict[str, Any]:
  return {key: value for key, value in config.items() if key not in LAUNCH}


def _check_one(workdir: Path, resolved: dict[str, Any]) -> None:
  """Refuses processes of different configs, and workdirs that are different folders on different hosts."""
  text = json.dumps(resolved | {'distributed': ''}, sort_keys=True)  # which holds the index of the process
  digests = processes.gather_rows(np.array([zlib.crc32(text.encode())], np.uint32))
  with processes.agreed():
    other = np.flatnonzero(digests != digests[0])
    if other.size:
      raise UserError(f'--config: process {other[0]} has another config than process 0; start all with the same command.')
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not (workdir / CONFIG).exists():  # network file systems take a moment
      if time.monotonic() > deadline:
        raise UserError(f'--workdir: {workdir} does not hold the {CONFIG} of process 0; give a directory that all hosts share.')
      time.sleep(0.1)


def _note_changes(path: Path, here: dict[str, Any]) -> None:
  """Says where the environment is not that of the first start: equal bits take equal versions and devices."""
  try:
    before = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    before = here
  known, now = ({k: v for k, v in e.items() if k != 'command'} for e in (before, here))
  difference = first_difference(known, now)
  if difference is not None:
    key, was, now_is = difference
    say(f'{path}: {key} was {was} and is now {now_is}; the run goes on, not bit for bit as it would have.')


def set_compilation_cache() -> str:
  """Keeps compiled programs between runs: in JAX_COMPILATION_CACHE_DIR, or entropy_jax in the user's cache."""
  given = os.environ.get('JAX_COMPILATION_CACHE_DIR')
  if given:
    return given  # jax reads it itself
  root = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  path = os.path.join(root, 'entropy_jax')
  jax.config.update('jax_compilation_cache_dir', path)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  return path
