"""Sets of tokens of a row by a threshold, found by halving instead of sorting: exact ties, in the order of the vocabulary.

A float is compared through an int of the same order, so that 32 halvings find any threshold exactly. Thirty-two passes over a row are
faster than a sort of it, on a processor and elsewhere, and hold nothing.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

LOWEST, HIGHEST = -(2**31), 2**31 - 1  # of the keys
HALVINGS = 32


def ordered(x_xV: jax.Array) -> jax.Array:
  """int32 keys in the order of the floats; both zeros have one key.

  >>> ordered(jnp.array([-jnp.inf, -2., -0., 0., 3.])).argsort().tolist()
  [0, 1, 2, 3, 4]
  """
  bits_xV = jax.lax.bitcast_convert_type(jnp.where(x_xV == 0, jnp.zeros_like(x_xV), x_xV), jnp.int32)
  return jnp.where(bits_xV < 0, bits_xV ^ 0x7FFFFFFF, bits_xV)


def smallest(
  holds: Callable[[jax.Array], jax.Array], low_x1: jax.Array, high_x1: jax.Array, num_halvings: int = HALVINGS
) -> jax.Array:
  """The smallest int in [low, high] for which a monotone condition holds, `high` where it holds for none, by halving.

  >>> smallest(lambda n: n * n >= 50, jnp.array([0]), jnp.array([20])).tolist()
  [8]
  """

  def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    low, high = ends
    middle = (low & high) + ((low ^ high) >> 1)  # (low + high) / 2 without overflow
    found = holds(middle)
    return jnp.where(found, low, middle + 1), jnp.where(found, middle, high)

  return jax.lax.fori_loop(0, num_halvings, halve, (low_x1, high_x1))[1]


def first_key(key_xV: jax.Array, holds: Callable[[jax.Array], jax.Array]) -> jax.Array:
  """The smallest key t, [..., 1], for which a monotone condition holds."""
  low_x1 = jnp.full((*key_xV.shape[:-1], 1), LOWEST, jnp.int32)
  return smallest(holds, low_x1, jnp.full_like(low_x1, HIGHEST))


def rank_threshold(key_xV: jax.Array, over: Callable[[jax.Array], jax.Array]) -> jax.Array:
  """The smallest key t for which over(key > t) holds, [..., 1]: a condition that holds for a set holds for what is within it."""
  return first_key(key_xV, lambda t_x1: over(key_xV > t_x1))


def with_first_ties(key_xV: jax.Array, last_x1: jax.Array, num_ties_x1: jax.Array) -> jax.Array:
  """The entries above `last`, and the first num_ties entries equal to it."""
  V = key_xV.shape[-1]
  tied_xV, index_V = key_xV == last_x1, jnp.arange(V, dtype=jnp.int32)
  index_xV = jnp.broadcast_to(index_V, key_xV.shape)
  enough = lambda end_x1: jnp.sum(tied_xV & (index_xV < end_x1), axis=-1, keepdims=True, dtype=jnp.int32) >= num_ties_x1
  end_x1 = smallest(enough, jnp.zeros_like(last_x1), jnp.full_like(last_x1, V), V.bit_length())
  return (key_xV > last_x1) | (tied_xV & (index_xV < end_x1))


def only(keep_xV: jax.Array, logits_xV: jax.Array) -> jax.Array:
  """float32 logits of the entries kept, -inf elsewhere."""
  return jnp.where(keep_xV, logits_xV.astype(jnp.float32), -jnp.inf)
