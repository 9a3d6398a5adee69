"""Entropy-guided attention: what the heads of a language model do when its normalisation and activations are taken away, and what mends it.

A ladder of models on bytes of Python's standard library: all nonlinearities, without the activation, without the normalisation, softmax
alone, and then the scaled fused MLP, a learnt temperature of the softmax, and a penalty that holds the entropy of every head to a learnt
threshold. Criteria are code, in entropy_jax/analysis/entropy_guided_study.py.

    python -m experiments.entropy_guided_lm --config=configs/entropy_guided_lm.py --workdir=DIR     # or :tiny

Leaves DIR/report.html (open it), DIR/claims.json, DIR/figures/, and a run folder a seed: DIR/VARIANT/seed_K. The same command on the same
DIR goes on where it stopped.
"""

import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from configs.entropy_guided_lm import RANGES
from entropy_jax.analysis import entropy_guided_runs, entropy_guided_study
from entropy_jax.data import source_bytes
from entropy_jax.models.transformer import DecoderConfig
from entropy_jax.parallel import processes
from entropy_jax.training import app, byte_batches, guided_learner, optimizers, ranges, sweeps, tables
from entropy_jax.training.guided_learner import Guide
from entropy_jax.training.learners import Batch
from entropy_jax.training.writers import METRICS
from entropy_jax.types import Params, UserError

# What a variant may set: it changes how blocks work, not how large they are.
FIELDS = ('kernel_init', 'norm', 'norm_kind', 'norm_eps', 'qk_norm', 'logit_cap', 'softmax_temperature', 'activation')
BLOCK = {'norm_kind': 'layer', 'positions': 'learned', 'tie_embeddings': False, 'vocab_size': source_bytes.VOCAB_SIZE}


def main(config: Any, workdir: pathlib.Path) -> None:
  """Runs whatever of the study is not done yet, then writes claims, figures and the report."""
  started = time.monotonic()
  with processes.agreed():
    models = validate(config)
  run_study(config, models, workdir)
  with processes.agreed():  # so that the others wait for the report
    if jax.process_index() == 0:
      for claim in entropy_guided_study.report(workdir, seconds=time.monotonic() - started):
        print(f'{claim.verdict:>16}  {claim.id}: {claim.value:.3g} [{claim.interval[0]:.3g}, {claim.interval[1]:.3g}]  ({claim.criterion})')
      print(f'report: {workdir / "report.html"}')


def validate(config: Any) -> dict[str, DecoderConfig]:
  """Every mistake that the config can hold; compiles nothing.

  Returns:
    variant -> its model.

  Raises:
    UserError: key, value and what is allowed.
  """
  plain = app.resolve(config)
  ranges.check(plain, RANGES)
  ranges.check_launch(plain)
  num_steps, log_every = plain['num_steps'], plain['log_every']
  if num_steps % log_every:
    raise UserError(f'config: log_every={log_every} does not divide num_steps={num_steps}; give a divisor.')
  baseline, most = entropy_guided_runs.BASELINE, entropy_guided_runs.MOST_VARIANTS
  if baseline not in plain['variants']:
    raise UserError(f'config: variants has no {baseline}, which all others are compared with; add it.')
  if len(plain['variants']) > most:
    raise UserError(f'config: variants has {len(plain["variants"])}; a figure can tell {most} apart, so give at most that.')
  for name in plain['penalties']:
    if name not in plain['variants']:
      raise UserError(f'config: penalties.{name} is for no variant; give the name of one of {", ".join(plain["variants"])}.')
  with ranges.naming('optimizer'):
    make_optimizer(plain)
  return {name: _model(name, plain) for name in plain['variants']}


def make_optimizer(plain: Mapping[str, Any]) -> optax.GradientTransformation:
  """The config's optimizer."""
  given = dict(plain['optimizer'])
  return optimizers.make_optimizer(given.pop('name'), given.pop('learning_rate'), **given)


def _model(name: str, plain: Mapping[str, Any]) -> DecoderConfig:
  for field in plain['variants'][name]:
    if field not in FIELDS:
      raise UserError(f'config: variants.{name}.{field} is not for a variant to set; it may set {", ".join(FIELDS)}.')
  sizes = {key: plain[key] for key in ('width', 'num_heads', 'num_layers', 'mlp_width')}
  with ranges.naming(f'variants.{name}'):
    return DecoderConfig(**sizes, max_length=plain['length'] - 1, **(BLOCK | plain['variants'][name]))


def batches(plain: Mapping[str, Any]) -> tuple[Batch, Batch]:
  """The batches of every seed, arrays [R, N, B, T], and the rows held out."""
  about = {key: plain[key] for key in ('length', 'num_steps', 'batch_size', 'seed', 'num_seeds')}
  held_out = byte_batches.held_out(length=plain['length'], num_rows=plain['num_held_out'], seed=plain['seed'])
  return byte_batches.training(**about), held_out


# (params_R, lambda of the penalty, batches, held out) -> Curves
Train = Callable[[Params, jax.Array, Batch, Batch], sweeps.Curves]


def program(model: DecoderConfig, plain: Mapping[str, Any], *, guided: bool) -> tuple[Callable[[jax.Array], Params], Train]:
  """(key_R -> params_R, the training of all seeds); the strength of the penalty is traced, so that all strengths share them."""

  def learner(coef: Any) -> Any:
    return guided_learner.guided_decoder(model, Guide(coef, plain['tolerance'], plain['threshold_start']) if guided else None)

  def train(params_R: Params, coef: jax.Array, batches_RxN: Batch, held_out: Batch) -> sweeps.Curves:
    def one(index: jax.Array, strength: jax.Array) -> sweeps.Curves:
      params, batches_N = jax.tree.map(lambda x: x[index], (params_R, batches_RxN))
      return sweeps.train(
        learner(strength), params, batches_N, held_out, tx=make_optimizer(plain), log_every=plain['log_every']
      )  # fmt: skip

    return sweeps.over_runs(one, plain['num_seeds'], coef[None], at_a_time=sweeps.runs_at_a_time())

  start = jax.jit(jax.vmap(learner(0.0).init), compiler_options=sweeps.compiler_options(once=True))
  return start, jax.jit(train, compiler_options=sweeps.compiler_options())


def run_study(config: Any, models: Mapping[str, DecoderConfig], workdir: pathlib.Path) -> None:
  """Every variant: one compiled program for its seeds, two programs at a time."""
  plain = app.resolve(config)
  num_seeds = plain['num_seeds']
  root = jax.random.key(plain['seed'])
  key_R = jax.vmap(lambda k: jax.random.fold_in(root, k))(jnp.arange(num_seeds))
  missing = {name: [k for k in range(num_seeds) if not (workdir / name / f'seed_{k}' / METRICS).exists()] for name in models}
  todo = [name for name, seeds in missing.items() if seeds]
  if not todo:
    return
  data = batches(plain)
  shape = {name: (models[name], name in plain['penalties']) for name in todo}
  programs = {key: program(key[0], plain, guided=key[1]) for key in dict.fromkeys(shape.values())}

  def run(name: str) -> None:
    start, train = programs[shape[name]]
    curves = jax.device_get(train(start(key_R), jnp.float32(plain['penalties'].get(name, 0.0)), *data)._replace(params=()))
    for k in missing[name]:
      sweeps.write_seed(workdir / name / f'seed_{k}' / METRICS, sweeps.of_seed(curves, k), {}, [name], log_every=plain['log_every'])

  tables.two_at_a_time(run, todo, f'{num_seeds} seeds, {plain["num_steps"]} updates, variant')


if __name__ == '__main__':
  app.run(main)
