"""A quantile of the group's rewards as the baseline, so that most responses teach nothing: in hard groups the rare successes alone do, in
easy groups the rare failures alone.
"""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.methods.advantages.group import grpo_advantage
from entropy_jax.ops import groups, ranks
from entropy_jax.types import Metrics


def qae_advantage(
  return_B: jax.Array,
  group_B: jax.Array,
  *,
  quantile: float | None = 0.4,
  method: str = 'lower_inf',
  keep: str = 'both',
  epsilon: float = 1e-6,
) -> tuple[jax.Array, Metrics]:
  """The reward minus the group's K-quantile, over the group's deviation: A_i = (R_i - Q_K) / (std_g(R) + epsilon).

    Q_K = inf{x : F(x) >= K};   for binary rewards 0 where #wrong >= ceil(K G), 1 elsewhere

  Args:
    return_B: float32 [B].
    group_B: int [B], prompt ids.
    quantile: K in (0, 1); None for the mean, which is GRPO. Larger K makes more groups punish failures, and entropy higher.
    method: 'lower_inf', the definition, counted in integers (in floats 1 - p misfires at p = 1 - K); or 'linear', as released.
    keep: 'both' signs, or the ablations 'positive' and 'negative', which set the advantages of the other sign to 0.
    epsilon: > 0; std has ddof = 1.

  Returns:
    (A float32 [B], metrics: zero_fraction, of the responses). Its sum over a group is not 0.

  Gradient: none, advantages are planned.
  Limits: K <= 1 / G rewards successes alone, K > 1 - 1 / G punishes failures alone. Equal rewards give exactly 0. A response alone in its
    group has baseline 0 and scale 1. For rewards that are not binary, whoever ties with the quantile gets 0. On-policy and in expectation
    it is GRPO with another step size for each prompt: it differs through several updates a rollout.
  Reference: Quantile Advantage Estimation for Entropy-Safe Reasoning, Eq. 2-5.
  Differs: the released code interpolates linearly, so the baseline is between 0 and 1 where the quantile falls between a failure and a
    success: 5 of 8 right and K = 0.4 give A = 0.386 and -1.546 instead of 0 and -1.932.

  >>> a, _ = qae_advantage(jnp.array([1., 0., 0., 0.]), jnp.zeros(4, int))
  >>> [round(x, 5) for x in a.tolist()]
  [2.0, 0.0, 0.0, 0.0]
  """
  if quantile is None:
    advantage_B = grpo_advantage(return_B, group_B, epsilon=epsilon)
  else:
    several_B = groups.size(group_B) > 1
    compared_B = return_B - jnp.where(several_B, ranks.quantile(return_B, group_B, quantile, method=method), 0.0)
    advantage_B = compared_B / (jnp.where(several_B, groups.std(return_B, group_B), 1.0) + epsilon)
  if keep == 'positive':
    advantage_B = jnp.maximum(advantage_B, 0.0)
  elif keep == 'negative':
    advantage_B = jnp.minimum(advantage_B, 0.0)
  return advantage_B, {'zero_fraction': jnp.mean(advantage_B == 0.0, dtype=jnp.float32)}


qae = transform.advantage(
  'qae',
  qae_advantage,
  quantile='(0, 1)',
  method='lower_inf | linear',
  keep='both | positive | negative',
  epsilon='(0, inf)',
)
