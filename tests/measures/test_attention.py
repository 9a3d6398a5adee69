"""Attention measures against float64 loops over rows, the published tables and closed forms; masks, padding, NaN, gradients."""

import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from entropy_jax.layers import attention as layers
from entropy_jax.measures import attention

pytestmark = pytest.mark.usefixtures('strict_dtypes')
RNG = np.random.default_rng(0)
L, B, H, N = 2, 3, 2, 5
LOGITS = RNG.normal(0, 3, (L, B, H, N, N)).astype(np.float32)
REAL = np.array([[True] * 5, [False, False, True, True, True], [True, True, True, False, False]])
MASK = layers.causal_mask(jnp.array(REAL))

# One program a call instead of one an operation.
measure = types.SimpleNamespace(**{name: jax.jit(f) for name, f in vars(attention).items() if inspect.isfunction(f)})


def causal(T: int) -> jax.Array:
  return jnp.tril(jnp.ones((1, T, T), bool))


def oracle(row: np.ndarray, mask: np.ndarray) -> float:
  return scipy.stats.entropy(scipy.special.softmax(row[mask].astype(np.float64))) if mask.any() else 0.0


def rows(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
  out = np.zeros(logits.shape[:-1])
  for index in np.ndindex(*out.shape):
    b, q = index[-3], index[-1]
    out[index] = oracle(logits[index], mask[b, q])
  return out


class TestRowEntropy:
  def test_card_with_sink_column(self):
    logits, mask = jnp.array([1.0, 0.0, -1.0, 0.0]), jnp.ones(4, bool)
    np.testing.assert_allclose(measure.row_probabilities(logits, mask)[:3], [0.534447, 0.196612, 0.072329], atol=1e-6)
    np.testing.assert_allclose(measure.row_probabilities(logits, mask)[:3].sum(), 0.803388, atol=1e-6)
    np.testing.assert_allclose(measure.row_entropy(logits, mask), 1.164406, atol=1e-6)
    np.testing.assert_allclose(measure.row_entropy(logits, mask, jnp.array([True, True, True, False])), 0.844612, atol=1e-6)

  def test_float64(self):
    logits, mask = RNG.normal(0, 5, (40, 9)).astype(np.float32), RNG.uniform(size=(40, 9)) < 0.6
    want = [oracle(a, m) for a, m in zip(logits, mask)]
    np.testing.assert_allclose(measure.row_entropy(logits, mask), want, rtol=1e-5, atol=1e-7)

  def test_keeps_the_digits_of_a_collapsed_row(self):
    # One logit g above three equal ones: ln(1 + 3 e^-g) + 3 g e^-g / (1 + 3 e^-g).
    for g in (20.0, 40.0, 80.0):
      r = 3 * np.exp(-g)
      got = measure.row_entropy(jnp.array([5.0, 5.0, 5.0 + g, 5.0]), jnp.ones(4, bool))
      np.testing.assert_allclose(got, np.log1p(r) + g * r / (1 + r), rtol=1e-5)

  def test_exact_behind_a_product(self):
    # In one program with the product that makes the logits; a row with one key has entropy 0 and not the rounding error of the product.
    @jax.jit
    def entropy(q: jax.Array, k: jax.Array, mask: jax.Array) -> jax.Array:
      return attention.row_entropy(jnp.einsum('qd,kd->qk', q, k) * jnp.float32(8**-0.5), mask)

    q, k = np.random.default_rng(1).normal(0, 3, (2, 64, 8)).astype(np.float32)
    assert np.array_equal(entropy(q, k, jnp.eye(64, dtype=bool)), np.zeros(64))
    assert np.all(entropy(q, k, jnp.tril(jnp.ones((64, 64), bool))) >= 0)

  def test_nothing_of_what_is_not_seen(self):
    logits, mask = jnp.array([1.0, 2.0, 0.5, 0.0]), jnp.array([True, True, True, False])
    want, want_grad = jax.value_and_grad(measure.row_entropy)(logits, mask)
    for bad in (jnp.nan, jnp.inf, -jnp.inf, 3e38, float(jnp.finfo(jnp.float32).min)):
      value, grad = jax.value_and_grad(measure.row_entropy)(logits.at[3].set(bad), mask)
      assert float(value) == float(want) and np.array_equal(grad, want_grad)
    assert float(want_grad[3]) == 0.0
    hidden = measure.row_entropy(logits.at[3].set(-jnp.inf), jnp.ones(4, bool))
    assert float(hidden) == float(want)

  def test_a_broken_row_shows(self):
    for bad in (jnp.nan, jnp.inf):
      assert np.isnan(measure.row_entropy(jnp.array([0.0, bad, 1.0]), jnp.ones(3, bool)))

  def test_no_key_and_one_key(self):
    logits, mask = jnp.array([[1.0, jnp.nan], [jnp.inf, 7.0]]), jnp.array([[False, False], [False, True]])
    value, grad = jax.value_and_grad(lambda z: measure.row_entropy(z, mask).sum())(logits)
    assert float(value) == 0.0 and np.array_equal(grad, np.zeros((2, 2)))
    np.testing.assert_array_equal(measure.row_probabilities(logits, mask), [[0.0, 0.0], [0.0, 1.0]])

  def test_gradient_ties_included(self):
    logits, mask = jnp.array([2.0, 2.0, 0.0, 1.0, 9.0]), jnp.array([True, True, True, True, False])
    p = np.append(scipy.special.softmax([2.0, 2.0, 0.0, 1.0]), 0.0)
    h = -np.sum(p[:4] * np.log(p[:4]))
    want = -p * (np.log(np.where(p > 0, p, 1.0)) + h)
    np.testing.assert_allclose(jax.grad(measure.row_entropy)(logits, mask), want, atol=1e-6)

  def test_shift_uniform_and_bfloat16(self):
    logits, mask = jnp.array(LOGITS), jnp.ones(LOGITS.shape, bool)
    np.testing.assert_allclose(measure.row_entropy(logits + 64.0, mask), measure.row_entropy(logits, mask), rtol=1e-4)
    np.testing.assert_allclose(measure.row_entropy(jnp.full(64, -3.0), jnp.ones(64, bool)), np.log(64), rtol=1e-6)
    assert measure.row_entropy(logits.astype(jnp.bfloat16), mask).dtype == jnp.float32


class TestAttentionEntropy:
  def test_loop_over_layers_heads_and_queries(self):
    got = measure.attention_entropy(LOGITS, MASK)
    np.testing.assert_allclose(got, rows(LOGITS, np.asarray(MASK)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(measure.attention_entropy, (0, None))(LOGITS, MASK), got, rtol=1e-6)

  def test_filled_logits_give_the_same(self):
    filled = np.where(np.asarray(MASK)[:, None], LOGITS, np.finfo(np.float32).min)
    assert np.array_equal(measure.attention_entropy(filled, MASK), measure.attention_entropy(LOGITS, MASK))


class TestUniformEntropy:
  @pytest.mark.parametrize('T, want', [(32, 2.5487), (64, 3.2058), (128, 3.8782), (512, 5.2462)])
  def test_causal_mean_is_ln_factorial(self, T: int, want: float):
    mean = float(measure.uniform_entropy(causal(T)).mean())
    assert mean == pytest.approx(want, abs=6e-5) and mean == pytest.approx(scipy.special.gammaln(T + 1) / T, rel=1e-5)

  def test_empty_row(self):
    assert measure.uniform_entropy(jnp.array([[[False, False], [True, True]]])).tolist() == [[0.0, pytest.approx(np.log(2))]]


class TestMeanEntropy:
  def test_real_queries_only(self):
    entropy = rows(LOGITS, np.asarray(MASK))
    broken = np.where(REAL[None, :, None], entropy, np.nan).astype(np.float32)
    got = measure.mean_entropy(jnp.array(broken), MASK, jnp.array(REAL)).compute()
    np.testing.assert_allclose(got, np.moveaxis(entropy, 2, 1)[:, :, REAL].mean(-1), rtol=1e-5)

  def test_a_query_without_a_key_is_not_counted(self):
    mask = jnp.array([[[False, False], [True, True]]])
    entropy = measure.attention_entropy(jnp.zeros((1, 1, 2, 2)), mask)
    np.testing.assert_allclose(measure.mean_entropy(entropy, mask).compute(), [np.log(2)], rtol=1e-6)


class TestNormalisedEntropy:
  def test_uniform_is_one_under_any_mask(self):
    entropy = measure.attention_entropy(jnp.zeros(LOGITS.shape), MASK)
    np.testing.assert_allclose(measure.normalised_entropy(entropy, MASK, jnp.array(REAL)).compute(), np.ones((L, H)), rtol=1e-6)

  def test_first_row_is_left_out(self):
    # Causal T = 3, logits (0, 0), (0, 0, -inf): rows 2 and 3 have ln 2 each, against ln 2 + ln 3.
    logits = jnp.zeros((1, 1, 3, 3)).at[0, 0, 2, 2].set(-jnp.inf)
    got = measure.normalised_entropy(measure.attention_entropy(logits, causal(3)), causal(3))
    np.testing.assert_allclose(got.compute(), [2 * np.log(2) / np.log(6)], rtol=1e-6)
    np.testing.assert_allclose(got.den, [np.log(6)], rtol=1e-6)

  def test_slices_merge(self):
    entropy = measure.attention_entropy(jnp.array(LOGITS), MASK)
    whole = measure.normalised_entropy(entropy, MASK, jnp.array(REAL))
    parts = [measure.normalised_entropy(entropy[:, s], MASK[s], jnp.array(REAL[s])) for s in (slice(0, 1), slice(1, 3))]
    np.testing.assert_allclose(parts[0].merge(parts[1]).compute(), whole.compute(), rtol=1e-6)

  def test_only_one_key_each(self):
    mask = jnp.eye(3, dtype=bool)[None]
    ratio = measure.normalised_entropy(jnp.zeros((1, 1, 3)), mask)
    assert float(ratio.den[0]) == 0.0 and float(ratio.compute()[0]) == 0.0

  def test_over_heads(self):
    ratio = measure.normalised_entropy(measure.attention_entropy(jnp.array(LOGITS), MASK), MASK)
    np.testing.assert_allclose(measure.over_heads(ratio).compute(), ratio.compute().mean(-1), rtol=1e-6)


class TestLargestLogit:
  def test_seen_keys_of_real_queries(self):
    logits = np.zeros((1, 2, 3, 3), np.float32)
    logits[0, 0, 1, 0], logits[0, 0, 0, 2], logits[0, 0, 2, 2] = -7.0, 100.0, 50.0  # negative; not seen; of a padding query
    logits[0, 1] = np.nan  # the other head is broken
    real = jnp.array([[True, True, False]])
    assert measure.largest_logit(jnp.array(logits), causal(3), real)[0] == 7.0
    assert measure.largest_logit(jnp.array(logits), causal(3))[0] == 50.0
    assert np.isnan(measure.largest_logit(jnp.array(logits), causal(3))[1])
    assert measure.largest_logit(jnp.array(logits[:, :1]), jnp.zeros((1, 3, 3), bool)).tolist() == [0.0]


class TestFirstKey:
  def test_left_right_and_no_padding(self):
    want = np.array([[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(measure.first_key(MASK, jnp.array(REAL)), want)

  def test_without_it(self):
    rest = measure.without_first_key(MASK, jnp.array(REAL))
    assert np.array_equal(rest, np.asarray(MASK) & ~np.array([[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 0, 0]], bool)[:, None])

  def test_a_sink_lowers_entropy_and_not_the_entropy_of_the_rest(self):
    T = 8
    logits = jnp.zeros((1, 1, T, T)).at[..., 0].set(12.0)
    rest = measure.without_first_key(causal(T))
    full = measure.normalised_entropy(measure.attention_entropy(logits, causal(T)), causal(T)).compute()
    without = measure.normalised_entropy(measure.attention_entropy(logits, rest), rest).compute()
    assert float(full[0]) < 0.01
    np.testing.assert_allclose(without, [1.0], rtol=1e-6)


class TestWithSink:
  def test_chain_rule(self):
    # H = h(p_sink) + (1 - p_sink) H(rest)
    sink_LxH = jnp.array(RNG.normal(size=(L, H)), jnp.float32)
    logits, mask = measure.with_sink(jnp.array(LOGITS), MASK, sink_LxH)
    shape = (L, B, H, N, N + 1)
    assert logits.shape == shape and mask.shape == (B, N, N + 1)
    p = measure.row_probabilities(logits, jnp.broadcast_to(mask[:, None], shape))[..., -1]
    want = scipy.stats.entropy([p, 1 - p], axis=0) + (1 - p) * measure.attention_entropy(jnp.array(LOGITS), MASK)
    np.testing.assert_allclose(measure.attention_entropy(logits, mask), want, rtol=1e-4, atol=1e-6)

  def test_low_sink_is_none_and_one_vector_serves_all_layers(self):
    plain = measure.attention_entropy(jnp.array(LOGITS), MASK)
    got = measure.attention_entropy(*measure.with_sink(jnp.array(LOGITS), MASK, jnp.full(H, -1e9)))
    np.testing.assert_allclose(got, plain, rtol=1e-6)


class TestSinkImportance:
  def test_uniform_causal(self):
    got = measure.sink_importance(jnp.zeros((1, 1, 4, 4)), causal(4))[0, 0]
    np.testing.assert_allclose(got, [0.520833, 0.361111, 0.291667, 0.25], atol=1e-6)  # (1 + 1/2 + 1/3 + 1/4) / 4, (1/2 + ..) / 3, ..
    np.testing.assert_allclose(measure.sink_importance(jnp.zeros((1, 1, 64, 64)), causal(64))[0, 0, 0], 0.074123, atol=1e-6)

  def test_loop_with_padding(self):
    got = measure.sink_importance(LOGITS, MASK, REAL)
    for layer, b, h, k in np.ndindex(L, B, H, N):
      seen = [q for q in range(N) if REAL[b, q] and MASK[b, q, k]]
      shares = []
      for q in seen:
        keys = np.flatnonzero(MASK[b, q])
        shares.append(scipy.special.softmax(LOGITS[layer, b, h, q, keys])[list(keys).index(k)])
      np.testing.assert_allclose(got[layer, b, h, k], np.mean(shares) if shares else 0.0, rtol=1e-5)

  def test_broken_padding_stays_out(self):
    logits = np.where(REAL[None, :, None, :, None], LOGITS, np.nan)
    np.testing.assert_allclose(measure.sink_importance(logits, MASK, REAL), measure.sink_importance(LOGITS, MASK, REAL), rtol=1e-6)


class TestSinkRate:
  def test_uniform_causal(self):
    for T, want in ((4, 1.0), (9, 1.0), (10, 0.0), (64, 0.0)):  # alpha_1 is .3143 at 9 and .2929 at 10
      first = measure.first_key(causal(T))
      rate = measure.sink_rate(measure.sink_importance(jnp.zeros((1, 1, T, T)), causal(T)), first)
      assert rate.compute().tolist() == [want]

  def test_layers_heads_and_sequences(self):
    importance = jnp.array([[[[0.5, 0.1], [0.2, 0.9]], [[0.31, 0.0], [0.3, 0.0]]]])  # [L, B, H, K], H = 2
    key = jnp.array([[True, False], [True, False]])
    rate = measure.sink_rate(importance, key)
    assert rate.compute().tolist() == [[1.0, 0.0]]  # head 0: .5 and .31; head 1: .2 and .3, not above .3
    assert measure.over_heads(rate).compute().tolist() == [0.5]
    assert measure.sink_rate(importance, ~key).compute().tolist() == [[0.0, 0.5]]
    assert measure.sink_rate(importance, key, threshold=0.25).compute().tolist() == [[1.0, 0.5]]


class TestHeadShares:
  def test_quarters_of_the_range(self):
    shares = measure.head_shares(jnp.array([[4.0, 3.1, 2.0, 0.9], [3.0, 1.0, 0.0, jnp.nan]]))  # edges 3 and 1, excluded
    assert [float(x) for x in (shares.overload, shares.collapse, shares.undefined)] == [0.25, 0.25, 0.125]

  def test_given_range(self):
    shares = measure.head_shares(jnp.array([1.0, 1.0]), most=jnp.array(8.0))
    assert (float(shares.overload), float(shares.collapse)) == (0.0, 1.0)
    assert float(measure.head_shares(jnp.array([1.0, 1.0])).overload) == 1.0


class TestSummarise:
  def test_is_its_parts_and_merges(self):
    whole = measure.summarise(LOGITS, MASK, REAL)
    entropy = measure.attention_entropy(jnp.array(LOGITS), MASK)
    np.testing.assert_allclose(whole.entropy.compute(), measure.mean_entropy(entropy, MASK, jnp.array(REAL)).compute(), rtol=1e-6)
    np.testing.assert_allclose(whole.largest_logit, measure.largest_logit(jnp.array(LOGITS), MASK, jnp.array(REAL)), rtol=1e-6)
    assert whole.undefined.compute().tolist() == [[0.0] * H] * L
    parts = [measure.summarise(LOGITS[:, s], MASK[s], REAL[s]) for s in (slice(0, 2), slice(2, 3))]
    for got, want in zip(jax.tree.leaves(parts[0].merge(parts[1])), jax.tree.leaves(whole), strict=True):
      np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_no_gradient_and_broken_heads(self):
    grad = jax.grad(lambda z: measure.summarise(z, MASK, jnp.array(REAL)).normalised.compute().sum())(jnp.array(LOGITS))
    assert np.array_equal(grad, np.zeros(LOGITS.shape))
    broken = measure.summarise(jnp.array(LOGITS).at[0, :, 1].set(jnp.nan), MASK, jnp.array(REAL))
    assert broken.undefined.compute().tolist() == [[0.0, 1.0], [0.0, 0.0]]
    assert np.array_equal(np.isnan(broken.normalised.compute()), [[False, True], [False, False]])
