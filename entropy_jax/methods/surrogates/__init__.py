"""Surrogates: the objective of every token, maximised; exactly one stands in a chain."""

from entropy_jax.methods.surrogates.adaptive_clip import agentic_aepo_clip, echo_clip, hapo_clip
from entropy_jax.methods.surrogates.policy_gradient import importance, ppo_clip, reinforce
from entropy_jax.methods.surrogates.sequence import gmpo, gspo, gspo_token
from entropy_jax.methods.surrogates.soft import cispo, sapo, vespo

__all__ = [
  'agentic_aepo_clip',
  'cispo',
  'echo_clip',
  'gmpo',
  'gspo',
  'gspo_token',
  'hapo_clip',
  'importance',
  'ppo_clip',
  'reinforce',
  'sapo',
  'vespo',
]
