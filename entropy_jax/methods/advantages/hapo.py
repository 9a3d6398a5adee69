"""HAPO's token-level group statistics: the baseline and the scale of a group are taken over its tokens, so that they are over tokens too
that the advantages are balanced.
"""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.methods.advantages.group import grpo_advantage
from entropy_jax.ops import groups
from entropy_jax.types import Metrics, Ratio


def tlga_advantage(
  return_B: jax.Array, length_B: jax.Array, group_B: jax.Array, *, limit: float = 5.0, epsilon: float = 1e-6
) -> tuple[jax.Array, Metrics]:
  """Token-level group average: GRPO whose mean and deviation weigh every response by its number of tokens n.

    mu = sum_g n R / sum_g n,   sigma^2 = sum_g n (R - mu)^2 / sum_g n,   A_i = (R_i - mu) / (sigma + epsilon);
    a group in which some |A| >= limit takes GRPO's advantages instead

  Args:
    return_B: float32 [B].
    length_B: float32 [B], number of valid tokens.
    group_B: int [B], prompt ids.
    limit: > 0; reached where a short response differs from very long ones.
    epsilon: > 0.

  Returns:
    (A float32 [B], metrics: fallback_fraction, of responses in groups that took GRPO's). sum_g n A = 0 in every group of two or more
    that did not.

  Gradient: none, advantages are planned.
  Limits: equal lengths give GRPO with the population's deviation (ddof = 0). Equal rewards give exactly 0. A response alone in its group
    has baseline 0 and scale 1.
  Reference: From Uniform to Heterogeneous: Tailoring Policy Optimization to Every Token's Nature (HAPO), and its released code.
  Differs: the released code leaves -mu / sigma on padding.

  >>> a, _ = tlga_advantage(jnp.array([1., 0.]), jnp.array([1., 3.]), jnp.zeros(2, int))     # mu = 1/4, sigma = sqrt(3) / 4
  >>> [round(x, 5) for x in a.tolist()]
  [1.73205, -0.57735]
  """
  total_B = groups.sum(length_B, group_B)
  varied_B = groups.max(return_B, group_B) != groups.min(return_B, group_B)
  centred_B = return_B - Ratio(groups.sum(length_B * return_B, group_B), total_B).compute()
  deviation_B = jnp.sqrt(Ratio(groups.sum(length_B * centred_B**2, group_B), total_B).compute())
  token_B = jnp.where(varied_B, centred_B / (deviation_B + epsilon), 0.0)
  # A response without a token has no weight in sigma, so only the others tell whether the scale is sound.
  largest_B = groups.max(jnp.where(length_B > 0, jnp.abs(token_B), 0.0), group_B)
  fallback_B = (largest_B >= limit) | (groups.size(group_B) == 1)
  advantage_B = jnp.where(fallback_B, grpo_advantage(return_B, group_B, epsilon=epsilon), token_B)
  return advantage_B, {'fallback_fraction': jnp.mean(largest_B >= limit, dtype=jnp.float32)}


tlga = transform.advantage('tlga', tlga_advantage, limit='(0, inf]', epsilon='(0, inf)')
