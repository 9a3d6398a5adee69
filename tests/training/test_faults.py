"""training/faults.py: refused updates are counted, dumped whole, and stop a run at the same step however it is interrupted."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from entropy_jax.training import faults, loop
from entropy_jax.training.checkpoints import Checkpoints
from entropy_jax.training.faults import Faults, NonFiniteError, replay
from entropy_jax.types import UserError
from tests.training import tiny_run

FAULTY = (2, 5, 6, 9)


class CrashError(Exception):
  """Stands for whatever ends a process."""


def run(workdir, steps=FAULTY, **changes):
  return tiny_run.run(workdir, **({'body': tiny_run.guarded, 'data': tiny_run.Poisoned(*steps)} | changes))


def crashing(step):
  def body(state, batch, key):
    if int(state['count']) == step:
      raise CrashError
    return tiny_run.guarded(state, batch, key)

  return body


def rows_of(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """(workdir, bits) of a run with four refused updates, never three in a row."""
  workdir = tmp_path_factory.mktemp('whole')
  return workdir, tiny_run.bits(run(workdir))


class TestRefusedUpdates:
  def test_rows_hold_what_is_finite_and_the_running_total(self, whole):
    rows = rows_of(whole[0])
    assert [row['step'] for row in rows] == list(range(13))
    for row in rows[:12]:
      assert ('loss' in row) == (row['step'] not in FAULTY) and row['update/rejected'] == float(row['step'] in FAULTY)
    # 2 is the first, 5 and 6 make three, 9 makes four; before the first there is no such column, the last row makes no step
    assert [row.get('faults/total') for row in rows] == [None, None, 1, 1, 1, 2, 3, 3, 3, 4, 4, 4, None]

  def test_never_reaches_the_parameters(self, whole, tmp_path):
    state = run(tmp_path)
    assert loop.first_bad_leaf(state) is None and int(state['count']) == 12

  @pytest.mark.parametrize('step', [3, 6, 7, 10])  # right after a refused step, between two of them, at the row of one, past all
  def test_interrupted_is_the_same_bit_for_bit(self, whole, tmp_path, step):
    with pytest.raises(CrashError):
      run(tmp_path, body=crashing(step))
    assert tiny_run.bits(run(tmp_path)) == whole[1]
    assert (tmp_path / 'metrics.jsonl').read_bytes() == (whole[0] / 'metrics.jsonl').read_bytes()
    assert sorted(p.name for p in (tmp_path / 'faults').iterdir()) == [f'step_{s:08d}' for s in FAULTY]

  def test_one_line_each_on_stderr(self, tmp_path, capfd):
    run(tmp_path, steps=(2, 3))
    lines = [line for line in capfd.readouterr().err.splitlines() if 'update refused' in line]
    assert len(lines) == 2
    assert lines[1].startswith('train: step 3: update refused, gradient_norm is inf (so is loss); 2 in a row of at most 3, 2 in this run;')
    assert str(tmp_path / 'faults' / 'step_00000003') in lines[1]

  def test_has_a_row_though_none_is_due(self, tmp_path):
    run(tmp_path, steps=(4,), log_every=5, evaluate=None, best=None)
    assert [row['step'] for row in rows_of(tmp_path)] == [0, 4, 5, 10]

  @pytest.mark.parametrize('crash', [None, 7, 8])
  def test_three_in_a_row_stop_the_run_at_the_same_step(self, tmp_path, crash):
    steps = (3, 6, 7, 8)
    if crash is not None:  # the checkpoint of step 8 has counted two in a row, that of step 4 none
      with pytest.raises(CrashError):
        run(tmp_path, steps=steps, body=crashing(crash))
    for _ in range(2):  # the same command ends there again
      with pytest.raises(NonFiniteError) as caught:
        run(tmp_path, steps=steps)
      text = str(caught.value)
      assert text.startswith('step 8: gradient_norm is inf (so is loss) and the update was refused, 3 of 3 allowed in a row; the last')
      assert f'its batch is in {tmp_path / "faults" / "step_00000008"}' in text and '\n' not in text
      assert f'the last good checkpoint is step 8 in {tmp_path / "checkpoints"}' in text
      rows = rows_of(tmp_path)
      assert [row['step'] for row in rows] == list(range(9)) and rows[8]['faults/total'] == 4
      assert f'of step 5, are gradient_norm {rows[5]["gradient_norm"]:.6g}, loss {rows[5]["loss"]:.6g}' in text

  def test_max_rejected_is_the_limit(self, tmp_path):
    with pytest.raises(NonFiniteError, match=r'step 2: .*1 of 1 allowed'):
      run(tmp_path / 'one', max_rejected=1)
    run(tmp_path / 'four', steps=(2, 3, 4), max_rejected=4)
    with pytest.raises(UserError, match='max_rejected=0'):
      run(tmp_path / 'none', max_rejected=0)

  def test_not_finite_without_a_refusal_stops_at_once(self, tmp_path):
    def body(state, batch, key):
      state, metrics, inputs = tiny_run.guarded(state, batch, key)
      return state, metrics | {'update/rejected': jnp.zeros(())}, inputs

    with pytest.raises(NonFiniteError, match='step 5: gradient_norm is inf'):
      run(tmp_path, steps=(5,), body=body)
    assert not (tmp_path / 'faults').exists()

  def test_a_rejected_fraction_that_is_not_finite_stops_at_once(self, tmp_path):
    with pytest.raises(NonFiniteError, match='step 0: update/rejected is nan'):
      run(tmp_path, body=lambda state, batch, key: (state, {'update/rejected': jnp.nan}))

  def test_a_checkpoint_from_before_counting_is_restored(self, whole, tmp_path, monkeypatch):
    save = Checkpoints.save
    old = lambda self, step, state, host: save(self, step, state, {k: v for k, v in host.items() if k != 'faults'})
    monkeypatch.setattr(Checkpoints, 'save', old)
    with pytest.raises(CrashError):
      run(tmp_path, body=crashing(7))
    monkeypatch.setattr(Checkpoints, 'save', save)
    run(tmp_path)
    # resumed at 4 with a total of 0: 5 and 6 make two, 9 makes three
    assert [row.get('faults/total') for row in rows_of(tmp_path)] == [None, None, 1, 1, None, 1, 2, 2, 2, 3, 3, 3, None]

  def test_a_dump_that_fails_stops_nothing(self, whole, tmp_path, capfd):
    (tmp_path / 'faults').write_text('in the way')
    assert tiny_run.bits(run(tmp_path)) == whole[1]
    assert capfd.readouterr().err.count('its batch could not be dumped') == len(FAULTY)


class TestReplay:
  def test_gives_back_the_very_step(self, whole):
    step, key, batch, inputs = replay(whole[0] / 'faults' / 'step_00000006')
    assert step == 6
    assert jax.random.key_data(key).tolist() == jax.random.key_data(jax.random.fold_in(jax.random.key(0), 6)).tolist()
    data = tiny_run.Poisoned(*FAULTY)
    data.set_state({'position': 6})
    np.testing.assert_array_equal(batch['x'], data.next()['x'])
    np.testing.assert_array_equal(inputs['doubled'], 2 * batch['x'])
    assert jax.random.key_data(inputs['key']).tolist() == jax.random.key_data(key).tolist()
    _, metrics, again = tiny_run.guarded(tiny_run.start(), batch, key)
    assert not np.isfinite(metrics['loss']) and metrics['update/rejected'] == 1
    np.testing.assert_array_equal(again['doubled'], inputs['doubled'])

  def test_from_the_checkpoint_it_names_the_loss_is_that_of_the_run(self, tmp_path):
    seen = {}

    def body(state, batch, key):
      step = int(state['count'])
      state, metrics, inputs = tiny_run.guarded(state, batch, key)
      seen[step] = np.asarray(metrics['loss'])
      return state, metrics, inputs

    run(tmp_path, steps=(8,), body=body, num_steps=9)
    fault = json.loads((tmp_path / 'faults' / 'step_00000008' / 'fault.json').read_text())
    assert fault['checkpoint'] == 8 and 'state is that of checkpoint 8; inputs' in fault['replay']
    _, key, batch, _ = replay(tmp_path / 'faults' / 'step_00000008')
    (tmp_path / 'checkpoints' / '9').rename(tmp_path / '9')
    checkpoints = Checkpoints(tmp_path / 'checkpoints')
    step, state, _ = checkpoints.restore_latest(tiny_run.start())
    checkpoints.close()
    loss = np.asarray(tiny_run.guarded(state, batch, key)[1]['loss'])
    assert step == 8 and loss.tobytes() == seen[8].tobytes() and not np.isfinite(loss)

  def test_fault_json_says_what_happened(self, whole):
    fault = json.loads((whole[0] / 'faults' / 'step_00000006' / 'fault.json').read_text())
    assert fault['not_finite'] == {'gradient_norm': 'inf', 'loss': 'inf'}
    assert (fault['step'], fault['rejected'], fault['in_a_row'], fault['total'], fault['checkpoint']) == (6, 1.0, 2, 3, 4)
    row = rows_of(whole[0])[4]
    assert fault['last_finite']['step'] == 4 and fault['last_finite']['values']['loss'] == row['loss']
    assert 'checkpoint 4 after 2 more steps' in fault['replay']

  def test_every_kind_of_array_comes_back_bit_for_bit(self, tmp_path):
    nan = jax.lax.bitcast_convert_type(jnp.array([0x7FC1, 0xFF81], jnp.uint16), jnp.bfloat16)
    batch = {
      'file': np.arange(3), 'a/b': np.array(['one', 'three']), 'words': np.array(['x', 'longer'], object), 'flag': np.array(True),
      'deep': {'list': [jnp.arange(2.0), np.zeros((0, 3), np.int8)], 'eight': np.array([1.5, -2], ml_dtypes.float8_e4m3fn)}, 'nan': nan,
    }  # fmt: skip
    where = Faults(tmp_path, 3).dump(7, jax.random.PRNGKey(3), batch, jax.random.split(jax.random.key(1, impl='rbg'), 2), {})
    assert 'could not' not in where
    step, key, back, inputs = replay(tmp_path / 'faults' / 'step_00000007')
    assert step == 7 and key.tolist() == jax.random.PRNGKey(3).tolist()
    assert back.keys() == batch.keys() and isinstance(back['deep']['list'], list) and back['words'].tolist() == ['x', 'longer']
    for got, wanted in [(back[k], batch[k]) for k in ('file', 'a/b', 'flag', 'nan')] + list(
      zip(jax.tree.leaves(back['deep']), jax.tree.leaves(batch['deep']))
    ):
      assert got.dtype == wanted.dtype and got.shape == wanted.shape and got.tobytes() == np.asarray(wanted).tobytes()
    assert str(jax.random.key_impl(inputs)) == 'rbg'
    assert jax.random.key_data(inputs).tolist() == jax.random.key_data(jax.random.split(jax.random.key(1, impl='rbg'), 2)).tolist()

  def test_nothing_pickled_is_read(self, tmp_path):
    Faults(tmp_path, 3).dump(7, jax.random.key(0), {'x': np.zeros(2)}, None, {})
    folder = tmp_path / 'faults' / 'step_00000007'
    np.savez(folder / 'batch.npz', x=np.array([{'a': 1}], object))
    with pytest.raises(UserError, match='is no whole dump'):
      replay(folder)

  @pytest.mark.parametrize('name', ['fault.json', 'batch.npz'])
  def test_a_torn_dump_is_refused(self, tmp_path, name):
    Faults(tmp_path, 3).dump(7, jax.random.key(0), {'x': np.zeros(2)}, None, {})
    path = tmp_path / 'faults' / 'step_00000007' / name
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match='is no whole dump'):
      replay(path.parent)
    with pytest.raises(UserError, match='is no whole dump'):
      replay(tmp_path / 'elsewhere')

  def test_each_process_has_its_own_rows(self, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda *unused: 2)
    folder = tmp_path / 'faults' / 'step_00000007'
    for index in (0, 1):
      monkeypatch.setattr(jax, 'process_index', lambda *unused, index=index: index)
      Faults(tmp_path, 3).dump(7, jax.random.key(0), {'x': np.full(2, index)}, None, {})
      assert replay(folder)[2]['x'].tolist() == [index, index]
    assert sorted(p.name for p in folder.iterdir()) == ['batch_process_0.npz', 'batch_process_1.npz', 'fault.json']


class TestDump:
  def test_the_newest_ten_are_kept(self, tmp_path):
    counted = Faults(tmp_path, 3)
    for step in (3, *range(95, 107)):
      counted.dump(step, jax.random.key(0), {'x': np.zeros(2)}, None, {})
    assert sorted(p.name for p in (tmp_path / 'faults').iterdir()) == [f'step_{s:08d}' for s in range(97, 107)]

  def test_a_batch_that_was_donated_is_said(self, tmp_path):
    x = jnp.zeros(3)
    x.delete()
    assert 'could not be dumped' in Faults(tmp_path, 3).dump(1, jax.random.key(0), {'x': x}, None, {})

  def test_the_shards_of_one_process_are_joined(self):
    mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x = jnp.arange(48.0).reshape(8, 6)
    for spec in (PartitionSpec('a', 'b'), PartitionSpec('a'), PartitionSpec(('a', 'b')), PartitionSpec()):
      shards = jax.device_put(x, NamedSharding(mesh, spec)).addressable_shards
      # the second half of the devices, two of the four rows of the mesh: the lower half of x wherever 'a' splits it
      wanted = x if spec == PartitionSpec() else x[4:]
      np.testing.assert_array_equal(faults._joined(shards[4:], x.shape, x.dtype), wanted)
      np.testing.assert_array_equal(faults.local_rows(jax.device_put(x, NamedSharding(mesh, spec))), x)


def test_count_starts_again_after_a_good_step():
  counted = Faults(Path('unused'), 2)
  assert [counted.count(r) for r in (True, False, True, True, True)] == [False, False, False, True, True]
  assert counted.state() == {'in_a_row': 3, 'total': 4, 'last_finite': None}
