"""Regularizers: penalties of every token, minimised beside the surrogate."""

from entropy_jax.methods.regularizers.clamped import aent
from entropy_jax.methods.regularizers.covariance_bonus import tea_rl
from entropy_jax.methods.regularizers.entropy import adaptive_entropy, entropy_bonus
from entropy_jax.methods.regularizers.entropy_driven import edge_grpo_entropy
from entropy_jax.methods.regularizers.kl import adaptive_kl, kl
from entropy_jax.methods.regularizers.kl_cov import kl_cov
from entropy_jax.methods.regularizers.low_probability import lp_reg, lp_reg_released
from entropy_jax.methods.regularizers.model_based import model_based_entropy
from entropy_jax.methods.regularizers.nucleus import siren
from entropy_jax.methods.regularizers.t1 import t1
from entropy_jax.methods.regularizers.target import ter
from entropy_jax.methods.regularizers.turns import epo, epo_smooth
from entropy_jax.methods.regularizers.window_kl import ares_kl

__all__ = [
  'adaptive_entropy',
  'adaptive_kl',
  'aent',
  'ares_kl',
  'edge_grpo_entropy',
  'entropy_bonus',
  'epo',
  'epo_smooth',
  'kl',
  'kl_cov',
  'lp_reg',
  'lp_reg_released',
  'model_based_entropy',
  'siren',
  't1',
  'tea_rl',
  'ter',
]
