"""Temperatures that follow the entropy of each token: higher where the policy is uncertain, lower where it is not."""

import functools

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.methods.samplers.sampler import Sampler, stateless
from entropy_jax.ops import categorical, entropy_scale

RANGES = {
  'dual_temperature': {'level': '[0, inf)', 'high': '(0, inf)', 'low': '(0, inf)'},
  'adaptive_temperature': {'tau': '[0, 1)', 'quantile': '[0, 1]', 'form': entropy_scale.FORMS},
}


def dual_temperature_logits(
  logits_BxV: jax.Array, *, level: float = 0.672, high: float = 1.0, low: float = 1.0
) -> jax.Array:
  """Two temperatures, by the entropy of the row at temperature 1: z / T, T = high where H(z) > level and low elsewhere.

  Args:
    logits_BxV: [..., V], at temperature 1 (give `generate` temperature=1), may hold -inf.
    level: nats, strict; .672 is the 80th percentile of the token entropies in the paper.
    high: > 0, at forks.
    low: > 0, elsewhere.

  Returns:
    [..., V], float32.

  Gradient: through z at the temperature that was chosen.
  Limits: one temperature where high = low, and the logits themselves where both are 1, the default.
  Reference: Wang et al., Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning for LLM Reasoning.
    There it probes a trained model: a higher temperature at forks helps, and elsewhere it destroys accuracy.

  >>> z = jnp.array([[0., 0.], [0., 6.]])         # ln 2 = .693 nats, and .02
  >>> dual_temperature_logits(z, high=2., low=.5).tolist()
  [[0.0, 0.0], [0.0, 12.0]]
  """
  logits_BxV = logits_BxV.astype(jnp.float32)
  uncertain_B = jax.lax.stop_gradient(categorical.entropy(logits_BxV)) > level
  return logits_BxV / jnp.where(uncertain_B, high, low)[..., None]


def dual_temperature(*, level: float = 0.672, high: float = 1.0, low: float = 1.0) -> Sampler:
  """`dual_temperature_logits` as a sampler; it remembers nothing."""
  transform.check_ranges('dual_temperature', RANGES['dual_temperature'], level=level, high=high, low=low)
  return stateless(functools.partial(dual_temperature_logits, level=level, high=high, low=low))


def entropy_scaled_logits(
  logits_BxV: jax.Array, stats: dict[str, jax.Array], *, tau: float = 0.05, form: str = 'intended'
) -> jax.Array:
  """HAPO's adaptive temperature: z / (1 + tau h), h in [-1, 1] the entropy of the row on the scale of the previous batch.

  Args:
    logits_BxV: [..., V], already over the temperature T0, so that the whole temperature is T0 (1 + tau h); may hold -inf.
    stats: of `ops.entropy_scale.scale`, from the entropies (at T0) of the previous batch.
    tau: in [0, 1).
    form: 'intended', uncertain tokens hotter, or 'released', certain ones too.

  Returns:
    [..., V], float32.

  Gradient: through z; the temperature is held fixed.
  Limits: the logits themselves at tau = 0, at the pivot's entropy, and on a batch that had one entropy only.
  Reference: Liu et al., From Uniform to Heterogeneous: Tailoring Policy Optimization to Every Token's Nature, HAPO, its adaptive
    temperature sampling.
  Differs: log-probs are those at T0, as in the released code, where they are computed again without the adaptive temperature: the
    ratio ignores up to a share tau of the temperature. UNCONFIRMED: the sign of h below the pivot (see `ops.entropy_scale`).
  """
  logits_BxV = logits_BxV.astype(jnp.float32)
  h_B = entropy_scale.standardised(categorical.entropy(logits_BxV), stats, form=form)
  return logits_BxV / (1.0 + tau * h_B)[..., None]


def adaptive_temperature(*, tau: float = 0.05, quantile: float = 0.8, form: str = 'intended') -> Sampler:
  """`entropy_scaled_logits` as a sampler that remembers the scale of the last batch; the first batch is sampled plainly.

  Args:
    tau: in [0, 1).
    quantile: place of the pivot among the token entropies, in [0, 1].
    form: as `entropy_scaled_logits`.

  Limits: `remember` must see the entropies of the whole batch, of all devices.
  """
  transform.check_ranges('adaptive_temperature', RANGES['adaptive_temperature'], tau=tau, quantile=quantile, form=form)

  def init() -> dict[str, jax.Array]:
    # With extremes of 0 every entropy reads as h = 0.
    return {name: jnp.float32(value) for name, value in (('c', 0.0), ('s', 1.0), ('h_max', 0.0), ('h_min', 0.0))}

  def remember(state: dict[str, jax.Array], entropy_BxT: jax.Array, mask_BxT: jax.Array) -> dict[str, jax.Array]:
    new = entropy_scale.scale(entropy_BxT, mask_BxT, quantile=quantile)
    return jax.tree.map(lambda old, x: jnp.where(jnp.any(mask_BxT), x, old), state, new)

  return Sampler(init, functools.partial(entropy_scaled_logits, tau=tau, form=form), remember)
