"""The REINFORCE++ family: advantages whitened over all valid tokens of the batch, so that long responses weigh more.

Whitening subtracts the batch's mean, so a response can be pushed down although it is the best of its prompt.
"""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.methods.advantages.group import dr_grpo_advantage
from entropy_jax.ops import masked


def whiten_tokens(x_BxT: jax.Array, mask_BxT: jax.Array) -> jax.Array:
  """(x - mean) / sqrt(var + 1e-8) over the valid tokens, var with ddof = 1; 0 in masked slots, and where all are equal.

  >>> a = whiten_tokens(jnp.array([[1., 3., 5.]]), jnp.array([[True, True, False]]))      # mean 2, var 2
  >>> [round(x, 4) for x in a[0].tolist()]
  [-0.7071, 0.7071, 0.0]
  """
  # The rounding of a mean of equal values, 1e-8 relative, would be divided by sqrt(1e-8) and stand for a signal.
  varied = masked.extreme(x_BxT, mask_BxT) != masked.extreme(x_BxT, mask_BxT, largest=False)
  centred_BxT = masked.zero(x_BxT - masked.mean(x_BxT, mask_BxT), mask_BxT & varied)
  return centred_BxT * jax.lax.rsqrt(masked.variance(x_BxT, mask_BxT, ddof=1) + 1e-8)


def returns_to_go(reward_BxT: jax.Array, mask_BxT: jax.Array, *, discount: float = 1.0) -> jax.Array:
  """G_t = r_t + discount G_{t+1}, t + 1 the next valid token: masked slots are skipped and get 0.

  >>> returns_to_go(jnp.array([[0., 9., 4.]]), jnp.array([[True, False, True]]), discount=.5).tolist()
  [[2.0, 0.0, 4.0]]
  """

  def step(later_B: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    reward_B, valid_B = now
    return_B = jnp.where(valid_B, reward_B + discount * later_B, later_B)
    return return_B, jnp.where(valid_B, return_B, 0.0)

  start_B = jnp.zeros(reward_BxT.shape[0], jnp.float32)
  reward_TxB = masked.zero(reward_BxT, mask_BxT).T
  _, return_TxB = jax.lax.scan(step, start_B, (reward_TxB, mask_BxT.T), reverse=True)
  return return_TxB.T


def reinforce_plus_plus_advantage(reward_BxT: jax.Array, mask_BxT: jax.Array, *, discount: float = 1.0) -> jax.Array:
  """The discounted return to go, whitened over the tokens of the batch: A = whiten(G), G_t = r_t + discount G_{t+1}.

  Args:
    reward_BxT: float32 [B, T], dense rewards with the outcome on the last valid token.
    mask_BxT: bool [B, T].
    discount: in [0, 1].

  Returns:
    A, float32 [B, T], mean 0 and variance 1 over the valid tokens; all 0 where all returns are equal.

  Gradient: none, advantages are planned.
  Limits: with discount 1 and an outcome alone, one number a sequence, and no group is needed.
  Reference: Hu et al., REINFORCE++, arXiv 2501.03262.
  Differs: verl drops the return at a masked slot inside a response (a tool's output); here, as in GAE, it is skipped.

  >>> a = reinforce_plus_plus_advantage(jnp.array([[0., 1.], [0., 0.]]), jnp.ones((2, 2), bool))
  >>> [round(x, 6) for x in a.ravel().tolist()]
  [0.866025, 0.866025, -0.866025, -0.866025]
  """
  return whiten_tokens(returns_to_go(reward_BxT, mask_BxT, discount=discount), mask_BxT)


reinforce_plus_plus = transform.advantage('reinforce_plus_plus', reinforce_plus_plus_advantage, discount='[0, 1]')


def reinforce_plus_plus_baseline_advantage(
  return_B: jax.Array, group_B: jax.Array, mask_BxT: jax.Array
) -> jax.Array:
  """The reward minus the group's mean, on every token, then whitened over all tokens: A = whiten(R - mean_g(R)).

  Args:
    return_B: float32 [B].
    group_B: int [B], prompt ids.
    mask_BxT: bool [B, T].

  Returns:
    A, float32 [B, T], mean 0 and variance 1 over the valid tokens; all 0 where every group's rewards are equal.

  Gradient: none, advantages are planned.
  Limits: Dr.GRPO over its std in the batch, if all responses are equally long. With unequal lengths a group of equal
    rewards gets minus the batch's token mean, not 0.
  Reference: Hu et al., REINFORCE++, arXiv 2501.03262.
  """
  centred_BxT = jnp.broadcast_to(dr_grpo_advantage(return_B, group_B)[:, None], mask_BxT.shape)
  return whiten_tokens(centred_BxT, mask_BxT)


reinforce_plus_plus_baseline = transform.advantage(
  'reinforce_plus_plus_baseline', reinforce_plus_plus_baseline_advantage
)
