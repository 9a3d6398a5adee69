"""What an attention layer does, from its logits: entropy of every query's row, its share of the largest possible, the largest logit, sinks.

Logits are those after scaling; what they hold where the mask is False is never read, so they may be taken before or after it is filled in.
A mask says which keys a query sees (mask_BxQxK, bool), `real_BxQ` which queries are tokens (None for all), and layers may be stacked in
front. Sums over rows stay apart by head, [..., H]; `over_heads` joins them. A NaN logit that is seen gives NaN: a broken run should show.
"""

import jax
import jax.numpy as jnp
from flax import struct

from entropy_jax.types import Ratio


def _row(logits_xK: jax.Array, mask_xK: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(p_xK, gap_xK, log_total_x): softmax over the keys seen, logit minus the largest, ln sum e^gap; ln p = gap - log_total."""
  z = logits_xK.astype(jnp.float32)
  seen = mask_xK & (z != -jnp.inf)
  top = jnp.argmax(jnp.where(seen, z, -jnp.inf), axis=-1)
  is_top = jax.nn.one_hot(top, z.shape[-1], dtype=bool)
  # The largest logit is picked, not jnp.max, whose gradient is shared by ties.
  largest = jnp.take_along_axis(z, top[..., None], axis=-1)
  # Its own gap is written down as 0 (and NaN where it is not finite): a compiler that fuses the product behind z into the difference
  # leaves the rounding error of that product there, and a row with one key then has an entropy of -1e-8.
  gap = jnp.where(seen, jnp.where(is_top, jnp.where(jnp.isfinite(z), 0.0, jnp.nan), z - largest), 0.0)
  e = jnp.where(seen, jnp.exp(gap), 0.0)
  # log1p of what the others add to the 1 of the largest keeps what 1 + 1e-9 would lose.
  others = jnp.sum(jnp.where(is_top, 0.0, e), axis=-1)
  return e / (1.0 + others)[..., None], gap, jnp.log1p(others)


def row_probabilities(logits_xK: jax.Array, mask_xK: jax.Array) -> jax.Array:
  """Softmax over the keys that are seen, [..., K], float32: 0 for the others, and a row of zeros where none is seen."""
  return _row(logits_xK, mask_xK)[0]


def row_entropy(logits_xK: jax.Array, mask_xK: jax.Array, counted_xK: jax.Array | None = None) -> jax.Array:
  """Entropy of the softmax over the keys that are seen: H = -sum_j p_j ln p_j = sum_j p_j (ln sum_k e^(a_k - a*) - (a_j - a*)).

  With a* the largest logit every term is positive, so that a nearly one-hot row keeps its digits: an entropy of 1e-11 has a relative
  error of 1e-6, where ln p from a log-softmax is already 0 for the largest key.

  Args:
    logits_xK: [..., K], any float type; -inf is a key that is not seen.
    mask_xK: bool, same shape.
    counted_xK: bool, same shape, the terms to add up; None for all. Leaving out a sink column gives the sum over the other keys with the
      probabilities that they have beside it, which is no entropy of a distribution.

  Returns:
    [...], float32, nats, in [0, ln n] for n keys seen; 0 for n = 0.

  Gradient: dH/da_j = -p_j (ln p_j + H), 0 for keys that are not seen.
  Limits: ln n at equal logits; unchanged when a constant is added to a row.
  Differs: public code sums A ln(A + 1e-6) after attention dropout, where rows no longer sum to 1; this is before any dropout.

  >>> a, m = jnp.array([1., 0., -1., 0.]), jnp.ones(4, bool)                          # the last logit is a sink
  >>> round(float(row_entropy(a, m)), 6), round(float(row_entropy(a, m, jnp.array([True, True, True, False]))), 6)
  (1.164406, 0.844612)
  """
  p, gap, log_total = _row(logits_xK, mask_xK)
  term_xK = p * (log_total[..., None] - gap)
  return jnp.sum(term_xK if counted_xK is None else jnp.where(counted_xK, term_xK, 0.0), axis=-1)


def _by_head(mask_BxQxK: jax.Array, like_xBxHxQxK: jax.Array) -> jax.Array:
  return jnp.broadcast_to(mask_BxQxK[:, None], like_xBxHxQxK.shape)


def _rows(mask_BxQxK: jax.Array, real_BxQ: jax.Array | None, num_keys: int, shape: tuple[int, ...]) -> jax.Array:
  """Which rows count, [..., B, H, Q]: those of real queries that see at least num_keys keys."""
  rows_BxQ = jnp.sum(mask_BxQxK, axis=-1) >= num_keys
  return jnp.broadcast_to((rows_BxQ if real_BxQ is None else rows_BxQ & real_BxQ)[:, None], shape)


def attention_entropy(logits_xBxHxQxK: jax.Array, mask_BxQxK: jax.Array) -> jax.Array:
  """`row_entropy` of every layer, head and query, [..., B, H, Q], float32, nats.

  Args:
    logits_xBxHxQxK: [..., B, H, Q, K].
    mask_BxQxK: bool.
  """
  return row_entropy(logits_xBxHxQxK, _by_head(mask_BxQxK, logits_xBxHxQxK))


def uniform_entropy(mask_BxQxK: jax.Array) -> jax.Array:
  """ln n for the n keys that each query sees, [B, Q]: the most that its entropy can be; 0 for n = 0.

  >>> T = 32; round(float(uniform_entropy(jnp.tril(jnp.ones((1, T, T), bool))).mean()), 4)      # ln(T!) / T
  2.5487
  """
  return jnp.log(jnp.maximum(jnp.sum(mask_BxQxK, axis=-1, dtype=jnp.float32), 1.0))


def mean_entropy(entropy_xBxHxQ: jax.Array, mask_BxQxK: jax.Array, real_BxQ: jax.Array | None = None) -> Ratio:
  """Mean over sequences and queries that see a key, of each layer and head, in nats.

  Args:
    entropy_xBxHxQ: `attention_entropy`.
    mask_BxQxK: bool.
    real_BxQ: bool; padding on the right sees earlier keys too, so without this its rows count.

  Returns:
    Ratio [..., H].

  Limits: under a causal mask at most ln(T!) / T, so it depends on the length: compare `normalised_entropy`.
  """
  rows = _rows(mask_BxQxK, real_BxQ, 1, entropy_xBxHxQ.shape)
  return _sum_rows(entropy_xBxHxQ, jnp.ones_like(entropy_xBxHxQ), rows)


def normalised_entropy(entropy_xBxHxQ: jax.Array, mask_BxQxK: jax.Array, real_BxQ: jax.Array | None = None) -> Ratio:
  """Entropy relative to uniform attention over the same keys: sum_i H_i / sum_i ln n_i over the rows that see n_i >= 2 keys.

  Args:
    entropy_xBxHxQ: `attention_entropy`.
    mask_BxQxK: bool.
    real_BxQ: bool, None for all.

  Returns:
    Ratio [..., H] in [0, 1]; slices of a batch merge exactly.

  Gradient: 1 / sum ln n_i to every row counted.
  Limits: 1 for uniform attention under any mask, 0 for one key a query. A row with one key is left out: its 0 / 0 says nothing.

  >>> m = jnp.tril(jnp.ones((1, 4, 4), bool))
  >>> float(normalised_entropy(attention_entropy(jnp.zeros((1, 1, 4, 4)), m), m).compute()[0])
  1.0
  """
  rows = _rows(mask_BxQxK, real_BxQ, 2, entropy_xBxHxQ.shape)
  most = jnp.broadcast_to(uniform_entropy(mask_BxQxK)[:, None], entropy_xBxHxQ.shape)
  return _sum_rows(entropy_xBxHxQ, most, rows)


def _sum_rows(num: jax.Array, den: jax.Array, rows: jax.Array) -> Ratio:
  num_H, den_H = (jnp.sum(jnp.where(rows, x, 0.0), axis=(-3, -1)) for x in (num, den))
  return Ratio(num_H, den_H)


def over_heads(ratio_xH: Ratio) -> Ratio:
  """The mean over heads too: the last axis of num and den added up."""
  return Ratio(jnp.sum(ratio_xH.num, axis=-1), jnp.sum(ratio_xH.den, axis=-1))


def largest_logit(logits_xBxHxQxK: jax.Array, mask_BxQxK: jax.Array, real_BxQ: jax.Array | None = None) -> jax.Array:
  """max |a_ij| over sequences, real queries and the keys they see, [..., H], float32; 0 where there is none.

  Reference: Wortsman et al., arXiv 2309.14322, whose runs with a largest attention logit above 1e4 all diverged.
  """
  mask = mask_BxQxK if real_BxQ is None else mask_BxQxK & real_BxQ[:, :, None]
  size = jnp.abs(jnp.where(_by_head(mask, logits_xBxHxQxK), logits_xBxHxQxK.astype(jnp.float32), 0.0))
  return jnp.max(size, axis=(-4, -2, -1))


def first_key(mask_BxQxK: jax.Array, real_BxQ: jax.Array | None = None) -> jax.Array:
  """Marks the first key that a real query sees, bool [B, K]: the first token, wherever padding on the left puts it.

  >>> first_key(jnp.array([[[True, False, False], [False, True, False], [False, True, True]]]), jnp.array([[False, True, True]])).tolist()
  [[False, True, False]]
  """
  queries = mask_BxQxK if real_BxQ is None else mask_BxQxK & real_BxQ[:, :, None]
  seen_BxK = jnp.any(queries, axis=1)
  return seen_BxK & (jnp.cumsum(seen_BxK, axis=1) == 1)


def without_first_key(mask_BxQxK: jax.Array, real_BxQ: jax.Array | None = None) -> jax.Array:
  """The mask without the column of `first_key`: entropies under it are those of the attention that does not go to the first token.

  A sink there makes entropies small and does no harm; a collapse shows in both.
  """
  return mask_BxQxK & ~first_key(mask_BxQxK, real_BxQ)[:, None]


def with_sink(logits_xBxHxQxK: jax.Array, mask_BxQxK: jax.Array, sink_xH: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Logits and mask with a sink logit as a last key that every query sees, [..., Q, K + 1] and [B, Q, K + 1].

  Args:
    logits_xBxHxQxK: [..., B, H, Q, K].
    mask_BxQxK: bool.
    sink_xH: [..., H], one logit a head.

  Limits: the entropy of the result includes the sink; that of the arguments is the entropy given that the sink is not chosen.
  """
  column = jnp.broadcast_to(sink_xH[..., None, :, None, None], (*logits_xBxHxQxK.shape[:-1], 1)).astype(logits_xBxHxQxK.dtype)
  seen = jnp.ones((*mask_BxQxK.shape[:-1], 1), bool)
  return jnp.concatenate([logits_xBxHxQxK, column], axis=-1), jnp.concatenate([mask_BxQxK, seen], axis=-1)


def sink_importance(logits_xBxHxQxK: jax.Array, mask_BxQxK: jax.Array, real_BxQ: jax.Array | None = None) -> jax.Array:
  """Mean attention that a key gets from the real queries that see it: alpha_k = (1 / n_k) sum_{i sees k} A_ik.

  Args:
    logits_xBxHxQxK: [..., B, H, Q, K].
    mask_BxQxK: bool.
    real_BxQ: bool, None for all.

  Returns:
    [..., B, H, K], float32, in [0, 1]; 0 for a key that no real query sees.

  Gradient: that of the softmax.
  Limits: under a causal mask n_k = T - k + 1, and uniform attention gives alpha_1 = (1 / T) sum_i 1 / i, which is large for short T.
  Reference: Gu et al., When Attention Sink Emerges in Language Models: An Empirical View, arXiv 2410.10781.

  >>> m = jnp.tril(jnp.ones((1, 4, 4), bool))
  >>> [round(a, 6) for a in sink_importance(jnp.zeros((1, 1, 4, 4)), m)[0, 0].tolist()]
  [0.520833, 0.361111, 0.291667, 0.25]
  """
  seen = _by_head(mask_BxQxK if real_BxQ is None else mask_BxQxK & real_BxQ[:, :, None], logits_xBxHxQxK)
  # A row that does not count is read with no key at all, so that what it holds cannot reach the gradient either.
  p = row_probabilities(logits_xBxHxQxK, seen)
  return Ratio(jnp.sum(p, axis=-2), jnp.sum(seen, axis=-2, dtype=jnp.float32)).compute()


def sink_rate(importance_xBxHxK: jax.Array, key_BxK: jax.Array, *, threshold: float = 0.3) -> Ratio:
  """Share of the sequences in which a marked key is a sink: alpha > threshold; over layers and heads, Sink = mean 1[alpha > epsilon].

  Args:
    importance_xBxHxK: `sink_importance`.
    key_BxK: bool, the key asked about, such as `first_key`; several marked keys are several cases.
    threshold: epsilon, in (0, 1).

  Returns:
    Ratio [..., H].

  Gradient: none, it counts.
  Limits: 1 for the first key of uniform attention at .3 while T <= 9; use the T = 64 of the reference or more.
  Reference: Gu et al., arXiv 2410.10781 (epsilon = .3, T = 64, 100 sequences).
  """
  marked = jnp.broadcast_to(key_BxK[:, None], importance_xBxHxK.shape)
  hit = (marked & (importance_xBxHxK > threshold)).astype(jnp.float32)
  return Ratio(jnp.sum(hit, axis=(-3, -1)), jnp.sum(marked, axis=(-3, -1), dtype=jnp.float32))


class HeadShares(struct.PyTreeNode):
  """Shares of heads, in [0, 1].

  Attributes:
    overload: entropy in the upper quarter of the range, attention that is spread over everything.
    collapse: entropy in the lower quarter, attention that is nearly one-hot.
    undefined: not finite.
  """

  overload: jax.Array
  collapse: jax.Array
  undefined: jax.Array


def head_shares(entropy_xH: jax.Array, *, most: jax.Array | None = None) -> HeadShares:
  """How many heads are overloaded, collapsed or broken.

  Args:
    entropy_xH: [..., H] mean entropy of each head (`mean_entropy`), any axes: all are counted together.
    most: scalar, upper end of the range, which starts at 0; None for the largest finite entropy given.

  Returns:
    HeadShares of scalars.

  Gradient: none, it counts.
  Limits: where all heads are equal and `most` is None, all are overloaded.
  Reference: Jha and Reagen, Entropy-Guided Attention for Private LLMs, arXiv 2501.03489; UNCONFIRMED edges of the quarters.

  >>> shares = head_shares(jnp.array([[4., 3.5, 2.], [.1, .5, jnp.nan]]))
  >>> [round(float(x), 4) for x in (shares.overload, shares.collapse, shares.undefined)]
  [0.3333, 0.3333, 0.1667]
  """
  finite = jnp.isfinite(entropy_xH)
  top = jnp.max(jnp.where(finite, entropy_xH, 0.0)) if most is None else most
  share = lambda x: jnp.mean((finite & x).astype(jnp.float32))
  return HeadShares(share(entropy_xH > 0.75 * top), share(entropy_xH < 0.25 * top), jnp.mean((~finite).astype(jnp.float32)))


class AttentionSummary(struct.PyTreeNode):
  """What is logged of a layer, or of stacked layers: [..., H] each.

  Attributes:
    entropy: `mean_entropy`, nats.
    normalised: `normalised_entropy`.
    normalised_without_first: the same over the keys after the first token.
    sink: `sink_rate` of the first token.
    undefined: share of rows whose entropy is not finite.
    largest_logit: `largest_logit`.
  """

  entropy: Ratio
  normalised: Ratio
  normalised_without_first: Ratio
  sink: Ratio
  undefined: Ratio
  largest_logit: jax.Array

  def merge(self, other: 'AttentionSummary') -> 'AttentionSummary':
    """That of both batches together, exactly."""
    return AttentionSummary(
      entropy=self.entropy.merge(other.entropy),
      normalised=self.normalised.merge(other.normalised),
      normalised_without_first=self.normalised_without_first.merge(other.normalised_without_first),
      sink=self.sink.merge(other.sink),
      undefined=self.undefined.merge(other.undefined),
      largest_logit=jnp.maximum(self.largest_logit, other.largest_logit),
    )


def summarise(logits_xBxHxQxK: jax.Array, mask_BxQxK: jax.Array, real_BxQ: jax.Array | None = None) -> AttentionSummary:
  """All measures of this file that need nothing but logits and masks; shapes as in `attention_entropy`. No gradient flows."""
  logits = jax.lax.stop_gradient(logits_xBxHxQxK)
  entropy = attention_entropy(logits, mask_BxQxK)
  rest = without_first_key(mask_BxQxK, real_BxQ)
  return AttentionSummary(
    entropy=mean_entropy(entropy, mask_BxQxK, real_BxQ),
    normalised=normalised_entropy(entropy, mask_BxQxK, real_BxQ),
    normalised_without_first=normalised_entropy(attention_entropy(logits, rest), rest, real_BxQ),
    sink=sink_rate(sink_importance(logits, mask_BxQxK, real_BxQ), first_key(mask_BxQxK, real_BxQ)),
    undefined=mean_entropy((~jnp.isfinite(entropy)).astype(jnp.float32), mask_BxQxK, real_BxQ),
    largest_logit=largest_logit(logits, mask_BxQxK, real_BxQ),
  )
