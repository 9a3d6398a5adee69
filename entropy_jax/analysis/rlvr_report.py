"""The report of a run with verifiable rewards: curves, evaluations with intervals, responses token by token, what the numbers rest on."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropy_jax import compose
from entropy_jax.analysis import figures, rlvr, runs
from entropy_jax.analysis.claims import Claim, write_claims
from entropy_jax.analysis.report import FigureRef, Report, Section, Table, write_report
from entropy_jax.analysis.rlvr import Seed
from entropy_jax.analysis.sample_table import Sample
from entropy_jax.catalog import CATALOG, ROOMS
from entropy_jax.training import rlvr_samples
from entropy_jax.training.files import write_atomically
from entropy_jax.training.writers import METRICS, format_row

# Panel -> (its metrics, what its axis says); those that were not logged, or are 0 but for rounding, are left out.
VERDICTS = ('reward/parsed', 'reward/rejected', 'reward/timed_out')
PANELS: dict[str, tuple[tuple[str, ...], str]] = {
  'entropy': (('rollout/entropy',), 'policy entropy (nats a token)'),
  'covariance': (('policy/covariance',), 'covariance of log-probability\nand advantage (nats)'),
  'length': (('rollout/response_length',), 'tokens of a response'),
  'truncated': (('rollout/truncated_fraction',), 'share cut at the longest length'),
  'verdicts': (VERDICTS, 'share of answers'),
  'divergence': (('policy/kl_from_behaviour',), 'KL from the behaviour policy'),
}


def _panels(number: int) -> tuple[Figure, list[Axes]]:
  num_rows = -(-number // 2)
  figure = figures.canvas(0.4 + 2.5 * num_rows)
  panels = list(figure.subplots(num_rows, 2, squeeze=False).ravel())
  for unused in panels[number:]:
    unused.remove()
  return figure, panels[:number]


def _draw(axes: Axes, found: Sequence[Seed], metric: str, look: Mapping[str, Any], label: str) -> None:
  """The mean over seeds as a line, and each seed as a thin one where there are several."""
  step_N, value_RxN = runs.stack_runs([seed.curves for seed in found], metric)
  if len(found) > 1:
    axes.plot(step_N, value_RxN.T, color=look['color'], linewidth=0.6, alpha=0.5)
  axes.plot(step_N, value_RxN.mean(axis=0), color=look['color'], linestyle=look['linestyle'], label=label)


def curves(found: Sequence[Seed]) -> Figure:
  """Entropy, covariance, length and the like of every rollout."""
  says = lambda metric: metric in found[0].curves and bool(np.nanmax(np.abs(found[0].curves[metric])) > 1e-9)
  logged = {name: [metric for metric in metrics if says(metric)] for name, (metrics, _) in PANELS.items()}
  shown = [name for name, metrics in logged.items() if metrics]
  with rc_context(figures.RC):
    figure, panels = _panels(len(shown))
    for axes, name in zip(panels, shown, strict=True):
      styles = figures.styles_for(logged[name])
      for metric in logged[name]:
        _draw(axes, found, metric, styles[metric], metric.rpartition('/')[2].replace('_', ' '))
      axes.set(xlabel='rollout', ylabel=PANELS[name][1])
      if len(logged[name]) > 1:
        axes.legend()
  return figure


def success(found: Sequence[Seed], names: Sequence[str]) -> Figure:
  """Rewards of the rollouts, and success on held-out questions with its 95 % intervals over questions."""
  with rc_context(figures.RC):
    figure, (left, right) = _panels(2)
    styles = figures.styles_for(names)
    for name in names:
      _draw(left, found, f'reward/{name}', styles[name], name.replace('_', ' '))
    left.set(xlabel='rollout', ylabel='mean reward of a rollout,\nbefore its weight', ylim=(-0.02, 1.02))
    left.legend()
    shown = [f'seed {k}' for k in range(len(found))][: len(figures.COLORS)]
    for (label, style), seed in zip(figures.styles_for(shown).items(), found):
      step_E = np.array([evaluation.step for evaluation in seed.evaluations])
      ends_Ex3 = np.array([next(iter(rlvr.pass_table(evaluation).values())) for evaluation in seed.evaluations])
      bars = np.abs(ends_Ex3[:, 1:] - ends_Ex3[:, :1]).T
      look = {'color': style['color'], 'linewidth': 1.2, 'capsize': 2, 'marker': 'o', 'markersize': 3.5}
      right.errorbar(step_E, ends_Ex3[:, 0], bars, label=label, **look)
    right.set(xlabel='rollout', ylabel='success on held-out questions', ylim=(-0.02, 1.02))
    if len(found) > 1:
      right.legend()
  return figure


def evaluations(found: Sequence[Seed]) -> Table:
  """avg@n, pass@k and maj@n of every seed before and after, with intervals over questions."""
  rows = []
  for k, seed in enumerate(found):
    first, last = seed.evaluations[0], seed.evaluations[-1]
    for when, evaluation in (('before', first), ('after', last)):
      table = rlvr.pass_table(evaluation)
      rows.append([
        f'{k}, {when}',
        *(f'{mean:.3f} [{low:.3f}, {high:.3f}]' for mean, low, high in table.values()),
        f'{evaluation.metrics["entropy"]:.3f}',
        f'{evaluation.metrics["response_length"]:.1f}',
      ])
  return Table(['seed', *rlvr.pass_table(found[0].evaluations[0]), 'entropy (nats a token)', 'tokens'], rows)


def objective_table(line: str) -> Table:
  """Every method of the objective, in the order in which data passes through them."""
  spec = compose.parse(line)
  rows = []
  for room in ROOMS:
    for method in spec[room]:
      entry = CATALOG[method['name']]
      given = ', '.join(f'{key}={value}' for key, value in method['kwargs'].items()) or 'defaults'
      rows.append([room, f'`{entry.name}`', given, f'`{entry.formula}`', entry.reference])
  return Table(['room', 'method', 'given', 'formula', 'reference'], rows)


def samples(directory: pathlib.Path, when: str) -> list[Sample]:
  """Responses that a seed wrote down."""
  raw = rlvr_samples.read(directory / f'samples_{when}.jsonl')
  keys = ('prompt', 'tokens', 'advantage', 'reward', 'finished')
  return [Sample(**{key: r[key] for key in keys}, entropy_T=r['entropy'], covariance_T=r['covariance']) for r in raw]


def report(workdir: pathlib.Path, *, seconds: float | None = None) -> list[Claim]:
  """Writes claims.json, metrics.jsonl, figures/ and report.html of a run's folder, and returns the claims."""
  found, config = rlvr.load(workdir), runs.load_config(workdir)
  made_of = json.loads((workdir / 'provenance.json').read_text(encoding='utf-8'))
  decided = rlvr.claims(found)
  write_claims(workdir / 'claims.json', decided)
  last = {f'eval/{name}': np.mean([seed.evaluations[-1].metrics[name] for seed in found]) for name in found[0].evaluations[-1].metrics}
  write_atomically(workdir / METRICS, f'{format_row(config["num_steps"], {name: float(x) for name, x in last.items()})}\n')
  names = [name for name in config['rewards'] if f'reward/{name}' in found[0].curves][:9]
  show = lambda name, figure, caption: FigureRef(figures.save(figure, workdir / 'figures' / f'{name}.png'), caption)
  seen = [show('success', success(found, names), _SUCCESS), show('curves', curves(found), _CURVES)]
  sections = [
    Section('What was learnt', _LEARNT.format(reward=config['evaluation']['success']), seen, evaluations(found)),
    Section('The objective', f'`{made_of["objective"]}`', table=objective_table(config['objective'])),
    Section('Responses after training', _SAMPLES, samples=samples(workdir / 'seed_0', 'after')),
    Section('Responses before', 'The same questions, the same random numbers.', samples=samples(workdir / 'seed_0', 'before')),
    Section('What the numbers rest on', _RESTS, table=_provenance(made_of)),
  ]
  environment = runs.load_environment(workdir) | ({} if seconds is None else {'wall time of this call (s)': round(seconds)})
  page = Report('Reinforcement learning with verifiable rewards', _summary(found, config), sections, decided, config, environment, NOTES)
  write_report(workdir / 'report.html', page)
  return decided


def _provenance(made_of: Mapping[str, Any]) -> Table:
  flat: dict[str, Any] = {}
  for key, value in made_of.items():
    flat |= {f'{key} {name}': x for name, x in value.items()} if isinstance(value, Mapping) else {key: value}
  rows = [[key.replace('_', ' '), f'`{value}`' if isinstance(value, str) else str(value)] for key, value in flat.items()]
  return Table(['of', 'is'], rows)


def _summary(found: Sequence[Seed], config: Mapping[str, Any]) -> str:
  mean = lambda at, of: float(np.mean([of(seed.evaluations[at]) for seed in found]))
  share, entropy = (lambda e: e.shares.mean()), (lambda e: e.metrics['entropy'])
  return (
    f'`{config["model"]["folder"]}` learnt from `{config["data"]["train"]["source"]}` with the objective `{config["objective"]}`, '
    f'{config["num_steps"]} rollouts of {config["num_prompts"]} questions and {config["group_size"]} responses to each. Success on '
    f'{len(found[0].evaluations[0].num_correct_P)} held-out questions went from {mean(0, share):.3f} to {mean(-1, share):.3f}, the '
    f'policy entropy on them from {mean(0, entropy):.3f} to {mean(-1, entropy):.3f} nats a token.'
  )


_SUCCESS = 'Left: mean of each reward over a rollout. Right: success on held-out questions, 95 % intervals by bootstrap over questions.'
_CURVES = 'Every rollout: policy entropy of the sampled tokens, what moves it, and the form of the responses.'
_LEARNT = (
  'Success is the reward `{reward}`. avg@n is the mean over n responses to a question, pass@k the unbiased estimate that one of k is '
  'right, maj@n how often the answer that most of n responses give is right. All evaluations use the same questions and the same random '
  'numbers; intervals are over questions.'
)
_SAMPLES = (
  'The best and the worst of the responses to a few held-out questions. The covariance of a token is what Clip-Cov and KL-Cov select by: '
  "(A - mean A)(log p - mean log p) over these responses, with GRPO's advantage A; a mean above 0 lowers entropy."
)
_RESTS = 'SHA-256 of the weights and their config.json, of the tokenizer, and of questions, references and prompts as tokens.'
NOTES = (
  'One run is one draw: the interval is over questions, and says nothing of other seeds; raise num_seeds for that.',
  'Success is what the verifier accepts. Its false positives and negatives are measured by benchmarks/verifier.py.',
)
