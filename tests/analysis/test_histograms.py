"""analysis/histograms.py: bars stack to the number of events."""

from entropy_jax.analysis import figures
from entropy_jax.analysis.histograms import stacked_histogram


class TestStackedHistogram:
  def test_counts_and_keeps_colours(self):
    figure = stacked_histogram({'step': [0.1, 0.2, 1.9], 'save': [], 'evaluate': [0.1, 2.0]}, 'seconds', 'kills', num_bins=2)
    (axes,) = figure.axes
    # bins [0, 1) and [1, 2]: 2 + 1 of step, 1 + 1 of evaluate on top of them
    assert [patch.get_height() for patch in axes.patches] == [2, 1, 1, 1]
    assert [patch.get_y() for patch in axes.patches] == [0, 0, 2, 1]
    assert axes.get_legend_handles_labels()[1] == ['step (3)', 'evaluate (2)']
    assert axes.patches[2].get_facecolor()[:3] != axes.patches[0].get_facecolor()[:3]

  def test_no_events_at_all_can_be_saved(self, tmp_path):
    path = figures.save(stacked_histogram({'step': []}, 'seconds', 'kills'), tmp_path / 'a.png')
    assert path.stat().st_size > 1000
