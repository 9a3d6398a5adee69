"""A whole GRPO step against TRL's GRPOTrainer: the same random Qwen2 weights, prompts, reward, loss and optimizer, in alternation.

    python -m benchmarks.versus_trl [--rounds=8] [--num_slices=16] [--trl_slices=1]

Needs the extra `bench` (trl, transformers, torch). 32 prompts x 16 responses of up to 24 tokens, about a million parameters, float32, one
on-policy update a rollout (GRPO, sequence means, no KL; AdamW at 1e-6, norm clipped at 1). Ours is the body of the training loop
(`training.language.reinforcement_body`) without the pass that measures the entropy after the update, which TRL does not make; what that
pass takes is shown beside it. TRL generates with transformers (no vLLM); of its defaults are changed bf16 (off: all is float32),
gradient_checkpointing (off: ours recomputes nothing either), loss_type (grpo), the schedule (constant) and logging (off).

Before anything is timed, on one folder that both read: greedy tokens are equal, log-probs and entropies of TRL's own rollout to 1e-4, its
advantages, and the gradient of the loss, from texts to parameters, to 1e-4 of its norm. Then TRL trains, and after each of its steps ours
makes one; a ratio is of two neighbouring steps. `generate` is the sampling alone, `score` what stands between it and the update (decoding,
rewards, advantages), `update` the rest. The last line is JSON. Limits: 1.2 for the step, 1.3 for the generation.
"""

import argparse
import functools
import json
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ['HF_HUB_OFFLINE'] = '1'  # folders made here, and nothing else
os.environ.setdefault('TRL_EXPERIMENTAL_SILENCE', '1')

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers
import trl
from safetensors.numpy import load_file

from entropy_jax import catalog, parallel
from entropy_jax.data import hub_tokenizer
from entropy_jax.models import hub
from entropy_jax.models.transformer import num_parameters, transformer_policy
from entropy_jax.rollout import score as scoring
from entropy_jax.rollout.batch import token_batch
from entropy_jax.rollout.generate import generate
from entropy_jax.rollout.generate import given as given_tokens
from entropy_jax.training import language, optimizers, state, step
from entropy_jax.training.progress import Clock

PROMPTS, GROUP, PROMPT, RESPONSE, VOCABULARY = 32, 16, 8, 24, 512
LIMITS = {'step': 1.2, 'generate': 1.3}
TOLERANCE = 1e-4
RATE = 1e-6
SHAPE: dict[str, Any] = {
  'vocab_size': VOCABULARY,
  'hidden_size': 128,
  'intermediate_size': 512,
  'num_hidden_layers': 4,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': 64,
  'tie_word_embeddings': True,
  'initializer_range': 0.08,  # 1 / sqrt(hidden_size): logits of deviation 1
}
OBJECTIVE = {
  'advantages': [{'name': 'grpo', 'kwargs': {'epsilon': 1e-4}}],
  'surrogates': [{'name': 'ppo_clip', 'kwargs': {'low': 0.2, 'high': 0.2}}],
  'aggregate': 'sequence_mean_token_mean',
}
PARTS = ('generate', 'score', 'update', 'step')
WORDS = ('sum', 'plus', 'of', 'is', 'the', 'answer', 'twice', 'less', 'more', 'than')


def reward(text: str) -> float:
  return float(len(text) % 2)


def rewards_of(completions: Sequence[str], **rest: Any) -> list[float | None]:
  return [reward(text) for text in completions]


def prompts_of(tokenizer: hub_tokenizer.HubTokenizer) -> list[str]:
  """Different sums, of at most PROMPT tokens."""
  rng, found = random.Random(1), set[str]()
  while len(found) < PROMPTS:
    text = f'{rng.randint(1, 99)} + {rng.randint(1, 99)} ='
    if len(tokenizer.encode(text)) <= PROMPT:
      found.add(text)
  return sorted(found)


def make(folder: Path, seed: int) -> None:
  """A random model with its tokenizer, as a Hugging Face folder."""
  rng = random.Random(seed)
  lines = [f'{" ".join(rng.choices(WORDS, k=6))} 1 + 2 = 3 .' for _ in range(200)]
  tokenizer = hub_tokenizer.train(lines, vocab_size=VOCABULARY)
  torch.manual_seed(seed)
  config = transformers.Qwen2Config(**SHAPE, bos_token_id=None, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id)
  model = transformers.Qwen2ForCausalLM(config)
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.ndim == 1:  # biases and scales, so that they are heard
        parameter.add_(0.1 * torch.randn_like(parameter))
  model.save_pretrained(folder)
  hub_tokenizer.save(folder, tokenizer)


class Theirs:
  """The trainer, and the seconds of the parts of its last step."""

  def __init__(self, folder: Path, texts: Sequence[str], rounds: int, slices: int):
    config = trl.GRPOConfig(
      output_dir=str(folder.parent / 'trl'),
      use_cpu=True,
      bf16=False,
      gradient_checkpointing=False,
      per_device_train_batch_size=PROMPTS * GROUP // slices,
      gradient_accumulation_steps=slices,
      num_generations=GROUP,
      max_completion_length=RESPONSE,
      temperature=1.0,
      beta=0.0,
      loss_type='grpo',
      learning_rate=RATE,
      lr_scheduler_type='constant',
      max_steps=rounds,
      logging_strategy='no',
      save_strategy='no',
      report_to='none',
      disable_tqdm=True,
    )
    self.trainer: Any = trl.GRPOTrainer(
      model=transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
      reward_funcs=rewards_of,
      args=config,
      train_dataset=datasets.Dataset.from_dict({'prompt': list(texts)}),
      processing_class=transformers.AutoTokenizer.from_pretrained(folder),
    )
    self.seconds = dict.fromkeys(('single', 'rollout'), 0.0)
    for name, method in (('single', '_generate_single_turn'), ('rollout', '_generate_and_score_completions')):
      setattr(self.trainer, method, self._timed(name, getattr(self.trainer, method)))

  def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
      started = time.perf_counter()
      found = method(*args, **kwargs)
      self.seconds[name] += time.perf_counter() - started
      return found

    return call

  def parts(self, whole: float) -> dict[str, float]:
    single, rollout = self.seconds['single'], self.seconds['rollout']
    self.seconds = dict.fromkeys(self.seconds, 0.0)
    return {'generate': single, 'score': rollout - single, 'update': whole - rollout, 'step': whole}


class Ours:
  """The body of the training loop on the same folder."""

  def __init__(self, folder: Path, texts: Sequence[str], num_slices: int):
    self.config, params = hub.load(folder, max_length=PROMPT + RESPONSE)
    self.tokenizer, self.policy = hub_tokenizer.load(folder), transformer_policy(self.config)
    self.objective, layout = catalog.build(OBJECTIVE), parallel.make('jit', 1)
    self.tx = optimizers.make_optimizer('adamw', RATE, max_grad_norm=1.0)
    self.rows = dict(zip(('prompt_tokens_BxP', 'prompt_mask_BxP'), self.tokenizer.encode_batch(texts, PROMPT, side='left'), strict=True))
    example = language.example_batch(PROMPTS * GROUP, PROMPT, RESPONSE)
    self.params = jax.tree.map(jnp.copy, params)  # the state below is given away at every step
    self.state = language.initial_state(layout, self.policy, params, jax.random.key(0), self.tx, self.objective, example)
    self.clock, self.key = Clock(), jax.random.key(1)
    options: dict[str, Any] = {'num_slices': num_slices, 'group_size': GROUP, 'num_tokens': RESPONSE, 'stop_ids': self.tokenizer.stop_ids}
    options |= {'verify': self.verify, 'decode': self.tokenizer.decode_batch, 'clock': self.clock}
    make_body = functools.partial(language.reinforcement_body, layout, self.policy, self.objective, self.tx, **options)
    self.body, self.measuring = make_body(entropy_change=False), make_body(entropy_change=True)

  def verify(self, answers: Sequence[str], rows: language.Rows) -> tuple[np.ndarray, dict[str, int]]:
    return np.array([reward(text) for text in answers], np.float32), {}

  def step(self, body: language.Body) -> dict[str, float]:
    self.clock.collect()
    self.key, key = jax.random.split(self.key)
    started = time.perf_counter()
    self.state, metrics, _ = body(self.state, self.rows, key)
    self.metrics = jax.device_get(metrics)
    whole = time.perf_counter() - started
    seconds = self.clock.collect()
    generate, update = seconds['seconds/generate'], seconds['seconds/update'] + seconds['seconds/score']
    return {'generate': generate, 'score': whole - generate - update, 'update': update, 'step': whole}


def gradient_of(ours: Ours, rollout: dict[str, np.ndarray], rewards: np.ndarray) -> tuple[Any, scoring.Scores, np.ndarray]:
  """(gradient as `step.learn` makes it, scores, advantages) of a batch that was sampled elsewhere."""
  zeros = functools.partial(jax.tree.map, jnp.zeros_like)
  keep = optax.GradientTransformation(zeros, lambda gradient, kept, params=None: (zeros(gradient), gradient))
  response = given_tokens(jnp.asarray(rollout['completion_ids']), jnp.asarray(rollout['completion_mask'] > 0))
  prompt = jnp.asarray(rollout['prompt_ids']), jnp.asarray(rollout['prompt_mask'] > 0)
  group_B = jnp.arange(len(rewards)) // GROUP
  batch = token_batch(*prompt, response, group_B, jnp.asarray(rewards), jax.random.key(0))

  @jax.jit
  def run(params: Any) -> Any:
    scores = scoring.score(ours.policy, params, batch.tokens_BxN, batch.token_mask_BxN, response.tokens_BxT.shape[1])
    sampled = batch.replace(old_logp_BxT=scores.logp_BxT, old_entropy_BxT=scores.entropy_BxT)
    start = state.create(params, keep, ours.objective, sampled)
    after, _ = step.learn(start, sampled, objective=ours.objective, policy=ours.policy, tx=keep)
    prepared, _, _ = ours.objective.prepare(start.objective_state, sampled)
    return after.opt_state, scores, prepared.advantage_BxT

  return jax.device_get(run(ours.params))


def greedy_pair(ours: Ours, model: Any) -> tuple[np.ndarray, np.ndarray]:
  """Greedy responses of both, padded after the stop token."""
  prompt, pad = [ours.rows[f'prompt_{name}_BxP'] for name in ('tokens', 'mask')], ours.tokenizer.pad_id
  how: dict[str, Any] = {'num_tokens': RESPONSE, 'temperature': 0, 'stop_ids': ours.tokenizer.stop_ids, 'pad_id': pad}
  tokens_BxP, mask_BxP = map(jnp.asarray, prompt)
  mine = jax.jit(lambda params: generate(ours.policy, params, tokens_BxP, mask_BxP, jax.random.key(0), **how).tokens_BxT)(ours.params)
  tokens, mask = (torch.from_numpy(x).long() for x in prompt)
  with torch.no_grad():
    out = model.generate(tokens, attention_mask=mask, max_new_tokens=RESPONSE, do_sample=False, pad_token_id=pad)[:, PROMPT:].numpy()
  return np.asarray(mine), np.pad(out, ((0, 0), (0, RESPONSE - out.shape[1])), constant_values=pad)


def largest(a: Any, b: np.ndarray, mask: np.ndarray) -> float:
  return float(np.abs(np.asarray(a) - b)[mask].max())


def check(ours: Ours, theirs: Theirs, texts: Sequence[str], folder: Path) -> dict[str, float]:
  """Raises unless both are the same model, loss and gradient; by how much they differ."""
  trainer, model = theirs.trainer, theirs.trainer.model
  equal = float(np.equal(*greedy_pair(ours, model.eval())).mean())
  model.train()
  trainer.current_gradient_accumulation_steps = 1
  out = trainer._generate_and_score_completions([{'prompt': text} for text in texts for _ in range(GROUP)])
  rollout = {name: value.numpy() for name, value in out.items() if isinstance(value, torch.Tensor) and value.ndim == 2}
  real = rollout['completion_mask'] > 0
  responses = [row[m] for row, m in zip(rollout['completion_ids'], real, strict=True)]
  answers = trainer.processing_class.batch_decode(responses, skip_special_tokens=True)
  gradient, scores, advantage_BxT = gradient_of(ours, rollout, np.array([reward(text) for text in answers], np.float32))
  ids = torch.cat([out['prompt_ids'], out['completion_ids']], 1), torch.cat([out['prompt_mask'], out['completion_mask']], 1)
  with torch.no_grad():
    logp, entropy, _ = trainer._get_per_token_logps_and_entropies(model, *ids, real.shape[1], compute_entropy=True)
  trainer._compute_loss(model, out).backward()
  trainer._metrics['train'].clear()
  theirs.seconds = dict.fromkeys(theirs.seconds, 0.0)
  # Written as a folder, our gradient has the names and the layout of theirs.
  hub.save(folder / 'gradient', ours.config, gradient)
  mine = {name: value for file in (folder / 'gradient').glob('*.safetensors') for name, value in load_file(file).items()}
  pairs = [(mine[name], p.grad.numpy()) for name, p in model.named_parameters()]
  norm = float(np.sqrt(sum(np.square(b).sum() for _, b in pairs)))
  model.zero_grad()
  found = {
    'greedy tokens equal': equal,
    'log-prob': largest(scores.logp_BxT, logp.numpy(), real),
    'entropy': largest(scores.entropy_BxT, entropy.numpy(), real),
    'advantage': largest(advantage_BxT, np.broadcast_to(out['advantages'].numpy()[:, None], real.shape), real),
    'gradient, of its norm': float(np.sqrt(sum(np.square(a - b).sum() for a, b in pairs))) / norm,
  }
  assert norm > 0 and equal == 1.0 and max(list(found.values())[1:]) <= TOLERANCE, f'not the same: {found}, norm {norm:.2e}'
  return found


class Alternating(transformers.TrainerCallback):
  """Ours makes a step after each of theirs."""

  def __init__(self, ours: Ours, theirs: Theirs):
    self.ours, self.theirs, self.rows = ours, theirs, list[dict[str, dict[str, float]]]()

  def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
    self.started = time.perf_counter()

  def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
    theirs = self.theirs.parts(time.perf_counter() - self.started)
    measured = self.ours.step(self.ours.measuring)
    self.rows.append({'ours': self.ours.step(self.ours.body), 'TRL': theirs, 'ours, measuring': measured})


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('--rounds', type=int, default=8)
  parser.add_argument('--num_slices', type=int, default=16)
  parser.add_argument('--trl_slices', type=int, default=1)
  parser.add_argument('--seed', type=int, default=0)
  given = parser.parse_args(argv)
  warnings.simplefilter('ignore')
  transformers.logging.set_verbosity_error()
  transformers.utils.logging.disable_progress_bar()
  cores = len(os.sched_getaffinity(0))
  torch.set_num_threads(cores)
  with tempfile.TemporaryDirectory() as place:
    folder = Path(place) / 'model'
    make(folder, given.seed)
    texts = prompts_of(hub_tokenizer.load(folder))
    ours = Ours(folder, texts, given.num_slices)
    theirs = Theirs(folder, texts, given.rounds + 2, given.trl_slices)
    versions = f'jax {jax.__version__}, trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}'
    print(f'{jax.devices()[0].platform}, {cores} cores, {versions}')
    print(f'{num_parameters(ours.config):,} parameters, {PROMPTS} prompts x {GROUP} responses x {RESPONSE} tokens')
    found = check(ours, theirs, texts, Path(place))
    print('differences: ' + ', '.join(f'{name} {value:.2g}' for name, value in found.items()), flush=True)
    alternating = Alternating(ours, theirs)
    theirs.trainer.add_callback(alternating)
    theirs.trainer.train()
  rows = alternating.rows[2:]  # the first ones compile and warm up
  median = lambda side, part: float(np.median([row[side][part] for row in rows]))
  print('| | ' + ' | '.join(f'{part}, ms' for part in PARTS) + ' | tokens/s generated |\n|' + '---|' * 6)
  for side in rows[0]:
    speed = PROMPTS * GROUP * RESPONSE / median(side, 'generate')
    print(f'| {side} | ' + ' | '.join(f'{1e3 * median(side, part):.0f}' for part in PARTS) + f' | {speed:,.0f} |')
  ratios, missed = {}, []
  for part in ('step', 'generate', 'update'):
    ratio = [row['TRL'][part] / row['ours'][part] for row in rows]
    low, high = np.quantile(ratio, [0.25, 0.75])
    ratios[part] = round(float(np.median(ratio)), 3)
    limit = LIMITS.get(part)
    missed += [part] if limit is not None and ratios[part] < limit else []
    print(f'{part}: TRL over ours {ratios[part]:.2f}, middle half {low:.2f} to {high:.2f}' + ('' if limit is None else f', limit {limit}'))
  print(json.dumps({'benchmark': 'versus_trl', 'limits': LIMITS, 'ratio': ratios, 'missed': missed, 'differences': found}))
  sys.exit(1 if missed else 0)


if __name__ == '__main__':
  main()
