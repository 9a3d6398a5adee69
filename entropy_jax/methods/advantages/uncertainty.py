"""Advantages shaped by confidence on two levels: hesitant successes count more and confident failures are punished more, and every token
pays for its own confidence.
"""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.methods.advantages.group import grpo_advantage
from entropy_jax.ops import groups, masked, vocabulary
from entropy_jax.types import Metrics, Ratio

MAX_EXPONENT = 20.0  # sums over long responses differ by hundreds, and exp would overflow


def _standardised(x_B: jax.Array, counted_B: jax.Array, group_B: jax.Array, scale: str) -> jax.Array:
  """(x - mean) / (std + 1e-6) over those of the group who count, 0 where at most one does or all are equal; scale='none' only centres."""
  num_B = groups.sum(jnp.where(counted_B, 1.0, 0.0), group_B)
  mean_B = Ratio(groups.sum(jnp.where(counted_B, x_B, 0.0), group_B), num_B).compute()
  top_B = groups.max(jnp.where(counted_B, x_B, -jnp.inf), group_B)
  bottom_B = groups.min(jnp.where(counted_B, x_B, jnp.inf), group_B)
  # Rounding may tell equal confidences apart by 1e-7, and the division by the deviation would make that a difference of one.
  varied_B = counted_B & (top_B - bottom_B > 1e-5 * jnp.maximum(jnp.abs(top_B), 1e-5))
  centred_B = jnp.where(varied_B, x_B - mean_B, 0.0)
  if scale == 'none':
    return centred_B
  return centred_B / (jnp.sqrt(Ratio(groups.sum(centred_B**2, group_B), jnp.maximum(num_B - 1.0, 0.0)).compute()) + 1e-6)


def ucas_advantage(
  return_B: jax.Array,
  old_self_confidence_BxT: jax.Array,
  old_log_normalizer_BxT: jax.Array,
  old_logp_BxT: jax.Array,
  mask_BxT: jax.Array,
  group_B: jax.Array,
  *,
  beta_positive: float = 0.25,
  beta_negative: float = 0.35,
  token_penalty: float = 0.05,
  reduce: str = 'mean',
  score: str = 'logit',
  scale: str = 'group',
  epsilon: float = 1e-6,
) -> tuple[jax.Array, Metrics]:
  """GRPO's advantage scaled by the response's confidence, minus a penalty for each token's own.

    z_i = (c_i - mean_g(c)) / (std_g(c) + 1e-6),  c_i = mean_t s_it;   B_i = A_i exp(-beta_positive z_i) where A_i > 0, else
    A_i exp(beta_negative z_i);   A_it = B_i - token_penalty u_it, and at least 0 where B_i > 0

  s = logsumexp(z) - mean_v(z) is the self-confidence of a vocabulary row, u the token's score scaled to [0, 1] between the smallest and
  the largest of all valid tokens of the batch (1/2 where all are equal).

  Args:
    return_B: float32 [B].
    old_self_confidence_BxT: float32 [B, T], behaviour policy.
    old_log_normalizer_BxT: float32 [B, T], logsumexp(z) of the behaviour policy, which makes a log-probability a logit.
    old_logp_BxT: float32 [B, T], behaviour policy.
    mask_BxT: bool [B, T].
    group_B: int [B], prompt ids.
    beta_positive, beta_negative: >= 0.
    token_penalty: >= 0.
    reduce: c as the 'mean' over the response's tokens, or as their 'sum', as released, which is mostly the response's length.
    score: u from the sampled token's 'logit', or from its 'logp', which no constant added to the logits changes.
    scale: 'group' divides R and c by their deviations (ddof = 1); 'none' only centres them (the Dr variant).
    epsilon: > 0, of GRPO's deviation.

  Returns:
    (A float32 [B, T], metrics: mean_confidence, over responses, and mean_scale, of the exponentials).

  Gradient: none, advantages are planned.
  Limits: both betas and token_penalty 0 are GRPO (Dr.GRPO with scale='none'). A group of equal rewards has B = 0 and A_it =
    -token_penalty u <= 0, not 0: where all are right, everything sampled is made less likely. exp is held within e^-20 and e^20. Two
    outlying tokens set the range of u for the whole batch.
  Reference: Uncertainty-aware Advantage Shaping (UCAS), and its released code.
  Differs: the released code sums s, so that c holds length times ln V and z follows length; the mean is the default here. It takes the
    logit before the temperature, which the scaling to [0, 1] does not tell from the logit after it.
  """
  base_B = grpo_advantage(return_B, group_B, epsilon=epsilon, scale=scale)
  present_B = jnp.any(mask_BxT, axis=1)
  confidence_B = (masked.mean if reduce == 'mean' else masked.total)(old_self_confidence_BxT, mask_BxT, axis=1)
  z_B = _standardised(confidence_B, present_B, group_B, scale)
  exponent_B = jnp.where(base_B > 0, -beta_positive * z_B, beta_negative * z_B)
  scale_B = jnp.exp(jnp.clip(exponent_B, -MAX_EXPONENT, MAX_EXPONENT))
  response_Bx1 = (base_B * scale_B)[:, None]

  raw_BxT = old_logp_BxT + old_log_normalizer_BxT if score == 'logit' else old_logp_BxT
  low, high = masked.extreme(raw_BxT, mask_BxT, largest=False), masked.extreme(raw_BxT, mask_BxT)
  unit_BxT = jnp.where(high > low, Ratio(masked.zero(raw_BxT - low, mask_BxT), high - low).compute(), 0.5)
  paid_BxT = response_Bx1 - token_penalty * unit_BxT
  shaped_BxT = jnp.where(response_Bx1 > 0, jnp.maximum(paid_BxT, 0.0), paid_BxT)
  metrics = {'mean_confidence': masked.mean(confidence_B, present_B), 'mean_scale': masked.mean(scale_B, present_B)}
  return masked.zero(shaped_BxT, mask_BxT), metrics


ucas = transform.advantage(
  'ucas',
  ucas_advantage,
  stats=(vocabulary.self_confidence_stat(of='behaviour'), vocabulary.log_normalizer_stat(of='behaviour')),
  beta_positive='[0, inf)',
  beta_negative='[0, inf)',
  token_penalty='[0, inf)',
  reduce='mean | sum',
  score='logit | logp',
  scale='group | none',
  epsilon='(0, inf)',
)
