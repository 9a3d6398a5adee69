"""Guided error correction: wrong responses are made to doubt themselves, are told the answer, or are replaced by a solution.

Prompts whose responses all fail have no advantage; no reweighting of zeros helps them, only responses that succeed. Everything is
done on arrays of fixed shape; how a response is continued is the caller's `continue_fn`.
"""

import enum
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from entropy_jax import transform
from entropy_jax.types import UserError

# (tokens_BxT, mask_BxT of the responses so far) -> (tokens_BxC, mask_BxC) of what the model goes on with.
Continue = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Correction(enum.IntEnum):
  """What was done to a response."""

  NONE = 0
  DOUBT = 1  # a phrase of doubt, and the model goes on
  ANSWER = 2  # a phrase of doubt and the right answer
  SOLUTION = 3  # the right solution instead of the response


@struct.dataclass
class Corrected:
  """B responses after the correction, of the same longest length T."""

  tokens_BxT: jax.Array  # int32
  mask_BxT: jax.Array  # bool, injected tokens included: they count as the policy's
  injected_BxT: jax.Array  # bool, tokens that the policy did not sample
  correction_B: jax.Array  # int32, a Correction


def needs_correction(
  reward_B: jax.Array, prompt_length_B: jax.Array, *, full_reward: float = 2.0, max_prompt: int = 256
) -> jax.Array:
  """Whether a response may be corrected: its reward is not the full one, and its prompt is shorter than max_prompt, bool [B].

  Args:
    reward_B: float32; the paper's is 1 for the answer plus 1 for the format.
    prompt_length_B: int, tokens.
    full_reward: what a response without fault earns.
    max_prompt: tokens; longer prompts leave no room.
  """
  return (reward_B < full_reward) & (prompt_length_B < max_prompt)


def choose_correction(
  key: jax.Array, eligible_B: jax.Array, sequence_B: jax.Array | None = None, *, doubt: float = 0.5, answer: float = 0.25
) -> jax.Array:
  """Draws what is done to each eligible response: doubt with 1/2, answer with 1/4, solution with what remains, int32 [B] of `Correction`.

  Args:
    key: PRNG key.
    eligible_B: bool.
    sequence_B: int, identity of each row, which its draw follows; None for the row number.
    doubt, answer: probabilities, together at most 1.
  """
  transform.check_range('guided_correction', 'doubt', doubt, '[0, 1]')
  transform.check_range('guided_correction', 'answer', answer, '[0, 1]')
  if doubt + answer > 1.0:
    raise UserError(f'guided_correction: doubt={doubt} and answer={answer} exceed 1 together; give probabilities whose sum is at most 1.')
  identity_B = jnp.arange(eligible_B.shape[0], dtype=jnp.int32) if sequence_B is None else sequence_B
  drawn_B = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(identity_B)
  which_B = jnp.where(
    drawn_B < doubt, Correction.DOUBT, jnp.where(drawn_B < doubt + answer, Correction.ANSWER, Correction.SOLUTION)
  )
  return jnp.where(eligible_B, which_B, Correction.NONE).astype(jnp.int32)


def append_tokens(
  tokens_BxT: jax.Array, mask_BxT: jax.Array, added_BxA: jax.Array, added_mask_BxA: jax.Array, *, pad_id: int = 0
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Puts tokens behind the last one of each response; what does not fit into T tokens is cut off.

  Args:
    tokens_BxT: int32.
    mask_BxT: bool; holes stay where they are.
    added_BxA: int32.
    added_mask_BxA: bool, any pattern; the valid ones are added without gaps.
    pad_id: what stands in slots that hold nothing.

  Returns:
    (tokens [B, T], mask [B, T], added [B, T], which of them are new).

  >>> tokens, mask, added = append_tokens(jnp.array([[4, 5, 0, 0]]), jnp.array([[True, True, False, False]]), jnp.array([[7, 8, 9]]),
  ...   jnp.array([[True, False, True]]))
  >>> tokens.tolist(), mask.tolist(), added.tolist()
  ([[4, 5, 7, 9]], [[True, True, True, True]], [[False, False, True, True]])
  """
  B, T = tokens_BxT.shape
  end_B1 = jnp.max(jnp.where(mask_BxT, jnp.arange(1, T + 1)[None], 0), axis=1, keepdims=True)
  place_BxA = jnp.where(added_mask_BxA, end_B1 + jnp.cumsum(added_mask_BxA, axis=1) - 1, T)
  rows_Bx1 = jnp.arange(B)[:, None]
  added_BxT = jnp.zeros((B, T), bool).at[rows_Bx1, place_BxA].set(True, mode='drop')
  clean_BxT = jnp.where(mask_BxT, tokens_BxT, pad_id)
  return clean_BxT.at[rows_Bx1, place_BxA].set(added_BxA, mode='drop'), mask_BxT | added_BxT, added_BxT


def as_prompt(tokens_BxN: jax.Array, mask_BxN: jax.Array, *, pad_id: int = 0) -> tuple[jax.Array, jax.Array]:
  """The valid tokens of each row in their order, moved to its end: prompt and response so far, as `generate` takes a prompt.

  >>> tokens, mask = as_prompt(jnp.array([[0, 3, 4, 0, 5, 0]]), jnp.array([[False, True, True, False, True, False]]))
  >>> tokens.tolist(), mask.tolist()
  ([[0, 0, 0, 3, 4, 5]], [[False, False, False, True, True, True]])
  """
  order_BxN = jnp.argsort(mask_BxN, axis=1, stable=True)
  mask = jnp.take_along_axis(mask_BxN, order_BxN, axis=1)
  return jnp.where(mask, jnp.take_along_axis(tokens_BxN, order_BxN, axis=1), pad_id), mask


def guided_correction(
  tokens_BxT: jax.Array,
  mask_BxT: jax.Array,
  correction_B: jax.Array,
  phrase_W: jax.Array,
  answer_BxA: jax.Array,
  answer_mask_BxA: jax.Array,
  solution_BxS: jax.Array,
  solution_mask_BxS: jax.Array,
  continue_fn: Continue,
  *,
  eos_id: int | None = None,
  pad_id: int = 0,
  max_continue: int = 256,
) -> Corrected:
  """Edits each response as `choose_correction` says: phrase and continuation, phrase and answer, or the solution instead.

  Args:
    tokens_BxT: int32, with room for what is added; what does not fit is cut off.
    mask_BxT: bool.
    correction_B: int32, of `Correction`.
    phrase_W: int32, a short phrase of doubt.
    answer_BxA, answer_mask_BxA: the right answer of each row's prompt, boxed as the verifier reads it, with an end of sequence if wanted.
    solution_BxS, solution_mask_BxS: the right solution of each row's prompt, likewise.
    continue_fn: gets the responses with the phrase behind them and returns what the model goes on with; it is called once, with all rows,
      and only rows of DOUBT are read. With `rollout.generate`: join prompts and these, and give `as_prompt` of it.
    eos_id: an end of sequence as the last token of a response is taken away before something is put behind it; None to leave it.
    pad_id: what stands in slots that hold nothing.
    max_continue: tokens of a continuation, at most.

  Returns:
    `Corrected`. Rewards and advantages are computed on it, and the behaviour's log-probs must be scored on it anew: nobody sampled the
    injected tokens. As released they count like sampled ones; take mask_BxT & ~injected_BxT to train on the others alone.

  Gradient: none.
  Limits: the responses themselves where every correction is NONE.
  Reference: Zhang et al., EDGE-GRPO: Entropy-Driven GRPO with Guided Error Correction for Advantage Diversity, arXiv 2507.21848.
  """
  B = tokens_BxT.shape[0]
  last_BxT = mask_BxT & (jnp.cumsum(mask_BxT[:, ::-1], axis=1)[:, ::-1] == 1)
  ended_BxT = jnp.zeros_like(mask_BxT) if eos_id is None else last_BxT & (tokens_BxT == eos_id)
  open_BxT = mask_BxT & ~ended_BxT
  phrase_BxW = jnp.broadcast_to(phrase_W[None], (B, phrase_W.shape[0]))

  def behind(tokens: jax.Array, mask: jax.Array, added: jax.Array, added_mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return append_tokens(tokens, mask, added.astype(tokens.dtype), added_mask, pad_id=pad_id)

  doubting_BxT, doubting_mask_BxT, phrase_BxT = behind(tokens_BxT, open_BxT, phrase_BxW, jnp.ones_like(phrase_BxW, bool))
  more_BxC, more_mask_BxC = continue_fn(doubting_BxT, doubting_mask_BxT)
  short_BxC = more_mask_BxC & (jnp.cumsum(more_mask_BxC, axis=1) <= max_continue)
  doubt_BxT, doubt_mask_BxT, _ = behind(doubting_BxT, doubting_mask_BxT, more_BxC, short_BxC)
  told_BxT, told_mask_BxT, answer_BxT = behind(doubting_BxT, doubting_mask_BxT, answer_BxA, answer_mask_BxA)
  nothing_BxT = jnp.zeros_like(mask_BxT)
  solved_BxT, solved_mask_BxT, _ = behind(tokens_BxT, nothing_BxT, solution_BxS, solution_mask_BxS)

  def choose(none: jax.Array, doubt: jax.Array, answer: jax.Array, solution: jax.Array) -> jax.Array:
    which_Bx1 = correction_B[:, None]
    told = jnp.where(which_Bx1 == Correction.ANSWER, answer, solution)
    edited = jnp.where(which_Bx1 == Correction.DOUBT, doubt, told)
    return jnp.where(which_Bx1 == Correction.NONE, none, edited)

  return Corrected(
    tokens_BxT=choose(tokens_BxT, doubt_BxT, told_BxT, solved_BxT),
    mask_BxT=choose(mask_BxT, doubt_mask_BxT, told_mask_BxT, solved_mask_BxT),
    injected_BxT=choose(nothing_BxT, phrase_BxT, phrase_BxT | answer_BxT, solved_mask_BxT),
    correction_B=correction_B,
  )
