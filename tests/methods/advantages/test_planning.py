"""HICRA: the card's numbers, the sum that is no longer centred, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.methods import advantages
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

jitted = jax.jit(advantages.hicra.function, static_argnames='amplify')


def hicra(advantage, planning, entropy=None, mask=None, amplify=0.2):
  advantage = np.asarray(advantage, np.float32)
  entropy = np.ones_like(advantage) if entropy is None else np.asarray(entropy, np.float32)
  mask = np.ones(advantage.shape, bool) if mask is None else mask
  value, metrics = jitted(advantage, np.asarray(planning, np.int32), entropy, mask, amplify=amplify)
  return np.asarray(value), {k: float(v) for k, v in metrics.items()}


class TestHicra:
  def test_card_values(self):
    # .5 + .2 * .5, -.5 + .2 * .5, 0
    np.testing.assert_allclose(hicra([[0.5, -0.5, 0.0]], [[1, 2, 1]])[0], [[0.6, -0.4, 0.0]], rtol=1e-6)

  def test_execution_tokens_are_unchanged(self):
    np.testing.assert_array_equal(hicra([[0.5, -0.5, 0.5]], [[0, 0, 4]])[0][0, :2], np.float32([0.5, -0.5]))

  def test_without_amplification_or_planning_it_is_the_base(self):
    base = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_array_equal(hicra(base, np.ones((3, 4)), amplify=0.0)[0], base)
    np.testing.assert_array_equal(hicra(base, np.zeros((3, 4)))[0], base)

  def test_at_one_planning_learns_nothing_from_failure(self):
    np.testing.assert_array_equal(hicra([[0.5, -0.5]], [[1, 1]], amplify=1.0)[0], [[1.0, 0.0]])

  def test_group_is_not_centred(self):
    # one planning token in each of four responses with A = (.75, -.25, -.25, -.25): the sum is .2 * 1.5
    value, _ = hicra([[0.75], [-0.25], [-0.25], [-0.25]], np.ones((4, 1)))
    np.testing.assert_allclose(value.sum(), 0.2 * 1.5, rtol=1e-5)

  def test_metrics_tell_planning_from_execution(self):
    mask = np.array([[True, True, True, False]])
    _, metrics = hicra([[1.0] * 4], [[1, 0, 0, 1]], [[3.0, 1.0, 2.0, np.nan]], mask)
    np.testing.assert_allclose(metrics['planning_fraction'], 1 / 3, rtol=1e-6)
    assert metrics['planning_entropy'] == 3.0 and metrics['execution_entropy'] == 1.5

  def test_garbage_where_masked(self):
    batch = helpers.token_batch()
    clean = jitted(batch.advantage_BxT, batch.planning_BxT, batch.old_entropy_BxT, batch.mask_BxT)
    dirty = helpers.with_garbage(batch)
    found = jitted(dirty.advantage_BxT, dirty.planning_BxT, dirty.old_entropy_BxT, dirty.mask_BxT)
    jax.tree.map(np.testing.assert_array_equal, clean, found)
    planning = np.asarray(batch.mask_BxT & (batch.planning_BxT > 0))
    A = np.asarray(jnp.where(batch.mask_BxT, batch.advantage_BxT, 0.0))
    np.testing.assert_allclose(clean[0], A * np.where(planning, np.where(A > 0, 1.2, 0.8), 1.0), rtol=1e-6)

  def test_bad_input(self):
    with pytest.raises(UserError, match=r'^hicra: amplify=-0.1 is outside'):
      advantages.hicra(amplify=-0.1)
