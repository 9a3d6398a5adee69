"""Imitation of given responses inside a batch of sampled ones."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import masked
from entropy_jax.types import Metrics


def imitate_advantage(
  advantage_BxT: jax.Array, imitated_B: jax.Array, mask_BxT: jax.Array
) -> tuple[jax.Array, Metrics]:
  """A = 1 on every token of the responses that are there to be imitated, the base elsewhere.

    grad J = grad J_base + share E_{o ~ pi^T}[R grad ln pi(o)], where a rollout adds correct responses sampled at temperature T

  Args:
    advantage_BxT: float32 [B, T], of a base such as grpo.
    imitated_B: bool [B], correct responses that a rollout put in the place of ordinary ones.
    mask_BxT: bool [B, T].

  Returns:
    (A, float32 [B, T]; the metric imitated_fraction, the share of tokens with A = 1 for that reason).

  Gradient: none, advantages are planned.
  Limits: the base where nothing is imitated. With R = 1, imitating samples of temperature T moves entropy in the direction of T - 1.
  Reference: Wang et al., Arbitrary Entropy Policy Optimization: Entropy Is Controllable in Reinforcement Fine-tuning, arXiv 2510.08141.
  Differs: the ratio of imitated rows is taken against the current policy at temperature 1, as in the released code: no importance weight
    for T.

  >>> A, _ = imitate_advantage(jnp.array([[.3, -.2], [.5, .5]]), jnp.array([True, False]), jnp.ones((2, 2), bool))
  >>> A.tolist()
  [[1.0, 1.0], [0.5, 0.5]]
  """
  imitated_BxT = mask_BxT & imitated_B[:, None]
  base_BxT = masked.zero(advantage_BxT, mask_BxT)
  return jnp.where(imitated_BxT, 1.0, base_BxT), {'imitated_fraction': masked.mean(imitated_BxT.astype(jnp.float32), mask_BxT)}


imitate = transform.advantage('imitate', imitate_advantage)
