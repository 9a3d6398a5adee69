"""Truncations: rules that leave a token a set of the vocabulary to be drawn from, by rank, mass, probability or entropy.

Each maps logits, already over the temperature, to the same logits with -inf outside of the set. Sets are decided in float32 without a
gradient; ties stand in the order of the vocabulary unless a rule keeps them together; a row never loses all its tokens. A sum or a
probability that is at a boundary up to float rounding (1e-6) is at the boundary.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.methods.samplers.sampler import Sampler, stateless
from entropy_jax.ops import categorical, masked, thresholds
from entropy_jax.types import UserError

TOLERANCE = 1e-6
RANGES = {
  'top_h': {'alpha': '(0, 1]', 'mode': 'renorm | partial'},
  'top_k': {'k': '[1, inf]'},
  'top_p': {'p': '(0, 1]'},
  'min_p': {'m': '(0, 1]'},
  'typical': {'mass': '(0, 1]'},
  'epsilon': {'epsilon': '(0, 1)'},
  'eta': {'epsilon': '(0, 1)'},
}


def _fixed(logits_xV: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(keys in the order of the logits, log-probs, probabilities), without a gradient."""
  z_xV = jax.lax.stop_gradient(logits_xV.astype(jnp.float32))
  logp_xV = categorical.log_probs(z_xV)
  return thresholds.ordered(z_xV), logp_xV, jnp.exp(logp_xV)


def _largest(x_xV: jax.Array) -> jax.Array:
  return jnp.max(x_xV, axis=-1, keepdims=True)


def _total(x_xV: jax.Array, where_xV: jax.Array) -> jax.Array:
  return jnp.sum(masked.zero(x_xV, where_xV), axis=-1, keepdims=True)


def _longest_prefix(
  key_xV: jax.Array, terms: Sequence[jax.Array], fits: Callable[..., jax.Array]
) -> tuple[jax.Array, jax.Array]:
  """Of the tokens in descending order of their keys: the longest prefix for whose sums of `terms` fits(*sums) holds, a monotone rule.

  Returns:
    (t, m): the prefix is what has a key above t, and the first m tokens with the key t, at which the rule stops to hold.
  """
  last_x1 = thresholds.rank_threshold(key_xV, lambda above_xV: fits(*(_total(term, above_xV) for term in terms)))
  above_xV, tied_xV = key_xV > last_x1, key_xV == last_x1
  sums = [_total(term, above_xV) for term in terms]
  steps = [_largest(masked.zero(term, tied_xV)) for term in terms]  # terms are not negative, and those of ties are equal
  full = lambda m_x1: ~fits(*(total + (m_x1 + 1).astype(jnp.float32) * step for total, step in zip(sums, steps, strict=True)))
  V = key_xV.shape[-1]
  return last_x1, thresholds.smallest(full, jnp.zeros_like(last_x1), jnp.full_like(last_x1, V), V.bit_length())


def top_k_logits(logits_xV: jax.Array, *, k: int = 50) -> jax.Array:
  """The k most probable tokens, and all that tie with the last of them.

  Args:
    logits_xV: [..., V], may hold -inf.
    k: at least 1.

  Returns:
    float32 [..., V], -inf outside of the set.

  Gradient: 1 to the logits kept.
  Limits: everything for k >= V; the most probable token for k = 1. Idempotent.

  >>> top_k_logits(jnp.array([2., 1., 3., 1.]), k=3).tolist()      # the tie stays together
  [2.0, 1.0, 3.0, 1.0]
  """
  key_xV, _, _ = _fixed(logits_xV)
  count = lambda above_xV: jnp.sum(above_xV, axis=-1, keepdims=True, dtype=jnp.int32)
  return thresholds.only(key_xV >= thresholds.rank_threshold(key_xV, lambda above_xV: count(above_xV) < k), logits_xV)


def top_p_logits(logits_xV: jax.Array, *, p: float = 0.9) -> jax.Array:
  """The nucleus: every token with less than the mass p before it in descending order.

  Args:
    logits_xV: [..., V], may hold -inf.
    p: in (0, 1].

  Returns:
    float32 [..., V], -inf outside of the set.

  Gradient: 1 to the logits kept.
  Limits: everything for p = 1. Not idempotent: the nucleus is one of a smaller mass.
  Differs: at a mass of exactly p before a token, older implementations keep it too. Ties are kept in the order of the vocabulary, where an
    unstable sort keeps others.

  >>> (top_p_logits(jnp.log(jnp.array([.5, .25, .125, .125])), p=.76) > -jnp.inf).tolist()      # .75 stands before the third
  [True, True, True, False]
  """
  key_xV, _, p_xV = _fixed(logits_xV)
  mass = jnp.where(jnp.asarray(p) >= 1, jnp.inf, p - TOLERANCE)
  last_x1, ties_x1 = _longest_prefix(key_xV, (p_xV,), lambda total: total < mass)
  return thresholds.only(thresholds.with_first_ties(key_xV, last_x1, ties_x1 + 1), logits_xV)  # the token that crosses belongs to it


def _at_least(logits_xV: jax.Array, floor_x1: jax.Array, key_xV: jax.Array, logp_xV: jax.Array) -> jax.Array:
  """What is at least as probable as the floor, ln, and the most probable token in any case."""
  return thresholds.only((logp_xV >= floor_x1 - TOLERANCE) | (key_xV == _largest(key_xV)), logits_xV)


def min_p_logits(logits_xV: jax.Array, *, m: float = 0.1) -> jax.Array:
  """Every token at least m times as probable as the most probable one: p_v >= m max p.

  Args:
    logits_xV: [..., V], may hold -inf.
    m: in (0, 1].

  Returns:
    float32 [..., V], -inf outside of the set.

  Gradient: 1 to the logits kept.
  Limits: the most probable token, with its ties, for m = 1. Idempotent.

  >>> (min_p_logits(jnp.log(jnp.array([.5, .25, .125, .125])), m=.5) > -jnp.inf).tolist()
  [True, True, False, False]
  """
  key_xV, logp_xV, _ = _fixed(logits_xV)
  return _at_least(logits_xV, jnp.log(m) + _largest(logp_xV), key_xV, logp_xV)


def epsilon_logits(logits_xV: jax.Array, *, epsilon: float = 3e-4) -> jax.Array:
  """Every token of probability at least epsilon, and the most probable one.

  Args:
    logits_xV: [..., V], may hold -inf.
    epsilon: in (0, 1); 3e-4 to 9e-4 are usual.

  Returns:
    float32 [..., V], -inf outside of the set.

  Gradient: 1 to the logits kept.
  Limits: the most probable token, with its ties, where no other is as probable as epsilon. Idempotent.
  Reference: Hewitt et al., Truncation Sampling as Language Model Desmoothing, as in its code.
  """
  key_xV, logp_xV, _ = _fixed(logits_xV)
  return _at_least(logits_xV, jnp.log(epsilon), key_xV, logp_xV)


def eta_logits(logits_xV: jax.Array, *, epsilon: float = 3e-4) -> jax.Array:
  """Every token of probability at least eta = min(epsilon, sqrt(epsilon) exp(-H(p))), and the most probable one; H in nats.

  Args:
    logits_xV: [..., V], may hold -inf.
    epsilon: in (0, 1); 3e-4 to 2e-3 are usual.

  Returns:
    float32 [..., V], -inf outside of the set.

  Gradient: 1 to the logits kept.
  Limits: eta <= epsilon, so no token that `epsilon_logits` keeps is lost; eta = min(epsilon, sqrt(epsilon) / V) for a uniform row. Not
    idempotent.
  Reference: Hewitt et al., Truncation Sampling as Language Model Desmoothing, as in its code.
  """
  key_xV, logp_xV, _ = _fixed(logits_xV)
  log_epsilon = jnp.log(epsilon)
  floor_x1 = jnp.minimum(log_epsilon, 0.5 * log_epsilon - categorical.entropy(logp_xV)[..., None])
  return _at_least(logits_xV, floor_x1, key_xV, logp_xV)


def typical_logits(logits_xV: jax.Array, *, mass: float = 0.9) -> jax.Array:
  """Locally typical tokens: those whose surprise is nearest to the entropy, s_v = |-ln p_v - H(p)|, until they have the mass.

  Args:
    logits_xV: [..., V], may hold -inf.
    mass: in (0, 1]. Tokens that tie with the one that reaches it are all kept.

  Returns:
    float32 [..., V], -inf outside of the set, which need not hold the most probable token.

  Gradient: 1 to the logits kept.
  Limits: everything for a uniform row, and for mass = 1. Not monotone in p, and not idempotent.
  Reference: Meister et al., Locally Typical Sampling, as in its code.

  >>> (typical_logits(jnp.log(jnp.array([.5, .25, .125, .125])), mass=.2) > -jnp.inf).tolist()      # the argmax is dropped
  [False, True, False, False]
  """
  _, logp_xV, p_xV = _fixed(logits_xV)
  distance_xV = jnp.abs(-logp_xV - categorical.entropy(logp_xV)[..., None])  # infinite for impossible tokens
  key_xV = thresholds.ordered(distance_xV)
  wanted = jnp.where(jnp.asarray(mass) >= 1, jnp.inf, mass - TOLERANCE)
  last_x1 = thresholds.first_key(key_xV, lambda t_x1: _total(p_xV, key_xV <= t_x1) >= wanted)
  return thresholds.only(key_xV <= last_x1, logits_xV)


def top_h_logits(logits_xV: jax.Array, *, alpha: float = 0.4, mode: str = 'renorm') -> jax.Array:
  """Bounded entropy: the longest prefix S in descending order whose entropy is at most alpha H(p), and never nothing.

  'renorm', the paper's: H(p_S / p(S)) = C / G + ln G with G = sum_S p and C = -sum_S p ln p. 'partial', that of the released code: C.

  Args:
    logits_xV: [..., V], already over the temperature; may hold -inf.
    alpha: in (0, 1].
    mode: 'renorm' or 'partial'.

  Returns:
    float32 [..., V], -inf outside of the set.

  Gradient: 1 to the logits kept.
  Limits: everything for alpha = 1, the most probable token for alpha towards 0; a uniform row keeps floor(V^alpha) tokens ('renorm') or
    floor(alpha V) ('partial'). Not idempotent. The set grows with alpha.
  Reference: Top-H Decoding: Adapting the Creativity and Coherence with Bounded Entropy in Text Generation, Algorithm 1.
  Differs: the released code and that of Hugging Face are 'partial' over the 100 most probable tokens: put top_k before it for such a cap.

  >>> p4 = jnp.log(jnp.array([.5, .25, .125, .125]))      # prefixes have 0, .918, 1.379 and 1.75 bits; alpha H is .9625
  >>> [int((top_h_logits(p4, alpha=.55, mode=mode) > -jnp.inf).sum()) for mode in ('renorm', 'partial')]
  [2, 1]
  """
  key_xV, logp_xV, p_xV = _fixed(logits_xV)
  entropy_x1 = categorical.entropy(logp_xV)[..., None]
  # Rounding of a sum over the vocabulary grows with the entropy.
  budget_x1 = alpha * entropy_x1 + 2 * TOLERANCE * (1 + entropy_x1)
  surprise_xV = -masked.zero(p_xV * masked.zero(logp_xV, p_xV > 0), p_xV > 0)

  def fits(mass_x1: jax.Array, sum_x1: jax.Array) -> jax.Array:
    if mode == 'partial':
      return sum_x1 <= budget_x1
    mass_x1 = jnp.where(mass_x1 > 0, mass_x1, 1.0)
    return sum_x1 / mass_x1 + jnp.log(mass_x1) <= budget_x1

  last_x1, ties_x1 = _longest_prefix(key_xV, (p_xV, surprise_xV), fits)
  alone_x1 = ~jnp.any(key_xV > last_x1, axis=-1, keepdims=True)
  ties_x1 = jnp.where(alone_x1, jnp.maximum(ties_x1, 1), ties_x1)
  return thresholds.only(thresholds.with_first_ties(key_xV, last_x1, ties_x1), logits_xV)


def truncation_divergence(mass_x: jax.Array) -> jax.Array:
  """Jensen-Shannon divergence of p from its truncation to a set of mass G, renormalised: it depends on G alone.

  JSD = (G ln(2G / (1 + G)) + (1 - G) ln 2 + ln(2 / (1 + G))) / 2, which falls from ln 2 at G = 0 to 0 at G = 1.

  Args:
    mass_x: any shape, in [0, 1], probability of the tokens kept.

  Returns:
    float32, nats, in [0, ln 2].

  Gradient: (ln G - ln(1 + G)) / 2, finite for G > 0.
  Reference: Top-H Decoding, section 4: among sets of bounded entropy the nearest to p is that of the largest mass.

  >>> [f'{x:.6f}' for x in truncation_divergence(jnp.array([.5, .75])).tolist()]
  ['0.215762', '0.095603']
  """
  G = mass_x.astype(jnp.float32)
  safe = jnp.where(G > 0, G, 1.0)
  log_ratio = jnp.where(G > 0, G * jnp.log(2 * safe / (1 + safe)), 0.0)
  return 0.5 * (log_ratio + (1 - G) * jnp.log(2.0) + jnp.log(2 / (1 + G)))


def _sampler(name: str, function: Callable[..., jax.Array], **given: Any) -> Sampler:
  transform.check_ranges(name, RANGES[name], **given)
  return stateless(functools.partial(function, **given))


def top_k(*, k: int = 50) -> Sampler:
  """`top_k_logits` as a sampler."""
  if not isinstance(k, int):
    raise UserError(f'top_k: k={k!r} is not a whole number; give how many tokens are kept, at least 1.')
  return _sampler('top_k', top_k_logits, k=k)


def top_p(*, p: float = 0.9) -> Sampler:
  """`top_p_logits` as a sampler."""
  return _sampler('top_p', top_p_logits, p=p)


def min_p(*, m: float = 0.1) -> Sampler:
  """`min_p_logits` as a sampler."""
  return _sampler('min_p', min_p_logits, m=m)


def typical(*, mass: float = 0.9) -> Sampler:
  """`typical_logits` as a sampler."""
  return _sampler('typical', typical_logits, mass=mass)


def top_h(*, alpha: float = 0.4, mode: str = 'renorm') -> Sampler:
  """`top_h_logits` as a sampler."""
  return _sampler('top_h', top_h_logits, alpha=alpha, mode=mode)


def epsilon(*, epsilon: float = 3e-4) -> Sampler:
  """`epsilon_logits` as a sampler."""
  return _sampler('epsilon', epsilon_logits, epsilon=epsilon)


def eta(*, epsilon: float = 3e-4) -> Sampler:
  """`eta_logits` as a sampler."""
  return _sampler('eta', eta_logits, epsilon=epsilon)
