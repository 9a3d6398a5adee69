"""Context extension: a language model trained on short sequences is made to read long ones, by a change of the rotary base, by the
scaling of logits that Entropy-ABF adds, by both or by neither, and then tuned for a few updates.

Two tasks: bytes of Python's standard library, and recall of the token a given number of places back, among random ones. Losses and
attention entropies are measured by position, to beyond the length of the tuning. Criteria are code, in
entropy_jax/analysis/context_extension.py.

    python -m experiments.context_extension --config=configs/context_extension.py --workdir=DIR     # or :tiny

Leaves DIR/report.html (open it), DIR/claims.json, DIR/figures/, and run folders: DIR/TASK/short/seed_K and DIR/TASK/EXTENSION/seed_K.
The same command on the same DIR goes on where it stopped; a task of which an extension is missing is trained at the short length again.
"""

import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from configs.context_extension import RANGES, TASKS
from entropy_jax.analysis import context_extension, context_runs
from entropy_jax.data import source_bytes
from entropy_jax.models.transformer import DecoderConfig
from entropy_jax.parallel import processes
from entropy_jax.training import app, byte_batches, learners, optimizers, position_learner, ranges, sweeps, tables
from entropy_jax.training.learners import Batch
from entropy_jax.training.sweeps import Curves
from entropy_jax.training.writers import METRICS
from entropy_jax.types import Params, UserError

# What an extension may replace.
FIELDS = ('rope_theta', 'entropy_abf_window', 'entropy_abf_exempt')
SHORT = context_runs.SHORT
HELD_OUT_SEED = 1_000_000_000  # more than there are seeds
Tune = Callable[[Params, Batch, Batch], Curves]


def main(config: Any, workdir: pathlib.Path) -> None:
  """Runs whatever of the study is not done yet, then writes claims, figures and the report."""
  started = time.monotonic()
  with processes.agreed():
    models = validate(config)
  run_study(config, models, workdir)
  with processes.agreed():  # so that the others wait for the report
    if jax.process_index() == 0:
      for claim in context_extension.report(workdir, seconds=time.monotonic() - started):
        print(f'{claim.verdict:>16}  {claim.id}: {claim.value:.3g} [{claim.interval[0]:.3g}, {claim.interval[1]:.3g}]  ({claim.criterion})')
      print(f'report: {workdir / "report.html"}')


def validate(config: Any) -> dict[str, DecoderConfig]:
  """Every mistake that the config can hold; compiles nothing.

  Returns:
    extension -> its model, and `short` -> the one trained at the short length.

  Raises:
    UserError: key, value and what is allowed.
  """
  plain = app.resolve(config)
  ranges.check(plain, RANGES)
  ranges.check_launch(plain)
  if not tasks(plain):
    raise UserError(f'config: short.num_steps=0 of {", ".join(TASKS)} leaves nothing to run; give one of them at least 1.')
  lengths = {key: plain[key] for key in ('context', 'tuned_context', 'longest')}
  if not lengths['context'] < lengths['tuned_context'] < lengths['longest']:
    said = ', '.join(f'{key}={value}' for key, value in lengths.items())
    raise UserError(f'config: {said} do not grow in this order; give lengths that do.')
  for key, value in lengths.items():
    if value % plain['bin_size']:
      raise UserError(f'config: bin_size={plain["bin_size"]} does not divide {key}={value}; give a divisor of all three lengths.')
  if plain['lag'] >= plain['context']:
    raise UserError(f'config: lag={plain["lag"]} leaves no target in context={plain["context"]}; give less.')
  tuning = plain['tuning']
  if tuning['num_steps'] % tuning['log_every']:
    said = f'tuning.log_every={tuning["log_every"]} does not divide tuning.num_steps={tuning["num_steps"]}'
    raise UserError(f'config: {said}; give a divisor.')
  baseline, most = context_runs.BASELINE, context_runs.MOST_EXTENSIONS
  if baseline not in plain['extensions']:
    raise UserError(f'config: extensions has no {baseline}, which others are compared with; add it.')
  if SHORT in plain['extensions'] or len(plain['extensions']) > most:
    raise UserError(f'config: extensions has {len(plain["extensions"])} parts; give at most {most}, none of them called {SHORT}.')
  with ranges.naming('optimizer'):
    for part in (SHORT, 'tuning'):
      make_optimizer(plain, part)
  models = {name: _model(name, fields, plain) for name, fields in plain['extensions'].items()}
  for name, model in models.items():
    if not 0 < model.entropy_abf_exempt < model.num_layers:
      said = f'extensions.{name}: entropy_abf_exempt is {model.entropy_abf_exempt} of {model.num_layers} layers'
      raise UserError(f'config: {said}; give at least 1 and fewer than num_layers, so that both kinds can be compared.')
  return {SHORT: _model(SHORT, {}, plain)} | models


def tasks(plain: Mapping[str, Any]) -> list[str]:
  """Those that are run."""
  return [task for task in TASKS if plain[SHORT]['num_steps'][task]]


def make_optimizer(plain: Mapping[str, Any], part: str) -> optax.GradientTransformation:
  """The config's optimizer for `short` or `tuning`."""
  given = dict(plain['optimizer']) | {'warmup_steps': plain[part]['warmup_steps']}
  return optimizers.make_optimizer(given.pop('name'), plain[part]['learning_rate'], **given)


def _model(name: str, fields: Mapping[str, Any], plain: Mapping[str, Any]) -> DecoderConfig:
  for field in fields:
    if field not in FIELDS:
      raise UserError(f'config: extensions.{name}.{field} is not for an extension to set; it may set {", ".join(FIELDS)}.')
  sizes = {key: plain[key] for key in ('width', 'num_heads', 'num_layers', 'mlp_width')}
  with ranges.naming(f'extensions.{name}'):
    return DecoderConfig(**sizes, vocab_size=source_bytes.VOCAB_SIZE, max_length=plain['longest'], tie_embeddings=False, **fields)


def recall(key: jax.Array, *, num_sequences: int, length: int, lag: int, num_symbols: int) -> Batch:
  """Random tokens; the target at each position is the token `lag` places before it, a place that does not depend on the length."""
  tokens_BxT = jax.random.randint(key, (num_sequences, length), 0, num_symbols, jnp.int32)
  counted_BxT = jnp.broadcast_to(jnp.arange(length) >= lag, tokens_BxT.shape)
  return Batch(tokens_BxT, jnp.roll(tokens_BxT, lag, axis=1), counted_BxT)


def training(task: str, part: str, plain: Mapping[str, Any]) -> Batch:
  """The batches of every seed of `short` or `tuning`, arrays [R, N, B, T]."""
  settings, R = plain[part], plain['num_seeds']
  N, B = settings['num_steps'][task] if part == SHORT else settings['num_steps'], settings['batch_size']
  length = plain['context' if part == SHORT else 'tuned_context']
  seed = plain['seed'] if part == SHORT else plain['seed'] + R  # another order of rows
  if task == 'source_bytes':
    return byte_batches.training(length=length + 1, num_steps=N, batch_size=B, seed=seed, num_seeds=R)
  keys = [jax.random.fold_in(_key(plain, part), k) for k in range(R)]
  drawn = [recall(key, num_sequences=N * B, length=length, lag=plain['lag'], num_symbols=plain['num_symbols']) for key in keys]
  return jax.tree.map(lambda *x: jnp.stack(x).reshape(R, N, B, length), *drawn)


def held_out(task: str, plain: Mapping[str, Any]) -> Batch:
  """The long sequences that every model of the task is measured on."""
  M, length = plain['num_held_out'], plain['longest']
  if task == 'source_bytes':
    return byte_batches.held_out(length=length + 1, num_rows=M, seed=plain['seed'])
  key = jax.random.fold_in(_key(plain, SHORT), HELD_OUT_SEED)
  return recall(key, num_sequences=M, length=length, lag=plain['lag'], num_symbols=plain['num_symbols'])


def _key(plain: Mapping[str, Any], part: str) -> jax.Array:
  return jax.random.fold_in(jax.random.key(plain['seed']), 1 if part == SHORT else 2)


def trainer(model: DecoderConfig, plain: Mapping[str, Any], part: str) -> Tune:
  """(params_R, batches, held out) -> Curves of all seeds; the measures of a tuning begin before its first update."""
  short = part == SHORT
  # One measure of the trained model, in one bin of the length that it is trained on.
  learner = position_learner.by_position(model, bin_size=plain['context'] if short else plain['bin_size'])

  def one(params: Params, batches_N: Batch, measured: Batch) -> Curves:
    N = batches_N.inputs.shape[0]
    log_every = N if short else plain['tuning']['log_every']
    curves = sweeps.train(learner, params, batches_N, measured, tx=make_optimizer(plain, part), log_every=log_every)
    if short:
      return curves
    start = learner.measure(params, measured)
    return curves._replace(logged=jax.tree.map(lambda x, later: jnp.concatenate([x[None], later]), start, curves.logged))

  def every(params_R: Params, batches_RxN: Batch, measured: Batch) -> Curves:
    def seed(index: jax.Array, _: Any) -> Curves:
      params, batches_N = jax.tree.map(lambda x: x[index], (params_R, batches_RxN))
      return one(params, batches_N, measured)

    return sweeps.over_runs(seed, plain['num_seeds'], jnp.zeros(1), at_a_time=sweeps.runs_at_a_time())

  return jax.jit(every, compiler_options=sweeps.compiler_options())


def run_study(config: Any, models: Mapping[str, DecoderConfig], workdir: pathlib.Path) -> None:
  """Every task: all seeds at the short length, then every extension of them; one program for each, two at a time."""
  plain = app.resolve(config)
  num_seeds = plain['num_seeds']
  root = jax.random.key(plain['seed'])
  key_R = jax.vmap(lambda k: jax.random.fold_in(root, k))(jnp.arange(num_seeds))
  folder = lambda task, name: workdir / task / name
  pairs = [(task, name) for task in tasks(plain) for name in models]
  missing = {pair: [k for k in range(num_seeds) if not (folder(*pair) / f'seed_{k}' / METRICS).exists()] for pair in pairs}
  todo = {pair: seeds for pair, seeds in missing.items() if seeds}
  run_tasks = list(dict.fromkeys(task for task, _ in todo))
  measured = {task: held_out(task, plain) for task in run_tasks}
  programs = {name: trainer(model, plain, SHORT if name == SHORT else 'tuning') for name, model in models.items()}
  trained: dict[str, Params] = {}

  def write(task: str, name: str, curves: Curves, log_every: int) -> None:
    found = jax.device_get(curves._replace(params=()))
    for k in todo.get((task, name), ()):
      file = folder(task, name) / f'seed_{k}' / METRICS
      sweeps.write_seed(file, sweeps.of_seed(found, k), {}, [name], log_every=log_every)

  def train(task: str) -> None:
    # A program that is run once; the kernels do not depend on the task.
    start = jax.jit(jax.vmap(learners.decoder(models[SHORT]).init), compiler_options=sweeps.compiler_options(once=True))
    cut = jax.tree.map(lambda x: x[:, : plain['context']], measured[task])
    curves = programs[SHORT](start(key_R), training(task, SHORT, plain), cut)
    trained[task] = jax.tree.map(lambda x: x[:, 0], curves.params)
    write(task, SHORT, curves, plain[SHORT]['num_steps'][task])

  def extend(label: str) -> None:
    task, name = label.split('/')
    write(task, name, programs[name](trained[task], training(task, 'tuning', plain), measured[task]), plain['tuning']['log_every'])

  if run_tasks:
    tables.two_at_a_time(train, run_tasks, f'{num_seeds} seeds at {plain["context"]} positions, task')
  # Tasks in turn, each one extension further than the other, so that no two threads compile the same program.
  names = [name for name in models if name != SHORT]
  order = [f'{task}/{names[(i + shift) % len(names)]}' for i in range(len(names)) for shift, task in enumerate(run_tasks)]
  labels = [label for label in order if tuple(label.split('/')) in todo]
  if labels:
    tables.two_at_a_time(extend, labels, f'{num_seeds} seeds at {plain["tuned_context"]} positions, extension')


if __name__ == '__main__':
  app.run(main)
