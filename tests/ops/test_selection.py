"""Selections against sorting in Python: exact counts, ties, and the same tokens when rows move or the padding grows."""

import fractions
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.ops import selection

pytestmark = pytest.mark.usefixtures('strict_dtypes')

RNG = np.random.default_rng(0)
SCORE = RNG.integers(0, 6, (6, 9)).astype(np.float32)  # six values on 54 tokens: nearly everything is tied
ELIGIBLE = RNG.random((6, 9)) < 0.7
IDENTITY = np.array([40, 3, 77, 8, 15, 21], np.int32)
ORDER = np.array([4, 1, 5, 0, 3, 2])
top = jax.jit(selection.top)
random = jax.jit(selection.random)
uniform = jax.jit(selection.uniform, static_argnums=1)
quantile = jax.jit(selection.quantile)


def best(score, eligible, num, identity):
  """The chosen (identity, position) pairs by sorting: largest score first, then smallest identity, then earliest position."""
  tokens = [(-score[b, t], identity[b], t) for b, t in zip(*np.nonzero(eligible))]
  return {(i, t) for _, i, t in sorted(tokens)[:num]}


def pairs(chosen, identity):
  return {(identity[b], t) for b, t in zip(*np.nonzero(np.asarray(chosen)))}


class TestFractionOf:
  @pytest.mark.parametrize('fraction', [2e-4, 2e-3, 0.02, 0.1, 0.2, 1 / 3, 0.7, 1.0])
  def test_exact_for_every_size(self, fraction):
    exact = fractions.Fraction(fraction).limit_denominator(10_000)
    sizes = np.concatenate([np.arange(0, 3000, 7), RNG.integers(1, 10**8, 200)]).astype(np.int32)
    down = jax.jit(jax.vmap(lambda n: selection.fraction_of(n, fraction)))(sizes)
    up = jax.jit(jax.vmap(lambda n: selection.fraction_of(n, fraction, round_up=True)))(sizes)
    assert down.tolist() == [max(math.floor(exact * int(n)), 1) for n in sizes]
    assert up.tolist() == [max(math.ceil(exact * int(n)), 1) for n in sizes]

  def test_card_rounding(self):
    # .2 of 6 is 1.2: 2 rounded up, 1 rounded down; float32 .2 * 10 may be 2.0000001, whose ceiling would be 3
    assert int(selection.fraction_of(jnp.int32(6), 0.2, round_up=True)) == 2
    assert int(selection.fraction_of(jnp.int32(6), 0.2)) == 1
    assert int(selection.fraction_of(jnp.int32(10), 0.2, round_up=True)) == 2

  def test_floor(self):
    assert int(selection.fraction_of(jnp.int32(100), 2e-4)) == 1
    assert int(selection.fraction_of(jnp.int32(100), 2e-4, at_least=0)) == 0


class TestTop:
  @pytest.mark.parametrize('num', [0, 1, 7, 20, 1000])
  def test_against_sorting(self, num):
    chosen = top(jnp.array(SCORE), jnp.array(ELIGIBLE), jnp.int32(num), jnp.array(IDENTITY))
    assert pairs(chosen, IDENTITY) == best(SCORE, ELIGIBLE, num, IDENTITY)
    assert int(jnp.sum(chosen)) == min(num, ELIGIBLE.sum())

  def test_without_identity_the_row_number_counts(self):
    chosen = top(jnp.array(SCORE), jnp.array(ELIGIBLE), jnp.int32(7))
    assert pairs(chosen, np.arange(6)) == best(SCORE, ELIGIBLE, 7, np.arange(6))

  def test_any_float(self):
    # Both zeros are equal, and a score that is no number comes after all that are.
    values = np.float32([np.inf, 1e30, 1.0, 1e-30, 0.0, -0.0, -1e-30, -1.0, -1e30, -np.inf, np.nan, np.nan])
    order = np.random.default_rng(4).permutation(12)
    score, place = np.zeros((3, 4), np.float32), np.arange(12)
    score.ravel()[order] = values
    rank = {i: (min(k, 4) if k == 5 else min(k, 10), i) for k, i in zip(place, order, strict=True)}
    want = sorted(rank, key=rank.get)
    for num in range(13):
      chosen = np.asarray(top(jnp.array(score), jnp.ones((3, 4), bool), jnp.int32(num)))
      assert sorted(np.flatnonzero(chosen)) == sorted(want[:num])

  def test_all_tied(self):
    chosen = top(jnp.zeros((3, 4)), jnp.ones((3, 4), bool), jnp.int32(5), jnp.array([2, 0, 1]))
    assert chosen.tolist() == [[False] * 4, [True] * 4, [True, False, False, False]]

  def test_same_tokens_for_permuted_rows(self):
    chosen = top(jnp.array(SCORE), jnp.array(ELIGIBLE), jnp.int32(11), jnp.array(IDENTITY))
    moved = top(jnp.array(SCORE[ORDER]), jnp.array(ELIGIBLE[ORDER]), jnp.int32(11), jnp.array(IDENTITY[ORDER]))
    np.testing.assert_array_equal(moved, np.asarray(chosen)[ORDER])

  def test_same_tokens_for_more_padding_with_garbage(self):
    chosen = top(jnp.array(SCORE), jnp.array(ELIGIBLE), jnp.int32(11), jnp.array(IDENTITY))
    score = np.pad(SCORE, ((0, 0), (0, 3)), constant_values=np.inf)
    score[:, -1] = np.nan
    padded = top(jnp.array(score), jnp.pad(jnp.array(ELIGIBLE), ((0, 0), (0, 3))), jnp.int32(11), jnp.array(IDENTITY))
    np.testing.assert_array_equal(padded[:, :9], chosen)
    assert not np.any(padded[:, 9:])


class TestUniform:
  def test_follows_identity_and_position_alone(self):
    key = jax.random.key(3)
    noise = uniform(key, (6, 9), jnp.array(IDENTITY))
    moved = uniform(key, (6, 12), jnp.array(IDENTITY[ORDER]))
    np.testing.assert_array_equal(moved[:, :9], np.asarray(noise)[ORDER])
    assert len(set(np.asarray(noise).ravel().tolist())) == 54
    assert float(noise.min()) >= 0 and float(noise.max()) < 1


class TestRandom:
  def test_count_and_eligibility(self):
    for num in (0, 5, 1000):
      chosen = np.asarray(random(jax.random.key(0), jnp.array(ELIGIBLE), jnp.int32(num), jnp.array(IDENTITY)))
      assert chosen.sum() == min(num, ELIGIBLE.sum())
      assert not np.any(chosen & ~ELIGIBLE)

  def test_same_tokens_for_permuted_rows(self):
    key = jax.random.key(1)
    chosen = random(key, jnp.array(ELIGIBLE), jnp.int32(9), jnp.array(IDENTITY))
    moved = random(key, jnp.array(ELIGIBLE[ORDER]), jnp.int32(9), jnp.array(IDENTITY[ORDER]))
    np.testing.assert_array_equal(moved, np.asarray(chosen)[ORDER])

  def test_uniform_without_replacement(self):
    # 2 of 5 eligible tokens, 2000 keys: each is chosen with probability .4, standard error sqrt(.4 * .6 / 2000) = .011
    eligible = jnp.array([[True, False, True], [True, True, True]])
    keys = jax.random.split(jax.random.key(2), 2000)
    chosen = jax.jit(jax.vmap(lambda k: selection.random(k, eligible, jnp.int32(2))))(keys)
    frequency = np.asarray(chosen).mean(0)
    assert frequency[0, 1] == 0
    np.testing.assert_allclose(frequency[np.asarray(eligible)], 0.4, atol=4 * 0.011)


class TestQuantile:
  @pytest.mark.parametrize('q', [0.0, 0.25, 0.8, 0.99, 1.0])
  def test_against_numpy(self, q):
    x = np.where(ELIGIBLE, RNG.normal(size=(6, 9)), np.nan).astype(np.float32)
    np.testing.assert_allclose(quantile(jnp.array(x), jnp.array(ELIGIBLE), q), np.quantile(x[ELIGIBLE], q), rtol=1e-5)

  def test_negative_and_infinite(self):
    x = jnp.array([[2.0, -3.0, -jnp.inf, -0.0, 4.0]])
    assert [float(quantile(x, jnp.ones((1, 5), bool), q)) for q in (0.25, 0.5, 0.625, 0.75)] == [-3.0, 0.0, 1.0, 2.0]

  def test_nothing_valid(self):
    assert float(quantile(jnp.ones((2, 2)), jnp.zeros((2, 2), bool), 0.5)) == 0
