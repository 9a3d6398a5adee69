import numpy as np

from entropy_jax.analysis import attention_figures
from entropy_jax.analysis.attention_runs import Sweeps
from entropy_jax.measures import attention_bound
from tests.analysis.test_attention_runs import GUESS, NAN, made

LOSS = np.array([[3.1, 3.1], [3.0, 3.0], [3.6, 3.05], [NAN, NAN]])
ENTROPY = np.array([[0.9, 0.9], [0.6, 0.6], [0.02, 0.5], [NAN, NAN]])


def task() -> Sweeps:
  bare = made(LOSS, ENTROPY)
  bare.layered.pop('scale')
  return Sweeps('digits', 16, {'pre_ln': made(LOSS, ENTROPY), 'qk_norm': bare})


class TestLossByRate:
  def test_lines_and_crosses(self):
    above, below = attention_figures.loss_by_rate(task()).axes
    assert above.get_xscale() == 'log' and {'pre_ln', 'qk_norm', 'guessing'} <= set(above.get_legend_handles_labels()[1])
    line = next(line for line in above.lines if line.get_label() == 'pre_ln')
    np.testing.assert_allclose(line.get_ydata(), [3.1, 3.0, (GUESS + 3.05) / 2, GUESS], rtol=1e-6)
    crosses = [line.get_ydata() for line in above.lines if line.get_marker() == 'x']
    assert len(crosses) == 4 and all(np.isnan(y[:3]).all() and np.isclose(y[3], GUESS) for y in crosses)
    np.testing.assert_allclose(below.lines[0].get_ydata(), [0.9, 0.6, 0.26, NAN])


class TestEntropyHeatmap:
  def test_panels(self):
    figure = attention_figures.entropy_heatmap(task(), ['pre_ln', 'qk_norm'], [0, 2, 3])
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 6 and panels[0].get_title(loc='left') == 'pre_ln' and panels[3].get_title(loc='left') == 'qk_norm'
    assert [text.get_text() for axes in panels for text in axes.texts] == [f'learning rate {rate}' for rate in ('0.001', '0.03', '0.1')]
    image = panels[1].images[0].get_array()  # [L, C], the mean over seeds of .02 and .5, and .3 more in the second layer
    np.testing.assert_allclose(image, [[0.26] * 5, [0.56] * 5])
    assert np.ma.getmaskarray(panels[2].images[0].get_array()).all()  # nothing is finite there


class TestEntropyByScale:
  def test_bound_is_under_the_dots_of_those_that_have_a_scale(self):
    (axes,) = attention_figures.entropy_by_scale(task()).axes
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ['pre_ln', 'lower bound for 16 keys', 'uniform attention']
    dots, bound = axes.lines[0], axes.lines[1]
    np.testing.assert_array_equal(dots.get_xdata(), 2.0)
    np.testing.assert_array_equal(dots.get_ydata(), 3.0)
    place = np.argmin(np.abs(bound.get_xdata() - 2.0))
    np.testing.assert_allclose(bound.get_ydata()[place], attention_bound.lower_bound(16, bound.get_xdata()[place]), rtol=1e-5)

  def test_nothing_finite(self):
    swept = made(np.full((4, 2), NAN), np.full((4, 2), NAN))
    swept.layered['scale'][:] = NAN
    (axes,) = attention_figures.entropy_by_scale(Sweeps('digits', 16, {'pre_ln': swept})).axes
    assert axes.lines[0].get_xdata().size == 0
