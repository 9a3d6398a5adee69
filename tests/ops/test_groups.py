"""Group statistics against plain loops over the members, for unequal and interleaved groups with arbitrary ids."""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.ops import groups

pytestmark = pytest.mark.usefixtures('strict_dtypes')

# Groups of 4, 3, 2 and 1 members, interleaved, with ids that are neither dense nor positive nor ordered.
GROUP = np.array([40, -3, 7, 40, 1000, -3, 40, 7, -3, 40], np.int32)
X = np.array([0.5, -2.0, 0.1, 1.25, 3.0, 4.0, 0.5, 0.1, 1.0, -7.0], np.float32)


def members(i):
  return [float(x) for x, g in zip(X, GROUP, strict=True) if g == GROUP[i]]


def others(i):
  return [float(X[j]) for j in range(len(X)) if GROUP[j] == GROUP[i] and j != i]


def loop(fn):
  return np.array([fn(i) for i in range(len(X))], np.float32)


def check(fn, oracle):
  """The value is the oracle's, and follows its rows when they are permuted or the ids renamed."""
  x, group = jnp.array(X), jnp.array(GROUP)
  compiled = jax.jit(fn)
  np.testing.assert_allclose(compiled(x, group), loop(oracle), rtol=1e-6, atol=1e-6)
  order = np.random.default_rng(0).permutation(len(X))
  np.testing.assert_allclose(compiled(x[order], group[order]), compiled(x, group)[order], rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(compiled(x, -3 * group + 5), compiled(x, group))


class TestSum:
  def test_loop(self):
    check(groups.sum, lambda i: sum(members(i)))

  def test_gradient_reaches_the_whole_group(self):
    gradient = jax.jit(jax.grad(lambda x: groups.sum(x, jnp.array(GROUP))[0]))(jnp.array(X))
    np.testing.assert_array_equal(gradient, (GROUP == 40).astype(np.float32))


class TestSize:
  def test_loop(self):
    size = jax.jit(groups.size)(jnp.array(GROUP))
    np.testing.assert_array_equal(size, [4, 3, 2, 4, 1, 3, 4, 2, 3, 4])
    assert size.dtype == jnp.float32


class TestMean:
  def test_loop(self):
    check(groups.mean, lambda i: statistics.fmean(members(i)))


CENTRED = jax.jit(groups.centred)


class TestCentred:
  def test_loop(self):
    check(CENTRED, lambda i: X[i] - statistics.fmean(members(i)))

  @pytest.mark.parametrize('value', [0.1, 1 / 3, 1e6 + 0.3])
  def test_equal_group_is_exactly_zero(self, value):
    x = jnp.full(7, value, jnp.float32)  # a sum of seven, divided by seven, need not give the value back
    np.testing.assert_array_equal(CENTRED(x, jnp.zeros(7, jnp.int32)), np.zeros(7))

  def test_single_is_zero(self):
    assert float(CENTRED(jnp.array(X), jnp.array(GROUP))[4]) == 0.0


class TestStd:
  def test_sample(self):
    check(groups.std, lambda i: statistics.stdev(members(i)) if len(members(i)) > 1 else 0.0)

  def test_population(self):
    check(lambda x, g: groups.std(x, g, ddof=0), lambda i: statistics.pstdev(members(i)))

  def test_by_hand(self):
    # (1, 0, 0, 1): squares 4 / 4 = 1; sample sqrt(1 / 3), population sqrt(1 / 4)
    x, group = jnp.array([1.0, 0.0, 0.0, 1.0]), jnp.zeros(4, jnp.int32)
    both = jax.jit(lambda x, g: (groups.std(x, g), groups.std(x, g, ddof=0)))(x, group)
    np.testing.assert_allclose(both, [[0.57735027] * 4, [0.5] * 4], rtol=1e-6)

  def test_equal_group_is_exactly_zero(self):
    np.testing.assert_array_equal(jax.jit(groups.std)(jnp.full(7, 0.1), jnp.zeros(7, jnp.int32)), np.zeros(7))


class TestMax:
  def test_loop(self):
    check(groups.max, lambda i: max(members(i)))


class TestMin:
  def test_loop(self):
    check(groups.min, lambda i: min(members(i)))


class TestDifficulty:
  def test_boundaries_are_counted_in_integers(self):
    # 2/3 is easy, 1/3 medium, below hard; in float32 the mean of (1, 1, 0) and 2/3 need not agree
    correct = np.float32([1, 1, 0, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0])
    group = np.array([4, 4, 4, 7, 7, 7, 1, 1, 1, 2, 2, 2, 2], np.int32)
    found = jax.jit(groups.difficulty)(correct, group)
    assert found.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [0] * 4

  def test_every_count_of_every_size(self):
    sizes = [(size, k) for size in range(1, 13) for k in range(size + 1)]  # k of size are correct
    correct = np.concatenate([np.arange(size) < k for size, k in sizes]).astype(np.float32)
    group = np.concatenate([np.full(size, 3 * i, np.int32) for i, (size, _) in enumerate(sizes)])
    expected = np.concatenate([[0 if 3 * k >= 2 * size else 1 if 3 * k >= size else 2] * size for size, k in sizes])
    order = np.random.default_rng(0).permutation(len(group))
    np.testing.assert_array_equal(jax.jit(groups.difficulty)(correct[order], group[order]), expected[order])
