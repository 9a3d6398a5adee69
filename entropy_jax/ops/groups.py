"""Statistics over the responses to one prompt, for groups that are unequal in size and interleaved.

`group_B` holds any int prompt ids. Every function returns one value a sequence (the value of its group): no ragged shape appears.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from entropy_jax.types import Ratio


def _spread(reduce: Callable[..., jax.Array], x_B: jax.Array, group_B: jax.Array) -> jax.Array:
  # A group's segment is the number of sequences with a smaller id: in [0, B) whatever the ids are, for one sort, where a [B, B]
  # membership matrix would grow with the square of the batch and jnp.unique takes several times as long to compile.
  segment_B = jnp.searchsorted(jnp.sort(group_B), group_B)
  return reduce(x_B, segment_B, num_segments=group_B.shape[0])[segment_B]


def sum(x_B: jax.Array, group_B: jax.Array) -> jax.Array:
  """Sum over the group of each sequence, [B].

  >>> sum(jnp.array([1., 10., 2.]), jnp.array([7, 3, 7])).tolist()
  [3.0, 10.0, 3.0]
  """
  return _spread(jax.ops.segment_sum, x_B, group_B)


def size(group_B: jax.Array) -> jax.Array:
  """Number of sequences in the group of each sequence, float32 [B]."""
  return sum(jnp.ones(group_B.shape, jnp.float32), group_B)


def mean(x_B: jax.Array, group_B: jax.Array) -> jax.Array:
  """Mean over the group of each sequence, [B]."""
  return sum(x_B, group_B) / size(group_B)


def centred(x_B: jax.Array, group_B: jax.Array) -> jax.Array:
  """x - mean of the group, and exactly 0 where the whole group is equal (float rounding of the mean would leave 1e-9), [B]."""
  return jnp.where(max(x_B, group_B) == min(x_B, group_B), 0.0, x_B - mean(x_B, group_B))


def std(x_B: jax.Array, group_B: jax.Array, *, ddof: int = 1) -> jax.Array:
  """Standard deviation over the group, sqrt(sum (x - mean)^2 / (size - ddof)), and 0 where size <= ddof, [B]."""
  squares_B = sum(centred(x_B, group_B) ** 2, group_B)
  return jnp.sqrt(Ratio(squares_B, jnp.maximum(size(group_B) - ddof, 0.0)).compute())


def max(x_B: jax.Array, group_B: jax.Array) -> jax.Array:
  """Largest value in the group of each sequence, [B]."""
  return _spread(jax.ops.segment_max, x_B, group_B)


def min(x_B: jax.Array, group_B: jax.Array) -> jax.Array:
  """Smallest value in the group of each sequence, [B]."""
  return _spread(jax.ops.segment_min, x_B, group_B)


def difficulty(reward_B: jax.Array, group_B: jax.Array, *, threshold: float = 0.5) -> jax.Array:
  """Bucket of the prompt by its accuracy: 0 easy from 2/3, 1 medium from 1/3, 2 hard below, int32 [B]; counted in integers.

  >>> difficulty(jnp.array([1., 1., 0., 1., 0., 0., 0.]), jnp.array([0, 0, 0, 5, 5, 5, 2])).tolist()
  [0, 0, 0, 1, 1, 1, 2]
  """
  correct_B = sum((reward_B > threshold).astype(jnp.float32), group_B)
  size_B = size(group_B)
  return jnp.where(3.0 * correct_B >= 2.0 * size_B, 0, jnp.where(3.0 * correct_B >= size_B, 1, 2)).astype(jnp.int32)
