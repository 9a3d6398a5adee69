"""Weights: factors on the surrogate of every token, planned on the whole batch and without gradient."""

from entropy_jax.methods.weights.clip_cov import clip_cov
from entropy_jax.methods.weights.entropy_selection import top_entropy
from entropy_jax.methods.weights.sequences import drop_truncated, off_policy_sequence_mask, sampler_importance

__all__ = ['clip_cov', 'drop_truncated', 'off_policy_sequence_mask', 'sampler_importance', 'top_entropy']
