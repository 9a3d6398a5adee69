"""Advantages scaled token by token by how uncertain the policy was there: by its entropy, and by how little it trusts its best tokens."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.methods.advantages.whitened import whiten_tokens
from entropy_jax.ops import confidence as confidences
from entropy_jax.ops import groups, masked
from entropy_jax.types import Metrics, Ratio, VocabStat


def group_token_mean(x_BxT: jax.Array, group_B: jax.Array, mask_BxT: jax.Array) -> jax.Array:
  """Mean over all valid tokens of the group of each sequence, 0 where it has none, [B].

  >>> x, mask = jnp.array([[1., 3.], [5., 9.]]), jnp.array([[True, True], [True, False]])
  >>> group_token_mean(x, jnp.array([4, 4]), mask).tolist()
  [3.0, 3.0]
  """
  return Ratio(groups.sum(masked.total(x_BxT, mask_BxT, axis=1), group_B), groups.sum(masked.count(mask_BxT, axis=1), group_B)).compute()


def whiten_in_group(x_BxT: jax.Array, group_B: jax.Array, mask_BxT: jax.Array) -> jax.Array:
  """(x - mean) / sqrt(var + 1e-8) over the valid tokens of each group, var with ddof = 1; 0 where masked and in groups of equal values.

  >>> x = jnp.array([[1., 3.], [8., 8.]])
  >>> [round(z, 4) for z in whiten_in_group(x, jnp.array([0, 1]), jnp.ones((2, 2), bool)).ravel().tolist()]
  [-0.7071, 0.7071, 0.0, 0.0]
  """
  high_B = groups.max(jnp.max(jnp.where(mask_BxT, x_BxT, -jnp.inf), axis=1), group_B)
  low_B = groups.min(jnp.min(jnp.where(mask_BxT, x_BxT, jnp.inf), axis=1), group_B)
  varied_BxT = mask_BxT & (high_B > low_B)[:, None]
  centred_BxT = masked.zero(x_BxT - group_token_mean(x_BxT, group_B, mask_BxT)[:, None], varied_BxT)
  num_B = groups.sum(masked.count(mask_BxT, axis=1), group_B)
  variance_B = Ratio(groups.sum(jnp.sum(centred_BxT**2, axis=1), group_B), jnp.maximum(num_B - 1.0, 0.0)).compute()
  return centred_BxT * jax.lax.rsqrt(variance_B + 1e-8)[:, None]


def _echo_stats(*, confidence: str = 'meanprob', num: int = 5) -> tuple[VocabStat, ...]:
  return confidences.confidence_stats(confidence, num)


def echo_shaping_advantage(
  advantage_BxT: jax.Array,
  old_entropy_BxT: jax.Array,
  old_confidence_BxT: jax.Array,
  group_B: jax.Array,
  mask_BxT: jax.Array,
  *,
  strength: float = 0.1,
  entropy_scale: float = 1.0,
  confidence_scale: float = 1.0,
  bound: float = 2.0,
  additive: float = 0.0,
  whiten: bool = False,
) -> tuple[jax.Array, Metrics]:
  """The advantage times 1 + strength S, S large where entropy is high and confidence C low.

    S = clip(entropy_scale H + confidence_scale (1 - C), -bound, bound), with whiten of z(H) and z(1 - C), z over the batch's tokens
    A' = A (1 + strength S);   with additive: + additive (S - mean of S over the group's tokens)

  Args:
    advantage_BxT: float32 [B, T], of a base; the paper's is grpo on majority-vote rewards.
    old_entropy_BxT: float32 [B, T], behaviour policy, nats.
    old_confidence_BxT: float32 [B, T], behaviour policy, what the lift's `confidence` names: 'meanprob', the mean of the `num` largest
      probabilities; 'deepconf', minus the mean of their logarithms; 'sampled', the probability of the sampled token.
    group_B: int [B], prompt ids; read for additive alone.
    mask_BxT: bool [B, T].
    strength: a, at least 0.
    entropy_scale, confidence_scale: alpha and beta, at least 0.
    bound: s_max, above 0.
    additive: lambda, at least 0.
    whiten: the released form.

  Returns:
    (A, float32 [B, T]; metrics shaping, the mean of S, bounded_fraction, the share of tokens where |S| = bound, and confidence).

  Gradient: none, advantages are planned.
  Limits: the base for strength = additive = 0. The mean of the k largest probabilities is at most 1 / k, hence nearly a constant in a
    large vocabulary: with few tokens take num=1 or 2.
  Reference: Zhao et al., ECHO: Entropy-Confidence Hybrid Optimization for Test-Time Reinforcement Learning, arXiv 2602.02150.
  Differs: the released code whitens both parts; its scripts remove padding, which makes its confidence that of the sampled token.

  >>> H, same, mask = jnp.array([[1., 3.]]), jnp.full((1, 2), .2), jnp.ones((1, 2), bool)
  >>> A, _ = echo_shaping_advantage(jnp.ones((1, 2)), H, same, jnp.array([0]), mask, whiten=True)
  >>> [round(a, 5) for a in A[0].tolist()]
  [0.92929, 1.07071]
  """
  entropy_BxT, doubt_BxT = masked.zero(old_entropy_BxT, mask_BxT), masked.zero(1.0 - old_confidence_BxT, mask_BxT)
  if whiten:
    entropy_BxT, doubt_BxT = whiten_tokens(entropy_BxT, mask_BxT), whiten_tokens(doubt_BxT, mask_BxT)
  raw_BxT = entropy_scale * entropy_BxT + confidence_scale * doubt_BxT
  shaping_BxT = jnp.clip(raw_BxT, -bound, bound)
  shaped_BxT = masked.zero(advantage_BxT, mask_BxT) * (1.0 + strength * shaping_BxT)
  shaped_BxT = shaped_BxT + additive * (shaping_BxT - group_token_mean(shaping_BxT, group_B, mask_BxT)[:, None])
  metrics = {
    'shaping': masked.mean(shaping_BxT, mask_BxT),
    'bounded_fraction': masked.mean((jnp.abs(raw_BxT) >= bound).astype(jnp.float32), mask_BxT),
    'confidence': masked.mean(old_confidence_BxT, mask_BxT),
  }
  return masked.zero(shaped_BxT, mask_BxT), metrics


echo_shaping = transform.advantage(
  'echo_shaping',
  echo_shaping_advantage,
  stats=_echo_stats,
  init=confidences.no_state,
  remember=confidences.sampled_confidence,
  strength='[0, inf)',
  entropy_scale='[0, inf)',
  confidence_scale='[0, inf)',
  bound='(0, inf]',
  additive='[0, inf)',
  confidence=confidences.FORMS,
  num='[1, inf)',
)


def agentic_aepo_advantage(
  advantage_BxT: jax.Array,
  old_entropy_BxT: jax.Array,
  group_B: jax.Array,
  mask_BxT: jax.Array,
  *,
  strength: float = 0.3,
  pool: str = 'group',
) -> tuple[jax.Array, Metrics]:
  """The advantage times 1 + strength z(H): uncertain tokens learn more, whatever the outcome.

    A' = A (1 + strength z),   z = (H - mean H) / std H over the tokens of the pool

  Args:
    advantage_BxT: float32 [B, T], of grpo.
    old_entropy_BxT: float32 [B, T], behaviour policy, nats.
    group_B: int [B], prompt ids.
    mask_BxT: bool [B, T].
    strength: a, at least 0.
    pool: 'group', all tokens of the responses to the prompt; or 'batch', all tokens.

  Returns:
    (A, float32 [B, T]; the metric flipped_fraction, the share of tokens with 1 + strength z < 0).

  Gradient: none, advantages are planned.
  Limits: the base for strength = 0, for equal entropies and for a pool of one token. The sign turns where z < -1 / strength.
  Reference: Dong et al., Agentic Entropy-Balanced Policy Optimization, arXiv 2510.14545.
  Differs: UNCONFIRMED: the pool of z and the value of strength. A variant with a power, A (1 + z)^a, is undefined for z < -1.

  >>> A, _ = agentic_aepo_advantage(jnp.ones((1, 2)), jnp.array([[1., 3.]]), jnp.array([0]), jnp.ones((1, 2), bool))
  >>> [round(a, 4) for a in A[0].tolist()]      # z = -+.70711
  [0.7879, 1.2121]
  """
  normal_BxT = whiten_tokens(old_entropy_BxT, mask_BxT) if pool == 'batch' else whiten_in_group(old_entropy_BxT, group_B, mask_BxT)
  scale_BxT = 1.0 + strength * normal_BxT
  return masked.zero(scale_BxT * advantage_BxT, mask_BxT), {'flipped_fraction': masked.mean((scale_BxT < 0).astype(jnp.float32), mask_BxT)}


agentic_aepo = transform.advantage('agentic_aepo', agentic_aepo_advantage, strength='[0, inf)', pool='group | batch')
