"""What happens to the logits of a token before it is drawn: pure functions logits_BxV -> logits_BxV, with or without a state.

`generate(..., adjust=)` applies such a function to the logits over the temperature, draws from the result and reports log-prob and entropy
of both: of what came in, and as `drawn_*` of what the token was drawn from.
"""

from entropy_jax.methods.samplers.sampler import Sampler, chain_samplers, stateless
from entropy_jax.methods.samplers.temperature import (
  adaptive_temperature,
  dual_temperature,
  dual_temperature_logits,
  entropy_scaled_logits,
)
from entropy_jax.methods.samplers.truncation import (
  epsilon,
  epsilon_logits,
  eta,
  eta_logits,
  min_p,
  min_p_logits,
  top_h,
  top_h_logits,
  top_k,
  top_k_logits,
  top_p,
  top_p_logits,
  truncation_divergence,
  typical,
  typical_logits,
)

__all__ = [
  'Sampler',
  'adaptive_temperature',
  'chain_samplers',
  'dual_temperature',
  'dual_temperature_logits',
  'entropy_scaled_logits',
  'epsilon',
  'epsilon_logits',
  'eta',
  'eta_logits',
  'min_p',
  'min_p_logits',
  'stateless',
  'top_h',
  'top_h_logits',
  'top_k',
  'top_k_logits',
  'top_p',
  'top_p_logits',
  'truncation_divergence',
  'typical',
  'typical_logits',
]
