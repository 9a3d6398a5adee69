"""From prompts and sampled responses to the TokenBatch that an objective reads."""

import jax
import jax.numpy as jnp

from entropy_jax.rollout.generate import Rollout
from entropy_jax.types import TokenBatch


def group_prompts(rows: jax.Array, group_size: int) -> tuple[jax.Array, jax.Array]:
  """(every row group_size times in succession, the prompt id of each): G responses are sampled to every prompt.

  >>> rows, group_B = group_prompts(jnp.array([[5], [7]]), 2)
  >>> rows[:, 0].tolist(), group_B.tolist()
  ([5, 5, 7, 7], [0, 0, 1, 1])
  """
  return jnp.repeat(rows, group_size, axis=0), jnp.repeat(jnp.arange(rows.shape[0], dtype=jnp.int32), group_size)


def token_batch(
  prompt_tokens_BxP: jax.Array,
  prompt_mask_BxP: jax.Array,
  rollout: Rollout,
  group_B: jax.Array,
  reward_B: jax.Array,
  key: jax.Array,
) -> TokenBatch:
  """The batch of one rollout: behaviour scores are those of the sampling distribution, and the current policy starts equal to it."""
  return TokenBatch(
    tokens_BxN=jnp.concatenate([prompt_tokens_BxP, rollout.tokens_BxT], axis=1),
    token_mask_BxN=jnp.concatenate([prompt_mask_BxP, rollout.mask_BxT], axis=1),
    mask_BxT=rollout.mask_BxT,
    group_B=group_B,
    reward_B=reward_B,
    old_logp_BxT=rollout.logp_BxT,
    old_entropy_BxT=rollout.entropy_BxT,
    logp_BxT=rollout.logp_BxT,
    entropy_BxT=rollout.entropy_BxT,
    old_stats=dict(rollout.stats),
    key=key,
    truncated_B=~rollout.finished_B,
  )
