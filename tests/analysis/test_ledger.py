"""Tests of entropy_jax.analysis.ledger: the bars stack to the prediction, whatever their signs."""

import itertools

import numpy as np
import pytest

from entropy_jax.analysis import ledger
from entropy_jax.measures.ledger import QUADRANTS


def run(seed: int, num_steps: int, *, history: bool = False) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  parts = {f'ledger/surrogate_{name}': rng.normal(size=num_steps) for name in QUADRANTS}
  parts['ledger/regularizer_entropy_bonus'] = rng.uniform(size=num_steps)
  parts['ledger/history'] = rng.normal(size=num_steps) * history
  total = sum(parts.values())
  return parts | {'ledger/predicted': total, 'ledger/measured': total + 0.1, 'ledger/surrogate': total, 'policy/entropy': total}


class TestTerms:
  def test_are_what_the_prediction_is_a_sum_of(self):
    metrics = run(0, 5, history=True)
    np.testing.assert_allclose(sum(metrics[name] for name in ledger.terms(metrics)), metrics['ledger/predicted'])
    assert list(ledger.terms(metrics).values())[-2:] == ['optimizer history', 'entropy bonus']

  def test_no_history_no_bar(self):
    assert 'optimizer history' not in ledger.terms(run(0, 5)).values()


class TestStacked:
  @pytest.mark.parametrize('num_steps', [1, 7, 200])
  def test_bars_stack_to_the_prediction(self, num_steps):
    runs = [run(seed, num_steps) for seed in range(3)]
    (axes,) = ledger.stacked(runs).axes
    heights = {container.get_label(): np.array([bar.get_height() for bar in container]) for container in axes.containers}
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert set(heights) == set(ledger.terms(runs[0]).values()) and len(heights['entropy bonus']) == min(num_steps, 60)
    np.testing.assert_allclose(sum(heights.values()), lines['predicted, their sum'], atol=1e-12)
    np.testing.assert_allclose(lines['measured'], lines['predicted, their sum'] + 0.1)

  def test_bars_of_one_sign_do_not_overlap(self):
    (axes,) = ledger.stacked([run(1, 4)]).axes
    for at in range(4):
      bars = [container[at] for container in axes.containers]
      spans = sorted(sorted((bar.get_y(), bar.get_y() + bar.get_height())) for bar in bars)
      assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(spans))
