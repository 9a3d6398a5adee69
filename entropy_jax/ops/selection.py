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


def _ordered_bits(x: jax.Array) -> jax.Array:
  """uint32 that compares as the float32 does: -inf < ... < inf, both zeros equal, nan below everything, and 0 stays free."""
  bits = jax.lax.bitcast_convert_type(jnp.where(x == 0.0, 0.0, x), jnp.uint32)  # -0 is 0
  ordered = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(2**31))
  return jnp.where(jnp.isnan(x), jnp.uint32(1), ordered)


def _from_ordered_bits(ordered: jax.Array) -> jax.Array:
  bits = jnp.where(ordered >> 31 == 1, ordered ^ jnp.uint32(2**31), ~ordered)
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _count(mask: jax.Array) -> jax.Array:
  """Number of True, int32. Processors add float32 several at a time, and integers, to XLA, one by one; float32 counts exactly to 2^24."""
  return jnp.sum(mask, dtype=jnp.float32 if mask.size <= 2**24 else jnp.int32).astype(jnp.int32)


def _kth_largest(ordered: jax.Array, k: jax.Array, num_bits: int = 32) -> jax.Array:
  """The k-th largest entry of a uint32 array whose entries have at most num_bits bits, 0 where there are fewer than k.

  Found bit by bit from the top, by counting: sorting the tokens of a batch takes many times as long.
  """
  return _cut(ordered, k, num_bits, jnp.int32(-1))


def _cut(ordered: jax.Array, k: jax.Array, num_bits: int, enough: jax.Array) -> jax.Array:
  """The k-th largest entry, or, with `enough` = k, anything between it and the next smaller one, which takes fewer turns to find."""
  Carry = tuple[jax.Array, jax.Array, jax.Array]

  def goes_on(carry: Carry) -> jax.Array:
    i, _, count = carry
    return (i < num_bits) & (count != enough)

  def one_bit(carry: Carry) -> Carry:
    i, found, count = carry
    larger = found | (jnp.uint32(1) << (num_bits - 1 - i).astype(jnp.uint32))
    above = _count(ordered >= larger)
    return i + 1, jnp.where(above >= k, larger, found), jnp.where(above >= k, above, count)

  start = (jnp.int32(0), jnp.zeros((), jnp.uint32), jnp.int32(ordered.size))
  return jax.lax.while_loop(goes_on, one_bit, start)[1]


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
  # What `coarse` leaves are 21 bits; 0 is for what may not be chosen.
  ordered_BxT = (_ordered_bits(coarse(score_BxT)) >> 11) + jnp.uint32(1)
  return _first(jnp.where(eligible_BxT, ordered_BxT, jnp.uint32(0)), num, sequence_B, 22)


def _first(ordered_BxT: jax.Array, num: jax.Array, sequence_B: jax.Array | None, num_bits: int) -> jax.Array:
  """The `num` largest of the uint32 entries above 0, ties by identity of the row and then by position."""
  B, T = ordered_BxT.shape
  least = _cut(ordered_BxT, num, num_bits, num)
  above_BxT, tied_BxT = ordered_BxT > least, (ordered_BxT == least) & (ordered_BxT > 0)
  place_B = jnp.arange(B) if sequence_B is None else jnp.argsort(jnp.argsort(sequence_B))
  place_BxT = place_B.astype(jnp.uint32)[:, None] * jnp.uint32(T) + jnp.arange(T, dtype=jnp.uint32)[None]
  early_BxT = jnp.where(tied_BxT, jnp.uint32(B * T) - place_BxT, jnp.uint32(0))
  missing = num - _count(above_BxT)
  search = lambda: _cut(early_BxT, missing, (B * T).bit_length(), missing)
  last = jax.lax.cond(_count(tied_BxT) > missing, search, lambda: jnp.uint32(0))
  return above_BxT | (tied_BxT & (early_BxT >= last))


def uniform(key: jax.Array, shape_BxT: tuple[int, int], sequence_B: jax.Array | None = None) -> jax.Array:
  """Uniform noise in [0, 1) that depends on (key, sequence identity, position) alone, float32 [B, T]."""
  num_sequences, num_tokens = shape_BxT
  identity_B = jnp.arange(num_sequences) if sequence_B is None else sequence_B
  return jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (num_tokens,)))(identity_B)


def random(key: jax.Array, eligible_BxT: jax.Array, num: jax.Array, sequence_B: jax.Array | None = None) -> jax.Array:
  """`num` eligible tokens, uniformly without replacement, bool [B, T]; all of them where fewer are eligible."""
  num_sequences, num_tokens = eligible_BxT.shape
  noise_BxT = uniform(key, (num_sequences, num_tokens), sequence_B)
  ordered_BxT = (noise_BxT * 2.0**23).astype(jnp.uint32) + jnp.uint32(1)  # noise is a multiple of 2^-23
  return _first(jnp.where(eligible_BxT, ordered_BxT, jnp.uint32(0)), num, sequence_B, 24)


def quantile(x_BxT: jax.Array, mask_BxT: jax.Array, q: float) -> jax.Array:
  """The q-quantile of the valid entries, linear interpolation between order statistics (numpy's default), 0 where none is valid.

  >>> float(quantile(jnp.array([[4., 1., 2., jnp.nan]]), jnp.array([[True, True, True, False]]), .5))
  2.0
  """
  num = _count(mask_BxT)
  last = jnp.maximum(num - 1, 0)
  place = q * last.astype(jnp.float32)
  low = jnp.floor(place).astype(jnp.int32)
  high = jnp.minimum(low + 1, last)
  ordered_BxT = jnp.where(mask_BxT, _ordered_bits(x_BxT.astype(jnp.float32)), jnp.uint32(0))
  below, above = (_from_ordered_bits(_kth_largest(ordered_BxT, num - k)) for k in (low, high))
  share = place - low.astype(jnp.float32)
  value = (1.0 - share) * below + share * above
  return jnp.where(jnp.any(mask_BxT), value, 0.0)
