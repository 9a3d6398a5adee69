"""SIREN: the entropy of the nucleus, at the positions where it peaks, is held at what it was before training."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.methods.regularizers.target import note_token_mean
from entropy_jax.ops import masked, selection, vocabulary
from entropy_jax.types import Metrics, Planned, PyTree, Ratio, VocabStat

FORMS = 'paper | released'
POSITIONS = 'peaks | all'


def siren_stats(*, mass: float = 0.8, form: str = 'paper') -> tuple[VocabStat, ...]:
  """The nucleus entropy, with the crossing token in the paper's form and without it in the released one."""
  return (vocabulary.nucleus_entropy_stat(mass, crossing=form == 'paper'),)


def siren_init() -> PyTree:
  """No anchor yet."""
  return {'anchor': jnp.float32(0.0), 'anchored': jnp.zeros((), bool)}


def peaks(entropy_BxT: jax.Array, mask_BxT: jax.Array, *, quantile: float = 0.8) -> jax.Array:
  """The valid tokens whose entropy is above the quantile of their own sequence, strictly.

  Args:
    entropy_BxT: float32 [B, T].
    mask_BxT: bool [B, T].
    quantile: linearly interpolated between order statistics, in [0, 1].

  Returns:
    bool [B, T]; a sequence of one token, or of equal entropies, has none.

  >>> peaks(jnp.arange(1., 11.)[None] / 10, jnp.ones((1, 10), bool))[0].tolist().index(True)     # above .82: .9 and 1
  8
  """
  over_rows = jax.vmap(lambda x_T, mask_T: selection.quantile(x_T, mask_T, quantile))
  # Coarse on both sides: a quantile that falls on an entropy must not be decided by its last bit.
  return mask_BxT & (selection.coarse(entropy_BxT) > selection.coarse(over_rows(entropy_BxT, mask_BxT))[:, None])


def siren_remember(
  state: PyTree,
  nucleus_entropy_BxT: jax.Array,
  mask_BxT: jax.Array,
  *,
  coef: float = 5e-3,
  quantile: float = 0.8,
  positions: str = 'peaks',
  anchor: float | None = None,
) -> tuple[Planned, PyTree, Metrics]:
  """The peaks' mean h of the whole batch, its distance from the anchor, and the anchor: h of the first batch that has a peak.

  Args:
    state: {anchor, anchored}.
    nucleus_entropy_BxT, mask_BxT: float32 and bool [B, T], of the whole batch.
    coef, quantile, positions, anchor: as in `siren_penalty`.

  Returns:
    ({peak_weight_BxT, slope, offset}, state, metrics: entropy (h), anchor, peak_fraction, penalty). The weights are such that the token
    mean over the N valid tokens of weight times entropy is h: N / (number of sequences with a peak * peaks of the sequence).

  Gradient: none.
  """
  peak_BxT = mask_BxT if positions == 'all' else peaks(nucleus_entropy_BxT, mask_BxT, quantile=quantile)
  num_B = masked.count(peak_BxT, axis=1)
  num_sequences = masked.count(num_B > 0)
  share_BxT = Ratio(jnp.where(peak_BxT, 1.0, 0.0), num_sequences * num_B[:, None]).compute()
  h = masked.total(share_BxT * nucleus_entropy_BxT, mask_BxT)
  some = num_sequences > 0
  if anchor is None:
    first = some & ~state['anchored']
    state = {'anchor': jnp.where(first, h, state['anchor']), 'anchored': state['anchored'] | some}
    goal = state['anchor']
  else:
    goal = jnp.float32(anchor)
  distance = jnp.where(some, h - goal, 0.0)
  slope, penalty = 2.0 * coef * distance, coef * distance**2
  planned = {'peak_weight_BxT': share_BxT * masked.count(mask_BxT), 'slope': slope, 'offset': penalty - slope * h}
  peak_fraction = masked.mean(jnp.where(peak_BxT, 1.0, 0.0), mask_BxT)
  return planned, state, {'entropy': h, 'anchor': goal, 'peak_fraction': peak_fraction, 'penalty': penalty}


def siren_penalty(nucleus_entropy_BxT: jax.Array, peak_weight_BxT: jax.Array, slope: jax.Array, offset: jax.Array) -> jax.Array:
  """coef (h - anchor)^2, h the mean over sequences of the mean nucleus entropy of their peak tokens, as a penalty of every token.

    penalty = slope w H^n + offset;   slope = 2 coef (h - anchor);   offset = coef (h - anchor)^2 - slope h

  with slope and offset planned over the whole batch and the weights w of `siren_remember`: the token mean has the value and the gradient
  of the squared distance, for any lengths and however the batch is sliced.

  Args:
    nucleus_entropy_BxT: float32 [B, T], entropy of the renormalised nucleus of the current policy, nats.
    peak_weight_BxT, slope, offset: from `siren_remember`.
    coef: weight of the penalty, at least 0.
    mass: probability of the nucleus, in (0, 1].
    quantile: a token is a peak above this quantile of its own sequence, in [0, 1].
    positions: 'peaks', or 'all': every valid token counts as a peak.
    anchor: None for h of the first batch that has a peak; else the entropy to hold, nats.
    form: 'paper', the smallest set with at least the mass; 'released', without the token that reaches the mass.

  Returns:
    float32 [B, T], minimised.

  Gradient: 2 coef (h - anchor) dh; exactly 0 at the anchor, outside the peaks and towards logits outside the nucleus.
  Limits: on the first batch the distance, and so the gradient, is 0; so is it in every batch without a peak. mass=1 with
    positions='all' holds the mean over sequences of their mean entropy at the anchor.
  Reference: Jiang et al., Rethinking Entropy Regularization in Large Reasoning Models (SIREN).
  Differs: the released code leaves the crossing token out (form='released'), squares the distance of each micro-batch instead of the
    batch's, and takes the quantile's peaks without the mask. The paper's equations were not seen: this is the code's.
  """
  return slope * peak_weight_BxT * nucleus_entropy_BxT + offset


siren = transform.regularizer(
  'siren',
  siren_penalty,
  stats=siren_stats,
  init=siren_init,
  remember=siren_remember,
  coef='[0, inf)',
  mass='(0, 1]',
  quantile='[0, 1]',
  positions=POSITIONS,
  anchor='[0, inf)',
  form=FORMS,
  notes=(note_token_mean('siren'),),
)
