"""Credit for planning: the tokens of strategic phrases learn more from success and less from failure than those that carry a plan out."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import masked
from entropy_jax.types import Metrics


def hicra_advantage(
  advantage_BxT: jax.Array, planning_BxT: jax.Array, old_entropy_BxT: jax.Array, mask_BxT: jax.Array, *, amplify: float = 0.2
) -> tuple[jax.Array, Metrics]:
  """A + amplify |A| on planning tokens, A on all others: success counts (1 + amplify)-fold there, failure (1 - amplify)-fold.

  Args:
    advantage_BxT: float32 [B, T], of a base; the paper's is dr_grpo. Whitening the batch afterwards would undo part of it.
    planning_BxT: int [B, T], positive on the tokens of a strategic phrase, 0 in execution.
    old_entropy_BxT: float32 [B, T], behaviour policy, for the metrics.
    mask_BxT: bool [B, T].
    amplify: alpha, at least 0.

  Returns:
    (A, float32 [B, T]; metrics planning_fraction and the mean entropies planning_entropy and execution_entropy, nats).

  Gradient: none, advantages are planned.
  Limits: the base for amplify = 0 and where nothing is planning; at amplify = 1 planning tokens learn nothing from failure. The sum
    over a group's planning tokens is amplify sum |A| > 0: no longer centred.
  Reference: Wang et al., Emergent Hierarchical Reasoning in LLMs through Reinforcement Learning, arXiv 2509.03646.
  Differs: one summary says that the failures' advantages are sharpened; the formula dampens them.

  >>> A, _ = hicra_advantage(jnp.array([[.5, -.5, .5]]), jnp.array([[1, 3, 0]]), jnp.ones((1, 3)), jnp.ones((1, 3), bool))
  >>> [round(a, 6) for a in A[0].tolist()]
  [0.6, -0.4, 0.5]
  """
  base_BxT = masked.zero(advantage_BxT, mask_BxT)
  planning_BxT = mask_BxT & (planning_BxT > 0)
  metrics = {
    'planning_fraction': masked.mean(planning_BxT.astype(jnp.float32), mask_BxT),
    'planning_entropy': masked.mean(old_entropy_BxT, planning_BxT),
    'execution_entropy': masked.mean(old_entropy_BxT, mask_BxT & ~planning_BxT),
  }
  return jnp.where(planning_BxT, base_BxT + amplify * jnp.abs(base_BxT), base_BxT), metrics


hicra = transform.advantage('hicra', hicra_advantage, amplify='[0, inf)')
