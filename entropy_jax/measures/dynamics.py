"""How a policy update moves the entropy: the covariance theory of a softmax row, the single-token discriminator, and batch estimators.

Row functions take `logits_xV` with any leading axes (before the update, divided by the temperature) and return one number a row. The
tabular identity holds for one free logit per action; with shared parameters or Adam compare signs and correlations only. A float32 entropy
carries about 2e-7 nats of rounding, so average many rows before reading changes below 1e-5.
"""

import jax
import jax.numpy as jnp

from entropy_jax.ops import categorical, covariance, groups, masked, selection
from entropy_jax.types import Metrics, Ratio, VocabStat


def _probs(logits_xV: jax.Array) -> tuple[jax.Array, jax.Array]:
  logp_xV = categorical.log_probs(logits_xV)
  return jnp.exp(logp_xV), logp_xV


def centre_advantage(logits_xV: jax.Array, advantage_xV: jax.Array) -> jax.Array:
  """A - E_p[A], the advantage over the value of the state; a no-op, up to rounding, when A is centred already."""
  p_xV, _ = _probs(logits_xV)
  return advantage_xV - categorical.weighted_sum(p_xV, advantage_xV)[..., None]


def policy_gradient_covariance(logits_xV: jax.Array, advantage_xV: jax.Array) -> jax.Array:
  """Cov_{a~p}(ln p, p A), with A centred under p: minus the entropy change per unit step of the exact policy gradient.

  Args:
    logits_xV: [..., V], may hold -inf.
    advantage_xV: [..., V], advantage of every action; Q values or rewards are centred here.

  Returns:
    [...], float32; positive when the entropy will fall.

  Gradient: flows to both arguments; callers that only log or select stop it.
  Limits: 0 at equal logits and at A = 0; unchanged when a constant is added to A.
  Reference: Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, arXiv 2505.22617, Theorem 1.

  >>> p, A = jnp.array([.5, .3, .2]), jnp.array([.5, -.5, -.5])
  >>> round(float(policy_gradient_covariance(jnp.log(p), A)), 6), round(float(natural_policy_gradient_covariance(jnp.log(p), A)), 6)
  (0.061503, 0.168253)
  """
  p_xV, logp_xV = _probs(logits_xV)
  return categorical.covariance(p_xV, logp_xV, p_xV * centre_advantage(logits_xV, advantage_xV))


def natural_policy_gradient_covariance(logits_xV: jax.Array, advantage_xV: jax.Array) -> jax.Array:
  """Cov_{a~p}(ln p, A): minus the entropy change per unit step of the natural policy gradient.

  Args, Returns, Gradient, Limits: as `policy_gradient_covariance`; it needs no centring, a covariance does that itself.

  Reference: Cui et al., arXiv 2505.22617, Theorem 2.
  Differs: the token score of Clip-Cov and KL-Cov is the integrand of this theorem, not of the first (see `token_covariance`).
  """
  p_xV, logp_xV = _probs(logits_xV)
  return categorical.covariance(p_xV, logp_xV, advantage_xV)


def predicted_entropy_change(logits_xV: jax.Array, change_xV: jax.Array) -> jax.Array:
  """First-order change of entropy along any move of the logits: dH = -Cov_{a~p}(ln p, dz) = sum_a (dH/dz_a) dz_a.

  Args:
    logits_xV: [..., V], before the update, may hold -inf.
    change_xV: [..., V], logits after minus logits before; what it holds at impossible tokens does not matter.

  Returns:
    [...], nats.

  Gradient: flows to both arguments.
  Limits: unchanged when a constant is added to dz; the error is `second_order_coefficient` / 2 plus third order.
  Reference: Cui et al., arXiv 2505.22617, Lemma 1.
  """
  return -natural_policy_gradient_covariance(logits_xV, change_xV)


def predicted_entropy_change_policy_gradient(
  logits_xV: jax.Array, advantage_xV: jax.Array, step_size: jax.Array | float
) -> jax.Array:
  """dH = -eta Cov_p(ln p, p A): the move is dz = eta p A, one exact policy-gradient step of a tabular softmax, [...], nats.

  The weight of the state's visits and 1 / (1 - discount) belong in `step_size`. Reference: arXiv 2505.22617, Theorem 1.
  """
  return -step_size * policy_gradient_covariance(logits_xV, advantage_xV)


def predicted_entropy_change_natural_policy_gradient(
  logits_xV: jax.Array, advantage_xV: jax.Array, step_size: jax.Array | float
) -> jax.Array:
  """dH = -eta Cov_p(ln p, A): the move is dz = eta A, one natural-policy-gradient step, [...], nats.

  Reference: arXiv 2505.22617, Theorem 2.
  """
  return -step_size * natural_policy_gradient_covariance(logits_xV, advantage_xV)


def second_order_coefficient(logits_xV: jax.Array, direction_xV: jax.Array) -> jax.Array:
  """C2 of H(z + eta d) = H - eta Cov_p(ln p, d) + eta^2 C2 / 2 + O(eta^3): -Var_p(d) - E_p[(d - E d)^2 (ln p - E ln p)].

  Args:
    logits_xV: [..., V], may hold -inf.
    direction_xV: [..., V].

  Returns:
    [...], float32; the second derivative of the entropy along d, which says how far a step may go before the theorems bend.

  Gradient: flows to both arguments.
  Limits: -Var_p(d) at equal logits; 0 for a constant direction.

  >>> p, A = jnp.array([.5, .3, .2]), jnp.array([.5, -.5, -.5])
  >>> round(float(second_order_coefficient(jnp.log(p), A)), 6)
  -0.25
  """
  p_xV, logp_xV = _probs(logits_xV)
  centred_xV = direction_xV - categorical.weighted_sum(p_xV, direction_xV)[..., None]
  square_xV = jnp.where(p_xV > 0, centred_xV, 0.0) ** 2
  # E[(d - E d)^2 (ln p - E ln p)] is the covariance of the square with ln p.
  return -categorical.weighted_sum(p_xV, square_xV) - categorical.covariance(p_xV, square_xV, logp_xV)


def measured_entropy_change(logits_before_xV: jax.Array, logits_after_xV: jax.Array) -> jax.Array:
  """H(after) - H(before), [...], nats: what the predictions are compared with."""
  return categorical.entropy(logits_after_xV) - categorical.entropy(logits_before_xV)


def entropy_discriminator(logits_xV: jax.Array) -> jax.Array:
  """S_j = p_j (H + ln p_j) of every token of the vocabulary; raising logit j by e changes the entropy by -e S_j.

  Args:
    logits_xV: [..., V], may hold -inf.

  Returns:
    [..., V], float32; sums to 0 over j, positive where p_j > e^-H, 0 at impossible tokens.

  Gradient: flows.
  Limits: 0 everywhere at equal logits.
  Reference: On the Entropy Dynamics in Reinforcement Fine-Tuning of Large Language Models, Theorem 3.2 and Lemma 3.1.

  >>> [round(s, 6) for s in entropy_discriminator(jnp.log(jnp.array([.5, .3, .2]))).tolist()]
  [0.168253, -0.052296, -0.115957]
  """
  return -categorical.entropy_gradient(logits_xV)


def token_discriminator(logp_BxT: jax.Array, entropy_BxT: jax.Array) -> jax.Array:
  """S_k = p_k (H + ln p_k) of the sampled token, from its log-probability and the entropy of its row, [B, T]; 0 at p_k = 0."""
  p_BxT = jnp.exp(logp_BxT)
  return jnp.where(p_BxT > 0, p_BxT * (entropy_BxT + jnp.where(p_BxT > 0, logp_BxT, 0.0)), 0.0)


def expected_discriminator(logits_xV: jax.Array) -> jax.Array:
  """E_{k~p}[S_k] = sum_j p_j S_j = H sum_j p_j^2 + sum_j p_j^2 ln p_j, [...], float32.

  Gradient: flows; 0 towards -inf logits.
  Limits: 0 at equal logits and for a row with one possible token.
  Reference: On the Entropy Dynamics in Reinforcement Fine-Tuning of Large Language Models, Theorem 3.3.

  >>> round(float(expected_discriminator(jnp.log(jnp.array([.5, .3, .2])))), 7)
  0.0452463
  """
  p_xV, _ = _probs(logits_xV)
  return categorical.weighted_sum(p_xV, entropy_discriminator(logits_xV))


# Asked of the scoring pass, which sees the whole vocabulary row; `._replace(of='behaviour')` for the policy that sampled.
expected_discriminator_stat = VocabStat('expected_discriminator', expected_discriminator)


def predicted_entropy_change_token(
  logp_BxT: jax.Array, entropy_BxT: jax.Array, expected_discriminator_BxT: jax.Array, alpha_BxT: jax.Array
) -> jax.Array:
  """dH = -alpha (S_k - E[S]): entropy change of a row whose logits move by alpha (e_k - p), the gradient of one sampled token.

  Args:
    logp_BxT: float32, ln p of the sampled token k before the update.
    entropy_BxT: float32, entropy of its row.
    expected_discriminator_BxT: float32, E[S] of its row, from `expected_discriminator_stat`.
    alpha_BxT: float32, how far the logits move: step size times ratio times advantage, times 1 / N (or 1 / (G |o|)) when the loss is
      averaged, and 0 where the ratio is clipped.

  Returns:
    [B, T], nats; padded tokens hold whatever came in, so reduce with the mask.

  Gradient: flows.
  Limits: its expectation over k ~ p is 0 for equal alpha, and -eta Cov_p(ln p, p A) for alpha = eta A_k with centred A.
  Reference: On the Entropy Dynamics in Reinforcement Fine-Tuning of Large Language Models, Theorem 3.3 and Corollaries 3.4, 3.5.
  """
  return -alpha_BxT * (token_discriminator(logp_BxT, entropy_BxT) - expected_discriminator_BxT)


def token_covariance(logp_BxT: jax.Array, advantage_BxT: jax.Array, mask_BxT: jax.Array) -> tuple[jax.Array, Ratio]:
  """Centred product of every token, (lp - mean lp) (A - mean A), and its mean, the covariance over the batch.

  Args:
    logp_BxT: float32, log-probability of the sampled token.
    advantage_BxT: float32.
    mask_BxT: bool.

  Returns:
    (score [B, T], 0 where masked; Ratio of its mean). The two means are plain means over the valid tokens of the arrays given, so
    pass the whole batch: slices centre themselves and their Ratios do not merge into this one.

  Gradient: none, it selects and logs.
  Reference: Cui et al., arXiv 2505.22617, Eq. 10.
  Differs: this is the integrand of Theorem 2 (A, not p A), centred by means over the batch that mix states.

  >>> p, A = jnp.array([[.9, .05, .6, .1]]), jnp.array([[2., .5, -1., -1.5]])
  >>> score, mean = token_covariance(jnp.log(p), A, jnp.ones((1, 4), bool))
  >>> [round(s, 4) for s in score[0].tolist()], round(float(mean.compute()), 4)
  ([2.7465, -0.7586, -0.9678, 1.2359], 0.564)
  """
  score_BxT = covariance.token_covariance(logp_BxT, advantage_BxT, mask_BxT)
  return score_BxT, masked.mean_ratio(score_BxT, mask_BxT)


def sequence_covariance(
  logp_BxT: jax.Array, advantage_B: jax.Array, mask_BxT: jax.Array, group_B: jax.Array, *, natural: bool = False
) -> Ratio:
  """Mean over prompts of the covariance, over the responses to one prompt, of l_i = (1 / n_i) sum_t lp_it with e^l_i A_i or A_i.

  Args:
    logp_BxT: float32, log-probability of the sampled tokens.
    advantage_B: float32, one advantage a response.
    mask_BxT: bool.
    group_B: int32, prompt ids; groups may be unequal in size and interleaved.
    natural: False for e^l A (Theorem 1), True for A (Theorem 2).

  Returns:
    Ratio over the prompts that have at least two responses with a token (one response has no covariance). Ratios of slices merge when
    every prompt lies in one slice.

  Gradient: none, it is logged.
  Limits: 0 when all responses are equally likely, and, for `natural`, when all advantages of a prompt are equal.
  Reference: Cui et al., arXiv 2505.22617, Eq. 8-9. The covariance over a group is the population one (divided by G, not G - 1).
  """
  logp_BxT, advantage_B = jax.lax.stop_gradient((logp_BxT, advantage_B))
  counts_B = jnp.any(mask_BxT, axis=1)
  level_B = masked.mean(logp_BxT, mask_BxT, axis=1)
  other_B = masked.zero(advantage_B, counts_B)
  other_B = other_B if natural else jnp.exp(level_B) * other_B
  size_B = groups.sum(counts_B.astype(jnp.float32), group_B)  # responses with a token in the group of each response
  counts_B = counts_B & (size_B >= 2.0)

  def centred(x_B: jax.Array) -> jax.Array:
    mean_B = Ratio(groups.sum(masked.zero(x_B, counts_B), group_B), size_B).compute()
    return masked.zero(x_B - mean_B, counts_B)

  # 1 / size for every response makes each prompt weigh 1.
  share_B = masked.zero(1.0 / jnp.maximum(size_B, 1.0), counts_B)
  return Ratio(jnp.sum(share_B * centred(level_B) * centred(other_B)), jnp.sum(share_B))


def top_fraction_mean(score_BxT: jax.Array, mask_BxT: jax.Array, *, fraction: float) -> jax.Array:
  """Mean of the largest `fraction` of the valid scores (a fraction, not a percentage; at least one token), and 0 with no token.

  Reference: Cui et al., arXiv 2505.22617, the table of token covariance by rank (0.0002, 0.002, 0.02, 0.2, 1).
  """
  num_tokens = jnp.sum(mask_BxT, dtype=jnp.int32)
  chosen_BxT = selection.top(score_BxT, mask_BxT, selection.fraction_of(num_tokens, fraction))
  return masked.mean(score_BxT, chosen_BxT)


def covariance_summary(score_BxT: jax.Array, mask_BxT: jax.Array, *, bound: float | None = None) -> Metrics:
  """What is logged of a token score: its mean, median, 99th percentile, largest, the mean of its top 2 %, and how much exceeds a bound.

  Args:
    score_BxT: float32, from `token_covariance`.
    mask_BxT: bool.
    bound: None, or the value above which (strictly) tokens would be selected.

  Returns:
    dict of float32 scalars over the valid tokens: mean, p50, p99, max, top_2_percent and, with a bound, fraction_above; 0 with no token.

  >>> score = jnp.array([[2.7465, -.7586, -.9678, 1.2359]])
  >>> float(covariance_summary(score, jnp.ones((1, 4), bool), bound=1.)['fraction_above'])
  0.5
  """
  summary = {
    'mean': masked.mean(score_BxT, mask_BxT),
    'p50': selection.quantile(score_BxT, mask_BxT, 0.5),
    'p99': selection.quantile(score_BxT, mask_BxT, 0.99),
    'max': masked.extreme(score_BxT, mask_BxT),
    'top_2_percent': top_fraction_mean(score_BxT, mask_BxT, fraction=0.02),
  }
  if bound is not None:
    summary['fraction_above'] = masked.mean((score_BxT > bound).astype(jnp.float32), mask_BxT)
  return summary
