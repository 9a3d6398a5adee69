"""The one train step, for reinforcement learning and supervised learning, tables and transformers.

`update` makes one optimizer step on one global batch; `learn` makes all the updates of one rollout (epochs times minibatches) in one scan.
Both are pure. A supervised step is the same step with the objective chain(advantages.unit(), surrogates.reinforce()).

Several devices change one thing: of the whole batch, which is small (numbers a token), each part runs the model on its own rows alone.

    own rows -> score -> gather -> plan (whole batch) -> own rows -> loss and gradient -> slices and parts summed -> divided once
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from entropy_jax.models.policy import Policy
from entropy_jax.objective import Objective
from entropy_jax.ops import covariance, masked
from entropy_jax.parallel.split import WHOLE, Split
from entropy_jax.rollout import score as scoring
from entropy_jax.training import attention as attentions
from entropy_jax.training import ledger as ledgers
from entropy_jax.training.ranges import check_divides
from entropy_jax.training.state import TrainState
from entropy_jax.types import Metrics, Params, Planned, PyTree, Ratio, TokenBatch, frozen_of, take_rows, with_frozen, without_frozen


def _policy_metrics(batch: TokenBatch) -> Metrics:
  """How far and how uncertain the current policy is on this batch; everything of the sampling distribution."""
  mask_BxT = batch.mask_BxT
  log_ratio_BxT = masked.zero(batch.logp_BxT - batch.old_logp_BxT, mask_BxT)
  metrics = {
    'policy/entropy': masked.mean(batch.entropy_BxT, mask_BxT),
    # k3 of the card B3 with the behaviour policy as reference: unbiased for KL(old || new) under old's samples.
    'policy/kl_from_behaviour': masked.mean(jnp.expm1(log_ratio_BxT) - log_ratio_BxT, mask_BxT),
  }
  if batch.advantage_BxT is not None:
    score_BxT = covariance.token_covariance(batch.logp_BxT, batch.advantage_BxT, mask_BxT)
    metrics['policy/covariance'] = masked.mean(score_BxT, mask_BxT)
  return metrics


def update(
  state: TrainState,
  batch: TokenBatch,
  *,
  objective: Objective,
  policy: Policy,
  tx: optax.GradientTransformation,
  temperature: float = 1.0,
  num_slices: int = 1,
  ledger: bool = False,
  scored: jax.Array | bool = False,
  split: Split = WHOLE,
) -> tuple[TrainState, Metrics]:
  """One optimizer step on the global batch.

  Args:
    state: before the step.
    batch: prepared by `Objective.prepare`; logp_BxT, entropy_BxT and stats are overwritten by the current policy's.
    objective, policy, tx: static. `policy.advance` is called once, after the change of the parameters.
    temperature: of the sampling distribution that is scored.
    num_slices: the gradient is accumulated over this many slices of whole sequences; the result does not depend on it.
    ledger: whether to account for the entropy change, at the cost of three more passes over the batch; the update is the same. An
      objective with a method that learns from the ledger has it anyway.
    scored: whether the batch's log-probs, entropies and statistics of the behaviour policy are those of the current one, to rounding: an
      accumulated update then plans from them, and saves the pass that scores the batch first. False where `scores_first`.
    split: how the rows lie over devices; the result does not depend on it. Each part accumulates over num_slices slices of its rows.

  Returns:
    (state, metrics). A loss or gradient that is not finite leaves parameters, optimizer and objective untouched and is counted, and
    `update/rejected` is 1 instead of 0. With the ledger, `ledger/*` as `training.ledger.entries` names them.
  """
  num_sequences, num_tokens = batch.mask_BxT.shape
  check_divides('num_slices', num_slices, num_sequences // split.num_parts, 'sequences', owner='')
  size = num_sequences // split.num_parts // num_slices
  own = split.own(batch, num_sequences)
  frozen = frozen_of(state.params)

  def score(trained: Params, part: TokenBatch) -> scoring.Scores:
    params = with_frozen(trained, frozen)
    current = tuple(s for s in objective.stats if s.of == 'current')
    tokens = (part.tokens_BxN, part.token_mask_BxN, num_tokens)
    return scoring.score(policy, params, *tokens, temperature=temperature, stats=current)

  def plan(scores: scoring.Scores) -> tuple[Planned, tuple[PyTree, Metrics]]:
    """The plan for this part's rows, made from the scores of all rows."""
    current = scoring.fill(batch, split.gather(jax.lax.stop_gradient(scores)))
    planned, planned_state, metrics = objective.plan(state.objective_state, current)
    return split.own(planned, num_sequences), (planned_state, metrics | _policy_metrics(current))

  def at_once(trained: Params) -> tuple[jax.Array, Any]:
    scores = score(trained, own)
    planned, rest = plan(scores)
    ratio = objective.loss(planned, scoring.fill(own, scores))
    return ratio.num, (ratio, planned, rest)

  def accumulated(trained: Params) -> tuple[tuple[jax.Array, Any], Params]:
    starts = jnp.arange(num_slices) * size
    # Scored first without gradient, so that the plan sees the whole batch however it is sliced.
    def first() -> scoring.Scores:
      parts = jax.lax.map(lambda start: score(trained, take_rows(own, start, size)), starts)
      return jax.tree.map(lambda x: x.reshape(-1, num_tokens), parts)

    def known() -> scoring.Scores:
      zeroed = lambda x: jnp.where(own.mask_BxT, x.astype(jnp.float32), 0.0)
      stats = {s.name: zeroed(own.old_stats[s.name]) for s in objective.stats if s.of == 'current'}
      return scoring.Scores(zeroed(own.old_logp_BxT), zeroed(own.old_entropy_BxT), stats)

    if isinstance(scored, bool):
      scores = known() if scored else first()
    else:
      scores = jax.lax.cond(scored, known, first)
    planned, rest = plan(scores)

    def slice_loss(trained: Params, start: jax.Array) -> tuple[jax.Array, Ratio]:
      part = take_rows(own, start, size)
      ratio = objective.loss(take_rows(planned, start, size), scoring.fill(part, score(trained, part)))
      return ratio.num, ratio

    def add(total: Any, start: jax.Array) -> tuple[Any, None]:
      (_, ratio), gradient = jax.value_and_grad(slice_loss, has_aux=True)(trained, start)
      return jax.tree.map(jnp.add, total, (ratio, gradient)), None

    nothing = (Ratio(jnp.zeros(()), jnp.zeros(())), jax.tree.map(jnp.zeros_like, trained))
    (ratio, gradient), _ = jax.lax.scan(add, nothing, starts)
    return (ratio.num, (ratio, planned, rest)), gradient

  compute = jax.value_and_grad(at_once, has_aux=True) if num_slices == 1 else accumulated
  (_, (ratio, planned, (objective_state, metrics))), gradient = compute(without_frozen(state.params))
  ratio, gradient = split.total((ratio, gradient))
  gradient = jax.tree.map(lambda g: Ratio(g, ratio.den).compute(), gradient)
  new, metrics = _apply(state, policy, tx, ratio.compute(), gradient, objective_state, metrics)
  if ledger or objective.observe is not None:
    how = {'objective': objective, 'policy': policy, 'tx': tx, 'temperature': temperature, 'num_slices': num_slices, 'split': split}
    found = ledgers.entries(state, new, gradient, ratio.den, planned, own, **how)
    metrics |= {f'ledger/{name}': value for name, value in found.items()}
    if objective.observe is not None:
      observed, accepted = objective.observe(new.objective_state, found), metrics['update/rejected'] == 0
      new = new.replace(objective_state=jax.tree.map(lambda x, y: jnp.where(accepted, x, y), observed, new.objective_state))
  return new, metrics


def scores_first(objective: Objective) -> bool:
  """Whether an accumulated update scores its batch first though the policy is the one that sampled it.

  It does where the objective reads a statistic of the current policy that none of the behaviour policy equals.
  """
  sampled = {s.name: s.fn for s in objective.stats if s.of == 'behaviour'}
  return any(sampled.get(s.name) is not s.fn for s in objective.stats if s.of == 'current')


def _apply(
  state: TrainState,
  policy: Policy,
  tx: optax.GradientTransformation,
  loss: jax.Array,
  gradient: Params,
  objective_state: Any,
  metrics: Metrics,
) -> tuple[TrainState, Metrics]:
  norm = optax.tree.norm(gradient)
  finite = jnp.isfinite(loss) & jnp.isfinite(norm)
  trained, frozen = without_frozen(state.params), frozen_of(state.params)
  changes, opt_state = tx.update(gradient, state.opt_state, trained)
  # Here and in no forward pass, so that slices, devices and rematerialisation change nothing: one step of what is no parameter.
  params = without_frozen(policy.advance(with_frozen(optax.apply_updates(trained, changes), frozen)))
  proposed = state.replace(params=params, opt_state=opt_state, objective_state=objective_state)
  # Selected on the device: a bad update never reaches the parameters, and no host sync is needed to know that it was bad.
  kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), proposed, without_frozen(state))
  kept = kept.replace(num_updates=state.num_updates + 1, num_rejected=state.num_rejected + (~finite).astype(jnp.int32))
  kept = kept.replace(params=with_frozen(kept.params, frozen))
  return kept, metrics | {'update/loss': loss, 'update/gradient_norm': norm, 'update/rejected': 1.0 - finite.astype(jnp.float32)}


def learn(
  state: TrainState,
  batch: TokenBatch,
  *,
  objective: Objective,
  policy: Policy,
  tx: optax.GradientTransformation,
  temperature: float = 1.0,
  num_epochs: int | jax.Array = 1,
  num_minibatches: int = 1,
  num_slices: int = 1,
  ledger: bool = False,
  attention: bool = False,
  on_policy: bool = False,
  split: Split = WHOLE,
) -> tuple[TrainState, Metrics]:
  """All updates of one rollout: rewards and advantages once, then num_epochs passes over num_minibatches shuffled minibatches.

  Args:
    state: before the rollout's updates.
    batch: this part's rows of the rollout, with their rewards; batch.key drives the shuffles and every random choice of a method.
      A statistic of the behaviour policy that `old_stats` does not hold yet costs a pass over the batch.
    num_epochs, num_minibatches: updates_per_rollout is their product; with one minibatch rows are not shuffled. num_epochs may be an array
      (int32, at least 1): one program for any number.
    num_slices: gradient accumulation inside each update.
    ledger: whether each update accounts for its entropy change.
    attention: whether the attention of the policy that sampled is measured, `attention/*` as in training/attention.py; one more pass.
    on_policy: whether the rollout was sampled from `state.params` with this temperature, and the behaviour scores are of that policy.
      An accumulated first update then needs no pass before its own; the result is the same.
    split: how the rows lie over devices, `WHOLE` for the global view. Minibatches are drawn from the whole batch.

  Returns:
    (state, metrics): prepare's metrics, and the mean over the updates of each update's metrics.
  """
  seen = attentions.measures(policy, state.params, batch, num_slices=num_slices, split=split) if attention else {}
  behaviour = tuple(s for s in objective.stats if s.of == 'behaviour' and s.name not in batch.old_stats)
  if behaviour:  # the policy that sampled is the one that the rollout starts from
    tokens = (batch.tokens_BxN, batch.token_mask_BxN, batch.mask_BxT.shape[1])
    scores = scoring.score(policy, state.params, *tokens, temperature=temperature, stats=behaviour)
    batch = batch.replace(old_stats={**batch.old_stats, **jax.lax.stop_gradient(scores.stats)})
  key = batch.key
  batch = split.gather(batch.replace(key=None)).replace(key=key)
  num_sequences = batch.mask_BxT.shape[0]
  check_divides('num_minibatches', num_minibatches, num_sequences, 'sequences', owner='')
  size = num_sequences // num_minibatches
  check_divides('num_devices', split.num_parts, size, 'sequences of a minibatch', owner='')
  if batch.sequence_B is None:
    batch = batch.replace(sequence_B=jnp.arange(num_sequences, dtype=jnp.int32))
  batch, objective_state, prepared = objective.prepare(state.objective_state, batch)
  # A reward that is not a number must not stay in a running average: the updates are refused below, and so is this.
  broken = jnp.array(False)
  for leaf in jax.tree.leaves(objective_state):
    broken |= jnp.any(jnp.isnan(leaf)) if jnp.issubdtype(leaf.dtype, jnp.inexact) else False
  objective_state = jax.tree.map(lambda new, old: jnp.where(broken, old, new), objective_state, state.objective_state)

  frozen = frozen_of(state)  # beside the scan and not carried through it

  def one(state: TrainState, index: jax.Array) -> tuple[TrainState, Metrics]:
    epoch, minibatch = index // num_minibatches, index % num_minibatches
    part = batch
    if num_minibatches > 1:
      order_B = jax.random.permutation(jax.random.fold_in(key, epoch), num_sequences)
      part = take_rows(_permuted(batch, order_B), minibatch * size, size)
    part = part.replace(key=jax.random.fold_in(key, num_epochs + index))
    how = {'objective': objective, 'policy': policy, 'tx': tx, 'temperature': temperature, 'num_slices': num_slices, 'split': split}
    scored: jax.Array | bool = on_policy and not scores_first(objective)
    if scored and not (isinstance(num_updates, int) and num_updates == 1):
      scored = index == 0  # after that the parameters have moved
    state, metrics = update(with_frozen(state, frozen), part, ledger=ledger, scored=scored, **how)
    return without_frozen(state), metrics

  num_updates = num_epochs * num_minibatches
  start = without_frozen(state.replace(objective_state=objective_state))
  one = jax.jit(one)  # traced once, for its shapes and for the loop

  def turn(index: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
    trained, total = carry
    trained, metrics = one(trained, index.astype(jnp.int32))
    return trained, jax.tree.map(jnp.add, total, metrics)

  # Summed as they come, and not stacked: their number may be known to the device alone.
  nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, start, jnp.int32(0))[1])
  trained, total = jax.lax.fori_loop(0, num_updates, turn, (start, nothing))
  return with_frozen(trained, frozen), prepared | seen | {name: value / num_updates for name, value in total.items()}


def _permuted(batch: TokenBatch, order_B: jax.Array) -> TokenBatch:
  rows = jax.tree.map(lambda x: x[order_B], batch.replace(key=None))
  return rows.replace(key=batch.key)
