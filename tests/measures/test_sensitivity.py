"""LR sensitivity and the largest stable rate: the published example, its limits, and runs that diverged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.measures import sensitivity

pytestmark = pytest.mark.usefixtures('strict_dtypes')
NAN = float('nan')
clamped_loss, lr_sensitivity, largest_stable_rate = (
  jax.jit(f) for f in (sensitivity.clamped_loss, sensitivity.lr_sensitivity, sensitivity.largest_stable_rate)
)
RATES = jnp.array([1e-3, 1e-2, 1e-1, 1.0])


class TestClampedLoss:
  def test_a_run_that_did_not_learn_counts_as_one(self):
    got = clamped_loss(jnp.array([[1.0, 7.0, NAN], [jnp.inf, -jnp.inf, 2.0]]), jnp.array([3.0, 4.0]))
    np.testing.assert_array_equal(got, [[1.0, 3.0, 3.0], [4.0, 4.0, 2.0]])


class TestLrSensitivity:
  def test_card(self):
    # (0 + 0 + .1 + .5 + .5) / 5
    got = lr_sensitivity(jnp.array([3.0, 3.0, 3.1, 3.5, NAN]), jnp.array(3.5))
    np.testing.assert_allclose(got, 0.22, rtol=1e-5)

  def test_zero_iff_equal(self):
    flat = jnp.full((2, 7), 2.5)
    np.testing.assert_array_equal(lr_sensitivity(flat, jnp.array([3.0, 3.0])), np.zeros(2))
    assert float(lr_sensitivity(flat[0].at[3].add(1e-3), jnp.array(3.0))) > 1e-4
    assert float(lr_sensitivity(jnp.full(7, NAN), jnp.array(3.0))) == 0.0

  def test_one_diverged_run_of_seven(self):
    loss = jnp.full(7, 1.0).at[6].set(NAN)
    np.testing.assert_allclose(lr_sensitivity(loss, jnp.array(3.5)), 2.5 / 7, rtol=1e-6)  # (l_0 - l*) / 7

  def test_a_row_a_seed(self):
    loss = np.random.default_rng(0).uniform(1, 5, (2, 3, 5)).astype(np.float32)
    initial = np.full((2, 3), 3.5, np.float32)
    got = lr_sensitivity(jnp.array(loss), jnp.array(initial))
    for index in np.ndindex(2, 3):
      clamped = [min(x, 3.5) for x in loss[index]]
      np.testing.assert_allclose(got[index], sum(x - min(clamped) for x in clamped) / 5, rtol=1e-5)

  def test_distance_from_a_common_best(self):
    # against 1.0: ((2 - 1) + (3 - 1)) / 2, against its own best: (0 + 1) / 2
    loss, initial = jnp.array([2.0, 3.0]), jnp.array(4.0)
    assert float(lr_sensitivity(loss, initial, best_x=jnp.array(1.0))) == 1.5
    assert float(lr_sensitivity(loss, initial)) == 0.5


class TestLargestStableRate:
  def rate(self, *loss: float, **kwargs) -> float:
    return float(largest_stable_rate(RATES, jnp.array(loss), jnp.array(3.0), **kwargs))

  def test_by_hand(self):
    # l* = 1, l_0 = 3: stable up to 1 + .5 * 2 = 2
    assert self.rate(1.2, 1.0, 1.9, 2.1) == pytest.approx(1e-1)
    assert self.rate(1.2, 1.0, 1.9, 2.0) == 1.0
    assert self.rate(1.2, 1.0, 1.9, NAN) == pytest.approx(1e-1)
    assert self.rate(1.2, 1.0, 1.9, 2.1, tolerance=0.4) == pytest.approx(1e-2)  # up to 1.8

  def test_slow_is_not_unstable_and_a_gap_ends_it(self):
    assert self.rate(2.9, 2.5, 1.0, NAN) == pytest.approx(1e-1)
    assert self.rate(1.0, NAN, 1.0, 1.0) == pytest.approx(1e-3)

  def test_none(self):
    assert self.rate(NAN, NAN, NAN, NAN) == 0.0
    assert self.rate(3.0, 5.0, 3.0, 4.0) == 0.0
    assert self.rate(2.8, 2.7, 2.9, NAN, best_x=jnp.array(1.0)) == 0.0

  def test_order_of_the_grid_and_seeds(self):
    loss = jnp.array([[1.2, 1.0, 1.9, 2.1], [1.0, NAN, 1.0, 1.0]])
    order = jnp.array([2, 0, 3, 1])
    got = largest_stable_rate(RATES[order], loss[:, order], jnp.array([3.0, 3.0]))
    np.testing.assert_allclose(got, [1e-1, 1e-3], rtol=1e-6)
