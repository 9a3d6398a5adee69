"""Advantages that weigh hard prompts more than easy ones."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.methods.advantages.group import dr_grpo_advantage
from entropy_jax.ops import groups
from entropy_jax.types import Metrics, UserError


def pshw_advantage(
  return_B: jax.Array, group_B: jax.Array, *, slope: float = 0.256, failure: float = 0.0, success: float = 1.0
) -> tuple[jax.Array, Metrics]:
  """Policy-specific hard-sample weighting: the centred reward, larger where the policy rarely succeeds.

    A_i = (R_i - mu) D(mu),   D(mu) = 1 + slope (1 - mu) = -0.256 mu + 1.256,   mu = mean_g(R),   R in {-1, 1}

  Args:
    return_B: float32 [B]; failure and success are mapped to -1 and 1, partial rewards in between.
    group_B: int [B], prompt ids.
    slope: >= 0; 0.256 makes D 1 where all succeed, 1.256 at even odds and 1.512 where all fail.
    failure, success: the rewards that this run gives.

  Returns:
    (A float32 [B], metrics: mean_weight, the mean of D over responses). A sums to 0 over every group of two or more.

  Gradient: none, advantages are planned.
  Limits: slope=0 is Dr.GRPO of rewards in {-1, 1}. Equal rewards give exactly 0. A response alone in its group has A = R.
  Reference: Confucius3-Math: A Lightweight High-Performance Reasoning LLM for Chinese K-12 Mathematics Learning, section 6.2.
  Differs: the paper has rewards of -1 and 1; those of a run that gives 0 and 1, the default here, are mapped to them.

  >>> a, _ = pshw_advantage(jnp.array([1., 1., 1., 0.]), jnp.zeros(4, int))      # mu = 1/2, D = 1.128
  >>> [round(x, 6) for x in a.tolist()]
  [0.564, 0.564, 0.564, -1.692]
  """
  signed_B = 2.0 * (return_B - failure) / (success - failure) - 1.0
  weight_B = jnp.where(groups.size(group_B) > 1, 1.0 + slope * (1.0 - groups.mean(signed_B, group_B)), 1.0)
  return weight_B * dr_grpo_advantage(signed_B, group_B), {'mean_weight': jnp.mean(weight_B)}


def _check_rewards(*, failure: float, success: float) -> None:
  if failure == success:
    raise UserError(f'pshw: failure={failure:g} and success={success:g} are the same: give the two rewards of the run, such as 0 and 1.')


pshw = transform.advantage(
  'pshw', pshw_advantage, check=_check_rewards, slope='[0, inf)', failure='(-inf, inf)', success='(-inf, inf)'
)
