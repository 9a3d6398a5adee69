"""Ranks, quantiles and numbers inside groups against plain loops."""

import fractions
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.ops import ranks

pytestmark = pytest.mark.usefixtures('strict_dtypes')

RNG = np.random.default_rng(0)
GROUP = RNG.choice(np.array([-50, 3, 7, 2**31 - 1], np.int32), 30)
GROUP[4] = 11  # alone
SCORE = np.round(RNG.normal(size=30), 1).astype(np.float32)  # with ties
IDENTITY = RNG.permutation(30).astype(np.int32)


class TestIdentify:
  def test_one_key_is_the_rank_of_its_value(self):
    expected = np.unique(GROUP, return_inverse=True)[1]
    np.testing.assert_array_equal(jax.jit(ranks.identify)(GROUP), expected)

  def test_several_keys(self):
    other = RNG.integers(-2, 2, 30).astype(np.int32)
    pairs = sorted(set(zip(GROUP.tolist(), other.tolist(), strict=True)))
    expected = [pairs.index(pair) for pair in zip(GROUP.tolist(), other.tolist(), strict=True)]
    np.testing.assert_array_equal(jax.jit(ranks.identify)(GROUP, other), expected)

  def test_one_row(self):
    assert ranks.identify(jnp.array([5]), jnp.array([-1])).tolist() == [0]


class TestWithin:
  def test_loop(self):
    expected = []
    for i in range(30):
      members = [j for j in range(30) if GROUP[j] == GROUP[i]]
      expected.append(sorted(members, key=lambda j: (SCORE[j], IDENTITY[j])).index(i))
    np.testing.assert_array_equal(jax.jit(ranks.within)(SCORE, GROUP, IDENTITY), expected)

  def test_without_identity_ties_follow_the_rows(self):
    assert ranks.within(jnp.zeros(4), jnp.array([1, 0, 1, 1])).tolist() == [0, 0, 1, 2]


class TestQuantile:
  @pytest.mark.parametrize('q', [0.05, 0.25, 0.4, 0.5, 0.6, 0.95])
  def test_lower_inf_is_the_definition(self, q):
    actual = jax.jit(ranks.quantile, static_argnums=2)(SCORE, GROUP, q)
    level = fractions.Fraction(str(q))
    for i in range(30):
      values = sorted(SCORE[GROUP[i] == GROUP].tolist())
      reached = [x for x in values if sum(y <= x for y in values) >= level * len(values)]
      assert float(actual[i]) == reached[0]

  @pytest.mark.parametrize('q', [0.1, 0.5, 0.77])
  def test_linear_is_numpys(self, q):
    actual = ranks.quantile(jnp.array(SCORE), jnp.array(GROUP), q, method='linear')
    expected = [np.quantile(SCORE[g == GROUP].astype(np.float64), q) for g in GROUP]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)

  @pytest.mark.parametrize('method', ['lower_inf', 'linear'])
  def test_counts_only_those_who_count(self, method):
    counted = RNG.random(30) < 0.6
    counted[GROUP == 3] = False
    actual = ranks.quantile(jnp.array(SCORE), jnp.array(GROUP), 0.4, method=method, counted_B=jnp.array(counted))
    for i in range(30):
      kept = SCORE[(GROUP[i] == GROUP) & counted]
      how = 'inverted_cdf' if method == 'lower_inf' else 'linear'
      expected = np.quantile(kept.astype(np.float64), 0.4, method=how) if kept.size else 0.0
      np.testing.assert_allclose(actual[i], expected, rtol=1e-5, atol=1e-6)

  def test_equal_values_give_themselves_back(self):
    x = jnp.full(7, 0.1, jnp.float32)
    for method in ('lower_inf', 'linear'):
      assert bool(jnp.all(ranks.quantile(x, jnp.zeros(7, jnp.int32), 0.37, method=method) == x))

  def test_levels_are_counted_in_integers(self):
    # n failures of G: the quantile is a failure exactly where n >= ceil(K G), K = i / 20, although 1 - p == K misfires in floats
    for i in (2, 6, 8, 12, 14, 18):
      sizes = [(n, size) for size in (5, 10, 20) for n in range(size + 1)]
      group = np.repeat(np.arange(len(sizes), dtype=np.int32), [size for _, size in sizes])
      reward = np.concatenate([np.arange(size) >= n for n, size in sizes]).astype(np.float32)
      actual = np.asarray(ranks.quantile(jnp.array(reward), jnp.array(group), i / 20))
      for g, (n, size) in enumerate(sizes):
        assert actual[group == g][0] == (0.0 if n >= math.ceil(fractions.Fraction(i, 20) * size) else 1.0), (i, n, size)
