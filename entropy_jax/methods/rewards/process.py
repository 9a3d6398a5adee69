"""Rewards of a process model that was trained on outcomes alone: its log-ratio to a reference is a reward for every token."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import masked
from entropy_jax.types import Metrics, Ratio


def process_values(process_logp_BxT: jax.Array, ref_logp_BxT: jax.Array, mask_BxT: jax.Array, *, beta: float = 0.05) -> jax.Array:
  """q_t = beta sum_{s <= t} (ln pi_phi - ln pi_ref)_s, what the model expects of the outcome after token t, float32 [B, T].

  It is the soft expectation beta ln E_{pi_ref}[exp(r(y) / beta) | y_<=t] of the outcome reward r(y) = q_T; the last valid token holds r(y).

  Args:
    process_logp_BxT: float32 [B, T], log-prob of the sampled tokens under the process model.
    ref_logp_BxT: float32 [B, T], under its reference.
    mask_BxT: bool [B, T].
    beta: above 0.

  Gradient: beta to the log-prob of every token up to t.
  Reference: Yuan et al., Free Process Rewards without Process Labels, arXiv 2412.01981, Prop. 3.1.

  >>> q = process_values(jnp.log(jnp.array([[.5, .9]])), jnp.log(jnp.array([[.25, .9]])), jnp.ones((1, 2), bool), beta=1.)
  >>> [round(x, 4) for x in q[0].tolist()]      # ln 2, then + 0
  [0.6931, 0.6931]
  """
  ratio_BxT = masked.zero(process_logp_BxT, mask_BxT) - masked.zero(ref_logp_BxT, mask_BxT)
  return masked.zero(beta * jnp.cumsum(ratio_BxT, axis=1), mask_BxT)


def outcome_logits(process_logp_BxT: jax.Array, ref_logp_BxT: jax.Array, mask_BxT: jax.Array, *, beta: float = 0.05) -> jax.Array:
  """r(y) = beta sum_t (ln pi_phi - ln pi_ref)_t, the outcome reward of each response, a sum and not a mean over tokens, float32 [B]."""
  ratio_BxT = masked.zero(process_logp_BxT, mask_BxT) - masked.zero(ref_logp_BxT, mask_BxT)
  return beta * jnp.sum(ratio_BxT, axis=1)


def outcome_cross_entropy(logit_B: jax.Array, label_B: jax.Array) -> Ratio:
  """The process model's loss from outcomes: the mean over responses of BCE(sigmoid(r(y)), label).

  Args:
    logit_B: float32 [B], from `outcome_logits`.
    label_B: float32 [B], 1 for correct and 0 for wrong responses; any share in between is a soft label.

  Returns:
    the mean as an undivided Ratio, minimised; ln 2 at pi_phi = pi_ref.

  Gradient: (sigmoid(r) - label) / B towards r.
  Reference: Yuan et al., Free Process Rewards without Process Labels, arXiv 2412.01981.

  >>> round(float(outcome_cross_entropy(jnp.array([0., 0.]), jnp.array([1., 0.])).compute()), 6)
  0.693147
  """
  loss_B = jax.nn.softplus(logit_B) - label_B * logit_B
  return Ratio(jnp.sum(loss_B), jnp.asarray(loss_B.size, jnp.float32))


def outcome_preference(chosen_B: jax.Array, rejected_B: jax.Array) -> Ratio:
  """The process model's loss from pairs, which is DPO's: the mean of -ln sigmoid(r(chosen) - r(rejected)).

  Args:
    chosen_B, rejected_B: float32 [B], from `outcome_logits`.

  Returns:
    the mean as an undivided Ratio, minimised; ln 2 at pi_phi = pi_ref.

  Gradient: -sigmoid(-(difference)) / B towards r(chosen), and its negative towards r(rejected).
  Reference: Rafailov et al., Direct Preference Optimization, arXiv 2305.18290.

  >>> round(float(outcome_preference(jnp.array([1.]), jnp.array([-1.])).compute()), 6)      # ln(1 + e^-2)
  0.126928
  """
  loss_B = jax.nn.softplus(rejected_B - chosen_B)
  return Ratio(jnp.sum(loss_B), jnp.asarray(loss_B.size, jnp.float32))


def implicit_prm_reward(
  process_logp_BxT: jax.Array,
  ref_logp_BxT: jax.Array,
  mask_BxT: jax.Array,
  *,
  beta: float = 0.05,
  skip_last: bool = False,
  normalize: bool = False,
) -> tuple[jax.Array, Metrics]:
  """A dense reward r_t = beta (ln pi_phi - ln pi_ref)_t of a model trained on outcomes: it sums to the outcome reward it implies.

  Args:
    process_logp_BxT: float32 [B, T], log-prob of the sampled tokens under the process model.
    ref_logp_BxT: float32 [B, T], under its reference.
    mask_BxT: bool [B, T].
    beta: above 0.
    skip_last: leaves the last valid token without a reward, as PRIME does: the outcome stands there.
    normalize: divides by the batch's largest |return to go| plus 1e-6, so that it is at most 1, as PRIME does.

  Returns:
    token_reward_BxT, float32 [B, T], added to the dense rewards; and metrics outcome, the mean over responses of the sum, and divisor.

  Gradient: none, rewards are planned; the model itself is trained by `outcome_cross_entropy` or `outcome_preference`.
  Limits: 0 where the model is its reference. The expectation of exp(r(y) / beta) under the reference is 1: only differences count.
  Reference: Yuan et al., Free Process Rewards without Process Labels, arXiv 2412.01981; Cui et al., Process Reinforcement through
    Implicit Rewards (PRIME), arXiv 2502.01456.
  Differs: PRIME is skip_last and normalize, with the advantage `prime`.

  >>> r, _ = implicit_prm_reward(jnp.log(jnp.array([[.9]])), jnp.log(jnp.array([[.5]])), jnp.ones((1, 1), bool), beta=1.)
  >>> round(float(r[0, 0]), 6)      # ln(.9 / .5)
  0.587787
  """
  ratio_BxT = masked.zero(process_logp_BxT, mask_BxT) - masked.zero(ref_logp_BxT, mask_BxT)
  reward_BxT = beta * ratio_BxT
  if skip_last:
    position_T = jnp.arange(mask_BxT.shape[1])[None, :]
    last_B = jnp.max(jnp.where(mask_BxT, position_T, -1), axis=1)
    reward_BxT = jnp.where(position_T == last_B[:, None], 0.0, reward_BxT)
  to_go_BxT = jnp.cumsum(reward_BxT[:, ::-1], axis=1)[:, ::-1]
  divisor = masked.extreme(jnp.abs(to_go_BxT), mask_BxT) + 1e-6 if normalize else jnp.ones((), jnp.float32)
  outcome_B = jnp.sum(reward_BxT, axis=1)
  return reward_BxT / divisor, {'outcome': masked.mean(outcome_B, jnp.any(mask_BxT, axis=1)), 'divisor': divisor}


implicit_prm = transform.reward('implicit_prm', implicit_prm_reward, beta='(0, inf)')
