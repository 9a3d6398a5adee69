"""Multiple-instance bags of digits: a bag is positive iff it holds a target digit, and only the bag's label is given to the learner.

Which instances are targets is known, so a study can say where attention lies. A bag names its instances by their rows in an array of
images; bags over the images of different splits share no image. Bag i depends on the seed and i alone.
"""

import dataclasses

import numpy as np

from entropy_jax.data.examples import Examples
from entropy_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Bags:
  """R bags of at most N instances.

  Attributes:
    row_RxN: int32, row of every instance in the array of images; 0 where mask is False.
    mask_RxN: bool, True at instances.
    is_target_RxN: bool, True at instances of the target digit.
    label_R: int32, 1 iff the bag holds a target.
  """

  row_RxN: np.ndarray
  mask_RxN: np.ndarray
  is_target_RxN: np.ndarray
  label_R: np.ndarray

  def examples(self, image_RxHxWxC: np.ndarray) -> Examples:
    """The bags with their instances, one field each: image_BxNxHxWxC (zero where mask is False), mask_BxN, is_target_BxN, label_B."""
    shown_RxNx1x1x1 = self.mask_RxN[:, :, None, None, None]
    instances = np.where(shown_RxNx1x1x1, image_RxHxWxC[self.row_RxN], np.zeros((), image_RxHxWxC.dtype))
    fields = {'image_BxNxHxWxC': instances, 'mask_BxN': self.mask_RxN, 'is_target_BxN': self.is_target_RxN, 'label_B': self.label_R}
    return Examples(fields)


def digit_bags(
  label_R: np.ndarray,
  *,
  num_bags: int,
  seed: int,
  target: int = 9,
  min_size: int = 10,
  max_size: int = 10,
  min_targets: int = 1,
  max_targets: int = 1,
  positive_fraction: float = 0.5,
) -> Bags:
  """Bags of the images that label_R (int [R], one split) describes.

  A bag's size is uniform in min_size..max_size. A positive bag holds a number of targets uniform in min_targets..max_targets; the rest of
  it and all of a negative bag are other digits. No image is twice in a bag, and every order of the instances is equally likely. Positive
  bags are spread evenly: of the first i bags, floor(i positive_fraction) are positive.

  Args:
    label_R: the digit of every image that instances are drawn from.
    num_bags: how many bags; the first of them are the same for every number.
    seed: of the bags, in 0..2^63 - 1.
    target: the digit that makes a bag positive.
    min_size, max_size: instances in a bag.
    min_targets, max_targets: targets in a positive bag, at least 1 and at most min_size.
    positive_fraction: share of positive bags, in [0, 1].

  Returns:
    The bags, N = max_size.
  """
  is_target_R = np.asarray(label_R) == target
  target_rows, other_rows = np.flatnonzero(is_target_R), np.flatnonzero(~is_target_R)
  if num_bags < 1:
    raise UserError(f'num_bags={num_bags}: must be at least 1; give a positive integer.')
  if not 0 <= seed < 2**63:
    raise UserError(f'seed={seed}: must be in 0..2^63 - 1; give a non-negative integer.')
  if not 1 <= min_size <= max_size <= len(other_rows):
    given = f'min_size={min_size}, max_size={max_size}'
    raise UserError(f'{given}: must be 1 <= min_size <= max_size <= {len(other_rows)}, the images without the target; give such sizes.')
  allowed = min(min_size, len(target_rows))
  if not 1 <= min_targets <= max_targets <= allowed:
    given = f'min_targets={min_targets}, max_targets={max_targets}'
    why = f'what the smallest bag and the images of {target} allow'
    raise UserError(f'{given}: must be 1 <= min_targets <= max_targets <= {allowed}, {why}; give such numbers.')
  if not 0.0 <= positive_fraction <= 1.0:
    raise UserError(f'positive_fraction={positive_fraction}: must be in [0, 1]; give a share of the bags.')
  row_RxN = np.zeros((num_bags, max_size), np.int32)
  mask_RxN = np.zeros((num_bags, max_size), bool)
  for i in range(num_bags):
    positive = int((i + 1) * positive_fraction) > int(i * positive_fraction)
    raw = np.random.Philox(key=[seed, i]).random_raw(2 + len(is_target_R) + max_size)  # this stream is the same in every numpy
    size = min_size + int(raw[0] % np.uint64(max_size - min_size + 1))
    num_targets = (min_targets + int(raw[1] % np.uint64(max_targets - min_targets + 1))) * positive
    of_image, of_place = raw[2 : 2 + len(is_target_R)], raw[2 + len(is_target_R) :][:size]
    # The images with the smallest numbers are a sample without replacement.
    chosen = [*_smallest(target_rows, of_image, num_targets), *_smallest(other_rows, of_image, size - num_targets)]
    row_RxN[i, :size] = np.asarray(chosen)[np.argsort(of_place, kind='stable')]
    mask_RxN[i, :size] = True
  target_RxN = mask_RxN & is_target_R[row_RxN]
  return Bags(row_RxN, mask_RxN, target_RxN, target_RxN.any(axis=1).astype(np.int32))


def _smallest(rows: np.ndarray, number_R: np.ndarray, count: int) -> list[int]:
  """The count of the rows with the smallest numbers."""
  return rows[np.argsort(number_R[rows], kind='stable')[:count]].tolist()
