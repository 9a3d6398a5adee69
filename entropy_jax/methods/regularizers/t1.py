"""T1: a token-level entropy bonus with a KL penalty to a reference that follows the policy as an exponential moving average."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.methods.regularizers.entropy import entropy_bonus_penalty
from entropy_jax.methods.regularizers.kl import ESTIMATORS, kl_estimate
from entropy_jax.types import Params


def t1_penalty(
  entropy_BxT: jax.Array,
  logp_BxT: jax.Array,
  ref_logp_BxT: jax.Array,
  *,
  entropy_coef: float,
  kl_coef: float,
  estimator: str = 'k3',
) -> jax.Array:
  """The entropy bonus and the KL penalty in one: -entropy_coef H + kl_coef k(ln pi - ln pi_ref).

  Args:
    entropy_BxT: float32 [B, T], entropy of the current policy at every token, nats.
    logp_BxT, ref_logp_BxT: float32 [B, T], current policy and the moving average (`moving_average`).
    entropy_coef, kl_coef: weights, at least 0; the paper's are not known.
    estimator: of the KL, see `kl_estimate`.

  Returns:
    float32 [B, T], minimised.

  Gradient: those of `entropy_bonus` and `kl`.
  Limits: kl_coef=0 is the entropy bonus, entropy_coef=0 the KL penalty; the KL is 0 after a reference with decay 0 was updated.
  Reference: Hou et al., Advancing Language Model Reasoning through Reinforcement Learning and Inference Scaling (T1). UNCONFIRMED: the
    paper's equations and coefficients were not seen; entropy bonus, moving-average reference and leave-one-out advantage (`rloo`, 64
    samples a prompt at temperature about 1.2, penalties for degenerate responses) are named by a public review.
  """
  bonus_BxT = entropy_bonus_penalty(entropy_BxT, coef=entropy_coef)
  return bonus_BxT + kl_coef * kl_estimate(logp_BxT, ref_logp_BxT, estimator=estimator)


def moving_average(reference: Params, params: Params, *, decay: float) -> Params:
  """The reference policy's parameters after one update: decay reference + (1 - decay) params, leaf by leaf.

  Args:
    reference: parameters of the reference policy.
    params: those of the current policy, of the same structure.
    decay: in [0, 1].

  Returns:
    as reference, in its dtypes.

  Gradient: none.
  Limits: decay=1 is a fixed reference, decay=0 a copy of the policy; after n updates towards fixed parameters the difference has shrunk
    by decay^n.
  Reference: T1, as in `t1_penalty`; UNCONFIRMED. TRL mixes 0.6 of the policy with 0.4 of the reference every 512 steps.

  >>> moving_average({'w': jnp.array(1.)}, {'w': jnp.array(3.)}, decay=.75)['w'].item()
  1.5
  """

  def one(old: jax.Array, new: jax.Array) -> jax.Array:
    mixed = decay * old.astype(jnp.float32) + (1.0 - decay) * jax.lax.stop_gradient(new).astype(jnp.float32)
    return mixed.astype(old.dtype)

  return jax.tree.map(one, reference, params)


t1 = transform.regularizer('t1', t1_penalty, entropy_coef='[0, inf)', kl_coef='[0, inf)', estimator=ESTIMATORS)
