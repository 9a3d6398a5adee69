"""The token score by which Clip-Cov and KL-Cov select, and by which the collapse of entropy is watched: how far the advantage and the
log-probability of one sampled token deviate together from their means over the batch.
"""

import jax
import jax.numpy as jnp

from entropy_jax.ops import masked, selection
from entropy_jax.types import Metrics


def _centred(x_BxT: jax.Array, mask_BxT: jax.Array) -> jax.Array:
  # What is constant is centred to exactly 0: the rounding of its mean would leave 1e-8, and a selection would rank that noise.
  constant = masked.extreme(x_BxT, mask_BxT) == masked.extreme(x_BxT, mask_BxT, largest=False)
  return masked.zero(jnp.where(constant, 0.0, x_BxT - masked.mean(x_BxT, mask_BxT)), mask_BxT)


def token_covariance(logp_BxT: jax.Array, advantage_BxT: jax.Array, mask_BxT: jax.Array) -> jax.Array:
  """Centred product of every token, (A - mean A) (lp - mean lp), with both means over the valid tokens of the whole batch.

  Args:
    logp_BxT: float32 [B, T], log-probability of the sampled token under the current policy.
    advantage_BxT: float32 [B, T].
    mask_BxT: bool [B, T].

  Returns:
    float32 [B, T], 0 where masked; its mean is the covariance over the batch, positive when a policy-gradient step lowers entropy.

  Gradient: none, it selects and logs.
  Limits: 0 everywhere when the advantage, or the log-probability, is the same at every valid token.
  Reference: Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, arXiv 2505.22617, Eq. 10.
  Differs: this is the integrand of the theorem for the natural policy gradient (A, not pi A), and its means mix states.

  >>> p, A = jnp.array([[.9, .05, .6, .1]]), jnp.array([[2., .5, -1., -1.5]])
  >>> [round(s, 4) for s in token_covariance(jnp.log(p), A, jnp.ones((1, 4), bool))[0].tolist()]
  [2.7465, -0.7586, -0.9678, 1.2359]
  """
  logp, advantage = (jax.lax.stop_gradient(masked.zero(x.astype(jnp.float32), mask_BxT)) for x in (logp_BxT, advantage_BxT))
  return _centred(advantage, mask_BxT) * _centred(logp, mask_BxT)


def summary(score_BxT: jax.Array, mask_BxT: jax.Array) -> Metrics:
  """What a method that selects by the score logs of it: covariance_mean and covariance_p99 over the valid tokens, 0 with none."""
  return {
    'covariance_mean': masked.mean(score_BxT, mask_BxT),
    'covariance_p99': selection.quantile(score_BxT, mask_BxT, 0.99),
  }
