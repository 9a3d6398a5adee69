"""What rollout and scoring need of a model, as pure functions: the one place that says how a policy is called.

A flax model becomes pure functions by `pure`. Its parameters are one tree: those of the collection 'params' alone or, where the model has
reparametrised maps (layers/spectral.py), {'params': ..., 'spectral': ...}. The vectors u in there have gradient 0, so that no optimizer
moves them; `advance` does, once an update. No forward pass changes anything.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from entropy_jax.layers import spectral
from entropy_jax.ops.unembedding import Unembedding
from entropy_jax.types import Params, PyTree

Cache = Any
# (params, tokens_BxN, mask_BxN) -> hidden_BxNxD or logits_BxNxV
PolicyFn = Callable[[Params, jax.Array, jax.Array], jax.Array]


class AttentionLogits(NamedTuple):
  """What measures of attention read: logits after scale, temperature and cap and before any mask; float32, bool."""

  logits_LxBxHxQxK: jax.Array
  mask_BxQxK: jax.Array


def unchanged(params: Params) -> Params:
  """`advance` of a model without state."""
  return params


def pick_rows(x: jax.Array, row_DxR: jax.Array, axis: int = 0) -> jax.Array:
  """The rows of an array that a `take` of it picks, D R of them, in order.

  Args:
    x: rows along `axis`, in D equal blocks.
    row_DxR: int32, R rows of every block by their number in it.
    axis: of the rows.

  Limits: no row leaves its block, so that nothing moves between devices where each of them holds whole blocks. Blocks of one row are
    repeated R times, without a gather.

  >>> pick_rows(jnp.array([5, 6, 7, 8]), jnp.array([[1, 1], [0, 1]])).tolist()
  [6, 6, 7, 8]
  >>> pick_rows(jnp.array([5, 6]), jnp.zeros((2, 2), int)).tolist()
  [5, 5, 6, 6]
  """
  D, R = row_DxR.shape
  before, after = x.shape[:axis], x.shape[axis + 1 :]
  size = x.shape[axis] // D
  if D == 1:
    return jnp.take(x, row_DxR[0], axis=axis, mode='clip')
  x = x.reshape(*before, D, size, *after)
  if size == 1:
    x = jnp.broadcast_to(x, (*before, D, R, *after))
  else:
    x = jax.vmap(lambda block, row_R: jnp.take(block, row_R, axis=axis, mode='clip'), (axis, 0), axis)(x, row_DxR)
  return x.reshape(*before, D * R, *after)


def take_rows(cache: Cache, row_DxR: jax.Array) -> Cache:
  """`take` of a cache whose arrays have their rows along the leading axis; scalars are of all rows."""
  return jax.tree.map(lambda x: pick_rows(x, row_DxR) if jnp.ndim(x) else x, cache)


class Policy(NamedTuple):
  """A causal policy over tokens. All functions are pure; logits are float32 and not divided by any temperature.

  Attributes:
    init: key -> params.
    hidden: (params, tokens_BxN int32, mask_BxN bool) -> hidden_BxNxD; position n sees the real tokens at positions <= n and
      predicts n + 1.
    head: (params, hidden_...xD) -> logits_...xV.
    start: (params, tokens_BxP, mask_BxP, num_tokens) -> (cache, logits_BxV): reads the prompt (padded on the left), makes room
      for num_tokens more, and returns the logits of the first response token.
    step: (params, cache, token_B) -> (cache, logits_BxV): appends one token and returns the logits of the next.
    advance: params -> params, one step of the power iteration of every reparametrised map; made once after every optimizer update.
    attention: (params, tokens_BxN, mask_BxN) -> AttentionLogits, differentiable; None for a policy without attention.
    unembedding: params -> the linear map that `head` is, which scoring reads a tile of the vocabulary at a time; None where it is none.
    take: (cache, row_DxR) -> the cache of D R of its rows, picked as in `pick_rows`: repeated, in another order, or fewer.
  """

  init: Callable[[jax.Array], Params]
  hidden: PolicyFn
  head: Callable[[Params, jax.Array], jax.Array]
  start: Callable[[Params, jax.Array, jax.Array, int], tuple[Cache, jax.Array]]
  step: Callable[[Params, Cache, jax.Array], tuple[Cache, jax.Array]]
  advance: Callable[[Params], Params] = unchanged
  attention: Callable[[Params, jax.Array, jax.Array], AttentionLogits] | None = None
  unembedding: Callable[[Params], Unembedding] | None = None
  take: Callable[[Cache, jax.Array], Cache] = take_rows

  def logits(self, params: Params, tokens_BxN: jax.Array, mask_BxN: jax.Array) -> jax.Array:
    """logits_BxNxV of every position at once; scoring works in chunks instead (rollout/score.py)."""
    return self.head(params, self.hidden(params, tokens_BxN, mask_BxN))


class Pure(NamedTuple):
  """A flax model as pure functions of one tree of parameters.

  Attributes:
    init: (key, *inputs of the model's __call__) -> params.
    call: (method, params, *inputs) -> what the method returns.
    sown: (method, params, *inputs) -> the collection 'attention' that the method sows.
    advance: as in `Policy`.
  """

  init: Callable[..., Params]
  call: Callable[..., Any]
  sown: Callable[..., PyTree]
  advance: Callable[[Params], Params]


def pure(model: nn.Module, *, has_state: bool) -> Pure:
  """The model's functions; has_state says whether it has the collection 'spectral'."""

  def variables(params: Params) -> dict[str, PyTree]:
    return {'params': params['params'], 'spectral': params['spectral']} if has_state else {'params': params}

  def init(key: jax.Array, *inputs: Any) -> Params:
    made = model.init(key, *inputs, mutable=['params', 'spectral'])
    return {'params': made['params'], 'spectral': made['spectral']} if has_state else made['params']

  def call(method: str, params: Params, *inputs: Any) -> Any:
    return model.apply(variables(params), *inputs, method=method)

  def sown(method: str, params: Params, *inputs: Any) -> PyTree:
    return model.apply(variables(params), *inputs, method=method, mutable=['attention'])[1]['attention']

  def advance(params: Params) -> Params:
    return {'params': params['params'], 'spectral': spectral.advance(params['params'], params['spectral'])}

  return Pure(init, call, sown, advance if has_state else unchanged)


def plain_params(params: Params) -> Params:
  """The trained parameters alone, without the state of reparametrised maps."""
  return params['params'] if set(params) == {'params', 'spectral'} else params


def stacked_logits(sown: PyTree, names: Sequence[str], part: str = 'attention') -> jax.Array:
  """logits_LxBxHxQxK of the attention called `part` in the blocks of these names, from what a model sowed."""
  return jnp.stack([sown[name][part]['logits'][0] for name in names])
