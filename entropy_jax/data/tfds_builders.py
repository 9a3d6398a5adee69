"""TFDS builders of the tasks and corpora that are made here, prepared to ArrayRecord and read through `as_data_source`, without TensorFlow.

TFDS 4.9.10 imports TensorFlow lazily: a builder of numeric and text features that writes ArrayRecord and stays below
the 1 GB of its in-memory sorter never reaches it. Other TFDS datasets are read the same way once somebody has prepared
them to ArrayRecord in the same data directory; that may need TensorFlow and is done with the `tfds` command.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import os
import pathlib
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from entropy_jax.data import countdown, digits, source_bytes
from entropy_jax.transform import nearest
from entropy_jax.types import UserError


@dataclasses.dataclass(kw_only=True)
class CountdownConfig(tfds.core.BuilderConfig):
  """A countdown dataset: the arguments of `countdown.enumerate_problems`, which problems it keeps, and what a record holds."""

  num_numbers: int
  max_number: int = 9
  min_target: int = 1
  max_target: int = 99
  min_solutions: int = 1  # problems with fewer correct expressions are left out
  max_solutions: int | None = None  # a record holds at most so many; None keeps all


class Countdown(tfds.core.GeneratorBasedBuilder):
  """All solvable countdown problems of a config's numbers and targets, one record each, split by problem."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'Initial release.'}
  # TFDS looks beside the code for checksums of downloads, by way of importlib_resources, which it does not install on
  # Python 3.9 and later. Nothing is downloaded here, and None says that there is no such place.
  code_path = None
  BUILDER_CONFIGS = [
    CountdownConfig(name='three', description='Three numbers, every solution.', num_numbers=3),
    CountdownConfig(
      name='three_many',
      description='Three numbers up to 15, problems with at least 6 solutions: learnable by a small model in minutes.',
      num_numbers=3,
      max_number=15,
      min_solutions=6,
    ),
    CountdownConfig(
      name='four',
      description='Four numbers; at most 32 solutions a record, evenly spaced in text order.',
      num_numbers=4,
      max_solutions=32,
    ),
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='Make the target of the given numbers, each used exactly once, by + - * / and parentheses.',
      features=tfds.features.FeaturesDict(
        {
          'numbers': tfds.features.Tensor(shape=(self.builder_config.num_numbers,), dtype=np.int32),
          'target': tfds.features.Scalar(dtype=np.int32),
          'prompt': tfds.features.Text(),
          'solutions': tfds.features.Sequence(tfds.features.Text()),
          'num_solutions': tfds.features.Scalar(dtype=np.int32),  # of the problem, stored or not
        }
      ),
      disable_shuffling=True,  # in order of numbers then target, so that a row number means the same everywhere
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    del dl_manager  # nothing is downloaded
    config = self.builder_config
    problems = countdown.enumerate_problems(
      num_numbers=config.num_numbers,
      max_number=config.max_number,
      min_target=config.min_target,
      max_target=config.max_target,
    )
    problems = {problem: found for problem, found in problems.items() if len(found) >= config.min_solutions}
    return {
      split: self._generate_examples(countdown.split_problems(problems, split)) for split in countdown.SPLIT_ENDS
    }

  def _generate_examples(
    self, problems: Mapping[countdown.Problem, tuple[str, ...]]
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for row, (problem, solutions) in enumerate(problems.items()):
      kept = min(len(solutions), self.builder_config.max_solutions or len(solutions))
      yield row, {
        'numbers': np.array(problem.numbers, np.int32),
        'target': problem.target,
        'prompt': countdown.prompt_text(*problem),
        'solutions': [solutions[i * len(solutions) // kept] for i in range(kept)],
        'num_solutions': len(solutions),
      }


class Digits(tfds.core.GeneratorBasedBuilder):
  """The handwritten digits that come with scikit-learn, split by a hash of the image, in the order of that hash."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'Initial release.'}
  code_path = None  # as above

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='1,797 images of handwritten digits, 8 x 8 pixels of 17 levels, as scikit-learn ships them.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),  # 0..16
          'label': tfds.features.Scalar(dtype=np.int32),
        }
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    del dl_manager  # nothing is downloaded
    everything = digits.read()
    return {split: self._generate_examples(digits.split(everything, split)) for split in digits.SPLIT_ENDS}

  def _generate_examples(self, images: digits.Digits) -> Iterator[tuple[int, dict[str, Any]]]:
    for row, (image_HxWxC, label) in enumerate(zip(*images, strict=True)):
      yield row, {'image': image_HxWxC, 'label': label}


@dataclasses.dataclass(kw_only=True)
class SourceBytesConfig(tfds.core.BuilderConfig):
  """A corpus of source code: where its files lie."""

  root: str | os.PathLike[str] | None = None  # None takes the standard library of the running Python


class SourceBytes(tfds.core.GeneratorBasedBuilder):
  """Python source, a record for each file, split by file; the metadata say of which Python and of which files it is made.

  What lies on disk is read whatever Python runs later, and `source_bytes.chunks` cuts it into rows of the length that a study wants.
  """

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'Initial release.'}
  code_path = None  # as above
  BUILDER_CONFIGS = [SourceBytesConfig(name='stdlib', description="Python's standard library without its tests.")]

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='Files of Python source as bytes, in the order of their paths.',
      features=tfds.features.FeaturesDict({'path': tfds.features.Text(), 'content': tfds.features.Text()}),
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(),  # filled where the files are read
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    del dl_manager  # nothing is downloaded
    files = source_bytes.read(self.builder_config.root)
    self.info.metadata.update(python=platform.python_version(), digest=source_bytes.digest(files))
    return {split: self._generate_examples(source_bytes.split_files(files, split)) for split in source_bytes.SPLIT_ENDS}

  def _generate_examples(self, files: list[source_bytes.SourceFile]) -> Iterator[tuple[int, dict[str, Any]]]:
    for row, file in enumerate(files):
      yield row, file._asdict()


_BUILDERS: tuple[type[tfds.core.GeneratorBasedBuilder], ...] = (Countdown, SourceBytes)
DATASETS: dict[str, type[tfds.core.GeneratorBasedBuilder]] = {
  **{f'{builder.name}/{config.name}': builder for builder in _BUILDERS for config in builder.BUILDER_CONFIGS},
  Digits.name: Digits,
}
# TFDS lists these only once TensorFlow has been imported.
UNLISTED = frozenset({'gsm8k', 'wmt14_translate', 'wmt16_translate', 'wmt17_translate', 'wmt18_translate', 'wmt19_translate'})


def prepare(name: str, data_dir: str | os.PathLike[str]) -> tfds.core.DatasetBuilder:
  """A builder whose data is on disk under data_dir, generated by this call where it is one of ours and missing.

  Files appear under their final name only when complete. Processes that prepare the same dataset at once wait for one
  another; what an interrupted preparation left is removed and made again.

  Args:
    name: a key of `DATASETS`, such as 'countdown/three', 'digits' or 'source_bytes/stdlib', or a TFDS dataset already prepared to
      ArrayRecord in data_dir.
    data_dir: folder of all prepared datasets, created where needed.

  Returns:
    The builder; `builder.info` holds splits, features and version.
  """
  if name not in DATASETS:
    return _already_prepared(name, data_dir)
  root = pathlib.Path(data_dir)
  dataset, _, config = name.partition('/')
  place = root / dataset / config / str(DATASETS[name].VERSION)
  place.parent.mkdir(parents=True, exist_ok=True)
  with open(root / dataset / f'.{config or dataset}.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # released by the system even when the process is killed
    if not _is_complete(place):
      for leftover in (place, *place.parent.glob(f'incomplete.*_{place.name}')):
        shutil.rmtree(leftover, ignore_errors=True)
      builder = DATASETS[name](config=config or None, data_dir=os.fspath(root), file_format='array_record')
      tfds.display_progress_bar(enable=False)
      with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=scratch)
  return DATASETS[name](config=config or None, data_dir=os.fspath(root), file_format='array_record')


def load(name: str, split: str, data_dir: str | os.PathLike[str]) -> Any:
  """The random-access data source of a split, prepared first where needed.

  Args:
    name: see `prepare`.
    split: a split of the dataset, or a slice of one in TFDS notation, such as 'train[:10%]'.
    data_dir: see `prepare`.

  Returns:
    A sequence of records: dicts of numpy arrays, bytes for text. It can be pickled and given to grain.
  """
  builder = prepare(name, data_dir)
  known = list(builder.info.splits)
  if split.split('[')[0] not in known:
    raise UserError(f'split={split!r}: {name} has the splits {", ".join(known)}; give one of these.{nearest(split, known)}')
  return builder.as_data_source(split=split)


def fingerprint(source: Iterable[Any]) -> str:
  """SHA-256 (hex) of the content of every record in order: equal for equal data, however and wherever it is stored."""
  digest = hashlib.sha256()
  for record in source:
    digest.update(_canonical_bytes(record))
  return digest.hexdigest()


def _canonical_bytes(value: Any) -> bytes:
  """Bytes that differ for different values: every part carries its kind and length."""
  if isinstance(value, Mapping):
    parts = [part for key in sorted(value) for part in (key.encode(), _canonical_bytes(value[key]))]
    kind = 'map'
  elif isinstance(value, bytes | str):
    parts, kind = [value.encode() if isinstance(value, str) else value], 'text'
  elif isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype == object):
    parts, kind = [_canonical_bytes(item) for item in value], 'list'
  else:
    array = np.asarray(value)
    parts, kind = [np.ascontiguousarray(array).tobytes()], f'{array.dtype.str}{array.shape}'
  return kind.encode() + b''.join(b'|%d:' % len(part) + part for part in parts)


def _is_complete(place: pathlib.Path) -> bool:
  """Whether the folder holds the description of the dataset and every file that it names."""
  if not (place / 'dataset_info.json').is_file() or not (place / 'features.json').is_file():
    return False
  info = tfds.builder_from_directory(place).info
  return all(os.path.isfile(path) for split in info.splits.values() for path in split.filepaths)


def _already_prepared(name: str, data_dir: str | os.PathLike[str]) -> tfds.core.DatasetBuilder:
  """A dataset of TFDS itself, from its files alone (its code may need TensorFlow); UserError where that fails."""
  dataset = name.split('/')[0].split(':')[0]
  ours = {known.split('/')[0] for known in DATASETS}
  try:
    if dataset in ours:  # a config that does not exist
      raise tfds.core.DatasetNotFoundError(name)
    builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=os.fspath(data_dir))
  except tfds.core.DatasetNotFoundError:
    theirs = UNLISTED.union(tfds.list_builders(with_community_datasets=False)) - ours
    if dataset in theirs:
      reason = 'is a TFDS dataset that is not prepared in data_dir'
    else:
      names = ', '.join(DATASETS)
      suggestion = nearest(name, [*DATASETS, *sorted(theirs)])
      raise UserError(f'dataset={name!r}: is neither of {names} nor a dataset of TFDS; give one of these.{suggestion}') from None
  else:
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
      return builder
    reason = f'is prepared in data_dir as {builder.info.file_format.value}, which cannot be read without TensorFlow'
  command = f'tfds build {name} --file_format=array_record --data_dir={os.fspath(data_dir)}'
  raise UserError(f'dataset={name!r}: {reason}; run `{command}` where TensorFlow is installed.')
