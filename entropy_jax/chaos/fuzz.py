"""Wrong configs by the thousand, made from right ones: each is to be refused before anything compiles, with key, value and what is allowed.

A case is a command line, alone or with a config file of its own. Files matter because a command line is checked by the types of the
file's values, and a user's own file by nothing. What a case breaks it breaks alone, so the refusal must be about that: `Case` says which
key, which value and which words the sentence has to hold.
"""

import collections
import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from entropy_jax import catalog, presets
from entropy_jax.chaos import mutations, plain
from entropy_jax.types import UserError

KINDS = ('unknown key', 'wrong type', 'out of range', 'illegal pair', 'missing file')
MAX_SENTENCE = 1500
CANDIDATES = 2  # drawn for each case, of which the rarer is kept


class Base(NamedTuple):
  """A right config to start from.

  Attributes:
    argument: what --config is given.
    config: its keys, as `training.app.resolve` gives them.
    table: its ranges, see `training.ranges`.
    absent: fields of TokenBatch that no batch of the experiment has.
  """

  argument: str
  config: Mapping[str, Any]
  table: Mapping[str, str]
  absent: frozenset[str] = frozenset()


class Case(NamedTuple):
  """One wrong command line, or a right one.

  Attributes:
    kind: one of KINDS; 'shipped' and 'preset' are right.
    key: what the sentence has to name; '' where there is nothing to name.
    value: what it has to show; '' where nothing was given.
    allowed: it has to hold one of these.
    arguments: of the command line; FILE stands for the config file, TAKEN for a file where a folder is wanted,
      and NOWORKDIR for no --workdir.
    config: content of the config file, or None where it is a shipped one.
  """

  kind: str
  key: str
  value: str
  allowed: tuple[str, ...]
  arguments: tuple[str, ...]
  config: Mapping[str, Any] | None = None


class Slipped(NamedTuple):
  """A case that was not refused as it should be, and what happened instead."""

  case: Case
  what: str


class Result(NamedTuple):
  """What came of the cases.

  Attributes:
    cases, refused: by kind.
    slipped: wrong cases that were not refused as they should be, and right ones that were refused.
    milliseconds: median of a check.
    compilations: backend compilations during all checks.
  """

  cases: dict[str, int]
  refused: dict[str, int]
  slipped: list[Slipped]
  milliseconds: float
  compilations: int


def generate(seed: int, bases: Sequence[Base], *, num_cases: int = 1000) -> list[Case]:
  """Wrong cases, as many of each kind (the first kinds get the rest), no two alike.

  >>> base = Base('configs/x.py', {'seed': 0, 'num_seeds': 1}, {'seed': 'int [0, inf)', 'num_seeds': 'int [0, inf)'})
  >>> [case.kind for case in generate(0, [base], num_cases=5)] == list(KINDS)
  True
  """
  rng, found, seen = np.random.default_rng(seed), [], set()
  broken = collections.Counter[str]()
  for place in range(num_cases):
    kind, drawn = KINDS[place % len(KINDS)], dict[str, Case]()
    for _ in range(1000):
      base = bases[int(rng.integers(len(bases)))]
      mutation = mutations.make(kind, rng, base.config, base.table, base.absent, base.argument)
      if mutation is None:
        continue  # this base has nothing of the kind that was drawn
      case = Case(kind, *mutation)
      if (identity := json.dumps([case.arguments, case.config], sort_keys=True)) not in seen:
        drawn.setdefault(identity, case)
      if len(drawn) == CANDIDATES:
        break
    if not drawn:
      raise ValueError(f'these bases do not have {num_cases} different mistakes: {place} were found, and no more of the kind {kind!r}')
    # Some keys are of every objective and some of one method: the one broken least so far is taken, so that few are left out.
    identity, case = min(drawn.items(), key=lambda item: broken[item[1].key.split('.')[-1]])
    seen.add(identity)
    broken[case.key.split('.')[-1]] += 1
    found.append(case)
  return found


def shipped(bases: Sequence[Base]) -> list[Case]:
  """Right cases: every base as it is, and in every objective of it every preset that its experiment has the data for."""
  found = []
  for base in bases:
    found.append(Case('shipped', '', '', (), (f'--config={base.argument}',)))
    for pattern, kind in base.table.items():
      if kind == 'objective' and '*' not in pattern:
        found += [
          Case('preset', name, '', (), ('--config=FILE',), plain.replaced(base.config, pattern.split('.'), spec))
          for name, spec in _specs().items()
          if _has_the_data(spec, base.absent)
        ]
  return found


def _specs() -> dict[str, dict[str, Any]]:
  """The presets' objectives; one that divides by the largest length, which its source leaves open, gets one."""
  found = {}
  for name in presets.PRESETS:
    preset = presets.preset(name)
    spec = copy.deepcopy(dict(preset.spec))
    if str(spec.get('aggregate')).startswith('token_sum_over'):
      spec['constant'] = preset.settings.max_length or 1024
    found[name] = spec
  return found


def _has_the_data(spec: Mapping[str, Any], absent: frozenset[str]) -> bool:
  try:
    catalog.check_reads(spec, absent)
  except UserError:
    return False
  return True


def run(cases: Sequence[Case], check: Callable[[list[str]], None], folder: Path) -> Result:
  """Checks every case.

  Args:
    cases: wrong ones, right ones, or both.
    check: takes a command line with the program's name first, parses and validates it and runs nothing; raises UserError.
    folder: where config files are written.
  """
  taken = folder / 'taken'
  taken.write_text('a file where a folder is wanted\n')
  cases_by, refused_by = dict.fromkeys((c.kind for c in cases), 0), dict.fromkeys((c.kind for c in cases), 0)
  slipped, seconds, compiled = [], [], _Compilations()
  with compiled:
    for number, case in enumerate(cases):
      argv, before = _command(case, folder / f'case_{number}.py', taken), compiled.count
      started = time.perf_counter()
      what = _outcome(case, check, argv)
      seconds.append(time.perf_counter() - started)
      if compiled.count > before:
        what = f'{compiled.count - before} programs were compiled'
      cases_by[case.kind] += 1
      if what is None and case.kind in KINDS:
        refused_by[case.kind] += 1
      if what is not None:
        slipped.append(Slipped(case, what))
  return Result(cases_by, refused_by, slipped, 1e3 * statistics.median(seconds) if seconds else 0.0, compiled.count)


def _command(case: Case, file: Path, taken: Path) -> list[str]:
  """The command line, with the case's file written."""
  if case.config is not None:
    text = json.dumps(case.config).replace('TAKEN', str(taken))  # NaN and infinities too, as Python reads them
    body = f'def get_config():\n  return ml_collections.ConfigDict(json.loads({text!r}))\n'
    file.write_text(f'import json\n\nimport ml_collections\n\n\n{body}')
  filled = [a.replace('FILE', str(file)).replace('TAKEN', str(taken)) for a in case.arguments]
  workdir = [] if any(a.startswith('--workdir') or a == 'NOWORKDIR' for a in filled) else [f'--workdir={file.with_suffix("")}']
  return ['fuzz', *(a for a in filled if a != 'NOWORKDIR'), *workdir]


def _outcome(case: Case, check: Callable[[list[str]], None], argv: list[str]) -> str | None:
  """None where the case went as it should, otherwise what happened."""
  try:
    check(argv)
  except UserError as error:
    sentence = str(error)
    if case.kind not in KINDS:
      return f'refused: {sentence}'
    lacks = [
      what
      for what, there in {
        f'the key {case.key!r}': case.key in sentence,
        f'the value {case.value!r}': case.value in sentence,
        f'what is allowed, any of {case.allowed}': any(text in sentence for text in case.allowed),
        'one line of bearable length': '\n' not in sentence and len(sentence) <= MAX_SENTENCE,
      }.items()
      if not there
    ]
    return f'the sentence lacks {" and ".join(lacks)}: {sentence}' if lacks else None
  except Exception as error:
    return f'{type(error).__name__}: {error}'
  return 'not refused' if case.kind in KINDS else None


class _Compilations:
  """Counts backend compilations; a context."""

  def __init__(self) -> None:
    self.count = 0

  def __enter__(self) -> '_Compilations':
    jax.monitoring.register_event_duration_secs_listener(self._note)
    return self

  def __exit__(self, *unused: object) -> None:
    jax.monitoring.unregister_event_duration_listener(self._note)

  def _note(self, event: str, duration_secs: float, **unused: str | int) -> None:
    if event == '/jax/core/compile/backend_compile_duration':
      self.count += 1
