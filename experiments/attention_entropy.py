"""Attention entropy: which transformers keep training as the learning rate grows, and what the entropy of their attention does meanwhile.

Every variant of the config (pre-, post- and DeepNorm, QK-norm, soft-cap, sigmaReparam, spectral normalisation) at every learning rate, from
several seeds, on images (`digits`), on bytes of Python's standard library (`source_bytes`), and on two drawn tasks of which one is best
solved by uniform attention (`unigram`) and one by sharp attention (`copy`). Criteria are code, in entropy_jax/analysis/attention_study.py.

    python -m experiments.attention_entropy --config=configs/attention_entropy.py --workdir=DIR     # or :essential, or :tiny

Leaves DIR/report.html (open it), DIR/claims.json, DIR/figures/, and a run folder a seed with all rates: DIR/TASK/VARIANT/seed_K. The same
command on the same DIR goes on where it stopped.
"""

import functools
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs.attention_entropy import RANGES, TASKS
from entropy_jax.analysis import attention_runs, attention_study
from entropy_jax.data import digits, examples, source_bytes, synthetic_sequences
from entropy_jax.models.transformer import DecoderConfig
from entropy_jax.models.vision import VisionConfig
from entropy_jax.parallel import processes
from entropy_jax.training import app, learners, optimizers, ranges, sweeps, tables
from entropy_jax.training.learners import Batch
from entropy_jax.training.writers import METRICS
from entropy_jax.types import UserError

BLOCK = {'norm_kind': 'layer', 'activation': 'relu'}
VOCAB_SIZE = {'source_bytes': source_bytes.VOCAB_SIZE, 'unigram': 32, 'copy': 32}
# What a variant may set: it changes how blocks work, not how large they are.
FIELDS = (
  'linear', 'gain_init', 'kernel_init', 'norm', 'norm_kind', 'norm_eps', 'qk_norm', 'logit_cap', 'sink', 'softmax_temperature',
  'activation',
)  # fmt: skip
HELD_OUT_SEED = 1_000_000_000  # more than there are seeds


def main(config: Any, workdir: pathlib.Path) -> None:
  """Runs whatever of the study is not done yet, then writes claims, figures and the report."""
  started = time.monotonic()
  with processes.agreed():
    models = validate(config)
  run_study(config, models, workdir)
  with processes.agreed():  # so that the others wait for the report
    if jax.process_index() == 0:
      for claim in attention_study.report(workdir, seconds=time.monotonic() - started):
        print(f'{claim.verdict:>16}  {claim.id}: {claim.value:.3g} [{claim.interval[0]:.3g}, {claim.interval[1]:.3g}]  ({claim.criterion})')
      print(f'report: {workdir / "report.html"}')


def validate(config: Any) -> dict[tuple[str, str], DecoderConfig | VisionConfig]:
  """Every mistake that the config can hold; compiles nothing.

  Returns:
    (task, variant) -> its model, of the tasks that are run.

  Raises:
    UserError: key, value and what is allowed.
  """
  plain = app.resolve(config)
  ranges.check(plain, RANGES)
  ranges.check_launch(plain)
  run = [task for task in TASKS if plain[task]['num_steps']]
  if not run:
    raise UserError(f'config: num_steps=0 of {", ".join(TASKS)} leaves nothing to run; give one of them at least 1.')
  for task in run:
    num_steps, log_every = plain[task]['num_steps'], plain[task]['log_every']
    if num_steps % log_every:
      raise UserError(f'config: {task}.log_every={log_every} does not divide {task}.num_steps={num_steps}; give a divisor.')
    if plain['tail'] > num_steps:
      raise UserError(f'config: tail={plain["tail"]} is more than {task}.num_steps={num_steps}; give at most that.')
    with ranges.naming('optimizer'):
      for rate in plain['rates']:
        make_optimizer(plain, task, rate)
  most = attention_runs.MOST_VARIANTS
  if len(plain['variants']) > most:
    raise UserError(f'config: variants has {len(plain["variants"])}; a figure can tell {most} apart, so give at most that.')
  if attention_runs.BASELINE not in plain['variants']:
    raise UserError(f'config: variants has no {attention_runs.BASELINE}, which all others are compared with; add it.')
  return {(task, name): _model(task, name, plain) for task in run for name in plain['variants']}


def make_optimizer(plain: Mapping[str, Any], task: str, rate: Any) -> optax.GradientTransformation:
  """The config's optimizer on a task, with the task's schedule, at a learning rate that may be traced."""
  given, settings = dict(plain['optimizer']), plain[task]
  return optimizers.make_optimizer(given.pop('name'), rate, schedule=settings['schedule'], num_steps=settings['num_steps'], **given)


def _model(task: str, name: str, plain: Mapping[str, Any]) -> DecoderConfig | VisionConfig:
  fields, settings = plain['variants'][name], plain[task]
  for field in fields:
    if field not in FIELDS:
      raise UserError(f'config: variants.{name}.{field} is not for a variant to set; it may set {", ".join(FIELDS)}.')
  sizes = {'width': plain['width'], 'num_heads': plain['num_heads'], 'mlp_width': plain['mlp_width'], 'num_layers': settings['num_layers']}
  with ranges.naming(f'variants.{name}'):
    if task == 'digits':
      shape = {'image_size': 8, 'channels': 1, 'num_classes': digits.NUM_CLASSES, 'patch_size': settings['patch_size']}
      return VisionConfig(**sizes, **shape, **(BLOCK | fields))
    # Learnt positions, so that logits are X W X^T and the theorem can be held against the weights.
    about = {'vocab_size': VOCAB_SIZE[task], 'max_length': settings['length'] - 1, 'positions': 'learned', 'tie_embeddings': False}
    return DecoderConfig(**sizes, **about, **(BLOCK | fields))


def batches(task: str, settings: Mapping[str, Any], *, seed: int, num_seeds: int) -> tuple[Batch, Batch]:
  """The batches of every seed, arrays [R, N, B, ...], and the examples that none of them has."""
  N, B, M = settings['num_steps'], settings['batch_size'], settings['num_held_out']
  if task in ('unigram', 'copy'):
    make = synthetic_sequences.unigram if task == 'unigram' else synthetic_sequences.copy
    first = 1 if task == 'unigram' else synthetic_sequences.copy_period(settings['length'])

    @functools.partial(jax.jit, compiler_options=sweeps.compiler_options())
    def draw(key: jax.Array) -> Batch:  # of one size, since it compiles for longer than it runs
      tokens = make(key, num_sequences=max(N * B, M), length=settings['length'], vocab_size=VOCAB_SIZE[task])
      return learners.next_tokens(tokens, first=first)

    root = jax.random.fold_in(jax.random.key(seed), TASKS.index(task))
    drawn = [draw(jax.random.fold_in(root, k)) for k in range(num_seeds)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x)[:, : N * B].reshape(num_seeds, N, B, *x[0].shape[1:]), *drawn)
    return stacked, jax.tree.map(lambda x: x[:M], draw(jax.random.fold_in(root, HELD_OUT_SEED)))
  train, test, convert = _stored(task, settings)
  row_RxNxB = np.stack([examples.scan_rows(train, batch_size=B, seed=seed + k, num_steps=N) for k in range(num_seeds)])
  (held_out_B,) = examples.scan_rows(test, batch_size=M, seed=seed, num_steps=1)
  return convert(train.take(row_RxNxB)), convert(test.take(held_out_B))


def _stored(task: str, settings: Mapping[str, Any]) -> tuple[examples.Examples, examples.Examples, Callable[..., Batch]]:
  """(training examples, those held out, a batch of theirs -> Batch)."""
  if task == 'digits':
    whole = digits.read()
    parts = [digits.split(whole, name) for name in digits.SPLIT_ENDS]
    train, test = (examples.Examples({'image': part.image_RxHxWxC, 'label': part.label_R}) for part in parts)
    level = lambda image: jnp.asarray(image / (digits.MAX_LEVEL / 2) - 1.0, jnp.float32)
    return train, test, lambda found: learners.classes(level(found['image']), jnp.asarray(found['label']))
  files = source_bytes.read()
  cut = [source_bytes.chunks(source_bytes.split_files(files, name), settings['length']) for name in source_bytes.SPLIT_ENDS]
  train, test = (examples.Examples({'tokens': rows}) for rows in cut)
  return train, test, lambda found: learners.next_tokens(jnp.asarray(found['tokens'], jnp.int32))


class Program(NamedTuple):
  """The compiled parts of a sweep.

  Attributes:
    start: key_R -> params_R.
    train: (params_R, rate_K, batches, held out) -> Curves.
    finish: params of all runs -> what is said of them.
  """

  start: Callable[..., Any]
  train: Callable[..., sweeps.Curves]
  finish: Callable[..., Any]


def program(model: DecoderConfig | VisionConfig, log_every: int, make: sweeps.MakeOptimizer) -> Program:
  """The parts for a model; nothing is compiled before it is called."""
  learner = learners.classifier(model) if isinstance(model, VisionConfig) else learners.decoder(model)
  train = functools.partial(sweeps.sweep, learner, make_optimizer=make, log_every=log_every, at_a_time=sweeps.runs_at_a_time())
  once = sweeps.compiler_options(once=True)
  return Program(
    jax.jit(jax.vmap(learner.init), compiler_options=once),
    jax.jit(train, compiler_options=sweeps.compiler_options()),
    jax.jit(jax.vmap(jax.vmap(learner.finish)), compiler_options=once),
  )


def run_study(config: Any, models: Mapping[tuple[str, str], DecoderConfig | VisionConfig], workdir: pathlib.Path) -> None:
  """Every variant on every task: one compiled program for all its rates and seeds, two programs at a time."""
  plain = app.resolve(config)
  rates, num_seeds = plain['rates'], plain['num_seeds']
  root = jax.random.key(plain['seed'])
  key_R = jax.vmap(lambda k: jax.random.fold_in(root, k))(jnp.arange(num_seeds))
  rate_K = jnp.asarray(rates, jnp.float32)
  folder = lambda task, name: workdir / task / name
  missing = {pair: [k for k in range(num_seeds) if not (folder(*pair) / f'seed_{k}' / METRICS).exists()] for pair in models}
  todo = {f'{task}/{name}': (task, name) for (task, name), seeds in missing.items() if seeds}
  data = {task: batches(task, plain[task], seed=plain['seed'], num_seeds=num_seeds) for task in dict.fromkeys(t for t, _ in todo.values())}
  # Equal models on batches of equal shape under one schedule are one program.
  kind = lambda task, name: (models[task, name], *(plain[task][key] for key in ('num_steps', 'log_every', 'schedule')))
  programs: dict[Any, Program] = {}
  for task, name in todo.values():
    if kind(task, name) not in programs:
      make = functools.partial(make_optimizer, plain, task)
      programs[kind(task, name)] = program(models[task, name], plain[task]['log_every'], make)

  def run(label: str) -> None:
    task, name = todo[label]
    start, train, finish = programs[kind(task, name)]
    curves = train(start(key_R), rate_K, *data[task])
    found = jax.device_get((curves._replace(params=()), finish(curves.params)))
    for k in missing[task, name]:
      curves, final = sweeps.of_seed(found, k)
      sweeps.write_seed(folder(task, name) / f'seed_{k}' / METRICS, curves, final, rates, log_every=plain[task]['log_every'])

  tables.two_at_a_time(run, list(todo), f'{len(rates)} rates, {num_seeds} seeds, sweep')


if __name__ == '__main__':
  app.run(main)
