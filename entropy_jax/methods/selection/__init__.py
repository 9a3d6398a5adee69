"""Which prompts and responses are worth an update: choices made on the host, between generation and training."""

from entropy_jax.methods.selection import arbitrary_entropy, insight, recent_recovery
from entropy_jax.methods.selection.dynamic_sampling import DynamicSampling, Selected, informative_B

__all__ = ['DynamicSampling', 'Selected', 'arbitrary_entropy', 'informative_B', 'insight', 'recent_recovery']
