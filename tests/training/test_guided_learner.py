"""The entropy-guided learner on a small model: its loss and penalty against numpy, whom they move, what is logged of every head."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.measures import attention
from entropy_jax.models.policy import AttentionLogits
from entropy_jax.models.transformer import DecoderConfig, transformer_policy
from entropy_jax.training import guided_learner, learners
from entropy_jax.training.guided_learner import Guide
from entropy_jax.types import UserError

CONFIG = DecoderConfig(
  width=8, num_layers=2, num_heads=2, mlp_width=8, vocab_size=7, max_length=6, positions='learned', tie_embeddings=False, norm='none',
  activation='fused', softmax_temperature='softplus',
)  # fmt: skip
BATCH = learners.next_tokens(jnp.asarray(np.random.default_rng(0).integers(0, 7, (3, 7))))
GUIDE = Guide(coef=0.7, tolerance=0.1, start=0.4)


@functools.cache
def found():
  """(params, loss, gradient, what is logged) with the guide, and loss and what is logged without it."""
  guided, plain = guided_learner.guided_decoder(CONFIG, GUIDE), guided_learner.guided_decoder(CONFIG)

  @jax.jit
  def make():
    params = guided.init(jax.random.key(0))
    loss, grads = jax.value_and_grad(guided.loss)(params, BATCH)
    alone = plain.init(jax.random.key(0))
    return params, loss, grads, guided.measure(params, BATCH), alone, plain.loss(alone, BATCH), plain.measure(alone, BATCH)

  return jax.device_get(make())


def rows(entropy_x: np.ndarray, threshold: float, num_keys: int) -> np.ndarray:
  distance = entropy_x - threshold * np.log(num_keys)
  return np.where(np.abs(distance) > GUIDE.tolerance * np.log(num_keys), distance**2, 0.0)


class TestPenalty:
  def test_against_numpy(self):
    rng = np.random.default_rng(1)
    logits = (3.0 * rng.normal(size=(2, 3, 2, 5, 5))).astype(np.float32)
    threshold = np.array([[0.2, 0.5], [0.7, 0.9]], np.float32)
    mask = np.tril(np.ones((3, 5, 5), bool))
    entropy = np.zeros((2, 3, 2, 5))
    for place in np.ndindex(entropy.shape):
      seen = np.exp(logits[place][: place[-1] + 1].astype(np.float64))
      p = seen / seen.sum()
      entropy[place] = -np.sum(p * np.log(p))
    every = [rows(entropy[i, :, h], threshold[i, h], 5).mean() for i in range(2) for h in range(2)]
    value = guided_learner.penalty(jnp.asarray(threshold), AttentionLogits(jnp.asarray(logits), jnp.asarray(mask)), GUIDE)
    np.testing.assert_allclose(value, 0.7 * np.mean(every), rtol=1e-5)


class TestGuidedDecoder:
  def test_loss_is_cross_entropy_and_penalty(self):
    params, loss, _, logged, alone, plain_loss, plain_logged = found()
    for one, other in zip(jax.tree.leaves(params['model']), jax.tree.leaves(alone), strict=True):
      np.testing.assert_array_equal(one, other)  # the same start with and without
    np.testing.assert_allclose(logged['held_out_loss'], plain_loss, rtol=1e-6)
    np.testing.assert_allclose(plain_logged['held_out_loss'], plain_loss, rtol=1e-6)
    # At the start attention is nearly uniform: H_i is nearly ln i for each of 6 queries.
    expected = rows(np.log(np.arange(1, 7)), 0.4, 6).mean()
    np.testing.assert_allclose(loss - plain_loss, 0.7 * expected, rtol=0.1)

  def test_thresholds_are_of_every_layer_and_head_and_learn(self):
    params, _, grads, logged, *_ = found()
    assert params['thresholds'].keys() == {'block_0', 'block_1'}
    for name in params['thresholds']:
      np.testing.assert_array_equal(params['thresholds'][name]['threshold'], np.float32([0.4, 0.4]))
      assert (np.abs(grads['thresholds'][name]['threshold']) > 1e-4).all()
    np.testing.assert_array_equal(logged['head_1/threshold'], np.float32([0.4, 0.4]))
    assert np.abs(grads['model']['block_0']['attention']['query']['kernel']).max() > 0

  def test_entropy_of_every_head(self):
    *_, alone, _, logged = found()
    model = transformer_policy(CONFIG)
    seen = jax.jit(model.attention)(alone, BATCH.inputs, jnp.ones(BATCH.inputs.shape, bool))
    wanted = attention.normalised_entropy(attention.attention_entropy(*seen), seen.mask_BxQxK).compute()
    np.testing.assert_allclose(np.stack([logged['head_0/entropy'], logged['head_1/entropy']], -1), wanted, rtol=1e-5)
    assert not [name for name in logged if 'threshold' in name] and logged['largest_logit'].shape == (2,)

  def test_only_dense_maps(self):
    with pytest.raises(UserError, match=r"linear is 'sigma_reparam': the entropy-guided learner takes 'dense'"):
      guided_learner.guided_decoder(
        DecoderConfig(width=8, num_layers=1, num_heads=2, mlp_width=8, vocab_size=7, max_length=6, linear='sigma_reparam')
      )
