"""Surrogates: the objective of every token, maximised; exactly one stands in a chain."""

from entropy_jax.methods.surrogates.policy_gradient import importance, ppo_clip, reinforce
from entropy_jax.methods.surrogates.sequence import gmpo, gspo, gspo_token
from entropy_jax.methods.surrogates.soft import cispo, sapo, vespo

__all__ = ['cispo', 'gmpo', 'gspo', 'gspo_token', 'importance', 'ppo_clip', 'reinforce', 'sapo', 'vespo']
