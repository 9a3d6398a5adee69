"""How one global batch lies over the workers that compute a step together, as the only thing that a step has to know about them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from entropy_jax.types import PyTree, take_rows


class Split(NamedTuple):
  """Part `part()` of `num_parts` equal blocks of rows. A step written with it gives the numbers of the whole batch on every part.

  Attributes:
    num_parts: blocks.
    part: the block that this code runs on, int32 scalar.
    gather: tree of this part's rows -> tree of all rows, on every part.
    total: tree of arrays -> their sum over the parts, on every part.
  """

  num_parts: int
  part: Callable[[], jax.Array]
  gather: Callable[[PyTree], PyTree]
  total: Callable[[PyTree], PyTree]

  def rows(self, size: int) -> jax.Array:
    """Which rows of the whole batch the `size` rows of this part are, int32 [size]."""
    return self.part() * size + jnp.arange(size, dtype=jnp.int32)

  def own(self, tree: PyTree, num_rows: int) -> PyTree:
    """This part's rows of every per-sequence array of a TokenBatch or of planned values with num_rows rows."""
    size = num_rows // self.num_parts
    return tree if self.num_parts == 1 else take_rows(tree, self.part() * size, size)


def _same(tree: PyTree) -> PyTree:
  return tree


# The global view: one part that holds everything, on one device or, by the compiler's doing, on a mesh of them.
WHOLE = Split(num_parts=1, part=lambda: jnp.int32(0), gather=_same, total=_same)
