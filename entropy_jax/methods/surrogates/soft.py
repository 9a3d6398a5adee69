"""Surrogates without a hard gate: every token keeps a gradient, with a coefficient that is bounded (CISPO), falls off smoothly with the
token's ratio (SAPO), or with the ratio of the whole sequence (VESPO).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import masked, ratios
from entropy_jax.types import Metrics, Planned, RunFacts


def _cispo_bounds(low: float | None, high: float, form: str) -> tuple[float, float]:
  if form == 'trl':
    return 0.0, high
  return 0.0 if low is None else 1.0 - low, 1.0 + high


def cispo_objective(
  logp_BxT: jax.Array,
  log_ratio_BxT: jax.Array,
  advantage_BxT: jax.Array,
  *,
  low: float | None = None,
  high: float = 0.2,
  form: str = 'verl',
) -> jax.Array:
  """CISPO: the policy gradient with a clipped importance ratio as a constant weight, sg(clip(r)) A ln pi.

    form='verl': clip to [1 - low, 1 + high], without a lower bound when low is None;   form='trl': min(r, high)

  Args:
    logp_BxT: float32 [B, T], log-probability under the current policy.
    log_ratio_BxT: float32 [B, T], ln pi - ln pi_old; only its value is used.
    advantage_BxT: float32 [B, T].
    low: None, as in the paper, or how far below 1 the weight may fall; in [0, 1].
    high: 'verl': how far above 1 the weight may rise; 'trl': the largest weight itself (5 is usual).
    form: which of the two readings of `high`.

  Returns:
    float32 [B, T], maximised.

  Gradient: clip(r) A with respect to logp: clipped tokens keep a gradient, which is what sets it apart from PPO.
  Limits: reinforce where pi = pi_old (and, in the 'trl' form, high >= 1).
  Reference: MiniMax, MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention, arXiv 2506.13585.
  Differs: verl reads `high` relative to 1 and also has a lower bound, TRL reads it as the absolute bound; high=h in the first is
    high=1 + h in the second.

  >>> x = cispo_objective(jnp.array([[-1.]]), jnp.log(jnp.array([[1.5]])), jnp.ones((1, 1)))
  >>> round(float(x[0, 0]), 4)
  -1.2
  """
  lowest, highest = _cispo_bounds(low, high, form)
  coefficient_BxT = jnp.clip(ratios.importance(log_ratio_BxT), lowest, highest)
  return jax.lax.stop_gradient(coefficient_BxT) * advantage_BxT * logp_BxT


def _cispo_plan(
  log_ratio_BxT: jax.Array, mask_BxT: jax.Array, *, low: float | None, high: float, form: str
) -> tuple[Planned, Metrics]:
  lowest, highest = _cispo_bounds(low, high, form)
  ratio_BxT = ratios.importance(log_ratio_BxT)
  outside_BxT = (ratio_BxT < lowest) | (ratio_BxT > highest)
  return {}, {'clip_fraction': masked.mean(outside_BxT.astype(jnp.float32), mask_BxT)}


def sapo_objective(
  log_ratio_BxT: jax.Array, advantage_BxT: jax.Array, *, temperature_positive: float = 1.0, temperature_negative: float = 1.05
) -> jax.Array:
  """SAPO: a sigmoid gate on the ratio, A (4 / tau) sigmoid(tau (r - 1)), tau = temperature_positive where A > 0, else temperature_negative.

  Args:
    log_ratio_BxT: float32 [B, T], ln pi - ln pi_old.
    advantage_BxT: float32 [B, T].
    temperature_positive, temperature_negative: how fast the gate closes, above 0.

  Returns:
    float32 [B, T], maximised; its level (2 A / tau where pi = pi_old) is not comparable with PPO's.

  Gradient: A r 4 p (1 - p), p = sigmoid(tau (r - 1)), with respect to logp: 1 A at r = 1 for every tau, and it falls off on both sides.
  Limits: importance as tau goes to 0, up to a constant.
  Reference: Gao et al., Soft Adaptive Policy Optimization, arXiv 2511.20347.

  >>> [round(float(sapo_objective(jnp.log(jnp.array(r)), jnp.array(1.))), 4) for r in (1., 2.)]
  [2.0, 2.9242]
  """
  tau_BxT = jnp.where(advantage_BxT > 0.0, temperature_positive, temperature_negative)
  gate_BxT = jax.nn.sigmoid(tau_BxT * (ratios.importance(log_ratio_BxT) - 1.0))
  return advantage_BxT * (4.0 / tau_BxT) * gate_BxT


def _vespo_coefficient(log_ratio_BxT: jax.Array, advantage_BxT: jax.Array, mask_BxT: jax.Array, k: jax.Array, rate: jax.Array) -> jax.Array:
  """phi = exp(rate + k ln w - rate w), with w = exp(clip(sum_t log-ratio, ln 1e-8, 20)), [B, T]."""
  bound = ratios.MAX_LOG_RATIO
  log_w_B = jnp.clip(masked.total(jnp.clip(log_ratio_BxT, -bound, bound), mask_BxT, axis=1), jnp.log(1e-8), bound)
  return jnp.exp(rate + k * log_w_B[:, None] - rate * jnp.exp(log_w_B)[:, None])


def vespo_objective(
  logp_BxT: jax.Array,
  log_ratio_BxT: jax.Array,
  advantage_BxT: jax.Array,
  mask_BxT: jax.Array,
  *,
  k_positive: float = 2.0,
  lambda_positive: float = 3.0,
  k_negative: float = 3.0,
  lambda_negative: float = 2.0,
) -> jax.Array:
  """VESPO: the policy gradient weighted by a gamma-shaped function of the sequence's whole ratio, sg(phi(w)) A ln pi.

    w = prod_t pi / pi_old;   phi(w) = exp(lambda) w^k exp(-lambda w), with (k, lambda) of the positive pair where A >= 0

  Args:
    logp_BxT: float32 [B, T], log-probability under the current policy.
    log_ratio_BxT: float32 [B, T], ln pi - ln pi_old, bounded at +-20 by token; w is bounded to [1e-8, e^20].
    advantage_BxT: float32 [B, T].
    mask_BxT: bool [B, T].
    k_positive, lambda_positive: shape and rate for A >= 0; phi is largest at w = k / lambda.
    k_negative, lambda_negative: for A < 0.

  Returns:
    float32 [B, T], maximised.

  Gradient: phi(w) A with respect to logp; none through phi.
  Limits: reinforce where pi = pi_old, because phi(1) = 1.
  Reference: VESPO: Variational Sequence-Level Soft Policy Optimization for Stable Off-Policy LLM Training, arXiv 2602.10693.
  """
  positive_BxT = advantage_BxT >= 0.0
  k_BxT = jnp.where(positive_BxT, k_positive, k_negative)
  rate_BxT = jnp.where(positive_BxT, lambda_positive, lambda_negative)
  phi_BxT = _vespo_coefficient(log_ratio_BxT, advantage_BxT, mask_BxT, k_BxT, rate_BxT)
  return jax.lax.stop_gradient(phi_BxT) * advantage_BxT * logp_BxT


def _note_cispo_form(facts: RunFacts, *, hyper: Mapping[str, Any]) -> str | None:
  if hyper['form'] != 'trl':
    return None
  if hyper['high'] < 1:
    return (
      f"cispo: form='trl' reads high={hyper['high']:g} as the largest weight itself, so even on-policy tokens are scaled down to it: set "
      "high=5, or form='verl'."
    )
  if hyper['low'] is not None:
    return f"cispo: form='trl' has no lower bound, so low={hyper['low']:g} is not used: leave low out, or set form='verl'."
  return None


def _on_policy(name: str) -> transform.Note:
  return transform.note_on_policy(name, 'its gradient is that of reinforce', 'make several updates per rollout, or use reinforce')


cispo = transform.surrogate(
  'cispo',
  cispo_objective,
  plan=_cispo_plan,
  low='[0, 1]',
  high='[0, inf]',
  form='verl | trl',
  notes=(_note_cispo_form, _on_policy('cispo')),
)
sapo = transform.surrogate(
  'sapo', sapo_objective, temperature_positive='(0, inf)', temperature_negative='(0, inf)', notes=(_on_policy('sapo'),)
)
vespo = transform.surrogate(
  'vespo',
  vespo_objective,
  k_positive='(0, inf)',
  lambda_positive='(0, inf)',
  k_negative='(0, inf)',
  lambda_negative='(0, inf)',
  notes=(_on_policy('vespo'),),
)
