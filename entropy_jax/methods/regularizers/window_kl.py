"""Staying near a reference policy, but less where the policy explores: a KL penalty that is relaxed inside windows of high entropy."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.measures import windows
from entropy_jax.methods.regularizers.kl import ESTIMATORS, kl_estimate
from entropy_jax.ops import groups, masked
from entropy_jax.types import Metrics, Planned


def ares_kl_plan(
  old_entropy_BxT: jax.Array,
  reward_B: jax.Array,
  group_B: jax.Array,
  mask_BxT: jax.Array,
  *,
  relief: float = 0.5,
  easy: float = 1.0,
  medium: float = 1.0,
  hard: float = 1.0,
  width: int = 4,
  percentile: float = 0.95,
  threshold: float = 0.5,
) -> tuple[Planned, Metrics]:
  """The weight of every token, and metrics threshold and inside_fraction, the share of tokens inside a window of high entropy."""
  tau = windows.high_entropy_threshold(old_entropy_BxT, mask_BxT, percentile=percentile, width=width)
  high_BxT = windows.high_entropy_windows(old_entropy_BxT, mask_BxT, tau, width=width)
  inside_BxT = mask_BxT & windows.inside_windows(high_BxT, width=width)
  beta_B = jnp.array([easy, medium, hard], jnp.float32)[groups.difficulty(reward_B, group_B, threshold=threshold)]
  weight_BxT = beta_B[:, None] * jnp.where(inside_BxT, relief, 1.0)
  return {'weight_BxT': weight_BxT}, {'threshold': tau, 'inside_fraction': masked.mean(inside_BxT.astype(jnp.float32), mask_BxT)}


def ares_kl_penalty(
  logp_BxT: jax.Array, ref_logp_BxT: jax.Array, weight_BxT: jax.Array, *, coef: float = 0.01, estimator: str = 'k3'
) -> jax.Array:
  """Penalty coef beta_d rho_t k(ln pi - ln pi_ref), rho = relief inside windows of high entropy and 1 elsewhere.

    inside: some window of w tokens that holds t has a mean entropy above tau, the mean over responses of a percentile of their entropies
    beta_d: easy, medium or hard, by the accuracy of the group: from 2/3, from 1/3, below

  Args:
    logp_BxT: float32 [B, T], current policy.
    ref_logp_BxT: float32 [B, T], reference policy.
    weight_BxT: float32 [B, T], planned: beta_d rho_t.
    coef: at least 0.
    estimator: 'k1', 'absolute', 'k2' or 'k3', see `kl_estimate`.

  The plan takes relief in [0, 1], easy, medium, hard at least 0, width w = 4, percentile = .95, and threshold, above which a reward is
  correct; entropies are those of the behaviour policy.

  Returns:
    float32 [B, T], minimised.

  Gradient: coef beta_d rho_t times that of the estimator; none through the windows.
  Limits: `kl` with k3 for relief = easy = medium = hard = 1.
  Reference: Chen et al., ARES: Multimodal Adaptive Reasoning via Difficulty-Aware Token-Level Entropy Shaping, arXiv 2510.08457,
    section 3.2.
  Differs: UNCONFIRMED: the value of relief (the paper asks for one below 1). The released code has no windows here: it moves one
    coefficient a bucket towards a KL of .01, and takes .67 of it for costly wrong responses to easy prompts.

  >>> logp, ref = jnp.log(jnp.array([[.5, .5]])), jnp.log(jnp.array([[.25, .25]]))
  >>> [round(x, 6) for x in ares_kl_penalty(logp, ref, jnp.array([[1., .5]]), coef=1.)[0].tolist()]      # k3 = .5 + ln 2 - 1
  [0.193147, 0.096574]
  """
  return coef * weight_BxT * kl_estimate(logp_BxT, ref_logp_BxT, estimator=estimator)


ares_kl = transform.regularizer(
  'ares_kl',
  ares_kl_penalty,
  plan=ares_kl_plan,
  coef='[0, inf)',
  estimator=ESTIMATORS,
  relief='[0, 1]',
  easy='[0, inf)',
  medium='[0, inf)',
  hard='[0, inf)',
  width='[1, inf)',
  percentile='[0, 1]',
  threshold='[-inf, inf]',
)
