"""Which tokens of given responses to learn from: for maximum likelihood (`advantages.unit` with `surrogates.reinforce`) that keeps the
entropy of the model where it is already undecided.
"""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.methods.weights.entropy_selection import note_normalize
from entropy_jax.ops import masked, selection
from entropy_jax.types import Metrics, Ratio


def entropy_sft_weight(
  logp_BxT: jax.Array,
  entropy_BxT: jax.Array,
  mask_BxT: jax.Array,
  sequence_B: jax.Array | None,
  *,
  keep: float = 0.8,
  entropy_scale: float = 0.8,
  normalize: str = 'kept',
) -> tuple[jax.Array, Metrics]:
  """Entropy-SFT: keeps the K = max(1, floor(keep N)) tokens of the batch with the largest delta = -ln pi - entropy_scale H.

    w = N / K on kept tokens, 0 elsewhere (normalize='kept');  w = 1 on kept tokens, 0 elsewhere (normalize='all')

  Args:
    logp_BxT: float32 [B, T], log-probability of the given token under the current policy; minus it is the cross-entropy.
    entropy_BxT: float32 [B, T], entropy of the current policy, nats.
    mask_BxT: bool [B, T], supervised tokens.
    sequence_B: int [B] or None, identity of the rows, by which ties are broken.
    keep: fraction of the N valid tokens, in (0, 1].
    entropy_scale: what a nat of entropy excuses of the cross-entropy, at least 0.
    normalize: 'kept' makes the token mean one over the kept tokens; 'all' leaves N.

  Returns:
    (weight [B, T], metrics: selected_fraction (kept), and threshold, the smallest delta kept).

  Gradient: none, of the selection; with `unit` and `reinforce` the loss is the mean cross-entropy of the kept tokens.
  Limits: keep=1 is ordinary supervised fine-tuning; entropy_scale=0 keeps the tokens of largest cross-entropy.
  Reference: Wang et al., Light-IF: Endowing LLMs with Generalizable Reasoning via Preview and Self-Checking for Complex Instruction
    Following, arXiv 2508.03178, from its released code: the paper's own equation was not seen.
  Differs: the defaults are those of the released run; its dataclass has keep 0.2 and entropy_scale 1.

  >>> H, ce = jnp.array([[.80182, 1.09851, .39439]]), jnp.array([[.35667, 1.10866, 2.99573]])
  >>> w, metrics = entropy_sft_weight(-ce, H, jnp.ones((1, 3), bool), None)         # delta = (-.285, .230, 2.680), K = 2
  >>> w.tolist(), round(float(metrics['threshold']), 5)
  ([[0.0, 1.5, 1.5]], 0.22985)
  """
  delta_BxT = -masked.zero(logp_BxT, mask_BxT) - entropy_scale * masked.zero(entropy_BxT, mask_BxT)
  num = selection.fraction_of(jnp.sum(mask_BxT, dtype=jnp.int32), keep)
  kept_BxT = selection.top(delta_BxT, mask_BxT, num, sequence_B)
  scale = Ratio(masked.count(mask_BxT), masked.count(kept_BxT)).compute() if normalize == 'kept' else jnp.float32(1.0)
  metrics = {
    'selected_fraction': masked.mean(kept_BxT.astype(jnp.float32), mask_BxT),
    'threshold': masked.extreme(delta_BxT, kept_BxT, largest=False),
  }
  return jnp.where(kept_BxT, scale, 0.0), metrics


entropy_sft = transform.weight(
  'entropy_sft',
  entropy_sft_weight,
  keep='(0, 1]',
  entropy_scale='[0, inf)',
  normalize='kept | all',
  notes=(transform.note_fraction('entropy_sft', 'keep'), note_normalize('entropy_sft')),
)
