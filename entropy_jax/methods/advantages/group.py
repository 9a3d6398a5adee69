"""Advantages from the responses to the same prompt: each subtracts a baseline of the group, some divide by a scale.

R is `return_B`, the outcome reward plus the sum of the dense ones. Groups may be unequal in size and interleaved. A
response alone in its group has nothing to be compared with: its baseline is 0 and its scale 1, so A = R. A group whose
rewards are all equal gets exactly 0. For binary rewards, on-policy, all of these have an expected update along the
gradient of the success probability and differ in its length only (OPO where lengths are equal): they cannot favour
responses by their entropy.
"""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import groups, masked
from entropy_jax.types import Ratio


def dr_grpo_advantage(return_B: jax.Array, group_B: jax.Array) -> jax.Array:
  """The reward minus the group's mean: A_i = R_i - mean_g(R).

  Args:
    return_B: float32 [B].
    group_B: int [B], prompt ids.

  Returns:
    A, float32 [B]; it sums to 0 over every group of two or more.

  Gradient: none, advantages are planned.
  Limits: equals GRPO with scale='none'; (G - 1) / G times RLOO. In expectation (G - 1) / G of the gradient of success.
  Reference: Liu et al., Understanding R1-Zero-Like Training: A Critical Perspective, arXiv 2503.20783.
  Differs: the paper also sums tokens over a constant, which here is `aggregate='token_sum_over_capacity'`.

  >>> dr_grpo_advantage(jnp.array([1., 0., 0., 1.]), jnp.zeros(4, int)).tolist()
  [0.5, -0.5, -0.5, 0.5]
  """
  return jnp.where(groups.size(group_B) > 1, groups.centred(return_B, group_B), return_B)


dr_grpo = transform.advantage('dr_grpo', dr_grpo_advantage)


def _group_scale(return_B: jax.Array, group_B: jax.Array) -> jax.Array:
  return jnp.where(groups.size(group_B) > 1, groups.std(return_B, group_B), 1.0)


def grpo_advantage(
  return_B: jax.Array, group_B: jax.Array, *, epsilon: float = 1e-6, scale: str = 'group'
) -> jax.Array:
  """The group-standardised reward: A_i = (R_i - mean_g(R)) / (std_g(R) + epsilon), std with ddof = 1.

  Args:
    return_B: float32 [B].
    group_B: int [B], prompt ids.
    epsilon: > 0, keeps groups of equal rewards at 0 instead of 0 / 0.
    scale: what divides: 'group' the std of the group, 'batch' the std of all rewards of the batch, 'none' nothing.

  Returns:
    A, float32 [B]; it sums to 0 over every group of two or more, for every scale.

  Gradient: none, advantages are planned.
  Limits: scale='none' is Dr.GRPO. With two responses of unequal reward, A = +-0.7071 whatever the rewards are.
  Reference: Shao et al., DeepSeekMath, arXiv 2402.03300.
  Differs: verl has epsilon 1e-6 (its vectorised form floors the variance there instead), TRL 1e-4, and calls the scale
    `scale_rewards`.

  >>> [round(a, 6) for a in grpo_advantage(jnp.array([1., 0., 0., 1.]), jnp.zeros(4, int)).tolist()]
  [0.866024, -0.866024, -0.866024, 0.866024]
  """
  centred_B = dr_grpo_advantage(return_B, group_B)
  if scale == 'group':
    return centred_B / (_group_scale(return_B, group_B) + epsilon)
  if scale == 'batch':
    return centred_B / (jnp.sqrt(masked.variance(return_B, jnp.ones(return_B.shape, bool), ddof=1)) + epsilon)
  return centred_B


grpo = transform.advantage('grpo', grpo_advantage, epsilon='(0, inf)', scale='group | batch | none')


def rloo_advantage(return_B: jax.Array, group_B: jax.Array) -> jax.Array:
  """The reward minus the mean of the others: A_i = R_i - mean_{j != i}(R_j) = G / (G - 1) (R_i - mean_g(R)).

  Args:
    return_B: float32 [B].
    group_B: int [B], prompt ids.

  Returns:
    A, float32 [B]; it sums to 0 over every group of two or more.

  Gradient: none, advantages are planned.
  Limits: G / (G - 1) times Dr.GRPO. Its expected update is the gradient of success itself, with constant 1.
  Reference: Ahmadian et al., Back to Basics, arXiv 2402.14740.
  Differs: a group of one has A = R here and in verl's loop, 0 in verl's vectorised form. TRL first subtracts the KL
    summed over tokens from R, which here is `rewards.kl_in_reward`.

  >>> [round(a, 6) for a in rloo_advantage(jnp.array([1., 0., 0., 1.]), jnp.zeros(4, int)).tolist()]
  [0.666667, -0.666667, -0.666667, 0.666667]
  """
  # Scaling the centred reward, instead of subtracting the others' mean, keeps groups of equal rewards at exactly 0.
  size_B = groups.size(group_B)
  correction = jnp.where(size_B > 1, Ratio(size_B, size_B - 1.0).compute(), 1.0)
  return correction * dr_grpo_advantage(return_B, group_B)


rloo = transform.advantage('rloo', rloo_advantage)


def opo_advantage(return_B: jax.Array, length_B: jax.Array, group_B: jax.Array) -> jax.Array:
  """The reward minus the group's length-weighted mean: A_i = R_i - sum_j n_j R_j / sum_j n_j.

  Args:
    return_B: float32 [B].
    length_B: float32 [B], number of valid tokens n.
    group_B: int [B], prompt ids.

  Returns:
    A, float32 [B]; sum_i n_i A_i is 0 over every group of two or more, so the tokens' advantages sum to 0.

  Gradient: none, advantages are planned.
  Limits: equals Dr.GRPO for equal lengths. Variance-optimal if the squared score is proportional to length.
  Reference: Hao et al., On-Policy RL with Optimal Reward Baseline, arXiv 2505.23585.

  >>> opo_advantage(jnp.array([1., 0.]), jnp.array([1., 3.]), jnp.zeros(2, int)).tolist()    # baseline 1 / 4
  [0.75, -0.25]
  """
  baseline_B = Ratio(groups.sum(length_B * return_B, group_B), groups.sum(length_B, group_B)).compute()
  varied_B = groups.max(return_B, group_B) != groups.min(return_B, group_B)
  # The rounding of the baseline would leave 1e-9 where rewards are equal.
  compared_B = jnp.where(varied_B, return_B - baseline_B, 0.0)
  return jnp.where(groups.size(group_B) > 1, compared_B, return_B)


opo = transform.advantage('opo', opo_advantage)


def gpg_advantage(return_B: jax.Array, group_B: jax.Array) -> jax.Array:
  """The centred reward, larger where reward is rare: A_i = alpha (R_i - mean_g(R)), alpha = B / max(#(R != 0), 1).

  Args:
    return_B: float32 [B]; B is the number of rows of the whole batch.
    group_B: int [B], prompt ids.

  Returns:
    A, float32 [B]; it sums to 0 over every group of two or more.

  Gradient: none, advantages are planned.
  Limits: Dr.GRPO where every reward is non-zero.
  Reference: Chu et al., GPG: A Simple and Strong Reinforcement Learning Baseline for Model Reasoning, arXiv 2504.02546.
  Differs: alpha counts non-zero rewards, as verl does, not groups of unequal rewards; with rewards of -1 and 1 it is 1.

  >>> gpg_advantage(jnp.array([1., 0., 0., 0.]), jnp.zeros(4, int)).tolist()      # alpha = 4 / 1
  [3.0, -1.0, -1.0, -1.0]
  """
  rewarded = jnp.maximum(masked.count(return_B != 0.0), 1.0)
  return return_B.shape[0] / rewarded * dr_grpo_advantage(return_B, group_B)


gpg = transform.advantage('gpg', gpg_advantage)


def grpo_pass_at_k_advantage(return_B: jax.Array, group_B: jax.Array, *, epsilon: float = 1e-6) -> jax.Array:
  """Only the best response learns, by its lead: A_best = (R_best - R_second) / (std_g(R) + epsilon), every other 0.

  Args:
    return_B: float32 [B].
    group_B: int [B], prompt ids.
    epsilon: > 0.

  Returns:
    A >= 0, float32 [B]; all 0 in a group whose best is tied (its lead is 0) or that has one member (it leads nobody).

  Gradient: none, advantages are planned.
  Limits: with binary rewards, a group teaches only if exactly one response is right, and then A = sqrt(G).
  Reference: Tang et al., Optimizing Language Models for Inference Time Objectives using Reinforcement Learning,
    arXiv 2503.19595, in the form of verl's `grpo_passk`.
  Differs: Pass@k Training, arXiv 2508.10751, averages over all subsets of k and gives failures a negative advantage.

  >>> [round(a, 6) for a in grpo_pass_at_k_advantage(jnp.array([1., 0., 0., 0.]), jnp.zeros(4, int)).tolist()]
  [1.999996, 0.0, 0.0, 0.0]
  """
  best_B = groups.max(return_B, group_B) == return_B
  second_B = groups.max(jnp.where(best_B, -jnp.inf, return_B), group_B)
  leads_B = best_B & (groups.sum(jnp.where(best_B, 1.0, 0.0), group_B) == 1.0) & (groups.size(group_B) > 1)
  lead_B = return_B - jnp.where(leads_B, second_B, return_B)  # -inf is the second where nobody is left
  return lead_B / (_group_scale(return_B, group_B) + epsilon)


grpo_pass_at_k = transform.advantage('grpo_pass_at_k', grpo_pass_at_k_advantage, epsilon='(0, inf)')
