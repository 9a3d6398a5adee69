"""Choosing tokens out of the whole batch: exact counts, exact ties, the same tokens for any order of the rows.

Ties are broken by the sequence's identity and then by position, and random choices are keyed by the sequence's identity, so a
selection follows its tokens when rows are permuted, padded or laid out over devices. `sequence_B` is that identity; None means
the row number. Scores are compared after `coarse`: the same state scored in another micro-batch may differ in its last bits, and
those must not decide.
"""

import fractions
import math

import jax
import jax.numpy as jnp


def fraction_of(num_tokens: jax.Array, fraction: float, *, round_up: bool = False, at_least: int = 1) -> jax.Array:
  """max(floor(fraction * N), at_least), or the ceiling, in exact integer arithmetic, int32.

  0.0002 means 1 / 5000, so no float rounding moves the count, whatever N is.

  >>> [int(fraction_of(jnp.int32(n), 2e-3)) for n in (100, 1000, 1499, 1500)]
  [1, 2, 2, 3]
  """
  # The largest denominator d for which (N mod d) * n < d * d * fraction stays below 2^31.
  exact = fractions.Fraction(fraction).limit_denominator(math.isqrt(int(2**31 / fraction)) - 1)
  n, d = exact.numerator, exact.denominator
  num_tokens = num_tokens.astype(jnp.int32)
  part = (num_tokens % d) * n
  floor = (num_tokens // d) * n + (part + (d - 1 if round_up else 0)) // d
  return jnp.maximum(floor, at_least)


def coarse(score: jax.Array) -> jax.Array:
  """The score rounded to 12 bits of mantissa (1.2e-4 relative), so that what is equal up to float rounding is equal.

  >>> bool(coarse(jnp.float32(1.0000001)) == coarse(jnp.float32(1.))), bool(coarse(jnp.float32(1.001)) > coarse(jnp.float32(1.)))
  (True, True)
  """
  return jax.lax.reduce_precision(score.astype(jnp.float32), exponent_bits=8, mantissa_bits=12)


def _by_identity(sequence_B: jax.Array | None, num_sequences: int) -> tuple[jax.Array, jax.Array]:
  identity_B = jnp.arange(num_sequences) if sequence_B is None else sequence_B
  order_B = jnp.argsort(identity_B)
  return order_B, jnp.argsort(order_B)


def top(score_BxT: jax.Array, eligible_BxT: jax.Array, num: jax.Array, sequence_B: jax.Array | None = None) -> jax.Array:
  """The `num` eligible tokens with the largest score, bool [B, T]; all of them where fewer are eligible.

  Args:
    score_BxT: float; what is not eligible may hold anything.
    eligible_BxT: bool.
    num: int32 scalar, may be traced.
    sequence_B: int, identity of each row.

  Limits: scores closer than 1.2e-4 relative may count as tied.

  >>> top(jnp.array([[3., 1.], [2., 9.]]), jnp.array([[True, True], [True, False]]), jnp.int32(2)).tolist()
  [[True, False], [True, False]]
  """
  return _first(coarse(score_BxT), eligible_BxT, num, sequence_B)


def _first(score_BxT: jax.Array, eligible_BxT: jax.Array, num: jax.Array, sequence_B: jax.Array | None) -> jax.Array:
  order_B, back_B = _by_identity(sequence_B, score_BxT.shape[0])
  score = jnp.where(eligible_BxT, score_BxT, -jnp.inf)[order_B].ravel()
  # Sorted by (not eligible, -score), stably: ties stay in identity order, and a score of -inf still comes before what may not be chosen.
  best_first = jnp.lexsort((-score, ~eligible_BxT[order_B].ravel()))
  rank = jnp.zeros(score.shape, jnp.int32).at[best_first].set(jnp.arange(score.size, dtype=jnp.int32))
  return (rank < num).reshape(score_BxT.shape)[back_B] & eligible_BxT


def uniform(key: jax.Array, shape_BxT: tuple[int, int], sequence_B: jax.Array | None = None) -> jax.Array:
  """Uniform noise in [0, 1) that depends on (key, sequence identity, position) alone, float32 [B, T]."""
  num_sequences, num_tokens = shape_BxT
  identity_B = jnp.arange(num_sequences) if sequence_B is None else sequence_B
  return jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (num_tokens,)))(identity_B)


def random(key: jax.Array, eligible_BxT: jax.Array, num: jax.Array, sequence_B: jax.Array | None = None) -> jax.Array:
  """`num` eligible tokens, uniformly without replacement, bool [B, T]; all of them where fewer are eligible."""
  num_sequences, num_tokens = eligible_BxT.shape
  return _first(uniform(key, (num_sequences, num_tokens), sequence_B), eligible_BxT, num, sequence_B)


def quantile(x_BxT: jax.Array, mask_BxT: jax.Array, q: float) -> jax.Array:
  """The q-quantile of the valid entries, linear interpolation between order statistics (numpy's default), 0 where none is valid.

  >>> float(quantile(jnp.array([[4., 1., 2., jnp.nan]]), jnp.array([[True, True, True, False]]), .5))
  2.0
  """
  ordered = jnp.sort(jnp.where(mask_BxT, x_BxT, jnp.inf).ravel())
  last = jnp.maximum(jnp.sum(mask_BxT, dtype=jnp.int32) - 1, 0)
  place = q * last.astype(jnp.float32)
  low = jnp.floor(place).astype(jnp.int32)
  high = jnp.minimum(low + 1, last)
  share = place - low.astype(jnp.float32)
  value = (1.0 - share) * ordered[low] + share * ordered[high]
  return jnp.where(jnp.any(mask_BxT), value, 0.0)
