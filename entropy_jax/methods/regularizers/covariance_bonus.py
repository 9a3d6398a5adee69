"""TEA-RL: an entropy bonus that is larger on the tokens which the update is about to sharpen."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import masked
from entropy_jax.types import Metrics, Planned, Ratio


def tea_weight(
  logp_BxT: jax.Array,
  advantage_BxT: jax.Array,
  mask_BxT: jax.Array,
  logp_mean: jax.Array,
  advantage_mean: jax.Array,
  *,
  scale: float = 10.0,
  upper: float = 5.0,
) -> jax.Array:
  """clip(scale softmax_t(cov), 0, upper) over the valid tokens of each sequence, cov = (A - mean A) (lp - mean lp).

  Args:
    logp_BxT, advantage_BxT, mask_BxT: float32 and bool [B, T].
    logp_mean, advantage_mean: float32 scalars, means over the valid tokens of the whole batch.
    scale, upper: as in `tea_rl_penalty`.

  Returns:
    float32 [B, T], 0 where masked; a row sums to `scale` before it is bounded.

  Gradient: through logp, not through its mean.
  """
  cov_BxT = (advantage_BxT - advantage_mean) * (masked.zero(logp_BxT, mask_BxT) - logp_mean)
  top_B = jax.lax.stop_gradient(jnp.max(jnp.where(mask_BxT, cov_BxT, -jnp.inf), axis=1))
  top_B = jnp.where(jnp.any(mask_BxT, axis=1), top_B, 0.0)
  e_BxT = masked.zero(jnp.exp(masked.zero(cov_BxT - top_B[:, None], mask_BxT)), mask_BxT)
  share_BxT = Ratio(e_BxT, jnp.sum(e_BxT, axis=1, keepdims=True)).compute()
  return jnp.minimum(scale * share_BxT, upper)


def tea_rl_plan(
  logp_BxT: jax.Array, advantage_BxT: jax.Array, mask_BxT: jax.Array, *, scale: float = 10.0, upper: float = 5.0
) -> tuple[Planned, Metrics]:
  """The means over the valid tokens of the whole batch by which the covariance is centred.

  Args:
    logp_BxT, advantage_BxT, mask_BxT: float32 and bool [B, T], of the whole batch.
    scale, upper: as in `tea_rl_penalty`.

  Returns:
    ({logp_mean, advantage_mean}, metrics: weight_mean, bounded_fraction).

  Gradient: none.
  """
  planned = {'logp_mean': masked.mean(logp_BxT, mask_BxT), 'advantage_mean': masked.mean(advantage_BxT, mask_BxT)}
  weight_BxT = tea_weight(logp_BxT, advantage_BxT, mask_BxT, **planned, scale=scale, upper=upper)
  bounded_BxT = jnp.where(weight_BxT >= upper, 1.0, 0.0)
  return planned, {'weight_mean': masked.mean(weight_BxT, mask_BxT), 'bounded_fraction': masked.mean(bounded_BxT, mask_BxT)}


def tea_rl_penalty(
  entropy_BxT: jax.Array,
  logp_BxT: jax.Array,
  advantage_BxT: jax.Array,
  mask_BxT: jax.Array,
  logp_mean: jax.Array,
  advantage_mean: jax.Array,
  *,
  coef: float = 1.0,
  scale: float = 10.0,
  upper: float = 5.0,
  detach: bool = True,
) -> jax.Array:
  """The token-adaptive entropy bonus, as a penalty: -coef w H, w = clip(scale softmax_t((A - mean A) (lp - mean lp)), 0, upper).

  Args:
    entropy_BxT: float32 [B, T], entropy of the current policy at every token, nats.
    logp_BxT, advantage_BxT, mask_BxT: float32 and bool [B, T].
    logp_mean, advantage_mean: from `tea_rl_plan`.
    coef: weight of the bonus, at least 0; the released code has none, that is 1.
    scale: what the weights of a sequence add up to, above 0.
    upper: bound of a weight, above 0.
    detach: whether the weight is a constant for the gradient; False differentiates it too, as the released code literally does.

  Returns:
    float32 [B, T], minimised.

  Gradient: -coef w dH; with detach=False also -coef H dw through the log-probabilities.
  Limits: equal advantages have no covariance and give every token of a sequence of n the weight scale / n: the softmax makes the bonus
    of a token smaller the longer its sequence.
  Reference: Light-IF, Endowing LLMs with Generalizable Reasoning via Preview and Self-Checking for Complex Instruction Following (TEA-RL).
  Differs: read from the released code, whose branch is never reached: it stands after another that always holds, and reads a variable
    that is not defined. A sequence without a valid token gives NaN there, and 0 here.

  >>> lp, A = jnp.log(jnp.array([[.9, .5, .1]] * 2)), jnp.array([[1.], [-1.]]) * jnp.ones((2, 3))
  >>> every = jnp.ones((2, 3), bool)
  >>> means, _ = tea_rl_plan(lp, A, every)
  >>> [[round(x, 3) for x in row] for row in tea_rl_penalty(-jnp.ones((2, 3)), lp, A, every, **means).tolist()]
  [[5.0, 3.333, 0.667], [0.847, 1.525, 5.0]]
  """
  weight_BxT = tea_weight(logp_BxT, advantage_BxT, mask_BxT, logp_mean, advantage_mean, scale=scale, upper=upper)
  return -coef * (jax.lax.stop_gradient(weight_BxT) if detach else weight_BxT) * entropy_BxT


tea_rl = transform.regularizer(
  'tea_rl',
  tea_rl_penalty,
  plan=tea_rl_plan,
  coef='[0, inf)',
  scale='(0, inf)',
  upper='(0, inf)',
)
