"""The command line of every experiment.

    python -m experiments.NAME --config=configs/NAME.py[:variant] --workdir=DIR [--config.key=value ...]

An experiment's module ends with `app.run(main)` under the usual guard, where main(config, workdir) gets a locked
ConfigDict and the Path of the workdir, which by then holds config.json (every key as resolved) and environment.json.
The same command on the same DIR resumes; another config on it is refused, but for the keys of `ranges.LAUNCH`.

Exit codes: 0 done; 2 a mistake, one sentence on stderr; 3 stopped because the numbers were not finite, one sentence; 143 after
SIGTERM and 130 after SIGINT, checkpointed, the same command resumes; 1 a defect, with its traceback.
"""

import contextlib
import errno
import re
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

from entropy_jax.parallel import processes
from entropy_jax.parallel.parallel import devices_of
from entropy_jax.parallel.processes import SharedError
from entropy_jax.training import ranges, workdir
from entropy_jax.training.files import StorageError, say
from entropy_jax.training.loop import NonFiniteError
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

USAGE = 'python -m experiments.NAME --config=configs/NAME.py[:variant] --workdir=DIR [--config.key=value ...]'
MISTAKE_CODE, NON_FINITE_CODE = 2, 3
EXIT_CODES = """Exit codes:
  0    done
  1    a defect of the program, with its traceback
  2    a mistake of the command, the config or the place, in one sentence
  3    the numbers were not finite several steps in a row; the last good checkpoint stays
  130  SIGINT came: checkpointed, the same command goes on
  143  SIGTERM came: checkpointed, the same command goes on"""
_OVERRIDE = re.compile(r'--?(?P<no>no)?config\.(?P<path>[^=]*)(=(?P<value>.*))?$', re.DOTALL)
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


def _check_override(config: Any, path: str, value: str | None) -> None:
  try:
    if not path.strip('.'):
      raise KeyError(path)
    found = config_path.get_value(path, config)
  except (KeyError, AttributeError, IndexError, TypeError, ValueError):
    known = _paths(config)
    close = nearest(path, known)
    there = '' if close else f' The keys are {", ".join(known)}.'
    raise UserError(f'--config.{path}: there is no such key in the config.{close}{there}') from None
  if isinstance(found, list | dict):
    inside = [f'[{i}]' for i in range(len(found))] if isinstance(found, list) else [f'.{key}' for key in found]
    mend = f'set a value in it, such as --config.{path}{inside[0]}...=value' if inside else 'change it in the config file'
    raise UserError(f'--config.{path}={value!r} would replace a {type(found).__name__}, which no flag can; {mend}.')


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
    _check_override(base, match['path'], match['value'])
  values = flags.FlagValues()
  # The file comes first, because ml_collections overrides what it has read: the user may write them in any order.
  ordered = [argv[0], f'--config={given}', *others[1:]]
  try:
    config_flags.DEFINE_config_file('config', None, USAGE, flag_values=values, lock_config=True, sys_argv=ordered)
    flags.DEFINE_string('workdir', None, 'where the run is written', flag_values=values)
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
  ranges.check_folder('--workdir', values['workdir'].value)
  return values['config'].value, Path(values['workdir'].value)


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


# --- the run ----------------------------------------------------------------------------------------------------------


def explain(error: BaseException) -> str | None:
  """The one sentence for an error that the user can mend, or None for a defect, which keeps its traceback."""
  if isinstance(error, UserError | NonFiniteError | StorageError):
    return ' '.join(str(error).split())
  if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
    where = f' ({error.filename})' if error.filename else ''
    mend = 'make room, or give a --workdir that can be written; the same command resumes'
    return f'{error.strerror}{where}; {mend}.'
  return None


def prepare_workdir(directory: Path, config: Any) -> None:
  """See `workdir.prepare`; the config may be a ConfigDict."""
  workdir.prepare(directory, resolve(config))


def stop_with(error: BaseException, sentence: str) -> NoReturn:
  """Says the sentence, in the name of one process, and ends with the error's exit code."""
  index, shared = jax.process_index() if jax.distributed.is_initialized() else 0, isinstance(error, SharedError)
  if not (index and shared):
    say(f'process {index}: error: {sentence}' if index else f'error: {sentence}')
  sys.exit(NON_FINITE_CODE if isinstance(error, NonFiniteError) else MISTAKE_CODE)


def run(main: Callable[[ml_collections.ConfigDict, Path], Any], argv: Sequence[str] | None = None) -> None:
  """Parses the command line, joins the other processes, prepares the workdir and calls main(config, workdir).

  Args:
    main: the experiment; it may raise UserError at any time, best before it compiles anything.
    argv: default sys.argv.
  """
  argv = list(sys.argv if argv is None else argv)
  if any(a in ('--help', '-h', '-help', '--helpfull') for a in argv[1:]):
    print((sys.modules[main.__module__].__doc__ or '').strip() + f'\n\nUsage: {USAGE}\n\n{EXIT_CODES}')
    return
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # libraries that define absl flags of their own get their defaults
  try:
    config, directory = parse(argv)
    ranges.check_launch(resolve(config))
    workdir.set_compilation_cache()
    launch = {key: config[key] for key in ranges.LAUNCH if key in config}  # no experiment has to have them
    processes.initialize(launch.get('distributed', ''))  # before anything asks for devices
    devices_of(launch.get('num_devices', 0))
    prepare_workdir(directory, config)
    main(config, directory)
  except Exception as error:
    sentence = explain(error)
    if sentence is None:
      raise
    stop_with(error, sentence)
