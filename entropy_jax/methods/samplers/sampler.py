"""The one interface of the samplers: a function of the logits, and a state that follows the batches, not the tokens."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

from entropy_jax.types import PyTree


class Sampler(NamedTuple):
  """What to do to the logits before a token is drawn.

  Attributes:
    init: () -> state, a pytree of arrays whose structure never changes: it goes through `jit` and into a checkpoint.
    adjust: (logits_BxV, state) -> logits_BxV, pure and local to each row.
    remember: (state, entropy_BxT, mask_BxT) -> state, from the whole batch that was sampled last; without a valid token it changes
      nothing.

      state = sampler.init()
      rollout = generate(policy, params, tokens, mask, key, num_tokens=T, adjust=sampler.bind(state))
      state = sampler.remember(state, rollout.entropy_BxT, rollout.mask_BxT)
  """

  init: Callable[[], PyTree]
  adjust: Callable[[jax.Array, PyTree], jax.Array]
  remember: Callable[[PyTree, jax.Array, jax.Array], PyTree]

  def bind(self, state: PyTree) -> Callable[[jax.Array], jax.Array]:
    """`adjust` at this state, as `generate` takes it."""
    return functools.partial(_at, self.adjust, state)


def _at(adjust: Callable[[jax.Array, PyTree], jax.Array], state: PyTree, logits_BxV: jax.Array) -> jax.Array:
  return adjust(logits_BxV, state)


def stateless(adjust: Callable[[jax.Array], jax.Array]) -> Sampler:
  """A sampler that remembers nothing.

  >>> import jax.numpy as jnp
  >>> sampler = stateless(lambda logits_BxV: 2 * logits_BxV)
  >>> sampler.bind(sampler.init())(jnp.ones((1, 2))).tolist()
  [[2.0, 2.0]]
  """
  return Sampler(dict, lambda logits_BxV, state: adjust(logits_BxV), lambda state, entropy_BxT, mask_BxT: state)
