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
    assert attention.attention_logits(x, x, mask).dtype == jnp.float32
    assert attention.attend(x, x, x, mask).dtype == jnp.bfloat16
