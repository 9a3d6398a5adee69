"""What a response is worth: functions that replace the outcome `reward_B` or add dense token rewards."""

from entropy_jax.methods.rewards.phases import pear
from entropy_jax.methods.rewards.process import implicit_prm, outcome_cross_entropy, outcome_logits, outcome_preference, process_values
from entropy_jax.methods.rewards.shaping import kl_in_reward, soft_overlong
from entropy_jax.methods.rewards.tool_use import tool_use
from entropy_jax.methods.rewards.votes import empo, ttrl
from entropy_jax.methods.rewards.windows import ares

__all__ = [
  'ares',
  'empo',
  'implicit_prm',
  'kl_in_reward',
  'outcome_cross_entropy',
  'outcome_logits',
  'outcome_preference',
  'pear',
  'process_values',
  'soft_overlong',
  'tool_use',
  'ttrl',
]
