"""Statistics of the whole vocabulary row, which a method asks the scoring pass for as a `VocabStat` and reads by name.

Every function maps logits of any float type over the temperature, [..., V], to float32 [...]. Value and gradient are finite at -inf
logits (impossible tokens). `NAME_stat(...)` is its VocabStat: called NAME, or NAME@parameters, and the same function object for the
same parameters, so that two methods of one objective may ask for the same statistic. Which tokens a statistic keeps is decided
without gradient, and ties are kept in the order of the vocabulary.
"""

import fractions
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from entropy_jax.ops import categorical, masked, thresholds
from entropy_jax.types import VocabStat


@functools.cache
def _bound(function: Callable[..., jax.Array], *parameters: tuple[str, Any]) -> Callable[[jax.Array], jax.Array]:
  return functools.partial(function, **dict(parameters))


def stat(function: Callable[..., jax.Array], of: str = 'current', **parameters: Any) -> VocabStat:
  """The VocabStat of a function (logits_xV, *, parameters): equal parameters give the same name and the same function object.

  >>> stat(nucleus_entropy, mass=.8).name, stat(nucleus_entropy, mass=.8, crossing=False).name
  ('nucleus_entropy@0.8', 'nucleus_entropy@0.8,crossing=False')
  >>> stat(nucleus_entropy, mass=.8, crossing=True).fn is stat(nucleus_entropy, 'behaviour', mass=.8).fn
  True
  """
  defaults = function.__kwdefaults__ or {}
  required = {key: value for key, value in parameters.items() if key not in defaults}
  changed = {key: value for key, value in parameters.items() if key in defaults and value != defaults[key]}
  values = [str(value) for value in required.values()] + [f'{key}={value}' for key, value in changed.items()]
  name = '@'.join([function.__name__, ','.join(values)]) if values else function.__name__
  bound = _bound(function, *sorted({**required, **changed}.items())) if values else function
  return VocabStat(name, bound, of)


def nucleus_entropy(logits_xV: jax.Array, *, mass: float, crossing: bool = True) -> jax.Array:
  """Entropy of the renormalised nucleus: the smallest set of most probable tokens whose probabilities add up to at least `mass`.

  Args:
    logits_xV: [..., V], may hold -inf.
    mass: in (0, 1].
    crossing: whether the token with which the sum reaches the mass belongs to the set. Without it the set may be empty: entropy 0.

  Returns:
    float32 [...], nats, in [0, ln V].

  Gradient: that of the entropy of the nucleus, -q (ln q + H) with q renormalised; exactly 0 towards all other logits.
  Limits: mass=1 is the entropy; 0 where one token has the mass alone. Jumps where a token enters the set.
  Reference: Jiang et al., Rethinking Entropy Regularization in Large Reasoning Models (SIREN).
  Differs: the released code leaves the crossing token out.

  >>> logits = jnp.log(jnp.array([.5, .25, .15, .10]))
  >>> [round(float(nucleus_entropy(logits, mass=.8, crossing=c)), 4) for c in (True, False)]
  [0.981, 0.6365]
  """
  if mass >= 1:
    return categorical.entropy(logits_xV)
  logp_xV = jax.lax.stop_gradient(categorical.log_probs(logits_xV))
  key_xV, p_xV = thresholds.ordered(logp_xV), jnp.exp(logp_xV)

  def total(where_xV: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(where_xV, p_xV, 0.0), axis=-1, keepdims=True)

  last_x1 = thresholds.rank_threshold(key_xV, lambda above_xV: total(above_xV) < mass)  # the key of the crossing token
  crossing_x1 = jnp.max(jnp.where(key_xV == last_x1, p_xV, 0.0), axis=-1, keepdims=True)
  # Of the tokens as probable as it, so many are needed to reach the mass; all of them where rounding keeps the row below it.
  room_x1 = jnp.ceil((mass - total(key_xV > last_x1)) / jnp.maximum(crossing_x1, jnp.finfo(jnp.float32).tiny))
  room_x1 = jnp.minimum(room_x1, float(logits_xV.shape[-1])).astype(jnp.int32) - (0 if crossing else 1)
  keep_xV = thresholds.with_first_ties(key_xV, last_x1, room_x1)
  return jnp.where(jnp.any(keep_xV, axis=-1), categorical.entropy(thresholds.only(keep_xV, logits_xV)), 0.0)


def nucleus_entropy_stat(mass: float, *, crossing: bool = True, of: str = 'current') -> VocabStat:
  return stat(nucleus_entropy, of, mass=float(mass), crossing=crossing)


def clamped_entropy(logits_xV: jax.Array, *, fraction: float) -> jax.Array:
  """Entropy of the renormalised distribution after the floor(fraction V) least probable tokens are dropped.

  Args:
    logits_xV: [..., V], may hold -inf; impossible tokens count in V and are dropped first.
    fraction: in [0, 1).

  Returns:
    float32 [...], nats, in [0, ln(V - floor(fraction V))].

  Gradient: that of the entropy of the kept tokens; exactly 0 towards the dropped logits.
  Limits: the entropy where fraction < 1 / V.
  Reference: Shen, On Entropy Control in LLM-RL Algorithms (AEnt).

  >>> logits = jnp.log(jnp.array([.4, .3, .2, .1]))
  >>> [round(float(clamped_entropy(logits, fraction=c)), 4) for c in (0., .25, .5)]
  [1.2799, 1.0609, 0.6829]
  """
  V = logits_xV.shape[-1]
  dropped = math.floor(fractions.Fraction(fraction).limit_denominator(10**6) * V)
  if dropped == 0:
    return categorical.entropy(logits_xV)
  key_xV, kept = thresholds.ordered(jax.lax.stop_gradient(logits_xV.astype(jnp.float32))), V - dropped
  count = lambda where_xV: jnp.sum(where_xV, axis=-1, keepdims=True, dtype=jnp.int32)
  last_x1 = thresholds.rank_threshold(key_xV, lambda above_xV: count(above_xV) < kept)
  keep_xV = thresholds.with_first_ties(key_xV, last_x1, kept - count(key_xV > last_x1))
  return categorical.entropy(thresholds.only(keep_xV, logits_xV))


def clamped_entropy_stat(fraction: float, *, of: str = 'current') -> VocabStat:
  return stat(clamped_entropy, of, fraction=float(fraction))


def _above(logp_xV: jax.Array, threshold: float, relative: bool) -> jax.Array:
  """The tokens of probability above the threshold (times the largest probability)."""
  floor = math.log(threshold) if threshold > 0 else -math.inf
  return logp_xV > (floor + jnp.max(logp_xV, axis=-1, keepdims=True) if relative else floor)


def largest_log_prob(logits_xV: jax.Array) -> jax.Array:
  """ln max_v p_v.

  Args:
    logits_xV: [..., V], may hold -inf.

  Returns:
    float32 [...], in [-ln V, 0].

  Gradient: one-hot(most probable token) - p, shared equally where several tie.

  >>> round(float(largest_log_prob(jnp.log(jnp.array([.3, .5, .2])))), 6)     # ln .5
  -0.693147
  """
  return jnp.max(categorical.log_probs(logits_xV), axis=-1)


def largest_log_prob_stat(*, of: str = 'current') -> VocabStat:
  return stat(largest_log_prob, of)


def proxy_kl(logits_xV: jax.Array, *, threshold: float, relative: bool = True) -> jax.Array:
  """Forward KL(q || p) from the row's own filtered and renormalised copy, q = sg(p 1[kept] / mass): minus the log of the kept mass.

  Args:
    logits_xV: [..., V], may hold -inf.
    threshold: in [0, 1).
    relative: min-p, which keeps the tokens with p > threshold max p; False for p > threshold, which may keep nothing.

  Returns:
    float32 [...], -ln mass, at least 0; 0 too where nothing is kept.

  Gradient: p - q towards the logits, which -ln mass and the KL from a constant q share: a descent step moves the filtered mass to the
    kept tokens.
  Limits: 0, with gradient 0, with threshold 0.
  Reference: Huang et al., Low-probability Tokens Sustain Exploration in Reinforcement Learning with Verifiable Reward (Lp-Reg).

  >>> round(float(proxy_kl(jnp.log(jnp.array([.6, .25, .1, .04, .006, .004])), threshold=.02)), 6)      # -ln .99
  0.01005
  """
  logp_xV = categorical.log_probs(logits_xV)
  keep_xV = _above(jax.lax.stop_gradient(logp_xV), threshold, relative)
  mass_x = jnp.sum(jnp.where(keep_xV, jnp.exp(logp_xV), 0.0), axis=-1)
  return jnp.maximum(-jnp.log(jnp.where(jnp.any(keep_xV, axis=-1), mass_x, 1.0)), 0.0)


def proxy_kl_stat(threshold: float, *, relative: bool = True, of: str = 'current') -> VocabStat:
  return stat(proxy_kl, of, threshold=float(threshold), relative=relative)


def collision_probability(logits_xV: jax.Array) -> jax.Array:
  """sum_v p_v^2, the probability that two samples agree: 1 / V for a uniform row, 1 for a certain one.

  Args:
    logits_xV: [..., V], may hold -inf.

  Returns:
    float32 [...], in [1 / V, 1].

  Gradient: 2 p (p - sum_v p_v^2) towards the logits.

  >>> round(float(collision_probability(jnp.log(jnp.array([.5, .3, .2])))), 6)      # .25 + .09 + .04
  0.38
  """
  return jnp.sum(jnp.exp(2.0 * categorical.log_probs(logits_xV)), axis=-1)


def collision_probability_stat(*, of: str = 'current') -> VocabStat:
  return stat(collision_probability, of)


def self_confidence(logits_xV: jax.Array) -> jax.Array:
  """logsumexp(z) - mean z = KL(uniform || p) + ln V = minus the mean log-probability over the vocabulary.

  Args:
    logits_xV: [..., V], may hold -inf.

  Returns:
    float32 [...], at least ln V. Impossible tokens are left out of the mean and of V: with them it would be infinite.

  Gradient: p - 1 / V towards the possible logits.
  Limits: ln V for a uniform row.

  >>> round(float(self_confidence(jnp.array([2., 0., -1.]))), 6)
  1.836513
  """
  logp_xV = categorical.log_probs(logits_xV)
  return -_mean_possible(logp_xV)


def _mean_possible(logp_xV: jax.Array) -> jax.Array:
  possible_xV = logp_xV > -jnp.inf
  return jnp.sum(masked.zero(logp_xV, possible_xV), axis=-1) / jnp.sum(possible_xV, axis=-1, dtype=jnp.float32)


def self_confidence_stat(*, of: str = 'current') -> VocabStat:
  return stat(self_confidence, of)


def log_normalizer(logits_xV: jax.Array) -> jax.Array:
  """logsumexp(z): what a token's log-probability lacks to be its logit, z_v = ln p_v + logsumexp(z).

  Args:
    logits_xV: [..., V], may hold -inf.

  Returns:
    float32 [...]; it changes when a constant is added to the logits, which no probability does. 0 where every logit is -inf.

  Gradient: p towards the logits.

  >>> round(float(log_normalizer(jnp.array([0., 0., -jnp.inf]))), 6)      # ln 2
  0.693147
  """
  logits_xV = logits_xV.astype(jnp.float32)
  possible_x = jnp.any(logits_xV > -jnp.inf, axis=-1)
  return jnp.where(possible_x, jax.nn.logsumexp(jnp.where(possible_x[..., None], logits_xV, 0.0), axis=-1), 0.0)


def log_normalizer_stat(*, of: str = 'current') -> VocabStat:
  return stat(log_normalizer, of)


def top_mean_probability(logits_xV: jax.Array, *, num: int) -> jax.Array:
  """Mean of the `num` largest probabilities (of all of them in a smaller vocabulary).

  Args:
    logits_xV: [..., V], may hold -inf.
    num: at least 1.

  Returns:
    float32 [...], in (0, 1].

  Gradient: (p 1[among the largest] - p sum_largest p) / num towards the logits.
  Limits: 1 / V for a uniform row, 1 / num for a certain one.

  >>> round(float(top_mean_probability(jnp.log(jnp.array([.5, .1, .4])), num=2)), 6)      # (.5 + .4) / 2
  0.45
  """
  return jnp.mean(jnp.exp(_top(logits_xV, num)), axis=-1)


def top_mean_probability_stat(num: int, *, of: str = 'current') -> VocabStat:
  return stat(top_mean_probability, of, num=num)


def _top(logits_xV: jax.Array, num: int) -> jax.Array:
  return jax.lax.top_k(categorical.log_probs(logits_xV), min(num, logits_xV.shape[-1]))[0]


def deepconf_confidence(logits_xV: jax.Array, *, num: int) -> jax.Array:
  """Minus the mean log-probability of the `num` most probable tokens: the more peaked the row, the larger.

  Args:
    logits_xV: [..., V], may hold -inf; impossible tokens are left out of the mean.
    num: at least 1.

  Returns:
    float32 [...], at least ln(num) where so many tokens are possible.

  Gradient: p - 1[among the largest] / num towards the logits.
  Limits: ln V for a uniform row.
  Reference: Fu et al., Deep Think with Confidence, arXiv 2508.15260.

  >>> round(float(deepconf_confidence(jnp.zeros(5), num=5)), 6)      # ln 5
  1.609438
  """
  return -_mean_possible(_top(logits_xV, num))


def deepconf_confidence_stat(num: int, *, of: str = 'current') -> VocabStat:
  return stat(deepconf_confidence, of, num=num)
