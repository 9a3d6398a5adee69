"""mod_sum: answers of T digits whose sum modulo V must hit the prompt's target, so that very many answers are correct.

M = 32 prompts, T = 4 positions, V = 6 tokens; the policy sees its running sum modulo 6. Each prompt has 6^3 = 216 distinct correct answers:
a method can be fully correct and still diverse, and the entropy of the answers given that they are correct says whether it is. Logits start
as N(0, 1), with a bias U(-2, 2) on the token that completes the target at the last position, for prompts of mixed difficulty.
"""

import jax
import jax.numpy as jnp

from entropy_jax.data import tabular_task
from entropy_jax.data.tabular_task import TabularTask
from entropy_jax.ops import categorical
from entropy_jax.types import Phase


def make(key: jax.Array, *, num_prompts: int = 32, num_tokens: int = 4, vocab_size: int = 6, bias: float = 2.0) -> TabularTask:
  """An instance drawn from the key.

  Args:
    key: PRNG key of the instance (initial logits, targets, difficulty).
    num_prompts, num_tokens, vocab_size: M, T, V; the states are the V running sums.
    bias: half-width of the uniform bias on the completing token, in nats.
  """
  logits_key, target_key, bias_key = jax.random.split(key, 3)
  target_M = jax.random.randint(target_key, (num_prompts,), 0, vocab_size)
  table_MxTxSxV = jax.random.normal(logits_key, (num_prompts, num_tokens, vocab_size, vocab_size))
  state_SxV = jnp.arange(vocab_size)[:, None]
  completes_MxSxV = (state_SxV + jnp.arange(vocab_size)[None, :])[None] % vocab_size == target_M[:, None, None]
  bias_M = jax.random.uniform(bias_key, (num_prompts,), minval=-bias, maxval=bias)
  table_MxTxSxV = table_MxTxSxV.at[:, -1].add(jnp.where(completes_MxSxV, bias_M[:, None, None], 0.0))

  def forward(table_MxTxSxV: jax.Array) -> tuple[jax.Array, jax.Array]:
    """State probabilities before every position, [M, T, S], and after the last, [M, S]."""
    p_MxTxSxV = jnp.exp(categorical.log_probs(table_MxTxSxV))
    # next[s'] = sum_s state[s] p(token = s' - s | s)
    token_SxS = (jnp.arange(vocab_size)[None, :] - state_SxV) % vocab_size
    state_MxS = jnp.zeros((num_prompts, vocab_size)).at[:, 0].set(1.0)
    before = []
    for t in range(num_tokens):
      before.append(state_MxS)
      move_MxSxS = jnp.take_along_axis(p_MxTxSxV[:, t], jnp.broadcast_to(token_SxS[None], p_MxTxSxV[:, t].shape), axis=-1)
      state_MxS = jnp.einsum('ms,msz->mz', state_MxS, move_MxSxS)
    return jnp.stack(before, axis=1), state_MxS

  def success(table_MxTxSxV: jax.Array) -> jax.Array:
    return jnp.take_along_axis(forward(table_MxTxSxV)[1], target_M[:, None], axis=1)[:, 0]

  def annotate(tokens_BxT: jax.Array) -> dict[str, jax.Array]:
    """The answer is the whole string of digits and each digit is a step of its own; the first two digits are planning, and all but the
    last, which completes the sum, are thinking."""
    position_T = jnp.arange(num_tokens, dtype=jnp.int32)
    whole = lambda value_T: jnp.broadcast_to(value_T.astype(jnp.int32), tokens_BxT.shape)
    return {
      'answer_B': tabular_task.string_id(tokens_BxT, vocab_size),
      'segment_BxT': whole(position_T),
      'planning_BxT': whole(position_T < 2),
      'phase_BxT': whole(jnp.where(position_T < num_tokens - 1, Phase.THINK, Phase.ANSWER)),
    }

  return TabularTask(
    num_prompts=num_prompts,
    num_tokens=num_tokens,
    vocab_size=vocab_size,
    num_states=vocab_size,
    transition=lambda state, token: (state + token) % vocab_size,
    table_MxTxSxV=table_MxTxSxV,
    reward=lambda prompt_B, tokens_BxT: (jnp.sum(tokens_BxT, axis=1) % vocab_size == target_M[prompt_B]).astype(jnp.float32),
    success=success,
    visits=lambda table_MxTxSxV: forward(table_MxTxSxV)[0],
    positions={},
    annotate=annotate,
  )


def correct_answer_entropy(task: TabularTask, table_MxTxSxV: jax.Array) -> jax.Array:
  """Mean over prompts of the entropy, in nats, of the answer given that it is correct, by enumeration of all V^T answers.

  The largest value is ln V^(T-1), ln 216 = 5.375 by default.
  """
  num_prompts, num_tokens, _, vocab_size = table_MxTxSxV.shape
  logp_MxTxSxV = categorical.log_probs(table_MxTxSxV)
  grids = jnp.meshgrid(*[jnp.arange(vocab_size)] * num_tokens, indexing='ij')
  answer_AxT = jnp.stack([g.ravel() for g in grids], axis=1)
  state_AxT = jnp.cumsum(answer_AxT, axis=1) - answer_AxT
  positions_T = jnp.arange(num_tokens)
  logp_MxA = jnp.sum(logp_MxTxSxV[:, positions_T[None, :], state_AxT % vocab_size, answer_AxT], axis=-1)
  correct_MxA = jax.vmap(lambda m: task.reward(jnp.full(answer_AxT.shape[:1], m), answer_AxT))(jnp.arange(num_prompts)) > 0
  return jnp.mean(categorical.entropy(jnp.where(correct_MxA, logp_MxA, -jnp.inf)))


def diversity(task: TabularTask, table_MxTxSxV: jax.Array) -> dict[str, jax.Array]:
  """`correct_answer_entropy` (nats) and exact `pass_at_16` = mean over prompts of 1 - (1 - success)^16."""
  return {
    'correct_answer_entropy': correct_answer_entropy(task, table_MxTxSxV),
    'pass_at_16': tabular_task.pass_at(task, table_MxTxSxV, 16),
  }
