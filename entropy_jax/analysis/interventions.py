"""What a folder of the interventions study says: ranked tables and forest plots at matched success, each paper's claim beside its
verdict, and the report.

Everything is read from the run folder, so an old run can be judged again. Criteria: `analysis.predictions`. Methods are paired with GRPO
by seed: seed k has the same instance and the same rollout noise under every method.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from entropy_jax.analysis import comparison, figures, mechanism, runs, statistics
from entropy_jax.analysis.claims import Claim, decide, write_claims
from entropy_jax.analysis.forest import Effect, forest
from entropy_jax.analysis.mechanism import ALL, BASELINE, FORK, SETTLED, SUCCESS
from entropy_jax.analysis.predictions import EXCLUDED, HELD, METRICS, PREDICTIONS, Prediction
from entropy_jax.analysis.report import FigureRef, Report, Section, Table, write_report

ANSWERS, PASS, REJECTED = 'exact/correct_answer_entropy', 'exact/pass_at_16', 'update/rejected'
MATCHED = {'entropy': ALL, 'fork': FORK, 'answers': ANSWERS, 'rollouts': 'step', 'pass_at_16': PASS}
RESPONSE_TOKENS = {'fork_tokens': 16 * 6, 'mod_sum': 32 * 4}  # of one response to every prompt
MARGIN = 0.05  # nats: differences within it are the noise of the pre-checks' seeds
MIN_SEEDS = 5
HIGHER, LOWER, SAME, OPEN, MISSED = 'higher', 'lower', 'no difference', 'undecided', 'not reached'


@dataclasses.dataclass(frozen=True)
class Setting(mechanism.Testbed):
  """One task with one number of updates per rollout; its name is TASK/epochs_N."""

  num_epochs: int
  group_size: int

  @property
  def task(self) -> str:
    return self.name.split('/')[0]

  def has(self, metric: str) -> bool:
    return metric in self.methods[BASELINE][0]


class Row(NamedTuple):
  """A method in the ranked table: means over seeds at matched success, NaN unless every seed reached it."""

  method: str
  num_reached: int
  at_match: Mapping[str, float]  # of MATCHED
  difference: Effect  # of the entropy, minus GRPO's
  other: Effect  # the same at the forks or, where there are none, of the correct answers
  improvement: float  # probability that a run of the method keeps more entropy than a run of GRPO
  final_success: float
  verdict: str


def load(workdir: pathlib.Path) -> tuple[list[Setting], dict[str, list[runs.RunMetrics]]]:
  """(settings of the tables, countdown runs by method) of a study's folder; methods in the order of the config's lines."""
  config = runs.load_config(workdir)
  order = [BASELINE, *config['lines'], 'objective']

  def found(folder: pathlib.Path, num_seeds: int) -> dict[str, list[runs.RunMetrics]]:
    present = [name for name in dict.fromkeys(order) if (folder / name / 'seed_0').is_dir()]
    return {name: [runs.load_metrics(folder / name / f'seed_{k}') for k in range(num_seeds)] for name in present}

  settings = []
  tabular = config['tabular']
  for path in sorted((workdir / 'tabular').glob('*/epochs_*')) if tabular['num_seeds'] else ():
    given, epochs = tabular[path.parent.name], int(path.name.removeprefix('epochs_'))
    methods = found(path, tabular['num_seeds'])
    name = f'{path.parent.name}/{path.name}'
    settings.append(Setting(name, given['matched_success'], methods, epochs, given['group_size']))
  countdown = config['countdown']
  return settings, found(workdir / 'countdown', countdown['num_seeds']) if countdown['num_seeds'] else {}


def effect(value_R: np.ndarray, baseline_R: np.ndarray) -> Effect:
  """Mean of the paired differences and its interval; NaN unless all of them are finite."""
  difference_R = value_R - baseline_R
  if not np.all(np.isfinite(difference_R)):
    return Effect(float('nan'), (float('nan'), float('nan')))
  return Effect(float(np.mean(difference_R)), statistics.bootstrap_interval(difference_R))


def judged(difference: Effect, num_seeds: int) -> str:
  """In a word: where the interval of the entropy difference lies. A reversal of what a paper claims is 'lower'."""
  low, high = difference.interval
  if not np.isfinite(difference.value):
    return MISSED
  if num_seeds < MIN_SEEDS or not np.isfinite(low):
    return OPEN
  if max(-low, high) <= MARGIN:
    return SAME
  return HIGHER if low > 0 else LOWER if high < 0 else OPEN


def rows(setting: Setting) -> list[Row]:
  """Every method, most entropy at matched success first, those that did not reach it last."""
  metrics = {name: metric for name, metric in MATCHED.items() if metric == 'step' or setting.has(metric)}
  values = {method: {name: setting.at_match(method, metric) for name, metric in metrics.items()} for method in setting.methods}
  base, beside = values[BASELINE], 'fork' if 'fork' in metrics else 'answers'
  found = []
  for method, value in values.items():
    entropy_R = value['entropy']
    difference, other = effect(entropy_R, base['entropy']), effect(value[beside], base[beside])
    found.append(
      Row(
        method,
        int(np.sum(np.isfinite(entropy_R))),
        {name: float(np.mean(value_R)) for name, value_R in value.items()},
        difference,
        other,
        statistics.probability_of_improvement(entropy_R, base['entropy']),
        float(np.mean(_curve(setting, method, SUCCESS)[:, -1])),
        '' if method == BASELINE else judged(difference, entropy_R.size),
      )
    )
  reached = lambda row: np.isfinite(row.at_match['entropy'])
  return sorted(found, key=lambda row: (not reached(row), -row.at_match['entropy'] if reached(row) else -row.num_reached))


def _curve(setting: Setting, method: str, metric: str) -> np.ndarray:
  return runs.stack_runs(setting.methods[method], metric)[1]


def sample(setting: Setting, method: str, metric: str) -> np.ndarray:
  """The metric of a prediction, of METRICS, for every seed, [R]."""
  if metric in MATCHED:
    return setting.at_match(method, MATCHED[metric])
  if metric == 'final_success':
    return _curve(setting, method, SUCCESS)[:, -1]
  if metric == 'pass_at_16_change':
    pass_RxN = _curve(setting, method, PASS)
    return pass_RxN[:, -1] - pass_RxN[:, 0]
  entropy_RxN = _curve(setting, method, ALL)
  if metric == 'relative_fall':
    return mechanism.relative_fall(entropy_RxN)
  if metric == 'final_entropy':
    return entropy_RxN[:, -1]
  assert metric == 'target_error', metric
  last = max(entropy_RxN.shape[1] // 5, 1)
  return np.abs(np.mean(entropy_RxN[:, -last:], axis=1) - HELD)


def claims(settings: Sequence[Setting], predictions: Sequence[Prediction] = PREDICTIONS) -> list[Claim]:
  """The verdict on every prediction whose setting and methods were run."""
  found, by_name = [], {setting.name: setting for setting in settings}
  for prediction in predictions:
    for name in prediction.settings:
      setting = by_name.get(name)
      if setting is None or not {prediction.method, prediction.against or BASELINE} <= set(setting.methods):
        continue
      samples_R = sample(setting, prediction.method, prediction.metric)
      versus: dict[str, Any] = {}
      if prediction.against is not None:
        versus = {'paired_with': sample(setting, prediction.against, prediction.metric), 'baseline': prediction.against}
      found.append(
        decide(
          id=prediction.id(name),
          paper=prediction.paper,
          statement=prediction.claim,
          metric=f'{METRICS[prediction.metric]}{f", minus {prediction.against}" if versus else ""}',
          samples=samples_R,
          criterion=prediction.criterion,
          min_samples=MIN_SEEDS,
          **versus,
        )
      )
  return found


def ranked(setting: Setting) -> Table:
  """The table of a setting."""
  level = f'at success {setting.matched_success:g}'
  columns = {'entropy': 'entropy', 'fork': 'at forks', 'settled': 'elsewhere', 'answers': 'of correct answers', 'pass_at_16': 'pass@16'}
  there = rows(setting)
  shown = {name: label for name, label in columns.items() if name in there[0].at_match or (name == 'settled' and setting.has(SETTLED))}
  tokens = RESPONSE_TOKENS[setting.task] * setting.group_size
  lines = []
  for rank, row in enumerate(there, start=1):
    at_match = dict(row.at_match)
    if 'settled' in shown:
      at_match['settled'] = float(np.mean(setting.at_match(row.method, SETTLED)))
    low, high = row.difference.interval
    lines.append([
      rank,
      row.method,
      *(at_match[name] for name in shown),
      row.difference.value,
      f'[{low:.3f}, {high:.3f}]' if np.isfinite(low) else 'none',
      row.improvement,
      row.verdict,
      at_match['rollouts'] * tokens / 1000,
      at_match['rollouts'] * setting.num_epochs,
      f'{row.num_reached} of {len(setting.methods[row.method])}',
      row.final_success,
    ])  # fmt: skip
  header = ['rank', 'method', *(f'{label}, {level}' for label in shown.values()), 'entropy minus GRPO', '95 % interval']
  header += ['P(above GRPO)', 'against GRPO', 'thousand tokens to reach it', 'updates to reach it', 'seeds there', 'final success']
  return Table(header, lines)


def _section(setting: Setting, folder: pathlib.Path) -> Section:
  there = rows(setting)
  others = [row for row in there if row.method != BASELINE]
  stem = setting.name.replace('/', '_')
  level, beside = f'at success {setting.matched_success:g}', 'at the forks' if setting.has(FORK) else 'of correct answers'
  saved = []
  if others:
    plot = forest(
      [row.method for row in others],
      {
        f'entropy minus GRPO\n(nats a token) {level}': [row.difference for row in others],
        f'entropy {beside}\nminus GRPO (nats) {level}': [row.other for row in others],
      },
      margin=MARGIN,
      notes={row.method: f'{row.num_reached} of {len(setting.methods[row.method])} seeds got there' for row in others},
    )
    saved.append(
      FigureRef(
        figures.save(plot, folder / f'{stem}_forest.png'),
        f'Entropy {level} minus that of GRPO with the same seed, mean and 95 % interval. Blue: more, vermilion: less, grey: the interval '
        f'holds zero. Shaded: within {MARGIN:g} nats. Right: {beside}, where entropy is worth having. Rows without a mark did not reach '
        'the success with every seed.',
      )
    )
  shown = [BASELINE, *(row.method for row in others[:6])]
  curves = lambda metric: {name: values for name, values in setting.curves(metric).items() if name in shown}
  ordered = lambda found: {name: found[name] for name in shown}
  training = figures.entropy_and_success(ordered(curves(ALL)), ordered(curves(SUCCESS)), styles=figures.styles_for(shown), xlabel='rollout')
  saved.append(FigureRef(figures.save(training, folder / f'{stem}_training.png'), 'GRPO and the first six of the table over training.'))
  updates = f'{setting.num_epochs} update{"s" if setting.num_epochs > 1 else ""} a rollout'
  return Section(f'{setting.task}, {updates}', _summary(setting, others), saved, ranked(setting))


def _summary(setting: Setting, others: Sequence[Row]) -> str:
  groups = {verdict: [row.method for row in others if row.verdict == verdict] for verdict in (HIGHER, LOWER, SAME, OPEN, MISSED)}
  said = {
    HIGHER: 'More entropy than GRPO', LOWER: 'Less entropy than GRPO', SAME: f'No difference beyond {MARGIN:g} nats',
    OPEN: 'Undecided', MISSED: 'Success not reached by every seed',
  }  # fmt: skip
  parts = [f'{said[verdict]}: {", ".join(f"`{name}`" for name in names)}.' for verdict, names in groups.items() if names]
  broken = [name for name, seeds in setting.methods.items() if any(_is_broken(run) for run in seeds)]
  parts += [f'Updates that were not finite, and were refused: {", ".join(f"`{name}`" for name in broken)}.'] if broken else []
  return f'At success {setting.matched_success:g}, {len(others)} methods beside GRPO.\n\n' + '\n\n'.join(parts)


def _is_broken(run: runs.RunMetrics) -> bool:
  """Whether an update was refused; the last row has no update."""
  return REJECTED in run and bool(np.any(run[REJECTED][:-1] > 0))


def at_half_gain(own: runs.RunMetrics, baseline: runs.RunMetrics) -> float:
  """Held-out entropy where held-out success first reaches the middle of what GRPO of the same seed gained."""
  _, reference_N = mechanism.evaluated(baseline, 'eval/success')
  _, success_N = mechanism.evaluated(own, 'eval/success')
  _, entropy_N = mechanism.evaluated(own, 'eval/entropy')
  level = 0.5 * (reference_N[0] + reference_N[-1])
  return float(statistics.value_at_success(success_N, entropy_N, level))


def _text_section(countdown: Mapping[str, Sequence[runs.RunMetrics]]) -> Section:
  base_R = np.array([at_half_gain(run, run) for run in countdown[BASELINE]])
  lines: list[tuple[float, list[Any]]] = []
  for name, seeds in countdown.items():
    entropy_R = np.array([at_half_gain(run, base) for run, base in zip(seeds, countdown[BASELINE], strict=True)])
    difference = effect(entropy_R, base_R)
    last = lambda metric, seeds=seeds: float(np.mean([mechanism.evaluated(run, metric)[1][-1] for run in seeds]))
    low, high = difference.interval
    entropy = float(np.mean(entropy_R))
    lines.append((-entropy if np.isfinite(entropy) else np.inf, [
      name,
      entropy,
      difference.value,
      f'[{low:.3f}, {high:.3f}]' if np.isfinite(low) else 'none',
      statistics.probability_of_improvement(entropy_R, base_R),
      last('eval/entropy'),
      last('eval/success'),
    ]))  # fmt: skip
  lines.sort(key=lambda line: line[0])
  header = ['method', 'entropy at half of GRPO\'s gain', 'minus GRPO', '95 % interval', 'P(above GRPO)', 'final entropy', 'final success']
  text = (
    'A transformer of about half a million parameters, from one warm start. Entropy and success are those of held-out problems; the '
    'matched level is half of what GRPO of the same seed gained. The methods were fixed before any run, from the pre-checks of the '
    'method cards on the two tables, with the lines of the tables as they are: nothing was tuned for this task. So few seeds carry no '
    'verdict; the intervals say so.'
  )
  return Section('Transformer on countdown', text, (), Table(header, [line for _, line in lines]))


def report(workdir: pathlib.Path, *, seconds: float | None = None) -> list[Claim]:
  """Writes claims.json, comparison.json, metrics.jsonl, figures/ and report.html of a study's folder, and returns the claims."""
  settings, countdown = load(workdir)
  found = claims(settings)
  write_claims(workdir / 'claims.json', found)
  mechanism.write_summary(workdir / 'metrics.jsonl', {setting.name: setting for setting in settings})
  sections = [_section(setting, workdir / 'figures') for setting in settings]
  sections += [_text_section(countdown)] if countdown else []
  config = runs.load_config(workdir)
  methods = list(dict.fromkeys(name for setting in settings for name in setting.methods)) or list(countdown)
  own = {'objective': config['objective']} if config['objective'] else {}
  said = config['lines'] | own
  differences = {setting.name: {row.method: (row.difference, row.verdict) for row in rows(setting) if row.verdict} for setting in settings}
  record = comparison.comparison(differences, found, PREDICTIONS, {name: said[name] for name in methods})
  comparison.write(workdir / comparison.FILE, record)
  sections.append(Section('What each method is', 'Objectives as `--config.objective` takes them.', (), Table(
    ['method', 'objective'], [[name, said[name]] for name in methods]
  )))  # fmt: skip
  text = 'Methods of the catalog that have no line here, because they cannot act, or cannot differ, on a table.'
  sections.append(Section('What is left out', text, (), Table(['method', 'reason'], [list(item) for item in EXCLUDED.items()])))
  environment = runs.load_environment(workdir) | ({} if seconds is None else {'wall time of this call (s)': round(seconds)})
  tally = {v: sum(c.verdict == v for c in found) for v in ('reproduced', 'not reproduced', 'inconclusive')}
  summary = (
    f'{len(methods)} objectives, each one line of text, on tasks where success and entropy are exact, compared with GRPO where they first '
    'reach the same success, seed by seed. A method that learns more slowly keeps more entropy at the same step and nothing more; at the '
    f'same success that does not count. Of {len(found)} claims {tally["reproduced"]} reproduced, {tally["not reproduced"]} did not and '
    f'{tally["inconclusive"]} are inconclusive.'
  )
  write_report(
    workdir / 'report.html', Report('Interventions on policy entropy', summary, sections, found, config, environment, NOTES)
  )  # fmt: skip
  return found


NOTES = (
  'Fractions, coefficients and thresholds of every line are scaled to tables of 32 and 6 tokens, as the method cards\' small-scale '
  'experiments say; nothing was tuned after a run of this study.',
  'A table shares no parameters: what a token learns teaches no other. A claim that rests on shared parameters can be null here and true '
  'in a language model.',
  'The intervals are 95 % for each method alone. Of fifty methods that do nothing two or three would still stand apart by chance.',
  'Every paper is tested on the part of it that is an objective; parts in the sampler or in the data are not in this comparison.',
  '`pear` is on mod_sum alone: fork_tokens has no thinking that an answer follows.',
  'Methods without the standard deviation in the advantage get twice the learning rate, as in the pre-checks.',
  'On countdown, in the rollouts that the default config has time for, plain GRPO gets hardly better on held-out problems (0.165 to 0.18 '
  'when it was measured), so its matched level says little; `:countdown` trains as long as the core study.',
  'The answer of mod_sum is the whole string of digits, so that majority votes among 8 responses are mostly ties.',
)  # fmt: skip
