"""Figures of the recipes study: what they draw of made runs."""

import numpy as np

from entropy_jax.analysis import recipes_figures
from tests.analysis.test_recipes_runs import NAN, deep, recipe

DEEP = {
  'post_ln': deep('post_ln', [[0.1, 0.2], [1.0, 1.2]], [[1.9, 1.8], [NAN, 1.9]], [[1.9, 1.9], [NAN, NAN]]),
  'deepnorm': deep('deepnorm', *[[[0.1, 0.1], [0.3, 0.3]]] * 3),
}


def lines(axes) -> dict[str, np.ndarray]:
  return {line.get_label(): line.get_ydata() for line in axes.get_lines() if not line.get_label().startswith('_')}


class TestTuning:
  def test_mean_accuracy_and_the_chosen_rate(self):
    figure = recipes_figures.tuning({'tuned': recipe('tuned', [95.0, 96.0]), 'pre_ln_sgd': recipe('pre_ln_sgd', [90.0, 91.0], tuned_at=2)})
    (axes,) = figure.axes
    np.testing.assert_allclose(lines(axes)['pre_ln_sgd'], [50.0, 50.0, 90.0])
    rings = [line.get_xdata() for line in axes.get_lines() if line.get_markersize() == 12]
    np.testing.assert_allclose(np.ravel(rings), [1e-2, 1e-1])


class TestLossByDepth:
  def test_a_diverged_run_stands_at_the_unigram_loss(self):
    first, second = recipes_figures.loss_by_depth(DEEP).axes
    np.testing.assert_allclose(lines(first)['post_ln'], [0.15, 1.85, 1.9])
    assert {'unigram model', '0.5 of it: trains below', 'deepnorm'} <= lines(first).keys() and not lines(second)
    crosses = np.concatenate([line.get_ydata().ravel() for line in second.get_lines() if line.get_marker() == 'x'])
    np.testing.assert_allclose(crosses[np.isfinite(crosses)], 2.0)
    assert np.isfinite(crosses).sum() == 3 and second.get_title(loc='left') == 'learning rate 0.01'


class TestEntropyByDepth:
  def test_a_row_a_kind_and_a_column_a_variant(self):
    figure = recipes_figures.entropy_by_depth(DEEP)
    assert len(figure.axes) == 6
    found = figure.axes[0].get_lines()
    assert [len(line.get_ydata()) for line in found] == [4, 8, 16]
    assert [line.get_linestyle() for line in found] == ['-', '--', '--']  # post_ln trains at 4 alone
    np.testing.assert_allclose(found[0].get_ydata(), 0.5 * np.linspace(0.5, 1.0, 12)[:4])
    assert figure.axes[4].get_ylabel() == 'decoder, to the source'
