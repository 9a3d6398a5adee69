"""Spectral norms of matrices, exact: the root of the largest eigenvalue of the smaller Gram matrix, for any leading axes."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp


def as_matrix(kernel_xO: jax.Array) -> jax.Array:
  """A kernel as the matrix of its linear map, [in, out]: a convolution's [*window, in, out] becomes [window * in, out].

  Limits: one output axis. A kernel with several ([D, H, K] of a projection to heads) is another matrix, [D, H * K].

  >>> as_matrix(jnp.zeros((3, 3, 2, 5))).shape
  (18, 5)
  """
  return kernel_xO.reshape(-1, kernel_xO.shape[-1])


def spectral_norm(matrix_xIxO: jax.Array) -> jax.Array:
  """Largest singular value, ||W||_2 = sqrt(lambda_max(W^T W)).

  Args:
    matrix_xIxO: [..., I, O], any float type.

  Returns:
    [...], float32, >= 0; NaN where an entry is not finite.

  Gradient: u v^T where the largest singular value is simple; 0 at the zero matrix.

  >>> round(float(spectral_norm(jnp.array([[3., 0., 0.], [0., 1., 0.]]))), 6)
  3.0
  """
  x = matrix_xIxO.astype(jnp.float32)
  # Entries are brought to at most 1: the Gram matrix squares them, and 1e20 or 1e-20 would leave float32.
  largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True))
  scale = jnp.where(largest == 0, 1.0, largest)
  return scale[..., 0, 0] * _root(_top_eigenvalue(_smaller_gram(x / scale)))


def product_norm(a_xIxK: jax.Array, b_xJxK: jax.Array) -> jax.Array:
  """||A B^T||_2 without forming the I x J product: with A = Q_a R_a and B = Q_b R_b it is ||R_a R_b^T||_2.

  Args:
    a_xIxK, b_xJxK: [..., I, K] and [..., J, K] with the same leading axes; cheap where K is small.

  Returns:
    [...], float32.

  Gradient: through the two QR decompositions, so only where A and B have full rank and I, J >= K.

  >>> float(product_norm(jnp.array([[2.], [0.]]), jnp.array([[0.], [3.], [4.]])))     # ||(2, 0)|| ||(0, 3, 4)||
  10.0
  """
  r_a, r_b = (_each(lambda x: jnp.linalg.qr(x, mode='r'), x.astype(jnp.float32)) for x in (a_xIxK, b_xJxK))
  return spectral_norm(jnp.matmul(r_a, jnp.matrix_transpose(r_b), precision='highest'))


def prefix_norms(x_xTxD: jax.Array) -> jax.Array:
  """||X_{1:i}||_2 of the first i rows, for every i: what a causal query and the keys it sees are made of.

  Args:
    x_xTxD: [..., T, D]; rows of zeros (padding) change nothing.

  Returns:
    [..., T], float32, not decreasing; the last is `spectral_norm` of the whole.

  Limits: T eigenvalue problems of the smaller of T and D.

  >>> [round(s, 6) for s in prefix_norms(jnp.array([[3., 0.], [4., 0.], [0., 1.]])).tolist()]
  [3.0, 5.0, 5.0]
  """
  x = x_xTxD.astype(jnp.float32)
  T, D = x.shape[-2:]
  if T > D:
    gram_xTxDxD = jnp.cumsum(jnp.einsum('...i,...j->...ij', x, x, precision='highest'), axis=-3)
    return _root(_top_eigenvalue(gram_xTxDxD))
  # Gram matrices of the prefixes are the leading blocks of that of all rows.
  gram_xTxT = jnp.einsum('...id,...jd->...ij', x, x, precision='highest')
  prefix_TxT = jnp.tril(jnp.ones((T, T), bool))
  block_TxTxT = prefix_TxT[:, :, None] & prefix_TxT[:, None, :]
  shape = (*gram_xTxT.shape[:-2], T, T, T)
  return _root(_top_eigenvalue(jnp.where(jnp.broadcast_to(block_TxTxT, shape), jnp.broadcast_to(gram_xTxT[..., None, :, :], shape), 0.0)))


def _smaller_gram(x_xIxO: jax.Array) -> jax.Array:
  form = '...ij,...kj->...ik' if x_xIxO.shape[-2] < x_xIxO.shape[-1] else '...ji,...jk->...ik'
  return jnp.einsum(form, x_xIxO, x_xIxO, precision='highest')


def _top_eigenvalue(gram_xNxN: jax.Array) -> jax.Array:
  return _each(lambda gram: jnp.linalg.eigvalsh(gram)[..., -1], gram_xNxN)


def _each(function: Callable[[jax.Array], jax.Array], x_xNxM: jax.Array) -> jax.Array:
  """A decomposition of every matrix, on a CPU one after another.

  A batched LAPACK call of jaxlib 0.10 waits, on a thread of XLA's pool, for tasks that it gave to that pool: where as many of them run at a
  time as the pool has threads, in one program or in two, none ever ends. One matrix a call is never split.

  Limits: under vmap the calls are batched all the same; map over programs that run beside others on a CPU.
  """
  lead = x_xNxM.shape[:-2]
  if math.prod(lead) <= 1 or jax.default_backend() != 'cpu':
    return function(x_xNxM)
  found = jax.lax.map(function, x_xNxM.reshape(-1, *x_xNxM.shape[-2:]))
  return found.reshape(*lead, *found.shape[1:])


def _root(power: jax.Array) -> jax.Array:
  # Rounding leaves -1e-8 for a zero matrix, and the slope of the root at 0 is infinite; a NaN goes through.
  positive = ~(power <= 0)
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, power, 1.0)), 0.0)
