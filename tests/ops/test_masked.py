"""Reductions over valid entries: values by hand, numpy on the compressed array as the oracle, no leak from masked slots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.ops import masked

pytestmark = pytest.mark.usefixtures('strict_dtypes')

MASK = jnp.array([[True, True, False], [True, False, False]])
X = jnp.array([[1.0, 3.0, jnp.nan], [8.0, jnp.inf, -jnp.inf]])
NONE = jnp.zeros((2, 3), bool)


def gradient(fn):
  return jax.jit(jax.grad(fn))(X)


class TestZero:
  def test_keeps_valid_and_clears_garbage(self):
    np.testing.assert_array_equal(masked.zero(X, MASK), [[1, 3, 0], [8, 0, 0]])

  def test_gradient_is_the_mask(self):
    np.testing.assert_array_equal(gradient(lambda x: jnp.sum(masked.zero(x, MASK))), MASK)

  @pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.int32])
  def test_keeps_the_dtype(self, dtype):
    assert masked.zero(jnp.ones(3, dtype), jnp.array([True, False, True])).dtype == dtype


class TestCount:
  def test_whole_and_along_each_axis(self):
    assert float(masked.count(MASK)) == 3
    np.testing.assert_array_equal(masked.count(MASK, axis=0), [2, 1, 0])
    np.testing.assert_array_equal(masked.count(MASK, axis=1), [2, 1])
    assert masked.count(MASK).dtype == jnp.float32


class TestTotal:
  def test_whole_and_along_each_axis(self):
    assert float(masked.total(X, MASK)) == 12  # 1 + 3 + 8
    np.testing.assert_array_equal(masked.total(X, MASK, axis=0), [9, 3, 0])
    np.testing.assert_array_equal(masked.total(X, MASK, axis=1), [4, 8])


class TestMeanRatio:
  def test_slices_merge_to_the_whole(self):
    whole = masked.mean_ratio(X, MASK)
    merged = masked.mean_ratio(X[:1], MASK[:1]).merge(masked.mean_ratio(X[1:], MASK[1:]))
    assert (float(whole.num), float(whole.den)) == (float(merged.num), float(merged.den)) == (12, 3)


class TestMean:
  def test_by_hand(self):
    assert float(masked.mean(X, MASK)) == 4  # 12 / 3
    np.testing.assert_array_equal(masked.mean(X, MASK, axis=1), [2, 8])

  def test_empty_is_zero_with_zero_gradient(self):
    assert float(masked.mean(X, NONE)) == 0
    np.testing.assert_array_equal(masked.mean(X, MASK, axis=0), [4.5, 3, 0])
    np.testing.assert_array_equal(gradient(lambda x: masked.mean(x, NONE)), np.zeros((2, 3)))

  def test_gradient(self):
    np.testing.assert_allclose(gradient(lambda x: masked.mean(x, MASK)), np.asarray(MASK) / 3, rtol=1e-6)


class TestVariance:
  @pytest.mark.parametrize('ddof', [0, 1])
  def test_against_numpy_on_the_valid_entries(self, ddof):
    # Values (1, 3, 8), mean 4, squares 9 + 1 + 16 = 26.
    np.testing.assert_allclose(masked.variance(X, MASK, ddof=ddof), 26 / (3 - ddof), rtol=1e-6)
    np.testing.assert_allclose(masked.variance(X, MASK, ddof=ddof), np.var([1.0, 3, 8], ddof=ddof), rtol=1e-6)

  def test_gradient(self):
    # d Var / dx_i = 2 (x_i - mean) / n: 2 (-3, -1, 4) / 3.
    np.testing.assert_allclose(gradient(lambda x: masked.variance(x, MASK)), [[-2, -2 / 3, 0], [8 / 3, 0, 0]], rtol=1e-6)

  def test_too_few_entries_is_zero(self):
    one = jnp.array([[True, False, False], [False, False, False]])
    assert float(masked.variance(X, one, ddof=1)) == 0
    np.testing.assert_array_equal(gradient(lambda x: masked.variance(x, one, ddof=1)), np.zeros((2, 3)))
    assert float(masked.variance(X, NONE)) == 0

  def test_large_offset_does_not_cancel(self):
    x = jnp.array([1e4 + 1, 1e4 + 2, 1e4 + 3])
    np.testing.assert_allclose(masked.variance(x, jnp.ones(3, bool)), 2 / 3, rtol=1e-4)


class TestExtreme:
  def test_largest_and_smallest(self):
    assert float(masked.extreme(X, MASK)) == 8
    assert float(masked.extreme(X, MASK, largest=False)) == 1
    assert float(masked.extreme(-X, MASK)) == -1  # a zero in a masked slot must not win over negative values

  def test_empty_is_zero(self):
    assert float(masked.extreme(X, NONE)) == 0

  def test_gradient_goes_to_the_largest(self):
    np.testing.assert_array_equal(gradient(lambda x: masked.extreme(x, MASK)), [[0, 0, 0], [1, 0, 0]])
