"""Advantages against a greedy response, a critic, a variance-optimal baseline of each position, or nothing."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.methods.advantages.whitened import returns_to_go, whiten_tokens
from entropy_jax.ops import groups, masked, vocabulary
from entropy_jax.types import Ratio


def remax_advantage(reward_BxT: jax.Array, baseline_reward_B: jax.Array, mask_BxT: jax.Array) -> jax.Array:
  """The return to go minus the reward of the greedy response to the same prompt: A_t = sum_{s >= t} r_s - b.

  Args:
    reward_BxT: float32 [B, T], dense rewards with the outcome on the last valid token.
    baseline_reward_B: float32 [B], reward of the greedy response.
    mask_BxT: bool [B, T].

  Returns:
    A, float32 [B, T].

  Gradient: none, advantages are planned.
  Limits: 0 where the sample earns what the greedy response earns; no group is needed.
  Reference: Li et al., ReMax, arXiv 2310.10505.

  >>> remax_advantage(jnp.array([[0., 1.]]), jnp.array([.25]), jnp.ones((1, 2), bool)).tolist()
  [[0.75, 0.75]]
  """
  return masked.zero(returns_to_go(reward_BxT, mask_BxT) - baseline_reward_B[:, None], mask_BxT)


remax = transform.advantage('remax', remax_advantage)


def gae_advantage(
  reward_BxT: jax.Array,
  value_BxT: jax.Array,
  mask_BxT: jax.Array,
  *,
  discount: float = 1.0,
  trace: float = 0.95,
  whiten: bool = True,
) -> jax.Array:
  """Generalised advantage estimation: A_t = d_t + discount trace A_{t+1}, d_t = r_t + discount V_{t+1} - V_t.

  Args:
    reward_BxT: float32 [B, T], dense rewards with the outcome on the last valid token.
    value_BxT: float32 [B, T], the critic's value before the token.
    mask_BxT: bool [B, T]; t + 1 is the next valid token, and V is 0 after the last.
    discount: in [0, 1].
    trace: lambda in [0, 1]; 0 trusts the critic, 1 the sampled return.
    whiten: whether the batch is whitened over its valid tokens afterwards.

  Returns:
    A, float32 [B, T]. The critic's target is the A of whiten=False plus V.

  Gradient: none, advantages are planned.
  Limits: trace=1 is the discounted return to go minus V; trace=0 is d; V = 0 and trace=1, whitened, is REINFORCE++.
  Reference: Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation,
    arXiv 1506.02438.

  >>> r, v = jnp.array([[0., 0., 1.]]), jnp.full((1, 3), .5)
  >>> [round(a, 5) for a in gae_advantage(r, v, jnp.ones((1, 3), bool), whiten=False)[0].tolist()]
  [0.45125, 0.475, 0.5]
  """

  def step(
    later: tuple[jax.Array, jax.Array], now: tuple[jax.Array, jax.Array, jax.Array]
  ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    later_value_B, later_advantage_B = later
    reward_B, value_B, valid_B = now
    surprise_B = reward_B + discount * later_value_B - value_B
    advantage_B = surprise_B + discount * trace * later_advantage_B
    kept = jnp.where(valid_B, value_B, later_value_B), jnp.where(valid_B, advantage_B, later_advantage_B)
    return kept, jnp.where(valid_B, advantage_B, 0.0)

  zero_B = jnp.zeros(reward_BxT.shape[0], jnp.float32)
  reward_TxB, value_TxB = masked.zero(reward_BxT, mask_BxT).T, masked.zero(value_BxT, mask_BxT).T
  _, advantage_TxB = jax.lax.scan(step, (zero_B, zero_B), (reward_TxB, value_TxB, mask_BxT.T), reverse=True)
  return whiten_tokens(advantage_TxB.T, mask_BxT) if whiten else advantage_TxB.T


gae = transform.advantage('gae', gae_advantage, discount='[0, 1]', trace='[0, 1]')


def optimal_token_baseline_advantage(
  reward_BxT: jax.Array,
  old_logp_BxT: jax.Array,
  old_collision_probability_BxT: jax.Array,
  group_B: jax.Array,
  mask_BxT: jax.Array,
) -> jax.Array:
  """The return to go minus a variance-optimal baseline of each position: A_it = G_it - B_t.

  B_t = sum_i G_it W_it / sum_i W_it over the group's responses that reach t. The weight is the squared norm of the
  score in the logits up to t, W_it = sum_{j <= t} (1 - 2 pi_j + sum_v pi_v^2), pi_j that of the sampled token.

  Args:
    reward_BxT: float32 [B, T], dense rewards with the outcome on the last valid token.
    old_logp_BxT: float32 [B, T], behaviour policy.
    old_collision_probability_BxT: float32 [B, T], sum_v pi_v^2 of the behaviour policy.
    group_B: int [B], prompt ids.
    mask_BxT: bool [B, T].

  Returns:
    A, float32 [B, T]; sum_i W_it A_it is 0 at every position of every group of two or more.

  Gradient: none, advantages are planned.
  Limits: Dr.GRPO for an outcome alone, equal lengths and equal W. B is 0 for a group of one. Where one response alone
    reaches t, B_t is its own return and A is 0: the tail of the longest response learns nothing.
  Reference: Li et al., The Optimal Token Baseline: Variance Reduction for Long-Horizon LLM-RL, arXiv 2602.07078.
  Differs: verl adds 1e-8 to the denominator and can scale W by squared importance weights; it too has the zero tail.
  """
  return_BxT = returns_to_go(reward_BxT, mask_BxT)
  squared_score_BxT = 1.0 - 2.0 * jnp.exp(masked.zero(old_logp_BxT, mask_BxT)) + old_collision_probability_BxT
  # (1 - pi)^2 + the other pi^2: never negative, but rounding may make it so for a certain token.
  energy_BxT = jnp.cumsum(masked.zero(jnp.maximum(squared_score_BxT, 0.0), mask_BxT), axis=1)
  weight_BxT = masked.zero(energy_BxT, mask_BxT)
  over_group = jax.vmap(groups.sum, in_axes=(1, None), out_axes=1)
  baseline_BxT = Ratio(over_group(weight_BxT * return_BxT, group_B), over_group(weight_BxT, group_B)).compute()
  compared_BxT = jnp.where(groups.size(group_B)[:, None] > 1, return_BxT - baseline_BxT, return_BxT)
  return masked.zero(compared_BxT, mask_BxT)


optimal_token_baseline = transform.advantage(
  'optimal_token_baseline',
  optimal_token_baseline_advantage,
  stats=(vocabulary.collision_probability_stat(of='behaviour'),),
)


def unit_advantage(mask_BxT: jax.Array) -> jax.Array:
  """A = 1 on every valid token: imitation of the given responses, whatever their reward.

  Args:
    mask_BxT: bool [B, T].

  Returns:
    A, float32 [B, T].

  Gradient: none, advantages are planned.
  Limits: with the `reinforce` surrogate and token_mean, the loss is the supervised negative log-likelihood.

  >>> unit_advantage(jnp.array([[True, False]])).tolist()
  [[1.0, 0.0]]
  """
  return jnp.where(mask_BxT, 1.0, 0.0)


unit = transform.advantage('unit', unit_advantage)
