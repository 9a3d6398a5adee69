"""Samplers one after another, and from named data, as a config holds them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from entropy_jax import transform
from entropy_jax.methods.samplers import temperature, truncation
from entropy_jax.methods.samplers.sampler import Sampler
from entropy_jax.types import PyTree, UserError

# Name -> factory, in the order in which they act when several are on: temperatures, then truncations as in Hugging Face's `generate`.
SAMPLERS: dict[str, Callable[..., Sampler]] = {
  'dual_temperature': temperature.dual_temperature,
  'adaptive_temperature': temperature.adaptive_temperature,
  'top_h': truncation.top_h,
  'top_k': truncation.top_k,
  'top_p': truncation.top_p,
  'min_p': truncation.min_p,
  'typical': truncation.typical,
  'epsilon': truncation.epsilon,
  'eta': truncation.eta,
}


def chain_samplers(*samplers: Sampler) -> Sampler:
  """The samplers one after another, each on what the one before it left; without any, nothing is done.

  >>> import jax.numpy as jnp
  >>> both = chain_samplers(truncation.top_k(k=2), truncation.min_p(m=.9))
  >>> both.bind(both.init())(jnp.array([[2., 1., 0.]])).tolist()
  [[2.0, -inf, -inf]]
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


def _made(name: Any, kwargs: Any) -> Sampler:
  if name not in SAMPLERS:
    close = transform.nearest(str(name), list(SAMPLERS))
    raise UserError(f'sampler: there is no {name!r}; there are {", ".join(SAMPLERS)}.{close}')
  if not isinstance(kwargs, Mapping):
    raise UserError(f'sampler: {name}={kwargs!r} is not a dict of hyper-parameters; write {{key: value}}, or {{}} for the defaults.')
  allowed = list(inspect.signature(SAMPLERS[name]).parameters)
  for key in kwargs:
    if key not in allowed:
      raise UserError(f'sampler: {key!r} is no hyper-parameter of {name}; allowed: {", ".join(allowed)}.')
  return SAMPLERS[name](**kwargs)


def from_config(spec: Mapping[str, Mapping[str, Any]] | Sequence[Mapping[str, Any]]) -> Sampler:
  """The samplers that plain data describes.

  Args:
    spec: name -> hyper-parameters, chained in the order of `SAMPLERS` whatever that of the keys; or a list of {'name': ..., 'kwargs':
      {...}}, kwargs optional, chained in its own order.

  Raises:
    UserError: an unknown name or hyper-parameter, a value out of range, or another form.

  >>> import jax.numpy as jnp
  >>> sampler = from_config({'min_p': {'m': .1}, 'top_k': {'k': 2}})
  >>> sampler.bind(sampler.init())(jnp.array([[0., 2., 1.]])).tolist()
  [[-inf, 2.0, 1.0]]
  """
  if isinstance(spec, Mapping):
    made = {name: _made(name, kwargs) for name, kwargs in spec.items()}
    return chain_samplers(*(made[name] for name in SAMPLERS if name in made))
  if not isinstance(spec, Sequence) or isinstance(spec, str):
    raise UserError(f"sampler: {spec!r} is no description of samplers; write {{'top_p': {{'p': 0.9}}}}, or {{}} for none.")
  samplers = []
  for given in spec:
    if not isinstance(given, Mapping) or 'name' not in given or set(given) - {'name', 'kwargs'}:
      raise UserError(f"sampler: {given!r} in a list is no sampler; write {{'name': ..., 'kwargs': {{...}}}}.")
    samplers.append(_made(given['name'], given.get('kwargs', {})))
  return chain_samplers(*samplers)
