"""Bags whose positive instances are of several kinds, one kind a bag: in training mostly of the first kind, in a test of all alike.

A learner that attends to the instances it recognises first knows one kind, and pays for it where the others are as frequent.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from entropy_jax.data.bags import Bags, digit_bags
from entropy_jax.types import UserError

_OF_KIND = 2**63  # streams of the kinds, apart from those of the bags


class InstanceBags(NamedTuple):
  """B bags of at most K instances of F numbers each; is_target, the instances that make a bag positive, is not for the learner."""

  instances_BxKxF: Any
  mask_BxK: Any
  is_target_BxK: Any
  label_B: Any


def with_images(bags: Bags, image_RxHxWxC: np.ndarray) -> InstanceBags:
  """The bags with their images, flat, in the type of the images; 0 where mask is False."""
  fields = bags.examples(image_RxHxWxC).fields
  shown = fields['image_BxNxHxWxC']
  return InstanceBags(shown.reshape(*shown.shape[:2], -1), fields['mask_BxN'], fields['is_target_BxN'], fields['label_B'])


def _check_share(first_share: float) -> None:
  if not 0.0 <= first_share <= 1.0:
    raise UserError(f'first_share={first_share}: must be in [0, 1]; give a share of the bags.')


def kind_of_bags(num_bags: int, *, seed: int, num_kinds: int, first_share: float) -> np.ndarray:
  """The kind of every bag, int64 [R]: the first with probability first_share, otherwise any of them, each as likely.

  The kind of bag i depends on the seed and i alone.
  """
  _check_share(first_share)
  kinds = np.zeros(num_bags, np.int64)
  for i in range(num_bags):
    key = np.array([seed, _OF_KIND + i], np.uint64)  # a list of numbers as large as these would be rounded
    raw = np.random.Philox(key=key).random_raw(2)  # this stream is the same in every numpy
    if float(raw[0] >> np.uint64(11)) / 2.0**53 >= first_share:
      kinds[i] = int(raw[1] % np.uint64(num_kinds))
  return kinds


def digit_kind_bags(
  label_R: np.ndarray, *, kinds: Sequence[int], num_bags: int, seed: int, first_share: float = 0.0, **settings: Any
) -> Bags:
  """`digit_bags` of which every positive one has targets of one of the kinds; no bag holds any of the other kinds.

  Args:
    label_R: the digit of every image that instances are drawn from.
    kinds: the digits that make a bag positive, the first one the most frequent.
    num_bags, seed, settings: as of `digit_bags`, where settings are sizes and shares.
    first_share: of `kind_of_bags`; 0 for all kinds alike.

  Returns:
    The bags; bag i depends on the seed and i alone.
  """
  if not kinds or len(set(kinds)) < len(kinds):
    raise UserError(f'kinds={tuple(kinds)}: must be different digits, at least one; give such digits.')
  label_R = np.asarray(label_R)
  found = []
  for target in kinds:
    (kept,) = np.nonzero((label_R == target) | ~np.isin(label_R, kinds))
    bags = digit_bags(label_R[kept], num_bags=num_bags, seed=seed, target=target, **settings)
    found.append(dataclasses.replace(bags, row_RxN=np.where(bags.mask_RxN, kept[bags.row_RxN], 0).astype(np.int32)))
  kind_R = kind_of_bags(num_bags, seed=seed, num_kinds=len(kinds), first_share=first_share)
  chosen = lambda name: np.stack([getattr(bags, name) for bags in found])[kind_R, np.arange(num_bags)]
  return Bags(chosen('row_RxN'), chosen('mask_RxN'), chosen('is_target_RxN'), chosen('label_R'))


def gaussian_bags(
  *,
  num_bags: int,
  seed: int,
  size: int = 200,
  num_features: int = 16,
  min_targets: int = 10,
  max_targets: int = 20,
  shift: float = 3.0,
  num_kinds: int = 4,
  first_share: float = 0.0,
) -> InstanceBags:
  """Bags of instances from N(0, I); every second bag is positive: its targets are shifted along one of the first coordinates.

  Args:
    num_bags: B; bag 0 is negative, bag 1 positive and so on.
    seed: of the bags, in 0..2^63 - 1; bag i depends on it and i alone.
    size: K, instances of every bag.
    num_features: F.
    min_targets, max_targets: the number of targets of a positive bag is uniform in between; they stand first, which no learner that takes
      instances one by one can tell.
    shift: length of the shift.
    num_kinds: coordinates that it may be along, one a bag.
    first_share: of `kind_of_bags`; 0 for all coordinates alike.

  Returns:
    InstanceBags, float32.
  """
  if not 1 <= min_targets <= max_targets <= size:
    given = f'min_targets={min_targets}, max_targets={max_targets}'
    raise UserError(f'{given}: must be 1 <= min_targets <= max_targets <= {size}, the size of a bag; give such numbers.')
  if not 1 <= num_kinds <= num_features:
    raise UserError(f'num_kinds={num_kinds}: must be in 1..{num_features}, the features of an instance; give such a number.')
  kind_B = kind_of_bags(num_bags, seed=seed, num_kinds=num_kinds, first_share=first_share)
  label_B = np.arange(num_bags, dtype=np.int32) % 2
  instances = np.zeros((num_bags, size, num_features), np.float32)
  is_target = np.zeros((num_bags, size), bool)
  for i in range(num_bags):
    raw = np.random.Philox(key=np.array([seed, i], np.uint64)).random_raw(1 + 2 * size * num_features)
    number = (min_targets + int(raw[0] % np.uint64(max_targets - min_targets + 1))) * int(label_B[i])
    instances[i] = _normal(raw[1:]).reshape(size, num_features)
    is_target[i, :number] = True
    instances[i, :number, kind_B[i]] += shift
  return InstanceBags(instances, np.ones((num_bags, size), bool), is_target, label_B)


def _normal(raw_2N: np.ndarray) -> np.ndarray:
  """N standard normal numbers from twice as many random words, by Box and Muller."""
  uniform_2xN = ((raw_2N >> np.uint64(11)) + np.uint64(1)).astype(np.float64).reshape(2, -1) / 2.0**53  # in (0, 1]
  return np.sqrt(-2.0 * np.log(uniform_2xN[0])) * np.cos(2.0 * np.pi * uniform_2xN[1])
