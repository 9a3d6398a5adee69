"""How much replayed responses count as training goes on: little while the policy still explores, fully once it has learnt."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import schedules
from entropy_jax.types import Metrics, Planned, PyTree


def _no_updates() -> PyTree:
  return {'num_updates': jnp.int32(0)}


def remember_warmup(state: PyTree, mask_BxT: jax.Array, *, num_updates: float = 200.0) -> tuple[Planned, PyTree, Metrics]:
  """gamma of this update, and the number of updates with a valid token so far."""
  scale = schedules.rise(state['num_updates'], num_updates)
  seen = jnp.any(mask_BxT).astype(jnp.int32)
  return {'scale': scale}, {'num_updates': state['num_updates'] + seen}, {'coefficient': scale}


def self_imitation_warmup_weight(imitated_B: jax.Array, mask_BxT: jax.Array, scale: jax.Array) -> jax.Array:
  """Warm-up of self-imitation: w = gamma(t) on replayed responses, 1 on fresh ones; gamma = (1 - cos(pi t / num_updates)) / 2, then 1.

  Args:
    imitated_B: bool [B], the replayed rows.
    mask_BxT: bool [B, T].
    scale: float32 scalar, remembered: gamma(t), t the updates with a valid token that were made before this one.
    num_updates: length of the warm-up, above 0; 100 to 300 in SPEAR's runs.

  Returns:
    weight [B, T]; metrics: coefficient.

  Gradient: none.
  Limits: w = 0 on replayed responses at the first update; without replayed responses it changes nothing.
  Reference: Qin et al., Learn the Ropes, Then Trust the Wins: Self-imitation with Progressive Exploration for Agentic Reinforcement
    Learning, arXiv 2509.22601 (SPEAR).
  Differs: SPEAR counts training steps, each with several updates; here t counts updates, so give num_updates that many times larger.

  >>> self_imitation_warmup_weight(jnp.array([True, False]), jnp.ones((2, 1), bool), jnp.float32(.5)).tolist()
  [[0.5], [1.0]]
  """
  return jnp.where(imitated_B[:, None], scale, jnp.ones(mask_BxT.shape, jnp.float32))


self_imitation_warmup = transform.weight(
  'self_imitation_warmup', self_imitation_warmup_weight, init=_no_updates, remember=remember_warmup, num_updates='(0, inf)'
)
