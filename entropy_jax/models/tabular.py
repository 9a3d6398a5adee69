"""Tabular policies: one free row of logits for every (prompt, position, state), the setting of the entropy theorems.

The state is what the policy remembers of the response (one state: nothing; a running sum modulo 6: six states). The head is the
identity, so that `hidden` is the logits themselves. Every function may be vmapped over a leading axis of seeds in the parameters.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from entropy_jax.models.policy import Policy
from entropy_jax.types import Params, UserError

Transition = Callable[[jax.Array, jax.Array], jax.Array]
TABLE = 'table_PROMPTSxTxSxV'


@struct.dataclass
class TabularCache:
  """Where a response stands."""

  prompt_B: jax.Array  # int32
  position: jax.Array  # int32 scalar, tokens so far
  state_B: jax.Array  # int32


def tabular_policy(
  num_prompts: int,
  num_tokens: int,
  vocab_size: int,
  *,
  num_states: int = 1,
  transition: Transition | None = None,
  init_fn: Callable[[jax.Array, tuple[int, ...]], jax.Array] | None = None,
) -> Policy:
  """pi(token | prompt, t, state) = softmax(table[prompt, t, state]); state_0 = 0, state_{t+1} = transition(state_t, token_t).

  Args:
    num_prompts: the prompt is one token, its id in [0, num_prompts).
    num_tokens: T, rows of the table and longest response.
    vocab_size: V.
    num_states: S.
    transition: (state_B, token_B) -> state_B in [0, S), int32; None with one state.
    init_fn: (key, shape) -> table_PROMPTSxTxSxV; None for zeros (uniform).

  Returns:
    A policy with params {'table_PROMPTSxTxSxV': float32}. `hidden` of [B, N], N <= 1 + T, holds at position n the logits of token n + 1;
    position T, after the last token, has no row and holds zeros.

  Gradient: of a table entry, the sum over the tokens drawn from its row.

  >>> policy = tabular_policy(2, 3, 4)
  >>> params = policy.init(jax.random.key(0))
  >>> policy.logits(params, jnp.array([[1, 0, 2, 3]]), jnp.ones((1, 4), bool)).shape
  (1, 4, 4)
  """
  shape = (num_prompts, num_tokens, num_states, vocab_size)
  for key, value in zip(('num_prompts', 'num_tokens', 'num_states', 'vocab_size'), shape, strict=True):
    if value < 1:
      raise UserError(f'{key} of the tabular policy is {value!r}: give a positive integer.')
  if (num_states > 1) != (transition is not None):
    raise UserError(f'num_states is {num_states}: give a transition with more than one state, and none with one.')

  def advance(state_B: jax.Array, token_B: jax.Array) -> jax.Array:
    return state_B if transition is None else transition(state_B, token_B).astype(jnp.int32)

  def read(params: Params, *index: jax.Array) -> jax.Array:
    # A gather and its scatter-add: several times faster than products with one-hot rows, measured on a processor. An id out of
    # range reads NaN, so that it is seen.
    return params[TABLE].at[index].get(mode='fill', fill_value=jnp.nan)

  def init(key: jax.Array) -> Params:
    table = jnp.zeros(shape, jnp.float32) if init_fn is None else init_fn(key, shape).astype(jnp.float32)
    if table.shape != shape:
      raise UserError(f'init_fn of the tabular policy made shape {table.shape}: return {shape}.')
    return {TABLE: table}

  def hidden(params: Params, tokens_BxN: jax.Array, mask_BxN: jax.Array) -> jax.Array:
    B, N = tokens_BxN.shape
    if num_tokens + 1 < N:
      raise UserError(f'num_tokens of the tabular policy is {num_tokens}, but the response has {N - 1} tokens: make the table longer.')
    tokens = jnp.where(mask_BxN, tokens_BxN, 0)  # ids in padding may be anything
    rows = min(N, num_tokens)
    states = [jnp.zeros(B, jnp.int32)]
    for n in range(1, rows):
      states.append(advance(states[-1], tokens[:, n]))
    position = jnp.broadcast_to(jnp.arange(rows)[None], (B, rows))
    logits = read(params, tokens[:, :1], position, jnp.stack(states, axis=1))
    return jnp.pad(logits, ((0, 0), (0, N - rows), (0, 0)))

  def start(params: Params, tokens_BxP: jax.Array, mask_BxP: jax.Array, num: int) -> tuple[TabularCache, jax.Array]:
    if tokens_BxP.shape[1] != 1:
      raise UserError(f'the prompt of a tabular policy has {tokens_BxP.shape[1]} tokens: give one, the id of the prompt.')
    if num > num_tokens:
      raise UserError(f'num_tokens is {num}: the table has {num_tokens} positions, so ask for at most that many tokens.')
    prompt = jnp.where(mask_BxP, tokens_BxP, 0)[:, 0].astype(jnp.int32)
    cache = TabularCache(prompt, jnp.int32(0), jnp.zeros_like(prompt))
    return cache, read(params, cache.prompt_B, cache.position, cache.state_B)

  def step(params: Params, cache: TabularCache, token_B: jax.Array) -> tuple[TabularCache, jax.Array]:
    cache = TabularCache(cache.prompt_B, cache.position + 1, advance(cache.state_B, token_B))
    return cache, read(params, cache.prompt_B, cache.position, cache.state_B)

  return Policy(init=init, hidden=hidden, head=lambda params, hidden: hidden, start=start, step=step)
