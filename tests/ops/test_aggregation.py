"""Aggregation modes on the card's batch, their limits, and merged over slices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.ops import aggregation
from entropy_jax.types import Ratio

pytestmark = pytest.mark.usefixtures('strict_dtypes')

NAN = float('nan')
LOSS = jnp.array([[1.0, NAN, NAN], [2.0, 2.0, 2.0]])
MASK = jnp.array([[True, False, False], [True, True, True]])
CONSTANT = {'token_sum_over_constant': 3.0, 'token_sum_over_capacity': 3.0}
RNG = np.random.default_rng(0)


@functools.cache
def mode(name):
  return jax.jit(aggregation.AGGREGATIONS[name](**({'constant': CONSTANT[name]} if name in CONSTANT else {})))


def value(name, x, mask):
  ratio = mode(name)(x, mask, np.float32(x.shape[0]))
  return float(ratio.num) / float(ratio.den) if float(ratio.den) else float(ratio.num)


class ModeTests:
  """What holds for every mode; the subclasses add the numbers."""

  name: str

  def test_slices_merge_to_the_whole(self):
    x, mask = RNG.normal(size=(8, 5)).astype(np.float32), RNG.random((8, 5)) < 0.5
    mask[2] = False
    whole = value(self.name, x, mask)
    for size in (1, 2, 4):
      slices = [slice(start, start + size) for start in range(0, 8, size)]
      parts = [mode(self.name)(x[rows], mask[rows], np.float32(8.0)) for rows in slices]
      merged = functools.reduce(Ratio.merge, parts)
      np.testing.assert_allclose(float(merged.num) / float(merged.den), whole, rtol=1e-5)

  def test_masked_garbage_reaches_no_gradient(self):
    gradient = jax.jit(jax.grad(lambda x: mode(self.name)(x, MASK, jnp.float32(2.0)).compute()))(LOSS)
    assert not np.any(np.asarray(gradient)[~np.asarray(MASK)])
    assert np.all(np.asarray(gradient)[np.asarray(MASK)] > 0)

  def test_nothing_valid(self):
    assert value(self.name, LOSS, ~MASK & False) == 0


class TestTokenMean(ModeTests):
  name = 'token_mean'

  def test_card_value(self):
    assert value(self.name, LOSS, MASK) == 1.75  # (1 + 2 + 2 + 2) / 4


class TestSequenceMeanTokenSum(ModeTests):
  name = 'sequence_mean_token_sum'

  def test_card_value(self):
    assert value(self.name, LOSS, MASK) == 3.5  # (1 + 6) / 2

  def test_luspo(self):
    # A loss that is constant in the sequence, (1, 2), times the lengths (1, 3): (1 * 1 + 2 * 3) / 2
    assert value(self.name, jnp.broadcast_to(jnp.array([[1.0], [2.0]]), (2, 3)), MASK) == 3.5

  def test_empty_rows_do_not_count(self):
    x, mask = jnp.concatenate([LOSS, LOSS[:1]]), jnp.concatenate([MASK, MASK[:1] & False])
    assert value(self.name, x, mask) == 3.5


class TestSequenceMeanTokenMean(ModeTests):
  name = 'sequence_mean_token_mean'

  def test_card_value(self):
    assert value(self.name, LOSS, MASK) == 1.5  # (1 / 1 + 6 / 3) / 2

  def test_empty_rows_do_not_count(self):
    x, mask = jnp.concatenate([LOSS, LOSS[:1]]), jnp.concatenate([MASK, MASK[:1] & False])
    assert value(self.name, x, mask) == 1.5

  def test_equal_lengths_give_the_token_mean(self):
    x = jnp.array(RNG.normal(size=(4, 6)).astype(np.float32))
    mask = jnp.broadcast_to(jnp.arange(6)[None] < 4, (4, 6))
    np.testing.assert_allclose(value(self.name, x, mask), value('token_mean', x, mask), rtol=1e-6)


class TestTokenSumOverConstant(ModeTests):
  name = 'token_sum_over_constant'

  def test_card_value(self):
    np.testing.assert_allclose(value(self.name, LOSS, MASK), 7 / 3, rtol=1e-6)  # (1 + 6) / C, not divided by B


class TestTokenSumOverCapacity(ModeTests):
  name = 'token_sum_over_capacity'

  def test_card_value(self):
    np.testing.assert_allclose(value(self.name, LOSS, MASK), 7 / 6, rtol=1e-6)  # (1 + 6) / (2 * 3)


def test_every_mode_has_a_class():
  assert {c.name for c in ModeTests.__subclasses__()} == set(aggregation.AGGREGATIONS)
