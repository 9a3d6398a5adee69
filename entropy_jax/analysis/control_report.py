"""What the entropy-control study says: claims with their criteria, figures, and the report.

Everything is read from the run folder, so an old run can be judged again. The criteria below are fixed: they come from what the papers say
of their controllers, and were written before the study was run.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from entropy_jax.analysis import control, control_runs, figures, runs, statistics
from entropy_jax.analysis.claims import Above, Below, Claim, Criterion, decide, write_claims
from entropy_jax.analysis.control_runs import HERE, PUBLISHED, REFERENCE, Testbed
from entropy_jax.analysis.report import FigureRef, Report, Section, Table, write_report
from entropy_jax.training.writers import format_row

STEADY = 0.05  # nats, of the spread over rollouts that arbitrary entropy policy optimisation keeps below
THIS = 'Prediction of this project'
SIREN = 'Jiang et al., Rethinking Entropy Regularization in Large Reasoning Models'
PAPERS = {
  'adaptive_entropy': 'He et al., Skywork Open Reasoner 1, arXiv 2505.22312',
  'aent': 'Shen, On Entropy Control in LLM-RL Algorithms',
  'ter': 'Confucius3-Math technical report',
  'aepo': 'Wang et al., Arbitrary Entropy Policy Optimization, arXiv 2510.08141',
  'epo': 'Xu et al., EPO: Entropy-regularized Policy Optimization for LLM Agents',
  'epo_smooth': 'The band of Xu et al., EPO, with a gradient: a variant of this project',
  'siren': SIREN,
  'siren_mean': f'{SIREN}, with the whole vocabulary at every position',
}


# --- claims -----------------------------------------------------------------------------------------------------------


def claims(testbed: Testbed) -> list[Claim]:
  """Every claim that one task can test; one value a seed, the mean over targets unless said otherwise."""
  task, start, everywhere = testbed.name, testbed.settle_by, np.ones(len(testbed.targets), bool)
  here, window = testbed.of(HERE)[0], f'from rollout {testbed.settle_by} on'
  error = 'mean absolute tracking error (nats)'

  def claim(id: str, statement: str, metric: str, samples: np.ndarray, criterion: Criterion, paper: str, **more: Any) -> Claim:
    return decide(id=f'{task}/{id}', paper=paper, statement=statement, metric=metric, samples=samples, criterion=criterion, **more)

  def closer(id: str, over_K: np.ndarray, where: str) -> Claim:
    best = testbed.best(over_K)
    return claim(
      id, f'{here} tracks its target more closely than the best published controller{where}.', f'{error} {window}, minus {best}',
      testbed.error(here)[over_K].mean(axis=0), Below(0.0), THIS, paired_with=testbed.error(best)[over_K].mean(axis=0), baseline=best,
    )  # fmt: skip

  def holds(name: str, paper: str) -> Claim:
    what = f'{name} holds the mean entropy within {testbed.band:g} nats of its target.'
    return claim(f'{name}_holds_target', what, f'{error} {window}', testbed.error(name).mean(axis=0), Below(testbed.band), paper)

  found = [closer(f'{here}_tracks_closer', everywhere, '')]
  above_K = testbed.above()
  if above_K.any():
    found.append(closer(f'{here}_tracks_closer_above', above_K, ', at targets that plain GRPO falls below'))
  found.append(holds(here, THIS))
  for name in testbed.of(PUBLISHED):
    paper = PAPERS.get(name, name)
    found.append(holds(name, paper))
    if name == 'adaptive_entropy':
      below = testbed.each(lambda curves, target: control.shortfall(curves, target, start=start), name)
      found.append(
        claim(
          f'{name}_keeps_above', 'The adaptive coefficient keeps the entropy from falling below its target.',
          f'mean shortfall below the target (nats) {window}', below.mean(axis=0), Below(testbed.band), paper,
        )
      )  # fmt: skip
    if name in ('aent', 'siren') and testbed.controllers[name].own_KxRxN is not None:
      what = 'clamped entropy' if name == 'aent' else 'nucleus entropy of the peaks'
      found.append(
        claim(
          f'{name}_holds_its_own', f'{name} holds the {what}, the statistic that it steers, within {testbed.band:g} nats of its target.',
          f'{error} of the {what} {window}', testbed.error(name, own=True).mean(axis=0), Below(testbed.band), paper,
        )
      )  # fmt: skip
    if name == 'aepo':
      found += _ordered_and_steady(testbed, name, claim, paper)
  return found


def _ordered_and_steady(testbed: Testbed, name: str, claim: Any, paper: str) -> list[Claim]:
  """The two predictions of arbitrary entropy policy optimisation: entropy grows with the target, and does not wander."""
  last = 'over the last fifth of the rollouts'
  spread_KxR = testbed.each(lambda curves, target: control.final_spread(curves), name)
  steady = claim(
    f'{name}_is_steady', 'The entropy is steady once it has settled.',
    f'largest standard deviation of the entropy (nats) {last}, over targets', spread_KxR.max(axis=0), Below(STEADY), paper,
  )  # fmt: skip
  if len(testbed.targets) < 2:
    return [steady]
  order_K = np.argsort(testbed.targets)
  mean_KxR = testbed.each(lambda curves, target: control.final_mean(curves), name)[order_K]
  ordered = claim(
    f'{name}_is_ordered', 'A higher target gives a higher entropy, at every step of the grid.',
    f'smallest gain of the mean entropy (nats) {last} from a target to the next', np.diff(mean_KxR, axis=0).min(axis=0), Above(0.0), paper,
  )  # fmt: skip
  return [ordered, steady]


# --- figures and tables -----------------------------------------------------------------------------------------------


def _order(testbed: Testbed) -> list[str]:
  """The controllers but the reference, this library's first, so that it is the one that is drawn dark."""
  return [*testbed.of(HERE), *testbed.of(PUBLISHED)]


def tracking_curves(testbed: Testbed, *, most: int = 4) -> Figure:
  """Entropy against the rollout, mean over seeds, one panel a target: at most `most` of them, from the lowest to the highest."""
  names, targets = _order(testbed), np.argsort(testbed.targets)
  shown = targets[np.unique(np.round(np.linspace(0, len(targets) - 1, min(most, len(targets)))).astype(int))]
  styles, free = figures.styles_for(names), testbed.controllers[testbed.of(REFERENCE)[0]].entropy_KxRxN
  with rc_context(figures.RC):
    figure = Figure(figsize=(figures.WIDTH, 1.0 + 2.1 * len(shown)), layout='constrained')
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axes, k in zip(panels, shown):
      target = testbed.targets[k]
      axes.axhspan(target - testbed.band, target + testbed.band, color=figures.MUTED, alpha=0.18, linewidth=0)
      axes.plot(free[k].mean(axis=0), color=figures.MUTED, linestyle=(0, (1, 1.2)), label=f'{testbed.of(REFERENCE)[0]}, no target')
      for rank, name in enumerate(names):
        look = {key: styles[name][key] for key in ('color', 'linestyle')}
        axes.plot(testbed.controllers[name].entropy_KxRxN[k].mean(axis=0), label=name, linewidth=1.5, zorder=5 - 0.1 * rank, **look)
      axes.axvline(testbed.settle_by, color=figures.MUTED, linewidth=0.8)
      axes.set(ylabel='entropy (nats)', title=f'target {target:g}', ylim=(max(target - 0.5, -0.02), target + 0.8))
      axes.margins(x=0.01)
    panels[-1].set_xlabel('rollout')
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=4, handlelength=2.4, columnspacing=1.6)
  return figure


def error_by_target(testbed: Testbed) -> Figure:
  """Mean absolute tracking error against the target, with the seeds' own values, on a logarithmic axis."""
  names, order_K = _order(testbed), np.argsort(testbed.targets)
  targets_K, styles = np.asarray(testbed.targets)[order_K], figures.styles_for(names)
  with rc_context(figures.RC):
    figure = Figure(figsize=(figures.WIDTH, 4.6), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for rank, name in enumerate(names):
      error_KxR = np.maximum(testbed.error(name)[order_K], 1e-5)
      axes.plot(targets_K, error_KxR.mean(axis=1), label=name, markersize=5, zorder=5 - 0.1 * rank, **styles[name])
      axes.plot(targets_K, error_KxR, linestyle='', marker='.', markersize=3, color=styles[name]['color'], alpha=0.4)
    free = testbed.of(REFERENCE)[0]
    free_K = testbed.error(free)[order_K].mean(axis=1)
    axes.plot(targets_K, free_K, color=figures.MUTED, linestyle=(0, (1, 1.2)), label=f'{free}, no target', zorder=3)
    axes.axhline(testbed.band, color=figures.MUTED, linewidth=0.9, label=f'{testbed.band:g} nats')
    axes.axvline(testbed.floor(), color=figures.MUTED, linewidth=0.9, linestyle=(0, (4, 3)), label='where GRPO ends by itself')
    axes.set(xlabel='target entropy (nats a token)', ylabel='mean absolute tracking error (nats)', yscale='log')
    figure.legend(loc='outside lower center', ncols=4, handlelength=2.4, columnspacing=1.6)
  return figure


def _with_interval(value_R: np.ndarray, bounds: tuple[float, float] = (0.0, np.inf)) -> str:
  low, high = statistics.bootstrap_interval(value_R, bounds=bounds)
  return f'{np.mean(value_R):.3f} [{low:.3f}, {high:.3f}]'


def table(testbed: Testbed) -> Table:
  """Every controller: mean over targets, with the 95 % interval over seeds; closest first."""
  above_K, rows = testbed.above(), []
  for name in sorted(_order(testbed), key=lambda n: float(np.mean(testbed.error(n)))):
    held, error_KxR = testbed.controllers[name], testbed.error(name)
    settled_KxR = testbed.each(lambda curves, target: control.settling_time(curves, target, band=testbed.band), name)
    success_R = np.mean([control.final_mean(curves) for curves in held.success_KxRxN], axis=0)
    some = np.isfinite(settled_KxR)
    rows.append([
      name, held.setting(), _with_interval(error_KxR.mean(axis=0)),
      _with_interval(error_KxR[above_K].mean(axis=0)) if above_K.any() else 'none', f'{some.sum()} of {some.size}',
      f'{np.median(settled_KxR[some]):.0f}' if some.any() else 'never',
      _with_interval(testbed.each(control.overshoot, name).mean(axis=0)), _with_interval(success_R, (0.0, 1.0)),
    ])  # fmt: skip
  floor = f'{testbed.floor():.2f}'
  return Table(
    [
      'controller', 'setting chosen on other seeds', 'tracking error (nats)', f'of targets above {floor}, where GRPO ends',
      f'runs that settle within {testbed.band:g}', 'median rollout of settling', 'overshoot (nats)', 'final success',
    ],
    rows,
  )  # fmt: skip


_ABOUT = {
  'fork_tokens': 'Sixteen prompts, six independent tokens from 32; the reward looks at two of them. The policy starts at about 2 nats a '
  'token and GRPO lowers the entropy by itself.',
  'mod_sum': 'Thirty-two prompts, four digits from six whose sum must hit a target. Reward pulls the entropy down much harder than on '
  '`fork_tokens`, so a controller has to keep pushing.',
}


def _section(testbed: Testbed, folder: pathlib.Path) -> Section:
  curves = figures.save(tracking_curves(testbed), folder / f'{testbed.name}_tracking.png')
  by_target = figures.save(error_by_target(testbed), folder / f'{testbed.name}_error.png')
  shown = [
    FigureRef(
      curves, 'Mean entropy over seeds while the policy learns, one panel a target. The band is the target within '
      f'{testbed.band:g} nats; errors are counted to the right of the vertical line.',
    ),
    FigureRef(
      by_target, 'Tracking error at every target, with the seeds as dots. A controller that can only raise entropy follows the curve of '
      'plain GRPO to the left of the dashed line, where nothing is to be raised.',
    ),
  ]  # fmt: skip
  text = (
    f'{_ABOUT.get(testbed.name, "")}\n\nThe tracking error is the mean of |H - H*| from rollout {testbed.settle_by} on, of the exact '
    'entropy, over targets. Success is that of the same runs: a policy that is held at a high entropy cannot be right always, so it is to '
    'be read beside the error, at equal targets.'
  )
  return Section(f'Tabular task {testbed.name}', text, shown, table(testbed))


def write_summary(path: pathlib.Path, testbeds: Sequence[Testbed]) -> None:
  """metrics.jsonl of the study itself: the mean over seeds of entropy and success of every task, controller and target, a row a rollout."""
  rows: dict[int, dict[str, float]] = {}
  for testbed in testbeds:
    for name, held in testbed.controllers.items():
      for label, values in ((control_runs.ENTROPY, held.entropy_KxRxN), (control_runs.SUCCESS, held.success_KxRxN)):
        for target, mean_N in zip(testbed.targets, values.mean(axis=1)):
          for step, value in enumerate(mean_N.tolist()):
            rows.setdefault(step, {})[f'{testbed.name}/{name}/{control_runs.column(target, label)}'] = value
  path.write_text(''.join(format_row(step, rows[step]) + '\n' for step in sorted(rows)))


def report(workdir: pathlib.Path, *, seconds: float | None = None) -> list[Claim]:
  """Writes claims.json, metrics.jsonl, figures/ and report.html of a study's folder, and returns the claims."""
  testbeds = list(control_runs.load(workdir).values())
  found = [claim for testbed in testbeds for claim in claims(testbed)]
  write_claims(workdir / 'claims.json', found)
  write_summary(workdir / 'metrics.jsonl', testbeds)
  sections = [_section(testbed, workdir / 'figures') for testbed in testbeds]
  environment = runs.load_environment(workdir) | ({} if seconds is None else {'wall time of this call (s)': round(seconds)})
  tally = {v: sum(c.verdict == v for c in found) for v in ('reproduced', 'not reproduced', 'inconclusive')}
  summary = (
    'Can the entropy of a policy be ordered? Each controller is given targets and held to them while the policy learns, beside one that '
    'predicts the entropy change of the next update from the ledger of the last ones and solves for the coefficient. '
    f'Of {len(found)} claims {tally["reproduced"]} reproduced, {tally["not reproduced"]} did not and {tally["inconclusive"]} are '
    'inconclusive.'
  )
  write_report(
    workdir / 'report.html', Report('Entropy to order', summary, sections, found, runs.load_config(workdir), environment, NOTES)
  )
  return found


NOTES = (
  'Every controller was given the same number of settings and of tuning seeds, which are not among the reported ones. The ranges of the '
  'grids come from single pilot runs with other seeds; a wider grid might serve a controller better.',
  'Only the entropies that matter to a controller are its business: AEnt steers the clamped entropy and SIREN that of the nucleus at the '
  'peaks, which differ from the mean entropy that is judged here. `siren_mean` takes this handicap away from SIREN.',
  'EPO knows no target. Its coefficient is chosen for each target separately, seven choices where the others have one.',
  'The Skywork bonus, AEnt and EPO can only raise entropy: at targets below the entropy where GRPO ends by itself their error is that of '
  'GRPO. The second column of errors leaves these targets out.',
  'The entropy of a table is exact and its policy is not noisy. What a language model adds (sampling noise in the entropy, shared '
  'parameters, Adam) is not tested here.',
  'The best published controller is chosen on the reported seeds themselves, which favours it.',
  'The learning rates of the two tasks were chosen in single pilot runs with other seeds, `model_based` among them.',
  'Close tracking is not success: a controller that pulls the entropy down in ten rollouts has decided before it has learned. Read the '
  'last column at equal targets.',
)
