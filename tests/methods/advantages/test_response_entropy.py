"""EAR of ETTRL: the card's numbers for both forms, a loop over groups as oracle, sign flips and degenerate groups."""

import functools

import jax
import numpy as np
import pytest

from entropy_jax.methods import advantages
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')


@functools.cache
def compiled(name, **hyper):
  return jax.jit(functools.partial(getattr(advantages, name).function, **hyper))


def scale(entropy, **hyper):
  """Y of one group of responses of one token, read off A = 1."""
  H = np.asarray(entropy, np.float32)[:, None]
  value, metrics = compiled('ear_res', **hyper)(np.ones_like(H), H, np.zeros(len(H), np.int32), np.ones(H.shape, bool))
  return np.asarray(value)[:, 0], {k: float(v) for k, v in metrics.items()}


class TestEarRes:
  def test_card_values(self):
    np.testing.assert_allclose(scale([1.0, 2.0, 3.0])[0], [1.5, 1.0, 0.5], rtol=1e-6)
    # mean 1: 2 - .1 and 2 - 3.7, whose sign has turned
    value, metrics = scale([0.1, 0.1, 0.1, 3.7])
    np.testing.assert_allclose(value, [1.9, 1.9, 1.9, -1.7], rtol=1e-5)
    assert metrics['flipped_fraction'] == 0.25
    np.testing.assert_allclose(metrics['largest_scale'], 1.9, rtol=1e-5)

  def test_floor(self):
    value, metrics = scale([0.1, 0.1, 0.1, 3.7], floor=0.0)
    np.testing.assert_allclose(value, [1.9, 1.9, 1.9, 0.0], rtol=1e-5)
    assert metrics['flipped_fraction'] == 0.0

  def test_scale_has_mean_one(self):
    np.testing.assert_allclose(scale(np.random.default_rng(0).exponential(size=9))[0].mean(), 1.0, rtol=1e-6)

  def test_equal_or_no_entropy_is_the_base(self):
    np.testing.assert_allclose(scale([0.7, 0.7, 0.7])[0], 1.0, rtol=1e-6)
    np.testing.assert_array_equal(scale([0.0, 0.0, 0.0])[0], [1.0, 1.0, 1.0])
    np.testing.assert_array_equal(scale([0.3])[0], [1.0])

  def test_against_a_loop(self):
    batch = helpers.token_batch(seed=3, B=12, T=7)
    dirty = helpers.with_garbage(batch)
    mask = np.asarray(batch.mask_BxT).copy()
    mask[4] = False  # an empty response counts in no mean
    value, _ = compiled('ear_res')(dirty.advantage_BxT, dirty.old_entropy_BxT, dirty.group_B, mask)
    H = np.array([np.asarray(batch.old_entropy_BxT, np.float64)[b][mask[b]].mean() if mask[b].any() else np.nan for b in range(12)])
    group = np.asarray(batch.group_B)
    Y = np.array([2.0 - H[b] / np.nanmean(H[group == group[b]]) for b in range(12)])
    expected = np.where(mask, np.where(mask.any(1), Y, 0.0)[:, None] * np.asarray(batch.advantage_BxT), 0.0)
    np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-6)

  def test_bad_input(self):
    with pytest.raises(UserError, match=r'^ear_res: floor=2 is outside \(-inf, 1\]'):
      advantages.ear_res(floor=2)


class TestEarClip:
  def clip(self, advantage, **hyper):
    advantage = np.asarray(advantage, np.float32)
    return compiled('ear_clip', **hyper)(advantage, np.ones(advantage.shape, bool))

  def test_by_hand(self):
    value, metrics = self.clip([[3.0, -1.0, -2.5, 2.0]])
    np.testing.assert_array_equal(value, [[2.0, -1.0, -2.0, 2.0]])
    assert float(metrics['clipped_fraction']) == 0.5  # 2 is not outside [-2, 2]

  @pytest.mark.parametrize('share', [0.1, 0.19, 0.2, 0.5, 0.8, 0.81, 0.9])
  def test_acts_on_lopsided_votes_alone(self, share):
    # advantages of a vote with the population's deviation: sqrt((1 - p) / p) and -sqrt(p / (1 - p)); both 2 or less for p in [.2, .8]
    base = np.float32([[np.sqrt((1 - share) / share) - 1e-6, -np.sqrt(share / (1 - share)) + 1e-6]])
    value, _ = self.clip(base)
    assert np.any(np.asarray(value) != base) == (not 0.2 <= share <= 0.8)

  def test_infinite_bound_is_the_base_and_masked_slots_are_zero(self):
    base = np.float32([[30.0, np.nan]])
    value, _ = compiled('ear_clip', bound=np.inf)(base, np.array([[True, False]]))
    np.testing.assert_array_equal(value, [[30.0, 0.0]])

  def test_bad_input(self):
    with pytest.raises(UserError, match=r'^ear_clip: bound=0 is outside \(0, inf\]'):
      advantages.ear_clip(bound=0)
