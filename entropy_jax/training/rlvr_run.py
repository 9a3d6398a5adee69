"""Reinforcement learning with verifiable rewards of a decoder from a Hugging Face folder: an imitation of solutions first, if one is asked
for, then a run a seed, each evaluated as it goes and exported at its end.

Every stage is a run of `training.loop` or a file that comes into being at once, so a run that was stopped goes on by the same command,
whatever it was at. What is written of a seed, in DIR/seed_K: metrics.jsonl, checkpoints/, evaluations/step_N.json (of every question how
many responses were right), samples.jsonl, export/.
"""

import functools
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from entropy_jax import compose, parallel
from entropy_jax.data import examples
from entropy_jax.models import hub, lora
from entropy_jax.models.policy import Policy
from entropy_jax.models.transformer import transformer_policy
from entropy_jax.parallel import Parallel, processes
from entropy_jax.training import language, loop, profiling, ranges, rlvr_data, rlvr_samples
from entropy_jax.training.files import say, write_atomically
from entropy_jax.training.progress import Clock
from entropy_jax.training.rlvr import Config, Material, Plan
from entropy_jax.training.rlvr_data import Prompts
from entropy_jax.training.state import TrainState
from entropy_jax.types import Params, UserError

EVALUATIONS, PROVENANCE, EXPORTED = 'evaluations', 'provenance.json', 'export.json'
WARM_START = 'warm_start'


class Trained(NamedTuple):
  """What is trained of a model.

  Attributes:
    policy: of the parameters that are trained.
    params: where they start.
    merge: those parameters -> the parameters of the whole model.
  """

  policy: Policy
  params: Params
  merge: Callable[[Params], Params]


def load(config: Config, plan: Plan, material: Material, mode: Parallel) -> Trained:
  """The model of the folder, on the devices."""
  model = config['model']
  settings = {'dtype': model['dtype'], 'remat': model['remat'], 'param_dtype': model['param_dtype']}
  decoder, params = hub.load(material.folder, max_length=material.decoder.max_length, shardings=mode.shardings, **settings)
  policy = transformer_policy(decoder)
  if plan.adapters is None:
    return Trained(policy, params, lambda params: params)
  key = jax.random.fold_in(jax.random.key(config['seed']), zlib.crc32(b'lora'))
  with ranges.naming('lora'):
    start = lora.adapt(params, key, plan.adapters)
  return Trained(lora.lora_policy(policy, plan.adapters), start, functools.partial(lora.merge, config=plan.adapters))


def provenance(config: Config, material: Material) -> dict[str, Any]:
  """What the numbers rest on: digests of the model, the tokenizer and the data, and their sizes."""
  model = hashlib.sha256()
  for path in sorted([material.folder / 'config.json', *material.folder.glob('*.safetensors')]):
    with path.open('rb') as file:
      model.update(path.name.encode() + hashlib.file_digest(file, 'sha256').digest())
  sizes = lambda prompts: {'digest': prompts.digest, 'questions': len(prompts), 'left_out': prompts.num_left_out}
  found: dict[str, Any] = {'model': model.hexdigest(), 'tokenizer': material.tokenizer.digest}
  found |= {'train': sizes(material.train), 'evaluation': sizes(material.evaluation)}
  found['stop_tokens'] = [material.tokenizer.table.id_to_token(i) for i in material.tokenizer.stop_ids]
  found['objective'] = compose.line(compose.parse(config['objective']))
  return found if material.solutions is None else found | {'solutions': material.solutions.digest}


def _check_provenance(path: Path, found: Mapping[str, Any]) -> None:
  """Written at the first start; at later ones the model and the data must be what they were."""
  if path.exists():
    before = json.loads(path.read_text(encoding='utf-8'))
    for key, value in found.items():
      if before[key] != value:
        raise UserError(f'{path.parent}: {key} is not what it was when this run was started; bring it back, or give another --workdir.')
  elif jax.process_index() == 0:
    write_atomically(path, json.dumps(found, indent=2) + '\n')


def train(config: Config, plan: Plan, material: Material, workdir: Path) -> None:
  """Whatever of the run is not done yet.

  Raises:
    UserError: other weights or data than at the first start, or an export that something else would be in the way of.
  """
  with processes.agreed():
    _check_provenance(workdir / PROVENANCE, provenance(config, material))
    for k in range(config['num_seeds']):
      _check_export(config, workdir / f'seed_{k}')
  mode, root = parallel.make(config['parallel'], config['num_devices']), jax.random.key(config['seed'])
  model = load(config, plan, material, mode)
  stages = Stages(config, plan, material, mode, model, root)
  params = stages.warm_start(workdir / WARM_START) if config['warm_start']['num_steps'] else model.params
  body = stages.body(params)
  for k in range(config['num_seeds']):
    stages.reinforce(k, params, body, workdir / f'seed_{k}')


def updates_per_rollout(config: Config) -> int:
  return config['num_epochs'] * config['num_minibatches']


class Stages:
  """The stages of a run, which share what is compiled."""

  def __init__(self, config: Config, plan: Plan, material: Material, mode: Parallel, model: Trained, root: jax.Array):
    self.config, self.plan, self.material, self.mode, self.model, self.root = config, plan, material, mode, model, root
    self.clock = Clock()
    self.block: dict[str, Any] = {'process_index': jax.process_index(), 'process_count': jax.process_count()}
    self.shapes = {'prompt_length': config['data']['prompt_length'], 'response_length': config['sampling']['response_length']}
    self.launch: dict[str, Any] = {
      'clock': self.clock,
      'max_rejected': config['max_rejected'],
      'profile_steps': profiling.parse(config['profile_steps']),
      'num_devices': mode.num_devices,
      'keep': config['keep'],
    }
    tokenizer = material.tokenizer
    self.generation: dict[str, Any] = {'num_tokens': self.shapes['response_length'], 'stop_ids': tokenizer.stop_ids}
    self.generation['num_stages'] = config['sampling']['num_stages']
    self.sampling = self.generation | {'temperature': config['sampling']['temperature'], 'sampler': plan.sampler}

  def _state(self, params: Params, tx: Any, objective: Any, num_sequences: int, *, donate: bool) -> TrainState:
    """A fresh state around a copy of the parameters, or around themselves where nobody needs them again."""
    example = language.example_batch(num_sequences, **self.shapes)
    return language.initial_state(self.mode, self.model.policy, params, self.root, tx, objective, example, donate=donate)

  def warm_start(self, directory: Path) -> Params:
    """The parameters after the imitation of solutions."""
    start, plan, solutions = self.config['warm_start'], self.plan, self.material.solutions
    assert solutions is not None
    state = loop.train(
      workdir=directory,
      num_steps=start['num_steps'],
      state=self._state(self.model.params, plan.imitation_tx, plan.imitation, start['batch_size'], donate=True),
      body=language.supervised_body(
        self.mode, self.model.policy, plan.imitation, plan.imitation_tx, num_slices=start['num_slices']
      ),
      data=examples.training_batches(solutions, batch_size=start['batch_size'], seed=self.config['seed'], **self.block),
      key=self.root,
      checkpoint_every=max(start['num_steps'] // 2, 1),
      description='imitation of solutions',
      log_every=10,
      **self.launch,
    )
    return state.params

  @property
  def keeps_start(self) -> bool:
    """Whether the parameters that reinforcement learning starts from are needed again."""
    return self.config['num_seeds'] > 1 or 'ref_logp_BxT' in self.plan.reads

  def body(self, params: Params) -> language.Body:
    """A step of reinforcement learning from these parameters, which are the reference where the objective has one."""
    config, material, reads = self.config, self.material, self.plan.reads
    return language.reinforcement_body(
      self.mode,
      self.model.policy,
      self.plan.objective,
      self.plan.tx,
      verify=rlvr_data.scorer(material.total, material.train),
      decode=material.tokenizer.decode_batch,
      clock=self.clock,
      reference=params if 'ref_logp_BxT' in reads else None,
      answers=rlvr_data.answers_of(material.total.verifier) if 'answer_B' in reads else None,
      greedy_baseline='baseline_reward_B' in reads,
      **self.sampling,
      **{key: config[key] for key in ('group_size', 'num_epochs', 'num_minibatches', 'num_slices', 'ledger', 'entropy_change')},
    )

  @functools.cached_property
  def evaluate(self) -> Callable[[Params], tuple[dict[str, float], dict[str, Any]]]:
    """Params -> (metrics, what is written of every question)."""
    given, prompts = self.config['evaluation'], self.material.evaluation
    kept: list[Mapping[str, np.ndarray]] = []
    evaluate = language.evaluator(
      self.mode,
      self.model.policy,
      list(examples.evaluation_batches(prompts.rows, batch_size=self._whole(given['batch_size'], prompts), **self.block)),
      verify=rlvr_data.success_of(self.material.total, given['success'], prompts),
      answers=rlvr_data.answers_of(self.material.total.verifier),
      decode=self.material.tokenizer.decode_batch,
      num_samples=given['num_samples'],
      temperature=given['temperature'],
      key=self.root,
      keep=kept.append,
      **self.generation,
    )

    def both(params: Params) -> tuple[dict[str, float], dict[str, Any]]:
      kept.clear()
      metrics = evaluate(params)
      (of_each,) = kept
      votes = np.round(of_each[f'maj_at_{given["num_samples"]}'], 6).tolist()
      return metrics, {'num_samples': given['num_samples'], 'num_correct': of_each['num_correct'].astype(int).tolist(), 'majority': votes}

    return both

  def _whole(self, num_rows: int, prompts: Prompts) -> int:
    """At most as many rows as there are, made up to what the devices divide."""
    parts = self.mode.num_devices
    return -(-min(num_rows, len(prompts)) // parts) * parts

  def reinforce(self, k: int, params: Params, body: language.Body, directory: Path) -> None:
    """Seed k from these parameters: training with its evaluations, samples before and after, export."""
    config, plan, seed = self.config, self.plan, self.config['seed']

    def evaluate(state: TrainState, key: jax.Array) -> dict[str, float]:
      step = int(state.num_updates) // updates_per_rollout(config)
      metrics, found = self.evaluate(state.params)
      if jax.process_index() == 0:
        path = directory / EVALUATIONS / f'step_{step:06d}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({'step': step, **found, 'metrics': metrics}) + '\n')
      return {f'eval/{name}': value for name, value in metrics.items()}

    self._show(params, directory, 'before')
    state = loop.train(
      workdir=directory,
      num_steps=config['num_steps'],
      state=self._state(params, plan.tx, plan.objective, config['num_prompts'] * config['group_size'], donate=not self.keeps_start),
      body=body,
      data=examples.training_batches(self.material.train.rows, batch_size=config['num_prompts'], seed=seed + 1 + k, **self.block),
      key=jax.random.fold_in(self.root, 1 + k),
      checkpoint_every=config['checkpoint_every'],
      evaluate=evaluate,
      evaluate_every=config['evaluation']['every'],
      description=f'seed {k} of {config["num_seeds"]}',
      **self.launch,
    )
    self._show(state.params, directory, 'after')
    self.export(state.params, directory)

  @functools.cached_property
  def _draw(self) -> rlvr_samples.Draw:
    return language.sampling(self.mode, self.model.policy, self.config['samples']['group_size'], **self.sampling)

  def _show(self, params: Params, directory: Path, when: str) -> None:
    """Writes what the report shows, unless it is there: a few responses to the first of the evaluation's questions."""
    path = directory / f'samples_{when}.jsonl'
    if path.exists():
      return
    prompts, given = self.material.evaluation, self.config['samples']
    batches = examples.evaluation_batches(prompts.rows, batch_size=self._whole(given['num_prompts'], prompts), **self.block)
    rows = {name: x for name, x in next(batches).items() if name != 'valid_B'}
    sampled = self.mode.local(self._draw(params, rows, jax.random.fold_in(self.root, 0)))
    if jax.process_index() == 0:
      verify = rlvr_data.scorer(self.material.total, prompts)
      how = {'group_size': given['group_size'], 'shown': given['shown']}
      rlvr_samples.write(path, rlvr_samples.records(sampled, rows, prompts.texts, verify, self.material.tokenizer, **how))

  def export(self, params: Params, directory: Path) -> None:
    """The trained model as a Hugging Face folder, unless it is there."""
    given = self.config['export']
    folder = export_folder(self.config, directory)
    if folder is None or _holds_files(folder):
      return
    if jax.process_index() == 0:  # what is written there from now on is this run's
      write_atomically(directory / EXPORTED, json.dumps(given) + '\n')
      say(f'export: {folder}')
    merged = self.model.merge(params)
    hub.save(folder, self.material.decoder, merged, source=self.material.folder, dtype=given['dtype'])


def export_folder(config: Config, directory: Path) -> Path | None:
  """Where a seed's model goes."""
  return None if config['export']['folder'] is None else directory / config['export']['folder']


def _holds_files(folder: Path) -> bool:
  return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))


def _check_export(config: Config, directory: Path) -> None:
  """Refuses a folder that holds something else."""
  folder, note = export_folder(config, directory), directory / EXPORTED
  if folder is not None and _holds_files(folder) and not note.exists():
    raise UserError(f'config: export.folder={config["export"]["folder"]!r}: {folder} is there already; give one that is new.')
