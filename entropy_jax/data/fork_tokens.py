"""fork_tokens: answers of independent tokens, of which only two, the forks, decide the reward.

M = 16 prompts, T = 6 positions, V = 32 tokens. Logits start as N(0, 1) at the fork positions 0 and 3 and as N(0, 3^2) elsewhere, so that
forks are uncertain and the rest is nearly settled, as in language models. At each fork every token is good with probability 0.15, and
token 0 always; the reward is 1 iff both fork tokens are good. Entropy that a method keeps at the forks is exploration; entropy that it
keeps elsewhere is indifference, which is why both are reported.
"""

import jax
import jax.numpy as jnp

from entropy_jax.data import tabular_task
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

  def annotate(tokens_BxT: jax.Array) -> dict[str, jax.Array]:
    """The answer is what stands at the forks, each token is a step of its own, and each fork is a strategic phrase."""
    number_T = jnp.where(is_fork_T, jnp.cumsum(is_fork_T), 0).astype(jnp.int32)
    return {
      'answer_B': tabular_task.string_id(tokens_BxT[:, jnp.asarray(FORKS)], vocab_size),
      'segment_BxT': jnp.broadcast_to(jnp.arange(num_tokens, dtype=jnp.int32), tokens_BxT.shape),
      'planning_BxT': jnp.broadcast_to(number_T, tokens_BxT.shape),
    }

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
    annotate=annotate,
  )


def diversity(task: TabularTask, table_MxTxSxV: jax.Array) -> dict[str, jax.Array]:
  """`correct_answer_entropy` (nats), the mean over prompts of the entropy of the two fork tokens given that the answer is correct, and
  exact `pass_at_16`."""
  num_prompts, num_tokens, _, vocab_size = table_MxTxSxV.shape
  logp_MxTxV = categorical.log_probs(table_MxTxSxV[:, :, 0])
  first, second = FORKS
  logp_MxA = (logp_MxTxV[:, first, :, None] + logp_MxTxV[:, second, None, :]).reshape(num_prompts, -1)
  pair_A = jnp.arange(vocab_size**2)
  answer_AxT = jnp.zeros((vocab_size**2, num_tokens), jnp.int32)
  answer_AxT = answer_AxT.at[:, first].set(pair_A // vocab_size).at[:, second].set(pair_A % vocab_size)
  correct_MxA = jax.vmap(lambda m: task.reward(jnp.full(answer_AxT.shape[:1], m), answer_AxT))(jnp.arange(num_prompts)) > 0
  return {
    'correct_answer_entropy': jnp.mean(categorical.entropy(jnp.where(correct_MxA, logp_MxA, -jnp.inf))),
    'pass_at_16': tabular_task.pass_at(task, table_MxTxSxV, 16),
  }
