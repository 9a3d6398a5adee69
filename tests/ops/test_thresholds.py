"""Thresholds by halving: the order of floats in ints, conditions that hold nowhere, ties in the order of the vocabulary."""

import jax.numpy as jnp
import numpy as np

from entropy_jax.ops import thresholds

FLOATS = np.array([-np.inf, -3e38, -1.0, -1e-40, -0.0, 0.0, 1e-30, 1.0, 1.0000001, 3e38, np.inf], np.float32)


class TestOrdered:
  def test_ints_have_the_order_of_the_floats(self):
    keys = np.asarray(thresholds.ordered(jnp.asarray(FLOATS)), np.int64)
    want = FLOATS[:, None] < FLOATS[None]
    tiny = np.abs(FLOATS) < 1e-38  # what the processor may take for 0
    assert np.all(((keys[:, None] < keys[None]) == want)[~(tiny[:, None] & tiny[None])])
    assert keys[4] == keys[5]


class TestSmallest:
  def test_by_hand(self):
    low, high = jnp.array([0, 0, 5]), jnp.array([10, 10, 5])
    want = np.array([7, 20, 5])  # the second condition holds nowhere
    np.testing.assert_array_equal(thresholds.smallest(lambda n: n >= jnp.asarray(want), low, high), [7, 10, 5])


class TestFirstKey:
  def test_the_whole_range_of_ints(self):
    keys = jnp.zeros((4, 2), jnp.int32)
    want = jnp.array([[-(2**31)], [-1], [0], [2**31 - 1]])
    np.testing.assert_array_equal(thresholds.first_key(keys, lambda t: t >= want), want)


class TestRankThreshold:
  def test_the_key_of_a_rank(self):
    keys = jnp.array([[5, 9, 9, 1], [3, 2, 1, 0]])
    count = lambda above: jnp.sum(above, axis=-1, keepdims=True)
    for k, want in ((1, [9, 3]), (2, [9, 2]), (3, [5, 1])):
      np.testing.assert_array_equal(thresholds.rank_threshold(keys, lambda above, k=k: count(above) < k)[:, 0], want)


class TestWithFirstTies:
  def test_ties_in_the_order_of_the_vocabulary(self):
    keys, last = jnp.array([[2, 5, 2, 2]]), jnp.array([[2]])
    for number, want in ((0, [0, 1, 0, 0]), (1, [1, 1, 0, 0]), (2, [1, 1, 1, 0]), (9, [1, 1, 1, 1])):
      np.testing.assert_array_equal(thresholds.with_first_ties(keys, last, jnp.array([[number]]))[0], np.array(want, bool))


class TestOnly:
  def test_float32_of_what_is_kept(self):
    got = thresholds.only(jnp.array([True, False]), jnp.array([1.5, 2.0], jnp.bfloat16))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, [1.5, -np.inf])
