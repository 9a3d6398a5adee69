"""The entropy ledger of an update: the first-order change of the mean entropy, token by token, for any policy and optimizer.

    predicted = (dH/dtheta) . dtheta,   dtheta = history - rate * gradient   (elementwise; exact for SGD, momentum, Adam, weight decay)

With v = rate * dH/dtheta the part of a token's loss term l is -(dl/dtheta) . v / den, a directional derivative: one backward pass (of the
mean entropy) and one forward-mode pass (of all loss terms along v) give every token's part at once.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from entropy_jax import types
from entropy_jax.measures import dynamics
from entropy_jax.measures import ledger as measure
from entropy_jax.models.policy import Policy
from entropy_jax.objective import Objective
from entropy_jax.ops import masked, ratios
from entropy_jax.parallel.split import WHOLE, Split
from entropy_jax.rollout import score as scoring
from entropy_jax.training.state import TrainState
from entropy_jax.types import SURROGATE, Metrics, Params, Planned, PyTree, Ratio, TokenBatch, VocabStat, take_rows

LARGEST_RATE = 10.0  # of an element, in units of the rate that its tensor's typical gradient would get


def _has_second_moment(node: Any) -> bool:
  return isinstance(node, tuple) and hasattr(node, 'nu')


def _second_moments(opt_state: PyTree) -> list[Any]:
  return [node.nu for node in jax.tree.leaves(opt_state, is_leaf=_has_second_moment) if _has_second_moment(node)]


def _with_second_moments(opt_state: PyTree, moments: list[Any]) -> PyTree:
  left = iter(moments)

  def replaced(node: Any) -> Any:
    return node._replace(nu=next(left)) if _has_second_moment(node) else node

  return jax.tree.map(replaced, opt_state, is_leaf=_has_second_moment)


def _decays(tx: optax.GradientTransformation) -> list[float]:
  """The decay of each second moment of the rule: what is left of 1 after an update with gradient 0."""
  with jax.ensure_compile_time_eval():
    zero = {'x': jnp.zeros(1)}
    state = tx.init(zero)
    ones = [jax.tree.map(jnp.ones_like, nu) for nu in _second_moments(state)]
    _, after = tx.update(zero, _with_second_moments(state, ones), zero)
    return [float(jax.tree.leaves(nu)[0][0]) for nu in _second_moments(after)]


def _linear(tx: optax.GradientTransformation, opt_state: PyTree, params: Params, gradient: Params) -> tuple[Params, Params]:
  """(changes, rate): the rule's change of the parameters, and how fast it falls with the gradient, second moments held."""
  changes, after = tx.update(gradient, opt_state, params)
  held = [
    jax.tree.map(lambda x, decay=decay: x / decay, nu) for nu, decay in zip(_second_moments(after), _decays(tx), strict=True)
  ]
  past, _ = tx.update(jax.tree.map(jnp.zeros_like, gradient), _with_second_moments(opt_state, held), params)
  rate = jax.tree.map(lambda c, p, g: jnp.where(g == 0, 0.0, (p - c) / jnp.where(g == 0, 1.0, g)), changes, past, gradient)
  return changes, rate


def affine(tx: optax.GradientTransformation, opt_state: PyTree, params: Params, gradient: Params) -> tuple[Params, Params]:
  """(history, rate) with dtheta = history - rate * gradient, elementwise, at the update that the rule makes of this gradient.

  The second moments of Adam and RMSProp are held at their values after this gradient, so history is what momentum and weight decay would do
  by themselves, and the rate is never negative. A rate is at most `LARGEST_RATE` times that of a gradient of the tensor's root mean square:
  the first steps of Adam are as long for an element whose tokens cancel as for any other, and without a bound those tokens would be
  credited with changes far larger than the step; what the bound leaves is history too. An element with gradient 0 has the typical rate. For
  a rule that is not affine even so, such as Lion, the rate is the secant from gradient 0.
  """
  changes, rate = _linear(tx, opt_state, params, gradient)
  # Filled with its root mean square a tensor has the norm that it had, so that clipping by the norm does the same.
  size = jax.tree.map(lambda g: jnp.full_like(g, jnp.sqrt(jnp.mean(jnp.square(g)))), gradient)
  _, typical = _linear(tx, opt_state, params, size)
  rate = jax.tree.map(lambda r, t, g: jnp.where(g == 0, t, jnp.minimum(r, LARGEST_RATE * t)), rate, typical, gradient)
  return jax.tree.map(lambda c, r, g: c + r * g, changes, rate, gradient), rate


def stats(objective: Objective) -> tuple[VocabStat, ...]:
  """The current policy's statistics that an update with a ledger scores: the objective's and the discriminator's expectation."""
  wanted = {s.name: s for s in objective.stats if s.of == 'current'}
  expected = dynamics.expected_discriminator_stat
  return (*wanted.values(), *(() if expected.name in wanted else (expected,)))


def entries(
  before: TrainState,
  after: TrainState,
  gradient: Params,
  den: jax.Array,
  planned: Planned,
  own: TokenBatch,
  *,
  objective: Objective,
  policy: Policy,
  tx: optax.GradientTransformation,
  temperature: float = 1.0,
  num_slices: int = 1,
  split: Split = WHOLE,
) -> Metrics:
  """Where the update's entropy change came from, in nats of the mean over the batch's valid tokens.

  Args:
    before, after: around the update; `after` may be a refused update, then `measured` is 0.
    gradient: of the whole batch, divided by den.
    den: of the loss.
    planned, own: this part's rows.
    objective, policy, tx, temperature, num_slices, split: as `training.step.update`.

  Returns:
    what `measures.ledger.entries` sorts, summed over the parts, and
    `predicted`: (dH/dtheta) . dtheta = surrogate + regularizers + history;
    `history`: the part of momentum, weight decay and amplified cancellations (see `affine`), which no token of this batch made;
    `sum`: surrogate + regularizers + history added up token by token, which equals `predicted` up to rounding;
    `measured`: H(after) - H(before) on the same tokens; `residual`: measured - predicted, of second order in the step;
    `forgone`: what the clipped tokens would have added to the surrogate's part had they entered as r A.
  """
  num_sequences, num_tokens = own.mask_BxT.shape
  size = num_sequences // num_slices
  starts = jnp.arange(num_slices) * size
  count = split.total(masked.count(own.mask_BxT))
  frozen, trained = types.frozen_of(before.params), types.without_frozen(before.params)

  def score(trained: Params, part: TokenBatch) -> scoring.Scores:
    params = types.with_frozen(trained, frozen)
    tokens = (part.tokens_BxN, part.token_mask_BxN, num_tokens)
    return scoring.score(policy, params, *tokens, temperature=temperature, stats=stats(objective), forward_mode=True)

  def slice_entropy(params: Params, start: jax.Array) -> jax.Array:
    part = take_rows(own, start, size)
    return masked.total(score(params, part).entropy_BxT, part.mask_BxT)

  def add(total: Any, start: jax.Array) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, jax.value_and_grad(slice_entropy)(trained, start)), None

  nothing = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained))
  found, _ = jax.lax.scan(add, nothing, starts)
  entropy, slope = jax.tree.map(lambda x: Ratio(x, count).compute(), split.total(found))

  history, rate = affine(tx, before.opt_state, trained, gradient)
  along = jax.tree.map(jnp.multiply, rate, slope)

  def slice_tokens(start: jax.Array) -> Metrics:
    part, plan = take_rows(own, start, size), take_rows(planned, start, size)

    def terms(params: Params) -> tuple[dict[str, jax.Array], scoring.Scores]:
      scores = score(params, part)
      return objective.parts(plan, scoring.fill(part, scores)), scores

    (_, scores), (slope_BxT, moved) = jax.jvp(terms, (trained,), (along,))
    filled = scoring.fill(part, scores)

    def push(logp_BxT: jax.Array) -> jax.Array:
      return jnp.sum(objective.parts(plan, filled.replace(logp_BxT=logp_BxT))[SURROGATE])

    def total(x_BxT: jax.Array) -> jax.Array:
      return objective.reduce(x_BxT, part.mask_BxT, planned['num_sequences']).num

    share_BxT = jax.grad(total)(jnp.zeros_like(filled.logp_BxT))  # of a token in the loss's numerator
    change = {name: -share_BxT * x_BxT for name, x_BxT in slope_BxT.items()}
    clipped_BxT = (jax.grad(push)(filled.logp_BxT) == 0) & (part.advantage_BxT != 0) & part.mask_BxT
    ratio_BxT = ratios.importance(masked.zero(filled.logp_BxT - part.old_logp_BxT, part.mask_BxT))
    unclipped_BxT = share_BxT * part.advantage_BxT * ratio_BxT * moved.logp_BxT
    discriminator_BxT = dynamics.token_discriminator(filled.logp_BxT, filled.entropy_BxT)
    discriminator_BxT -= scores.stats[dynamics.expected_discriminator_stat.name]
    sorted_ = measure.entries(change, part.advantage_BxT, discriminator_BxT, clipped_BxT, part.mask_BxT)
    return sorted_ | {'forgone': masked.total(unclipped_BxT, clipped_BxT)}

  def of_tokens(total: Metrics, start: jax.Array) -> tuple[Metrics, None]:
    return jax.tree.map(jnp.add, total, slice_tokens(start)), None

  shape = jax.eval_shape(slice_tokens, starts[0])
  sums, _ = jax.lax.scan(of_tokens, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape), starts)
  sums = jax.tree.map(lambda x: Ratio(x, den).compute(), split.total(sums))
  trained_after = types.without_frozen(after.params)
  reached, _ = jax.lax.scan(lambda total, start: (total + slice_entropy(trained_after, start), None), jnp.zeros(()), starts)

  changes = jax.tree.map(lambda past, r, g: past - r * g, history, rate, gradient)
  predicted, past = optax.tree.vdot(slope, changes), optax.tree.vdot(slope, history)
  measured = Ratio(split.total(reached), count).compute() - entropy
  terms = [value for name, value in sums.items() if name == SURROGATE or name.startswith('regularizer_')]
  whole = {'predicted': predicted, 'history': past, 'sum': past + sum(terms), 'measured': measured, 'residual': measured - predicted}
  return sums | whole
