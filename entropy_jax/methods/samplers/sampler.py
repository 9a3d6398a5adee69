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


def chain_samplers(*samplers: Sampler) -> Sampler:
  """The samplers one after another, each on what the one before it left; without any, nothing is done.

  >>> import jax.numpy as jnp
  >>> both = chain_samplers(stateless(lambda z: z + 1), stateless(lambda z: 10 * z))
  >>> both.bind(both.init())(jnp.array([[2., 1.]])).tolist()
  [[30.0, 20.0]]
  """

  def init() -> tuple[PyTree, ...]:
    return tuple(sampler.init() for sampler in samplers)

  def adjust(logits_BxV: jax.Array, state: tuple[PyTree, ...]) -> jax.Array:
    for sampler, own in zip(samplers, state, strict=True):
      logits_BxV = sampler.adjust(logits_BxV, own)
    return logits_BxV

  def remember(state: tuple[PyTree, ...], entropy_BxT: jax.Array, mask_BxT: jax.Array) -> tuple[PyTree, ...]:
    return tuple(sampler.remember(own, entropy_BxT, mask_BxT) for sampler, own in zip(samplers, state, strict=True))

  return Sampler(init, adjust, remember)
