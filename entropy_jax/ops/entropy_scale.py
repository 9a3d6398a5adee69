"""The scale on which HAPO measures the entropy of a token: the logarithm of the entropy around a quantile of the batch, in [-1, 1].

Its temperature, its advantage and its clip range all read this one number. `scale` takes the statistics of a batch, `standardised` reads
an entropy on them (the sampler reads a new token on those of the previous batch), `hapo_entropy` does both on one batch.
"""

import jax
import jax.numpy as jnp

from entropy_jax.ops import masked
from entropy_jax.types import Ratio

FORMS = 'intended | released'
_SMALLEST = 1e-8  # of an entropy, and of the variance of its logarithm
_ROUNDING = 1e-5  # of a log-entropy: a batch whose entropies are equal up to float32 rounding is not stretched to [-1, 1]


def _log_entropy(entropy: jax.Array) -> jax.Array:
  return jnp.log(jnp.maximum(entropy.astype(jnp.float32), _SMALLEST))


def _standard(log_entropy: jax.Array, c: jax.Array, s: jax.Array) -> jax.Array:
  distance = log_entropy - c
  return jnp.where(jnp.abs(distance) > _ROUNDING, distance, 0.0) / s


def scale(entropy_BxT: jax.Array, mask_BxT: jax.Array, *, quantile: float = 0.8) -> dict[str, jax.Array]:
  """The statistics of a batch: pivot c of l = ln max(H, 1e-8), spread s around it, and the extremes of h = (l - c) / s.

  c is the nearest-rank quantile of the valid tokens, number round(quantile (N - 1)) in ascending order;
  s = sqrt(max(mean (l - c)^2, 1e-8)).

  Args:
    entropy_BxT: float32 [B, T], >= 0.
    mask_BxT: bool [B, T].
    quantile: in [0, 1].

  Returns:
    dict of float32 scalars c, s, h_max >= 0 and h_min <= 0; without a valid token c, h_max and h_min are 0.

  Gradient: none.

  >>> found = scale(jnp.array([[.01, .05, .2, .8, 1.6]]), jnp.ones((1, 5), bool))    # pivot: number round(.8 * 4) = 3, H = .8
  >>> [round(float(found[name]), 6) for name in ('c', 's')]
  [-0.223144, 2.4204]
  """
  log_BxT = jax.lax.stop_gradient(_log_entropy(masked.zero(entropy_BxT, mask_BxT)))
  ordered = jnp.sort(jnp.where(mask_BxT, log_BxT, jnp.inf).ravel())
  last = jnp.maximum(jnp.sum(mask_BxT, dtype=jnp.int32) - 1, 0)
  c = jnp.where(jnp.any(mask_BxT), ordered[jnp.round(quantile * last.astype(jnp.float32)).astype(jnp.int32)], 0.0)
  s = jnp.sqrt(jnp.maximum(masked.mean((log_BxT - c) ** 2, mask_BxT), _SMALLEST))
  h_BxT = _standard(log_BxT, c, s)
  return {
    'c': c,
    's': s,
    'h_max': masked.extreme(h_BxT, mask_BxT),
    'h_min': masked.extreme(h_BxT, mask_BxT, largest=False),
  }


def standardised(entropy: jax.Array, stats: dict[str, jax.Array], *, form: str = 'intended') -> jax.Array:
  """An entropy on the scale of a batch: h / h_max above the pivot, h / |h_min| up to it, clipped to [-1, 1].

  Args:
    entropy: float32 of any shape, >= 0.
    stats: what `scale` returned, of this batch or of an earlier one.
    form: 'intended', or 'released', whose low entropies are positive.

  Returns:
    h-hat, float32 of the same shape; 0 at the pivot, and where the batch had nothing on this side of it.

  Gradient: none.
  Differs: see `hapo_entropy`.

  >>> one = {'c': jnp.log(.8), 's': jnp.array(1.), 'h_max': jnp.log(2.), 'h_min': jnp.log(1 / 80)}
  >>> [round(x, 4) for x in standardised(jnp.array([.01, .2, .8, 1.6, 6.4]), one).tolist()]      # the last one is beyond the batch
  [-1.0, -0.3164, 0.0, 1.0, 1.0]
  """
  h = _standard(jax.lax.stop_gradient(_log_entropy(entropy)), stats['c'], stats['s'])
  high = Ratio(h, stats['h_max']).compute()
  low = Ratio(h, stats['h_min']).compute()  # positive for an entropy below the pivot: the released sign
  return jnp.clip(jnp.where(h > 0.0, high, low if form == 'released' else -low), -1.0, 1.0)


def hapo_entropy(
  entropy_BxT: jax.Array, mask_BxT: jax.Array, *, quantile: float = 0.8, form: str = 'intended'
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The standardised entropy of every token of a batch: from -1 at the smallest, by 0 at the pivot, to 1 at the largest.

  Args:
    entropy_BxT: float32 [B, T], >= 0.
    mask_BxT: bool [B, T].
    quantile: place of the pivot, in [0, 1].
    form: 'intended', or 'released', whose low entropies are positive: the smallest gets +1.

  Returns:
    h-hat, float32 [B, T] in [-1, 1], 0 where masked, and the statistics of `scale` for the sampler of the next batch.

  Gradient: none, it modulates.
  Limits: 0 everywhere for equal entropies. One entropy near 0 sets h_min (the clamp at 1e-8 is ln = -18.4) and flattens all other low ones.
  Reference: Liu et al., From Uniform to Heterogeneous: Tailoring Policy Optimization to Every Token's Nature, HAPO.
  Differs: the released code divides what is below the pivot by h_min and not by |h_min|, so that low entropies are positive and every
    branch for them is dead; form='released' is that. UNCONFIRMED: the sign in the paper's equation.

  >>> h, _ = hapo_entropy(jnp.array([[.01, .05, .2, .8, 1.6]]), jnp.ones((1, 5), bool))
  >>> [round(x, 6) for x in h[0].tolist()]
  [-1.0, -0.632718, -0.316359, 0.0, 1.0]
  """
  stats = scale(entropy_BxT, mask_BxT, quantile=quantile)
  return masked.zero(standardised(masked.zero(entropy_BxT, mask_BxT), stats, form=form), mask_BxT), stats
