"""Entropy of windows of consecutive tokens: a passage where the policy stays uncertain, told from a single uncertain token.

A window is w consecutive positions that are all valid, so none reaches over the end of a response or over a tool's output. Sums run
over w shifted copies of the array: exact for any order of slices, and what stands behind a response changes nothing.
"""

import jax
import jax.numpy as jnp

from entropy_jax.ops import masked, selection
from entropy_jax.types import Ratio, UserError


def _shifted(x_BxT: jax.Array, offset: int) -> jax.Array:
  """x at position t + offset, with 0 (False) beyond the last position."""
  return jnp.pad(x_BxT, ((0, 0), (0, offset)))[:, offset : offset + x_BxT.shape[1]]


def _offsets(width: int, start: str) -> range:
  if not isinstance(width, int) or isinstance(width, bool) or width < 1:
    raise UserError(f'windows: width={width!r} is no number of tokens; give an integer of at least 1.')
  if start not in ('at', 'after'):
    raise UserError(f'windows: start={start!r} is not one of at, after; say whether the window of t holds token t.')
  first = 0 if start == 'at' else 1
  return range(first, first + width)


def window_mean(
  x_BxT: jax.Array, mask_BxT: jax.Array, *, width: int = 4, start: str = 'at'
) -> tuple[jax.Array, jax.Array]:
  """Mean of every window, Hbar_{t:w} = (1 / w) sum_{j < w} H_{t + j}.

  Args:
    x_BxT: float32, entropy in nats, or any score of tokens.
    mask_BxT: bool.
    width: w >= 1.
    start: 'at' for the tokens t .. t + w - 1, 'after' for t + 1 .. t + w.

  Returns:
    (mean [B, T], 0 where the window is not full; full bool [B, T], where all w tokens are valid).

  Gradient: 1 / w to each token of a full window.
  Limits: width 1 is the token itself; equal to the entropy wherever that is constant.
  Reference: ARES: Multimodal Adaptive Reasoning via Difficulty-Aware Token-Level Entropy Shaping, arXiv 2510.08457, section 3.2.
  Differs: the released code takes the w tokens after t (start='after').

  >>> mean, full = window_mean(jnp.array([[1., 2., 3., 4., 9.]]), jnp.array([[True, True, True, True, False]]), width=2)
  >>> mean.tolist(), full.tolist()
  ([[1.5, 2.5, 3.5, 0.0, 0.0]], [[True, True, True, False, False]])
  """
  offsets = _offsets(width, start)
  clean_BxT = masked.zero(x_BxT.astype(jnp.float32), mask_BxT)
  full_BxT = jnp.ones_like(mask_BxT)
  total_BxT = jnp.zeros_like(clean_BxT)
  for offset in offsets:
    full_BxT = full_BxT & _shifted(mask_BxT, offset)
    total_BxT = total_BxT + _shifted(clean_BxT, offset)
  full_BxT = full_BxT & mask_BxT
  return masked.zero(total_BxT / width, full_BxT), full_BxT


def sequence_quantile(x_BxT: jax.Array, mask_BxT: jax.Array, q: float) -> jax.Array:
  """The q-quantile of every sequence's valid entries, linear interpolation, 0 for a sequence without any, [B].

  >>> sequence_quantile(jnp.array([[4., 1., 2.], [7., 0., 0.]]), jnp.array([[True, True, True], [True, False, False]]), .5).tolist()
  [2.0, 7.0]
  """
  return jax.vmap(lambda x_T, mask_T: selection.quantile(x_T[None], mask_T[None], q))(x_BxT, mask_BxT)


def high_entropy_threshold(
  entropy_BxT: jax.Array, mask_BxT: jax.Array, *, percentile: float = 0.95, width: int = 4, form: str = 'paper'
) -> jax.Array:
  """tau above which a window counts as uncertain: what is typical of the high entropies of single responses.

  Args:
    entropy_BxT: float32, nats, of the behaviour policy.
    mask_BxT: bool.
    percentile: in [0, 1].
    width: w of the windows; read by form='released' alone.
    form: 'paper', the mean over responses of the percentile of their token entropies; 'released', the median over responses of the
      percentile of their window means (after the token), of which the caller keeps an average over batches with decay .99.

  Returns:
    float32 scalar over the whole batch given; responses without a token (for 'released', without a full window) count nowhere, and 0 where
    none counts.

  Gradient: none; it is a threshold.
  Limits: the entropy itself where all are equal.
  Reference: ARES, arXiv 2510.08457, section 3.2, and its released reward function.
  Differs: as above; the released entropy also stems from the ten largest log-probs and one bucket for the rest.
  """
  entropy_BxT = jax.lax.stop_gradient(entropy_BxT)
  if form == 'paper':
    counts_B = jnp.any(mask_BxT, axis=1)
    return masked.mean(sequence_quantile(entropy_BxT, mask_BxT, percentile), counts_B)
  if form != 'released':
    raise UserError(f'windows: form={form!r} is not one of paper, released.')
  mean_BxT, full_BxT = window_mean(entropy_BxT, mask_BxT, width=width, start='after')
  counts_B = jnp.any(full_BxT, axis=1)
  return selection.quantile(sequence_quantile(mean_BxT, full_BxT, percentile)[:, None], counts_B[:, None], 0.5)


def high_entropy_windows(
  entropy_BxT: jax.Array, mask_BxT: jax.Array, threshold: jax.Array | float, *, width: int = 4, start: str = 'at'
) -> jax.Array:
  """Where a window of high entropy starts: Hbar_{t:w} > tau and the window is full, bool [B, T].

  Args:
    entropy_BxT: float32, nats.
    mask_BxT: bool.
    threshold: tau, from `high_entropy_threshold`.
    width, start: as `window_mean`.

  Gradient: none.
  Reference: ARES, arXiv 2510.08457, section 3.2. Differs: the released code has >= (see `window_mean` for the start).

  >>> H = jnp.array([[0., 8., 0., 0., 3., 3., 3.]])       # one spike and one passage, of the same threshold
  >>> high_entropy_windows(H, jnp.ones((1, 7), bool), 2.9, width=3)[0].tolist()
  [False, False, False, False, True, False, False]
  """
  mean_BxT, full_BxT = window_mean(jax.lax.stop_gradient(entropy_BxT), mask_BxT, width=width, start=start)
  # After `coarse`: where all entropies are equal, the threshold's own rounding would otherwise make every window exceed it.
  return full_BxT & (selection.coarse(mean_BxT) > selection.coarse(jnp.asarray(threshold)))


def inside_windows(window_BxT: jax.Array, *, width: int = 4, start: str = 'at') -> jax.Array:
  """Which tokens stand inside one of the windows that `high_entropy_windows` found, bool [B, T].

  >>> inside_windows(jnp.array([[False, True, False, False]]), width=2)[0].tolist()
  [False, True, True, False]
  """
  T = window_BxT.shape[1]
  inside_BxT = jnp.zeros_like(window_BxT)
  for offset in _offsets(width, start):
    inside_BxT = inside_BxT | jnp.pad(window_BxT, ((0, 0), (offset, 0)))[:, :T]
  return inside_BxT


def window_entropy(entropy_BxT: jax.Array, mask_BxT: jax.Array, *, width: int = 4) -> Ratio:
  """Mean over the full windows of the batch of their mean entropy, a Ratio in nats; the tokens at the ends of responses weigh less."""
  return masked.mean_ratio(*window_mean(entropy_BxT, mask_BxT, width=width))


def high_window_rate(
  entropy_BxT: jax.Array, mask_BxT: jax.Array, threshold: jax.Array | float, *, width: int = 4, start: str = 'at'
) -> Ratio:
  """Share of the full windows whose mean entropy exceeds the threshold, a Ratio in [0, 1]."""
  window_BxT = high_entropy_windows(entropy_BxT, mask_BxT, threshold, width=width, start=start)
  _, full_BxT = window_mean(entropy_BxT, mask_BxT, width=width, start=start)
  return masked.mean_ratio(window_BxT.astype(jnp.float32), full_BxT)
