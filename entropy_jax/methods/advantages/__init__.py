"""How good each token was: functions of rewards, groups and lengths that replace `advantage_BxT`, once a rollout."""

from entropy_jax.methods.advantages.baselines import gae, optimal_token_baseline, remax, unit
from entropy_jax.methods.advantages.conditional import canon
from entropy_jax.methods.advantages.confidence import agentic_aepo, echo_shaping
from entropy_jax.methods.advantages.difficulty import pshw
from entropy_jax.methods.advantages.entropy_driven import edge_grpo
from entropy_jax.methods.advantages.generative import progrpo
from entropy_jax.methods.advantages.group import dr_grpo, gpg, grpo, grpo_pass_at_k, opo, rloo
from entropy_jax.methods.advantages.hapo import tlga
from entropy_jax.methods.advantages.imitation import imitate
from entropy_jax.methods.advantages.planning import hicra
from entropy_jax.methods.advantages.process import prime
from entropy_jax.methods.advantages.quantile import qae
from entropy_jax.methods.advantages.replay import self_imitation, self_imitation_replay
from entropy_jax.methods.advantages.response_entropy import ear_clip, ear_res
from entropy_jax.methods.advantages.risk import riskpo
from entropy_jax.methods.advantages.semantic import seed_grpo
from entropy_jax.methods.advantages.steps import empg
from entropy_jax.methods.advantages.uncertainty import ucas
from entropy_jax.methods.advantages.whitened import reinforce_plus_plus, reinforce_plus_plus_baseline

__all__ = [
  'agentic_aepo',
  'canon',
  'dr_grpo',
  'ear_clip',
  'ear_res',
  'echo_shaping',
  'edge_grpo',
  'empg',
  'gae',
  'gpg',
  'grpo',
  'grpo_pass_at_k',
  'hicra',
  'imitate',
  'opo',
  'optimal_token_baseline',
  'prime',
  'progrpo',
  'pshw',
  'qae',
  'reinforce_plus_plus',
  'reinforce_plus_plus_baseline',
  'remax',
  'riskpo',
  'rloo',
  'seed_grpo',
  'self_imitation',
  'self_imitation_replay',
  'tlga',
  'ucas',
  'unit',
]
