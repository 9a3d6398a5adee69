"""PPO's clip with a range of its own for every token or sequence: by the entropy of the token (HAPO), by how sure the response was at its
end (ECHO), or with the gradient kept above the range (AEPO of agents).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.methods.surrogates.policy_gradient import clip_ratio
from entropy_jax.ops import confidence as confidences
from entropy_jax.ops import entropy_scale, masked, ratios
from entropy_jax.types import Metrics, Planned, RunFacts, VocabStat


def _clipped(
  ratio_BxT: jax.Array, advantage_BxT: jax.Array, low_BxT: jax.Array, high_BxT: jax.Array, dual_clip: float | None
) -> jax.Array:
  """min(r A, clip(r, 1 - low, 1 + high) A), and where A < 0 at least dual_clip A, with a range for every token."""
  held_BxT, clipped_BxT = clip_ratio(ratio_BxT, advantage_BxT, low_BxT, high_BxT)
  # Choices, not minima: jnp.minimum would split the gradient between tied branches.
  objective_BxT = jnp.where(clipped_BxT, held_BxT, ratio_BxT * advantage_BxT)
  if dual_clip is None:
    return objective_BxT
  floor_BxT = dual_clip * advantage_BxT
  return jnp.where((advantage_BxT < 0.0) & (objective_BxT < floor_BxT), floor_BxT, objective_BxT)


def hapo_ranges(h_BxT: jax.Array, *, low: float, high: float, alpha: float) -> tuple[jax.Array, jax.Array]:
  """HAPO's asymmetric adaptive clip: low (1 - alpha h) where h <= 0, high (1 + alpha h) where h > 0, low and high elsewhere.

  >>> low, high = hapo_ranges(jnp.array([-1., 0., 1.]), low=.2, high=.2, alpha=1.)
  >>> [round(x, 6) for x in low.tolist()], [round(x, 6) for x in high.tolist()]
  ([0.4, 0.2, 0.2], [0.2, 0.2, 0.4])
  """
  return jnp.where(h_BxT <= 0.0, low * (1.0 - alpha * h_BxT), low), jnp.where(h_BxT > 0.0, high * (1.0 + alpha * h_BxT), high)


def hapo_redistributed(
  ratio_BxT: jax.Array, advantage_BxT: jax.Array, h_BxT: jax.Array, low_BxT: jax.Array, high_BxT: jax.Array, *, beta: float
) -> jax.Array:
  """HAPO's differential advantage redistribution: A (1 + beta h) where the ratio says that the token's move is clear, else A.

  The neutral zone is 1 - low / 2 < r < 1 + high / 2. A token of high entropy (h > 0) is raised outside it, one of low entropy is
  lowered inside it.
  """
  neutral_BxT = (ratio_BxT > 1.0 - 0.5 * low_BxT) & (ratio_BxT < 1.0 + 0.5 * high_BxT)
  moved_BxT = jnp.where(h_BxT > 0.0, ~neutral_BxT, neutral_BxT)
  return jnp.where(moved_BxT, advantage_BxT * (1.0 + beta * h_BxT), advantage_BxT)


def hapo_clip_objective(
  log_ratio_BxT: jax.Array,
  advantage_BxT: jax.Array,
  h_BxT: jax.Array,
  *,
  low: float = 0.2,
  high: float = 0.2,
  alpha: float = 1.0,
  beta: float = 1.0,
  dual_clip: float | None = 10.0,
) -> jax.Array:
  """PPO's clip with HAPO's range and advantage for every token, by its standardised entropy h in [-1, 1].

    low' = low (1 - alpha h) where h <= 0, else low;   high' = high (1 + alpha h) where h > 0, else high
    A' = A (1 + beta h) where h > 0 and r is outside (1 - low'/2, 1 + high'/2), or h <= 0 and r is inside; else A
    min(r A', clip(r, 1 - low', 1 + high') A'), and where A' < 0 at least dual_clip A'

  Args:
    log_ratio_BxT: float32 [B, T], ln pi - ln pi_old.
    advantage_BxT: float32 [B, T].
    h_BxT: float32 [B, T], planned: `entropy_scale.hapo_entropy` of the current policy over the whole batch.
    low, high: range of a token at the pivot; in [0, 1] and at least 0.
    alpha: how much the range grows with |h|, at least 0.
    beta: how much the advantage follows h, in [0, 1].
    dual_clip: None, or c > 1.
    quantile: place of the pivot among the entropies, in [0, 1].
    form: 'intended', or 'released', whose h of low entropies is positive.

  Returns:
    float32 [B, T], maximised.

  Gradient: A' r with respect to logp, and exactly 0 where clipped; none through h or A'.
  Limits: alpha = beta = 0, or equal entropies, is ppo_clip. On-policy (r = 1) every token is in the neutral zone: low entropies have
    A (1 + beta h), between (1 - beta) A and A, and high ones A.
  Reference: Liu et al., From Uniform to Heterogeneous: Tailoring Policy Optimization to Every Token's Nature, arXiv 2509.16591.
  Differs: the released code standardises in every micro-batch, and its sign makes h of low entropies positive, so that these are raised
    and never lowered: form='released'. UNCONFIRMED: the sign in the paper's equation; that low entropies may lose more probability and
    high ones gain more, as its abstract says, needs form='intended'.

  >>> r, h = jnp.array([[1., 1.5, .65, 1.]]), jnp.array([[-1., 1., -1., 1.]])
  >>> A = jnp.array([[1., 1., -1., 1.]])
  >>> [round(x, 6) for x in hapo_clip_objective(jnp.log(r), A, h)[0].tolist()]      # (1 - 1) A; 1.4 (1 + 1) A; .65 A; A
  [0.0, 2.8, -0.65, 1.0]
  """
  ratio_BxT = ratios.importance(log_ratio_BxT)
  low_BxT, high_BxT = hapo_ranges(h_BxT, low=low, high=high, alpha=alpha)
  redistributed_BxT = hapo_redistributed(ratio_BxT, advantage_BxT, h_BxT, low_BxT, high_BxT, beta=beta)
  return _clipped(ratio_BxT, redistributed_BxT, low_BxT, high_BxT, dual_clip)


def hapo_clip_plan(
  log_ratio_BxT: jax.Array,
  advantage_BxT: jax.Array,
  entropy_BxT: jax.Array,
  mask_BxT: jax.Array,
  *,
  low: float,
  high: float,
  alpha: float,
  beta: float,
  quantile: float = 0.8,
  form: str = 'intended',
) -> tuple[Planned, Metrics]:
  """h of every token; metrics clip_fraction, the entropy at the pivot, and the fraction of tokens whose advantage is redistributed."""
  h_BxT, stats = entropy_scale.hapo_entropy(entropy_BxT, mask_BxT, quantile=quantile, form=form)
  ratio_BxT = ratios.importance(log_ratio_BxT)
  low_BxT, high_BxT = hapo_ranges(h_BxT, low=low, high=high, alpha=alpha)
  redistributed_BxT = hapo_redistributed(ratio_BxT, advantage_BxT, h_BxT, low_BxT, high_BxT, beta=beta)
  shares = {
    'clip_fraction': clip_ratio(ratio_BxT, redistributed_BxT, low_BxT, high_BxT)[1],
    'redistributed_fraction': redistributed_BxT != advantage_BxT,
  }
  metrics = {name: masked.mean(x.astype(jnp.float32), mask_BxT) for name, x in shares.items()}
  return {'h_BxT': h_BxT}, {**metrics, 'pivot_entropy': jnp.where(jnp.any(mask_BxT), jnp.exp(stats['c']), 0.0)}


def echo_clip_objective(
  log_ratio_BxT: jax.Array, advantage_BxT: jax.Array, epsilon_B: jax.Array, *, dual_clip: float | None = 3.0
) -> jax.Array:
  """ECHO's adaptive clip: PPO's with one range a sequence, narrow where the end of the response was sure.

    epsilon_i = minimum + (maximum - minimum) sigmoid(kappa (1 - C_i)), C_i = mean confidence of the last `window` tokens
    min(r A, clip(r, 1 - epsilon_i, 1 + epsilon_i) A), and where A < 0 at least dual_clip A

  Args:
    log_ratio_BxT: float32 [B, T], ln pi - ln pi_old.
    advantage_BxT: float32 [B, T].
    epsilon_B: float32 [B], planned.
    dual_clip: None, or c > 1.
    minimum, maximum: bounds of epsilon, in [0, 1], minimum <= maximum.
    kappa: how steeply confidence narrows the range, at least 0.
    window: tokens at the end of the response that count.
    confidence: of the behaviour policy: 'meanprob', the mean of the `num` largest probabilities; 'deepconf', minus the mean of their
      logarithms; or 'sampled', the probability of the sampled token.
    num: for the first two.

  Returns:
    float32 [B, T], maximised.

  Gradient: A r with respect to logp, and exactly 0 where clipped; none through epsilon.
  Limits: minimum = maximum is ppo_clip with that range. C <= 1 for probabilities, so that epsilon never falls below the middle of its
    range. The mean of num probabilities is at most 1 / num: with the default 5 epsilon stays within 2 % and the clip hardly adapts.
  Reference: Zhao et al., ECHO: Entropy-Confidence Hybrid Optimization for Test-Time Reinforcement Learning, arXiv 2602.02150.
  Differs: the released scripts remove padding, and then confidence is the probability of the sampled token: confidence='sampled'. Its
    rollout uses 'deepconf', which is no probability, and is not held at 1 here: from ln(num) on it takes epsilon below the middle.

  >>> r, A = jnp.array([[1.5, 1.5]]), jnp.array([[1., -1.]])
  >>> [round(x, 6) for x in echo_clip_objective(jnp.log(r), A, jnp.array([.125]))[0].tolist()]
  [1.125, -1.5]
  """
  epsilon_B1 = epsilon_B[:, None]
  return _clipped(ratios.importance(log_ratio_BxT), advantage_BxT, epsilon_B1, epsilon_B1, dual_clip)


def echo_clip_plan(
  log_ratio_BxT: jax.Array,
  advantage_BxT: jax.Array,
  old_confidence_BxT: jax.Array,
  mask_BxT: jax.Array,
  *,
  minimum: float = 0.05,
  maximum: float = 0.2,
  kappa: float = 4.0,
  window: int = 16,
  confidence: str = 'meanprob',
) -> tuple[Planned, Metrics]:
  """epsilon of every sequence; metrics clip_fraction, and the mean confidence and epsilon over sequences with a token."""
  confidence_BxT = masked.zero(old_confidence_BxT, mask_BxT)
  if confidence != 'deepconf':
    confidence_BxT = jnp.clip(confidence_BxT, 0.0, 1.0)
  tail_B = confidences.tail_mean(confidence_BxT, mask_BxT, window)
  epsilon_B = minimum + (maximum - minimum) * jax.nn.sigmoid(kappa * (1.0 - tail_B))
  _, clipped_BxT = clip_ratio(ratios.importance(log_ratio_BxT), advantage_BxT, epsilon_B[:, None], epsilon_B[:, None])
  present_B = jnp.any(mask_BxT, axis=1)
  metrics = {
    'clip_fraction': masked.mean(clipped_BxT.astype(jnp.float32), mask_BxT),
    'confidence_mean': masked.mean(tail_B, present_B),
    'epsilon_mean': masked.mean(epsilon_B, present_B),
  }
  return {'epsilon_B': epsilon_B}, metrics


def _echo_stats(*, confidence: str = 'meanprob', num: int = 5) -> tuple[VocabStat, ...]:
  return confidences.confidence_stats(confidence, num)


def _check_echo(*, minimum: float = 0.05, maximum: float = 0.2) -> None:
  transform.check_range('echo_clip', 'minimum', minimum, f'[0, {maximum}]')


def _note_echo(facts: RunFacts, *, hyper: Mapping[str, Any]) -> str | None:
  num = hyper['num']
  if hyper['confidence'] != 'meanprob' or num <= 2 or hyper['minimum'] == hyper['maximum']:
    return None
  return (
    f'echo_clip: the mean of {num} probabilities is at most 1/{num}, so epsilon hardly depends on the response: set num=1 or 2, or '
    "confidence='sampled', unless the released constants are meant."
  )


def agentic_aepo_clip_objective(
  log_ratio_BxT: jax.Array, advantage_BxT: jax.Array, *, low: float = 0.2, high: float = 0.28
) -> jax.Array:
  """The clip of agentic AEPO: PPO's value, with a gradient also above the range, so that rare tokens that worked go on being learnt.

    min(r A, clip(r, 1 - low, U) A),  U = (1 + high) r / sg(r)

  Args:
    log_ratio_BxT: float32 [B, T], ln pi - ln pi_old.
    advantage_BxT: float32 [B, T].
    low: how far r may fall where A < 0, in [0, 1]; below it the gradient is 0, as PPO's.
    high: where A > 0 the gradient stops growing at r = 1 + high; at least 0.

  Returns:
    float32 [B, T], maximised; equal to ppo_clip.

  Gradient: F A with respect to logp: F = 1 + high where r > 1 + high and A > 0; 0 where r < 1 - low and A < 0; r elsewhere.
  Limits: ppo_clip for a large high. Above the range the gradient is that of cispo, below it that of ppo_clip.
  Reference: Dong et al., Agentic Entropy-Balanced Policy Optimization, arXiv 2510.14545.
  Differs: low and high are DAPO's, for the paper's were not found; the formula is that of two accounts of the paper that agree.

  >>> objective = lambda log_ratio: agentic_aepo_clip_objective(log_ratio, jnp.ones((1, 1)))[0, 0]
  >>> value, gradient = jax.value_and_grad(objective)(jnp.log(jnp.array([[1.5]])))
  >>> round(float(value), 6), round(float(gradient[0, 0]), 6)
  (1.28, 1.28)
  """
  ratio_BxT = ratios.importance(log_ratio_BxT)
  # From the log-ratio, which `importance` holds at 20: beyond it the gradient must stay, and r / sg(r) is 1 whatever r is.
  one_BxT = jnp.exp(log_ratio_BxT - jax.lax.stop_gradient(log_ratio_BxT))
  above_BxT = (ratio_BxT > 1.0 + high) & (advantage_BxT > 0.0)
  below_BxT = (ratio_BxT < 1.0 - low) & (advantage_BxT < 0.0)
  factor_BxT = jnp.where(above_BxT, (1.0 + high) * one_BxT, jnp.where(below_BxT, 1.0 - low, ratio_BxT))
  return factor_BxT * advantage_BxT


def agentic_aepo_clip_plan(
  log_ratio_BxT: jax.Array, advantage_BxT: jax.Array, mask_BxT: jax.Array, *, low: float, high: float
) -> tuple[Planned, Metrics]:
  """Fractions of the valid tokens whose gradient is cut (clip_fraction) or held at 1 + high (held_fraction)."""
  ratio_BxT = ratios.importance(log_ratio_BxT)
  shares = {
    'clip_fraction': (ratio_BxT < 1.0 - low) & (advantage_BxT < 0.0),
    'held_fraction': (ratio_BxT > 1.0 + high) & (advantage_BxT > 0.0),
  }
  return {}, {name: masked.mean(x.astype(jnp.float32), mask_BxT) for name, x in shares.items()}


hapo_clip = transform.surrogate(
  'hapo_clip',
  hapo_clip_objective,
  plan=hapo_clip_plan,
  low='[0, 1]',
  high='[0, inf)',
  alpha='[0, inf)',
  beta='[0, 1]',
  dual_clip='(1, inf)',
  quantile='[0, 1]',
  form=entropy_scale.FORMS,
)
echo_clip = transform.surrogate(
  'echo_clip',
  echo_clip_objective,
  plan=echo_clip_plan,
  stats=_echo_stats,
  init=confidences.no_state,
  remember=confidences.sampled_confidence,
  check=_check_echo,
  dual_clip='(1, inf)',
  minimum='[0, 1]',
  maximum='[0, 1]',
  kappa='[0, inf)',
  window='[1, inf)',
  confidence=confidences.FORMS,
  num='[1, inf)',
  notes=(_note_echo,),
)
agentic_aepo_clip = transform.surrogate(
  'agentic_aepo_clip',
  agentic_aepo_clip_objective,
  plan=agentic_aepo_clip_plan,
  low='[0, 1]',
  high='[0, inf)',
  notes=(
    transform.note_on_policy(
      'agentic_aepo_clip', 'nothing is outside the range and this is the gradient of ppo_clip', 'make several updates per rollout'
    ),
  ),
)
