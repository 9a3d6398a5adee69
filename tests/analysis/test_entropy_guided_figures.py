import numpy as np

from entropy_jax.analysis import entropy_guided_figures
from entropy_jax.analysis.entropy_guided_runs import Ladder
from tests.analysis.test_entropy_guided_runs import made


def ladder() -> Ladder:
  return Ladder({'ln_gelu': made([2.0, 2.1], (1.0, 0.3)), 'guided': made([2.0, 2.1], (0.6, 0.1), threshold=0.4)})


class TestBandsHeatmap:
  def test_a_row_a_variant_and_a_column_a_layer(self):
    figure = entropy_guided_figures.bands_heatmap(ladder(), ['ln_gelu', 'guided'])
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 4 and panels[0].get_title(loc='left') == 'layer 1' and panels[2].get_ylabel() == 'guided'
    np.testing.assert_array_equal(panels[0].images[0].get_array(), np.repeat([[0], [0], [0], [1]], 5, axis=1))
    np.testing.assert_array_equal(panels[1].images[0].get_array(), np.repeat([[0], [1], [0], [0]], 5, axis=1))


class TestEntropyHeatmap:
  def test_mean_over_heads_and_seeds(self):
    found = ladder()
    found.variants['ln_gelu'].entropy_RxCxLxH[0, :, 1] = 0.5
    figure = entropy_guided_figures.entropy_heatmap(found, ['ln_gelu', 'guided'])
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc='left') for axes in panels] == ['ln_gelu', 'guided']
    np.testing.assert_allclose(panels[0].images[0].get_array(), [[1.0] * 5, [0.4] * 5])


class TestThresholdsAndEntropies:
  def test_both_are_shares_of_the_largest(self):
    figure = entropy_guided_figures.thresholds_and_entropies(ladder(), ['guided'], context=4, tolerance=0.2)
    (axes,) = figure.axes
    dots = [line for line in axes.lines if line.get_linestyle() == 'None']
    assert len(dots) == 2 and axes.get_title(loc='left') == 'guided'
    share = np.mean(np.log([1, 2, 3, 4])) / np.log(4)  # uniform attention under a causal mask
    np.testing.assert_allclose(dots[0].get_ydata(), 0.6 * share)
    np.testing.assert_allclose(dots[1].get_xdata(), 0.4)
