"""What a run of reinforcement learning with verifiable rewards is made of: its config held against itself, then against the files it names.

Nothing here compiles and no weights are read, so every mistake is told within seconds; training/rlvr_run.py trains.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import optax

from entropy_jax import catalog, compose
from entropy_jax.catalog import samplers
from entropy_jax.data import examples, rewards
from entropy_jax.data.hub_tokenizer import HubTokenizer
from entropy_jax.methods.samplers import Sampler
from entropy_jax.models import hub
from entropy_jax.models.lora import LoraConfig
from entropy_jax.models.transformer import DecoderConfig
from entropy_jax.objective import Objective
from entropy_jax.training import optimizers, ranges, rlvr_data
from entropy_jax.training.rlvr_data import Prompts
from entropy_jax.types import RunFacts, UserError

Config = Mapping[str, Any]
CUTS = {'top_h': 'alpha', 'top_k': 'k', 'top_p': 'p', 'min_p': 'm', 'typical': 'mass'}  # sampler -> its hyper-parameter
# Fields of TokenBatch that nothing here fills: there is no critic, no process model and no replay, and nobody says where the steps and
# phrases of a response begin.
ABSENT = frozenset({
  'value_BxT', 'token_reward_BxT', 'segment_BxT', 'planning_BxT', 'phase_BxT', 'process_logp_BxT', 'imitated_B',
})  # fmt: skip


class Plan(NamedTuple):
  """What the config alone says, for a config without a mistake of its own.

  Attributes:
    objective, tx: of reinforcement learning.
    imitation, imitation_tx: of the warm start.
    sampler, adapters: None for none.
    reads: fields of TokenBatch that the objective reads.
    warnings: what the objective will not do, one sentence each.
  """

  objective: Objective
  tx: optax.GradientTransformation
  imitation: Objective
  imitation_tx: optax.GradientTransformation
  sampler: Sampler | None
  adapters: LoraConfig | None
  reads: frozenset[str]
  warnings: tuple[str, ...]


class Material(NamedTuple):
  """What is read before anything compiles."""

  folder: Path
  decoder: DecoderConfig
  tokenizer: HubTokenizer
  train: Prompts
  evaluation: Prompts
  solutions: examples.Examples | None
  total: rewards.RewardSum


def plan(config: Config, num_devices: int = 1, process_count: int = 1) -> Plan:
  """Every mistake that the config alone can hold; reads no file, compiles nothing.

  Args:
    config: plain data whose every value is in its range.
    num_devices, process_count: that there are.

  Raises:
    UserError: key, value and what is allowed.
  """
  num_devices = config['num_devices'] or num_devices
  start, num_updates = config['warm_start'], config['num_steps'] * config['num_epochs'] * config['num_minibatches']
  _check_sizes(config, num_devices, process_count)
  rlvr_data.check_rewards(config)
  sampler = _sampler(config)
  absent = ABSENT if sampler is not None else ABSENT | {'sampler_logp_BxT'}
  with ranges.naming('objective'):
    spec = compose.parse(config['objective'])
    catalog.check_reads(spec, absent)
    objective = catalog.build(spec)
  with ranges.naming('optimizer'):
    given = dict(config['optimizer'])
    tx = optimizers.make_optimizer(given.pop('name'), given.pop('learning_rate'), num_steps=num_updates, **given)
  with ranges.naming('lora'):
    adapters = None if config['lora']['rank'] is None else LoraConfig(**config['lora'])
  imitation_tx = optax.identity()
  if start['num_steps']:
    with ranges.naming('warm_start'):
      cosine = {'schedule': 'cosine', 'warmup_steps': start['warmup_steps'], 'num_steps': start['num_steps']}
      imitation_tx = optimizers.make_optimizer('adamw', start['learning_rate'], max_grad_norm=1.0, **cosine)
  sequences = config['num_prompts'] * config['group_size']
  per_rollout, size = config['num_epochs'] * config['num_minibatches'], sequences // config['num_minibatches']
  facts = RunFacts(per_rollout, config['group_size'], size * config['sampling']['response_length'], spec.get('aggregate', 'token_mean'))
  imitation = catalog.build({'advantages': [{'name': 'unit'}], 'surrogates': [{'name': 'reinforce'}]})
  names = [method['name'] for room in catalog.ROOMS for method in spec[room]]
  reads = frozenset().union(*(catalog.CATALOG[name].factory.reads for name in names))
  return Plan(objective, tx, imitation, imitation_tx, sampler, adapters, reads, tuple(objective.warnings(facts)))


def _check_sizes(config: Config, num_devices: int, process_count: int) -> None:
  start, sequences = config['warm_start'], config['num_prompts'] * config['group_size']
  ranges.check_divides('num_minibatches', config['num_minibatches'], sequences, 'sequences')
  minibatch = sequences // config['num_minibatches']
  ranges.check_divides('num_slices', config['num_slices'], minibatch, 'sequences')
  given = ', '.join(f'{key}={config[key]}' for key in ('num_prompts', 'group_size', 'num_minibatches', 'num_slices'))
  rows = minibatch // config['num_slices']
  ranges.check_cut(f'{given}: a slice of {rows} sequences', rows, num_devices)
  ranges.check_cut(f'num_prompts={config["num_prompts"]}', config['num_prompts'], process_count, 'processes')
  if start['num_steps']:
    ranges.check_divides('warm_start.num_slices', start['num_slices'], start['batch_size'], 'sequences')
    rows = start['batch_size'] // start['num_slices']
    ranges.check_cut(f'warm_start.batch_size={start["batch_size"]}: a slice of {rows} sequences', rows, num_devices)
  length, longest = config['data']['prompt_length'] + config['sampling']['response_length'], config['model']['max_length']
  if longest is not None and longest < length:
    needed = f'the {length} tokens of data.prompt_length and sampling.response_length'
    raise UserError(f'config: model.max_length={longest} is less than {needed}; give at least {length}, or None.')
  if config['model']['param_dtype'] == 'bfloat16' and config['lora']['rank'] is None:
    raise UserError("config: model.param_dtype='bfloat16' would train in bfloat16; give float32, or set lora.rank, which freezes them.")
  folder = config['export']['folder']
  if folder is not None and Path(folder).is_absolute() and config['num_seeds'] > 1:
    raise UserError(f'config: export.folder={folder!r} is one folder for {config["num_seeds"]} seeds; give a relative one.')


def _sampler(config: Config) -> Sampler | None:
  """What cuts the distribution before a token is drawn."""
  spec = {name: {key: config['sampling'][name]} for name, key in CUTS.items() if config['sampling'][name] is not None}
  with ranges.naming('sampling'):
    return samplers.build(spec) if spec else None


def read(config: Config, workdir: Path) -> Material:
  """The tokenizer, the questions and the shape of the model; no weights.

  Raises:
    UserError: something that is missing, damaged, of another architecture, or too long.
  """
  model, data = config['model'], config['data']
  folder = Path(rlvr_data.place(workdir, model['folder']))
  length = model['max_length'] or data['prompt_length'] + config['sampling']['response_length']
  with ranges.naming('model'):
    if not folder.is_dir():
      raise UserError(f'folder={model["folder"]!r} is no folder: give a Hugging Face model folder that lies here (nothing is downloaded).')
    decoder = hub.config_of(folder, max_length=length)
    tokenizer = rlvr_data.read_tokenizer(str(folder), config['sampling']['stop_tokens'])
    tokenizer.check_fits(decoder.vocab_size)
  train, evaluation = (rlvr_data.read_prompts(part, data, tokenizer, workdir) for part in ('train', 'evaluation'))
  if config['num_prompts'] > len(train):
    raise UserError(f'config: num_prompts={config["num_prompts"]} is more than the {len(train)} questions; give at most {len(train)}.')
  solutions = rlvr_data.read_solutions(config, tokenizer, workdir) if config['warm_start']['num_steps'] else None
  with ranges.naming('rewards'):
    total = rewards.build(config['rewards'], rlvr_data.verifier_of(config))
    for prompts in (train, evaluation):  # a reference that a reward cannot read would show up in the middle of the run
      part = [function for name, function in total.parts.items() if name != 'accuracy']
      for reference in prompts.references:
        for one in part:
          one.function('', reference, rewards.Context(), **one.settings)
  return Material(folder, decoder, tokenizer, train, evaluation, solutions, total)


def notes(material: Material) -> list[str]:
  """What its user may not expect, one sentence each."""
  found = []
  for part, prompts in (('train', material.train), ('evaluation', material.evaluation)):
    left_out = prompts.num_left_out
    if left_out:
      share = f'{left_out} of {left_out + len(prompts)} questions'
      found.append(f'data.{part}: {share} have longer prompts than data.prompt_length allows and are left out.')
  return found
