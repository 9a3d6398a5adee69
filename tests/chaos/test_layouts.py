"""Runs on other devices: two hosts on the loopback address as processes of their own, and a run that moves between device counts."""

import json

import numpy as np
import pytest

from entropy_jax.chaos import layouts
from entropy_jax.chaos.layouts import LOSS, Difference
from tests.chaos.conftest import ROOT

TWO_HOSTS = next(layout for layout in layouts.LAYOUTS if layout.num_processes == 2 and layout.parallel == 'fsdp')


@pytest.fixture(scope='module', autouse=True)
def cache():
  """The processes of one layout compile their programs once."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache' / 'jax-studies'))
    patch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
    patch.setenv('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')
    yield


def start(workdir, layout, methods, num_steps):
  """A layout of one process runs in this one, which has eight devices: it starts at once, and shares the suite's compiled programs."""
  if layout.num_processes > 1:
    layouts.start(workdir, layout, methods, num_steps)
    return
  for method in methods:
    layouts.train(workdir / method, method, mode=layout.parallel, num_devices=layout.num_devices, num_steps=num_steps)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """The composed objective on one device and on every layout that a new user would try first."""
  folder = tmp_path_factory.mktemp('layouts')
  chosen = [layout for layout in layouts.LAYOUTS if layout.num_processes == 1] + [TWO_HOSTS]
  return folder, layouts.equality(folder, ['composed'], chosen, num_steps=4, start=start)


class TestEquality:
  @pytest.mark.parametrize('name', ['pmap x 8', 'fsdp x 8', TWO_HOSTS.name])
  def test_losses_selections_and_order_are_those_of_one_device(self, runs, name):
    found = runs[1][name, 'composed']
    # 4 steps; three selecting methods with three fingerprints each.
    assert (found.num_steps, found.num_selections) == (4, 3 * 3 * 4)
    assert found.loss <= 1e-5 and found.selections == 0 and found.same_order, found

  def test_two_hosts_leave_one_run(self, runs):
    folder = runs[0] / TWO_HOSTS.name / 'composed'
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    assert [row['step'] for row in rows] == [0, 1, 2, 3]
    assert len((folder / layouts.ORDER).read_text().splitlines()) == 4
    assert (folder / 'checkpoints' / '4' / 'manifest.json').exists()
    assert rows[0]['rollout/num_sequences'] == layouts.NUM_PROMPTS * layouts.GROUP_SIZE


class TestElastic:
  def test_resumes_on_another_number_of_devices(self, tmp_path):
    found = layouts.elastic(tmp_path, num_devices=(1, 8, 2), steps_each=2, start=start)
    assert found.num_steps == 6 and found.loss <= 1e-6 and found.selections == 0 and found.same_order, found


class TestDifference:
  """The comparison sees what it is there to see."""

  def write(self, folder, losses, selected=7.0, order='[1, 2]\n'):
    folder.mkdir()
    rows = [{'step': k, LOSS: loss, 'selected/top_0': selected} for k, loss in enumerate(losses)]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (folder / layouts.ORDER).write_text(order)
    return folder

  def test_of_itself(self, tmp_path):
    a, b = self.write(tmp_path / 'a', [1.0, 2.0]), self.write(tmp_path / 'b', [1.0, 2.0])
    assert layouts.difference(a, b) == Difference(0.0, 0, 2, True, 2)

  def test_loss_is_relative_to_itself_but_not_to_a_vanishing_one(self, tmp_path):
    # The root mean square of 4, 2, 4, 0 is 3: 0.004 on 4 is 1e-3, and 0.003 on 0 (or on 2) is 1e-3 of 3.
    a = self.write(tmp_path / 'a', [4.0, 2.0, 4.0, 0.0])
    np.testing.assert_allclose(layouts.difference(a, self.write(tmp_path / 'b', [4.004, 2.0, 4.0, 0.0])).loss, 1e-3)
    np.testing.assert_allclose(layouts.difference(a, self.write(tmp_path / 'c', [4.0, 2.003, 4.0, 0.0])).loss, 1e-3)
    np.testing.assert_allclose(layouts.difference(a, self.write(tmp_path / 'd', [4.0, 2.0, 4.0, 0.003])).loss, 1e-3)

  def test_another_selection_another_order_and_a_missing_row(self, tmp_path):
    a = self.write(tmp_path / 'a', [1.0, 2.0])
    assert layouts.difference(a, self.write(tmp_path / 'b', [1.0, 2.0], selected=8.0)).selections == 2
    assert not layouts.difference(a, self.write(tmp_path / 'c', [1.0, 2.0], order='[2, 1]\n')).same_order
    assert layouts.difference(a, self.write(tmp_path / 'd', [1.0])).loss == float('inf')


class TestStart:
  def test_what_fails_is_told(self, tmp_path):
    with pytest.raises(RuntimeError, match=r'(?s)one device: exit code 1.*KeyError'):
      layouts.start(tmp_path, layouts.ONE_DEVICE, ['no_such_method'], 1)
