"""Mistakes that take two: values that are right alone and wrong together, and names that stand where they may not."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from entropy_jax import catalog
from entropy_jax.chaos.plain import FILE, REQUIRED, Mutation, misspelt, pick, replaced, spec_with
from entropy_jax.ops.aggregation import AGGREGATIONS

Changes = Mapping[str, Any]  # dotted key -> value
DIVISOR = ('use one of', 'make it a multiple')


def wrong_name(rng: np.random.Generator, config: Mapping[str, Any], place: Sequence[str]) -> Mutation | None:
  """A name of an objective that does not exist, or a method that stands in another room than its own."""
  name = pick(rng, list(catalog.CATALOG))
  room, spec, way = catalog.CATALOG[name].room, spec_with(name, {}), rng.integers(3)
  if way == 0:
    wrong = misspelt(rng, pick(rng, list(AGGREGATIONS)))
    return 'aggregate', repr(wrong), ('token_mean',), FILE, replaced(config, place, spec | {'aggregate': wrong})
  if way == 1:
    wrong = misspelt(rng, name)
    if wrong in catalog.CATALOG:
      return None
    return room, repr(wrong), ('Did you mean', 'This room has'), FILE, replaced(config, place, spec | {room: [{'name': wrong}]})
  other = pick(rng, [r for r in catalog.ROOMS if r != room])
  item = {'name': name, 'kwargs': REQUIRED.get(name, {})}
  return other, repr(name), (f'move it to {room}',), FILE, replaced(config, place, spec_with('ppo_clip', {}) | {other: [item]})


def _group(config: Mapping[str, Any], *keys: str) -> list[tuple[str, Mapping[str, Any]]]:
  """(dotted prefix, group) of every group that has all the keys."""
  found = [('', config)] if all(key in config for key in keys) else []
  for name, value in config.items():
    if isinstance(value, Mapping):
      found += [(f'{name}.{prefix}', group) for prefix, group in _group(value, *keys)]
  return found


def _no_divisor(rng: np.random.Generator, whole: int) -> int:
  while whole % (parts := int(rng.integers(2, 2 * whole + 9))) == 0:
    pass
  return parts


def _sizes(rng: np.random.Generator, config: Mapping[str, Any], prefix: str) -> tuple[Changes, int]:
  """Random sizes of a rollout, and how many sequences they make."""
  prompts, size = int(rng.integers(1, 40)), int(rng.integers(1, 40))
  return {f'{prefix}num_prompts': prompts, f'{prefix}group_size': size}, prompts * size


def _minibatches(rng: np.random.Generator, config: Mapping[str, Any]) -> tuple[Changes, str, Any, tuple[str, ...]] | None:
  groups = _group(config, 'num_prompts', 'group_size', 'num_minibatches', 'num_slices')
  if not groups:
    return None
  prefix = pick(rng, groups)[0]
  changes, sequences = _sizes(rng, config, prefix)
  parts = _no_divisor(rng, sequences)
  if rng.integers(2):
    return {**changes, f'{prefix}num_minibatches': parts}, 'num_minibatches', parts, DIVISOR
  return {**changes, f'{prefix}num_minibatches': 1, f'{prefix}num_slices': parts}, 'num_slices', parts, DIVISOR


def _devices(rng: np.random.Generator, config: Mapping[str, Any]) -> tuple[Changes, str, Any, tuple[str, ...]] | None:
  groups = _group(config, 'num_prompts', 'group_size', 'num_minibatches', 'num_slices')
  if not groups or 'num_devices' not in config:
    return None
  prefix = pick(rng, groups)[0]
  changes, sequences = _sizes(rng, config, prefix)
  parts = _no_divisor(rng, sequences)
  return {**changes, f'{prefix}num_minibatches': 1, f'{prefix}num_slices': 1, 'num_devices': parts}, 'num_devices', parts, DIVISOR


def _warmup(rng: np.random.Generator, config: Mapping[str, Any]) -> tuple[Changes, str, Any, tuple[str, ...]] | None:
  groups = _group(config, 'num_steps', 'warmup_steps')
  if not groups:
    return None
  prefix, steps = pick(rng, groups)[0], int(rng.integers(1, 200))
  warmup = steps + int(rng.integers(0, 100))
  return {f'{prefix}num_steps': steps, f'{prefix}warmup_steps': warmup}, 'warmup_steps', warmup, (f'give less than {steps}',)


def _nothing(rng: np.random.Generator, config: Mapping[str, Any]) -> tuple[Changes, str, Any, tuple[str, ...]] | None:
  prefixes = [prefix for prefix, _ in _group(config, 'num_seeds')]
  changes: dict[str, Any] = {f'{prefix}num_seeds': 0 for prefix in prefixes} | {'seed': int(rng.integers(10000))}
  return (changes, 'num_seeds', 0, ('at least 1',)) if prefixes and 'seed' in config else None


def _launch(rng: np.random.Generator, config: Mapping[str, Any]) -> tuple[Changes, str, Any, tuple[str, ...]] | None:
  if not {'num_devices', 'distributed'} <= set(config):
    return None
  count, devices = int(rng.integers(2, 9)), int(rng.integers(1, 9))
  setting = pick(rng, ('auto', f'10.0.0.{rng.integers(1, 99)}:{rng.integers(1024, 65535)},{count},{rng.integers(count)}'))
  return {'distributed': setting, 'num_devices': devices}, 'num_devices', devices, ('give num_devices=0',)


def _decoder(rng: np.random.Generator, key: str) -> tuple[Changes, str, Any, tuple[str, ...]]:
  """A decoder whose sizes do not go together; every field that bears on it is given, so that no preset mends it."""
  half, heads, way = int(rng.integers(4, 64)), int(rng.integers(2, 17)), rng.integers(3)
  fields: dict[str, Any] = {'positions': 'rotary', 'num_heads': heads, 'num_kv_heads': None, 'head_dim': 2 * half}
  fields['width'] = 2 * half * heads
  if way == 0:
    fields |= {'head_dim': None, 'width': 2 * half * heads + int(rng.integers(1, heads))}
    return {f'{key}.{name}': value for name, value in fields.items()}, 'num_heads', heads, ('divisor',)
  if way == 1:
    fields['num_kv_heads'] = _no_divisor(rng, heads)
    return {f'{key}.{name}': value for name, value in fields.items()}, 'num_kv_heads', fields['num_kv_heads'], ('divisor',)
  fields['head_dim'] = 2 * half + 1
  return {f'{key}.{name}': value for name, value in fields.items()}, 'head_dim', fields['head_dim'], ('even',)


def _hyper_parameters(rng: np.random.Generator) -> tuple[dict[str, Any], str, Any, tuple[str, ...]]:
  low, middle, high = (float(x) for x in np.sort(rng.uniform(0.01, 2.0, 3)).round(4) + np.array([0.0, 0.001, 0.002]))
  if rng.integers(2):
    return spec_with('soft_overlong', {'max_length': low, 'buffer': high}), 'buffer', high, (f'(0, {low!r}]',)
  bounds = pick(rng, ({'minimum': middle, 'initial': low, 'maximum': high}, {'minimum': low, 'initial': high, 'maximum': middle}))
  return spec_with('adaptive_entropy', bounds), 'initial', bounds['initial'], ('minimum <= initial <= maximum',)


def _composition(rng: np.random.Generator, absent: frozenset[str]) -> tuple[dict[str, Any], str, Any, tuple[str, ...]] | None:
  """Methods that are right alone and do not make an objective together."""
  way = rng.integers(6)
  name = pick(rng, list(catalog.CATALOG))
  entry, spec = catalog.CATALOG[name], spec_with(name, {})
  surrogates = [n for n, e in catalog.CATALOG.items() if e.room == 'surrogates']
  if way == 0:
    two = [{'name': str(n)} for n in rng.choice(surrogates, 2, replace=False)]
    return spec | {'surrogates': two}, 'surrogate', 2, ('exactly one surrogate',)
  if way == 1:
    return spec | {'surrogates': []}, 'surrogate', 0, ('exactly one surrogate',)
  if way == 2:
    twice = spec[entry.room] * 2
    return (spec | {entry.room: twice}, name, 'twice', ('tell them apart',)) if entry.room != 'surrogates' else None
  if way == 3:
    aggregate = pick(rng, list(AGGREGATIONS))
    constant = float(rng.integers(1, 9999))
    if aggregate.startswith('token_sum_over'):
      return spec | {'aggregate': aggregate}, 'aggregate', repr(aggregate), ('needs constant=',)
    return spec | {'aggregate': aggregate, 'constant': constant}, 'aggregate', repr(aggregate), ('takes no constant',)
  if way == 4:
    lacking = [n for n, e in catalog.CATALOG.items() if e.factory.reads & absent]
    if not lacking:
      return None
    name = pick(rng, lacking)
    aggregate = pick(rng, [a for a in AGGREGATIONS if not a.startswith('token_sum_over')])
    return spec_with(name, {}) | {'aggregate': aggregate}, name, sorted(catalog.CATALOG[name].factory.reads & absent)[0], ('leave',)
  if entry.room == 'advantages' or 'advantage_BxT' not in entry.factory.reads or entry.factory.reads & absent:
    return None
  return spec | {'advantages': []}, 'advantages', 'advantages=[]', ('give one',)


def illegal(
  rng: np.random.Generator,
  config: Mapping[str, Any],
  table: Mapping[str, str],
  absent: frozenset[str],
  argument: str,
  objectives: Sequence[Sequence[str]],
) -> Mutation | None:
  """A pair of values, or of methods, that do not go together."""
  way = rng.integers(10)
  if way >= 7 and objectives:
    found = _hyper_parameters(rng) if way == 7 else _composition(rng, absent)
    if found is None:
      return None
    spec, key, value, allowed = found
    return key, str(value), allowed, FILE, replaced(config, pick(rng, objectives), spec)
  decoders = [key for key, kind in table.items() if kind == 'decoder']
  makers: tuple[Callable[..., Any], ...] = (_minibatches, _devices, _warmup, _nothing, _launch)
  change = _decoder(rng, pick(rng, decoders)) if way >= 5 and decoders else makers[way % 5](rng, config)
  if change is None:
    return None
  changes, key, value, allowed = change
  if way < 5 and rng.integers(2):
    return key, str(value), allowed, (f'--config={argument}', *(f'--config.{k}={v}' for k, v in changes.items())), None
  changed = dict(config)
  for path, new in changes.items():
    changed = replaced(changed, path.split('.'), new)
  return key, str(value), allowed, FILE, changed
