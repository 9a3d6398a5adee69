"""What every key of a config may be, as a table beside the keys, and the one function that holds a config against it.

A table maps the dotted path of a key, or of a group, to what is allowed there; `*` stands for one name of any spelling:

    '[0, 1)'              a number in the interval                    'bool'        true or false
    'int [1, inf)'        a whole number in the interval              'text'        a text that is not empty
    'pmap | fsdp'         one of the names                            'objective'   a group that `catalog.build` takes
    'folder'              a folder that is there or can be made       'decoder'     a group of fields of DecoderConfig
    'steps'               '' or 'FIRST-LAST'                          'processes'   what `parallel.processes.parse` takes
    'numbers [0, 1)'      a list of at least one number in the interval, none of them twice
    'settings'            a list of at least one group of numbers, all with the same names
    'reward'              a weight of the reward of this name, or a group of weight and settings
    '... or None'         or None, for off

A config is right when every one of its keys has one row, every row without a `*` has its key, and every value is allowed.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from entropy_jax import catalog
from entropy_jax.data import rewards
from entropy_jax.layers import activations
from entropy_jax.parallel import processes
from entropy_jax.training import profiling
from entropy_jax.transform import check_range, nearest
from entropy_jax.types import UserError

CONFIG = 'config'
# Keys that say where and how a run is launched, not what it computes: its numbers do not depend on them, and a resumed run may change them.
LAUNCH = {
  'parallel': 'pmap | fsdp',
  'num_devices': 'int [0, inf)',
  'distributed': 'processes',
  'profile_steps': 'steps',
  'max_rejected': 'int [1, inf)',
}
# Fields of DecoderConfig that a config may replace; the vocabulary is the tokenizer's, and the scaling of rotary positions the preset's.
DECODER = {
  'width': 'int [1, inf)',
  'num_layers': 'int [1, inf)',
  'num_heads': 'int [1, inf)',
  'num_kv_heads': 'int [1, inf) or None',
  'head_dim': 'int [1, inf) or None',
  'mlp_width': 'int [1, inf)',
  'max_length': 'int [1, inf)',
  'positions': 'rotary | learned',
  'rope_theta': '(0, inf)',
  'qkv_bias': 'bool',
  'linear': 'dense | sigma_reparam | spectral_norm',
  'gain_init': 'one | sigma',
  'kernel_init': 'fan_in | vision | speech',
  'norm': 'pre | post | none | deepnorm',
  'norm_kind': 'rms | layer',
  'norm_eps': '(0, inf)',
  'qk_norm': 'rms | layer | l2 or None',
  'activation': f'swiglu | {activations.NAMES} | fused',
  'logit_cap': '(0, inf) or None',
  'sink': 'bool',
  'softmax_temperature': 'softplus | clip or None',
  'entropy_abf_window': 'int [2, inf) or None',
  'entropy_abf_exempt': 'int [0, inf)',
  'tie_embeddings': 'bool',
  'final_logit_cap': '(0, inf) or None',
  'dtype': 'float32 | bfloat16',
  'remat': 'bool',
}
_OR_NONE = ' or None'


@contextlib.contextmanager
def naming(key: str) -> Iterator[None]:
  """Puts the config's key before the sentence of a mistake found further down."""
  try:
    yield
  except UserError as error:
    raise UserError(f'{CONFIG}: {key}: {error}') from None


def _bool(key: str, value: Any) -> None:
  if not isinstance(value, bool):
    raise UserError(f'{CONFIG}: {key}={value!r} is not true or false; give one of these.')


def _text(key: str, value: Any) -> None:
  if not isinstance(value, str) or not value:
    raise UserError(f'{CONFIG}: {key}={value!r} is not a text; give one that is not empty.')


def _steps(key: str, value: Any) -> None:
  if value != '':
    _text(key, value)
    profiling.parse(value)


def check_folder(owner: str, path: str | os.PathLike[str]) -> None:
  """Refuses a folder that is none, or that cannot be made; makes nothing."""
  place = Path(path)
  try:
    while not place.exists() and place != place.parent:
      place = place.parent
    problem = '' if place.is_dir() and '\0' not in str(path) else f'{place} is no folder'
    if not problem and not os.access(place, os.W_OK | os.X_OK):
      problem = f'{place} cannot be written'
  except OSError as error:  # a name that is too long
    problem = error.strerror or str(error)
  if problem:
    raise UserError(f'{owner}={str(path)!r:.200}: {problem}; give a folder that is there or can be made.')


def _folder(key: str, value: Any) -> None:
  _text(key, value)
  if os.path.isabs(value):  # otherwise it lies in the workdir
    check_folder(f'{CONFIG}: {key}', value)


def _objective(key: str, value: Any) -> None:
  with naming(key):
    catalog.build(value)


def _decoder(key: str, value: Any) -> None:
  if not isinstance(value, Mapping):
    raise UserError(f'{CONFIG}: {key}={value!r} is not a group of keys; allowed in it: {", ".join(DECODER)}.')
  for name, item in value.items():
    if name not in DECODER:
      raise UserError(f'{CONFIG}: there is no key {key}.{name}; allowed: {", ".join(DECODER)}.{nearest(str(name), list(DECODER))}')
    check_value(f'{key}.{name}', item, DECODER[name])


def _settings(key: str, value: Any) -> None:
  if not isinstance(value, list | tuple) or not value or not all(isinstance(item, Mapping) for item in value):
    raise UserError(f'{CONFIG}: {key}={value!r:.80} is no list of settings; give at least one, such as [{{"coef": 0.1}}].')
  for i, item in enumerate(value):
    if item.keys() != value[0].keys():
      names = f'the names {sorted(item)}, and the first setting {sorted(value[0])}'
      raise UserError(f'{CONFIG}: {key}[{i}] has {names}; name the same ones in all.')
    for name, number in item.items():
      check_range(CONFIG, f'{key}[{i}].{name}', number, '[-inf, inf]')


def _reward(key: str, value: Any) -> None:
  try:
    rewards.weighted(key.rpartition('.')[2], value)
  except UserError as error:
    raise UserError(f'{CONFIG}: {error}') from None


def _numbers(key: str, value: Any, interval: str) -> None:
  if not isinstance(value, list | tuple) or not value:
    raise UserError(f'{CONFIG}: {key}={value!r} is no list of numbers; give at least one in {interval}.')
  for i, number in enumerate(value):
    check_range(CONFIG, f'{key}[{i}]', number, interval)
  if len(set(value)) < len(value):
    raise UserError(f'{CONFIG}: {key}={value!r} has a number twice; give each once.')


KINDS: dict[str, Callable[[str, Any], None]] = {
  'bool': _bool,
  'text': _text,
  'folder': _folder,
  'objective': _objective,
  'decoder': _decoder,
  'steps': _steps,
  'processes': lambda key, value: processes.check(value),
  'settings': _settings,
  'reward': _reward,
}
GROUPS = ('objective', 'decoder')  # rows of these stand for everything below them


def check_value(key: str, value: Any, allowed: str) -> None:
  """Refuses a value that its row does not allow."""
  kind = allowed.removesuffix(_OR_NONE)
  if value is None and kind != allowed:
    return
  if kind in KINDS:
    KINDS[kind](key, value)
    return
  if kind.startswith('numbers '):
    _numbers(key, value, kind.removeprefix('numbers '))
    return
  interval = kind.removeprefix('int ')
  if interval != kind and (not isinstance(value, int) or isinstance(value, bool)):
    raise UserError(f'{CONFIG}: {key}={value!r} is not a whole number; give one in {interval}.')
  check_range(CONFIG, key, value, interval)


def rows_of(path: str, table: Mapping[str, str]) -> list[str]:
  """The patterns of the table that the path, or a group around it, matches."""
  parts = path.split('.')

  def matches(pattern: str) -> bool:
    wanted = pattern.split('.')
    exact = len(wanted) == len(parts) or (table[pattern] in GROUPS and len(wanted) < len(parts))
    return exact and all(w in ('*', p) for w, p in zip(wanted, parts))

  return [pattern for pattern in table if matches(pattern)]


def _leaves(config: Mapping[str, Any], table: Mapping[str, str], prefix: str = '') -> Iterator[tuple[str, Any]]:
  """(path, value) of every key that has a row, or is no group."""
  for name, value in config.items():
    path = f'{prefix}{name}'
    if isinstance(value, Mapping) and not rows_of(path, table):
      yield from _leaves(value, table, f'{path}.')
      if not value:
        yield path, value
    else:
      yield path, value


def check(config: Mapping[str, Any], table: Mapping[str, str]) -> None:
  """Holds every key of a config against the table.

  Args:
    config: plain data, groups as dicts, as `training.app.resolve` gives.
    table: path -> what is allowed, see the module.

  Raises:
    UserError: a key without a row, a row without its key, a value that is not allowed; with key, value and what is allowed.
  """
  found = dict(_leaves(config, table))
  named = [pattern for pattern in table if '*' not in pattern]
  groups = {pattern.split('.*')[0] for pattern in table if '*' in pattern}
  for path, value in found.items():
    rows = rows_of(path, table)
    if not rows and path in groups:
      raise UserError(f'{CONFIG}: {path}={value!r} is not a group of named parts; give at least one, as {{name: {{...}}}}.')
    if not rows and any(pattern.startswith(f'{path}.') for pattern in table):
      inside = ', '.join(pattern for pattern in table if pattern.startswith(f'{path}.'))
      raise UserError(f'{CONFIG}: {path}={value!r} is not a group of keys; it has the keys {inside}.')
    if not rows:
      close = nearest(path, named) or f' The keys are {", ".join(table)}.'
      raise UserError(f'{CONFIG}: there is no key {path} (its value is {value!r:.60}).{close}')
    check_value(path, value, table[rows[0]])
  for pattern in named:
    if pattern not in found:
      raise UserError(f'{CONFIG}: {pattern} is missing; give it a value: {table[pattern]}.')
  for group in groups:
    if not any(path.startswith(f'{group}.') for path in found):
      raise UserError(f'{CONFIG}: {group} is missing; give at least one part, as {{name: {{...}}}}.')


def check_divides(key: str, parts: int, whole: int, unit: str, *, owner: str = f'{CONFIG}: ') -> None:
  """Refuses a number of parts that the whole does not have; `owner` starts the sentence."""
  if parts < 1 or whole % parts:
    small = [n for n in range(1, math.isqrt(whole) + 1) if whole % n == 0]
    divisors = sorted({*small, *(whole // n for n in small)}, key=lambda n: abs(n - parts))[:12]
    fitting = ', '.join(map(str, sorted(divisors)))
    raise UserError(f'{owner}{key}={parts} does not divide the batch of {whole} {unit}; use one of {fitting}.')


def check_cut(what: str, rows: int, parts: int, over: str = 'num_devices') -> None:
  """Refuses rows that devices or processes would not have equally many of; `what` starts the sentence."""
  if rows % parts:
    fitting = ' or '.join(str(n) for n in range(1, min(parts, rows, 1025)) if rows % n == 0)
    raise UserError(f'{CONFIG}: {what} cannot be cut evenly over {over}={parts}; make it a multiple of {parts}, or {over} {fitting}.')


def check_launch(config: Mapping[str, Any]) -> None:
  """Refuses wrong values of the keys that say how a run is launched, for those of them that the config has; touches no device."""
  given = {key: config[key] for key in LAUNCH if key in config}
  for key, value in given.items():
    check_value(key, value, LAUNCH[key])
  if given.get('distributed') and given.get('num_devices'):
    raise UserError(
      f'{CONFIG}: num_devices={given["num_devices"]} does not go with distributed={given["distributed"]!r}: '
      'several processes use all their devices; give num_devices=0.'
    )
