"""Figures of the studies, from arrays: one style, safe for colour-blind readers, legible at 700 pixels.

Every function returns a `matplotlib.figure.Figure` that belongs to no global state; `save` writes it as PNG. A method
keeps its colour, line style and marker in every figure when the same `styles` (or the same names in the same order) are
given.
"""

import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from scipy import special

from entropy_jax.analysis import statistics
from entropy_jax.types import UserError

Style = dict[str, Any]
Series = Mapping[str, tuple[np.ndarray, np.ndarray]]  # name -> (step_N, value_RxN)

WIDTH = 7.0  # inches; at 700 pixels on the screen 10 pt of type are 14 pixels high
DPI = 200
INK = '#1a1a1a'
MUTED = '#6b6b6b'
# The first, the baseline, is dark; the others keep apart for every common colour blindness, and in grey by dashes.
COLORS = (INK, '#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00', '#882255', '#8a8a3c')
_LONG, _SHORT = (0, (6, 1.5)), (0, (2, 1.2))
DASHES: tuple[Any, ...] = ('-', '-', '-', '-', _LONG, _LONG, _LONG, _SHORT, _SHORT)
MARKERS = ('o', 's', 'D', '^', 'v', 'P', 'X', 'p', '*')
RC: dict[Any, Any] = {
  'font.family': 'DejaVu Sans', 'font.size': 10, 'axes.labelsize': 10, 'axes.titlesize': 10.5, 'legend.fontsize': 9,
  'xtick.labelsize': 9, 'ytick.labelsize': 9, 'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True,
  'grid.color': '#e4e4e4', 'grid.linewidth': 0.7, 'axes.axisbelow': True, 'axes.edgecolor': MUTED, 'text.color': INK,
  'axes.labelcolor': INK, 'xtick.color': MUTED, 'ytick.color': MUTED, 'xtick.labelcolor': INK, 'ytick.labelcolor': INK,
  'figure.facecolor': 'white', 'axes.facecolor': 'white', 'legend.frameon': False, 'lines.linewidth': 1.8,
  'lines.solid_capstyle': 'round', 'axes.titlelocation': 'left', 'axes.formatter.useoffset': False,
}  # fmt: skip


def _styled(make: Callable[..., Figure]) -> Callable[..., Figure]:
  """Runs a figure function under this module's settings and leaves the caller's untouched."""

  @wraps(make)
  def styled(*args: Any, **kwargs: Any) -> Figure:
    with matplotlib.rc_context(RC):
      return make(*args, **kwargs)

  return styled


def styles_for(names: Sequence[str]) -> dict[str, Style]:
  """Colour, dash and marker of each name, by its place; the first is the baseline and is drawn dark.

  Limits: nine names at most; more than that no reader tells apart in one figure.
  """
  if len(names) > len(COLORS):
    raise UserError(f'{len(names)} methods in one figure, at most {len(COLORS)} can be told apart: split the figure.')
  return {
    name: {'color': COLORS[i], 'linestyle': DASHES[i], 'marker': MARKERS[i]} for i, name in enumerate(names)
  }


def canvas(height: float) -> Figure:
  """An empty figure of the reports' width, for figures that lay out their own panels under `RC`."""
  figure = Figure(figsize=(WIDTH, height), layout='constrained')
  FigureCanvasAgg(figure)
  return figure


def save(figure: Figure, path: str | pathlib.Path) -> pathlib.Path:
  """Writes the figure as PNG and releases what it holds."""
  path = pathlib.Path(path)
  if path.suffix != '.png':
    raise UserError(f'figure path {path} must end in .png: the report embeds PNG only.')
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=DPI, metadata={'Software': 'entropy_jax'})
  figure.clear()
  return path


@_styled
def curves_with_bands(
  series: Series,
  ylabel: str,
  *,
  xlabel: str = 'optimiser step',
  title: str = '',
  bounds: tuple[float, float] | None = None,
  per_seed: bool = False,
  styles: Mapping[str, Style] | None = None,
) -> Figure:
  """Mean and 95 % band over seeds against the step, one line a method.

  Args:
    series: name -> (step_N, value_RxN); NaN where nothing was logged.
    ylabel: the quantity with its unit.
    bounds: the range the quantity cannot leave; bands are cut to it.
    per_seed: thin lines, one a seed, instead of the band.
    styles: from `styles_for`, for a subset of the methods that keeps its colours.
  """
  figure, (axes,) = _figure(rows=1, height=3.9)
  _draw_curves(axes, series, bounds=bounds, per_seed=per_seed, styles=styles)
  axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
  _legend_below(figure, axes)
  return figure


@_styled
def entropy_and_success(
  entropy: Series,
  success: Series,
  *,
  xlabel: str = 'optimiser step',
  entropy_label: str = 'entropy (nats a token)',
  success_label: str = 'success probability',
  per_seed: bool = False,
  styles: Mapping[str, Style] | None = None,
) -> Figure:
  """Two panels over one step axis: entropy above, success below, one colour a method in both."""
  styles = styles or styles_for(list(entropy))
  figure, (above, below) = _figure(rows=2, height=5.8)
  _draw_curves(above, entropy, bounds=(0.0, np.inf), per_seed=per_seed, styles=styles)
  _draw_curves(below, success, bounds=(0.0, 1.0), per_seed=per_seed, styles=styles)
  above.set(ylabel=entropy_label)
  below.set(ylabel=success_label, xlabel=xlabel)
  figure.align_ylabels()
  _legend_below(figure, above)
  return figure


@_styled
def covariance_over_training(
  series: Series,
  *,
  ylabel: str = 'covariance of log-probability\nand advantage (nats)',
  xlabel: str = 'optimiser step',
  linear_within: float | None = None,
  per_seed: bool = False,
  styles: Mapping[str, Style] | None = None,
) -> Figure:
  """Covariance against the step with the zero line; the legend says on which share of the steps it is positive.

  Args:
    linear_within: None for a linear axis; else the axis is linear up to this size and logarithmic beyond, both ways.
  """
  styles = styles or styles_for(list(series))
  figure, (axes,) = _figure(rows=1, height=3.9)
  axes.axhline(0.0, color=MUTED, linewidth=1.0, zorder=1)
  labels = {}
  for name, (_, value_RxN) in series.items():
    finite = np.asarray(value_RxN)[np.isfinite(value_RxN)]
    labels[name] = f'{name} (positive on {100 * np.mean(finite > 0):.0f} % of steps)' if finite.size else name
  _draw_curves(axes, series, bounds=None, per_seed=per_seed, styles=styles, labels=labels)
  if linear_within is not None:
    axes.set_yscale('symlog', linthresh=linear_within)
  axes.set(xlabel=xlabel, ylabel=ylabel)
  _legend_below(figure, axes, columns=2)
  return figure


@_styled
def law_figure(
  entropy_M: np.ndarray,
  success_M: np.ndarray,
  early_M: np.ndarray,
  *,
  fit: tuple[float, float],
  early_fit: tuple[float, float],
  prediction: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
  r_squared: float | None = None,
  success_label: str = 'success probability',
) -> Figure:
  """Success against e^H with the law R = -a e^H + b fitted to all points, and its prediction from the early ones.

  Args:
    entropy_M, success_M: the points, in nats and as a probability, all seeds together.
    early_M: bool, the points the prediction was fitted to (the first third of training).
    fit: (a, b) from all points.
    early_fit: (a, b) from the early points alone.
    prediction: (entropy_K, low_K, high_K), the 95 % interval of the prediction.
    r_squared: of `fit`, for the legend.
  """
  entropy_M, success_M = np.asarray(entropy_M, np.float64), np.asarray(success_M, np.float64)
  early_M = np.asarray(early_M, bool)
  exp_M = np.exp(entropy_M)
  figure, (axes,) = _figure(rows=1, height=4.4)
  span = np.array([np.nanmin(exp_M), np.nanmax(exp_M)])
  if prediction is not None:
    entropy_K, low_K, high_K = (np.asarray(x, np.float64) for x in prediction)
    order = np.argsort(entropy_K)
    axes.fill_between(
      np.exp(entropy_K[order]), low_K[order], high_K[order], color=COLORS[2], alpha=0.18, linewidth=0,
      label='95 % interval of the prediction',
    )  # fmt: skip
  dot: dict[str, Any] = {'linestyle': '', 'marker': 'o', 'markersize': 4, 'zorder': 3, 'markeredgewidth': 0.8}
  axes.plot(exp_M[early_M], success_M[early_M], color=COLORS[2], alpha=0.8, label='first third of training', **dot)
  axes.plot(
    exp_M[~early_M], success_M[~early_M], color=COLORS[1], markerfacecolor='white', label='later steps', **dot
  )
  line = lambda coefficients: coefficients[1] - coefficients[0] * span
  score = '' if r_squared is None else f', R² = {r_squared:.3f}'
  axes.plot(span, line(fit), color=INK, zorder=4, label=f'fit to all: {_law_text(fit)}{score}')
  axes.plot(
    span, line(early_fit), color=COLORS[2], linestyle=(0, (6, 1.5)), zorder=4,
    label=f'predicted from the first third: {_law_text(early_fit)}',
  )  # fmt: skip
  axes.set(xlabel='exp(entropy), effective choices a token; training moves to the left', ylabel=success_label)
  low, high = np.nanmin(success_M), np.nanmax(success_M)
  pad = 0.15 * max(high - low, 1e-3)
  # A wild early prediction may leave the frame; the data must not be squeezed by it.
  axes.set_ylim(low - pad, high + pad)
  _legend_below(figure, axes, columns=2)
  return figure


def _law_text(fit: tuple[float, float]) -> str:
  return f'R = {-fit[0]:.3g} exp(H) {"+" if fit[1] >= 0 else "-"} {abs(fit[1]):.3g}'.replace('-', '−')


@_styled
def predicted_against_measured(
  series: Mapping[str, tuple[np.ndarray, np.ndarray]],
  *,
  quantity: str = 'entropy change a step (nats)',
  predictor: str | None = None,
  styles: Mapping[str, Style] | None = None,
) -> Figure:
  """Measured against predicted values with the line y = x; each series' correlations are in the legend.

  Args:
    series: name -> (predicted_M, measured_M), any shape, all seeds and steps together.
    quantity: what is measured, with its unit.
    predictor: None where the prediction is in the same unit; else the label of a predictor of sign and rank alone, which is drawn on
      an axis of its own, with the zero lines in place of y = x.
  """
  styles = styles or styles_for(list(series))
  figure, (axes,) = _figure(rows=1, height=5.2)
  everything = np.concatenate([np.ravel(np.asarray(x, np.float64)) for pair in series.values() for x in pair])
  finite = everything[np.isfinite(everything)]
  low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
  pad = 0.05 * (high - low) or 1.0
  limits = (low - pad, high + pad)
  if predictor is None:
    axes.axline((0.0, 0.0), slope=1.0, color=MUTED, linewidth=1.0, zorder=1, label='prediction = measurement')
    axes.set(xlim=limits, ylim=limits, xlabel=f'predicted {quantity}', ylabel=f'measured {quantity}')
  else:
    axes.axhline(0.0, color=MUTED, linewidth=1.0, zorder=1)
    axes.axvline(0.0, color=MUTED, linewidth=1.0, zorder=1)
    axes.set(xlabel=predictor, ylabel=f'measured {quantity}')
  for name, (predicted, measured) in series.items():
    predicted, measured = np.ravel(predicted), np.ravel(measured)
    r, rho = statistics.correlation(predicted, measured), statistics.rank_correlation(predicted, measured)
    axes.plot(
      predicted, measured, linestyle='', marker=styles[name]['marker'], color=styles[name]['color'], markersize=4,
      alpha=float(np.clip(10 / np.sqrt(max(predicted.size, 1)), 0.25, 0.8)), markeredgewidth=0,
      label=f'{name}: r = {r:.3f}, rank correlation = {rho:.3f}',
    )  # fmt: skip
  axes.set_box_aspect(1)
  axes.locator_params(nbins=6)
  _legend_below(figure, axes, columns=1 if len(series) < 3 else 2)
  return figure


@_styled
def matched_success_bars(
  values: Mapping[str, np.ndarray],
  *,
  xlabel: str,
  title: str = '',
  intervals: Mapping[str, tuple[float, float]] | None = None,
  styles: Mapping[str, Style] | None = None,
) -> Figure:
  """One row a method: mean and 95 % interval over seeds beside the seeds' own values; the first row is the baseline.

  Args:
    values: name -> value_R at matched success, NaN for a seed that never reached it.
    xlabel: the quantity with its unit and the success level.
    intervals: name -> (low, high); by default the studentised bootstrap of `statistics.bootstrap_interval`.

  Limits: a row with a NaN seed shows its other seeds and says how many reached the level, but no mean: they are the
  lucky ones.
  """
  styles = styles or styles_for(list(values))
  figure, (axes,) = _figure(rows=1, height=1.5 + 0.42 * len(values))
  complete = {name: bool(np.all(np.isfinite(value_R))) for name, value_R in values.items()}
  ticks = []
  for row, (name, value_R) in enumerate(values.items()):
    value_R = np.asarray(value_R, np.float64)
    color, marker = styles[name]['color'], styles[name]['marker']
    offset_R = row + np.linspace(-0.2, 0.2, value_R.size) if value_R.size > 1 else np.array([row])
    axes.plot(value_R, offset_R, linestyle='', marker='o', markersize=3.5, color=color, alpha=0.4, markeredgewidth=0)
    if complete[name] and value_R.size:
      mean = float(np.mean(value_R))
      interval = intervals[name] if intervals is not None else statistics.bootstrap_interval(value_R)
      if np.all(np.isfinite(interval)):
        axes.plot(interval, [row, row], color=color, linewidth=2.2, zorder=3)
      axes.plot([mean], [row], marker=marker, markersize=8.5, color=color, markeredgecolor='white', zorder=4)
      if row == 0:
        axes.axvline(mean, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
      ticks.append(name)
    else:
      ticks.append(f'{name}\n({np.sum(np.isfinite(value_R))} of {value_R.size} seeds reached it)')
  axes.set_yticks(range(len(ticks)), ticks)
  axes.set(xlabel=xlabel, title=title, ylim=(len(ticks) - 0.5, -0.5))
  axes.grid(visible=False, axis='y')
  axes.tick_params(axis='y', length=0)
  axes.margins(x=0.06)
  return figure


def _figure(*, rows: int, height: float) -> tuple[Figure, tuple[Axes, ...]]:
  figure = Figure(figsize=(WIDTH, height), layout='constrained')
  engine = figure.get_layout_engine()
  if isinstance(engine, ConstrainedLayoutEngine):
    engine.set(w_pad=0.08, h_pad=0.08)
  FigureCanvasAgg(figure)
  axes = figure.subplots(rows, 1, sharex=True, squeeze=False)
  return figure, tuple(axes[:, 0])


def _draw_curves(
  axes: Axes,
  series: Series,
  *,
  bounds: tuple[float, float] | None,
  per_seed: bool,
  styles: Mapping[str, Style] | None,
  labels: Mapping[str, str] | None = None,
) -> None:
  styles = styles or styles_for(list(series))
  for rank, (name, (step_N, value_RxN)) in enumerate(series.items()):
    value_RxN = np.atleast_2d(np.asarray(value_RxN, np.float64))
    look = {key: styles[name][key] for key in ('color', 'linestyle')}
    mean_N, low_N, high_N = mean_and_band(value_RxN)
    if bounds is not None:
      low_N, high_N = np.clip(low_N, *bounds), np.clip(high_N, *bounds)
    shown_N = np.isfinite(mean_N)
    step_N = np.asarray(step_N)
    label = labels[name] if labels is not None else name
    axes.plot(step_N[shown_N], mean_N[shown_N], label=label, zorder=5 - 0.1 * rank, **look)
    if per_seed:
      for value_N in value_RxN:
        logged_N = np.isfinite(value_N)
        axes.plot(step_N[logged_N], value_N[logged_N], color=look['color'], linewidth=0.7, alpha=0.45, zorder=2)
    else:
      axes.fill_between(
        step_N[shown_N], low_N[shown_N], high_N[shown_N], color=look['color'], alpha=0.15, linewidth=0, zorder=2
      )
  axes.margins(x=0.01)


def mean_and_band(value_RxN: np.ndarray, *, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Mean over the runs that logged each step and its Student t interval, NaN where fewer than two runs did."""
  value_RxN = np.asarray(value_RxN, np.float64)
  count_N = np.sum(np.isfinite(value_RxN), axis=0)
  with warnings.catch_warnings():  # numpy warns for a step that no run logged; NaN is the answer wanted
    warnings.simplefilter('ignore', RuntimeWarning)
    mean_N = np.nanmean(value_RxN, axis=0)
    spread_N = np.nanstd(value_RxN, axis=0, ddof=1)
  half_N = np.full(mean_N.shape, np.nan)
  several_N = count_N > 1
  quantile_N = special.stdtrit(count_N[several_N] - 1, (1 + level) / 2)
  half_N[several_N] = quantile_N * spread_N[several_N] / np.sqrt(count_N[several_N])
  return mean_N, mean_N - half_N, mean_N + half_N


def _legend_below(figure: Figure, axes: Axes, columns: int | None = None) -> None:
  """A legend under the axes, as many columns as the longest label leaves room for."""
  handles, labels = axes.get_legend_handles_labels()
  if len(labels) < 2 and not any('=' in label or '%' in label for label in labels):
    return
  if columns is None:
    widest = max(len(label) for label in labels)
    columns = int(np.clip(84 // (widest + 7), 1, 5))
  rows = -(-len(labels) // columns)
  columns = -(-len(labels) // rows)  # even rows
  figure.legend(handles, labels, loc='outside lower center', ncols=columns, handlelength=2.4, columnspacing=1.6)
