"""Draws from wide rows: sums against scipy, shares by hand, impossible tokens, ties, rows that are no distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from entropy_jax.ops import draws

# 37 is prime: the last rows of the table of columns are filled up.
LOGITS = (3 * np.random.default_rng(0).normal(size=(6, 37))).astype(np.float32)
LOGITS[1, ::3], LOGITS[2], LOGITS[3], LOGITS[4, 1:] = -np.inf, -np.inf, 3e38, -np.inf


@pytest.fixture(scope='module')
def row():
  return jax.jit(draws.columns)(LOGITS)


def p_of(logits):
  return scipy.special.softmax(np.maximum(logits.astype(np.float64), -3e38), axis=-1)


class TestColumns:
  def test_entropy_and_log_probs(self, row):
    np.testing.assert_allclose(row.entropy_B, scipy.stats.entropy(p_of(LOGITS), axis=1), rtol=1e-5, atol=1e-6)
    for token in (0, 5, 36):
      got = draws.token_log_prob(row, jnp.full(6, token))
      with np.errstate(divide='ignore'):
        np.testing.assert_allclose(got, np.log(p_of(LOGITS)[:, token]), rtol=1e-4, atol=1e-5)


class TestLargest:
  def test_the_first(self, row):
    np.testing.assert_array_equal(draws.largest(row), np.argmax(LOGITS, axis=1))


class TestDraw:
  def test_shares_by_hand(self):
    # Columns {0, 2} and {1, 3} have .4 and .6; token 2 has 3/4 of the first, token 3 has 2/3 of the second.
    row = draws.columns(jnp.log(jnp.array([[0.1, 0.2, 0.3, 0.4]] * 6)))
    pairs = jnp.array([[0.0, 0.0], [0.39, 0.24], [0.39, 0.26], [0.41, 0.32], [0.41, 0.34], [0.999, 0.999]])
    np.testing.assert_array_equal(draws.draw(row, pairs), [0, 0, 2, 1, 3, 3])

  def test_every_share_is_met(self):
    # On a grid of pairs a token is met as often as it is probable.
    logits = np.where(np.arange(37) % 5 == 1, -np.inf, LOGITS[0]).astype(np.float32)
    grid = (np.stack(np.meshgrid(np.arange(300), np.arange(300)), -1).reshape(-1, 2) + 0.5) / 300
    found = jax.jit(lambda z, u: draws.draw(draws.columns(jnp.broadcast_to(z, (len(u), 37))), u))(logits, grid.astype(np.float32))
    share = np.bincount(found, minlength=37) / len(grid)
    np.testing.assert_allclose(share, p_of(logits), atol=0.01)
    assert not share[1::5].any()

  @pytest.mark.parametrize('end', [0.0, 1 - 2.0**-23])
  def test_no_impossible_token_at_the_ends(self, row, end):
    found = np.asarray(draws.draw(row, jnp.full((6, 2), end)))
    assert np.all(found < 37)
    assert np.all(p_of(LOGITS)[np.arange(6), found] > 0)
    assert found[4] == 0
