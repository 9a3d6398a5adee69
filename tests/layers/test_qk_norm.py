"""Normalised queries and keys: bounds, invariances, and parameters of the three forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.layers import logits, norms, qk_norm
from entropy_jax.ops import categorical
from entropy_jax.types import UserError

FORMS = ['layer', 'rms', 'l2']
RNG = np.random.default_rng(0)
Q = RNG.normal(1, 5, (2, 4, 6, 16)).astype(np.float32)
K = RNG.normal(-2, 5, (2, 2, 6, 16)).astype(np.float32)


def scaled_products(q, k):
  """q . k / sqrt(D), key heads repeated."""
  q, k = np.array(q), np.array(k)
  return np.einsum('bhqd,bhkd->bhqk', q, k.repeat(q.shape[1] // k.shape[1], axis=1)) / np.sqrt(q.shape[-1])


def made(form, query=Q, key=K, **kwargs):
  layer = qk_norm.QKNorm(form=form, **kwargs)
  return jax.jit(layer.apply), jax.jit(layer.init)(jax.random.key(0), query, key)


class TestL2Normalize:
  def test_by_hand(self):
    # 9 + 16 + 11 = 36
    np.testing.assert_allclose(qk_norm.l2_normalize(jnp.array([[3.0, 4.0]]), eps=11.0), [[0.5, 4 / 6]], rtol=1e-6)

  def test_zeros_stay_finite(self):
    value, grad = jax.value_and_grad(lambda x: jnp.sum(qk_norm.l2_normalize(x)))(jnp.zeros(3))
    assert value == 0 and jnp.all(jnp.isfinite(grad))


class TestQKNorm:
  def test_parameters(self):
    start = lambda form: jax.eval_shape(qk_norm.QKNorm(form=form).init, jax.random.key(0), Q, K)['params']
    shapes = {form: jax.tree.map(jnp.shape, start(form)) for form in FORMS}
    assert shapes == {
      'layer': {'query_norm': {'scale': (16,)}, 'key_norm': {'scale': (16,)}},
      'rms': {'query_scale': (16,), 'key_scale': (16,)},
      'l2': {'scale': ()},
    }

  def test_layer_by_hand(self):
    # (1, 2, 6, 3): mean 3, deviations -2, -1, 3, 0, variance (4 + 1 + 9 + 0) / 4 = 3.5; the second channel has scale 2
    layer, params = made('layer', jnp.array([[[[1.0, 2.0, 6.0, 3.0]]]]), jnp.array([[[[1.0, -1.0, 1.0, -1.0]]]]), eps=1e-12)
    params['params']['query_norm']['scale'] = jnp.array([1.0, 2.0, 1.0, 1.0])
    q, k = layer(params, jnp.array([[[[1.0, 2.0, 6.0, 3.0]]]]), jnp.array([[[[1.0, -1.0, 1.0, -1.0]]]]))
    np.testing.assert_allclose(q[0, 0, 0], np.array([-2.0, -2.0, 3.0, 0.0]) / np.sqrt(3.5), rtol=1e-6)
    np.testing.assert_allclose(k[0, 0, 0], [1.0, -1.0, 1.0, -1.0], rtol=1e-6)

  def test_rms_is_rms_norm_with_one_plus_scale(self):
    layer, params = made('rms')
    scale = jnp.linspace(-0.5, 0.5, 16)
    q, _ = layer({'params': params['params'] | {'query_scale': scale}}, Q, K)
    np.testing.assert_allclose(q, norms.RMSNorm().apply({'params': {'scale': 1 + scale}}, Q), rtol=1e-6)
    np.testing.assert_array_equal(params['params']['query_scale'], np.zeros(16))

  def test_l2_logits_are_scaled_cosines(self):
    layer, params = made('l2', l2_start=3.0)
    assert params['params']['scale'] == 3.0
    q, k = layer(params, Q, K)
    got = scaled_products(q, k)
    cosine = np.einsum('bhqd,bhkd->bhqk', Q, K.repeat(2, axis=1))
    cosine /= np.linalg.norm(Q, axis=-1)[..., None] * np.linalg.norm(K.repeat(2, axis=1), axis=-1)[:, :, None]
    np.testing.assert_allclose(got, 3 * cosine, atol=1e-5)
    assert qk_norm.QKNorm('l2').init(jax.random.key(0), Q, K)['params']['scale'] == 4.0  # sqrt(16)

  @pytest.mark.parametrize('form', FORMS)
  def test_logits_are_bounded_by_sqrt_d(self, form):
    # The same vectors as queries and keys: the bound of sqrt(16) = 4 is met on the diagonal.
    layer, params = made(form, Q, Q)
    q, k = layer(params, Q, Q)
    z = scaled_products(q, k)
    np.testing.assert_allclose(np.max(np.abs(z)), 4.0, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(q, axis=-1), np.full(q.shape[:-1], 16.0 if form == 'l2' else 4.0), rtol=1e-5)
    assert np.min(categorical.entropy(z)) >= logits.entropy_floor(6, 4.0) - 1e-6

  def test_layer_takes_the_mean_out(self):
    layer, params = made('layer')
    q, k = layer(params, Q, K)
    np.testing.assert_allclose(np.mean(q, axis=-1), np.zeros(q.shape[:-1]), atol=1e-6)
    np.testing.assert_allclose(np.mean(k, axis=-1), np.zeros(k.shape[:-1]), atol=1e-6)

  @pytest.mark.parametrize('form', FORMS)
  def test_invariant_to_a_positive_factor(self, form):
    layer, params = made(form)
    q, k = layer(params, Q, K)
    q2, k2 = layer(params, 100 * Q, np.float32(0.1) * K)
    np.testing.assert_allclose(q2, q, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(k2, k, rtol=1e-4, atol=1e-4)

  def test_scales_raise_the_bound(self):
    rng = np.random.default_rng(0)
    gains = {name: {'scale': jnp.asarray(rng.normal(0, 3, 16), jnp.float32)} for name in ('query_norm', 'key_norm')}
    q, k = qk_norm.QKNorm('layer').apply({'params': gains}, Q, K)
    largest = float(np.max(np.abs(scaled_products(q, k))))
    bound = np.prod([np.max(np.abs(g['scale'])) for g in gains.values()]) * 4
    assert 4 < largest <= bound

  def test_a_large_mean_keeps_its_digits(self):
    # With E[x^2] - E[x]^2 in float32 the variance 1 beside 1e8 is lost.
    x = np.array([[[[10001.0, 9999.0] * 8]]], np.float32)
    layer, params = made('layer', x, x)
    np.testing.assert_allclose(layer(params, x, x)[0], x - 1e4, rtol=1e-5)

  @pytest.mark.parametrize('form', FORMS)
  def test_types_and_zeros(self, form):
    zero = jnp.zeros((1, 1, 2, 4), jnp.bfloat16)
    layer, params = made(form, zero, zero)
    q, k = layer(params, zero, zero)
    assert q.dtype == k.dtype == jnp.bfloat16
    f = lambda x: jnp.sum(layer(params, x, x)[0])
    assert jnp.all(jnp.isfinite(jax.jit(jax.grad(f))(zero.astype(jnp.float32))))

  def test_refuses(self):
    with pytest.raises(UserError, match="Did you mean 'layer'"):
      made('layernorm')
