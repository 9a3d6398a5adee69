"""Bags of digits: what they hold, how often, and that a bag depends on its seed and number alone."""

import numpy as np
import pytest

from entropy_jax.data import bags
from entropy_jax.types import UserError

LABEL_R = np.arange(60) % 10  # 6 images of each digit
IMAGE_RxHxWxC = (1 + np.arange(60, dtype=np.float32))[:, None, None, None] * np.ones((1, 2, 2, 1), np.float32)


def make(label_R=LABEL_R, **arguments):
  return bags.digit_bags(label_R, **({'num_bags': 50, 'seed': 0} | arguments))


class TestDigitBags:
  def test_label_says_whether_there_is_a_target(self):
    found = make(target=3, min_size=4, max_size=9, max_targets=3)
    for b in range(50):
      digits = LABEL_R[found.row_RxN[b][found.mask_RxN[b]]]
      assert found.label_R[b] == int(3 in digits)
      assert (LABEL_R[found.row_RxN[b]] == 3)[found.is_target_RxN[b]].all()
      assert found.is_target_RxN[b].sum() == (digits == 3).sum()
      assert (digits == 3).sum() in ((1, 2, 3) if found.label_R[b] else (0,))

  def test_labels_are_spread_evenly(self):
    assert make(num_bags=6).label_R.tolist() == [0, 1, 0, 1, 0, 1]
    # floor(i / 3) grows at i = 3 and 6.
    assert make(num_bags=6, positive_fraction=1 / 3).label_R.tolist() == [0, 0, 1, 0, 0, 1]
    assert make(num_bags=3, positive_fraction=1.0).label_R.tolist() == [1, 1, 1]
    assert make(num_bags=3, positive_fraction=0.0).label_R.tolist() == [0, 0, 0]

  def test_sizes_and_padding(self):
    found = make(num_bags=300, min_size=4, max_size=6)
    size_R = found.mask_RxN.sum(axis=1)
    # 100 of each size expected; chi-square with 2 degrees of freedom: 13.8 is exceeded with probability 0.001.
    assert (((np.bincount(size_R)[4:] - 100) ** 2) / 100).sum() < 13.8
    assert found.row_RxN.shape == (300, 6)
    assert not found.row_RxN[~found.mask_RxN].any()
    assert not found.is_target_RxN[~found.mask_RxN].any()
    np.testing.assert_array_equal(found.mask_RxN, np.arange(6)[None, :] < size_R[:, None])

  def test_no_image_is_twice_in_a_bag(self):
    found = make(max_size=30, min_size=30, max_targets=6)
    assert all(len(set(row.tolist())) == 30 for row in found.row_RxN)

  def test_every_place_and_image_is_equally_likely(self):
    found = make(num_bags=600, min_size=5, max_size=5, positive_fraction=1.0)
    place = np.argmax(found.is_target_RxN, axis=1)
    # 120 expected at each of 5 places; chi-square with 4 degrees of freedom: 18.5 is exceeded with probability 0.001.
    assert (((np.bincount(place, minlength=5) - 120) ** 2) / 120).sum() < 18.5
    image = found.row_RxN[found.is_target_RxN]
    # 100 expected of each of the 6 nines; 5 degrees of freedom: 20.5.
    assert (((np.bincount(image, minlength=60)[9::10] - 100) ** 2) / 100).sum() < 20.5

  def test_a_bag_depends_on_seed_and_number_alone(self):
    many, few, other = make(), make(num_bags=7), make(seed=1)
    np.testing.assert_array_equal(few.row_RxN, many.row_RxN[:7])
    assert (other.row_RxN != many.row_RxN).any()

  def test_is_the_same_in_every_version(self):
    # The raw stream of Philox is pinned by numpy; these values were computed once with numpy 2.4.
    assert make(num_bags=2, min_size=3, max_size=5, seed=7).row_RxN.tolist() == [[6, 35, 32, 0, 0], [10, 26, 19, 52, 42]]

  @pytest.mark.parametrize(
    ('arguments', 'message'),
    [
      ({'num_bags': 0}, 'num_bags=0'),
      ({'seed': -1}, 'seed=-1'),
      ({'min_size': 0}, 'min_size=0'),
      ({'min_size': 8, 'max_size': 7}, 'min_size=8, max_size=7'),
      ({'max_size': 55}, r'max_size=55: must be 1 <= min_size <= max_size <= 54'),
      ({'min_targets': 0}, 'min_targets=0'),
      ({'max_targets': 7}, r'max_targets=7: must be 1 <= min_targets <= max_targets <= 6'),
      ({'max_targets': 3, 'min_size': 2}, 'max_targets=3'),
      ({'target': 11}, 'images of 11 allow'),
      ({'positive_fraction': 1.5}, 'positive_fraction=1.5'),
    ],
  )
  def test_refuses(self, arguments, message):
    with pytest.raises(UserError, match=message):
      make(**arguments)


class TestBagsExamples:
  def test_instances_are_the_images_named(self):
    found = make(num_bags=20, min_size=2, max_size=4)
    rows = found.examples(IMAGE_RxHxWxC)
    assert {name: array.shape for name, array in rows.fields.items()} == {
      'image_BxNxHxWxC': (20, 4, 2, 2, 1),
      'mask_BxN': (20, 4),
      'is_target_BxN': (20, 4),
      'label_B': (20,),
    }
    shown = rows.fields['image_BxNxHxWxC'][..., 0, 0, 0]
    np.testing.assert_array_equal(shown[found.mask_RxN], 1 + found.row_RxN[found.mask_RxN])
    assert not shown[~found.mask_RxN].any()  # image 0 is not zero, but padding is
    assert rows.fields['image_BxNxHxWxC'].dtype == np.float32
