"""STEER: every token weighs less the more it is estimated to change the entropy of its position, up or down, so that no update moves the
entropy by a jump.
"""

import math

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.measures import dynamics
from entropy_jax.ops import masked, ratios
from entropy_jax.types import Metrics, Ratio

_SMALLEST = 1e-8  # of a probability, and of the distance of one from 1
_ROUNDING = 1e-6  # of the largest influence: a range below it is that of float32


def _damped(
  influence_BxT: jax.Array, mask_BxT: jax.Array, mode: str, minimum: float, maximum: float, floor: float
) -> tuple[jax.Array, Metrics]:
  """From |influence| to a weight that falls from its largest value to `minimum` at the largest influence of the batch."""
  q_BxT = masked.zero(jnp.where(jnp.isfinite(influence_BxT), jnp.abs(influence_BxT), 0.0), mask_BxT)
  largest, smallest = masked.extreme(q_BxT, mask_BxT), masked.extreme(q_BxT, mask_BxT, largest=False)
  if mode == 'exp':
    rate = Ratio(jnp.float32(-math.log(minimum)), jnp.maximum(largest, floor)).compute()
    weight_BxT = jnp.clip(jnp.exp(-rate * q_BxT), minimum, 1.0)
  else:
    span = jnp.where(largest - smallest <= _ROUNDING * largest, 0.0, largest - smallest)
    place_BxT = Ratio(q_BxT - smallest, jnp.broadcast_to(span, q_BxT.shape)).compute()
    weight_BxT = jnp.where(span == 0.0, 0.5 * (minimum + maximum), maximum - place_BxT * (maximum - minimum))
  metrics = {
    'influence_mean': masked.mean(q_BxT, mask_BxT),
    'influence_max': largest,
    'weight_mean': masked.mean(weight_BxT, mask_BxT),
  }
  return weight_BxT, metrics


def steer_weight(
  logp_BxT: jax.Array,
  old_logp_BxT: jax.Array,
  entropy_BxT: jax.Array,
  old_entropy_BxT: jax.Array,
  advantage_BxT: jax.Array,
  mask_BxT: jax.Array,
  *,
  mode: str = 'exp',
  minimum: float = 0.8,
  maximum: float = 1.2,
  floor: float = 0.02,
  entropy: str = 'current',
) -> tuple[jax.Array, Metrics]:
  """Weights a token by its estimated influence Omega on the entropy, w = exp(-k |Omega|), where k makes the largest one weigh `minimum`.

    Omega = (A / pi_old) pi (1 - pi) (ln pi + H)
    exp:    w = max(exp(-k |Omega|), minimum),  k = -ln(minimum) / max(max |Omega|, floor)
    linear: w = maximum - (maximum - minimum) (|Omega| - min |Omega|) / (max |Omega| - min |Omega|); the middle where all are equal

  Args:
    logp_BxT: float32 [B, T], log-probability under the current policy.
    old_logp_BxT: float32 [B, T], behaviour policy.
    entropy_BxT: float32 [B, T], entropy of the current policy, nats.
    old_entropy_BxT: float32 [B, T], of the behaviour policy.
    advantage_BxT: float32 [B, T].
    mask_BxT: bool [B, T].
    mode: 'exp' or 'linear'.
    minimum: weight of the largest |Omega|, in (0, 1].
    maximum: weight of the smallest |Omega| with mode='linear', at least 1; with 'exp' it is 1.
    floor: a batch whose largest |Omega| is below it is damped less; 0 gives the form exp(-alpha |Omega| / max |Omega|).
    entropy: 'current', or 'behaviour' for that of the behaviour policy, as the released code has it where it is stored.

  Returns:
    (weight [B, T], metrics: influence_mean, influence_max, weight_mean).

  Gradient: none. The number of tokens that the loss is divided by does not change.
  Limits: minimum=1 (and maximum=1) leaves the objective as it is; A = 0 or pi = 1 gives the largest weight.
  Reference: Hao et al., Rethinking Entropy Interventions in RLVR: An Entropy Change Perspective, arXiv 2510.10150.
  Differs: the released extremes are those of a micro-batch, here of the whole batch. This Omega is the released code's; the paper's own,
    with an indicator of the clip and perhaps a second factor 1 - pi, was not seen. It moves the token's own logit alone;
    `steer_discriminator` has the first-order change of the whole row.

  >>> pi, H, A = jnp.array([[.9, .5, .1, .02]]), jnp.array([[.4, .8, 1., 1.2]]), jnp.array([[1., -1., 1., -1.]])
  >>> w, _ = steer_weight(jnp.log(pi), jnp.log(pi), H, H, A, jnp.ones((1, 4), bool))
  >>> [round(x, 4) for x in w[0].tolist()]
  [0.9975, 0.9955, 0.9063, 0.8]
  """
  logp_BxT, old_logp_BxT = masked.zero(logp_BxT, mask_BxT), masked.zero(old_logp_BxT, mask_BxT)
  pi_BxT = jnp.clip(jnp.exp(logp_BxT), _SMALLEST, 1.0 - _SMALLEST)
  old_pi_BxT = jnp.clip(jnp.exp(old_logp_BxT), _SMALLEST, 1.0)
  # 1 - 1e-8 rounds to 1 in float32: the complement is clipped for itself.
  complement_BxT = jnp.clip(-jnp.expm1(logp_BxT), _SMALLEST, 1.0)
  row_entropy_BxT = masked.zero(entropy_BxT if entropy == 'current' else old_entropy_BxT, mask_BxT)
  influence_BxT = advantage_BxT / old_pi_BxT * pi_BxT * complement_BxT * (jnp.log(pi_BxT) + row_entropy_BxT)
  return _damped(influence_BxT, mask_BxT, mode, minimum, maximum, floor)


def steer_discriminator_weight(
  logp_BxT: jax.Array,
  log_ratio_BxT: jax.Array,
  entropy_BxT: jax.Array,
  expected_discriminator_BxT: jax.Array,
  advantage_BxT: jax.Array,
  mask_BxT: jax.Array,
  *,
  mode: str = 'exp',
  minimum: float = 0.8,
  maximum: float = 1.2,
  floor: float = 0.02,
) -> tuple[jax.Array, Metrics]:
  """STEER's weights on the exact first-order entropy change of the token's row: Omega = r A (S - E[S]), S = pi (ln pi + H).

  Args:
    logp_BxT: float32 [B, T], log-probability under the current policy.
    log_ratio_BxT: float32 [B, T], ln pi - ln pi_old.
    entropy_BxT: float32 [B, T], entropy of the current policy, nats.
    expected_discriminator_BxT: float32 [B, T], E[S] over its vocabulary row.
    advantage_BxT: float32 [B, T].
    mask_BxT: bool [B, T].
    mode, minimum, maximum, floor: as in `steer_weight`.

  Returns:
    (weight [B, T], metrics: influence_mean, influence_max, weight_mean).

  Gradient: none.
  Limits: minimum=1 (and maximum=1) leaves the objective as it is; A = 0, or equal logits, give the largest weight.
  Reference: weights of Hao et al., arXiv 2510.10150, on the entropy change of On the Entropy Dynamics in Reinforcement Fine-Tuning of
    Large Language Models, arXiv 2602.03392, Theorem 3.3.
  Differs: from both papers, which do not combine them. A token that the surrogate clips changes nothing, and still counts.
  """
  logp_BxT, log_ratio_BxT = masked.zero(logp_BxT, mask_BxT), masked.zero(log_ratio_BxT, mask_BxT)
  score_BxT = dynamics.token_discriminator(logp_BxT, masked.zero(entropy_BxT, mask_BxT))
  influence_BxT = ratios.importance(log_ratio_BxT) * advantage_BxT * (score_BxT - expected_discriminator_BxT)
  return _damped(influence_BxT, mask_BxT, mode, minimum, maximum, floor)


steer = transform.weight(
  'steer',
  steer_weight,
  mode='exp | linear',
  minimum='(0, 1]',
  maximum='[1, inf)',
  floor='[0, inf)',
  entropy='current | behaviour',
)
steer_discriminator = transform.weight(
  'steer_discriminator',
  steer_discriminator_weight,
  stats=(dynamics.expected_discriminator_stat,),
  mode='exp | linear',
  minimum='(0, 1]',
  maximum='[1, inf)',
  floor='[0, inf)',
)
