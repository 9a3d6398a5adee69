"""Entropy collapse in reinforcement learning with verifiable rewards, the covariance that causes it, the law it obeys, and its cures.

Claims under test: Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, arXiv 2505.22617, and
clip-higher of Yu et al., DAPO, arXiv 2503.14476. Criteria are code, in entropy_jax/analysis/mechanism.py.

Two testbeds. Tabular tasks (`fork_tokens`, `mod_sum`), whose success, entropy and entropy changes are exact: plain GRPO and every
intervention, all seeds in one compiled scan. Countdown, text answers of a transformer: a supervised warm start, then GRPO.

    python -m experiments.entropy_mechanism --config=configs/entropy_mechanism.py --workdir=DIR     # or :tiny

Leaves DIR/report.html (open it), DIR/claims.json, DIR/figures/, and a run folder a seed: DIR/tabular/TASK/METHOD/seed_K and
DIR/countdown/{warm_start,seed_K}. The same command on the same DIR goes on where it stopped.
"""

import pathlib
import time
from typing import Any

import jax

from configs.entropy_mechanism import RANGES
from entropy_jax import catalog
from entropy_jax.analysis import mechanism
from entropy_jax.data import fork_tokens, mod_sum
from entropy_jax.objective import Objective
from entropy_jax.parallel import processes
from entropy_jax.training import app, countdown, ranges, tables
from entropy_jax.types import RunFacts, UserError

TASKS: dict[str, tables.Task] = {
  'fork_tokens': tables.Task(fork_tokens.make),
  'mod_sum': tables.Task(mod_sum.make, (mod_sum.diversity,)),
}

# Fields of TokenBatch that no testbed here fills: there is no reference policy, no other sampler, no critic and no greedy response, and
# responses are of one piece.
ABSENT = frozenset({
  'ref_logp_BxT', 'sampler_logp_BxT', 'value_BxT', 'baseline_reward_B', 'token_reward_BxT', 'segment_BxT', 'planning_BxT', 'phase_BxT',
  'answer_B', 'process_logp_BxT', 'imitated_B',
})  # fmt: skip


def main(config: Any, workdir: pathlib.Path) -> None:
  """Runs whatever of the study is not done yet, then writes claims, figures and the report."""
  started, directory = time.monotonic(), workdir / 'countdown'
  with processes.agreed():
    objectives, text_run = validate(config, jax.device_count(), jax.process_count())
    if jax.process_index() == 0:
      _warn(config, objectives, text_run.objectives[''])
    if config.countdown.num_seeds:  # seconds, and a mistake shows before the tables run for minutes
      problems = countdown.read_problems(config.countdown, text_run.shape, directory)
  for task in TASKS if config.tabular.num_seeds else ():
    tabular(task, config, objectives, workdir / 'tabular' / task)
  if config.countdown.num_seeds:
    countdown.train(config, text_run, problems, directory)
  with processes.agreed():  # so that the others wait for the report
    if jax.process_index() == 0:
      claims = mechanism.report(workdir, seconds=time.monotonic() - started)
      for claim in claims:
        print(f'{claim.verdict:>16}  {claim.id}: {claim.value:.3g} [{claim.interval[0]:.3g}, {claim.interval[1]:.3g}]  ({claim.criterion})')
      print(f'report: {workdir / "report.html"}')


def validate(config: Any, device_count: int = 1, process_count: int = 1) -> tuple[dict[str, Objective], countdown.Countdown]:
  """Every mistake that the config alone can hold; reads no file, compiles nothing.

  Args:
    config: the whole config.
    device_count, process_count: that there are.

  Returns:
    (objectives of the tables by name, what the text runs are made of).

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
  specs = {f'tabular.methods.{name}': spec for name, spec in config.tabular.methods.items()} | {'countdown.objective': c.objective}
  for key, spec in specs.items():
    with ranges.naming(key):
      catalog.check_reads(spec.to_dict(), ABSENT)
  objectives = {name: catalog.build(spec.to_dict()) for name, spec in config.tabular.methods.items()}
  with ranges.naming('countdown.model'):
    return objectives, countdown.Countdown.build(c, {'': c.objective.to_dict()})


def _warn(config: Any, objectives: dict[str, Objective], countdown_objective: Objective) -> None:
  """Says what will not do what its user expects, before anything compiles."""
  sizes = {'fork_tokens': 16 * 6, 'mod_sum': 32 * 4}
  found = []
  for task, tokens in sizes.items():
    settings = config.tabular[task]
    facts = RunFacts(settings.num_epochs, settings.group_size, tokens * settings.group_size, '')
    found += [f'{task}, {name}: {text}' for name, objective in objectives.items() for text in objective.warnings(facts)]
  c = config.countdown
  facts = RunFacts(c.num_epochs * c.num_minibatches, c.group_size, c.num_prompts * c.group_size * 8 // c.num_minibatches, '')
  found += [f'countdown: {text}' for text in countdown_objective.warnings(facts)]
  for text in found:
    print(f'warning: {text}')


def tabular(task: str, config: Any, objectives: dict[str, Objective], directory: pathlib.Path) -> None:
  """Every method on one task: one compiled scan a method, all seeds vmapped; two methods compile and run at a time."""
  given = config.tabular[task]
  settings = tables.Settings(given.num_steps, given.group_size, given.num_epochs, given.learning_rate)
  runs = {name: (objective, {'': settings}) for name, objective in objectives.items()}
  tables.study(
    TASKS[task], runs, directory, num_seeds=config.tabular.num_seeds, seed=config.seed, description=task, ledger=config.ledger
  )


if __name__ == '__main__':
  app.run(main)
