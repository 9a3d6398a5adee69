"""The classifier of bags: against numpy, its two ends of sharpness, masks, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.models import mil
from entropy_jax.types import UserError

CONFIG = mil.MilConfig(num_features=3, widths=(4, 5), attention_width=2, num_heads=2, num_classes=3)
MODEL = mil.bag_classifier(CONFIG)
X = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
MASK = np.array([[True] * 6, [True, False, True, True, False, False]])
PARAMS = jax.jit(MODEL.init)(jax.random.key(0))
LOGITS = jax.jit(MODEL.logits)


class TestBagClassifier:
  def test_parameters(self):
    assert jax.tree.map(jnp.shape, PARAMS) == {
      'encoder_0': {'kernel': (3, 4)},
      'encoder_1': {'kernel': (4, 5)},
      'attention': {
        'content': {'kernel': (5, 2), 'bias': (2,)},
        'gate': {'kernel': (5, 2), 'bias': (2,)},
        'score': {'kernel': (2, 2), 'bias': (2,)},
      },
      'head': {'kernel': (10, 3), 'bias': (3,)},
    }

  @pytest.mark.parametrize('sharpness', [1.0, 0.0])
  def test_against_numpy(self, sharpness):
    found = LOGITS(PARAMS, X, MASK, sharpness)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), PARAMS)
    for b in range(2):
      z = X[b, MASK[b]]
      for i in range(2):
        z = np.maximum(z @ p[f'encoder_{i}']['kernel'], 0)
      about = p['attention']
      scores = sharpness * np.tanh(z @ about['content']['kernel']) / (1 + np.exp(-z @ about['gate']['kernel'])) @ about['score']['kernel']
      weight = np.exp(scores) / np.exp(scores).sum(axis=0)
      want = (weight.T @ z).reshape(-1) @ p['head']['kernel']
      np.testing.assert_allclose(found.attention_BxHxK[b][:, MASK[b]], scores.T, rtol=1e-4, atol=1e-5)
      np.testing.assert_allclose(found.logits_BxV[b], want, rtol=1e-4, atol=1e-5)

  def test_mean_pooling_does_not_train_the_attention(self):
    value = lambda params, sharpness: jnp.sum(MODEL.logits(params, X, MASK, sharpness).logits_BxV ** 2)
    grad = jax.jit(jax.grad(value))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grad(PARAMS, 0.0)['attention']))
    assert all(np.any(leaf['kernel']) for leaf in grad(PARAMS, 1.0)['attention'].values())

  def test_garbage_reaches_nothing(self):
    want = LOGITS(PARAMS, X, MASK, 1.0).logits_BxV
    np.testing.assert_array_equal(LOGITS(PARAMS, np.where(MASK[..., None], X, np.nan), MASK, 1.0).logits_BxV, want)

  def test_refuses(self):
    with pytest.raises(UserError, match='instances have 4 features: give 3'):
      jax.eval_shape(MODEL.logits, PARAMS, jnp.zeros((1, 2, 4)), jnp.ones((1, 2), bool), 1.0)

  @pytest.mark.parametrize(
    ('changed', 'sentence'),
    [({'widths': ()}, r'widths is \(\): give'), ({'widths': (4, 0)}, r'widths is \(4, 0\)'), ({'num_heads': 0}, 'num_heads is 0')],
  )
  def test_refuses_shapes(self, changed, sentence):
    with pytest.raises(UserError, match=sentence):
      mil.MilConfig(**({'num_features': 3, 'widths': (4,), 'attention_width': 2} | changed))
