"""KL-Cov: the few tokens whose advantage and log-probability deviate most together, which drive entropy down, are held near the policy
that sampled them; all others are free.
"""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import covariance, masked, ratios, selection
from entropy_jax.types import Metrics, Planned


def kl_cov_plan(
  logp_BxT: jax.Array,
  log_ratio_BxT: jax.Array,
  advantage_BxT: jax.Array,
  mask_BxT: jax.Array,
  sequence_B: jax.Array | None,
  *,
  fraction: float = 2e-3,
  coef: float = 1.0,
) -> tuple[Planned, Metrics]:
  """Selects the K = max(1, floor(fraction N)) valid tokens of largest covariance in the whole batch.

  Args:
    logp_BxT, log_ratio_BxT, advantage_BxT, mask_BxT: float32 and bool [B, T], of the whole batch.
    sequence_B: int [B] or None, identity of the rows, by which ties are broken (frequent when A takes two values).
    fraction, coef: as in `kl_cov_penalty`.

  Returns:
    ({'chosen_BxT': bool [B, T]}, metrics: selected_fraction, penalty (its mean over all valid tokens), covariance_mean, covariance_p99).

  Gradient: none.
  """
  score_BxT = covariance.token_covariance(logp_BxT, advantage_BxT, mask_BxT)
  num = selection.fraction_of(jnp.sum(mask_BxT, dtype=jnp.int32), fraction)
  chosen_BxT = selection.top(score_BxT, mask_BxT, num, sequence_B)
  metrics = {
    'selected_fraction': masked.mean(chosen_BxT.astype(jnp.float32), mask_BxT),
    'penalty': masked.mean(kl_cov_penalty(log_ratio_BxT, chosen_BxT, fraction=fraction, coef=coef), mask_BxT),
    **covariance.summary(score_BxT, mask_BxT),
  }
  return {'chosen_BxT': chosen_BxT}, metrics


def kl_cov_penalty(log_ratio_BxT: jax.Array, chosen_BxT: jax.Array, *, fraction: float = 2e-3, coef: float = 1.0) -> jax.Array:
  """coef |ln pi - ln pi_old| on the tokens of largest covariance (A - mean A) (lp - mean lp), 0 elsewhere.

  Args:
    log_ratio_BxT: float32 [B, T], ln pi - ln pi_old.
    chosen_BxT: bool [B, T], from `kl_cov_plan`.
    fraction: of the valid tokens, in (0, 1]; the paper takes 2e-3 for its 7B model and 2e-4 for 32B.
    coef: weight of the penalty, at least 0.

  Returns:
    float32 [B, T], minimised.

  Gradient: coef sign(log-ratio) on the chosen tokens, and exactly 0 where the log-ratio is 0 and on all others.
  Limits: coef=0 leaves the objective as it is; so does one update per rollout, where the log-ratio is 0.
  Reference: Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, arXiv 2505.22617, Eq. 13-14.
  Differs: the paper writes KL(pi_old || pi), the released code |lp - lp_old|, as here; the released code takes the fraction in percent;
    verl's default coefficient is 0.1. The method has no ratio clip: its surrogate is `importance`.

  >>> kl_cov_penalty(jnp.array([[.25, -.5, .3]]), jnp.array([[True, True, False]]), coef=2.).tolist()
  [[0.5, 1.0, 0.0]]
  """
  return jnp.where(chosen_BxT, coef * ratios.absolute(log_ratio_BxT), 0.0)


kl_cov = transform.regularizer(
  'kl_cov',
  kl_cov_penalty,
  plan=kl_cov_plan,
  fraction='(0, 1]',
  coef='[0, inf)',
  notes=(
    transform.note_on_policy('kl_cov', 'its penalty and gradient are 0 (a no-op)', 'make several updates per rollout, or use clip_cov'),
    transform.note_fraction('kl_cov', 'fraction'),
  ),
)
