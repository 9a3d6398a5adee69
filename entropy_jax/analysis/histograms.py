"""Histograms of events by kind, in the style of the other figures."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from entropy_jax.analysis.figures import RC, WIDTH, styles_for


def stacked_histogram(values: Mapping[str, Sequence[float]], xlabel: str, ylabel: str, *, num_bins: int = 20) -> Figure:
  """One bar a bin, its parts the kinds; over the bars a line of ticks, one an event, so that no bin hides where they are.

  Args:
    values: kind -> the value of each of its events, at least 0.
    xlabel, ylabel: what is counted, with its unit.
    num_bins: from 0 to the largest value.
  """
  shown = {name: np.asarray(x, np.float64) for name, x in values.items() if len(x)}
  styles = styles_for(list(values))
  top = max((float(x.max()) for x in shown.values()), default=1.0)
  edges = np.linspace(0.0, max(top, 1e-9), num_bins + 1)
  with rc_context(RC):
    figure = Figure(figsize=(WIDTH, 3.4), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    base_N = np.zeros(num_bins)
    for name, x in shown.items():
      count_N = np.histogram(x, edges)[0]
      look = {'color': styles[name]['color'], 'edgecolor': 'white', 'linewidth': 0.8, 'label': f'{name} ({len(x)})'}
      axes.bar(edges[:-1], count_N, np.diff(edges), base_N, align='edge', **look)
      base_N += count_N
    for name, x in shown.items():
      axes.plot(x, np.full(x.size, 1.06 * max(base_N.max(), 1.0)), '|', color=styles[name]['color'], markersize=7, clip_on=False)
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(0.0, edges[-1]), ylim=(0.0, 1.12 * max(base_N.max(), 1.0)))
    axes.grid(visible=False, axis='x')
    if shown:
      figure.legend(loc='outside lower center', ncols=3)
  return figure
