"""The table of every method of the objective: what it is, where it stands, where it comes from; and objectives from named data.

One file a room holds its rows. `build` turns a plain dict, as a config holds it, into an `Objective`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from entropy_jax import transform
from entropy_jax.catalog import advantages, regularizers, rewards, surrogates, weights
from entropy_jax.catalog.entry import ROOMS, Entry
from entropy_jax.objective import Objective, chain
from entropy_jax.types import Transform, UserError

__all__ = ['CATALOG', 'ROOMS', 'Entry', 'build', 'check_reads']

_TABLES = (rewards.TABLE, advantages.TABLE, weights.TABLE, surrogates.TABLE, regularizers.TABLE)
CATALOG: dict[str, Entry] = {entry.name: entry for table in _TABLES for entry in table}


def _transform(room: str, index: int, given: Any) -> Transform:
  where = f'objective: {room}[{index}]'
  if not isinstance(given, Mapping) or 'name' not in given:
    raise UserError(f"{where}={given!r} is not a method; write {{'name': ..., 'kwargs': {{...}}}}.")
  for key in given:
    if key not in ('name', 'kwargs'):
      raise UserError(f'{where} has the unknown key {key!r}; allowed: name, kwargs (hyper-parameters belong in kwargs).')
  name = given['name']
  if not isinstance(name, str) or name not in CATALOG:
    same_room = [n for n, e in CATALOG.items() if e.room == room]
    close = transform.nearest(str(name), list(CATALOG)) or f' This room has {", ".join(same_room)}.'
    raise UserError(f'{where}: there is no method {name!r}.{close}')
  found = CATALOG[name]
  if found.room != room:
    raise UserError(f'{where}: {name!r} stands in the wrong room; move it to {found.room}.')
  kwargs = given.get('kwargs', {})
  if not isinstance(kwargs, Mapping):
    raise UserError(f'{where}: kwargs={kwargs!r} of {name} is not a dict of hyper-parameters; write {{key: value}}.')
  for key in kwargs:
    if not isinstance(key, str):
      raise UserError(f'{where}: {key!r} is no hyper-parameter of {name}; allowed: {", ".join(found.factory.defaults()) or "none"}.')
  return found.factory(**kwargs)


def build(spec: Mapping[str, Any]) -> Objective:
  """The objective that plain data describes.

  Args:
    spec: rooms as keys (rewards, advantages, weights, surrogates, regularizers), each a sequence of {'name': method, 'kwargs':
      hyper-parameters}, kwargs optional (a 'name' in kwargs tells two of the same method apart); and optionally 'aggregate'
      ('token_mean') and 'constant' (None), as `objective.chain` takes them. Absent rooms are empty.

  Returns:
    the chain of the rooms in their order, whatever the order of the keys.

  Raises:
    UserError: an unknown room, method, key or hyper-parameter, a value out of range, a method under another room than its own, or
      what `objective.chain` refuses.

  >>> build({'surrogates': [{'name': 'ppo_clip', 'kwargs': {'high': .28}}], 'advantages': [{'name': 'grpo'}]}).transforms[0].name
  'grpo'
  """
  if not isinstance(spec, Mapping):
    raise UserError(f'objective: {spec!r} is not a dict of rooms; write {{room: [{{name: ..., kwargs: ...}}]}}.')
  allowed = (*ROOMS, 'aggregate', 'constant')
  for key in spec:
    if key not in allowed:
      raise UserError(f'objective: unknown key {key!r}; allowed: {", ".join(allowed)}.{transform.nearest(str(key), allowed)}')
  transforms = []
  for room in ROOMS:
    given = spec.get(room, ())
    if not isinstance(given, Sequence) or isinstance(given, str):
      raise UserError(f"objective: {room}={given!r} is not a list of methods; write [{{'name': ..., 'kwargs': {{...}}}}].")
    transforms += [_transform(room, index, item) for index, item in enumerate(given)]
  return chain(*transforms, aggregate=spec.get('aggregate', 'token_mean'), constant=spec.get('constant'))


def check_reads(spec: Mapping[str, Any], absent: Collection[str]) -> None:
  """Refuses an objective whose methods read what a run does not provide: a field in `absent`, or advantages where none are made.

  Args:
    spec: as `build` takes it, and has taken it.
    absent: fields of TokenBatch that are None in the run's batches.

  >>> check_reads({'surrogates': [{'name': 'reinforce'}], 'advantages': [{'name': 'gae'}]}, {'ref_logp_BxT'})
  """
  none_made = not spec.get('advantages')
  for room in ROOMS:
    for given in spec.get(room, ()):
      reads = CATALOG[given['name']].factory.reads
      missing = sorted(reads & set(absent))
      what = f'objective: {room}: {given["name"]}'
      if missing:
        raise UserError(f'{what} reads {missing[0]}, which this run does not provide; leave {given["name"]} out.')
      if none_made and 'advantage_BxT' in reads:
        raise UserError(f'{what} reads advantages, and advantages=[] makes none; give one, such as grpo.')
