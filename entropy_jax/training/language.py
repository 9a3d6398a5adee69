"""Bodies of the training loop for a policy that writes text: supervised warm start, reinforcement learning, evaluation.

A reinforcement step is generate (compiled) -> verify (on the host, because a verifier reads text; the one place where a step has to wait
for the device) -> all updates of the rollout (compiled) -> score what was sampled with the new policy (compiled). A supervised step is the
same `training.step.learn` with the imitation objective.
"""

import contextlib
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
from entropy_jax.parallel import ROWS, STATE, WHOLE, Parallel, processes
from entropy_jax.parallel.split import Split
from entropy_jax.rollout import score as scoring
from entropy_jax.rollout.batch import token_batch
from entropy_jax.rollout.generate import Rollout, generate
from entropy_jax.training import attention as attentions
from entropy_jax.training import step
from entropy_jax.training.progress import Clock
from entropy_jax.training.state import TrainState, create
from entropy_jax.types import Metrics, Params, PyTree, TokenBatch

Rows = Mapping[str, np.ndarray]
Verify = Callable[[Sequence[str], Rows], tuple[np.ndarray, Mapping[str, int]]]  # (answers, rows) -> (reward_B, counts by verdict)
Body = Callable[[TrainState, Rows, jax.Array], tuple[Any, ...]]  # a body of training.loop


def example_batch(num_sequences: int, prompt_length: int, response_length: int) -> TokenBatch:
  """An empty batch of these shapes, from which an objective makes its state."""
  shape = (num_sequences, response_length)
  float_BxT, bool_BxT = jnp.zeros(shape, jnp.float32), jnp.zeros(shape, bool)
  rows_B = jnp.zeros(num_sequences, jnp.int32)
  sampled = Rollout(jnp.zeros(shape, jnp.int32), bool_BxT, float_BxT, float_BxT, float_BxT, float_BxT, jnp.zeros(num_sequences, bool))
  prompt = jnp.zeros((num_sequences, prompt_length), jnp.int32)
  return token_batch(prompt, prompt > 0, sampled, rows_B, jnp.zeros(num_sequences, jnp.float32), jax.random.key(0))


def initial_state(
  parallel: Parallel, policy: Policy, params: Params | None, key: jax.Array, tx: Any, objective: Objective, batch: TokenBatch
) -> TrainState:
  """A fresh state: initialised parameters, or the given ones (a warm start), made where the parallel mode keeps them."""
  if params is None:
    return parallel.build(lambda key: create(policy.init(key), tx, objective, batch), key)
  return parallel.build(lambda params: create(params, tx, objective, batch), params)


def supervised_body(
  parallel: Parallel, policy: Policy, objective: Objective, tx: optax.GradientTransformation, *, num_slices: int = 1
) -> Body:
  """Imitation of the responses in the rows: maximises their log-prob under chain(advantages.unit(), surrogates.reinforce())."""

  def learn(split: Split, state: TrainState, rows: Mapping[str, jax.Array], key: jax.Array) -> tuple[TrainState, Metrics]:
    response, mask_BxT = rows['response_tokens_BxT'], rows['response_mask_BxT']
    zero_BxT, (num_sequences, _) = jnp.zeros(response.shape, jnp.float32), response.shape
    given = Rollout(response, mask_BxT, zero_BxT, zero_BxT, zero_BxT, zero_BxT, jnp.ones(num_sequences, bool))
    reward_B = jnp.ones(num_sequences, jnp.float32)
    prompt = (rows['prompt_tokens_BxP'], rows['prompt_mask_BxP'])
    batch = token_batch(*prompt, given, split.rows(num_sequences), reward_B, key)
    state, metrics = step.learn(state, batch, objective=objective, policy=policy, tx=tx, num_slices=num_slices, split=split)
    # The responses were not sampled from the policy, so distances from a behaviour policy and covariances mean nothing here.
    kept = {k: v for k, v in metrics.items() if k.startswith('update/') or k == 'policy/entropy'}
    return state, kept | _token_counts(split, prompt[1], scored=mask_BxT)

  compiled = parallel.compile(learn, takes=(STATE, ROWS, WHOLE), gives=(STATE, WHOLE), donate=(0,))

  def body(state: TrainState, rows: Rows, key: jax.Array) -> tuple[TrainState, Metrics]:
    return compiled(state, parallel.rows(_tokens(rows)), key)

  return body


def reinforcement_body(
  parallel: Parallel,
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
  ledger: bool = False,
  attention: bool = False,
  clock: Clock | None = None,
) -> Body:
  """One rollout and its updates.

  Args:
    parallel: on which devices, and how.
    policy, objective, tx: what is trained and how.
    verify: (answers, rows of their problems) -> rewards and how many answers fell under each verdict.
    decode: tokens_BxT -> texts.
    group_size: responses per prompt.
    num_tokens: longest response, T.
    eos_id: end of sequence.
    temperature: of sampling, and of the log-probs and entropies that the objective sees.
    num_epochs, num_minibatches, num_slices, ledger, attention: as in `training.step.learn`.
    clock: gets the seconds of generate, verify, update and score; the body then waits for the device after each.

  Returns:
    A body whose metrics hold, beside the objective's, `rollout/*` (success, entropy at the sampling temperature and at 1, length, verdicts)
    and `policy/entropy_change`, the entropy after the updates minus before, on the same tokens; it gives the sampled tokens and their
    rewards as what a refused update is dumped with.
  """
  if attention:
    attentions.check(policy)
  measure = (lambda name: contextlib.nullcontext()) if clock is None else clock.measure
  wait = (lambda tree: None) if clock is None else jax.block_until_ready
  # Token-level passes of an update; an accumulated one scores its batch before it differentiates it.
  num_passes = num_epochs * (1 if num_slices == 1 else 2)
  behaviour = tuple(s for s in objective.stats if s.of == 'behaviour')

  def sample(split: Split, params: Params, prompt: Mapping[str, jax.Array], key: jax.Array) -> tuple[Rollout]:
    tokens, mask = prompt['prompt_tokens_BxP'], prompt['prompt_mask_BxP']
    row = split.rows(len(tokens))
    drawn = generate(
      policy, params, tokens, mask, key, num_tokens=num_tokens, temperature=temperature, eos_id=eos_id, sequence_B=row, stats=behaviour
    )
    return (drawn,)

  def batch_of(split: Split, prompt: Mapping[str, jax.Array], sampled: Rollout, reward_B: jax.Array, key: jax.Array) -> TokenBatch:
    group_B = split.rows(len(reward_B)) // group_size  # the rows of a prompt stand in succession
    return token_batch(prompt['prompt_tokens_BxP'], prompt['prompt_mask_BxP'], sampled, group_B, reward_B, key)

  def learn(split: Split, state: TrainState, *parts: Any) -> tuple[TrainState, Metrics]:
    times: dict[str, Any] = {'num_epochs': num_epochs, 'num_minibatches': num_minibatches, 'num_slices': num_slices}
    times |= {'ledger': ledger, 'attention': attention}
    batch = batch_of(split, *parts)
    return step.learn(state, batch, objective=objective, policy=policy, tx=tx, temperature=temperature, split=split, **times)

  def measures(split: Split, params: Params, *parts: Any) -> tuple[Metrics]:
    batch = batch_of(split, *parts)
    sampled, reward_B = parts[1], parts[2]
    after = scoring.score(policy, params, batch.tokens_BxN, batch.token_mask_BxN, num_tokens, temperature=temperature)
    counts = _token_counts(split, batch.token_mask_BxN[:, :-num_tokens], scored=batch.mask_BxT, generated=batch.mask_BxT)
    counts['tokens/scored'] *= num_passes + 1
    sampled, reward_B, entropy_BxT = split.gather((sampled, reward_B, after.entropy_BxT))
    mask_BxT = sampled.mask_BxT
    return (
      {
        'policy/entropy_change': masked.mean(entropy_BxT - sampled.entropy_BxT, mask_BxT),
        'rollout/success': jnp.mean(reward_B),
        'rollout/entropy': masked.mean(sampled.entropy_BxT, mask_BxT),
        'rollout/entropy_at_temperature_1': masked.mean(sampled.entropy1_BxT, mask_BxT),
        'rollout/response_length': jnp.mean(masked.count(mask_BxT, axis=1)),
        'rollout/truncated_fraction': jnp.mean((~sampled.finished_B).astype(jnp.float32)),
      }
      | counts,
    )

  parts = (ROWS, ROWS, ROWS, WHOLE)
  compiled_sample = parallel.compile(sample, takes=(STATE, ROWS, WHOLE), gives=(ROWS,))
  compiled_learn = parallel.compile(learn, takes=(STATE, *parts), gives=(STATE, WHOLE), donate=(0,))
  compiled_measures = parallel.compile(measures, takes=(STATE, *parts), gives=(WHOLE,))

  def body(state: TrainState, rows: Rows, key: jax.Array) -> tuple[TrainState, Metrics, PyTree]:
    sample_key, learn_key = jax.random.split(key)
    problems = {name: np.repeat(x, group_size, axis=0) for name, x in rows.items()}
    with measure('generate'):
      prompt = parallel.rows(_tokens(problems))
      (sampled,) = compiled_sample(state.params, prompt, sample_key)
      tokens_BxT = parallel.local(sampled.tokens_BxT)
    with measure('verify'):
      reward_B, verdicts = verify(decode(tokens_BxT), problems)
      reward = parallel.rows(reward_B)
      counts = processes.gather_sum(dict(verdicts) | {'all': len(reward_B)})
    with measure('update'):
      state, metrics = compiled_learn(state, prompt, sampled, reward, learn_key)
      wait(metrics)
    with measure('score'):
      (more,) = compiled_measures(state.params, prompt, sampled, reward, learn_key)
      wait(more)
    shares = {f'verdict/{name}': np.float32(counts[name] / max(counts['all'], 1)) for name in verdicts}
    return state, metrics | more | shares, {'prompt': prompt, 'sampled': sampled, 'reward_B': reward}

  return body


def _tokens(rows: Rows) -> dict[str, np.ndarray]:
  return {name: x for name, x in rows.items() if '_tokens_' in name or '_mask_' in name}


def _token_counts(split: Split, prompt_mask_BxP: jax.Array, **masks_BxT: jax.Array) -> Metrics:
  """Tokens of each kind in the whole batch, as `tokens/KIND`, and its sequences."""
  kinds = {'prompt': prompt_mask_BxP} | masks_BxT
  counts = {f'tokens/{kind}': masked.count(mask) for kind, mask in kinds.items()}
  return split.total(counts | {'rollout/num_sequences': jnp.float32(len(prompt_mask_BxP))})


def evaluator(
  parallel: Parallel,
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
    parallel: on which devices, and how.
    policy: what is evaluated.
    batches: this process's rows, with `valid_B`, False where a row only fills up the batch.
    verify, decode, num_tokens, eos_id: as in `reinforcement_body`.
    num_samples: n responses per problem.
    key: the same at every call, so that two evaluations differ by the policy alone.
  """

  def sample(split: Split, params: Params, prompt: Mapping[str, jax.Array], key: jax.Array) -> tuple[Rollout]:
    tokens, mask = prompt['prompt_tokens_BxP'], prompt['prompt_mask_BxP']
    return (generate(policy, params, tokens, mask, key, num_tokens=num_tokens, eos_id=eos_id, sequence_B=split.rows(len(tokens))),)

  compiled = parallel.compile(sample, takes=(STATE, ROWS, WHOLE), gives=(ROWS,))

  def evaluate(params: Params) -> dict[str, float]:
    entropy, tokens, correct, shown = 0.0, 0, [], 0
    for number, rows in enumerate(batches):
      valid_B = np.repeat(rows['valid_B'], num_samples)
      repeated = {name: np.repeat(x, num_samples, axis=0) for name, x in rows.items()}
      (drawn,) = compiled(params, parallel.rows(_tokens(repeated)), jax.random.fold_in(key, number))
      sampled = parallel.local(drawn)
      reward_B, _ = verify(decode(sampled.tokens_BxT), repeated)
      counted = sampled.mask_BxT & valid_B[:, None]
      entropy += float(sampled.entropy_BxT.sum(where=counted))
      tokens += int(counted.sum())
      shown += int(valid_B.sum())
      correct.append(reward_B.reshape(-1, num_samples).sum(axis=1)[rows['valid_B']])
    # Every process has its own problems; pass@k is a mean over problems, and so is every figure here a sum over a sum.
    num_correct = np.concatenate(correct).astype(int)
    curve_K = pass_at_k(num_correct, num_samples).sum(axis=0)
    powers = {f'pass_at_{2**i}': float(curve_K[2**i - 1]) for i in range(1, num_samples.bit_length())}
    sums = powers | {'success': float(num_correct.sum()), 'entropy': entropy, 'tokens': tokens, 'shown': shown}
    sums = processes.gather_sum(sums | {'problems': len(num_correct)})
    found = {'success': sums['success'] / num_samples / sums['problems'], 'entropy': sums['entropy'] / sums['tokens']}
    found['response_length'] = sums['tokens'] / sums['shown']
    return found | {name: sums[name] / sums['problems'] for name in powers}

  return evaluate
