"""Between attention logits and attention weights: learnable temperature, soft cap, sink logit, and Entropy-ABF's scaling of queries.

The order is: scale the queries, q . k / sqrt(D), temperature, soft cap, then mask and softmax with or without a sink. The entropy of
attention is measured between the cap and the mask. Everything here is float32 but the scaled queries.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from entropy_jax import transform
from entropy_jax.types import UserError

_LOWEST_TEMPERATURE = 1e-2


def soft_cap(logits: jax.Array, *, cap: float | None) -> jax.Array:
  """c tanh(z / c): what passes small logits and keeps all of them inside (-c, c).

  Args:
    logits: any shape; attention logits after the scaling and before the mask, or the logits of the vocabulary.
    cap: c > 0, or None for no cap. Gemma 2 has 50 in attention and 30 at the end.

  Returns:
    Same shape, float32.

  Gradient: 1 - tanh^2(z / c): a saturated logit has none and cannot come back by gradient alone.
  Limits: the identity for c -> inf; odd. The entropy over K keys stays at or above `entropy_floor(K, c)`.
  Reference: Gemma Team, Gemma 2: Improving Open Language Models at a Practical Size, arXiv 2408.00118 (released code).
  Differs: a public trainer reads c <= 0 as "off"; here None is off and c <= 0 is an error. A cap after the mask would turn -inf into
    -c and let masked keys through.

  >>> [round(x, 4) for x in soft_cap(jnp.array([10., 50.]), cap=50.).tolist()]
  [9.8688, 38.0797]
  """
  logits = logits.astype(jnp.float32)
  if cap is None:
    return logits
  transform.check_range('soft_cap', 'cap', cap, '(0, inf)')
  return cap * jnp.tanh(logits / cap)


def entropy_floor(num_keys: int, bound: float) -> float:
  """The least entropy of a softmax over K logits that all lie in [-B, B], in nats.

  It is attained by k logits at B and K - k at -B: with r = exp(-2B) and Z = k + (K - k) r,

    floor = min_{1 <= k < K} ln Z + 2 B (K - k) r / Z.

  Args:
    num_keys: K >= 1.
    bound: B >= 0: the cap of `soft_cap`, or sqrt(D) under QK-norm with unit scale.

  Returns:
    A float64 number in [0, ln K]; 0 for one key.

  Limits: ln K for B = 0; the best k is 1 for large B and larger for small B.

  >>> round(entropy_floor(64, 1.), 6)         # at k = 13
  3.68443
  """
  if num_keys < 1 or not bound >= 0:
    raise UserError(f'entropy_floor: num_keys={num_keys!r} and bound={bound!r}; give at least one key and a bound of at least 0.')
  k = np.arange(1, max(num_keys, 2), dtype=np.float64)  # one key: k = 1 = K alone
  others = (num_keys - k) * math.exp(-2 * bound)
  return float(np.min(np.log(k + others) + 2 * bound * others / (k + others)))


def attention_weights(logits_BxHxQxK: jax.Array, mask_BxQxK: jax.Array, sink_H: jax.Array | None = None) -> jax.Array:
  """Softmax over the visible keys, and over one more column that no value belongs to where there is a sink.

    w_j = exp(z_j) / (sum_visible exp(z_k) + exp(s_h))

  Args:
    logits_BxHxQxK: [B, H, Q, K], tempered and capped already; masked entries may be anything.
    mask_BxQxK: bool.
    sink_H: [H], the logit s of every head's sink, or None for none.

  Returns:
    weights_BxHxQxK, float32. Rows add up to 1 - p_sink, or to 1 without a sink. A row that sees no key is 0 with a sink, and uniform
    over all keys without one.

  Gradient: to the visible logits and to the sink.
  Limits: s -> -inf is the plain softmax. A sink is a further key with logit s and value 0; measures see it as one through
    `measures.attention.with_sink`.
  Reference: Xiao et al., Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453; OpenAI, gpt-oss-120b & gpt-oss-20b
    Model Card, arXiv 2508.10925 (released code), the learnt logit.

  >>> w = attention_weights(jnp.array([[[[1., 0., -1.]]]]), jnp.ones((1, 1, 3), bool), jnp.zeros(1))
  >>> [round(x, 6) for x in w[0, 0, 0].tolist()]
  [0.534447, 0.196612, 0.072329]
  """
  logits = jnp.where(mask_BxQxK[:, None], logits_BxHxQxK.astype(jnp.float32), jnp.finfo(jnp.float32).min)
  if sink_H is None:
    return jax.nn.softmax(logits, axis=-1)
  # Without a copy of the logits that is one column wider.
  sink = sink_H.astype(jnp.float32).reshape(1, -1, 1, 1)
  top = jax.lax.stop_gradient(jnp.maximum(jnp.max(logits, axis=-1, keepdims=True), sink))
  raised = jnp.exp(logits - top)
  return raised / (jnp.sum(raised, axis=-1, keepdims=True) + jnp.exp(sink - top))


class SinkLogit(nn.Module):
  """A learnt sink logit for every head; calling it gives sink_H.

  Attributes:
    num_heads: H.
    start: where every head starts. Differs: the released models come trained and give no start; 0 counts the sink as one average key.
  """

  num_heads: int
  start: float = 0.0

  @nn.compact
  def __call__(self) -> jax.Array:
    return self.param('sink', nn.initializers.constant(self.start), (self.num_heads,), jnp.float32)


def temper(logits_BxHxQxK: jax.Array, temperature_BxHxQ: jax.Array) -> jax.Array:
  """z / t, one temperature a row, float32.

  Args:
    logits_BxHxQxK: [B, H, Q, K], before the mask.
    temperature_BxHxQ: above 0; axes of size 1 are repeated.

  Gradient: to both. dEnt / d(1/t) = -(1/t) Var(z) under the weights, so that entropy grows with t.
  Limits: t = 1 is plain attention; t -> inf gives uniform rows of entropy ln(visible keys); t -> 0 one key and entropy 0.
  """
  return logits_BxHxQxK.astype(jnp.float32) / temperature_BxHxQ.astype(jnp.float32)[..., None]


class SoftmaxTemperature(nn.Module):
  """SM(t): a learnt softmax temperature for every head and query position; one module a layer.

    a_ij = softmax_j( q_i . k_j / (t_hi sqrt(D)) )

  Attributes:
    num_heads: H.
    max_length: number of positions that have a temperature; t cannot be carried to longer sequences than it was learnt on.
    form: how t stays positive: 'softplus' of the parameter, or 'clip', the parameter itself but at least 0.01, below which it has no
      gradient.
    start: t at the start, the same for all.

  Reference: Jha and Reagen, Entropy-Guided Attention for Private LLMs, arXiv 2501.03489. UNCONFIRMED: start and positivity; the
    official figure gives the formula and the three indices (layer, head, position) alone.
  """

  num_heads: int
  max_length: int
  form: str = 'softplus'
  start: float = 1.0

  @nn.compact
  def __call__(self, logits_BxHxQxK: jax.Array, positions_BxQ: jax.Array) -> jax.Array:
    """`temper` with the temperature of every query.

    Args:
      logits_BxHxQxK: before cap and mask.
      positions_BxQ: int, from 0; a position of max_length or more makes its row NaN.

    Returns:
      [B, H, Q, K], float32.
    """
    transform.check_range('softmax_temperature', 'form', self.form, 'softplus | clip')
    transform.check_range('softmax_temperature', 'start', self.start, f'[{_LOWEST_TEMPERATURE}, inf)')
    if logits_BxHxQxK.shape[2] > self.max_length:
      raise UserError(
        f'softmax_temperature: max_length is {self.max_length}, but there are {logits_BxHxQxK.shape[2]} queries: raise max_length '
        'or shorten the sequences.'
      )
    raw = math.log(math.expm1(self.start)) if self.form == 'softplus' else self.start
    raw_HxT = self.param('temperature', nn.initializers.constant(raw), (self.num_heads, self.max_length), jnp.float32)
    t_HxT = jax.nn.softplus(raw_HxT) if self.form == 'softplus' else jnp.maximum(raw_HxT, _LOWEST_TEMPERATURE)
    t_HxBxQ = jnp.take(t_HxT, positions_BxQ, axis=1)
    return temper(logits_BxHxQxK, t_HxBxQ.transpose(1, 0, 2))


class EntropyThreshold(nn.Module):
  """The learnt thresholds r_h of one layer for `ops.auxiliary.entropy_guided_penalty`; calling it gives threshold_H.

  Attributes:
    num_heads: H.
    start: r at the start, UNCONFIRMED.

  Differs: the paper's figures have a threshold for every layer and head, as one module a layer gives; the released trainer reads the
    first layer's for all layers.
  """

  num_heads: int
  start: float = 0.5

  @nn.compact
  def __call__(self) -> jax.Array:
    return self.param('threshold', nn.initializers.constant(self.start), (self.num_heads,), jnp.float32)


def entropy_abf_scale(positions_BxQ: jax.Array, *, window: int, layer: int, exempt_layers: int = 2) -> jax.Array:
  """Entropy-ABF's factor of every query: t_i = max(log_c i, 1) with i counted from 1, and 1 in the first layers.

  Args:
    positions_BxQ: int, from 0, so that i is one more.
    window: c >= 2, the context length of pretraining.
    layer: number of the layer, from 0.
    exempt_layers: the layers below this number keep t = 1; 2 in the paper, whose first two layers alone spread their attention as the
      number of keys grows.

  Returns:
    [B, Q], float32, at least 1.

  Gradient: none.
  Limits: 1 for i <= c, exactly: inside the window this is plain attention. Scaling a query by t divides its row's temperature by t.
  Reference: Zhang, Li and Liu, Extending LLMs' Context Window with 100 Samples, arXiv 2401.07004, sections 2 to 4; with a RoPE base of
    500,000 in all layers (`rope_theta`).
  Differs: in the released patch the exemption of the first two layers is set on a module whose forward does not read it, and appears to
    be inert; here it is by number of the layer.

  >>> t = entropy_abf_scale(jnp.array([[0, 4095, 8191, 16383]]), window=4096, layer=2)[0]
  >>> [round(x, 6) for x in t.tolist()]             # 1, 1, 13/12, 14/12
  [1.0, 1.0, 1.083333, 1.166667]
  """
  if window < 2:
    raise UserError(f'entropy_abf: window is {window!r}: give the context length of pretraining, at least 2.')
  if layer < exempt_layers:
    return jnp.ones(positions_BxQ.shape, jnp.float32)
  # log_c i = 1 + ln(i / c) / ln c, which is exactly 1 at i = c.
  beyond = jnp.maximum((positions_BxQ.astype(jnp.float32) + 1.0) / window, 1.0)
  return 1.0 + jnp.log(beyond) / math.log(window)


def scale_queries(
  query_BxHxQxD: jax.Array, positions_BxQ: jax.Array, *, window: int, layer: int, exempt_layers: int = 2
) -> jax.Array:
  """t_i q_i with Entropy-ABF's t; keys stay as they are, because sqrt(t_i) sqrt(t_j) is not t_i.

  Args:
    query_BxHxQxD: queries, rotated already.
    positions_BxQ, window, layer, exempt_layers: as in `entropy_abf_scale`.

  Returns:
    [B, H, Q, D] in the type of the queries.

  Gradient: t_i to the queries.
  """
  t_BxQ = entropy_abf_scale(positions_BxQ, window=window, layer=layer, exempt_layers=exempt_layers)
  return (query_BxHxQxD.astype(jnp.float32) * t_BxQ[:, None, :, None]).astype(query_BxHxQxD.dtype)
