"""Steps of trajectories: plain loops as oracle on a ragged batch with gaps in the numbers, tokens in no step, and garbage where masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.ops import steps

pytestmark = pytest.mark.usefixtures('strict_dtypes')

RNG = np.random.default_rng(0)
B, T = 9, 12
MASK = RNG.random((B, T)) < 0.8
MASK[-1] = False
SEGMENT = np.cumsum(RNG.integers(0, 3, (B, T)) * (RNG.random((B, T)) < 0.4), axis=1).astype(np.int32)  # numbers with gaps
SEGMENT[RNG.random((B, T)) < 0.1] = -4
SEGMENT[2, ::2] = 1_000_000  # the tokens of a step need not be consecutive
VALUE = RNG.normal(size=(B, T)).astype(np.float32)
DIRTY_VALUE = np.where(MASK, VALUE, np.float32(np.nan))
DIRTY_SEGMENT = np.where(MASK, SEGMENT, np.int32(-(2**31)))


def tokens_of(b: int) -> dict[int, list[int]]:
  """Step number -> its valid tokens, of one sequence, in the order of the numbers."""
  found: dict[int, list[int]] = {}
  for t in range(T):
    if MASK[b, t] and SEGMENT[b, t] >= 0:
      found.setdefault(int(SEGMENT[b, t]), []).append(t)
  return dict(sorted(found.items()))


class TestFirst:
  def test_marks_one_token_a_step(self):
    expected = np.zeros((B, T), bool)
    for b in range(B):
      for tokens in tokens_of(b).values():
        expected[b, min(tokens)] = True
    np.testing.assert_array_equal(jax.jit(steps.first)(DIRTY_SEGMENT, MASK), expected)


class TestCount:
  def test_counts_distinct_numbers(self):
    expected = [len(tokens_of(b)) for b in range(B)]
    np.testing.assert_array_equal(jax.jit(steps.count)(DIRTY_SEGMENT, MASK), expected)
    assert expected[-1] == 0 and max(expected) > 3


class TestMean:
  def test_is_that_of_the_step(self):
    expected = np.zeros((B, T))
    for b in range(B):
      for tokens in tokens_of(b).values():
        expected[b, tokens] = np.mean(VALUE[b, tokens], dtype=np.float64)
    np.testing.assert_allclose(jax.jit(steps.mean)(DIRTY_VALUE, DIRTY_SEGMENT, MASK), expected, rtol=1e-5, atol=1e-6)

  def test_one_step_is_the_mean_of_the_sequence(self):
    mean = steps.mean(jnp.array(VALUE[:2]), jnp.zeros((2, T), jnp.int32), jnp.ones((2, T), bool))
    np.testing.assert_allclose(mean[:, 5], VALUE[:2].mean(1), rtol=1e-5)


class TestFollowing:
  def test_is_the_value_of_the_next_number(self):
    step_value = np.zeros((B, T), np.float32)
    expected, exists = np.zeros((B, T), np.float32), np.zeros((B, T), bool)
    for b in range(B):
      found = list(tokens_of(b).values())
      for k, tokens in enumerate(found):
        step_value[b, tokens] = 10 * b + k
        if k + 1 < len(found):
          expected[b, tokens], exists[b, tokens] = 10 * b + k + 1, True
    actual, there = jax.jit(steps.following)(np.where(MASK, step_value, np.float32(np.inf)), DIRTY_SEGMENT, MASK)
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(there, exists)
    assert exists.any() and not exists.all()
