"""Objectives in one line of text, as a config or a command line holds them.

    grpo + clip_higher + top_entropy(0.2) + entropy_bonus(coef=0.01)
    dapo + clip_cov(fraction=0.02) + aggregate(sequence_mean_token_mean)

Terms are methods of the catalog with their hyper-parameters (by name, or by position in the order of METHODS.md), short names for a method
with certain hyper-parameters (`SHORT`), and presets. The order of the terms does not matter except among methods of the same room. What
is not said is the usual: GRPO's advantage where nothing makes one, PPO's clip where there is no surrogate, the token mean.
"""

import ast
from collections.abc import Mapping
from typing import Any

from entropy_jax import presets
from entropy_jax.catalog import CATALOG, ROOMS, build
from entropy_jax.objective import Objective
from entropy_jax.ops.aggregation import AGGREGATIONS
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

AGGREGATE = 'aggregate'
# Short name -> (method, hyper-parameters).
SHORT: dict[str, tuple[str, dict[str, Any]]] = {
  'clip_higher': ('ppo_clip', {'low': 0.2, 'high': 0.28}),
  'forking_tokens': ('top_entropy', {'keep': 0.2}),
}
EXAMPLE = "'grpo + clip_higher + top_entropy(0.2) + entropy_bonus(coef=0.01)'"


def _terms(node: ast.expr, text: str) -> list[tuple[str, ast.expr]]:
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
    return [*_terms(node.left, text), *_terms(node.right, text)]
  if isinstance(node, ast.Name):
    return [(node.id, node)]
  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
    return [(node.func.id, node)]
  wrong = ast.get_source_segment(text, node)
  raise UserError(f'objective: {wrong!r} in {text!r} is not a method; write names joined by +, such as {EXAMPLE}.')


def _value(node: ast.expr, owner: str, text: str) -> Any:
  if isinstance(node, ast.Name):
    return node.id  # a name stands for itself: estimator=k3
  try:
    value = ast.literal_eval(node)
  except ValueError:
    value = node
  if isinstance(value, bool | int | float | str) or value is None:
    return value
  raise UserError(f'objective: {ast.get_source_segment(text, node)!r} in {owner}(...) is no number, text, True, False or None; give one.')


def _arguments(node: ast.expr, name: str, keys: tuple[str, ...], text: str) -> dict[str, Any]:
  if not isinstance(node, ast.Call):
    return {}
  if len(node.args) > len(keys):
    known = ', '.join(keys) or 'none'
    raise UserError(f'objective: {name} takes {len(keys)} hyper-parameters ({known}), and {len(node.args)} stand in {text!r}.')
  given = {key: _value(value, name, text) for key, value in zip(keys, node.args, strict=False)}
  for keyword in node.keywords:
    if keyword.arg is None or keyword.arg in given:
      raise UserError(f'objective: {name} gets {keyword.arg or "**"!r} twice or in a way it cannot in {text!r}; give each key once.')
    given[keyword.arg] = _value(keyword.value, name, text)
  return given


def _makes_advantages(name: str) -> bool:
  """Whether it stands first among the advantages: it does not shape those that another made."""
  found = CATALOG[name]
  return found.room == 'advantages' and 'advantage_BxT' not in found.factory.reads


def _add(spec: dict[str, Any], name: str, kwargs: dict[str, Any], said: set[str], text: str) -> None:
  """Puts a method into its room; it takes the place of what a preset put where there can be only one."""
  room = CATALOG[name].room
  alone = room == 'surrogates' or _makes_advantages(name)
  if alone:
    rivals = [m['name'] for m in spec[room] if room == 'surrogates' or _makes_advantages(m['name'])]
    for rival in rivals:
      if rival in said:
        what = 'surrogate' if room == 'surrogates' else 'advantage'
        raise UserError(f'objective: {rival} and {name} in {text!r} are both the {what}; keep one.')
    spec[room] = [m for m in spec[room] if m['name'] not in rivals]
  else:
    spec[room] = [m for m in spec[room] if m['name'] != name or kwargs.get('name', name) != name]
  spec[room].insert(0 if alone else len(spec[room]), {'name': name, 'kwargs': kwargs})
  said.add(name)


def parse(text: str) -> dict[str, Any]:
  """The spec that a line describes, for `catalog.build`.

  Args:
    text: terms joined by +.

  Returns:
    room -> [{'name', 'kwargs'}], and 'aggregate', 'constant' where they were said.

  Raises:
    UserError: it is no sum of names, a name or hyper-parameter is unknown, or two terms want the same place.

  >>> parse('grpo + top_entropy(0.2)')['weights']
  [{'name': 'top_entropy', 'kwargs': {'keep': 0.2}}]
  >>> [m['name'] for m in parse('kl_cov(fraction=0.1) + importance')['advantages']]
  ['grpo']
  """
  try:
    tree = ast.parse(text.strip(), mode='eval').body
  except SyntaxError:
    raise UserError(f'objective: {text!r} cannot be read; write names joined by +, such as {EXAMPLE}.') from None
  text = text.strip()
  nodes = _terms(tree, text)
  spec: dict[str, Any] = {room: [] for room in ROOMS}
  said: set[str] = set()
  whole = [name for name, _ in nodes if name in presets.PRESETS and name not in CATALOG and name not in SHORT]
  if len(whole) > 1:
    raise UserError(f'objective: {whole[0]} and {whole[1]} in {text!r} are both whole presets; start from one.')
  for name in whole:
    chosen = presets.preset(name).spec
    spec |= {key: [dict(m) for m in chosen[key]] if key in ROOMS else chosen[key] for key in chosen}
  for name, node in nodes:
    if name == AGGREGATE:
      spec |= _arguments(node, name, (AGGREGATE, 'constant'), text)
    elif name in whole:
      if isinstance(node, ast.Call):
        raise UserError(f'objective: the preset {name} takes no hyper-parameters; add the method to be changed as a term of its own.')
    elif name in CATALOG or name in SHORT:
      method, fixed = SHORT.get(name, (name, {}))
      keys = tuple(key for key in CATALOG[method].factory.defaults() if key not in fixed)
      _add(spec, method, fixed | _arguments(node, method, keys, text), said, text)
    else:
      known = [*CATALOG, *SHORT, *presets.PRESETS, AGGREGATE]
      raise UserError(f'objective: there is no method or preset {name!r}.{nearest(name, known) or " METHODS.md lists them."}')
  if not any(_makes_advantages(m['name']) for m in spec['advantages']):
    spec['advantages'].insert(0, {'name': 'grpo', 'kwargs': {}})
  if not spec['surrogates']:
    spec['surrogates'] = [{'name': 'ppo_clip', 'kwargs': {}}]
  if spec.get(AGGREGATE, 'token_mean') not in AGGREGATIONS:
    close = nearest(str(spec[AGGREGATE]), list(AGGREGATIONS))
    raise UserError(f'objective: aggregate={spec[AGGREGATE]!r} is not one of {", ".join(AGGREGATIONS)}.{close}')
  return spec


def line(spec: Mapping[str, Any]) -> str:
  """The line that `parse` reads back as this spec.

  >>> line(parse('top_entropy(0.2) + grpo'))
  'grpo + top_entropy(keep=0.2) + ppo_clip'
  """
  terms = []
  for room in ROOMS:
    for method in spec.get(room, ()):
      given = ', '.join(f'{key}={value!r}' for key, value in dict(method.get('kwargs', {})).items())
      terms.append(f'{method["name"]}({given})' if given else method['name'])
  if spec.get(AGGREGATE, 'token_mean') != 'token_mean':
    constant = '' if spec.get('constant') is None else f', constant={spec["constant"]!r}'
    terms.append(f'{AGGREGATE}({spec[AGGREGATE]!r}{constant})')
  return ' + '.join(terms)


def objective(given: str | Mapping[str, Any]) -> Objective:
  """The objective of a line or of a spec."""
  return build(parse(given) if isinstance(given, str) else given)
