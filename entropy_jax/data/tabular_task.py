"""Verifiable tasks whose policy is a table of logits, so that success, entropy and their changes are exact, not sampled.

A task is pure JAX: made from a key inside a trace, it lets a whole study (rollouts, rewards, updates, seeds) compile into one scan.
Table axes: M prompts, T positions, S states (what the policy knows of the tokens so far), V tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from entropy_jax.ops import categorical


class TabularTask(NamedTuple):
  """One instance of a tabular task.

  Attributes:
    num_prompts, num_tokens, vocab_size, num_states: M, T, V, S.
    transition: (state, token) -> state; the state before the first token is 0.
    table_MxTxSxV: initial logits.
    reward: (prompt_B, tokens_BxT) -> reward_B in {0, 1}.
    success: table -> exact success probability of every prompt, [M].
    visits: table -> probability that position t is in state s, [M, T, S]; sums to 1 over S.
    positions: name -> bool [T], classes of positions whose entropy is reported apart.
    annotate: tokens_BxT -> fields of TokenBatch that say what the tokens mean (`answer_B`, `segment_BxT`, `planning_BxT`, `phase_BxT`).
  """

  num_prompts: int
  num_tokens: int
  vocab_size: int
  num_states: int
  transition: Callable[[jax.Array, jax.Array], jax.Array]
  table_MxTxSxV: jax.Array
  reward: Callable[[jax.Array, jax.Array], jax.Array]
  success: Callable[[jax.Array], jax.Array]
  visits: Callable[[jax.Array], jax.Array]
  positions: dict[str, jax.Array]
  annotate: Callable[[jax.Array], dict[str, jax.Array]] = lambda tokens_BxT: {}


def pass_at(task: TabularTask, table_MxTxSxV: jax.Array, num_samples: int) -> jax.Array:
  """Exact pass@k, mean over prompts of 1 - (1 - success)^k."""
  return jnp.mean(1.0 - (1.0 - task.success(table_MxTxSxV)) ** num_samples)


def string_id(tokens_BxT: jax.Array, vocab_size: int) -> jax.Array:
  """The number that the tokens are in base V, int32 [B]: equal where all tokens are equal.

  >>> string_id(jnp.array([[1, 2], [0, 2]]), 10).tolist()
  [12, 2]
  """
  weight_T = vocab_size ** jnp.arange(tokens_BxT.shape[1] - 1, -1, -1)
  return jnp.sum(tokens_BxT * weight_T[None, :], axis=1).astype(jnp.int32)


def expected(task: TabularTask, table_MxTxSxV: jax.Array, value_MxTxS: jax.Array) -> dict[str, jax.Array]:
  """Mean of a per-state value over the tokens that the table's own policy generates: of all positions and of each class of them."""
  value_MxT = jnp.sum(task.visits(table_MxTxSxV) * value_MxTxS, axis=-1)
  means = {'all': jnp.mean(value_MxT)}
  for name, chosen_T in task.positions.items():
    means[name] = jnp.mean(value_MxT, where=jnp.broadcast_to(chosen_T[None, :], value_MxT.shape))
  return means


def entropy(task: TabularTask, table_MxTxSxV: jax.Array) -> dict[str, jax.Array]:
  """Exact mean token entropy in nats under the policy's own visits: over all positions ('all') and over each class."""
  return expected(task, table_MxTxSxV, categorical.entropy(table_MxTxSxV))
