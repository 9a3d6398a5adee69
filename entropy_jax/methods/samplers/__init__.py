"""What happens to the logits of a token before it is drawn: pure functions logits_BxV -> logits_BxV, with or without a state.

`generate(..., adjust=)` applies such a function to the logits over the temperature, draws from the result and keeps reporting log-prob and
entropy of what came in.
"""

from entropy_jax.methods.samplers.sampler import Sampler, stateless
from entropy_jax.methods.samplers.temperature import (
  adaptive_temperature,
  dual_temperature,
  dual_temperature_logits,
  entropy_scaled_logits,
)

__all__ = [
  'Sampler',
  'adaptive_temperature',
  'dual_temperature',
  'dual_temperature_logits',
  'entropy_scaled_logits',
  'stateless',
]
