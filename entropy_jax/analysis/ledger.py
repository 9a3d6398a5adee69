"""The entropy ledger of a run as a stacked figure: what pushed entropy up, what pushed it down, and what became of it."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from entropy_jax.analysis.figures import INK, MUTED, RC, WIDTH
from entropy_jax.measures.ledger import QUADRANTS

PREFIX = 'ledger/'
# Reward lowers the entropy of what is likely and raises that of what is not; punishment the other way round.
LABELS = {
  'surrogate_rewarded_likely': 'rewarded, likely',
  'surrogate_rewarded_unlikely': 'rewarded, unlikely',
  'surrogate_punished_likely': 'punished, likely',
  'surrogate_punished_unlikely': 'punished, unlikely',
  'history': 'optimizer history',
}
CAPTION = (
  'The entropy ledger: the predicted entropy change of an update, split over the tokens that made it. Rewarding a likely token and '
  'punishing an unlikely one lower entropy (below 0), the other two raise it; what is left of the four, with the regularizers, is the '
  'line. Its distance to the measured change is of second order in the step.'
)
COLORS = ('#0072b2', '#56b4e9', '#e69f00', '#d55e00', '#8a8a3c', '#009e73', '#cc79a7', '#882255', '#44aa99', '#999933')


def terms(metrics: Mapping[str, np.ndarray]) -> dict[str, str]:
  """Metric of every part that the prediction is a sum of -> its label: the quadrants, the history if any, the regularizers."""
  found = {f'{PREFIX}surrogate_{name}': LABELS[f'surrogate_{name}'] for name in QUADRANTS}
  if np.max(np.abs(metrics[f'{PREFIX}history'])) > 1e-6 * np.max(np.abs(metrics[f'{PREFIX}predicted'])):  # plain SGD has none
    found[f'{PREFIX}history'] = LABELS['history']
  start = f'{PREFIX}regularizer_'
  return found | {name: name.removeprefix(start).replace('_', ' ') for name in sorted(metrics) if name.startswith(start)}


def stacked(runs: Sequence[Mapping[str, np.ndarray]], *, xlabel: str = 'rollout', num_bins: int = 60) -> Figure:
  """Bars of the mean predicted change of each part, those that raise entropy above 0 and those that lower it below, with the lines of
  the predicted and of the measured change.

  Args:
    runs: one a seed, metric -> [N] (`ledger/*` and, where the rows are not all of them, `step`); cut to the shortest.
    xlabel: what a row is.
    num_bins: at most so many bars; each is the mean of its rows, in nats a row.
  """
  names = terms(runs[0])
  length = min(len(run[f'{PREFIX}predicted']) for run in runs)
  wanted = [*names, f'{PREFIX}predicted', f'{PREFIX}measured']
  mean = {name: np.mean([np.asarray(run[name], np.float64)[:length] for run in runs], axis=0) for name in wanted}
  edges = np.linspace(0, length, min(num_bins, length) + 1).astype(int)
  binned = {name: np.array([np.nanmean(x[a:b]) for a, b in itertools.pairwise(edges)]) for name, x in mean.items()}
  step_N = np.asarray(runs[0].get('step', np.arange(length)))[:length]
  at = np.array([np.mean(step_N[a:b]) for a, b in itertools.pairwise(edges)])
  width = float(np.diff(at).min()) if at.size > 1 else 1.0
  with rc_context(RC):
    figure = Figure(figsize=(WIDTH, 4.4), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    up, down = np.zeros(at.size), np.zeros(at.size)
    for color, (name, label) in zip(COLORS, names.items(), strict=False):
      value = binned[name]
      axes.bar(at, value, width, np.where(value >= 0, up, down), color=color, label=label, linewidth=0)
      up, down = up + np.maximum(value, 0.0), down + np.minimum(value, 0.0)
    axes.axhline(0.0, color=MUTED, linewidth=0.8)
    axes.plot(at, binned[f'{PREFIX}predicted'], color='white', linewidth=3.4)
    axes.plot(at, binned[f'{PREFIX}predicted'], color=INK, label='predicted, their sum')
    axes.plot(at, binned[f'{PREFIX}measured'], color=INK, linestyle=(0, (1, 1.2)), label='measured')
    axes.set(xlabel=xlabel, ylabel='entropy change an update (nats)')
    axes.grid(visible=False, axis='x')
    axes.margins(x=0.01)
    figure.legend(loc='outside lower center', ncols=3, handlelength=2.0, columnspacing=1.6)
  return figure
