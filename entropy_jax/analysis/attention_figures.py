"""Figures of the attention-entropy study: loss against learning rate, entropy by layer and step, entropy against the theorem's bound."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from entropy_jax.analysis import figures
from entropy_jax.analysis.attention_runs import Sweeps
from entropy_jax.measures import attention_bound

# Below this an entropy is drawn at the edge, and the bound is not drawn: it is exactly one-hot for every purpose.
LEAST = 1e-12


def loss_by_rate(sweeps: Sweeps) -> Figure:
  """Final loss, and below it the entropy of the lowest layer, against the learning rate: means over seeds, and the seeds as dots.

  A run that diverged is drawn as a cross at the loss of guessing; it has no entropy.
  """
  styles = figures.styles_for(list(sweeps.variants))
  with rc_context(figures.RC):
    figure = figures.canvas(7.2)
    above, below = figure.subplots(2, 1, sharex=True)
    for rank, (name, swept) in enumerate(sweeps.variants.items()):
      look, order = styles[name], 5 - 0.1 * rank
      above.plot(swept.rate_K, swept.clamped.mean(axis=1), label=name, markersize=5, zorder=order, **look)
      dots = {'linestyle': '', 'markersize': 3, 'color': look['color'], 'alpha': 0.4}
      finite = np.isfinite(swept.final_loss)
      above.plot(swept.rate_K, np.where(finite, swept.clamped, np.nan), marker='.', **dots)
      above.plot(swept.rate_K, np.where(finite, np.nan, swept.clamped), marker='x', **(dots | {'markersize': 7, 'alpha': 0.9}))
      # A line through the seeds that have a number; where none has, the line has a gap.
      some_K = np.isfinite(swept.lowest_entropy).any(axis=1)
      mean_K = np.array([np.mean(row[np.isfinite(row)]) if some else np.nan for row, some in zip(swept.lowest_entropy, some_K)])
      below.plot(swept.rate_K, mean_K, markersize=5, zorder=order, **look)
      below.plot(swept.rate_K, swept.lowest_entropy, marker='.', **dots)
    guess = sweeps.baseline.initial_loss
    above.axhline(guess, color=figures.MUTED, linewidth=0.9, linestyle=(0, (4, 3)), label='guessing')
    above.set(ylabel='final loss (nats)', xscale='log')
    below.set(ylabel='entropy of the lowest layer\nrelative to uniform', xlabel='learning rate', ylim=(-0.03, 1.03))
    figure.align_ylabels()
    figure.legend(loc='outside lower center', ncols=3, handlelength=2.4, columnspacing=1.6)
  return figure


def entropy_heatmap(sweeps: Sweeps, names: Sequence[str], rates: Sequence[int]) -> Figure:
  """Entropy relative to uniform attention by layer and step, mean over seeds: one row of panels a variant, one column a learning rate.

  Args:
    sweeps: one task.
    names: variants, from the top.
    rates: places in the grid, from the left. White: no seed has a finite number there.
  """
  with rc_context(figures.RC | {'axes.grid': False}):
    figure = figures.canvas(1.2 + 1.0 * len(names))
    panels = figure.subplots(len(names), len(rates), sharex=True, sharey=True, squeeze=False)
    image = None
    for row, name in enumerate(names):
      swept = sweeps.variants[name]
      entropy_KxRxCxL = swept.layered['entropy']
      num_layers = entropy_KxRxCxL.shape[-1]
      for column, k in enumerate(rates):
        axes = panels[row, column]
        finite = np.isfinite(entropy_KxRxCxL[k])
        count = finite.sum(axis=0)
        mean_CxL = np.where(count > 0, np.where(finite, entropy_KxRxCxL[k], 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)
        extent = (0.0, float(swept.log_step_C[-1]), num_layers + 0.5, 0.5)
        image = axes.imshow(mean_CxL.T, aspect='auto', vmin=0.0, vmax=1.0, cmap='viridis', extent=extent, interpolation='nearest')
        axes.set_yticks(range(1, num_layers + 1))
        if row == 0:
          place: dict[str, Any] = {'xycoords': 'axes fraction', 'textcoords': 'offset points', 'ha': 'center'}
          axes.annotate(f'learning rate {swept.rate_K[k]:g}', (0.5, 1.0), (0, 20), **place)
      panels[row, 0].set_title(name, fontsize=9)
      panels[row, 0].set_ylabel('layer')
    for axes in panels[-1]:
      axes.set_xlabel('update')
    if image is not None:
      figure.colorbar(image, ax=panels, label='entropy relative to uniform', shrink=0.9)
  return figure


def entropy_by_scale(sweeps: Sweeps) -> Figure:
  """The smallest entropy of a row that sees all keys against the theorem's s, a dot a layer and measure, with the bound drawn under it.

  s = ||W_K W_Q^T|| ||X||^2 / sqrt(head_dim) of the largest head; variants without it (QK-norm) are left out. Both axes are logarithmic.
  """
  styles = figures.styles_for(list(sweeps.variants))
  with rc_context(figures.RC):
    figure = figures.canvas(5.0)
    axes = figure.subplots()
    low, high = np.inf, 0.0
    for rank, (name, swept) in enumerate(sweeps.variants.items()):
      if 'scale' not in swept.layered:
        continue
      s, entropy = swept.layered['scale'].ravel(), swept.layered['least_entropy'].ravel()
      kept = np.isfinite(s) & np.isfinite(entropy) & (s > 0)
      s, entropy = s[kept], np.maximum(entropy[kept], LEAST)
      if s.size:
        low, high = min(low, float(s.min())), max(high, float(s.max()))
      look = {'marker': styles[name]['marker'], 'color': styles[name]['color']}
      axes.plot(s, entropy, linestyle='', markersize=3.5, alpha=0.5, markeredgewidth=0, label=name, zorder=5 - 0.1 * rank, **look)
    if high > 0:
      s_M = np.geomspace(low / 2, high * 2, 400)
      bound_M = np.asarray(attention_bound.lower_bound(sweeps.num_keys, s_M))
      bound_M = np.where(bound_M >= LEAST, bound_M, np.nan)
      axes.plot(s_M, bound_M, color=figures.INK, label=f'lower bound for {sweeps.num_keys} keys', zorder=6)
    axes.axhline(np.log(sweeps.num_keys), color=figures.MUTED, linewidth=0.9, linestyle=(0, (4, 3)), label='uniform attention')
    axes.set(xscale='log', yscale='log', ylabel='smallest entropy of a row (nats)')
    axes.set_xlabel('spectral norm of the query-key product times that of the inputs squared, s')
    figure.legend(loc='outside lower center', ncols=3, handlelength=1.6, columnspacing=1.6, markerscale=1.6)
  return figure
