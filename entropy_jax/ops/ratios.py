"""Importance ratios between the current and the behaviour policy, by token and by sequence."""

import jax
import jax.numpy as jnp

from entropy_jax.ops import masked

ROUNDING = 1e-5  # of a log-ratio: larger than the difference between two float32 ways to score one token
MAX_LOG_RATIO = 20.0  # exp(20) = 4.9e8: beyond it float32 products overflow and nothing is learnt


def importance(log_ratio_BxT: jax.Array) -> jax.Array:
  """r = exp(clip(ln pi - ln pi_old, -20, 20)).

  Gradient: r with respect to the log-ratio inside the clip, 0 outside.

  >>> float(importance(jnp.array(0.)))
  1.0
  """
  return jnp.exp(jnp.clip(log_ratio_BxT, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def sequence_mean(log_ratio_BxT: jax.Array, mask_BxT: jax.Array) -> jax.Array:
  """ln s = (1 / n) sum_t log-ratio: the length-normalised log-ratio of each sequence, 0 for an empty one, [B]."""
  return masked.mean(log_ratio_BxT, mask_BxT, axis=1)


def sequence_value_token_gradient(sequence_B: jax.Array, logp_BxT: jax.Array) -> jax.Array:
  """A sequence's value on every token, with the gradient of that token's own log-prob: lp - sg(lp) + sg(sequence), [B, T]."""
  return logp_BxT - jax.lax.stop_gradient(logp_BxT) + jax.lax.stop_gradient(sequence_B)[:, None]


def absolute(x: jax.Array) -> jax.Array:
  """|x| whose gradient is 0 where |x| <= 1e-5, and the sign of x elsewhere.

  At exactly 0 jnp.abs has gradient 1 and would push every on-policy token one way. Around 0 the sign of a log-ratio is that of the
  rounding error between two ways to score the same token (a cached decoder and a full forward pass, two micro-batches), about 1e-6,
  and would push tokens at random by the whole coefficient.

  >>> float(jax.grad(absolute)(0.)), float(jax.grad(absolute)(-1e-6)), float(jax.grad(absolute)(-.5)), float(jax.grad(jnp.abs)(0.))
  (0.0, 0.0, -1.0, 1.0)
  """
  direction = jax.lax.stop_gradient(jnp.where(jnp.abs(x) > ROUNDING, jnp.sign(x), 0.0))
  size = jax.lax.stop_gradient(jnp.abs(x))
  return size + direction * (x - jax.lax.stop_gradient(x))
