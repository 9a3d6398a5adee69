"""Cosine curricula: from 0 to 1 and from 1 to 0 over a number of steps, and constant from then on."""

import jax
import jax.numpy as jnp


def rise(step: jax.Array, num_steps: float) -> jax.Array:
  """(1 - cos(pi step / num_steps)) / 2 up to num_steps, 1 from there on.

  Args:
    step: int or float scalar, at least 0.
    num_steps: above 0.

  Returns:
    float32 scalar in [0, 1]; `rise` + `fall` = 1. Bind num_steps, and it is a schedule for `transform.scheduled`.

  >>> [round(float(rise(jnp.int32(t), 200)), 5) for t in (0, 50, 100, 150, 200, 900)]
  [0.0, 0.14645, 0.5, 0.85355, 1.0, 1.0]
  """
  return 0.5 * (1.0 - jnp.cos(jnp.pi * jnp.minimum(step.astype(jnp.float32) / num_steps, 1.0)))


def fall(step: jax.Array, num_steps: float) -> jax.Array:
  """(1 + cos(pi step / num_steps)) / 2 up to num_steps, 0 from there on.

  >>> [round(float(fall(jnp.int32(t), 200)), 5) for t in (0, 50, 100, 150, 200, 900)]
  [1.0, 0.85355, 0.5, 0.14645, 0.0, 0.0]
  """
  return 1.0 - rise(step, num_steps)
