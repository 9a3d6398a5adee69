"""Renyi entropy of order 2 and what it says of gradients: a certain policy has small score functions, an uncertain one large ones.

They are computed from what the likeliest token leaves to the others, so that nothing cancels where it has nearly all the probability, as it
has at most positions of a response: 1 - sum p^2 of a row with p_max = 1 - 1e-9 is 2e-9 and not 0.
"""

import jax
import jax.numpy as jnp

from entropy_jax.ops import categorical
from entropy_jax.types import VocabStat


def expected_squared_score(logits_xV: jax.Array) -> jax.Array:
  """E_{a~p} ||d ln p_a / dz||^2 = E ||e_a - p||^2 = 1 - sum_j p_j^2 = 1 - exp(-H_2): how large a token's gradient is on average.

  Args:
    logits_xV: [..., V], may hold -inf.

  Returns:
    [...], float32, in [0, 1 - 1 / V].

  Gradient: flows; 0 towards -inf logits and at equal logits.
  Limits: 0 for a certain row, 1 - 1 / V at equal logits.
  Reference: Harnessing Uncertainty: Entropy-Modulated Policy Gradients for Long-Horizon LLM Agents (EMPG), Proposition 1.

  >>> [round(float(expected_squared_score(jnp.log(jnp.array(p)))), 6) for p in ([.5, .5], [.9, .1], [.25, .25, .25, .25])]
  [0.5, 0.18, 0.75]
  """
  p_xV = jnp.exp(categorical.log_probs(logits_xV))
  likeliest_xV = jax.nn.one_hot(jnp.argmax(p_xV, axis=-1), p_xV.shape[-1], dtype=bool)
  rest_xV = jnp.where(likeliest_xV, 0.0, p_xV)
  q = jnp.sum(rest_xV, axis=-1)  # 1 - p_max, and so 1 - p_max^2 = q (2 - q)
  return q * (2.0 - q) - jnp.sum(rest_xV**2, axis=-1)


def collision_entropy(logits_xV: jax.Array) -> jax.Array:
  """Renyi entropy of order 2, H_2 = -ln sum_j p_j^2, in nats.

  Args:
    logits_xV: [..., V], may hold -inf.

  Returns:
    [...], float32, in [0, ln V]; never above the Shannon entropy, and equal to it for rows that are uniform on their support.

  Gradient: flows; 0 towards -inf logits.
  Limits: exp(H_2) is `policy.inverse_simpson`.

  >>> round(float(collision_entropy(jnp.log(jnp.array([.5, .3, .2])))), 6)     # -ln(.25 + .09 + .04)
  0.967584
  """
  return -jnp.log1p(-expected_squared_score(logits_xV))


def squared_score(logp: jax.Array, expected: jax.Array) -> jax.Array:
  """||e_a - p||^2 = 2 (1 - p_a) - (1 - sum_j p_j^2), the squared gradient norm of ln p_a with respect to the row's logits.

  Args:
    logp: float32 of any shape, ln p of the token a.
    expected: `expected_squared_score` of its row, same shape.

  Returns:
    float32 of the same shape, in [0, 2]; its mean over a ~ p is `expected`.

  Gradient: flows.

  >>> p = jnp.array([.9, .1])
  >>> [round(x, 4) for x in squared_score(jnp.log(p), jnp.full(2, .18)).tolist()]      # (.1^2 + .1^2, .9^2 + .9^2)
  [0.02, 1.62]
  """
  return -2.0 * jnp.expm1(logp) - expected


# Asked of the scoring pass, which sees the whole vocabulary row; `._replace(of='behaviour')` for the policy that sampled.
expected_squared_score_stat = VocabStat('expected_squared_score', expected_squared_score)
collision_entropy_stat = VocabStat('collision_entropy', collision_entropy)
