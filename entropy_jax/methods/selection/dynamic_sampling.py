"""Dynamic sampling: prompts whose responses all earn the same teach nothing, so generate until enough prompts do teach.

It runs on the host, between generation and training, and hands on batches of a fixed number of prompts. One training step draws all the
generation batches that it needs and drops what is left over, so nothing goes from one step into the next and there is nothing to save: what
the step drew from the data iterator is in that iterator's state, which the training loop saves between steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from entropy_jax import transform
from entropy_jax.ops import groups
from entropy_jax.types import PyTree, UserError


def informative_B(metric_B: jax.Array, group_B: jax.Array) -> jax.Array:  # noqa: N802 - the shape is part of the name
  """Whether the metric differs within the sequence's group, population std > 0, or the group has one member.

  Args:
    metric_B: float32 [B], what is compared: the accuracy, or the shaped reward, which length alone can make differ.
    group_B: int [B], prompt ids.

  Returns:
    bool [B], equal within a group.

  Gradient: none.
  Limits: all True for groups of one, which can be compared with nothing.
  Reference: Yu et al., DAPO, arXiv 2503.14476, dynamic sampling.

  >>> import jax.numpy as jnp
  >>> informative_B(jnp.array([1., 1., 1., 0., 1.]), jnp.array([7, 3, 7, 3, 5])).tolist()
  [False, True, False, True, True]
  """
  # Compared by extremes, not by std: the rounding of a mean may leave a std of 1e-9 among equal values.
  return (groups.max(metric_B, group_B) != groups.min(metric_B, group_B)) | (groups.size(group_B) == 1.0)


_compiled = jax.jit(informative_B)  # generation batches have one shape, so this compiles once


class Selected(NamedTuple):
  """A full batch of informative prompts.

  Attributes:
    rows: the kept rows, in order of arrival, in the structure that was added; numpy arrays.
    group_B: int32, prompts numbered from 0 in order of arrival, so that two visits of one prompt stay two groups.
    num_batches: generation batches that it took.
    informative_fraction: informative prompts over all prompts generated; the kept rows' accuracy is biased by it.
  """

  rows: PyTree
  group_B: np.ndarray
  num_batches: int
  informative_fraction: float


class DynamicSampling:
  """Keeps the informative prompts of successive generation batches until there are `num_prompts`, then truncates.

  Args:
    num_prompts: >= 1, informative prompts of a training batch.
    max_num_batches: generation batches after which too few prompts are an error; 0 or less for no limit.

  Limits: with several processes give `add` the rows of all of them, so that all stop at the same generation batch.
  Reference: Yu et al., DAPO, arXiv 2503.14476, dynamic sampling.

  >>> sampling = DynamicSampling(num_prompts=1)
  >>> sampling.add({'text': np.array(['a', 'b'])}, np.array([1., 1.]), np.array([4, 4]))
  False
  >>> sampling.add({'text': np.array(['c', 'd'])}, np.array([0., 1.]), np.array([9, 9]))
  True
  >>> sampling.take().rows['text'].tolist()
  ['c', 'd']

  In a training step, `collect` does the same:

  >>> batches = iter([({'text': np.array(['e', 'f'])}, [0., 0.], [1, 1]), ({'text': np.array(['g', 'h'])}, [0., 1.], [1, 1])])
  >>> sampling.collect(lambda: next(batches)).rows['text'].tolist()
  ['g', 'h']
  """

  def __init__(self, *, num_prompts: int, max_num_batches: int = 0):
    transform.check_range('dynamic_sampling', 'num_prompts', num_prompts, '[1, inf)')
    if num_prompts != int(num_prompts):
      raise UserError(f'dynamic_sampling: num_prompts={num_prompts!r} is no whole number; give an integer from 1.')
    self.num_prompts = num_prompts
    self.max_num_batches = max_num_batches
    self._clear()

  def _clear(self) -> None:
    self._kept: list[tuple[PyTree, np.ndarray]] = []
    self._num_kept = self._num_seen = self._num_batches = 0

  def collect(self, draw: Callable[[], tuple[PyTree, Any, Any]]) -> Selected:
    """The training batch of one step: draws until there are enough informative prompts.

    It starts empty, so that a step that was broken off, and is made again when the run resumes, finds nothing of the first attempt.

    Args:
      draw: makes the next generation batch, the arguments of `add`. What it draws from must not run ahead of it unseen: the position of
        the data iterator after this call is the one that a checkpoint saves.

    Raises:
      UserError: as `add`.
    """
    self._clear()
    while not self.add(*draw()):
      pass
    return self.take()

  def add(self, rows: PyTree, metric_B: Any, group_B: Any) -> bool:
    """Takes in one generation batch.

    Args:
      rows: pytree of arrays with leading axis B, the same structure at every call.
      metric_B: float [B], what must differ within a prompt.
      group_B: int [B], prompt ids; the same id in a later call is another group.

    Returns:
      Whether there are enough prompts, so that `take` may be called.

    Raises:
      UserError: this was batch number max_num_batches and there are still too few.
    """
    metric_B, group_B = np.asarray(metric_B, np.float32), np.asarray(group_B)
    rows = jax.tree.map(np.asarray, rows)
    lengths = {x.shape[:1] for x in jax.tree.leaves(rows)} | {metric_B.shape, group_B.shape}
    assert len(lengths) == 1, f'rows, metric_B and group_B must agree in their leading axis, and have {lengths}'
    keep_B = np.asarray(_compiled(metric_B, group_B))
    self._num_batches += 1
    self._num_seen += len(np.unique(group_B))
    if keep_B.any():
      _, first, dense = np.unique(group_B[keep_B], return_index=True, return_inverse=True)
      arrival = self._num_kept + np.argsort(np.argsort(first))  # each id's place by its first row: unique sorts by id
      self._kept.append((jax.tree.map(lambda x: x[keep_B], rows), arrival[dense].astype(np.int32)))
      self._num_kept += len(first)
    if self._num_kept < self.num_prompts and 0 < self.max_num_batches <= self._num_batches:
      raise UserError(
        f'dynamic_sampling: {self._num_batches} generation batches gave {self._num_kept} informative prompts of '
        f'num_prompts={self.num_prompts}; raise max_num_batches={self.max_num_batches} (0 is no limit), or give '
        'prompts that are neither always nor never solved.'
      )
    return self._num_kept >= self.num_prompts

  def take(self) -> Selected:
    """The first `num_prompts` informative prompts; what is left over is dropped and the next batch starts empty."""
    have, want = self._num_kept, self.num_prompts
    assert have >= want, f'{have} prompts of {want}: call add until it returns True'
    group_B = np.concatenate([group for _, group in self._kept])
    rows = jax.tree.map(lambda *parts: np.concatenate(parts), *[rows for rows, _ in self._kept])
    first_B = group_B < self.num_prompts
    selected = Selected(
      jax.tree.map(lambda x: x[first_B], rows), group_B[first_B], self._num_batches, self._num_kept / self._num_seen
    )
    self._clear()
    return selected
