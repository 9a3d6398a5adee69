"""The objective: transforms in the order of their rooms, one aggregation, one sign flip.

    objective = chain(advantages.grpo(), weights.top_entropy(keep=0.2), surrogates.ppo_clip(low=0.2, high=0.28),
                      regularizers.adaptive_entropy(target=0.5), aggregate='token_mean')
    state              = objective.init(batch)
    batch, state, m    = objective.prepare(state, batch)   # rewards and advantages: once per rollout
    planned, state, m  = objective.plan(state, batch)      # the other rooms: once per update, on the whole global batch
    loss: Ratio        = objective.loss(planned, batch)    # differentiable, on the batch or on any slice of whole sequences of it

The loss of a batch is the merged loss of its slices, exactly, because whatever looks at the whole batch (selections, thresholds, means,
controllers) is planned once, without gradient, and what carries the gradient looks at one sequence at a time.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import masked
from entropy_jax.ops.aggregation import AGGREGATIONS, Aggregate
from entropy_jax.types import (
  SURROGATE,
  Metrics,
  Planned,
  PyTree,
  Ratio,
  Room,
  RunFacts,
  Terms,
  TokenBatch,
  Transform,
  UserError,
  VocabStat,
  follows_sequences,
)

DIFFERENTIABLE = ('logp_BxT', 'entropy_BxT', 'stats')
PREPARED_ROOMS = (Room.REWARD, Room.ADVANTAGE)


class Objective(NamedTuple):
  """A composed objective; see the module docstring for the order of its calls.

  Attributes:
    init: batch -> state, a dict by transform name whose structure never changes.
    prepare: (state, batch) -> (batch with reward_B and advantage_BxT set, state, metrics), without gradient.
    plan: (state, batch) -> (planned, state, metrics), without gradient.
    loss: (planned, batch or slice with the matching slice of planned) -> Ratio, to be minimised.
    parts: (planned, batch or slice) -> name -> [B, T], what each term adds to the loss of every token before it is aggregated: 'surrogate'
      (minus weight times surrogate) and every regularizer by its name. They sum to what `loss` aggregates.
    observe: (state, the ledger of the update that was just made) -> state; None where no transform learns from it.
    reduce: (token_BxT, mask_BxT, num_sequences) -> Ratio, the aggregation, linear in its first argument.
    stats: vocabulary statistics that the scoring pass must compute.
    transforms: what it was built from, in order.
    aggregate: name of the aggregation mode.
  """

  init: Callable[[TokenBatch], PyTree]
  prepare: Callable[[PyTree, TokenBatch], tuple[TokenBatch, PyTree, Metrics]]
  plan: Callable[[PyTree, TokenBatch], tuple[Planned, PyTree, Metrics]]
  loss: Callable[[Planned, TokenBatch], Ratio]
  parts: Callable[[Planned, TokenBatch], dict[str, jax.Array]]
  observe: Callable[[PyTree, Metrics], PyTree] | None
  reduce: Aggregate
  stats: tuple[VocabStat, ...]
  transforms: tuple[Transform, ...]
  aggregate: str

  def warnings(self, facts: RunFacts) -> list[str]:
    """What will not do what its user expects in such a run: what, why and the mend, one sentence each."""
    found = [note(facts._replace(aggregate=self.aggregate)) for t in self.transforms for note in t.notes]
    return [text for text in found if text is not None]


def sanitize(batch: TokenBatch) -> TokenBatch:
  """Zeroes masked token-level values, makes floats float32, stops all gradients but the current policy's log-prob, entropy and statistics.

  Masked slots may hold anything, NaN included; zeroing them before any arithmetic keeps value and gradient finite.
  """

  def clean(name: str, x: Any) -> Any:
    if x is None or name == 'key':
      return x
    if isinstance(x, Mapping):
      return {k: clean(name + '_BxT', v) for k, v in x.items()}
    if name.endswith('_BxT') and name != 'mask_BxT':
      x = masked.zero(x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, batch.mask_BxT)
    elif jnp.issubdtype(x.dtype, jnp.floating):
      x = x.astype(jnp.float32)
    return x if name.removesuffix('_BxT') == 'stats' or name in DIFFERENTIABLE else jax.lax.stop_gradient(x)

  return batch.replace(**{f.name: clean(f.name, getattr(batch, f.name)) for f in dataclasses.fields(batch)})


def _empty_terms(batch: TokenBatch) -> Terms:
  zero_BxT = jnp.zeros(batch.mask_BxT.shape, jnp.float32)
  dense_BxT = zero_BxT if batch.token_reward_BxT is None else batch.token_reward_BxT
  advantage_BxT = zero_BxT if batch.advantage_BxT is None else batch.advantage_BxT
  return Terms(batch.reward_B, dense_BxT, advantage_BxT, zero_BxT + 1.0, zero_BxT, zero_BxT)


def _check_planned(name: str, planned: Planned, num_sequences: int) -> None:
  """A planned array has one row a sequence or is a scalar: anything else could not be sliced into micro-batches."""
  for path, x in jax.tree_util.tree_leaves_with_path(planned):
    key = str(path[-1].key)
    rows = jnp.shape(x)[:1] == (num_sequences,) if follows_sequences(key) else jnp.ndim(x) == 0
    assert rows, f'{name} planned {key} of shape {jnp.shape(x)}: names in _B or _BxT have {num_sequences} rows, all others are scalars'


def _check_rooms(transforms: tuple[Transform, ...]) -> None:
  rooms, names = [t.room for t in transforms], [t.name for t in transforms]
  listing = ', '.join(f'{t.name} ({t.room.name.lower()})' for t in transforms) or 'nothing'
  order = ' -> '.join(r.name.lower() for r in Room)
  if rooms != sorted(rooms):
    raise UserError(f'objective: rooms out of order in {listing}; the order is {order}.')
  if rooms.count(Room.SURROGATE) != 1:
    raise UserError(f'objective: exactly one surrogate is needed, and {rooms.count(Room.SURROGATE)} were given in {listing}.')
  twice = sorted({n for n in names if names.count(n) > 1})
  if twice:
    raise UserError(f'objective: the name {twice[0]!r} stands twice in {listing}; tell them apart with name=.')


def _collect_stats(transforms: tuple[Transform, ...]) -> tuple[VocabStat, ...]:
  wanted: dict[tuple[str, str], VocabStat] = {}
  for t in transforms:
    for stat in t.stats:
      known = wanted.setdefault((stat.name, stat.of), stat)
      if known.fn is not stat.fn:
        raise UserError(f'objective: two different vocabulary statistics are called {stat.name!r}; rename the one that {t.name} asks for.')
  return tuple(wanted.values())


def chain(*transforms: Transform, aggregate: str = 'token_mean', constant: float | None = None) -> Objective:
  """Composes transforms into an objective.

  Args:
    *transforms: in the order reward, advantage, weight, surrogate (exactly one), regularizer; names unique.
    aggregate: a key of `ops.aggregation.AGGREGATIONS`.
    constant: the constant of the modes that divide by one.

  Returns:
    loss(batch) = aggregate(penalty - weight * surrogate) over the valid tokens.

  Raises:
    UserError: rooms out of order, no or two surrogates, duplicate names, unknown aggregation.
  """
  _check_rooms(transforms)
  if not isinstance(aggregate, str) or aggregate not in AGGREGATIONS:
    close = transform.nearest(str(aggregate), list(AGGREGATIONS))
    raise UserError(f'objective: aggregate={aggregate!r} is not one of {", ".join(AGGREGATIONS)}.{close}')
  takes_constant = aggregate.startswith('token_sum_over')
  if takes_constant != (constant is not None):
    verb = 'needs constant=, for example the largest response length' if takes_constant else 'takes no constant'
    raise UserError(f'objective: aggregate={aggregate!r} {verb}.')
  if constant is not None:
    transform.check_range('objective', 'constant', constant, '(0, inf)')
  reduce = AGGREGATIONS[aggregate](**({} if constant is None else {'constant': constant}))
  early = tuple(t for t in transforms if t.room in PREPARED_ROOMS)
  late = tuple(t for t in transforms if t.room not in PREPARED_ROOMS)

  def one(t: Transform, state: PyTree, batch: TokenBatch) -> tuple[Planned, PyTree, Metrics]:
    planned, new, metrics = t.plan(state[t.name], batch)
    _check_planned(t.name, planned, batch.mask_BxT.shape[0])
    return planned, {**state, t.name: new}, {f'{t.room.name.lower()}/{t.name}/{k}': v for k, v in metrics.items()}

  def prepare(state: PyTree, batch: TokenBatch) -> tuple[TokenBatch, PyTree, Metrics]:
    clean = jax.lax.stop_gradient(sanitize(batch))
    metrics: Metrics = {}
    for t in early:
      planned, state, more = one(t, state, clean)
      terms = t.apply(planned, clean, _empty_terms(clean))
      prepared = {'reward_B': terms.reward_B, 'token_reward_BxT': terms.token_reward_BxT}
      if t.room == Room.ADVANTAGE:
        prepared['advantage_BxT'] = terms.advantage_BxT
      clean, metrics = clean.replace(**prepared), metrics | more
    names = ('reward_B', 'token_reward_BxT', 'advantage_BxT')
    return batch.replace(**{name: getattr(clean, name) for name in names}), state, metrics

  def plan(state: PyTree, batch: TokenBatch) -> tuple[Planned, PyTree, Metrics]:
    clean = jax.lax.stop_gradient(sanitize(batch))
    planned: Planned = {'num_sequences': jnp.asarray(batch.mask_BxT.shape[0], jnp.float32)}
    metrics: Metrics = {}
    for t in late:
      planned[t.name], state, more = one(t, state, clean)
      metrics |= more
    return planned, state, metrics

  def loss(planned: Planned, batch: TokenBatch) -> Ratio:
    clean = sanitize(batch)
    terms = _empty_terms(clean)
    for t in late:
      terms = t.apply(planned[t.name], clean, terms)
    token_BxT = terms.penalty_BxT - terms.weight_BxT * terms.surrogate_BxT  # the one sign flip
    return reduce(token_BxT, batch.mask_BxT, planned['num_sequences'])

  def parts(planned: Planned, batch: TokenBatch) -> dict[str, jax.Array]:
    clean = sanitize(batch)
    terms = empty = _empty_terms(clean)
    found = {}
    for t in late:
      if t.room == Room.REGULARIZER:
        found[t.name] = t.apply(planned[t.name], clean, empty).penalty_BxT
      else:
        terms = t.apply(planned[t.name], clean, terms)
    return {SURROGATE: -terms.weight_BxT * terms.surrogate_BxT, **found}

  def observe(state: PyTree, ledger: Metrics) -> PyTree:
    return state | {t.name: t.observe(state[t.name], ledger) for t in late if t.observe is not None}

  def init(batch: TokenBatch) -> PyTree:
    return {t.name: t.init(batch) for t in transforms}

  learns = observe if any(t.observe is not None for t in late) else None
  return Objective(init, prepare, plan, loss, parts, learns, reduce, _collect_stats(transforms), transforms, aggregate)
