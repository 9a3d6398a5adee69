"""What follows from the entropies of heads, on made ones whose answers are known, and the reading of a folder."""

import json

import numpy as np
import pytest

from entropy_jax.analysis import entropy_guided_runs
from entropy_jax.analysis.entropy_guided_runs import Ladder, Trained
from entropy_jax.training import sweeps
from entropy_jax.types import UserError

NAN = float('nan')
STEPS = 10 * np.arange(1, 6)


def made(loss_R, entropy_L=(0.9, 0.5), *, threshold: float | None = None, heads: int = 4) -> Trained:
  """A variant that ends with these losses, and whose heads all have the entropy of their layer at every measure."""
  loss_R = np.asarray(loss_R, np.float64)
  R, C, L = loss_R.size, STEPS.size, len(entropy_L)
  entropy = np.broadcast_to(np.asarray(entropy_L)[None, None, :, None], (R, C, L, heads)).copy()
  curve = np.linspace(1.0, 0.0, C)[None] + loss_R[:, None]
  level = None if threshold is None else np.full(entropy.shape, threshold)
  return Trained(STEPS, np.repeat(curve, 10, axis=1), curve, entropy, level, np.full((R, C, L), 7.0))


class TestTrained:
  def test_late_entropy_is_of_the_last_fifth(self):
    found = made([2.0, 2.1])
    found.entropy_RxCxLxH[:, -1, 1, 0] = 0.1  # one of five measures is late
    np.testing.assert_allclose(found.late_entropy[0], [[0.9] * 4, [0.1, 0.5, 0.5, 0.5]])
    np.testing.assert_allclose(found.layer_entropy(1), [0.4, 0.4])
    np.testing.assert_array_equal(found.final_loss, [2.0, 2.1])


class TestLadder:
  def test_shares_are_of_the_largest_entropy_seen(self):
    # The range ends at .8: above .6 is overload, below .2 collapse.
    one = made([2.0, 2.0], (0.8, 0.5))
    other = made([2.0, 2.0], (0.61, 0.19))
    other.entropy_RxCxLxH[1, :, 0, :2] = 0.59
    other.entropy_RxCxLxH[1, :, 1, 3] = NAN
    ladder = Ladder({'ln_gelu': one, 'fused': other})
    assert ladder.most == 0.8 and ladder.baseline is one
    shares = ladder.shares('fused')
    np.testing.assert_allclose([shares['overload'], shares['collapse'], shares['undefined']], [[0.5, 0.25], [0.5, 0.375], [0.0, 0.125]])

  def test_bands_hold_every_finite_head_once(self):
    found = made([2.0, 2.0], (1.0, 0.5))
    found.entropy_RxCxLxH[0, 0, 1] = [0.0, 0.24, 0.26, NAN]
    bands = Ladder({'ln_gelu': found}).bands('ln_gelu')  # [L, C, bands]
    np.testing.assert_allclose(bands[0], [[0, 0, 0, 1]] * 5)  # the largest is in the last band
    np.testing.assert_allclose(bands[1, 0], [2 / 8, 1 / 8, 4 / 8, 0])
    np.testing.assert_allclose(bands[1, 1:], [[0, 0, 1, 0]] * 4)


class TestLoad:
  def write(self, folder, *, guided: bool, num_steps: int = 4):
    logged = {'held_out_loss': np.array([[2.0, 1.5]]), 'largest_logit': np.arange(4.0).reshape(1, 2, 2)}
    for h in range(3):
      logged[f'head_{h}/entropy'] = 0.1 * h + np.array([[[0.1, 0.2], [0.3, 0.4]]])
      if guided:
        logged[f'head_{h}/threshold'] = np.full((1, 2, 2), 0.5 + h)
    curves = sweeps.Curves(np.full((1, num_steps), 2.5), logged, ())
    for k in range(2):
      sweeps.write_seed(folder / f'seed_{k}' / 'metrics.jsonl', curves, {}, [folder.name], log_every=2)

  def test_what_was_written(self, tmp_path):
    self.write(tmp_path / 'ln_gelu', guided=False)
    self.write(tmp_path / 'guided', guided=True)
    (tmp_path / 'config.json').write_text(json.dumps({'num_seeds': 2, 'log_every': 2, 'variants': {'guided': {}, 'ln_gelu': {}}}))
    ladder = entropy_guided_runs.load(tmp_path)
    assert list(ladder.variants) == ['ln_gelu', 'guided'] and ladder.baseline.threshold_RxCxLxH is None
    found = ladder.variants['guided']
    np.testing.assert_array_equal(found.step_C, [2, 4])
    assert found.entropy_RxCxLxH.shape == (2, 2, 2, 3) and found.loss_RxN.shape == (2, 4)
    np.testing.assert_allclose(found.entropy_RxCxLxH[1, 1], [[0.3, 0.4, 0.5], [0.4, 0.5, 0.6]])
    np.testing.assert_allclose(found.threshold_RxCxLxH[0, 0, 1], [0.5, 1.5, 2.5])
    np.testing.assert_allclose(found.largest_logit_RxCxL[0], [[0, 1], [2, 3]])

  def test_seeds_of_unequal_length(self, tmp_path):
    self.write(tmp_path / 'fused', guided=False)
    file = tmp_path / 'fused' / 'seed_1' / 'metrics.jsonl'
    file.write_text('\n'.join(file.read_text().splitlines()[:-1]) + '\n')
    with pytest.raises(UserError, match='seeds of unequal length'):
      entropy_guided_runs.trained(tmp_path / 'fused', num_seeds=2, log_every=2)
