"""training/checkpoints.py: every bit back, every damage found, nothing deleted that was not replaced."""

import errno
import json
import os
import shutil
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from entropy_jax.training import checkpoints as checkpoints_module
from entropy_jax.training.checkpoints import MANIFEST, Checkpoints
from entropy_jax.training.files import StorageError
from entropy_jax.types import UserError
from tests.training.test_writers import full_disk


def state_of(step):
  """Leaves of every kind, different at every step; 0x7FC1 is a NaN whose payload a conversion would lose."""
  return {
    'params': {'w': jnp.arange(6.0).reshape(2, 3) + step, 'half': jnp.array([1.5, -0.0, step], jnp.bfloat16)},
    'nan': jax.lax.bitcast_convert_type(jnp.array([0x7FC1, 0xFF81], jnp.uint16), jnp.bfloat16),
    'count': jnp.int32(step),
    'flag': jnp.array([True, False]),
    'key': jax.random.key(step),
    'raw_key': jax.random.PRNGKey(step),
    'empty': jnp.zeros((0, 3)),
    'numpy': np.array([2**40 + step]),
    'number': 0.1 * step,
    'none': None,
  }


def bits(state):
  def one(x):
    x = jax.random.key_data(x) if hasattr(x, 'dtype') and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return type(x).__name__, str(np.asarray(x).dtype), np.shape(x), np.asarray(x).tobytes()

  return [one(x) for x in jax.tree.leaves(state)], jax.tree.structure(state)


def opened(directory, **options):
  said = []
  return Checkpoints(directory, report=said.append, **options), said


@pytest.fixture(scope='module')
def three(tmp_path_factory):
  """A directory with good checkpoints of steps 2, 4 and 6; copied, never changed."""
  directory = tmp_path_factory.mktemp('three') / 'checkpoints'
  checkpoints, _ = opened(directory)
  for step in (2, 4, 6):
    checkpoints.save(step, state_of(step), {'position': step, 'best': {'value': 0.1 + 0.2}})
  checkpoints.close()
  return directory


@pytest.fixture
def copy(three, tmp_path):
  return Path(shutil.copytree(three, tmp_path / 'checkpoints'))


class TestRoundTrip:
  def test_every_bit_and_type_comes_back(self, three):
    checkpoints, said = opened(three)
    step, state, host = checkpoints.restore_latest(state_of(0))
    checkpoints.close()
    assert (step, host) == (6, {'position': 6, 'best': {'value': 0.1 + 0.2}}) and said == []
    assert bits(state) == bits(state_of(6))
    assert np.asarray(state['nan']).view(np.uint16).tolist() == [0x7FC1, 0xFF81]
    assert jax.random.key_impl(state['key']) == jax.random.key_impl(jax.random.key(0))

  def test_nothing_saved_is_none(self, tmp_path):
    checkpoints, _ = opened(tmp_path)
    assert checkpoints.restore_latest(state_of(0)) is None
    checkpoints.close()

  def test_shardings_follow_the_template(self, tmp_path):
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec('data'), PartitionSpec()))
    state = {'a': jax.device_put(jnp.arange(16.0), split), 'b': jnp.ones(3)}
    checkpoints, _ = opened(tmp_path)
    checkpoints.save(1, state, {})
    template = {'a': jax.ShapeDtypeStruct((16,), jnp.float32, sharding=whole), 'b': jnp.zeros(3)}
    for wanted, sharding in ((state, split), (template, whole)):
      restored = checkpoints.restore_latest(wanted)[1]
      assert restored['a'].sharding == sharding and not restored['b'].committed
      np.testing.assert_array_equal(restored['a'], np.arange(16.0))
    checkpoints.close()

  def test_background_save_is_not_overtaken_by_donation(self, tmp_path):
    checkpoints, _ = opened(tmp_path, asynchronous=True)
    update = jax.jit(lambda x: x * 0 - 7, donate_argnums=0)
    for step in (1, 2, 3):
      x = jnp.full((300_000,), step, jnp.float32)
      checkpoints.save(step, {'x': x}, {'step': step})
      update(x).block_until_ready()  # writes into the buffer that is being saved
    checkpoints.close()
    step, state, host = opened(tmp_path)[0].restore_latest({'x': jnp.zeros(300_000)})
    assert step == 3 and host == {'step': 3}
    np.testing.assert_array_equal(state['x'], np.full(300_000, 3.0))

  def test_keeps_the_newest(self, tmp_path):
    checkpoints, _ = opened(tmp_path, keep=2)
    for step in (1, 5, 10, 11):
      checkpoints.save(step, {'x': jnp.zeros(2)}, {})
    assert checkpoints.steps() == [10, 11]
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['10', '11']

  def test_what_json_cannot_hold_is_refused_before_anything_is_written(self, tmp_path):
    checkpoints, _ = opened(tmp_path)
    with pytest.raises(TypeError, match='not JSON serializable'):
      checkpoints.save(1, {'x': jnp.zeros(2)}, {'a': jnp.ones(2)})
    with pytest.raises(UserError, match='keep=0'):
      Checkpoints(tmp_path, keep=0)
    assert list(tmp_path.iterdir()) == []
    checkpoints.save(1, {'x': jnp.zeros(2)}, {})
    with pytest.raises(ValueError, match='already saved'):
      checkpoints.save(1, {'x': jnp.zeros(2)}, {})
    checkpoints.close()


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def truncate(path):
  os.truncate(path, path.stat().st_size // 2)


class TestDamage:
  def kinds(self, three):
    """One file of each kind in a checkpoint, and every file that holds array data."""
    files = [p.relative_to(three / '6') for p in sorted((three / '6').rglob('*')) if p.is_file()]
    assert {p.name for p in files} >= {MANIFEST, 'manifest.ocdbt', '_METADATA', '_CHECKPOINT_METADATA'}
    return files

  @pytest.mark.parametrize('harm', [flip, truncate, Path.unlink])
  def test_each_file_is_missed_named_and_fallen_back_from(self, three, tmp_path, harm):
    for i, name in enumerate(self.kinds(three)):
      directory = Path(shutil.copytree(three, tmp_path / str(i)))
      harm(directory / '6' / name)
      checkpoints, said = opened(directory)
      step, state, host = checkpoints.restore_latest(state_of(0))
      assert step == 4 and host['position'] == 4 and bits(state) == bits(state_of(4))
      assert len(said) == 1 and str(directory / '6') in said[0] and str(name) in said[0] and 'falling back to step 4' in said[0]
      assert (directory / 'damaged' / '6').is_dir() and checkpoints.steps() == [2, 4]
      if i == 0:  # the run goes on and saves the step again
        checkpoints.save(6, state_of(60), {'position': 60})
        assert checkpoints.restore_latest(state_of(0))[2] == {'position': 60}
      checkpoints.close()

  def test_every_byte_of_the_manifest_counts(self, copy):
    checkpoints, _ = opened(copy)
    manifest = copy / '6' / MANIFEST
    good = manifest.read_bytes()
    for position in range(0, len(good), 97):
      manifest.write_bytes(good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :])
      with pytest.raises(Exception, match=MANIFEST):
        checkpoints._verify(6)
    manifest.write_bytes(good + b' ')
    with pytest.raises(Exception, match=MANIFEST):
      checkpoints._verify(6)
    manifest.write_bytes(good)
    checkpoints._verify(6)
    checkpoints.close()

  def test_two_damaged_the_third_is_used_and_moved_copies_never_collide(self, copy):
    for _ in range(2):
      flip(copy / '6' / 'state' / '_METADATA')
      truncate(copy / '4' / MANIFEST)
      checkpoints, said = opened(copy)
      assert checkpoints.restore_latest(state_of(0))[0] == 2 and len(said) == 2
      for step in (4, 6):
        checkpoints.save(step, state_of(step), {})
      checkpoints.close()
    assert sorted(p.name for p in (copy / 'damaged').iterdir()) == ['4', '4-2', '6', '6-2']

  def test_all_damaged_is_an_error_each_time_and_moves_nothing(self, copy):
    for step in (2, 4, 6):
      flip(copy / str(step) / MANIFEST)
    checkpoints, said = opened(copy)
    for _ in range(2):
      with pytest.raises(UserError, match=r'every one in .* is damaged'):
        checkpoints.restore_latest(state_of(0))
    checkpoints.close()
    assert len(said) == 6 and checkpoints.steps() == [2, 4, 6] and not (copy / 'damaged').exists()

  def test_a_checkpoint_under_another_number_is_damaged(self, copy):
    os.rename(copy / '6', copy / '9')
    checkpoints, said = opened(copy)
    assert checkpoints.restore_latest(state_of(0))[0] == 4 and '9' in said[0]
    checkpoints.close()

  def test_interrupted_saves_are_ignored(self, copy):
    shutil.copytree(copy / '6', copy / '8.orbax-checkpoint-tmp')
    shutil.copytree(copy / '6', copy / '10')
    (copy / '10' / MANIFEST).unlink()  # orbax was done, the manifest was not written
    (copy / 'saving-10').touch()
    os.rename(copy / '2', copy / 'deleting-2')  # half deleted
    checkpoints, said = opened(copy)
    assert checkpoints.restore_latest(state_of(0))[0] == 6 and said == []
    checkpoints.save(8, state_of(8), {})
    checkpoints.save(10, state_of(10), {})
    assert checkpoints.restore_latest(state_of(0))[0] == 10
    checkpoints.close()
    assert sorted(p.name for p in copy.iterdir()) == ['10', '6', '8']

  def test_killed_after_the_manifest_is_a_good_checkpoint(self, copy):
    (copy / 'saving-6').touch()
    checkpoints, said = opened(copy)
    assert checkpoints.restore_latest(state_of(0))[0] == 6 and said == [] and not (copy / 'saving-6').exists()
    checkpoints.close()


def tree(directory):
  return {p.relative_to(directory): p.read_bytes() for p in sorted(directory.rglob('*')) if p.is_file()}


# Orbax abandons the event loop of a write that failed while tensorstore's threads still report to it.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
class TestStorage:
  big = {'x': np.random.default_rng(0).normal(size=100_000).astype(np.float32)}

  def test_what_is_still_written_into_when_it_is_cleared_is_cleared_again(self, tmp_path, monkeypatch):
    saver, _ = opened(tmp_path)
    saver.save(1, state_of(1), {})
    before, calls = tree(tmp_path), []

    def late(path, **how):
      if path.name.startswith('2'):  # a folder that is not empty yet when it should go
        calls.append(path)
      if len(calls) != 1:
        shutil.rmtree(path, **how)

    monkeypatch.setattr(checkpoints_module, 'shutil', types.SimpleNamespace(rmtree=late))
    (tmp_path / '2.orbax-checkpoint-tmp-7').mkdir()
    with full_disk(100_000), pytest.raises(StorageError):
      saver.save(2, self.big, {})
    assert len(calls) > 1 and tree(tmp_path) == before and sorted(p.name for p in tmp_path.iterdir()) == ['1']
    saver.close()

  def test_what_is_made_after_it_was_cleared_goes_at_the_end(self, tmp_path):
    saver, _ = opened(tmp_path)
    saver.save(8, state_of(8), {})
    (tmp_path / '4.orbax-checkpoint-tmp' / 'state').mkdir(parents=True)
    saver.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['8']

  @pytest.mark.parametrize('asynchronous', [False, True])
  def test_a_full_disk_is_one_sentence_and_leaves_nothing(self, tmp_path, asynchronous, capfd):
    saver, _ = opened(tmp_path, asynchronous=asynchronous)
    saver.save(1, state_of(1), {'position': 1})
    saver.wait()
    before = tree(tmp_path)
    for _ in range(2):  # the same step again, in the same process
      with full_disk(100_000), pytest.raises(StorageError) as caught:
        saver.save(2, self.big, {})
        saver.wait()
      text = str(caught.value)
      assert text.startswith(f'the checkpoint of step 2 could not be saved, the older ones are untouched ({tmp_path}: File too large)')
      assert text.endswith('the same command goes on from the newest checkpoint.') and '\n' not in text
      assert tree(tmp_path) == before and sorted(p.name for p in tmp_path.iterdir()) == ['1'] and saver.newest() == 1
    assert 'Traceback' not in capfd.readouterr().err
    saver.save(2, state_of(2), {'position': 2})  # somebody made room
    saver.close()
    again, said = opened(tmp_path)
    assert again.restore_latest(state_of(0))[2] == {'position': 2} and said == []
    again.close()

  def test_a_background_failure_comes_out_at_the_next_save_under_its_own_number(self, tmp_path):
    saver, _ = opened(tmp_path, asynchronous=True)
    with full_disk(100_000):
      saver.save(4, self.big, {})
      saver._worker.submit(lambda: None).result()
    with pytest.raises(StorageError, match='checkpoint of step 4'):
      saver.save(8, state_of(8), {})
    saver.save(8, state_of(8), {})
    saver.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['8']

  @pytest.mark.parametrize('asynchronous', [False, True])
  def test_a_manifest_that_cannot_be_written(self, tmp_path, monkeypatch, asynchronous):
    saver, _ = opened(tmp_path, asynchronous=asynchronous)
    saver.save(1, state_of(1), {})
    saver.wait()

    def full(*unused):
      raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch:
      patch.setattr(checkpoints_module, 'write_atomically', full)
      with pytest.raises(StorageError, match='No space left on device'):
        saver.save(2, state_of(2), {})
        saver.wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['1']
    saver.save(2, state_of(2), {})
    assert saver.restore_latest(state_of(0))[0] == 2
    saver.close()

  def test_another_failure_keeps_its_name_and_leaves_nothing(self, tmp_path, monkeypatch):
    saver, _ = opened(tmp_path)

    def defect(*unused):
      raise ZeroDivisionError

    with monkeypatch.context() as patch:
      patch.setattr(checkpoints_module, '_digest', defect)
      with pytest.raises(ZeroDivisionError):
        saver.save(2, state_of(2), {})
    assert list(tmp_path.iterdir()) == []
    saver.save(2, state_of(2), {})
    saver.close()

  def test_old_steps_that_cannot_be_deleted_are_said(self, three, tmp_path, monkeypatch):
    directory = Path(shutil.copytree(three, tmp_path / 'checkpoints'))
    saver, said = opened(directory, keep=2)

    def denied(*unused):
      raise PermissionError(errno.EACCES, 'Permission denied')

    with monkeypatch.context() as patch:
      patch.setattr(shutil, 'rmtree', denied)
      saver.save(8, state_of(8), {})
    assert len(said) == 1 and 'could not be deleted (Permission denied)' in said[0]
    assert saver.restore_latest(state_of(0))[0] == 8
    saver.close()
    opened(directory)[0].close()
    assert not list(directory.glob('deleting-*'))

  def test_a_damaged_one_in_a_read_only_directory_is_still_passed_over(self, copy, monkeypatch):
    flip(copy / '6' / MANIFEST)
    saver, said = opened(copy)

    def read_only(*unused):
      raise OSError(errno.EROFS, 'Read-only file system')

    with monkeypatch.context() as patch:
      patch.setattr(os, 'replace', read_only)
      assert saver.restore_latest(state_of(0))[0] == 4
    assert 'it could not be moved away (Read-only file system), falling back to step 4' in said[0]
    saver.close()

  @pytest.mark.parametrize(('number', 'damaged'), [(errno.EIO, True), (errno.EACCES, False)])
  def test_what_the_disk_cannot_give_back_is_damaged_what_is_forbidden_is_not(self, copy, monkeypatch, number, damaged):
    saver, said = opened(copy)
    digest = checkpoints_module._digest

    def read(path):
      if path.parent.parent.name == '6' or path.parent.name == '6':
        raise OSError(number, os.strerror(number), str(path))
      return digest(path)

    with monkeypatch.context() as patch:
      patch.setattr(checkpoints_module, '_digest', read)
      if damaged:
        assert saver.restore_latest(state_of(0))[0] == 4 and 'cannot be read (Input/output error)' in said[0]
      else:
        with pytest.raises(StorageError, match='Permission denied'):
          saver.restore_latest(state_of(0))
        assert said == [] and saver.steps() == [2, 4, 6]
    saver.close()

  def test_a_directory_that_cannot_be_made(self):
    with pytest.raises(StorageError, match='checkpoints cannot be written'):
      Checkpoints('/proc/1/nothing')

  def test_newest_counts_whole_ones(self, copy):
    (copy / '8').mkdir()
    saver, _ = opened(copy)
    assert saver.newest() == 6
    saver.close()


class TestForeign:
  @pytest.mark.parametrize(
    ('change', 'text'),
    [
      (lambda s: s['params'].update(w=jnp.zeros((2, 4))), r"\['params'\]\['w'\] is float32\[2, 3\] in it and float32\[2, 4\] in this run"),
      (lambda s: s.update(count=jnp.float32(0)), r"\['count'\] is int32\[\] in it and float32\[\]"),
      (lambda s: s.update(extra=jnp.zeros(1)), r"it has no \['extra'\], which this run has"),
      (lambda s: s.pop('flag'), r"it has \['flag'\], which this run has not"),
    ],
  )
  def test_another_structure_is_named_and_nothing_is_moved(self, three, change, text):
    template = state_of(0)
    change(template)
    checkpoints, said = opened(three)
    with pytest.raises(UserError, match=text):
      checkpoints.restore_latest(template)
    checkpoints.close()
    assert said == [] and checkpoints.steps() == [2, 4, 6]

  def test_another_format(self, copy, monkeypatch):
    monkeypatch.setattr('entropy_jax.training.checkpoints.FORMAT', 2)
    checkpoints, _ = opened(copy)
    with pytest.raises(UserError, match='has format 1, and this version reads format 2'):
      checkpoints.restore_latest(state_of(0))
    checkpoints.close()


def test_manifest_reads_as_documented(three):
  sealed = json.loads((three / '6' / MANIFEST).read_text())
  content = sealed['content']
  assert content['step'] == 6 and {'path': "['count']", 'shape': [], 'dtype': 'int32'} in content['leaves']
  # every file but the manifest itself is listed
  files = {str(p.relative_to(three / '6')) for p in (three / '6').rglob('*') if p.is_file()}
  assert content['files'].keys() == files - {MANIFEST}
