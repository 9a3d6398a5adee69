"""What the recipes study says: claims with their criteria, tables, figures, and the report.

Everything is read from the run folder, so an old run can be judged again. The criteria were written before the study was run. Images: the
difference of test accuracies to the tuned baseline, in points, seed by seed. Translation: a run trains when its final loss is finite and
below half of the loss of a unigram model (`recipes_runs.TRAINED`); a depth trains, at a learning rate or at some of them, up to the first
that does not.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from entropy_jax.analysis import figures, recipes_figures, runs, statistics
from entropy_jax.analysis.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, Above, Below, Claim, decide, write_claims
from entropy_jax.analysis.recipes_runs import POST, TRAINED, TUNED, Deep, Recipe, load_deep, load_recipes
from entropy_jax.analysis.report import FigureRef, Report, Section, Table, write_report
from entropy_jax.training.writers import format_row

SIGMA = 'Zhai et al., Stabilizing Transformer Training by Preventing Attention Entropy Collapse, arXiv 2303.06296'
DEEPNET = 'Wang et al., DeepNet: Scaling Transformers to 1,000 Layers, arXiv 2203.00555'
POINTS = 1.0  # of accuracy, that a recipe may lose
PERCENT = (0.0, 100.0)
WITHIN = ('sigma_reparam_sgd', 'sigma_reparam_lars')
SHORT = ('pre_ln_sgd', 'no_ln_sgd', 'no_ln_adamw')
DEEPER = {'sigma_reparam_post_ln': SIGMA, 'deepnorm': DEEPNET}
MIN_SEEDS, MIN_DEEP_SEEDS = 5, 3


# --- claims -----------------------------------------------------------------------------------------------------------


def recipe_claims(recipes: Mapping[str, Recipe]) -> list[Claim]:
  """Of every recipe with a prediction, whether it comes within POINTS of the tuned baseline; one value a seed."""
  found, base_R = [], recipes[TUNED].test_accuracy if recipes else np.zeros(0)
  for name in recipes:
    within = name in WITHIN
    if not within and name not in SHORT:
      continue
    found.append(
      decide(
        id=f'digits/{name}_{"comes_within" if within else "loses_more_than"}_one_point',
        paper=SIGMA,
        statement=f'{name} comes within {POINTS:g} point of the tuned baseline.'
        if within
        else f'Without sigmaReparam, {name} loses more than {POINTS:g} point to the tuned baseline.',
        metric='test accuracy (points), the difference',
        samples=recipes[name].test_accuracy,
        criterion=Above(-POINTS) if within else Below(-POINTS),
        paired_with=base_R,
        baseline=TUNED,
        min_samples=MIN_SEEDS,
      )
    )
  return found


def depth_claims(deep: Mapping[str, Deep]) -> list[Claim]:
  """That post-norm fails at the largest depth, that the others do not, and that they train deeper, at some rate and at each; one value a
  seed."""
  if not deep:
    return []
  base = deep[POST]
  most = max(base.depths)
  best_R = lambda one: np.nanmin(np.nan_to_num(one.relative_loss[-1], nan=1.0, posinf=1.0), axis=0)
  said = 'final loss at the best learning rate of the seed, as a share of the unigram loss'
  share: dict[str, Any] = {'metric': said, 'min_samples': MIN_DEEP_SEEDS}
  found = [
    decide(
      id=f'translation/{POST}_fails_at_{most}', paper=SIGMA, statement=f'Post-norm alone does not train with {most} + {most} layers.',
      samples=best_R(base), criterion=Above(TRAINED), **share,
    )
  ]  # fmt: skip
  for name, paper in DEEPER.items():
    if name not in deep:
      continue
    found.append(
      decide(
        id=f'translation/{name}_trains_at_{most}', paper=paper, statement=f'{name} trains with {most} + {most} layers.',
        samples=best_R(deep[name]), criterion=Below(TRAINED), **share,
      )
    )  # fmt: skip
    for k, rate in [(None, ''), *enumerate(base.rates)]:
      found.append(
        decide(
          id=f'translation/{name}_trains_deeper_than_{POST}' + (f'_at_{rate:g}' if rate else ''), paper=paper,
          statement=f'{name} trains deeper than {POST}' + (f' at a learning rate of {rate:g}.' if rate else ' at some learning rate.'),
          metric='largest depth that trains, log2 of the ratio', samples=log_ratio(deep[name], base, k), criterion=Above(0.0),
          baseline=POST, min_samples=MIN_DEEP_SEEDS,
        )
      )  # fmt: skip
  return found


def log_ratio(one: Deep, base: Deep, k: int | None = None) -> np.ndarray:
  """log2 of the ratio of the largest depths that train, [R]; where none does, half the smallest that was tried stands for it.

  NaN in a seed in which both train at all depths: which of them would train deeper is not known.
  """
  depth_R, base_R = (np.maximum(x.deepest(k), min(x.depths) / 2) for x in (one, base))
  known_R = np.minimum(depth_R, base_R) < max(base.depths)
  return np.where(known_R, np.log2(depth_R / base_R), np.nan)


# --- tables -----------------------------------------------------------------------------------------------------------


def _interval(value_R: np.ndarray, bounds: tuple[float, float] | None = None) -> str:
  low, high = statistics.bootstrap_interval(value_R, bounds=bounds)
  return f'{np.mean(value_R):.2f} [{low:.2f}, {high:.2f}]'


def recipe_table(recipes: Mapping[str, Recipe]) -> Table:
  """Every recipe, the best first."""
  base_R, rows = recipes[TUNED].test_accuracy, []
  for recipe in sorted(recipes.values(), key=lambda one: -float(np.mean(one.test_accuracy))):
    rate = f'{recipe.rate:g}' + (', at the edge of its grid' if recipe.at_the_edge else '')
    lost = 'baseline' if recipe.name == TUNED else _interval(recipe.test_accuracy - base_R)
    rows.append([recipe.name, rate, _interval(recipe.test_accuracy, PERCENT), lost, float(np.mean(recipe.final.lowest_entropy))])
  header = ['recipe', 'chosen learning rate', 'test accuracy (%)', 'difference to the baseline (points)', 'entropy of the lowest layer']
  return Table(header, rows)


def depth_table(deep: Mapping[str, Deep]) -> Table:
  """Of every variant, at each learning rate and at the best of them, the largest depth that trains and the smallest that does not."""
  rows = []
  for name, one in deep.items():
    for k, rate in [*enumerate(one.rates), (None, None)]:
      rows.append([name, 'any' if rate is None else f'{rate:g}', _depths(one.deepest(k)), _depths(one.shallowest_failure(k))])
  return Table(['variant', 'learning rate', 'largest depth up to which it trains, by seed', 'smallest depth that fails, by seed'], rows)


def _depths(depth_R: np.ndarray) -> str:
  text = [f'{x:g}' if 0 < x < np.inf else 'none' for x in depth_R]
  return text[0] if len(set(text)) == 1 else ', '.join(text)


# --- report -----------------------------------------------------------------------------------------------------------


def recipe_section(recipes: Mapping[str, Recipe], folder: pathlib.Path) -> Section:
  """Accuracy by recipe, and how the learning rates were chosen."""
  values = {name: one.test_accuracy for name, one in recipes.items()}
  intervals = {name: statistics.bootstrap_interval(value_R, bounds=PERCENT) for name, value_R in values.items()}
  bars = figures.matched_success_bars(values, xlabel='test accuracy (%)', intervals=intervals)
  rates = recipes_figures.tuning(recipes)
  return Section(
    'Images without warmup, decay, norm and adaptive optimizer',
    'Handwritten digits of 8 x 8 pixels through a vision transformer. `tuned` is pre-norm with AdamW, warmup and weight decay. `pre_ln` '
    'and `no_ln` with `sgd` or `lars` are what is left of it without them, `no_ln_adamw` is all of it but the norms, and `sigma_reparam` '
    'has no norm, no warmup and no decay. The learning rate of each was chosen on a part of the training set, among as many.',
    [
      FigureRef(
        figures.save(bars, folder / 'digits_accuracy.png'),
        'Test accuracy by recipe: mean and 95 % interval over seeds, and the seeds.',
      ),
      FigureRef(
        figures.save(rates, folder / 'digits_tuning.png'),
        'Accuracy of the validation part against the learning rate, mean over the tuning seeds; a ring marks the rate that was chosen.',
      ),
    ],
    recipe_table(recipes),
  )  # fmt: skip


def depth_section(deep: Mapping[str, Deep], folder: pathlib.Path) -> Section:
  """Loss against depth, and entropy by layer over depth."""
  loss, entropy = recipes_figures.loss_by_depth(deep), recipes_figures.entropy_by_depth(deep)
  return Section(
    'Deep post-norm',
    'A narrow encoder-decoder translates sentences of a small grammar, Adam without warmup or decay at a constant learning rate. A run '
    f'trains when its final loss is below {TRAINED:g} of the loss of a model that knows how often each word comes and reads nothing; a '
    'depth is that of the encoder, and as much again of the decoder.',
    [
      FigureRef(
        figures.save(loss, folder / 'translation_loss.png'),
        'Final loss against depth: means over seeds, and the seeds as dots; what diverged is a cross at the loss of the unigram model. '
        'Runs below the dotted line train.',
      ),
      FigureRef(
        figures.save(entropy, folder / 'translation_entropy.png'),
        'Entropy of attention by layer after training, relative to uniform attention, at the best learning rate of each depth, mean over '
        'seeds.',
      ),
    ],
    depth_table(deep),
  )  # fmt: skip


def write_summary(path: pathlib.Path, recipes: Mapping[str, Recipe], deep: Mapping[str, Deep]) -> None:
  """metrics.jsonl of the study itself: mean loss over seeds of each recipe, variant and depth, a row an update; null if one diverged."""
  curves = {f'digits/{name}/loss': one.final.loss_KxRxN[0] for name, one in recipes.items()}
  for name, one in deep.items():
    for depth, swept in one.depths.items():
      curves |= {f'translation/{name}/depth_{depth}/rate_{rate:g}/loss': swept.loss_KxRxN[k] for k, rate in enumerate(swept.rate_K)}
  rows: dict[int, dict[str, Any]] = {}
  for key, loss_RxN in curves.items():
    for step, value in enumerate(loss_RxN.mean(axis=0).tolist()):
      rows.setdefault(step, {})[key] = value if np.isfinite(value) else None
  path.write_text(''.join(format_row(step, rows[step]) + '\n' for step in sorted(rows)))


def report(workdir: pathlib.Path, *, seconds: float | None = None) -> list[Claim]:
  """Writes claims.json, metrics.jsonl, figures/ and report.html of a study's folder, and returns the claims."""
  recipes, deep = load_recipes(workdir), load_deep(workdir)
  found = [*recipe_claims(recipes), *depth_claims(deep)]
  write_claims(workdir / 'claims.json', found)
  write_summary(workdir / 'metrics.jsonl', recipes, deep)
  sections = [recipe_section(recipes, workdir / 'figures')] if recipes else []
  sections += [depth_section(deep, workdir / 'figures')] if deep else []
  environment = runs.load_environment(workdir) | ({} if seconds is None else {'wall time of this call (s)': round(seconds)})
  summary = (
    'Can sigmaReparam do without warmup, weight decay, layer norm and an adaptive optimizer, and does it train deeper than post-norm '
    f'alone? {_tally(found)}'
  )
  page = Report('sigmaReparam recipes', summary, sections, found, runs.load_config(workdir), environment, NOTES)
  write_report(workdir / 'report.html', page)
  return found


def _tally(found: Sequence[Claim]) -> str:
  yes, no, open_ = (sum(claim.verdict == verdict for claim in found) for verdict in (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE))
  return f'Of {len(found)} claims {yes} reproduced, {no} did not and {open_} are inconclusive.'


NOTES = (
  'One point of accuracy is less than four images of the test set, which is the same for all seeds: intervals are over seeds alone.',
  'A thousand small images, a width of 32 and a few hundred updates: what the published recipes reach on large data is not tested.',
  'Grids of learning rates and the start of the gains (the norm of the kernel, as in the published vision layers, and not 1) were set '
  'after a first run: there the best rate of two recipes lay at the edge of their grids, and with gains of 1 some seeds of SGD failed.',
  'LARS has its trust ratio on matrices alone; gains, biases and norms take the plain rate, and the coefficient of the ratio is one number '
  'for all its recipes.',
  'Depth is told from three seeds, and the grid of depths doubles: a depth between two of it is not tried.',
  'Sizes, steps and rates of the translation task were set from runs of one seed, so that post-norm learns it when it is shallow.',
  'A deep model that fails within these updates might train with more of them, or with warmup.',
)
