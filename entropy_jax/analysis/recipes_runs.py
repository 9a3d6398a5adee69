"""The folder of the recipes study as arrays: recipes for images with the learning rate that each one chose, and translation by depth."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from entropy_jax.analysis import attention_runs, runs
from entropy_jax.analysis.attention_runs import Swept
from entropy_jax.data import digits
from entropy_jax.data.translation import Translation

TUNED = 'tuned'  # the baseline among the recipes
POST = 'post_ln'  # the baseline among the variants of the deep model
TRAINED = 0.5  # of the unigram loss: a run whose final loss is below it trains
KINDS = ('encoder', 'decoder', 'cross')  # of attention, in the order in which the learner logs them


# --- images -----------------------------------------------------------------------------------------------------------


def accuracy(swept: Swept) -> np.ndarray:
  """Of the trained models on what is held out, percent, [K, R]."""
  return 100.0 * swept.single['held_out_accuracy'][..., -1]


def chosen(tuning: Swept) -> int:
  """The place of the learning rate with the best accuracy of the validation part, mean over the seeds; the smallest of equals."""
  return int(np.argmax(np.mean(np.nan_to_num(accuracy(tuning)), axis=1)))


@dataclasses.dataclass(frozen=True)
class Recipe:
  """One recipe.

  Attributes:
    name: of the recipe.
    tuning: every learning rate of its grid, trained on a part of the training set and measured on the rest.
    final: the chosen one (K = 1), trained on the training set and measured on the test set, from other seeds.
  """

  name: str
  tuning: Swept
  final: Swept

  @property
  def rate(self) -> float:
    return float(self.final.rate_K[0])

  @property
  def test_accuracy(self) -> np.ndarray:
    """On the test set, percent."""
    return accuracy(self.final)[0]

  @property
  def at_the_edge(self) -> bool:
    """Whether the chosen learning rate is the smallest or the largest of the grid, so that a better one may lie outside."""
    return self.rate in (self.tuning.rate_K[0], self.tuning.rate_K[-1])


def rates_of(folder: pathlib.Path, rates: Sequence[float], *, num_seeds: int, log_every: int, num_steps: int) -> Swept:
  """The runs of a recipe at some learning rates; the final loss is the mean since the last measure but one."""
  return attention_runs.swept(
    folder, rates, num_seeds=num_seeds, log_every=log_every, initial_loss=float(np.log(digits.NUM_CLASSES)), tail=min(log_every, num_steps)
  )


def load_recipes(workdir: pathlib.Path) -> dict[str, Recipe]:
  """The recipes of a finished study; none where it has no such part."""
  settings = runs.load_config(workdir)['digits']
  found = {}
  for name in _first(TUNED, settings['recipes']) if settings['num_steps'] else ():
    recipe = settings['recipes'][name]
    folder, shape = workdir / 'digits' / name, {'log_every': settings['log_every'], 'num_steps': settings['num_steps']}
    tuning = rates_of(folder / 'tuning', recipe['rates'], num_seeds=settings['num_tuning_seeds'], **shape)
    rate = float(tuning.rate_K[chosen(tuning)])
    found[name] = Recipe(name, tuning, rates_of(folder / 'final', [rate], num_seeds=settings['num_seeds'], **shape))
  return found


# --- translation ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Deep:
  """One variant of the encoder-decoder at every depth.

  Attributes:
    name: of the variant.
    depths: layers of the encoder, and as many of the decoder, growing -> its runs. Their `initial_loss` is that of a unigram model.
  """

  name: str
  depths: Mapping[int, Swept]

  @property
  def rates(self) -> list[float]:
    return next(iter(self.depths.values())).rate_K.tolist()

  @property
  def relative_loss(self) -> np.ndarray:
    """Final loss as a share of the unigram loss, by depth, learning rate and seed; NaN for a run that diverged."""
    return np.stack([swept.final_loss / swept.initial_loss for swept in self.depths.values()])

  @property
  def which_train(self) -> np.ndarray:
    """Which runs train: a finite final loss below TRAINED of the unigram loss."""
    return np.nan_to_num(self.relative_loss, nan=np.inf, posinf=np.inf) < TRAINED

  def trains(self, k: int | None = None) -> np.ndarray:
    """[N, R] at the k-th learning rate, or at any of them for None."""
    return np.asarray(np.any(self.which_train, axis=1) if k is None else self.which_train[:, k])

  def deepest(self, k: int | None = None) -> np.ndarray:
    """Of every seed, the largest depth up to which all depths train, [R]; 0 where the smallest does not."""
    run_NxR = np.logical_and.accumulate(self.trains(k), axis=0)
    return np.array([0, *self.depths])[run_NxR.sum(axis=0)]

  def shallowest_failure(self, k: int | None = None) -> np.ndarray:
    """Of every seed, the smallest depth that does not train, [R]; inf where all do."""
    fails_NxR = ~self.trains(k)
    return np.where(fails_NxR.any(axis=0), np.array(list(self.depths), float)[fails_NxR.argmax(axis=0)], np.inf)

  def best_rate(self, depth: int) -> int:
    """Which learning rate has the smallest final loss at this depth, a diverged run counted as the unigram model."""
    return self.depths[depth].best_rate

  def entropy(self, depth: int, k: int) -> dict[str, np.ndarray]:
    """Kind of attention -> late entropy of every layer relative to uniform attention, [R, L]."""
    swept = self.depths[depth]
    return dict(zip(KINDS, np.split(swept.late(swept.layered['entropy'])[k], len(KINDS), axis=-1), strict=True))


def pair_of(settings: Mapping[str, object]) -> Translation:
  """The language pair of the part's settings."""
  names = ('num_adjectives', 'num_nouns', 'num_verbs', 'max_clauses', 'max_adjectives')
  return Translation(**{name: int(str(settings[name])) for name in names})


def load_deep(workdir: pathlib.Path) -> dict[str, Deep]:
  """The variants of a finished study; none where it has no such part."""
  settings = runs.load_config(workdir)['translation']
  if not settings['num_steps']:
    return {}
  shape = {'num_seeds': settings['num_seeds'], 'log_every': settings['log_every'], 'tail': settings['tail']}
  guess = pair_of(settings).unigram_loss

  def at(name: str, depth: int) -> Swept:
    return attention_runs.swept(workdir / 'translation' / name / f'depth_{depth}', settings['rates'], initial_loss=guess, **shape)

  return {name: Deep(name, {depth: at(name, depth) for depth in sorted(settings['depths'])}) for name in _first(POST, settings['variants'])}


def _first(baseline: str, names: Iterable[str]) -> list[str]:
  """The names with the baseline before the others, so that it is drawn as one."""
  return sorted(names, key=lambda name: name != baseline)
