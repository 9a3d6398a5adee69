"""Handwritten digits of scikit-learn: 1,797 images of 8 x 8 pixels with 17 levels of grey, small enough for a study of minutes.

They come with the package, so nothing is fetched. An image falls into a split by a hash of its pixels, so equal images fall together, and
the images of a split stand in the order of the hash, so a slice of a split is a random sample of it.
"""

import hashlib
from typing import NamedTuple

import numpy as np

from entropy_jax.types import UserError

NUM_CLASSES = 10
MAX_LEVEL = 16  # a pixel counts the dark ones among 4 x 4 of the scan
# Upper end of each split's share of the hash range: 80 % and 20 %.
SPLIT_ENDS = {'train': 0.8, 'test': 1.0}


class Digits(NamedTuple):
  """R images (uint8 [R, 8, 8, 1] in 0..16) and their labels (int32 [R] in 0..9)."""

  image_RxHxWxC: np.ndarray
  label_R: np.ndarray


def read() -> Digits:
  """All images, in the order of scikit-learn."""
  from sklearn.datasets import load_digits  # here because it takes a second and only the first preparation needs it

  found = load_digits()
  return Digits(found.images.astype(np.uint8)[..., None], found.target.astype(np.int32))


def position(image_HxWxC: np.ndarray) -> float:
  """Where an image stands in the hash range, in [0, 1]: SHA-256 of its levels in row order, as a fraction of 2^64."""
  return int.from_bytes(hashlib.sha256(np.ascontiguousarray(image_HxWxC, np.uint8).tobytes()).digest()[:8], 'big') / 2.0**64


def split(digits: Digits, name: str) -> Digits:
  """The images of one split, 'train' or 'test', in the order of their hash."""
  if name not in SPLIT_ENDS:
    raise UserError(f'split={name!r}: is not a split; use one of {", ".join(SPLIT_ENDS)}.')
  position_R = np.array([position(image) for image in digits.image_RxHxWxC])
  start = max([end for end in SPLIT_ENDS.values() if end < SPLIT_ENDS[name]], default=-1.0)
  order_R = np.argsort(position_R, kind='stable')
  chosen_R = order_R[(position_R[order_R] > start) & (position_R[order_R] <= SPLIT_ENDS[name])]
  return Digits(digits.image_RxHxWxC[chosen_R], digits.label_R[chosen_R])
