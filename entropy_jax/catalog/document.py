"""METHODS.md, from the catalog."""

import inspect

from entropy_jax.catalog import CATALOG, ROOMS
from entropy_jax.transform import Method


def _cell(text: str) -> str:
  return text.replace('|', '\\|')


def _code(text: str) -> str:
  return f'`{_cell(text)}`'


def _hyper_parameters(method: Method) -> str:
  parts = []
  for key, default in method.defaults().items():
    value = 'required' if default is inspect.Parameter.empty else f'= {default!r}'
    joint = ' or in' if default is None else ' in'
    allowed = f'{joint} {method.ranges[key]}' if key in method.ranges else ''
    parts.append(_code(f'{key} {value}{allowed}'))
  return '<br>'.join(parts) or 'none'


def markdown() -> str:
  """METHODS.md: one table a room."""
  lines = [
    '# Methods',
    '',
    'Generated from the catalog by `make docs`; do not edit. Formulas have the code\'s signs: surrogates are maximised, penalties',
    'minimised, and the loss is the aggregate of `penalty - weight * surrogate`. R is the reward, A the advantage, r = pi / pi_old the',
    'importance ratio, H the entropy in nats, lp = ln pi, N the number of valid tokens, g a group, n a length, sg stop-gradient.',
    'Defaults are the paper\'s. `UNCONFIRMED` marks a formula that was reconstructed rather than read in the paper or its code.',
  ]
  for room in ROOMS:
    lines += ['', f'## {room.capitalize()}', '']
    lines += ['| method | formula | hyper-parameters | paper | status |', '|---|---|---|---|---|']
    for row in CATALOG.values():
      if row.room == room:
        status = 'confirmed' if row.confirmed else 'UNCONFIRMED'
        cells = (_code(row.name), _code(row.formula), _hyper_parameters(row.factory), _cell(row.reference), status)
        lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'
