"""Bodies of the training loop for a policy that writes text: supervised warm start, reinforcement learning, evaluation.

A reinforcement step is generate (compiled) -> verify (on the host, because a verifier reads text) -> all updates of the rollout (compiled):
the one place where a step waits for the device. A supervised step is the same `training.step.learn` with the imitation objective.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_jax.measures.diversity import pass_at_k
from entropy_jax.models.policy import Policy
from entropy_jax.objective import Objective
from entropy_jax.ops import masked
from entropy_jax.rollout import score as scoring
from entropy_jax.rollout.batch import group_prompts, token_batch
from entropy_jax.rollout.generate import Rollout, generate
from entropy_jax.training import step
from entropy_jax.training.state import TrainState, create
from entropy_jax.types import Metrics, Params, TokenBatch

Rows = Mapping[str, np.ndarray]
Verify = Callable[[Sequence[str], Rows], tuple[np.ndarray, Mapping[str, int]]]  # (answers, rows) -> (reward_B, counts by verdict)
Body = Callable[[TrainState, Rows, jax.Array], tuple[TrainState, Metrics]]


def example_batch(num_sequences: int, prompt_length: int, response_length: int) -> TokenBatch:
  """An empty batch of these shapes, from which an objective makes its state."""
  shape = (num_sequences, response_length)
  float_BxT, bool_BxT = jnp.zeros(shape, jnp.float32), jnp.zeros(shape, bool)
  rows_B = jnp.zeros(num_sequences, jnp.int32)
  sampled = Rollout(jnp.zeros(shape, jnp.int32), bool_BxT, float_BxT, float_BxT, float_BxT, float_BxT, jnp.zeros(num_sequences, bool))
  prompt = jnp.zeros((num_sequences, prompt_length), jnp.int32)
  return token_batch(prompt, prompt > 0, sampled, rows_B, jnp.zeros(num_sequences, jnp.float32), jax.random.key(0))


def initial_state(policy: Policy, params: Params | None, key: jax.Array, tx: Any, objective: Objective, batch: TokenBatch) -> TrainState:
  """A fresh state: initialised parameters, or the given ones (a warm start)."""
  return create(jax.jit(policy.init)(key) if params is None else params, tx, objective, batch)


def supervised_body(policy: Policy, objective: Objective, tx: optax.GradientTransformation) -> Body:
  """Imitation of the responses in the rows: maximises their log-prob under chain(advantages.unit(), surrogates.reinforce())."""

  @functools.partial(jax.jit, donate_argnums=0)
  def learn(state: TrainState, rows: Mapping[str, jax.Array], key: jax.Array) -> tuple[TrainState, Metrics]:
    response, mask_BxT = rows['response_tokens_BxT'], rows['response_mask_BxT']
    zero_BxT, (num_sequences, _) = jnp.zeros(response.shape, jnp.float32), response.shape
    given = Rollout(response, mask_BxT, zero_BxT, zero_BxT, zero_BxT, zero_BxT, jnp.ones(num_sequences, bool))
    reward_B = jnp.ones(num_sequences, jnp.float32)
    prompt = (rows['prompt_tokens_BxP'], rows['prompt_mask_BxP'])
    batch = token_batch(*prompt, given, jnp.arange(num_sequences, dtype=jnp.int32), reward_B, key)
    state, metrics = step.learn(state, batch, objective=objective, policy=policy, tx=tx)
    # The responses were not sampled from the policy, so distances from a behaviour policy and covariances mean nothing here.
    return state, {k: v for k, v in metrics.items() if k in ('update/loss', 'update/gradient_norm', 'policy/entropy')}

  def body(state: TrainState, rows: Rows, key: jax.Array) -> tuple[TrainState, Metrics]:
    return learn(state, _tokens(rows), key)

  return body


def reinforcement_body(
  policy: Policy,
  objective: Objective,
  tx: optax.GradientTransformation,
  *,
  verify: Verify,
  decode: Callable[[np.ndarray], Sequence[str]],
  group_size: int,
  num_tokens: int,
  eos_id: int,
  temperature: float = 1.0,
  num_epochs: int = 1,
  num_minibatches: int = 1,
  num_slices: int = 1,
) -> Body:
  """One rollout and its updates.

  Args:
    policy, objective, tx: what is trained and how.
    verify: (answers, rows of their problems) -> rewards and how many answers fell under each verdict.
    decode: tokens_BxT -> texts.
    group_size: responses per prompt.
    num_tokens: longest response, T.
    eos_id: end of sequence.
    temperature: of sampling, and of the log-probs and entropies that the objective sees.
    num_epochs, num_minibatches, num_slices: as in `training.step.learn`.

  Returns:
    A body whose metrics hold, beside the objective's, `rollout/*` (success, entropy at the sampling temperature and at 1, length, verdicts)
    and `policy/entropy_change`, the entropy after the updates minus before, on the same tokens.
  """

  @jax.jit
  def sample(params: Params, rows: Mapping[str, jax.Array], key: jax.Array) -> Rollout:
    prompt, _ = group_prompts(rows['prompt_tokens_BxP'], group_size)
    mask, _ = group_prompts(rows['prompt_mask_BxP'], group_size)
    return generate(policy, params, prompt, mask, key, num_tokens=num_tokens, temperature=temperature, eos_id=eos_id)

  @functools.partial(jax.jit, donate_argnums=0)
  def learn(state: TrainState, rows: Mapping[str, jax.Array], sampled: Rollout, reward_B: jax.Array, key: jax.Array) -> Any:
    prompt, group_B = group_prompts(rows['prompt_tokens_BxP'], group_size)
    mask, _ = group_prompts(rows['prompt_mask_BxP'], group_size)
    batch = token_batch(prompt, mask, sampled, group_B, reward_B, key)
    split = {'num_epochs': num_epochs, 'num_minibatches': num_minibatches, 'num_slices': num_slices}
    state, metrics = step.learn(state, batch, objective=objective, policy=policy, tx=tx, temperature=temperature, **split)
    after = scoring.score(policy, state.params, batch.tokens_BxN, batch.token_mask_BxN, num_tokens, temperature=temperature)
    mask_BxT = sampled.mask_BxT
    return state, metrics | {
      'policy/entropy_change': masked.mean(after.entropy_BxT - sampled.entropy_BxT, mask_BxT),
      'rollout/success': jnp.mean(reward_B),
      'rollout/entropy': masked.mean(sampled.entropy_BxT, mask_BxT),
      'rollout/entropy_at_temperature_1': masked.mean(sampled.entropy1_BxT, mask_BxT),
      'rollout/response_length': jnp.mean(masked.count(mask_BxT, axis=1)),
      'rollout/truncated_fraction': jnp.mean((~sampled.finished_B).astype(jnp.float32)),
    }

  def body(state: TrainState, rows: Rows, key: jax.Array) -> tuple[TrainState, Metrics]:
    sample_key, learn_key = jax.random.split(key)
    tokens = _tokens(rows)
    sampled = sample(state.params, tokens, sample_key)
    problems = {name: np.repeat(x, group_size, axis=0) for name, x in rows.items()}
    reward_B, verdicts = verify(decode(jax.device_get(sampled.tokens_BxT)), problems)
    state, metrics = learn(state, tokens, sampled, jax.device_put(reward_B), learn_key)
    total = max(len(reward_B), 1)
    return state, metrics | {f'verdict/{name}': np.float32(count / total) for name, count in verdicts.items()}

  return body


def _tokens(rows: Rows) -> dict[str, jax.Array]:
  return {name: jax.device_put(x) for name, x in rows.items() if '_tokens_' in name or '_mask_' in name}


def evaluator(
  policy: Policy,
  batches: Sequence[Rows],
  *,
  verify: Verify,
  decode: Callable[[np.ndarray], Sequence[str]],
  num_samples: int,
  num_tokens: int,
  eos_id: int,
  key: jax.Array,
) -> Callable[[Params], dict[str, float]]:
  """Evaluation at temperature 1 on fixed problems with a fixed key: success, unbiased pass@k for k in powers of 2, entropy, length.

  Args:
    policy: what is evaluated.
    batches: rows with `valid_B`, False where a row only fills up the batch.
    verify, decode, num_tokens, eos_id: as in `reinforcement_body`.
    num_samples: n responses per problem.
    key: the same at every call, so that two evaluations differ by the policy alone.
  """

  @jax.jit
  def sample(params: Params, prompt: jax.Array, mask: jax.Array, key: jax.Array) -> Rollout:
    return generate(policy, params, prompt, mask, key, num_tokens=num_tokens, eos_id=eos_id)

  def evaluate(params: Params) -> dict[str, float]:
    entropy, tokens, correct, shown = 0.0, 0, [], 0
    for number, rows in enumerate(batches):
      valid_B = np.repeat(rows['valid_B'], num_samples)
      repeated = {name: np.repeat(x, num_samples, axis=0) for name, x in rows.items()}
      prompt = (jax.device_put(repeated['prompt_tokens_BxP']), jax.device_put(repeated['prompt_mask_BxP']))
      sampled = jax.device_get(sample(params, *prompt, jax.random.fold_in(key, number)))
      reward_B, _ = verify(decode(sampled.tokens_BxT), repeated)
      counted = sampled.mask_BxT & valid_B[:, None]
      entropy += float(sampled.entropy_BxT.sum(where=counted))
      tokens += int(counted.sum())
      shown += int(valid_B.sum())
      correct.append(reward_B.reshape(-1, num_samples).sum(axis=1)[rows['valid_B']])
    num_correct = np.concatenate(correct).astype(int)
    found = {'success': float(num_correct.mean() / num_samples), 'entropy': entropy / tokens, 'response_length': tokens / shown}
    curve_K = pass_at_k(num_correct, num_samples).mean(axis=0)
    return found | {f'pass_at_{2**i}': float(curve_K[2**i - 1]) for i in range(1, num_samples.bit_length())}

  return evaluate
