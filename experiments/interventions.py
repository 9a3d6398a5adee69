"""Every published intervention on policy entropy against GRPO, at matched success: on two tables where all is exact, and on countdown.

Claims under test: what each method's paper says of entropy, in entropy_jax/analysis/predictions.py, with criteria written before the run.

    python -m experiments.interventions --config=configs/interventions.py --workdir=DIR     # or :tiny
    ... --config.methods=clip_cov,siren                                                     # these and GRPO
    ... --config.objective="grpo + clip_higher + top_entropy(0.2)"                          # and a line of your own

Leaves DIR/report.html (open it), DIR/claims.json, DIR/figures/, and a run folder a seed: DIR/tabular/TASK/epochs_N/METHOD/seed_K and
DIR/countdown/{warm_start,METHOD/seed_K}. The same command on the same DIR goes on where it stopped, by method and seed.
"""

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from configs.interventions import EPOCHS, RANGES, TASKS
from entropy_jax import catalog, compose
from entropy_jax.analysis import interventions as analysis
from entropy_jax.data import fork_tokens, mod_sum
from entropy_jax.objective import Objective
from entropy_jax.parallel import processes
from entropy_jax.training import app, countdown, ranges, tables
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

BASELINE, OWN = 'grpo', 'objective'
TABLES = {
  'fork_tokens': tables.Task(fork_tokens.make, (fork_tokens.diversity,)),
  'mod_sum': tables.Task(mod_sum.make, (mod_sum.diversity,)),
}
# Fields of TokenBatch that nothing fills: on each table, and on countdown, whose responses are of one piece.
ABSENT = {'fork_tokens': tables.ABSENT | {'phase_BxT'}, 'mod_sum': tables.ABSENT}
ABSENT_TEXT = tables.ABSENT | {'segment_BxT', 'planning_BxT', 'phase_BxT', 'answer_B'}


class Study(NamedTuple):
  """What a config that `validate` has seen asks for.

  Attributes:
    tabular: task -> method -> objective, GRPO first.
    epochs: of EPOCHS, those that are run.
    text: what the transformer's runs are made of.
    notes: what is left out, one sentence each.
  """

  tabular: Mapping[str, Mapping[str, Objective]]
  epochs: Sequence[str]
  text: countdown.Countdown
  notes: Sequence[str]


def main(config: Any, workdir: pathlib.Path) -> None:
  """Runs whatever of the study is not done yet, then writes claims, figures and the report."""
  started, directory = time.monotonic(), workdir / 'countdown'
  with processes.agreed():
    study = validate(config, jax.device_count(), jax.process_count())
    if jax.process_index() == 0:
      for note in study.notes:
        print(f'note: {note}')
    if config.countdown.num_seeds:  # seconds, and a mistake shows before the tables run for minutes
      problems = countdown.read_problems(config.countdown, study.text.shape, directory)
  for task in TASKS if config.tabular.num_seeds else ():
    tabular(task, config, study, workdir / 'tabular' / task)
  if config.countdown.num_seeds:
    countdown.train(config, study.text, problems, directory)
  with processes.agreed():  # so that the others wait for the report
    if jax.process_index() == 0:
      for claim in analysis.report(workdir, seconds=time.monotonic() - started):
        print(f'{claim.verdict:>16}  {claim.id}: {claim.value:.3g} [{claim.interval[0]:.3g}, {claim.interval[1]:.3g}]  ({claim.criterion})')
      print(f'report: {workdir / "report.html"}')


def _names(key: str, text: str | None, known: Sequence[str]) -> list[str]:
  """The names of a text that separates them by commas, each one of those that are known."""
  names = [name.strip() for name in (text or '').split(',') if name.strip()]
  for name in names:
    if name not in known:
      close = nearest(name, list(known)) or f' There are {", ".join(known)}.'
      raise UserError(f'config: {key}={text!r} names {name!r}, which is none of the lines; give names separated by commas.{close}')
  return names


def chosen(config: Any) -> dict[str, str]:
  """Name -> line of every method that the config asks for, GRPO first and the user's own last."""
  if BASELINE not in config.lines:
    raise UserError(f'config: lines.{BASELINE} is missing; it is what all others are compared with, so give it.')
  names = list(config.lines) if config.methods == 'all' else _names('methods', config.methods, list(config.lines))
  found = {name: config.lines[name] for name in dict.fromkeys([BASELINE, *names])}
  if config.objective is not None:
    if OWN in config.lines:
      raise UserError(f'config: objective={config.objective!r} and lines.{OWN} are both the method {OWN!r}; leave one out.')
    found[OWN] = config.objective
  return found


def validate(config: Any, device_count: int = 1, process_count: int = 1) -> Study:
  """Every mistake that the config alone can hold; reads no file, compiles nothing.

  Args:
    config: the whole config.
    device_count, process_count: that there are.

  Raises:
    UserError: key, value and what is allowed.
  """
  plain = app.resolve(config)
  ranges.check(plain, RANGES)
  ranges.check_launch(plain)
  c = config.countdown
  if config.tabular.num_seeds == 0 and c.num_seeds == 0:
    raise UserError('config: tabular.num_seeds=0 and countdown.num_seeds=0 leave nothing to run; give one of them at least 1.')
  countdown.check(c, config.num_devices or device_count, process_count)
  lines, specs = chosen(config), {}
  everywhere = frozenset.intersection(*ABSENT.values())
  for name in [*config.lines, *(() if config.objective is None else (OWN,))]:  # those that are not chosen too: a mistake is a mistake
    with ranges.naming(OWN if name == OWN else f'lines.{name}'):
      spec = compose.parse(config.objective if name == OWN else config.lines[name])
      compose.objective(spec)
      catalog.check_reads(spec, everywhere)
      specs[name] = spec
  _names('tabular.unnormalised', config.tabular.unnormalised, list(config.lines))
  epochs = _epochs(config.tabular.epochs)
  text = dict.fromkeys([BASELINE, *_names('countdown.methods', c.methods, list(config.lines)), OWN])
  fitting, notes = {}, list[str]()
  for task, absent in ABSENT.items():
    fitting[task] = _fitting({name: specs[name] for name in lines}, absent, task, notes)
  on_text = _fitting({name: specs[name] for name in text if name in lines}, ABSENT_TEXT, 'countdown', notes)
  with ranges.naming('countdown.model'):
    parts = countdown.Countdown.build(c, on_text)
  objectives = {task: {name: compose.objective(spec) for name, spec in found.items()} for task, found in fitting.items()}
  return Study(objectives, epochs, parts, notes)


def _epochs(text: str) -> list[str]:
  names = [f'epochs_{number.strip()}' for number in text.split(',')]
  if not set(names) <= set(EPOCHS):
    raise UserError(f"config: tabular.epochs={text!r} is not 1, 4 or '1,4'; give one of these.")
  return [name for name in EPOCHS if name in names]


def _fitting(specs: Mapping[str, Any], absent: frozenset[str], where: str, notes: list[str]) -> dict[str, Any]:
  """The specs whose methods find there what they read; the others are noted."""
  found = {}
  for name, spec in specs.items():
    try:
      catalog.check_reads(spec, absent)
      found[name] = spec
    except UserError as error:
      notes.append(f'{where}: {name} is left out ({error})')
  return found


def tabular(task: str, config: Any, study: Study, directory: pathlib.Path) -> None:
  """Every method on one task, with every number of updates per rollout."""
  given = config.tabular[task]
  faster = _names('tabular.unnormalised', config.tabular.unnormalised, list(config.lines))
  runs = {}
  for name, objective in study.tabular[task].items():
    more = config.tabular.unnormalised_rate if name in faster else 1.0
    settings = {}
    for epochs in study.epochs:
      steps, rate = given[epochs].num_steps, given[epochs].learning_rate * more
      settings[epochs] = tables.Settings(steps, given.group_size, int(epochs.removeprefix('epochs_')), rate)
    runs[name] = objective, settings
  # A method that breaks is a result, and must not take the others with it.
  how = {'num_seeds': config.tabular.num_seeds, 'seed': config.seed, 'ledger': config.ledger, 'strict': False}
  tables.study(TABLES[task], runs, directory, description=task, **how)


if __name__ == '__main__':
  app.run(main)
