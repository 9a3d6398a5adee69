"""The bound against its published table, numerical optimisation and float64; layers that attain it; thousands of rows that must obey it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from entropy_jax.layers import attention as layers
from entropy_jax.measures import attention, attention_bound
from entropy_jax.types import UserError

pytestmark = pytest.mark.usefixtures('strict_dtypes')

TABLE_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
TABLE = {
  2: (0.693147, 0.634347, 0.494200, 0.215272, 6.84951e-3, 1.09228e-5, 1.52381e-11),
  4: (1.386294, 1.34962, 1.22666, 0.790945, 0.0626326, 3.63788e-4, 6.75195e-9),
  16: (2.772589, 2.76207, 2.71680, 2.41871, 0.490288, 5.55476e-3, 3.47472e-7),
  64: (4.158883, 4.15617, 4.14370, 4.04109, 1.80262, 0.0292060, 2.34565e-6),
  197: (5.283204, 5.28232, 5.27817, 5.24210, 3.67161, 0.0948556, 8.08181e-6),
  1024: (6.931472, 6.93130, 6.93050, 6.92334, 6.43113, 0.487158, 4.38695e-5),
}
TIGHT = ((2, 1.0, 0.4941999170), (4, 2.0, 0.7909450706), (16, 4.5, 0.7185297434), (64, 10.0, 0.0292059780), (197, 9.8, 0.1136018917))

lower_bound, log_lower_bound = jax.jit(attention_bound.lower_bound), jax.jit(attention_bound.log_lower_bound)
head_norm = jax.jit(attention_bound.head_norm)
weight_scale = jax.jit(attention_bound.weight_scale, static_argnames=('causal', 'logit_scale'))
query_key_scale = jax.jit(attention_bound.query_key_scale, static_argnames=('causal', 'logit_scale'))
centred_row_norm, row_bound = jax.jit(attention_bound.centred_row_norm), jax.jit(attention_bound.row_bound)
centred_slack = jax.jit(attention_bound.centred_slack)
attention_entropy = jax.jit(attention.attention_entropy)


def exact(T: float, s: float) -> float:
  """LB in float64, as the theorem writes it."""
  beta = math.exp(-s * math.sqrt(T / (T - 1)))
  return math.log1p((T - 1) * beta) + s * math.sqrt(T * (T - 1)) * beta / (1 + (T - 1) * beta)


def masks(B: int, T: int, *, causal: bool) -> jax.Array:
  return jnp.broadcast_to((jnp.tril if causal else jnp.asarray)(jnp.ones((T, T), bool))[None], (B, T, T))


class TestLowerBound:
  @pytest.mark.parametrize('T', TABLE)
  def test_table(self, T: int):
    np.testing.assert_allclose(lower_bound(np.full(7, T), np.array(TABLE_S, np.float32)), TABLE[T], rtol=6e-6)

  @pytest.mark.parametrize('T, s, want', TIGHT)
  def test_ten_digits(self, T: int, s: float, want: float):
    np.testing.assert_allclose(lower_bound(T, s), want, rtol=2e-6)

  def test_float64_over_many_orders(self):
    T, s = (x.ravel() for x in np.meshgrid([2, 3, 17, 513, 2**20], np.concatenate([[0.0], np.logspace(-3, 1.75, 30)])))
    np.testing.assert_allclose(lower_bound(T, s.astype(np.float32)), [exact(t, np.float32(x)) for t, x in zip(T, s)], rtol=2e-5)

  def test_small_s(self):
    np.testing.assert_allclose(lower_bound(16, 0.1), 2.77225685, rtol=2e-7)
    assert abs(float(lower_bound(16, 0.1)) - (math.log(16) - 0.1**2 / (2 * 16))) < 2.1e-5  # 2.77227622
    np.testing.assert_allclose(lower_bound(np.array([2, 64]), np.zeros(2, np.float32)), np.log([2, 64]), rtol=1e-7)

  @pytest.mark.parametrize('T, s', [(16, 20.0), (64, 30.0)])
  def test_large_s(self, T: int, s: float):
    g = s * math.sqrt(T / (T - 1))
    np.testing.assert_allclose(lower_bound(T, s), (T - 1) * math.exp(-g) * (1 + g), rtol=5e-6)

  def test_is_the_entropy_of_one_logit_above_equal_ones(self):
    for T, s in ((3, 0.7), (12, 4.0), (50, 15.0)):
      row = jnp.zeros(T).at[T // 2].set(s * math.sqrt(T / (T - 1)))
      np.testing.assert_allclose(attention.row_entropy(row, jnp.ones(T, bool)), lower_bound(T, s), rtol=1e-5)

  def test_decreasing_in_s_increasing_in_keys(self):
    s = np.linspace(0, 30, 200).astype(np.float32)
    assert np.all(np.diff(lower_bound(np.full(200, 10), s)) < 0)
    assert np.all(np.diff(lower_bound(np.arange(2, 202), np.full(200, 3, np.float32))) > 0)

  def test_ends(self):
    got = lower_bound(np.array([1, 1, 0, 5, 5, 5]), np.array([0.0, np.inf, 1.0, np.inf, 1e38, np.nan], np.float32))
    assert np.asarray(got)[:5].tolist() == [0.0] * 5 and np.isnan(got[5])

  def test_gradient(self):
    # d/ds of ln(1 + r) + g r / (1 + r) with r = (T - 1) e^-g: -(g r / (1 + r)^2) dg/ds
    def slope(T: int, s: float) -> float:
      a = math.sqrt(T / (T - 1))
      r = (T - 1) * math.exp(-s * a)
      return -a * s * a * r / (1 + r) ** 2

    grad = jax.jit(jax.vmap(jax.grad(attention_bound.lower_bound, argnums=1)))
    T, s = np.array([2, 16, 64, 1, 16]), np.array([1.0, 5.0, 20.0, 3.0, 1e6], np.float32)
    want = [slope(2, 1.0), slope(16, 5.0), slope(64, 20.0), 0.0, 0.0]
    np.testing.assert_allclose(grad(jnp.array(T, jnp.float32), s), want, rtol=2e-5)

  @pytest.mark.parametrize('T, s', [(2, 0.5), (3, 1.0), (8, 3.0), (16, 3.0), (64, 8.0)])
  def test_no_row_of_the_sphere_is_lower(self, T: int, s: float):
    def entropy_on_sphere(x: np.ndarray) -> tuple[float, np.ndarray]:
      size = np.linalg.norm(x)
      a = s * x / size
      logp = scipy.special.log_softmax(a)
      h = -np.sum(np.exp(logp) * logp)
      slope = -np.exp(logp) * (logp + h) * s / size
      return h, slope - x * (slope @ x) / size**2

    rng = np.random.default_rng(T)
    starts = [rng.normal(size=T) + 2 * np.eye(T)[i % T] * (i % 2) for i in range(12)]
    found = [scipy.optimize.minimize(entropy_on_sphere, x, jac=True, method='L-BFGS-B', options={'maxiter': 500}).fun for x in starts]
    assert min(found) >= exact(T, s) - 1e-9
    np.testing.assert_allclose(min(found), lower_bound(T, s), atol=1e-6)

  @pytest.mark.parametrize('T, s, want', [(8, 3.0, 0.95745735), (64, 8.0, 0.17649928)])
  def test_published_minima(self, T: int, s: float, want: float):
    np.testing.assert_allclose(lower_bound(T, s), want, rtol=1e-6)


class TestLogLowerBound:
  def test_logarithm_where_that_exists(self):
    T, s = (x.ravel() for x in np.meshgrid([2, 16, 1024], np.linspace(0, 70, 20)))
    want = [math.log(exact(t, x)) for t, x in zip(T, s)]
    np.testing.assert_allclose(log_lower_bound(T, s.astype(np.float32)), want, rtol=1e-5, atol=1e-5)

  def test_beyond_float32(self):
    for T, s in ((2, 200.0), (64, 1000.0), (1024, 1e5)):
      g = s * math.sqrt(T / (T - 1))
      np.testing.assert_allclose(log_lower_bound(T, s), math.log(T - 1) - g + math.log1p(g), rtol=1e-6)
      assert float(lower_bound(T, s)) == 0.0

  def test_finite_gradient_everywhere(self):
    grad = jax.jit(jax.vmap(jax.grad(attention_bound.log_lower_bound, argnums=1)))
    got = grad(jnp.full(4, 16.0), jnp.array([0.0, 1.0, 50.0, 1e4]))
    np.testing.assert_allclose(got[3], -math.sqrt(16 / 15), rtol=1e-3)  # d/dg of -g + ln(1 + g), at g = 1e4
    assert np.isfinite(got).all() and float(got[0]) == 0.0

  def test_one_key(self):
    assert float(log_lower_bound(1, 3.0)) == -np.inf


class TestBoundedLogitsFloor:
  @pytest.mark.parametrize(
    'T, B, want',
    [(64, 1.0, 3.684430), (64, 2.0, 2.491124), (64, math.sqrt(8), 1.219354), (64, 4.0, 0.186488), (16, 1.0, 2.299439), (16, 2.0, 1.104830)],
  )
  def test_card(self, T: int, B: float, want: float):
    np.testing.assert_allclose(attention_bound.bounded_logits_floor(T, B), want, atol=1.5e-6)

  def test_no_extreme_point_is_lower(self):
    # Entropy is smallest where every logit is at +-B: all 2^7 of them.
    B = np.array([0.0, 0.3, 1.0, 2.5], np.float32)
    corner = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 7), axis=-1).reshape(-1, 7)
    want = [scipy.stats.entropy(scipy.special.softmax(b * corner, axis=1), axis=1).min() for b in B]
    np.testing.assert_allclose(attention_bound.bounded_logits_floor(7, B), want, rtol=1e-6)

  def test_is_below_rows_inside_and_above_the_norm_bound(self):
    rows = np.random.default_rng(0).uniform(-2, 2, (500, 9))
    floor = float(attention_bound.bounded_logits_floor(9, 2.0))
    assert floor <= scipy.stats.entropy(scipy.special.softmax(rows, axis=1), axis=1).min()
    assert floor >= float(lower_bound(9, 2.0 * 3.0))  # |a_j| <= 2 gives a norm of at most 2 sqrt 9

  def test_ends(self):
    assert attention_bound.bounded_logits_floor(1, jnp.ones((2, 3))).tolist() == [[0.0] * 3] * 2
    assert attention_bound.bounded_logits_floor(5, np.array([np.inf, 1e38], np.float32)).tolist() == [0.0, 0.0]
    with pytest.raises(UserError, match='num_keys=0'):
      attention_bound.bounded_logits_floor(0, 1.0)

  def test_soft_cap_and_unit_norm_heads(self):
    # A cap of 1 and RMS-normalised heads of width 4, whose products are at most sqrt 4, are both bounds of the logits.
    rng = np.random.default_rng(1)
    capped = np.tanh(rng.normal(0, 5, (1, 1, 20, 8))).astype(np.float32)
    q, k = rng.normal(size=(2, 20, 8, 4))
    q, k = (x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True)) for x in (q, k))
    products = np.einsum('nqd,nkd->nqk', q, k)[:, None].astype(np.float32) / 2
    for logits, bound in ((capped, 1.0), (products, 2.0)):
      entropy = attention_entropy(logits, jnp.ones((logits.shape[0], *logits.shape[2:]), bool))
      assert float(entropy.min()) >= float(attention_bound.bounded_logits_floor(8, bound)) - 1e-6


class TestHeadNorm:
  def test_numpy_with_shared_key_heads(self):
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(6, 4, 3)).astype(np.float32), rng.normal(size=(6, 2, 3)).astype(np.float32)
    want = [np.linalg.norm(key[:, h // 2] @ query[:, h].T, 2) for h in range(4)]
    np.testing.assert_allclose(head_norm(query, key), want, rtol=1e-5)

  def test_a_head_is_at_most_the_whole(self):
    rng = np.random.default_rng(1)
    query, key = rng.normal(size=(2, 6, 4, 3)).astype(np.float32)
    most = np.linalg.norm(query.reshape(6, 12), 2) * np.linalg.norm(key.reshape(6, 12), 2)
    assert np.all(np.asarray(head_norm(query, key)) <= most)


class TestTightExample:
  @pytest.mark.parametrize('T, s, want', TIGHT)
  def test_first_row_attains_the_bound(self, T: int, s: float, want: float):
    @jax.jit
    def layer(key: jax.Array) -> list[jax.Array]:
      example = attention_bound.tight_example(T, s, width=5, sigma=0.7, key=key)
      real, seen = jnp.ones((1, T), bool), masks(1, T, causal=False)
      logits = attention_bound.row_logits(example)
      scale = attention_bound.weight_scale(example.x_TxD[None], *example[1:], real, causal=False, logit_scale=1.0)
      tables = (
        attention.attention_entropy(logits, seen),
        scale,
        attention_bound.row_bound(scale, seen),
        attention_bound.centred_row_norm(logits, seen),
      )
      return [x[0, 0] for x in tables]

    entropy, scale, bound, centred = layer(jax.random.key(T))
    np.testing.assert_allclose(entropy[0], want, rtol=1e-5)
    np.testing.assert_allclose(entropy[1:], np.full(T - 1, math.log(T)), rtol=1e-5)
    np.testing.assert_allclose(scale, np.full(T, s), rtol=1e-5)
    np.testing.assert_allclose(bound, np.full(T, want), rtol=1e-4)  # an error of 1e-6 s is one of 1e-5 in LB at s = 10
    np.testing.assert_allclose(centred[0], s, rtol=1e-5)  # the first row has mean 0 already

  def test_a_longer_row_breaks_the_bound(self):
    # The check sees a violation: 1 % more on the logits and the same s.
    example = attention_bound.tight_example(16, 4.5)
    entropy = attention_entropy(1.01 * attention_bound.row_logits(example), masks(1, 16, causal=False))[0, 0, 0]
    assert attention_bound.is_violated(entropy, lower_bound(16, 4.5))

  def test_mistakes(self):
    for kwargs in ({'num_tokens': 1, 's': 1.0}, {'num_tokens': 3, 's': 0.0}, {'num_tokens': 3, 's': 1.0, 'width': 1}):
      with pytest.raises(UserError, match='tight example'):
        attention_bound.tight_example(**kwargs)


class TestWeightScale:
  @pytest.mark.parametrize('causal', [False, True])
  def test_numpy_with_padding(self, causal: bool):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3)).astype(np.float32)
    query, key = rng.normal(size=(2, 3, 2, 4)).astype(np.float32)
    real = np.array([[True] * 5, [False, False, True, True, True]])
    got = weight_scale(np.where(real[..., None], x, np.nan), query, key, real, causal=causal)
    for b, h, i in np.ndindex(2, 2, 5):
      rows = x[b, [j for j in range(5) if real[b, j] and (j <= i or not causal)]]
      want = np.linalg.norm(key[:, h] @ query[:, h].T, 2) * np.linalg.norm(rows, 2) ** 2 / math.sqrt(4) if len(rows) else 0.0
      np.testing.assert_allclose(got[b, h, i], want, rtol=1e-5)

  def test_reparametrised_projections_bound_it_by_their_gains(self):
    # ||W_Q|| = gain_q and ||W_K|| = gain_k: s <= gain_q gain_k ||X||^2 / sqrt(head_dim).
    rng = np.random.default_rng(2)
    query, key = (g * w / np.linalg.norm(w, 2) for g, w in zip((1.5, 0.5), rng.normal(size=(2, 6, 8))))
    x = rng.normal(size=(1, 7, 6)).astype(np.float32)
    heads = (w.reshape(6, 2, 4).astype(np.float32) for w in (query, key))
    got = weight_scale(x, *heads, np.ones((1, 7), bool), causal=False)
    assert np.all(np.asarray(got) <= 1.5 * 0.5 * np.linalg.norm(x[0], 2) ** 2 / 2 * (1 + 1e-6))


class TestQueryKeyScale:
  @pytest.mark.parametrize('causal', [False, True])
  def test_numpy_with_shared_key_heads(self, causal: bool):
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 4, 5, 3)).astype(np.float32), rng.normal(size=(2, 2, 5, 3)).astype(np.float32)
    real = np.array([[True] * 5, [True, True, True, False, False]])
    got = query_key_scale(query, np.where(real[:, None, :, None], key, np.nan), real, causal=causal)
    for b, h, i in np.ndindex(2, 4, 5):
      keys = key[b, h // 2, [j for j in range(5) if real[b, j] and (j <= i or not causal)]]
      want = np.linalg.norm(query[b, h, i]) * np.linalg.norm(keys, 2) / math.sqrt(3)
      np.testing.assert_allclose(got[b, h, i], want, rtol=1e-5)

  def test_cross_attention(self):
    rng = np.random.default_rng(1)
    query, key = rng.normal(size=(1, 1, 3, 2)).astype(np.float32), rng.normal(size=(1, 1, 6, 2)).astype(np.float32)
    got = query_key_scale(query, key, np.ones((1, 6), bool), causal=False, logit_scale=1.0)
    np.testing.assert_allclose(got[0, 0], np.linalg.norm(query[0, 0], axis=1) * np.linalg.norm(key[0, 0], 2), rtol=1e-5)


class TestCentredRowNorm:
  def test_by_hand(self):
    # Seen (1, 3): mean 2, norm sqrt 2. Seen (5, 5, 5): 0. One key: 0.
    logits = jnp.array([[[[1.0, 3.0, jnp.nan], [5.0, 5.0, 5.0], [jnp.inf, 2.0, jnp.nan]]]])
    mask = jnp.array([[[True, True, False], [True, True, True], [False, True, False]]])
    np.testing.assert_allclose(centred_row_norm(logits, mask)[0, 0], [math.sqrt(2), 0.0, 0.0], rtol=1e-6)
    grad = jax.jit(jax.grad(lambda z: attention_bound.centred_row_norm(z, mask).sum()))(logits)
    np.testing.assert_allclose(grad[0, 0], [[-(0.5**0.5), 0.5**0.5, 0], [0, 0, 0], [0, 0, 0]], atol=1e-6)

  def test_ignores_a_shift_and_is_never_longer_than_the_row(self):
    logits = np.random.default_rng(0).normal(1, 2, (2, 2, 4, 6)).astype(np.float32)
    mask = jnp.ones((2, 4, 6), bool)
    got = centred_row_norm(logits, mask)
    np.testing.assert_allclose(centred_row_norm(logits + 100, mask), got, rtol=1e-4)
    assert np.all(np.asarray(got) <= np.linalg.norm(logits, axis=-1))


class TestIsViolated:
  def test_rounding_passes_and_nan_does_not(self):
    entropy, bound = jnp.array([0.9995, 0.998, 0.0, jnp.nan, 1.0]), jnp.array([1.0, 1.0, 0.0, 1.0, jnp.nan])
    assert attention_bound.is_violated(entropy, bound).tolist() == [False, True, False, True, True]


class TestNoRowIsBelowTheBound:
  """Random layers: 4 shapes x 4 sizes of s x full and causal, 9,600 rows, in every form of s."""

  SHAPES = ((4, 8, 4, 20), (16, 32, 8, 16), (64, 64, 16, 6), (96, 24, 24, 5))  # T, D, head_dim, sequences

  @pytest.mark.parametrize('causal', [False, True])
  @pytest.mark.parametrize('shape', SHAPES)
  def test_random_weights(self, shape: tuple[int, int, int, int], causal: bool):
    T, D, head_dim, B = shape
    rng = np.random.default_rng(T)
    real, seen = np.ones((B, T), bool), masks(B, T, causal=causal)
    x = rng.normal(size=(B, T, D)).astype(np.float32)
    query, key = rng.normal(size=(2, D, 1, head_dim)).astype(np.float32)

    @jax.jit
    def layer(size: jax.Array) -> tuple[jax.Array, ...]:
      # Weights scaled so that the largest s of the theorem is `size`.
      scale = attention_bound.weight_scale(x, query, key, real, causal=causal)
      query_ = query * (size / jnp.max(scale))
      q, k = (jnp.einsum('BTD,DHK->BHTK', x, w) for w in (query_, key))
      logits = jnp.einsum('BHQD,BHKD->BHQK', q, k) * jnp.float32(head_dim**-0.5)
      forms = (
        attention_bound.weight_scale(x, query_, key, real, causal=causal),
        attention_bound.query_key_scale(q, k, real, causal=causal),
        attention_bound.centred_row_norm(logits, seen),
      )
      return attention.attention_entropy(logits, seen), *(attention_bound.row_bound(form, seen) for form in forms)

    for size in (0.5, 3.0, 10.0, 30.0):
      entropy, by_weights, by_norm, centred = (np.asarray(y) for y in layer(jnp.float32(size)))
      for bound in (by_weights, by_norm, centred):
        assert not attention_bound.is_violated(entropy, bound).any()
      assert np.all(centred >= np.maximum(by_weights, by_norm) * (1 - 1e-4))  # the sharpest form is the highest bound

  @pytest.mark.parametrize('scale', [1.0, 8.0])
  def test_biases_rotation_and_padding(self, scale: float):
    rng = np.random.default_rng(0)
    B, H, T, head_dim = 12, 2, 24, 8
    real = np.arange(T) >= rng.integers(0, T // 2, B)[:, None]
    turn = layers.rotation(jnp.maximum(jnp.cumsum(jnp.array(real), axis=1) - 1, 0), layers.rotary_frequencies(head_dim))
    rotate = jax.jit(layers.rotate)
    q, k = (rotate(jnp.array(scale * rng.normal(1, 1, (B, H, T, head_dim)), jnp.float32), turn) for _ in range(2))
    seen = layers.causal_mask(jnp.array(real))
    logits = jnp.einsum('BHQD,BHKD->BHQK', q, k) * jnp.float32(head_dim**-0.5)
    entropy = attention_entropy(logits, seen)
    by_norm, centred = query_key_scale(q, k, real, causal=True), centred_row_norm(logits, seen)
    rows = np.broadcast_to(real[:, None], entropy.shape)
    for s in (by_norm, centred):
      assert not np.any(np.asarray(attention_bound.is_violated(entropy, row_bound(s, seen))) & rows)
    assert np.all(np.asarray(centred)[rows] <= np.asarray(by_norm)[rows] * (1 + 1e-5))

  def test_rows_sharp_enough_to_leave_float32(self):
    logits = np.random.default_rng(3).normal(0, 200, (8, 2, 16, 16)).astype(np.float32)
    seen = masks(8, 16, causal=True)
    assert not attention_bound.is_violated(attention_entropy(logits, seen), row_bound(centred_row_norm(logits, seen), seen)).any()


class TestCentredSlack:
  def test_zero_on_extremal_rows_and_positive_on_others(self):
    # One logit above equal ones attains the bound; one below equal ones, with the same norm, does not.
    seen = jnp.ones((1, 2, 4), bool)
    slack = centred_slack(jnp.array([[[[3.0, 0.0, 0.0, 0.0], [-3.0, 0.0, 0.0, 0.0]]]]), seen)[0, 0]
    assert abs(float(slack[0])) < 1e-6
    want = scipy.stats.entropy(scipy.special.softmax([-3.0, 0, 0, 0])) - exact(4, math.sqrt(9 * 3 / 4))  # norm^2 = 9 (1 - 1 / 4)
    np.testing.assert_allclose(slack[1], want, rtol=1e-5)

  def test_stacked_layers(self):
    logits = np.random.default_rng(0).normal(0, 3, (3, 2, 2, 4, 6)).astype(np.float32)
    slack = np.asarray(centred_slack(logits, jnp.ones((2, 4, 6), bool)))
    assert slack.shape == (3, 2, 2, 4) and slack.min() > 0


class TestAdamNormBound:
  def test_card(self):
    mean, noise = jnp.ones((64, 64)), jnp.zeros((64, 64))
    assert float(attention_bound.adam_norm_bound(mean, noise)) == 8.0
    np.testing.assert_allclose(np.linalg.norm(attention_bound.ideal_adam_update(mean, noise), 2), 64.0, rtol=1e-6)

  @pytest.mark.parametrize('shape', [(6, 6), (4, 9), (9, 4)])
  def test_formula_and_no_violation(self, shape: tuple[int, int]):
    rng = np.random.default_rng(0)
    for spread in (0.1, 1.0, 10.0):
      mean, noise = rng.normal(size=shape).astype(np.float32), np.abs(rng.normal(0, spread, shape)).astype(np.float32)
      bound = float(attention_bound.adam_norm_bound(mean, noise))
      assert np.linalg.norm(mean / np.sqrt(mean**2 + noise**2), 2) >= bound * (1 - 1e-6)
      if shape[0] == shape[1]:
        want = math.sqrt(6) * math.sqrt(1 - np.sum(noise**2 / (mean**2 + noise**2)) / 36)
        assert bound == pytest.approx(want, rel=1e-5)

  def test_attained_by_an_orthogonal_step(self):
    # A Hadamard matrix of signs has all singular values sqrt w.
    signs = jnp.array([[1.0, 1.0], [1.0, -1.0]])
    np.testing.assert_allclose(attention_bound.adam_norm_bound(signs, jnp.zeros((2, 2))), np.linalg.norm(signs, 2), rtol=1e-6)

  def test_monte_carlo_of_adam(self):
    # E[g] / sqrt(E[g^2]) of 200,000 draws; standard errors are below .004.
    rng = np.random.default_rng(0)
    mean, noise = np.array([0.5, -1.0, 0.0]), np.array([1.0, 0.5, 2.0])
    g = mean + noise * rng.normal(size=(200_000, 3))
    got = attention_bound.ideal_adam_update(jnp.array(mean, jnp.float32), jnp.array(noise, jnp.float32))
    np.testing.assert_allclose(got, g.mean(0) / np.sqrt((g**2).mean(0)), atol=0.012)

  def test_tiny_gradients_and_none(self):
    tiny = attention_bound.ideal_adam_update(jnp.array([3e-30, 0.0]), jnp.array([4e-30, 0.0]))
    np.testing.assert_allclose(tiny, [0.6, 0.0], rtol=1e-5)
