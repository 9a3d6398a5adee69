"""sigmaReparam: linear maps whose spectral norm is a learnt number, and spectral normalisation, where it is 1.

The layers are flax's own Dense, DenseGeneral and Conv, with all their arguments, reading (gain / sigma) W where those read W. The state is
the collection 'spectral' (layers/spectral.py). A training loop calls `spectral.advance` once per update and leaves the collection
immutable; alternatively apply(..., mutable=['spectral']) makes the step in the forward pass and returns the new collection.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from entropy_jax.layers import spectral
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

# Standard deviation of a standard normal variable cut at two.
_CUT_STD = 0.8796256610342398


def vision_init(gain: float = 1.0) -> nn.initializers.Initializer:
  """Normal cut at two standard deviations, of standard deviation 0.02 gain after the cut.

  With gain_init='one' it does not change the map that training starts from, only how fast it turns: gradients scale with 1 / |W|.

  Args:
    gain: > 0; 1, and 0.125 for the patch embedding of ViT-L and larger.
  """
  return nn.initializers.truncated_normal(0.02 * gain / _CUT_STD)


def speech_init() -> nn.initializers.Initializer:
  """Normal of standard deviation 0.1, for every map; see `vision_init` for what it changes."""
  return nn.initializers.normal(0.1)


class _Normalised(nn.Module):
  """Turns the kernel that a flax layer reads into its effective one.

  The kernel is scaled and not the output, although x W gain / sigma is the same: there are fewer weights than activations in training, no
  activation is kept for the gradient of the gain, and under bfloat16 the scaled kernel is rounded once, whatever the number of rows, so
  that decoding and training compute the same function.
  """

  @nn.nowrap
  def param(self, name: str, init_fn: Any, *init_args: Any, **init_kwargs: Any) -> Any:
    value = super().param(name, init_fn, *init_args, **init_kwargs)
    return self._effective(value) if name == 'kernel' else value

  @nn.nowrap
  def _gain(self, w_IxO: jax.Array, u_O: jax.Array) -> jax.Array | float:
    return 1.0

  @nn.nowrap
  def _effective(self, kernel: jax.Array) -> jax.Array:
    if getattr(self, 'batch_dims', ()):
      raise UserError(f'batch_dims is {self.batch_dims!r}: set it to () and stack separate maps with nn.vmap, one norm for each.')
    if getattr(self, 'mask', None) is not None:
      raise UserError('mask is set, but the spectral norm is of the kernel without it: set mask=None.')
    features = self.features
    w_IxO = kernel.astype(jnp.float32).reshape(-1, features if isinstance(features, int) else math.prod(features))
    mutable = self.is_mutable_collection('spectral')
    if not mutable and not self.has_variable('spectral', 'u'):
      place = '/'.join(self.path) or type(self).__name__
      raise UserError(f"spectral has no u for {place!r}: apply {{'params': ..., 'spectral': ...}} with what init or convert returned.")
    u = self.variable('spectral', 'u', spectral.top_singular_vector, w_IxO)
    if mutable and not self.is_initializing():
      u.value = spectral.power_step(w_IxO, u.value)
    return spectral.effective_kernel(kernel, u.value, self._gain(w_IxO, u.value))


class _SigmaReparam(_Normalised):
  """With a gain.

  Attributes:
    gain_init: 'one', every map starts with spectral norm 1; 'sigma', the map starts as the plain layer would.
  """

  gain_init: str = 'one'

  @nn.nowrap
  def _gain(self, w_IxO: jax.Array, u_O: jax.Array) -> jax.Array:
    if self.gain_init not in spectral.GAIN_INITS:
      close = nearest(str(self.gain_init), spectral.GAIN_INITS)
      raise UserError(f'gain_init is {self.gain_init!r}: choose one of {", ".join(spectral.GAIN_INITS)}.{close}')
    sigma = functools.partial(spectral.norm_along, w_IxO, u_O)
    return self.param('gain', lambda _: sigma() if self.gain_init == 'sigma' else jnp.ones((), jnp.float32))


class SigmaReparamDense(_SigmaReparam, nn.Dense):
  """y = x (gain / sigma) W + b, with sigma = v^T W u the spectral norm of W [I, O] by one step of power iteration per update.

  Parameters: kernel [I, O], gain [], bias [O], float32. State: spectral u [O], a unit vector, float32; exact after init. Read from the
  collection 'spectral'; where that is mutable (and not in init) the forward pass makes one step first and stores it. v = W u / |W u|.

  Attributes:
    features, use_bias, dtype, param_dtype, precision, kernel_init, bias_init, ...: of flax's Dense, in its order. sigma and the scaled
      kernel are float32 whatever dtype.
    gain_init: 'one' or 'sigma', the kernel's spectral norm.

  Gradient: through W (in sigma too, which makes it orthogonal to W), gain, bias and x; none through u and v.
  Limits: Dense where gain = sigma; `SpectralNormDense` where gain = 1. A multiple of W is the same map with gradients divided by the
    multiple, so weight decay of W changes the speed of learning and nothing else; keep gain and bias out of it.
  Reference: Zhai et al., Stabilizing Transformer Training by Preventing Attention Entropy Collapse, arXiv 2303.06296; official code.
  Differs: gain_init, the official speech (JAX) layers start at 1, the vision (PyTorch) layers at sigma; the paper starts u at random, its
    code with the exact vector. v belongs to the new u here and to the old one there (half a step less), so that sigma is a function of the
    stored state and evaluation repeats training.
  """


class SigmaReparamGeneral(_SigmaReparam, nn.DenseGeneral):
  """`SigmaReparamDense` for several axes, as flax's DenseGeneral: all outputs share one matrix, one sigma and one gain.

  features=(3, H, D) is a fused query, key and value; features=(2, H, D) a fused query and key with the value beside it; axis=(-2, -1)
  joins heads. The kernel has the shape [*axis, *features] and is normalised as [inputs, outputs]; u is [outputs].

  Attributes:
    features, axis, use_bias, dtype, ...: of flax's DenseGeneral, in its order; batch_dims must be ().
    gain_init: 'one' or 'sigma'.

  Limits: `SigmaReparamDense` for one axis. The norm of one slice of the outputs, such as one head, is at most |gain|.
  """


class SigmaReparamConv(_SigmaReparam, nn.Conv):
  """`SigmaReparamDense` for a convolution, as flax's Conv: the kernel is normalised as the matrix [window * inputs, features].

  Attributes:
    features, kernel_size, strides, padding, ...: of flax's Conv, in its order; mask must be None.
    gain_init: 'one' or 'sigma'.

  Limits: `SigmaReparamDense` on patches where strides = kernel_size. The norm is of the matrix and not of the convolution as a map of
    images, which is at most sqrt(number of windows over one pixel) times as large.
  """


class SpectralNormDense(_Normalised, nn.Dense):
  """Spectral normalisation: y = x W / sigma + b, `SigmaReparamDense` with its gain fixed at 1.

  Attributes:
    features, use_bias, dtype, ...: of flax's Dense, in its order.

  Reference: Miyato et al., Spectral Normalization for Generative Adversarial Networks, arXiv 1802.05957.
  Differs: flax's SpectralNorm starts u at random and makes a step in evaluation too; here u starts exact and evaluation reads it.
  """
