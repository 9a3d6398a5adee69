"""Activations by name, among them CRReLU, the correction of ReLU that lowers or raises the entropy of what passes it."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from entropy_jax import transform


def crrelu(x: jax.Array, epsilon: jax.Array | float) -> jax.Array:
  """Correction Regularized ReLU: max(0, x) + epsilon x exp(-x^2 / 2).

  Args:
    x: any shape, pre-activations; the bump around 0 does not follow their scale.
    epsilon: scalar, learnt.

  Returns:
    Same shape and type; the arithmetic is float32.

  Gradient: [x > 0] + epsilon (1 - x^2) exp(-x^2 / 2) to x, x exp(-x^2 / 2) to epsilon.
  Limits: ReLU for epsilon = 0 and for large |x|. On a standard normal input the entropy of x + epsilon x exp(-x^2 / 2) grows at
    epsilon / (2 sqrt(2)) nats: epsilon > 0 raises it, though the method is derived to lower it, so that the learnt sign decides.
  Reference: Sun et al., A Method on Searching Better Activation Functions, arXiv 2405.12954.

  >>> [round(x, 6) for x in crrelu(jnp.array([-1., 0., 1.]), .01).tolist()]
  [-0.006065, 0.0, 1.006065]
  """
  wide = x.astype(jnp.float32)
  return (jax.nn.relu(wide) + epsilon * wide * jnp.exp(-0.5 * jnp.square(wide))).astype(x.dtype)


class CRReLU(nn.Module):
  """`crrelu` with one learnt epsilon for the module.

  Attributes:
    start: of epsilon. No weight decay on it is recommended, UNCONFIRMED.
  """

  start: float = 0.01

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return crrelu(x, self.param('epsilon', nn.initializers.constant(self.start), (), jnp.float32))


def wafbc(x: jax.Array, *, low: float = -1.0, high: float = 1.0) -> jax.Array:
  """The worst activation with boundary conditions for a standard normal input: low + (high - low) Phi(x).

  It makes the output uniform, of entropy ln(high - low), which no other density on [low, high] reaches.

  Args:
    x: any shape.
    low, high: the boundary values, low < high.

  Returns:
    Same shape and type.

  Gradient: (high - low) times the normal density.
  Reference: Sun et al., A Method on Searching Better Activation Functions, arXiv 2405.12954; for any density, Phi is its distribution
    function.

  >>> wafbc(jnp.array([0.])).tolist()
  [0.0]
  """
  return (low + (high - low) * jax.scipy.stats.norm.cdf(x.astype(jnp.float32))).astype(x.dtype)


def _identity(x: jax.Array) -> jax.Array:
  return x


_PLAIN: dict[str, Callable[[jax.Array], jax.Array]] = {
  'relu': jax.nn.relu,
  'gelu': lambda x: jax.nn.gelu(x, approximate=True),
  'gelu_exact': lambda x: jax.nn.gelu(x, approximate=False),
  'silu': jax.nn.silu,
  'wafbc': wafbc,
  'identity': _identity,
}
NAMES = ' | '.join((*_PLAIN, 'crrelu'))


class Activation(nn.Module):
  """An activation by name; 'crrelu' has a parameter `crrelu/epsilon`, all others none.

  Attributes:
    activation: 'relu', 'gelu' (the tanh form of GPT-2), 'gelu_exact', 'silu', 'wafbc', 'identity' (an MLP without nonlinearity) or
      'crrelu'.
  """

  activation: str = 'gelu'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    transform.check_range('activation', 'activation', self.activation, NAMES)
    return CRReLU(name='crrelu')(x) if self.activation == 'crrelu' else _PLAIN[self.activation](x)
