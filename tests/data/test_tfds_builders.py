import json
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from entropy_jax.data import countdown, tfds_builders
from entropy_jax.types import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def python(code, *arguments):
  """Runs code in a new interpreter that treats warnings as errors."""
  command = [sys.executable, '-W', 'error', '-c', code, *map(str, arguments)]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


PREPARE = """
import sys
from entropy_jax.data import tfds_builders
tfds_builders.prepare('countdown/three', sys.argv[1])
"""
REFUSE_NETWORK = """
import socket
def refuse(*arguments):
  raise AssertionError('network')
socket.socket.connect = refuse
"""
DIE_IN_THE_SECOND_SPLIT = """
import os
from entropy_jax.data import tfds_builders
generate = tfds_builders.Countdown._generate_examples
def die(self, problems):
  for row, example in generate(self, problems):
    if len(problems) < 1000 and row == 100:
      os.kill(os.getpid(), 9)
    yield row, example
tfds_builders.Countdown._generate_examples = die
"""


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


@pytest.fixture(scope='module')
def splits(data_dir):
  return {split: tfds_builders.load('countdown/three', split, data_dir) for split in countdown.SPLIT_ENDS}


def files(folder):
  return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


class TestCountdown:
  def test_records_are_the_enumerated_problems(self, splits):
    problems = countdown.enumerate_problems()
    for split, source in splits.items():
      expected = countdown.split_problems(problems, split)
      assert len(source) == len(expected)
      for record, (problem, solutions) in zip(source, expected.items(), strict=True):
        assert (tuple(record['numbers'].tolist()), int(record['target'])) == problem
        assert record['prompt'].decode() == countdown.prompt_text(*problem)
        assert tuple(text.decode() for text in record['solutions']) == solutions
        assert record['num_solutions'] == len(solutions)

  def test_sizes(self, splits):
    assert {split: len(source) for split, source in splits.items()} == {'train': 1698, 'validation': 227, 'test': 219}

  def test_no_problem_is_in_two_splits(self, splits):
    seen = [{(*sorted(r['numbers'].tolist()), int(r['target'])) for r in source} for source in splits.values()]
    assert len(set.union(*seen)) == sum(map(len, seen)) == 2144

  def test_random_access_and_slices(self, splits, data_dir):
    part = tfds_builders.load('countdown/three', 'train[10:20]', data_dir)
    assert [r['prompt'] for r in part] == [splits['train'][i]['prompt'] for i in range(10, 20)]

  def test_source_can_be_sent_to_workers(self, splits):
    copy = pickle.loads(pickle.dumps(splits['test']))
    assert copy[7]['prompt'] == splits['test'][7]['prompt']

  def test_info(self, data_dir):
    info = tfds_builders.prepare('countdown/three', data_dir).info
    assert info.full_name == 'countdown/three/1.0.0'
    assert info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    assert 'each used exactly once' in info.description

  def test_three_many_leaves_out_what_has_few_solutions(self):
    builder = tfds_builders.Countdown(config='three_many', data_dir='unused', file_format='array_record')
    splits = builder._split_generators(None)
    records = {split: [record for _, record in examples] for split, examples in splits.items()}
    assert {split: len(found) for split, found in records.items()} == {'train': 2033, 'validation': 231, 'test': 236}
    everything = [record for found in records.values() for record in found]
    assert min(len(record['solutions']) for record in everything) == 6
    assert max(record['numbers'].max() for record in everything) == 15
    assert len({(*record['numbers'].tolist(), record['target']) for record in everything}) == 2500

  def test_four_keeps_at_most_32_solutions_spread_over_all(self):
    # The generator alone: writing 23,696 records would test TFDS, not this file.
    builder = tfds_builders.Countdown(config='four', data_dir='unused', file_format='array_record')
    problem = countdown.Problem((1, 2, 3, 4), 10)
    everything = countdown.solutions(*problem)
    ((row, record),) = builder._generate_examples({problem: everything})
    assert len(everything) > 64
    assert (row, record['num_solutions'], len(set(record['solutions']))) == (0, len(everything), 32)
    places = [everything.index(text) for text in record['solutions']]
    assert set(np.diff(places).tolist()) <= {len(everything) // 32, len(everything) // 32 + 1}


class TestPrepare:
  def test_second_call_reads(self, data_dir, splits, monkeypatch):
    before = files(data_dir)
    monkeypatch.setattr(tfds_builders.Countdown, '_split_generators', None)  # would raise if it were called
    tfds_builders.prepare('countdown/three', data_dir)
    assert files(data_dir) == before

  def test_needs_neither_tensorflow_nor_network_and_is_the_same_everywhere(self, tmp_path, data_dir, splits):
    done = python(REFUSE_NETWORK + PREPARE + "assert 'tensorflow' not in sys.modules", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ''  # quiet
    for path in data_dir.rglob('*.array_record*'):
      assert (tmp_path / path.relative_to(data_dir)).stat().st_size == path.stat().st_size
    other = tfds_builders.load('countdown/three', 'train', tmp_path)
    assert tfds_builders.fingerprint(other) == tfds_builders.fingerprint(splits['train'])

  def test_interrupted_preparation_is_made_again(self, tmp_path):
    assert python(DIE_IN_THE_SECOND_SPLIT + PREPARE, tmp_path).returncode == -9
    (left,) = (tmp_path / 'countdown' / 'three').iterdir()
    assert left.name.startswith('incomplete.')
    assert len(tfds_builders.load('countdown/three', 'test', tmp_path)) == 219
    assert [path.name for path in (tmp_path / 'countdown' / 'three').iterdir()] == ['1.0.0']

  def test_missing_file_is_made_again(self, tmp_path):
    tfds_builders.prepare('countdown/three', tmp_path)
    for victim in ('dataset_info.json', 'features.json', '*test.array_record*'):
      (path,) = (tmp_path / 'countdown' / 'three' / '1.0.0').glob(victim)
      path.unlink()
      assert len(tfds_builders.load('countdown/three', 'test', tmp_path)) == 219
      assert path.exists()

  def test_two_processes_at_once(self, tmp_path):
    command = [sys.executable, '-W', 'error', '-c', PREPARE, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert [path.name for path in (tmp_path / 'countdown' / 'three').iterdir()] == ['1.0.0']

  @pytest.mark.parametrize(
    ('name', 'suggestion'),
    [('countdwn/three', 'countdown/three'), ('countdown/tree', 'countdown/three'), ('mnits', 'mnist')],
  )
  def test_unknown_name(self, tmp_path, name, suggestion):
    with pytest.raises(UserError, match=rf"dataset='{name}'.*countdown/three, countdown/three_many, countdown/four.*mean '{suggestion}'\?"):
      tfds_builders.prepare(name, tmp_path)

  def test_dataset_of_tfds_that_is_not_prepared(self, tmp_path):
    with pytest.raises(UserError, match='not prepared in data_dir; run `tfds build mnist --file_format=array_record'):
      tfds_builders.prepare('mnist', tmp_path)


class TestOtherDatasets:
  @pytest.fixture
  def squares(self, tmp_path):
    """A dataset whose builder this library does not know, on disk."""
    with tfds.core.registered.skip_registration():

      class Squares(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version('2.0.0')
        code_path = None

        def _info(self):
          features = tfds.features.FeaturesDict({'square': np.int64})
          return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
          return {'train': self._generate_examples()}

        def _generate_examples(self):
          for i in range(5):
            yield i, {'square': i * i}

    Squares(data_dir=str(tmp_path), file_format='array_record').download_and_prepare()
    return tmp_path

  def test_reads_what_is_prepared(self, squares):
    assert [int(r['square']) for r in tfds_builders.load('squares', 'train', squares)] == [0, 1, 4, 9, 16]

  def test_refuses_another_file_format(self, squares):
    path = squares / 'squares' / '2.0.0' / 'dataset_info.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'fileFormat': 'tfrecord'}))
    with pytest.raises(UserError, match=r'prepared in data_dir as tfrecord.*run `tfds build squares'):
      tfds_builders.load('squares', 'train', squares)


class TestLoad:
  def test_unknown_split(self, data_dir):
    with pytest.raises(UserError, match=r"split='vaildation'.*Did you mean 'validation'"):
      tfds_builders.load('countdown/three', 'vaildation', data_dir)


class TestFingerprint:
  def test_equal_for_equal_content(self):
    records = [{'a': np.array([1, 2], np.int32), 'b': b'x', 'c': [b'y', b'z']}]
    reordered = [{'c': [b'y', b'z'], 'b': b'x', 'a': np.array([1, 2], np.int32)}]
    assert tfds_builders.fingerprint(records) == tfds_builders.fingerprint(reordered)
    assert len(tfds_builders.fingerprint(records)) == 64

  @pytest.mark.parametrize(
    'other',
    [
      [{'a': b'xy', 'b': [b'c']}, {'a': b'', 'b': []}],  # one record more
      [{'a': b'xy', 'b': [b'd']}],
      [{'a': b'x', 'b': [b'yc']}],  # the same bytes, cut elsewhere
      [{'a': b'xy', 'b': b'c'}],
      [{'a': b'xy', 'c': [b'c']}],
    ],
  )
  def test_differs_for_other_content(self, other):
    assert tfds_builders.fingerprint([{'a': b'xy', 'b': [b'c']}]) != tfds_builders.fingerprint(other)

  def test_type_and_shape_count(self):
    values = [np.int32(1), np.int64(1), np.array([1], np.int32), np.float32(1)]
    assert len({tfds_builders.fingerprint([{'a': value}]) for value in values}) == 4


class TestImports:
  def test_plain_modules_load_neither_tfds_nor_grain(self):
    code = (
      'import sys\nfrom entropy_jax.data import countdown, tokenizers, verifiers\n'
      'print([m for m in ("tensorflow_datasets", "grain", "tensorflow", "array_record", "orbax") if m in sys.modules])'
    )
    assert python(code).stdout.strip() == '[]'
