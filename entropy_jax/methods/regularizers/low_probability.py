"""Lp-Reg: improbable tokens that a negative advantage would push further down are held by a proxy, the policy without its noise tail."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.methods.regularizers.kl import kl_estimate
from entropy_jax.ops import masked, selection, vocabulary
from entropy_jax.types import Metrics, Planned, RunFacts, VocabStat

FILTERS = 'min_p | fixed'


def _passes(logp_BxT: jax.Array, largest_BxT: jax.Array, threshold: float, filter: str) -> jax.Array:
  """Whether the proxy gives the sampled token any probability."""
  floor = math.log(threshold) if threshold > 0 else -math.inf
  return logp_BxT > (floor + largest_BxT if filter == 'min_p' else floor)


def lp_reg_stats(*, threshold: float = 0.02, filter: str = 'min_p') -> tuple[VocabStat, ...]:
  """What the paper's form reads of the current policy's row."""
  return vocabulary.proxy_kl_stat(threshold, relative=filter == 'min_p'), vocabulary.largest_log_prob_stat()


def lp_reg_plan(
  logp_BxT: jax.Array,
  largest_log_prob_BxT: jax.Array,
  proxy_kl_BxT: jax.Array,
  advantage_BxT: jax.Array,
  mask_BxT: jax.Array,
  *,
  fraction: float = 0.01,
  threshold: float = 0.02,
  filter: str = 'min_p',
) -> tuple[Planned, Metrics]:
  """Selects the tokens to hold: less probable than the fraction's quantile of the batch, of negative advantage, and in the proxy.

  Args:
    logp_BxT, largest_log_prob_BxT, proxy_kl_BxT, advantage_BxT: float32 [B, T], of the whole batch.
    mask_BxT: bool [B, T].
    fraction, threshold, filter: as in `lp_reg_penalty`.

  Returns:
    ({'chosen_BxT': bool [B, T]}, metrics: selected_fraction, quantile (a probability), kl of the chosen tokens).

  Gradient: none.
  """
  bound = selection.quantile(logp_BxT, mask_BxT, fraction)
  low_BxT = selection.coarse(logp_BxT) < selection.coarse(bound)
  chosen_BxT = mask_BxT & low_BxT & (advantage_BxT < 0) & _passes(logp_BxT, largest_log_prob_BxT, threshold, filter)
  return {'chosen_BxT': chosen_BxT}, {
    'selected_fraction': masked.mean(jnp.where(chosen_BxT, 1.0, 0.0), mask_BxT),
    'quantile': jnp.exp(bound),
    'kl': masked.mean(proxy_kl_BxT, chosen_BxT),
  }


def lp_reg_penalty(proxy_kl_BxT: jax.Array, chosen_BxT: jax.Array, *, coef: float = 1.0) -> jax.Array:
  """coef KL(proxy || pi) at the improbable tokens of negative advantage that the proxy keeps, 0 elsewhere.

    proxy = sg(pi) where pi > threshold max pi ('min_p') or pi > threshold ('fixed'), renormalised, else 0;
    held: pi(token) < the fraction-quantile of the sampled tokens' probabilities in the batch, A < 0 and proxy(token) > 0

  Args:
    proxy_kl_BxT: float32 [B, T], the full forward KL of the current policy.
    chosen_BxT: bool [B, T], from `lp_reg_plan`.
    coef: weight of the penalty, at least 0.
    fraction: of the batch's valid tokens, in (0, 1]; the paper takes 0.01 for its 14B model and 0.005 for 32B.
    threshold: of the filter, in [0, 1).
    filter: 'min_p', relative to the most probable token, or 'fixed'.

  Returns:
    float32 [B, T], minimised.

  Gradient: coef (pi - proxy) towards the logits of a held position: weak, of the size of the mass that the filter drops.
  Limits: threshold=0 makes the proxy the policy: no penalty. Without a negative advantage, the surrogate alone.
  Reference: Huang et al., Low-probability Tokens Sustain Exploration in Reinforcement Learning with Verifiable Reward (Lp-Reg), Eq. 5-6.
  Differs: the paper's proxy is that of the policy which made the data. On-policy that is the current one, as here. With several updates
    per rollout it is the behaviour's, whose row a statistic of one token cannot hold: here the proxy then moves with the policy, and a
    token that has fallen below the filter since the rollout is let go. `lp_reg_released` holds tokens at the behaviour's proxy. The
    paper's surrogate, clip(r, 0, 10) A, is ppo_clip(low=1, high=9, dual_clip=10).
  """
  return jnp.where(chosen_BxT, coef * proxy_kl_BxT, 0.0)


def lp_reg_released_stats(*, threshold: float = 0.02, filter: str = 'min_p') -> tuple[VocabStat, ...]:
  """What the released form reads of the behaviour policy's row."""
  kl = vocabulary.proxy_kl_stat(threshold, relative=filter == 'min_p', of='behaviour')
  return kl, vocabulary.largest_log_prob_stat(of='behaviour')


def lp_reg_released_plan(
  logp_BxT: jax.Array,
  old_logp_BxT: jax.Array,
  old_largest_log_prob_BxT: jax.Array,
  old_proxy_kl_BxT: jax.Array,
  advantage_BxT: jax.Array,
  mask_BxT: jax.Array,
  sequence_B: jax.Array | None,
  *,
  fraction: float = 0.01,
  positive_fraction: float = 0.0,
  threshold: float = 0.02,
  filter: str = 'min_p',
) -> tuple[Planned, Metrics]:
  """Selects the least probable tokens of negative advantage, and of these the ones that have fallen below the behaviour's proxy.

  Args:
    logp_BxT, old_logp_BxT, old_largest_log_prob_BxT, old_proxy_kl_BxT, advantage_BxT: float32 [B, T], of the whole batch.
    mask_BxT: bool [B, T].
    sequence_B: int [B] or None, identity of the rows, by which ties are broken.
    fraction, positive_fraction, threshold, filter: as in `lp_reg_released_penalty`.

  Returns:
    ({'chosen_BxT': bool, 'proxy_logp_BxT': float32 [B, T]}, metrics: selected_fraction, penalty (mean over the chosen tokens)).

  Gradient: none.
  """
  proxy_logp_BxT = old_logp_BxT + old_proxy_kl_BxT  # the KL is -ln(mass that the filter keeps)
  kept_BxT = _passes(old_logp_BxT, old_largest_log_prob_BxT, threshold, filter) & (logp_BxT < proxy_logp_BxT)

  def lowest(eligible_BxT: jax.Array, fraction: float) -> jax.Array:
    if fraction == 0:
      return jnp.zeros(mask_BxT.shape, bool)
    num = selection.fraction_of(jnp.sum(eligible_BxT, dtype=jnp.int32), fraction)
    return selection.top(-logp_BxT, eligible_BxT, num, sequence_B) & (num > 1)

  chosen_BxT = lowest(mask_BxT & (advantage_BxT < 0), fraction) | lowest(mask_BxT & (advantage_BxT > 0), positive_fraction)
  chosen_BxT &= kept_BxT
  value_BxT = lp_reg_released_penalty(logp_BxT, proxy_logp_BxT, chosen_BxT)
  return {'chosen_BxT': chosen_BxT, 'proxy_logp_BxT': proxy_logp_BxT}, {
    'selected_fraction': masked.mean(jnp.where(chosen_BxT, 1.0, 0.0), mask_BxT),
    'penalty': masked.mean(value_BxT, chosen_BxT),
  }


def lp_reg_released_penalty(logp_BxT: jax.Array, proxy_logp_BxT: jax.Array, chosen_BxT: jax.Array, *, coef: float = 1.0) -> jax.Array:
  """coef k3(ln pi, t) = coef (e^(t - lp) - (t - lp) - 1) at the chosen tokens, t = ln proxy(token) under the behaviour policy, 0 elsewhere.

    candidates: the K = max(1, floor(fraction n)) least probable of the n tokens of negative advantage, none where K = 1;
    chosen: candidates that pass the filter of the behaviour's row and have lp < t = lp_old - ln(mass that the filter keeps)

  Args:
    logp_BxT: float32 [B, T], current policy.
    proxy_logp_BxT: float32 [B, T], t.
    chosen_BxT: bool [B, T], from `lp_reg_released_plan`.
    coef: weight of the penalty, at least 0.
    fraction: of the tokens of negative advantage, in (0, 1].
    positive_fraction: the same, mirrored, for the tokens of positive advantage; 0, as in the released runs, leaves them alone.
    threshold: of the filter, in [0, 1).
    filter: 'min_p', relative to the most probable token, or 'fixed'.

  Returns:
    float32 [B, T], minimised, at most 10 coef.

  Gradient: coef (1 - e^(t - lp)) at a chosen token: it rises; 0 beyond the bound of the value, a token 13 times less probable than t.
  Limits: where pi = pi_old, coef (1 - 1 / mass) at every chosen token; threshold=0 then holds none.
  Reference: Huang et al., Low-probability Tokens Sustain Exploration in Reinforcement Learning with Verifiable Reward (Lp-Reg), the code.
  Differs: from the paper (`lp_reg`) by the estimate from one token instead of the KL of the row, by the fraction of negative tokens
    instead of all, and by the proxy of the behaviour policy. The released code keeps a token on the filter's bound, the paper and this
    do not. Its base is ppo_clip(low=1, high=9), which never binds for A < 0: that the chosen tokens bypass the clip changes nothing.
  """
  return jnp.where(chosen_BxT, coef * kl_estimate(logp_BxT, jnp.where(chosen_BxT, proxy_logp_BxT, logp_BxT), estimator='k3'), 0.0)


def _note_two_tokens(facts: RunFacts, *, hyper: Mapping[str, Any]) -> str | None:
  if hyper['fraction'] * facts.num_tokens >= 2:
    return None
  return (
    f'lp_reg_released: fraction={hyper["fraction"]:g} of at most {facts.num_tokens} tokens is less than two tokens, and with one '
    f'candidate the released code does nothing: raise fraction to at least 2/{facts.num_tokens}, or make the batch larger.'
  )


lp_reg = transform.regularizer(
  'lp_reg',
  lp_reg_penalty,
  plan=lp_reg_plan,
  stats=lp_reg_stats,
  notes=(transform.note_fraction('lp_reg', 'fraction'),),
  coef='[0, inf)',
  fraction='(0, 1]',
  threshold='[0, 1)',
  filter=FILTERS,
)
lp_reg_released = transform.regularizer(
  'lp_reg_released',
  lp_reg_released_penalty,
  plan=lp_reg_released_plan,
  stats=lp_reg_released_stats,
  notes=(_note_two_tokens,),
  coef='[0, inf)',
  fraction='(0, 1]',
  positive_fraction='[0, 1]',
  threshold='[0, 1)',
  filter=FILTERS,
)
