"""A causal model as a learner that logs what it does by position: the loss of the targets, and the entropy of every layer's attention, in
bins of positions, for sequences of any length."""

import jax
import jax.numpy as jnp

from entropy_jax.measures import attention
from entropy_jax.models import transformer
from entropy_jax.ops import auxiliary, masked
from entropy_jax.training import learners
from entropy_jax.training.learners import Batch, Learner
from entropy_jax.types import Metrics, Params, UserError


def bin_name(measure: str, index: int) -> str:
  """The name under which a measure of one bin of positions is logged.

  >>> bin_name('loss', 3)
  'loss_at_3'
  """
  return f'{measure}_at_{index}'


def by_position(config: transformer.DecoderConfig, *, bin_size: int) -> Learner:
  """`learners.decoder` with other measures.

  Args:
    config: of the model; of `rotary` positions where measured sequences are longer than those trained on.
    bin_size: positions of a bin, a divisor of the length of measured batches: bin j has positions j bin_size + 1 .. (j + 1) bin_size.

  Returns:
    A learner that logs, of every bin, `loss_at_J`, the mean cross entropy of the targets that count (NaN where none does), and
    `entropy_at_J` of every layer, the mean entropy of the queries over sequences and heads, nats.
  """
  model = transformer.transformer_policy(config)
  read = model.attention
  assert read is not None

  def measure(params: Params, batch: Batch) -> Metrics:
    params, real = jax.lax.stop_gradient(params), jnp.ones(batch.inputs.shape, bool)
    if batch.inputs.shape[1] % bin_size:
      raise UserError(f'bin_size={bin_size} does not divide the {batch.inputs.shape[1]} positions of a measured sequence; give a divisor.')
    losses = auxiliary.token_losses(model.logits(params, batch.inputs, real), batch.target_BxT, batch.mask_BxT, z_coef=None)
    entropy_LxBxHxQ = attention.attention_entropy(*read(params, batch.inputs, real))
    L, B, H, _ = entropy_LxBxHxQ.shape
    entropy_LxJ = jnp.mean(entropy_LxBxHxQ.reshape(L, B, H, -1, bin_size), axis=(1, 2, 4))
    loss_J = _by_bin(losses.cross_entropy_BxT, batch.mask_BxT, bin_size)
    return {bin_name('loss', j): x for j, x in enumerate(loss_J)} | {bin_name('entropy', j): x for j, x in enumerate(entropy_LxJ.T)}

  return learners.decoder(config)._replace(measure=measure, finish=lambda params: {})


def _by_bin(x_BxT: jax.Array, mask_BxT: jax.Array, bin_size: int) -> jax.Array:
  """Mean over the slots of every bin that count, [J]; NaN where none does."""
  bins = lambda x: x.reshape(x.shape[0], -1, bin_size).transpose(1, 0, 2).reshape(-1, x.shape[0] * bin_size)
  value_JxM, mask_JxM = bins(x_BxT), bins(mask_BxT)
  some_J = jnp.any(mask_JxM, axis=-1)
  return jnp.where(some_J, masked.total(value_JxM, mask_JxM, axis=-1) / jnp.maximum(masked.count(mask_JxM, axis=-1), 1), jnp.nan)
