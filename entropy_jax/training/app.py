"""The command line of every experiment, and what a run writes down before it starts.

    python -m experiments.NAME --config=configs/NAME.py[:variant] --workdir=DIR [--config.key=value ...]

An experiment's module ends with `app.run(main)` under the usual guard, where main(config, workdir) gets a locked
ConfigDict and the Path of the workdir, which by then holds config.json (every key as resolved) and environment.json.
The same command on the same DIR resumes; another config on it is refused. Mistakes end in one sentence on stderr and
exit code 2.
"""

import contextlib
import errno
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import ml_collections
from absl import flags
from ml_collections.config_flags import config_flags, config_path

from entropy_jax.training.checkpoints import say, write_atomically
from entropy_jax.training.loop import NonFiniteError
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

USAGE = 'python -m experiments.NAME --config=configs/NAME.py[:variant] --workdir=DIR [--config.key=value ...]'
CONFIG, ENVIRONMENT = 'config.json', 'environment.json'
PACKAGES = ('entropy_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'grain', 'array-record')
MISTAKE_CODE = 2
_OVERRIDE = re.compile(r'--?(?P<no>no)?config\.(?P<path>[^=]+)(=(?P<value>.*))?$', re.DOTALL)
_EXPECTED = {int: 'a whole number', float: 'a number', bool: 'true or false', tuple: 'a tuple such as "(1, 2)"'}


# --- the command line -------------------------------------------------------------------------------------------------


def _split_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
  """(what --config was given last, the other arguments)."""
  found, others = None, []
  left = iter(argv)
  for argument in left:
    if argument in ('--config', '-config'):
      found = next(left, None)
    elif argument.startswith(('--config=', '-config=')):
      found = argument.split('=', 1)[1]
    else:
      others.append(argument)
  return found, others


def _check_file(given: str) -> None:
  path = Path(given.split(':', 1)[0])
  if not path.is_file():
    folder = path.parent if path.parent.is_dir() else Path('configs')
    close = nearest(str(path), sorted(str(p) for p in folder.glob('*.py') if p.name != '__init__.py'))
    raise UserError(f'--config: there is no file {path}; give configs/NAME.py or configs/NAME.py:variant.{close}')


def _innermost(error: BaseException) -> BaseException:
  while error.__context__ is not None:
    error = error.__context__
  return error


@contextlib.contextmanager
def _old_loader() -> Iterator[None]:
  """Room for ml_collections' way of loading a config file, which Python warns of and no user can mend."""
  sys.modules.pop('config_config', None)  # it would load into the module of the file before
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', r'the load_module\(\) method', DeprecationWarning)
    yield


def _load(given: str) -> ml_collections.ConfigDict:
  """The config before overrides; a mistake in the file or its variant becomes one sentence."""
  name, _, variant = given.partition(':')
  try:
    with _old_loader():
      config = config_flags.ConfigFileFlagParser(name='config').parse(given)
  except UserError as error:
    cause = _innermost(error)
    raise UserError(str(cause)) from None
  except Exception as error:
    cause = _innermost(error)
    if isinstance(cause, KeyError) and variant in cause.args:
      raise UserError(f'--config: {name} has no variant {variant!r}; its docstring lists those it has.') from None
    if isinstance(cause, TypeError) and 'get_config() takes 0' in str(cause):
      extra = f'{name} has no variants, and {variant!r} was given'
      raise UserError(f'--config: {extra}; leave out the colon and what follows.') from None
    frames = traceback.extract_tb(cause.__traceback__)
    line = next((f', line {f.lineno},' for f in reversed(frames) if Path(f.filename).name == Path(name).name), '')
    raise UserError(f'--config: {name}{line} raised {type(cause).__name__}: {cause}; mend the file.') from None
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(f'--config: get_config of {name} returns a {type(config).__name__}; let it return a ConfigDict.')
  return config


def _paths(config: Any, prefix: str = '') -> list[str]:
  """The dotted path of every key, of whole groups too."""
  found = []
  for key in config if isinstance(config, ml_collections.ConfigDict) else ():
    found += [prefix + key, *_paths(config[key], f'{prefix}{key}.')]
  return found


def _check_override(config: Any, path: str) -> None:
  try:
    config_path.get_value(path, config)
  except (KeyError, AttributeError, IndexError, TypeError, ValueError):
    known = _paths(config)
    close = nearest(path, known)
    there = '' if close else f' The keys are {", ".join(known)}.'
    raise UserError(f'--config.{path}: there is no such key in the config.{close}{there}') from None


def _explain_value(config: Any, name: str, value: str) -> str:
  """Why a flag's value was refused."""
  path = name.removeprefix('config.')
  kind = config_path.get_type(path, config)
  default = config_path.get_value(path, config)
  if isinstance(default, ml_collections.ConfigDict):
    example = f'--{name}.{next(iter(default), "key")}=value'
    return f'--{name}={value!r} would replace a group of keys; set one of them, such as {example}.'
  return f'--{name}={value!r} is not {_EXPECTED.get(kind, f"a {kind.__name__}")}; the default is {default!r}.'


def parse(argv: Sequence[str]) -> tuple[ml_collections.ConfigDict, Path]:
  """The locked config with its overrides, and the workdir.

  Args:
    argv: the command line, program name first.

  Raises:
    UserError: anything missing, unknown or of the wrong type.
  """
  given, others = _split_config(argv)
  if not given:
    raise UserError(f'--config is missing; run {USAGE}')
  _check_file(given)
  base = _load(given)
  overrides = [match for argument in others[1:] if (match := _OVERRIDE.match(argument))]
  for match in overrides:
    _check_override(base, match['path'])
  values = flags.FlagValues()
  # The file comes first, because ml_collections overrides what it has read: the user may write them in any order.
  ordered = [argv[0], f'--config={given}', *others[1:]]
  config_flags.DEFINE_config_file('config', None, USAGE, flag_values=values, lock_config=True, sys_argv=ordered)
  flags.DEFINE_string('workdir', None, 'where the run is written', flag_values=values)
  try:
    with _old_loader():
      rest = values(ordered)
  except flags.UnrecognizedFlagError as error:
    close = nearest(error.flagname, ['config', 'workdir'])
    raise UserError(f'--{error.flagname} is not a flag of this program; run {USAGE}.{close}') from None
  except flags.IllegalFlagValueError as error:
    bad = re.match(r'flag --(config\.[^=]+)=(.*?): ', str(error), re.DOTALL)
    raise UserError(_explain_value(base, bad[1], bad[2]) if bad else str(error)) from None
  except (flags.Error, TypeError, ValueError, KeyError) as error:
    raise UserError(f'{str(error).strip()}; run {USAGE}') from None
  if len(rest) > 1:
    raise UserError(f'{rest[1]!r} is not expected on the command line; run {USAGE}')
  if not values['workdir'].value:
    raise UserError(f'--workdir is missing; run {USAGE}')
  return values['config'].value, Path(values['workdir'].value)


# --- the workdir ------------------------------------------------------------------------------------------------------


def resolve(config: Any) -> dict[str, Any]:
  """The config as a plain dict of what JSON can hold, every reference computed, tuples as lists."""

  def plain(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
      return {str(key): plain(value[key], f'{path}.{key}' if path else str(key)) for key in value}
    if isinstance(value, list | tuple):
      return [plain(item, f'{path}[{i}]') for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
      return value
    kind = type(value).__name__
    raise UserError(f'config.{path} is a {kind}; a config holds numbers, strings, booleans, lists and groups of them.')

  return plain(config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config, '')


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


def prepare_workdir(workdir: Path, config: Any) -> None:
  """Writes config.json and environment.json, or finds the same config there and resumes.

  Raises:
    UserError: the directory cannot be written, or holds results of another config.
  """
  resolved = json.loads(json.dumps(resolve(config)))
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / '.lock').touch()
  except OSError as error:
    raise UserError(f'--workdir: {workdir} cannot be written ({error.strerror}); give a directory that can.') from None
  if jax.process_index() != 0:
    return
  known, here = workdir / CONFIG, environment()
  if known.exists() and _holds_results(workdir):
    try:
      old = json.loads(known.read_text(encoding='utf-8'))
    except ValueError:
      raise UserError(f'--workdir: {known} is damaged; restore it from a copy, or give another --workdir.') from None
    difference = first_difference(old, resolved)
    if difference is not None:
      key, before, now = difference
      raise UserError(
        f'--workdir: {workdir} holds a run with {key}={before}, and this one has {key}={now};'
        ' give another --workdir, or the same config to resume.'
      )
    _note_changes(workdir / ENVIRONMENT, here)
    return
  write_atomically(known, json.dumps(resolved, indent=2, sort_keys=True) + '\n')
  write_atomically(workdir / ENVIRONMENT, json.dumps(here, indent=2) + '\n')


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


# --- the run ----------------------------------------------------------------------------------------------------------


def explain(error: BaseException) -> str | None:
  """The one sentence for an error that the user can mend, or None for a defect, which keeps its traceback."""
  if isinstance(error, UserError | NonFiniteError):
    return ' '.join(str(error).split())
  if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
    where = f' ({error.filename})' if error.filename else ''
    mend = 'make room, or give a --workdir that can be written; the same command resumes'
    return f'{error.strerror}{where}; {mend}.'
  return None


def stop_with(sentence: str) -> NoReturn:
  say(f'error: {sentence}')
  sys.exit(MISTAKE_CODE)


def run(main: Callable[[ml_collections.ConfigDict, Path], Any], argv: Sequence[str] | None = None) -> None:
  """Parses the command line, prepares the workdir and calls main(config, workdir).

  Args:
    main: the experiment; it may raise UserError at any time, best before it compiles anything.
    argv: default sys.argv.
  """
  argv = list(sys.argv if argv is None else argv)
  if any(a in ('--help', '-h', '-help', '--helpfull') for a in argv[1:]):
    print((sys.modules[main.__module__].__doc__ or '').strip() + f'\n\nUsage: {USAGE}')
    return
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # libraries that define absl flags of their own get their defaults
  try:
    config, workdir = parse(argv)
    set_compilation_cache()
    prepare_workdir(workdir, config)
    main(config, workdir)
  except Exception as error:
    sentence = explain(error)
    if sentence is None:
      raise
    stop_with(sentence)
