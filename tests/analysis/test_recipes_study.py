"""Claims of the recipes study on made runs: what each verdict needs."""

import numpy as np

from entropy_jax.analysis import recipes_study
from entropy_jax.analysis.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED
from tests.analysis.test_recipes_runs import NAN, deep, recipe

NOISE = np.array([-0.3, 0.1, 0.2, -0.1, 0.3, -0.2, 0.05, -0.05])


def recipes(**points) -> dict:
  """Recipes with these mean accuracies, the baseline at 97."""
  return {name: recipe(name, mean + NOISE * (1 + i)) for i, (name, mean) in enumerate({'tuned': 97.0, **points}.items())}


def verdicts(claims) -> dict[str, str]:
  return {claim.id.split('/', 1)[1]: claim.verdict for claim in claims}


class TestRecipeClaims:
  def test_within_and_beyond_one_point(self):
    found = verdicts(recipes_study.recipe_claims(recipes(sigma_reparam_sgd=96.8, sigma_reparam_lars=94.0, pre_ln_sgd=90.0, no_ln_sgd=97.0)))
    assert found == {
      'sigma_reparam_sgd_comes_within_one_point': REPRODUCED,
      'sigma_reparam_lars_comes_within_one_point': NOT_REPRODUCED,
      'pre_ln_sgd_loses_more_than_one_point': REPRODUCED,
      'no_ln_sgd_loses_more_than_one_point': NOT_REPRODUCED,
    }

  def test_the_difference_is_of_the_same_seed(self):
    (claim,) = recipes_study.recipe_claims(recipes(sigma_reparam_sgd=96.0))
    np.testing.assert_allclose(claim.value, -1.0, atol=1e-9)
    assert claim.verdict == INCONCLUSIVE and claim.baseline == 'tuned' and claim.interval[0] < -1.0 < claim.interval[1]

  def test_few_seeds_decide_nothing(self):
    few = {name: recipe(name, one.test_accuracy[:4]) for name, one in recipes(sigma_reparam_sgd=97.0).items()}
    assert set(verdicts(recipes_study.recipe_claims(few)).values()) == {INCONCLUSIVE}

  def test_none_without_the_part(self):
    assert recipes_study.recipe_claims({}) == recipes_study.depth_claims({}) == []


class TestDepthClaims:
  GOOD, BAD = [[0.1, 0.11, 0.12]], [[1.9, 2.0, NAN]]

  def test_as_published(self):
    made = {
      'post_ln': deep('post_ln', self.GOOD, self.BAD, self.BAD),
      'deepnorm': deep('deepnorm', *[self.GOOD] * 3),
      'sigma_reparam_post_ln': deep('sigma_reparam_post_ln', *[self.GOOD] * 3),
    }
    claims = recipes_study.depth_claims(made)
    assert len(claims) == 7 and {claim.verdict for claim in claims} == {REPRODUCED}
    (ratio,) = [claim for claim in claims if claim.id == 'translation/deepnorm_trains_deeper_than_post_ln']
    assert ratio.value == 2.0  # from 4 to 16 layers

  def test_the_opposite(self):
    made = {
      'post_ln': deep('post_ln', *[self.GOOD] * 3),
      'sigma_reparam_post_ln': deep('sigma_reparam_post_ln', self.GOOD, self.GOOD, self.BAD),
    }
    assert set(verdicts(recipes_study.depth_claims(made)).values()) == {NOT_REPRODUCED}

  def test_where_nothing_trains_at_all(self):
    nothing = deep('post_ln', *[self.BAD] * 3)
    some = deep('deepnorm', self.GOOD, self.BAD, self.BAD)
    np.testing.assert_array_equal(recipes_study.log_ratio(some, nothing), [1, 1, 1])  # 4 against the 2 that was not tried
    np.testing.assert_array_equal(recipes_study.log_ratio(nothing, nothing, 0), [0, 0, 0])

  def test_nothing_is_known_where_both_train_everywhere(self):
    good = {name: deep(name, *[self.GOOD] * 3) for name in ('post_ln', 'deepnorm')}
    assert np.isnan(recipes_study.log_ratio(good['deepnorm'], good['post_ln'])).all()
    found = verdicts(recipes_study.depth_claims(good))
    assert found['deepnorm_trains_deeper_than_post_ln'] == found['deepnorm_trains_deeper_than_post_ln_at_0.001'] == INCONCLUSIVE
    assert found['deepnorm_trains_at_16'] == REPRODUCED and found['post_ln_fails_at_16'] == NOT_REPRODUCED


class TestTables:
  def test_recipes_best_first(self):
    table = recipes_study.recipe_table(recipes(pre_ln_sgd=98.0) | {'edge': recipe('edge', 90.0 + NOISE, tuned_at=0)})
    assert [row[0] for row in table.rows] == ['pre_ln_sgd', 'tuned', 'edge']
    assert table.rows[1][3] == 'baseline' and table.rows[0][3].startswith('1.00 [')
    assert table.rows[2][1] == '0.001, at the edge of its grid' and table.rows[0][1] == '0.01'

  def test_depths_by_rate(self):
    one = deep('post_ln', [[0.1, 0.1], [0.1, 1.9]], [[0.1, 0.1], [1.9, 1.9]], [[1.9, 0.1], [1.9, 1.9]])
    rows = recipes_study.depth_table({'post_ln': one}).rows
    assert rows == [
      ['post_ln', '0.001', '8, 16', '16, none'],
      ['post_ln', '0.01', '4, none', '8, 4'],
      ['post_ln', 'any', '8, 16', '16, none'],
    ]


def test_summary_has_every_curve(tmp_path):
  one = {'post_ln': deep('post_ln', [[0.1, NAN]], [[0.2, 0.4]], [[0.5, 0.5]])}
  recipes_study.write_summary(tmp_path / 'metrics.jsonl', recipes(), one)
  rows = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert len(rows) == 4 and '"digits/tuned/loss": 0.3' in rows[0]
  assert '"translation/post_ln/depth_4/rate_0.001/loss": null' in rows[3]
  assert '"translation/post_ln/depth_16/rate_0.001/loss": 0.5' in rows[3]
