"""Reductions over valid entries only. Masked slots may hold anything, NaN included, and reach neither the value nor the gradient.

Inputs are zeroed at entry (`zero`), because masking an output alone leaves 0 * NaN in the backward pass.
"""

import jax
import jax.numpy as jnp

from entropy_jax.types import Ratio


def zero(x: jax.Array, mask: jax.Array) -> jax.Array:
  """x where the mask holds, else 0; the gradient of what is masked is exactly 0.

  Args:
    x: float array of the mask's shape.
    mask: bool.

  >>> zero(jnp.array([1., jnp.nan]), jnp.array([True, False])).tolist()
  [1.0, 0.0]
  """
  return jnp.where(mask, x, jnp.zeros((), x.dtype))


def count(mask: jax.Array, axis: int | None = None) -> jax.Array:
  """Number of valid entries, as float32 so that it divides."""
  return jnp.sum(mask, axis=axis, dtype=jnp.float32)


def total(x: jax.Array, mask: jax.Array, axis: int | None = None) -> jax.Array:
  """Sum of the valid entries."""
  return jnp.sum(zero(x, mask), axis=axis)


def mean_ratio(x: jax.Array, mask: jax.Array) -> Ratio:
  """The mean of the valid entries as an undivided Ratio, so that slices of a batch merge exactly."""
  return Ratio(total(x, mask), count(mask))


def mean(x: jax.Array, mask: jax.Array, axis: int | None = None) -> jax.Array:
  """Mean of the valid entries, 0 where there are none.

  >>> float(mean(jnp.array([1., 3., jnp.inf]), jnp.array([True, True, False])))
  2.0
  """
  return Ratio(total(x, mask, axis), count(mask, axis)).compute()


def variance(x: jax.Array, mask: jax.Array, *, ddof: int = 0) -> jax.Array:
  """Variance of the valid entries over the whole array, sum (x - mean)^2 / (n - ddof), and 0 where n <= ddof.

  Args:
    x: float array.
    mask: bool, same shape.
    ddof: 1 for the sample variance that PyTorch's `std` uses, 0 for the population variance.

  >>> float(variance(jnp.array([1., 3., 9.]), jnp.array([True, True, False]), ddof=1))
  2.0
  """
  centred = zero(x - mean(x, mask), mask)
  return Ratio(jnp.sum(centred**2), jnp.maximum(count(mask) - ddof, 0.0)).compute()


def extreme(x: jax.Array, mask: jax.Array, *, largest: bool = True) -> jax.Array:
  """Largest (or smallest) valid entry, and 0 where there is none."""
  sign = 1.0 if largest else -1.0
  top = jnp.max(jnp.where(mask, sign * x, -jnp.inf))
  return jnp.where(jnp.any(mask), sign * top, 0.0)
