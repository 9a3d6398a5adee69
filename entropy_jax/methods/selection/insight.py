"""InSight: train on the prompts whose outcome would teach most about how often the policy solves them.

Every prompt has a Beta(a, b) belief about its success probability. The information that K rollouts would give is the mutual information of
the number of successes and that probability. It is a difference of two entropies that are nearly equal once a prompt is well known, so it
is computed here by the chain rule instead, as a sum of positive terms without cancellation: float32 is enough for any a + b.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from entropy_jax import transform
from entropy_jax.ops import selection
from entropy_jax.types import UserError

SCORES = 'insight | random | mopps | expected_difficulty | inverse_evidence'
_SERIES = 8.0  # from here on an asymptotic series is exact in float32
_HALF_LN_2PI = 0.9189385332046727


def _digamma_rest(x: jax.Array) -> jax.Array:
  """ln x - 1 / (2 x) - psi(x) > 0, which is 1 / (12 x^2) for large x."""
  large, small = jnp.where(x < _SERIES, _SERIES, x), jnp.where(x < _SERIES, x, _SERIES)
  y = 1.0 / large**2
  series = y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y / 240)))
  return jnp.where(x < _SERIES, jnp.log(small) - 0.5 / small - jax.scipy.special.digamma(small), series)


def _lgamma_rest(x: jax.Array) -> jax.Array:
  """ln Gamma(x) - ((x - 1 / 2) ln x - x + ln(2 pi) / 2) > 0, which is 1 / (12 x) for large x."""
  large, small = jnp.where(x < _SERIES, _SERIES, x), jnp.where(x < _SERIES, x, _SERIES)
  y = 1.0 / large**2
  series = (1 / 12 - y * (1 / 360 - y * (1 / 1260 - y / 1680))) / large
  direct = jax.scipy.special.gammaln(small) - (small - 0.5) * jnp.log(small) + small - _HALF_LN_2PI
  return jnp.where(x < _SERIES, direct, series)


def beta_entropy(a: jax.Array, b: jax.Array) -> jax.Array:
  """Differential entropy of Beta(a, b), ln B(a, b) - (a - 1) psi(a) - (b - 1) psi(b) + (a + b - 2) psi(a + b), nats.

  Args:
    a, b: > 0, same shape.

  Returns:
    float32; 0 for the uniform Beta(1, 1) and negative for all others.

  Gradient: flows.
  Limits: written with the remainders of Stirling's series, so that the large terms, which cancel, are never formed: good for any a + b.

  >>> [round(float(beta_entropy(jnp.float32(x), jnp.float32(y))), 4) for x, y in ((1., 1.), (2., 2.), (1., 9.))]
  [0.0, -0.1251, -1.3083]
  """
  a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
  n = a + b
  logs = 0.5 * (jnp.log(a) + jnp.log(b)) - 1.5 * jnp.log(n) + _HALF_LN_2PI
  halves = 0.5 - 0.5 / a - 0.5 / b + 1.0 / n
  rests = (a - 1.0) * _digamma_rest(a) + (b - 1.0) * _digamma_rest(b) - (n - 2.0) * _digamma_rest(n)
  return logs + halves + rests + _lgamma_rest(a) + _lgamma_rest(b) - _lgamma_rest(n)


def _one_rollout(a: jax.Array, b: jax.Array) -> jax.Array:
  """Information of one rollout: phi g(a) + (1 - phi) g(b) - g(n), g(x) = psi(x + 1) - ln x = 1 / (2 x) - rest."""
  n = a + b

  def share(x: jax.Array) -> jax.Array:  # x g(x) / n; the halves add up to 1 / n, and g(n) takes 1 / (2 n) of it
    return x * _digamma_rest(x) / n

  return 0.5 / n - share(a) - share(b) + _digamma_rest(n)


def information_gain(a: jax.Array, b: jax.Array, *, num_rollouts: int = 8) -> jax.Array:
  """Mutual information of the successes of K rollouts and the success probability.

  I = Hb(a, b) - sum_{s <= K} BetaBin(s; K, a, b) Hb(a + s, b + K - s), with Hb the entropy of the belief.

  Args:
    a, b: float32 [...], > 0, the belief.
    num_rollouts: K >= 1.

  Returns:
    [...], float32 nats, > 0: falls with a + b, grows with K, unchanged when a and b are exchanged.

  Gradient: flows.
  Limits: 1 / (2 (a + b)) for one rollout and a well-known prompt. Equal to the formula above: by the chain rule
    I = sum_{k < K} E_{s ~ BetaBin(k)} I_1(a + s, b + k - s), and the weights follow Polya's urn, so no large terms cancel.
  Reference: InSight, data selection by weighted mutual information, arXiv 2603.01907.

  >>> round(float(information_gain(jnp.array(1.), jnp.array(1.), num_rollouts=1)), 6)      # ln 2 - 1 / 2
  0.193147
  """
  if not isinstance(num_rollouts, int) or isinstance(num_rollouts, bool) or num_rollouts < 1:
    raise UserError(f'insight: num_rollouts={num_rollouts!r} is no number of rollouts; give an integer of at least 1.')
  a, b = jnp.asarray(a, jnp.float32)[..., None], jnp.asarray(b, jnp.float32)[..., None]
  s_S = jnp.arange(num_rollouts, dtype=jnp.float32).reshape((1,) * (a.ndim - 1) + (num_rollouts,))

  def turn(k: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    prob_xS, total_x = carry  # the probability of s successes in k rollouts
    failures_xS = jnp.maximum(k - s_S, 0.0)
    gain_xS = jnp.where(s_S <= k, prob_xS * _one_rollout(a + s_S, b + failures_xS), 0.0)
    solved_xS = prob_xS * (a + s_S) / (a + b + k)
    shifted_xS = jnp.concatenate([jnp.zeros_like(a), solved_xS[..., :-1]], axis=-1)
    return prob_xS * (b + failures_xS) / (a + b + k) + shifted_xS, total_x + jnp.sum(gain_xS, axis=-1)

  first_xS = jnp.where(s_S == 0, 1.0, jnp.zeros(jnp.broadcast_shapes(a.shape, b.shape)))
  start = (first_xS, jnp.zeros(first_xS.shape[:-1], jnp.float32))
  return jax.lax.fori_loop(0, num_rollouts, turn, start)[1]


def expected_variance_reduction(a: jax.Array, b: jax.Array, *, num_rollouts: int = 8) -> jax.Array:
  """By how much K rollouts reduce the variance of the success probability on average: K phi (1 - phi) / ((n + 1) (n + K)), n = a + b.

  >>> round(float(expected_variance_reduction(jnp.array(1.), jnp.array(1.), num_rollouts=1)), 6)     # 1 / 36
  0.027778
  """
  n = a + b
  return num_rollouts * (a / n) * (b / n) / ((n + 1.0) * (n + num_rollouts))


def difficulty_weight(a: jax.Array, b: jax.Array, *, eta: float = 3.0, mu: float = 0.5) -> jax.Array:
  """w = phi (1 - phi) exp(-eta (phi - mu)^2), phi = a / (a + b): how likely a group is to teach, and how near to the wanted difficulty.

  Args:
    a, b: float32, > 0.
    eta: >= 0; 0 for no preference beside phi (1 - phi).
    mu: the success probability that is preferred.

  Limits: largest at phi = .5 for mu = .5.
  Differs: the paper states mu = 3, outside [0, 1]; with eta = 3 it prefers prompts of phi = .93. Here .5, and mu=3.0 gives the stated one.
  """
  phi = a / (a + b)
  return phi * (b / (a + b)) * jnp.exp(-eta * (phi - mu) ** 2)


class Beliefs(struct.PyTreeNode):
  """Beta(a, b) of every prompt, and how often it was rolled out; a pytree of arrays, for `jit` and for checkpoints."""

  a_N: jax.Array  # float32
  b_N: jax.Array  # float32
  visits_N: jax.Array  # int32, times in a training batch


def initial_beliefs(num_prompts: int, *, prior_a: float = 1.0, prior_b: float = 1.0) -> Beliefs:
  """The prior for every prompt."""
  for key, value in (('prior_a', prior_a), ('prior_b', prior_b)):
    transform.check_range('insight', key, value, '(0, inf)')
  full = functools.partial(jnp.full, (num_prompts,))
  return Beliefs(full(prior_a, jnp.float32), full(prior_b, jnp.float32), full(0, jnp.int32))


def update_beliefs(
  beliefs: Beliefs,
  prompt_M: jax.Array,
  num_correct_M: jax.Array,
  num_rollouts: int | jax.Array,
  *,
  keep: float = 1.0,
  prior_a: float = 1.0,
  prior_b: float = 1.0,
) -> Beliefs:
  """After K rollouts with S successes: a <- keep a + (1 - keep) a0 + S, b <- keep b + (1 - keep) b0 + K - S.

  Args:
    beliefs: before.
    prompt_M: int, the prompts that were rolled out, each once.
    num_correct_M: S; rewards that are not 0 or 1 must be made so first.
    num_rollouts: K, of all or [M].
    keep: lambda in [0, 1]; 1 never forgets, while the policy moves.
    prior_a, prior_b: what is forgotten towards.

  >>> after = update_beliefs(initial_beliefs(3), jnp.array([2]), jnp.array([5]), 8)
  >>> after.a_N.tolist(), after.b_N.tolist(), after.visits_N.tolist()
  ([1.0, 1.0, 6.0], [1.0, 1.0, 4.0], [0, 0, 1])
  """
  transform.check_range('insight', 'keep', keep, '[0, 1]')
  correct_M = jnp.asarray(num_correct_M, jnp.float32)
  a_M = keep * beliefs.a_N[prompt_M] + (1.0 - keep) * prior_a + correct_M
  b_M = keep * beliefs.b_N[prompt_M] + (1.0 - keep) * prior_b + jnp.asarray(num_rollouts, jnp.float32) - correct_M
  return Beliefs(beliefs.a_N.at[prompt_M].set(a_M), beliefs.b_N.at[prompt_M].set(b_M), beliefs.visits_N.at[prompt_M].add(1))


def scores(
  beliefs: Beliefs, key: jax.Array, *, score: str = 'insight', num_rollouts: int = 8, eta: float = 3.0, mu: float = 0.5
) -> jax.Array:
  """How much each prompt is wanted, float32 [N]; only the order matters.

  Args:
    beliefs: of N prompts.
    key: PRNG key, of 'random' and 'mopps'.
    score: 'insight', w I; 'random'; 'mopps', minus the distance of a draw from the belief to .5; 'expected_difficulty', minus the distance
      of the belief's mean to .5; 'inverse_evidence', 1 / (a + b).
    num_rollouts, eta, mu: of 'insight'.

  Differs: UNCONFIRMED for 'inverse_evidence', whose formula is not given in full.
  """
  transform.check_range('insight', 'score', score, SCORES)
  a_N, b_N = beliefs.a_N, beliefs.b_N
  if score == 'insight':
    return difficulty_weight(a_N, b_N, eta=eta, mu=mu) * information_gain(a_N, b_N, num_rollouts=num_rollouts)
  if score == 'random':
    return jax.random.uniform(key, a_N.shape)
  if score == 'mopps':
    return -jnp.abs(jax.random.beta(key, a_N, b_N) - 0.5)
  return -jnp.abs(a_N / (a_N + b_N) - 0.5) if score == 'expected_difficulty' else 1.0 / (a_N + b_N)


def choose_prompts(
  beliefs: Beliefs,
  key: jax.Array,
  num: int,
  *,
  num_candidates: int | None = None,
  score: str = 'insight',
  num_rollouts: int = 8,
  eta: float = 3.0,
  mu: float = 0.5,
) -> jax.Array:
  """The next training batch: candidates drawn without replacement, and of them the M with the largest score, int32 [M], best first.

  Args:
    beliefs: of N prompts.
    key: PRNG key.
    num: M.
    num_candidates: in [M, N]; None for 16 M, or all where there are fewer.
    others: as `scores`.

  Limits: prompts of equal score (up to 1.2e-4 relative), as all are at the start, stand in random order.
  Reference: arXiv 2603.01907, M = 256 of 16 M candidates, K = 8.
  """
  num_prompts = beliefs.a_N.shape[0]
  candidates = min(16 * num, num_prompts) if num_candidates is None else num_candidates
  if not 1 <= num <= candidates <= num_prompts:
    raise UserError(
      f'insight: num={num} of num_candidates={candidates} of {num_prompts} prompts; give 1 <= num <= num_candidates <= prompts.'
    )
  order_key, score_key = jax.random.split(key)
  shuffled_N = jax.random.permutation(order_key, num_prompts)[:candidates]
  value_N = scores(beliefs, score_key, score=score, num_rollouts=num_rollouts, eta=eta, mu=mu)
  best_first = jnp.argsort(-selection.coarse(value_N[shuffled_N]), stable=True)
  return shuffled_N[best_first[:num]].astype(jnp.int32)
