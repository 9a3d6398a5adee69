"""Entropy at forks and elsewhere: the paper's counts, ties, numpy loops, merging."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.measures import forks, policy
from entropy_jax.types import UserError
from tests import helpers

BATCH = helpers.with_garbage(helpers.token_batch(seed=5, B=8, T=6))
H, M = BATCH.entropy_BxT, BATCH.mask_BxT


class TestForkPositions:
  def test_card_takes_the_ceiling(self):
    # N = 6, .2 -> ceil(1.2) = 2 of (.1 .. .6)
    got = forks.fork_positions(jnp.array([[0.3, 0.6, 0.1, 0.2, 0.5, 0.4]]), jnp.ones((1, 6), bool))
    np.testing.assert_array_equal(got, [[False, True, False, False, True, False]])

  def test_against_sorting(self):
    values = np.sort(np.asarray(H)[np.asarray(M)])
    num = int(np.ceil(0.2 * values.size))
    got = jax.jit(forks.fork_positions)(H, M)
    np.testing.assert_array_equal(got, np.asarray(M) & (np.where(M, H, -1.0) >= values[-num]))
    assert np.sum(got) == num

  def test_follows_its_tokens_when_rows_move(self):
    h = jnp.full(M.shape, 0.7)  # ties everywhere
    order = np.array([3, 1, 7, 0, 2, 6, 5, 4])
    whole = np.asarray(forks.fork_positions(h, M, sequence_B=BATCH.sequence_B))
    moved = forks.fork_positions(h, M[order], sequence_B=BATCH.sequence_B[order])
    np.testing.assert_array_equal(moved, whole[order])

  def test_level(self):
    got = forks.fork_positions(H, M, fraction=None, level=0.672)
    np.testing.assert_array_equal(got, np.asarray(M) & (np.where(M, H, 0.0) > 0.672))
    assert np.any(got) and not np.all(np.asarray(got)[np.asarray(M)])

  def test_limits(self):
    np.testing.assert_array_equal(forks.fork_positions(H, M, fraction=1.0), M)
    assert not np.any(forks.fork_positions(H, jnp.zeros_like(M)))

  @pytest.mark.parametrize('kwargs', [{'level': 1.0}, {'fraction': None}, {'fraction': 0.0}, {'fraction': 20.0}])
  def test_refuses(self, kwargs):
    with pytest.raises(UserError, match='forks: fraction='):
      forks.fork_positions(H, M, **kwargs)


class TestEntropyAtForks:
  def test_loop_and_merge_to_the_whole(self):
    fork = forks.fork_positions(H, M)
    found = jax.jit(forks.entropy_at_forks)(H, M, fork)
    h, m, f = np.asarray(H), np.asarray(M), np.asarray(fork)
    np.testing.assert_allclose(found['forks'].compute(), h[m & f].mean(), rtol=1e-6)
    np.testing.assert_allclose(found['rest'].compute(), h[m & ~f].mean(), rtol=1e-6)
    both = found['forks'].merge(found['rest'])
    np.testing.assert_allclose(both.compute(), policy.token_entropy(H, M).compute(), rtol=1e-6)

  def test_given_positions_may_stand_in_masked_slots(self):
    found = forks.entropy_at_forks(H, M, jnp.ones_like(M))
    assert float(found['rest'].den) == 0 and float(found['rest'].compute()) == 0.0
    assert float(found['forks'].den) == np.sum(M)

  def test_gradient(self):
    fork = forks.fork_positions(H, M)
    grad = jax.jit(jax.grad(lambda h: forks.entropy_at_forks(h, M, fork)['forks'].compute()))(H)
    np.testing.assert_allclose(grad, np.asarray(fork) / np.sum(fork), rtol=1e-6)


class TestForkOverlap:
  def test_by_hand(self):
    before, after = jnp.array([[True, True, True, False, True]]), jnp.array([[True, False, True, True, True]])
    mask = jnp.array([[True, True, True, True, False]])
    assert float(forks.fork_overlap(before, after, mask).compute()) == pytest.approx(2 / 3)
    assert float(forks.fork_overlap(before, before, mask).compute()) == 1.0


class TestShareBelow:
  def test_by_hand(self):
    h = jnp.array([[0.001, 0.009, 0.01, jnp.nan]])
    mask = jnp.array([[True, True, True, False]])
    assert float(forks.share_below(h, mask).compute()) == pytest.approx(2 / 3)
