"""training/rows.py: rates by kind, metrics as plain numbers. Rows as a run writes them, and their timings, are in test_loop.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.training.rows import added, fetch, rates


class TestRates:
  def test_each_kind_and_the_examples_of_one_device(self):
    counts = {'tokens/prompt': 10.0, 'tokens/generated': 30.0, 'tokens/scored': 40.0, 'rollout/num_sequences': 8.0}
    found = rates(2.0, counts, num_devices=4)
    assert found == {
      'tokens_per_second/prompt': 5.0,
      'tokens_per_second/generated': 15.0,
      'tokens_per_second/scored': 20.0,
      'tokens_per_second': 15.0,  # what was generated, where there is such a count
      'examples_per_second': 4.0,
      'examples_per_second_per_device': 1.0,
    }

  def test_the_headline_is_generated_else_scored_else_prompt(self):
    assert rates(1.0, {'tokens/prompt': 1.0, 'tokens/scored': 2.0}, 1)['tokens_per_second'] == 2.0
    assert rates(1.0, {'tokens/prompt': 1.0}, 1)['tokens_per_second'] == 1.0
    assert rates(1.0, {}, 1) == {}

  def test_no_time_is_no_division_by_zero(self):
    assert np.isfinite(rates(0.0, {'tokens/scored': 1.0}, 1)['tokens_per_second'])


class TestFetch:
  def test_plain_numbers_exactly(self):
    row = fetch({'a': jnp.float32(0.1), 'b': jnp.int32(3), 'c': jnp.bool_(True), 'd': 0.1, 'e': np.float64(0.1)})
    assert row == {'a': float(np.float32(0.1)), 'b': 3, 'c': True, 'd': 0.1, 'e': 0.1}
    assert [type(row[name]) for name in 'abcde'] == [float, int, bool, float, float]

  def test_arrays_are_refused(self):
    with pytest.raises(ValueError, match=r"metric 'a' has shape \(2,\)"):
      fetch({'a': jnp.zeros(2)})


def test_added_leaves_its_arguments_alone():
  first = {'a': 1.0}
  assert added(first, {'a': 2.0, 'b': 3.0}) == {'a': 3.0, 'b': 3.0} and first == {'a': 1.0}
