"""Figures of the recipes study: how learning rates were chosen, loss against depth, and entropy of attention by layer over depth."""

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from entropy_jax.analysis import figures
from entropy_jax.analysis.recipes_runs import KINDS, TRAINED, Deep, Recipe, accuracy, chosen

_FAILS = (0, (2, 1.2))
_KIND_NAMES = {'encoder': 'encoder', 'decoder': 'decoder, to itself', 'cross': 'decoder, to the source'}


def _canvas(height: float) -> Figure:
  figure = Figure(figsize=(figures.WIDTH, height), layout='constrained')
  FigureCanvasAgg(figure)
  return figure


def tuning(recipes: Mapping[str, Recipe]) -> Figure:
  """Accuracy of the validation part against the learning rate, a line a recipe, the chosen rate in a ring."""
  styles = figures.styles_for(list(recipes))
  with rc_context(figures.RC):
    figure = _canvas(4.6)
    axes = figure.subplots()
    for name, recipe in recipes.items():
      rate_K, mean_K = recipe.tuning.rate_K, np.mean(np.nan_to_num(accuracy(recipe.tuning)), axis=1)
      axes.plot(rate_K, mean_K, label=name, markersize=5, **styles[name])
      k = chosen(recipe.tuning)
      axes.plot(rate_K[k], mean_K[k], marker='o', markersize=12, markerfacecolor='none', markeredgecolor=styles[name]['color'])
    axes.set(xscale='log', xlabel='learning rate', ylabel='accuracy of the validation part (%)')
    figure.legend(loc='outside lower center', ncols=3, handlelength=2.4, columnspacing=1.6)
  return figure


def loss_by_depth(deep: Mapping[str, Deep]) -> Figure:
  """Final loss against depth, a panel a learning rate, a line a variant; a run that diverged is a cross at the unigram model's loss."""
  styles = figures.styles_for(list(deep))
  first = next(iter(next(iter(deep.values())).depths.values()))
  with rc_context(figures.RC):
    figure = _canvas(4.2)
    panels = figure.subplots(1, first.rate_K.size, sharey=True, squeeze=False)[0]
    for k, axes in enumerate(panels):
      for name, one in deep.items():
        look, depth_N = styles[name], np.array(list(one.depths))
        share_NxR = one.relative_loss[:, k]
        finite_NxR = np.isfinite(share_NxR)
        value_NxR = first.initial_loss * np.where(finite_NxR, share_NxR, 1.0)
        axes.plot(depth_N, value_NxR.mean(axis=1), label=name if k == 0 else '', markersize=5, **look)
        dots = {'linestyle': '', 'color': look['color'], 'alpha': 0.45}
        axes.plot(depth_N, np.where(finite_NxR, value_NxR, np.nan), marker='.', markersize=4, **dots)
        axes.plot(depth_N, np.where(finite_NxR, np.nan, value_NxR), marker='x', markersize=7, **dots)
      _guides(axes, first.initial_loss, labelled=k == 0)
      axes.set(xscale='log', xlabel='layers of each stack', title=f'learning rate {first.rate_K[k]:g}')
      axes.set_xticks(depth_N, [f'{d}' for d in depth_N])
      axes.minorticks_off()
    panels[0].set_ylabel('final loss (nats a token)')
    figure.legend(loc='outside lower center', ncols=3, handlelength=2.4, columnspacing=1.6)
  return figure


def _guides(axes: Axes, guess: float, *, labelled: bool) -> None:
  lines = ((guess, (0, (4, 3)), 'unigram model'), (TRAINED * guess, (0, (1, 2)), f'{TRAINED:g} of it: trains below'))
  for value, dash, label in lines:
    axes.axhline(value, color=figures.MUTED, linewidth=1.0, linestyle=dash, label=label if labelled else '')
  axes.set_ylim(bottom=-0.05)


def entropy_by_depth(deep: Mapping[str, Deep]) -> Figure:
  """Late entropy of every layer relative to uniform attention against its height in the stack, mean over seeds: a row a kind of attention,
  a column a variant, a line a depth, dashed where the depth does not train in most seeds.
  """
  with rc_context(figures.RC):
    figure = _canvas(6.4)
    panels = figure.subplots(len(KINDS), len(deep), sharex=True, sharey=True, squeeze=False)
    depths = list(next(iter(deep.values())).depths)
    colors = colormaps['viridis'](np.linspace(0.85, 0.0, len(depths)))
    for column, (name, one) in enumerate(deep.items()):
      for depth, color in zip(depths, colors, strict=True):
        k = one.best_rate(depth)
        trains = np.mean(one.trains(k)[list(one.depths).index(depth)]) > 0.5
        height_L = (np.arange(depth) + 0.5) / depth
        for row, kind in enumerate(KINDS):
          entropy_RxL = one.entropy(depth, k)[kind]
          count_L = np.isfinite(entropy_RxL).sum(axis=0)
          mean_L = np.where(count_L > 0, np.nansum(entropy_RxL, axis=0) / np.maximum(count_L, 1), np.nan)
          look = {'color': color, 'linestyle': '-' if trains else _FAILS, 'marker': '.', 'markersize': 4}
          panels[row, column].plot(height_L, mean_L, **look)
      panels[0, column].set_title(name, fontsize=9.5)
      panels[-1, column].set_xlabel('height in the stack')
    for row, kind in enumerate(KINDS):
      panels[row, 0].set_ylabel(_KIND_NAMES[kind])
    panels[0, 0].set(ylim=(-0.03, 1.05), xlim=(0, 1))
    figure.supylabel('entropy of attention relative to uniform', fontsize=10)
    handles = [Line2D([], [], color=color, marker='.', label=f'{depth} layers') for depth, color in zip(depths, colors, strict=True)]
    handles.append(Line2D([], [], color=figures.MUTED, linestyle=_FAILS, label='a depth that does not train'))
    figure.legend(handles=handles, loc='outside lower center', ncols=5)
  return figure
