"""How much a training recipe depends on its learning rate, from the final losses of a sweep: one number a seed, so that intervals are over
seeds. A run that diverged counts as one that has not learnt.
"""

import jax
import jax.numpy as jnp


def clamped_loss(loss_xR: jax.Array, initial_loss_x: jax.Array) -> jax.Array:
  """min(loss, initial loss), and the initial loss for a run that is not finite, [..., R].

  Args:
    loss_xR: float [..., R], final losses of the R rates.
    initial_loss_x: float [...], loss before training.

  >>> clamped_loss(jnp.array([3., 9., jnp.nan, jnp.inf]), jnp.array(3.5)).tolist()
  [3.0, 3.5, 3.5, 3.5]
  """
  loss = loss_xR.astype(jnp.float32)
  ceiling = jnp.broadcast_to(initial_loss_x.astype(jnp.float32)[..., None], loss.shape)
  return jnp.where(jnp.isfinite(loss), jnp.minimum(loss, ceiling), ceiling)


def lr_sensitivity(loss_xR: jax.Array, initial_loss_x: jax.Array, *, best_x: jax.Array | None = None) -> jax.Array:
  """Learning-rate sensitivity S = E_rate[min(l(rate), l_0) - l*], l* = min_rate l(rate).

  Args:
    loss_xR: float [..., R], final losses over a grid of rates that is even in the logarithm, one row a seed; NaN or inf where diverged.
    initial_loss_x: float [...], l_0.
    best_x: float [...], l*; None for the smallest loss of each row. Give one value for all variants to compare them by their distance
      from the best of all.

  Returns:
    float32 [...], >= 0 with best_x=None.

  Gradient: none of use.
  Limits: 0 where all rates give the same loss, hence also where every run diverged: report it with the best loss. One diverged run among R
    adds (l_0 - l*) / R.
  Reference: Wortsman et al., Small-scale proxies for large-scale Transformer training instabilities, arXiv 2309.14322, UNCONFIRMED
    equation.

  >>> round(float(lr_sensitivity(jnp.array([3., 3., 3.1, 3.5, jnp.nan]), jnp.array(3.5))), 6)     # (0 + 0 + .1 + .5 + .5) / 5
  0.22
  """
  loss = clamped_loss(loss_xR, initial_loss_x)
  best = jnp.min(loss, axis=-1) if best_x is None else best_x.astype(jnp.float32)
  return jnp.mean(loss - best[..., None], axis=-1)


def largest_stable_rate(
  rate_R: jax.Array,
  loss_xR: jax.Array,
  initial_loss_x: jax.Array,
  *,
  tolerance: float = 0.5,
  best_x: jax.Array | None = None,
) -> jax.Array:
  """The largest rate up to which training holds: going up from the best rate, the last before l > l* + tolerance (l_0 - l*) or not finite.

  Rates below the best one may end with a large loss because they are slow; that is no instability, so they are not asked.

  Args:
    rate_R: float [R], positive, in any order.
    loss_xR: float [..., R], final losses, one row a seed.
    initial_loss_x: float [...], l_0.
    tolerance: in (0, 1), the share of the progress from l_0 to l* that a stable run may miss.
    best_x: float [...], l*; None for the smallest loss of each row. With one l* for all variants a variant that never learns has no
      stable rate.

  Returns:
    float32 [...]; 0 where no rate is stable. A rate that works again above one that failed is not counted.

  Gradient: none.
  Limits: the largest rate of the grid means "at least that": extend the grid.
  Reference: none states a definition; this one is the library's own.

  >>> rates = jnp.array([1e-3, 1e-2, 1e-1, 1.])
  >>> round(float(largest_stable_rate(rates, jnp.array([3., 1., 1.2, jnp.nan]), jnp.array(3.5))), 6)
  0.1
  """
  order_R = jnp.argsort(rate_R)
  rate = rate_R.astype(jnp.float32)[order_R]
  raw = loss_xR.astype(jnp.float32)[..., order_R]
  loss = clamped_loss(raw, initial_loss_x)
  initial = initial_loss_x.astype(jnp.float32)
  best = jnp.min(loss, axis=-1) if best_x is None else best_x.astype(jnp.float32)
  limit = jnp.broadcast_to((best + tolerance * (initial - best))[..., None], loss.shape)
  # A run that learnt nothing is not stable, even where nothing did and the limit is the initial loss.
  stable = jnp.isfinite(raw) & (loss <= limit) & (loss < jnp.broadcast_to(initial[..., None], loss.shape))
  below = jnp.cumsum(jax.nn.one_hot(jnp.argmin(loss, axis=-1), loss.shape[-1], dtype=jnp.int32), axis=-1) == 0
  held = jnp.cumprod((below | stable).astype(jnp.int32), axis=-1) == 1
  return jnp.max(jnp.where(held & ~below, jnp.broadcast_to(rate, loss.shape), 0.0), axis=-1)
