"""Rewards beside the verifier's: a length penalty before the hard cut, and the distance to a reference policy."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import masked
from entropy_jax.types import Metrics, UserError


def _check_overlong(*, max_length: float, buffer: float) -> None:
  if buffer > max_length:
    raise UserError(f'soft_overlong: buffer={buffer!r} exceeds max_length={max_length!r}; give one in (0, {max_length!r}].')


def soft_overlong_reward(
  reward_B: jax.Array,
  length_B: jax.Array,
  *,
  max_length: float,
  buffer: float,
  factor: float = 1.0,
  bounded: bool = True,
) -> tuple[jax.Array, Metrics]:
  """A length penalty over the last `buffer` tokens: R - factor clip((n - (max_length - buffer)) / buffer, 0, 1).

  Args:
    reward_B: float32 [B], outcome.
    length_B: float32 [B], number of valid tokens n.
    max_length: > 0, length at which the penalty is factor.
    buffer: in (0, max_length], tokens before max_length in which the penalty grows from 0.
    factor: >= 0.
    bounded: False lets the penalty grow beyond max_length, without the upper end of the clip.

  Returns:
    reward_B, float32 [B], at most the given one; and the metric penalised_fraction, the share of responses beyond
      max_length - buffer.

  Gradient: none, rewards are planned.
  Limits: unchanged for n <= max_length - buffer and for factor=0. bounded is moot if responses are cut at max_length.
  Reference: Yu et al., DAPO, arXiv 2503.14476, soft overlong punishment.
  Differs: verl is unbounded below, TRL and the paper are bounded; the paper has L = 20480 and a buffer of 4096.

  >>> reward, _ = soft_overlong_reward(jnp.ones(4), jnp.array([80., 90., 100., 110.]), max_length=100, buffer=20)
  >>> reward.tolist()
  [1.0, 0.5, 0.0, 0.0]
  """
  _check_overlong(max_length=max_length, buffer=buffer)
  excess_B = jnp.maximum(length_B - (max_length - buffer), 0.0) / buffer
  share_B = jnp.minimum(excess_B, 1.0) if bounded else excess_B
  return reward_B - factor * share_B, {'penalised_fraction': jnp.mean(excess_B > 0.0, dtype=jnp.float32)}


soft_overlong = transform.reward(
  'soft_overlong', soft_overlong_reward, check=_check_overlong, max_length='(0, inf)', buffer='(0, inf)', factor='[0, inf)'
)


def reference_kl_reward(
  old_logp_BxT: jax.Array, ref_logp_BxT: jax.Array, mask_BxT: jax.Array, *, coef: float = 1e-3
) -> tuple[jax.Array, Metrics]:
  """A dense reward for staying near the reference: r_t = -coef (ln pi_old - ln pi_ref), the k1 estimator of the KL.

  Args:
    old_logp_BxT: float32 [B, T], behaviour policy.
    ref_logp_BxT: float32 [B, T], reference policy.
    mask_BxT: bool [B, T].
    coef: >= 0.

  Returns:
    token_reward_BxT, float32 [B, T], added to the dense rewards; and the metric kl, the token mean of k1 in nats.

  Gradient: none, rewards are planned. The KL acts through the advantage; as a penalty, k1 has gradient 0 on average.
  Limits: 0 at pi_old = pi_ref. Its sum over a response is -coef ln(pi_old / pi_ref) of the whole response.
  Reference: Ouyang et al., Training language models to follow instructions with human feedback, arXiv 2203.02155;
    verl `apply_kl_penalty`.
  Differs: TRL's RLOO subtracts the sum over tokens from the outcome, the same for advantages of the whole return.
  """
  k1_BxT = masked.zero(old_logp_BxT, mask_BxT) - masked.zero(ref_logp_BxT, mask_BxT)
  return -coef * k1_BxT, {'kl': masked.mean(k1_BxT, mask_BxT)}


kl_in_reward = transform.reward('kl_in_reward', reference_kl_reward, coef='[0, inf)')
