"""PSHW: the card's numbers, a loop, and its limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.methods import advantages
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

BATCH = helpers.token_batch(seed=3, B=24)


@functools.cache
def compiled(hyper):
  return jax.jit(functools.partial(advantages.pshw.function, **dict(hyper)))


def pshw(return_B, group_B=None, **hyper):
  group_B = np.zeros(len(return_B), np.int32) if group_B is None else group_B
  a, metrics = compiled(tuple(hyper.items()))(jnp.asarray(return_B, jnp.float32), jnp.asarray(group_B))
  return np.asarray(a), float(metrics['mean_weight'])


class TestPshw:
  @pytest.mark.parametrize(
    ('num_right', 'weight', 'expected'),
    [
      (1, 1.448, (2.534, -0.362)),  # mu = -.75: 1.256 + .192; 1.75 1.448 and -.25 1.448
      (4, 1.256, (1.256, -1.256)),  # mu = 0
      (6, 1.128, (0.564, -1.692)),  # mu = .5: 1.256 - .128; .5 1.128 and -1.5 1.128
    ],
  )
  @pytest.mark.parametrize('failure', [-1.0, 0.0])
  def test_card_values(self, num_right, weight, expected, failure):
    a, mean_weight = pshw([1.0] * num_right + [failure] * (8 - num_right), failure=failure)
    np.testing.assert_allclose([a[0], a[-1]], expected, rtol=1e-5)
    np.testing.assert_allclose(mean_weight, weight, rtol=1e-5)
    assert abs(a.sum()) < 1e-5

  def test_weight_at_both_ends(self):
    assert pshw(np.ones(4))[1] == 1.0
    np.testing.assert_allclose(pshw(np.zeros(4))[1], 1.512, rtol=1e-6)

  def test_loop(self):
    reward, group = np.asarray(BATCH.reward_B, np.float64), np.asarray(BATCH.group_B)
    actual, _ = pshw(reward, group, failure=-2.0, success=3.0, slope=0.4)
    signed = (reward - 0.5) / 2.5
    for i, prompt in enumerate(group):
      values = signed[prompt == group]
      expected = signed[i] if len(values) == 1 else (signed[i] - values.mean()) * (1.4 - 0.4 * values.mean())
      np.testing.assert_allclose(actual[i], expected, rtol=1e-4, atol=1e-5)

  def test_no_slope_is_dr_grpo(self):
    reward, group = np.asarray(BATCH.reward_B), np.asarray(BATCH.group_B)
    expected = jax.jit(advantages.dr_grpo.function)(jnp.array(reward), jnp.array(group))
    np.testing.assert_allclose(pshw(reward, group, slope=0.0, failure=-1.0)[0], expected, rtol=1e-5, atol=1e-6)

  @pytest.mark.parametrize('value', [0.0, 0.1, 1.0])
  def test_equal_rewards_are_exactly_zero(self, value):
    np.testing.assert_array_equal(pshw(np.full(7, value))[0], np.zeros(7))

  def test_bad_hyper_parameters(self):
    with pytest.raises(UserError, match='failure=1 and success=1 are the same'):
      advantages.pshw(failure=1.0)
    with pytest.raises(UserError, match=r'slope=-1 is outside \[0, inf\)'):
      advantages.pshw(slope=-1)
