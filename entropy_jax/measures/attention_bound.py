"""How low attention entropy can be: the least entropy of T logits whose norm is at most s, and s from weights, from queries and keys or
from the logits themselves, which is the sharpest; with what attains it, and why s grows under Adam.

Reference for all but `bounded_logits_floor`: Zhai et al., Stabilizing Transformer Training by Preventing Attention Entropy Collapse,
arXiv 2303.06296, Theorem 3.1 and Proposition 3.2.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from entropy_jax.measures import attention
from entropy_jax.ops import spectral
from entropy_jax.types import UserError

_LARGE = 1e30  # stands for an infinite gap: its e^-gap is 0 and the product of the two is no NaN


def _terms(num_keys: ArrayLike, s: ArrayLike) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(several, gap, ln((T - 1) e^-gap)) with gap = s sqrt(T / (T - 1))."""
  T, s = jnp.broadcast_arrays(jnp.asarray(num_keys, jnp.float32), jnp.asarray(s, jnp.float32))
  others = jnp.maximum(T - 1.0, 1.0)
  gap = jnp.minimum(s * jnp.sqrt((others + 1.0) / others), _LARGE)
  return T > 1.5, gap, jnp.log(others) - gap


def lower_bound(num_keys: ArrayLike, s: ArrayLike) -> jax.Array:
  """Least entropy of a softmax over T logits with norm at most s: one logit above T - 1 equal ones by g = s sqrt(T / (T - 1)).

    LB(T, s) = ln(1 + (T - 1) e^-g) + g (T - 1) e^-g / (1 + (T - 1) e^-g) = softplus(x) + g sigmoid(x),   x = ln(T - 1) - g

  Args:
    num_keys: T, the keys that the query sees, int or float of any shape.
    s: >= 0, of a shape that broadcasts with it.

  Returns:
    float32, nats, in [0, ln T], decreasing in s; 0 for T <= 1 and for s = inf. Exact in relative terms until it leaves float32, at g
    of about 90; `log_lower_bound` goes on.

  Gradient: flows to s.
  Limits: ln T - s^2 / (2 T) for small s, (T - 1) e^-g (1 + g) for large s.

  >>> [round(float(lower_bound(16, s)), 5) for s in (0., 1., 5.)]
  [2.77259, 2.7168, 0.49029]
  """
  several, gap, x = _terms(num_keys, s)
  return jnp.where(several, jax.nn.softplus(x) + gap * jax.nn.sigmoid(x), 0.0)


def log_lower_bound(num_keys: ArrayLike, s: ArrayLike) -> jax.Array:
  """ln LB(T, s), finite where LB itself is below the smallest float32; -inf for T <= 1.

  >>> round(float(log_lower_bound(64, 1000.)), 3)     # ln 63 - g + ln(1 + g), g = 1000 sqrt(64 / 63)
  -996.846
  """
  several, gap, x = _terms(num_keys, s)
  deep = x < -50.0
  near = jnp.where(deep, 0.0, x)
  log_near = jnp.log(jax.nn.softplus(near) + jnp.where(deep, 0.0, gap) * jax.nn.sigmoid(near))
  return jnp.where(several, jnp.where(deep, x + jnp.log1p(gap), log_near), -jnp.inf)


def bounded_logits_floor(num_keys: int, logit_bound: ArrayLike) -> jax.Array:
  """Least entropy of a softmax over T logits in [-B, B]: min over k = 1..T-1 of k logits at B and T - k at -B.

    H_k = ln(k + (T - k) e^-2B) + 2B (T - k) e^-2B / (k + (T - k) e^-2B)

  Args:
    num_keys: T, a Python int.
    logit_bound: B >= 0, any shape: sqrt(head_dim) under QK-norm with unit scales, the cap under a soft-cap.

  Returns:
    float32 of the shape of B, nats; 0 for T = 1.

  Gradient: flows to B.
  Limits: ln T at B = 0. The best k is not always 1, unlike for a bounded norm (`lower_bound`).

  >>> [round(float(bounded_logits_floor(64, B)), 5) for B in (1., 4.)]
  [3.68443, 0.18649]
  """
  if num_keys < 1:
    raise UserError(f'num_keys={num_keys} is no number of keys: give a positive integer.')
  gap = jnp.minimum(2.0 * jnp.asarray(logit_bound, jnp.float32), _LARGE)[..., None]
  k = np.arange(1, max(num_keys, 2), dtype=np.float32).reshape((1,) * (gap.ndim - 1) + (-1,))
  # ln of the share of the T - k low logits against the k high ones; for T = 1 there is none, and ln k is the entropy.
  x = jnp.log(np.maximum(num_keys - k, 0.0) / k) - gap
  p = jax.nn.sigmoid(x)
  return jnp.min(jnp.log(k) + jax.nn.softplus(x) + gap * p, axis=-1)


def head_norm(query_DxHxK: jax.Array, key_DxGxK: jax.Array) -> jax.Array:
  """sigma_h = ||W_K W_Q^T||_2 of every query head, [H], float32.

  Args:
    query_DxHxK: [D, H, head_dim], a kernel [D, H * head_dim] reshaped.
    key_DxGxK: [D, Hkv, head_dim], H a multiple of Hkv; query head h reads key head h // (H / Hkv).

  Limits: sigma_h <= ||W_Q,h|| ||W_K,h||, and the norm of a head is at most that of the whole (fused) projection.
  """
  query_HxDxK, key_HxDxK = jnp.swapaxes(query_DxHxK, 0, 1), jnp.swapaxes(key_DxGxK, 0, 1)
  return spectral.product_norm(query_HxDxK, jnp.repeat(key_HxDxK, query_HxDxK.shape[0] // key_HxDxK.shape[0], axis=0))


def weight_scale(
  x_BxTxD: jax.Array,
  query_DxHxK: jax.Array,
  key_DxGxK: jax.Array,
  real_BxT: jax.Array,
  *,
  causal: bool,
  logit_scale: float | None = None,
) -> jax.Array:
  """The theorem's s = ||W_K W_Q^T||_2 ||X||_2^2 logit_scale, of every head and row.

  Args:
    x_BxTxD: [B, T, D], what the query and key projections read (after a pre-norm).
    query_DxHxK, key_DxGxK: as in `head_norm`, the effective kernels under a reparametrisation.
    real_BxT: bool, False for padding.
    causal: row i uses X_{1:i}; else all of X.
    logit_scale: what multiplies q . k; None for 1 / sqrt(head_dim).

  Returns:
    s_BxHxT, float32: `row_bound` of it is at most the entropy of every row of a real token.

  Limits: not for biases on queries or keys, rotations, position biases or QK-norm, where logits are not X W X^T: use `query_key_scale` or
    `centred_row_norm`.
  Reference: Theorem 3.1, written there without 1 / sqrt(head_dim).
  """
  B, T = x_BxTxD.shape[:2]
  x = jnp.where(real_BxT[..., None], x_BxTxD.astype(jnp.float32), 0.0)
  norm_BxT = spectral.prefix_norms(x) if causal else jnp.broadcast_to(spectral.spectral_norm(x)[:, None], (B, T))
  sigma_H = head_norm(query_DxHxK, key_DxGxK) * _scale(logit_scale, query_DxHxK.shape[-1])
  return sigma_H[None, :, None] * jnp.square(norm_BxT)[:, None]


def query_key_scale(
  query_BxHxQxK: jax.Array,
  key_BxGxTxK: jax.Array,
  real_BxT: jax.Array,
  *,
  causal: bool,
  logit_scale: float | None = None,
) -> jax.Array:
  """s_i = ||q_i||_2 ||K||_2 logit_scale of every row: holds whatever made queries and keys (biases, rotations, QK-norm, cross-attention).

  Args:
    query_BxHxQxK: [B, H, Q, head_dim], as they enter the product.
    key_BxGxTxK: [B, Hkv, T, head_dim], as they enter the product.
    real_BxT: bool, keys that may be seen at all.
    causal: row i uses the first i keys, and then Q = T; else all keys.
    logit_scale: None for 1 / sqrt(head_dim).

  Returns:
    s_BxHxQ, float32. Either of this and `weight_scale` may be the smaller one: this knows the row, that knows how W_Q meets W_K.

  Limits: terms added to the logits (ALiBi, relative biases) break it; a soft-cap does not, it only shortens the row.
  """
  B, H, Q, head_dim = query_BxHxQxK.shape
  key = jnp.where(real_BxT[:, None, :, None], key_BxGxTxK.astype(jnp.float32), 0.0)
  norm_BxGxQ = spectral.prefix_norms(key) if causal else jnp.broadcast_to(spectral.spectral_norm(key)[..., None], (B, key.shape[1], Q))
  norm_BxHxQ = jnp.repeat(norm_BxGxQ, H // key.shape[1], axis=1)
  return jnp.linalg.norm(query_BxHxQxK.astype(jnp.float32), axis=-1) * norm_BxHxQ * _scale(logit_scale, head_dim)


def _scale(logit_scale: float | None, head_dim: int) -> float:
  return head_dim**-0.5 if logit_scale is None else logit_scale


def centred_row_norm(logits_xBxHxQxK: jax.Array, mask_BxQxK: jax.Array) -> jax.Array:
  """||a_i - mean(a_i)||_2 over the keys that query i sees, [..., B, H, Q]: the sharpest s, valid for logits of any origin.

  Softmax does not change when a constant is added, and the mean is the constant that leaves the shortest row.

  Args:
    logits_xBxHxQxK: [..., B, H, Q, K], after scaling.
    mask_BxQxK: bool.

  Gradient: flows; 0 where a row is constant.
  """
  mask = jnp.broadcast_to(mask_BxQxK[:, None], logits_xBxHxQxK.shape)
  a = jnp.where(mask, logits_xBxHxQxK.astype(jnp.float32), 0.0)
  count = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True, dtype=jnp.float32), 1.0)
  centred = jnp.where(mask, a - jnp.sum(a, axis=-1, keepdims=True) / count, 0.0)
  square = jnp.sum(jnp.square(centred), axis=-1)
  varies = square != 0.0
  return jnp.where(varies, jnp.sqrt(jnp.where(varies, square, 1.0)), 0.0)


def row_bound(s_xBxHxQ: jax.Array, mask_BxQxK: jax.Array) -> jax.Array:
  """`lower_bound` of every row for the number of keys that its query sees, [..., B, H, Q]."""
  count = jnp.sum(mask_BxQxK, axis=-1)[:, None]
  return lower_bound(jnp.broadcast_to(count, s_xBxHxQ.shape), s_xBxHxQ)


def is_violated(entropy: jax.Array, bound: jax.Array, *, rtol: float = 1e-3, atol: float = 1e-30) -> jax.Array:
  """True where an entropy is below its bound by more than float32 explains, or either is NaN: H < (1 - rtol) LB - atol.

  The relative tolerance is what an error of 1e-5 in an s of 90 does to LB, which falls like e^-s.
  """
  return ~(entropy >= (1.0 - rtol) * bound - atol)


class TightExample(NamedTuple):
  """An attention layer without 1 / sqrt(head_dim): logits = X W_Q W_K^T X^T."""

  x_TxD: jax.Array
  query_DxHxK: jax.Array
  key_DxHxK: jax.Array


def tight_example(num_tokens: int, s: float, *, width: int = 2, sigma: float = 1.0, key: jax.Array | None = None) -> TightExample:
  """Inputs and weights of one head whose first row has exactly the entropy LB(T, s), while all other rows are uniform.

    X = c (e_1 v1^T + w v2^T),  w = (0, -1, .., -1) / sqrt(T - 1),  W_Q = sigma v1,  W_K = sqrt((T - 1) / T) v1 + sqrt(1 / T) v2

  Args:
    num_tokens: T >= 2.
    s: > 0, equal to sigma c^2 = ||W_K W_Q^T||_2 ||X||_2^2.
    width: D >= 2.
    sigma: > 0.
    key: for random orthonormal v1 and v2; None for the first two axes.

  Returns:
    TightExample with H = head_dim = 1; use logit_scale=1.
  """
  if num_tokens < 2 or width < 2 or not s > 0 or not sigma > 0:
    given = f'num_tokens={num_tokens}, s={s}, width={width}, sigma={sigma}'
    raise UserError(f'{given} has no tight example: give at least 2 tokens, a width of at least 2, and s and sigma above 0.')
  frame_Dx2 = jnp.eye(width, 2) if key is None else jnp.linalg.qr(jax.random.normal(key, (width, 2)))[0]
  v1, v2 = frame_Dx2[:, 0], frame_Dx2[:, 1]
  T, c = num_tokens, math.sqrt(s / sigma)
  first_T = jnp.eye(T)[0]
  w_T = (first_T - 1.0) / math.sqrt(T - 1)
  z_D = math.sqrt((T - 1) / T) * v1 + math.sqrt(1 / T) * v2
  return TightExample(c * (jnp.outer(first_T, v1) + jnp.outer(w_T, v2)), sigma * v1[:, None, None], z_D[:, None, None])


def row_logits(example: TightExample) -> jax.Array:
  """Logits of a TightExample as [1, 1, T, T]."""
  q, k = (jnp.einsum('TD,DHK->HTK', example.x_TxD, w, precision='highest') for w in (example.query_DxHxK, example.key_DxHxK))
  return jnp.einsum('HQK,HTK->HQT', q, k, precision='highest')[None]


def ideal_adam_update(mean_xIxO: jax.Array, noise_xIxO: jax.Array) -> jax.Array:
  """Adam's step for a gradient mu with noise of standard deviation n: E[g] / sqrt(E[g^2]) = mu / sqrt(mu^2 + n^2); 0 for 0 / 0."""
  size = jnp.hypot(mean_xIxO, noise_xIxO)
  return jnp.where(size > 0, mean_xIxO / jnp.where(size > 0, size, 1.0), 0.0)


def adam_norm_bound(mean_xIxO: jax.Array, noise_xIxO: jax.Array) -> jax.Array:
  """Least spectral norm of Adam's ideal step D: ||D||_2 >= ||D||_F / sqrt(w) = sqrt(w) sqrt(1 - w^-2 sum_ij n^2 / (mu^2 + n^2)).

  Args:
    mean_xIxO, noise_xIxO: [..., I, O], mu and n of each entry's gradient; w = min(I, O), and the second form is the square one.

  Returns:
    [...], float32: a step without noise has norm of at least sqrt(max(I, O)), so wide matrices grow fastest.

  Gradient: flows.
  Reference: Proposition 3.2, for square matrices.

  >>> float(adam_norm_bound(jnp.ones((64, 64)), jnp.zeros((64, 64))))      # and its norm is 64
  8.0
  """
  step = ideal_adam_update(mean_xIxO, noise_xIxO).astype(jnp.float32)
  return jnp.linalg.norm(step, axis=(-2, -1)) / math.sqrt(min(step.shape[-2:]))


def centred_slack(logits_xBxHxQxK: jax.Array, mask_BxQxK: jax.Array) -> jax.Array:
  """Entropy minus its sharpest bound, [..., B, H, Q], nats: 0 where a row is as concentrated as its norm allows."""
  entropy = attention.attention_entropy(logits_xBxHxQxK, mask_BxQxK)
  return entropy - row_bound(centred_row_norm(logits_xBxHxQxK, mask_BxQxK), mask_BxQxK)
