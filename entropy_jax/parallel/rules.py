"""Which axis of which parameter is cut over the devices of the mesh: one table for every model of the library."""

import re
from collections.abc import Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from entropy_jax.types import PyTree, UserError

DATA = 'data'  # the one axis of the mesh: batch rows and parameter shards alike

# Pattern of the end of a parameter's path -> partition. A parameter matches exactly one row; its optimizer moments have the same
# end of path and so the same partition. The axis that is cut is the largest one that every preset of models/presets.py can divide by
# 8, 16, 32: the width, or the product of heads and head size. Norm scales and biases are too small to be worth a message.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
  (r'(^|/)(source_|target_)?embed$', PartitionSpec(None, DATA)),  # [V, D]
  (r'(^|/)(source_|target_)?position$', PartitionSpec(None, DATA)),  # [max_length, D]
  (r'(^|/)unembed$', PartitionSpec(DATA, None)),  # [D, V]
  (r'(^|/)(cross_)?attention/(query|key|value)/kernel$', PartitionSpec(DATA, None)),  # [D, H head_dim]
  (r'(^|/)(cross_)?attention/output/kernel$', PartitionSpec(None, DATA)),  # [H head_dim, D]
  (r'(^|/)mlp/(gate|up|fused)/kernel$', PartitionSpec(DATA, None)),  # [D, hidden]
  (r'(^|/)mlp/down/kernel$', PartitionSpec(None, DATA)),  # [hidden, D]
  (r'(^|/)lora_a$', PartitionSpec(DATA, None)),  # [inputs, rank]
  (r'(^|/)lora_b$', PartitionSpec(None, DATA)),  # [rank, outputs]
  (r'(^|/)patch/kernel$', PartitionSpec(None, DATA)),  # [patch^2 channels, D]
  (r'(^|/)head/kernel$', PartitionSpec(DATA, None)),  # [D, classes]
  (r'(^|/)(query|key|value|patch|head|\w+_norm)/bias$', PartitionSpec()),
  (r'(^|/)(\w+_norm)/scale$', PartitionSpec()),
  (r'(^|/)class_token$', PartitionSpec()),  # [D]
  (r'(^|/)(gain|u)$', PartitionSpec()),  # of a reparametrised map: [], and [outputs] as every device needs it
  (r'(^|/)softmax/temperature$', PartitionSpec()),  # [H, positions]
  (r'(^|/)sink/sink$', PartitionSpec()),  # [H]
  (r'(^|/)mlp/(alpha|beta)$', PartitionSpec()),
  (r'(^|/)crrelu/epsilon$', PartitionSpec()),
  (r'(^|/)table_PROMPTSxTxSxV$', PartitionSpec(DATA)),  # tabular policies
)


def path_of(path: Sequence[object]) -> str:
  """block_0/mlp/up/kernel of a key path; attributes, keys and indices count alike."""
  return '/'.join(str(getattr(p, 'key', getattr(p, 'name', getattr(p, 'idx', p)))) for p in path)


def matches(path: str, rules: Sequence[tuple[str, PartitionSpec]] = RULES) -> list[tuple[str, PartitionSpec]]:
  """The rows of the table that this path matches."""
  return [rule for rule in rules if re.search(rule[0], path)]


def partition(path: str, shape: tuple[int, ...], num_devices: int) -> PartitionSpec:
  """The partition of one leaf of a train state.

  Scalars, and whatever is no parameter or moment of one (counters, the state of controllers), are on every device; so is a parameter
  whose axis the devices do not divide.

  Raises:
    UserError: a matrix of the model that no row of the table knows, or several do.
  """
  found = matches(path)
  if len(found) > 1:
    raise UserError(f'parallel: the parameter {path} matches {len(found)} sharding rules; narrow one of them in parallel/rules.py.')
  if not found:
    if len(shape) > 1:
      raise UserError(f'parallel: no sharding rule knows the parameter {path} of shape {list(shape)}; add a row to parallel/rules.py.')
    return PartitionSpec()
  spec = found[0][1]
  cut = [size for size, axis in zip(shape, spec) if axis is not None]
  return spec if len(shape) >= len(spec) and all(size % num_devices == 0 for size in cut) else PartitionSpec()


def shardings(tree: PyTree, mesh: Mesh) -> PyTree:
  """The `NamedSharding` of every leaf of a state or of parameters (arrays or their abstract shapes)."""

  def one(path: tuple[object, ...], leaf: jax.Array) -> NamedSharding:
    # The objective's own state has no parameters in it and may have any shape.
    inside = path_of(path)
    spec = PartitionSpec() if 'objective_state' in inside.split('/') else partition(inside, leaf.shape, mesh.size)
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(one, tree)
