"""What happens between attention logits and weights, against the cards' numbers and independent oracles."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from entropy_jax.layers import attention, logits
from entropy_jax.ops import categorical
from entropy_jax.types import UserError

RNG = np.random.default_rng(0)


def normal(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def causal(T):
  return np.tril(np.ones((1, T, T), bool))


@jax.jit
def row_entropy(logits_BxHxQxK, mask_BxQxK):
  return categorical.entropy(jnp.where(mask_BxQxK[:, None], logits_BxHxQxK, -jnp.inf))


class TestSoftCap:
  def test_card_values_and_slopes(self):
    x = jnp.array([10.0, 50.0, 100.0, 1000.0])
    value = jax.jit(lambda x: logits.soft_cap(x, cap=50.0))
    # 50 tanh(.2), 50 tanh(1), 50 tanh(2), 50 tanh(20); slopes 1 - tanh^2
    np.testing.assert_allclose(value(x), [9.868766, 38.079708, 48.201379, 50.0], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(value)))(x), [0.961043, 0.419974, 0.070651, 0.0], atol=1e-6)

  def test_odd_and_bounded(self):
    x = jnp.linspace(-300.0, 300.0, 101)
    y = logits.soft_cap(x, cap=7.0)
    np.testing.assert_allclose(y, -y[::-1], rtol=1e-6, atol=1e-6)
    assert float(jnp.max(jnp.abs(y))) <= 7.0

  def test_large_cap_and_none_are_the_identity(self):
    x = jnp.linspace(-30.0, 30.0, 13)
    np.testing.assert_allclose(logits.soft_cap(x, cap=1e6), x, rtol=1e-6)
    np.testing.assert_array_equal(logits.soft_cap(x, cap=None), x)

  def test_float32_whatever_comes_in(self):
    assert logits.soft_cap(jnp.ones(2, jnp.bfloat16), cap=None).dtype == jnp.float32
    assert logits.soft_cap(jnp.ones(2, jnp.bfloat16), cap=50.0).dtype == jnp.float32

  def test_after_the_mask_it_would_leak(self):
    z, mask = np.array([[[[1.0, 2.0, 3.0]]]], np.float32), np.array([[[True, True, False]]])
    right = jax.jit(lambda: logits.attention_weights(logits.soft_cap(z, cap=2.0), mask))()
    assert np.array(right)[0, 0, 0, 2] == 0.0
    wrong = jax.jit(lambda: jax.nn.softmax(logits.soft_cap(jnp.where(mask[:, None], z, -jnp.inf), cap=2.0)))()
    assert np.array(wrong)[0, 0, 0, 2] > 0.01  # the masked key, capped to -2, comes back

  @pytest.mark.parametrize('cap', [0.0, -1.0])
  def test_refuses(self, cap):
    with pytest.raises(UserError, match=f'soft_cap: cap={cap}'):
      logits.soft_cap(jnp.ones(2), cap=cap)


class TestEntropyFloor:
  @pytest.mark.parametrize(
    'num_keys, bound, want, k',
    [
      (64, 1.0, 3.684430, 13),
      (64, 2.0, 2.491124, 4),
      (64, math.sqrt(8), 1.219354, 1),
      (64, 4.0, 0.186488, 1),
      (16, 1.0, 2.299439, 3),
      (16, 2.0, 1.104830, 1),
    ],
  )
  def test_card_values(self, num_keys, bound, want, k):
    np.testing.assert_allclose(logits.entropy_floor(num_keys, bound), want, atol=1e-6)
    # The oracle is the entropy of the softmax itself, k logits high and the others low.
    at = [scipy.stats.entropy(scipy.special.softmax([bound] * n + [-bound] * (num_keys - n))) for n in range(1, num_keys)]
    assert int(np.argmin(at)) + 1 == k
    np.testing.assert_allclose(min(at), want, atol=1e-6)

  def test_no_bounded_row_is_below(self):
    for num_keys, bound in itertools.product((2, 5, 16), (0.3, 1.0, 4.0)):
      capped = bound * np.tanh(100 * RNG.normal(size=(2000, num_keys)))  # nearly all at an extreme point
      p = scipy.special.softmax(capped, axis=-1)
      assert np.min(scipy.stats.entropy(p, axis=-1)) >= logits.entropy_floor(num_keys, bound) - 1e-12

  def test_ends(self):
    np.testing.assert_allclose(logits.entropy_floor(7, 0.0), math.log(7), rtol=1e-12)
    assert logits.entropy_floor(1, 3.0) == 0.0
    assert 0.0 <= logits.entropy_floor(10, 1e4) < 1e-12

  @pytest.mark.parametrize('num_keys, bound', [(0, 1.0), (3, -1.0), (3, math.nan)])
  def test_refuses(self, num_keys, bound):
    with pytest.raises(UserError, match='entropy_floor'):
      logits.entropy_floor(num_keys, bound)


class TestAttentionWeights:
  Z = np.array([[[[1.0, 0.0, -1.0]]]], np.float32)
  ALL = np.ones((1, 1, 3), bool)
  weights = staticmethod(jax.jit(logits.attention_weights))

  def test_card_values(self):
    w = np.array(self.weights(self.Z, self.ALL, np.zeros(1, np.float32)))[0, 0, 0]
    # Z = e + 1 + 1/e + 1 (the sink) = 5.086161
    np.testing.assert_allclose(w, [0.534447, 0.196612, 0.072329], atol=1e-6)
    np.testing.assert_allclose(np.sum(w), 0.803388, atol=1e-6)
    dropped = -np.sum(w * np.log(w))
    np.testing.assert_allclose(dropped, 0.844612, atol=1e-6)
    sink = 1 - np.sum(w)
    np.testing.assert_allclose(dropped - sink * np.log(sink), 1.164406, atol=1e-6)

  def test_without_a_sink_is_the_softmax(self):
    want = scipy.special.softmax(self.Z, axis=-1)
    np.testing.assert_allclose(self.weights(self.Z, self.ALL), want, rtol=1e-6)
    for s in (-1e3, -np.inf):
      np.testing.assert_allclose(self.weights(self.Z, self.ALL, np.array([s], np.float32)), want, rtol=1e-6)

  def test_a_sink_is_a_key_without_a_value(self):
    z, v, mask = 3 * normal(2, 3, 4, 5), normal(2, 3, 5, 6), RNG.uniform(size=(2, 4, 5)) < 0.6
    sink = np.array([0.5, -2.0, 9.0], np.float32)
    got = np.array(self.weights(z, mask, sink)) @ v
    wide = np.concatenate([np.where(mask[:, None], z, -np.inf), np.broadcast_to(sink[None, :, None, None], (2, 3, 4, 1))], -1)
    want = scipy.special.softmax(wide, axis=-1) @ np.concatenate([v, np.zeros((2, 3, 1, 6))], axis=2)
    np.testing.assert_allclose(got, want, atol=1e-5)

  def test_rows_that_see_no_key(self):
    none = np.zeros((1, 1, 3), bool)
    np.testing.assert_array_equal(self.weights(self.Z, none, np.zeros(1, np.float32)), np.zeros((1, 1, 1, 3)))
    np.testing.assert_allclose(self.weights(self.Z, none), np.full((1, 1, 1, 3), 1 / 3), rtol=1e-6)

  @pytest.mark.parametrize('sink', [None, np.array([0.3], np.float32)])
  def test_masked_logits_reach_nothing(self, sink):
    mask, weight = np.array([[[True, False, True]]]), jnp.array([1.0, 5.0, -2.0])
    f = jax.jit(jax.value_and_grad(lambda z: jnp.sum(logits.attention_weights(z, mask, sink)[0, 0, 0] * weight)))
    value, grad = f(self.Z)
    for garbage in (np.nan, np.inf, -np.inf, 3e38):
      other, other_grad = f(np.array([[[[1.0, garbage, -1.0]]]], np.float32))
      assert value == other
      np.testing.assert_array_equal(grad, other_grad)
    assert grad[0, 0, 0, 1] == 0

  def test_gradient_of_the_sink(self):
    # d w_j / d s = -w_j p_sink
    w = np.array([0.534447, 0.196612, 0.072329])
    grad = jax.jit(jax.jacrev(lambda s: logits.attention_weights(self.Z, self.ALL, s)))(np.zeros(1, np.float32))[0, 0, 0, :, 0]
    np.testing.assert_allclose(grad, -w * 0.196612, rtol=1e-5)

  def test_extreme_sinks_stay_finite(self):
    f = jax.jit(jax.value_and_grad(lambda z, s: jnp.sum(logits.attention_weights(z, self.ALL, s)), argnums=(0, 1)))
    for s in (-3e38, 3e38):
      value, grads = f(self.Z, np.array([s], np.float32))
      assert np.isfinite(value) and all(np.all(np.isfinite(g)) for g in grads)


class TestSinkLogit:
  def test_starts_as_an_average_key(self):
    layer = logits.SinkLogit(num_heads=3)
    params = layer.init(jax.random.key(0))
    np.testing.assert_array_equal(params['params']['sink'], np.zeros(3))
    np.testing.assert_array_equal(logits.SinkLogit(2, start=-4.0).init_with_output(jax.random.key(0))[0], [-4.0, -4.0])
    # Equal logits and a sink at 0: 4 keys share 4 / 5.
    w = TestAttentionWeights.weights(np.zeros((1, 3, 1, 4), np.float32), np.ones((1, 1, 4), bool), layer.apply(params))
    np.testing.assert_allclose(np.sum(w, axis=-1), np.full((1, 3, 1), 0.8), rtol=1e-6)


class TestTemper:
  def test_by_hand(self):
    z = jnp.array([[[[2.0, 4.0], [3.0, 6.0]]]])
    np.testing.assert_allclose(logits.temper(z, jnp.array([[[2.0, 3.0]]])), [[[[1.0, 2.0], [1.0, 2.0]]]])

  def test_limits_of_causal_rows(self):
    T = 6
    z = normal(1, 2, T, T)
    hot, cold = (row_entropy(logits.temper(z, jnp.full((1, 1, 1), t)), causal(T))[0] for t in (1e6, 1e-4))
    np.testing.assert_allclose(hot, np.tile(np.log(np.arange(1, T + 1)), (2, 1)), atol=1e-5)
    np.testing.assert_allclose(cold, np.zeros((2, T)), atol=1e-5)
    np.testing.assert_array_equal(logits.temper(z, jnp.ones((1, 2, T))), z)

  @pytest.mark.parametrize('T, want, share', [(32, 2.5487, 0.735), (64, 3.2058, 0.771), (128, 3.8782, 0.799), (512, 5.2462, 0.841)])
  def test_mean_of_causal_uniform_rows(self, T, want, share):
    # ln(T!) / T: no head under a causal mask has a larger mean entropy
    mean = float(jnp.mean(row_entropy(np.zeros((1, 1, T, T), np.float32), causal(T))))
    np.testing.assert_allclose([mean, math.lgamma(T + 1) / T], [want, want], atol=5e-5)
    np.testing.assert_allclose(mean / math.log(T), share, atol=5e-4)

  def test_entropy_falls_with_the_factor(self):
    # With a factor f = 1 / t: d Ent / d f = -f Var(z) under the weights
    z = normal(9)
    slope = jax.jit(jax.grad(lambda f: categorical.entropy(logits.temper(z[None, None, None], 1 / f.reshape(1, 1, 1)))[0, 0, 0]))
    for f in (0.3, 1.0, 2.5):
      p = scipy.special.softmax(f * np.array(z, np.float64))
      np.testing.assert_allclose(slope(np.float32(f)), -f * (p @ z**2 - (p @ z) ** 2), rtol=1e-4)

  def test_entropy_of_normal_logits(self):
    # n iid N(0, 1) logits times f: Ent = ln n - f^2 / 2 for many keys
    n = 200_000
    z = normal(1, 1, 1, n)
    at = jax.jit(lambda t: categorical.entropy(logits.temper(z, t))[0, 0, 0])
    for f, tolerance in ((1.0, 0.01), (2.0, 0.1)):
      assert abs(float(at(np.full((1, 1, 1), 1 / f, np.float32))) - (math.log(n) - f * f / 2)) < tolerance


class TestSoftmaxTemperature:
  Z = normal(2, 3, 4, 5)
  POSITIONS = np.array([[0, 1, 2, 3], [0, 0, 0, 1]])

  @pytest.mark.parametrize('form', ['softplus', 'clip'])
  def test_starts_as_plain_attention(self, form):
    layer = logits.SoftmaxTemperature(num_heads=3, max_length=6, form=form)
    params = jax.jit(layer.init)(jax.random.key(0), self.Z, self.POSITIONS)
    assert params['params']['temperature'].shape == (3, 6)
    np.testing.assert_allclose(jax.jit(layer.apply)(params, self.Z, self.POSITIONS), self.Z, rtol=1e-6)

  def test_one_for_every_head_and_position(self):
    layer = logits.SoftmaxTemperature(num_heads=3, max_length=6, form='clip')
    t_HxT = 1 + np.arange(18, dtype=np.float32).reshape(3, 6)
    got = np.array(jax.jit(layer.apply)({'params': {'temperature': t_HxT}}, self.Z, self.POSITIONS))
    for b, h, i in itertools.product(range(2), range(3), range(4)):
      np.testing.assert_allclose(got[b, h, i], self.Z[b, h, i] / (1 + 6 * h + int(self.POSITIONS[b, i])), rtol=1e-6)

  def test_stays_positive(self):
    at = lambda form, raw: logits.SoftmaxTemperature(1, 1, form=form).apply(
      {'params': {'temperature': jnp.full((1, 1), raw)}}, jnp.ones((1, 1, 1, 1)), jnp.zeros((1, 1), jnp.int32)
    )
    np.testing.assert_allclose(at('clip', -5.0), jnp.full((1, 1, 1, 1), 100.0), rtol=1e-6)  # 1 / .01
    np.testing.assert_allclose(at('softplus', -5.0), jnp.full((1, 1, 1, 1), 1 / math.log1p(math.exp(-5))), rtol=1e-5)

  def test_gradient_reaches_the_positions_that_were_used(self):
    layer = logits.SoftmaxTemperature(num_heads=3, max_length=6)
    params = jax.jit(layer.init)(jax.random.key(0), self.Z, self.POSITIONS)
    loss = lambda p: jnp.sum(jnp.square(layer.apply(p, self.Z, self.POSITIONS)))
    grad = np.array(jax.jit(jax.grad(loss))(params)['params']['temperature'])
    assert np.all(grad[:, :4] < 0) and np.all(grad[:, 4:] == 0)  # hotter is smaller; positions 4 and 5 have no query

  def test_no_temperature_beyond_the_table(self):
    layer = logits.SoftmaxTemperature(num_heads=3, max_length=4)
    params = jax.jit(layer.init)(jax.random.key(0), self.Z, self.POSITIONS)
    out = np.array(jax.jit(layer.apply)(params, self.Z, self.POSITIONS + np.array([[0, 0, 0, 0], [0, 0, 0, 3]])))
    assert np.all(np.isnan(out[1, :, 3])) and np.all(np.isfinite(out[0]))
    with pytest.raises(UserError, match='max_length is 3, but there are 4 queries'):
      logits.SoftmaxTemperature(num_heads=3, max_length=3).init(jax.random.key(0), self.Z, self.POSITIONS)

  @pytest.mark.parametrize('kwargs, match', [({'form': 'softplu'}, "Did you mean 'softplus'"), ({'start': 0.0}, 'start=0.0')])
  def test_refuses(self, kwargs, match):
    with pytest.raises(UserError, match=match):
      logits.SoftmaxTemperature(num_heads=3, max_length=4, **kwargs).init(jax.random.key(0), self.Z, self.POSITIONS)


class TestEntropyThreshold:
  def test_one_a_head(self):
    r, params = logits.EntropyThreshold(num_heads=4).init_with_output(jax.random.key(0))
    np.testing.assert_array_equal(r, np.full(4, 0.5))
    np.testing.assert_array_equal(params['params']['threshold'], r)


class TestEntropyAbfScale:
  def test_card_values(self):
    i = np.array([[1, 4095, 4096, 8192, 16384, 32768]])
    t = np.array(jax.jit(lambda p: logits.entropy_abf_scale(p, window=4096, layer=2))(i - 1))[0]
    np.testing.assert_allclose(t, [1, 1, 1, 13 / 12, 14 / 12, 15 / 12], rtol=1e-6)
    assert t[:3].tolist() == [1.0, 1.0, 1.0]
    # log_64 256 = 8 / 6
    np.testing.assert_allclose(logits.entropy_abf_scale(np.array([[255]]), window=64, layer=5), [[4 / 3]], rtol=1e-6)

  def test_exempt_layers(self):
    far = np.array([[1023]])
    for layer in (0, 1):
      assert logits.entropy_abf_scale(far, window=32, layer=layer).tolist() == [[1.0]]
    np.testing.assert_allclose(logits.entropy_abf_scale(far, window=32, layer=0, exempt_layers=0), [[2.0]], rtol=1e-6)  # log_32 1024

  def test_refuses(self):
    with pytest.raises(UserError, match='window is 1'):
      logits.entropy_abf_scale(jnp.zeros((1, 1), jnp.int32), window=1, layer=3)


class TestScaleQueries:
  N, D, WINDOW = 12, 8, 4

  def qkv(self):
    q, k, v = normal(3, 1, 2, self.N, self.D)
    positions = np.arange(self.N)[None]

    @jax.jit
    def rotated(q, k):
      turn = attention.rotation(positions, attention.rotary_frequencies(self.D, theta=5e5))
      return attention.rotate(q, turn), attention.rotate(k, turn)

    return *rotated(q, k), v, positions

  def scaled(self, q, positions):
    return jax.jit(lambda q: logits.scale_queries(q, positions, window=self.WINDOW, layer=2))(q)

  def test_inside_the_window_is_plain_attention(self):
    q, k, v, positions = self.qkv()
    attend = jax.jit(attention.attend)
    plain, got = (np.array(attend(x, k, v, causal(self.N))) for x in (q, self.scaled(q, positions)))
    np.testing.assert_array_equal(got[:, :, : self.WINDOW], plain[:, :, : self.WINDOW])
    assert np.all(np.any(np.abs(got - plain)[:, :, self.WINDOW :] > 1e-5, axis=-1))

  def test_is_a_lower_temperature_of_the_row(self):
    q, k, _, positions = self.qkv()
    read = lambda q: np.einsum('bhqd,bhkd->bhqk', q, k) / np.sqrt(self.D)
    t_N = [max(math.log(i) / math.log(self.WINDOW), 1.0) for i in range(1, self.N + 1)]
    want = logits.temper(read(q), 1 / jnp.array(t_N)[None, None])
    np.testing.assert_allclose(read(self.scaled(q, positions)), want, rtol=1e-4, atol=1e-5)

  def test_type_of_the_queries(self):
    q = jnp.ones((1, 2, 3, 4), jnp.bfloat16)
    assert jax.eval_shape(lambda q: logits.scale_queries(q, np.arange(3)[None], window=2, layer=2), q).dtype == jnp.bfloat16
