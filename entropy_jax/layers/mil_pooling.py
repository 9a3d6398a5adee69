"""Pooling of bags by gated attention: every instance is weighed by a score of its own, and a bag is the weighted mean of its instances.

Scores and pooling are apart, so that a loss or a measure can read the scores, and so that other weights can be put in their place.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from entropy_jax.ops import categorical


def bag_weights(logits_BxHxK: jax.Array, mask_BxK: jax.Array) -> jax.Array:
  """a = softmax of the logits over the instances of a bag.

  Args:
    logits_BxHxK: any float type, anything where masked.
    mask_BxK: bool, the instances.

  Returns:
    weight_BxHxK, float32, 0 where masked; 0 throughout for an empty bag.

  Gradient: through the logits of instances; 0 to what is masked.

  >>> bag_weights(jnp.array([[[0., 0., jnp.nan]]]), jnp.array([[True, True, False]])).tolist()
  [[[0.5, 0.5, 0.0]]]
  """
  mask = jnp.broadcast_to(mask_BxK[:, None, :], logits_BxHxK.shape)
  weight = jnp.exp(categorical.log_probs(jnp.where(mask, logits_BxHxK.astype(jnp.float32), -jnp.inf)))
  return jnp.where(mask, weight, 0.0)


def pool(z_BxKxD: jax.Array, logits_BxHxK: jax.Array, mask_BxK: jax.Array) -> jax.Array:
  """sum_n a_n z_n over the instances of a bag, a of `bag_weights`.

  Args:
    z_BxKxD: features of the instances, anything where masked.
    logits_BxHxK: attention logits.
    mask_BxK: bool, the instances.

  Returns:
    bag_BxHxD, float32.

  Gradient: through features and logits; 0 to what is masked.
  Limits: equal logits are mean pooling; one logit far above the others is that instance.

  >>> pool(jnp.array([[[1.], [3.], [8.]]]), jnp.zeros((1, 1, 3)), jnp.array([[True, True, False]])).tolist()
  [[[2.0]]]
  """
  z = jnp.where(mask_BxK[:, :, None], z_BxKxD.astype(jnp.float32), 0.0)
  return jnp.einsum('bhk,bkd->bhd', bag_weights(logits_BxHxK, mask_BxK), z)


class GatedAttention(nn.Module):
  """Attention logits of instances, A_hn = w_h^T (tanh(V z_n) * sigmoid(U z_n)), with biases on V, U and w.

  Parameters: content/{kernel, bias} is V, gate/{kernel, bias} is U, score/{kernel, bias} is w.

  Attributes:
    width: rows of V and U.
    num_heads: H, one score each; 1 is the method.

  Gradient: through z and all parameters; that of the bias of w is 0 after `bag_weights`, which no constant reaches.
  Limits: an instance's logit depends on that instance alone, so that bags may be of any size and order.
  Reference: Ilse, Tomczak and Welling, Attention-based Deep Multiple Instance Learning, arXiv 1802.04712, eq. 9.
  """

  width: int
  num_heads: int = 1

  @nn.compact
  def __call__(self, z_BxKxD: jax.Array) -> jax.Array:
    """logits_BxHxK, float32."""
    z = z_BxKxD.astype(jnp.float32)
    gated = jnp.tanh(nn.Dense(self.width, name='content')(z)) * nn.sigmoid(nn.Dense(self.width, name='gate')(z))
    return jnp.swapaxes(nn.Dense(self.num_heads, name='score')(gated), 1, 2)
