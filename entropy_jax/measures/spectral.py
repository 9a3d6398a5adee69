"""Spectral norm of every linear map in a tree of parameters: the quantity that grows before attention entropy falls."""

from collections.abc import Callable, Collection

import jax

from entropy_jax.ops import spectral
from entropy_jax.types import Params, UserError


def _flat(path: str, kernel: jax.Array) -> jax.Array:
  return spectral.as_matrix(kernel)


def spectral_norms(
  params: Params,
  *,
  leaves: Collection[str] = ('kernel',),
  matrix: Callable[[str, jax.Array], jax.Array] = _flat,
) -> dict[str, jax.Array]:
  """||W||_2 of every linear map, by its path.

  Args:
    params: nested dicts; a leaf of two or more axes whose own name is in `leaves` is the kernel of a linear map, [..., in, out].
    leaves: add 'unembed' for a head that is a bare parameter.
    matrix: (path, kernel) -> [..., in, out], for kernels that are no convolution: layers stacked in front ([L, in, out] as it is, norms
      [L]), projections to heads ([D, H, K] as [D, H * K]), a fused projection to be split. The default flattens all axes but the last.

  Returns:
    path -> float32 norm. The path is joined by '/', without a last 'kernel': 'block_0/attention/query'.

  Raises:
    UserError: no leaf has such a name.

  Gradient: that of `ops.spectral.spectral_norm`.
  Limits: the stored kernel is measured. Under a reparametrisation (kernel times gain / sigma) pass the tree of effective kernels.
  Reference: Zhai et al., Stabilizing Transformer Training by Preventing Attention Entropy Collapse (sigmaReparam).

  >>> import jax.numpy as jnp
  >>> tree = {'mlp': {'up': {'kernel': jnp.diag(jnp.array([2., 5.])), 'bias': jnp.ones(2)}}}
  >>> {path: round(float(norm), 6) for path, norm in spectral_norms(tree).items()}
  {'mlp/up': 5.0}
  """
  norms = {}
  for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
    path = jax.tree_util.keystr(keys, simple=True, separator='/')
    if path.split('/')[-1] in leaves and leaf.ndim >= 2:
      norms[path.removesuffix('/kernel')] = spectral.spectral_norm(matrix(path, leaf))
  if not norms:
    raise UserError(f'leaves={tuple(leaves)!r} names no matrix of these parameters: give the names that their kernels have.')
  return norms
