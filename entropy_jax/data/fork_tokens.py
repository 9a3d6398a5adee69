"""fork_tokens: answers of independent tokens, of which only two, the forks, decide the reward.

M = 16 prompts, T = 6 positions, V = 32 tokens. Logits start as N(0, 1) at the fork positions 0 and 3 and as N(0, 3^2) elsewhere, so that
forks are uncertain and the rest is nearly settled, as in language models. At each fork every token is good with probability 0.15, and
token 0 always; the reward is 1 iff both fork tokens are good. Entropy that a method keeps at the forks is exploration; entropy that it
keeps elsewhere is indifference, which is why both are reported.
"""

import jax
import jax.numpy as jnp

from entropy_jax.data.tabular_task import TabularTask
from entropy_jax.ops import categorical

FORKS = (0, 3)


def make(
  key: jax.Array,
  *,
  num_prompts: int = 16,
  num_tokens: int = 6,
  vocab_size: int = 32,
  good_probability: float = 0.15,
  fork_scale: float = 1.0,
  settled_scale: float = 3.0,
) -> TabularTask:
  """An instance drawn from the key.

  Args:
    key: PRNG key of the instance (initial logits and good tokens).
    num_prompts, num_tokens, vocab_size: M, T > 3, V.
    good_probability: chance of each token but 0 to be good at a fork.
    fork_scale, settled_scale: standard deviation of the initial logits at the forks and elsewhere.
  """
  logits_key, good_key = jax.random.split(key)
  is_fork_T = jnp.isin(jnp.arange(num_tokens), jnp.asarray(FORKS))
  scale_T = jnp.where(is_fork_T, fork_scale, settled_scale)
  table_MxTxSxV = jax.random.normal(logits_key, (num_prompts, num_tokens, 1, vocab_size)) * scale_T[None, :, None, None]
  good_MxTxV = jax.random.bernoulli(good_key, good_probability, (num_prompts, num_tokens, vocab_size)).at[:, :, 0].set(True)

  def reward(prompt_B: jax.Array, tokens_BxT: jax.Array) -> jax.Array:
    good_BxT = good_MxTxV[prompt_B[:, None], jnp.arange(num_tokens)[None, :], tokens_BxT]
    return jnp.all(good_BxT | ~is_fork_T[None, :], axis=1).astype(jnp.float32)

  def success(table_MxTxSxV: jax.Array) -> jax.Array:
    p_MxTxV = jnp.exp(categorical.log_probs(table_MxTxSxV[:, :, 0]))
    good_MxT = jnp.sum(p_MxTxV, axis=-1, where=good_MxTxV)
    return jnp.prod(jnp.where(is_fork_T[None, :], good_MxT, 1.0), axis=1)

  return TabularTask(
    num_prompts=num_prompts,
    num_tokens=num_tokens,
    vocab_size=vocab_size,
    num_states=1,
    transition=lambda state, token: jnp.zeros_like(state),
    table_MxTxSxV=table_MxTxSxV,
    reward=reward,
    success=success,
    visits=lambda table_MxTxSxV: jnp.ones(table_MxTxSxV.shape[:3], jnp.float32),
    positions={'fork': is_fork_T, 'settled': ~is_fork_T},
  )
