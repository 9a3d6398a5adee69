"""Weights that leave out, or correct, what should not be learnt from as it is: answers cut off by the length limit, bad answers that the
current policy would no longer give, and tokens that the sampling engine drew with another probability than the trainer computes.
"""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import masked, ratios
from entropy_jax.types import Metrics


def drop_truncated_weight(truncated_B: jax.Array, mask_BxT: jax.Array) -> tuple[jax.Array, Metrics]:
  """Overlong filtering: w = 0 on every token of a response that ran out of length, 1 elsewhere.

  Args:
    truncated_B: bool [B].
    mask_BxT: bool [B, T].

  Returns:
    (weight [B, T], metrics: selected_fraction, the fraction of valid tokens that is left out).

  Gradient: none; the surrogate's gradient is exactly 0 on truncated responses.
  Limits: no truncated response leaves the objective as it is.
  Reference: Yu et al., DAPO: An Open-Source LLM Reinforcement Learning System at Scale, arXiv 2503.14476.
  Differs: the number of tokens the loss is divided by still counts the truncated ones, so that the step does not grow with the share
    of truncated answers; a mask that shrinks would divide by the tokens that are left. Penalties still act on truncated responses.
  """
  dropped_BxT = jnp.broadcast_to(truncated_B[:, None], mask_BxT.shape)
  return jnp.where(dropped_BxT, 0.0, 1.0), {'selected_fraction': masked.mean(dropped_BxT.astype(jnp.float32), mask_BxT)}


def off_policy_sequence_mask_weight(
  logp_BxT: jax.Array, sampler_logp_BxT: jax.Array, advantage_BxT: jax.Array, mask_BxT: jax.Array, *, threshold: float
) -> tuple[jax.Array, Metrics]:
  """Leaves out bad responses that have become unlikely: w = 1 where A >= 0 or mean_t(ln pi_sampler - ln pi) <= threshold, else 0.

  Args:
    logp_BxT: float32 [B, T], log-probability under the current policy.
    sampler_logp_BxT: float32 [B, T], log-probability reported by the engine that sampled.
    advantage_BxT: float32 [B, T], usually one value a sequence.
    mask_BxT: bool [B, T].
    threshold: largest mean log-ratio of a response with negative advantage, nats a token.

  Returns:
    (weight [B, T], metrics: selected_fraction, the fraction of valid tokens that is left out).

  Gradient: none.
  Limits: threshold=inf leaves the objective as it is.
  Reference: DeepSeek-AI, DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models, arXiv 2512.02556.
  """
  drift_B = masked.mean(sampler_logp_BxT - logp_BxT, mask_BxT, axis=1)
  keep_BxT = (advantage_BxT >= 0.0) | (drift_B <= threshold)[:, None]
  return keep_BxT.astype(jnp.float32), {'selected_fraction': masked.mean((~keep_BxT).astype(jnp.float32), mask_BxT)}


def sampler_importance_weight(
  old_logp_BxT: jax.Array, sampler_logp_BxT: jax.Array, mask_BxT: jax.Array, *, maximum: float = 3.0, mode: str = 'truncate'
) -> tuple[jax.Array, Metrics]:
  """Corrects the mismatch between the engine that samples and the trainer: w = pi_old / pi_sampler by token, bounded.

    truncate: min(w, maximum);   mask: w where w <= maximum, else 0

  Args:
    old_logp_BxT: float32 [B, T], behaviour policy scored by the trainer.
    sampler_logp_BxT: float32 [B, T], the same policy as the sampling engine reports it.
    mask_BxT: bool [B, T].
    maximum: the bound, above 0; inf for none.
    mode: what happens to a weight above the bound.

  Returns:
    (weight [B, T], metrics: weight_mean, and selected_fraction, the fraction of valid tokens above the bound).

  Gradient: none.
  Limits: 1 everywhere when engine and trainer agree.
  Reference: TRL documentation, vLLM importance sampling correction (token level).
  """
  raw_BxT = ratios.importance(masked.zero(old_logp_BxT - sampler_logp_BxT, mask_BxT))
  above_BxT = raw_BxT > maximum
  weight_BxT = jnp.where(above_BxT, maximum if mode == 'truncate' else 0.0, raw_BxT)
  metrics = {
    'weight_mean': masked.mean(weight_BxT, mask_BxT),
    'selected_fraction': masked.mean(above_BxT.astype(jnp.float32), mask_BxT),
  }
  return weight_BxT, metrics


drop_truncated = transform.weight('drop_truncated', drop_truncated_weight)
off_policy_sequence_mask = transform.weight(
  'off_policy_sequence_mask', off_policy_sequence_mask_weight, threshold='[-inf, inf]'
)
sampler_importance = transform.weight(
  'sampler_importance', sampler_importance_weight, maximum='(0, inf]', mode='truncate | mask'
)
