import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.layers import attention
from entropy_jax.types import UserError


class TestRotaryFrequencies:
  def test_by_hand(self):
    # 10000^(-0/4), 10000^(-2/4)
    np.testing.assert_allclose(attention.rotary_frequencies(4), [1.0, 0.01], rtol=1e-6)

  def test_llama3_scaling_against_wavelengths(self):
    scaling = attention.RopeScaling()
    got = attention.rotary_frequencies(64, theta=5e5, scaling=scaling)
    seen = set()
    for i, f in enumerate(5e5 ** (-np.arange(32) / 32)):
      length = 2 * math.pi / f  # the oracle works with wavelengths in tokens: the code counts turns
      if length > 8192 / 1:
        want, kind = f / 32, 'slow'
      elif length < 8192 / 4:
        want, kind = f, 'fast'
      else:
        smooth = (8192 / length - 1) / (4 - 1)
        want, kind = (1 - smooth) * f / 32 + smooth * f, 'between'
      seen.add(kind)
      np.testing.assert_allclose(got[i], want, rtol=1e-6)
    assert seen == {'slow', 'fast', 'between'}

  @pytest.mark.parametrize(
    'field, value', [('factor', 1.0), ('low_freq_factor', 5.0), ('low_freq_factor', 0.0), ('original_max_position', 0)]
  )
  def test_scaling_out_of_range(self, field, value):
    with pytest.raises(UserError, match=f'rope_scaling.{field} is {value}'):
      attention.RopeScaling(**{field: value})


class TestRotate:
  def test_quarter_turn(self):
    # One pair, angle pi/2: (a, b) -> (-b, a)
    turn = attention.Rotation(jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1)))
    np.testing.assert_allclose(attention.rotate(jnp.array([[[[3.0, 5.0]]]]), turn)[0, 0, 0], [-5.0, 3.0])

  def test_products_see_only_differences(self):
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    f = attention.rotary_frequencies(8)
    at = lambda x, n: attention.rotate(x, attention.rotation(jnp.array([[n]]), f))
    near, far = (jnp.sum(at(q, n + 3) * at(k, n)) for n in (0, 40))
    other = jnp.sum(at(q, 5) * at(k, 0))
    np.testing.assert_allclose(near, far, rtol=1e-4)
    assert abs(near - other) > 1e-2


class TestCausalMask:
  def test_left_and_right_padding(self):
    mask = attention.causal_mask(jnp.array([[False, True, True, False]]))[0]
    # Rows are queries. The padding at 0 is seen by itself alone, the padding at 3 by no other either.
    np.testing.assert_array_equal(mask, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]])

  def test_every_query_sees_a_key(self):
    assert jnp.all(jnp.any(attention.causal_mask(jnp.zeros((2, 5), bool)), axis=-1))


class TestFullMask:
  def test_padding_is_seen_by_itself_alone(self):
    mask = attention.full_mask(jnp.array([[False, True, True, False]]))[0]
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 1, 1]])


class TestPositions:
  def test_left_and_right_padding(self):
    assert attention.positions(jnp.array([[False, True, True, False]])).tolist() == [[0, 0, 1, 1]]


class TestAttend:
  def test_grouped_heads_by_loops(self):
    B, H, Hkv, Q, K, D = 2, 4, 2, 3, 5, 4
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=s).astype(np.float32) for s in ((B, H, Q, D), (B, Hkv, K, D), (B, Hkv, K, D)))
    mask = rng.random((B, Q, K)) < 0.6
    mask[:, :, 0] = True
    got = jax.jit(attention.attend)(q, k, v, mask)
    for b in range(B):
      for h in range(H):
        for i in range(Q):
          w = np.array([math.exp(q[b, h, i] @ k[b, h // 2, j] / 2) if mask[b, i, j] else 0 for j in range(K)])
          np.testing.assert_allclose(got[b, h, i], (w / w.sum()) @ v[b, h // 2], rtol=2e-5, atol=1e-6)

  def test_agrees_with_jax_nn(self):
    B, H, Hkv, N, D = 2, 6, 2, 7, 8
    q, k, v = (jax.random.normal(jax.random.key(i), (B, h, N, D)) for i, h in enumerate((H, Hkv, Hkv)))
    mask = attention.causal_mask(jnp.ones((B, N), bool))
    got = jax.jit(attention.attend)(q, k, v, mask)
    swap = lambda x: x.transpose(0, 2, 1, 3)
    want = jax.jit(lambda: swap(jax.nn.dot_product_attention(swap(q), swap(k), swap(v), mask=mask[:, None])))()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)

  def test_no_key_stays_finite(self):
    x = jnp.ones((1, 1, 2, 4))
    f = lambda x: jnp.sum(attention.attend(x, x, x, jnp.zeros((1, 2, 2), bool)))
    value, grad = jax.jit(jax.value_and_grad(f))(x)
    assert jnp.isfinite(value) and jnp.all(jnp.isfinite(grad))

  def test_softmax_is_float32_for_bfloat16(self):
    x = jnp.ones((1, 1, 2, 4), jnp.bfloat16)
    mask = jnp.ones((1, 2, 2), bool)
    assert attention.attention_logits(x, x).dtype == jnp.float32
    assert attention.attend(x, x, x, mask).dtype == jnp.bfloat16

  def test_change_and_sink_by_loops(self):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 2, 3, 4)).astype(np.float32) for _ in range(3))
    mask, sink_H = np.tril(np.ones((1, 3, 3), bool)), np.array([0.5, -1.0], np.float32)
    got = jax.jit(lambda: attention.attend(q, k, v, mask, change=lambda logits: jnp.tanh(3 * logits), sink_H=sink_H))()
    for h in range(2):
      for i in range(3):
        w = np.array([math.exp(math.tanh(3 * (q[0, h, i] @ k[0, h, j]) / 2)) for j in range(i + 1)])  # changed before the mask
        np.testing.assert_allclose(got[0, h, i], w @ v[0, h, : i + 1] / (w.sum() + math.exp(sink_H[h])), rtol=1e-4, atol=1e-6)


SEEN = jnp.tril(jnp.ones((2, 5, 5), bool))
PLACES = jnp.broadcast_to(jnp.arange(5)[None], (2, 5))
X = jax.random.normal(jax.random.key(0), (2, 5, 6))


def started(module, *args, **kwargs):
  """Parameters off their trivial start."""
  params = jax.jit(lambda: module.init(jax.random.key(1), *args, mutable=['params'], **kwargs))()['params']
  return jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape), params)


class TestAttention:
  """What the layer adds to `attend`: the models' tests hold its output against loops."""

  def test_sown_logits_are_tempered_then_capped_and_not_masked(self):
    module = attention.Attention(2, 1, 4, temperature='clip', num_positions=5, logit_cap=0.7, has_sink=True)
    params = started(module, X, SEEN, PLACES)
    _, sown = jax.jit(lambda: module.apply({'params': params}, X, SEEN, PLACES, mutable=['attention']))()
    q, k = ((np.asarray(X) @ np.asarray(params[name]['kernel'])).reshape(2, 5, -1, 4) for name in ('query', 'key'))
    raw = np.einsum('bihd,bjd->bhij', q, k[:, :, 0]) / 2 / np.asarray(params['softmax']['temperature'])[None, :, :, None]
    np.testing.assert_allclose(sown['attention']['logits'][0], 0.7 * np.tanh(raw / 0.7), rtol=1e-4, atol=1e-5)

  def test_logits_cost_nothing_where_nobody_asks(self, monkeypatch):
    module = attention.Attention(2, 2, 4, logit_cap=5.0)
    params = started(module, X, SEEN, PLACES)
    program = lambda: str(jax.make_jaxpr(lambda x: module.apply({'params': params}, x, SEEN, PLACES))(X))
    with_sow = program()
    monkeypatch.setattr(attention.Attention, 'sow', lambda *args: None)
    assert program() == with_sow

  def test_entropy_abf_scales_queries_beyond_the_window(self):
    plain = attention.Attention(2, 2, 4)
    params = started(plain, X, SEEN, PLACES)
    apply = lambda module: jax.jit(lambda: module.apply({'params': params}, X, SEEN, PLACES, mutable=['attention']))()[1]
    ratio = apply(plain.clone(abf_window=2))['attention']['logits'][0] / apply(plain)['attention']['logits'][0]
    # log_2 of the positions 1, 2, 3, 4, 5, and at least 1
    want = np.broadcast_to(np.array([1, 1, math.log2(3), 2, math.log2(5)])[:, None], ratio.shape)
    np.testing.assert_allclose(ratio, want, rtol=1e-3)

  @pytest.mark.parametrize('qk_norm', ['rms', 'l2'])
  def test_source_and_the_keys_made_of_it_are_the_same(self, qk_norm):
    module = attention.Attention(2, 1, 4, qk_norm=qk_norm)
    source, seen = jax.random.normal(jax.random.key(5), (2, 3, 6)), jnp.ones((2, 5, 3), bool)
    params = started(module, X, seen, PLACES, source=source)
    apply = jax.jit(lambda source: module.apply({'params': params}, X, seen, PLACES, source=source))
    out, kv = apply(source)
    np.testing.assert_array_equal(apply(kv)[0], out)
    assert kv.key.shape == (2, 1, 3, 4)
    assert not np.allclose(out, apply(2 * source + 1)[0], atol=1e-3)

  def test_normalised_logits_are_bounded(self):
    # Unit scales: |q| = |k| = sqrt(D), so |q . k| / sqrt(D) <= sqrt(D) = 2, whatever the kernels.
    for qk_norm in ('rms', 'layer', 'l2'):
      module = attention.Attention(2, 2, 4, qk_norm=qk_norm)
      params = module.init(jax.random.key(1), X, SEEN, PLACES, mutable=['params'])['params']
      params |= {name: {'kernel': 50.0 * params[name]['kernel']} for name in ('query', 'key')}
      logits = module.apply({'params': params}, X, SEEN, PLACES, mutable=['attention'])[1]['attention']['logits'][0]
      assert 1 < jnp.max(jnp.abs(logits)) <= 2 + 1e-5
