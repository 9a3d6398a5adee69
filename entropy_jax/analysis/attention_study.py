"""What the attention-entropy study says: claims with their criteria, the table of every variant, figures, and the report.

Everything is read from the run folder, so an old run can be judged again. The criteria below are fixed: those on `unigram` are the method
card's predictions for 64 tokens at a learning rate of 3e-2, and all were written before the study was run. A diverged run counts with the
loss of guessing.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from entropy_jax.analysis import attention_figures, attention_runs, figures, runs, statistics
from entropy_jax.analysis.attention_runs import BASELINE, COLLAPSED, Sweeps, Swept
from entropy_jax.analysis.claims import Above, Below, Claim, Criterion, decide, write_claims
from entropy_jax.analysis.report import FigureRef, Report, Section, Table, write_report
from entropy_jax.training.writers import format_row

SIGMA = 'Zhai et al., Stabilizing Transformer Training by Preventing Attention Entropy Collapse, arXiv 2303.06296'
PROXIES = 'Wortsman et al., Small-scale proxies for large-scale Transformer training instabilities, arXiv 2309.14322'
CARD = 'Prediction of the method card, from a pilot run'
MIN_SEEDS = 3
HIGH = 3e-2  # learning rate of the card's predictions
LOW = 1e-3  # the lowest of those that its spread is over
SIGMAS = ('sigma_reparam', 'sigma_reparam_pre_ln')  # gains start at 1
PLAIN = (BASELINE, 'post_ln', 'deepnorm')
CENTRAL = '_is_stable_where_entropy_collapses'
SHARE: tuple[float, float] = (0.0, 1.0)
Samples = Callable[[Swept], np.ndarray]


# --- claims -----------------------------------------------------------------------------------------------------------


def _claim(
  sweeps: Sweeps, id: str, statement: str, metric: str, samples: np.ndarray, criterion: Criterion, paper: str, **more: Any
) -> Claim:
  more |= {'paper': paper, 'statement': statement, 'metric': metric, 'min_samples': MIN_SEEDS}
  return decide(id=f'{sweeps.task}/{id}', samples=samples, criterion=criterion, **more)


def stable_where_collapsed(swept: Swept, baseline: Swept) -> np.ndarray:
  """Of the rates at which the baseline fails with collapsed entropy, the share at which the variant is stable, [R].

  NaN for a seed in which it never does.
  """
  collapsed_R = baseline.collapsed.sum(axis=0)
  both_R = (baseline.collapsed & swept.stable).sum(axis=0)
  return np.where(collapsed_R > 0, both_R / np.maximum(collapsed_R, 1), np.nan)


def claims(sweeps: Sweeps) -> list[Claim]:
  """Every claim that one task can test; one value a seed."""
  return [*_stability(sweeps), *_sensitivity(sweeps), *_norms(sweeps), *(_predictions(sweeps) if sweeps.task == 'unigram' else [])]


def _stability(sweeps: Sweeps) -> list[Claim]:
  claim, base, found = functools.partial(_claim, sweeps), sweeps.baseline, []
  for name in [name for name in SIGMAS if name in sweeps.variants]:
    swept = sweeps.variants[name]
    found += [
      claim(
        f'{name}{CENTRAL}', f'{name} is stable where the entropy of {BASELINE} collapses.',
        f'share of the learning rates at which {BASELINE} fails with an entropy below {COLLAPSED:g} of uniform that {name} is stable at',
        stable_where_collapsed(swept, base), Above(0.5), SIGMA, baseline=BASELINE, bounds=SHARE,
      ),
      claim(
        f'{name}_has_larger_stable_rate', f'{name} trains stably at larger learning rates than {BASELINE}.',
        'largest stable learning rate, log10 of the ratio', np.log10(swept.largest_stable), Above(0.0), SIGMA,
        paired_with=np.log10(base.largest_stable), baseline=BASELINE,
      ),
    ]  # fmt: skip
  return found


def _sensitivity(sweeps: Sweeps) -> list[Claim]:
  found = []
  ordered = [('sigma_reparam_pre_ln', 'qk_norm'), ('qk_norm', BASELINE), *((name, BASELINE) for name in SIGMAS)]
  for less, more in ordered:
    if less in sweeps.variants and more in sweeps.variants:
      found.append(
        _claim(
          sweeps, f'{less}_is_less_sensitive_than_{more}', f'{less} depends less on the learning rate than {more}.',
          'learning-rate sensitivity (nats), the difference', sweeps.variants[less].lr_sensitivity(), Below(0.0),
          CARD if less != 'qk_norm' else PROXIES, paired_with=sweeps.variants[more].lr_sensitivity(), baseline=more,
        )
      )  # fmt: skip
  return found


def gain_error(swept: Swept, k: int) -> np.ndarray:
  """|norm / |gain| - 1| of every reparametrised map after training at the k-th rate, [R, M]."""
  return np.abs(swept.norm_over_gain_KxRxM[k] - 1.0)


def _rate(sweeps: Sweeps) -> str:
  return 'a constant learning rate' if sweeps.schedule == 'constant' else f'a learning rate that decays to 0 ({sweeps.schedule})'


def _norms(sweeps: Sweeps) -> list[Claim]:
  statement = f'Under {_rate(sweeps)}, one step of power iteration an update keeps the norms of the maps at their gains.'
  return [
    _claim(
      sweeps, f'{name}_norms_are_gains', statement,
      f'median over maps of |norm / gain - 1| after training at {swept.rate_K[swept.best_rate]:g}, the best rate',
      np.median(gain_error(swept, swept.best_rate), axis=-1), Below(0.01), SIGMA, bounds=(0.0, np.inf),
    )
    for name, swept in sweeps.variants.items()
    if swept.map_names
  ]  # fmt: skip


def _predictions(sweeps: Sweeps) -> list[Claim]:
  """P1 to P4 of the card, of the variants and rates that the study has."""
  k, low = sweeps.baseline.at(HIGH), sweeps.baseline.at(LOW)
  if k is None:
    return []
  found = []

  def add(number: str, name: str, statement: str, metric: str, of: Samples, criterion: Criterion, **more: Any) -> None:
    if name in sweeps.variants:
      claim = _claim(sweeps, f'{number}_{name}_{metric.split()[0]}', statement, metric, of(sweeps.variants[name]), criterion, CARD, **more)
      found.append(claim)

  at = f'at learning rate {HIGH:g}'
  lowest, mean = f'entropy of the lowest layer relative to uniform, {at}', f'entropy relative to uniform, mean over layers, {at}'
  loss = f'loss (nats), {at}'
  collapses, holds = 'Attention entropy collapses and the loss stays near that of guessing.', 'Attention entropy holds and the loss falls.'
  add('p1', BASELINE, collapses, lowest, lambda s: s.lowest_entropy[k], Below(COLLAPSED), bounds=SHARE)
  add('p1', BASELINE, collapses, loss, lambda s: s.clamped[k], Above(3.4))
  for name, most in (('sigma_reparam_pre_ln', 3.1), ('sigma_reparam', 3.25)):
    add('p1', name, holds, lowest, lambda s: s.lowest_entropy[k], Above(0.9), bounds=SHARE)
    add('p1', name, holds, loss, lambda s: s.clamped[k], Below(most))
  if low is not None:
    spread = f'spread of the loss (nats) over learning rates from {LOW:g} to {HIGH:g}'
    between = (sweeps.baseline.rate_K >= LOW * (1 - 1e-6)) & (sweeps.baseline.rate_K <= HIGH * (1 + 1e-6))
    of: Samples = lambda s: np.ptp(s.clamped[between], axis=0)
    for name in SIGMAS:
      add('p2', name, 'The loss hardly depends on the learning rate.', spread, of, Below(0.1))
    for name in PLAIN:
      add('p2', name, 'The loss depends on the learning rate.', spread, of, Above(0.3))
  for name in ('qk_norm', 'soft_cap'):
    bounded = 'Bounded logits prevent the entropy collapse, not the loss of training.'
    add('p3', name, bounded, mean, lambda s: s.mean_entropy[k], Above(0.85), bounds=SHARE)
    add('p3', name, bounded, loss, lambda s: s.clamped[k], Above(3.2))
  high_K = sweeps.baseline.rate_K >= 1e-2 * (1 - 1e-6)
  no_need = 'Training fails without any collapse of entropy.'
  least = 'loss (nats), the smallest at learning rates from 1e-2'
  add('p4', 'post_ln', no_need, least, lambda s: s.clamped[high_K].min(axis=0), Above(3.4))
  add('p4', 'post_ln', no_need, mean, lambda s: s.mean_entropy[k], Above(0.85), bounds=SHARE)
  return found


# --- tables and report ------------------------------------------------------------------------------------------------


def stable_rate(swept: Swept) -> str:
  """The largest stable learning rate: its geometric mean over seeds with the interval, cut to the grid, and a mark where the grid ends."""
  log_R = np.log10(swept.largest_stable)
  if not np.all(np.isfinite(log_R)):
    return f'none in {np.sum(~np.isfinite(log_R))} of {log_R.size} seeds'
  grid = (float(np.log10(swept.rate_K[0])), float(np.log10(swept.rate_K[-1])))
  low, high = statistics.bootstrap_interval(log_R, bounds=grid)
  least = 'at least ' if np.all(swept.largest_stable == swept.rate_K[-1]) else ''
  return f'{least}{10 ** np.mean(log_R):.2g} [{10**low:.2g}, {10**high:.2g}]'


def table(sweeps: Sweeps) -> Table:
  """Every variant, the one that learns most first: mean over seeds with the 95 % interval."""
  rows = []
  loss_at_best = lambda item: float(np.mean(item[1].clamped[item[1].best_rate]))
  for name, swept in sorted(sweeps.variants.items(), key=loss_at_best):
    best = swept.best_rate
    error = gain_error(swept, best)
    off = 'no map'
    if error.size:
      off = f'{np.median(error):.1e}, {np.max(error):.1e} ({swept.map_names[int(np.argmax(error.max(axis=0)))]})'
    rows.append([
      name, f'{statistics.mean_with_interval(swept.clamped[best], bounds=(0.0, np.inf))} at {swept.rate_K[best]:g}', stable_rate(swept),
      statistics.mean_with_interval(swept.lr_sensitivity(), bounds=(0.0, np.inf)),
      statistics.mean_with_interval(swept.lr_sensitivity(sweeps.best_loss)),
      f'{swept.collapsed.sum()} of {swept.collapsed.size}', f'{(~swept.stable).sum()} of {swept.stable.size}',
      statistics.mean_with_interval(swept.single['held_out_accuracy'][best, :, -1], bounds=SHARE), off,
    ])  # fmt: skip
  return Table(
    [
      'variant', 'final loss at its best rate', 'largest stable rate', 'LR sensitivity (nats)', 'distance from the best of all (nats)',
      'runs that fail with collapsed entropy', 'runs above the stable rate', 'held-out accuracy at its best rate',
      '|norm / gain - 1| there, median and worst map',
    ],
    rows,
  )  # fmt: skip


def gain_table(tasks: Mapping[str, Sweeps]) -> Table:
  """|norm / gain - 1| at every learning rate: the median over maps and the worst map, over the seeds that have not diverged."""
  rates = sorted({rate for sweeps in tasks.values() for rate in sweeps.baseline.rate_K.tolist()})
  rows = []

  def cell(swept: Swept, rate: float, of: Callable[..., Any]) -> str:
    k = swept.at(rate)
    error_RxM = gain_error(swept, k) if k is not None else np.zeros((0, len(swept.map_names)))
    error_RxM = error_RxM[np.isfinite(error_RxM).all(axis=-1)]
    return f'{of(error_RxM):.1e}{" (best)" if k == swept.best_rate else ""}' if error_RxM.size else 'none'

  for task, sweeps in tasks.items():
    for name, swept in sweeps.variants.items():
      if swept.map_names:
        rows += [
          [task, sweeps.schedule, name, label, *(cell(swept, rate, of) for rate in rates)]
          for label, of in (('median', np.median), ('worst map', np.max))
        ]
  return Table(['task', 'rate', 'variant', 'over maps and seeds', *(f'{rate:g}' for rate in rates)], rows)


def violations(sweeps: Sweeps) -> tuple[int, int]:
  """(rows of attention that are below their lower bound, rows checked) over all variants, rates, seeds and logged steps."""
  total = lambda name: int(sum(np.nansum(swept.single[name]) for swept in sweeps.variants.values()))
  return total('violations'), total('bounded_rows')


_ABOUT = {
  'digits': 'Handwritten digits of 8 x 8 pixels through a vision encoder; attention sees all patches.',
  'source_bytes': "Bytes of Python's standard library, the next from those before it; files of the held-out part are not trained on.",
  'unigram': 'Each sequence has its own distribution over 32 tokens, and all tokens are drawn from it: the best attention is uniform, so '
  'that entropy below 1 is of no use.',
  'copy': 'Random tokens and the same once more, with the loss on the second time: the best attention is at one place, so that entropy has '
  'to fall, and low entropy alone is no fault.',
}


_POWER = (
  'How far the spectral norm of every reparametrised map is from its gain after training, |norm / gain - 1|, by an exact singular value '
  'decomposition; one step of power iteration was made an update. Where the rate decays to 0 the kernels come to rest at the end, and the '
  'estimate can catch up; a constant rate keeps them turning. Claims are about the best rate of each variant.'
)


def _section(sweeps: Sweeps, folder: pathlib.Path) -> Section:
  shown_names = [name for name in (BASELINE, 'post_ln', 'qk_norm', *SIGMAS) if name in sweeps.variants]
  K = sweeps.baseline.rate_K.size
  shown_rates = sorted({K // 3, (2 * K) // 3, K - 1})
  by_rate = figures.save(attention_figures.loss_by_rate(sweeps), folder / f'{sweeps.task}_loss.png')
  heat = figures.save(attention_figures.entropy_heatmap(sweeps, shown_names, shown_rates), folder / f'{sweeps.task}_entropy.png')
  bound = figures.save(attention_figures.entropy_by_scale(sweeps), folder / f'{sweeps.task}_bound.png')
  below, checked = violations(sweeps)
  text = (
    f'{_ABOUT[sweeps.task]} Trained with {_rate(sweeps)}, without warmup.\n\n'
    'A run is above the stable rate where its loss, or that of one at a smaller rate above the best, misses more than half of what the '
    'best rate learns. Sensitivity is the mean over rates of the final loss minus the best one, a failed run counted as guessing.\n\n'
    f'Of {checked:,} rows of attention at logged steps, {below:,} are below the lower bound for the norm of their centred logits.'
  )
  shown = [
    FigureRef(by_rate, 'Final loss and entropy of the lowest layer against the learning rate; dots are seeds, crosses diverged.'),
    FigureRef(heat, 'Entropy by layer and update at three learning rates, 1 for uniform attention, mean over seeds.'),
    FigureRef(
      bound, 'The smallest entropy of a row of a layer against the norm s that the theorem knows of its weights and inputs, all rates, '
      'seeds and logged steps; the least that is drawn is 1e-12. Nothing lies below the line, the least entropy that s allows.',
    ),
  ]  # fmt: skip
  return Section(f'Task {sweeps.task}', text, shown, table(sweeps))


def write_summary(path: pathlib.Path, tasks: Mapping[str, Sweeps]) -> None:
  """metrics.jsonl of the study itself: mean loss over seeds of every task, variant and rate, a row an update; null where one diverged."""
  rows: dict[int, dict[str, Any]] = {}
  for task, sweeps in tasks.items():
    for name, swept in sweeps.variants.items():
      for k, rate in enumerate(swept.rate_K):
        for step, value in enumerate(swept.loss_KxRxN[k].mean(axis=0).tolist()):
          rows.setdefault(step, {})[f'{task}/{name}/rate_{rate:g}/loss'] = value if np.isfinite(value) else None
  path.write_text(''.join(format_row(step, rows[step]) + '\n' for step in sorted(rows)))


def report(workdir: pathlib.Path, *, seconds: float | None = None) -> list[Claim]:
  """Writes claims.json, metrics.jsonl, figures/ and report.html of a study's folder, and returns the claims."""
  tasks = attention_runs.load(workdir)
  found = [claim for sweeps in tasks.values() for claim in claims(sweeps)]
  write_claims(workdir / 'claims.json', found)
  write_summary(workdir / 'metrics.jsonl', tasks)
  sections = [_section(sweeps, workdir / 'figures') for sweeps in tasks.values()]
  sections.append(Section('Spectral norms and gains', _POWER, table=gain_table(tasks)))
  environment = runs.load_environment(workdir) | ({} if seconds is None else {'wall time of this call (s)': round(seconds)})
  summary = (
    'Which transformers keep training as the learning rate grows, and what does the entropy of their attention do meanwhile? '
    f'{_verdict(found)} Of {len(found)} claims {_count(found, "reproduced")} reproduced, {_count(found, "not reproduced")} did not and '
    f'{_count(found, "inconclusive")} are inconclusive.'
  )
  page = Report('Attention entropy', summary, sections, found, runs.load_config(workdir), environment, NOTES)
  write_report(workdir / 'report.html', page)
  return found


def _count(found: Sequence[Claim], verdict: str) -> int:
  return sum(claim.verdict == verdict for claim in found)


def _verdict(found: Sequence[Claim]) -> str:
  """The verdict on the central claim, in words, by task."""
  central = [claim for claim in found if claim.id.endswith(CENTRAL)]
  said = '; '.join(f'{claim.id.removesuffix(CENTRAL)} {claim.verdict}' for claim in central)
  return f'That sigmaReparam is stable where the entropy of {BASELINE} collapses: {said}.' if said else ''


NOTES = (
  'Three seeds: intervals are Student-like with two degrees of freedom, and wide.',
  'Two layers, a width of 64, at most 150 updates of small batches: instabilities that come late, or with depth or width, are not seen. '
  'The pilot of the method card had four layers and batches of 16.',
  'Half of what the best rate learns is soon learnt where frequencies alone tell much, as those of bytes do: on `source_bytes` a run may '
  'use no context at all and still not count as failed. Its loss and the sensitivity show what that criterion does not.',
  'A variant that learns little at any rate may be stable at many: read the largest stable rate beside the loss.',
  'A claim about the rates at which the entropy of the baseline collapses is inconclusive where it never collapses in one of the seeds.',
  'The gain is the norm of a whole projection, and bounds that of each of its heads from above.',
  'The loss of guessing, and not that of the initial parameters, is what a failed run counts as, so that it costs every variant the same.',
  'Embeddings and the last map of the language models are not reparametrised; the last map of the official speech model is.',
)
