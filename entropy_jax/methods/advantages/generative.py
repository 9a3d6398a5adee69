"""Advantages re-weighted by how probable the policy itself found its responses: a rare way to succeed counts more than a habit."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import groups, masked, selection
from entropy_jax.types import Metrics, Ratio


def least_probable_confidence(logp_BxT: jax.Array, mask_BxT: jax.Array, *, fraction: float = 0.2) -> jax.Array:
  """Geometric mean probability of the least probable tokens of each response, c = exp(mean_{t in T_low} ln pi(y_t)).

  Args:
    logp_BxT: float32 [B, T].
    mask_BxT: bool [B, T].
    fraction: T_low are the max(1, floor(fraction n)) least probable of the n valid tokens; in (0, 1].

  Returns:
    float32 [B], in (0, 1]; 1 for a response without tokens.

  >>> logp = jnp.log(jnp.array([[.9, .9, .9, .2, .5]]))
  >>> [round(float(least_probable_confidence(logp, jnp.ones((1, 5), bool), fraction=f)[0]), 6) for f in (.4, 1.)]
  [0.316228, 0.592305]
  """
  num_B = selection.fraction_of(jnp.sum(mask_BxT, axis=1, dtype=jnp.int32), fraction)
  ordered_BxT = jnp.sort(jnp.where(mask_BxT, logp_BxT, jnp.inf), axis=1)
  low_BxT = (jnp.arange(mask_BxT.shape[1])[None, :] < num_B[:, None]) & (ordered_BxT < jnp.inf)
  return jnp.exp(masked.mean(ordered_BxT, low_BxT, axis=1))


def progrpo_advantage(
  advantage_BxT: jax.Array,
  old_logp_BxT: jax.Array,
  reward_B: jax.Array,
  group_B: jax.Array,
  mask_BxT: jax.Array,
  *,
  coef: float = 0.3,
  fraction: float = 0.2,
  prompt: float | None = None,
  skip_all_correct: bool = False,
  threshold: float = 0.0,
) -> tuple[jax.Array, Metrics]:
  """A + coef (c(q) - c(o|q)) in groups with a correct response: confident responses lose, hesitant ones gain.

    c(o|q) = exp(mean ln pi(y_t)) over the least probable tokens of the response;   c(q): the prompt's confidence

  Args:
    advantage_BxT: float32 [B, T], of grpo.
    old_logp_BxT: float32 [B, T], behaviour policy, at the temperature of sampling.
    reward_B: float32 [B], outcome.
    group_B: int [B], prompt ids.
    mask_BxT: bool [B, T].
    coef: alpha, at least 0.
    fraction: share of each response's tokens that c(o|q) looks at, in (0, 1].
    prompt: None, and c(q) is the group's mean of c(o|q), because prompts are not scored here; or a constant, in [0, 1].
    skip_all_correct: leave groups without a wrong response alone too.
    threshold: a response is correct if its reward is above it.

  Returns:
    (A, float32 [B, T]; metrics confidence, the mean of c(o|q), and reweighted_fraction, the share of responses that were shifted).

  Gradient: none, advantages are planned.
  Limits: the base for coef = 0, in groups without a correct response, and (with prompt=None) where the group's confidences are equal.
    With prompt=None the shift sums to 0 over the group; it is smaller than coef in any case. Hesitant wrong responses gain as well.
  Reference: Li et al., Back to Basics: Revisiting Exploration in Reinforcement Learning for LLM Reasoning via Generative Probabilities
    (ProGRPO), arXiv 2602.05281.
  Differs: UNCONFIRMED: c(q) (the paper has a confidence of the prompt's own tokens, a constant of the group), coef, and whether groups
    without a wrong response are left alone.

  >>> A, logp = jnp.array([[.5], [-.5]]), jnp.log(jnp.array([[.9], [.1]]))
  >>> shaped, _ = progrpo_advantage(A, logp, jnp.array([1., 0.]), jnp.zeros(2, int), jnp.ones((2, 1), bool))
  >>> [round(a, 6) for a in shaped[:, 0].tolist()]      # .5 + .3 (.5 - .9) and -.5 + .3 (.5 - .1)
  [0.38, -0.38]
  """
  counts_B = jnp.any(mask_BxT, axis=1)
  confidence_B = least_probable_confidence(old_logp_BxT, mask_BxT, fraction=fraction)
  if prompt is None:
    among_B = groups.sum(counts_B.astype(jnp.float32), group_B)
    mean_B = Ratio(groups.sum(masked.zero(confidence_B, counts_B), group_B), among_B).compute()
    low_B = groups.min(jnp.where(counts_B, confidence_B, jnp.inf), group_B)
    high_B = groups.max(jnp.where(counts_B, confidence_B, -jnp.inf), group_B)
    shift_B = jnp.where(low_B < high_B, mean_B - confidence_B, 0.0)
  else:
    shift_B = prompt - confidence_B
  correct_B = (reward_B > threshold).astype(jnp.float32)
  active_B = counts_B & (groups.max(correct_B, group_B) > 0.0)
  if skip_all_correct:
    active_B = active_B & (groups.min(correct_B, group_B) == 0.0)
  shaped_BxT = advantage_BxT + jnp.where(active_B, coef * shift_B, 0.0)[:, None]
  metrics = {
    'confidence': masked.mean(confidence_B, counts_B),
    'reweighted_fraction': masked.mean(active_B.astype(jnp.float32), counts_B),
  }
  return masked.zero(shaped_BxT, mask_BxT), metrics


progrpo = transform.advantage(
  'progrpo',
  progrpo_advantage,
  coef='[0, inf)',
  fraction='(0, 1]',
  prompt='[0, 1]',
  threshold='[-inf, inf]',
)
