"""The report of the study of policy and attention entropy: figures, tables, words, and the claims of analysis/policy_attention.py."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from entropy_jax.analysis import figures, runs
from entropy_jax.analysis.claims import Claim, write_claims
from entropy_jax.analysis.policy_attention import (
  ATTENTION,
  BASELINE,
  COVARIANCE,
  HELD,
  MEASURED,
  POLICY,
  PREDICTED,
  SUCCESS,
  Trained,
  claims,
  load,
)  # fmt: skip
from entropy_jax.analysis.report import FigureRef, Report, Section, Table, write_report
from entropy_jax.training.files import write_atomically
from entropy_jax.training.writers import METRICS, format_row

Studied = Mapping[str, Trained]


def _panels(number: int, *, columns: int = 2, height: float = 2.7, **share: Any) -> tuple[Figure, list]:
  """A figure with so many panels, two beside each other; those left over are not drawn."""
  num_rows = -(-number // columns)
  figure = Figure(figsize=(figures.WIDTH, 0.6 + height * num_rows), layout='constrained')
  FigureCanvasAgg(figure)
  panels = list(figure.subplots(num_rows, columns, squeeze=False, **share).ravel())
  for unused in panels[number:]:
    unused.remove()
  return figure, panels[:number]


def law_panels(found: Studied) -> Figure:
  """Success against exp(policy entropy), a panel a variant: the points of all seeds, and the law fitted to each of them."""
  styles = figures.styles_for(list(found))
  free = [name for name in found if name != HELD]
  with rc_context(figures.RC):
    figure, panels = _panels(len(free), sharex=True, sharey=True)
    for axes, name in zip(panels, free):
      trained, color = found[name], styles[name]['color']
      exp_RxC = np.exp(trained.points(POLICY))
      dots = {'linestyle': '', 'marker': 'o', 'markersize': 3.2, 'alpha': 0.5, 'markeredgewidth': 0, 'color': color}
      axes.plot(exp_RxC.ravel(), trained.points(SUCCESS).ravel(), **dots)
      values = trained.law
      for exp_C, a, b in zip(exp_RxC, values['a'], values['b']):
        ends = np.array([np.min(exp_C), np.max(exp_C)])
        axes.plot(ends, b - a * ends, color=color, linewidth=1.0)
      axes.set_title(name)
      said = [f'{key} = {np.mean(x_R):.3f}' for key, x_R in zip(('a', 'b', 'R²'), values.values()) if np.all(np.isfinite(x_R))]
      axes.text(0.97, 0.95, '\n'.join(said), transform=axes.transAxes, ha='right', va='top', fontsize=9)
    for axes in panels:
      axes.set_xlabel('exp(policy entropy)')
      axes.tick_params(labelbottom=True)
    for axes in panels[::2]:
      axes.set_ylabel('success')
  return figure


def phase(found: Studied) -> Figure:
  """Attention entropy against policy entropy, a line a variant through the mean over seeds of its points; it starts at the large marker."""
  styles = figures.styles_for(list(found))
  with rc_context(figures.RC):
    figure, (axes,) = _panels(1, columns=1, height=4.2)
    for rank, (name, trained) in enumerate(found.items()):
      policy_RxC, attention_RxC = trained.points(POLICY), trained.points(ATTENTION)
      look, order = styles[name], 5 - 0.1 * rank
      dots = {'linestyle': '', 'marker': '.', 'markersize': 3, 'alpha': 0.25, 'zorder': 2}
      axes.plot(policy_RxC.ravel(), attention_RxC.ravel(), color=look['color'], **dots)
      mean = policy_RxC.mean(axis=0), attention_RxC.mean(axis=0)
      axes.plot(*mean, color=look['color'], linestyle=look['linestyle'], label=name, zorder=order)
      axes.plot(mean[0][:1], mean[1][:1], color=look['color'], marker=look['marker'], markersize=8, zorder=order + 1)
    axes.set(xlabel='policy entropy (nats a token); training moves to the left', ylabel='attention entropy\nrelative to uniform')
    figure.legend(loc='outside lower center', ncols=3, handlelength=2.4)
  return figure


def by_layer(found: Studied) -> Figure | None:
  """Attention entropy of every layer over training, a panel a layer; None for one layer."""
  styles = figures.styles_for(list(found))
  num_layers = sum(name.startswith('attention/layer_') and name.endswith('/entropy') for name in found[BASELINE].runs[0])
  if num_layers < 2:
    return None
  with rc_context(figures.RC):
    figure, panels = _panels(num_layers, sharey=True)
    for i, axes in enumerate(panels):
      for rank, (name, trained) in enumerate(found.items()):
        step_N, value_RxN = trained.curve(f'attention/layer_{i}/entropy')
        mean_N, low_N, high_N = figures.mean_and_band(value_RxN)
        look = {key: styles[name][key] for key in ('color', 'linestyle')}
        axes.plot(step_N, mean_N, label=name if i == 0 else None, zorder=5 - 0.1 * rank, **look)
        axes.fill_between(step_N, low_N, high_N, color=look['color'], alpha=0.15, linewidth=0)
      axes.set(title=f'layer {i + 1}', xlabel='update')
    for axes in panels[::2]:
      axes.set_ylabel('attention entropy\nrelative to uniform')
    figure.legend(loc='outside lower center', ncols=3, handlelength=2.4)
  return figure


# --- tables and report ------------------------------------------------------------------------------------------------


def _mean(values_R: np.ndarray, digits: int = 3) -> str:
  """Mean and standard deviation over seeds; 'none' where one has no number."""
  if not np.all(np.isfinite(values_R)):
    return 'none'
  spread = f' ± {np.std(values_R, ddof=1):.{digits}f}' if values_R.size > 1 else ''
  return f'{np.mean(values_R):.{digits}f}{spread}'


def entropies(found: Studied) -> Table:
  """Where every variant starts and ends: means and standard deviations over seeds of the first and last points."""
  metrics = {
    'success': SUCCESS, 'policy entropy (nats)': POLICY, 'attention entropy': ATTENTION, 'largest logit': 'attention/largest_logit',
    'sink rate': 'attention/sink_rate',
  }  # fmt: skip
  rows = []
  for name, trained in found.items():
    points = [trained.points(metric) for metric in metrics.values()]
    rows.append([name, *(f'{np.mean(x[:, 0]):.2f} → {_mean(x[:, -1], 2)}' for x in points)])
  return Table(['variant', *metrics], rows)


def laws(found: Studied) -> Table:
  """The law of every variant and the two correlations of the covariance identity."""
  rows = []
  for name, trained in found.items():
    values = trained.law
    identity = trained.over_steps(PREDICTED, MEASURED), trained.over_steps(COVARIANCE, MEASURED, sign=-1.0, ranks=True)
    rows.append([name, *map(_mean, values.values()), *map(_mean, identity)])
  return Table(['variant', 'a', 'b', 'R²', 'predicted and measured change', 'minus covariance and change (ranks)'], rows)


def report(workdir: pathlib.Path, *, seconds: float | None = None) -> list[Claim]:
  """Writes claims.json, metrics.jsonl, figures/ and report.html of a study's folder, and returns the claims."""
  found, config = load(workdir), runs.load_config(workdir)
  decided = claims(found)
  write_claims(workdir / 'claims.json', decided)
  ends = {f'{name}/{metric}': np.mean(last(trained, metric)) for name, trained in found.items() for metric in (SUCCESS, POLICY, ATTENTION)}
  row = format_row(config['num_steps'], {key: float(x) for key, x in ends.items() if np.isfinite(x)})
  write_atomically(workdir / METRICS, f'{row}\n')
  folder, styles = workdir / 'figures', figures.styles_for(list(found))
  curves = lambda metric, names=tuple(found): {name: found[name].curve(metric) for name in names}
  free = tuple(name for name in found if name != HELD)
  show = lambda name, figure, caption: FigureRef(figures.save(figure, folder / f'{name}.png'), caption)
  both = [
    show(
      'entropies', figures.entropy_and_success(
        curves(POLICY), curves(ATTENTION), xlabel='update', entropy_label='policy entropy\n(nats a token)',
        success_label='attention entropy\nrelative to uniform', styles=styles,
      ),
      'Policy entropy (above) and attention entropy (below) of the same tokens over training, means and 95 % bands over seeds.',
    ),
    show('success', figures.curves_with_bands(curves(SUCCESS), 'success', xlabel='update', bounds=(0.0, 1.0), styles=styles), _SUCCESS),
    show('phase', phase(found), _PHASE),
  ]  # fmt: skip
  layers = by_layer(found)
  if layers is not None:
    both.append(show('layers', layers, 'Attention entropy of each layer, means and 95 % bands over seeds.'))
  changes = {name: (_joined(found[name], PREDICTED), _joined(found[name], MEASURED)) for name in free}
  identity = figures.predicted_against_measured(changes, quantity='entropy change of an update (nats)', styles=styles)
  sections = [
    Section('Two entropies', _BOTH, both, entropies(found)),
    Section('The law', _LAW, [show('law', law_panels(found), _LAW_CAPTION)], laws(found)),
    Section('The covariance identity', _IDENTITY, [show('identity', identity, _IDENTITY_CAPTION)]),
  ]
  environment = runs.load_environment(workdir) | ({} if seconds is None else {'wall time of this call (s)': round(seconds)})
  title = 'Policy entropy and attention entropy'
  write_report(workdir / 'report.html', Report(title, _summary(found), sections, decided, config, environment, NOTES))
  return decided


def last(trained: Trained, metric: str) -> np.ndarray:
  """The last point of every seed, [R]."""
  return trained.points(metric)[:, -1]


def _joined(trained: Trained, metric: str) -> np.ndarray:
  return np.concatenate([run[metric] for run in trained.runs])


def _summary(found: Studied) -> str:
  base, held = found[BASELINE], found[HELD]
  level = lambda trained, metric: f'{np.mean(trained.points(metric)[:, 0]):.2f} to {np.mean(last(trained, metric)):.2f}'
  return (
    'A small decoder learns a task by on-policy GRPO. In the baseline the policy entropy goes from '
    f'{level(base, POLICY)} nats a token, and the entropy of its attention from {level(base, ATTENTION)} of that of uniform attention, '
    f'while success goes from {level(base, SUCCESS)}. With its policy entropy held ({level(held, POLICY)} nats) attention entropy goes '
    f'from {level(held, ATTENTION)}, success from {level(held, SUCCESS)}. What other blocks change of this, and of the law and the '
    'identity that tie policy entropy to success and to covariance, is below.'
  )


_BOTH = (
  'Attention entropy is that of the rows that chose a token of a response, relative to uniform attention over the same keys, mean over '
  f'heads and layers; policy entropy is that of the same tokens. `{HELD}` is the control: the decoder of `{BASELINE}` with a bonus '
  'that is on while policy entropy is below a target. What moves there too belongs to learning and not to the collapse.'
)
_SUCCESS = 'Share of correct responses of every rollout, means and 95 % bands over seeds.'
_PHASE = (
  'Attention entropy against policy entropy: a line through the mean over seeds, from the large marker on, and the points of all seeds. '
  'A line that goes down to the left loses both together; a level one loses policy entropy alone.'
)
_LAW = (
  'Cui et al. find R = -a exp(H) + b between success and policy entropy in training runs. It is fitted to each seed alone, to all of its '
  'updates; margins of the differences to the baseline are in the criteria.'
)
_LAW_CAPTION = 'Success against exp(policy entropy), points of all seeds, and the law of each seed; training moves to the left.'
_IDENTITY = (
  'To first order an update dz of the logits changes the entropy of a row by -Cov(ln p, dz), whatever made the update. It is taken here '
  'over the tokens of the rollout, before and after the update. The batch covariance of log-probability and advantage is what a '
  'language-model run logs; with shared parameters and Adam it is a proxy.'
)
_IDENTITY_CAPTION = 'Measured entropy change of every update of every seed against its first-order prediction.'
NOTES = (
  'The decoder is small and starts from a policy that was made up, not from a language model, and sequences are short: rows see a handful '
  'of keys, where sink rates are large without any sink.',
  'Success and entropies are those of the sampled responses, so that their noise is in the fits.',
  'Where the law does not fit, a and b are those of the line nearest to a bent curve: equal ones say that the curves bend alike.',
  'All variants have the same learning rate, at which the baseline and sigmaReparam without norms solved the task in a pilot with one seed '
  'each; what is compared is where entropies go together and not how fast.',
)
