"""The forest plot: one row a method, its effect with the interval, several quantities side by side."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from entropy_jax.analysis.figures import INK, MUTED, RC, WIDTH
from entropy_jax.types import UserError

UP, DOWN, NONE = '#0072b2', '#d55e00', MUTED
ROW_HEIGHT = 0.22  # inches


class Effect(NamedTuple):
  """One row of one panel.

  Attributes:
    value: the difference to the baseline; NaN where there is none.
    interval: its 95 % interval; NaN ends where there is none.
  """

  value: float
  interval: tuple[float, float]


def color_of(effect: Effect) -> str:
  """Blue where the whole interval is above zero, vermilion where it is below, grey where it holds zero or is none."""
  low, high = effect.interval
  return UP if low > 0 else DOWN if high < 0 else NONE


def limits(effects: Sequence[Effect], margin: float) -> tuple[float, float]:
  """The range that a panel shows: all intervals, but no farther than three times the middle 80 % of the values lie from zero, so that a
  few methods that leave the rest behind do not squeeze it; at least the margin twice on each side."""
  values = np.array([effect.value for effect in effects], np.float64)
  values = values[np.isfinite(values)]
  ends = np.array([end for effect in effects for end in effect.interval if np.isfinite(end)])
  low, high = np.quantile(values, (0.1, 0.9)) if values.size else (0.0, 0.0)
  reach = 3.0 * max(-low, high, margin)
  low = min(np.min(ends, initial=0.0), -2.0 * margin)
  high = max(np.max(ends, initial=0.0), 2.0 * margin)
  return 1.05 * max(float(low), -reach), 1.05 * min(float(high), reach)


def forest(
  names: Sequence[str], panels: Mapping[str, Sequence[Effect]], *, margin: float = 0.0, notes: Mapping[str, str] | None = None
) -> Figure:
  """Effects against a baseline at zero.

  Args:
    names: of the rows, from the top.
    panels: what is on its axis, with its unit -> one effect a row.
    margin: effects within it on either side count as none; shaded.
    notes: name -> what stands in its row instead of an effect that is not finite.

  Limits: what lies beyond `limits` is drawn as an arrowhead at the edge.
  """
  for title, effects in panels.items():
    if len(effects) != len(names):
      raise UserError(f'the panel {title!r} has {len(effects)} effects for {len(names)} names: give one a name.')
  with rc_context(RC):
    figure = Figure(figsize=(WIDTH, 1.3 + ROW_HEIGHT * max(len(names), 2)), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for place, (panel, (title, effects)) in enumerate(zip(axes, panels.items(), strict=True)):
      _draw(panel, names, effects, margin=margin, notes=(notes or {}) if place == 0 else {})
      panel.set_xlabel(title)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
  return figure


def _draw(axes: Axes, names: Sequence[str], effects: Sequence[Effect], *, margin: float, notes: Mapping[str, str]) -> None:
  low, high = limits(effects, margin)
  axes.set_xlim(low, high)
  if margin > 0:
    axes.axvspan(-margin, margin, color='#efefef', zorder=0)
  axes.axvline(0.0, color=INK, linewidth=1.0, zorder=1)
  for row, (name, effect) in enumerate(zip(names, effects, strict=True)):
    if not np.isfinite(effect.value):
      if name in notes:
        axes.text(0.02 * (high - low), row, notes[name], va='center', ha='left', fontsize=7.5, color=MUTED)
      continue
    color = color_of(effect)
    if np.all(np.isfinite(effect.interval)):
      axes.plot(np.clip(effect.interval, low, high), [row, row], color=color, linewidth=1.8, zorder=2)
    inside = low <= effect.value <= high
    marker = 'o' if inside else '>' if effect.value > high else '<'
    axes.plot([np.clip(effect.value, low, high)], [row], marker=marker, color=color, markersize=5.0, zorder=3, clip_on=inside)
  axes.grid(visible=False, axis='y')
  axes.tick_params(axis='y', length=0, labelsize=8)
