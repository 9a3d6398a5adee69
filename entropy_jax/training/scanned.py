"""A whole study of a tabular task in one compiled scan: rollouts, rewards, updates and exact measures, vectorised over seeds.

Nothing touches the host between the first rollout and the last measure, so a study of hundreds of updates for many seeds takes seconds.
The train step is the same `training.step.learn` that trains a transformer.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from entropy_jax.data import tabular_task
from entropy_jax.data.tabular_task import TabularTask
from entropy_jax.measures import dynamics
from entropy_jax.models.policy import Policy
from entropy_jax.models.tabular import TABLE, tabular_policy
from entropy_jax.objective import Objective
from entropy_jax.rollout.batch import group_prompts, token_batch
from entropy_jax.rollout.generate import generate
from entropy_jax.training import state as states
from entropy_jax.training import step
from entropy_jax.types import Metrics, PyTree

Measure = Callable[[TabularTask, jax.Array], Metrics]


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


def run(
  make_task: Callable[[jax.Array], TabularTask],
  key: jax.Array,
  *,
  objective: Objective,
  tx: optax.GradientTransformation,
  num_steps: int,
  group_size: int,
  num_epochs: int = 1,
  num_minibatches: int = 1,
  ledger: bool = False,
  measures: tuple[Measure, ...] = (),
) -> Metrics:
  """Trains one seed and returns its curves.

  Args:
    make_task: key -> task.
    key: of this seed; the instance, the rollouts and the shuffles derive from it.
    objective, tx: what is trained and how.
    num_steps: rollouts; each step samples group_size responses to every prompt.
    group_size: G.
    num_epochs, num_minibatches: updates per rollout are their product.
    ledger: whether each update accounts for its entropy change.
    measures: further exact measures (task, table) -> dict.

  Returns:
    name -> [num_steps + 1] for `exact/success` and `exact/entropy_*` (before every rollout and after the last); name -> [num_steps] for
    everything that belongs to a step.
  """
  task_key, root = jax.random.split(key)
  task = make_task(task_key)
  policy = policy_of(task)
  prompt_tokens, group = group_prompts(jnp.arange(task.num_prompts)[:, None], group_size)

  def rollout(params: PyTree, key: jax.Array) -> PyTree:
    sampled = generate(policy, params, prompt_tokens, jnp.ones_like(prompt_tokens, bool), key, num_tokens=task.num_tokens)
    reward_B = task.reward(prompt_tokens[:, 0], sampled.tokens_BxT)
    return token_batch(prompt_tokens, jnp.ones_like(prompt_tokens, bool), sampled, group, reward_B, jax.random.fold_in(key, 1))

  def one(state: states.TrainState, index: jax.Array) -> tuple[states.TrainState, tuple[jax.Array, Metrics]]:
    before = state.params[TABLE]
    batch = rollout(state.params, jax.random.fold_in(root, index))
    state, metrics = step.learn(
      state, batch, objective=objective, policy=policy, tx=tx, num_epochs=num_epochs, num_minibatches=num_minibatches, ledger=ledger
    )
    return state, (before, metrics | {'rollout/reward': jnp.mean(batch.reward_B)})

  params = policy.init(root)
  state = states.create(params, tx, objective, jax.eval_shape(rollout, params, root))
  state, (tables, per_step) = jax.lax.scan(one, state, jnp.arange(num_steps))
  # The exact measures follow the scan, one table at a time: compiled once and, unlike the tables, never all held at once.
  tables = jnp.concatenate([tables, state.params[TABLE][None]])
  exact = jax.lax.map(lambda table: _exact(task, table, measures), tables)
  change = jax.lax.map(lambda pair: entropy_change(task, *pair), (tables[:-1], tables[1:]))
  return per_step | change | exact
