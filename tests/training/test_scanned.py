"""A whole tabular study in one scan: what it returns, that it learns, and what theory says must be exactly zero."""

import jax
import numpy as np
import optax
import pytest

from entropy_jax import catalog
from entropy_jax.data import fork_tokens, mod_sum
from entropy_jax.training import scanned

GRPO = [{'name': 'grpo'}]


def run(spec, *, seeds=2, make=fork_tokens.make, num_steps=12, num_epochs=1, measures=()):
  objective = catalog.build(spec)
  study = lambda key: scanned.run(
    make, key, objective=objective, tx=optax.sgd(150.0), num_steps=num_steps, group_size=16, num_epochs=num_epochs, measures=measures
  )
  options = {'xla_backend_optimization_level': 0}
  return jax.device_get(jax.jit(jax.vmap(study), compiler_options=options)(jax.random.split(jax.random.key(0), seeds)))


@pytest.fixture(scope='module')
def plain():
  return run({'advantages': GRPO, 'surrogates': [{'name': 'importance'}]})


class TestRun:
  def test_exact_curves_have_one_point_more_than_the_steps(self, plain):
    assert plain['exact/success'].shape == plain['exact/entropy_fork'].shape == (2, 13)
    assert plain['update/loss'].shape == plain['exact/entropy_change_measured'].shape == (2, 12)
    assert all(np.all(np.isfinite(values)) for values in plain.values())

  def test_it_learns_and_loses_entropy_at_the_forks(self, plain):
    assert np.all(plain['exact/success'][:, -1] > 2 * plain['exact/success'][:, 0])
    assert np.all(plain['exact/entropy_fork'][:, -1] < plain['exact/entropy_fork'][:, 0] - 0.1)

  def test_sampled_reward_is_the_exact_success_within_its_error(self, plain):
    # 256 Bernoulli samples a step: the standard error is at most .5 / 16; five of them over 24 draws is a miss in 70 000.
    assert np.all(np.abs(plain['rollout/reward'] - plain['exact/success'][:, :-1]) < 5 * 0.5 / 16)

  def test_measured_changes_follow_the_curve(self, plain):
    # Every state of fork_tokens is visited always, so the changes add up to the difference of the curve's ends.
    total = plain['exact/entropy_all'][:, -1] - plain['exact/entropy_all'][:, 0]
    np.testing.assert_allclose(plain['exact/entropy_change_measured'].sum(axis=1), total, rtol=1e-3)

  def test_prediction_is_close_for_one_update_a_rollout(self, plain):
    predicted, measured = plain['exact/entropy_change_predicted'].ravel(), plain['exact/entropy_change_measured'].ravel()
    assert np.corrcoef(predicted, measured)[0, 1] > 0.95

  def test_seeds_differ_and_repeat(self, plain):
    again = run({'advantages': GRPO, 'surrogates': [{'name': 'importance'}]})
    np.testing.assert_array_equal(again['exact/success'], plain['exact/success'])
    assert np.all(plain['exact/success'][0] != plain['exact/success'][1])

  def test_mod_sum_with_its_measures(self):
    found = run({'advantages': GRPO, 'surrogates': [{'name': 'ppo_clip'}]}, make=mod_sum.make, num_steps=3, measures=(mod_sum.diversity,))
    assert found['exact/correct_answer_entropy'].shape == (2, 4)
    assert np.all(found['exact/correct_answer_entropy'] < np.log(216))
    assert np.all((found['exact/pass_at_16'] > found['exact/success']) & (found['exact/pass_at_16'] <= 1))
