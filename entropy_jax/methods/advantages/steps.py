"""Advantages of the steps of a trajectory: an outcome shared out over its steps by how certain the policy was in each."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import masked, steps
from entropy_jax.types import Metrics

_ROUNDING = 1e-6  # relative: the float32 rounding of the mean of equal entropies, which min-max would blow up to the whole of [0, 1]


def _unit_range(x_BxT: jax.Array, mask_BxT: jax.Array) -> jax.Array:
  """(x - min) / (max - min + 1e-8) over the valid entries, 0 where all are equal up to rounding."""
  low, high = masked.extreme(x_BxT, mask_BxT, largest=False), masked.extreme(x_BxT, mask_BxT)
  varied = high - low > _ROUNDING * jnp.maximum(jnp.abs(high), jnp.abs(low))
  return jnp.where(varied, (x_BxT - low) / (high - low + 1e-8), 0.0)


def empg_advantage(
  advantage_BxT: jax.Array,
  old_entropy_BxT: jax.Array,
  segment_BxT: jax.Array,
  mask_BxT: jax.Array,
  *,
  sharpness: float = 1.0,
  clarity_sharpness: float = 1.0,
  clarity: float = 0.1,
) -> tuple[jax.Array, Metrics]:
  """The advantage scaled up on certain steps, plus a bonus for steps after which the policy is certain, centred over all steps.

    Hn = (H - min H) / (max H - min H + 1e-8);   g = exp(-sharpness Hn) / mean exp(-sharpness Hn);   f = exp(-clarity_sharpness Hn)
    A'_t = A_t g(H_t) + clarity f(H_{t+1}), no bonus for the last step;   A = A' - mean A'

  H is the mean token entropy of a step, and every min, max and mean is one over all steps of the batch, whatever their lengths.

  Args:
    advantage_BxT: float32 [B, T], of a base such as grpo; where it differs within a step, the step counts with its mean.
    old_entropy_BxT: float32 [B, T], behaviour policy, nats.
    segment_BxT: int [B, T], step of the token; a token in no step (negative) keeps its advantage.
    mask_BxT: bool [B, T].
    sharpness: k of the scale g, at least 0.
    clarity_sharpness: k' of the bonus f, at least 0.
    clarity: zeta, weight of the bonus, at least 0.

  Returns:
    (A, float32 [B, T], which sums to 0 over the steps of the batch; metrics num_steps, step_entropy and negative_fraction, the share of
    the steps with a positive base advantage that end below 0).

  Gradient: none, advantages are planned.
  Limits: equal entropies, or sharpness = 0, give g = 1; sharpness = clarity = 0 gives A minus its mean over steps. The bonus knows no
    outcome, and the centring turns the least certain step of a success negative.
  Reference: Wang et al., Harnessing Uncertainty: Entropy-Modulated Policy Gradients for Long-Horizon LLM Agents, arXiv 2509.09265,
    Eq. 7-12.
  Differs: a port has clarity = 0.05. Entropies that are equal up to rounding count as equal; the formula would stretch them to [0, 1].

  >>> H, one = jnp.array([[.2, .6, 1.]]), jnp.ones((1, 3))
  >>> A, _ = empg_advantage(one, H, jnp.array([[0, 1, 2]]), one > 0)
  >>> [round(a, 4) for a in A[0].tolist()]
  [0.5476, -0.0741, -0.4735]
  """
  first_BxT = steps.first(segment_BxT, mask_BxT)
  entropy_BxT = steps.mean(old_entropy_BxT, segment_BxT, mask_BxT)
  normal_BxT = _unit_range(entropy_BxT, first_BxT)
  scale_BxT = jnp.exp(-sharpness * normal_BxT)
  scale_BxT = scale_BxT / (masked.mean(scale_BxT, first_BxT) + 1e-8)
  next_BxT, exists_BxT = steps.following(jnp.exp(-clarity_sharpness * normal_BxT), segment_BxT, mask_BxT)
  base_BxT = masked.zero(advantage_BxT, mask_BxT)
  modulated_BxT = base_BxT * scale_BxT + clarity * masked.zero(next_BxT, exists_BxT)
  step_BxT = steps.mean(modulated_BxT, segment_BxT, mask_BxT)
  centred_BxT = modulated_BxT - masked.mean(step_BxT, first_BxT)
  positive_BxT = first_BxT & (base_BxT > 0.0)
  metrics = {
    'num_steps': masked.count(first_BxT),
    'step_entropy': masked.mean(entropy_BxT, first_BxT),
    'negative_fraction': masked.mean((step_BxT - masked.mean(step_BxT, first_BxT) < 0.0).astype(jnp.float32), positive_BxT),
  }
  return jnp.where(mask_BxT & (segment_BxT >= 0), centred_BxT, base_BxT), metrics


empg = transform.advantage('empg', empg_advantage, sharpness='[0, inf)', clarity_sharpness='[0, inf)', clarity='[0, inf)')
