"""Bodies of the training loop for a policy that writes text: supervised warm start, reinforcement learning, evaluation.

A reinforcement step is generate (compiled) -> verify (on the host, because a verifier reads text; the one place where a step has to wait
for the device) -> all updates of the rollout (compiled) -> score what was sampled with the new policy (compiled). A supervised step is the
same `training.step.learn` with the imitation objective.
"""

import contextlib
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_jax.measures import diversity
from entropy_jax.methods.samplers import Sampler
from entropy_jax.models.policy import Policy
from entropy_jax.objective import Objective
from entropy_jax.ops import masked
from entropy_jax.parallel import ROWS, STATE, WHOLE, Parallel, processes
from entropy_jax.parallel.split import Split
from entropy_jax.rollout import score as scoring
from entropy_jax.rollout.batch import token_batch
from entropy_jax.rollout.generate import Adjust, Rollout, generate, given
from entropy_jax.training import attention as attentions
from entropy_jax.training import step
from entropy_jax.training.progress import Clock
from entropy_jax.training.state import TrainState, create
from entropy_jax.types import Metrics, Params, PyTree, TokenBatch, UserError, frozen_of, with_frozen, without_frozen

Rows = Mapping[str, np.ndarray]
# (answers, rows of their problems, with finished_B) -> (reward_B, counts by verdict, or sums over the answers by a name with a room)
Verify = Callable[[Sequence[str], Rows], tuple[np.ndarray, Mapping[str, float]]]
Answers = Callable[[Sequence[str]], Sequence[Hashable | None]]
Body = Callable[[TrainState, Rows, jax.Array], tuple[Any, ...]]  # a body of training.loop


def example_batch(num_sequences: int, prompt_length: int, response_length: int) -> TokenBatch:
  """An empty batch of these shapes, from which an objective makes its state."""
  tokens_BxT, rows_B = jnp.zeros((num_sequences, response_length), jnp.int32), jnp.zeros(num_sequences, jnp.int32)
  sampled = given(tokens_BxT, tokens_BxT > 0)
  prompt = jnp.zeros((num_sequences, prompt_length), jnp.int32)
  return token_batch(prompt, prompt > 0, sampled, rows_B, jnp.zeros(num_sequences, jnp.float32), jax.random.key(0))


def initial_state(
  parallel: Parallel,
  policy: Policy,
  params: Params | None,
  key: jax.Array,
  tx: Any,
  objective: Objective,
  batch: TokenBatch,
  *,
  donate: bool = False,
) -> TrainState:
  """A fresh state: initialised parameters, or the given ones (a warm start, a model that was read), where the parallel mode keeps them.

  Args:
    parallel, policy, tx, objective: of the run.
    params: the state has a copy of them, because training gives its buffers away; but frozen parts are shared, where they lie already as
      `parallel.shardings` says. None to initialise.
    key: of the initialisation.
    batch: gives the objective its shapes, may be abstract.
    donate: the state takes the given parameters over instead: they cannot be used afterwards, and never lie there twice.
  """
  if params is None:
    return parallel.build(lambda key: create(policy.init(key), tx, objective, batch), key)
  make = lambda params: create(params, tx, objective, batch)
  state = parallel.build(make, without_frozen(params), donate=(0,) if donate else ())
  frozen = frozen_of(params)
  if parallel.shardings is not None:
    frozen = tuple(jax.device_put(part, parallel.shardings(part)) for part in frozen)
  return state.replace(params=with_frozen(state.params, frozen))


def supervised_body(
  parallel: Parallel, policy: Policy, objective: Objective, tx: optax.GradientTransformation, *, num_slices: int = 1
) -> Body:
  """Imitation of the responses in the rows: maximises their log-prob under chain(advantages.unit(), surrogates.reinforce())."""

  def learn(split: Split, state: TrainState, rows: Mapping[str, jax.Array], key: jax.Array) -> tuple[TrainState, Metrics]:
    mask_BxT = rows['response_mask_BxT']
    num_sequences, response = len(mask_BxT), given(rows['response_tokens_BxT'], mask_BxT)
    reward_B = jnp.ones(num_sequences, jnp.float32)
    prompt = (rows['prompt_tokens_BxP'], rows['prompt_mask_BxP'])
    batch = token_batch(*prompt, response, split.rows(num_sequences), reward_B, key)
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
  stop_ids: Sequence[int],
  temperature: float = 1.0,
  sampler: Sampler | None = None,
  num_stages: int = 1,
  num_epochs: int = 1,
  num_minibatches: int = 1,
  num_slices: int = 1,
  ledger: bool = False,
  attention: bool = False,
  entropy_change: bool = True,
  reference: Params | None = None,
  answers: Answers | None = None,
  greedy_baseline: bool = False,
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
    stop_ids: tokens that end a response.
    temperature: of sampling, and of the log-probs and entropies that the objective sees.
    sampler: what is done to the logits over the temperature before a token is drawn, without a state; the objective sees the log-probs and
      entropies before it, and those of the drawn token after it as `sampler_logp_BxT`. None for nothing.
    num_stages: as in `rollout.generate.generate`: with more than one, the rows that have not ended are gathered into smaller batches.
    num_epochs, num_minibatches, num_slices, ledger, attention: as in `training.step.learn`.
    entropy_change: whether the entropy is measured once more after the updates, `policy/entropy_change`; one more pass.
    reference: parameters whose log-probs the batch has as `ref_logp_BxT`, at the price of a pass over the rollout; None for none.
    answers: texts -> their answers, equal where they say the same and None where there is none, for `answer_B`; None for no such field.
    greedy_baseline: whether a greedy response to each prompt is sampled too, whose reward the batch has as `baseline_reward_B`.
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
  # Token-level passes of the updates; an accumulated one scores its batch before it differentiates it, but for the first of a rollout.
  scored_before = 0.0 if num_slices == 1 else num_epochs - (1.0 - step.scores_first(objective)) / num_minibatches
  num_passes = num_epochs + scored_before + entropy_change
  behaviour = tuple(s for s in objective.stats if s.of == 'behaviour')
  how: dict[str, Any] = {'num_tokens': num_tokens, 'temperature': temperature, 'stop_ids': stop_ids, 'num_stages': num_stages}
  draw = sampling(parallel, policy, group_size, sampler, stats=behaviour, **how)

  def batch_of(
    split: Split, prompt: Mapping[str, jax.Array], sampled: Rollout, told: Mapping[str, jax.Array], key: jax.Array
  ) -> TokenBatch:
    group_B = split.rows(len(told['reward_B'])) // group_size  # the rows of a prompt stand in succession
    batch = token_batch(prompt['prompt_tokens_BxP'], prompt['prompt_mask_BxP'], sampled, group_B, told['reward_B'], key).replace(**told)
    return batch if sampler is None else batch.replace(sampler_logp_BxT=sampled.drawn_logp_BxT)

  def refer(split: Split, params: Params, prompt: Mapping[str, jax.Array], sampled: Rollout) -> tuple[jax.Array]:
    tokens_BxN = jnp.concatenate([prompt['prompt_tokens_BxP'], sampled.tokens_BxT], axis=1)
    mask_BxN = jnp.concatenate([prompt['prompt_mask_BxP'], sampled.mask_BxT], axis=1)
    return (scoring.score(policy, params, tokens_BxN, mask_BxN, num_tokens, temperature=temperature).logp_BxT,)

  def learn(split: Split, state: TrainState, *parts: Any) -> tuple[TrainState, Metrics]:
    times: dict[str, Any] = {'num_epochs': num_epochs, 'num_minibatches': num_minibatches, 'num_slices': num_slices}
    times |= {'ledger': ledger, 'attention': attention}
    batch = batch_of(split, *parts)
    how = {'objective': objective, 'policy': policy, 'tx': tx, 'temperature': temperature, 'split': split}
    return step.learn(state, batch, on_policy=True, **how, **times)

  def measures(split: Split, params: Params, *parts: Any) -> tuple[Metrics]:
    batch = batch_of(split, *parts)
    sampled, reward_B = parts[1], parts[2]['reward_B']
    counts = _token_counts(split, batch.token_mask_BxN[:, :-num_tokens], scored=batch.mask_BxT, generated=batch.mask_BxT)
    counts['tokens/scored'] *= num_passes
    if entropy_change:
      after = scoring.score(policy, params, batch.tokens_BxN, batch.token_mask_BxN, num_tokens, temperature=temperature)
      change_BxT, changed_BxT = split.gather((after.entropy_BxT - sampled.entropy_BxT, sampled.mask_BxT))
      counts['policy/entropy_change'] = masked.mean(change_BxT, changed_BxT)
    sampled, reward_B = split.gather((sampled, reward_B))
    mask_BxT = sampled.mask_BxT
    return (
      {
        'rollout/success': jnp.mean(reward_B),
        'rollout/entropy': masked.mean(sampled.entropy_BxT, mask_BxT),
        'rollout/entropy_at_temperature_1': masked.mean(sampled.entropy1_BxT, mask_BxT),
        'rollout/response_length': jnp.mean(masked.count(mask_BxT, axis=1)),
        'rollout/truncated_fraction': jnp.mean((~sampled.finished_B).astype(jnp.float32)),
      }
      | counts,
    )

  parts = (ROWS, ROWS, ROWS, WHOLE)
  compiled_learn = parallel.compile(learn, takes=(STATE, *parts), gives=(STATE, WHOLE), donate=(0,))
  compiled_measures = parallel.compile(measures, takes=(STATE, *parts), gives=(WHOLE,))
  compiled_reference = parallel.compile(refer, takes=(STATE, ROWS, ROWS), gives=(ROWS,))
  draw_greedy = sampling(parallel, policy, 1, **how | {'temperature': 0})

  def body(state: TrainState, rows: Rows, key: jax.Array) -> tuple[TrainState, Metrics, PyTree]:
    sample_key, learn_key = jax.random.split(key)
    problems = {name: np.repeat(x, group_size, axis=0) for name, x in rows.items()}
    with measure('generate'):
      prompt = parallel.rows(_tokens(problems))
      sampled = draw(state.params, rows, sample_key)
      tokens_BxT, finished_B = parallel.local((sampled.tokens_BxT, sampled.finished_B))
    with measure('verify'):
      texts = decode(tokens_BxT)
      reward_B, verdicts = verify(texts, problems | {'finished_B': finished_B})
      told = {'reward_B': reward_B}
      if answers is not None:
        told['answer_B'] = numbered(answers(texts))
      if greedy_baseline:
        greedy = parallel.local(draw_greedy(state.params, rows, sample_key))
        best_B, _ = verify(decode(greedy.tokens_BxT), {**rows, 'finished_B': greedy.finished_B})
        told['baseline_reward_B'] = np.repeat(best_B, group_size)
      told = parallel.rows(told)
      if reference is not None:
        (told['ref_logp_BxT'],) = compiled_reference(reference, prompt, sampled)
      counts = processes.gather_sum(dict(verdicts) | {'all': len(reward_B)})
    with measure('update'):
      state, metrics = compiled_learn(state, prompt, sampled, told, learn_key)
      wait(metrics)
    with measure('score'):
      (more,) = compiled_measures(state.params, prompt, sampled, told, learn_key)
      wait(more)
    shares = {_share(name): np.float32(counts[name] / max(counts['all'], 1)) for name in verdicts}
    return state, metrics | more | shares, {'prompt': prompt, 'sampled': sampled, **told}

  return body


def _share(name: str) -> str:
  """The metric of what a verifier counts: a name without a room is that of a verdict."""
  return name if '/' in name else f'verdict/{name}'


def numbered(answers: Sequence[Hashable | None]) -> np.ndarray:
  """int32 [B], equal where answers are; -1 where there is none.

  >>> numbered(['7', None, '3', '7']).tolist()
  [0, -1, 1, 0]
  """
  numbers: dict[Hashable | None, int] = {None: -1}
  return np.array([numbers.setdefault(answer, len(numbers) - 1) for answer in answers], np.int32)


def _tokens(rows: Rows) -> dict[str, np.ndarray]:
  return {name: x for name, x in rows.items() if '_tokens_' in name or '_mask_' in name}


def sampling(
  parallel: Parallel, policy: Policy, group_size: int, sampler: Sampler | None = None, **how: Any
) -> Callable[[Params, Rows, jax.Array], Rollout]:
  """(params, this process's rows, key) -> group_size responses to each row, cut over the devices; `how` goes to `generate`."""
  adjust: Adjust | None = None
  if sampler is not None:
    if jax.tree.leaves(sampler.init()):
      raise UserError('sampler has a state, which a run does not keep: give one without, such as top_p.')
    adjust = sampler.bind(sampler.init())

  def sample(each: int, split: Split, params: Params, prompt: Mapping[str, jax.Array], key: jax.Array) -> tuple[Rollout]:
    tokens, mask = prompt['prompt_tokens_BxP'], prompt['prompt_mask_BxP']
    # The rows of one device are a block, from which no cache is gathered into another.
    where: dict[str, Any] = {'sequence_B': split.rows(len(tokens) * each), 'num_blocks': parallel.num_devices // split.num_parts}
    return (generate(policy, params, tokens, mask, key, group_size=each, adjust=adjust, **where, **how),)

  @functools.cache
  def compiled(each: int) -> Callable[..., Any]:
    return parallel.compile(functools.partial(sample, each), takes=(STATE, ROWS, WHOLE), gives=(ROWS,))

  def draw(params: Params, rows: Rows, key: jax.Array) -> Rollout:
    # A prompt is read once where the devices divide the prompts; otherwise so often that they divide what is read.
    num_rows = len(next(iter(rows.values()))) * jax.process_count()
    times = next((n for n in range(1, group_size) if group_size % n == 0 and num_rows * n % parallel.num_devices == 0), group_size)
    read = parallel.rows({name: np.repeat(x, times, axis=0) for name, x in _tokens(rows).items() if name.startswith('prompt_')})
    (drawn,) = compiled(group_size // times)(params, read, key)
    return drawn

  return draw


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
  stop_ids: Sequence[int],
  key: jax.Array,
  temperature: float = 1.0,
  sampler: Sampler | None = None,
  num_stages: int = 1,
  keep: Callable[[Mapping[str, np.ndarray]], None] | None = None,
  answers: Answers | None = None,
) -> Callable[[Params], dict[str, float]]:
  """Evaluation on fixed problems with a fixed key: success, which is avg@n, unbiased pass@k and maj@k for powers of 2, entropy, length.

  Args:
    parallel: on which devices, and how.
    policy: what is evaluated.
    batches: this process's rows, with `valid_B`, False where a row only fills up the batch.
    verify, decode, num_tokens, stop_ids, sampler, num_stages: as in `reinforcement_body`.
    num_samples: n responses per problem.
    key: the same at every call, so that two evaluations differ by the policy alone.
    temperature: of sampling; 0 is greedy. The entropy is that of temperature 1 whatever it is.
    keep: gets, at every call and of every problem, [P] over all processes: num_correct, how many responses were right, pass_at_N and
      maj_at_N with N = num_samples.
    answers: texts -> their answers, equal where they say the same and None where there is none, for maj@k. None for no maj@k.
  """

  how: dict[str, Any] = {'num_tokens': num_tokens, 'temperature': temperature, 'stop_ids': stop_ids, 'num_stages': num_stages}
  draw = sampling(parallel, policy, num_samples, sampler, **how)

  def evaluate(params: Params) -> dict[str, float]:
    entropy, tokens, correct, shown = 0.0, 0, [], 0
    said, right = [], []  # of every problem, what was answered and whether that was right
    for number, rows in enumerate(batches):
      valid_B = np.repeat(rows['valid_B'], num_samples)
      repeated = {name: np.repeat(x, num_samples, axis=0) for name, x in rows.items()}
      sampled = parallel.local(draw(params, rows, jax.random.fold_in(key, number)))
      texts = decode(sampled.tokens_BxT)
      reward_B, _ = verify(texts, repeated | {'finished_B': sampled.finished_B})
      if answers is not None:
        found_B = answers(texts)
        for i in np.flatnonzero(rows['valid_B']).tolist():
          own = slice(i * num_samples, (i + 1) * num_samples)
          said.append(found_B[own])
          right.append((reward_B[own] > 0).tolist())
      counted = sampled.mask_BxT & valid_B[:, None]
      entropy += float(sampled.entropy1_BxT.sum(where=counted))
      tokens += int(counted.sum())
      shown += int(valid_B.sum())
      correct.append(reward_B.reshape(-1, num_samples).sum(axis=1)[rows['valid_B']])
    # Every process has its own problems; pass@k is a mean over problems, and so is every figure here a sum over a sum.
    num_correct = np.concatenate(correct).astype(int)
    curves = {'pass': diversity.pass_at_k(num_correct, num_samples)}
    if answers is not None:
      curves['maj'] = diversity.maj_at_k(said, right)
    if keep is not None:
      each = {'num_correct': num_correct} | {f'{kind}_at_{num_samples}': x_PxK[:, -1] for kind, x_PxK in curves.items()}
      # Processes have unequally many where rows fill up a batch: as many with -1 among them, which are left out again.
      room = np.full((sum(len(rows['valid_B']) for rows in batches) - len(num_correct), len(each)), -1.0)
      every = processes.gather_rows(np.concatenate([np.stack(list(each.values()), axis=1), room]))
      keep(dict(zip(each, every[every[:, 0] >= 0].T, strict=True)))
    sums_of = {kind: x_PxK.sum(axis=0) for kind, x_PxK in curves.items()}
    powers = {f'{kind}_at_{2**i}': float(x_K[2**i - 1]) for kind, x_K in sums_of.items() for i in range(1, num_samples.bit_length())}
    sums = powers | {'success': float(num_correct.sum()), 'entropy': entropy, 'tokens': tokens, 'shown': shown}
    sums = processes.gather_sum(sums | {'problems': len(num_correct)})
    found = {'success': sums['success'] / num_samples / sums['problems'], 'entropy': sums['entropy'] / sums['tokens']}
    found['response_length'] = sums['tokens'] / sums['shown']
    interval = diversity.avg_at_k(round(sums['success']), round(sums['problems']) * num_samples)  # the mean of equally many samples each
    name = f'avg_at_{num_samples}'
    found |= {name: interval.mean, f'{name}_low': interval.low, f'{name}_high': interval.high}
    return found | {name: sums[name] / sums['problems'] for name in powers}

  return evaluate
