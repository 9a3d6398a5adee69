"""What a response is worth: functions that replace the outcome `reward_B` or add dense token rewards."""

from entropy_jax.methods.rewards.shaping import kl_in_reward, soft_overlong

__all__ = ['kl_in_reward', 'soft_overlong']
