"""The same run on other devices: every layout must give the losses and select the tokens of one device, and resume where another stopped.

Reinforcement learning of a small transformer on countdown problems, with the bodies, the loop and the pipeline that a study uses. As a
script it is one process of a run:

    python -m entropy_jax.chaos.layouts --workdir=DIR --parallel=pmap --num_devices=8 --num_steps=20 --methods=clip_cov,kl_cov
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entropy_jax import catalog, parallel
from entropy_jax.chaos.victims import QUICK
from entropy_jax.data import countdown, pipeline, tokenizers
from entropy_jax.models import presets
from entropy_jax.models.transformer import transformer_policy
from entropy_jax.objective import Objective
from entropy_jax.parallel import processes
from entropy_jax.training import language, loop, optimizers
from entropy_jax.training.writers import METRICS, read_rows
from entropy_jax.types import Metrics, PyTree, TokenBatch

NUM_PROMPTS, GROUP_SIZE, NUM_TOKENS = 8, 4, 8
ORDER = 'order.jsonl'
LOSS = 'update/loss'
RESPONSE_TOKENS = NUM_PROMPTS * GROUP_SIZE * NUM_TOKENS

_CLIP_COV = {'name': 'clip_cov', 'kwargs': {'fraction': 0.05, 'low_quantile': 0.7, 'cov_high': 1e9}}
_KL_COV = {'name': 'kl_cov', 'kwargs': {'fraction': 0.1}}
_TOP_ENTROPY = {'name': 'top_entropy', 'kwargs': {'keep': 0.4}}
_ADAPTIVE = {'name': 'adaptive_entropy', 'kwargs': {'target': 2.5, 'initial': 0.01}}


def _spec(weights: Sequence[Any] = (), regularizers: Sequence[Any] = ()) -> dict[str, Any]:
  rooms = {'weights': list(weights), 'regularizers': list(regularizers)}
  return {'advantages': [{'name': 'grpo'}], 'surrogates': [{'name': 'ppo_clip'}], **rooms}


METHODS = {
  'clip_cov': _spec([_CLIP_COV]),
  'kl_cov': _spec([], [_KL_COV]),
  'top_entropy': _spec([_TOP_ENTROPY]),
  'adaptive_entropy': _spec([], [_ADAPTIVE]),
  'composed': _spec([_TOP_ENTROPY, _CLIP_COV], [_KL_COV, _ADAPTIVE]),
}


class Layout(NamedTuple):
  """Devices and how they are used."""

  name: str
  parallel: str
  num_devices: int
  num_processes: int = 1


ONE_DEVICE = Layout('one device', 'jit', 1)
LAYOUTS = (
  Layout('pmap x 8', 'pmap', 8),
  Layout('fsdp x 8', 'fsdp', 8),
  Layout('2 processes x 4, pmap', 'pmap', 8, 2),
  Layout('2 processes x 4, fsdp', 'fsdp', 8, 2),
)


def observed(objective: Objective) -> Objective:
  """The objective, with fingerprints of the tokens that each plan selects among its metrics.

  `selected/NAME_k` are integers below 2^24, exact in float32: the number of the selected tokens and sums of two random labels over them,
  so that two different selections have all three equal with a chance below 1e-6.
  """
  labels = np.random.default_rng(0).integers(0, 2**24 // RESPONSE_TOKENS, (2, RESPONSE_TOKENS))

  def plan(state: PyTree, batch: TokenBatch) -> tuple[Any, PyTree, Metrics]:
    planned, state, metrics = objective.plan(state, batch)
    for path, x in jax.tree_util.tree_leaves_with_path(planned):
      if np.shape(x) == batch.mask_BxT.shape:
        chosen = ((x != 0) & batch.mask_BxT).reshape(-1)
        sums = [jnp.sum(jnp.where(chosen, jnp.asarray(label), 0)) for label in (np.ones(RESPONSE_TOKENS, int), *labels)]
        name = '_'.join(str(getattr(p, 'key', p)) for p in path)
        metrics |= {f'selected/{name}_{k}': value.astype(jnp.float32) for k, value in enumerate(sums)}
    return planned, state, metrics

  return objective._replace(plan=plan)


class _Recorded:
  """A pipeline that writes down which problems it hands out, in the order of the whole batch."""

  def __init__(self, batches: pipeline.TrainingBatches, path: Path):
    self._batches, self._path = batches, path

  def next(self) -> Mapping[str, np.ndarray]:
    rows = self._batches.next()
    index = processes.gather_rows(rows['index_B']).tolist()
    if jax.process_index() == 0:
      with open(self._path, 'a', encoding='utf-8') as file:
        file.write(json.dumps(index) + '\n')
    return rows

  def get_state(self) -> Any:
    return self._batches.get_state()

  def set_state(self, state: Any) -> None:
    self._batches.set_state(state)


def _problems() -> pipeline.Problems:
  found = countdown.enumerate_problems()
  items = list(countdown.split_problems(found, 'test').items())
  return pipeline.Problems(
    np.array([problem.numbers for problem, _ in items], np.int32),
    np.array([problem.target for problem, _ in items], np.int32),
    tuple(countdown.prompt_text(*problem) for problem, _ in items),
    tuple(answers for _, answers in items),
  )


def _odd_pluses(answers: Sequence[str], rows: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, int]]:
  """A reward that an untrained policy earns about half of the time, so that every step has something to learn."""
  odd = np.array([answer.count('+') % 2 for answer in answers], np.float32)
  return odd, {'odd': int(odd.sum())}


def train(
  workdir: Path,
  method: str,
  *,
  mode: str,
  num_devices: int,
  num_steps: int,
  num_slices: int = 1,
  dtype: str = 'float32',
  remat: bool = False,
) -> None:
  """One run; the same command on another layout goes on where it stopped."""
  layout = parallel.make(mode, num_devices)
  problems, tokenizer = _problems(), tokenizers.CharacterTokenizer(tokenizers.COUNTDOWN_ALPHABET)
  shapes = {'prompt_length': problems.prompt_length(), 'response_length': NUM_TOKENS}
  size = {'width': 32, 'num_layers': 1, 'num_heads': 2, 'mlp_width': 64, 'vocab_size': tokenizer.vocab_size}
  policy = transformer_policy(presets.preset('study_tiny', dtype=dtype, remat=remat, **size))
  objective = observed(catalog.build(METHODS[method]))
  tx = optimizers.make_optimizer('adam', 1e-3, max_grad_norm=1.0)
  key, num_sequences = jax.random.key(0), NUM_PROMPTS * GROUP_SIZE
  parallel.check_rows('NUM_PROMPTS * GROUP_SIZE', num_sequences, layout)
  workdir.mkdir(parents=True, exist_ok=True)
  batches = pipeline.training_batches(
    problems,
    tokenizer,
    batch_size=NUM_PROMPTS,
    seed=0,
    prompt_length=shapes['prompt_length'],
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  loop.train(
    workdir=workdir,
    num_steps=num_steps,
    state=language.initial_state(layout, policy, None, key, tx, objective, language.example_batch(num_sequences, **shapes)),
    body=language.reinforcement_body(
      layout,
      policy,
      objective,
      tx,
      verify=_odd_pluses,
      decode=tokenizer.decode_batch,
      group_size=GROUP_SIZE,
      num_tokens=NUM_TOKENS,
      stop_ids=(tokenizers.EOS,),
      num_epochs=2,
      num_slices=num_slices,
    ),
    data=_Recorded(batches, workdir / ORDER),
    key=key,
    checkpoint_every=num_steps,
    description=f'{method}, {mode} x {layout.num_devices}',
    keep=1,
    tensorboard=False,
  )


def start(workdir: Path, layout: Layout, methods: Sequence[str], num_steps: int, *extra: str) -> None:
  """Runs the methods in new processes with the layout's devices; raises with what they said when one fails."""
  flags = f'--xla_force_host_platform_device_count={layout.num_devices // layout.num_processes} {QUICK}'
  shared = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags}
  command = [sys.executable, '-m', __name__, f'--workdir={workdir}']
  command += [f'--parallel={layout.parallel}', f'--num_steps={num_steps}', f'--methods={",".join(methods)}', *extra]
  if layout.num_processes == 1:
    command.append(f'--num_devices={layout.num_devices}')
  else:
    address = f'127.0.0.1:{_free_port()}'
    shared |= {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': str(layout.num_processes)}
  places = [{'JAX_PROCESS_ID': str(i)} if layout.num_processes > 1 else {} for i in range(layout.num_processes)]
  running = [subprocess.Popen(command, env=shared | p, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for p in places]
  said = [process.communicate()[0] for process in running]
  for process, text in zip(running, said):
    if process.returncode:
      raise RuntimeError(f'{layout.name}: exit code {process.returncode}\n{text[-3000:]}')


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return int(probe.getsockname()[1])


class Difference(NamedTuple):
  """Of one run from the run on one device.

  Attributes:
    loss: the largest difference of a step's loss, relative to that loss or to the run's root mean square loss where it is smaller (a
      group-relative loss is a difference of almost equal sums and passes through 0).
    selections: fingerprints of selections that differ, over all steps.
    num_selections: fingerprints compared.
    same_order: whether the problems came in the same order.
    num_steps: steps compared.
  """

  loss: float
  selections: int
  num_selections: int
  same_order: bool
  num_steps: int


def difference(one: Path, other: Path) -> Difference:
  """Compares the metrics and the data order of two runs."""
  a, b = (read_rows(folder / METRICS) for folder in (one, other))
  if [row['step'] for row in a] != [row['step'] for row in b]:
    return Difference(float('inf'), 0, 0, False, 0)
  losses = np.array([[x[LOSS], y[LOSS]] for x, y in zip(a, b) if LOSS in x])
  scale = np.maximum(np.abs(losses[:, 0]), np.sqrt(np.mean(losses[:, 0] ** 2)))
  keys = [key for key in a[0] if key.startswith('selected/')]
  differing = sum(x[key] != y[key] for x, y in zip(a, b) for key in keys if key in x)
  order = [(folder / ORDER).read_text() for folder in (one, other)]
  largest = float((np.abs(losses[:, 1] - losses[:, 0]) / scale).max())
  return Difference(largest, differing, len(keys) * len(losses), order[0] == order[1], len(losses))


Start = Callable[[Path, Layout, Sequence[str], int], None]


def equality(
  folder: Path,
  methods: Sequence[str] = tuple(METHODS),
  layouts: Sequence[Layout] = LAYOUTS,
  num_steps: int = 20,
  start: Start = start,
) -> dict[tuple[str, str], Difference]:
  """(layout, method) -> how far that run is from the run on one device."""
  for layout in (ONE_DEVICE, *layouts):
    start(folder / layout.name, layout, methods, num_steps)
  one = folder / ONE_DEVICE.name
  return {(layout.name, method): difference(one / method, folder / layout.name / method) for layout in layouts for method in methods}


def elastic(
  folder: Path, method: str = 'composed', num_devices: Sequence[int] = (1, 8, 2), steps_each: int = 6, start: Start = start
) -> Difference:
  """A run that is stopped twice and resumed on another number of devices, against the run that stays on one."""
  last = steps_each * len(num_devices)
  start(folder / 'whole', Layout('one device', 'pmap', 1), [method], last)
  for i, count in enumerate(num_devices):
    start(folder / 'moved', Layout(f'pmap x {count}', 'pmap', count), [method], steps_each * (i + 1))
  return difference(folder / 'whole' / method, folder / 'moved' / method)


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('--workdir', required=True, type=Path)
  parser.add_argument('--parallel', required=True, choices=list(parallel.MODES))
  parser.add_argument('--num_devices', type=int, default=0)
  parser.add_argument('--num_steps', type=int, default=20)
  parser.add_argument('--methods', default=','.join(METHODS))
  parser.add_argument('--num_slices', type=int, default=1)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--remat', action='store_true')
  given = parser.parse_args(argv)
  processes.initialize('')
  started = time.monotonic()
  for method in given.methods.split(','):
    options = {'mode': given.parallel, 'num_devices': given.num_devices, 'num_steps': given.num_steps, 'num_slices': given.num_slices}
    train(given.workdir / method, method, dtype=given.dtype, remat=given.remat, **options)
  print(f'{time.monotonic() - started:.1f} s')


if __name__ == '__main__':
  main()
