"""AEnt: an entropy bonus that leaves the improbable tokens out, with a coefficient that keeps it inside a band."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import masked, vocabulary
from entropy_jax.types import Metrics, Planned, PyTree, UserError, VocabStat


def aent_stats(*, clamp: float = 0.2) -> tuple[VocabStat, ...]:
  """The clamped entropy."""
  return (vocabulary.clamped_entropy_stat(clamp),)


def aent_init(*, coef: float = 1e-3) -> PyTree:
  """The coefficient of the first update, and how many updates were made."""
  return {'coefficient': jnp.float32(coef), 'num_updates': jnp.zeros((), jnp.int32)}


def aent_remember(
  state: PyTree,
  clamped_entropy_BxT: jax.Array,
  mask_BxT: jax.Array,
  *,
  adaptive: bool = False,
  low: float = 0.1,
  high: float = 0.5,
  step: float = 1e-3,
  minimum: float = 1e-5,
  maximum: float = 0.01,
  warm_up: int = 0,
) -> tuple[Planned, PyTree, Metrics]:
  """The coefficient of this update, and that of the next from what this one saw.

  Args:
    state: {coefficient, num_updates}.
    clamped_entropy_BxT, mask_BxT: float32 and bool [B, T], of the whole batch.
    adaptive, low, high, step, minimum, maximum, warm_up: as in `aent_penalty`.

  Returns:
    ({coefficient}, state, metrics: coefficient, entropy (its token mean)). An update without a valid token changes nothing.

  Gradient: none.
  """
  entropy = masked.mean(clamped_entropy_BxT, mask_BxT)
  seen = jnp.any(mask_BxT)
  coefficient = state['coefficient']
  outside = jnp.minimum(0.0, entropy - low) + jnp.maximum(0.0, entropy - high)
  moved = jnp.clip(coefficient - step * outside, minimum, maximum)
  moves = seen & (state['num_updates'] >= warm_up) & adaptive
  new = {'coefficient': jnp.where(moves, moved, coefficient), 'num_updates': state['num_updates'] + seen.astype(jnp.int32)}
  return {'coefficient': coefficient}, new, {'coefficient': coefficient, 'entropy': entropy}


def aent_penalty(clamped_entropy_BxT: jax.Array, coefficient: jax.Array) -> jax.Array:
  """The entropy bonus on the clamped entropy H^c, which drops the floor(clamp V) least probable tokens and renormalises: -c_k H^c.

    adaptive: c_(k+1) = clip(c_k - step (min(0, h_k - low) + max(0, h_k - high)), minimum, maximum) after the warm-up

  where h_k is the token mean of H^c that update k saw.

  Args:
    clamped_entropy_BxT: float32 [B, T], of the current policy, nats.
    coefficient: float32 scalar, from `aent_remember`.
    coef: weight of the bonus, c_0, at least 0.
    clamp: fraction of the vocabulary that is dropped, in [0, 1).
    adaptive: whether the coefficient moves.
    low, high: the band in which it rests, nats.
    step: how far it moves per nat outside the band.
    minimum, maximum: its box.
    warm_up: updates before it first moves.

  Returns:
    float32 [B, T], minimised.

  Gradient: -c_k dH^c, exactly 0 towards the dropped logits; none through the coefficient.
  Limits: clamp < 1 / V is the entropy bonus. A peaked policy has nearly the same entropy with and without the clamp: it is the gradient
    towards the tail that the clamp takes away.
  Reference: Shen, On Entropy Control in LLM-RL Algorithms (AEnt).
  Differs: read from the author's recipe, not from the paper's equations; its runs use clamp 0.3 or 0.4, its dataclass 0.2.

  >>> aent_penalty(jnp.array([[2., 0.]]), jnp.float32(.5)).tolist()
  [[-1.0, -0.0]]
  """
  return -coefficient * clamped_entropy_BxT


def _check_box(*, coef: float, adaptive: bool, low: float, high: float, minimum: float, maximum: float) -> None:
  if low > high:
    raise UserError(f'aent: low={low!r} is above high={high!r}; give low <= high.')
  if adaptive and not minimum <= coef <= maximum:
    raise UserError(f'aent: coef={coef!r} is not between minimum={minimum!r} and maximum={maximum!r}; give minimum <= coef <= maximum.')


aent = transform.regularizer(
  'aent',
  aent_penalty,
  stats=aent_stats,
  init=aent_init,
  remember=aent_remember,
  check=_check_box,
  coef='[0, inf)',
  clamp='[0, 1)',
  low='[0, inf)',
  high='[0, inf)',
  step='[0, inf)',
  minimum='[0, inf)',
  maximum='[0, inf)',
  warm_up='[0, inf)',
)
