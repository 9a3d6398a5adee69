"""What the AEM study says: claims with their criteria, the table of every setting, figures, and the report.

Everything is read from the run folder, so an old run can be judged again. The criteria are the method card's predictions and were written
before the study was run. Comparisons are paired over seeds, which share bags, batches and initial parameters.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from entropy_jax.analysis import figures, mil_figures, mil_runs, runs, statistics
from entropy_jax.analysis.claims import Above, Below, Claim, Criterion, Null, decide, write_claims
from entropy_jax.analysis.mil_runs import MEAN_POOLING, Bagged
from entropy_jax.analysis.report import FigureRef, Report, Section, Table, write_report
from entropy_jax.training.writers import format_row

AEM = 'Zhang et al., AEM: Attention Entropy Maximization for Multiple Instance Learning, arXiv 2406.15303'
CARD = 'Prediction of the method card, from a pilot run on `gaussian`'
OWN = 'Question of this study'
MIN_SEEDS = 5
CARD_COEF = 1.0  # the best lambda of the card's pilot
SMALLEST = 0.01  # difference of an AUC that counts
NEAR = 0.02  # difference of an AUC up to which two are as good
SHARE: tuple[float, float] = (0.0, 1.0)


# --- claims -----------------------------------------------------------------------------------------------------------


def claims(found: Bagged) -> list[Claim]:
  """Every claim that one task can test; one value a seed."""
  return [*_attention(found), *_performance(found)]


def _claim(
  found: Bagged, id: str, statement: str, metric: str, samples: np.ndarray, criterion: Criterion, paper: str, **more: Any
) -> Claim:
  about: dict[str, Any] = {'paper': paper, 'statement': statement, 'metric': metric, 'min_samples': MIN_SEEDS}
  return decide(id=f'{found.task}/{id}', samples=samples, criterion=criterion, **about, **more)


def entropy_step(found: Bagged) -> np.ndarray:
  """The smallest growth of the training bags' attention entropy from one lambda to the next, [R]."""
  return np.diff(found.grid('train/entropy'), axis=0).min(axis=0)


def entropy_agreement(found: Bagged) -> np.ndarray:
  """Rank correlation over lambda of attention entropy and AUC of the test bags, [R]; NaN where either is the same throughout."""
  entropy_RxK, auc_RxK = found.grid('test/entropy').T, found.grid('test/auc').T
  return np.array([statistics.rank_correlation(x, y) for x, y in zip(entropy_RxK, auc_RxK)])


def gap(found: Bagged, name: str) -> np.ndarray:
  """Test loss minus training loss of a setting, nats, [R]."""
  return found.final(name, 'test/loss') - found.final(name, 'train/loss')


def _attention(found: Bagged) -> list[Claim]:
  claim, plain = functools.partial(_claim, found), found.plain
  return [
    claim(
      'attention_leaves_targets_out', 'Attention without the entropy term concentrates on a part of what makes a bag positive.',
      'exp(entropy) of attention over the number of targets, positive training bags', found.final(plain, 'train/instances_per_target'),
      Below(1.0), AEM,
    ),
    claim(
      'entropy_grows_with_lambda', 'Attention entropy grows with lambda, from each to the next.',
      'smallest step of the entropy of the training bags (nats) along the grid of lambda', entropy_step(found), Above(0.0), CARD,
    ),
    claim(
      'entropy_goes_with_auc', 'Attention entropy and test performance are positively correlated.',
      'rank correlation of entropy and AUC of the test bags over lambda', entropy_agreement(found), Above(0.0), AEM, bounds=(-1.0, 1.0),
    ),
  ]  # fmt: skip


def _performance(found: Bagged) -> list[Claim]:
  claim, plain = functools.partial(_claim, found), found.plain
  auc = functools.partial(found.final, name='test/auc')
  chosen_R, largest = found.at_choice('test/auc'), found.constant[-1]
  at = 'test AUC, the difference'
  made = [
    claim(
      'chosen_lambda_beats_plain_attention', 'With the lambda that validation bags choose, unseen bags are classified better.',
      at, chosen_R, Above(SMALLEST), AEM, paired_with=auc(plain), baseline=plain,
    ),
    claim(
      'chosen_lambda_beats_mean_pooling', 'With the lambda that validation bags choose, attention is better than mean pooling.',
      at, chosen_R, Above(SMALLEST), CARD, paired_with=auc(MEAN_POOLING), baseline=MEAN_POOLING,
    ),
    claim(
      'chosen_lambda_beats_early_stopping', 'The chosen lambda is better than plain attention at the step that validation bags choose.',
      at, chosen_R, Above(SMALLEST), OWN, paired_with=found.stopped_early(plain, 'test/auc'), baseline=f'{plain}, stopped early',
    ),
    claim(
      'largest_lambda_is_mean_pooling', f'At lambda = {found.coef_K[-1]:g} attention is as good as mean pooling.',
      at, auc(largest), Null(NEAR), CARD, paired_with=auc(MEAN_POOLING), baseline=MEAN_POOLING,
    ),
  ]  # fmt: skip
  of_card = np.flatnonzero(np.isclose(found.coef_K, CARD_COEF))
  if of_card.size:
    name = found.constant[int(of_card[0])]
    made += [
      claim(
        f'lambda_{CARD_COEF:g}_beats_plain_attention', f'lambda = {CARD_COEF:g} classifies unseen bags better than plain attention.',
        at, auc(name), Above(SMALLEST), CARD, paired_with=auc(plain), baseline=plain,
      ),
      claim(
        f'lambda_{CARD_COEF:g}_beats_mean_pooling', f'lambda = {CARD_COEF:g} classifies unseen bags better than mean pooling.',
        at, auc(name), Above(SMALLEST), CARD, paired_with=auc(MEAN_POOLING), baseline=MEAN_POOLING,
      ),
      claim(
        f'lambda_{CARD_COEF:g}_overfits_less', f'lambda = {CARD_COEF:g} narrows the gap between training and test bags.',
        'test loss minus training loss (nats), the difference', gap(found, name), Below(0.0), AEM, paired_with=gap(found, plain),
        baseline=plain,
      ),
    ]  # fmt: skip
  return made


# --- tables and report ------------------------------------------------------------------------------------------------


def _with_interval(value_R: np.ndarray, bounds: tuple[float, float] | None = None) -> str:
  low, high = statistics.bootstrap_interval(value_R, bounds=bounds)
  return f'{np.mean(value_R):.3g} [{low:.3g}, {high:.3g}]' if np.isfinite(low) else f'{np.mean(value_R):.3g}'


def _final(found: Bagged, setting: str, measure: str, bounds: tuple[float, float] | None = None) -> str:
  return _with_interval(found.final(setting, measure), bounds)


def table(found: Bagged) -> Table:
  """Every setting: mean over seeds with the 95 % interval."""
  names = [*found.constant, *found.annealed, MEAN_POOLING]
  count_K = np.bincount(found.chosen(), minlength=found.coef_K.size)
  choices = dict(zip(found.constant, count_K.tolist()))
  rows = []
  for name in names:
    of = functools.partial(_final, found, name)
    rows.append([
      name, of('test/auc', SHARE), of('test/accuracy', SHARE), of('test/loss'), _with_interval(gap(found, name)), of('train/auc', SHARE),
      of('train/entropy'), of('test/entropy'), of('test/instance_auc', SHARE), of('train/instances_per_target'),
      f'{choices[name]} of {count_K.sum()}' if name in choices else 'not asked',
    ])  # fmt: skip
  return Table(
    [
      'setting', 'test AUC', 'test accuracy', 'test loss (nats)', 'test minus training loss', 'training AUC',
      'entropy, training bags (nats)', 'entropy, test bags', 'AUC of attention for targets, test', 'exp(entropy) a target, training',
      'chosen by validation bags',
    ],
    rows,
  )  # fmt: skip


_ABOUT = {
  'gaussian': "The card's task: bags of 200 points, of which 10 to 20 of a positive bag are shifted along one of four directions, mostly "
  'the first in training and all alike in the test.',
  'digits': 'Bags of handwritten digits; a bag is positive with a few instances of one digit.',
  'digit_kinds': 'Bags of handwritten digits; a positive bag has a few instances of one of four digits, mostly the first of them in '
  'training and all alike in the test.',
}


def _section(found: Bagged, folder: pathlib.Path) -> Section:
  shown = []
  if found.task != 'gaussian':
    path = figures.save(mil_figures.bag_of_digits(found, found.constant[:4]), folder / f'{found.task}_bag.png')
    caption = 'A positive test bag: its targets, framed, and the other instances that have most attention; the first seed.'
    shown.append(FigureRef(path, caption))
  return Section(f'Task {found.task}', f'{_ABOUT[found.task]} Mean over seeds with 95 % interval.', shown, table(found))


def write_summary(path: pathlib.Path, tasks: Mapping[str, Bagged]) -> None:
  """metrics.jsonl of the study itself: means over seeds of test AUC and attention entropy of every task and setting, by update."""
  rows: dict[int, dict[str, Any]] = {}
  for task, found in tasks.items():
    for name, measured in found.measured.items():
      for key in ('test/auc', 'test/entropy', 'train/entropy'):
        for step, value in zip(found.log_step_C.tolist(), measured[key].mean(axis=0).tolist()):
          rows.setdefault(step, {})[f'{task}/{name}/{key}'] = value
  path.write_text(''.join(format_row(step, rows[step]) + '\n' for step in sorted(rows)))


def report(workdir: pathlib.Path, *, seconds: float | None = None) -> list[Claim]:
  """Writes claims.json, metrics.jsonl, figures/ and report.html of a study's folder, and returns the claims."""
  tasks, folder = mil_runs.load(workdir), workdir / 'figures'
  found = [claim for task in tasks.values() for claim in claims(task)]
  write_claims(workdir / 'claims.json', found)
  write_summary(workdir / 'metrics.jsonl', tasks)
  shown = [
    FigureRef(
      figures.save(mil_figures.auc_by_coef(tasks), folder / 'auc.png'),
      'Test AUC against lambda with 95 % intervals over seeds; dots are seeds, the band is mean pooling.',
    ),
    FigureRef(
      figures.save(mil_figures.entropy_by_step(tasks), folder / 'entropy.png'),
      'Entropy of the attention to training bags while training, 1 for uniform attention.',
    ),
  ]
  text = 'Attention pooling at every lambda, held constant and annealed, beside mean pooling; all from the same starts on the same bags.'
  sections = [Section('Lambda', text, shown), *[_section(task, folder) for task in tasks.values()]]
  environment = runs.load_environment(workdir) | ({} if seconds is None else {'wall time of this call (s)': round(seconds)})
  summary = (
    'Does a classifier of bags that is trained to attend widely do better on bags that it has not seen? '
    f'{_verdict(found)} Of {len(found)} claims {_count(found, "reproduced")} reproduced, {_count(found, "not reproduced")} did not and '
    f'{_count(found, "inconclusive")} are inconclusive.'
  )
  page = Report('Attention-entropy maximisation', summary, sections, found, runs.load_config(workdir), environment, NOTES)
  write_report(workdir / 'report.html', page)
  return found


def _count(found: Sequence[Claim], verdict: str) -> int:
  return sum(claim.verdict == verdict for claim in found)


def _verdict(found: Sequence[Claim]) -> str:
  """The verdict on the central claim, in words, by task."""
  ending = '/chosen_lambda_beats_plain_attention'
  said = '; '.join(f'{claim.id.removesuffix(ending)} {claim.verdict}' for claim in found if claim.id.endswith(ending))
  return f'That the chosen lambda beats plain attention: {said}.'


NOTES = (
  'Bags of tens to hundreds of instances stand for slides of tens of thousands, and encoders are trained with the rest, where the method '
  'has features that do not change.',
  'Validation bags are drawn as the training bags are; in `gaussian` and `digit_kinds` the test bags are not, so that they need not choose '
  'what the test would.',
  'A bag counts by its entropy in nats, which grows with its size; that is the method.',
  'How a later version of the paper anneals lambda is not confirmed; here it falls to 0 along a half-cosine.',
  'Mean pooling has no lambda: nothing was chosen for it.',
)
