"""Log-prob and entropy of softmax(h W^T) from h and W: the vocabulary is read in tiles, and [T, V] is never held, forward or backward.

With z the logits of a row, m = max z, s0 = sum exp(z - m) and s1 = sum exp(z - m)(z - m):

    ln p_y = z_y - m - ln s0        H = ln s0 - s1 / s0

and two tiles merge by rescaling both sums to the larger m, where s1 gains the shift times s0. The backward pass keeps h, W, ln sum exp z
and H, makes each tile of logits again, and has, for cotangents a of ln p_y and b of H, dz_j = a (1[j = y] - p_j) - b p_j (ln p_j + H).
It is 8 T D V multiplications against the 6 T D V of an implementation that keeps the logits.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropy_jax.types import UserError

_LOWEST = float(jnp.finfo(jnp.float32).min)
# Logits of one tile where `tile` is None: on a processor what its cache holds, elsewhere what keeps the units busy.
_TILE_LOGITS = {'cpu': 2**19}
_TILE_LOGITS_ELSEWHERE = 2**24
_MIN_TILE = 128


class Unembedding(NamedTuple):
  """The last map of a model: logits = cap tanh(h W^T / cap), or h W^T.

  Attributes:
    kernel: W, [V, D], or [D, V] where `transposed`; any float type, cast to `dtype` a tile at a time.
    transposed: whether the kernel is [D, V].
    cap: of the logits, None for none.
    dtype: of the product's factors; it is summed in float32.
  """

  kernel: jax.Array
  transposed: bool = False
  cap: float | None = None
  dtype: Any = jnp.float32

  @property
  def vocab_size(self) -> int:
    return self.kernel.shape[1 if self.transposed else 0]


class _Form(NamedTuple):
  """What is known when the program is made. tile: columns of a tile; others as in `Unembedding`."""

  tile: int
  transposed: bool
  cap: float | None
  dtype: Any


class _Sums(NamedTuple):
  """Of a row of logits, as far as it was read: m = max z, s0 = sum exp(z - m), s1 = sum exp(z - m)(z - m), and z of the target; [T]."""

  m_T: jax.Array
  s0_T: jax.Array
  s1_T: jax.Array
  target_T: jax.Array


def log_prob_and_entropy(
  hidden_TxD: jax.Array,
  unembedding: Unembedding,
  target_T: jax.Array,
  *,
  temperature: float | jax.Array = 1.0,
  tile: int | None = None,
  num_shards: int = 1,
) -> tuple[jax.Array, jax.Array]:
  """ln p(target) and H(p) of p = softmax(logits / temperature), float32 [T] each.

  Args:
    hidden_TxD: h, any float type.
    unembedding: the map from h to logits.
    target_T: int32 in [0, V).
    temperature: > 0, one number.
    tile: columns of the vocabulary that are held at once; None for a size that fits the device.
    num_shards: into how many runs of V / num_shards columns the vocabulary is cut, a divisor of V. With the kernel's vocabulary axis over
      so many devices each one reads its own columns, and what is exchanged is four numbers a row (and the gradient of h).

  Returns:
    (logp_T, entropy_T).

  Gradient: to hidden_TxD and the kernel, by the equation above; none to the temperature. Reverse mode alone: jax.jvp is refused.
  Limits: a logit of -inf is an impossible token with 0 ln 0 = 0 in value and gradient; a row of -inf alone stays finite.

  >>> identity = Unembedding(jnp.eye(3))
  >>> logp, entropy = log_prob_and_entropy(jnp.log(jnp.array([[.5, .25, .25]])), identity, jnp.array([0]))
  >>> round(float(logp[0]), 6), round(float(entropy[0]), 6)     # -ln 2, 1.5 ln 2
  (-0.693147, 1.039721)
  """
  T, V = hidden_TxD.shape[0], unembedding.vocab_size
  if tile is not None and tile < 1:
    raise UserError(f'tile is {tile!r}: give a positive number of columns, or None.')
  if num_shards < 1 or V % num_shards:
    raise UserError(f'num_shards is {num_shards!r}: give a divisor of the vocabulary size {V}.')
  if tile is None:
    tile = max(_MIN_TILE, _TILE_LOGITS.get(jax.default_backend(), _TILE_LOGITS_ELSEWHERE) // max(T, 1))
  kernel = unembedding.kernel
  if num_shards > 1 and unembedding.transposed:
    kernel = kernel.T  # runs of columns are to be a leading axis
  transposed = unembedding.transposed and num_shards == 1
  form = _Form(min(tile, V // num_shards), transposed, unembedding.cap, jnp.dtype(unembedding.dtype))
  if num_shards > 1:
    kernel = kernel.reshape(num_shards, V // num_shards, -1)
  inverse = jax.lax.stop_gradient(1.0 / jnp.asarray(temperature, jnp.float32))
  return _of_tiles(form, hidden_TxD, kernel, target_T, inverse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _of_tiles(form: _Form, hidden: jax.Array, kernel: jax.Array, target: jax.Array, inverse: jax.Array) -> tuple[jax.Array, jax.Array]:
  return _forward(form, hidden, kernel, target, inverse)[0]


def _forward(form: _Form, hidden: jax.Array, kernel: jax.Array, target: jax.Array, inverse: jax.Array) -> tuple[Any, Any]:
  if kernel.ndim == 3:
    read = lambda part, first: _read(form, hidden, part, target - first, inverse)
    sums = _merged(jax.vmap(read)(kernel, _first_columns(kernel)))
  else:
    sums = _read(form, hidden, kernel, target, inverse)
  log_s0 = jnp.log(sums.s0_T)
  log_sum = sums.m_T + log_s0
  logp = jnp.minimum(sums.target_T - log_sum, 0.0)
  entropy = jnp.maximum(log_s0 - sums.s1_T / sums.s0_T, 0.0)  # rounding may leave -1e-8
  return (logp, entropy), (hidden, kernel, target, inverse, log_sum, entropy)


def _backward(form: _Form, kept: Any, cotangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, None, None]:
  hidden, kernel, target, inverse, log_sum, entropy = kept
  give = lambda part, first: _gradients(form, hidden, part, target - first, inverse, log_sum, entropy, *cotangents)
  if kernel.ndim == 3:
    grads, grad_kernel = jax.vmap(give)(kernel, _first_columns(kernel))
    grad_hidden = jnp.sum(grads, axis=0)
  else:
    grad_hidden, grad_kernel = give(kernel, 0)
  return grad_hidden.astype(hidden.dtype), grad_kernel.astype(kernel.dtype), None, None


_of_tiles.defvjp(_forward, _backward)


def _first_columns(kernel_SxVxD: jax.Array) -> jax.Array:
  return jnp.arange(kernel_SxVxD.shape[0], dtype=jnp.int32) * kernel_SxVxD.shape[1]


def _merged(parts: _Sums) -> _Sums:
  """The sums of whole rows from those of their parts, arrays [S, T]."""
  m_T = jnp.max(parts.m_T, axis=0)
  shift = parts.m_T - m_T[None]
  scale = jnp.exp(shift)
  s1_T = jnp.sum(scale * (parts.s1_T + jnp.where(scale > 0, shift * parts.s0_T, 0.0)), axis=0)
  return _Sums(m_T, jnp.sum(scale * parts.s0_T, axis=0), s1_T, jnp.max(parts.target_T, axis=0))


def _over_tiles(form: _Form, kernel: jax.Array, one: Callable[[Any, jax.Array | int, int], Any], carry: Any) -> Any:
  """one(carry, first column, columns) over all tiles, the last of which may be narrower."""
  columns = kernel.shape[1 if form.transposed else 0]
  whole, rest = divmod(columns, form.tile)
  if whole == 1:
    carry = one(carry, 0, form.tile)
  elif whole:
    carry = jax.lax.fori_loop(0, whole, lambda i, carry: one(carry, i * form.tile, form.tile), carry)
  return one(carry, whole * form.tile, rest) if rest else carry


def _tile(form: _Form, kernel: jax.Array, first: jax.Array | int, columns: int) -> jax.Array:
  return jax.lax.dynamic_slice_in_dim(kernel, first, columns, axis=1 if form.transposed else 0).astype(form.dtype)


def _logits(form: _Form, hidden: jax.Array, tile: jax.Array, inverse: jax.Array) -> tuple[jax.Array, jax.Array | float]:
  """Logits [T, columns] over the temperature, float32, and their derivative to those before cap and temperature."""
  dims = (((1,), (0 if form.transposed else 1,)), ((), ()))
  raw = jax.lax.dot_general(hidden.astype(form.dtype), tile, dims, preferred_element_type=jnp.float32)
  if form.cap is None:
    return jnp.maximum(raw * inverse, _LOWEST), inverse
  squashed = jnp.tanh(raw / form.cap)
  return form.cap * squashed * inverse, (1.0 - squashed * squashed) * inverse


def _read(form: _Form, hidden: jax.Array, kernel: jax.Array, target: jax.Array, inverse: jax.Array) -> _Sums:
  T = hidden.shape[0]

  def one(sums: _Sums, first: jax.Array | int, columns: int) -> _Sums:
    z, _ = _logits(form, hidden, _tile(form, kernel, first, columns), inverse)
    m_T = jnp.maximum(sums.m_T, jnp.max(z, axis=1))
    shift, scale = z - m_T[:, None], jnp.exp(sums.m_T - m_T)
    e = jnp.exp(shift)
    moved = jnp.where(scale > 0, (sums.m_T - m_T) * sums.s0_T, 0.0)  # of rows that were impossible so far, nothing
    s1_T = scale * (sums.s1_T + moved) + jnp.sum(jnp.where(e > 0, e * shift, 0.0), axis=1)
    is_target = jnp.arange(columns)[None] == (target - first)[:, None]
    target_T = jnp.maximum(sums.target_T, jnp.max(jnp.where(is_target, z, _LOWEST), axis=1))
    return _Sums(m_T, scale * sums.s0_T + jnp.sum(e, axis=1), s1_T, target_T)

  lowest, zero = jnp.full(T, _LOWEST, jnp.float32), jnp.zeros(T, jnp.float32)
  return _over_tiles(form, kernel, one, _Sums(lowest, zero, zero, lowest))


def _gradients(
  form: _Form,
  hidden: jax.Array,
  kernel: jax.Array,
  target: jax.Array,
  inverse: jax.Array,
  log_sum_T: jax.Array,
  entropy_T: jax.Array,
  logp_cotangent_T: jax.Array,
  entropy_cotangent_T: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  a, b = logp_cotangent_T[:, None], entropy_cotangent_T[:, None]

  def one(carry: tuple[jax.Array, jax.Array], first: jax.Array | int, columns: int) -> tuple[jax.Array, jax.Array]:
    grad_hidden, grad_kernel = carry
    tile = _tile(form, kernel, first, columns)
    z, slope = _logits(form, hidden, tile, inverse)
    logp = z - log_sum_T[:, None]
    p = jnp.exp(logp)
    weighted = jnp.where(p > 0, p * (a + b * (logp + entropy_T[:, None])), 0.0)
    is_target = jnp.arange(columns)[None] == (target - first)[:, None]
    grad_z = ((jnp.where(is_target, a, 0.0) - weighted) * slope).astype(form.dtype)
    onto_hidden = (((1,), (1 if form.transposed else 0,)), ((), ()))
    grad_hidden += jax.lax.dot_general(grad_z, tile, onto_hidden, preferred_element_type=jnp.float32)
    factors = (hidden.astype(form.dtype), grad_z) if form.transposed else (grad_z, hidden.astype(form.dtype))
    grad_tile = jax.lax.dot_general(*factors, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    axis = 1 if form.transposed else 0
    return grad_hidden, jax.lax.dynamic_update_slice_in_dim(grad_kernel, grad_tile.astype(grad_kernel.dtype), first, axis=axis)

  # Every element of the kernel's gradient is of one tile, so it is written once, in its own type.
  return _over_tiles(form, kernel, one, (jnp.zeros(hidden.shape, jnp.float32), jnp.zeros(kernel.shape, kernel.dtype)))
