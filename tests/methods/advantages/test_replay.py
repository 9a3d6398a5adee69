"""Self-imitation: the card's numbers, the ring of group means against a deque, which rows are judged, and what an empty batch leaves."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective
from entropy_jax.methods import advantages, surrogates
from entropy_jax.methods.advantages import replay
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

push = jax.jit(replay.push_groups, compiler_options={'xla_backend_optimization_level': 0})


def seen(state):
  """The means that the ring holds, as a sorted list."""
  return sorted(np.asarray(state['means'])[: int(state['num_groups'])].tolist())


def prepare(transforms, batch, state=None):
  chain = objective.chain(*transforms, surrogates.reinforce())
  prepared, state, metrics = chain.prepare(chain.init(batch) if state is None else state, batch)
  return np.asarray(prepared.advantage_BxT), state, metrics


class TestPushGroups:
  def test_ring_against_a_deque(self):
    rng = np.random.default_rng(0)
    state, means, deviations = replay.empty_history(history=7), collections.deque(maxlen=7), collections.deque(maxlen=7)
    for _ in range(6):
      returns, group = rng.normal(size=9).astype(np.float32), rng.choice([-5, 3, 900, 2**31 - 1], 9).astype(np.int32)
      counted = rng.random(9) < 0.7
      state = push(state, jnp.array(returns), jnp.array(group), jnp.array(counted))
      for g in np.unique(group[counted]):
        values = returns[counted & (group == np.int32(g))].astype(np.float64)
        means.append(values.mean())
        deviations.append(values.std(ddof=1) if values.size > 1 else 0.0)
      num = min(int(state['num_groups']), 7)
      np.testing.assert_allclose(np.sort(state['means'][:num]), np.sort(means), rtol=1e-5, atol=1e-6)
      np.testing.assert_allclose(np.sort(state['deviations'][:num]), np.sort(deviations), rtol=1e-5, atol=1e-6)

  def test_more_groups_than_fit(self):
    # five groups into a ring of three: those of the largest ids stay
    state = push(replay.empty_history(history=3), jnp.arange(5.0), jnp.array([10, 20, 30, 40, 50]), jnp.ones(5, bool))
    assert sorted(state['means'].tolist()) == [2.0, 3.0, 4.0] and int(state['num_groups']) == 5

  def test_order_of_rows_does_not_matter(self):
    returns, group = jnp.array([1.0, 0.0, 4.0, 2.0]), jnp.array([9, 9, 4, 9])
    order = jnp.array([2, 3, 1, 0])
    first = push(replay.empty_history(history=3), returns, group, jnp.ones(4, bool))
    moved = push(replay.empty_history(history=3), returns[order], group[order], jnp.ones(4, bool))
    jax.tree.map(np.testing.assert_array_equal, first, moved)

  def test_nothing_counted_changes_nothing(self):
    state = push(replay.empty_history(history=3), jnp.ones(4), jnp.arange(4), jnp.array([True, False, True, False]))
    after = push(state, jnp.full(4, 9.0), jnp.arange(4), jnp.zeros(4, bool))
    jax.tree.map(np.testing.assert_array_equal, state, after)

  def test_equal_rewards_have_their_value_as_mean(self):
    state = push(replay.empty_history(history=1), jnp.full(7, 0.7), jnp.zeros(7, jnp.int32), jnp.ones(7, bool))
    assert float(state['means'][0]) == np.float32(0.7) and float(state['deviations'][0]) == 0.0


class TestSelfImitation:
  def test_card_values(self):
    # group means 0, 0, .5 and 1: P50 = .25, so that R = 1 has A = .75 and R = 0 none
    batch = helpers.token_batch(B=8, T=3)
    batch = batch.replace(
      reward_B=jnp.array([0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0]),
      group_B=jnp.array([1, 1, 2, 2, 3, 3, 4, 4]),
      token_reward_BxT=jnp.zeros((8, 3)),
      mask_BxT=jnp.ones((8, 3), bool),
    )
    advantage, state, metrics = prepare([advantages.self_imitation()], batch)
    np.testing.assert_array_equal(advantage[:, 0], [0.0, 0.0, 0.0, 0.0, 0.75, 0.0, 0.75, 0.75])
    assert float(metrics['advantage/self_imitation/baseline']) == 0.25
    assert float(metrics['advantage/self_imitation/imitated_fraction']) == 3 / 8
    assert seen(state['self_imitation']) == [0.0, 0.0, 0.5, 1.0]
    # deviations 0, 0, sqrt(.5), 0: P50 = 0, and A is divided by 1e-6
    normalized, _, _ = prepare([advantages.self_imitation(normalize=True)], batch)
    np.testing.assert_allclose(normalized[4, 0], 0.75e6, rtol=1e-6)

  def test_history_goes_on(self):
    batch = helpers.token_batch(seed=1)
    transforms = [advantages.self_imitation(history=50)]
    _, state, _ = prepare(transforms, batch)
    later = batch.replace(reward_B=batch.reward_B + 10.0)
    advantage, state, metrics = prepare(transforms, later, state)
    dense = np.where(np.asarray(batch.mask_BxT), np.asarray(batch.token_reward_BxT), 0.0).sum(1)
    group, first = np.asarray(batch.group_B), np.asarray(batch.reward_B) + dense
    means = [returns[group == np.int32(g)].mean() for returns in (first, first + 10) for g in np.unique(group)]
    np.testing.assert_allclose(metrics['advantage/self_imitation/baseline'], np.percentile(means, 50), rtol=1e-5)
    expected = np.maximum(first + 10 - np.percentile(means, 50), 0.0)[:, None] * np.asarray(batch.mask_BxT)
    np.testing.assert_allclose(advantage, expected, rtol=1e-5)

  def test_a_batch_without_tokens_is_not_remembered(self):
    batch = helpers.token_batch()
    _, state, _ = prepare([advantages.self_imitation()], batch.replace(mask_BxT=jnp.zeros_like(batch.mask_BxT)))
    assert int(state['self_imitation']['num_groups']) == 0

  def test_bad_input(self):
    with pytest.raises(UserError, match='is outside'):
      advantages.self_imitation(history=0)


class TestSelfImitationReplay:
  def test_only_replayed_rows_change_and_only_fresh_rows_are_remembered(self):
    batch = helpers.token_batch(seed=1)
    mask, marked = np.asarray(batch.mask_BxT), np.asarray(batch.imitated_B)
    returns = np.asarray(batch.reward_B) + np.where(mask, np.asarray(batch.token_reward_BxT), 0.0).sum(1)
    group = np.asarray(batch.group_B)
    means = [returns[~marked & (group == np.int32(g))].mean() for g in np.unique(group[~marked])]
    baseline = np.percentile(means, 50)
    plain, _, _ = prepare([advantages.grpo()], batch)
    found, state, metrics = prepare([advantages.grpo(), advantages.self_imitation_replay()], batch)
    np.testing.assert_array_equal(found[~marked], plain[~marked])
    expected = np.maximum(returns - baseline, 0.0)[:, None] * mask
    np.testing.assert_allclose(found[marked], expected[marked], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen(state['self_imitation_replay']), np.sort(means), rtol=1e-5)
    np.testing.assert_allclose(metrics['advantage/self_imitation_replay/imitated_fraction'], np.mean(returns[marked] > baseline), rtol=1e-6)

  def test_a_batch_of_replayed_rows_leaves_the_history(self):
    batch = helpers.token_batch(seed=1)
    transforms = [advantages.self_imitation_replay()]
    _, state, _ = prepare(transforms, batch)
    _, after, _ = prepare(transforms, batch.replace(imitated_B=jnp.ones_like(batch.imitated_B)), state)
    jax.tree.map(np.testing.assert_array_equal, after, state)

  def test_decay_of_the_stored_advantage(self):
    batch = helpers.token_batch(seed=1)
    found, _, _ = prepare([advantages.self_imitation_replay(decay=0.9)], batch)
    factor = np.where(np.asarray(batch.imitated_B), 0.9, 1.0)[:, None]
    np.testing.assert_allclose(found, factor * np.where(np.asarray(batch.mask_BxT), np.asarray(batch.advantage_BxT), 0.0), rtol=1e-6)

  @pytest.mark.parametrize('hyper', [{'decay': 0.0}, {'decay': 1.5}, {'history': 0}])
  def test_bad_input(self, hyper):
    with pytest.raises(UserError, match='is outside'):
      advantages.self_imitation_replay(**hyper)
