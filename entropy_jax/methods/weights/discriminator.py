"""Leaving out what costs entropy without teaching: tokens with a negative advantage whose entropy discriminator is an outlier, so that
pushing them down moves the entropy of their position most.
"""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.measures import dynamics
from entropy_jax.ops import masked, selection
from entropy_jax.types import Metrics, Ratio

_ROUNDING = 1e-6  # of the largest score: a spread below it is that of float32, and its outliers are noise


def _discriminator(logp_BxT: jax.Array, entropy_BxT: jax.Array, mask_BxT: jax.Array) -> jax.Array:
  return dynamics.token_discriminator(masked.zero(logp_BxT, mask_BxT), masked.zero(entropy_BxT, mask_BxT))


def _threshold(score_BxT: jax.Array, mask_BxT: jax.Array, mu: float) -> tuple[jax.Array, jax.Array]:
  """mu population standard deviations over the valid tokens, inf (no outlier) where all are equal up to rounding; and the deviation."""
  deviation = jnp.sqrt(masked.variance(score_BxT, mask_BxT))
  largest = masked.extreme(jnp.abs(score_BxT), mask_BxT)
  return jnp.where(deviation <= _ROUNDING * largest, jnp.inf, mu * deviation), deviation


def _kept_weight(dropped_BxT: jax.Array, mask_BxT: jax.Array, normalize: str) -> tuple[jax.Array, Metrics]:
  """Weight 0 on dropped tokens and 1, or N / N' with N' kept of N tokens, on the others; and which fraction is dropped."""
  dropped_BxT = dropped_BxT & mask_BxT
  kept = Ratio(masked.count(mask_BxT), masked.count(mask_BxT & ~dropped_BxT)).compute()
  scale = kept if normalize == 'kept' else jnp.float32(1.0)
  return jnp.where(dropped_BxT, 0.0, scale), {'selected_fraction': masked.mean(dropped_BxT.astype(jnp.float32), mask_BxT)}


def clip_b_weight(
  old_logp_BxT: jax.Array,
  old_entropy_BxT: jax.Array,
  advantage_BxT: jax.Array,
  mask_BxT: jax.Array,
  *,
  mu: float = 2.5,
  normalize: str = 'kept',
) -> tuple[jax.Array, Metrics]:
  """Clip_B: w = 0 on tokens with A < 0 whose discriminator lies more than mu standard deviations below the batch's mean.

    S = p (H + ln p);   dropped: A < 0 and S - mean S < -mu std S;   w = N / N' on the N' kept of N tokens

  Args:
    old_logp_BxT: float32 [B, T], log-probability of the sampled token under the behaviour policy.
    old_entropy_BxT: float32 [B, T], its entropy, nats.
    advantage_BxT: float32 [B, T].
    mask_BxT: bool [B, T].
    mu: at least 0; 2 to 3 in the paper. It depends on the size of the model: choose it by selected_fraction (1e-4 to 1e-2).
    normalize: 'kept' takes the token mean over the kept tokens; 'all' leaves the number of tokens as it is.

  Returns:
    (weight [B, T], metrics: selected_fraction (dropped), discriminator_mean, discriminator_std).

  Gradient: none; the surrogate's gradient is exactly 0 on dropped tokens.
  Limits: mu=inf, or scores that are equal up to rounding, leave the objective as it is; tokens with A >= 0 are always kept.
  Reference: On the Entropy Dynamics in Reinforcement Fine-Tuning of Large Language Models, arXiv 2602.03392.
  Differs: released as a mask made together with GRPO's advantage, from rollout log-probabilities and recomputed entropies; here both are
    the behaviour policy's, and any advantage goes. Whether the paper also has a two-sided variant is not known.

  >>> S, A = jnp.array([[.15, .1, -.3, -.02, .05, -.35]]), jnp.array([[1., 1., 1., -1., -1., -1.]])
  >>> w, _ = clip_b_weight(jnp.zeros((1, 6)), S, A, jnp.ones((1, 6), bool), mu=1., normalize='all')       # at p = 1, S is H
  >>> w.tolist()                                  # mean -.062, deviation .194: below -.255 lie the third, whose A > 0, and the last
  [[1.0, 1.0, 1.0, 1.0, 1.0, 0.0]]
  """
  score_BxT = _discriminator(old_logp_BxT, old_entropy_BxT, mask_BxT)
  mean = masked.mean(score_BxT, mask_BxT)
  threshold, deviation = _threshold(score_BxT, mask_BxT, mu)
  # Coarse on both sides: a token exactly on the threshold must not be decided by the last bit of a mean.
  below_BxT = selection.coarse(score_BxT - mean) < selection.coarse(-threshold)
  weight_BxT, metrics = _kept_weight((advantage_BxT < 0.0) & below_BxT, mask_BxT, normalize)
  return weight_BxT, {**metrics, 'discriminator_mean': mean, 'discriminator_std': deviation}


def clip_v_weight(
  old_logp_BxT: jax.Array,
  old_entropy_BxT: jax.Array,
  old_expected_discriminator_BxT: jax.Array,
  advantage_BxT: jax.Array,
  mask_BxT: jax.Array,
  sequence_B: jax.Array | None,
  *,
  mu: float = 8.5,
  max_fraction: float = 1e-4,
  normalize: str = 'kept',
  form: str = 'paper',
) -> tuple[jax.Array, Metrics]:
  """Clip_V: w = 0 on tokens with A < 0 whose discriminator lies far below its expectation over the vocabulary, at most a fraction of all.

    D = E[S] - S;   candidates: A < 0 and D > mu std D, the largest max(1, floor(max_fraction N)) of them are dropped;   w = N / N' else

  Args:
    old_logp_BxT: float32 [B, T], log-probability of the sampled token under the behaviour policy.
    old_entropy_BxT: float32 [B, T], its entropy, nats.
    old_expected_discriminator_BxT: float32 [B, T], E[S] over its vocabulary row.
    advantage_BxT: float32 [B, T].
    mask_BxT: bool [B, T].
    sequence_B: int [B] or None, identity of the rows, by which ties are broken.
    mu: at least 0; the threshold is mu standard deviations above 0, not above the mean of D.
    max_fraction: of the N valid tokens, in (0, 1].
    normalize: 'kept' takes the token mean over the kept tokens; 'all' leaves the number of tokens as it is.
    form: 'paper', or 'released', which also drops every token with A = 0 above the threshold: the denominator alone notices.

  Returns:
    (weight [B, T], metrics: selected_fraction (dropped), candidate_fraction, discriminator_std of D).

  Gradient: none; the surrogate's gradient is exactly 0 on dropped tokens.
  Limits: mu=inf leaves the objective as it is; tokens with A > 0 are always kept.
  Reference: On the Entropy Dynamics in Reinforcement Fine-Tuning of Large Language Models, arXiv 2602.03392.
  Differs: the released cap never gives back the tokens with A = 0, so that it may drop more than max_fraction; form='released' is that.

  >>> p = jnp.array([.7, .2, .08, .02]); H = -jnp.sum(p * jnp.log(p)); E = jnp.sum(p * p * (H + jnp.log(p)))
  >>> w, _ = clip_v_weight(jnp.log(p)[None], jnp.full((1, 4), H), jnp.full((1, 4), E), -jnp.ones((1, 4)), jnp.ones((1, 4), bool), None,
  ...   mu=1., max_fraction=.25)
  >>> [round(x, 6) for x in w[0].tolist()]                 # D = (-.146, .352, .334, .262): all but the first exceed std D, one may go
  [1.333333, 0.0, 1.333333, 1.333333]
  """
  expected_BxT = masked.zero(old_expected_discriminator_BxT, mask_BxT)
  score_BxT = expected_BxT - _discriminator(old_logp_BxT, old_entropy_BxT, mask_BxT)
  threshold, deviation = _threshold(score_BxT, mask_BxT, mu)
  above_BxT = mask_BxT & (selection.coarse(score_BxT) > selection.coarse(threshold))
  candidates_BxT = above_BxT & (advantage_BxT < 0.0)
  num = selection.fraction_of(jnp.sum(mask_BxT, dtype=jnp.int32), max_fraction)
  dropped_BxT = selection.top(score_BxT, candidates_BxT, num, sequence_B)
  if form == 'released':
    dropped_BxT = dropped_BxT | (above_BxT & (advantage_BxT == 0.0))
  weight_BxT, metrics = _kept_weight(dropped_BxT, mask_BxT, normalize)
  candidate_fraction = masked.mean(candidates_BxT.astype(jnp.float32), mask_BxT)
  return weight_BxT, {**metrics, 'candidate_fraction': candidate_fraction, 'discriminator_std': deviation}


clip_b = transform.weight('clip_b', clip_b_weight, mu='[0, inf]', normalize='kept | all')
clip_v = transform.weight(
  'clip_v',
  clip_v_weight,
  stats=(dynamics.expected_discriminator_stat._replace(of='behaviour'),),
  mu='[0, inf]',
  max_fraction='(0, 1]',
  normalize='kept | all',
  form='paper | released',
  notes=(transform.note_fraction('clip_v', 'max_fraction'),),
)
