"""Entropy collapse in reinforcement learning with verifiable rewards, the covariance that causes it, the law it obeys, and its cures.

Claims under test: Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, arXiv 2505.22617, and
clip-higher of Yu et al., DAPO, arXiv 2503.14476. Criteria are code, in entropy_jax/analysis/mechanism.py.

Two testbeds. Tabular tasks (`fork_tokens`, `mod_sum`), whose success, entropy and entropy changes are exact: plain GRPO and every
intervention, all seeds in one compiled scan. Countdown, text answers of a transformer: a supervised warm start, then GRPO.

    python -m experiments.entropy_mechanism --config=configs/entropy_mechanism.py --workdir=DIR     # or :tiny

Leaves DIR/report.html (open it), DIR/claims.json, DIR/figures/, and a run folder a seed: DIR/tabular/TASK/METHOD/seed_K and
DIR/countdown/{warm_start,seed_K}. The same command on the same DIR goes on where it stopped.
"""

import concurrent.futures
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from tqdm import tqdm

from configs.entropy_mechanism import RANGES
from entropy_jax import catalog, parallel
from entropy_jax.analysis import mechanism
from entropy_jax.data import fork_tokens, mod_sum, pipeline, tfds_builders, tokenizers, verifiers
from entropy_jax.models import presets
from entropy_jax.models.policy import Policy
from entropy_jax.models.transformer import DecoderConfig, transformer_policy
from entropy_jax.objective import Objective
from entropy_jax.parallel import processes
from entropy_jax.training import app, language, loop, optimizers, profiling, ranges, scanned
from entropy_jax.training.progress import Clock
from entropy_jax.training.writers import METRICS, format_row
from entropy_jax.types import RunFacts, UserError

TASKS = {'fork_tokens': (fork_tokens.make, ()), 'mod_sum': (mod_sum.make, (mod_sum.diversity,))}


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
      _warn(config, objectives, text_run.objective)
    if config.countdown.num_seeds:  # seconds, and a mistake shows before the tables run for minutes
      problems = read_problems(config.countdown, text_run.shape, directory)
  for task in TASKS if config.tabular.num_seeds else ():
    tabular(task, config, objectives, workdir / 'tabular' / task)
  if config.countdown.num_seeds:
    countdown(config, text_run, problems, directory)
  with processes.agreed():  # so that the others wait for the report
    if jax.process_index() == 0:
      claims = mechanism.report(workdir, seconds=time.monotonic() - started)
      for claim in claims:
        print(f'{claim.verdict:>16}  {claim.id}: {claim.value:.3g} [{claim.interval[0]:.3g}, {claim.interval[1]:.3g}]  ({claim.criterion})')
      print(f'report: {workdir / "report.html"}')


def validate(config: Any, device_count: int = 1, process_count: int = 1) -> tuple[dict[str, Objective], 'Countdown']:
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
  c, start = config.countdown, config.countdown.warm_start
  if config.tabular.num_seeds == 0 and c.num_seeds == 0:
    raise UserError('config: tabular.num_seeds=0 and countdown.num_seeds=0 leave nothing to run; give one of them at least 1.')
  sequences = c.num_prompts * c.group_size
  ranges.check_divides('countdown.num_minibatches', c.num_minibatches, sequences, 'sequences')
  minibatch = sequences // c.num_minibatches
  ranges.check_divides('countdown.num_slices', c.num_slices, minibatch, 'sequences')
  if start.warmup_steps >= start.num_steps:
    raise UserError(
      f'config: countdown.warm_start.warmup_steps={start.warmup_steps} leaves nothing of countdown.warm_start.num_steps={start.num_steps}; '
      f'give less than {start.num_steps}.'
    )
  if c.num_seeds:
    rows, num_devices = minibatch // c.num_slices, config.num_devices or device_count
    keys = ('num_prompts', 'group_size', 'num_minibatches', 'num_slices')
    given = ', '.join(f'{key}={c[key]}' for key in keys)
    _check_cut(f'countdown: {given}: a slice of {rows} sequences', rows, num_devices)
    _check_cut(f'countdown.warm_start.batch_size={start.batch_size}', start.batch_size, num_devices)
    _check_cut(f'countdown.num_prompts={c.num_prompts}', c.num_prompts, process_count, 'processes')
  specs = {f'tabular.methods.{name}': spec for name, spec in config.tabular.methods.items()} | {'countdown.objective': c.objective}
  for key, spec in specs.items():
    with ranges.naming(key):
      catalog.check_reads(spec.to_dict(), ABSENT)
  objectives = {name: catalog.build(spec.to_dict()) for name, spec in config.tabular.methods.items()}
  with ranges.naming('countdown.model'):
    return objectives, Countdown.build(c)


def _check_cut(what: str, rows: int, parts: int, over: str = 'num_devices') -> None:
  if rows % parts:
    fitting = ' or '.join(str(n) for n in range(1, min(parts, rows, 1025)) if rows % n == 0)
    raise UserError(f'config: {what} cannot be cut evenly over {over}={parts}; make it a multiple of {parts}, or {over} {fitting}.')


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
  settings, seeds = config.tabular[task], range(config.tabular.num_seeds)
  make_task, measures = TASKS[task]
  keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.key(config.seed), k))(np.arange(len(seeds)))

  # On a CPU, level 1 of the compiler's optimisation takes 40 % less time for these programs and they run as fast (measured).
  options = {'xla_backend_optimization_level': 1} if jax.default_backend() == 'cpu' else None

  def run(name: str) -> None:
    files = [directory / name / f'seed_{k}' / METRICS for k in seeds]
    if all(file.exists() for file in files):
      return
    study = jax.vmap(
      lambda key: scanned.run(
        make_task,
        key,
        objective=objectives[name],
        tx=optax.sgd(settings.learning_rate),
        num_steps=settings.num_steps,
        group_size=settings.group_size,
        num_epochs=settings.num_epochs,
        ledger=config.ledger,
        measures=measures,
      )
    )
    curves = jax.device_get(jax.jit(study, compiler_options=options)(keys))
    for k, file in zip(seeds, files):
      _write_curves(file, {key: values[k] for key, values in curves.items()}, f'{task}, {name}, seed {k}')

  with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
    waiting = [pool.submit(run, name) for name in objectives]
    for done in tqdm(concurrent.futures.as_completed(waiting), total=len(waiting), desc=f'{task}, {len(seeds)} seeds', unit='method'):
      done.result()


def _write_curves(file: pathlib.Path, curves: dict[str, np.ndarray], what: str) -> None:
  """One row a rollout: the exact measures of the policy before it and the metrics of its updates; the last row has the former alone."""
  for name, values in curves.items():
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
      raise loop.NonFiniteError(f'{what}: {name} is {values[bad[0]]} at step {bad[0]}; use a smaller learning_rate.')
  rows = [
    format_row(i, {name: float(values[i]) for name, values in curves.items() if i < len(values)})
    for i in range(max(map(len, curves.values())))
  ]
  file.parent.mkdir(parents=True, exist_ok=True)
  if jax.process_index() != 0:  # each process computes the tables, on its own devices
    return
  partial = file.with_suffix('.partial')
  partial.write_text('\n'.join(rows) + '\n')
  partial.replace(file)  # a file is whole or absent, so that its presence means done


class Countdown(NamedTuple):
  """What the text runs are made of, for a config that `validate` has seen."""

  tokenizer: tokenizers.CharacterTokenizer
  shape: DecoderConfig
  policy: Policy
  imitation: Objective
  imitation_tx: optax.GradientTransformation
  objective: Objective
  tx: optax.GradientTransformation

  @classmethod
  def build(cls, config: Any) -> 'Countdown':
    start = config.warm_start
    tokenizer = tokenizers.CharacterTokenizer(tokenizers.COUNTDOWN_ALPHABET)
    shape = presets.preset(config.model_preset, vocab_size=tokenizer.vocab_size, **config.model.to_dict())
    cosine = {'schedule': 'cosine', 'warmup_steps': start.warmup_steps, 'num_steps': start.num_steps}
    return cls(
      tokenizer=tokenizer,
      shape=shape,
      policy=transformer_policy(shape),
      imitation=catalog.build({'advantages': [{'name': 'unit'}], 'surrogates': [{'name': 'reinforce'}]}),
      imitation_tx=optimizers.make_optimizer('adam', start.learning_rate, max_grad_norm=config.max_grad_norm, **cosine),
      objective=catalog.build(config.objective.to_dict()),
      tx=optimizers.make_optimizer('adam', config.learning_rate, max_grad_norm=config.max_grad_norm),
    )


def read_problems(config: Any, shape: DecoderConfig, directory: pathlib.Path) -> dict[str, pipeline.Problems]:
  """The problems of every split, generated first where they are missing.

  Raises:
    UserError: they do not go with the sizes of the config.
  """
  data_dir = directory / config.data_dir
  try:
    problems = {s: pipeline.Problems.read(tfds_builders.load(config.dataset, s, data_dir)) for s in ('train', 'validation', 'test')}
  except (FileExistsError, NotADirectoryError) as error:
    raise UserError(f'config: countdown.data_dir={config.data_dir!r} is no folder ({error}); give one, or one that can be made.') from None
  for key, size in {'num_prompts': config.num_prompts, 'warm_start.batch_size': config.warm_start.batch_size}.items():
    if size > len(problems['train']):
      there = len(problems['train'])
      raise UserError(f'config: countdown.{key}={size} is more than the {there} problems of {config.dataset}; give at most {there}.')
  length = sum(_lengths(problems))
  if length > shape.max_length:
    needed = f'the {length} tokens of prompt and response'
    raise UserError(f'config: countdown.model.max_length={shape.max_length} is less than {needed}; give at least {length}.')
  return problems


def _lengths(problems: Mapping[str, pipeline.Problems]) -> tuple[int, int]:
  """Tokens of the longest prompt and of the longest answer."""
  return max(p.prompt_length() for p in problems.values()), max(p.response_length() for p in problems.values())


def countdown(study: Any, parts: Countdown, problems: Mapping[str, pipeline.Problems], directory: pathlib.Path) -> None:
  """One supervised warm start, then a reinforcement run a seed from it."""
  config, seed = study.countdown, study.seed
  tokenizer, _, policy, imitation, imitation_tx, objective, tx = parts
  if jax.process_index() == 0:
    described = {s: {'problems': len(p), 'digest': p.digest} for s, p in problems.items()}
    directory.mkdir(parents=True, exist_ok=True)  # the data may be elsewhere
    (directory / 'dataset.json').write_text(json.dumps(described))
  prompt_length, num_tokens = _lengths(problems)
  shapes = {'prompt_length': prompt_length, 'response_length': num_tokens}
  mode, clock = parallel.make(study.parallel, study.num_devices), Clock()
  block = {'process_index': jax.process_index(), 'process_count': jax.process_count()}
  verify = lambda answers, rows: verifiers.countdown_rewards(answers, pipeline.problems_of(rows))
  common = {'verify': verify, 'decode': tokenizer.decode_batch, 'num_tokens': num_tokens, 'eos_id': tokenizers.EOS}
  launch = {'clock': clock, 'max_rejected': study.max_rejected, 'profile_steps': profiling.parse(study.profile_steps)}
  launch['num_devices'] = mode.num_devices
  root, start = jax.random.key(seed), config.warm_start

  example = language.example_batch(start.batch_size, **shapes)
  warm = loop.train(
    workdir=directory / 'warm_start',
    num_steps=start.num_steps,
    state=language.initial_state(mode, policy, None, root, imitation_tx, imitation, example),
    body=language.supervised_body(mode, policy, imitation, imitation_tx),
    data=pipeline.training_batches(
      problems['train'], tokenizer, batch_size=start.batch_size, seed=seed, supervised=True, **shapes, **block
    ),
    key=root,
    checkpoint_every=max(start.num_steps // 2, 1),
    description='countdown, warm start',
    log_every=10,
    keep=1,
    **launch,
  )

  eval_size = -(-256 // mode.num_devices) * mode.num_devices
  held_out = pipeline.evaluation_batches(problems['test'], tokenizer, batch_size=eval_size, **shapes, **block)
  evaluate = language.evaluator(mode, policy, held_out, num_samples=config.num_eval_samples, key=root, **common)
  body = language.reinforcement_body(
    mode,
    policy,
    objective,
    tx,
    group_size=config.group_size,
    temperature=config.temperature,
    num_epochs=config.num_epochs,
    num_minibatches=config.num_minibatches,
    num_slices=config.num_slices,
    ledger=study.ledger,
    clock=clock,
    **common,
  )
  example = language.example_batch(config.num_prompts * config.group_size, **shapes)
  for k in range(config.num_seeds):
    loop.train(
      workdir=directory / f'seed_{k}',
      num_steps=config.num_steps,
      # A copy, because the body donates its state and the warm start serves every seed.
      state=language.initial_state(mode, policy, jax.tree.map(lambda x: x.copy(), warm.params), root, tx, objective, example),
      body=body,
      data=pipeline.training_batches(
        problems['train'], tokenizer, batch_size=config.num_prompts, seed=seed + 1 + k, prompt_length=prompt_length, **block
      ),
      key=jax.random.fold_in(root, 1 + k),
      checkpoint_every=config.checkpoint_every,
      evaluate=lambda state, key: {f'eval/{name}': value for name, value in evaluate(state.params).items()},
      evaluate_every=config.evaluate_every,
      description=f'countdown, seed {k} of {config.num_seeds}',
      keep=1,
      **launch,
    )


if __name__ == '__main__':
  app.run(main)
