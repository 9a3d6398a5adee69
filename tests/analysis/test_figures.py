"""Figures show the numbers they are given, keep their texts inside the frame, and leave matplotlib's state alone."""

import matplotlib
import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf
from matplotlib.colors import to_rgb
from scipy import stats

from entropy_jax.analysis import figures as F
from entropy_jax.analysis import statistics
from entropy_jax.types import UserError

STEP_N = np.arange(0, 50, 5)
NAMES = ['GRPO', 'clip-higher', 'Clip-Cov', 'KL-Cov β=1', 'KL-Cov β=5', 'bonus', 'adaptive entropy', 'top-20 %', 'PG']


def curves(names, num_runs=5, seed=0):
  rng = np.random.default_rng(seed)
  fall_N = np.exp(-STEP_N / 20)
  return {name: (STEP_N, 1 + fall_N + 0.05 * rng.normal(size=(num_runs, STEP_N.size))) for name in names}


def line_named(axes, label):
  return next(line for line in axes.get_lines() if line.get_label() == label)


def texts_of(figure):
  return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def assert_nothing_is_cut(figure):
  """Every visible text, legends included, is inside the canvas, and no legend covers the axes."""
  figure.draw_without_rendering()
  renderer = figure.canvas.get_renderer()
  drawn = figure.get_tightbbox(renderer)  # in inches, of everything that is drawn
  assert min(drawn.x0, drawn.y0) >= 0, drawn
  assert drawn.x1 <= figure.get_figwidth() and drawn.y1 <= figure.get_figheight(), drawn
  for legend in figure.legends:
    for axes in figure.axes:
      assert not legend.get_window_extent(renderer).overlaps(axes.get_window_extent(renderer))


def every_figure():
  series = curves(NAMES)
  h_M = np.linspace(2.0, 1.0, 30)
  r_M = 1.2 - 0.15 * np.exp(h_M)
  change = 0.001 * np.random.default_rng(0).normal(size=(5, 40))
  return {
    'curves': F.curves_with_bands(series, 'entropy (nats a token)', title='All'),
    'two': F.entropy_and_success(series, series),
    'seeds': F.entropy_and_success(curves(['RL']), curves(['RL']), per_seed=True),
    'covariance': F.covariance_over_training(series, linear_within=1e-3),
    'law': F.law_figure(
      h_M, r_M, np.arange(30) < 10, fit=(0.15, 1.2), early_fit=(0.14, 1.15), r_squared=0.98,
      prediction=(h_M, r_M - 0.1, r_M + 0.1),
    ),
    'scatter': F.predicted_against_measured({'policy gradient': (change, change), 'natural': (change, -change)}),
    'matched': F.matched_success_bars({n: 1 + np.arange(5) * 0.1 for n in NAMES}, xlabel='entropy (nats)', title='t'),
  }


class TestEveryFigure:
  def test_nothing_is_cut_and_saving_makes_a_wide_png(self, tmp_path):
    for name, figure in every_figure().items():
      assert_nothing_is_cut(figure)
      path = F.save(figure, tmp_path / 'figures' / f'{name}.png')
      content = path.read_bytes()
      assert content.startswith(b'\x89PNG')
      assert int.from_bytes(content[16:20], 'big') >= 1400, name  # twice the 700 pixels it is shown at
      assert not figure.axes, 'save releases the figure'

  def test_global_settings_stay_untouched(self):
    before = dict(matplotlib.rcParams)
    figure = F.curves_with_bands(curves(['GRPO', 'KL-Cov']), 'entropy (nats)')
    assert dict(matplotlib.rcParams) == before
    assert not figure.axes[0].spines['top'].get_visible()

  def test_pyplot_holds_no_figure(self):
    # What pyplot registers is never freed before it is closed by hand.
    assert every_figure() and not Gcf.get_all_fig_managers()

  def test_only_png(self, tmp_path):
    with pytest.raises(UserError, match=r'must end in \.png'):
      F.save(F.curves_with_bands(curves(['GRPO']), 'entropy (nats)'), tmp_path / 'a.pdf')


class TestStylesFor:
  def test_nine_methods_can_be_told_apart(self):
    styles = F.styles_for(NAMES)
    looks = {(style['color'], str(style['linestyle'])) for style in styles.values()}
    assert len(looks) == 9 and len({style['marker'] for style in styles.values()}) == 9
    assert styles['GRPO']['color'] == F.INK

  def test_colours_keep_apart_for_deuteranopes(self):
    # Machado et al. (2009), severity 1, on linear RGB; two lines with the same dash must differ clearly after it.
    rows = [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]
    matrix = np.array(rows)

    def seen(color):
      rgb = np.array(to_rgb(color))
      linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
      return np.clip(matrix @ linear, 0, 1) ** (1 / 2.2)

    for i in range(9):
      for j in range(i):
        if F.DASHES[i] == F.DASHES[j]:
          assert np.linalg.norm(seen(F.COLORS[i]) - seen(F.COLORS[j])) > 0.2, (F.COLORS[i], F.COLORS[j])

  def test_ten_are_refused(self):
    with pytest.raises(UserError, match='at most 9'):
      F.styles_for([str(i) for i in range(10)])


class TestMeanAndBand:
  def test_against_scipy(self):
    value_RxN = np.random.default_rng(0).normal(size=(6, 4))
    mean_N, low_N, high_N = F.mean_and_band(value_RxN)
    for i in range(4):
      expected = stats.ttest_1samp(value_RxN[:, i], 0.0).confidence_interval(0.95)
      np.testing.assert_allclose([low_N[i], high_N[i]], expected, rtol=1e-12)
    np.testing.assert_allclose(mean_N, value_RxN.mean(0))

  def test_gaps(self):
    nan = np.nan
    mean_N, low_N, high_N = F.mean_and_band(np.array([[1.0, 1.0, nan], [3.0, nan, nan]]))
    np.testing.assert_array_equal(mean_N, [2.0, 1.0, nan])
    # Two runs: mean 2, standard error sqrt(2) / sqrt(2) = 1, t(.975, 1) = 12.7062
    np.testing.assert_allclose(high_N, [2 + 12.7062047, nan, nan], rtol=1e-7)
    assert np.isnan(low_N[1])


class TestCurvesWithBands:
  def test_line_is_the_mean_and_names_are_in_the_legend(self):
    series = curves(['GRPO', 'KL-Cov'])
    figure = F.curves_with_bands(series, 'entropy (nats a token)', bounds=(0.0, 1.5))
    (axes,) = figure.axes
    line = line_named(axes, 'GRPO')
    np.testing.assert_array_equal(line.get_xdata(), STEP_N)
    np.testing.assert_allclose(line.get_ydata(), series['GRPO'][1].mean(0))
    band = axes.collections[0].get_paths()[0].vertices
    _, low_N, high_N = F.mean_and_band(series['GRPO'][1])
    assert band[:, 1].min() == pytest.approx(low_N.min()) and band[:, 1].max() == 1.5 < high_N.max()
    assert texts_of(figure) == ['GRPO', 'KL-Cov']
    assert axes.get_ylabel() == 'entropy (nats a token)' and axes.get_xlabel() == 'optimiser step'

  def test_one_run_and_steps_without_values(self):
    value_RxN = np.where(np.arange(STEP_N.size) % 2 == 0, 1.0, np.nan)[None]
    figure = F.curves_with_bands({'GRPO': (STEP_N, value_RxN)}, 'entropy (nats)')
    assert line_named(figure.axes[0], 'GRPO').get_xdata().tolist() == [0, 10, 20, 30, 40]
    assert_nothing_is_cut(figure)

  def test_per_seed_draws_every_run(self):
    series = curves(['GRPO'], num_runs=3)
    (axes,) = F.curves_with_bands(series, 'entropy (nats)', per_seed=True).axes
    assert len(axes.get_lines()) == 4 and not axes.collections
    np.testing.assert_array_equal(axes.get_lines()[2].get_ydata(), series['GRPO'][1][1])

  def test_a_subset_keeps_its_colours(self):
    styles = F.styles_for(NAMES)
    (axes,) = F.curves_with_bands(curves(['Clip-Cov', 'bonus']), 'entropy (nats)', styles=styles).axes
    assert line_named(axes, 'bonus').get_color() == styles['bonus']['color']


class TestEntropyAndSuccess:
  def test_panels_share_steps_and_colours(self):
    entropy, success = curves(['GRPO', 'KL-Cov']), {k: (s, v - 1) for k, (s, v) in curves(['GRPO', 'KL-Cov']).items()}
    above, below = F.entropy_and_success(entropy, success).axes
    assert above.get_ylabel() == 'entropy (nats a token)' and below.get_ylabel() == 'success probability'
    assert line_named(above, 'KL-Cov').get_color() == line_named(below, 'KL-Cov').get_color()
    np.testing.assert_allclose(line_named(below, 'KL-Cov').get_ydata(), success['KL-Cov'][1].mean(0))
    assert above.get_shared_x_axes().joined(above, below)


class TestCovarianceOverTraining:
  def test_zero_line_and_share_of_positive_steps(self):
    value_RxN = np.array([[1.0, 1.0, -1.0, np.nan], [1.0, 1.0, 1.0, -1.0]])  # 5 of 7 logged are positive: 71 %
    figure = F.covariance_over_training({'GRPO': (np.arange(4), value_RxN)})
    assert texts_of(figure) == ['GRPO (positive on 71 % of steps)']
    assert any(set(line.get_ydata()) == {0.0} for line in figure.axes[0].get_lines())

  def test_symmetric_logarithm(self):
    (axes,) = F.covariance_over_training(curves(['GRPO']), linear_within=1e-3).axes
    assert axes.get_yscale() == 'symlog'


class TestLawFigure:
  def test_lines_are_the_laws(self):
    h_M = np.log(np.array([8.0, 6.0, 4.0, 2.0]))
    r_M = np.array([0.2, 0.4, 0.6, 0.8])  # R = -.1 e^H + 1
    early_M = np.array([True, True, False, False])
    figure = F.law_figure(
      h_M, r_M, early_M, fit=(0.1, 1.0), early_fit=(0.2, -0.5), prediction=(h_M, r_M - 0.1, r_M + 0.1), r_squared=0.5
    )
    (axes,) = figure.axes
    fitted = line_named(axes, 'fit to all: R = −0.1 exp(H) + 1, R² = 0.500')
    np.testing.assert_allclose(fitted.get_xdata(), [2.0, 8.0])
    np.testing.assert_allclose(fitted.get_ydata(), [0.8, 0.2])  # -.1 * 2 + 1 and -.1 * 8 + 1
    predicted = line_named(axes, 'predicted from the first third: R = −0.2 exp(H) − 0.5')
    np.testing.assert_allclose(predicted.get_ydata(), [-0.9, -2.1])
    np.testing.assert_allclose(line_named(axes, 'first third of training').get_xdata(), [8.0, 6.0])
    np.testing.assert_allclose(line_named(axes, 'later steps').get_ydata(), [0.6, 0.8])
    # The wild prediction leaves the frame instead of squeezing the data: range .6, a pad of .09 on each side.
    np.testing.assert_allclose(axes.get_ylim(), (0.11, 0.89))
    assert '95 % interval of the prediction' in texts_of(figure)


class TestPredictedAgainstMeasured:
  def test_correlations_and_square_axes(self):
    predicted, measured = np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([[0.0, 1.0], [2.0, 30.0]])
    figure = F.predicted_against_measured({'policy gradient': (predicted, measured)})
    (axes,) = figure.axes
    r = stats.pearsonr(predicted.ravel(), measured.ravel()).statistic
    assert texts_of(figure)[1] == f'policy gradient: r = {r:.3f}, rank correlation = 1.000'
    assert axes.get_xlim() == axes.get_ylim() and axes.get_box_aspect() == 1
    assert axes.get_xlabel() == 'predicted entropy change a step (nats)'

  def test_predictor_of_another_unit_has_its_own_axis_and_no_identity_line(self):
    series = {'GRPO': (np.array([-0.1, -0.2, 0.05]), np.array([-1.0, -3.0, 0.5]))}
    (axes,) = F.predicted_against_measured(series, predictor='minus the covariance').axes
    assert axes.get_xlabel() == 'minus the covariance' and axes.get_xlim() != axes.get_ylim()
    assert not any('prediction = measurement' in str(line.get_label()) for line in axes.lines)

  def test_nothing_finite_or_constant(self):
    nothing = {'empty': (np.full(3, np.nan), np.zeros(3)), 'none': (np.zeros(0), np.zeros(0))}
    figure = F.predicted_against_measured(nothing)
    assert_nothing_is_cut(figure)


class TestMatchedSuccessBars:
  def test_means_intervals_and_seeds(self):
    values = {'GRPO': np.array([1.0, 1.1, 0.9, 1.2, 1.05]), 'KL-Cov': np.array([1.5, 1.4, 1.7, 1.5, 1.6])}
    figure = F.matched_success_bars(values, xlabel='entropy at success 0.8 (nats a token)')
    (axes,) = figure.axes
    drawn = [list(line.get_xdata()) for line in axes.get_lines()]
    for value_R in values.values():
      assert value_R.tolist() in drawn and [value_R.mean()] in drawn
      assert list(statistics.bootstrap_interval(value_R)) in drawn
    assert [values['GRPO'].mean()] * 2 in drawn  # the baseline's vertical line
    assert [label.get_text() for label in axes.get_yticklabels()] == ['GRPO', 'KL-Cov']
    assert axes.get_ylim() == (1.5, -0.5)  # the baseline on top

  def test_given_intervals(self):
    figure = F.matched_success_bars({'GRPO': np.array([1.0])}, xlabel='x', intervals={'GRPO': (0.5, 2.0)})
    assert [0.5, 2.0] in [list(line.get_xdata()) for line in figure.axes[0].get_lines()]

  def test_seeds_that_never_arrived(self):
    nan, one = np.nan, np.array([1.0])
    values = {'GRPO': np.ones(3), 'top-20 %': np.array([1.0, nan, 2.0]), 'none': np.full(3, nan), 'one': one}
    figure = F.matched_success_bars(values, xlabel='entropy (nats)')
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ['GRPO', 'top-20 %\n(2 of 3 seeds reached it)', 'none\n(0 of 3 seeds reached it)', 'one']
    assert [1.5] not in [list(line.get_xdata()) for line in axes.get_lines()]  # no mean of the lucky seeds
    assert_nothing_is_cut(figure)
