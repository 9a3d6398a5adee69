"""Choosing a rate, and depths that train, on made runs whose answers are known; the reading of a folder."""

import json

import numpy as np

from entropy_jax.analysis import recipes_runs
from entropy_jax.analysis.attention_runs import Swept
from entropy_jax.analysis.recipes_runs import Deep, Recipe
from entropy_jax.data.translation import Translation
from entropy_jax.training import sweeps

NAN = float('nan')
GUESS = 2.0  # of the unigram model: a run trains below 1


def runs_of(loss_KxR, *, percent_KxR=None, rates=None, layers: int = 3, entropy: float = 0.5) -> Swept:
  """Runs that end with these losses and held-out accuracies."""
  loss_KxR = np.asarray(loss_KxR, np.float64)
  K, R = loss_KxR.shape
  percent = np.zeros((K, R)) if percent_KxR is None else np.asarray(percent_KxR, np.float64)
  single = {'held_out_accuracy': np.stack([np.zeros((K, R)), percent / 100.0], axis=-1)}
  layered = {'entropy': np.broadcast_to(entropy * np.linspace(0.5, 1.0, layers), (K, R, 2, layers))}
  rate_K = np.geomspace(1e-3, 1e-3 * 10 ** (K - 1), K) if rates is None else np.asarray(rates)
  curve = np.repeat(loss_KxR[..., None], 4, axis=-1)
  return Swept(rate_K, curve, np.array([2, 4]), single=single, layered=layered, norm_over_gain_KxRxM=np.zeros((K, R, 0)), map_names=[],
               initial_loss=GUESS, tail=2)  # fmt: skip


def recipe(name: str, percent_R, *, tuned_at: int = 1) -> Recipe:
  """A recipe with this test accuracy, whose best rate of three is the given one."""
  validation = np.full((3, 2), 50.0)
  validation[tuned_at] = 90.0
  tuning = runs_of(np.full((3, 2), 0.5), percent_KxR=validation)
  return Recipe(name, tuning, runs_of([[0.3] * len(percent_R)], percent_KxR=[percent_R], rates=[tuning.rate_K[tuned_at]]))


def deep(name: str, *losses_KxR, depths=(4, 8, 16)) -> Deep:
  return Deep(name, {d: runs_of(loss, layers=3 * d) for d, loss in zip(depths, losses_KxR, strict=True)})


class TestChosen:
  def test_best_mean_and_the_smallest_of_equals(self):
    loss = np.zeros((3, 2))
    assert recipes_runs.chosen(runs_of(loss, percent_KxR=[[80, 90], [90, 82], [99, 60]])) == 1  # 85, 86, 79.5
    assert recipes_runs.chosen(runs_of(loss, percent_KxR=[[80, 90], [90, 80], [10, 10]])) == 0
    assert recipes_runs.chosen(runs_of(loss, percent_KxR=[[NAN, 90], [70, 60], [10, 10]])) == 1  # 45, 65


class TestRecipe:
  def test_what_it_reached_and_how(self):
    one = recipe('tuned', [95.0, 96.0], tuned_at=1)
    np.testing.assert_allclose(one.test_accuracy, [95.0, 96.0])
    assert one.rate == 1e-2 and not one.at_the_edge
    assert recipe('tuned', [95.0, 96.0], tuned_at=2).at_the_edge


class TestDeep:
  # Two rates. Seed 0 trains to 8 at the first rate, seed 1 to 4; the second rate trains 4 and 16 in seed 1 alone, and diverges otherwise.
  DEEP = deep('post_ln', [[0.1, 0.2], [1.5, 0.9]], [[0.99, 1.0], [NAN, 1.9]], [[1.9, 2.1], [NAN, 0.5]])

  def test_which_runs_train(self):
    np.testing.assert_array_equal(self.DEEP.trains(0), [[True, True], [True, False], [False, False]])
    np.testing.assert_array_equal(self.DEEP.trains(1), [[False, True], [False, False], [False, True]])
    np.testing.assert_array_equal(self.DEEP.trains(), [[True, True], [True, False], [False, True]])

  def test_depths(self):
    np.testing.assert_array_equal(self.DEEP.deepest(), [8, 4])  # 16 trains in seed 1, but 8 does not
    np.testing.assert_array_equal(self.DEEP.deepest(1), [0, 4])
    np.testing.assert_array_equal(self.DEEP.shallowest_failure(), [16, 8])
    np.testing.assert_array_equal(self.DEEP.shallowest_failure(1), [4, 8])
    all_train = deep('deepnorm', *[[[0.1, 0.1]]] * 3)
    np.testing.assert_array_equal(all_train.deepest(), [16, 16])
    np.testing.assert_array_equal(all_train.shallowest_failure(), [np.inf, np.inf])

  def test_best_rate_counts_what_diverged_as_the_unigram_model(self):
    assert [self.DEEP.best_rate(d) for d in (4, 8, 16)] == [0, 0, 1]  # .15, 1.2; .995, 1.95; 1.95 (capped at 2), 1.25

  def test_entropy_by_kind(self):
    found = self.DEEP.entropy(4, 0)
    assert list(found) == ['encoder', 'decoder', 'cross'] and all(x.shape == (2, 4) for x in found.values())
    whole = 0.5 * np.linspace(0.5, 1.0, 12)
    np.testing.assert_allclose(found['decoder'][1], whole[4:8])


class TestLoad:
  def test_reads_what_the_experiment_writes(self, tmp_path):
    names = ('num_adjectives', 'num_nouns', 'num_verbs', 'max_clauses')
    pairs = {'num_steps': 4, 'log_every': 2, 'num_seeds': 2, 'tail': 2, 'rates': [3e-3, 1e-3], 'depths': [2, 1]}
    pairs |= dict.fromkeys(names, 2) | {'max_adjectives': 1, 'variants': {'post_ln': {}}}
    images = {'num_steps': 4, 'log_every': 2, 'num_seeds': 1, 'num_tuning_seeds': 1}
    images['recipes'] = {name: {'rates': [0.1, 0.2]} for name in ('best', 'tuned')}
    (tmp_path / 'config.json').write_text(json.dumps({'digits': images, 'translation': pairs}))

    def write(folder, rates, accuracy, loss):
      logged = {'held_out_accuracy': np.tile(np.asarray(accuracy)[:, None], (1, 2)), 'entropy': np.full((len(rates), 2, 3), 0.5)}
      curves = sweeps.Curves(np.tile(np.asarray(loss)[:, None], (1, 4)), logged, ())
      sweeps.write_seed(folder / 'metrics.jsonl', curves, {}, rates, log_every=2)

    for name in ('best', 'tuned'):
      write(tmp_path / 'digits' / name / 'tuning' / 'seed_0', [0.1, 0.2], [0.5, 0.9], [1.0, 1.0])
      write(tmp_path / 'digits' / name / 'final' / 'seed_0', [0.2], [0.8], [0.4])
    for depth, k in np.ndindex(2, 2):
      folder = tmp_path / 'translation' / 'post_ln' / f'depth_{depth + 1}' / f'seed_{k}'
      write(folder, [3e-3, 1e-3], [0.1, 0.1], [np.inf, 0.1 * (depth + 1)])
    first, second = recipes_runs.load_recipes(tmp_path).items()
    assert (first[0], second[0]) == ('tuned', 'best')
    one = first[1]
    assert one.rate == 0.2 and one.at_the_edge
    np.testing.assert_allclose(one.test_accuracy, [80.0])
    found = recipes_runs.load_deep(tmp_path)['post_ln']
    guess = Translation(**dict.fromkeys(names, 2), max_adjectives=1).unigram_loss
    assert list(found.depths) == [1, 2]
    np.testing.assert_allclose(found.relative_loss, np.array([[[0.1] * 2, [NAN] * 2], [[0.2] * 2, [NAN] * 2]]) / guess)  # rates ascend
    (tmp_path / 'config.json').write_text(json.dumps({'digits': images | {'num_steps': 0}, 'translation': pairs | {'num_steps': 0}}))
    assert recipes_runs.load_recipes(tmp_path) == recipes_runs.load_deep(tmp_path) == {}


def test_pair_of():
  sizes = {'num_adjectives': 3, 'num_nouns': 5, 'num_verbs': 2, 'max_clauses': 1, 'max_adjectives': 0}
  assert recipes_runs.pair_of({'width': 8, **sizes}) == Translation(**sizes)
