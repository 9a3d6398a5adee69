"""Clip-Cov: a few random tokens among those whose advantage and log-probability deviate most together are taken out of the update,
because these tokens are what drives entropy down.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import covariance, masked, ratios, selection
from entropy_jax.types import Metrics, RunFacts


def clip_cov_weight(
  logp_BxT: jax.Array,
  log_ratio_BxT: jax.Array,
  advantage_BxT: jax.Array,
  mask_BxT: jax.Array,
  key: jax.Array,
  sequence_B: jax.Array | None,
  *,
  fraction: float = 2e-4,
  cov_low: float = 1.0,
  cov_high: float = 5.0,
  clip_low: float = 1.0,
  clip_high: float = 1.0,
  low_quantile: float | None = None,
  high_quantile: float | None = None,
) -> tuple[jax.Array, Metrics]:
  """Weight 0 on K = max(1, floor(fraction N)) random tokens whose covariance lies in a band, 1 on all others.

    Cov = (A - mean A) (lp - mean lp);   eligible: cov_low < Cov < cov_high, and not clipped by PPO already, that is not
    clip(r, 1 - clip_low, 1 + clip_high) A < r A;   min(K, number eligible) of them are chosen uniformly without replacement

  Args:
    logp_BxT: float32 [B, T], log-probability under the current policy.
    log_ratio_BxT: float32 [B, T], ln pi - ln pi_old.
    advantage_BxT: float32 [B, T].
    mask_BxT: bool [B, T].
    key: PRNG key of this update.
    sequence_B: int [B] or None, identity of the rows: the random choice follows it.
    fraction: of the N valid tokens (not of the eligible ones), in (0, 1].
    cov_low, cov_high: the band, both ends excluded; (1, 5) is for advantages of unit deviation and a large vocabulary.
    clip_low, clip_high: bounds of the ratio clip of the surrogate in the same chain; the paper runs ppo_clip(low=1, high=1).
    low_quantile, high_quantile: None, or a quantile of the batch's covariances that replaces cov_low or cov_high.

  Returns:
    (weight [B, T], metrics: selected_fraction, num_eligible, covariance_mean, covariance_p99).

  Gradient: none; the objective's gradient is exactly 0 on the chosen tokens. The number of tokens it is divided by does not change.
  Limits: with no eligible token the objective is the plain one, and however small fraction is, one eligible token is chosen.
  Reference: Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, arXiv 2505.22617, Eq. 10-12.
  Differs: released as a policy loss with its own PPO clip; here it is a weight, and the clip belongs to the surrogate.

  >>> p, A = jnp.array([[.9, .05, .6, .1]]), jnp.array([[2., .5, -1., -1.5]])
  >>> everything = jnp.ones((1, 4), bool)
  >>> w, _ = clip_cov_weight(jnp.log(p), jnp.zeros((1, 4)), A, everything, jax.random.key(0), None, fraction=.5)
  >>> w.tolist()     # the covariances are 2.75, -0.76, -0.97 and 1.24
  [[0.0, 1.0, 1.0, 0.0]]
  """
  score_BxT = covariance.token_covariance(logp_BxT, advantage_BxT, mask_BxT)
  low = cov_low if low_quantile is None else selection.quantile(score_BxT, mask_BxT, low_quantile)
  high = cov_high if high_quantile is None else selection.quantile(score_BxT, mask_BxT, high_quantile)
  ratio_BxT = ratios.importance(masked.zero(log_ratio_BxT, mask_BxT))
  clipped_BxT = jnp.clip(ratio_BxT, 1.0 - clip_low, 1.0 + clip_high) * advantage_BxT < ratio_BxT * advantage_BxT
  # Coarse on both sides: a quantile that falls on a tie must not be decided by the last bit of either.
  coarse_BxT, coarse_low, coarse_high = (selection.coarse(jnp.asarray(x, jnp.float32)) for x in (score_BxT, low, high))
  eligible_BxT = mask_BxT & (coarse_BxT > coarse_low) & (coarse_BxT < coarse_high) & ~clipped_BxT
  num = selection.fraction_of(jnp.sum(mask_BxT, dtype=jnp.int32), fraction)
  chosen_BxT = selection.random(key, eligible_BxT, num, sequence_B)
  metrics = {
    'selected_fraction': masked.mean(chosen_BxT.astype(jnp.float32), mask_BxT),
    'num_eligible': masked.count(eligible_BxT),
    **covariance.summary(score_BxT, mask_BxT),
  }
  return jnp.where(chosen_BxT, 0.0, 1.0), metrics


def _note_band(facts: RunFacts, *, hyper: Mapping[str, Any]) -> str | None:
  for low, high in (('cov_low', 'cov_high'), ('low_quantile', 'high_quantile')):
    values = hyper[low], hyper[high]
    absolute_off = low == 'cov_low' and (hyper['low_quantile'] is not None or hyper['high_quantile'] is not None)
    if None not in values and not absolute_off and values[0] >= values[1]:
      return (
        f'clip_cov: {low}={values[0]:g} is not below {high}={values[1]:g}, so no token is ever eligible and nothing is clipped: '
        f'set {low} below {high}.'
      )
  return None


clip_cov = transform.weight(
  'clip_cov',
  clip_cov_weight,
  fraction='(0, 1]',
  cov_low='[-inf, inf]',
  cov_high='[-inf, inf]',
  clip_low='[0, 1]',
  clip_high='[0, inf]',
  low_quantile='[0, 1]',
  high_quantile='[0, 1]',
  notes=(transform.note_fraction('clip_cov', 'fraction'), _note_band),
)
