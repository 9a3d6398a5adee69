"""Weights: factors on the surrogate of every token, planned on the whole batch and without gradient."""

from entropy_jax.methods.weights.clip_cov import clip_cov
from entropy_jax.methods.weights.curriculum import self_imitation_warmup
from entropy_jax.methods.weights.discriminator import clip_b, clip_v
from entropy_jax.methods.weights.entropy_selection import top_entropy
from entropy_jax.methods.weights.sequences import drop_truncated, off_policy_sequence_mask, sampler_importance
from entropy_jax.methods.weights.steer import steer, steer_discriminator
from entropy_jax.methods.weights.supervised import entropy_sft

__all__ = [
  'clip_b',
  'clip_cov',
  'clip_v',
  'drop_truncated',
  'entropy_sft',
  'off_policy_sequence_mask',
  'sampler_importance',
  'self_imitation_warmup',
  'steer',
  'steer_discriminator',
  'top_entropy',
]
