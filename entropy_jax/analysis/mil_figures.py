"""Figures of the AEM study: test AUC against lambda, attention entropy by step, and bags with the attention to their instances."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from entropy_jax.analysis import figures, statistics
from entropy_jax.analysis.mil_runs import MEAN_POOLING, Bagged

TARGET = figures.COLORS[2]


def _canvas(width: float, height: float) -> Figure:
  figure = Figure(figsize=(width, height), layout='constrained')
  FigureCanvasAgg(figure)
  return figure


def auc_by_coef(tasks: Mapping[str, Bagged]) -> Figure:
  """Test AUC at the end of training against lambda, a panel a task: means over seeds with 95 % intervals, and the seeds as dots."""
  with rc_context(figures.RC):
    figure = _canvas(figures.WIDTH, 4.2)
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, (task, found) in zip(panels, tasks.items()):
      K = found.coef_K.size
      series = {'constant': (np.arange(K), found.constant, figures.INK, 'o')}
      if found.annealed:
        series['annealed'] = (np.arange(1, K), found.annealed, figures.COLORS[1], 's')
      for shift, (label, (place_K, names, color, marker)) in zip((-0.1, 0.1), series.items()):
        auc_KxR = np.stack([found.final(name, 'test/auc') for name in names])
        interval_Kx2 = np.array([statistics.bootstrap_interval(row, bounds=(0.0, 1.0)) for row in auc_KxR])
        axes.plot(place_K + 2.2 * shift, auc_KxR, linestyle='', marker='.', markersize=3.5, color=color, alpha=0.5)
        axes.vlines(place_K + shift, *interval_Kx2.T, color=color, linewidth=2)
        axes.plot(place_K + shift, auc_KxR.mean(axis=1), marker=marker, markersize=5.5, color=color, label=label, linewidth=1.2)
      mean_R = found.final(MEAN_POOLING, 'test/auc')
      low, high = statistics.bootstrap_interval(mean_R, bounds=(0.0, 1.0))
      if np.isfinite(low):
        axes.axhspan(low, high, color=figures.COLORS[3], alpha=0.18, linewidth=0)
      axes.axhline(float(mean_R.mean()), color=figures.COLORS[3], linestyle=(0, (4, 3)), label='mean pooling')
      axes.set_xticks(np.arange(K), [f'{coef:g}' for coef in found.coef_K])
      axes.set(title=task, xlabel='weight of the entropy, λ')
    panels[0].set_ylabel('test AUC')
    figure.legend(*panels[0].get_legend_handles_labels(), loc='outside lower center', ncols=3)
  return figure


def entropy_by_step(tasks: Mapping[str, Bagged], split: str = 'train') -> Figure:
  """Attention entropy over its maximum while training, a line a constant lambda, a panel a task: means over seeds with 95 % bands."""
  with rc_context(figures.RC):
    figure = _canvas(figures.WIDTH, 3.9)
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, (task, found) in zip(panels, tasks.items()):
      styles = figures.styles_for(found.constant)
      for rank, (name, coef) in enumerate(zip(found.constant, found.coef_K)):
        mean_C, low_C, high_C = figures.mean_and_band(found.measured[name][f'{split}/relative_entropy'])
        look = {key: styles[name][key] for key in ('color', 'linestyle')}
        axes.plot(found.log_step_C, mean_C, label=f'λ = {coef:g}', zorder=5 - 0.1 * rank, **look)
        axes.fill_between(found.log_step_C, np.clip(low_C, 0, 1), np.clip(high_C, 0, 1), color=look['color'], alpha=0.12, linewidth=0)
      axes.set(title=task, xlabel='update', ylim=(0.0, 1.03))
    panels[0].set_ylabel('entropy of attention\nrelative to uniform')
    figure.legend(*panels[0].get_legend_handles_labels(), loc='outside lower center', ncols=5)
  return figure


def positive_bag(found: Bagged) -> int:
  """The first positive one of the bags that are kept."""
  return int(np.argmax(np.asarray(found.examples['label_B']) == 1))


def bag_of_digits(found: Bagged, names: Sequence[str], *, columns: int = 14) -> Figure:
  """A positive test bag, its digits once for every setting, and under each the share of attention that it has; targets are framed.

  Args:
    found: a task of digits.
    names: settings, from the top.
    columns: instances shown: the targets and, of the others, those that the settings attend to most.
  """
  kept, index = found.examples, positive_bag(found)
  image_NxHxW = np.asarray(kept['instances_BxNxF'][index]).reshape(-1, 8, 8)
  target_N, mask_N = np.asarray(kept['is_target_BxN'][index]), np.asarray(kept['mask_BxN'][index])
  weight_SxN = np.array([kept['weight'][name][index] for name in names])
  rank_N = np.where(mask_N, weight_SxN.max(axis=0), -1.0) + 2.0 * target_N
  shown = np.argsort(-rank_N, kind='stable')[: min(columns, int(mask_N.sum()))]
  with rc_context(figures.RC | {'axes.grid': False}):
    figure = _canvas(figures.WIDTH, 0.35 + 0.95 * len(names))
    panels = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    for axes, name, weight_N in zip(panels, names, weight_SxN):
      for place, n in enumerate(shown):
        axes.imshow(-image_NxHxW[n], cmap='gray', vmin=-1, vmax=1, extent=(place, place + 0.9, 0.3, 1.2), interpolation='nearest')
        axes.add_patch(Rectangle((place, 0.3), 0.9, 0.9, fill=False, edgecolor=TARGET if target_N[n] else '#d0d0d0', linewidth=1.6))
        axes.add_patch(Rectangle((place, 0.17), 0.9, 0.08, color='#ececec', linewidth=0))
        axes.add_patch(Rectangle((place, 0.17), 0.9 * weight_N[n], 0.08, color=figures.COLORS[1], linewidth=0))
        axes.text(place + 0.45, 0.02, f'{weight_N[n]:.2f}', ha='center', va='center', fontsize=7)
      axes.set(xlim=(-0.05, len(shown)), ylim=(-0.1, 1.25), xticks=[], yticks=[], aspect='equal')
      axes.set_title(f'{name}, {weight_N[target_N].sum():.0%} of attention on the {target_N.sum()} targets', fontsize=9)
      axes.spines[:].set_visible(False)
  return figure
