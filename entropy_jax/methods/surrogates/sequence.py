"""Surrogates whose importance ratio belongs to the sequence: the geometric mean of its tokens' ratios, so that one unlikely token
neither blows up nor silences a long answer. Every token carries its sequence's objective, to be averaged over the sequence.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.methods.surrogates.policy_gradient import clip_ratio
from entropy_jax.ops import masked, ratios
from entropy_jax.transform import Note
from entropy_jax.types import Metrics, Planned, RunFacts

MAX_LOG_SEQUENCE_RATIO = 10.0  # verl bounds the token form of the sequence ratio at exp(10)


def gspo_objective(
  log_ratio_BxT: jax.Array, advantage_BxT: jax.Array, mask_BxT: jax.Array, *, low: float = 3e-4, high: float = 4e-4
) -> jax.Array:
  """GSPO, sequence form: min(s A, clip(s, 1 - low, 1 + high) A), s = exp((1 / n) sum_t (ln pi - ln pi_old)), on every token.

  Args:
    log_ratio_BxT: float32 [B, T], ln pi - ln pi_old.
    advantage_BxT: float32 [B, T], one value a sequence.
    mask_BxT: bool [B, T].
    low: how far s may fall where A < 0.
    high: how far s may rise where A > 0.

  Returns:
    float32 [B, T], maximised; the same at all tokens of a sequence, so sequence_mean_token_mean averages sequences.

  Gradient: s A / n with respect to each log-probability after that average; exactly 0 in a clipped sequence.
  Limits: the gradient of reinforce under sequence_mean_token_mean where pi = pi_old. Under sequence_mean_token_sum it is LUSPO
    (Length-Unbiased Sequence Policy Optimization, arXiv 2602.05261): the objective of a sequence times its length.
  Reference: Zheng et al., Group Sequence Policy Optimization, arXiv 2507.18071.

  >>> x = gspo_objective(jnp.array([[.1, -.3, .2]]), jnp.ones((1, 3)), jnp.ones((1, 3), bool))
  >>> [round(v, 6) for v in x[0].tolist()]     # the mean log-ratio is 0
  [1.0, 1.0, 1.0]
  """
  ratio_Bx1 = ratios.importance(ratios.sequence_mean(log_ratio_BxT, mask_BxT))[:, None]
  held_BxT, clipped_BxT = clip_ratio(ratio_Bx1, advantage_BxT, low, high)
  return jnp.where(clipped_BxT, held_BxT, ratio_Bx1 * advantage_BxT)


def _gspo_plan(
  log_ratio_BxT: jax.Array, advantage_BxT: jax.Array, mask_BxT: jax.Array, *, low: float, high: float
) -> tuple[Planned, Metrics]:
  ratio_Bx1 = ratios.importance(ratios.sequence_mean(log_ratio_BxT, mask_BxT))[:, None]
  _, clipped_BxT = clip_ratio(ratio_Bx1, advantage_BxT, low, high)
  return {}, {'clip_fraction': masked.mean(clipped_BxT.astype(jnp.float32), mask_BxT)}


def gspo_token_objective(
  logp_BxT: jax.Array,
  log_ratio_BxT: jax.Array,
  advantage_BxT: jax.Array,
  mask_BxT: jax.Array,
  *,
  low: float = 3e-4,
  high: float = 4e-4,
) -> jax.Array:
  """GSPO, token form: PPO's clip with the sequence's ratio as value and the token's own log-probability as gradient.

    ln s_t = lp - sg(lp) + sg((1 / n) sum_t log-ratio), at most 10;   min(s_t A_t, clip(s_t, 1 - low, 1 + high) A_t)

  Args:
    logp_BxT: float32 [B, T], log-probability under the current policy.
    log_ratio_BxT: float32 [B, T], ln pi - ln pi_old; only its value is used.
    advantage_BxT: float32 [B, T], may differ between the tokens of a sequence.
    mask_BxT: bool [B, T].
    low, high: as in gspo.

  Returns:
    float32 [B, T], maximised.

  Gradient: s A_t with respect to the token's own logp; exactly 0 where clipped.
  Limits: value and gradient of gspo, under sequence_mean_token_mean, when A is constant in the sequence.
  Reference: Zheng et al., arXiv 2507.18071.
  """
  mean_B = ratios.sequence_mean(log_ratio_BxT, mask_BxT)
  log_s_BxT = ratios.sequence_value_token_gradient(mean_B, logp_BxT)
  ratio_BxT = jnp.exp(jnp.minimum(log_s_BxT, MAX_LOG_SEQUENCE_RATIO))
  held_BxT, clipped_BxT = clip_ratio(ratio_BxT, advantage_BxT, low, high)
  return jnp.where(clipped_BxT, held_BxT, ratio_BxT * advantage_BxT)


def _one_sided(log_ratio_BxT: jax.Array, advantage_BxT: jax.Array, low: float, high: float) -> tuple[jax.Array, jax.Array]:
  """(log-ratio bounded on the side that the advantage's sign would push it to, bool: where it was bounded)."""
  sign_BxT = jnp.sign(advantage_BxT)
  held_BxT = jnp.clip(log_ratio_BxT, -low, high)
  clipped_BxT = sign_BxT * held_BxT < sign_BxT * log_ratio_BxT
  kept_BxT = jnp.where(clipped_BxT, held_BxT, log_ratio_BxT)
  return jnp.where(sign_BxT == 0.0, 0.0, kept_BxT), clipped_BxT


def gmpo_objective(
  log_ratio_BxT: jax.Array, advantage_BxT: jax.Array, mask_BxT: jax.Array, *, low: float = 0.4, high: float = 0.4
) -> jax.Array:
  """GMPO: the geometric mean of token ratios that are clipped one by one, in log space, before the mean.

    c_t = sign(A) min(sign(A) d_t, sign(A) clip(d_t, -low, high)), d = ln pi - ln pi_old;   mean_t(A) exp(mean_t c_t), on every token

  Args:
    log_ratio_BxT: float32 [B, T], d.
    advantage_BxT: float32 [B, T], usually one value a sequence.
    mask_BxT: bool [B, T].
    low, high: bounds of the log-ratio (0.4 is a ratio of 1.49).

  Returns:
    float32 [B, T], maximised; the same at all tokens of a sequence, so sequence_mean_token_mean averages sequences.

  Gradient: mean(A) ratio / n at tokens that are not clipped, after that average, and exactly 0 at clipped ones.
  Limits: 0, in value and gradient, where A = 0; the gradient of reinforce for sequences of equal length where pi = pi_old.
  Reference: Zhao et al., Geometric-Mean Policy Optimization, arXiv 2507.20673.
  Differs: verl averages over all rows, empty ones included, which makes the loss smaller; here empty sequences do not count.

  >>> d, A = jnp.array([[.6, -.6, .1]]), jnp.ones((1, 3))
  >>> round(float(gmpo_objective(d, A, jnp.ones((1, 3), bool))[0, 0]), 6)     # exp((.4 - .6 + .1) / 3)
  0.967216
  """
  bounded_BxT, _ = _one_sided(log_ratio_BxT, advantage_BxT, low, high)
  ratio_B = ratios.importance(masked.mean(bounded_BxT, mask_BxT, axis=1))
  objective_B = masked.mean(advantage_BxT, mask_BxT, axis=1) * ratio_B
  return jnp.broadcast_to(objective_B[:, None], mask_BxT.shape)


def _gmpo_plan(
  log_ratio_BxT: jax.Array, advantage_BxT: jax.Array, mask_BxT: jax.Array, *, low: float, high: float
) -> tuple[Planned, Metrics]:
  _, clipped_BxT = _one_sided(log_ratio_BxT, advantage_BxT, low, high)
  return {}, {'clip_fraction': masked.mean(clipped_BxT.astype(jnp.float32), mask_BxT)}


def _note_aggregate(name: str, *allowed: str) -> Note:
  def note(facts: RunFacts, *, hyper: Mapping[str, Any]) -> str | None:
    if facts.aggregate in allowed:
      return None
    return (
      f'{name}: the ratio belongs to the sequence, and aggregate={facts.aggregate!r} weighs sequences by their length, which is another '
      f'method: set aggregate to {" or ".join(repr(a) for a in allowed)}.'
    )

  return note


def _notes(name: str, *allowed: str) -> tuple[Note, Note]:
  on_policy = transform.note_on_policy(name, 'its gradient is that of reinforce', 'make several updates per rollout, or use reinforce')
  return _note_aggregate(name, *allowed), on_policy


gspo = transform.surrogate(
  'gspo',
  gspo_objective,
  plan=_gspo_plan,
  low='[0, 1]',
  high='[0, inf]',
  notes=_notes('gspo', 'sequence_mean_token_mean', 'sequence_mean_token_sum'),
)
gspo_token = transform.surrogate(
  'gspo_token',
  gspo_token_objective,
  plan=_gspo_plan,
  low='[0, 1]',
  high='[0, inf]',
  notes=_notes('gspo_token', 'sequence_mean_token_mean', 'sequence_mean_token_sum'),
)
gmpo = transform.surrogate(
  'gmpo',
  gmpo_objective,
  plan=_gmpo_plan,
  low='[0, inf]',
  high='[0, inf]',
  notes=_notes('gmpo', 'sequence_mean_token_mean'),
)
