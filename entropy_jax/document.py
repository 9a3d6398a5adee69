"""METHODS.md, from the catalog: `python -m entropy_jax.document` prints it.

Each method has a line that `experiments.interventions` runs, or the reason why it cannot run there.
"""

import inspect

from entropy_jax import compose
from entropy_jax.catalog import CATALOG, ROOMS, Entry
from entropy_jax.training.tables import ABSENT
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


def line(entry: Entry) -> str:
  """A whole objective with the method in it, as `--config.objective` takes it, with the hyper-parameters that act on a small batch."""
  given = ', '.join(f'{key}={value}' for key, value in entry.example.items())
  own = f'{entry.name}({given})' if given else entry.name
  return compose.line(compose.parse(own))


def _run(entry: Entry) -> str:
  missing = sorted(entry.factory.reads & ABSENT)
  return f'cannot run there, reads `{missing[0]}`' if missing else _code(line(entry))


def markdown() -> str:
  """METHODS.md: one table a room."""
  lines = [
    '# Methods',
    '',
    'Generated from the catalog by `make docs`; do not edit. Formulas have the code\'s signs: surrogates are maximised, penalties',
    'minimised, and the loss is the aggregate of `penalty - weight * surrogate`. R is the reward, A the advantage, r = pi / pi_old the',
    'importance ratio, H the entropy in nats, lp = ln pi, N the number of valid tokens, g a group, n a length, sg stop-gradient.',
    'Defaults are the paper\'s. `UNCONFIRMED` marks a formula that was reconstructed rather than read in the paper or its code.',
    '',
    'The last column runs the method, as LINE of the command below, beside GRPO on tabular tasks whose success and entropy are exact,',
    'with hyper-parameters that act on batches of their size. It takes a minute; without `:tiny` and `--config.methods=grpo` the line is',
    'compared with every other method, and what each paper claims stands beside its verdict in the report.',
    '',
    '    python -m experiments.interventions --config=configs/interventions.py:tiny --workdir=DIR --config.methods=grpo \\',
    '      --config.objective="LINE"',
  ]
  for room in ROOMS:
    lines += ['', f'## {room.capitalize()}', '']
    lines += ['| method | formula | hyper-parameters | paper | status | line |', '|---|---|---|---|---|---|']
    for row in CATALOG.values():
      if row.room == room:
        status = 'confirmed' if row.confirmed else 'UNCONFIRMED'
        cells = (_code(row.name), _code(row.formula), _hyper_parameters(row.factory), _cell(row.reference), status, _run(row))
        lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


if __name__ == '__main__':
  print(markdown(), end='')
