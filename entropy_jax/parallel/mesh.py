"""jit over a mesh: rows cut over the devices, parameters and optimizer state cut too (fsdp), for models that one device cannot hold.

The functions are those of one device; the compiler gathers a layer's parameters where it needs them and scatters their gradients. On a
mesh of one device without constraints it is plain jit, which is what the other modes are measured against.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from entropy_jax.parallel import rules
from entropy_jax.parallel.parallel import ROWS, STATE, WHOLE, Kind, Parallel, blocks, devices_of, each
from entropy_jax.parallel.split import WHOLE as WHOLE_BATCH
from entropy_jax.types import PyTree


def fsdp(num_devices: int = 0) -> Parallel:
  """Fully sharded: every parameter, its gradient and its moments cut by the table of rules.py, over the first num_devices devices."""
  devices = devices_of(num_devices)
  mesh = Mesh(np.array(devices), (rules.DATA,), axis_types=(AxisType.Auto,))
  cut, everywhere = NamedSharding(mesh, PartitionSpec(rules.DATA)), NamedSharding(mesh, PartitionSpec())

  def build(make_state: Callable[..., PyTree], *arguments: PyTree, donate: Sequence[int] = ()) -> PyTree:
    out = rules.shardings(jax.eval_shape(make_state, *arguments), mesh)
    return jax.jit(make_state, out_shardings=out, donate_argnums=tuple(donate))(*arguments)

  def rows(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(cut, np.asarray(x)), tree)

  constrain = {
    STATE: lambda tree: jax.lax.with_sharding_constraint(tree, rules.shardings(tree, mesh)),
    ROWS: lambda tree: jax.lax.with_sharding_constraint(tree, cut),
    WHOLE: lambda tree: jax.lax.with_sharding_constraint(tree, everywhere),
  }

  def compile(fn: Callable[..., Any], *, takes: Sequence[Kind], gives: Sequence[Kind], donate: Sequence[int] = ()) -> Callable[..., Any]:
    def placed(*arguments: PyTree) -> tuple[PyTree, ...]:
      return each(gives, fn(WHOLE_BATCH, *arguments), constrain)  # or a state would come back cut otherwise than it went in

    return jax.jit(placed, donate_argnums=tuple(donate))

  local = lambda tree: jax.tree.map(blocks, tree)
  return Parallel('fsdp', len(devices), build, rows, local, compile, functools.partial(rules.shardings, mesh=mesh))


def plain(num_devices: int = 1) -> Parallel:
  """Plain jit on the default device."""

  def compile(fn: Callable[..., Any], *, takes: Sequence[Kind], gives: Sequence[Kind], donate: Sequence[int] = ()) -> Callable[..., Any]:
    return jax.jit(functools.partial(fn, WHOLE_BATCH), donate_argnums=tuple(donate))

  build = lambda make_state, *arguments, donate=(): jax.jit(make_state, donate_argnums=tuple(donate))(*arguments)
  return Parallel('jit', 1, build, jax.device_put, jax.device_get, compile)
