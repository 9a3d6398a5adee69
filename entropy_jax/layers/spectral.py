"""Spectral norms of linear maps, and parameter trees of maps that carry one: the pure side of layers/sigma_reparam.py.

A reparametrised map has params {kernel, gain[, bias]} and, at the same path of the collection 'spectral', {u}: a unit vector over its
outputs, the estimate of the kernel's top right-singular vector. The kernel may have any rank: its matrix W is [inputs, outputs] with as
many outputs as u, the last axes of the kernel. Axes of u before the last are layers that nn.scan or nn.vmap stacked along axis 0.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from entropy_jax.types import Metrics, Params, PyTree, UserError

GAIN_INITS = ('one', 'sigma')
# Graphics and tensor processors round the operands of float32 products; a norm must not depend on the device.
_EXACT = jax.lax.Precision.HIGHEST


def as_matrix(kernel: jax.Array, u_xO: jax.Array) -> jax.Array:
  """The kernel as W_...xIxO, float32: O outputs as in u [..., O], all other axes after the stacked ones are inputs."""
  return kernel.astype(jnp.float32).reshape(*u_xO.shape[:-1], -1, u_xO.shape[-1])


def _out(w_xIxO: jax.Array, u_xO: jax.Array) -> jax.Array:
  return jnp.einsum('...io,...o->...i', w_xIxO, u_xO, precision=_EXACT)


def _unit(x_xD: jax.Array, otherwise_xD: jax.Array) -> jax.Array:
  norm = jnp.sqrt(jnp.sum(jnp.square(x_xD), axis=-1, keepdims=True))
  return jnp.where(norm > 0, x_xD / jnp.where(norm > 0, norm, 1.0), otherwise_xD)


def power_step(w_xIxO: jax.Array, u_xO: jax.Array) -> jax.Array:
  """One step of power iteration on W^T W: v = W u / |W u|, u' = W^T v / |W^T v|.

  Args:
    w_xIxO: [..., I, O], float32.
    u_xO: [..., O], unit vectors.

  Returns:
    u' [..., O]; u where W u = 0.

  Gradient: none.
  Limits: the top right-singular vector stays what it is (up to its sign); |W u'| >= |W u|.

  >>> u = power_step(jnp.diag(jnp.array([3., 1.])), jnp.array([1., 1.]) / 2**.5)     # (9, 1) / sqrt(82)
  >>> [round(float(x), 4) for x in u]
  [0.9939, 0.1104]
  """
  w_xIxO, u_xO = jax.lax.stop_gradient((w_xIxO, u_xO))
  v_xI = _unit(_out(w_xIxO, u_xO), jnp.float32(0))
  return _unit(jnp.einsum('...io,...i->...o', w_xIxO, v_xI, precision=_EXACT), u_xO)


def norm_along(w_xIxO: jax.Array, u_xO: jax.Array) -> jax.Array:
  """sigma = v^T W u with v = W u / |W u|: the estimate of the spectral norm that u gives, never above the norm.

  Args:
    w_xIxO: [..., I, O], float32.
    u_xO: [..., O], unit vectors.

  Returns:
    [...], >= 0.

  Gradient: v u^T to W; none through u and v.
  Limits: the spectral norm where u is the top right-singular vector; 0 where W u = 0.
  """
  z_xI = _out(w_xIxO, jax.lax.stop_gradient(u_xO))
  v_xI = jax.lax.stop_gradient(_unit(z_xI, jnp.float32(0)))
  return jnp.sum(v_xI * z_xI, axis=-1)


def _eigenvectors(gram_xNxN: jax.Array) -> jax.Array:
  """Of every matrix, in columns; on a CPU one after another under vmap too, for the reason that ops/spectral.py gives."""
  find = lambda gram: jnp.linalg.eigh(gram)[1]
  if jax.default_backend() != 'cpu':
    return find(gram_xNxN)
  find = jax.custom_batching.sequential_vmap(find)
  for _ in range(gram_xNxN.ndim - 2):
    find = jax.vmap(find)
  return find(gram_xNxN)


def top_singular_vector(w_xIxO: jax.Array) -> jax.Array:
  """The right-singular vector of the largest singular value, exactly: an eigenvector of the smaller of W^T W and W W^T.

  Args:
    w_xIxO: [..., I, O].

  Returns:
    u [..., O], a unit vector; `norm_along(W, u)` is then the spectral norm (its error is quadratic in that of u).

  Gradient: none.
  Limits: any unit vector where W = 0.
  """
  w_xIxO = jax.lax.stop_gradient(w_xIxO.astype(jnp.float32))
  num_in, num_out = w_xIxO.shape[-2:]
  if num_out <= num_in:
    return _eigenvectors(jnp.einsum('...io,...ip->...op', w_xIxO, w_xIxO, precision=_EXACT))[..., -1]
  v_xI = _eigenvectors(jnp.einsum('...io,...jo->...ij', w_xIxO, w_xIxO, precision=_EXACT))[..., -1]
  return _unit(jnp.einsum('...io,...i->...o', w_xIxO, v_xI, precision=_EXACT), jnp.full((num_out,), num_out**-0.5, jnp.float32))


def effective_kernel(kernel: jax.Array, u_xO: jax.Array, gain_x: jax.Array | float = 1.0) -> jax.Array:
  """(gain / sigma) W in the shape of the kernel, with sigma = `norm_along` of its matrix.

  Args:
    kernel: any float type, see `as_matrix`.
    u_xO: [..., O], unit vectors.
    gain_x: [...]; 1 is spectral normalisation.

  Returns:
    The shape of the kernel, float32; its spectral norm is |gain| where u has converged and above it before, never below.

  Gradient: with G that of the result, (gain / sigma) (G - <G, W> / sigma v u^T) to W, which is orthogonal to W for any u; <G, W> / sigma
    to the gain.
  Limits: 0 where W u = 0, which includes W = 0: there the kernel is divided by 1 and not by sigma.
  """
  sigma_x = norm_along(as_matrix(kernel, u_xO), u_xO)
  scale_x = gain_x / jnp.where(sigma_x > 0, sigma_x, 1.0)
  return kernel.astype(jnp.float32) * scale_x.reshape(scale_x.shape + (1,) * (kernel.ndim - scale_x.ndim))


def _name(path: tuple[str, ...]) -> str:
  return '/'.join(path) or '(root)'


def _like(tree: Any, items: Mapping[str, Any]) -> Any:
  """The items in a mapping of the type of tree: a dict, or flax's FrozenDict."""
  return type(tree)(items)


def _nodes(tree: PyTree, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Mapping[str, Any]]:
  """Every mapping of a nested mapping, by its path."""
  if not isinstance(tree, Mapping):
    return {}
  found = {path: tree}
  for key, value in tree.items():
    found |= _nodes(value, (*path, key))
  return found


def _replaced(tree: PyTree, new: Mapping[tuple[str, ...], PyTree], path: tuple[str, ...] = ()) -> PyTree:
  """The tree with other nodes at some paths, its mappings of the same types."""
  if path in new or not isinstance(tree, Mapping):
    return new.get(path, tree)
  return _like(tree, {key: _replaced(value, new, (*path, key)) for key, value in tree.items()})


def _maps(params: Params, spectral: PyTree) -> dict[tuple[str, ...], tuple[Mapping[str, Any], jax.Array]]:
  """Path -> (its node in params, its u) of every map that has a u; checks that the two collections belong together."""
  nodes = _nodes(params)
  found = {}
  for path, state in _nodes(spectral).items():
    if 'u' not in state:
      continue
    name, u_xO = _name(path), state['u']
    if 'kernel' not in nodes.get(path, {}):
      raise UserError(f'spectral has a vector u at {name!r}, where params has no kernel: give the params and spectral of one model.')
    stacked, shape = u_xO.shape[:-1], nodes[path]['kernel'].shape
    # The outputs are the last axes of the kernel, whole: some product of trailing axes must be their number.
    if shape[: len(stacked)] != stacked or u_xO.shape[-1] not in {math.prod(shape[i:]) for i in range(len(stacked) + 1, len(shape))}:
      raise UserError(
        f'u at {name!r} has shape {u_xO.shape}, which are no outputs of the kernel {shape}: give the params and spectral of one model.'
      )
    found[path] = (nodes[path], u_xO)
  for path, node in nodes.items():
    if 'kernel' in node and 'gain' in node and path not in found:
      raise UserError(f'params has a gain at {_name(path)!r}, for which spectral has no u: give the params and spectral of one model.')
  return found


def advance(params: Params, spectral: PyTree, *, num_steps: int = 1) -> PyTree:
  """One step of power iteration for every reparametrised map of a model, outside any forward pass.

  Call it once per optimizer update, before its first forward pass, and leave 'spectral' immutable in every pass: accumulation over
  microbatches, rematerialisation, vmap and evaluation then all see the same function. It does what one forward pass with a mutable
  'spectral' does: `advance` and a plain forward pass equal that pass.

  Args:
    params: of the model, other parameters included.
    spectral: the collection; may be empty.
    num_steps: >= 1. One step per update is the published method. u then trails a kernel that turns fast while its largest singular values
      are close, and the map's norm is above |gain| meanwhile: `spectral_norms` says by how much, more steps make it less.

  Returns:
    spectral with new u.

  Raises:
    UserError: the trees are not of one model; num_steps below 1.

  Gradient: none.
  """
  if num_steps < 1:
    raise UserError(f'num_steps is {num_steps}: give at least 1.')
  new = {}
  for path, (node, u_xO) in _maps(params, spectral).items():
    w_xIxO = as_matrix(node['kernel'], u_xO)
    for _ in range(num_steps):
      u_xO = power_step(w_xIxO, u_xO)
    new[path] = _like(_nodes(spectral)[path], {'u': u_xO})
  return _replaced(spectral, new)


def convert(
  params: Params,
  *,
  is_map: Callable[[str], bool] | None = None,
  gain_init: str = 'sigma',
  num_output_axes: Callable[[str], int] | None = None,
  num_stacked_axes: Callable[[str], int] | None = None,
) -> tuple[Params, PyTree]:
  """Plain kernels to reparametrised ones: the params and the 'spectral' collection of the same model with layers/sigma_reparam.py.

  Args:
    params: nested mappings; a plain map is a node with a kernel of two axes or more.
    is_map: of the path of a plain map, such as 'block_0/mlp/up', whether to convert it; None for every plain map.
    gain_init: 'sigma', the kernel's spectral norm, preserves the function; 'one' scales every map to norm 1.
    num_output_axes: of the path, how many last axes of the kernel are outputs; None for those of the bias, and 1 without a bias.
    num_stacked_axes: of the path, how many first axes of the kernel are layers stacked by nn.scan or nn.vmap; None for 0.

  Returns:
    (params with a gain beside each converted kernel, spectral); u is exact.

  Raises:
    UserError: nothing to convert, a map that has a gain already, axes that the kernel has not, an unknown gain_init.

  Gradient: through the kernels; none through u.
  Limits: `fold` undoes it, for gain_init='sigma' to rounding.
  """
  if gain_init not in GAIN_INITS:
    raise UserError(f'gain_init is {gain_init!r}: choose one of {", ".join(GAIN_INITS)}.')
  plain = {_name(path): path for path, node in _nodes(params).items() if 'kernel' in node and node['kernel'].ndim >= 2}
  chosen = [name for name in plain if is_map is None or is_map(name)]
  if not chosen:
    raise UserError(f'is_map chose none of the maps of params: choose among {", ".join(plain) or "(params has no kernel)"}.')
  nodes, new_params = _nodes(params), {}
  spectral: dict[str, Any] = {}
  for name in chosen:
    node = nodes[plain[name]]
    if 'gain' in node:
      raise UserError(f'params has a gain at {name!r} already: fold the params first, or leave this map out with is_map.')
    kernel = node['kernel']
    stacked = 0 if num_stacked_axes is None else num_stacked_axes(name)
    if num_output_axes is not None:
      outputs = num_output_axes(name)
    else:
      outputs = node['bias'].ndim - stacked if 'bias' in node else 1
    if outputs < 1 or stacked < 0 or stacked + outputs >= kernel.ndim:
      raise UserError(
        f'the kernel at {name!r} has shape {kernel.shape}, which leaves no input beside {stacked} stacked and {outputs} output axes: '
        'correct num_stacked_axes and num_output_axes.'
      )
    w_xIxO = kernel.reshape(*kernel.shape[:stacked], -1, math.prod(kernel.shape[-outputs:])).astype(jnp.float32)
    u_xO = top_singular_vector(w_xIxO)
    sigma_x = norm_along(w_xIxO, u_xO)
    new_params[plain[name]] = _like(node, {**node, 'gain': sigma_x if gain_init == 'sigma' else jnp.ones_like(sigma_x)})
    place = spectral
    for key in plain[name]:
      place = place.setdefault(key, {})
    place['u'] = u_xO
  return _replaced(params, new_params), spectral


def fold(params: Params, spectral: PyTree) -> Params:
  """Reparametrised kernels to plain ones, (gain / sigma) W: the params of the same model with nn.Dense and its kin.

  For export, and for decoding many tokens with fixed parameters: a plain map has nothing to normalise.

  Args:
    params: of the model with reparametrised maps; other parameters stay.
    spectral: the collection.

  Returns:
    params without gains, kernels in their types.

  Raises:
    UserError: the trees are not of one model.

  Gradient: as of `effective_kernel`.
  Limits: undoes `convert`; params themselves where spectral is empty. Maps of spectral normalisation, which have no gain, fold too.
  """
  new = {}
  for path, (node, u_xO) in _maps(params, spectral).items():
    kernel = effective_kernel(node['kernel'], u_xO, node.get('gain', 1.0)).astype(node['kernel'].dtype)
    new[path] = _like(node, {**{key: value for key, value in node.items() if key != 'gain'}, 'kernel': kernel})
  return _replaced(params, new)


def spectral_norms(params: Params, spectral: PyTree) -> Metrics:
  """The exact spectral norm of every effective map, and what power iteration missed: its ratio to |gain|.

  Args:
    params: of the model with reparametrised maps.
    spectral: the collection.

  Returns:
    'path/norm' and 'path/norm_over_gain', float32 scalars ([...] for stacked maps). The ratio is |W|_2 / sigma >= 1 up to rounding, and
    1 where u has converged; it is defined for a gain of 0 too. The gain of spectral normalisation is 1.

  Raises:
    UserError: the trees are not of one model.

  Gradient: none.
  """
  measured: Metrics = {}
  for path, (node, u_xO) in _maps(params, spectral).items():
    w_xIxO = jax.lax.stop_gradient(as_matrix(node['kernel'], u_xO))
    exact_x, sigma_x = norm_along(w_xIxO, top_singular_vector(w_xIxO)), norm_along(w_xIxO, u_xO)
    ratio_x = jnp.where(sigma_x > 0, exact_x / jnp.where(sigma_x > 0, sigma_x, 1.0), jnp.where(exact_x > 0, jnp.inf, 1.0))
    gain_x = jax.lax.stop_gradient(node.get('gain', jnp.float32(1)))
    norm_x = exact_x * jnp.abs(gain_x) / jnp.where(sigma_x > 0, sigma_x, 1.0)
    measured |= {'/'.join((*path, 'norm')): norm_x, '/'.join((*path, 'norm_over_gain')): ratio_x}
  return measured
