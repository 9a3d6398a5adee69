"""Rewards by phase: what entropy costs in the thinking before an answer, and earns in the answer."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import masked
from entropy_jax.types import Metrics, Phase


def pear_reward(
  reward_B: jax.Array,
  old_entropy_BxT: jax.Array,
  phase_BxT: jax.Array,
  mask_BxT: jax.Array,
  *,
  answer: float = 1.0,
  score: float = 1.0,
  wrong: float = 0.0,
  threshold: float = 0.5,
  floor: float | None = None,
) -> tuple[jax.Array, Metrics]:
  """A correct response earns less the more uncertain its thinking was compared with its answer.

    P = max(0, H_think - answer H_answer);   R = min(1, score - P) if correct, else wrong

  Args:
    reward_B: float32 [B], outcome.
    old_entropy_BxT: float32 [B, T], behaviour policy, nats; H_think and H_answer are its means over the tokens of the phase, 0 without.
    phase_BxT: int [B, T], a `types.Phase`; the mark between the phases counts in neither.
    mask_BxT: bool [B, T].
    answer: alpha, how much entropy of the answer pays for entropy of the thinking; any sign.
    score: s, the reward of a correct response without penalty.
    wrong: r_fmt, the reward of every other response.
    threshold: a response is correct if its outcome is above it.
    floor: None, or the smallest reward of a correct response.

  Returns:
    (reward_B, float32 [B], at most 1; metrics think_entropy and answer_entropy, means over the responses that have the phase,
    penalty, the mean of P over the correct responses, and correct_fraction).

  Gradient: none, rewards are planned.
  Limits: the correctness reward where H_think <= answer H_answer, hence for answer -> inf. A response without a mark is all thinking.
    Without a floor a correct response may earn less than a wrong one: R is below wrong where P > score - wrong.
  Reference: Huang et al., PEAR: Phase Entropy Aware Reward for Efficient Reasoning, Eq. 5-9.
  Differs: a summary states a reward in [0, 1], which the formula does not keep; floor=wrong is that.

  >>> H, phase = jnp.array([[.6, .6, 2., .2]]), jnp.array([[0, 0, 1, 2]])
  >>> R, _ = pear_reward(jnp.ones(1), H, phase, jnp.ones((1, 4), bool))
  >>> round(float(R[0]), 6)      # P = .6 - .2
  0.6
  """
  think_BxT, answer_BxT = mask_BxT & (phase_BxT == Phase.THINK), mask_BxT & (phase_BxT == Phase.ANSWER)
  think_B, answer_B = masked.mean(old_entropy_BxT, think_BxT, axis=1), masked.mean(old_entropy_BxT, answer_BxT, axis=1)
  penalty_B = jnp.maximum(think_B - answer * answer_B, 0.0)
  earned_B = jnp.minimum(score - penalty_B, 1.0)
  if floor is not None:
    earned_B = jnp.maximum(earned_B, floor)
  correct_B = reward_B > threshold
  metrics = {
    'think_entropy': masked.mean(think_B, jnp.any(think_BxT, axis=1)),
    'answer_entropy': masked.mean(answer_B, jnp.any(answer_BxT, axis=1)),
    'penalty': masked.mean(penalty_B, correct_B),
    'correct_fraction': jnp.mean(correct_B, dtype=jnp.float32),
  }
  return jnp.where(correct_B, earned_B, wrong), metrics


pear = transform.reward(
  'pear',
  pear_reward,
  answer='(-inf, inf)',
  score='(-inf, inf)',
  wrong='(-inf, inf)',
  threshold='[-inf, inf]',
  floor='(-inf, 1]',
)
