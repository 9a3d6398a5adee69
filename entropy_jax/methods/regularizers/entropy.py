"""Entropy as a goal of its own: the bonus with a fixed coefficient, and with one that a controller moves to keep the mean entropy above a
target.
"""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import masked
from entropy_jax.transform import Controller
from entropy_jax.types import Metrics, PyTree, TokenBatch, UserError


def entropy_bonus_penalty(entropy_BxT: jax.Array, *, coef: float = 1e-3) -> jax.Array:
  """The entropy bonus, as a penalty: -coef H.

  Args:
    entropy_BxT: float32 [B, T], entropy of the current policy at every token, nats.
    coef: weight of the bonus, at least 0; about 5e-3 holds entropy in the Entropy Mechanism paper, 1e-2 lets it explode.

  Returns:
    float32 [B, T], minimised.

  Gradient: -coef dH with respect to the logits; it raises entropy.
  Limits: coef=0 leaves the objective as it is.
  Reference: Williams and Peng, Function Optimization Using Connectionist Reinforcement Learning Algorithms, 1991; coefficients from Cui
    et al., arXiv 2505.22617, section 4.1.

  >>> entropy_bonus_penalty(jnp.array([[2., 0.]]), coef=.5).tolist()
  [[-1.0, -0.0]]
  """
  return -coef * entropy_BxT


def adaptive_entropy_penalty(entropy_BxT: jax.Array) -> jax.Array:
  """The entropy bonus with a coefficient that rises while entropy is at or below a target, and is off while it is above.

    penalty = -c_k H;   c_k = a_k if h_(k-1) <= target, else 0
    a_(k+1) = min(a_k + step, maximum) if h_k <= target, else max(a_k - step, minimum)

  where h_k is the token mean of the entropy that update k saw, h_(-1) = inf and a_0 = initial.

  Args:
    entropy_BxT: float32 [B, T], entropy of the current policy at every token, nats.
    target, step, minimum, maximum, initial: see `entropy_target_controller`.

  Returns:
    float32 [B, T], minimised; before the coefficient, -H.

  Gradient: -c_k dH; none through the coefficient.
  Limits: step=0 with initial=coef is the entropy bonus, switched on only while the last entropy was at or below the target.
  Reference: He et al., Skywork Open Reasoner 1 Technical Report, arXiv 2505.22312.
  Differs: the report gates with the entropy of the same step; TRL, followed here, with that of the step before.
  """
  return -entropy_BxT


def entropy_target_controller(
  *, target: float = 0.2, step: float = 0.005, minimum: float = 0.0, maximum: float = 1.0, initial: float = 0.0
) -> Controller:
  """The controller of `adaptive_entropy`.

  Args:
    target: entropy to keep, nats.
    step: how far the coefficient moves in one update.
    minimum, maximum: bounds of the coefficient.
    initial: coefficient of the first update (which the gate leaves off: no entropy was seen before it).

  Returns:
    a Controller with state {coefficient, last_entropy}; an update without a valid token changes nothing.

  Raises:
    UserError: minimum, initial and maximum are not in this order.
  """
  if not minimum <= initial <= maximum:
    raise UserError(
      f'adaptive_entropy: initial={initial!r} is not between minimum={minimum!r} and maximum={maximum!r}; '
      'give minimum <= initial <= maximum.'
    )

  def init() -> PyTree:
    return {'coefficient': jnp.float32(initial), 'last_entropy': jnp.float32(jnp.inf)}

  def update(state: PyTree, batch: TokenBatch) -> tuple[jax.Array, PyTree, Metrics]:
    coefficient = state['coefficient']
    applied = jnp.where(state['last_entropy'] <= target, coefficient, 0.0)
    entropy = masked.mean(batch.entropy_BxT, batch.mask_BxT)
    raised = jnp.minimum(coefficient + step, maximum)
    lowered = jnp.maximum(coefficient - step, minimum)
    moved = {'coefficient': jnp.where(entropy <= target, raised, lowered), 'last_entropy': entropy}
    seen = jnp.any(batch.mask_BxT)
    state = {name: jnp.where(seen, moved[name], state[name]) for name in moved}
    return applied, state, {'coefficient': applied, 'next_coefficient': state['coefficient'], 'entropy': entropy}

  return Controller(init, update)


entropy_bonus = transform.regularizer('entropy_bonus', entropy_bonus_penalty, coef='[0, inf)')
adaptive_entropy = transform.regularizer(
  'adaptive_entropy',
  adaptive_entropy_penalty,
  controller=entropy_target_controller,
  target='[0, inf)',
  step='[0, inf)',
  minimum='[0, inf)',
  maximum='[0, inf)',
  initial='[0, inf)',
)
