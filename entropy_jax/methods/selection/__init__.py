"""Which prompts are worth an update: choices made on the host, between generation and training."""

from entropy_jax.methods.selection.dynamic_sampling import DynamicSampling, Selected, informative_B

__all__ = ['DynamicSampling', 'Selected', 'informative_B']
