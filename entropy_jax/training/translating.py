"""What a sweep trains on sentence pairs: the encoder-decoder with its loss and with what is logged of its three kinds of attention."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from entropy_jax.models import encoder_decoder
from entropy_jax.models.policy import AttentionLogits
from entropy_jax.training import learners
from entropy_jax.training.learners import Batch, Learner
from entropy_jax.types import Metrics, Params


def pairs(fields: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> Batch:
  """Sentence pairs as `Translation.batch` gives them, their first axis split into `shape`.

  Returns:
    Batch with the inputs (source, its mask, what the decoder is given, its mask).
  """
  part = lambda name: jnp.asarray(fields[name]).reshape(*shape, -1)
  source, real = part('source_tokens_BxS'), part('target_mask_BxT')
  return Batch((source, part('source_mask_BxS'), part('decoder_tokens_BxT'), real), part('target_tokens_BxT'), real)


def translator(config: encoder_decoder.EncoderDecoderConfig, *, scan: bool = True) -> Learner:
  """An encoder-decoder of `pairs`; `scan` as of `encoder_decoder.translator`.

  Logged as of `learners.attention_measures`, where every attention is a layer: those of the encoder, from the bottom, those of the decoder
  to its own tokens, then those of the decoder to the source. Queries that are padding do not count.
  """
  model = encoder_decoder.translator(config, scan=scan)

  def loss(params: Params, batch: Batch) -> jax.Array:
    return learners.mean_loss(model.logits(params, *batch.inputs), batch)

  def measure(params: Params, batch: Batch) -> Metrics:
    params = jax.lax.stop_gradient(params)
    found = learners.held_out_measures(model.logits(params, *batch.inputs), batch)
    _, source_mask, _, target_mask = batch.inputs
    parts = []
    for name, (logits, mask_BxQxK) in model.attention(params, *batch.inputs).items():
      real_BxQ = source_mask if name == 'encoder' else target_mask
      parts.append(learners.attention_measures(AttentionLogits(logits, mask_BxQxK & real_BxQ[..., None])))
    return found | {name: _joined([part[name] for part in parts]) for name in parts[0]}

  return Learner(model.init, loss, model.advance, measure, learners.gain_measures)


def _joined(values: list[jax.Array]) -> jax.Array:
  """One number a layer one after the other, [3L]; the sum of what is counted."""
  return jnp.concatenate(values) if values[0].ndim else jnp.sum(jnp.stack(values))
