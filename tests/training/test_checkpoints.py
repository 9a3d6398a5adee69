"""training/checkpoints.py: every bit back, every damage found, nothing deleted that was not replaced."""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from entropy_jax.training.checkpoints import MANIFEST, Checkpoints, write_atomically
from entropy_jax.types import UserError


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


def test_write_atomically_leaves_the_old_text_when_it_fails(tmp_path, monkeypatch):
  path = tmp_path / 'a.json'
  write_atomically(path, 'old')

  def full(descriptor):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match='No space left'):
    write_atomically(path, 'new')
  assert path.read_text() == 'old'
