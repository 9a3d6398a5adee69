"""pmap: parameters on every device, rows cut over the devices, and the only file that says so.

A step runs on each device with its own rows. Token-level scores are gathered before a plan is made, so every device makes the same plan
of the whole batch; the numerator, denominator and gradient of its own rows' loss are summed over the devices and divided once.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from entropy_jax.parallel.parallel import STATE, WHOLE, Kind, Parallel, devices_of, each
from entropy_jax.parallel.rules import DATA
from entropy_jax.parallel.split import Split
from entropy_jax.types import PyTree


def _gather(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda x: jax.lax.all_gather(x, DATA, tiled=True), tree)


def _total(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda x: jax.lax.psum(x, DATA), tree)


def make(num_devices: int = 0) -> Parallel:
  """The mode on the first num_devices devices, 0 for all."""
  devices = devices_of(num_devices)
  local = [d for d in devices if d.process_index == jax.process_index()]
  everywhere = NamedSharding(Mesh(np.array(devices), (DATA,), axis_types=(AxisType.Auto,)), PartitionSpec())
  own = NamedSharding(Mesh(np.array(local), (DATA,), axis_types=(AxisType.Auto,)), PartitionSpec(DATA))
  split = Split(len(devices), lambda: jax.lax.axis_index(DATA), _gather, _total)

  def build(make_state: Callable[..., PyTree], *arguments: PyTree, donate: Sequence[int] = ()) -> PyTree:
    return jax.jit(make_state, out_shardings=everywhere, donate_argnums=tuple(donate))(*arguments)

  def rows(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.device_put(np.reshape(x, (len(local), -1, *np.shape(x)[1:])), own), tree)

  def host(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)

  def global_view(tree: PyTree) -> PyTree:
    """Each process gets its results as arrays of its own devices; a checkpoint of several processes needs them as one array of all."""
    if jax.process_count() == 1:
      return tree
    shards = lambda x: [s.data for s in x.addressable_shards]
    return jax.tree.map(lambda x: jax.make_array_from_single_device_arrays(x.shape, everywhere, shards(x)), tree)

  def compile(fn: Callable[..., Any], *, takes: Sequence[Kind], gives: Sequence[Kind], donate: Sequence[int] = ()) -> Callable[..., Any]:
    axes = lambda kinds: tuple(0 if kind is Kind.ROWS else None for kind in kinds)
    compiled = jax.pmap(
      functools.partial(fn, split),
      axis_name=DATA,
      in_axes=axes(takes),
      out_axes=axes(gives),
      devices=devices,
      donate_argnums=tuple(donate),
    )
    return lambda *arguments: each(gives, compiled(*arguments), {STATE: global_view, WHOLE: global_view})

  shardings = lambda tree: jax.tree.map(lambda _: everywhere, tree)
  return Parallel('pmap', len(devices), build, rows, host, compile, shardings)
