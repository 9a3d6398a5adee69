"""Risk measures in place of the mean: prompts are bundled so that scores take more than two values, and the worst bundles weigh most."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entropy_jax import transform
from entropy_jax.ops import groups, masked, ranks, selection
from entropy_jax.types import Metrics, Planned, PyTree, Ratio, UserError

LEVELS_S = np.arange(1, 20, dtype=np.float32) / 20  # .05 to .95: the levels whose quantiles are tracked
ROUNDING = 1e-5  # relative: scores that are sums of the same rewards in another order are equal


class Bundles(NamedTuple):
  """What each response belongs to, and what its bundle sample scored."""

  bundle_B: jax.Array  # int32, of several prompts
  sample_B: jax.Array  # int32, one response of each prompt of the bundle
  score_B: jax.Array  # float32, of the sample
  first_B: jax.Array  # bool, one response of every sample, to count samples once


def bundle_samples(
  return_B: jax.Array, group_B: jax.Array, sequence_B: jax.Array | None, key: jax.Array, *, bundle: int = 5, pairing: str = 'random'
) -> Bundles:
  """Bundles of `bundle` prompts in the order of their ids, and samples that take one response of each prompt.

  Args:
    return_B: float32 [B].
    group_B: int [B], prompt ids.
    sequence_B: int [B] or None, identity of the rows.
    key: PRNG key of this rollout.
    bundle: prompts per bundle.
    pairing: the j-th sample takes the response that comes j-th in 'random' order, another permutation for each prompt that follows
      sequence_B; or in the 'given' order of sequence_B, as released.

  Returns:
    Bundles. The score is `bundle` times the mean reward of the sample's responses: their sum where every prompt of the bundle has a
    j-th response and the bundle is full. So what is missing (the last bundle's prompts, the responses of a smaller group) counts like
    the mean of what is there, and all scores keep one scale.
  """
  number_B = ranks.identify(group_B)
  bundle_B = number_B // bundle
  order_B = selection.uniform(key, (group_B.shape[0], 1), sequence_B)[:, 0] if pairing == 'random' else jnp.zeros_like(return_B)
  sample_B = ranks.identify(bundle_B, ranks.within(order_B, group_B, sequence_B))
  return Bundles(bundle_B, sample_B, bundle * groups.mean(return_B, sample_B), ranks.within(number_B, sample_B) == 0)


def mixed_value_at_risk(
  score: jax.Array,
  low: jax.Array,
  high: jax.Array,
  *,
  alpha: float = 0.2,
  beta: float = 0.8,
  tail_weight: float = 1.5,
  tail: str = 'lower',
  form: str = 'paper',
  natural_baseline: bool = True,
) -> jax.Array:
  """The influence of a score on the mixed value at risk: the range between two quantiles, and a tail with a weight of its own.

    middle = clip(x, q_a, q_b) - q_b;   lower tail = -(q_a - x)^+;   paper: tail_weight tail + middle
    released: (tail_weight tail / alpha + middle / (beta - alpha)) / (tail_weight + 1);   the upper tail is (x - q_b)^+, over 1 - beta

  Args:
    score: float32, any shape.
    low, high: q_a and q_b, scalars or of the shape of score; a high below low counts as low.
    alpha, beta: the levels of low and high.
    tail_weight: 1 + omega in the paper's words.
    tail: 'lower', or 'upper' for the risk-seeking control.
    form: 'paper | released'.
    natural_baseline: False takes clip(x, q_a, q_b) - q_a for the middle, which is never negative.

  >>> x = jnp.arange(6.)
  >>> mixed_value_at_risk(x, jnp.float32(1.), jnp.float32(4.)).tolist()
  [-4.5, -3.0, -2.0, -1.0, 0.0, 0.0]
  >>> [round(a, 4) for a in mixed_value_at_risk(x, jnp.float32(1.), jnp.float32(4.), form='released').tolist()]
  [-5.0, -2.0, -1.3333, -0.6667, 0.0, 0.0]
  """
  high = jnp.maximum(high, low)
  middle = jnp.clip(score, low, high) - (high if natural_baseline else low)
  if tail == 'lower':
    beyond, mass = -jnp.maximum(low - score, 0.0), alpha
  else:
    beyond, mass = jnp.maximum(score - high, 0.0), 1.0 - beta
  if form == 'released':
    return (tail_weight / mass * beyond + middle / (beta - alpha)) / (tail_weight + 1.0)
  return tail_weight * beyond + middle


def riskpo_advantage(
  return_B: jax.Array,
  group_B: jax.Array,
  sequence_B: jax.Array | None,
  key: jax.Array,
  low_quantile: jax.Array,
  high_quantile: jax.Array,
  *,
  bundle: int = 5,
  alpha: float = 0.2,
  beta: float = 0.8,
  tail_weight: float = 1.5,
  tail: str = 'lower',
  form: str = 'paper',
  natural_baseline: bool = True,
  pairing: str = 'random',
  quantiles: str = 'tracked',
  scale: str = 'none',
  credit: str = 'uniform',
) -> tuple[jax.Array, Metrics]:
  """The influence of a bundle's score on the mixed value at risk of scores, given to each response of the bundle sample.

    A = tail_weight * -(q_a - R)^+ + clip(R, q_a, q_b) - q_b,   R = sum over the bundle's prompts of one response's reward each

  Args:
    return_B: float32 [B].
    group_B: int [B], prompt ids.
    sequence_B: int [B] or None, identity of the rows.
    key: PRNG key of this rollout.
    low_quantile, high_quantile: scalars q_a and q_b, remembered from rollout to rollout (`track_quantiles`).
    bundle: prompts per bundle, in the order of their ids; how samples are formed, and what unequal groups do, is in `bundle_samples`.
    alpha, beta: levels in (0, 1), alpha < beta; the nearest of .05, .10, ... .95 is tracked.
    tail_weight, tail, form, natural_baseline: as in `mixed_value_at_risk`. tail_weight=1 has no extra weight on the tail, 0 no tail.
    pairing: 'random | given' responses of a bundle sample; the paper's is random, the released code's the j-th response of each prompt.
    quantiles: 'tracked'; or 'bundle', those of the bundle's own samples, linear, to which the released code falls back.
    scale: 'none', as the paper's objective; or 'bundle', over the deviation of the bundle's scores (ddof = 1) + 1e-6, as released.
    credit: 'uniform' gives A to each response; 'std' A over the deviation of its prompt's rewards (1 where that is at most 1e-3);
      'score' A / 2 to a success (R > 1/2) and 3/2 A to a failure; 'sum_mean' the response's share of the sample's centred rewards,
      (r_i - mean_i) / sum_i (r_i - mean_i), an equal share where the sum is below 1e-6. That sum has a sign: shares may be large.

  Returns:
    (A float32 [B], metrics: low_quantile, high_quantile, mean_score, active_fraction, of responses with A != 0). With natural_baseline
    and the lower tail A <= 0 for the first three credits.

  Gradient: none, advantages are planned.
  Limits: a bundle whose samples all score the same gets exactly 0: it tells no response from another, and scale would divide by 0. With
    bundle=1 and binary rewards it is a function of the group's rewards, and in expectation GRPO with another step for each prompt.
  Reference: RiskPO: Risk-based Policy Optimization via Verifiable Reward for LLM Post-Training; form, tracker and credit from its released
    code, the paper's objective from a digest of it.
  Differs: the released tracker is stored after the advantage in a batch that the next step does not see, so it never acts; here it does.
    The released form divides the tail by alpha and the middle by beta - alpha, so their weights are 4.5 apart instead of 1.5. The paper
    clips a sequence-level ratio, which here is the surrogate `gspo`.
  """
  found = bundle_samples(return_B, group_B, sequence_B, key, bundle=bundle, pairing=pairing)
  if quantiles == 'bundle':
    low, high = (ranks.quantile(found.score_B, found.bundle_B, q, method='linear', counted_B=found.first_B) for q in (alpha, beta))
  else:
    low, high = low_quantile, high_quantile
  advantage_B = mixed_value_at_risk(
    found.score_B, low, high,
    alpha=alpha, beta=beta, tail_weight=tail_weight, tail=tail, form=form, natural_baseline=natural_baseline,
  )  # fmt: skip
  top_B, bottom_B = groups.max(found.score_B, found.bundle_B), groups.min(found.score_B, found.bundle_B)
  varied_B = top_B - bottom_B > ROUNDING * jnp.maximum(jnp.abs(top_B), 1.0)
  advantage_B = jnp.where(varied_B, advantage_B, 0.0)
  if scale == 'bundle':
    advantage_B = advantage_B / (_sample_deviation(found) + 1e-6)
  advantage_B = advantage_B * _share(found, return_B, group_B, credit)
  metrics = {
    'low_quantile': jnp.mean(low),
    'high_quantile': jnp.mean(high),
    'mean_score': masked.mean(found.score_B, found.first_B),
    'active_fraction': jnp.mean(advantage_B != 0.0, dtype=jnp.float32),
  }
  return advantage_B, metrics


def _sample_deviation(found: Bundles) -> jax.Array:
  """Standard deviation (ddof = 1) of the scores of each response's bundle, every sample counted once, [B]."""
  num_B = groups.sum(jnp.where(found.first_B, 1.0, 0.0), found.bundle_B)
  mean_B = Ratio(groups.sum(jnp.where(found.first_B, found.score_B, 0.0), found.bundle_B), num_B).compute()
  squares_B = groups.sum(jnp.where(found.first_B, (found.score_B - mean_B) ** 2, 0.0), found.bundle_B)
  return jnp.sqrt(Ratio(squares_B, jnp.maximum(num_B - 1.0, 0.0)).compute())


def _share(found: Bundles, return_B: jax.Array, group_B: jax.Array, credit: str) -> jax.Array:
  """What a response gets of its bundle sample's advantage, [B]."""
  if credit == 'std':
    deviation_B = groups.std(return_B, group_B)
    return 1.0 / jnp.where(deviation_B <= 1e-3, 1.0, deviation_B)
  if credit == 'score':
    return jnp.where(return_B > 0.5, 0.5, 1.5)
  if credit == 'sum_mean':
    centred_B = groups.centred(return_B, group_B)
    total_B = groups.sum(centred_B, found.sample_B)
    balanced_B = jnp.abs(total_B) < 1e-6
    return jnp.where(balanced_B, 1.0 / groups.size(found.sample_B), centred_B / jnp.where(balanced_B, 1.0, total_B))
  return jnp.ones_like(return_B)


def _init_quantiles() -> PyTree:
  return {'quantile_S': jnp.zeros(LEVELS_S.shape, jnp.float32), 'num_rollouts': jnp.zeros((), jnp.int32)}


def track_quantiles(
  state: PyTree,
  return_B: jax.Array,
  group_B: jax.Array,
  sequence_B: jax.Array | None,
  key: jax.Array,
  mask_BxT: jax.Array,
  *,
  bundle: int = 5,
  alpha: float = 0.2,
  beta: float = 0.8,
  pairing: str = 'random',
  track_rate: float = 0.1,
) -> tuple[Planned, PyTree, Metrics]:
  """q_a and q_b of this rollout, and the tracked quantiles of bundle scores after it: q_s <- q_s + track_rate (s - mean 1[R < q_s]).

  The first rollout starts them at its own empirical quantiles; every later one is judged by the quantiles of those before it, and then
  moves them. Where P(R < q_s) = s they rest. A rollout without a valid token changes nothing.
  """
  found = bundle_samples(return_B, group_B, sequence_B, key, bundle=bundle, pairing=pairing)
  level_S = jnp.asarray(LEVELS_S)
  empirical_S = jax.vmap(lambda q: selection.quantile(found.score_B, found.first_B, q))(level_S)
  started = state['num_rollouts'] > 0
  quantile_S = jnp.where(started, state['quantile_S'], empirical_S)
  # A score that differs from q by rounding alone is not below it: q starts at the scores themselves.
  margin_S = ROUNDING * jnp.maximum(jnp.abs(quantile_S), 1.0)
  below_SxB = found.score_B[None, :] < (quantile_S - margin_S)[:, None]
  share_S = jax.vmap(lambda below_B: masked.mean(below_B.astype(jnp.float32), found.first_B))(below_SxB)
  moved_S = jnp.where(started, quantile_S + track_rate * (level_S - share_S), quantile_S)
  counted = jnp.any(mask_BxT)
  new = {
    'quantile_S': jnp.where(counted, moved_S, state['quantile_S']),
    'num_rollouts': state['num_rollouts'] + counted.astype(jnp.int32),
  }
  places = (int(np.argmin(np.abs(LEVELS_S - level))) for level in (alpha, beta))
  low, high = (quantile_S[place] for place in places)
  return {'low_quantile': low, 'high_quantile': high}, new, {}


def _check_levels(*, bundle: int, alpha: float, beta: float) -> None:
  if bundle != int(bundle):
    raise UserError(f'riskpo: bundle={bundle!r} is not a whole number of prompts: give an integer of at least 1.')
  if alpha >= beta:
    raise UserError(f'riskpo: alpha={alpha:g} is not below beta={beta:g}, and they bound the middle of the scores: give alpha < beta.')


riskpo = transform.advantage(
  'riskpo',
  riskpo_advantage,
  init=_init_quantiles,
  remember=track_quantiles,
  check=_check_levels,
  bundle='[1, inf)',
  alpha='(0, 1)',
  beta='(0, 1)',
  tail_weight='[0, inf)',
  tail='lower | upper',
  form='paper | released',
  pairing='random | given',
  quantiles='tracked | bundle',
  scale='none | bundle',
  credit='uniform | std | score | sum_mean',
  track_rate='[0, inf)',
)
