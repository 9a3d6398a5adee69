"""From a pure function to a Transform: one lift a room, and the wrappers that schedule or control a coefficient.

A method is a pure function on arrays. Its positional parameters are named after what they read, and the lift binds them by name:
any field of `TokenBatch`; `log_ratio_BxT` = ln pi - ln pi_old; `length_B`, the number of valid tokens; `return_B`, the outcome reward
plus the sum of dense ones; `reward_BxT`, dense rewards with the outcome on the last valid token; what the method's own plan function
returned; or a vocabulary statistic (`NAME_BxT`, `old_NAME_BxT`). Its keyword-only parameters are the hyper-parameters. So a method's
author writes the mathematics and one line:

    ppo_clip = transform.surrogate('ppo_clip', ppo_clip_objective, low='[0, 1]', high='[0, inf)')

and a user `ppo_clip(low=0.2, high=0.28)`. The lift fixes combination (rewards and advantages replace, weights multiply, the surrogate
is set, penalties add), masking, stop-gradient and metric names.
"""

import dataclasses
import difflib
import functools
import inspect
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropy_jax.ops import masked
from entropy_jax.types import Metrics, Planned, PyTree, Room, RunFacts, Terms, TokenBatch, Transform, UserError, VocabStat

Note = Callable[..., str | None]  # (RunFacts, hyper=hyper-parameters by name) -> what, why and the mend, or None


def nearest(name: str, allowed: Sequence[str]) -> str:
  """' Did you mean X?' for the closest allowed name, or ''."""
  close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.4)
  return f' Did you mean {close[0]!r}?' if close else ''


def is_traced(value: Any) -> bool:
  """Whether a hyper-parameter is a value of a program that is being traced: nobody can hold it against a range before it runs."""
  return isinstance(value, jax.core.Tracer)


def check_range(owner: str, key: str, value: Any, allowed: str) -> None:
  """Refuses a value outside an interval written as mathematics writes it, '(0, 1]', or outside a set of names, 'a | b'.

  A traced value passes: a study that runs one program for many settings builds each of them from numbers first, which checks them.
  """
  if is_traced(value):
    return
  if allowed[0] not in '([':
    names = [n.strip() for n in allowed.split('|')]
    if value not in names:
      raise UserError(f'{owner}: {key}={value!r} is not one of {", ".join(names)}.{nearest(str(value), names)}')
    return
  low, high = (float(end) for end in allowed[1:-1].split(','))
  if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
    raise UserError(f'{owner}: {key}={value!r} is not a number; give one in {allowed}.')
  above = value >= low if allowed[0] == '[' else value > low
  below = value <= high if allowed[-1] == ']' else value < high
  if not (above and below):
    raise UserError(f'{owner}: {key}={value!r} is outside {allowed}; give a value in that interval.')


def check_ranges(owner: str, ranges: Mapping[str, str], **given: Any) -> None:
  """`check_range` of every key of `ranges`."""
  for key, allowed in ranges.items():
    check_range(owner, key, given[key], allowed)


def _check_hyper(owner: str, key: str, value: Any, default: Any, allowed: str | None) -> None:
  """Refuses a hyper-parameter of the wrong kind or out of range; one without a declared range is of the kind of its default."""
  if value is None and default is None:
    return  # off
  if allowed is not None:
    check_range(owner, key, value, allowed)
  elif isinstance(default, bool):
    if not isinstance(value, bool):
      raise UserError(f'{owner}: {key}={value!r} is not true or false; give one of these.')
  elif isinstance(default, int | float):
    check_range(owner, key, value, '[-inf, inf]')
  elif isinstance(default, str) and not isinstance(value, str):
    raise UserError(f'{owner}: {key}={value!r} is not a text; give one such as {default!r}.')


def _derived(batch: TokenBatch, name: str) -> jax.Array | None:
  if name == 'log_ratio_BxT':
    return batch.logp_BxT - batch.old_logp_BxT
  if name == 'length_B':
    return masked.count(batch.mask_BxT, axis=1)
  if name in ('return_B', 'reward_BxT'):
    zeros = jnp.zeros(batch.mask_BxT.shape, jnp.float32)
    dense_BxT = zeros if batch.token_reward_BxT is None else batch.token_reward_BxT
    if name == 'return_B':
      return batch.reward_B + masked.total(dense_BxT, batch.mask_BxT, axis=1)
    position_T = jnp.arange(batch.mask_BxT.shape[1])[None, :]
    last_B = jnp.max(jnp.where(batch.mask_BxT, position_T, -1), axis=1)
    return dense_BxT + jnp.where(position_T == last_B[:, None], batch.reward_B[:, None], 0.0)
  return None


FIELDS = frozenset(f.name for f in dataclasses.fields(TokenBatch)) | {'log_ratio_BxT', 'length_B', 'return_B', 'reward_BxT'}


def _read(owner: str, name: str, batch: TokenBatch, planned: Planned, stats: Sequence[VocabStat]) -> Any:
  """The value that a positional parameter of this name stands for."""
  if name in planned:
    return planned[name]
  if name == 'key':
    return jax.random.fold_in(batch.key, zlib.crc32(owner.encode()) & 0x7FFFFFFF)
  if name in FIELDS:
    value = _derived(batch, name)
    value = getattr(batch, name) if value is None else value
    if value is None and name == 'advantage_BxT':
      raise UserError(f'{owner} reads advantages, and there are none: call objective.prepare first, or add an advantage transform.')
    if value is None and name != 'sequence_B':  # the row number stands for an absent identity
      raise UserError(f'{owner} reads {name}, which this run does not provide: set TokenBatch.{name}, or leave {owner} out.')
    return value
  old = name.startswith('old_')
  stat = name.removesuffix('_BxT').removeprefix('old_')
  asked = [s.name for s in stats if s.name.split('@')[0] == stat and (s.of == 'behaviour') == old] or [stat]
  assert len(asked) == 1, f'{owner} reads {name} and asks for {asked}: which one is meant?'
  source = batch.old_stats if old else batch.stats
  if asked[0] not in source:
    raise UserError(f'{owner} reads the vocabulary statistic {asked[0]!r}, which was not scored: pass objective.stats to the scoring pass.')
  return source[asked[0]]


def _positional(fn: Callable[..., Any]) -> list[str]:
  return [p.name for p in inspect.signature(fn).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]


def _keywords(fn: Callable[..., Any]) -> dict[str, Any]:
  return {p.name: p.default for p in inspect.signature(fn).parameters.values() if p.kind is p.KEYWORD_ONLY}


def _with_metrics(result: Any) -> tuple[Any, Metrics]:
  return result if isinstance(result, tuple) else (result, {})


@dataclasses.dataclass(frozen=True)
class Method:
  """A pure function lifted into a room: call it with hyper-parameters to get a Transform.

  Attributes:
    room: where its transforms stand.
    name: its public name, the same in its module, in the catalog and in metrics.
    function: the mathematics.
    plan: optional pure function of the whole batch without gradient, returning (dict of planned arrays, metrics).
    ranges: keyword -> allowed interval or names.
    stats: vocabulary statistics that it reads, or a function of keyword-only hyper-parameters that makes them.
    notes: build-time warnings.
    init: optional function of keyword-only hyper-parameters that makes the state which the method carries from update to update.
    remember: with init: pure function (state, fields of the whole batch) -> (dict of values, state, metrics), without gradient. `plan`
      and `function` read the values by their names.
    controller: optional function of keyword-only hyper-parameters that makes the Controller of a regularizer's coefficient.
    check: optional function of keyword-only hyper-parameters that raises UserError where they do not go together.
  """

  room: Room
  name: str
  function: Callable[..., Any]
  plan: Callable[..., Any] | None
  ranges: Mapping[str, str]
  stats: tuple[VocabStat, ...] | Callable[..., tuple[VocabStat, ...]]
  notes: tuple[Note, ...]
  controller: 'Callable[..., Controller] | None' = None
  check: Callable[..., None] | None = None
  init: Callable[..., PyTree] | None = None
  remember: Callable[..., tuple[Planned, PyTree, Metrics]] | None = None

  @property
  def reads(self) -> frozenset[str]:
    """The fields of TokenBatch that it takes as they are, by their names; what is derived from fields that are always there is left out."""
    given = {f.name for f in dataclasses.fields(TokenBatch)}
    return frozenset(name for f in (self.remember, self.plan, self.function) if f is not None for name in _positional(f)) & given

  def defaults(self) -> dict[str, Any]:
    """Keyword -> default of every hyper-parameter of its functions; a required one has inspect's empty."""
    stats = self.stats if callable(self.stats) else None
    parts = [f for f in (stats, self.init, self.remember, self.plan, self.controller, self.function) if f is not None]
    return {key: default for f in parts for key, default in _keywords(f).items()}

  def __call__(self, *, name: str | None = None, **hyper: Any) -> Transform:
    """The transform with these hyper-parameters; `name` tells two of the same method in one chain apart."""
    name = self.name if name is None else name
    if not isinstance(name, str) or not name:
      raise UserError(f'{self.name}: name={name!r} is not a name; give a text that tells this {self.name} from another.')
    defaults = self.defaults()
    for key, value in hyper.items():
      if key not in defaults:
        known = ', '.join(defaults) or 'none'
        raise UserError(f'{name}: unknown hyper-parameter {key!r}; allowed: {known}.{nearest(key, list(defaults))}')
      _check_hyper(name, key, value, defaults[key], self.ranges.get(key))
    for key, default in defaults.items():
      if default is inspect.Parameter.empty and key not in hyper:
        raise UserError(f'{name}: {key} has no default; give {key}= a value in {self.ranges.get(key, "its range")}.')
    full = {**defaults, **hyper}
    if self.check is not None and not any(map(is_traced, full.values())):
      self.check(**{k: full[k] for k in _keywords(self.check)})

    stats = self.stats(**{k: full[k] for k in _keywords(self.stats)}) if callable(self.stats) else self.stats

    def call(fn: Callable[..., Any], batch: TokenBatch, planned: Planned) -> Any:
      arguments = [_read(name, p, batch, planned, stats) for p in _positional(fn)]
      return fn(*arguments, **{k: full[k] for k in _keywords(fn)})

    combine = _COMBINE[self.room]
    notes = tuple(functools.partial(note, hyper=full) for note in self.notes)
    lifted = Transform(self.room, name, stats, lambda batch: {}, *combine(self, call), notes)
    if self.init is not None and self.remember is not None:
      init = functools.partial(self.init, **{k: full[k] for k in _keywords(self.init)})
      lifted = _remembering(lifted, init, functools.partial(call, self.remember))
    if self.controller is None:
      return lifted
    return controlled(lifted, self.controller(**{k: full[k] for k in _keywords(self.controller)}))


def _remembering(lifted: Transform, init: Callable[[], PyTree], remember: Callable[[TokenBatch, Planned], Any]) -> Transform:
  """The transform with a state: what it remembers of earlier updates stands for the values that its functions read by name."""

  def plan(state: PyTree, batch: TokenBatch) -> tuple[Planned, PyTree, Metrics]:
    values, new, metrics = remember(batch, {'state': state})
    planned, _, more = lifted.plan(values, batch)
    return planned, new, {**metrics, **more}

  return lifted._replace(init=lambda batch: jax.tree.map(jnp.asarray, init()), plan=plan)


# In the rooms' plans `state` is what the method remembers: values by name, empty for most.
Call = Callable[[Callable[..., Any], TokenBatch, Planned], Any]
PlanAndApply = tuple[Callable[[PyTree, TokenBatch], tuple[Planned, PyTree, Metrics]], Callable[[Planned, TokenBatch, Terms], Terms]]


def _reward(method: Method, call: Call) -> PlanAndApply:
  def plan(state: PyTree, batch: TokenBatch) -> tuple[Planned, PyTree, Metrics]:
    value, metrics = _with_metrics(call(method.function, batch, state))
    return {'reward_B' if value.ndim == 1 else 'token_reward_BxT': value}, state, metrics

  def apply(planned: Planned, batch: TokenBatch, terms: Terms) -> Terms:
    if 'reward_B' in planned:
      return terms.replace(reward_B=planned['reward_B'])
    return terms.replace(token_reward_BxT=terms.token_reward_BxT + masked.zero(planned['token_reward_BxT'], batch.mask_BxT))

  return plan, apply


def _advantage(method: Method, call: Call) -> PlanAndApply:
  def plan(state: PyTree, batch: TokenBatch) -> tuple[Planned, PyTree, Metrics]:
    value, metrics = _with_metrics(call(method.function, batch, state))
    return {'advantage_BxT': value if value.ndim == 2 else value[:, None]}, state, metrics

  def apply(planned: Planned, batch: TokenBatch, terms: Terms) -> Terms:
    value_BxT = jnp.broadcast_to(planned['advantage_BxT'], batch.mask_BxT.shape)
    return terms.replace(advantage_BxT=masked.zero(value_BxT, batch.mask_BxT))

  return plan, apply


def _weight(method: Method, call: Call) -> PlanAndApply:
  def plan(state: PyTree, batch: TokenBatch) -> tuple[Planned, PyTree, Metrics]:
    value_BxT, metrics = _with_metrics(call(method.function, batch, state))
    return {'weight_BxT': masked.zero(value_BxT, batch.mask_BxT)}, state, metrics

  return plan, lambda planned, batch, terms: terms.replace(weight_BxT=terms.weight_BxT * planned['weight_BxT'])


def _with_plan(method: Method, call: Call, write: Callable[[Terms, jax.Array], Terms]) -> PlanAndApply:
  def plan(state: PyTree, batch: TokenBatch) -> tuple[Planned, PyTree, Metrics]:
    planned, metrics = (state, {}) if method.plan is None else call(method.plan, batch, state)
    return planned, state, metrics

  def apply(planned: Planned, batch: TokenBatch, terms: Terms) -> Terms:
    return write(terms, masked.zero(call(method.function, batch, planned), batch.mask_BxT))

  return plan, apply


_COMBINE: dict[Room, Callable[[Method, Call], PlanAndApply]] = {
  Room.REWARD: _reward,
  Room.ADVANTAGE: _advantage,
  Room.WEIGHT: _weight,
  Room.SURROGATE: lambda m, call: _with_plan(m, call, lambda terms, x: terms.replace(surrogate_BxT=x)),
  Room.REGULARIZER: lambda m, call: _with_plan(m, call, lambda terms, x: terms.replace(penalty_BxT=terms.penalty_BxT + x)),
}


class Lift(NamedTuple):
  """Turns a pure function into a Method of its room."""

  room: Room

  def __call__(
    self,
    name: str,
    function: Callable[..., Any],
    *,
    plan: Callable[..., Any] | None = None,
    stats: tuple[VocabStat, ...] | Callable[..., tuple[VocabStat, ...]] = (),
    notes: tuple[Note, ...] = (),
    controller: 'Callable[..., Controller] | None' = None,
    check: Callable[..., None] | None = None,
    init: Callable[..., PyTree] | None = None,
    remember: Callable[..., tuple[Planned, PyTree, Metrics]] | None = None,
    **ranges: str,
  ) -> Method:
    assert (init is None) == (remember is None), f'{name}: init and remember go together'
    method = Method(self.room, name, function, plan, ranges, stats, notes, controller, check, init, remember)
    unknown = set(ranges) - set(method.defaults())
    assert not unknown, f'{name} has no hyper-parameter {unknown}'
    return method


reward = Lift(Room.REWARD)  # (fields) -> reward_B (replaces) or token_reward_BxT (adds)
advantage = Lift(Room.ADVANTAGE)  # (fields) -> advantage_B or advantage_BxT (replaces); a shaper reads advantage_BxT
weight = Lift(Room.WEIGHT)  # (fields) -> weight_BxT, no gradient (multiplies)
surrogate = Lift(Room.SURROGATE)  # (fields, planned) -> objective_BxT, differentiable in logp and entropy (set once, maximised)
regularizer = Lift(Room.REGULARIZER)  # (fields, planned) -> penalty_BxT, differentiable (added, minimised)


def note_fraction(name: str, key: str) -> Note:
  """The note of a method that selects a fraction of the batch's tokens, and at least one: the floor may decide, not the fraction."""

  def note(facts: RunFacts, *, hyper: Mapping[str, Any]) -> str | None:
    fraction = hyper[key]
    if fraction * facts.num_tokens >= 1:
      return None
    return (
      f'{name}: {key}={fraction:g} of at most {facts.num_tokens} tokens is less than one token, so every update takes one token whatever '
      f'{key} is: raise {key} to at least 1/{facts.num_tokens}, or make the batch larger.'
    )

  return note


def note_on_policy(name: str, consequence: str, mend: str) -> Note:
  """The note of a method that acts through the importance ratio, which is 1 when a rollout serves one update."""

  def note(facts: RunFacts, *, hyper: Mapping[str, Any]) -> str | None:
    if facts.updates_per_rollout > 1:
      return None
    return f'{name}: with one update per rollout the ratio to the behaviour policy is 1, so {consequence}: {mend}.'

  return note


class Controller(NamedTuple):
  """A coefficient that moves once an update, from what it sees of the whole batch.

  Attributes:
    init: () -> state, a pytree whose structure never changes.
    update: (state, batch) -> (scale for this update, state, metrics).
    observe: None, or (state, own, measured) -> state, after the update: `own` is the predicted entropy change by the regularizer that it
      scales, `measured` the change that came, both in nats of the batch's mean.
  """

  init: Callable[[], PyTree]
  update: Callable[[PyTree, TokenBatch], tuple[jax.Array, PyTree, Metrics]]
  observe: Callable[[PyTree, jax.Array, jax.Array], PyTree] | None = None


def scheduled(schedule: Callable[[jax.Array], jax.Array]) -> Controller:
  """A coefficient that follows an optax schedule of the number of updates made so far."""

  def update(state: PyTree, batch: TokenBatch) -> tuple[jax.Array, PyTree, Metrics]:
    scale = jnp.asarray(schedule(state['num_updates']), jnp.float32)
    return scale, {'num_updates': state['num_updates'] + 1}, {'coefficient': scale}

  return Controller(lambda: {'num_updates': jnp.zeros((), jnp.int32)}, update)


def controlled(regularizer: Transform, controller: Controller) -> Transform:
  """The regularizer's penalty times the controller's coefficient; the coefficient is planned, so it carries no gradient.

  Args:
    regularizer: a transform of the regularizer room, usually with coef=1.
    controller: what moves the coefficient.
  """
  if regularizer.room != Room.REGULARIZER:
    raise UserError(f'{regularizer.name}: only a regularizer has a coefficient to control, and this is a {regularizer.room.name.lower()}.')

  def init(batch: TokenBatch) -> PyTree:
    return {'inner': regularizer.init(batch), 'controller': controller.init()}

  def plan(state: PyTree, batch: TokenBatch) -> tuple[Planned, PyTree, Metrics]:
    planned, inner, metrics = regularizer.plan(state['inner'], batch)
    scale, moved, more = controller.update(state['controller'], batch)
    return {'inner': planned, 'scale': scale}, {'inner': inner, 'controller': moved}, {**metrics, **more}

  def apply(planned: Planned, batch: TokenBatch, terms: Terms) -> Terms:
    alone = regularizer.apply(planned['inner'], batch, terms.replace(penalty_BxT=jnp.zeros_like(terms.penalty_BxT)))
    return terms.replace(penalty_BxT=terms.penalty_BxT + planned['scale'] * alone.penalty_BxT)

  def observe(state: PyTree, ledger: Metrics) -> PyTree:
    assert controller.observe is not None
    own = ledger[f'regularizer_{regularizer.name}']
    return {**state, 'controller': controller.observe(state['controller'], own, ledger['measured'])}

  return regularizer._replace(init=init, plan=plan, apply=apply, observe=None if controller.observe is None else observe)
