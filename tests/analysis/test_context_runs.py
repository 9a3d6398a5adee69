"""Losses and entropies by position, on made ones whose answers are known, and the reading of a folder."""

import json

import numpy as np
import pytest

from entropy_jax.analysis import context_runs
from entropy_jax.analysis.context_runs import TUNED, UNTUNED, Extended, Task
from entropy_jax.training import sweeps
from entropy_jax.types import UserError

NAN = float('nan')
NOISE = 0.002 * np.array([-1.0, 0.0, 1.0])


def made(untuned, tuned, *, early: float = 0.0, late: float = 0.0, seeds: np.ndarray = NOISE) -> Extended:
  """Losses inside the window (4 positions), beyond it (to 16) and further (to 32), before and after tuning, bins of 2; halfway between them
  after the first updates. Entropy grows by `early` and `late` nats from one bin to the next, in two early and two late layers."""
  curve = lambda three: np.repeat(np.asarray(three, np.float64), [2, 6, 8])
  ends = np.stack([curve(untuned), (curve(untuned) + curve(tuned)) / 2, curve(tuned)])
  slope_L = np.array([early, early, late, late])
  entropy = np.broadcast_to(slope_L[:, None] * np.arange(1, 17), (len(seeds), 3, 4, 16)) + seeds[:, None, None, None] * np.arange(16)
  return Extended(np.array([0, 10, 20]), ends[None] + seeds[:, None, None], entropy)


def task(**given: Extended) -> Task:
  return Task('recall', given, context=4, tuned_context=16, longest=32, bin_size=2, exempt=2)


class TestTask:
  def test_losses_of_parts(self):
    found = task(none=made((1.0, 3.0, 4.0), (1.0, 2.0, 3.5), seeds=np.array([0.0, 0.1])))
    np.testing.assert_array_equal(found.positions, np.arange(2, 33, 2))
    np.testing.assert_allclose(found.loss('none', 0, 4, UNTUNED), [1.0, 1.1])
    np.testing.assert_allclose(found.loss('none', 4, 16, 1), [2.5, 2.6])
    np.testing.assert_allclose(found.loss('none', 16, 32, TUNED), [3.5, 3.6])

  def test_bins_without_target_are_left_out_and_diverged_ones_are_not(self):
    found = task(none=made((1.0, 3.0, 4.0), (1.0, 2.0, 3.5)), abf=made((1.0, 3.0, 4.0), (1.0, NAN, 3.5)))
    for x in found.extensions.values():
      x.loss_RxCxJ[..., 0] = NAN
    np.testing.assert_allclose(found.loss('none', 0, 4, UNTUNED), 1.0 + NOISE)
    assert np.isnan(found.loss('abf', 4, 16, TUNED)).all()

  def test_growth(self):
    found = task(none=made((1.0, 3.0, 4.0), (1.0, 2.0, 3.5), early=0.2, late=0.1, seeds=np.zeros(2)))
    # From the second to the eighth bin.
    np.testing.assert_allclose(found.growth('none', found.early, start=4, end=16), 1.2)
    np.testing.assert_allclose(found.growth('none', found.late, start=4, end=16), 0.6)


class TestLoad:
  def test_what_was_written(self, tmp_path):
    logged = {f'loss_at_{j}': np.array([[3.0, 2.0, 1.0]]) + j for j in range(4)}
    logged |= {f'entropy_at_{j}': np.arange(9.0).reshape(1, 3, 3) + 10 * j for j in range(4)}
    logged['loss_at_0'] = np.full((1, 3), NAN)
    for name in ('none', 'abf'):
      for k in range(2):
        curves = sweeps.Curves(np.full((1, 4), 2.5), logged, ())
        sweeps.write_seed(tmp_path / 'recall' / name / f'seed_{k}' / 'metrics.jsonl', curves, {}, [name], log_every=2)
    config = {
      'num_seeds': 2, 'num_layers': 3, 'context': 4, 'tuned_context': 8, 'longest': 16, 'bin_size': 4, 'tuning': {'log_every': 2},
      'short': {'num_steps': {'source_bytes': 0, 'recall': 5}}, 'extensions': {'abf': {'entropy_abf_exempt': 1}, 'none': {}},
    }  # fmt: skip
    (tmp_path / 'config.json').write_text(json.dumps(config))
    found = context_runs.load(tmp_path)
    assert list(found) == ['recall'] and list(found['recall'].extensions) == ['none', 'abf'] and found['recall'].exempt == 1
    x = found['recall'].extensions['abf']
    np.testing.assert_array_equal(x.step_C, [0, 2, 4])
    np.testing.assert_array_equal(x.loss_RxCxJ[1], [[NAN, 4, 5, 6], [NAN, 3, 4, 5], [NAN, 2, 3, 4]])
    assert x.entropy_RxCxLxJ.shape == (2, 3, 3, 4)
    np.testing.assert_array_equal(x.entropy_RxCxLxJ[0, 1], [[3, 13, 23, 33], [4, 14, 24, 34], [5, 15, 25, 35]])
    file = tmp_path / 'recall' / 'none' / 'seed_1' / 'metrics.jsonl'
    file.write_text('\n'.join(file.read_text().splitlines()[:-1]) + '\n')
    with pytest.raises(UserError, match='seeds of unequal length'):
      context_runs.load(tmp_path)
