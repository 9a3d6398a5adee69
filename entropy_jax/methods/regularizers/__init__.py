"""Regularizers: penalties of every token, minimised beside the surrogate."""

from entropy_jax.methods.regularizers.entropy import adaptive_entropy, entropy_bonus
from entropy_jax.methods.regularizers.kl import adaptive_kl, kl
from entropy_jax.methods.regularizers.kl_cov import kl_cov

__all__ = ['adaptive_entropy', 'adaptive_kl', 'entropy_bonus', 'kl', 'kl_cov']
