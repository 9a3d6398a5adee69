"""A bonus for acting at all: agents that never call a tool cannot learn when to call one, so early in training a call earns a little."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import masked, schedules
from entropy_jax.types import Metrics, Planned, PyTree


def _no_rollouts() -> PyTree:
  return {'num_rollouts': jnp.int32(0)}


def remember_curriculum(
  state: PyTree, mask_BxT: jax.Array, *, num_rollouts: float = 100.0, schedule: str = 'cosine'
) -> tuple[Planned, PyTree, Metrics]:
  """mu of this rollout, and the number of rollouts with a valid token so far."""
  scale = schedules.fall(state['num_rollouts'], num_rollouts) if schedule == 'cosine' else jnp.float32(1.0)
  seen = jnp.any(mask_BxT).astype(jnp.int32)
  return {'scale': scale}, {'num_rollouts': state['num_rollouts'] + seen}, {'coefficient': scale}


def tool_use_reward(
  reward_B: jax.Array, segment_BxT: jax.Array, mask_BxT: jax.Array, scale: jax.Array, *, per_call: float = 0.1, maximum: float = 1.0
) -> tuple[jax.Array, Metrics]:
  """Adds mu(t) min(maximum, per_call n) to the outcome, n the steps of the trajectory; mu = (1 + cos(pi t / num_rollouts)) / 2, then 0.

  Args:
    reward_B: float32 [B].
    segment_BxT: int [B, T], step that the token belongs to, from 0; negative: to none.
    mask_BxT: bool [B, T].
    scale: float32 scalar, remembered: mu(t), t the rollouts with a valid token that were made before this one.
    per_call, maximum: at least 0.
    num_rollouts: after which the bonus is gone, above 0; 100 to 200 in SPEAR's runs.
    schedule: 'cosine', or 'constant' for mu = 1.

  Returns:
    (reward_B, float32 [B], metrics: coefficient, num_calls, the mean of n over sequences with a token).

  Gradient: none, rewards are planned.
  Limits: per_call=0 leaves the reward as it is. Failures earn the bonus too: where the tool is a distractor, it is called for its own sake.
  Reference: Qin et al., Learn the Ropes, Then Trust the Wins: Self-imitation with Progressive Exploration for Agentic Reinforcement
    Learning, arXiv 2509.22601 (SPEAR).
  Differs: n is the number of steps, as in SPEAR's code for embodied tasks; its code for tools counts the calls themselves, one fewer
    where the last step is the answer.

  >>> segment = jnp.array([[0, 0, 1, 2], [0, -1, -1, -1]])
  >>> reward, _ = tool_use_reward(jnp.array([1., 0.]), segment, jnp.ones((2, 4), bool), jnp.float32(1.))
  >>> [round(r, 6) for r in reward.tolist()]
  [1.3, 0.1]
  """
  last_B = jnp.max(jnp.where(mask_BxT, segment_BxT, -1), axis=1, initial=-1)
  num_calls_B = (jnp.maximum(last_B, -1) + 1).astype(jnp.float32)
  bonus_B = scale * jnp.minimum(per_call * num_calls_B, maximum)
  return reward_B + bonus_B, {'num_calls': masked.mean(num_calls_B, jnp.any(mask_BxT, axis=1))}


tool_use = transform.reward(
  'tool_use',
  tool_use_reward,
  init=_no_rollouts,
  remember=remember_curriculum,
  per_call='[0, inf)',
  maximum='[0, inf)',
  num_rollouts='(0, inf)',
  schedule='cosine | constant',
)
