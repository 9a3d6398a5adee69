"""Rewards by how long a response stays uncertain: its windows of high entropy, against what is usual for prompts of its difficulty."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.measures import windows
from entropy_jax.ops import groups, masked, selection
from entropy_jax.types import Metrics, Planned

State = Mapping[str, jax.Array]
_NUM_BUCKETS = 3  # easy, medium, hard
# Of the released reward, by bucket: factors of the cap, of the margin and of the bonus of wrong responses, and two scales.
_CAP, _MARGIN, _WRONG = (1.0, 1.0, 1.2), (0.15, 0.25, 0.35), (0.6, 0.8, 1.0)
_KAPPA, _TEMPERATURE = (2.0, 3.0, 4.0), (2.0, 2.5, 3.0)
_CAP_RATE, _CAP_MAX, _THRESHOLD_DECAY = 0.05, 2.0, 0.99


def huber(x: jax.Array, kappa: jax.Array) -> jax.Array:
  """x^2 / (2 kappa) up to kappa, x - kappa / 2 beyond: the slope grows to 1.

  >>> huber(jnp.array([1., 2., 4.]), jnp.array(2.)).tolist()
  [0.25, 1.0, 3.0]
  """
  return jnp.where(x <= kappa, x**2 / (2.0 * kappa), x - 0.5 * kappa)


def ares_state(*, initial: float | None = None) -> dict[str, jax.Array]:
  """What is remembered by bucket (targets, whether there is one yet, caps), and the released threshold with its number of updates."""
  return {
    'target': jnp.full(_NUM_BUCKETS, 0.0 if initial is None else initial, jnp.float32),
    'known': jnp.full(_NUM_BUCKETS, initial is not None),
    'cap': jnp.full(_NUM_BUCKETS, 0.5, jnp.float32),
    'threshold': jnp.zeros((), jnp.float32),
    'num_updates': jnp.zeros((), jnp.int32),
  }


def _by_bucket(x_B: jax.Array, bucket_B: jax.Array, counts_B: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(number, mean, population variance) of the responses that count in each bucket, every one of shape [3]."""
  member_3xB = (bucket_B[None, :] == jnp.arange(_NUM_BUCKETS)[:, None]) & counts_B[None, :]
  x_3xB = jnp.broadcast_to(x_B, member_3xB.shape)
  mean_3 = masked.mean(x_3xB, member_3xB, axis=1)
  return masked.count(member_3xB, axis=1), mean_3, masked.mean((x_3xB - mean_3[:, None]) ** 2, member_3xB, axis=1)


def ares_memory(
  state: State,
  old_entropy_BxT: jax.Array,
  reward_B: jax.Array,
  group_B: jax.Array,
  mask_BxT: jax.Array,
  *,
  form: str = 'paper',
  width: int = 4,
  percentile: float = 0.95,
  decay: float = 0.9,
  threshold: float = 0.5,
  epsilon: float = 1e-6,
) -> tuple[Planned, dict[str, jax.Array], Metrics]:
  """Counts the windows of high entropy of every response, and moves what is remembered of the usual count of each bucket.

  Args:
    state: from `ares_state`.
    old_entropy_BxT, reward_B, group_B, mask_BxT: the batch; responses without a token count in no mean.
    form, width, percentile, decay, threshold, epsilon: as `ares_reward`.

  Returns:
    (num_windows_B, bucket_B, target_B and scale_B, where scale is lambda of the bucket ('paper') or its cap ('released'); the state after
    the batch, unchanged by one without tokens; metrics).
  """
  counts_B = jnp.any(mask_BxT, axis=1)
  some = jnp.any(mask_BxT)
  bucket_B = groups.difficulty(reward_B, group_B, threshold=threshold)
  tau = windows.high_entropy_threshold(old_entropy_BxT, mask_BxT, percentile=percentile, width=width, form=form)
  new = dict(state)
  if form == 'paper':
    high_BxT = windows.high_entropy_windows(old_entropy_BxT, mask_BxT, tau, width=width)
  else:
    tau = jnp.where(state['num_updates'] > 0, _THRESHOLD_DECAY * state['threshold'] + (1.0 - _THRESHOLD_DECAY) * tau, tau)
    new['threshold'] = jnp.where(some, tau, state['threshold'])
    mean_BxT, full_BxT = windows.window_mean(old_entropy_BxT, mask_BxT, width=width, start='after')
    high_BxT = full_BxT & (selection.coarse(mean_BxT) >= selection.coarse(tau))
  num_B = masked.count(high_BxT, axis=1)
  size_3, mean_3, variance_3 = _by_bucket(num_B, bucket_B, counts_B)
  present_3 = size_3 > 0.0
  if form == 'paper':
    target_3 = jnp.where(state['known'], state['target'], mean_3)
    scale_3 = jnp.where(present_3, jnp.maximum(mean_3 - target_3, 0.0) / (variance_3 + epsilon), 0.0)
    new['target'] = jnp.where(present_3, decay * target_3 + (1.0 - decay) * mean_3, state['target'])
    new['known'] = state['known'] | present_3
  else:
    target_3 = jnp.round(mean_3)
    scale_3 = state['cap']
    direction_3 = jnp.array([1.0, 1.0, -1.0], jnp.float32)
    moved_3 = jnp.clip(scale_3 + _CAP_RATE * direction_3 * (mean_3 - target_3), 0.0, _CAP_MAX)
    new['cap'] = jnp.where(present_3, moved_3, scale_3)
  new['num_updates'] = state['num_updates'] + some.astype(jnp.int32)
  names = ('easy', 'medium', 'hard')
  logged = {'windows': mean_3, 'target': target_3, 'scale': scale_3}
  metrics = {f'{what}_{name}': x_3[i] for what, x_3 in logged.items() for i, name in enumerate(names)}
  values = {'num_windows_B': num_B, 'bucket_B': bucket_B, 'target_B': target_3[bucket_B], 'scale_B': scale_3[bucket_B]}
  return values, new, {'threshold': tau, **metrics}


def _released(correct_B: jax.Array, excess_B: jax.Array, target_B: jax.Array, scale_B: jax.Array, bucket_B: jax.Array) -> jax.Array:
  """What the released code adds to the accuracy."""
  cap_B, margin_B, wrong_B, kappa_B, temperature_B = (
    jnp.array(by_bucket, jnp.float32)[bucket_B] for by_bucket in (_CAP, _MARGIN, _WRONG, _KAPPA, _TEMPERATURE)
  )
  cap_B = cap_B * scale_B
  margin_B = jnp.maximum(margin_B * target_B, 1.0)

  def cost(beyond_B: jax.Array, factor: float) -> jax.Array:
    return jnp.minimum(factor * huber(jnp.maximum(beyond_B, 0.0), kappa_B) / (margin_B + kappa_B) * cap_B, cap_B)

  hard_B = jnp.where(
    excess_B >= -margin_B, jax.nn.sigmoid((excess_B + margin_B) / temperature_B) * cap_B, -cost(-excess_B - margin_B, 0.5)
  )
  beyond_B = jnp.where(bucket_B == 1, jnp.abs(excess_B), excess_B) - margin_B
  right_B = jnp.where(bucket_B == 2, hard_B, -cost(beyond_B, 1.0))
  bonus_B = jax.nn.sigmoid(jnp.maximum(excess_B - margin_B, 0.0) / temperature_B) * cap_B * wrong_B
  return jnp.where(correct_B, right_B, bonus_B)


def ares_reward(
  reward_B: jax.Array,
  num_windows_B: jax.Array,
  bucket_B: jax.Array,
  target_B: jax.Array,
  scale_B: jax.Array,
  *,
  form: str = 'paper',
  threshold: float = 0.5,
) -> tuple[jax.Array, Metrics]:
  """A wrong response pays for being uncertain more often than is usual where the prompt is easy, or less often where it is hard.

    R - lambda g(N - N*) if wrong;   g = max(0, D) easy, |D| medium, max(0, -D) hard;   lambda = max(0, (mean N - N*) / (var N + epsilon))
    N: windows of w tokens with mean entropy above tau;   tau: mean over responses of a percentile of their token entropies

  Means and variances are over the batch's responses to prompts of the same difficulty; N* is remembered from the batches before.

  Args:
    reward_B: float32 [B], outcome.
    num_windows_B: float32 [B], N.
    bucket_B: int [B], from `difficulty`.
    target_B: float32 [B], N* of the bucket.
    scale_B: float32 [B], lambda of the bucket, or a of the released code.
    form: 'paper', or 'released', a reward with six branches that also acts on correct responses.
    threshold: a response is correct if its outcome is above it.

  The lift counts and remembers by itself, with width w = 4, percentile = .95, decay of N* from batch to batch, epsilon = 1e-6, and
  initial, N* before the first batch (None: that batch's own mean).

  Returns:
    (reward_B, float32 [B]; metrics num_windows, its mean, and shaping, the mean of |change|; the lift adds threshold, and windows, target
    and scale by bucket).

  Gradient: none, rewards are planned.
  Limits: with N* the same batch's mean, which is what the paper writes, lambda is 0 and nothing happens: here N* is that of the
    batches before. The outcome where every response is correct.
  Reference: Chen et al., ARES: Multimodal Adaptive Reasoning via Difficulty-Aware Token-Level Entropy Shaping, arXiv 2510.08457,
    section 3.2.
  Differs: decay is ours. The released code counts only windows that follow one of its trigger words, which need a tokenizer: here all;
    it takes the w tokens after t, tau as an average over batches (decay .99) of the median of the windows' percentiles, and N* as the
    rounded mean of the same batch. Its wrong responses earn a constant even with N <= N*, because sigmoid(0) = .5.

  >>> N, easy = jnp.array([4., 6., 8.]), jnp.zeros(3, int)
  >>> R, _ = ares_reward(jnp.array([1., 1., 0.]), N, easy, jnp.full(3, 5.), jnp.full(3, .375))      # lambda = (6 - 5) / (8 / 3)
  >>> R.tolist()
  [1.0, 1.0, -1.125]
  """
  correct_B = reward_B > threshold
  excess_B = num_windows_B - target_B
  if form == 'paper':
    beyond_B = jnp.where(bucket_B == 0, excess_B, jnp.where(bucket_B == 1, jnp.abs(excess_B), -excess_B))
    shaping_B = jnp.where(correct_B, 0.0, -scale_B * jnp.maximum(beyond_B, 0.0))
  else:
    shaping_B = _released(correct_B, excess_B, target_B, scale_B, bucket_B)
  return reward_B + shaping_B, {'num_windows': jnp.mean(num_windows_B), 'shaping': jnp.mean(jnp.abs(shaping_B))}


ares = transform.reward(
  'ares',
  ares_reward,
  init=ares_state,
  remember=ares_memory,
  form='paper | released',
  width='[1, inf)',
  percentile='[0, 1]',
  decay='[0, 1]',
  threshold='[-inf, inf]',
  epsilon='(0, inf)',
  initial='[0, inf)',
)
