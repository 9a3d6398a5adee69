"""The forest plot: what is drawn where, read back from the axes."""

import numpy as np
import pytest

from entropy_jax.analysis import figures
from entropy_jax.analysis.forest import DOWN, NONE, UP, Effect, color_of, forest, limits
from entropy_jax.types import UserError

NAN = float('nan')
MISSING = Effect(NAN, (NAN, NAN))


class TestColorOf:
  @pytest.mark.parametrize(
    ('interval', 'color'), [((0.1, 0.3), UP), ((-0.3, -0.1), DOWN), ((-0.1, 0.3), NONE), ((0.0, 0.3), NONE), ((NAN, NAN), NONE)]
  )
  def test_is_where_the_interval_lies(self, interval, color):
    assert color_of(Effect(0.0, interval)) == color


class TestLimits:
  def test_holds_every_interval_where_the_values_are_alike(self):
    low, high = limits([Effect(0.1, (0.05, 0.2)), Effect(-0.1, (-0.15, -0.02)), Effect(0.12, (0.1, 0.14))], 0.01)
    assert low <= -0.15 and high >= 0.2

  def test_one_far_value_does_not_squeeze_the_others(self):
    effects = [Effect(0.1, (0.05, 0.15))] * 19 + [Effect(50.0, (40.0, 60.0))]
    # The 90 % quantile is .1, three times it .3, and a margin of 5 % for the eye.
    assert limits(effects, 0.05)[1] == pytest.approx(1.05 * 0.3)

  def test_nothing_finite_leaves_the_margin(self):
    assert limits([MISSING], 0.05) == pytest.approx((-0.105, 0.105))


class TestForest:
  def test_marks_values_and_notes_what_is_missing(self):
    effects = [Effect(0.2, (0.1, 0.3)), Effect(-0.2, (-0.3, -0.1)), MISSING]
    figure = forest(['up', 'down', 'never'], {'entropy': effects}, margin=0.05, notes={'never': '2 of 5 seeds'})
    axes = figure.axes[0]
    marks = {line.get_marker(): line for line in axes.lines if line.get_marker() == 'o'}
    drawn = [(line.get_xdata()[0], line.get_ydata()[0], line.get_color()) for line in axes.lines if line.get_marker() == 'o']
    assert marks and drawn == [(0.2, 0, UP), (-0.2, 1, DOWN)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ['up', 'down', 'never']
    assert [text.get_text() for text in axes.texts] == ['2 of 5 seeds']
    bottom, top = axes.get_ylim()
    assert bottom > top  # the first name is at the top

  def test_an_arrow_stands_for_what_is_beyond_the_edge(self):
    effects = [Effect(0.1, (0.05, 0.15))] * 19 + [Effect(50.0, (40.0, 60.0))]
    axes = forest([str(i) for i in range(20)], {'entropy': effects}, margin=0.05).axes[0]
    (arrow,) = [line for line in axes.lines if line.get_marker() == '>']
    assert arrow.get_xdata()[0] == pytest.approx(axes.get_xlim()[1]) and arrow.get_ydata()[0] == 19

  def test_panels_share_their_rows(self, tmp_path):
    panels = {'all': [Effect(0.1, (0.0, 0.2))], 'forks': [Effect(0.3, (0.1, 0.5))]}
    figure = forest(['method'], panels)
    assert [axes.get_xlabel() for axes in figure.axes] == ['all', 'forks']
    assert figures.save(figure, tmp_path / 'forest.png').stat().st_size > 1000

  def test_panels_of_another_length_are_refused(self):
    with pytest.raises(UserError, match="the panel 'all' has 1 effects for 2 names"):
      forest(['a', 'b'], {'all': [MISSING]})


def test_values_survive_numpy_scalars():
  assert color_of(Effect(np.float64(1.0), (np.float64(0.5), np.float64(1.5)))) == UP
