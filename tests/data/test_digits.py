"""The digits and their split, on images made here and on scikit-learn's own."""

import hashlib

import numpy as np
import pytest

from entropy_jax.data import digits
from entropy_jax.data.digits import Digits
from entropy_jax.types import UserError


@pytest.fixture(scope='module')
def everything():
  return digits.read()


@pytest.fixture(scope='module')
def made():
  image_RxHxWxC = np.random.default_rng(0).integers(0, 17, (200, 8, 8, 1)).astype(np.uint8)
  image_RxHxWxC[150] = image_RxHxWxC[3]  # a copy
  return Digits(image_RxHxWxC, np.arange(200, dtype=np.int32))


class TestRead:
  def test_is_the_known_set(self, everything):
    assert (everything.image_RxHxWxC.shape, everything.image_RxHxWxC.dtype) == ((1797, 8, 8, 1), np.uint8)
    assert everything.image_RxHxWxC.max() == 16
    # The counts of the digits 0 to 9 that the set is described with.
    assert np.bincount(everything.label_R).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert everything.image_RxHxWxC[0, 0, :, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]  # the top of the first image, a zero
    assert everything.label_R[:3].tolist() == [0, 1, 2]


class TestPosition:
  def test_is_the_documented_hash(self):
    image_HxWxC = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    expected = int(hashlib.sha256(bytes(range(64))).hexdigest()[:16], 16) / 2**64
    assert digits.position(image_HxWxC) == expected


class TestSplit:
  def test_parts_are_disjoint_and_whole(self, made):
    train, test = digits.split(made, 'train'), digits.split(made, 'test')
    assert sorted([*train.label_R.tolist(), *test.label_R.tolist()]) == list(range(200))
    assert all(digits.position(image) <= 0.8 for image in train.image_RxHxWxC)
    assert all(digits.position(image) > 0.8 for image in test.image_RxHxWxC)

  def test_stands_in_the_order_of_the_hash_with_labels_of_their_own(self, made):
    train = digits.split(made, 'train')
    assert np.all(np.diff([digits.position(image) for image in train.image_RxHxWxC]) >= 0)
    np.testing.assert_array_equal(train.image_RxHxWxC, made.image_RxHxWxC[train.label_R])  # labels are rows here

  def test_copies_fall_together(self, made):
    assert any({3, 150} <= set(digits.split(made, name).label_R.tolist()) for name in ('train', 'test'))

  def test_sizes_of_the_real_set(self, everything):
    sizes = {name: digits.split(everything, name) for name in ('train', 'test')}
    # 20 % of 1,797 is 359, standard deviation 17.
    assert {name: len(part.label_R) for name, part in sizes.items()} == {'train': 1423, 'test': 374}
    assert np.bincount(sizes['test'].label_R).min() >= 27

  def test_unknown_split(self, made):
    with pytest.raises(UserError, match="split='dev'"):
      digits.split(made, 'dev')
