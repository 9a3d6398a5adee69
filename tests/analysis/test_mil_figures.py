"""Figures of the AEM study: what is drawn, read back from the axes."""

import numpy as np
import pytest

from entropy_jax.analysis import mil_figures
from tests.analysis.test_mil_runs import STEPS, bagged


class TestAucByCoef:
  @pytest.mark.parametrize('annealed', [True, False])
  def test_panels(self, annealed):
    tasks = {'gaussian': bagged(task='gaussian', annealed=annealed), 'digits': bagged(annealed=annealed)}
    figure = mil_figures.auc_by_coef(tasks)
    assert [axes.get_title(loc='left') for axes in figure.axes] == list(tasks)
    labelled = {line.get_label(): line for line in figure.axes[1].lines if not line.get_label().startswith('_')}
    assert list(labelled) == ['constant', *(['annealed'] if annealed else []), 'mean pooling']
    np.testing.assert_allclose(labelled['constant'].get_ydata(), tasks['digits'].grid('test/auc').mean(axis=1))
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ['0', '0.1', '1']


class TestEntropyByStep:
  def test_lines(self):
    found = bagged()
    (axes,) = mil_figures.entropy_by_step({'digits': found}).axes
    assert [line.get_label() for line in axes.lines] == ['λ = 0', 'λ = 0.1', 'λ = 1']
    np.testing.assert_array_equal(axes.lines[2].get_xdata(), STEPS)
    np.testing.assert_allclose(axes.lines[2].get_ydata(), found.measured['aem_1']['train/relative_entropy'].mean(axis=0))


class TestBagOfDigits:
  def test_targets_come_first_and_padding_does_not_come(self):
    figure = mil_figures.bag_of_digits(bagged(), ['aem_0', 'aem_1'])
    titles = [axes.get_title(loc='left') for axes in figure.axes]
    assert titles == [f'{name}, 80% of attention on the 2 targets' for name in ('aem_0', 'aem_1')]
    for axes in figure.axes:
      assert [text.get_text() for text in axes.texts] == ['0.70', '0.10', '0.10', '0.10'] and len(axes.images) == 4
    # The first shown is instance 1 of the positive bag, dark where its pixels are high.
    want = -np.linspace(-1, 1, 2 * 5 * 64).reshape(2, 5, 8, 8)[1, 1]
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), want)
