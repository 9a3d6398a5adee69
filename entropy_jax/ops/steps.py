"""Steps of a trajectory (turns, segments): statistics over the valid tokens of one sequence that share a number in `segment_BxT`.

A step is a (sequence, number) pair with a valid token; numbers may be any ints from 0 and rise along the trajectory, and a token with a
negative one belongs to no step. Every function of a step's tokens returns the value of its step to each of them: no ragged shape appears.
"""

import jax
import jax.numpy as jnp

from entropy_jax.ops import groups, masked
from entropy_jax.types import Ratio

_NONE = -1


def _number(segment_BxT: jax.Array, mask_BxT: jax.Array) -> jax.Array:
  return jnp.where(mask_BxT & (segment_BxT >= 0), segment_BxT, _NONE)


def first(segment_BxT: jax.Array, mask_BxT: jax.Array) -> jax.Array:
  """The first valid token of every step, bool [B, T]: with it as the mask, a mean over tokens is a mean over steps.

  >>> first(jnp.array([[0, 0, 2, -1, 2]]), jnp.ones((1, 5), bool))[0].tolist()
  [True, False, True, False, False]
  """
  number_BxT = _number(segment_BxT, mask_BxT)
  position_BxT = jnp.broadcast_to(jnp.arange(mask_BxT.shape[1]), mask_BxT.shape)
  return (number_BxT != _NONE) & (jax.vmap(groups.min)(position_BxT, number_BxT) == position_BxT)


def count(segment_BxT: jax.Array, mask_BxT: jax.Array) -> jax.Array:
  """Number of steps of every sequence, float32 [B].

  >>> count(jnp.array([[0, 0, 2, -1, 2]]), jnp.ones((1, 5), bool)).tolist()
  [2.0]
  """
  return masked.count(first(segment_BxT, mask_BxT), axis=1)


def mean(x_BxT: jax.Array, segment_BxT: jax.Array, mask_BxT: jax.Array) -> jax.Array:
  """Mean over the valid tokens of the step of each token, 0 for a token in none, [B, T].

  >>> mean(jnp.array([[1., 3., 5., 9., 6.]]), jnp.array([[0, 0, 2, -1, 2]]), jnp.ones((1, 5), bool))[0].tolist()
  [2.0, 2.0, 5.5, 0.0, 5.5]
  """
  number_BxT = _number(segment_BxT, mask_BxT)
  belongs_BxT = number_BxT != _NONE
  over_step = jax.vmap(groups.sum)
  sizes_BxT = over_step(belongs_BxT.astype(jnp.float32), number_BxT)
  return Ratio(over_step(masked.zero(x_BxT, belongs_BxT), number_BxT), sizes_BxT).compute()


def following(x_BxT: jax.Array, segment_BxT: jax.Array, mask_BxT: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(value of the sequence's next step, 0 after the last; bool, whether there is one), both [B, T].

  Args:
    x_BxT: equal at all tokens of a step, as `mean` returns it.

  >>> x, exists = following(jnp.array([[2., 2., 5., 9., 7.]]), jnp.array([[0, 0, 2, -1, 4]]), jnp.ones((1, 5), bool))
  >>> x[0].tolist(), exists[0].tolist()
  ([5.0, 5.0, 7.0, 0.0, 0.0], [True, True, True, False, False])
  """

  def one(x_T: jax.Array, number_T: jax.Array) -> tuple[jax.Array, jax.Array]:
    order_T = jnp.argsort(number_T)
    behind_T = jnp.searchsorted(number_T[order_T], number_T, side='right')
    exists_T = (number_T != _NONE) & (behind_T < number_T.size)
    return masked.zero(x_T[order_T][jnp.minimum(behind_T, number_T.size - 1)], exists_T), exists_T

  return jax.vmap(one)(masked.zero(x_BxT, mask_BxT), _number(segment_BxT, mask_BxT))
