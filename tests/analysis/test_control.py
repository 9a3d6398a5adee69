"""Tests of entropy_jax.analysis.control: every measure on curves whose values are counted by hand."""

import numpy as np
import pytest

from entropy_jax.analysis import control
from entropy_jax.types import UserError

# From 2 down through the target 1, once below it, and back into a band of .1.
CURVE = np.array([[2.0, 1.4, 0.7, 0.95, 1.05, 1.1]])


class TestTrackingError:
  def test_window_alone_counts(self):
    # |.95 - 1|, |1.05 - 1|, |1.1 - 1| = .05, .05, .1, mean .2 / 3.
    np.testing.assert_allclose(control.tracking_error(CURVE, 1.0, start=3), [0.2 / 3])

  def test_one_value_a_seed_and_zero_on_the_target(self):
    curves = np.stack([np.full(5, 0.7), np.full(5, 0.9)])
    np.testing.assert_allclose(control.tracking_error(curves, 0.7, start=0), [0.0, 0.2])

  @pytest.mark.parametrize('start', [-1, 6, 7])
  def test_window_without_a_rollout(self, start):
    with pytest.raises(UserError, match=f'settle_by={start} leaves nothing of 6 rollouts; give less than 6'):
      control.tracking_error(CURVE, 1.0, start=start)


class TestShortfall:
  def test_only_below_counts(self):
    # .3, .05, 0, 0 over four rollouts.
    np.testing.assert_allclose(control.shortfall(CURVE, 1.0, start=2), [0.35 / 4])

  def test_with_the_excess_it_is_the_error(self):
    curves = np.random.default_rng(0).normal(1.0, 0.3, (4, 50))
    excess = np.mean(np.maximum(0.0, curves - 1.0), axis=1)
    np.testing.assert_allclose(control.shortfall(curves, 1.0, start=0) + excess, control.tracking_error(curves, 1.0, start=0))


class TestSettlingTime:
  def test_counts_from_the_last_time_outside(self):
    # .7 at rollout 2 is the last one outside of 1 +- .11.
    np.testing.assert_array_equal(control.settling_time(CURVE, 1.0, band=0.11), [3.0])

  def test_ends_of_the_range(self):
    curves = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 2.0], [2.0, 2.0, 1.0]])
    np.testing.assert_array_equal(control.settling_time(curves, 1.0, band=0.1), [0.0, np.nan, 2.0])

  def test_against_a_loop(self):
    curves = np.random.default_rng(1).normal(1.0, 0.1, (20, 12))
    slow = []
    for curve in curves:
      starts = [n for n in range(12) if all(abs(x - 1.0) <= 0.15 for x in curve[n:])]
      slow.append(min(starts) if starts else np.nan)
    np.testing.assert_array_equal(control.settling_time(curves, 1.0, band=0.15), slow)


class TestOvershoot:
  def test_is_seen_from_the_start(self):
    # From above: the lowest point is .7, .3 beyond. The same curve mirrored about the target overshoots as much from below.
    np.testing.assert_allclose(control.overshoot(CURVE, 1.0), [0.3])
    np.testing.assert_allclose(control.overshoot(2.0 - CURVE, 1.0), [0.3])

  def test_never_reached_and_started_on_the_target(self):
    np.testing.assert_array_equal(control.overshoot(np.array([[2.0, 1.5, 1.2], [1.0, 1.4, 0.7]]), 1.0), [0.0, 0.0])


class TestFinal:
  def test_mean_and_spread_of_the_last_share(self):
    curve = np.array([[9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 1.0, 2.0]])
    np.testing.assert_allclose(control.final_mean(curve), [1.5])
    np.testing.assert_allclose(control.final_spread(curve), [0.5])

  def test_at_least_one(self):
    np.testing.assert_array_equal(control.final_mean(np.array([[5.0, 7.0]])), [7.0])


class TestChoose:
  # 2 settings, 2 targets, 2 seeds: means over seeds (.1, .8) and (.3, .2), over targets too .45 and .25.
  ERROR = np.array([[[0.0, 0.2], [0.7, 0.9]], [[0.3, 0.3], [0.1, 0.3]]])

  def test_over_targets_and_for_each(self):
    np.testing.assert_array_equal(control.choose(self.ERROR), [1, 1])
    np.testing.assert_array_equal(control.choose(self.ERROR, each_target=True), [0, 1])

  def test_first_of_equals_and_never_one_that_broke(self):
    np.testing.assert_array_equal(control.choose(np.ones((3, 2, 2))), [0, 0])
    broken = self.ERROR.copy()
    broken[1, 0, 0] = np.nan
    np.testing.assert_array_equal(control.choose(broken), [0, 0])
