"""The report of the study of the attention-entropy bound: figures, tables, words, and the claims of analysis/attention_bound.py."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from entropy_jax.analysis import figures, runs
from entropy_jax.analysis.attention_bound import FORMS, RTOL, S_RTOL, SOURCES, Part, claims, load, lower_bound, smallest_slack
from entropy_jax.analysis.claims import Claim, write_claims
from entropy_jax.analysis.report import FigureRef, Report, Section, Table, write_report
from entropy_jax.training.files import write_atomically
from entropy_jax.training.writers import METRICS, format_row

SMALLEST = 1e-9  # nats above the bound, at the left of the figure
SHORT = {'weights_whole': 'weights, all tokens', 'weights': 'weights, tokens seen', 'query_key': 'query and keys', 'centred': 'centred row'}


# --- figures ----------------------------------------------------------------------------------------------------------

_SAID = {'random': 'random', 'trained': 'trained', 'adversarial': 'adversarial', 'tight': 'constructed'}
_NEAREST, _MOST_POINTS = 200, 1300  # of a source in a panel: the rows nearest to the bound, and of the others
_S_RANGE = (0.05, 200.0)


def _looks() -> dict[str, figures.Style]:
  """Colour of each source; the first, dark one is the bound's."""
  return {source: figures.styles_for(['bound', *SOURCES])[source] for source in SOURCES}


def _panels(num_rows: int, num_columns: int, height: float) -> tuple[Figure, np.ndarray]:
  figure = Figure(figsize=(figures.WIDTH, height), layout='constrained')
  FigureCanvasAgg(figure)
  return figure, figure.subplots(num_rows, num_columns, squeeze=False, sharex=True)


def shown_keys(parts: Mapping[str, Part]) -> list[int]:
  """The numbers of keys that have a panel: those of the random shapes."""
  return sorted({int(T) for part in parts.values() if part.source == 'random' for T in part.cells['num_tokens']})


def entropy_against_s(parts: Mapping[str, Part]) -> Figure:
  """Entropy of rows against s with the bound under them, a row of panels a number of keys; s of the weights and of the centred row."""
  keys, columns = shown_keys(parts), {'weights': 's of the theorem, from spectral norms', 'centred': 'centred norm of the row'}
  with rc_context(figures.RC):
    figure, axes = _panels(len(keys), len(columns), 0.9 + 2.0 * len(keys))
    for row, T in enumerate(keys):
      for column, (form, label) in enumerate(columns.items()):
        _cloud(axes[row, column], parts, T, form)
        axes[row, column].set_title(f'{T} keys')
        if row + 1 == len(keys):
          axes[row, column].set_xlabel(label)
      axes[row, 0].set_ylabel('entropy (nats)')
    handles, labels = axes[0, 0].get_legend_handles_labels()
    # Dots are small because they are many; in the legend each is one, as large as a diamond.
    shown = [Line2D([], [], color=x.get_color(), linestyle=x.get_linestyle(), marker=x.get_marker(), markersize=5) for x in handles]
    for line, handle in zip(shown, handles):
      line.set(linewidth=handle.get_linewidth(), markeredgewidth=0)
    figure.legend(shown, labels, loc='outside lower center', ncols=5, handlelength=1.6, columnspacing=1.4)
  return figure


def _cloud(axes: Axes, parts: Mapping[str, Part], num_keys: int, form: str) -> None:
  for source, look in _looks().items():
    some = [(part, part.num_keys_N == num_keys) for part in parts.values() if part.source == source and form in part.s]
    s, entropy = (np.concatenate([np.zeros(0), *x]) for x in ([p.s[form][at] for p, at in some], [p.entropy_N[at] for p, at in some]))
    inside = np.flatnonzero((s >= _S_RANGE[0]) & (s <= _S_RANGE[1]))
    inside = inside[np.argsort(entropy[inside] - lower_bound(num_keys, s[inside]), kind='stable')]
    near, others = np.split(inside, [_NEAREST])
    inside = np.concatenate([near, others[:: max(1, -(-others.size // _MOST_POINTS))]])
    diamond, point = {'marker': 'D', 'markersize': 4.5, 'zorder': 5}, {'marker': 'o', 'markersize': 1.6, 'zorder': 2}
    dot: dict[str, Any] = diamond if source == 'tight' else point
    axes.plot(
      s[inside], entropy[inside], linestyle='', color=look['color'], alpha=1.0 if source == 'tight' else 0.5, markeredgewidth=0,
      label=_SAID[source], **dot,
    )  # fmt: skip
  curve_s = np.geomspace(*_S_RANGE, 300).astype(np.float32)
  axes.plot(curve_s, lower_bound(num_keys, curve_s), color=figures.INK, label='lower bound', zorder=4)
  axes.set(xscale='log', xlim=_S_RANGE, ylim=(-0.03 * math.log(num_keys), 1.06 * math.log(num_keys)))


def slack_shares(parts: Mapping[str, Part]) -> Figure:
  """Which share of a source's rows is within so many nats of the bound, a panel a form and a line a source."""
  within = np.geomspace(SMALLEST, 10.0, 201)
  with rc_context(figures.RC):
    figure, axes = _panels(2, 2, 5.6)
    for panel, form in zip(axes.ravel(), FORMS):
      for source, look in _looks().items():
        slack = [p.entropy_N - p.bound(form) for p in parts.values() if p.source == source and form in p.s]
        if source == 'tight' or not slack:
          continue
        values = np.sort(np.concatenate(slack))
        share = np.searchsorted(values, within, side='right') / values.size
        panel.plot(within, np.where(share > 0, 100 * share, np.nan), color=look['color'], linestyle=look['linestyle'], label=_SAID[source])
      panel.set(xscale='log', yscale='log', xlim=(SMALLEST, 10.0), ylim=(0.01, 150.0), title=SHORT[form])
    for panel in axes[-1]:
      panel.set_xlabel('x (nats)')
    for panel in axes[:, 0]:
      panel.set_ylabel('rows within x\nof the bound (%)')
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=3)
  return figure


# --- tables and report ------------------------------------------------------------------------------------------------


def counts(parts: Mapping[str, Part]) -> Table:
  """Every source and form: rows, those below, the smallest slack, and on how many of them the bound says something."""
  rows = []
  for source in SOURCES:
    for form in FORMS:
      some = [p for p in parts.values() if p.source == source and form in p.s]
      if not some:
        continue
      bound, entropy, keys = (np.concatenate(x) for x in zip(*((p.bound(form), p.entropy_N, p.num_keys_N) for p in some)))
      telling = bound > 0.01 * np.log(keys)
      ratio = f'{np.median(entropy[telling] / bound[telling]):.3g}' if telling.any() else 'none'
      rows.append([
        source, SHORT[form], f'{entropy.size:,}', str(sum(int(p.below(form).sum()) for p in some)), f'{np.min(entropy - bound):.1e}',
        f'{np.mean(telling):.0%}', ratio,
      ])  # fmt: skip
  return Table(
    ['source', 's from', 'rows', 'below', 'smallest H - LB (nats)', 'rows with LB above 1 % of ln T', 'median H / LB there'], rows
  )  # fmt: skip


def searches(parts: Mapping[str, Part]) -> Table:
  """How near to the bound each descent came, by the number of keys and s."""
  by_search = {
    name: smallest_slack(part for place, part in parts.items() if place.startswith(f'adversarial/{name}_'))
    for name in ('sphere', 'tokens', 'weights')
  }
  cases = sorted(set().union(*by_search.values()))
  rows: list[list[Any]] = []
  for T, s in cases:
    near = [found.get((T, s)) for found in by_search.values()]
    rows.append([int(T), f'{s:g}', f'{float(lower_bound(T, s)):.4g}', *('none' if x is None else f'{x:.1e}' for x in near)])
  through = ['sphere of logits', 'tokens and weights', 'weights alone, tokens random']
  return Table(['T', 's', 'LB (nats)', *(f'least H - LB through {name}' for name in through)], rows)


def training(parts: Mapping[str, Part]) -> Table:
  """Every trained decoder at every snapshot."""
  rows = []
  for place, part in parts.items():
    if part.source != 'trained':
      continue
    of = part.cells
    for i, step in enumerate(of['step'].tolist()):
      at = part.cell_N == i
      s = [f'{np.median(part.s[form][at]):.3g}' if form in part.s else 'none' for form in ('weights', 'centred')]
      values = (of[name][i] for name in ('loss', 'normalised_entropy', 'lowest_layer_entropy'))
      rows.append([place.split('/')[1], int(step), *(f'{x:.3f}' for x in values), f'{of["largest_logit"][i]:.3g}', *s])
  header = ['decoder', 'step', 'loss', 'entropy over ln n', 'that of the lowest layer', 'largest logit']
  return Table([*header, 'median s of the weights', 'median centred norm'], rows)


def report(workdir: pathlib.Path, *, seconds: float | None = None) -> list[Claim]:
  """Writes claims.json, metrics.jsonl, figures/ and report.html of a study's folder, and returns the claims."""
  parts, config = load(workdir), runs.load_config(workdir)
  found = claims(parts, min_rows=config['min_rows'])
  write_claims(workdir / 'claims.json', found)
  summary_rows = []
  for i, (place, part) in enumerate(parts.items()):
    row = {f'{place}/below/{form}': int(part.below(form).sum()) for form in part.s}
    summary_rows.append(format_row(i, {f'{place}/rows': part.entropy_N.size, **row}))
  write_atomically(workdir / METRICS, ''.join(f'{row}\n' for row in summary_rows))
  cloud = figures.save(entropy_against_s(parts), workdir / 'figures' / 'entropy_against_s.png')
  shares = figures.save(slack_shares(parts), workdir / 'figures' / 'slack.png')
  low, high = _S_RANGE
  sections = [
    Section(
      'Entropy and its floor', _FLOOR,
      [FigureRef(
        cloud, 'Entropy of rows of attention against s, with the lower bound under them; a row of panels for each number of keys that the '
        'query sees. On the left s comes from the weights, on the right from the row itself. Drawn are, of a source and panel, the '
        f'{_NEAREST} rows nearest to the bound and at most {_MOST_POINTS} others, those with s in [{low:g}, {high:g}]. Diamonds: the '
        'constructed layer.',
      )],
      counts(parts),
    ),
    Section(
      'How far above the bound', _SLACK,
      [FigureRef(
        shares, 'Share of the rows of each source whose entropy is at most x nats above the bound, both axes logarithmic. A line that '
        f'starts high has rows on the bound to within {SMALLEST:g} nats or below it by rounding: those that are nearly uniform, where the '
        'bound is ln T.',
      )],
      searches(parts),
    ),
    Section('Trained decoders', _TRAINED, table=training(parts)),
  ]  # fmt: skip
  environment = runs.load_environment(workdir) | ({} if seconds is None else {'wall time of this call (s)': round(seconds)})
  num_rows = sum(part.entropy_N.size for part in parts.values())
  below = sum(int(part.below(form).sum()) for part in parts.values() for form in part.s)
  summary = (
    'A row of attention over T keys, whose logits have norm at most s, has an entropy of at least LB(T, s). Here '
    f'{num_rows:,} rows of random, trained and adversarial layers are held against it, in every form of s that holds for them: '
    f'{below} are below it.'
  )
  title = 'The lower bound of attention entropy'
  write_report(workdir / 'report.html', Report(title, summary, sections, found, config, environment, NOTES))
  return found


_FLOOR = (
  'LB(T, s) = ln(1 + (T - 1) e^-g) + g (T - 1) e^-g / (1 + (T - 1) e^-g) with g = s sqrt(T / (T - 1)): the entropy of one logit that is g '
  'above T - 1 equal ones. For causal queries T is the number of keys seen; logits are divided by sqrt(head_dim), and so is s.\n\n'
  f'A row counts as below if H < (1 - {RTOL:g}) LB(T, s + {S_RTOL:g} s), which allows for the rounding of float32. Rows that see one key '
  'have entropy 0 and bound 0 and are not counted; nor are rows of padding.'
)
_SLACK = (
  'The norm of a row is what the theorem is about, and weights and tokens bound it only loosely: with all of them random the norm of a row '
  'is far below s. Adversarial rows are those of the starts and of every snapshot of Adam on the log-entropy: on the sphere of logits, '
  'through the weights of queries and keys (the mean over rows, tokens random and fixed), and through tokens and weights (the first row). '
  's is held at its value all the while.'
)
_TRAINED = (
  'Decoders that learn in-context unigrams without warmup, where even attention is best; their names end in the learning rate. Entropy is '
  'relative to even attention over the keys seen. With rotary positions logits are no products X W X^T with one W, so only the forms from '
  'queries and keys and from the row itself are held against them.'
)
NOTES = (
  'Where s is large the bound is next to 0, and that no row is below it says little; the first table tells on what share of the rows it is '
  'above 1 % of ln T.',
  'The trained decoders are small and their task is made up; they are here for their rows, one seed each. What collapses when is the '
  'subject of another study.',
  'Descent through the weights alone need not reach the bound: with tokens given, no weights may make the row that attains it.',
)
