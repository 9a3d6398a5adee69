"""EPO: an entropy bonus for multi-turn agents with a band around the past entropy of each turn, as released and made to act."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import masked
from entropy_jax.types import Metrics, Planned, PyTree, Ratio, UserError

MODES = 'token | sequence'


def _turn_sums(x_BxT: jax.Array, turn_BxT: jax.Array, max_turns: int) -> jax.Array:
  """Sum over the tokens of each turn of each sequence, [B, max_turns]; tokens of no turn have a negative one."""
  # A negative index would count from the end: out of range, the scatter drops it.
  inside_BxT = jnp.where(turn_BxT < 0, max_turns, jnp.minimum(turn_BxT, max_turns - 1))
  return jax.vmap(lambda x_T, turn_T: jax.ops.segment_sum(x_T, turn_T, num_segments=max_turns))(x_BxT, inside_BxT)


def _of_turn(x_U: jax.Array, turn_BxT: jax.Array) -> jax.Array:
  return jnp.where(turn_BxT < 0, 0.0, x_U[jnp.clip(turn_BxT, 0, x_U.shape[0] - 1)])


def smoothing_weight(epoch: jax.Array, *, epochs: float) -> jax.Array:
  """w_k: 1 - 0.2 (1 - e^(-2 k / h)) up to h = epochs / 2, then 0.8 e^(-3 (k - h) / (epochs - h)).

  Args:
    epoch: float32 scalar, k, from 0.
    epochs: of the whole run, above 0; 150 is published.

  Returns:
    float32 scalar in (0, 1]; it jumps from 0.83 to 0.8 after h, and ends at 0.04.

  >>> [round(float(smoothing_weight(jnp.float32(k), epochs=150.)), 3) for k in (0, 75, 76, 150)]
  [1.0, 0.827, 0.769, 0.04]
  """
  half = 0.5 * epochs
  early = 1.0 - 0.2 * (1.0 - jnp.exp(-2.0 * epoch / half))
  return jnp.where(epoch <= half, early, 0.8 * jnp.exp(-3.0 * (epoch - half) / (epochs - half)))


def epo_init(*, max_turns: int = 50) -> PyTree:
  """No turn seen yet: sums and counts of the past mean entropies of each turn, and the number of updates."""
  zero_U = jnp.zeros(max_turns, jnp.float32)
  return {'total_U': zero_U, 'count_U': zero_U, 'num_updates': jnp.zeros((), jnp.int32)}


def epo_remember(
  state: PyTree,
  old_entropy_BxT: jax.Array,
  segment_BxT: jax.Array,
  mask_BxT: jax.Array,
  *,
  max_turns: int = 50,
  memory: float = 1.0,
  epochs: float | None = None,
  updates_per_epoch: int = 1,
  first_turn: int | None = None,
) -> tuple[Planned, PyTree, Metrics]:
  """The past entropy of every token's turn, this rollout included, and the weight of the band in this update.

  Args:
    state: {total_U, count_U, num_updates}.
    old_entropy_BxT: float32 [B, T], of the behaviour policy: the history is that of the rollouts.
    segment_BxT: int [B, T], the turn, from 0; negative for tokens of none. Turns from max_turns on share the last place.
    mask_BxT: bool [B, T].
    max_turns, memory, epochs, updates_per_epoch, first_turn: as in `epo_penalty`.

  Returns:
    ({turn_entropy_BxT, band_weight}, state, metrics: band_weight, turn_entropy (mean over the tokens)). The entropy of a turn in one
    update is its token mean; each update in which the turn occurs counts once. An update without a valid token changes nothing.

  Gradient: none.
  """
  turn_BxT = jnp.where(mask_BxT, segment_BxT, -1)
  ones_BxT = jnp.ones(mask_BxT.shape, jnp.float32)
  num_U = jnp.sum(_turn_sums(ones_BxT, turn_BxT, max_turns), axis=0)
  mean_U = Ratio(jnp.sum(_turn_sums(masked.zero(old_entropy_BxT, mask_BxT), turn_BxT, max_turns), axis=0), num_U).compute()
  occurs_U, seen = num_U > 0, jnp.any(mask_BxT)
  total_U = jnp.where(occurs_U, memory * state['total_U'] + mean_U, state['total_U'])
  count_U = jnp.where(occurs_U, memory * state['count_U'] + 1.0, state['count_U'])
  new = {'total_U': total_U, 'count_U': count_U, 'num_updates': state['num_updates'] + seen.astype(jnp.int32)}

  epoch = (state['num_updates'] // updates_per_epoch).astype(jnp.float32)
  weight = jnp.ones((), jnp.float32) if epochs is None else smoothing_weight(epoch, epochs=epochs)
  late = jnp.any(turn_BxT >= (max_turns // 2 if first_turn is None else first_turn))
  planned = {'turn_entropy_BxT': _of_turn(Ratio(total_U, count_U).compute(), turn_BxT), 'band_weight': jnp.where(late, weight, 0.0)}
  turn_entropy = masked.mean(planned['turn_entropy_BxT'], mask_BxT)
  return planned, new, {'band_weight': planned['band_weight'], 'turn_entropy': turn_entropy}


def _compared(entropy_BxT: jax.Array, segment_BxT: jax.Array, mask_BxT: jax.Array, mode: str, max_turns: int) -> jax.Array:
  """What is compared with the band: the entropy of the token, or the mean over the tokens of its turn."""
  if mode == 'token':
    return entropy_BxT
  turn_BxT = jnp.where(mask_BxT, segment_BxT, -1)
  num_BxU = _turn_sums(jnp.ones(mask_BxT.shape, jnp.float32), turn_BxT, max_turns)
  mean_BxU = Ratio(_turn_sums(masked.zero(entropy_BxT, mask_BxT), turn_BxT, max_turns), num_BxU).compute()
  return jax.vmap(_of_turn)(mean_BxU, turn_BxT)


def _bounds(turn_entropy_BxT: jax.Array, low: float, high: float) -> tuple[jax.Array, jax.Array]:
  # inf * 0 is NaN: without an upper end the bound is inf whatever the entropy of the turn was.
  return low * turn_entropy_BxT, jnp.full_like(turn_entropy_BxT, jnp.inf) if math.isinf(high) else high * turn_entropy_BxT


def epo_penalty(
  entropy_BxT: jax.Array,
  turn_entropy_BxT: jax.Array,
  band_weight: jax.Array,
  segment_BxT: jax.Array,
  mask_BxT: jax.Array,
  *,
  coef: float = 1e-3,
  smoothing: float = 1.0,
  alpha: float = 0.1,
  low: float = 0.8,
  high: float = 1.2,
  mode: str = 'token',
  max_turns: int = 50,
) -> jax.Array:
  """The entropy bonus less an indicator of entropy outside a band around the past: -coef (H - smoothing w_k p).

    p = alpha if not low h_u < H < high h_u, else 0;   h_u = mean over the updates so far of the mean entropy of turn u

  Args:
    entropy_BxT: float32 [B, T], entropy of the current policy at every token, nats.
    turn_entropy_BxT, band_weight: h_u of the token's turn and w_k, from `epo_remember`.
    segment_BxT: int [B, T], the turn, from 0; a token of none (negative) has no band.
    mask_BxT: bool [B, T].
    coef: weight of the bonus, at least 0.
    smoothing: weight of the band in it, at least 0.
    alpha: height of the indicator, at least 0; 0.05 for ScienceWorld.
    low, high: ends of the band in units of h_u, excluded; (0.8, 1.2) in the configuration, (0, 2) in the published commands.
    mode: 'token', or 'sequence': the mean entropy of the token's turn in its sequence is compared.
    max_turns: length of the history.
    memory: 1 for the mean over all updates; below 1, ours: update k - j counts memory^j, so about 1 / (1 - memory) of them do.
    epochs: None for w_k = 1; else the length of the schedule of `smoothing_weight`, 150 published.
    updates_per_epoch: updates for which k stays.
    first_turn: the band counts in batches with a turn at or after this one; None for max_turns // 2, as released.

  Returns:
    float32 [B, T], minimised.

  Gradient: -coef dH. An indicator has none, so the band does not act: for the optimizer this is the entropy bonus, bit by bit.
  Limits: smoothing=0, or alpha=0, is the entropy bonus in value too.
  Reference: Xu et al., EPO: Entropy-regularized Policy Optimization for LLM Agents Reinforcement Learning.
  Differs: the released code pads the history on the left when episodes end early, so that turns take other turns' means and early ones
    0; counts padding in the means of mode 'sequence'; and looks for late turns in each micro-batch. See `epo_smooth` for a band that acts.

  >>> H = jnp.array([[.7, 1., 1.3]])
  >>> where = {'segment_BxT': jnp.zeros((1, 3), jnp.int32), 'mask_BxT': jnp.ones((1, 3), bool)}
  >>> p = (epo_penalty(H, jnp.ones((1, 3)), jnp.float32(1.), **where, coef=1.) + H)[0]      # smoothing w_k p
  >>> [round(x, 6) for x in p.tolist()]
  [0.1, 0.0, 0.1]
  """
  compared_BxT = _compared(entropy_BxT, segment_BxT, mask_BxT, mode, max_turns)
  bottom_BxT, top_BxT = _bounds(turn_entropy_BxT, low, high)
  inside_BxT = ((bottom_BxT < compared_BxT) & (compared_BxT < top_BxT)) | (segment_BxT < 0)
  return -coef * (entropy_BxT - smoothing * band_weight * jnp.where(inside_BxT, 0.0, alpha))


def epo_smooth_penalty(
  entropy_BxT: jax.Array,
  turn_entropy_BxT: jax.Array,
  band_weight: jax.Array,
  segment_BxT: jax.Array,
  mask_BxT: jax.Array,
  *,
  coef: float = 1e-3,
  smoothing: float = 1.0,
  low: float = 0.8,
  high: float = 1.2,
  mode: str = 'token',
  max_turns: int = 50,
  first_turn: int | None = 0,
) -> jax.Array:
  """Ours, not the paper's: EPO with the distance from the band instead of its indicator, -coef (H - smoothing w_k p).

    p = relu(low h_u - H) + relu(H - high h_u), with h_u constant

  Args:
    entropy_BxT, turn_entropy_BxT, band_weight, segment_BxT, mask_BxT, coef, smoothing, low, high, mode, max_turns, memory, epochs,
      updates_per_epoch: as in `epo_penalty`.
    first_turn: as in `epo_penalty`; 0, whatever the turns are.

  Returns:
    float32 [B, T], minimised.

  Gradient: -coef dH inside the band; -coef (1 + smoothing w_k) dH below it and -coef (1 - smoothing w_k) dH above: with smoothing 1 the
    bonus is doubled below and gone above, and a larger smoothing lowers entropy there.
  Limits: smoothing=0, or a band without ends, is the entropy bonus.
  Reference: the band of Xu et al., EPO: Entropy-regularized Policy Optimization for LLM Agents Reinforcement Learning.
  Differs: from EPO, which has no gradient through its band.
  """
  compared_BxT = _compared(entropy_BxT, segment_BxT, mask_BxT, mode, max_turns)
  bottom_BxT, top_BxT = _bounds(turn_entropy_BxT, low, high)
  distance_BxT = jax.nn.relu(bottom_BxT - compared_BxT) + jax.nn.relu(compared_BxT - top_BxT)
  return -coef * (entropy_BxT - smoothing * band_weight * jnp.where(segment_BxT < 0, 0.0, distance_BxT))


def _check_band(*, low: float, high: float, max_turns: int, updates_per_epoch: int) -> None:
  if low > high:
    raise UserError(f'epo: low={low!r} is above high={high!r}; give low <= high.')
  for key, value in (('max_turns', max_turns), ('updates_per_epoch', updates_per_epoch)):
    if not isinstance(value, int):
      raise UserError(f'epo: {key}={value!r} is not a whole number; give one of at least 1.')


_SHARED: dict[str, Any] = {
  'init': epo_init,
  'remember': epo_remember,
  'check': _check_band,
  'coef': '[0, inf)',
  'smoothing': '[0, inf)',
  'low': '[0, inf)',
  'high': '[0, inf]',
  'mode': MODES,
  'max_turns': '[1, inf)',
  'memory': '(0, 1]',
  'epochs': '(0, inf)',
  'updates_per_epoch': '[1, inf)',
  'first_turn': '[0, inf)',
}
epo = transform.regularizer('epo', epo_penalty, alpha='[0, inf)', **_SHARED)
epo_smooth = transform.regularizer('epo_smooth', epo_smooth_penalty, **_SHARED)
