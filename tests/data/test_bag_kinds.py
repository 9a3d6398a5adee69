"""Bags of several kinds: what is in them, how often each kind is, that a bag depends on its seed and number alone."""

import numpy as np
import pytest
import scipy.stats

from entropy_jax.data import bag_kinds
from entropy_jax.data.bags import digit_bags
from entropy_jax.types import UserError

LABELS = np.random.default_rng(0).integers(0, 10, 400)
SIZES = {'min_size': 4, 'max_size': 7, 'min_targets': 1, 'max_targets': 3}


class TestKindOfBags:
  def test_shares(self):
    # Of the first .7 + .3 / 4 = .775; four standard errors of 4,000 draws are .026.
    kinds = bag_kinds.kind_of_bags(4000, seed=3, num_kinds=4, first_share=0.7)
    share = np.bincount(kinds, minlength=4) / 4000
    assert abs(share[0] - 0.775) < 0.026 and np.all(np.abs(share[1:] - 0.075) < 0.017)
    np.testing.assert_array_equal(bag_kinds.kind_of_bags(50, seed=3, num_kinds=4, first_share=0.7), kinds[:50])
    assert set(bag_kinds.kind_of_bags(50, seed=3, num_kinds=4, first_share=1.0)) == {0}
    assert set(bag_kinds.kind_of_bags(50, seed=2**63 - 1, num_kinds=4, first_share=0.0)) == {0, 1, 2, 3}

  def test_refuses(self):
    with pytest.raises(UserError, match=r'first_share=1.5: must be in \[0, 1\]'):
      bag_kinds.kind_of_bags(2, seed=0, num_kinds=2, first_share=1.5)


class TestDigitKindBags:
  def test_one_kind_is_digit_bags(self):
    got = bag_kinds.digit_kind_bags(LABELS, kinds=(9,), num_bags=6, seed=5, **SIZES)
    want = digit_bags(LABELS, num_bags=6, seed=5, target=9, **SIZES)
    for name in ('row_RxN', 'mask_RxN', 'is_target_RxN', 'label_R'):
      np.testing.assert_array_equal(getattr(got, name), getattr(want, name))

  def test_what_bags_hold(self):
    kinds = (3, 7, 1)
    bags = bag_kinds.digit_kind_bags(LABELS, kinds=kinds, num_bags=30, seed=0, first_share=0.4, **SIZES)
    of_bag = bag_kinds.kind_of_bags(30, seed=0, num_kinds=3, first_share=0.4)
    digit = LABELS[bags.row_RxN]
    for i in range(30):
      targets = digit[i, bags.is_target_RxN[i]]
      assert set(targets) == ({kinds[of_bag[i]]} if i % 2 else set()) and bags.label_R[i] == i % 2
      assert not np.isin(digit[i, bags.mask_RxN[i] & ~bags.is_target_RxN[i]], kinds).any()
      assert len(set(bags.row_RxN[i, bags.mask_RxN[i]])) == bags.mask_RxN[i].sum()
    fewer = bag_kinds.digit_kind_bags(LABELS, kinds=kinds, num_bags=8, seed=0, first_share=0.4, **SIZES)
    np.testing.assert_array_equal(fewer.row_RxN, bags.row_RxN[:8])

  @pytest.mark.parametrize('kinds', [(), (3, 3)])
  def test_refuses(self, kinds):
    with pytest.raises(UserError, match='must be different digits, at least one'):
      bag_kinds.digit_kind_bags(LABELS, kinds=kinds, num_bags=2, seed=0)


class TestWithImages:
  def test_rows_are_images(self):
    images = np.arange(400 * 4, dtype=np.uint8).reshape(400, 2, 2, 1)
    bags = bag_kinds.digit_kind_bags(LABELS, kinds=(9,), num_bags=4, seed=0, **SIZES)
    found = bag_kinds.with_images(bags, images)
    assert found.instances_BxKxF.shape == (4, 7, 4)
    np.testing.assert_array_equal(found.instances_BxKxF[bags.mask_RxN], images[bags.row_RxN[bags.mask_RxN]].reshape(-1, 4))
    assert not found.instances_BxKxF[~bags.mask_RxN].any()
    np.testing.assert_array_equal(found.is_target_BxK, bags.is_target_RxN)


class TestGaussianBags:
  def test_targets_are_shifted_and_all_else_is_normal(self):
    bags = bag_kinds.gaussian_bags(num_bags=60, seed=1, first_share=0.5)
    kinds = bag_kinds.kind_of_bags(60, seed=1, num_kinds=4, first_share=0.5)
    noise = bags.instances_BxKxF.copy()
    for i in range(60):
      number = bags.is_target_BxK[i].sum()
      assert (10 <= number <= 20) if i % 2 else number == 0
      noise[i, bags.is_target_BxK[i], kinds[i]] -= 3.0
    assert scipy.stats.kstest(noise.reshape(-1), 'norm').pvalue > 0.01 and noise.dtype == np.float32
    assert abs(np.corrcoef(noise.reshape(-1, 16).T) - np.eye(16)).max() < 0.05
    assert {int(x.sum()) for x in bags.is_target_BxK[1::2]} > {10, 20} and bags.mask_BxK.all()
    np.testing.assert_array_equal(bag_kinds.gaussian_bags(num_bags=3, seed=1, first_share=0.5).instances_BxKxF, bags.instances_BxKxF[:3])

  @pytest.mark.parametrize(
    ('changed', 'sentence'),
    [({'min_targets': 30}, 'must be 1 <= min_targets <= max_targets <= 200'), ({'num_kinds': 17}, r'num_kinds=17: must be in 1..16')],
  )
  def test_refuses(self, changed, sentence):
    with pytest.raises(UserError, match=sentence):
      bag_kinds.gaussian_bags(num_bags=2, seed=0, **changed)
