"""Learners on small models: losses, what is logged and the scale of the bound against numpy, the bound against the measured rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.layers import spectral
from entropy_jax.measures import attention, attention_bound
from entropy_jax.models.transformer import DecoderConfig, transformer_policy
from entropy_jax.models.vision import VisionConfig, vision_classifier
from entropy_jax.training import learners

BLOCK = {'width': 12, 'num_layers': 2, 'num_heads': 2, 'mlp_width': 8, 'norm_kind': 'layer', 'activation': 'relu'}
DECODER = DecoderConfig(
  **BLOCK, vocab_size=7, max_length=6, positions='learned', tie_embeddings=False, linear='sigma_reparam', norm='none', gain_init='sigma'
)
VISION = VisionConfig(**BLOCK, image_size=4, channels=1, patch_size=2, num_classes=3, norm='pre')
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 7, (3, 7)))
IMAGES = jax.random.uniform(jax.random.key(1), (3, 4, 4, 1))


@functools.cache
def measured(config):
  """(learner, params, batch, what is logged), of a model off its start: the kernels are larger, so that rows are far from uniform."""
  if isinstance(config, DecoderConfig):
    learner, batch = learners.decoder(config), learners.next_tokens(TOKENS, first=3)
  else:
    learner, batch = learners.classifier(config), learners.classes(IMAGES, jnp.array([0, 2, 1]))

  @jax.jit
  def make():
    params = learner.init(jax.random.key(0))
    plain = params['params'] if config.has_state else params
    grow = lambda path, x: 3.0 * x if path[-1].key == ('gain' if config.has_state else 'kernel') else x
    plain = jax.tree_util.tree_map_with_path(grow, plain)
    params = params | {'params': plain} if config.has_state else plain
    return params, learner.loss(params, batch), learner.measure(params, batch)

  params, loss, found = make()
  return learner, params, batch, jax.device_get(found | {'loss': loss})


class TestNextTokens:
  def test_only_later_targets_count(self):
    batch = learners.next_tokens(TOKENS, first=3)
    np.testing.assert_array_equal(batch.inputs, TOKENS[:, :6])
    np.testing.assert_array_equal(batch.target_BxT, TOKENS[:, 1:])
    np.testing.assert_array_equal(batch.mask_BxT, [[False, False, True, True, True, True]] * 3)

  def test_more_axes_in_front(self):
    batch = learners.next_tokens(jnp.stack([TOKENS, TOKENS + 1]))
    assert batch.inputs.shape == batch.target_BxT.shape == batch.mask_BxT.shape == (2, 3, 6) and bool(batch.mask_BxT.all())


class TestDecoder:
  def test_loss_and_accuracy(self):
    _, params, batch, found = measured(DECODER)
    logits = np.asarray(jax.jit(transformer_policy(DECODER).logits)(params, batch.inputs, jnp.ones((3, 6), bool)), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    kept = [(b, t) for b in range(3) for t in range(2, 6)]
    want = -np.mean([log_p[b, t, TOKENS[b, t + 1]] for b, t in kept])
    np.testing.assert_allclose([found['loss'], found['held_out_loss']], want, rtol=1e-5)
    right = np.mean([np.argmax(log_p[b, t]) == TOKENS[b, t + 1] for b, t in kept])
    np.testing.assert_allclose(found['held_out_accuracy'], right, rtol=1e-6)

  def test_logged_attention(self):
    _, params, batch, found = measured(DECODER)
    read = jax.jit(transformer_policy(DECODER).attention)(params, batch.inputs, jnp.ones((3, 6), bool))
    a = np.asarray(read.logits_LxBxHxQxK, np.float64)
    entropy, log_n, largest = np.zeros((2, 3, 2, 6)), np.log(np.arange(1, 7)), np.zeros(2)
    for i, b, h, q in np.ndindex(2, 3, 2, 6):
      row = a[i, b, h, q, : q + 1]
      p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
      entropy[i, b, h, q] = -np.sum(p * np.log(p))
      largest[i] = max(largest[i], np.abs(row).max())
    np.testing.assert_allclose(found['entropy'], entropy[..., 1:].sum((1, 2, 3)) / (6 * log_n[1:].sum()), rtol=1e-4)
    np.testing.assert_allclose(found['largest_logit'], largest, rtol=1e-5)
    np.testing.assert_allclose(found['least_entropy'], entropy[:, :2, :, 5].min((1, 2)), rtol=1e-3)  # the last row of two examples
    assert found['bounded_rows'] == 2 * 3 * 2 * 6 and found['violations'] == 0

  def test_scale_is_that_of_the_first_layers_input(self):
    """||W_K,h W_Q,h^T|| ||X||^2 / sqrt(6) with X the embeddings and their positions, by numpy's singular values."""
    _, params, batch, found = measured(DECODER)
    folded = spectral.fold(params['params'], params['spectral'])
    x = np.asarray(folded['embed'])[np.asarray(batch.inputs[:2])] + np.asarray(folded['position'])[None]
    query, key = (np.asarray(folded['block_0']['attention'][name]['kernel']).reshape(12, 2, 6) for name in ('query', 'key'))
    weight = [np.linalg.norm(key[:, h] @ query[:, h].T, 2) for h in range(2)]
    np.testing.assert_allclose(found['weight_norm'][0], max(weight), rtol=1e-4)
    np.testing.assert_allclose(found['scale'][0], max(weight) * max(np.linalg.norm(one, 2) for one in x) ** 2 / 6**0.5, rtol=1e-4)
    assert not attention_bound.is_violated(found['least_entropy'], attention_bound.lower_bound(6, found['scale'])).any()

  def test_norms_of_maps_are_gains(self):
    learner, params, _, found = measured(DECODER)
    np.testing.assert_allclose(found['query_norm'], found['query_gain'], rtol=1e-5)
    gain = params['params']['block_1']['attention']['key']['gain']
    np.testing.assert_allclose(found['key_gain'][1], abs(gain), rtol=1e-6)
    final = learner.finish(params)
    assert len(final) == 12 and 'block_1/mlp/down/norm_over_gain' in final  # query, key, value, output, up, down in each of 2 blocks
    np.testing.assert_allclose(list(final.values()), 1.0, rtol=1e-5)

  @pytest.mark.parametrize('change', [{'qk_norm': 'layer'}, {'positions': 'rotary'}])
  def test_no_scale_where_logits_are_no_products_with_the_weights(self, change):
    learner = learners.decoder(dataclasses.replace(DECODER, linear='dense', gain_init='one', norm='pre', **change))
    found = jax.eval_shape(lambda key: learner.measure(learner.init(key), learners.next_tokens(TOKENS)), jax.random.key(0))
    assert 'scale' not in found and 'query_gain' not in found and found['query_norm'].shape == (2,)
    assert jax.eval_shape(lambda key: learner.finish(learner.init(key)), jax.random.key(0)) == {}


class TestClassifier:
  def test_loss_and_bound(self):
    _, params, batch, found = measured(VISION)
    logits = np.asarray(jax.jit(vision_classifier(VISION).logits)(params, IMAGES), np.float64)
    want = np.mean([np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, (0, 2, 1))])
    np.testing.assert_allclose([found['loss'], found['held_out_loss']], want, rtol=1e-5)
    np.testing.assert_allclose(found['held_out_accuracy'], np.mean(logits.argmax(-1) == [0, 2, 1]), rtol=1e-6)
    assert batch.mask_BxT.shape == (3, 1) and found['entropy'].shape == (2,) and found['violations'] == 0
    # Kernels three times as large: entropies are below ln 4 by much, and still above what their scale allows.
    assert found['least_entropy'].max() < 0.9 * np.log(4) and found['least_entropy'].min() > 0
    assert not attention_bound.is_violated(found['least_entropy'], attention_bound.lower_bound(4, found['scale'])).any()


class TestAttentionMeasures:
  def test_a_broken_row_is_not_counted_and_shows(self):
    a = jnp.zeros((1, 1, 1, 3, 3)).at[0, 0, 0, 1, 0].set(jnp.nan)
    mask = jnp.tril(jnp.ones((1, 3, 3), bool))
    found = learners.attention_measures(learners.policy.AttentionLogits(a, mask))
    assert found['bounded_rows'] == 2 and found['violations'] == 0 and np.isnan(found['entropy'][0])

  def test_a_row_below_its_bound_would_count(self, monkeypatch):
    """Entropies halved: those of uniform rows of 2 and 3 keys, whose bound is ln 2 and ln 3, are below it, that of one key is 0."""
    whole = attention.attention_entropy
    monkeypatch.setattr(attention, 'attention_entropy', lambda a, m: 0.5 * whole(a, m))
    mask = jnp.tril(jnp.ones((1, 3, 3), bool))
    found = learners.attention_measures(learners.policy.AttentionLogits(jnp.zeros((1, 1, 1, 3, 3)), mask))
    assert found['violations'] == 2 and found['bounded_rows'] == 3


class TestReading:
  def test_inputs_of_every_layer_in_order(self):
    """With a norm before attention its inputs have mean 0 and variance 1; there are more blocks than one digit counts."""
    config = dataclasses.replace(VISION, num_layers=11, width=4, head_dim=2)
    model = vision_classifier(config)
    make = lambda key: learners.reading(model.attention, model.init(key), IMAGES)
    logits, inputs = jax.eval_shape(make, jax.random.key(0))
    assert logits.logits_LxBxHxQxK.shape[0] == len(inputs) == 11 and inputs[0].shape == (3, 4, 4)
    _, params, _, _ = measured(VISION)
    _, (first, second) = jax.jit(lambda p: learners.reading(vision_classifier(VISION).attention, p, IMAGES))(params)
    for x in (first, second):
      np.testing.assert_allclose(np.mean(x, axis=-1), 0.0, atol=1e-5)
      np.testing.assert_allclose(np.var(x, axis=-1), 1.0, rtol=1e-3)
    assert np.abs(first - second).max() > 0.1
