"""Order inside groups that are unequal in size and interleaved: ranks, quantiles, halves, and numbers for what agrees in several keys.

Everything is a value of each sequence, [B], found by one sort of the batch. Ties follow the sequences' identity (`sequence_B`; None
means the row number), so that nothing changes when rows move.
"""

import jax
import jax.numpy as jnp

from entropy_jax.ops import groups, selection


def identify(*keys_B: jax.Array) -> jax.Array:
  """Numbers from 0 that are equal where all keys are, in the order of the keys, the first one before the others, int32 [B].

  >>> identify(jnp.array([7, 3, 7, 7]), jnp.array([1, 0, 0, 1])).tolist()
  [2, 0, 1, 2]
  """
  order_B = jnp.lexsort(keys_B[::-1])
  changed = [key_B[order_B][1:] != key_B[order_B][:-1] for key_B in keys_B]
  number_B = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(jnp.any(jnp.stack(changed), axis=0), dtype=jnp.int32)])
  return jnp.zeros(order_B.shape, jnp.int32).at[order_B].set(number_B)


def _first(group_B: jax.Array) -> jax.Array:
  """Where the group of each sequence begins when the batch is sorted by group."""
  return jnp.searchsorted(jnp.sort(group_B), group_B).astype(jnp.int32)


def within(score_B: jax.Array, group_B: jax.Array, sequence_B: jax.Array | None = None) -> jax.Array:
  """Rank of each sequence in its group by rising score, from 0, int32 [B]. Scores are compared as they are: `selection.coarse` them.

  >>> within(jnp.array([5., 1., 2., 2.]), jnp.array([7, 3, 7, 7])).tolist()
  [2, 0, 0, 1]
  """
  identity_B = jnp.arange(score_B.shape[0]) if sequence_B is None else sequence_B
  order_B = jnp.lexsort((identity_B, score_B, group_B))
  place_B = jnp.zeros(order_B.shape, jnp.int32).at[order_B].set(jnp.arange(order_B.size, dtype=jnp.int32))
  return place_B - _first(group_B)


def quantile(
  x_B: jax.Array, group_B: jax.Array, q: float, *, method: str = 'lower_inf', counted_B: jax.Array | None = None
) -> jax.Array:
  """The q-quantile of each sequence's group, [B], and 0 where the group counts nobody.

  Args:
    x_B: float32.
    group_B: int, any ids.
    q: in (0, 1).
    method: 'lower_inf' for inf{x : F(x) >= q}, the ceil(q G)-th smallest value, counted in integers; 'linear' for interpolation between
      order statistics (numpy's default).
    counted_B: bool, the members that count; None for all.

  >>> x, one = jnp.array([1., 0., 1., 0.]), jnp.zeros(4, int)
  >>> [round(float(quantile(x, one, q, method=m)[0]), 6) for q, m in ((.5, 'lower_inf'), (.6, 'lower_inf'), (.5, 'linear'))]
  [0.0, 1.0, 0.5]
  """
  counted_B = jnp.ones(x_B.shape, bool) if counted_B is None else counted_B
  ordered_B = x_B[jnp.lexsort((x_B, ~counted_B, group_B))]
  first_B = _first(group_B)
  num_B = groups.sum(counted_B.astype(jnp.int32), group_B)
  top_B = jnp.maximum(num_B - 1, 0)
  if method == 'lower_inf':
    value_B = ordered_B[first_B + jnp.clip(selection.fraction_of(num_B, q, round_up=True) - 1, 0, top_B)]
  else:
    place_B = q * top_B.astype(jnp.float32)
    low_B = jnp.floor(place_B).astype(jnp.int32)
    low_value_B = ordered_B[first_B + low_B]
    high_value_B = ordered_B[first_B + jnp.minimum(low_B + 1, top_B)]
    # As a step from the lower value, so that equal values give themselves back exactly.
    value_B = low_value_B + (place_B - low_B.astype(jnp.float32)) * (high_value_B - low_value_B)
  return jnp.where(num_B > 0, value_B, 0.0)
