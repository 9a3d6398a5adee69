"""Advantages scaled by how certain a response was among its group: certain successes count more, certain failures are punished more."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.methods.advantages.group import grpo_advantage
from entropy_jax.ops import groups, masked
from entropy_jax.types import Metrics, Ratio


def edge_grpo_advantage(
  return_B: jax.Array,
  old_entropy_BxT: jax.Array,
  mask_BxT: jax.Array,
  group_B: jax.Array,
  *,
  over: str = 'group',
  clamp: float | None = None,
  epsilon: float = 1e-4,
  entropy_epsilon: float = 1e-8,
) -> tuple[jax.Array, Metrics]:
  """Entropy-driven advantage: GRPO's times the mean entropy over the response's own, A_i = GRPO_i mean_j(h_j) / h_i.

  Args:
    return_B: float32 [B].
    old_entropy_BxT: float32 [B, T], entropy of the behaviour policy, nats; h_i is its mean over the response's tokens.
    mask_BxT: bool [B, T]; responses without a token are left out of the mean of h.
    group_B: int [B], prompt ids.
    over: whether the mean of h is the group's or the 'batch''s (the released code's is its batch, which is one group of eight).
    clamp: None, or c > 1, which holds mean / h in [1 / c, c] (10 in a line of the released code that is commented out).
    epsilon: > 0, of GRPO's standard deviation.
    entropy_epsilon: > 0 nats, added to both entropies, so that a certain response stays finite.

  Returns:
    (A float32 [B], metrics: mean_scale and max_scale, of mean / h over responses). Its sum over a group is not 0.

  Gradient: none, advantages are planned.
  Limits: GRPO where all h are equal; unchanged when all h are scaled alike. Equal rewards give exactly 0: it cannot repair a group
    without contrast. Without clamp A grows as 1 / h.
  Reference: EDGE-GRPO: Entropy-Driven GRPO with Guided Error Correction for Advantage Diversity, and its released code.
  Differs: the released code averages h over padding too, and leaves h_i differentiable, which adds A / h grad h to the loss's gradient;
    here h is masked and a constant, as the method is described. The regularizer `edge_grpo_entropy` adds that gradient.

  >>> h = jnp.array([[.2], [.4], [.4], [.6]])
  >>> a, _ = edge_grpo_advantage(jnp.array([1., 1., 0., 0.]), h, jnp.ones((4, 1), bool), jnp.zeros(4, int))
  >>> [round(x, 5) for x in a.tolist()]
  [1.73175, 0.86588, -0.86588, -0.57725]
  """
  h_B = masked.mean(old_entropy_BxT, mask_BxT, axis=1)
  present_B = jnp.any(mask_BxT, axis=1)
  if over == 'group':
    mean_B = Ratio(groups.sum(h_B, group_B), groups.sum(jnp.where(present_B, 1.0, 0.0), group_B)).compute()
  else:
    mean_B = jnp.broadcast_to(masked.mean(h_B, present_B), h_B.shape)
  scale_B = (mean_B + entropy_epsilon) / (h_B + entropy_epsilon)
  if clamp is not None:
    scale_B = jnp.clip(scale_B, 1.0 / clamp, clamp)
  metrics = {'mean_scale': masked.mean(scale_B, present_B), 'max_scale': masked.extreme(scale_B, present_B)}
  return grpo_advantage(return_B, group_B, epsilon=epsilon) * scale_B, metrics


edge_grpo = transform.advantage(
  'edge_grpo',
  edge_grpo_advantage,
  over='group | batch',
  clamp='(1, inf)',
  epsilon='(0, inf)',
  entropy_epsilon='(0, inf)',
)
