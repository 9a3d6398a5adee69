"""A whole study of a tabular task in one compiled scan: rollouts, rewards, updates and exact measures, vectorised over seeds.

Nothing touches the host between the first rollout and the last measure, so a study of hundreds of updates for many seeds takes seconds.
The train step is the same `training.step.learn` that trains a transformer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from entropy_jax.data import tabular_task
from entropy_jax.data.tabular_task import TabularTask
from entropy_jax.measures import dynamics
from entropy_jax.models.policy import Policy
from entropy_jax.models.tabular import TABLE, tabular_policy
from entropy_jax.objective import Objective
from entropy_jax.rollout import score as scoring
from entropy_jax.rollout.batch import group_prompts, token_batch
from entropy_jax.rollout.generate import generate
from entropy_jax.training import state as states
from entropy_jax.training import step
from entropy_jax.types import Metrics, PyTree, TokenBatch

Measure = Callable[[TabularTask, jax.Array], Metrics]


class Sampler(NamedTuple):
  """The policy of the moment, as a `Mixer` may use it.

  Attributes:
    num_prompts: M of the task.
    sample: (prompt_M, key, temperature) -> group_size responses to each of these prompts; group_B numbers the prompts given, from 0.
    score: a batch -> the batch whose behaviour is the policy at temperature 1, whatever it was sampled from.
  """

  num_prompts: int
  sample: Callable[[jax.Array, jax.Array, jax.Array], TokenBatch]
  score: Callable[[TokenBatch], TokenBatch]


class Mixer(NamedTuple):
  """What changes the rows of every rollout before its updates, with a state of its own.

  Attributes:
    init: () -> state.
    mix: (state, the rollout, Sampler) -> (state, the batch that is learned from, metrics); the batch keeps its shape.
  """

  init: Callable[[], PyTree]
  mix: Callable[[PyTree, TokenBatch, Sampler], tuple[PyTree, TokenBatch, Metrics]]


NO_MIXER = Mixer(dict, lambda state, batch, sampler: (state, batch, {}))


def policy_of(task: TabularTask) -> Policy:
  """The table as a policy that starts at the task's initial logits."""
  return tabular_policy(
    task.num_prompts,
    task.num_tokens,
    task.vocab_size,
    num_states=task.num_states,
    transition=task.transition if task.num_states > 1 else None,
    init_fn=lambda key, shape: task.table_MxTxSxV,
  )


def _exact(task: TabularTask, table: jax.Array, measures: tuple[Measure, ...]) -> Metrics:
  exact = {'exact/success': jnp.mean(task.success(table))}
  exact |= {f'exact/entropy_{name}': value for name, value in tabular_task.entropy(task, table).items()}
  for measure in measures:
    exact |= {f'exact/{name}': value for name, value in measure(task, table).items()}
  return exact


def entropy_change(task: TabularTask, before: jax.Array, after: jax.Array) -> Metrics:
  """Measured and first-order predicted change of the mean entropy over the states that the old policy visits, in nats.

  predicted = mean over visited states of -Cov_p(ln p, dz) for the change dz that the updates made: Lemma 1 of Cui et al., arXiv
  2505.22617.
  """
  predicted = dynamics.predicted_entropy_change(before, after - before)
  measured = dynamics.measured_entropy_change(before, after)
  return {
    'exact/entropy_change_predicted': tabular_task.expected(task, before, predicted)['all'],
    'exact/entropy_change_measured': tabular_task.expected(task, before, measured)['all'],
  }


def rollout(
  task: TabularTask,
  policy: Policy,
  params: PyTree,
  key: jax.Array,
  prompt_M: jax.Array,
  *,
  group_size: int,
  temperature: float | jax.Array = 1.0,
) -> TokenBatch:
  """group_size responses to each prompt with their rewards; the policy may be any that takes the task's tokens."""
  prompt_tokens, group = group_prompts(prompt_M[:, None], group_size)
  mask = jnp.ones_like(prompt_tokens, bool)
  sampled = generate(policy, params, prompt_tokens, mask, key, num_tokens=task.num_tokens, temperature=temperature)
  reward_B = task.reward(prompt_tokens[:, 0], sampled.tokens_BxT)
  batch = token_batch(prompt_tokens, mask, sampled, group, reward_B, jax.random.fold_in(key, 1))
  return batch.replace(**task.annotate(sampled.tokens_BxT))


def train(
  make_task: Callable[[jax.Array], TabularTask],
  key: jax.Array,
  *,
  objective: Objective,
  tx: optax.GradientTransformation,
  num_steps: int,
  group_size: int,
  num_epochs: int | jax.Array = 1,
  num_minibatches: int = 1,
  ledger: bool = False,
  mixer: Mixer = NO_MIXER,
  length: int | jax.Array | None = None,
) -> tuple[Metrics, jax.Array]:
  """Trains one seed; what is measured of it exactly is left to `measure`.

  Args:
    make_task: key -> task.
    key: of this seed; the instance, the rollouts and the shuffles derive from it.
    objective, tx: what is trained and how.
    num_steps: rollouts; each step samples group_size responses to every prompt.
    group_size: G.
    num_epochs, num_minibatches: updates per rollout are their product; num_epochs as in `training.step.learn`.
    ledger: whether each update accounts for its entropy change.
    mixer: what changes the rows of every rollout.
    length: rollouts that are made, at most num_steps, maybe an array; what comes after is 0. None for all.

  Returns:
    (name -> [num_steps] of what belongs to a step, the tables before every rollout and after the last, [num_steps + 1, M, T, S, V]).
  """
  task_key, root = jax.random.split(key)
  task = make_task(task_key)
  policy = policy_of(task)
  every_prompt = jnp.arange(task.num_prompts)

  def sample(params: PyTree, key: jax.Array, prompt_M: jax.Array = every_prompt, temperature: float | jax.Array = 1.0) -> TokenBatch:
    return rollout(task, policy, params, key, prompt_M, group_size=group_size, temperature=temperature)

  def score(params: PyTree, batch: TokenBatch) -> TokenBatch:
    scores = scoring.score(policy, params, batch.tokens_BxN, batch.token_mask_BxN, task.num_tokens)
    return batch.replace(old_logp_BxT=scores.logp_BxT, old_entropy_BxT=scores.entropy_BxT)

  Carry = tuple[states.TrainState, PyTree]

  def one(carry: Carry, index: jax.Array) -> tuple[Carry, tuple[jax.Array, Metrics]]:
    state, held = carry
    params, before = state.params, state.params[TABLE]
    batch = sample(params, jax.random.fold_in(root, index))
    reward = jnp.mean(batch.reward_B)
    sampler = Sampler(
      task.num_prompts, lambda prompt_M, key, temperature: sample(params, key, prompt_M, temperature), lambda batch: score(params, batch)
    )
    held, batch, mixed = mixer.mix(held, batch, sampler)
    state, metrics = step.learn(
      state, batch, objective=objective, policy=policy, tx=tx, num_epochs=num_epochs, num_minibatches=num_minibatches, ledger=ledger
    )
    return (state, held), (before, metrics | mixed | {'rollout/reward': reward})

  params = policy.init(root)
  state = states.create(params, tx, objective, jax.eval_shape(sample, params, root))
  start = state, mixer.init()
  one = jax.jit(one)  # traced once, for its shapes and for the loop
  empty = jax.tree.map(lambda x: jnp.zeros((num_steps, *x.shape), x.dtype), jax.eval_shape(one, start, jnp.int32(0))[1])

  def turn(index: jax.Array, carry: Any) -> Any:
    carry, written = carry
    carry, found = one(carry, index.astype(jnp.int32))
    return carry, jax.tree.map(lambda old, new: old.at[index].set(new), written, found)

  # Not a scan, so that runs of different lengths share a program.
  length = num_steps if length is None else length
  (state, _), (tables, per_step) = jax.lax.fori_loop(0, length, turn, (start, empty))
  tables = jnp.concatenate([tables, jnp.zeros_like(tables[:1])])
  return per_step, tables.at[length].set(state.params[TABLE])


def measure(
  make_task: Callable[[jax.Array], TabularTask], key: jax.Array, tables: jax.Array, *, measures: tuple[Measure, ...] = ()
) -> Metrics:
  """The exact measures of every table of one seed.

  Args:
    make_task, key: as in `train`.
    tables: that it returned.
    measures: further exact measures (task, table) -> dict.

  Returns:
    name -> [num_steps + 1] for `exact/success` and `exact/entropy_*` (before every rollout and after the last); name -> [num_steps] for
    the entropy changes.
  """
  task = make_task(jax.random.split(key)[0])
  # One table at a time: compiled once and never all held at once.
  exact = jax.lax.map(lambda table: _exact(task, table, measures), tables)
  return exact | jax.lax.map(lambda pair: entropy_change(task, *pair), (tables[:-1], tables[1:]))


def run(
  make_task: Callable[[jax.Array], TabularTask], key: jax.Array, *, measures: tuple[Measure, ...] = (), **how: Any
) -> Metrics:
  """Trains one seed and returns its curves: `train` with these settings, and `measure`."""
  per_step, tables = train(make_task, key, **how)
  return per_step | measure(make_task, key, tables, measures=measures)
