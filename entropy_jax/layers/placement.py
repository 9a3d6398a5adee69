"""Where a block normalises: before a branch, after the sum, nowhere, or after a sum whose skip is scaled (DeepNorm)."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax

from entropy_jax import transform
from entropy_jax.types import UserError

PLACEMENTS = 'pre | post | none | deepnorm'
_SCALED = ('value', 'output', 'gate', 'up', 'down')  # DeepNorm's beta is for these; query and key keep Xavier's gain

Norm = Callable[[jax.Array], jax.Array]


def _check(placement: str, norm: Norm | None, alpha: float | None) -> None:
  transform.check_range('residual', 'placement', placement, PLACEMENTS)
  if norm is None and placement != 'none':
    raise UserError(f"residual: placement is {placement!r} without a norm; give one, or placement='none'.")
  if (alpha is None) == (placement == 'deepnorm'):
    raise UserError(f"residual: alpha is {alpha!r} with placement {placement!r}; placement='deepnorm' needs one (`deepnorm`), no other.")


def branch_input(x_xD: jax.Array, norm: Norm | None, *, placement: str) -> jax.Array:
  """What a branch reads: norm(x) for 'pre', x for all others.

  For branches that return more than their output; together with `add_branch` it is `residual`.
  """
  return norm(x_xD) if placement == 'pre' and norm is not None else x_xD


def add_branch(x_xD: jax.Array, out_xD: jax.Array, norm: Norm | None, *, placement: str, alpha: float | None = None) -> jax.Array:
  """The stream after a branch: x + out, normalised for 'post' and 'deepnorm', with alpha x for 'deepnorm'.

  Args:
    x_xD: the stream, not `branch_input`.
    out_xD: what the branch made.
    norm, placement, alpha: as in `residual`.

  Returns:
    [..., D].

  Gradient: through both.
  """
  _check(placement, norm, alpha)
  total = x_xD + out_xD if alpha is None else alpha * x_xD + out_xD
  return norm(total) if placement in ('post', 'deepnorm') and norm is not None else total


def residual(
  x_xD: jax.Array, branch: Norm, norm: Norm | None = None, *, placement: str = 'pre', alpha: float | None = None
) -> jax.Array:
  """One residual branch f in a block.

    'pre'       x + f(norm(x)), and the model normalises once more before its head (`has_final_norm`)
    'post'      norm(x + f(x))
    'none'      x + f(x)
    'deepnorm'  norm(alpha x + f(x)): alpha is on the skip, not on the branch

  Args:
    x_xD: [..., D], the stream.
    branch: f, attention or MLP.
    norm: any normalisation of the last axis; None with 'none'.
    placement: one of the four.
    alpha: of 'deepnorm' alone, from `deepnorm`.

  Returns:
    [..., D], the stream after the branch.

  Gradient: through x, branch and norm.
  Limits: 'pre' with a branch that is 0 is the identity; 'post' and 'deepnorm' with an unscaled LayerNorm give mean 0 and variance 1 a
    token; 'deepnorm' with alpha=1 is 'post'.
  Reference: Xiong et al., On Layer Normalization in the Transformer Architecture, arXiv 2002.04745 ('pre', 'post'); Wang et al.,
    DeepNet: Scaling Transformers to 1,000 Layers, arXiv 2203.00555 ('deepnorm').

  >>> import jax.numpy as jnp
  >>> halve = lambda x: x / 2
  >>> [residual(jnp.array(4.), lambda x: 3 * x, halve, placement=p).item() for p in ('pre', 'post')]     # 4 + 3 * 2, (4 + 12) / 2
  [10.0, 8.0]
  """
  _check(placement, norm, alpha)
  return add_branch(x_xD, branch(branch_input(x_xD, norm, placement=placement)), norm, placement=placement, alpha=alpha)


def has_final_norm(placement: str) -> bool:
  """Whether the model normalises the stream before its head: pre-norm streams are sums that nothing has normalised."""
  transform.check_range('residual', 'placement', placement, PLACEMENTS)
  return placement == 'pre'


class DeepNorm(NamedTuple):
  """alpha multiplies the skip in every forward, beta the standard deviation of the initial weights (`deepnorm_init`)."""

  alpha: float
  beta: float


def deepnorm(num_layers: int, *, part: str = 'decoder', other_layers: int | None = None, form: str = 'paper') -> DeepNorm:
  """DeepNorm's two constants for one stack of a model.

  A stack alone, N layers:       alpha = (2N)^(1/4), beta = (8N)^(-1/4), so that alpha beta = 2^(-1/2)
  Encoder of N with decoder of M: alpha = .81 (N^4 M)^(1/16), beta = .87 (N^4 M)^(-1/16)
  Decoder of M with encoder of N: alpha = (3M)^(1/4), beta = (12M)^(-1/4)

  Args:
    num_layers: of this stack, at least 1.
    part: 'encoder' or 'decoder'; a stack alone is the same for both.
    other_layers: of the other stack of an encoder-decoder; None for a stack alone.
    form: 'paper', or 'released' for the constant of the released code.

  Returns:
    DeepNorm(alpha, beta).

  Reference: Wang et al., DeepNet: Scaling Transformers to 1,000 Layers, arXiv 2203.00555. UNCONFIRMED: the paper's .87.
  Differs: the released code (torchscale) has 1.15 = 1 / .87 in the place of .87, that is form='released'; all else agrees.

  >>> deepnorm(8)
  DeepNorm(alpha=2.0, beta=0.3535533905932738)
  """
  transform.check_range('deepnorm', 'part', part, 'encoder | decoder')
  transform.check_range('deepnorm', 'form', form, 'paper | released')
  for key, value in (('num_layers', num_layers), ('other_layers', other_layers)):
    if value is not None and value < 1:
      raise UserError(f'deepnorm: {key} is {value!r}: give a positive number of layers.')
  if other_layers is None:
    return DeepNorm((2 * num_layers) ** 0.25, (8 * num_layers) ** -0.25)
  if part == 'decoder':
    return DeepNorm((3 * num_layers) ** 0.25, (12 * num_layers) ** -0.25)
  depth = (num_layers**4 * other_layers) ** 0.0625
  return DeepNorm(0.81 * depth, (0.87 if form == 'paper' else 1.15) / depth)


def deepnorm_gain(matrix: str, *, beta: float, form: str = 'paper') -> float:
  """Gain of a matrix's Xavier initialisation: beta for value, output and the MLP, 1 for query and key.

  Args:
    matrix: 'query', 'key', 'value', 'output', 'gate', 'up' or 'down'.
    beta: from `deepnorm`; 1 for post-norm.
    form: 'paper', or 'released' for the released code.

  Reference: as `deepnorm`.
  Differs: the released code (torchscale) starts query, key and value smaller by sqrt(2), as one fused matrix [D, 3D] would start. It
    also scales biases, and never calls its Xavier initialisation, so that its framework's default stands below beta.
  """
  transform.check_range('deepnorm', 'matrix', matrix, ' | '.join(('query', 'key', *_SCALED)))
  transform.check_range('deepnorm', 'form', form, 'paper | released')
  gain = beta if matrix in _SCALED else 1.0
  return gain * 2**-0.5 if form == 'released' and matrix in ('query', 'key', 'value') else gain


def deepnorm_init(matrix: str, *, beta: float, form: str = 'paper') -> nn.initializers.Initializer:
  """Xavier's normal initialisation with `deepnorm_gain`: variance gain^2 2 / (fan in + fan out).

  A fused matrix [D, 3D] has a larger fan out: start its parts one by one, each as [D, D].
  """
  return nn.initializers.variance_scaling(deepnorm_gain(matrix, beta=beta, form=form) ** 2, 'fan_avg', 'normal')
