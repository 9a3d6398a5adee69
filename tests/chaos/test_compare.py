"""chaos/compare.py: every bit of two runs is compared, without the program that made them."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.chaos import compare
from entropy_jax.training.checkpoints import Checkpoints
from tests.training import tiny_run


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  return workdir, tiny_run.run(workdir / 'seed_0')


class TestLoad:
  def test_brings_every_leaf_back_by_its_path(self, run):
    workdir, state = run
    step, found, host = compare.load(workdir / 'seed_0' / 'checkpoints')
    assert step == tiny_run.NUM_STEPS and host['data'] == {'position': tiny_run.NUM_STEPS}
    assert isinstance(found, compare.Leaves) and "['params']['half']" in found.by_path and "['key']" in found.by_path
    expected = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    assert found.by_path.keys() == expected.keys()
    assert compare.digests(found) == compare.digests(state)


class TestDigests:
  def test_sees_bits_dtype_and_shape(self):
    zero = compare.digests({'x': np.zeros(2, np.float32)})
    assert compare.digests({'x': jnp.zeros(2)}) == zero
    others = [np.array([0.0, -0.0], np.float32), np.zeros(2, np.int32), np.zeros((2, 1), np.float32)]
    assert all(compare.digests({'x': other}) != zero for other in others)
    assert compare.digests({'x': jax.random.key(1)}) != compare.digests({'x': jax.random.key(2)})


class TestFingerprint:
  def test_equal_runs_are_equal(self, run, tmp_path):
    tiny_run.run(tmp_path / 'seed_0')
    assert compare.differences(compare.fingerprint(run[0]), compare.fingerprint(tmp_path)) == []

  def test_names_what_differs(self, run, tmp_path):
    shutil.copytree(run[0], tmp_path / 'copy')
    checkpoints = tmp_path / 'copy' / 'seed_0' / 'checkpoints'
    step, state, host = compare.load(checkpoints)
    state.by_path["['count']"] = state.by_path["['count']"] + 1
    manager = Checkpoints(checkpoints)
    manager.save(step + 1, state, host | {'best': None})
    manager.close()
    with open(tmp_path / 'copy' / 'seed_0' / 'metrics.jsonl', 'a', encoding='utf-8') as file:
      file.write(json.dumps({'step': 99}) + '\n')
    found = compare.differences(compare.fingerprint(run[0]), compare.fingerprint(tmp_path / 'copy'))
    assert found == [
      "seed_0/checkpoints ['count'] differs",
      'seed_0/checkpoints host differs',
      'seed_0/checkpoints step differs',
      'seed_0/metrics.jsonl differs',
      'seed_0/metrics.jsonl rows differs',
    ]

  def test_missing_and_superfluous(self):
    assert compare.differences({'a': '1'}, {'b': '1'}) == ['a is missing', 'b should not be there']
