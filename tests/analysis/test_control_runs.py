"""The folder of the entropy-control study, written by hand: its columns, what the tuning seeds choose, and what is read back."""

import json

import numpy as np
import pytest

from entropy_jax.analysis import control_runs
from entropy_jax.training.writers import format_row

TARGETS = [0.5, 1.0]
CONTROLLERS = {
  'grpo': {'origin': 'reference', 'settings': [{}], 'chosen': 'over_targets'},
  'ter': {'origin': 'published', 'settings': [{'coef': 0.1}, {'coef': 0.2}], 'chosen': 'over_targets'},
  'epo': {'origin': 'published', 'settings': [{'coef': 0.1}, {'coef': 0.2}], 'chosen': 'each_target'},
  'model_based': {'origin': 'here', 'settings': [{'horizon': 2.0}, {'horizon': 4.0}], 'chosen': 'over_targets'},
}


def write(folder, offsets, *, own=False):
  """A run of five rollouts and a last row, whose entropy misses each target by an offset."""
  folder.mkdir(parents=True)
  rows = []
  for step in range(6):
    row = {}
    for target, offset in zip(TARGETS, offsets):
      row |= {control_runs.column(target, 'entropy'): target + offset, control_runs.column(target, 'success'): 0.5}
      if own and step < 5:
        row[control_runs.column(target, 'own_entropy')] = target + offset / 2
    rows.append(format_row(step, row))
  (folder / 'metrics.jsonl').write_text('\n'.join(rows) + '\n')


@pytest.fixture(scope='module')
def study(tmp_path_factory):
  """Setting 0 misses by .1 and .4, setting 1 by .2 and .2: the second is better over targets, the first at the first target."""
  root = tmp_path_factory.mktemp('study')
  for name, given in CONTROLLERS.items():
    folder = root / 'fork_tokens' / name
    for i, offsets in enumerate(((0.1, 0.4), (0.2, 0.2)) if len(given['settings']) > 1 else ()):
      for k in range(2):
        write(control_runs.tuning_folder(folder, i, k), offsets)
    for k in range(3):
      write(folder / f'seed_{k}', (0.3 + 0.1 * k, -0.3), own=name == 'ter')
  config = {
    'targets': TARGETS, 'num_seeds': 3, 'num_tuning_seeds': 2, 'band': 0.05, 'controllers': CONTROLLERS,
    'fork_tokens': {'num_steps': 5, 'settle_by': 2}, 'mod_sum': {'num_steps': 0, 'settle_by': 2},
  }  # fmt: skip
  (root / 'config.json').write_text(json.dumps(config))
  return root


class TestColumns:
  def test_one_a_target_and_quantity(self):
    curves = {
      'exact/entropy_all': np.array([[1.0, 2.0], [3.0, 4.0]]),
      'exact/success': np.zeros((2, 2)),
      'regularizer/aent/entropy': np.array([[5.0], [6.0]]),
      'regularizer/aent/coefficient': np.array([[7.0], [8.0]]),
      'rollout/temperature': np.array([[1.2], [0.8]]),
      'rollout/reward': np.ones((2, 1)),
      'update/loss': np.ones((2, 1)),
    }
    found = control_runs.columns(curves, TARGETS)
    names = {'entropy', 'success', 'own_entropy', 'coefficient', 'temperature'}
    assert set(found) == {f'target_{target}/{name}' for target in ('0.5', '1') for name in names}
    np.testing.assert_array_equal(found['target_1/entropy'], [3.0, 4.0])
    np.testing.assert_array_equal(found['target_0.5/own_entropy'], [5.0])


class TestChosen:
  how = {'num_settings': 2, 'num_seeds': 2, 'settle_by': 2}

  def test_over_targets_and_for_each(self, study):
    folder = study / 'fork_tokens' / 'ter'
    np.testing.assert_array_equal(control_runs.chosen(folder, TARGETS, each_target=False, **self.how), [1, 1])
    np.testing.assert_array_equal(control_runs.chosen(folder, TARGETS, each_target=True, **self.how), [0, 1])

  def test_one_setting_needs_no_tuning(self, tmp_path):
    found = control_runs.chosen(tmp_path / 'none', TARGETS, num_settings=1, num_seeds=2, settle_by=2, each_target=False)
    np.testing.assert_array_equal(found, [0, 0])


class TestLoad:
  def test_reads_what_was_run(self, study):
    testbeds = control_runs.load(study)
    assert list(testbeds) == ['fork_tokens']
    bed = testbeds['fork_tokens']
    assert bed.of('published') == ['ter', 'epo'] and bed.of('here') == ['model_based']
    ter = bed.controllers['ter']
    assert ter.entropy_KxRxN.shape == (2, 3, 6) and ter.own_KxRxN is not None and ter.own_KxRxN.shape == (2, 3, 5)
    assert bed.controllers['epo'].own_KxRxN is None
    assert ter.setting() == 'coef 0.2' and bed.controllers['epo'].setting() == 'coef 0.1; coef 0.2'
    assert bed.controllers['grpo'].setting() == ''

  def test_numbers_of_a_testbed(self, study):
    bed = control_runs.load(study)['fork_tokens']
    # Seeds miss the first target by .3, .4, .5 and the second by .3; the statistic of its own by half of that.
    np.testing.assert_allclose(bed.error('ter'), [[0.3, 0.4, 0.5], [0.3, 0.3, 0.3]])
    np.testing.assert_allclose(bed.error('ter', own=True), [[0.15, 0.2, 0.25], [0.15, 0.15, 0.15]])
    # The reference ends at .8, .9 and 1 of its first row: .9 in the mean, between the targets.
    np.testing.assert_allclose(bed.floor(), 0.9)
    np.testing.assert_array_equal(bed.above(), [False, True])
