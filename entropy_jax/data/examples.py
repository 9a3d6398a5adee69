"""Examples of any kind, images, chunks of text, bags or sentence pairs, and the batches of a training run made from them.

As in `pipeline`, training batch k depends on the seed and k alone, and the state of an iterator is one number: a run resumes from it on any
machine with any number of processes. What is held in memory (`Examples`), read record by record (`Records`) or drawn on demand
(`generated_batches`) gives the same kind of iterator, and an iterator refuses the state of one over other data.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from entropy_jax.data.pipeline import Batch, ShuffledRows, TrainingBatches, process_rows
from entropy_jax.types import UserError


class Rows(Protocol):
  """R examples that a batch can be taken from; `digest` names their content."""

  @property
  def digest(self) -> str: ...

  def __len__(self) -> int: ...

  def take(self, row_B: np.ndarray) -> Batch: ...


@dataclasses.dataclass(frozen=True)
class Examples:
  """R examples in memory, as one batch of all of them.

  Attributes:
    fields: name -> array with R as its first axis, under the name it has in a batch ('image_BxHxWxC', 'label_B').

  >>> Examples({'label_B': np.array([7, 8, 9])}).take(np.array([2, 0]))
  {'label_B': array([9, 7])}
  """

  fields: Mapping[str, np.ndarray]

  def __post_init__(self) -> None:
    sizes = {name: len(array) for name, array in self.fields.items()}
    if not sizes or min(sizes.values()) < 1 or len(set(sizes.values())) > 1:
      raise UserError(f'fields={sizes}: must be arrays of one length of at least 1; give as many rows in each.')

  def __len__(self) -> int:
    return len(next(iter(self.fields.values())))

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 (hex) of every field's name, type, shape and content."""
    digest = hashlib.sha256()
    for name, array in sorted(self.fields.items()):
      digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
      digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()

  def take(self, row_B: np.ndarray) -> Batch:
    """The fields of the given rows."""
    return {name: array[row_B] for name, array in self.fields.items()}


@dataclasses.dataclass(frozen=True)
class Records:
  """Examples that are read and decoded whenever a batch asks for them, for data that does not fit in memory.

  Attributes:
    source: random access to the records, such as a TFDS data source.
    convert: record -> fields of one example, named as in a batch but without its axis B: the arrays of a batch are stacks of them.
    digest: what names the content of source and convert.
  """

  source: Sequence[Any]
  convert: Callable[[Any], Mapping[str, Any]]
  digest: str

  def __len__(self) -> int:
    return len(self.source)

  def take(self, row_B: np.ndarray) -> Batch:
    """The fields of the given rows."""
    rows = [self.convert(self.source[row]) for row in row_B.tolist()]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def training_batches(
  rows: Rows, *, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
) -> TrainingBatches:
  """Endless batches of B = batch_size / process_count examples, every epoch another permutation of all of them.

  Args:
    rows: the examples of a split.
    batch_size: examples in a batch over all processes, at most the size of the split.
    seed: of the order, in 0..2^63 - 1.
    process_index: which contiguous block of every batch this process gets.
    process_count: number of processes, divides batch_size.

  Returns:
    An iterator of dicts of numpy arrays: the fields of the examples, and index_B (int32), their rows in the split.
  """
  _check_batches(batch_size, len(rows), seed)
  block = process_rows(batch_size, process_index, process_count)
  dataset = grain.MapDataset.source(ShuffledRows(len(rows), batch_size, seed))
  dataset = dataset.map(lambda row_B: rows.take(row_B[block]) | {'index_B': row_B[block].astype(np.int32)})
  return TrainingBatches(dataset, _identity(rows.digest, batch_size, seed))


def scan_rows(rows: Rows, *, batch_size: int, seed: int, num_steps: int, first_step: int = 0) -> np.ndarray:
  """index_B of num_steps batches of `training_batches`, int64 [K, B]: for a compiled scan over examples that lie on the device."""
  _check_batches(batch_size, len(rows), seed)
  batches = ShuffledRows(len(rows), batch_size, seed)
  return np.stack([batches[k] for k in range(first_step, first_step + num_steps)])


def evaluation_batches(rows: Rows, *, batch_size: int, process_index: int = 0, process_count: int = 1) -> Iterator[Batch]:
  """Every example once, in order, in batches of one shape, made one at a time.

  Args: as `training_batches`; batch_size may exceed the split.

  Returns:
    Batches as of `training_batches`, with valid_B (bool): False on the rows that fill up the last batch, which repeat the last example and
    are to be left out of every average.
  """
  if batch_size < 1:
    raise UserError(f'batch_size={batch_size}: must be at least 1; give a positive integer.')
  block = process_rows(batch_size, process_index, process_count)

  def batch(start: int) -> Batch:
    wanted_B = np.arange(start, start + batch_size)[block]
    row_B = np.minimum(wanted_B, len(rows) - 1)
    return rows.take(row_B) | {'index_B': row_B.astype(np.int32), 'valid_B': wanted_B < len(rows)}

  return map(batch, range(0, len(rows), batch_size))


class _Consecutive:
  """A grain data source whose element k is the indices of batch k of an endless sequence."""

  def __init__(self, batch_size: int):
    self._batch_size = batch_size

  def __len__(self) -> int:
    return 2**62 // self._batch_size

  def __getitem__(self, k: int) -> np.ndarray:
    return np.arange(k * self._batch_size, (k + 1) * self._batch_size)


def generated_batches(
  make: Callable[[int, np.ndarray], Batch],
  *,
  identity: Any,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
) -> TrainingBatches:
  """Endless batches of examples that are drawn, not stored: batch k holds the indices k B_all .. (k + 1) B_all - 1 of the seed.

  Args:
    make: (seed, index_B) -> batch, where an example depends on the seed and its own index alone.
    identity: ready for JSON; what names make and its settings.
    batch_size, seed, process_index, process_count: as `training_batches`.

  Returns:
    An iterator of the batches of make.
  """
  _check_batches(batch_size, 2**62, seed)
  block = process_rows(batch_size, process_index, process_count)
  dataset = grain.MapDataset.source(_Consecutive(batch_size)).map(lambda index_B: make(seed, index_B[block]))
  return TrainingBatches(dataset, _identity(identity, batch_size, seed))


def _check_batches(batch_size: int, num_rows: int, seed: int) -> None:
  if not 1 <= batch_size <= num_rows:
    raise UserError(f'batch_size={batch_size}: must be in 1..{num_rows}, the size of the split; give such a size.')
  if not 0 <= seed < 2**63:
    raise UserError(f'seed={seed}: must be in 0..2^63 - 1; give a non-negative integer.')


def _identity(*parts: Any) -> str:
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
