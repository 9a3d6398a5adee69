"""Scoring given tokens: log-prob, entropy and any statistic of the vocabulary row in one pass that never holds [B, T, V].

The hidden states of all tokens are held; their logits are made a part at a time and made again in the backward pass. Where log-prob and
entropy are all that is asked for and the head is a linear map, a part is a tile of the vocabulary (ops/unembedding.py). A statistic is any
function of a whole row, so with one a part is a chunk of tokens.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from entropy_jax.models.policy import Policy
from entropy_jax.ops import categorical, unembedding
from entropy_jax.types import Params, TokenBatch, UserError, VocabStat

# Logits of one chunk where chunk_tokens is None: 2^23 float32 are 32 MiB; larger chunks are no faster.
_CHUNK_LOGITS = 2**23


class _Chunks(NamedTuple):
  """B x T tokens as S chunks of R rows times C columns.

  A chunk takes rows from all over the batch, at a stride: where the rows are cut over devices, every device has its share of every
  chunk. Cutting the flat list of tokens would put a whole chunk on one device.
  """

  num_rows: int
  num_columns: int
  rows: int
  columns: int

  @classmethod
  def of(cls, num_rows: int, num_columns: int, chunk_tokens: int) -> '_Chunks':
    if chunk_tokens >= num_rows:
      return cls(num_rows, num_columns, num_rows, chunk_tokens // num_rows)
    return cls(num_rows, num_columns, -(-num_rows // -(-num_rows // chunk_tokens)), 1)

  def _parts(self) -> tuple[int, int]:
    return -(-self.num_rows // self.rows), -(-self.num_columns // self.columns)

  def cut(self, x: jax.Array) -> jax.Array:
    """[B T, ...] -> [S, R C, ...], padded with zeros."""
    strides, parts = self._parts()
    rest = x.shape[1:]
    x = x.reshape(self.num_rows, self.num_columns, *rest)
    room = ((0, strides * self.rows - self.num_rows), (0, parts * self.columns - self.num_columns))
    x = jnp.pad(x, room + ((0, 0),) * len(rest)).reshape(self.rows, strides, parts, self.columns, *rest)
    return jnp.moveaxis(x, 0, 2).reshape(strides * parts, self.rows * self.columns, *rest)

  def join(self, x: jax.Array) -> jax.Array:
    """[S, R C] -> [B T]."""
    strides, parts = self._parts()
    x = jnp.moveaxis(x.reshape(strides, parts, self.rows, self.columns), 2, 0)
    return x.reshape(strides * self.rows, parts * self.columns)[: self.num_rows, : self.num_columns].reshape(-1)


@struct.dataclass
class Scores:
  """What the policy says of B responses of T tokens; 0 in masked slots."""

  logp_BxT: jax.Array  # float32, under softmax(z / temperature)
  entropy_BxT: jax.Array  # float32, of the same distribution
  stats: Mapping[str, jax.Array]  # name -> [B, T] float32


def score(
  policy: Policy,
  params: Params,
  tokens_BxN: jax.Array,
  token_mask_BxN: jax.Array,
  num_tokens: int,
  *,
  temperature: float | jax.Array = 1.0,
  stats: Sequence[VocabStat] = (),
  chunk_tokens: int | None = None,
  forward_mode: bool = False,
) -> Scores:
  """ln p(token), H(p) and stats of the T = num_tokens last tokens of every row, p = softmax(z / temperature).

  Args:
    policy: the policy; only `hidden`, and `unembedding` or `head`, are used.
    params: its parameters.
    tokens_BxN: int32, N = P + T with P >= 1, prompts padded on the left and responses on the right.
    token_mask_BxN: bool, real tokens.
    num_tokens: T.
    temperature: > 0, that of the sampling.
    stats: `VocabStat`s, each fn called with float32 logits over the temperature, [tokens, V]; `of` is not read.
    chunk_tokens: tokens whose whole rows of logits are held at once; None for tiles of the vocabulary where they can be had, otherwise for
      chunks of about 8 million logits. Everything at once, without a loop, where it is at least B T.
    forward_mode: whether jax.jvp goes through this call, which the tiles refuse.

  Returns:
    `Scores`.

  Gradient: to params; equal to that of the unchunked computation. None to the temperature where tiles are read.
  Limits: what stands in masked slots, prompt or response, changes no value and no gradient.
  """
  B, N = tokens_BxN.shape
  T, P = num_tokens, N - num_tokens
  if T < 1 or P < 1:
    raise UserError(f'num_tokens is {T}: with {N} tokens a row give 1 to {N - 1}, since the first token is predicted by none.')
  if isinstance(temperature, (int, float)) and not temperature > 0:
    raise UserError(f'temperature is {temperature!r}: scoring needs a positive one; score greedy responses at 1.')
  fns = {stat.name: stat.fn for stat in stats}
  for stat in stats:
    if fns[stat.name] is not stat.fn:
      raise UserError(f'stats holds two different functions named {stat.name!r}: give each its own name.')

  mask = token_mask_BxN[:, P:]
  # The last token predicts nothing that is asked for: the policy need not read it.
  hidden = policy.hidden(params, tokens_BxN[:, :-1], token_mask_BxN[:, :-1])[:, P - 1 :]
  hidden = jnp.where(mask[..., None], hidden, jnp.zeros_like(hidden)).reshape(B * T, -1)
  target = jnp.where(mask, tokens_BxN[:, P:], 0).reshape(B * T)

  def rows(params: Params, hidden_CxD: jax.Array, target_C: jax.Array) -> dict[str, jax.Array]:
    logits = policy.head(params, hidden_CxD).astype(jnp.float32) / temperature
    logp, entropy = categorical.token_log_prob_and_entropy(logits, target_C)
    return {'logp': logp, 'entropy': entropy} | {f'stat/{name}': fn(logits) for name, fn in fns.items()}

  if not (fns or forward_mode or chunk_tokens is not None or policy.unembedding is None):
    pair = unembedding.log_prob_and_entropy(hidden, policy.unembedding(params), target, temperature=temperature)
    logp, entropy = (jnp.where(mask, x.reshape(B, T), 0.0) for x in pair)
    return Scores(logp, entropy, {})
  if chunk_tokens is None:
    V = jax.eval_shape(policy.head, params, hidden[:1]).shape[-1]
    chunk_tokens = max(1, _CHUNK_LOGITS // V)
  if chunk_tokens < 1:
    raise UserError(f'chunk_tokens is {chunk_tokens!r}: give a positive number of tokens, or None.')
  if chunk_tokens >= B * T:
    values = rows(params, hidden, target)
  else:
    chunks = _Chunks.of(B, T, chunk_tokens)
    # checkpoint keeps only the chunk's hidden states for the backward pass.
    one = jax.checkpoint(rows)
    _, values = jax.lax.scan(lambda _, chunk: (None, one(params, *chunk)), None, (chunks.cut(hidden), chunks.cut(target)))
    values = jax.tree.map(chunks.join, values)

  values = {name: jnp.where(mask, x.reshape(B, T), 0.0) for name, x in values.items()}
  logp, entropy = values.pop('logp'), values.pop('entropy')
  return Scores(logp, entropy, {name.removeprefix('stat/'): x for name, x in values.items()})


def fill(batch: TokenBatch, scores: Scores) -> TokenBatch:
  """The batch with the current policy's scores: replaces logp_BxT, entropy_BxT and stats."""
  return batch.replace(logp_BxT=scores.logp_BxT, entropy_BxT=scores.entropy_BxT, stats=scores.stats)
