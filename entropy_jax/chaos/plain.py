"""Reading and changing configs as plain data, and the draws that mistakes are made of."""

import copy
import inspect
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from entropy_jax import catalog

Path = Sequence[str | int]
# (key, value, what the refusal may say is allowed, arguments, config file or None): see `fuzz.Case`.
Mutation = tuple[str, str, tuple[str, ...], tuple[str, ...], Mapping[str, Any] | None]
FILE = ('--config=FILE',)
def _required() -> dict[str, dict[str, Any]]:
  """The hyper-parameters without a default, with the values of the catalog's examples."""
  found = {}
  for name, entry in catalog.CATALOG.items():
    missing = [key for key, default in entry.factory.defaults().items() if default is inspect.Parameter.empty]
    if missing:
      found[name] = {key: entry.example[key] for key in missing}
  return found


REQUIRED = _required()


def replaced(config: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
  """A copy of plain data with one value replaced, or added."""
  whole = copy.deepcopy(dict(config))
  place: Any = whole
  for name in path[:-1]:
    place = place[name]
  place[path[-1]] = value
  return whole


def without(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
  """A copy of plain data with one key taken out."""
  whole = copy.deepcopy(dict(config))
  place: Any = whole
  for name in path[:-1]:
    place = place[name]
  del place[path[-1]]
  return whole


def dotted(path: Path) -> str:
  """The path as the command line writes it: a.b[0].c."""
  return ''.join(f'[{name}]' if isinstance(name, int) else f'.{name}' for name in path).removeprefix('.')


def leaves(config: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
  """(path, value) of every value that is no group or list of groups."""
  if isinstance(config, Mapping) and config:
    for name, value in config.items():
      yield from leaves(value, (*path, name))
  elif isinstance(config, list) and config and isinstance(config[0], Mapping):
    for index, value in enumerate(config):
      yield from leaves(value, (*path, index))
  else:
    yield path, config


def objectives(table: Mapping[str, str], config: Mapping[str, Any]) -> list[tuple[str, ...]]:
  """The paths of the objectives of a config."""
  found = []
  for path, kind in table.items():
    names = path.split('.')
    if kind == 'objective':
      group: Any = config
      for name in names[:-1]:
        group = group[name]
      found += [(*names[:-1], name) for name in (group if names[-1] == '*' else (names[-1],))]
  return found


def spec_with(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
  """A right objective that holds this method, with these hyper-parameters and those that it requires."""
  spec: dict[str, Any] = {'advantages': [{'name': 'grpo'}], 'surrogates': [{'name': 'ppo_clip'}]}
  full = {**REQUIRED.get(name, {}), **kwargs}
  return spec | {catalog.CATALOG[name].room: [{'name': name, 'kwargs': full}]}


def misspelt(rng: np.random.Generator, word: str) -> str:
  """One slip of the fingers; a slip that changes nothing becomes a letter too many."""
  at, letter = int(rng.integers(len(word))), str(rng.choice(list(string.ascii_lowercase)))
  slips = (
    word[:at] + word[at + 1 :],
    word[:at] + letter + word[at:],
    word[:at] + letter + word[at + 1 :],
    word[:at] + word[at : at + 2][::-1] + word[at + 2 :],
    word + 's',
    word.replace('_', ''),
  )
  slip = slips[rng.integers(len(slips))]
  return slip if slip not in ('', word) else word + letter


def outside(rng: np.random.Generator, interval: str, *, whole: bool) -> int | float | None:
  """A number that the interval does not hold, or None where it holds all."""
  low, high = (float(end) for end in interval[1:-1].split(','))
  far = float(np.exp(rng.uniform(-6.0, 9.0)))
  found: list[float] = []
  if low > -np.inf:
    found += [low - far, low - 1.0] + [low] * (interval[0] == '(')
  if high < np.inf:
    found += [high + far, high + 1.0] + [high] * (interval[-1] == ')')
  elif interval[-1] == ')' and not whole:
    found.append(high)
  if not found:
    return None
  value = found[rng.integers(len(found))]
  if not whole:
    return value
  return int(np.floor(value)) if value < low else int(np.ceil(value))


def pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
  return options[int(rng.integers(len(options)))]
