"""Cosine curricula: the card's table, and their sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.ops import schedules

pytestmark = pytest.mark.usefixtures('strict_dtypes')

STEPS = jnp.array([0, 50, 100, 150, 200, 201, 5000])


class TestRise:
  def test_card_table(self):
    found = jax.vmap(lambda t: schedules.rise(t, 200.0))(STEPS)
    np.testing.assert_allclose(found, [0.0, 0.146447, 0.5, 0.853553, 1.0, 1.0, 1.0], atol=1e-6)


class TestFall:
  def test_card_table(self):
    found = jax.vmap(lambda t: schedules.fall(t, 200.0))(STEPS)
    np.testing.assert_allclose(found, [1.0, 0.853553, 0.5, 0.146447, 0.0, 0.0, 0.0], atol=1e-6)

  def test_rise_and_fall_of_the_same_length_sum_to_one(self):
    assert [float(schedules.rise(t, 7.0) + schedules.fall(t, 7.0)) for t in STEPS] == [1.0] * 7
