"""A stack of equal blocks as one scan: a program whose size, and the time to compile it, does not grow with the depth.

The parameters of all layers lie in one tree with the layer as first axis, as layers/spectral.py reads stacked maps. It computes what
`layers.block.stack` does, for whole sequences; `unstack` gives the parameters of that.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from entropy_jax.layers import attention, block, placement
from entropy_jax.types import Params, PyTree, UserError

LAYERS = 'layers'  # the node of the stacked parameters in those of a stack


class ScannedBlocks(nn.Module):
  """All blocks of a stack, called as one `layers.block.Block`.

  Parameters: layers/ as of `layers.block.Block`, every array with the layer as first axis; so are state and sown logits.

  Attributes:
    config: shape and variants; num_layers says how many. Without Entropy-ABF, which is not the same for all layers.
    num_positions, deepnorm, cross: as of `layers.block.Block`.

  Limits: no keys and values come out, so that nothing can be decoded with a cache.
  """

  config: block.BlockConfig
  num_positions: int = 1
  deepnorm: placement.DeepNorm | None = None
  cross: bool = False

  @nn.compact
  def __call__(
    self,
    x_BxNxD: jax.Array,
    mask_BxQxK: jax.Array,
    positions_BxN: jax.Array,
    turn: attention.Rotation | None = None,
    cache: attention.KeyValue | None = None,
    index: jax.Array | int = 0,
    source: block.Source | None = None,
  ) -> tuple[jax.Array, None, None]:
    """The stream after the last block."""
    c = self.config
    c.no_abf('scanned stack')
    if cache is not None:
      raise UserError('cache is given, but a scanned stack has none: decode with the model of separate layers and `scanned.unstack`.')

    def one(layer: nn.Module, x: jax.Array, _: None) -> tuple[jax.Array, None]:
      return layer(x, mask_BxQxK, positions_BxN, turn, None, index, source)[0], None

    axes: dict[Any, Any] = {'params': 0, 'spectral': 0, 'attention': 0}
    through = nn.scan(one, variable_axes=axes, split_rngs={'params': True}, length=c.num_layers)
    kind = nn.remat(block.Block) if c.remat else block.Block
    layer = kind(c, num_positions=self.num_positions, deepnorm=self.deepnorm, cross=self.cross, name=LAYERS)
    return through(layer, x_BxNxD, None)[0], None, None


def stack(config: block.BlockConfig, **options: Any) -> list[ScannedBlocks]:
  """In the place of `layers.block.stack`: a list of the one module that is the stack."""
  return [ScannedBlocks(config, **options)]


def unstack(params: Params) -> Params:
  """The same parameters for `layers.block.stack`: of every NAME_0/layers a NAME_i for each layer.

  Args:
    params: of a model of scanned stacks, {'params': ..., 'spectral': ...} or the former alone.
  """

  def apart(tree: PyTree) -> PyTree:
    if not isinstance(tree, Mapping):
      return tree
    found: dict[str, PyTree] = {}
    for name, node in tree.items():
      if isinstance(node, Mapping) and set(node) == {LAYERS}:
        size = jax.tree.leaves(node)[0].shape[0]
        found |= {f'{name.removesuffix("_0")}_{i}': jax.tree.map(lambda x, i=i: x[i], node[LAYERS]) for i in range(size)}
      else:
        found[name] = apart(node)
    return found

  return apart(params)
