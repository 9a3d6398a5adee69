"""Advantages against the overconfidence of self-made labels: scaled by the entropy of the response in its group, or bounded."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import groups, masked
from entropy_jax.types import Metrics, Ratio


def ear_res_advantage(
  advantage_BxT: jax.Array,
  old_entropy_BxT: jax.Array,
  group_B: jax.Array,
  mask_BxT: jax.Array,
  *,
  floor: float | None = None,
) -> tuple[jax.Array, Metrics]:
  """The advantage times how far the response's entropy stays below its group's: A' = Y A, Y = 1 + (Hbar - H) / Hbar = 2 - H / Hbar.

  Args:
    advantage_BxT: float32 [B, T], of a base; the paper's is grpo on majority-vote rewards.
    old_entropy_BxT: float32 [B, T], behaviour policy; H is its mean over the response, Hbar the mean of H over the group's responses.
    group_B: int [B], prompt ids.
    mask_BxT: bool [B, T].
    floor: None, or the smallest Y, at most 1.

  Returns:
    (A, float32 [B, T]; metrics flipped_fraction, the share of responses with Y < 0 after the floor, and largest_scale, max Y).

  Gradient: none, advantages are planned.
  Limits: the base where entropies are equal or all 0; the mean of Y over a group is 1. Y < 0, and the advantage changes its sign, where
    H > 2 Hbar, which small groups reach; floor=0 forbids it. Failures of certain responses are amplified too.
  Reference: Liu et al., ETTRL: Balancing Exploration and Exploitation in LLM Test-Time Reinforcement Learning via Entropy Mechanism,
    Adv-Res.
  Differs: floor is not in the paper.

  >>> A, _ = ear_res_advantage(jnp.ones((3, 1)), jnp.array([[1.], [2.], [3.]]), jnp.zeros(3, int), jnp.ones((3, 1), bool))
  >>> A[:, 0].tolist()
  [1.5, 1.0, 0.5]
  """
  counts_B = jnp.any(mask_BxT, axis=1)
  entropy_B = masked.mean(old_entropy_BxT, mask_BxT, axis=1)
  mean_B = Ratio(groups.sum(entropy_B, group_B), groups.sum(counts_B.astype(jnp.float32), group_B)).compute()
  scale_B = jnp.where(mean_B > 0.0, 1.0 + Ratio(mean_B - entropy_B, mean_B).compute(), 1.0)
  if floor is not None:
    scale_B = jnp.maximum(scale_B, floor)
  metrics = {
    'flipped_fraction': masked.mean((scale_B < 0.0).astype(jnp.float32), counts_B),
    'largest_scale': masked.extreme(scale_B, counts_B),
  }
  return masked.zero(scale_B[:, None] * advantage_BxT, mask_BxT), metrics


ear_res = transform.advantage('ear_res', ear_res_advantage, floor='(-inf, 1]')


def ear_clip_advantage(advantage_BxT: jax.Array, mask_BxT: jax.Array, *, bound: float = 2.0) -> tuple[jax.Array, Metrics]:
  """The advantage bounded on both sides: A' = clip(A, -bound, bound).

  Args:
    advantage_BxT: float32 [B, T], of a base; the paper's is grpo on majority-vote rewards.
    mask_BxT: bool [B, T].
    bound: beta, above 0.

  Returns:
    (A, float32 [B, T], in [-bound, bound]; the metric clipped_fraction, the share of tokens whose advantage was outside).

  Gradient: none, advantages are planned.
  Limits: the base for bound=inf. For a vote with majority share p, A is sqrt((1 - p) / p) or -sqrt(p / (1 - p)), with the population's
    deviation: bound 2 acts for p < .2 and p > .8 alone.
  Reference: Liu et al., ETTRL: Balancing Exploration and Exploitation in LLM Test-Time Reinforcement Learning via Entropy Mechanism,
    Adv-Clip.

  >>> ear_clip_advantage(jnp.array([[3., -1., -2.5]]), jnp.ones((1, 3), bool))[0].tolist()
  [[2.0, -1.0, -2.0]]
  """
  base_BxT = masked.zero(advantage_BxT, mask_BxT)
  outside_BxT = jnp.abs(base_BxT) > bound
  return jnp.clip(base_BxT, -bound, bound), {'clipped_fraction': masked.mean(outside_BxT.astype(jnp.float32), mask_BxT)}


ear_clip = transform.advantage('ear_clip', ear_clip_advantage, bound='(0, inf]')
