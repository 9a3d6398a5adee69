"""Figures of the entropy-guided study: heads by entropy band over layers and updates, entropy by layer, and thresholds against
entropies."""

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from entropy_jax.analysis import figures
from entropy_jax.analysis.entropy_guided_runs import NUM_BANDS, Ladder

_NO_GRID = figures.RC | {'axes.grid': False}


def bands_heatmap(ladder: Ladder, names: Sequence[str]) -> Figure:
  """Share of heads in each quarter of the entropy range, by update: a row of panels a variant, a column a layer.

  The range is from 0 to the largest entropy seen, so that overload is on top and collapse at the bottom.
  """
  num_layers = ladder.baseline.entropy_RxCxLxH.shape[2]
  with rc_context(_NO_GRID):
    figure = figures.canvas(1.1 + 0.82 * len(names))
    panels = figure.subplots(len(names), num_layers, sharex=True, sharey=True, squeeze=False)
    image = None
    for row, name in enumerate(names):
      bands_LxCxM = ladder.bands(name)
      last = float(ladder.variants[name].step_C[-1])
      for layer in range(num_layers):
        axes = panels[row, layer]
        extent = (0.0, last, 0.0, 1.0)
        image = axes.imshow(
          bands_LxCxM[layer].T, aspect='auto', vmin=0.0, vmax=1.0, cmap='viridis', extent=extent, interpolation='nearest', origin='lower'
        )
        axes.set_yticks([i / NUM_BANDS for i in range(NUM_BANDS + 1)], ['0', '', '½', '', '1'])
        if row == 0:
          axes.set_title(f'layer {layer + 1}', fontsize=9)
      panels[row, 0].set_ylabel(name, rotation=0, ha='right', va='center', fontsize=9)
    for axes in panels[-1]:
      axes.set_xlabel('update')
    if image is not None:
      figure.colorbar(image, ax=panels, label='share of heads', shrink=0.6)
  return figure


def entropy_heatmap(ladder: Ladder, names: Sequence[str]) -> Figure:
  """Entropy relative to uniform attention by layer and update, mean over heads and seeds, a panel a variant."""
  columns = min(3, len(names))
  rows = -(-len(names) // columns)
  with rc_context(_NO_GRID):
    figure = figures.canvas(0.9 + 1.25 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    image = None
    for place, axes in enumerate(panels.ravel()):
      if place >= len(names):
        axes.set_visible(False)
        continue
      found = ladder.variants[names[place]]
      mean_CxL = found.entropy_RxCxLxH.mean(axis=(0, 3))
      L = mean_CxL.shape[1]
      extent = (0.0, float(found.step_C[-1]), L + 0.5, 0.5)
      image = axes.imshow(mean_CxL.T, aspect='auto', vmin=0.0, vmax=1.0, cmap='viridis', extent=extent, interpolation='nearest')
      axes.set_yticks(range(1, L + 1))
      axes.set_title(names[place], fontsize=9)
      if place % columns == 0:
        axes.set_ylabel('layer')
      if place + columns >= len(names):
        axes.set_xlabel('update')
        axes.tick_params(labelbottom=True)
    if image is not None:
      figure.colorbar(image, ax=panels, label='entropy relative to uniform', shrink=0.9)
  return figure


def thresholds_and_entropies(ladder: Ladder, names: Sequence[str], *, context: int, tolerance: float) -> Figure:
  """Final entropy of every head against its learnt threshold, both as shares of ln(context length); inside the band nothing is penalised.

  Args:
    ladder: of the study.
    names: variants with a penalty.
    context: T; entropies relative to uniform attention are multiplied by (1/T) sum_i ln i / ln T.
    tolerance: gamma.
  """
  styles = figures.styles_for(list(ladder.variants))
  share = float(np.mean(np.log(np.arange(1, context + 1))) / np.log(context))
  with rc_context(figures.RC):
    figure = figures.canvas(1.0 + 3.3)
    panels = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names):
      found = ladder.variants[name]
      if found.threshold_RxCxLxH is None:
        continue
      line = np.array([0.0, 1.0])
      axes.fill_between(line, line - tolerance, line + tolerance, color='#efefef', linewidth=0, zorder=0)
      axes.plot(line, line, color=figures.MUTED, linewidth=1.0, zorder=1)
      axes.axhline(share, color=figures.MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
      L = found.entropy_RxCxLxH.shape[2]
      for layer in range(L):
        axes.plot(
          found.threshold_RxCxLxH[:, -1, layer].ravel(), share * found.entropy_RxCxLxH[:, -1, layer].ravel(), linestyle='',
          marker=figures.MARKERS[layer % len(figures.MARKERS)], markersize=5, alpha=0.35 + 0.65 * (layer + 1) / L,
          color=styles[name]['color'], markeredgewidth=0, label=f'layer {layer + 1}',
        )  # fmt: skip
      axes.set(xlabel='threshold / ln T', xlim=(0.0, 1.0), ylim=(0.0, 1.0), title=name)
      axes.set_box_aspect(1)
    panels[0].set_ylabel('mean entropy of the head / ln T')
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=4)
  return figure
