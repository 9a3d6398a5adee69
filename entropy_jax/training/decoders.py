"""A small decoder on a tabular task: imitation of the task's table, then rollouts, rewards, updates and measures, all in one program.

The task is that of `training.scanned`, whose policy is a table; here its rows share the parameters of a transformer, as those of a language
model do, so that there is attention to look at. Entropies and success are those of the sampled responses.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from entropy_jax.data.tabular_task import TabularTask
from entropy_jax.measures import dynamics
from entropy_jax.models.policy import AttentionLogits, Cache, Policy
from entropy_jax.models.transformer import DecoderConfig, transformer_policy
from entropy_jax.objective import Objective
from entropy_jax.ops import categorical, masked
from entropy_jax.training import scanned, step
from entropy_jax.training import state as states
from entropy_jax.training.state import TrainState
from entropy_jax.types import Metrics, Params, PyTree, TokenBatch, UserError


def vocab_size(num_prompts: int, num_answer_tokens: int) -> int:
  """Of the decoder of a task: the tokens of answers, and after them one for each prompt."""
  return num_answer_tokens + num_prompts


def decoder_policy(config: DecoderConfig, num_answer_tokens: int) -> Policy:
  """A decoder as the policy of a tabular task: prompts are one token, the prompt's number, and responses hold answer tokens alone.

  Args:
    config: of the decoder; its vocabulary holds the answer tokens and then the prompts, see `vocab_size`.
    num_answer_tokens: V of the task; the head gives so many logits.
  """
  if config.vocab_size <= num_answer_tokens:
    raise UserError(f'vocab_size is {config.vocab_size}: {num_answer_tokens} answer tokens leave no token for a prompt; give more.')
  inner = transformer_policy(config)
  read = inner.attention
  assert read is not None

  def shifted(tokens_BxN: jax.Array) -> jax.Array:
    return tokens_BxN.at[:, 0].add(num_answer_tokens)

  def answers(found: tuple[Cache, jax.Array]) -> tuple[Cache, jax.Array]:
    cache, logits_BxV = found
    return cache, logits_BxV[:, :num_answer_tokens]

  def attention(params: Params, tokens_BxN: jax.Array, mask_BxN: jax.Array) -> AttentionLogits:
    return read(params, shifted(tokens_BxN), mask_BxN)

  return Policy(  # `unembedding` is left out: the head gives a part of the vocabulary
    init=inner.init,
    hidden=lambda params, tokens_BxN, mask_BxN: inner.hidden(params, shifted(tokens_BxN), mask_BxN),
    head=lambda params, hidden_xD: inner.head(params, hidden_xD)[..., :num_answer_tokens],
    start=lambda params, tokens_BxP, mask_BxP, num_tokens: answers(inner.start(params, shifted(tokens_BxP), mask_BxP, num_tokens)),
    step=lambda params, cache, token_B: answers(inner.step(params, cache, token_B)),
    advance=inner.advance,
    attention=attention,
    take=inner.take,
  )


def entropy_change(policy: Policy, before: Params, after: Params, batch: TokenBatch) -> Metrics:
  """Measured and first-order predicted change of the entropy, mean over the tokens of the batch, in nats.

  predicted = -Cov_p(ln p, dz) for the change dz that the update made to the logits: Lemma 1 of Cui et al., arXiv 2505.22617.
  """
  num_before = batch.tokens_BxN.shape[1] - batch.mask_BxT.shape[1]
  logits = lambda params: policy.logits(params, batch.tokens_BxN[:, :-1], batch.token_mask_BxN[:, :-1])[:, num_before - 1 :]
  old, new = logits(before), logits(after)
  return {
    'policy/entropy_change_predicted': masked.mean(dynamics.predicted_entropy_change(old, new - old), batch.mask_BxT),
    'policy/entropy_change': masked.mean(dynamics.measured_entropy_change(old, new), batch.mask_BxT),
  }


def imitation_loss(task: TabularTask, policy: Policy, params: Params, key: jax.Array, num_sequences: int) -> jax.Array:
  """Mean KL(table || policy) over the tokens of responses that are drawn evenly, to prompts drawn evenly; nats."""
  of_prompt, of_tokens = jax.random.split(key)
  prompt_B = jax.random.randint(of_prompt, (num_sequences,), 0, task.num_prompts)
  tokens_BxT = jax.random.randint(of_tokens, (num_sequences, task.num_tokens), 0, task.vocab_size)
  states = [jnp.zeros(num_sequences, jnp.int32)]
  for t in range(task.num_tokens - 1):
    states.append(task.transition(states[-1], tokens_BxT[:, t]))
  table_BxTxV = task.table_MxTxSxV[prompt_B[:, None], jnp.arange(task.num_tokens)[None], jnp.stack(states, axis=1)]
  read_BxT = jnp.concatenate([prompt_B[:, None], tokens_BxT[:, :-1]], axis=1)
  logits_BxTxV = policy.logits(params, read_BxT, jnp.ones(read_BxT.shape, bool))
  return jnp.mean(categorical.kl_divergence(table_BxTxV, logits_BxTxV))


def imitate(
  task: TabularTask, policy: Policy, params: Params, key: jax.Array, *, tx: optax.GradientTransformation, num_steps: int, num_sequences: int
) -> tuple[Params, jax.Array]:
  """(the decoder after num_steps updates towards the task's table, the loss of each), so that every decoder starts as one policy."""

  def one(carry: tuple[Params, PyTree], index: jax.Array) -> tuple[tuple[Params, PyTree], jax.Array]:
    params, opt_state = carry
    loss = lambda params: imitation_loss(task, policy, params, jax.random.fold_in(key, index), num_sequences)
    value, gradient = jax.value_and_grad(loss)(params)
    changes, opt_state = tx.update(gradient, opt_state, params)
    return (policy.advance(optax.apply_updates(params, changes)), opt_state), value

  (params, _), loss_N = jax.lax.scan(one, (params, tx.init(params)), jnp.arange(num_steps))
  return params, loss_N


def train(
  make_task: Callable[[jax.Array], TabularTask],
  make_policy: Callable[[TabularTask], Policy],
  key: jax.Array,
  *,
  objective: Objective,
  tx: optax.GradientTransformation,
  num_steps: int,
  group_size: int,
  warm_start: Callable[[TabularTask, Policy, Params, jax.Array], tuple[Params, jax.Array]] | None = None,
) -> Metrics:
  """Trains one seed on-policy: one update on every rollout, which has group_size responses to every prompt.

  Args:
    make_task: key -> task.
    make_policy: task -> policy.
    key: of this seed; instance, initial parameters and rollouts derive from it.
    objective, tx: what is trained and how.
    num_steps: rollouts.
    group_size: G.
    warm_start: (task, policy, params, key) -> (params to start from, its losses), as `imitate`; None for random ones.

  Returns:
    name -> [num_steps]: what `step.learn` says with attention=True, `rollout/reward`, and what `entropy_change` says; with a warm start
    `warm_start/loss`, its losses.
  """
  task_key, root = jax.random.split(key)
  task = make_task(task_key)
  policy = make_policy(task)
  every_prompt = jnp.arange(task.num_prompts)

  def sample(params: Params, key: jax.Array) -> TokenBatch:
    return scanned.rollout(task, policy, params, key, every_prompt, group_size=group_size)

  def one(state: TrainState, index: jax.Array) -> tuple[TrainState, Metrics]:
    before = state.params
    batch = sample(before, jax.random.fold_in(root, index))
    state, metrics = step.learn(state, batch, objective=objective, policy=policy, tx=tx, attention=True)
    return state, metrics | entropy_change(policy, before, state.params, batch) | {'rollout/reward': jnp.mean(batch.reward_B)}

  params, losses = policy.init(root), {}
  if warm_start is not None:
    params, losses['warm_start/loss'] = warm_start(task, policy, params, jax.random.fold_in(root, num_steps))
  state = states.create(params, tx, objective, jax.eval_shape(sample, params, root))
  return jax.lax.scan(one, state, jnp.arange(num_steps))[1] | losses
