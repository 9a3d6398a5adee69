"""Token-level policy gradients: the plain one, its importance-weighted form for several updates on one rollout, and PPO's clipped form
with the bounds that later work added (clip-higher, dual clip, two-sided clip).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import masked, ratios
from entropy_jax.types import Metrics, Planned, RunFacts


def reinforce_objective(logp_BxT: jax.Array, advantage_BxT: jax.Array) -> jax.Array:
  """The policy gradient itself: A ln pi.

  Args:
    logp_BxT: float32 [B, T], log-probability under the current policy.
    advantage_BxT: float32 [B, T].

  Returns:
    float32 [B, T], maximised.

  Gradient: A with respect to logp; there is no ratio, so later updates on one rollout are biased.
  Reference: Williams, Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning, 1992; GPG uses the same
    loss (arXiv 2504.02546).

  >>> reinforce_objective(jnp.array([[-1., -2.]]), jnp.array([[1., -.5]])).tolist()
  [[-1.0, 1.0]]
  """
  return advantage_BxT * logp_BxT


def importance_objective(log_ratio_BxT: jax.Array, advantage_BxT: jax.Array) -> jax.Array:
  """The importance-weighted policy gradient without any clip: A r, r = pi / pi_old.

  Args:
    log_ratio_BxT: float32 [B, T], ln pi - ln pi_old; r is held constant beyond +-20.
    advantage_BxT: float32 [B, T].

  Returns:
    float32 [B, T], maximised.

  Gradient: A r with respect to logp.
  Limits: the gradient of reinforce where pi = pi_old; the surrogate under KL-Cov.
  Reference: Schulman et al., Proximal Policy Optimization Algorithms, arXiv 1707.06347, Eq. 6.
  """
  return advantage_BxT * ratios.importance(log_ratio_BxT)


def clip_ratio(
  ratio_BxT: jax.Array, advantage_BxT: jax.Array, low: float | jax.Array, high: float | jax.Array
) -> tuple[jax.Array, jax.Array]:
  """(clip(r, 1 - low, 1 + high) A, bool: where that is below r A, strictly, so that PPO's minimum takes it and the gradient is 0)."""
  held_BxT = jnp.clip(ratio_BxT, 1.0 - low, 1.0 + high) * advantage_BxT
  return held_BxT, held_BxT < ratio_BxT * advantage_BxT


def ppo_clip_objective(
  log_ratio_BxT: jax.Array,
  advantage_BxT: jax.Array,
  *,
  low: float = 0.2,
  high: float = 0.2,
  dual_clip: float | None = None,
  delta: float | None = None,
) -> jax.Array:
  """PPO's clipped surrogate: min(r A, clip(r, 1 - low, 1 + high) A).

    with delta:     min(min(r, delta) A, clip(r, 1 - low, 1 + high) A)
    with dual_clip: where A < 0, at least dual_clip A

  Args:
    log_ratio_BxT: float32 [B, T], ln pi - ln pi_old.
    advantage_BxT: float32 [B, T].
    low: how far r may fall where A < 0; in [0, 1].
    high: how far r may rise where A > 0; above `low` it is DAPO's clip-higher (0.28).
    dual_clip: None, or c > 1 (3 in verl, 10 in DAPO-style runs).
    delta: None, or the largest r where A < 0 (two-sided clip; 4 in INTELLECT-2).

  Returns:
    float32 [B, T], maximised.

  Gradient: A r with respect to logp, and exactly 0 where clipped.
  Limits: importance for low=1, high=inf; the gradient of reinforce where pi = pi_old.
  Reference: Schulman et al., arXiv 1707.06347, Eq. 7; dual clip: Ye et al., Mastering Complex Control in MOBA Games with Deep
    Reinforcement Learning, arXiv 1912.09729; clip-higher: DAPO, arXiv 2503.14476; delta: INTELLECT-2, arXiv 2505.07291.

  >>> r, A = jnp.array([[1.5, .5, .5, 1.5]]), jnp.array([[1., 1., -1., -1.]])
  >>> [round(x, 4) for x in ppo_clip_objective(jnp.log(r), A)[0].tolist()]
  [1.2, 0.5, -0.8, -1.5]
  """
  ratio_BxT = ratios.importance(log_ratio_BxT)
  held_BxT, _ = clip_ratio(ratio_BxT, advantage_BxT, low, high)
  free_BxT = advantage_BxT * (ratio_BxT if delta is None else jnp.minimum(ratio_BxT, delta))
  # A choice, not a minimum: jnp.minimum would split the gradient between tied branches.
  objective_BxT = jnp.where(held_BxT < free_BxT, held_BxT, free_BxT)
  if dual_clip is None:
    return objective_BxT
  floor_BxT = dual_clip * advantage_BxT
  return jnp.where((advantage_BxT < 0.0) & (objective_BxT < floor_BxT), floor_BxT, objective_BxT)


def ppo_clip_plan(
  log_ratio_BxT: jax.Array,
  advantage_BxT: jax.Array,
  mask_BxT: jax.Array,
  *,
  low: float,
  high: float,
  dual_clip: float | None,
  delta: float | None,
) -> tuple[Planned, Metrics]:
  """Fractions of the valid tokens that each bound holds: clip_fraction, and dual_clip_fraction and delta_fraction where they are on.

  A token counts as clipped where the clipped branch is taken, which |r - 1| > low would overstate: it ignores the sign of A.
  """
  ratio_BxT = ratios.importance(log_ratio_BxT)
  negative_BxT = advantage_BxT < 0.0
  held = {'clip_fraction': clip_ratio(ratio_BxT, advantage_BxT, low, high)[1]}
  if dual_clip is not None:
    held['dual_clip_fraction'] = negative_BxT & (ratio_BxT > dual_clip)
  if delta is not None:
    held['delta_fraction'] = negative_BxT & (ratio_BxT > delta)
  return {}, {name: masked.mean(x.astype(jnp.float32), mask_BxT) for name, x in held.items()}


def _note_ppo_clip(facts: RunFacts, *, hyper: Mapping[str, Any]) -> str | None:
  low, high, delta = hyper['low'], hyper['high'], hyper['delta']
  if high < low:
    return (
      f'ppo_clip: high={high:g} is below low={low:g}, so a token may lose more probability than it may gain in one rollout, which lowers '
      f'entropy: set high to at least {low:g} unless this is meant.'
    )
  if high > low and facts.updates_per_rollout <= 1:
    return (
      f'ppo_clip: with one update per rollout the ratio is 1 and nothing is clipped, so high={high:g} (clip-higher) has no effect: make '
      'several updates per rollout.'
    )
  if delta is not None and delta <= 1 + high:
    return (
      f'ppo_clip: delta={delta:g} is not above 1 + high={1 + high:g}, so it also cuts tokens with a positive advantage: set delta above '
      f'{1 + high:g}, for example 4.'
    )
  return None


reinforce = transform.surrogate('reinforce', reinforce_objective)
importance = transform.surrogate('importance', importance_objective)
ppo_clip = transform.surrogate(
  'ppo_clip',
  ppo_clip_objective,
  plan=ppo_clip_plan,
  low='[0, 1]',
  high='[0, inf]',
  dual_clip='(1, inf)',
  delta='(0, inf)',
  notes=(_note_ppo_clip,),
)
