"""Gated attention pooling: by hand, against numpy, masks, and what the gradient of the entropy is through it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from entropy_jax.layers import mil_pooling
from entropy_jax.ops import auxiliary

RNG = np.random.default_rng(0)
MASK = np.array([[True, True, False, True], [True] * 4, [False] * 4, [False, True, False, False]])
Z, LOGITS = (RNG.normal(size=shape).astype(np.float32) for shape in ((4, 4, 3), (4, 2, 4)))
WEIGHTS, POOL = jax.jit(mil_pooling.bag_weights), jax.jit(mil_pooling.pool)
GARBAGE = (np.nan, np.inf, -np.inf, 1e30)


class TestBagWeights:
  def test_the_weights_of_the_card(self):
    # A = (2, 0, 0, 0): a = (e^2, 1, 1, 1) / (e^2 + 3)
    got = WEIGHTS(jnp.array([[[2.0, 0, 0, 0]]]), jnp.ones((1, 4), bool))
    np.testing.assert_allclose(got[0, 0], [0.71123459] + [0.09625514] * 3, rtol=1e-6)

  def test_against_numpy(self):
    got = np.asarray(WEIGHTS(LOGITS, MASK))
    for b in (0, 1, 3):
      np.testing.assert_allclose(got[b][:, MASK[b]], scipy.special.softmax(LOGITS[b][:, MASK[b]], axis=-1), rtol=1e-5)
    assert not got[~np.broadcast_to(MASK[:, None], got.shape)].any() and not got[2].any()


class TestPool:
  def test_equal_logits_are_the_mean_and_one_large_one_is_its_instance(self):
    mean = POOL(Z, np.full_like(LOGITS, 7.0), MASK)
    np.testing.assert_allclose(mean[0, 0], Z[0, MASK[0]].mean(axis=0), rtol=1e-5)
    one = POOL(Z, np.where(np.arange(4) == 1, 1e4, LOGITS).astype(np.float32), MASK)
    np.testing.assert_allclose(one[0, 1], Z[0, 1], rtol=1e-6)
    assert not np.any(one[2])

  def test_garbage_and_order_reach_nothing(self):
    f = jax.jit(jax.value_and_grad(lambda z, logits: jnp.sum(mil_pooling.pool(z, logits, MASK) ** 2), argnums=(0, 1)))
    want, (want_z, want_logits) = f(Z, LOGITS)
    for garbage in GARBAGE:
      value, grads = f(np.where(MASK[..., None], Z, np.float32(garbage)), np.where(MASK[:, None], LOGITS, np.float32(garbage)))
      np.testing.assert_allclose(value, want, rtol=1e-6)
      for got, wanted, shown in zip(grads, (want_z, want_logits), (MASK[..., None], MASK[:, None])):
        assert np.isfinite(got).all() and not np.any(np.where(shown, 0, got))
        np.testing.assert_allclose(np.where(shown, got, 0), np.where(shown, wanted, 0), rtol=1e-5, atol=1e-6)
    order = np.array([2, 0, 3, 1])
    got = POOL(Z[:, order], LOGITS[..., order], MASK[:, order])
    np.testing.assert_allclose(got, POOL(Z, LOGITS, MASK), rtol=1e-5, atol=1e-6)


class TestGatedAttention:
  @pytest.mark.parametrize('num_heads', [1, 2])
  def test_against_numpy(self, num_heads):
    layer = mil_pooling.GatedAttention(width=5, num_heads=num_heads)
    got, made = jax.jit(layer.init_with_output)(jax.random.key(0), Z)
    assert jax.tree.map(jnp.shape, made['params']) == {
      'content': {'kernel': (3, 5), 'bias': (5,)},
      'gate': {'kernel': (3, 5), 'bias': (5,)},
      'score': {'kernel': (5, num_heads), 'bias': (num_heads,)},
    }
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), made['params'])
    gated = np.tanh(Z @ p['content']['kernel']) / (1 + np.exp(-Z @ p['gate']['kernel']))
    assert got.shape == (4, num_heads, 4)
    np.testing.assert_allclose(got, np.moveaxis(gated @ p['score']['kernel'], 1, 2), rtol=1e-4, atol=1e-5)

  def test_a_step_on_the_penalty_widens_attention(self):
    """The sign: the loss adds lambda sum a ln a, and a step against its gradient raises the entropy."""
    layer = mil_pooling.GatedAttention(width=5)
    params = jax.tree.map(lambda x: 4 * x, jax.jit(layer.init)(jax.random.key(0), Z))
    every = jnp.ones((4, 4), bool)
    penalty = jax.jit(jax.value_and_grad(lambda p: jnp.mean(auxiliary.attention_entropy_penalty(layer.apply(p, Z), every, coef=1.0))))
    before, grads = penalty(params)
    after, _ = penalty(jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))
    assert -np.log(4) < after < before - 1e-3
    # No constant reaches the softmax.
    np.testing.assert_allclose(grads['params']['score']['bias'], 0, atol=1e-6)
