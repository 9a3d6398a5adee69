"""The categorical distribution from its logits: the only file that calls log_softmax or sums p log p.

Every function takes logits of any float type, works in float32 and is safe, in value and gradient, at -inf logits (impossible
tokens), with 0 log 0 = 0. A row that is -inf everywhere is no distribution; it is treated as uniform, and stays finite.
"""

import jax
import jax.numpy as jnp

_LOWEST = float(jnp.finfo(jnp.float32).min)


def log_probs(logits_xV: jax.Array) -> jax.Array:
  """ln p = z - logsumexp(z) in float32.

  Args:
    logits_xV: [..., V], may hold -inf.

  Returns:
    [..., V], -inf at -inf logits.

  Gradient: finite; 0 towards -inf logits.

  >>> log_probs(jnp.array([0., 0., -jnp.inf])).tolist()
  [-0.6931471824645996, -0.6931471824645996, -inf]
  """
  logp = _finite_log_probs(logits_xV)
  return jnp.where(logp > 0.5 * _LOWEST, logp, -jnp.inf)


def _finite_log_probs(logits_xV: jax.Array) -> jax.Array:
  # The lowest float stands for -inf: log_softmax of a row of -inf alone would be NaN, in value and in gradient.
  return jax.nn.log_softmax(jnp.maximum(logits_xV.astype(jnp.float32), _LOWEST), axis=-1)


def weighted_sum(p_xV: jax.Array, x_xV: jax.Array) -> jax.Array:
  """sum_j p_j x_j with 0 * (anything, -inf included) = 0, in value and gradient."""
  possible = p_xV > 0
  return jnp.sum(jnp.where(possible, p_xV * jnp.where(possible, x_xV, 0.0), 0.0), axis=-1)


def entropy(logits_xV: jax.Array) -> jax.Array:
  """Shannon entropy in nats: H = -sum_j p_j ln p_j = logsumexp(z) - sum_j p_j z_j.

  Args:
    logits_xV: [..., V], may hold -inf.

  Returns:
    H, [...], in [0, ln V].

  Gradient: dH/dz_j = -p_j (ln p_j + H), which sums to 0 over j; 0 at -inf logits.
  Limits: ln V for equal logits; unchanged when a constant is added to the logits.

  >>> round(float(entropy(jnp.zeros(32))), 6)     # ln 32
  3.465736
  >>> float(entropy(jnp.array([0., -jnp.inf])))
  0.0
  """
  return _entropy_from_log_probs(_finite_log_probs(logits_xV))


def _entropy_from_log_probs(logp_xV: jax.Array) -> jax.Array:
  # H >= 0 by definition; rounding may leave -1e-8, which reads as a bug in a log.
  return jnp.maximum(-weighted_sum(jnp.exp(logp_xV), logp_xV), 0.0)


def entropy_gradient(logits_xV: jax.Array) -> jax.Array:
  """dH/dz_j = -p_j (ln p_j + H), [..., V]: minus the entropy discriminator S_j of every token."""
  logp = log_probs(logits_xV)
  p = jnp.exp(logp)
  surprise = jnp.where(p > 0, logp, 0.0)
  return -p * (surprise + entropy(logits_xV)[..., None])


def token_log_prob(logits_xV: jax.Array, token: jax.Array) -> jax.Array:
  """ln p of the given token, [...].

  Args:
    logits_xV: [..., V].
    token: int, [...], in [0, V).

  Gradient: one-hot(token) - p.
  """
  return jnp.take_along_axis(log_probs(logits_xV), token[..., None], axis=-1)[..., 0]


def token_log_prob_and_entropy(logits_xV: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(ln p of the token, entropy of the row) from one log-softmax."""
  logp = log_probs(logits_xV)
  return jnp.take_along_axis(logp, token[..., None], axis=-1)[..., 0], _entropy_from_log_probs(logp)


def covariance(p_xV: jax.Array, x_xV: jax.Array, y_xV: jax.Array) -> jax.Array:
  """Cov_{a~p}(x, y) = E_p[xy] - E_p[x] E_p[y], computed centred, with 0 * -inf = 0.

  >>> p = jnp.array([.5, .3, .2]); A = jnp.array([.5, -.5, -.5])
  >>> round(float(covariance(p, jnp.log(p), p * A)), 7)
  0.0615033
  """
  x_centred = x_xV - weighted_sum(p_xV, x_xV)[..., None]
  y_centred = y_xV - weighted_sum(p_xV, y_xV)[..., None]
  product = jnp.where(p_xV > 0, jnp.where(p_xV > 0, x_centred, 0.0) * jnp.where(p_xV > 0, y_centred, 0.0), 0.0)
  return weighted_sum(p_xV, product)


def kl_divergence(logits_p_xV: jax.Array, logits_q_xV: jax.Array) -> jax.Array:
  """KL(p || q) = sum_j p_j (ln p_j - ln q_j) in nats, [...]; +inf where q is 0 and p is not."""
  logp, logq = log_probs(logits_p_xV), log_probs(logits_q_xV)
  possible = jnp.exp(logp) > 0
  return weighted_sum(jnp.exp(logp), jnp.where(possible, jnp.where(possible, logp, 0.0) - logq, 0.0))
