"""Advantages from two sources, the dense rewards of a process and the outcome, each with a leave-one-out baseline of its own."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.methods.advantages.whitened import returns_to_go, whiten_tokens
from entropy_jax.ops import groups, masked
from entropy_jax.types import Metrics, Ratio


def source_rloo(reward_BxT: jax.Array, group_B: jax.Array, given_BxT: jax.Array) -> jax.Array:
  """Leave-one-out of one source of rewards: n / (n - 1) r_t - sum_j mean_t(r_j) / (n - 1) on the tokens where it gives one, [B, T].

  Args:
    reward_BxT: float32 [B, T].
    group_B: int [B], prompt ids, n responses each.
    given_BxT: bool [B, T], the tokens on which the source gives a reward.

  Returns:
    float32 [B, T], 0 elsewhere; r itself in a group of one. The response's own mean is in the sum: what is subtracted from r_t + (r_t -
    mean_t r_i) / (n - 1) is the mean of the other responses' means.

  >>> r, one = jnp.array([[1.], [0.], [0.], [1.]]), jnp.zeros(4, int)
  >>> [round(a, 4) for a in source_rloo(r, one, jnp.ones((4, 1), bool))[:, 0].tolist()]
  [0.6667, -0.6667, -0.6667, 0.6667]
  """
  # As n / (n - 1) (r - mean of means): a source that pays every response the same leaves exactly 0, which whitening would not blow up.
  others_B = groups.size(group_B) - 1.0
  mean_B = masked.mean(reward_BxT, given_BxT, axis=1)
  low_B, high_B = groups.min(mean_B, group_B), groups.max(mean_B, group_B)
  baseline_B = jnp.where(low_B == high_B, low_B, groups.mean(mean_B, group_B))
  alone_B = others_B == 0.0
  factor_B = jnp.where(alone_B, 1.0, Ratio(others_B + 1.0, others_B).compute())
  return masked.zero(factor_B[:, None] * (reward_BxT - jnp.where(alone_B, 0.0, baseline_B)[:, None]), given_BxT)


def prime_advantage(
  reward_BxT: jax.Array,
  reward_B: jax.Array,
  group_B: jax.Array,
  mask_BxT: jax.Array,
  *,
  process: float = 5.0,
  outcome: float = 5.0,
  whiten: bool = True,
) -> tuple[jax.Array, Metrics]:
  """The return to go of a weighted sum of two sources, each minus its own leave-one-out baseline, whitened over the tokens.

    A = whiten(G),   G_t = sum_{s >= t} (process rloo(dense rewards)_s + outcome rloo(outcome)_s)

  Args:
    reward_BxT: float32 [B, T], dense rewards with the outcome on the last valid token; `implicit_prm` gives the dense ones.
    reward_B: float32 [B], outcome.
    group_B: int [B], prompt ids.
    mask_BxT: bool [B, T].
    process, outcome: weights of the two sources, at least 0.
    whiten: whether G is whitened over the valid tokens of the batch.

  Returns:
    (A, float32 [B, T]; metrics process_return and outcome_return, the mean over tokens of |G| of each weighted source).

  Gradient: none, advantages are planned.
  Limits: without dense rewards and unwhitened, outcome times RLOO. The baseline of the process is a mean over tokens, so its return to
    go grows with length: a response whose every token earns more than the baseline gains by being long.
  Reference: Cui et al., Process Reinforcement through Implicit Rewards (PRIME), arXiv 2502.01456.

  >>> r = jnp.array([[0., 1.], [0., 0.]])
  >>> A, _ = prime_advantage(r, jnp.array([1., 0.]), jnp.zeros(2, int), jnp.ones((2, 2), bool), outcome=1., whiten=False)
  >>> A.tolist()
  [[1.0, 1.0], [-1.0, -1.0]]
  """
  position_T = jnp.arange(mask_BxT.shape[1])[None, :]
  last_BxT = mask_BxT & (position_T == jnp.max(jnp.where(mask_BxT, position_T, -1), axis=1)[:, None])
  outcome_BxT = jnp.where(last_BxT, reward_B[:, None], 0.0)
  dense_BxT = masked.zero(reward_BxT, mask_BxT) - outcome_BxT
  process_BxT = process * returns_to_go(source_rloo(dense_BxT, group_B, mask_BxT), mask_BxT)
  outcome_BxT = outcome * returns_to_go(source_rloo(outcome_BxT, group_B, last_BxT), mask_BxT)
  return_BxT = process_BxT + outcome_BxT
  metrics = {
    'process_return': masked.mean(jnp.abs(process_BxT), mask_BxT),
    'outcome_return': masked.mean(jnp.abs(outcome_BxT), mask_BxT),
  }
  return (whiten_tokens(return_BxT, mask_BxT) if whiten else return_BxT), metrics


prime = transform.advantage('prime', prime_advantage, process='[0, inf)', outcome='[0, inf)')
