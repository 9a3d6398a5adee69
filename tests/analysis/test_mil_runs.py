"""The arrays of the AEM study: names of settings, what validation bags choose, and a folder read back."""

import json

import numpy as np
import pytest

from entropy_jax.analysis import mil_runs
from entropy_jax.types import UserError

STEPS = np.array([20, 40])


def bagged(num_seeds: int = 6, *, task: str = 'digits', annealed: bool = True, gain: float = 0.1, **final) -> mil_runs.Bagged:
  """A study of lambda 0, .1 and 1 in which lambda adds `gain` to every AUC a step of the grid, and entropy grows with it.

  Args:
    final: 'SETTING/SPLIT/NAME' with __ for / -> [R] or a number, at the end of training.
  """
  rng = np.random.default_rng(0)
  coefs = (0.0, 0.1, 1.0)
  names = [*mil_runs.setting_names(coefs, annealed=annealed), mil_runs.MEAN_POOLING]
  measured = {}
  for name in names:
    coef = 10.0 if name == mil_runs.MEAN_POOLING else float(name.split('_')[1])
    rank = {0.0: 0, 0.1: 1, 1.0: 2, 10.0: 1}[coef]
    noise = lambda: rng.normal(0, 1e-3, num_seeds)
    at_end = {
      'loss': 0.5 - 0.1 * rank, 'accuracy': 0.6, 'auc': 0.6 + gain * rank, 'entropy': 1.0 + rank, 'relative_entropy': 0.3 + 0.3 * rank,
      'instance_auc': 0.7, 'instances_per_target': 0.5 + rank,
    }  # fmt: skip
    measured[name] = {}
    for split in mil_runs.SPLITS:
      for key, value in at_end.items():
        end_R = value + noise() - (0.4 if (split, key) == ('train', 'loss') else 0.0)
        measured[name][f'{split}/{key}'] = np.stack([0.9 * end_R, end_R], axis=1)
  for path, value in final.items():
    name, measure = path.split('__', 1)
    measured[name][measure.replace('__', '/')][:, -1] = value
  examples = {
    'instances_BxNxF': np.linspace(-1, 1, 2 * 5 * 64).reshape(2, 5, 64).tolist(),
    'mask_BxN': [[True] * 5, [True] * 4 + [False]],
    'is_target_BxN': [[False] * 5, [False, True, True, False, False]],
    'label_B': [0, 1],
    'weight': {name: [[0.2] * 5, [0.1, 0.7, 0.1, 0.1, 0.0]] for name in names},
  }
  return mil_runs.Bagged(task, np.array(coefs), annealed, STEPS, measured, examples)


class TestSettingNames:
  def test_order(self):
    assert mil_runs.setting_names((10.0, 0.0, 0.5), annealed=True) == {
      'aem_0': (0.0, False), 'aem_0.5': (0.5, False), 'aem_10': (10.0, False), 'annealed_0.5': (0.5, True), 'annealed_10': (10.0, True),
    }  # fmt: skip


class TestBagged:
  def test_names(self):
    found = bagged()
    assert found.constant == ['aem_0', 'aem_0.1', 'aem_1'] and found.annealed == ['annealed_0.1', 'annealed_1']
    assert found.plain == 'aem_0' and bagged(annealed=False).annealed == []

  def test_validation_bags_choose(self):
    """By AUC; of equal ones, by loss; the test bags are not asked."""
    found = bagged(
      3,
      aem_0__validation__auc=[0.9, 0.8, 0.8], **{'aem_0.1__validation__auc': [0.5, 0.8, 0.9]}, aem_1__validation__auc=[0.1, 0.8, 0.9],
      aem_0__validation__loss=[9.0, 0.3, 0.1], **{'aem_0.1__validation__loss': [0.1, 0.2, 0.5]}, aem_1__validation__loss=[0.1, 0.4, 0.4],
      aem_0__test__auc=[0.1, 0.2, 0.3], **{'aem_0.1__test__auc': [0.4, 0.5, 0.6]}, aem_1__test__auc=[0.7, 0.8, 0.9],
    )  # fmt: skip
    assert found.chosen().tolist() == [0, 1, 2]
    assert found.at_choice('test/auc').tolist() == [0.1, 0.5, 0.9]

  def test_early_stopping_is_a_step_of_the_same_run(self):
    found = bagged(2, aem_0__validation__auc=[0.9, 0.1])
    measured = found.measured['aem_0']
    assert found.stopped_early('aem_0', 'test/auc').tolist() == [measured['test/auc'][0, 1], measured['test/auc'][1, 0]]


class TestLoad:
  def test_round_trip(self, tmp_path):
    """Rows of every update, of which every second has measures; a task without updates is left out."""
    tasks = {'gaussian': {'num_steps': 0}, 'digits': {'num_steps': 4}, 'digit_kinds': {'num_steps': 0}}
    (tmp_path / 'config.json').write_text(json.dumps({'coefs': [1.0, 0.0], 'annealed': False, 'num_seeds': 2, 'log_every': 2, **tasks}))
    for k in range(2):
      folder = tmp_path / 'digits' / f'seed_{k}'
      folder.mkdir(parents=True)
      rows = [{'step': n} for n in range(5)]
      for i, name in enumerate(('aem_0', 'aem_1', 'mean_pooling')):
        for n in (2, 4):
          rows[n] |= {f'{name}/{split}/{key}': 100.0 * k + 10 * i + n for split in mil_runs.SPLITS for key in mil_runs.MEASURES}
      (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (tmp_path / 'digits' / mil_runs.EXAMPLES).write_text('{"label_B": [1]}')
    found = mil_runs.load(tmp_path)
    assert list(found) == ['digits'] and found['digits'].examples == {'label_B': [1]}
    assert found['digits'].log_step_C.tolist() == [2, 4] and found['digits'].coef_K.tolist() == [0.0, 1.0]
    assert found['digits'].measured['mean_pooling']['test/auc'].tolist() == [[22.0, 24.0], [122.0, 124.0]]
    (tmp_path / 'digits' / 'seed_1' / 'metrics.jsonl').unlink()
    with pytest.raises(UserError, match='seed_1'):
      mil_runs.load(tmp_path)
