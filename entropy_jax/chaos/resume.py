"""The resume grid: every way of training that carries a state, interrupted twice and resumed, against the run that nothing interrupts.

A cell is one small but whole run: the real loop with real checkpoints, the real data iterator, the real train step on a table of logits.
Each is run once undisturbed and once with two interruptions, by exceptions raised in the data, in the step, in the evaluation or as a row
is written. The two are equal if the final state, metrics.jsonl and what the last checkpoint says of data and best-so-far are, bit for bit.
Which methods carry a state is asked of the catalog, so that a new one is covered without being named here.
"""

import functools
import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_jax import transform
from entropy_jax.catalog import CATALOG
from entropy_jax.data import countdown, fork_tokens, pipeline
from entropy_jax.data.tokenizers import COUNTDOWN_ALPHABET, CharacterTokenizer
from entropy_jax.methods import advantages, regularizers, surrogates
from entropy_jax.methods.selection import DynamicSampling
from entropy_jax.models.tabular import TABLE
from entropy_jax.objective import Objective, chain
from entropy_jax.rollout import buffer as replay
from entropy_jax.rollout import score as scoring
from entropy_jax.rollout.batch import group_prompts, token_batch
from entropy_jax.rollout.generate import generate
from entropy_jax.training import loop, scanned, step
from entropy_jax.training import state as states
from entropy_jax.types import Metrics, PyTree, Room, TokenBatch, Transform

NUM_STEPS, CHECKPOINT_EVERY = 6, 2
BATCH, GROUP, NUM_TOKENS, VOCAB = 4, 4, 6, 8
# Six batches of 4: an epoch of 10 ends inside batch 2 and again between batches 4 and 5; one of 32 does not end.
PROBLEMS = {True: 10, False: 32}
REPLAY, DYNAMIC, TOGETHER, SCHEDULED = 'replay buffer', 'dynamic sampling', 'all together', 'scheduled'


class KilledError(Exception):
  """Stands for whatever ends a process."""


class Trap(NamedTuple):
  """Where a run is ended: in which step, and by what it calls there ('data', 'draw', 'step', 'row' or 'evaluation')."""

  moment: str
  step: int

  def check(self, moment: str, step: int) -> None:
    if moment == self.moment and step >= self.step:
      raise KilledError(f'{moment} of step {step}')


class Cell(NamedTuple):
  """One combination of the grid.

  Attributes:
    method: a catalog name, or one of the names above.
    shuffle: problems in a random order, another in each epoch, with their numbers in a random order; else in order.
    crosses_epoch: an epoch of the data ends between the checkpoints and the interruptions, inside a batch and between two.
    num_epochs, num_slices, num_minibatches: of `step.learn`.
  """

  method: str
  shuffle: bool
  crosses_epoch: bool
  num_epochs: int = 1
  num_slices: int = 1
  num_minibatches: int = 1

  @property
  def title(self) -> str:
    data = f'{"shuffled" if self.shuffle else "in order"}, {"epoch ends" if self.crosses_epoch else "within an epoch"}'
    return f'{self.method}: {data}, epochs {self.num_epochs}, slices {self.num_slices}, minibatches {self.num_minibatches}'

  @property
  def traps(self) -> tuple[Trap, Trap]:
    """The two interruptions: seeded by the cell, and around the ends of the epochs where the cell is about them."""
    rng = random.Random(self.title)
    moments = rng.choices(['data', 'draw', 'step', 'row', 'evaluation'], k=2)
    first = 3 if self.crosses_epoch else rng.randint(1, 4)  # after the checkpoint of step 2: batch 2 is drawn again
    second = 5 if self.crosses_epoch else rng.randint(first, 5)  # after that of step 4: batch 4 is drawn again
    return Trap(moments[0], first), Trap(moments[1], second)


class Outcome(NamedTuple):
  """A cell and what differed, nothing if the two runs are equal."""

  cell: Cell
  differences: list[str]


class _Data:
  """The run's problems, shuffled by the real pipeline or in their order, with the trap of the moment 'data' in them."""

  def __init__(self, cell: Cell, trap: Trap | None):
    self._problems, self._trap, self._step = _problems(PROBLEMS[cell.crosses_epoch]), trap, 0
    self._shuffled, self._position = None, 0
    if cell.shuffle:
      tokenizer = CharacterTokenizer(COUNTDOWN_ALPHABET)
      self._shuffled = pipeline.training_batches(self._problems, tokenizer, batch_size=BATCH, seed=3, shuffle_numbers=True)

  def next(self) -> Mapping[str, np.ndarray]:
    """The first batch of a step."""
    step, self._step = self._step, self._step + 1
    batch = self.draw()
    if self._trap is not None:
      self._trap.check('data', step)
    return batch

  def draw(self) -> Mapping[str, np.ndarray]:
    """The next batch, for a step that needs more of them."""
    if self._shuffled is not None:
      return self._shuffled.next()
    index_B = np.arange(self._position, self._position + BATCH, dtype=np.int32) % len(self._problems)
    self._position += BATCH
    return {'index_B': index_B, 'numbers_BxM': self._problems.numbers_RxM[index_B]}

  def get_state(self) -> Any:
    return [self._step, self._position if self._shuffled is None else self._shuffled.get_state()]

  def set_state(self, state: Any) -> None:
    self._step, inner = state
    if self._shuffled is None:
      self._position = inner
    else:
      self._shuffled.set_state(inner)


@functools.cache
def _problems(number: int) -> pipeline.Problems:
  found = list(countdown.enumerate_problems(max_number=3).items())[:number]
  return pipeline.Problems.read(
    {'numbers': p.numbers, 'target': p.target, 'prompt': countdown.prompt_text(*p), 'solutions': answers} for p, answers in found
  )


_TASK = functools.cache(lambda: fork_tokens.make(jax.random.key(0), num_prompts=PROBLEMS[False], vocab_size=VOCAB, num_tokens=NUM_TOKENS))
_TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.linear_schedule(0.3, 0.05, 24)))


def _rollout(params: PyTree, index_B: jax.Array, key: jax.Array) -> TokenBatch:
  """GROUP responses to every problem, whose number is the prompt, with every field that a method may ask for."""
  task = _TASK()
  prompt, group = group_prompts(index_B[:, None], GROUP)
  real = jnp.ones_like(prompt, bool)
  sampled = generate(scanned.policy_of(task), params, prompt, real, key, num_tokens=NUM_TOKENS)
  batch = token_batch(prompt, real, sampled, group, task.reward(prompt[:, 0], sampled.tokens_BxT), jax.random.fold_in(key, 1))
  start = {TABLE: task.table_MxTxSxV}
  reference = scoring.score(scanned.policy_of(task), start, batch.tokens_BxN, batch.token_mask_BxN, NUM_TOKENS)
  zero_BxT = jnp.zeros_like(batch.old_logp_BxT)
  return batch.replace(
    ref_logp_BxT=reference.logp_BxT,
    sampler_logp_BxT=batch.old_logp_BxT,
    value_BxT=zero_BxT,
    token_reward_BxT=zero_BxT,
    baseline_reward_B=jnp.zeros_like(batch.reward_B),
    segment_BxT=jnp.broadcast_to(jnp.arange(NUM_TOKENS, dtype=jnp.int32) // 2, zero_BxT.shape),
    planning_BxT=jnp.broadcast_to(jnp.arange(NUM_TOKENS, dtype=jnp.int32) % 2, zero_BxT.shape),
    phase_BxT=jnp.broadcast_to(jnp.minimum(jnp.arange(NUM_TOKENS, dtype=jnp.int32), 2), zero_BxT.shape),
    answer_B=sampled.tokens_BxT[:, 0],
    process_logp_BxT=reference.logp_BxT,
    imitated_B=jnp.arange(len(zero_BxT)) % GROUP == 0,
  )


def _example() -> TokenBatch:
  start = {TABLE: _TASK().table_MxTxSxV}
  return jax.eval_shape(_rollout, start, jax.ShapeDtypeStruct((BATCH,), jnp.int32), jax.random.key(0))


@functools.cache
def stateful() -> dict[str, Transform]:
  """The transforms with a state: those of the catalog, and a scheduled coefficient."""
  batch = _example()
  made = {name: entry.factory(**entry.example) for name, entry in CATALOG.items()}
  found = {name: t for name, t in made.items() if jax.tree.leaves(jax.eval_shape(t.init, batch))}
  falling = transform.scheduled(optax.linear_schedule(0.2, 0.0, 12))
  return found | {SCHEDULED: transform.controlled(regularizers.entropy_bonus(coef=1.0, name=SCHEDULED), falling)}


def _objective(method: str) -> Objective:
  """The objective of a method, with an advantage before it and a surrogate where it has none."""
  known = stateful()
  wanted = list(known.values()) if method == TOGETHER else [known[method]] if method in known else []
  if not any(t.room == Room.SURROGATE for t in wanted):
    wanted.append(surrogates.ppo_clip())
  # An advantage that shapes needs one to shape; before one that makes its own, GRPO's is replaced.
  return chain(*sorted([advantages.grpo(), *wanted], key=lambda t: t.room))


class Program(NamedTuple):
  """What all cells of one method and one splitting of the updates share: compiled once.

  Attributes:
    start: () -> the state before the first step.
    advance: (state, rollouts, key) -> (state, metrics).
    traces: one entry each time that `advance` was traced: one, or a restored state differs in type from the one that was saved.
  """

  start: Callable[[], PyTree]
  advance: Callable[[PyTree, TokenBatch, jax.Array], tuple[PyTree, Metrics]]
  traces: list[str]


def program(cell: Cell) -> Program:
  """The compiled part of a cell."""
  return _program(cell.method, cell.num_epochs, cell.num_slices, cell.num_minibatches)


@functools.cache
def _program(method: str, num_epochs: int, num_slices: int, num_minibatches: int) -> Program:
  objective, traces = _objective(method), list[str]()
  policy = scanned.policy_of(_TASK())
  imitation = chain(advantages.unit(), surrogates.ppo_clip())
  split: dict[str, Any] = {'num_epochs': num_epochs, 'num_slices': num_slices, 'num_minibatches': num_minibatches}
  learn: Any = functools.partial(step.learn, policy=policy, tx=_TX, **split)

  def stored(batch: TokenBatch) -> TokenBatch:  # the rows of a batch: what has one entry a sequence
    return batch.replace(key=None)

  def imitate(state: dict[str, Any], batch: TokenBatch, key: jax.Array) -> tuple[PyTree, Metrics]:
    """Adds the rewarded responses to the buffer and learns from a sample of it, off-policy."""
    now, train = state['step'], state['train']
    buffer = replay.add(state['buffer'], stored(batch), now, batch.reward_B > 0)
    usable_C = replay.usable(buffer, now, max_age=2)
    rows, valid = replay.sample(buffer, key, BATCH * GROUP // 2, usable_C)
    rows = rows.replace(key=key, mask_BxT=rows.mask_BxT & valid[:, None], sequence_B=jnp.arange(valid.shape[0], dtype=jnp.int32))
    after, metrics = learn(train.replace(objective_state=imitation.init(rows)), rows, objective=imitation)
    state = {**state, 'train': after.replace(objective_state=train.objective_state), 'buffer': buffer}
    return state, {'replay/loss': metrics['update/loss'], 'replay/usable': jnp.sum(usable_C)}

  def start() -> dict[str, Any]:
    params = {TABLE: _TASK().table_MxTxSxV}
    state = {'train': states.create(params, _TX, objective, _example()), 'step': jnp.zeros((), jnp.int32)}
    return state | ({'buffer': replay.empty(stored(_example()), 3 * BATCH)} if method == REPLAY else {})

  def advance(state: dict[str, Any], batch: TokenBatch, key: jax.Array) -> tuple[PyTree, Metrics]:
    traces.append(method)
    batch, more = batch.replace(key=key), dict[str, jax.Array]()
    train, metrics = learn(state['train'], batch, objective=objective)
    state = {**state, 'train': train}
    if method == REPLAY:
      state, more = imitate(state, batch, jax.random.fold_in(key, 1))
    return {**state, 'step': state['step'] + 1}, metrics | more | {'rollout/reward': jnp.mean(batch.reward_B)}

  return Program(jax.jit(start), jax.jit(advance, donate_argnums=0), traces)


_sample = jax.jit(_rollout)


@jax.jit
def _evaluate(params: PyTree, key: jax.Array) -> Metrics:
  success_M = _TASK().success(params[TABLE])
  drawn_M = jax.random.uniform(key, success_M.shape) < success_M
  return {'eval/success': jnp.mean(success_M), 'eval/drawn': jnp.mean(drawn_M)}


def _collect(draw: Callable[[int], TokenBatch]) -> tuple[TokenBatch, int]:
  """The rollouts of a step with dynamic sampling: BATCH problems that teach, and how many batches were drawn for them."""
  number = itertools.count()

  def next_batch() -> tuple[TokenBatch, Any, Any]:
    batch = draw(next(number)).replace(key=None)
    return batch, batch.reward_B, batch.group_B

  selected = DynamicSampling(num_prompts=BATCH, max_num_batches=50).collect(next_batch)
  order_B = np.arange(BATCH * GROUP, dtype=np.int32)
  return selected.rows.replace(group_B=selected.group_B, sequence_B=order_B), selected.num_batches


def run(cell: Cell, workdir: Path, trap: Trap | None = None, *, checkpoint_every: int = CHECKPOINT_EVERY) -> PyTree:
  """The command of a cell, to its end or into the trap: begins, or resumes what the workdir holds."""
  shared, data = program(cell), _Data(cell, trap)

  def check(moment: str, now: int) -> None:
    if trap is not None:
      trap.check(moment, now)

  def body(state: PyTree, rows: Mapping[str, np.ndarray], key: jax.Array) -> tuple[PyTree, Metrics]:
    now, params = int(state['step']), state['train'].params
    seen: dict[str, Any] = {'data/numbers': np.float32(np.average(rows['numbers_BxM'], weights=[[1, 2, 3]] * BATCH))}

    def draw(number: int) -> TokenBatch:
      index_B = (data.draw() if number else rows)['index_B']
      batch = _sample(params, index_B, jax.random.fold_in(key, number))
      check('draw', now)
      return batch

    if cell.method == DYNAMIC:
      batch, seen['data/batches'] = _collect(draw)
    else:
      batch = draw(0)
    state, metrics = shared.advance(state, batch.replace(key=None), jax.random.fold_in(key, 1000))
    check('step', now)
    return state, metrics | seen

  def evaluate(state: PyTree, key: jax.Array) -> Metrics:
    check('evaluation', int(state['step']))
    return _evaluate(state['train'].params, key)

  return loop.train(
    workdir=workdir,
    num_steps=NUM_STEPS,
    state=shared.start(),
    body=body,
    data=data,
    key=jax.random.key(1),
    checkpoint_every=checkpoint_every,
    evaluate=evaluate,
    evaluate_every=CHECKPOINT_EVERY,
    best=('eval/drawn', 'max'),
    on_metrics=lambda now, row: check('row', now),
    progress='silent',
    tensorboard=False,
  )


def differences(left: tuple[PyTree, Path], right: tuple[PyTree, Path]) -> list[str]:
  """What differs between two finished runs (state, workdir), bit for bit."""
  found = []
  leaves = [jax.tree_util.tree_leaves_with_path(state) for state, _ in (left, right)]
  for (path, a), (_, b) in zip(*leaves, strict=True):
    if (a.dtype, a.shape, np.asarray(a).tobytes()) != (b.dtype, b.shape, np.asarray(b).tobytes()):
      found.append(f'state{jax.tree_util.keystr(path)}')
  if len({(workdir / 'metrics.jsonl').read_bytes() for _, workdir in (left, right)}) != 1:
    found.append('metrics.jsonl')
  manifests = [workdir / 'checkpoints' / str(NUM_STEPS) / 'manifest.json' for _, workdir in (left, right)]
  hosts = [json.loads(path.read_text(encoding='utf-8'))['content']['host'] for path in manifests]
  return found + [f'checkpoint {name}' for name in hosts[0] if hosts[0][name] != hosts[1].get(name)]


def run_cell(cell: Cell, folder: Path) -> Outcome:
  """Runs a cell undisturbed, with one checkpoint at its end, and interrupted twice, in two directories that are gone afterwards."""
  whole, cut = folder / 'whole', folder / 'cut'

  def clear() -> None:
    for path in (whole, cut):
      shutil.rmtree(path, ignore_errors=True)

  clear()  # what a grid that was itself killed has left
  try:
    expected = run(cell, whole, checkpoint_every=NUM_STEPS), whole
    for trap in cell.traps:
      try:
        run(cell, cut, trap)
      except KilledError:
        continue
      raise AssertionError(f'{cell.title}: nothing was interrupted by {trap}')
    return Outcome(cell, differences((run(cell, cut), cut), expected))
  finally:
    clear()


def cells() -> list[Cell]:
  """The grid: shuffle x epoch boundary x update epochs x accumulation for each method with a state, and with minibatches for all together.

  The replay buffer and dynamic sampling are crossed with the data alone.
  """
  orders = list(itertools.product((True, False), (True, False)))
  splits = list(itertools.product((1, 2), (1, 2)))
  methods = [(name, 1) for name in stateful()] + [(TOGETHER, 2)]
  grid = [Cell(method, *order, *split, minibatches) for method, minibatches in methods for split in splits for order in orders]
  return grid + [Cell(method, *order) for method in (REPLAY, DYNAMIC) for order in orders]


def run_grid(folder: Path, grid: Iterable[Cell] | None = None) -> list[Outcome]:
  """Runs these cells, all by default."""
  return [run_cell(cell, folder) for cell in (cells() if grid is None else grid)]


def grid_table(outcomes: Iterable[Outcome]) -> dict[str, tuple[int, int]]:
  """method -> (cells, cells that are equal)."""
  table: dict[str, tuple[int, int]] = {}
  for cell, found in outcomes:
    number, equal = table.get(cell.method, (0, 0))
    table[cell.method] = number + 1, equal + (not found)
  return table
