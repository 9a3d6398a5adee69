"""The samplers: what each does to the logits before a token is drawn, in the order in which they act; and samplers from named data.

They are no part of the objective: `generate` takes one, and so does `config.sampling` of `experiments.rlvr`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from entropy_jax import transform
from entropy_jax.methods import samplers
from entropy_jax.methods.samplers import Sampler, temperature, truncation
from entropy_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Row:
  """One sampler.

  Attributes:
    factory: hyper-parameters -> Sampler.
    ranges: hyper-parameter -> what is allowed.
    formula: its rule in one line; p = softmax(z / T), H in nats.
    reference: authors, title, arXiv id where it is known.
    confirmed: whether the rule was read in the paper or its code.
  """

  factory: Callable[..., Sampler]
  ranges: Mapping[str, str]
  formula: str
  reference: str
  confirmed: bool = True

  @property
  def name(self) -> str:
    return self.factory.__name__

  def defaults(self) -> dict[str, Any]:
    return {key: parameter.default for key, parameter in inspect.signature(self.factory).parameters.items()}


_HEWITT = 'Hewitt et al., Truncation Sampling as Language Model Desmoothing'

# Temperatures, then truncations, these in the order of Hugging Face's `generate`.
TABLE = (
  Row(
    samplers.dual_temperature,
    temperature.RANGES['dual_temperature'],
    'z / high where H(p) > level, z / low elsewhere',
    'Wang et al., Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning for LLM Reasoning, '
    'arXiv 2506.01939',
  ),
  Row(
    samplers.adaptive_temperature,
    temperature.RANGES['adaptive_temperature'],
    'z / (1 + tau h), h in [-1, 1] the entropy of the row on the scale of the batch before',
    "Liu et al., From Uniform to Heterogeneous: Tailoring Policy Optimization to Every Token's Nature (HAPO)",
    confirmed=False,
  ),
  Row(
    samplers.top_h,
    truncation.RANGES['top_h'],
    'the longest prefix S in descending order with H(p_S / p(S)) <= alpha H(p)',
    'Top-H Decoding: Adapting the Creativity and Coherence with Bounded Entropy in Text Generation, Algorithm 1',
  ),
  Row(samplers.top_k, truncation.RANGES['top_k'], 'the k most probable tokens, and ties with the last', 'usual'),
  Row(samplers.top_p, truncation.RANGES['top_p'], 'tokens with less than the mass p before them in descending order', 'usual, the nucleus'),
  Row(samplers.min_p, truncation.RANGES['min_p'], 'tokens with p_v >= m max p', 'usual'),
  Row(
    samplers.typical,
    truncation.RANGES['typical'],
    'tokens by |-ln p_v - H(p)| ascending, until they have the mass',
    'Meister et al., Locally Typical Sampling',
  ),
  Row(samplers.epsilon, truncation.RANGES['epsilon'], 'tokens with p_v >= epsilon, and the most probable one', _HEWITT),
  Row(
    samplers.eta,
    truncation.RANGES['eta'],
    'tokens with p_v >= min(epsilon, sqrt(epsilon) exp(-H(p))), and the most probable one',
    _HEWITT,
  ),
)

SAMPLERS: dict[str, Row] = {row.name: row for row in TABLE}


def _made(name: Any, kwargs: Any) -> Sampler:
  if name not in SAMPLERS:
    close = transform.nearest(str(name), list(SAMPLERS))
    raise UserError(f'sampler: there is no {name!r}; there are {", ".join(SAMPLERS)}.{close}')
  if not isinstance(kwargs, Mapping):
    raise UserError(f'sampler: {name}={kwargs!r} is not a dict of hyper-parameters; write {{key: value}}, or {{}} for the defaults.')
  for key in kwargs:
    if key not in SAMPLERS[name].ranges:
      raise UserError(f'sampler: {key!r} is no hyper-parameter of {name}; allowed: {", ".join(SAMPLERS[name].ranges)}.')
  return SAMPLERS[name].factory(**kwargs)


def build(spec: Mapping[str, Mapping[str, Any]] | Sequence[Mapping[str, Any]]) -> Sampler:
  """The samplers that plain data describes.

  Args:
    spec: name -> hyper-parameters, chained in the order of `TABLE` whatever that of the keys; or a list of {'name': ..., 'kwargs':
      {...}}, kwargs optional, chained in its own order.

  Raises:
    UserError: an unknown name or hyper-parameter, a value out of range, or another form.

  >>> import jax.numpy as jnp
  >>> sampler = build({'min_p': {'m': .1}, 'top_k': {'k': 2}})
  >>> sampler.bind(sampler.init())(jnp.array([[0., 2., 1.]])).tolist()
  [[-inf, 2.0, 1.0]]
  """
  if isinstance(spec, Mapping):
    made = {name: _made(name, kwargs) for name, kwargs in spec.items()}
    return samplers.chain_samplers(*(made[name] for name in SAMPLERS if name in made))
  if not isinstance(spec, Sequence) or isinstance(spec, str):
    raise UserError(f"sampler: {spec!r} is no description of samplers; write {{'top_p': {{'p': 0.9}}}}, or {{}} for none.")
  chained = []
  for given in spec:
    if not isinstance(given, Mapping) or 'name' not in given or set(given) - {'name', 'kwargs'}:
      raise UserError(f"sampler: {given!r} in a list is no sampler; write {{'name': ..., 'kwargs': {{...}}}}.")
    chained.append(_made(given['name'], given.get('kwargs', {})))
  return samplers.chain_samplers(*chained)
