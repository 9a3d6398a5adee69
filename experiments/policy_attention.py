"""One transformer has two entropies: that of its policy, which reinforcement learning collapses, and that of its attention.

Does attention entropy move when policy entropy collapses, and does sigmaReparam change the law that ties success to policy entropy? A small
decoder, warm-started to imitate an uncertain policy, learns `mod_sum` by on-policy GRPO without any control of entropy, in every variant of
its blocks; in one more run, the control, the baseline's policy entropy is held. Claims and criteria are code, in
entropy_jax/analysis/policy_attention.py.

    python -m experiments.policy_attention --config=configs/policy_attention.py --workdir=DIR     # or :tiny

Leaves DIR/report.html (open it), DIR/claims.json, DIR/figures/, and DIR/VARIANT/seed_K/metrics.jsonl. The same command on the same DIR does
what is missing.
"""

import functools
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from configs.policy_attention import RANGES
from entropy_jax import catalog
from entropy_jax.analysis import policy_attention as study
from entropy_jax.analysis import policy_attention_report
from entropy_jax.data import mod_sum
from entropy_jax.models.transformer import DecoderConfig
from entropy_jax.objective import Objective
from entropy_jax.parallel import processes
from entropy_jax.training import app, decoders, optimizers, ranges, sweeps, tables
from entropy_jax.training.writers import METRICS
from entropy_jax.types import Metrics, UserError


class Run(NamedTuple):
  """What one variant trains."""

  decoder: DecoderConfig
  objective: Objective


def main(config: Any, workdir: pathlib.Path) -> None:
  """Trains every variant that is not there yet, then writes claims, figures and the report."""
  started = time.monotonic()
  with processes.agreed():
    runs = validate(config)
  run_study(config, runs, workdir)
  with processes.agreed():  # so that the others wait for the report
    if jax.process_index() == 0:
      for claim in policy_attention_report.report(workdir, seconds=time.monotonic() - started):
        print(f'{claim.verdict:>16}  {claim.id}: {claim.value:.3g} [{claim.interval[0]:.3g}, {claim.interval[1]:.3g}]  ({claim.criterion})')
      print(f'report: {workdir / "report.html"}')


def validate(config: Any) -> dict[str, Run]:
  """Every mistake that the config can hold; compiles nothing.

  Returns:
    variant -> what it trains, the control included.

  Raises:
    UserError: key, value and what is allowed.
  """
  plain = app.resolve(config)
  ranges.check(plain, RANGES)
  ranges.check_launch(plain)
  ranges.check_divides('block', plain['block'], plain['num_steps'], 'updates')
  if plain['num_steps'] // plain['block'] < study.MIN_BLOCKS:
    most = plain['num_steps'] // study.MIN_BLOCKS
    raise UserError(f'config: block={plain["block"]} leaves fewer than {study.MIN_BLOCKS} points a run; give at most {most}.')
  variants = plain['variants']
  if study.BASELINE not in variants:
    raise UserError(f'config: variants has no {study.BASELINE}, which all others are compared with; add it.')
  if study.HELD in variants:
    raise UserError(f'config: variants.{study.HELD} has the name of the control; give it another.')
  if len(variants) >= study.MOST_RUNS:
    raise UserError(f'config: variants has {len(variants)}; a figure can tell {study.MOST_RUNS - 1} and the control apart.')
  objectives = {}
  for key in ('objective', 'held_objective'):
    with ranges.naming(key):
      catalog.check_reads(plain[key], tables.ABSENT)
    objectives[key] = catalog.build(plain[key])
  runs = {name: Run(_decoder(name, plain), objectives['objective']) for name in variants}
  return runs | {study.HELD: runs[study.BASELINE]._replace(objective=objectives['held_objective'])}


def _decoder(name: str, plain: Mapping[str, Any]) -> DecoderConfig:
  task = plain['task']
  sizes = {'vocab_size': decoders.vocab_size(task['num_prompts'], task['vocab_size']), 'max_length': task['num_tokens'] + 1}
  with ranges.naming(f'variants.{name}'):
    return DecoderConfig(**(sizes | plain['decoder'] | plain['variants'][name]))


def program(run: Run, plain: Mapping[str, Any]) -> Callable[[jax.Array], Metrics]:
  """All seeds of a run, compiled when it is called: key_R -> name -> [R, num_steps]."""
  task, clip, warm = plain['task'], plain['max_grad_norm'], plain['warm_start']
  make_policy = lambda task: decoders.decoder_policy(run.decoder, task.vocab_size)
  cosine = {'schedule': 'cosine', 'num_steps': warm['num_steps']}
  warm_start = functools.partial(
    decoders.imitate,
    tx=optimizers.make_optimizer('adam', warm['learning_rate'], max_grad_norm=clip, **cosine),
    num_steps=warm['num_steps'],
    num_sequences=task['num_prompts'] * plain['group_size'],
  )

  def seeds(key_R: jax.Array) -> Metrics:
    def one(index: jax.Array, rate: jax.Array) -> Metrics:
      return decoders.train(
        functools.partial(mod_sum.make, **task),
        make_policy,
        key_R[index],
        objective=run.objective,
        tx=optimizers.make_optimizer('adam', rate, max_grad_norm=clip),
        num_steps=plain['num_steps'],
        group_size=plain['group_size'],
        warm_start=warm_start,
      )

    rates = jnp.full((1,), plain['learning_rate'], jnp.float32)
    found = sweeps.over_runs(one, plain['num_seeds'], rates, at_a_time=sweeps.runs_at_a_time())
    return jax.tree.map(lambda x: x[:, 0], found)

  return jax.jit(seeds, compiler_options=sweeps.compiler_options())


def run_study(config: Any, runs: Mapping[str, Run], workdir: pathlib.Path) -> None:
  """Every variant: one compiled program for all its seeds, two programs at a time."""
  plain = app.resolve(config)
  num_seeds = plain['num_seeds']
  root = jax.random.key(plain['seed'])
  key_R = jax.vmap(lambda k: jax.random.fold_in(root, k))(jnp.arange(num_seeds))
  missing = {name: [k for k in range(num_seeds) if not (workdir / name / f'seed_{k}' / METRICS).exists()] for name in runs}

  def train(name: str) -> None:
    curves = jax.device_get(program(runs[name], plain)(key_R))
    curves['warm_start/kl'] = curves.pop('warm_start/loss')[:, -1:]  # a number of the first row
    for k in missing[name]:
      file = workdir / name / f'seed_{k}' / METRICS
      tables.write_curves(file, sweeps.of_seed(curves, k), f'{name}, seed {k}', strict=False)

  tables.two_at_a_time(train, [name for name in runs if missing[name]], f'{num_seeds} seeds, variant')


if __name__ == '__main__':
  app.run(main)
