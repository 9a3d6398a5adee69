"""Datasets by the short name that a config gives: where TFDS keeps each, what its fields are called, and how a record becomes an example.

`digits` and `source_bytes` are made on first use. The large sets are read where somebody has prepared them in the data directory; nothing
here fetches them. Texts are bytes, see `source_bytes`.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from entropy_jax.data import digits, source_bytes, tfds_builders
from entropy_jax.data.examples import Examples, Records, Rows
from entropy_jax.transform import nearest
from entropy_jax.types import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedSet:
  """A dataset that a config can name.

  Attributes:
    tfds_name: as `tfds_builders.prepare` takes it.
    kind: 'images', 'corpus' (files, cut into rows), 'text' or 'translation'.
    fields: what this library calls a field -> what the record calls it.
    evaluation_split: the split that results are reported on; the other is 'train'.
    num_classes: of images; None for text.
    max_level: of a pixel, by which images are divided.
    in_memory: read whole and once, not record by record; a corpus always is.
  """

  tfds_name: str
  kind: str
  fields: Mapping[str, str]
  evaluation_split: str = 'test'
  num_classes: int | None = None
  max_level: int = 255
  in_memory: bool = False


_IMAGES: dict[str, Any] = {'kind': 'images', 'fields': {'image': 'image', 'label': 'label'}}
_ENGLISH_TO_GERMAN: dict[str, Any] = {'kind': 'translation', 'fields': {'source': 'en', 'target': 'de'}}
SETS: dict[str, NamedSet] = {
  'digits': NamedSet(tfds_name='digits', num_classes=digits.NUM_CLASSES, max_level=digits.MAX_LEVEL, in_memory=True, **_IMAGES),
  'cifar10': NamedSet(tfds_name='cifar10', num_classes=10, **_IMAGES),
  'imagenet2012': NamedSet(tfds_name='imagenet2012', num_classes=1000, evaluation_split='validation', **_IMAGES),
  'source_bytes': NamedSet(tfds_name='source_bytes/stdlib', kind='corpus', fields={'path': 'path', 'content': 'content'}, in_memory=True),
  'lm1b': NamedSet(tfds_name='lm1b', kind='text', fields={'text': 'text'}),
  'wmt14': NamedSet(tfds_name='wmt14_translate/de-en', **_ENGLISH_TO_GERMAN),
  'wmt17': NamedSet(tfds_name='wmt17_translate/de-en', **_ENGLISH_TO_GERMAN),
}


def named_set(name: str) -> NamedSet:
  """The entry of a name."""
  if name not in SETS:
    raise UserError(f'dataset={name!r}: is not one of {", ".join(SETS)}; give one of these.{nearest(name, list(SETS))}')
  return SETS[name]


def load(
  name: str, split: str, data_dir: str | os.PathLike[str], *, length: int | None = None, image_size: int | None = None
) -> Rows:
  """The examples of a split, made first where they are ours and missing.

  Args:
    name: a key of `SETS`.
    split: a split of the dataset, or a slice of one in TFDS notation.
    data_dir: folder of all prepared datasets.
    length: N, bytes in a row, required for all but images; longer texts are cut.
    image_size: H = W, for images: the largest square in the middle, resized; None leaves images as they are, which must be of one size.

  Returns:
    Rows with, by kind:
      images: image_BxHxWxC (float32 in [0, 1]) and label_B (int32);
      corpus: tokens_BxN (int32), all of them text;
      text: tokens_BxN and mask_BxN (bool), byte 0 and then the text;
      translation: source_tokens_BxS, source_mask_BxS, target_tokens_BxT and target_mask_BxT, texts and then byte 0, and
        decoder_tokens_BxT, byte 0 and then the target, under the mask of the target; S = T = N.

  Raises:
    UserError: an unknown name or split, a dataset that is not prepared in data_dir, or a missing length.
  """
  found = named_set(name)
  size = length if length is not None else 0
  if found.kind != 'images' and size < 1:
    raise UserError(f'length={length}: {name} is made of texts; give the number of bytes in a row, such as 256.')
  source = tfds_builders.load(found.tfds_name, split, data_dir)
  if found.kind == 'corpus':
    path, content = found.fields['path'], found.fields['content']
    files = [source_bytes.SourceFile(record[path].decode(), record[content]) for record in source]
    tokens_RxN = source_bytes.chunks(files, size).astype(np.int32)
    if not len(tokens_RxN):
      raise UserError(f'length={length}: {split} of {name} is shorter than one row; give a smaller length.')
    return Examples({'tokens_BxN': tokens_RxN})

  def convert(record: Mapping[str, Any]) -> dict[str, Any]:
    values = {ours: record[theirs] for ours, theirs in found.fields.items()}
    if found.kind == 'images':
      return _image_example(values['image'], values['label'], found.max_level, image_size)
    return _text_example(values['text'], size) if found.kind == 'text' else _pair_example(values['source'], values['target'], size)

  info = tfds_builders.prepare(found.tfds_name, data_dir).info
  whole = info.splits[split.split('[')[0]]
  known = [info.full_name, split, whole.num_bytes, list(whole.shard_lengths), size, image_size]
  rows = Records(source, convert, hashlib.sha256(json.dumps(known).encode()).hexdigest())
  # What is read whole is known by its content.
  return Examples(rows.take(np.arange(len(rows)))) if found.in_memory else rows


def _image_example(image_HxWxC: np.ndarray, label: Any, max_level: int, size: int | None) -> dict[str, Any]:
  if size is not None and image_HxWxC.shape[:2] != (size, size):
    image_HxWxC = _resize(image_HxWxC, size)
  return {'image_BxHxWxC': image_HxWxC.astype(np.float32) / np.float32(max_level), 'label_B': np.int32(label)}


def _resize(image_HxWxC: np.ndarray, size: int) -> np.ndarray:
  """The largest square in the middle, at another size."""
  from PIL import Image  # here because only images that are not yet of the size need it

  height, width, channels = image_HxWxC.shape
  edge = min(height, width)
  top, left = (height - edge) // 2, (width - edge) // 2
  square = image_HxWxC[top : top + edge, left : left + edge]
  shown = Image.fromarray(square[..., 0] if channels == 1 else square)
  return np.asarray(shown.resize((size, size), Image.Resampling.BILINEAR)).reshape(size, size, channels)


def _text_example(text: bytes, length: int) -> dict[str, Any]:
  tokens, mask = source_bytes.encode([text], length)
  return {'tokens_BxN': tokens[0], 'mask_BxN': mask[0]}


def _pair_example(source: bytes, target: bytes, length: int) -> dict[str, Any]:
  given, expected = (source_bytes.encode([text], length, bos=False, eos=True) for text in (source, target))
  before = source_bytes.encode([target], length).tokens[0]
  return {
    'source_tokens_BxS': given.tokens[0],
    'source_mask_BxS': given.mask[0],
    'target_tokens_BxT': expected.tokens[0],
    'target_mask_BxT': expected.mask[0],
    'decoder_tokens_BxT': before,
  }
