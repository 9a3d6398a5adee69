"""Advantages conditioned on a second quantity: the group is split into halves by entropy or by length, and a response is compared with
the other half (which half is better?) or with its own (who is good although its half is not?).
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import groups, masked, ranks, selection
from entropy_jax.types import Metrics, Planned, PyTree, Ratio, RunFacts, UserError


def _half_mean(return_B: jax.Array, member_B: jax.Array, group_B: jax.Array) -> jax.Array:
  """Mean over those of the group who are members, exactly theirs where all are equal, 0 where there are none."""
  count_B = groups.sum(jnp.where(member_B, 1.0, 0.0), group_B)
  mean_B = Ratio(groups.sum(jnp.where(member_B, return_B, 0.0), group_B), count_B).compute()
  low_B = groups.min(jnp.where(member_B, return_B, jnp.inf), group_B)
  high_B = groups.max(jnp.where(member_B, return_B, -jnp.inf), group_B)
  return jnp.where(count_B > 0, jnp.clip(mean_B, low_B, high_B), 0.0)


def canon_advantage(
  return_B: jax.Array,
  old_entropy_BxT: jax.Array,
  length_B: jax.Array,
  mask_BxT: jax.Array,
  group_B: jax.Array,
  sequence_B: jax.Array | None,
  inter_weight: jax.Array,
  *,
  metric: str = 'entropy',
  alpha: float = 1.0,
  beta: float = 0.0,
) -> tuple[jax.Array, Metrics]:
  """A mixture of comparisons with the other half of the group and with one's own, the halves split by entropy or by length.

    A_inter = R - m_other;   A_intra = R - m_own;   A = mu A_inter + (1 - mu) A_intra

  The G // 2 responses of lowest metric are the low half, the rest the high half; m is a half's mean reward. No division by a deviation.

  Args:
    return_B: float32 [B].
    old_entropy_BxT: float32 [B, T], entropy of the behaviour policy, nats.
    length_B: float32 [B], number of valid tokens.
    mask_BxT: bool [B, T].
    group_B: int [B], prompt ids.
    sequence_B: int [B] or None, identity of the rows, by which ties of the metric are broken.
    inter_weight: scalar mu in [0, 1], from the hyper-parameters mu and schedule.
    metric: 'entropy', the mean over the response's tokens, or 'length'.
    alpha: > 0, multiplies the rewards of one half in A_inter: of the low half for entropy, of the high (long) half for length, where
      alpha < 1 makes responses shorter (0.9 in the paper).
    beta: added to A_inter of the high half and subtracted from that of the low half.

  The weight mu of A_inter is a hyper-parameter too: mu with schedule='constant'; 'accuracy' for the mean reward of the batch (intra
  first, inter later); 'inaccuracy' for 1 minus it; 'cosine' and 'cosine_reversed' for restarts that are counted in rollouts: the weight
  rises linearly to `peak` over `warmup` rollouts, then falls from peak to `floor` along a half cosine every `period` rollouts, and is
  1 - mu for 'cosine' (0.6 and 0 in the paper), mu for 'cosine_reversed' (1 and 0.4).

  Returns:
    (A float32 [B], metrics: inter_weight, gap, the mean over responses of m_high - m_low).

  Gradient: none, advantages are planned.
  Limits: mu=1/2, alpha=1 and even G are Dr.GRPO. Even G: A_inter sums to 0 over a group and A_intra over each half; the mean of A_inter
    over the high half is m_high - m_low, twice that of Dr.GRPO. Equal rewards give exactly 0 (alpha=1, beta=0). A response alone in its
    group has A = R.
  Reference: Conditional Advantage Estimation (CANON), Eq. 5-8, and its released code.
  Differs: an odd group's high half has one member more, as released, and then mu=1/2 is not Dr.GRPO. The released code divides by the
    largest response length with sums over tokens, which here is `aggregate='token_sum_over_capacity'`. Rewards outside [0, 1] are
    clipped to it where they set mu.
  """
  several_B = groups.size(group_B) > 1
  score_B = masked.mean(old_entropy_BxT, mask_BxT, axis=1) if metric == 'entropy' else length_B
  num_low_B = groups.sum(jnp.ones(group_B.shape, jnp.int32), group_B) // 2
  high_B = ranks.within(selection.coarse(score_B), group_B, sequence_B) >= num_low_B
  mean_high_B, mean_low_B = _half_mean(return_B, high_B, group_B), _half_mean(return_B, ~high_B, group_B)
  own_B, other_B = jnp.where(high_B, mean_high_B, mean_low_B), jnp.where(high_B, mean_low_B, mean_high_B)
  weighted_B = high_B if metric == 'length' else ~high_B
  inter_B = jnp.where(weighted_B, alpha * return_B - other_B, return_B - alpha * other_B) + jnp.where(high_B, beta, -beta)
  mixed_B = inter_weight * inter_B + (1.0 - inter_weight) * (return_B - own_B)
  gap_B = jnp.where(several_B, mean_high_B - mean_low_B, 0.0)
  return jnp.where(several_B, mixed_B, return_B), {'inter_weight': inter_weight, 'gap': jnp.mean(gap_B)}


def _init_rollouts() -> PyTree:
  return {'num_rollouts': jnp.zeros((), jnp.int32)}


def remember_inter_weight(
  state: PyTree,
  reward_B: jax.Array,
  mask_BxT: jax.Array,
  *,
  mu: float = 1.0,
  schedule: str = 'constant',
  peak: float = 0.6,
  floor: float = 0.0,
  warmup: int = 30,
  period: int = 40,
) -> tuple[Planned, PyTree, Metrics]:
  """mu of this rollout and the number of rollouts so far; one without a valid token is not counted. See `canon_advantage`."""
  step = state['num_rollouts'].astype(jnp.float32)
  if schedule == 'constant':
    weight = jnp.float32(mu)
  elif schedule in ('accuracy', 'inaccuracy'):
    accuracy = jnp.clip(jnp.mean(reward_B), 0.0, 1.0)
    weight = accuracy if schedule == 'accuracy' else 1.0 - accuracy
  else:
    since = jnp.mod(jnp.maximum(step - warmup, 0.0), period)
    falling = floor + 0.5 * (peak - floor) * (1.0 + jnp.cos(math.pi * since / period))
    restarted = jnp.where(step < warmup, peak * (step + 1.0) / max(warmup, 1), falling)
    weight = restarted if schedule == 'cosine_reversed' else 1.0 - restarted
  counted = jnp.any(mask_BxT).astype(jnp.int32)
  return {'inter_weight': weight}, {'num_rollouts': state['num_rollouts'] + counted}, {}


def _check_schedule(*, peak: float, floor: float) -> None:
  if floor > peak:
    raise UserError(f'canon: floor={floor:g} is above peak={peak:g}, from which the weight falls: give a floor of at most {peak:g}.')


def _note_mu(facts: RunFacts, *, hyper: Mapping[str, Any]) -> str | None:
  if hyper['schedule'] == 'constant' or hyper['mu'] == 1.0:
    return None
  return f"canon: mu={hyper['mu']:g} is not used with schedule={hyper['schedule']!r}: leave mu out, or set schedule='constant'."


canon = transform.advantage(
  'canon',
  canon_advantage,
  init=_init_rollouts,
  remember=remember_inter_weight,
  check=_check_schedule,
  notes=(_note_mu,),
  metric='entropy | length',
  alpha='(0, inf)',
  beta='(-inf, inf)',
  mu='[0, 1]',
  schedule='constant | accuracy | inaccuracy | cosine | cosine_reversed',
  peak='[0, 1]',
  floor='[0, 1]',
  warmup='[0, inf)',
  period='(0, inf)',
)
