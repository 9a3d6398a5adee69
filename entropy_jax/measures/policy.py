"""Entropy of a policy, from the token-level arrays that the scoring pass returns: over tokens, over sequences, by class of position,
estimated from log-probabilities alone, and read as a number of choices. Every mean is a Ratio, so that slices of a batch merge exactly.
"""

import jax
import jax.numpy as jnp

from entropy_jax.ops import masked, vocabulary
from entropy_jax.types import Ratio, VocabStat


def token_entropy(entropy_BxT: jax.Array, mask_BxT: jax.Array) -> Ratio:
  """Mean entropy over tokens: sum_it m_it H_it / sum_it m_it.

  Args:
    entropy_BxT: float32, entropy of the vocabulary row in nats, >= 0.
    mask_BxT: bool, tokens that the policy generated.

  Returns:
    Ratio in nats, in [0, ln V].

  Gradient: 1 / N to every valid token, exactly 0 to the others.
  Limits: equals `sequence_entropy` when all sequences are equally long.

  >>> H = jnp.array([[1., 2., 3.], [7., 0., 0.]]); m = jnp.array([[True, True, True], [True, False, False]])
  >>> float(token_entropy(H, m).compute()), float(sequence_entropy(H, m).compute())     # 13 / 4 and (2 + 7) / 2
  (3.25, 4.5)
  """
  return masked.mean_ratio(entropy_BxT, mask_BxT)


def sequence_entropy(entropy_BxT: jax.Array, mask_BxT: jax.Array) -> Ratio:
  """Mean over sequences of the mean entropy of their tokens: (1 / B') sum_i (1 / n_i) sum_t m_it H_it.

  Args:
    entropy_BxT: float32, nats.
    mask_BxT: bool.

  Returns:
    Ratio in nats over the B' sequences that hold a token; an empty sequence is not counted.

  Gradient: 1 / (B' n_i) to every valid token.
  Limits: long sequences weigh more in `token_entropy`, and all weigh the same here, so the two differ when length and entropy go together.
  """
  mean_B = masked.mean(entropy_BxT, mask_BxT, axis=1)
  return masked.mean_ratio(mean_B, jnp.any(mask_BxT, axis=1))


def response_entropy(x_BxT: jax.Array, mask_BxT: jax.Array) -> Ratio:
  """Entropy of whole responses, H(y) = E_y[sum_t x_t], by the chain rule of entropy.

  Args:
    x_BxT: float32, `entropy_BxT` (less variance) or `-logp_BxT` (plain Monte Carlo), of responses sampled from the policy itself.
    mask_BxT: bool.

  Returns:
    Ratio in nats over the sequences that hold a token. `effective_number` of it is the number of equally likely responses with this
    entropy; it overflows float32 beyond 88 nats, so log the entropy itself for long responses.

  Gradient: that of the sum with the samples held fixed, which is not the gradient of H(y).
  Limits: unbiased only on-policy and at the temperature that the arrays belong to.

  >>> float(response_entropy(jnp.array([[1., 2.], [4., jnp.nan]]), jnp.array([[True, True], [True, False]])).compute())
  3.5
  """
  return masked.mean_ratio(masked.total(x_BxT, mask_BxT, axis=1), jnp.any(mask_BxT, axis=1))


def entropy_by_class(entropy_BxT: jax.Array, class_BxT: jax.Array, mask_BxT: jax.Array, *, num_classes: int) -> Ratio:
  """Mean entropy of the tokens of every class (fork or not, kind of token, bin of position), [C].

  Args:
    entropy_BxT: float32, nats.
    class_BxT: int32, in [0, C); a token of any other class is counted nowhere.
    mask_BxT: bool.
    num_classes: C.

  Returns:
    Ratio with num and den of shape [C]; 0 for a class that does not occur.

  Gradient: 1 / N_c to the tokens of class c.
  Limits: one class gives `token_entropy`; the num and the den of all classes add up to those of `token_entropy`.

  >>> H = jnp.array([[3., 1., 2.]]); fork = jnp.array([[1, 0, 0]]); m = jnp.ones((1, 3), bool)
  >>> entropy_by_class(H, fork, m, num_classes=2).compute().tolist()
  [1.5, 3.0]
  """
  member_CxBxT = (class_BxT[None] == jnp.arange(num_classes)[:, None, None]) & mask_BxT[None]
  clean_CxBxT = jnp.broadcast_to(masked.zero(entropy_BxT, mask_BxT)[None], member_CxBxT.shape)
  num_C = jnp.sum(clean_CxBxT, axis=(1, 2), where=member_CxBxT)
  return Ratio(num_C, jnp.sum(member_CxBxT, axis=(1, 2), dtype=jnp.float32))


def entropy_by_position(entropy_BxT: jax.Array, mask_BxT: jax.Array) -> Ratio:
  """Mean entropy at every position of the response, Ratio with num and den of shape [T]; 0 where no sequence is so long."""
  return Ratio(masked.total(entropy_BxT, mask_BxT, axis=0), masked.count(mask_BxT, axis=0))


def monte_carlo_entropy(logp_BxT: jax.Array, mask_BxT: jax.Array) -> Ratio:
  """Entropy from the log-probabilities of the sampled tokens alone: -sum_it m_it ln p_it / sum_it m_it.

  Args:
    logp_BxT: float32, log-probability of the sampled token, <= 0.
    mask_BxT: bool.

  Returns:
    Ratio in nats, >= 0.

  Gradient: -1 / N to every valid token; it is not the gradient of the entropy (its expectation is 0).
  Limits: unbiased for `token_entropy` only when the tokens were sampled from the very distribution that scores them; too low when they
    were sampled at a lower temperature.
  Reference: estimator in use where the whole vocabulary row is not kept.

  >>> round(float(monte_carlo_entropy(jnp.log(jnp.array([[.5, .25]])), jnp.array([[True, True]])).compute()), 6)   # 1.5 ln 2
  1.039721
  """
  return masked.mean_ratio(-logp_BxT, mask_BxT)


def effective_number(entropy: jax.Array) -> jax.Array:
  """exp(H): the number of equally likely choices with this entropy (perplexity, Hill number of order 1).

  Args:
    entropy: float32, nats, any shape. For the effective support of tokens take it token by token and average the result with
      `token_entropy`, or take it of the mean entropy: the second is smaller (Jensen).

  Returns:
    float32, in [1, V].

  >>> from entropy_jax.ops import categorical
  >>> round(float(effective_number(categorical.entropy(jnp.zeros(32)))), 4)
  32.0
  """
  return jnp.exp(entropy)


def inverse_simpson(logits_xV: jax.Array) -> jax.Array:
  """(sum_j p_j^2)^-1: one over the chance that two samples agree (participation ratio, Hill number of order 2).

  Args:
    logits_xV: [..., V], may hold -inf.

  Returns:
    [...], float32, in [1, V], never above `effective_number` of the entropy.

  Gradient: finite; 0 at equal logits and towards -inf logits.

  >>> round(float(inverse_simpson(jnp.log(jnp.array([.5, .3, .2])))), 6)     # 1 / (.25 + .09 + .04)
  2.631579
  """
  return 1.0 / vocabulary.collision_probability(logits_xV)


# Asked of the scoring pass where the whole vocabulary row is at hand; `._replace(of='behaviour')` for the policy that sampled.
inverse_simpson_stat = VocabStat('inverse_simpson', inverse_simpson)
