"""Sampling responses: compiled loops of fixed shapes over the cached policy, which stop when every row has ended.

A prompt is read once, whatever the number of its responses. Where rows end early the loop may go on in stages: when the rows that are
left fit half the batch, their caches are gathered into one of half the size, in which every further step costs half as much.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from entropy_jax.models.policy import Cache, Policy, pick_rows
from entropy_jax.ops import categorical, draws
from entropy_jax.types import Params, UserError, VocabStat

Adjust = Callable[[jax.Array], jax.Array]
# From so many logits on, a row is drawn from by inverse CDF: noise for each of them would cost more than a small network.
WIDE = 512


@struct.dataclass
class Rollout:
  """B sampled responses of at most T tokens; slots after the end hold pad_id, False and 0."""

  tokens_BxT: jax.Array  # int32
  mask_BxT: jax.Array  # bool, sampled tokens, the stop token included
  logp_BxT: jax.Array  # float32, under softmax(logits over the temperature)
  entropy_BxT: jax.Array  # float32, of the same distribution
  logp1_BxT: jax.Array  # float32, at temperature 1
  entropy1_BxT: jax.Array  # float32, at temperature 1
  finished_B: jax.Array  # bool, met a stop token within T tokens
  drawn_logp_BxT: jax.Array  # float32, under the distribution that the token was drawn from, after `adjust`
  drawn_entropy_BxT: jax.Array  # float32, of that distribution
  stats: Mapping[str, jax.Array] = struct.field(default_factory=dict)  # name -> [B, T] float32, of softmax(logits over the temperature)


def given(tokens_BxT: jax.Array, mask_BxT: jax.Array) -> Rollout:
  """Finished responses that no policy has sampled: every log-prob and entropy is 0."""
  zero = jnp.zeros(tokens_BxT.shape, jnp.float32)
  return Rollout(tokens_BxT, mask_BxT, zero, zero, zero, zero, jnp.ones(len(tokens_BxT), bool), zero, zero)


class Draw(NamedTuple):
  """One token a row, and what two or three distributions say of it: [B] each, as the fields of `Rollout`."""

  token_B: jax.Array
  logp_B: jax.Array
  entropy_B: jax.Array
  logp1_B: jax.Array
  entropy1_B: jax.Array
  drawn_logp_B: jax.Array
  drawn_entropy_B: jax.Array


def row_keys(key: jax.Array, sequence_B: jax.Array) -> jax.Array:
  """A key of its own for every sequence: what it draws does not depend on which rows stand beside it, or on which device."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, sequence_B)


def _is(temperature: float | jax.Array, value: float) -> bool:
  return isinstance(temperature, (int, float)) and temperature == value


def sample(
  logits_BxV: jax.Array, key_B: jax.Array, *, temperature: float | jax.Array = 1.0, adjust: Adjust | None = None
) -> Draw:
  """One token a row from softmax(z / temperature), or argmax_j z_j at temperature 0.

  Rows of fewer than WIDE logits by the Gumbel trick, argmax_j (z_j / temperature + g_j); wider ones by inverse CDF of two uniform numbers
  (ops/draws.py), which says log-prob and entropy on the way.

  Args:
    logits_BxV: [B, V], may hold -inf.
    key_B: PRNG keys, one a row; unused at temperature 0.
    temperature: >= 0; a Python 0 is greedy, whose distribution is certain: log-prob and entropy 0.
    adjust: a function logits_BxV -> logits_BxV (`methods.samplers`) of the logits over the temperature (of the logits when greedy),
      from whose result the token is drawn; None for what came in.

  Returns:
    The token with its log-prob and the entropy of softmax(z / temperature), of the same at temperature 1, and of what it was drawn from:
    softmax(adjust(z / temperature)), which without `adjust` is the first.
  """
  z = logits_BxV.astype(jnp.float32)
  scaled = z if _is(temperature, 0) or _is(temperature, 1) else z / temperature
  changed = scaled if adjust is None else adjust(scaled)
  if z.shape[-1] >= WIDE:
    return _sample_wide(z, scaled, changed, key_B, greedy=_is(temperature, 0))
  said = categorical.token_log_prob_and_entropy
  if _is(temperature, 0):
    token = jnp.argmax(changed, axis=-1).astype(jnp.int32)
    return _greedy(token, *said(z, token))
  noise_BxV = jax.vmap(lambda key: jax.random.gumbel(key, z.shape[1:], jnp.float32))(key_B)
  token = jnp.argmax(changed + noise_BxV, axis=-1).astype(jnp.int32)
  own = said(scaled, token)
  return Draw(token, *own, *(own if scaled is z else said(z, token)), *(own if changed is scaled else said(changed, token)))


def _greedy(token_B: jax.Array, logp1_B: jax.Array, entropy1_B: jax.Array) -> Draw:
  zero = jnp.zeros_like(logp1_B)
  return Draw(token_B, zero, zero, logp1_B, entropy1_B, zero, zero)


def _sample_wide(z: jax.Array, scaled: jax.Array, changed: jax.Array, key_B: jax.Array, *, greedy: bool) -> Draw:
  """`sample` from the logits, those over the temperature, and those after `adjust`; what is the same array is read once."""
  of_drawn = draws.columns(changed)
  of_scaled = of_drawn if changed is scaled else draws.columns(scaled)
  of_one = of_scaled if scaled is z else draws.columns(z)
  if greedy:
    token = draws.largest(of_drawn)
    return _greedy(token, draws.token_log_prob(of_one, token), of_one.entropy_B)
  token = draws.draw(of_drawn, jax.vmap(lambda key: jax.random.uniform(key, (2,)))(key_B))
  figures = ((draws.token_log_prob(row, token), row.entropy_B) for row in (of_scaled, of_one, of_drawn))
  return Draw(token, *(figure for pair in figures for figure in pair))


class _State(NamedTuple):
  """What the loop carries of R rows. Slots that were not written yet, and those after the end of a row, may hold anything."""

  cache: Cache
  tokens_TxR: jax.Array
  said_TxFxR: jax.Array  # F figures of every token
  length_R: jax.Array  # int32, tokens up to the stop token
  finished_R: jax.Array


def _stage_sizes(num_rows: int, num_stages: int) -> list[int]:
  """
  >>> _stage_sizes(10, 3), _stage_sizes(3, 9)
  ([10, 5, 3], [3, 2, 1])
  """
  sizes = [num_rows]
  while len(sizes) < num_stages and sizes[-1] > 1:
    sizes.append(-(-sizes[-1] // 2))
  return sizes


def _check(prompt_tokens_BxP: jax.Array, prompt_mask_BxP: jax.Array, temperature: float | jax.Array, stop_ids: Sequence[int]) -> None:
  if isinstance(temperature, (int, float)) and not temperature >= 0:
    raise UserError(f'temperature is {temperature!r}: give 0 for greedy or a positive number.')
  if prompt_tokens_BxP.shape != prompt_mask_BxP.shape or prompt_tokens_BxP.shape[1] < 1:
    raise UserError(
      f'prompt tokens have shape {prompt_tokens_BxP.shape} and their mask {prompt_mask_BxP.shape}: give both [B, P], P >= 1.'
    )
  if not isinstance(stop_ids, Sequence) or isinstance(stop_ids, str) or not all(isinstance(i, int) for i in stop_ids):
    raise UserError(f'stop_ids is {stop_ids!r}: give the token ids that end a response, such as (2,), or () for none.')


def generate(
  policy: Policy,
  params: Params,
  prompt_tokens_BxP: jax.Array,
  prompt_mask_BxP: jax.Array,
  key: jax.Array,
  *,
  num_tokens: int,
  group_size: int = 1,
  temperature: float | jax.Array = 1.0,
  stop_ids: Sequence[int] = (),
  pad_id: int = 0,
  sequence_B: jax.Array | None = None,
  adjust: Adjust | None = None,
  stats: Sequence[VocabStat] = (),
  num_stages: int = 1,
  num_blocks: int = 1,
) -> Rollout:
  """Samples group_size responses of up to num_tokens tokens to each prompt; token t of response i uses fold_in(fold_in(key, i), t).

  Args:
    policy: the policy; only `start`, `step` and `take` are used.
    params: its parameters.
    prompt_tokens_BxP: int32, padded on the left, distinct prompts: each is read once.
    prompt_mask_BxP: bool.
    key: PRNG key.
    num_tokens: T >= 1.
    group_size: G >= 1; the result has B G rows, the responses to a prompt in succession.
    temperature: >= 0 of the sampling distribution softmax(z / temperature); a Python 0 is greedy.
    stop_ids: tokens after which a row ends, as part of it; () for none (every row has T tokens).
    pad_id: what stands after the end.
    sequence_B: int32 [B G], which response of the whole batch each row of the result is; None numbers the rows. Rows may be cut over
      devices or come in another order, and each samples the same response.
    adjust: as `sample`; local to each row.
    stats: what else is asked of the rows of logits, which are at hand here and cost another forward pass later; each fn called with float32
      logits over the temperature (with the logits where it is 0).
    num_stages: batch sizes, each half of the one before, through which the rows that have not ended are gathered. Each is a decoding step
      to compile, and the caches of two are held while one is gathered into the other; 1 gathers nothing. Nothing is gathered without
      stop_ids.
    num_blocks: equal blocks of rows, a divisor of B. Rows are gathered within their block: with rows cut over the devices of a mesh, give
      the number of devices, and no cache moves between them.

  Returns:
    A `Rollout` of B G rows, whose log-probs, entropies and stats do not see `adjust`, but for drawn_*.

  Gradient: none is defined (the loop has no fixed length); score the tokens with `score` instead.
  Limits: the same tokens for any group_size with the prompts repeated, any num_stages and num_blocks, and any later stop of the loop.
    With seeds on a vmapped axis a stage lasts until every seed's rows fit the next, so that stages pay less.
  """
  for name, value in (('num_tokens', num_tokens), ('group_size', group_size), ('num_stages', num_stages), ('num_blocks', num_blocks)):
    if value < 1:
      raise UserError(f'{name} is {value!r}: give a positive number{" of response tokens" if name == "num_tokens" else ""}, at least 1.')
  _check(prompt_tokens_BxP, prompt_mask_BxP, temperature, stop_ids)
  if prompt_tokens_BxP.shape[0] % num_blocks:
    raise UserError(f'num_blocks is {num_blocks}: give a divisor of the number of prompts, {prompt_tokens_BxP.shape[0]}.')
  R = prompt_tokens_BxP.shape[0] * group_size
  key_R = row_keys(key, jnp.arange(R, dtype=jnp.int32) if sequence_B is None else sequence_B)
  # Every figure of a token that is another one by definition is kept once.
  same = {'drawn_logp': 'logp', 'drawn_entropy': 'entropy'} if adjust is None else {}
  same |= {'logp1': 'logp', 'entropy1': 'entropy'} if _is(temperature, 1) else {}
  kept = [name for name in ('logp', 'entropy', 'logp1', 'entropy1', 'drawn_logp', 'drawn_entropy') if name not in same]
  divisor = 1.0 if _is(temperature, 0) else temperature

  def record(state: _State, key_R: jax.Array, t: jax.Array | int, logits_RxV: jax.Array) -> _State:
    key_now_R = jax.vmap(jax.random.fold_in, (0, None))(key_R, t)
    draw = sample(logits_RxV, key_now_R, temperature=temperature, adjust=adjust)
    figures = [getattr(draw, f'{name}_B') for name in kept]
    figures += [stat.fn(logits_RxV.astype(jnp.float32) / divisor) for stat in stats]
    state = state._replace(tokens_TxR=state.tokens_TxR.at[t].set(draw.token_B), said_TxFxR=state.said_TxFxR.at[t].set(jnp.stack(figures)))
    if not stop_ids:
      return state
    stops_R = jnp.any(draw.token_B[:, None] == jnp.array(stop_ids, jnp.int32)[None], axis=1)
    return state._replace(length_R=jnp.where(state.finished_R, state.length_R, t + 1), finished_R=state.finished_R | stops_R)

  def decode(t: jax.Array, state: _State, key_R: jax.Array, sizes: Sequence[int]) -> _State:
    """The state after the last token; `sizes`: rows of a block at this stage and at those after it."""
    fitting = sizes[1] if len(sizes) > 1 else 0

    def goes_on(carry: tuple[jax.Array, _State]) -> jax.Array:
      t, state = carry
      # Without stop_ids the condition is the same for all seeds of a vmapped run, and no carried array needs a select.
      left_D = jnp.sum(~state.finished_R.reshape(num_blocks, -1), axis=1)
      return (t < num_tokens) & (jnp.max(left_D) > fitting) if stop_ids else t < num_tokens

    def turn(carry: tuple[jax.Array, _State]) -> tuple[jax.Array, _State]:
      t, state = carry
      cache, logits_RxV = policy.step(params, state.cache, state.tokens_TxR[t - 1])
      return t + 1, record(state._replace(cache=cache), key_R, t, logits_RxV)

    t, state = jax.lax.while_loop(goes_on, turn, (t, state))
    if not fitting:
      return state._replace(cache=None)
    order = jnp.argsort(state.finished_R.reshape(num_blocks, -1), axis=1, stable=True)  # rows that have not ended come first
    row = order[:, :fitting]
    pick = lambda x: pick_rows(x, row, axis=x.ndim - 1)
    fewer = _State(policy.take(state.cache, row), *map(pick, state[1:]))
    ended = decode(t, fewer, pick(key_R), sizes[1:])
    place = jnp.argsort(order, axis=1)
    moved_R, place = (place < fitting).reshape(-1), jnp.minimum(place, fitting - 1)

    def back(old: jax.Array, new: jax.Array) -> jax.Array:
      shape = (1,) * (old.ndim - 1) + moved_R.shape
      return jnp.where(moved_R.reshape(shape), pick_rows(new, place, axis=new.ndim - 1), old)

    return _State(None, *(back(old, new) for old, new in zip(state[1:], ended[1:], strict=True)))

  cache, logits_RxV = policy.start(params, prompt_tokens_BxP, prompt_mask_BxP, num_tokens)
  if group_size > 1:
    again = jnp.zeros((prompt_tokens_BxP.shape[0], group_size), jnp.int32)
    cache, logits_RxV = policy.take(cache, again), pick_rows(logits_RxV, again)
  # Buffers are [T, R], so that each step writes one contiguous row.
  said_TxFxR = jnp.zeros((num_tokens, len(kept) + len(stats), R), jnp.float32)
  length_R = jnp.full(R, 0 if stop_ids else num_tokens, jnp.int32)
  empty = _State(cache, jnp.zeros((num_tokens, R), jnp.int32), said_TxFxR, length_R, jnp.zeros(R, bool))
  # The first token comes from the prompt's logits; each turn then reads the last token and samples the next, so that no
  # step of the model is wasted on the last token.
  sizes = _stage_sizes(R // num_blocks, num_stages if stop_ids else 1)
  state = decode(jnp.int32(1), record(empty, key_R, 0, logits_RxV), key_R, sizes)

  mask_RxT = jnp.arange(num_tokens)[None] < state.length_R[:, None]
  said = {name: jnp.where(mask_RxT, state.said_TxFxR[:, i].T, 0.0) for i, name in enumerate(kept + [stat.name for stat in stats])}
  own = {f'{name}_BxT': said[same.get(name, name)] for name in (*kept, *same)}
  tokens_RxT = jnp.where(mask_RxT, state.tokens_TxR.T, pad_id)
  return Rollout(tokens_RxT, mask_RxT, finished_B=state.finished_R, stats={stat.name: said[stat.name] for stat in stats}, **own)
