"""Low-rank adapters beside the maps of a model that stays as it is: the trained tree is the adapters alone, of any linen policy.

    {'adapters': {map: {'lora_a', 'lora_b'}}, 'base': Frozen(parameters of the model)}

`Frozen` is what the rest of the library goes by: the base is not differentiated, has no moments, is not donated or copied by an update, is
cut over devices as its own table says, and checkpoints hold a digest of it instead. It can be read again from its folder.
"""

import dataclasses
import functools
import math
import re
import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from entropy_jax.models.policy import Policy
from entropy_jax.transform import check_range, nearest
from entropy_jax.types import Frozen, Params, UserError

ADAPTERS, BASE = 'adapters', 'base'
A, B = 'lora_a', 'lora_b'
ATTENTION_AND_MLP = r'(attention/(query|key|value|output)|mlp/(gate|up|down))$'


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
  """Which maps are adapted, and how.

  Attributes:
    rank: r, at least 1.
    alpha: the sum is scaled by alpha / r.
    targets: pattern that is searched in the path of a map, such as 'block_0/attention/query'; maps are the parameters PATH/kernel with two
      axes. Embeddings and an untied head are no such maps.
    rank_stabilized: scaled by alpha / sqrt(r) instead, so that the size of an update does not fall with the rank.
  """

  rank: int = 8
  alpha: float = 16.0
  targets: str = ATTENTION_AND_MLP
  rank_stabilized: bool = False

  def __post_init__(self) -> None:
    if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
      raise UserError(f'lora: rank={self.rank!r} is not a whole number of at least 1; give one.')
    check_range('lora', 'alpha', self.alpha, '(0, inf)')
    try:
      re.compile(self.targets)
    except re.error as error:
      raise UserError(f'lora: targets={self.targets!r} is no pattern ({error}); give a regular expression.') from None

  @property
  def scale(self) -> float:
    return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


def maps(base: Params, config: LoraConfig) -> dict[str, tuple[int, int]]:
  """Path of every adapted map, without /kernel, and its (inputs, outputs).

  Args:
    base: parameters of the model, or their shapes.

  Raises:
    UserError: no map has such a path, or the maps of the model are reparametrised.
  """
  flat = traverse_util.flatten_dict(base, sep='/')
  every = {path.removesuffix('/kernel'): leaf.shape for path, leaf in flat.items() if path.endswith('/kernel') and leaf.ndim == 2}
  if any(path.startswith('spectral/') for path in flat):
    raise UserError("lora: the maps of this model are reparametrised, and a sum beside them would be none of theirs: give linear='dense'.")
  found = {path: shape for path, shape in every.items() if re.search(config.targets, path)}
  if not found:
    shown = ', '.join(sorted(every)[:8]) or 'none'
    close = nearest(config.targets, list(every))
    raise UserError(f'lora: targets={config.targets!r} is found in no map of the model; its maps are {shown}.{close}')
  return found


def adapt(base: Params, key: jax.Array, config: LoraConfig) -> Params:
  """The parameters that `lora_policy` takes, around the base itself and not a copy: A random, B = 0, so that they start as the base.

  Args:
    base: parameters of the model, anywhere, of any type.
    key: of A, whose entries are uniform in (-1, 1) / sqrt(inputs); each map has its own draw, whichever others are adapted.

  Returns:
    {'adapters', 'base'}; the adapters are float32 whatever the base is.
  """
  init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
  adapters: dict[str, dict[str, jax.Array]] = {}
  for path, (inputs, outputs) in maps(base, config).items():
    own = jax.random.fold_in(key, zlib.crc32(path.encode()))
    adapters[path] = {A: init(own, (inputs, config.rank), jnp.float32), B: jnp.zeros((config.rank, outputs), jnp.float32)}
  return {ADAPTERS: traverse_util.unflatten_dict(adapters, sep='/'), BASE: Frozen(base)}


def lora_policy(policy: Policy, config: LoraConfig) -> Policy:
  """The policy whose adapted maps compute x W + b + s (x A) B, with s = alpha / r.

  Args:
    policy: of a linen model; its functions read the base.
    config: which maps, r and alpha.

  Returns:
    A policy of the parameters that `adapt` makes; its `init` makes the base too. All else is the policy's.

  Gradient: to A and B. That of W is never formed: the backward pass makes x A, the gradient times B^T, and W^T times the gradient for what
    comes before.
  Limits: the base where B = 0, bit by bit. Beside the base a step holds x A of every adapted map, r numbers a token, for the backward pass,
    and two thin products more a map, forward and backward and in every step of decoding. The other way, to make W + s A B once a call,
    holds a second copy of all adapted maps and the gradient to each of them, so `merge` is for export alone.
  Reference: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685, Eq. 3; alpha / sqrt(r): Kalajdzievski,
    A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, arXiv 2312.03732.
  Differs: the paper draws A from a Gaussian; public implementations from a uniform distribution of variance 1 / (3 inputs), as here. They
    have a dropout before A, which is left out: the policy that is trained must be the one that sampled.
  """

  def bound(fn: Callable[..., Any], *, meets: bool) -> Callable[..., Any]:
    @functools.wraps(fn)
    def with_adapters(params: Params, *arguments: Any) -> Any:
      adapters, met = _flat(params[ADAPTERS]), set()

      def add(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        out = call(*args, **kwargs)
        own = adapters.get('/'.join(context.module.path)) if context.method_name == '__call__' else None
        if own is None:
          return out
        met.add('/'.join(context.module.path))
        x = args[0].astype(out.dtype)
        return out + config.scale * ((x @ own[A].astype(out.dtype)) @ own[B].astype(out.dtype))

      with nn.intercept_methods(add):
        result = fn(params[BASE].tree, *arguments)
      if meets and met != set(adapters):
        missed = sorted(set(adapters) - met)[0]
        raise UserError(f'lora: the model made no use of the map {missed}; give targets that are linen layers of it.')
      return result

    return with_adapters

  def init(key: jax.Array) -> Params:
    return adapt(policy.init(key), jax.random.fold_in(key, zlib.crc32(ADAPTERS.encode())), config)

  linear, attention = policy.unembedding, policy.attention
  return policy._replace(
    init=init,
    hidden=bound(policy.hidden, meets=True),
    head=lambda params, hidden_xD: policy.head(params[BASE].tree, hidden_xD),
    start=bound(policy.start, meets=True),
    step=bound(policy.step, meets=True),
    advance=lambda params: params,
    attention=None if attention is None else bound(attention, meets=False),
    unembedding=None if linear is None else lambda params: linear(params[BASE].tree),
  )


def _flat(adapters: Params) -> dict[str, dict[str, jax.Array]]:
  pairs: dict[str, dict[str, jax.Array]] = {}
  for path, leaf in traverse_util.flatten_dict(adapters, sep='/').items():
    name, part = path.rsplit('/', 1)
    pairs.setdefault(name, {})[part] = leaf
  return pairs


def merge(params: Params, config: LoraConfig) -> Params:
  """The parameters of the plain model, with W + s A B for the adapted maps, as `hub.save` takes them.

  Args:
    params: of `lora_policy`.
    config: its config.

  Returns:
    The base's own arrays but for the adapted maps, which lie on the devices as the base's do and have its type; the sum is made in float32.

  Limits: a bfloat16 base rounds the sum, by up to 2^-9 of a weight, and forgets an adapter that is smaller: merge into a float32 base to
    keep it.
  """
  flat = traverse_util.flatten_dict(params[BASE].tree, sep='/')
  for path, own in _flat(params[ADAPTERS]).items():
    kernel = flat[f'{path}/kernel']
    add = jax.jit(_added, static_argnames='scale', out_shardings=getattr(kernel, 'sharding', None))
    flat[f'{path}/kernel'] = add(kernel, own[A], own[B], scale=config.scale)
  return traverse_util.unflatten_dict(flat, sep='/')


def _added(kernel: jax.Array, a: jax.Array, b: jax.Array, *, scale: float) -> jax.Array:
  product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
  return (kernel.astype(jnp.float32) + scale * product).astype(kernel.dtype)
