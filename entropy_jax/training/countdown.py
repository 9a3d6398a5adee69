"""Reinforcement learning of a transformer on countdown, as the studies run it: the text task, a supervised warm start, then a run of every
objective and every seed from it.

The configs are those of `configs/`: groups with the keys dataset, data_dir, num_seeds, model_preset, model, warm_start and so on.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax

from entropy_jax import catalog, parallel
from entropy_jax.data import pipeline, tfds_builders, tokenizers, verifiers
from entropy_jax.models import presets
from entropy_jax.models.policy import Policy
from entropy_jax.models.transformer import DecoderConfig, transformer_policy
from entropy_jax.objective import Objective
from entropy_jax.training import language, loop, optimizers, profiling, ranges
from entropy_jax.training.progress import Clock
from entropy_jax.types import UserError


def check(config: Any, num_devices: int, process_count: int) -> None:
  """Every mistake that the group of keys `countdown` alone can hold.

  Args:
    config: the group.
    num_devices, process_count: that the run will use.

  Raises:
    UserError: key, value and what is allowed.
  """
  start, sequences = config.warm_start, config.num_prompts * config.group_size
  ranges.check_divides('countdown.num_minibatches', config.num_minibatches, sequences, 'sequences')
  minibatch = sequences // config.num_minibatches
  ranges.check_divides('countdown.num_slices', config.num_slices, minibatch, 'sequences')
  if start.warmup_steps >= start.num_steps:
    raise UserError(
      f'config: countdown.warm_start.warmup_steps={start.warmup_steps} leaves nothing of countdown.warm_start.num_steps={start.num_steps}; '
      f'give less than {start.num_steps}.'
    )
  if config.num_seeds:
    rows = minibatch // config.num_slices
    keys = ('num_prompts', 'group_size', 'num_minibatches', 'num_slices')
    given = ', '.join(f'{key}={config[key]}' for key in keys)
    ranges.check_cut(f'countdown: {given}: a slice of {rows} sequences', rows, num_devices)
    ranges.check_cut(f'countdown.warm_start.batch_size={start.batch_size}', start.batch_size, num_devices)
    ranges.check_cut(f'countdown.num_prompts={config.num_prompts}', config.num_prompts, process_count, 'processes')


class Countdown(NamedTuple):
  """What the text runs are made of, for a config that `validate` has seen."""

  tokenizer: tokenizers.CharacterTokenizer
  shape: DecoderConfig
  policy: Policy
  imitation: Objective
  imitation_tx: optax.GradientTransformation
  objectives: Mapping[str, Objective]
  tx: optax.GradientTransformation

  @classmethod
  def build(cls, config: Any, specs: Mapping[str, Mapping[str, Any]]) -> 'Countdown':
    """From the group of keys and the spec of every objective, by the folder that its runs go to ('' for the study's own)."""
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
      objectives={name: catalog.build(spec) for name, spec in specs.items()},
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
  length = sum(lengths(problems))
  if length > shape.max_length:
    needed = f'the {length} tokens of prompt and response'
    raise UserError(f'config: countdown.model.max_length={shape.max_length} is less than {needed}; give at least {length}.')
  return problems


def lengths(problems: Mapping[str, pipeline.Problems]) -> tuple[int, int]:
  """Tokens of the longest prompt and of the longest answer."""
  return max(p.prompt_length() for p in problems.values()), max(p.response_length() for p in problems.values())


def train(study: Any, parts: Countdown, problems: Mapping[str, pipeline.Problems], directory: pathlib.Path) -> None:
  """One supervised warm start, then from it a reinforcement run of every objective and seed, in DIRECTORY/OBJECTIVE/seed_K.

  Args:
    study: the whole config; seed k has the same prompts and the same rollout noise under every objective.
    parts: of this config.
    problems: of every split.
    directory: of the warm start and of the runs.
  """
  config, seed = study.countdown, study.seed
  tokenizer, _, policy, imitation, imitation_tx, objectives, tx = parts
  if jax.process_index() == 0:
    described = {s: {'problems': len(p), 'digest': p.digest} for s, p in problems.items()}
    directory.mkdir(parents=True, exist_ok=True)  # the data may be elsewhere
    (directory / 'dataset.json').write_text(json.dumps(described))
  prompt_length, num_tokens = lengths(problems)
  shapes: dict[str, Any] = {'prompt_length': prompt_length, 'response_length': num_tokens}
  mode, clock = parallel.make(study.parallel, study.num_devices), Clock()
  block: dict[str, Any] = {'process_index': jax.process_index(), 'process_count': jax.process_count()}
  verify = lambda answers, rows: verifiers.countdown_rewards(answers, pipeline.problems_of(rows))
  common: dict[str, Any] = {'verify': verify, 'decode': tokenizer.decode_batch, 'num_tokens': num_tokens, 'stop_ids': (tokenizers.EOS,)}
  launch: dict[str, Any] = {'clock': clock, 'max_rejected': study.max_rejected, 'profile_steps': profiling.parse(study.profile_steps)}
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
  example = language.example_batch(config.num_prompts * config.group_size, **shapes)
  for name, objective in objectives.items():
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
      attention=study.attention,
      clock=clock,
      **common,
    )
    for k in range(config.num_seeds):
      loop.train(
        workdir=directory / name / f'seed_{k}',
        num_steps=config.num_steps,
        # A copy, because the body donates its state and the warm start serves every run.
        state=language.initial_state(mode, policy, jax.tree.map(lambda x: x.copy(), warm.params), root, tx, objective, example),
        body=body,
        data=pipeline.training_batches(
          problems['train'], tokenizer, batch_size=config.num_prompts, seed=seed + 1 + k, prompt_length=prompt_length, **block
        ),
        key=jax.random.fold_in(root, 1 + k),
        checkpoint_every=config.checkpoint_every,
        evaluate=lambda state, key: {f'eval/{name}': value for name, value in evaluate(state.params).items()},
        evaluate_every=config.evaluate_every,
        description=f'countdown{name and f", {name}"}, seed {k} of {config.num_seeds}',
        keep=1,
        **launch,
      )
