"""The single mistakes that `chaos.fuzz` makes in a config: one function a kind, each drawing which key, how, and on which way it comes in.

A function returns (key, value, what the refusal may say is allowed, arguments, config file or None), or None where its draw found nothing
to break. The ways are an override on the command line and a config file that holds the mistake.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from entropy_jax import catalog
from entropy_jax.chaos import pairs
from entropy_jax.chaos.plain import FILE, Mutation, Path, dotted, leaves, misspelt, objectives, outside, pick, replaced, spec_with, without
from entropy_jax.training import ranges

UNKNOWN = ('Did you mean', 'The keys are', 'allowed:')
NOT_A_NUMBER = ('many', '', '1,5', '[1]', '1e', '--', 'None', '{}', '3 4', 'inf_', '0..1', 'true!')
WRONG_KINDS: dict[str, tuple[Any, ...]] = {
  'number': ('3', 'many', '', None, True, False, [1.0], [], {'a': 1.0}, float('nan')),
  'whole': ('3', 'many', '', None, True, False, [1], {'a': 1}, 2.5, 0.5, 3.0, float('nan'), float('inf')),
  'text': (3, 0.5, None, True, [], ['countdown'], {'a': 'b'}),
  'bool': ('true', '', 1, 0, 0.5, None, [], {'a': True}),
  'group': ('grpo', 3, None, True, [], ['grpo']),
}


def allowed_of(path: Path, config: Mapping[str, Any], table: Mapping[str, str]) -> str | None:
  """The range of a leaf: of its row, of its field in a decoder, of its hyper-parameter in an objective; None where there is none."""
  names = [str(name) for name in path]
  rows = ranges.rows_of('.'.join(names), table)
  if not rows or table[rows[0]] not in ranges.GROUPS:
    return table[rows[0]] if rows else None
  if table[rows[0]] == 'decoder':
    return ranges.DECODER[names[-1]]
  if len(path) < 2 or path[-2] != 'kwargs':
    return None
  place: Any = config
  for name in path[:-2]:
    place = place[name]
  return catalog.CATALOG[place['name']].factory.ranges.get(names[-1])


# --- the kinds --------------------------------------------------------------------------------------------------------


def _unknown_key(rng: np.random.Generator, config: Mapping[str, Any], table: Mapping[str, str], argument: str) -> Mutation | None:
  path, value = pick(rng, list(leaves(config)))
  way = rng.integers(6)
  if way == 0:  # anywhere, groups too, on the command line
    cut = path[: 1 + int(rng.integers(len(path)))]
    names = [name for name in cut if isinstance(name, str)]
    wrong = dotted((*cut[:-1], misspelt(rng, names[-1]))) if isinstance(cut[-1], str) else f'{dotted(cut[:-1])}[{rng.integers(7, 99)}]'
    known = {dotted(p[:n]) for p, _ in leaves(config) for n in range(1, len(p) + 1)}
    return None if wrong in known else (wrong, '', UNKNOWN, (f'--config={argument}', f'--config.{wrong}={rng.integers(9)}'), None)
  if way == 1:  # a key of the file misspelt, or one too many
    if any(isinstance(name, int) for name in path) or len(ranges.rows_of(dotted(path), table)) != 1:
      return None
    wrong = misspelt(rng, str(path[-1]))
    if ranges.rows_of(dotted((*path[:-1], wrong)), table):
      return None
    kept = config if rng.integers(2) else without(config, path)
    return wrong, '', UNKNOWN, FILE, replaced(kept, (*path[:-1], wrong), value)
  if way == 2:  # a key of the file is missing
    row = ranges.rows_of(dotted(path), table)
    if row != [dotted(path)]:
      return None
    return dotted(path), '', (table[row[0]],), FILE, without(config, path)
  if way == 3:  # a flag
    flag = misspelt(rng, pick(rng, ('workdir', 'config')))
    return flag, '', ('run python -m',), (f'--config={argument}', f'--{flag}=3'), None
  places = objectives(table, config)
  if not places:
    return None
  place = pick(rng, places)
  name = pick(rng, list(catalog.CATALOG))
  if way == 4:  # a hyper-parameter of any method
    hyper = list(catalog.CATALOG[name].factory.defaults()) or ['coef']
    wrong = misspelt(rng, pick(rng, hyper))
    if wrong in hyper or wrong == 'name':
      return None
    return wrong, '', UNKNOWN, FILE, replaced(config, place, spec_with(name, {wrong: 0.5}))
  spec = spec_with(name, {})
  if rng.integers(2):  # a room
    wrong = misspelt(rng, pick(rng, list(spec)))
    return wrong, '', UNKNOWN, FILE, replaced(config, place, spec | {wrong: []})
  room = catalog.CATALOG[name].room
  wrong = pick(rng, ('kwarg', 'coef', 'Name', 'kwargs_', 'fraction', 'args', 'type'))
  return wrong, '', UNKNOWN, FILE, replaced(config, place, spec | {room: [{**spec[room][0], wrong: {}}]})


def _kind_of(allowed: str | None, value: Any) -> str:
  if allowed is None:
    return 'bool' if isinstance(value, bool) else 'text'
  allowed = allowed.removesuffix(' or None')
  if allowed == 'bool':
    return 'bool'
  if allowed.startswith('int '):
    return 'whole'
  return 'number' if allowed[0] in '([' else 'text'


def _says(allowed: str | None) -> tuple[str, ...]:
  """What a refusal of a value has to hold, one of."""
  if allowed is None or allowed in ranges.KINDS:
    return ('give', 'write')
  allowed = allowed.removesuffix(' or None').removeprefix('int ')
  return (allowed,) if allowed[0] in '([' else (allowed.split(' | ')[0],)


def _wrong_type(rng: np.random.Generator, config: Mapping[str, Any], table: Mapping[str, str], argument: str) -> Mutation | None:
  way = rng.integers(4)
  if way == 0:  # the command line: by the type of the file's value
    path, value = pick(rng, list(leaves(config)))
    key, base = dotted(path), (f'--config={argument}',)
    if isinstance(value, bool):
      text = str(pick(rng, ('maybe', '2', '', 'None', 'y', '0.0', '[]')))
      return key, text, ('the default is',), (*base, f'--config.{key}={text}'), None
    if isinstance(value, int | float):
      text = str(pick(rng, NOT_A_NUMBER if isinstance(value, float) else (*NOT_A_NUMBER, '1.5', '2.0', 'nan', 'inf', '1e3', 'true')))
      return key, text, ('the default is',), (*base, f'--config.{key}={text}'), None
    indices = [n for n, name in enumerate(path) if isinstance(name, int)]
    if indices and rng.integers(2):  # a list, or a part of one
      whole, text = dotted(path[: pick(rng, indices) + int(rng.integers(2))]), str(pick(rng, ('3', '[]', '()', 'grpo', '')))
      return whole, text, ('set a value in it',), (*base, f'--config.{whole}={text}'), None
    if len(path) > 1 and all(isinstance(name, str) for name in path):  # a group as if it were a key
      group = dotted(path[: 1 + int(rng.integers(len(path) - 1))])
      text = str(pick(rng, ('3', 'off', 'none', '[1]', 'true')))
      return group, text, ('set one of them',), (*base, f'--config.{group}={text}'), None
    return None
  if way == 1:  # a file: any key of it, or any field of its decoder
    rows = [(tuple(p.split('.')), a) for p, a in table.items() if '*' not in p and a != 'objective']
    rows += [((*p, field), a) for p, kind in rows if kind == 'decoder' for field, a in ranges.DECODER.items()]
    path, allowed = pick(rng, rows)
    kind = 'group' if allowed == 'decoder' else _kind_of(allowed, '')
    wrong = pick(rng, WRONG_KINDS[kind])
    if (wrong is None and allowed.endswith(' or None')) or (wrong == '' and allowed in ('steps', 'processes')):
      return None
    says = ('allowed in it',) if kind == 'group' else _says(allowed)
    return str(path[-1]), repr(wrong), says, FILE, replaced(config, path, wrong)
  places = objectives(table, config)
  if not places:
    return None
  place = pick(rng, places)
  if way == 2:  # a hyper-parameter of any method
    name, key = pick(rng, [(n, k) for n, e in catalog.CATALOG.items() for k in (*e.factory.defaults(), 'name')])
    factory = catalog.CATALOG[name].factory
    value = factory.defaults().get(key, 'x')
    wrong = pick(rng, WRONG_KINDS[_kind_of(factory.ranges.get(key), value)])
    if wrong is None and (value is None or key == 'name'):
      return None
    return key, repr(wrong), _says(factory.ranges.get(key)), FILE, replaced(config, place, spec_with(name, {key: wrong}))
  spec, room = spec_with('ppo_clip', {}), pick(rng, list(catalog.ROOMS))
  wrong = pick(rng, ('grpo', 3, None, True, 0.5, {'name': 'grpo'}))
  shape = rng.integers(5)
  if shape == 0:
    return place[-1], repr(wrong), ('dict', 'group'), FILE, replaced(config, place, wrong if not isinstance(wrong, dict) else [wrong])
  if shape == 1:
    return room, repr(wrong), ('write',), FILE, replaced(config, place, spec | {room: wrong})
  if shape == 2:
    wrong = pick(rng, ('grpo', 3, None, True, ['grpo'], {'kwargs': {}}))
    return room, repr(wrong), ('write',), FILE, replaced(config, place, spec | {room: [wrong]})
  if shape == 3:
    wrong = pick(rng, (3, None, True, 0.5, ['grpo'], {'grpo': 1}))
    return room, repr(wrong), ('Did you mean', 'This room has'), FILE, replaced(config, place, spec | {room: [{'name': wrong}]})
  wrong = pick(rng, ('low', 3, None, True, [0.2]))
  item = {'name': spec['surrogates'][0]['name'], 'kwargs': wrong}
  return 'kwargs', repr(wrong), ('write',), FILE, replaced(config, place, spec | {'surrogates': [item]})


WRONG_TEXTS = {
  'steps': ('5', '5-3', 'a-b', '-1-3', '1-2-3', '3-', '-', '1,2', '4:9', 'all'),
  'processes': ('localhost', 'h:1,2', 'h:0,2,0', 'h:1,2,2', 'h:1,0,0', 'h:x,2,1', 'h:1,2,-1', '2', 'h:1,2,1,0', 'auto,2,0', 'h:70000,2,1'),
  'text': ('',),
  'folder': ('', 'TAKEN/data', 'TAKEN'),
}


def _out_of_range(rng: np.random.Generator, config: Mapping[str, Any], table: Mapping[str, str], argument: str) -> Mutation | None:
  way = rng.integers(4)
  make: Callable[[Any], tuple[tuple[str, ...], Mapping[str, Any] | None]]
  allowed: str | None
  places = objectives(table, config)
  if way >= 2 and not places:
    return None
  if way == 3:
    return pairs.wrong_name(rng, config, pick(rng, places))
  if way == 2:  # a hyper-parameter of any method, in a file
    name, key = pick(rng, [(n, k) for n, e in catalog.CATALOG.items() for k in e.factory.ranges])
    allowed = catalog.CATALOG[name].factory.ranges[key]
    make = lambda value: (FILE, replaced(config, pick(rng, places), spec_with(name, {key: value})))
  elif way == 1:  # a key of the file, or a field of its decoder
    rows = [(tuple(p.split('.')), a) for p, a in table.items() if '*' not in p and a not in ('objective', 'bool')]
    if not rows:
      return None
    path, allowed = pick(rng, rows)
    if allowed == 'decoder':
      field, allowed = pick(rng, list(ranges.DECODER.items()))
      path = (*path, field)
    key = str(path[-1])
    make = lambda value: (FILE, replaced(config, path, value))
  else:  # a key of the command line
    path, current = pick(rng, list(leaves(config)))
    key, allowed = str(path[-1]), allowed_of(path, config, table)
    make = lambda value: ((f'--config={argument}', f'--config.{dotted(path)}={value}'), None)
    if isinstance(current, list) or (allowed in WRONG_TEXTS and current is None):
      return None
  if allowed is None or allowed in ('bool', 'objective', 'decoder'):
    return None
  bare = allowed.removesuffix(' or None')
  if bare in WRONG_TEXTS:
    value = pick(rng, WRONG_TEXTS[bare])
    arguments, file = make(value)
    return key, '' if 'TAKEN' in value else value, ('give',), arguments, file
  if bare[0] in '([' or bare.startswith('int '):
    number = outside(rng, bare.removeprefix('int '), whole=bare.startswith('int '))
    if number is None:
      return None
    arguments, file = make(number)
    return key, repr(number), _says(allowed), arguments, file
  names = bare.split(' | ')
  value = pick(rng, (misspelt(rng, pick(rng, names)), 'none_of_them', '', names[0].upper() + '_'))
  if value in names:
    return None
  arguments, file = make(value)
  return key, repr(value), _says(allowed), arguments, file


def _missing_file(rng: np.random.Generator, config: Mapping[str, Any], table: Mapping[str, str], argument: str) -> Mutation | None:
  path, _, variant = argument.partition(':')
  folder, _, name = path.rpartition('/')
  stem, end = name.removesuffix('.py'), f':{variant}' if variant else ''
  way = rng.integers(7)
  if way <= 1:
    word = misspelt(rng, stem)
    prefix = f'{folder}/' if folder and rng.integers(3) else pick(rng, ('elsewhere/', 'config/', './', '../', '/absent/configs/'))
    given = pick(rng, (f'{prefix}{word}.py{end}', f'{prefix}{word}{end}', f'{prefix}{word}.yaml{end}', f'{prefix}{word}.json'))
    return '--config', given.partition(':')[0].removeprefix('./'), ('give',), (f'--config={given}',), None
  if way == 2:
    given = pick(rng, (folder or '.', f'{folder or "."}/', f'{path}/{stem}.py', f'{path}c'))
    return '--config', given.rstrip('/').removeprefix('./'), ('give',), (f'--config={given}',), None
  if way == 3:
    wrong = misspelt(rng, variant or 'tiny') + str(rng.integers(9))
    return '--config', wrong, ('allowed', 'lists those'), (f'--config={path}:{wrong}',), None
  if way == 4:
    below = ''.join(f'/{c}{rng.integers(99)}' for c in 'ab'[: rng.integers(3)])
    return '--workdir', '', ('give',), (f'--config={argument}', f'--workdir=TAKEN{below}'), None
  if way == 5:
    keys = [p for p, kind in table.items() if kind == 'folder']
    if not keys:
      return None
    key = pick(rng, keys)
    value = f'TAKEN/{misspelt(rng, "data")}'
    if rng.integers(2):
      return key, '', ('give',), FILE, replaced(config, key.split('.'), value)
    return key, '', ('give',), (f'--config={argument}', f'--config.{key}={value}'), None
  keys = [p for p, kind in table.items() if p.endswith('dataset')]
  if not keys:
    nowhere = (f'--config={argument}', 'NOWORKDIR')
    key, arguments = pick(rng, [('--config', ()), ('--config', ('--config=',)), ('--workdir', nowhere)])
    return key, '', ('run python',), arguments, None
  key = pick(rng, keys)
  known = table[key].split(' | ')
  wrong = misspelt(rng, pick(rng, known))
  return (key, wrong, (known[0],), (f'--config={argument}', f'--config.{key}={wrong}'), None) if wrong not in known else None


def make(
  kind: str, rng: np.random.Generator, config: Mapping[str, Any], table: Mapping[str, str], absent: frozenset[str], argument: str
) -> Mutation | None:
  """One mistake of this kind. A config without an objective gives fewer of them."""
  if kind == 'illegal pair':
    return pairs.illegal(rng, config, table, absent, argument, objectives(table, config))
  found: dict[str, Callable[..., Mutation | None]] = {
    'unknown key': _unknown_key,
    'wrong type': _wrong_type,
    'out of range': _out_of_range,
    'missing file': _missing_file,
  }
  return found[kind](rng, config, table, argument)
