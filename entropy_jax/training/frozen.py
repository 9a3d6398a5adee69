"""Digests of the parts of a state that never change: what checkpoints keep of them, and what a run that goes on is held against.

A digest is made on the devices where the numbers lie and is the same however they are cut: sums modulo 2^32 of mixed bits and places.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from entropy_jax.types import PyTree, UserError

FROZEN = 'frozen'  # key of the digests in the host part of a checkpoint
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
_SEEDS = (np.uint32(0x9E3779B9), np.uint32(0x85EBCA6B))


def _mixed(x: jax.Array) -> jax.Array:
  """A permutation of 32-bit words in which every bit of the input moves about half of those of the output.

  Reference: the finalizer of MurmurHash3 (Appleby, public domain).
  """
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


@jax.jit
def _sum(x: jax.Array, seed: jax.Array) -> jax.Array:
  """A word for an array whose elements have at most 4 bytes. One at a time, because two would hold what they have in common."""
  words = x.astype(jnp.uint8) if x.dtype == bool else jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize])
  words, place = words.astype(jnp.uint32), jnp.zeros((), jnp.uint32)
  for axis, size in enumerate(x.shape):  # of each axis by itself, so that a cut array is not put together to number its elements
    along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    place = place * jnp.uint32(size) + along
  return jnp.sum(_mixed(_mixed(place ^ seed) ^ words), dtype=jnp.uint32)


def digests(parts: Sequence[PyTree]) -> dict[str, str]:
  """Digest of every array by its path, with its type and shape.

  Args:
    parts: `types.frozen_of` a state, on any devices; all processes of a run call it.

  Limits: of 64 bits, against files that were mixed up or changed, not against who makes another array with the same digest.

  >>> digests([{'w': jnp.arange(3.0)}]) == digests([{'w': jnp.array([0.0, 2.0, 1.0])}])
  False
  """
  found = {}
  for number, part in enumerate(parts):
    for path, leaf in jax.tree_util.tree_leaves_with_path(part):
      words = ''.join(f'{int(_sum(leaf, seed)):08x}' for seed in _SEEDS)
      found[f'{number}{jax.tree_util.keystr(path)}'] = f'{leaf.dtype}{list(leaf.shape)} {words}'
  return found


def check_digests(workdir: Path, saved: Mapping[str, str], given: Mapping[str, str]) -> None:
  """Refuses to go on with other frozen parameters than those that the run was started with."""
  for path in [*given, *saved]:
    if saved.get(path) != given.get(path):
      where = path.lstrip('0123456789')
      raise UserError(f'training: {workdir} was made with another frozen {where} than is given now; give that base, or another --workdir.')
