"""What rollout and scoring need of a model, as pure functions: the one place that says how a policy is called."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from entropy_jax.types import Params

Cache = Any
# (params, tokens_BxN, mask_BxN) -> hidden_BxNxD or logits_BxNxV
PolicyFn = Callable[[Params, jax.Array, jax.Array], jax.Array]


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
  """

  init: Callable[[jax.Array], Params]
  hidden: PolicyFn
  head: Callable[[Params, jax.Array], jax.Array]
  start: Callable[[Params, jax.Array, jax.Array, int], tuple[Cache, jax.Array]]
  step: Callable[[Params, Cache, jax.Array], tuple[Cache, jax.Array]]

  def logits(self, params: Params, tokens_BxN: jax.Array, mask_BxN: jax.Array) -> jax.Array:
    """logits_BxNxV of every position at once; scoring works in chunks instead (rollout/score.py)."""
    return self.head(params, self.hidden(params, tokens_BxN, mask_BxN))
