"""How good each token was: functions of rewards, groups and lengths that replace `advantage_BxT`, once a rollout."""

from entropy_jax.methods.advantages.baselines import gae, optimal_token_baseline, remax, unit
from entropy_jax.methods.advantages.group import dr_grpo, gpg, grpo, grpo_pass_at_k, opo, rloo
from entropy_jax.methods.advantages.whitened import reinforce_plus_plus, reinforce_plus_plus_baseline

__all__ = [
  'dr_grpo',
  'gae',
  'gpg',
  'grpo',
  'grpo_pass_at_k',
  'opo',
  'optimal_token_baseline',
  'reinforce_plus_plus',
  'reinforce_plus_plus_baseline',
  'remax',
  'rloo',
  'unit',
]
