"""METHODS.md, from the catalog: `python -m entropy_jax.document` prints it.

Each method has a line that `experiments.interventions` runs, or the reason why it cannot run there, and what that study found of it:
docs/comparison.json, a copy of the file of this name in the study's folder.
"""

import collections
import inspect
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from entropy_jax import compose
from entropy_jax.catalog import CATALOG, ROOMS, Entry, samplers
from entropy_jax.training.tables import ABSENT
from entropy_jax.transform import Method


def _cell(text: str) -> str:
  return text.replace('|', '\\|')


def _code(text: str) -> str:
  return f'`{_cell(text)}`'


def _hyper_parameters(method: Method | samplers.Row) -> str:
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


def _status(confirmed: bool) -> str:
  return 'confirmed' if confirmed else 'UNCONFIRMED'


def _run(entry: Entry) -> str:
  missing = sorted(entry.factory.reads & ABSENT)
  return f'cannot run there, reads `{missing[0]}`' if missing else _code(line(entry))


COMPARISON = pathlib.Path(__file__).parents[1] / 'docs' / 'comparison.json'


def names_in(text: str) -> set[str]:
  """The methods of a line."""
  spec = compose.parse(text)
  return {method['name'] for room in ROOMS for method in spec[room]}


def subjects(lines: Mapping[str, str]) -> dict[str, list[str]]:
  """Method of the catalog -> the lines that are about it: those in which it is the rarest method, alone or with others."""
  names = {line: names_in(text) for line, text in lines.items()}
  count = collections.Counter(name for found in names.values() for name in found)
  about = collections.defaultdict(list)
  for line, found in names.items():
    for name in found:
      if count[name] == min(count[other] for other in found):
        about[name].append(line)
  return about


def _finding(line: str, record: Mapping[str, Any]) -> str:
  """Entropy at matched success minus GRPO's in each setting, then each claim with its verdicts."""
  parts = []
  for setting, found in record['entropy'].items():
    if found['value'] is None:
      parts.append(f'{setting}: {found["verdict"]}')
    else:
      low, high = found['interval']
      parts.append(f'{setting}: {found["value"]:+.3f} [{low:.3f}, {high:.3f}] {found["verdict"]}')
  verdicts: dict[str, list[str]] = collections.defaultdict(list)
  for claim in record['claims']:
    verdicts[claim['statement']].append(f'{claim["verdict"]} ({claim["setting"]})')
  parts += [f'"{statement}" {", ".join(found)}' for statement, found in verdicts.items()]
  return '<br>'.join([_code(line), *map(_cell, parts)])


def markdown(comparison: Mapping[str, Any] | None = None) -> str:
  """METHODS.md: one table a room; comparison: what the study found, None for that of docs/comparison.json."""
  comparison = json.loads(COMPARISON.read_text()) if comparison is None else comparison
  about = subjects({line: record['objective'] for line, record in comparison.items()})
  lines = [
    '# Methods',
    '',
    'Generated from the catalog by `make docs`; do not edit. Formulas have the code\'s signs: surrogates are maximised, penalties',
    'minimised, and the loss is the aggregate of `penalty - weight * surrogate`. R is the reward, A the advantage, r = pi / pi_old the',
    'importance ratio, H the entropy in nats, lp = ln pi, N the number of valid tokens, g a group, n a length, sg stop-gradient.',
    'Defaults are the paper\'s. `UNCONFIRMED` marks a formula that was reconstructed rather than read in the paper or its code.',
    '',
    'The column "line" runs the method, as LINE of the command below, beside GRPO on tabular tasks whose success and entropy are exact,',
    'with hyper-parameters that act on batches of their size. It takes a minute; without `:tiny` and `--config.methods=grpo` the line is',
    'compared with every other method, and what each paper claims stands beside its verdict in the report.',
    '',
    '    python -m experiments.interventions --config=configs/interventions.py:tiny --workdir=DIR --config.methods=grpo \\',
    '      --config.objective="LINE"',
    '',
    'The last column is what that study found with its default config, line by line of the config: entropy at matched success',
    'minus that of GRPO in nats a token with its 95 % interval over seeds, in a word, and each claim with its verdict. TASK/epochs_N',
    'is N updates a rollout.',
  ]
  for room in ROOMS:
    lines += ['', f'## {room.capitalize()}', '']
    lines += ['| method | formula | hyper-parameters | paper | status | line | found here |', '|---|---|---|---|---|---|---|']
    for row in CATALOG.values():
      if row.room == room:
        found = '<br>'.join(_finding(line, comparison[line]) for line in about[row.name]) if row.name in about else ''
        about_it = (_code(row.name), _code(row.formula), _hyper_parameters(row.factory), _cell(row.reference), _status(row.confirmed))
        cells = (*about_it, _run(row), found)
        lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join([*lines, *_samplers()]) + '\n'


def _samplers() -> list[str]:
  lines = [
    '',
    '## Samplers',
    '',
    'What is done to the logits z, already over the temperature T, before a token is drawn; p = softmax(z). They are no part of the',
    'objective: `generate(..., adjust=)` takes any of them, `catalog.samplers.build` makes them from names, and `experiments.rlvr` takes',
    'top_h, top_k, top_p, min_p and typical as `--config.sampling.NAME=VALUE`. Of several, each acts on what those above it left.',
    'Log-probabilities for the update are those of p, and those of what was drawn from are reported beside them.',
    '',
    '| sampler | rule | hyper-parameters | paper | status |',
    '|---|---|---|---|---|',
  ]
  for row in samplers.TABLE:
    cells = (_code(row.name), _code(row.formula), _hyper_parameters(row), _cell(row.reference), _status(row.confirmed))
    lines.append(f'| {" | ".join(cells)} |')
  return lines


if __name__ == '__main__':
  print(markdown(), end='')
