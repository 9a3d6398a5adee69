"""One token of a wide row of logits: what it costs is one reading of the row, and two uniform numbers.

The row is read as a table of columns, token v = n W + w in column w. With m = max z, every column has s0_w = sum_n exp(z - m) and
s1_w = sum_n exp(z - m)(z - m), from which follow

    ln p_v = z_v - m - ln s0      H = ln s0 - s1 / s0      with the sums s0, s1 of all columns

and a draw: the column by its share s0_w / s0, then the token by its share of the column, each by inverse CDF of a uniform number. Adding
columns up, and not rows, is what a processor does with vectors. A row that is -inf everywhere is uniform, as in ops/categorical.py.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

_LOWEST = float(jnp.finfo(jnp.float32).min)


class Columns(NamedTuple):
  """Rows of logits and the sums of their columns."""

  z_BxNxW: jax.Array  # float32, V tokens, filled up with the lowest float
  m_B: jax.Array
  s0_BxW: jax.Array
  log_sum_B: jax.Array  # ln s0
  entropy_B: jax.Array  # nats


def _width(vocab_size: int) -> int:
  """Columns of a row: the smallest divisor of V between its square root and four times that, or, without one, 8 n near the root.

  >>> [_width(V) for V in (600, 1511, 151936)]
  [24, 40, 1187]
  """
  root = math.isqrt(vocab_size)
  divisors = [w for w in range(root, 4 * root) if vocab_size % w == 0]
  return divisors[0] if divisors else -(-root // 8) * 8


def columns(logits_BxV: jax.Array) -> Columns:
  """Reads rows of logits, [B, V], any float type, which may hold -inf."""
  B, V = logits_BxV.shape
  W = _width(V)
  z_BxV = jnp.maximum(logits_BxV.astype(jnp.float32), _LOWEST)
  z_BxNxW = jnp.pad(z_BxV, ((0, 0), (0, -V % W)), constant_values=-jnp.inf).reshape(B, -1, W)
  m_B = jnp.max(jnp.max(z_BxNxW, axis=1), axis=1)
  shifted = z_BxNxW - m_B[:, None, None]
  e = jnp.exp(shifted)
  s0_BxW, s1_BxW = jnp.sum(e, axis=1), jnp.sum(jnp.where(e > 0, e * shifted, 0.0), axis=1)
  s0_B = jnp.sum(s0_BxW, axis=1)
  entropy_B = jnp.maximum(jnp.log(s0_B) - jnp.sum(s1_BxW, axis=1) / s0_B, 0.0)
  return Columns(z_BxNxW, m_B, s0_BxW, jnp.log(s0_B), entropy_B)


def token_log_prob(row: Columns, token_B: jax.Array) -> jax.Array:
  """ln p of a token of every row, float32 [B]; -inf for an impossible one."""
  z_BxV = row.z_BxNxW.reshape(len(token_B), -1)
  logp_B = jnp.take_along_axis(z_BxV, token_B[:, None], axis=1)[:, 0] - row.m_B - row.log_sum_B
  return jnp.where(logp_B > 0.5 * _LOWEST, logp_B, -jnp.inf)


def largest(row: Columns) -> jax.Array:
  """The first most probable token of every row, int32 [B]."""
  _, N, W = row.z_BxNxW.shape
  number = jnp.arange(N * W, dtype=jnp.int32).reshape(1, N, W)
  first_BxW = jnp.min(jnp.where(row.z_BxNxW == row.m_B[:, None, None], number, N * W - 1), axis=1)
  return jnp.min(first_BxW, axis=1)


def _inverse(mass_BxK: jax.Array, uniform_B: jax.Array) -> jax.Array:
  """The entry in which a share uniform_B in [0, 1) of the mass lies, of those that have a mass."""
  below_BxK = jnp.cumsum(mass_BxK, axis=1)
  over_BxK = (below_BxK > (uniform_B * below_BxK[:, -1])[:, None]) & (mass_BxK > 0)
  # Partial sums that are rounded may not rise: where no entry is found, the share lies at the end.
  last_B = mass_BxK.shape[1] - 1 - jnp.argmax(mass_BxK[:, ::-1] > 0, axis=1)
  return jnp.where(jnp.any(over_BxK, axis=1), jnp.argmax(over_BxK, axis=1), last_B).astype(jnp.int32)


def draw(row: Columns, uniform_Bx2: jax.Array) -> jax.Array:
  """A token of every row from softmax(z), int32 [B]; never an impossible one.

  Args:
    row: of `columns`.
    uniform_Bx2: in [0, 1), independent.

  Limits: float32 throughout, so that a share of less than 1e-7 of a column, or a column of such a share of the row, is met only about as
    often as it should be; two steps resolve rare tokens further than one.

  >>> row = columns(jnp.log(jnp.array([[.1, .2, .3, .4]])))
  >>> _width(4), [draw(row, jnp.array([pair])).item() for pair in ((.3, .3), (.3, .2), (.5, .3))]
  (2, [2, 0, 1])
  """
  column_B = _inverse(row.s0_BxW, uniform_Bx2[:, 0])
  z_BxN = jnp.take_along_axis(row.z_BxNxW, column_B[:, None, None], axis=2)[..., 0]
  number_B = _inverse(jnp.exp(z_BxN - row.m_B[:, None]), uniform_Bx2[:, 1])
  return number_B * row.s0_BxW.shape[1] + column_B
