"""The learner that logs by position: bins against numpy, at a length beyond the one trained on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.measures import attention
from entropy_jax.models.transformer import DecoderConfig, transformer_policy
from entropy_jax.training import learners, position_learner
from entropy_jax.training.learners import Batch
from entropy_jax.types import UserError

CONFIG = DecoderConfig(width=8, num_layers=2, num_heads=2, mlp_width=8, vocab_size=7, max_length=12, tie_embeddings=False)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 7, (2, 12)))
# Nothing counts at the first four positions, and one sequence has fewer targets than the other.
MASK = jnp.asarray(np.arange(12)[None] >= np.array([[4], [7]]))
BATCH = Batch(TOKENS, jnp.roll(TOKENS, 3, axis=1), MASK)


@functools.cache
def found():
  learner, model = position_learner.by_position(CONFIG, bin_size=4), transformer_policy(CONFIG)

  @jax.jit
  def make():
    params = learner.init(jax.random.key(0))
    real = jnp.ones(TOKENS.shape, bool)
    entropy = attention.attention_entropy(*model.attention(params, TOKENS, real))
    same = learner.loss(params, BATCH) - learners.decoder(CONFIG).loss(params, BATCH)
    return learner.measure(params, BATCH), jax.nn.softmax(model.logits(params, TOKENS, real)), entropy, same

  return jax.device_get(make())


class TestByPosition:
  def test_loss_of_every_bin(self):
    logged, p, _, same = found()
    loss = -np.log(np.take_along_axis(p, np.asarray(BATCH.target_BxT)[..., None], axis=-1)[..., 0])
    assert np.isnan(logged['loss_at_0']) and same == 0
    for j in (1, 2):
      part = slice(4 * j, 4 * j + 4)
      np.testing.assert_allclose(logged[f'loss_at_{j}'], loss[:, part][np.asarray(MASK)[:, part]].mean(), rtol=1e-5)

  def test_entropy_of_every_bin_and_layer(self):
    logged, _, entropy_LxBxHxQ, _ = found()
    for j in range(3):
      np.testing.assert_allclose(logged[f'entropy_at_{j}'], entropy_LxBxHxQ[..., 4 * j : 4 * j + 4].mean(axis=(1, 2, 3)), rtol=1e-5)
    assert len(logged) == 6

  def test_bins_that_do_not_divide(self):
    learner = position_learner.by_position(CONFIG, bin_size=5)
    with pytest.raises(UserError, match='bin_size=5 does not divide the 12 positions of a measured sequence'):
      jax.eval_shape(lambda key: learner.measure(learner.init(key), BATCH), jax.random.key(0))
