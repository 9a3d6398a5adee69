"""Holding the mean entropy of the batch at a target from both sides, and what a penalty of a batch mean owes to the aggregation."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import masked, ratios
from entropy_jax.transform import Note
from entropy_jax.types import Metrics, Planned, RunFacts


def note_token_mean(name: str) -> Note:
  """The note of a method that penalises a function of the token mean: its gradient is exact under token_mean alone."""

  def note(facts: RunFacts, *, hyper: Mapping[str, Any]) -> str | None:
    if facts.aggregate == 'token_mean':
      return None
    return (
      f'{name}: aggregate={facts.aggregate} weighs tokens otherwise than the mean that {name} penalises, so its gradient is another '
      f'mixture of the tokens and its coefficient another size: set aggregate=token_mean.'
    )

  return note


def ter_plan(entropy_BxT: jax.Array, mask_BxT: jax.Array, *, target: float = 0.55) -> tuple[Planned, Metrics]:
  """On which side of the target the token mean of the entropy lies.

  Args:
    entropy_BxT, mask_BxT: float32 and bool [B, T], of the whole batch.
    target: as in `ter_penalty`.

  Returns:
    ({'direction': 1 above the target, -1 below, 0 within 1e-5 of it and without a valid token}, metrics: entropy, distance).

  Gradient: none.
  """
  entropy = masked.mean(entropy_BxT, mask_BxT)
  distance = jnp.where(jnp.any(mask_BxT), entropy - target, 0.0)
  direction = jnp.where(jnp.abs(distance) > ratios.ROUNDING, jnp.sign(distance), 0.0)
  return {'direction': direction}, {'entropy': entropy, 'distance': distance}


def ter_penalty(entropy_BxT: jax.Array, direction: jax.Array, *, coef: float = 1e-3, target: float = 0.55) -> jax.Array:
  """Targeted entropy regularization, coef |mean H - target|, as a penalty of every token: coef sign(mean H - target) (H - target).

  Args:
    entropy_BxT: float32 [B, T], entropy of the current policy at every token, nats.
    direction: float32 scalar, the sign, from `ter_plan`.
    coef: weight of the penalty, at least 0.
    target: the mean entropy to hold, nats.

  Returns:
    float32 [B, T], minimised; its token mean is coef |mean H - target|.

  Gradient: coef sign(mean H - target) dH: entropy falls where the mean is above the target, and rises below it; 0 on the target.
  Limits: below the target, the entropy bonus (and a constant). The strength does not depend on the distance, so the mean chatters
    around the target by what one update moves it.
  Reference: Confucius3-Math technical report, section 6.1, Eq. 1.
  Differs: no code is released. The report's coefficient and target belong to its reward scale and optimizer.

  >>> H = jnp.array([[.2, .4]])
  >>> [round(x, 6) for x in ter_penalty(H, ter_plan(H, jnp.ones((1, 2), bool))[0]['direction'])[0].tolist()]     # mean 1e-3 (.55 - .3)
  [0.00035, 0.00015]
  """
  return coef * direction * (entropy_BxT - target)


ter = transform.regularizer(
  'ter',
  ter_penalty,
  plan=ter_plan,
  coef='[0, inf)',
  target='[0, inf)',
  notes=(note_token_mean('ter'),),
)
