"""chaos/numerics.py: what is not finite is never applied, and an update that lets it through would be counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.chaos import numerics


class TestPlan:
  def test_never_three_in_a_row(self):
    for seed in range(20):
      harms = numerics.plan('logits', 16, 6, seed)
      assert len(harms) == 6 and not any(at + 1 in harms and at + 2 in harms for at in harms)
      assert all(harm.place == 'logits' and not np.isfinite(harm.value) and harm.value != -np.inf for harm in harms.values())


class TestPoisoned:
  def test_values_stay_and_gradients_do_not(self):
    f = lambda x, value: jnp.sum(numerics._poisoned({'x': x}, value)['x'] ** 2)
    value, gradient = jax.value_and_grad(f)(jnp.array([1.0, 2.0]), jnp.float32(np.nan))
    assert float(value) == 5.0 and np.isnan(gradient).all()
    np.testing.assert_array_equal(jax.grad(f)(jnp.array([1.0, 2.0]), jnp.float32(0.0)), [2.0, 4.0])  # 2 x


class TestHarmedRun:
  @pytest.mark.parametrize('place', numerics.PLACES)
  def test_nothing_is_applied_and_all_is_told(self, tmp_path, place):
    found = numerics.harmed_run(tmp_path / place, place, 3)
    assert found == numerics.Outcome(place, harmed=3, applied=0, counted=3, dumped=3, kept=3, idle=0)

  def test_an_update_that_lets_it_through_is_counted(self, tmp_path):
    def careless(state, harm, key):
      after, metrics, inputs = numerics._learn(state, harm, key)
      touched = jax.tree.map(lambda x: x + 1e-3, after.params)
      return after.replace(params=touched), metrics, inputs

    found = numerics.harmed_run(tmp_path, 'reward', 2, learn=careless)
    assert found.applied == 2 and not numerics.rows([found], (True, ''))[0].passed


class TestStoppedRun:
  def test_stops_at_the_third_with_a_whole_sentence(self, tmp_path):
    good, sentence = numerics.stopped_run(tmp_path / 'stopped')
    assert good and sentence.startswith('step 9:') and '3 of 3' in sentence
    row = numerics.rows([], (good, sentence))[-1]
    assert row.passed and str(tmp_path) not in row.detail

  def test_a_run_that_goes_on_is_found_out(self, tmp_path):
    blind = lambda state, harm, key: numerics._learn(state, jax.tree.map(jnp.zeros_like, dict(harm)), key)
    assert numerics.stopped_run(tmp_path / 'stopped', learn=blind) == (False, 'the run did not stop')
