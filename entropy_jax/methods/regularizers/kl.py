"""Staying near a reference policy: single-sample estimators of KL(pi || pi_ref) as penalties, with a fixed or a controlled coefficient.
As a loss an estimator is judged by its gradient, not by its value, and the two disagree: see `kl_penalty`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import masked, ratios
from entropy_jax.transform import Controller
from entropy_jax.types import Metrics, Planned, PyTree, RunFacts, TokenBatch

MAX_K3 = 10.0  # verl's bound on the value of k3; a token beyond it has no gradient
ESTIMATORS = 'k1 | absolute | k2 | k3'


def kl_estimate(logp_BxT: jax.Array, ref_logp_BxT: jax.Array, *, estimator: str) -> jax.Array:
  """One token's estimate of KL(pi || pi_ref), with d = ln pi - ln pi_ref.

    k1 = d;   absolute = |d|;   k2 = d^2 / 2;   k3 = e^-d + d - 1, with d bounded to +-20 and the value to at most 10

  Args:
    logp_BxT: float32 [B, T], current policy.
    ref_logp_BxT: float32 [B, T], reference policy.
    estimator: 'k1', 'absolute', 'k2' or 'k3'.

  Returns:
    float32 [B, T]; k1 and k3 are unbiased under samples of pi, k3 is never negative.

  Gradient: of the formula; 0 at d = 0 for all but k1, and 0 for k3 beyond its bound.
  Reference: Schulman, Approximating KL Divergence, 2020.

  >>> [round(float(kl_estimate(jnp.log(.5), jnp.log(.25), estimator=k)), 4) for k in ('k1', 'absolute', 'k2', 'k3')]
  [0.6931, 0.6931, 0.2402, 0.1931]
  """
  d_BxT = logp_BxT - ref_logp_BxT
  if estimator == 'k1':
    return d_BxT
  if estimator == 'absolute':
    return ratios.absolute(d_BxT)
  if estimator == 'k2':
    return 0.5 * d_BxT**2
  d_BxT = jnp.clip(d_BxT, -ratios.MAX_LOG_RATIO, ratios.MAX_LOG_RATIO)
  return jnp.minimum(jnp.expm1(-d_BxT) + d_BxT, MAX_K3)


def kl_penalty(
  logp_BxT: jax.Array,
  ref_logp_BxT: jax.Array,
  log_ratio_BxT: jax.Array,
  *,
  coef: float = 1e-3,
  estimator: str = 'k3',
  straight_through: bool = False,
  bias_correction: bool = False,
) -> jax.Array:
  """Penalty coef k(ln pi - ln pi_ref) on every token.

    straight_through: the value of k with the gradient of k2, k2 - sg(k2) + sg(k);   bias_correction: r k, r = pi / pi_old

  Args:
    logp_BxT: float32 [B, T], current policy.
    ref_logp_BxT: float32 [B, T], reference policy.
    log_ratio_BxT: float32 [B, T], ln pi - ln pi_old; used by bias_correction only.
    coef: weight of the penalty, at least 0.
    estimator: see `kl_estimate`.
    straight_through: use the gradient of k2, which is that of KL(pi || pi_ref) in expectation on-policy.
    bias_correction: weight by the importance ratio, so that the expectation is under pi, in value and gradient.

  Returns:
    float32 [B, T], minimised.

  Gradient: in expectation under samples of pi, k1 gives 0, k2 the gradient of KL(pi || pi_ref), k3 that of KL(pi_ref || pi); with
    bias_correction k1 and k3 give the gradient of KL(pi || pi_ref).
  Limits: 0, with gradient 0 for all but k1, where pi = pi_ref.
  Reference: Shao et al., DeepSeekMath, arXiv 2402.03300 (k3 as a loss); bias correction: DeepSeek-V3.2, arXiv 2512.02556.
  Differs: verl bounds k3 at 10 as here, TRL does not.
  """
  value_BxT = kl_estimate(logp_BxT, ref_logp_BxT, estimator=estimator)
  if straight_through:
    k2_BxT = kl_estimate(logp_BxT, ref_logp_BxT, estimator='k2')
    value_BxT = k2_BxT - jax.lax.stop_gradient(k2_BxT) + jax.lax.stop_gradient(value_BxT)
  if bias_correction:
    value_BxT = value_BxT * ratios.importance(log_ratio_BxT)
  return coef * value_BxT


def _kl_plan(logp_BxT: jax.Array, ref_logp_BxT: jax.Array, mask_BxT: jax.Array, *, estimator: str) -> tuple[Planned, Metrics]:
  return {}, {'kl': masked.mean(kl_estimate(logp_BxT, ref_logp_BxT, estimator=estimator), mask_BxT)}


def adaptive_kl_penalty(
  logp_BxT: jax.Array,
  ref_logp_BxT: jax.Array,
  log_ratio_BxT: jax.Array,
  *,
  estimator: str = 'k3',
  straight_through: bool = False,
  bias_correction: bool = False,
) -> jax.Array:
  """The KL penalty with a coefficient that follows the distance to a target KL.

    penalty = c_k k;   c_(k+1) = c_k (1 + clip(KL_k / target - 1, -0.2, 0.2) n / horizon)

  where KL_k is the estimate that update k saw, averaged over tokens and then over sequences, and n the number of non-empty sequences.

  Args:
    logp_BxT, ref_logp_BxT, log_ratio_BxT, estimator, straight_through, bias_correction: as in `kl_penalty`.
    target, horizon, initial: see `kl_target_controller`.

  Returns:
    float32 [B, T], minimised; before the coefficient.

  Gradient: c_k times that of `kl_penalty` with coef=1; none through the coefficient.
  Limits: horizon=inf is the KL penalty with coef=initial.
  Reference: Ziegler et al., Fine-Tuning Language Models from Human Preferences, arXiv 1909.08593.
  Differs: verl applies the coefficient to a KL inside the reward; here it is a loss.
  """
  switches = {'straight_through': straight_through, 'bias_correction': bias_correction}
  return kl_penalty(logp_BxT, ref_logp_BxT, log_ratio_BxT, coef=1.0, estimator=estimator, **switches)


def kl_target_controller(*, target: float, horizon: float, initial: float = 1e-3, estimator: str = 'k3') -> Controller:
  """The controller of `adaptive_kl`.

  Args:
    target: KL to keep, nats a token, above 0.
    horizon: number of sequences over which the coefficient can move by about a fifth.
    initial: coefficient of the first update, above 0 (from 0 it could never move).
    estimator: see `kl_estimate`.

  Returns:
    a Controller with state {coefficient}.
  """

  def update(state: PyTree, batch: TokenBatch) -> tuple[jax.Array, PyTree, Metrics]:
    assert batch.ref_logp_BxT is not None  # the penalty's plan has read it before
    estimate_BxT = kl_estimate(batch.logp_BxT, batch.ref_logp_BxT, estimator=estimator)
    counts_B = jnp.any(batch.mask_BxT, axis=1)
    current = masked.mean(masked.mean(estimate_BxT, batch.mask_BxT, axis=1), counts_B)
    error = jnp.clip(current / target - 1.0, -0.2, 0.2)
    moved = state['coefficient'] * (1.0 + error * masked.count(counts_B) / horizon)
    return state['coefficient'], {'coefficient': moved}, {'coefficient': state['coefficient'], 'sequence_kl': current}

  return Controller(lambda: {'coefficient': jnp.float32(initial)}, update)


def _note_k1(name: str) -> transform.Note:
  def note(facts: RunFacts, *, hyper: Mapping[str, Any]) -> str | None:
    if hyper['estimator'] != 'k1' or hyper['straight_through'] or hyper['bias_correction']:
      return None
    return (
      f"{name}: estimator='k1' as a loss has zero gradient in expectation on-policy, so it holds the policy near nothing: set "
      "estimator='k2' or 'k3', or straight_through=True."
    )

  return note


kl = transform.regularizer('kl', kl_penalty, plan=_kl_plan, coef='[0, inf)', estimator=ESTIMATORS, notes=(_note_k1('kl'),))
adaptive_kl = transform.regularizer(
  'adaptive_kl',
  adaptive_kl_penalty,
  plan=_kl_plan,
  controller=kl_target_controller,
  target='(0, inf)',
  horizon='(0, inf]',
  initial='(0, inf)',
  estimator=ESTIMATORS,
  notes=(_note_k1('adaptive_kl'),),
)
