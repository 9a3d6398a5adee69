"""What the entropy-guided study says: claims with their criteria, the table of every variant, figures, and the report.

Everything is read from the run folder, so an old run can be judged again. The criteria below were written before the study was run. Those
of the method card are predictions from a pilot on another task, copying; its prediction of losses there (softmax alone at ten times the
loss of a model with normalisation) says nothing of bytes and is not tested.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from entropy_jax.analysis import entropy_guided_figures, entropy_guided_runs, figures, runs, statistics
from entropy_jax.analysis.claims import Above, Below, Claim, Criterion, decide, write_claims
from entropy_jax.analysis.entropy_guided_runs import BASELINE, Ladder
from entropy_jax.analysis.report import FigureRef, Report, Section, Table, write_report
from entropy_jax.training.writers import format_row

PAPER = 'Jha and Reagen, Entropy-Guided Attention for Private LLMs, arXiv 2501.03489'
CARD = 'Prediction of the method card, from a pilot run on another task'
MIN_SEEDS = 3
SHARE: tuple[float, float] = (0.0, 1.0)
OVERLOADED, COLLAPSED = 0.9, 0.1  # entropy of a layer relative to uniform attention: the card's numbers
CENTRAL = 'guided_beats_fused_t'
LOSS = 'held-out loss (nats a byte)'
FIRST, LAST = 'entropy of the first layer relative to uniform', 'entropy of the last layer relative to uniform'


# --- claims -----------------------------------------------------------------------------------------------------------


def _claim(id: str, statement: str, metric: str, samples: np.ndarray, criterion: Criterion, paper: str, **more: Any) -> Claim:
  return decide(
    id=id, statement=statement, metric=metric, samples=samples, criterion=criterion, paper=paper, min_samples=MIN_SEEDS, **more
  )  # fmt: skip


def claims(ladder: Ladder) -> list[Claim]:
  """Every claim whose variants the study has; one value a seed."""
  return [*_losses(ladder), *_overload(ladder), *_predictions(ladder)]


def _losses(ladder: Ladder) -> list[Claim]:
  ordered: list[tuple[str, str, str, str, Criterion]] = [
    ('no_activation_costs', 'ln', BASELINE, 'With normalisation, a model without activation is worse than one with GELU.', Above(0.0)),
    ('no_norm_costs', 'gelu', BASELINE, 'Without normalisation a model with GELU is worse.', Above(0.0)),
    ('softmax_only_costs', 'softmax_only', BASELINE, 'A model with softmax as its only nonlinearity is worse.', Above(0.0)),
    ('relu_beats_gelu_without_norm', 'relu', 'gelu', 'Without normalisation ReLU is better than GELU.', Below(0.0)),
    ('fused_beats_softmax_only', 'fused', 'softmax_only', 'The scaled fused MLP mends training with softmax alone.', Below(0.0)),
    ('guided_beats_fused', 'guided', 'fused', 'Learnt temperatures and the penalty together lower the loss.', Below(0.0)),
    (CENTRAL, 'guided', 'fused_t', 'The penalty by itself lowers the loss.', Below(0.0)),
    ('guided_strong_beats_fused_t', 'guided_strong', 'fused_t', 'A strong penalty by itself lowers the loss.', Below(0.0)),
  ]  # fmt: skip
  found = [
    _claim(
      id, statement, f'{LOSS}, {name} minus {other}', ladder.variants[name].final_loss, criterion, PAPER,
      paired_with=ladder.variants[other].final_loss, baseline=other,
    )
    for id, name, other, statement, criterion in ordered
    if {name, other} <= ladder.variants.keys()
  ]  # fmt: skip
  if 'softmax_only' in ladder.variants:
    broken_R = np.any(~np.isfinite(ladder.variants['softmax_only'].loss_RxN), axis=1).astype(np.float64)
    said = 'Training with softmax alone fails with numbers that are not finite.'
    found.append(_claim('softmax_only_diverges', said, 'share of runs that diverge', broken_R, Above(0.5), PAPER, bounds=SHARE))
  return found


def _overload(ladder: Ladder) -> list[Claim]:
  ordered: list[tuple[str, str, str, str, Criterion]] = [
    ('softmax_only', BASELINE, 'overload', 'Without normalisation and activation more heads are overloaded.', Above(0.0)),
    ('softmax_only', BASELINE, 'collapse', 'Without normalisation and activation more heads collapse.', Above(0.0)),
    ('fused', 'softmax_only', 'collapse', 'The scaled fused MLP mends the collapse of heads.', Below(0.0)),
    ('guided', 'fused', 'overload', 'The penalty mends the overload of heads.', Below(0.0)),
    ('guided', 'fused', 'collapse', 'The penalty mends the collapse of heads.', Below(0.0)),
  ]  # fmt: skip
  quarter = {'overload': 'upper', 'collapse': 'lower'}
  return [
    _claim(
      f'{name}_{kind}_against_{other}', statement,
      f'share of heads in the {quarter[kind]} quarter of the entropies seen, {name} minus {other}',
      ladder.shares(name)[kind], criterion, PAPER, paired_with=ladder.shares(other)[kind], baseline=other,
    )
    for name, other, kind, statement, criterion in ordered
    if {name, other} <= ladder.variants.keys()
  ]  # fmt: skip


def recovered(ladder: Ladder) -> np.ndarray:
  """How much of what softmax alone loses to the model with normalisation and no activation the fused MLP wins back, [R]; NaN where
  nothing is lost."""
  alone, fused, whole = (ladder.variants[name].final_loss for name in ('softmax_only', 'fused', 'ln'))
  lost_R = alone - whole
  return np.where(lost_R > 0, (alone - fused) / np.where(lost_R > 0, lost_R, 1.0), np.nan)


def _predictions(ladder: Ladder) -> list[Claim]:
  """P1, P3 and P4 of the card."""
  found, has = [], ladder.variants

  def entropy(id: str, name: str, layer: int, statement: str, criterion: Criterion, **more: Any) -> None:
    if name in has:
      metric = f'{FIRST if layer == 0 else LAST}, {name}'
      found.append(_claim(id, statement, metric, has[name].layer_entropy(layer), criterion, CARD, bounds=SHARE, **more))

  overloads = 'Without normalisation and activation the first layer is overloaded.'
  collapses = 'Without normalisation and activation the last layer collapses.'
  entropy('p1_softmax_only_first_layer', 'softmax_only', 0, overloads, Above(OVERLOADED))
  entropy('p1_softmax_only_last_layer', 'softmax_only', -1, collapses, Below(COLLAPSED))
  for name in ('ln', BASELINE):
    entropy(f'p1_{name}_first_layer', name, 0, 'With normalisation the first layer is not overloaded.', Below(OVERLOADED))
    entropy(f'p1_{name}_last_layer', name, -1, 'With normalisation the last layer does not collapse.', Above(COLLAPSED))
  if {'softmax_only', 'fused', 'ln'} <= has.keys():
    said = 'The scaled fused MLP wins back most of what normalisation is worth.'
    found.append(
      _claim('p3_fused_recovers', said, 'share of the loss between softmax alone and ln won back', recovered(ladder), Above(0.5), CARD)
    )
  entropy('p3_fused_first_layer', 'fused', 0, 'The scaled fused MLP does not mend the overload of the first layer.', Above(OVERLOADED))
  if {'guided_strong', 'fused_t'} <= has.keys():
    found.append(
      _claim(
        'p4_guided_strong_first_layer', 'A strong penalty lowers the entropy of early layers.', f'{FIRST}, guided_strong minus fused_t',
        has['guided_strong'].layer_entropy(0), Below(0.0), CARD, paired_with=has['fused_t'].layer_entropy(0), baseline='fused_t',
      )
    )  # fmt: skip
  return found


# --- tables and report ------------------------------------------------------------------------------------------------


def _by_layer(value_L: np.ndarray) -> str:
  return ' '.join(f'{x:.2f}' for x in value_L)


def table(ladder: Ladder) -> Table:
  """Every variant in the order of the ladder: mean over seeds with the 95 % interval."""
  rows = []
  for name, found in ladder.variants.items():
    shares = ladder.shares(name)
    more_R = 100 * np.expm1(found.final_loss - ladder.baseline.final_loss)
    thresholds = 'none' if found.threshold_RxCxLxH is None else _by_layer(found.threshold_RxCxLxH[:, -1].mean(axis=(0, 2)))
    rows.append([
      name, statistics.mean_with_interval(found.final_loss, bounds=(0.0, np.inf), digits=4),
      'baseline' if name == BASELINE else statistics.mean_with_interval(more_R),
      statistics.mean_with_interval(shares['overload'], bounds=SHARE), statistics.mean_with_interval(shares['collapse'], bounds=SHARE),
      _by_layer(found.late_entropy.mean(axis=(0, 2))), thresholds, _by_layer(found.largest_logit_RxCxL[:, -1].mean(axis=0)),
    ])  # fmt: skip
  return Table(
    [
      'variant', LOSS, 'perplexity above the baseline (%)', 'share of heads overloaded', 'share of heads collapsed',
      'entropy by layer, relative to uniform', 'thresholds by layer, shares of ln T', 'largest logit by layer',
    ],
    rows,
  )  # fmt: skip


def _sections(ladder: Ladder, folder: pathlib.Path, config: dict[str, Any]) -> list[Section]:
  names = list(ladder.variants)
  guided = [name for name in names if ladder.variants[name].threshold_RxCxLxH is not None]
  final = {name: np.exp(found.final_loss) for name, found in ladder.variants.items()}
  # The first measures are far apart for every variant, and would leave no room for the rest.
  base, shown = ladder.baseline, slice(len(ladder.baseline.step_C) // 5, None)
  rest = {name: found for name, found in ladder.variants.items() if name != BASELINE}
  apart = {name: (x.step_C[shown], (x.held_out_RxC - base.held_out_RxC)[:, shown]) for name, x in rest.items()}
  styles = figures.styles_for(names)
  loss = [
    FigureRef(
      figures.save(figures.matched_success_bars(final, xlabel='held-out perplexity of a byte after training'), folder / 'perplexity.png'),
      'Perplexity of bytes that are not trained on, with 95 % intervals over seeds; the dashed line is the whole model.',
    ),
    FigureRef(
      figures.save(
        figures.curves_with_bands(apart, f'{LOSS}\nminus that of {BASELINE}', xlabel='update', per_seed=True, styles=styles),
        folder / 'loss.png',
      ),
      'Held-out loss minus that of the whole model in the same seed, after the first fifth of training; thin lines are seeds.',
    ),
  ]  # fmt: skip
  heads = [
    FigureRef(
      figures.save(entropy_guided_figures.bands_heatmap(ladder, names), folder / 'bands.png'),
      'Share of the heads of all seeds in each quarter of the entropy range, by layer and update; the top row of a panel is overload, the '
      'bottom one collapse.',
    ),
    FigureRef(
      figures.save(entropy_guided_figures.entropy_heatmap(ladder, names), folder / 'entropy.png'),
      'Entropy by layer and update, 1 for uniform attention, mean over heads and seeds.',
    ),
  ]  # fmt: skip
  sections = [
    Section('Loss', _LADDER, loss, table(ladder)),
    Section('What the heads do', _HEADS, heads),
  ]
  if guided:
    drawn = entropy_guided_figures.thresholds_and_entropies(
      ladder, guided, context=config['length'] - 1, tolerance=config['tolerance']
    )  # fmt: skip
    caption = (
      'Mean entropy of every head at the end against its learnt threshold; in the grey band nothing is penalised. The dashed line is '
      'uniform attention, which no head can exceed under a causal mask.'
    )
    sections.append(Section('Thresholds', _THRESHOLDS, [FigureRef(figures.save(drawn, folder / 'thresholds.png'), caption)]))
  return sections


def write_summary(path: pathlib.Path, ladder: Ladder) -> None:
  """metrics.jsonl of the study itself: mean held-out loss over seeds of every variant, a row a measure; null where one diverged."""
  rows: dict[int, dict[str, Any]] = {}
  for name, found in ladder.variants.items():
    for step, value in zip(found.step_C.tolist(), found.held_out_RxC.mean(axis=0).tolist()):
      rows.setdefault(step, {})[f'{name}/held_out_loss'] = value if np.isfinite(value) else None
  path.write_text(''.join(format_row(step, rows[step]) + '\n' for step in sorted(rows)))


def report(workdir: pathlib.Path, *, seconds: float | None = None) -> list[Claim]:
  """Writes claims.json, metrics.jsonl, figures/ and report.html of a study's folder, and returns the claims."""
  ladder, config = entropy_guided_runs.load(workdir), runs.load_config(workdir)
  found = claims(ladder)
  write_claims(workdir / 'claims.json', found)
  write_summary(workdir / 'metrics.jsonl', ladder)
  environment = runs.load_environment(workdir) | ({} if seconds is None else {'wall time of this call (s)': round(seconds)})
  summary = (
    'What does attention do when a language model loses its normalisation and its activations, and does it help to hold the entropy of '
    f'every head to a learnt threshold? {_verdict(found)} Of {len(found)} claims {_count(found, "reproduced")} reproduced, '
    f'{_count(found, "not reproduced")} did not and {_count(found, "inconclusive")} are inconclusive.'
  )
  sections = _sections(ladder, workdir / 'figures', config)
  write_report(workdir / 'report.html', Report('Entropy-guided attention', summary, sections, found, config, environment, NOTES))
  return found


def _count(found: Sequence[Claim], verdict: str) -> int:
  return sum(claim.verdict == verdict for claim in found)


def _verdict(found: Sequence[Claim]) -> str:
  return ''.join(f'That the penalty lowers the loss: {claim.verdict}.' for claim in found if claim.id == CENTRAL)


_LADDER = (
  '`ln_gelu` is the whole model, `ln` has no activation, `gelu` and `relu` no normalisation, `softmax_only` neither. `fused` puts one '
  'matrix with two learnt scales in the place of the MLP, `fused_t` adds a learnt temperature for every head and position, and `guided` '
  'and `guided_strong` add the penalty on entropies away from learnt thresholds. Perplexities are of bytes.'
)
_HEADS = (
  'The range of the bands ends at the largest entropy of a head in the whole study, relative to uniform attention, so that a band means '
  'the same in every panel. A head in the top quarter is overloaded, one in the bottom quarter collapsed.'
)
_THRESHOLDS = (
  'The thresholds are learnt with everything else, and they are free to go where the entropies are: a penalty that has become zero may '
  'have moved the thresholds, not the attention.'
)
NOTES = (
  'Three seeds: intervals are Student-like with two degrees of freedom, and wide.',
  'Four layers, a width of 64 and a few hundred updates, against twelve layers, 768 and billions of tokens: failures that come late, or '
  'with depth, are not seen, and the kernels start as large as their fan-in asks for, not with a deviation of 0.02.',
  'The paper sets no start of thresholds and temperatures; here .5 and 1. Its penalty is a sum over a batch and depends on its size; '
  'here it is the mean, times what makes it equal for batches of 128 rows of 128 tokens.',
  'Entropies are means over queries; the penalty is on every query, and the first, which sees one key, can only push its threshold down.',
)
