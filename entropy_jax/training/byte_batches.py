"""The batches of a study on the bytes of Python's standard library: those of every seed and every update, and the rows held out of all."""

import jax.numpy as jnp
import numpy as np

from entropy_jax.data import examples, source_bytes
from entropy_jax.training import learners
from entropy_jax.training.learners import Batch


def training(*, length: int, num_steps: int, batch_size: int, seed: int, num_seeds: int) -> Batch:
  """Next-byte prediction on the files of the training split.

  Args:
    length: N, bytes of a row; N - 1 of them are predicted.
    num_steps: updates.
    batch_size: B.
    seed: of the order of rows; the k-th run has seed + k.
    num_seeds: R.

  Returns:
    Batch of arrays [R, num_steps, B, N - 1].
  """
  rows = _rows('train', length)
  row_RxNxB = np.stack([examples.scan_rows(rows, batch_size=batch_size, seed=seed + k, num_steps=num_steps) for k in range(num_seeds)])
  return _batch(rows, row_RxNxB)


def held_out(*, length: int, num_rows: int, seed: int) -> Batch:
  """Rows of the test split, chosen by the seed: Batch of arrays [num_rows, N - 1]."""
  rows = _rows('test', length)
  return _batch(rows, examples.scan_rows(rows, batch_size=num_rows, seed=seed, num_steps=1)[0])


def _rows(split: str, length: int) -> examples.Examples:
  return examples.Examples({'tokens': source_bytes.chunks(source_bytes.split_files(source_bytes.read(), split), length)})


def _batch(rows: examples.Examples, row_x: np.ndarray) -> Batch:
  return learners.next_tokens(jnp.asarray(rows.take(row_x)['tokens'], jnp.int32))
