"""Numbers that are not finite, put into the reward, the logits or the gradient of a real training loop at random steps.

The task is a table of logits, so small that every state can be looked at: the whole state before and after each step is compared. The
train step, the loop, the dumps and the stop are those of every experiment.
"""

import functools
import json
import random
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_jax import catalog
from entropy_jax.chaos.table import Row
from entropy_jax.data import fork_tokens
from entropy_jax.models.policy import Policy
from entropy_jax.rollout.batch import group_prompts, token_batch
from entropy_jax.rollout.generate import generate
from entropy_jax.training import faults, loop, scanned, step
from entropy_jax.training import state as states
from entropy_jax.training.writers import METRICS, read_rows
from entropy_jax.types import Metrics, Params, PyTree, TokenBatch

PLACES = ('reward', 'logits', 'gradient')
# A row of logits that is -inf everywhere is finite by the definition of ops/categorical.py: no choice is left, all are alike.
VALUES = {'reward': (np.nan, np.inf, -np.inf), 'logits': (np.nan, np.inf), 'gradient': (np.nan, np.inf, -np.inf)}
PROMPTS, GROUP, TOKENS, VOCAB = 4, 4, 6, 8
KEY = 0
_PARTS = {
  'advantages': [{'name': 'grpo'}],
  'surrogates': [{'name': 'ppo_clip'}],
  'regularizers': [{'name': 'adaptive_entropy', 'kwargs': {'target': 1.0, 'initial': 0.01}}],
}


Learn = Callable[..., tuple[states.TrainState, Metrics, PyTree]]
Seen = list[tuple[states.TrainState, bool]]


class Harm(NamedTuple):
  """What is put in at one step.

  Attributes:
    place: one of PLACES, or '' for none.
    value: NaN or an infinity.
    row: of the batch, where the place has rows.
  """

  place: str = ''
  value: float = 0.0
  row: int = 0


class Outcome(NamedTuple):
  """One run with harmed steps.

  Attributes:
    place: where the harm was.
    harmed: steps that were harmed.
    applied: of them, those after which parameters, optimizer or controllers had changed.
    counted: of them, those whose row says that the update was refused, and whose running total is right.
    dumped: of the newest of them, as many as dumps are kept, those whose dump gives back the batch and, replayed, is refused again.
    idle: other steps whose update was not applied or whose row says that it was refused.
  """

  place: str
  harmed: int
  applied: int
  counted: int
  dumped: int
  kept: int
  idle: int


@jax.custom_vjp
def _poisoned(params: Params, value: jax.Array) -> Params:
  """The parameters; what is not finite in `value` comes into their gradient."""
  return params


def _forward(params: Params, value: jax.Array) -> tuple[Params, jax.Array]:
  return params, value


def _backward(value: jax.Array, gradient: Params) -> tuple[Params, jax.Array]:
  return jax.tree.map(lambda g: g + value, gradient), jnp.zeros_like(value)


_poisoned.defvjp(_forward, _backward)


@functools.cache
def _parts() -> tuple[Any, Policy, Any, optax.GradientTransformation]:
  task = fork_tokens.make(jax.random.key(KEY), num_prompts=PROMPTS, vocab_size=VOCAB, num_tokens=TOKENS)
  return task, scanned.policy_of(task), catalog.build(_PARTS), optax.adam(0.1)


def _rollout(params: Params, key: jax.Array) -> TokenBatch:
  task, policy, _, _ = _parts()
  prompt, group = group_prompts(jnp.arange(PROMPTS, dtype=jnp.int32)[:, None], GROUP)
  real = jnp.ones_like(prompt, bool)
  sampled = generate(policy, params, prompt, real, key, num_tokens=TOKENS)
  return token_batch(prompt, real, sampled, group, task.reward(prompt[:, 0], sampled.tokens_BxT), jax.random.fold_in(key, 1))


@jax.jit
def _learn(state: states.TrainState, harm: Mapping[str, jax.Array], key: jax.Array) -> tuple[states.TrainState, Metrics, PyTree]:
  """A rollout and its updates; `harm` holds what is added in each of PLACES, and the row."""
  _, policy, objective, tx = _parts()
  batch = _rollout(state.params, key)
  row_B = jnp.arange(PROMPTS * GROUP) == harm['row']
  batch = batch.replace(reward_B=batch.reward_B + jnp.where(row_B, harm['reward'], 0.0))

  def hidden(params: Params, tokens_BxN: jax.Array, mask_BxN: jax.Array) -> jax.Array:
    found = policy.hidden(_poisoned(params, harm['gradient']), tokens_BxN, mask_BxN)
    return found + jnp.where(row_B, harm['logits'], 0.0)[:, None, None]

  harmed = policy._replace(hidden=hidden)
  state, metrics = step.learn(state, batch, objective=objective, policy=harmed, tx=tx, num_epochs=2)
  return state, metrics, {'tokens': batch.tokens_BxN, 'reward_B': batch.reward_B}


class _Harms:
  """The harm of each step, as the data that the loop draws."""

  def __init__(self, plan: Mapping[int, Harm]):
    self._plan, self._step = plan, 0

  def next(self) -> dict[str, np.ndarray]:
    harm = self._plan.get(self._step, Harm())
    self._step += 1
    found = {place: np.asarray(harm.value if place == harm.place else 0.0, np.float32) for place in PLACES}
    return found | {'row': np.asarray(harm.row, np.int32)}

  def get_state(self) -> int:
    return self._step

  def set_state(self, state: int) -> None:
    self._step = state


def plan(place: str, num_steps: int, number: int, seed: int) -> dict[int, Harm]:
  """`number` harmed steps at random, never three in a row."""
  rng = random.Random(f'{place} {seed}')
  while True:
    steps = sorted(rng.sample(range(num_steps), number))
    if not any(s + 1 in steps and s + 2 in steps for s in steps):
      return {s: Harm(place, rng.choice(VALUES[place]), rng.randrange(PROMPTS * GROUP)) for s in steps}


def _bits(state: states.TrainState) -> list[bytes]:
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((state.params, state.opt_state, state.objective_state))]


def _train(workdir: Path, plan: Mapping[int, Harm], num_steps: int, learn: Learn, seen: Seen) -> None:
  """Trains with the harms; `seen` gets, for each step, the state before it and whether the step changed it."""
  _, policy, objective, tx = _parts()
  root = jax.random.key(KEY)

  def body(state: states.TrainState, harm: Mapping[str, Any], key: jax.Array) -> tuple[states.TrainState, Metrics, PyTree]:
    after, metrics, inputs = learn(state, harm, key)
    seen.append((state, _bits(after) != _bits(state)))
    return after, metrics, inputs

  params = policy.init(root)
  loop.train(
    workdir=workdir,
    num_steps=num_steps,
    state=states.create(params, tx, objective, jax.eval_shape(_rollout, params, root)),
    body=body,
    data=_Harms(plan),
    key=root,
    checkpoint_every=5,
    max_rejected=3,
    description='R12',
    progress='silent',
    tensorboard=False,
  )


def harmed_run(folder: Path, place: str, number: int, *, seed: int = 0, learn: Learn = _learn) -> Outcome:
  """A run with so many harmed steps, and what became of each."""
  shutil.rmtree(folder, ignore_errors=True)
  num_steps = 4 * number
  harms = plan(place, num_steps, number, seed)
  seen: Seen = []
  _train(folder, harms, num_steps, learn, seen)
  rows = {row['step']: row for row in read_rows(folder / METRICS)}
  counted = 0
  for total, at in enumerate(sorted(harms), start=1):
    row = rows.get(at, {})
    counted += row.get(faults.REJECTED) == 1.0 and row.get(faults.TOTAL) == total
  kept = sorted(harms)[-faults.MAX_DUMPS :]
  return Outcome(
    place=place,
    harmed=len(harms),
    applied=sum(seen[at][1] for at in harms),
    counted=counted,
    dumped=sum(_replays(folder, at, harms[at], seen[at][0], learn) for at in kept),
    kept=len(kept),
    idle=sum(not seen[at][1] or rows[at][faults.REJECTED] > 0 for at in range(num_steps) if at not in harms),
  )


def _replays(folder: Path, at: int, harm: Harm, before: states.TrainState, learn: Learn) -> bool:
  """Whether the dump of a step holds its batch, and its update is refused again from the state before it."""
  found, key, batch, inputs = faults.replay(folder / faults.FOLDER / f'step_{at:08d}')
  same = found == at and np.array_equal(batch[harm.place], np.float32(harm.value), equal_nan=True) and int(batch['row']) == harm.row
  _, metrics, again = learn(before, batch, key)
  given = all(np.array_equal(np.asarray(again[name]), inputs[name], equal_nan=name == 'reward_B') for name in again)
  return bool(same and given and float(metrics[faults.REJECTED]) == 1.0)


def stopped_run(folder: Path, *, first: int = 7, learn: Learn = _learn) -> tuple[bool, str]:
  """Three harmed steps in a row: (whether the run stopped as it should, the sentence or what was wrong)."""
  shutil.rmtree(folder, ignore_errors=True)
  harms = {first + i: Harm(place, np.nan, 0) for i, place in enumerate(PLACES)}
  seen: Seen = []
  try:
    _train(folder, harms, 4 * first, learn, seen)
  except loop.NonFiniteError as error:
    sentence = ' '.join(str(error).split())
  else:
    return False, 'the run did not stop'
  last = first + len(PLACES) - 1
  told = all(part in sentence for part in (f'step {last}:', f'of step {first - 1}, are', f'step {first - first % 5} in'))
  applied = any(changed for at, (_, changed) in enumerate(seen) if at in harms)
  dumps = [json.loads(path.read_text())['step'] for path in sorted((folder / faults.FOLDER).glob(f'*/{faults.FAULT}'))]
  # A row is written one step late, so one more step may have begun.
  good = told and not applied and len(seen) <= last + 2 and dumps == sorted(harms)
  return good, sentence if good else f'applied: {applied}, steps made: {len(seen)}, dumps: {dumps}, said: {sentence}'


def rows(outcomes: list[Outcome], stopped: tuple[bool, str], *, id: str = 'R12') -> list[Row]:
  made = [
    Row(
      id,
      f'NaN and infinities in the {o.place} at {o.harmed} random steps',
      'never applied, all counted and dumped for replay, every other update applied',
      f'{o.applied}/{o.harmed} applied, {o.counted}/{o.harmed} counted, {o.dumped}/{o.kept} dumps replayed',
      (o.applied, o.counted, o.dumped, o.idle) == (0, o.harmed, o.kept, 0),
      detail=f'Parameters, optimizer and controllers are compared as bytes over each step; {o.idle} other steps went wrong.',
    )
    for o in outcomes
  ]
  sentence = re.sub(r'(?<=in )/\S*/', '.../', stopped[1])
  made.append(
    Row(
      id,
      'three harmed steps in a row: reward, logits, gradient',
      'the run stops at the third, with step, metric, last finite values and the newest checkpoint in one sentence',
      'stopped' if stopped[0] else 'not as asked',
      stopped[0],
      detail=sentence,
    )
  )
  return made
