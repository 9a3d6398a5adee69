"""EDGE-GRPO's entropy-driven advantage: the card's numbers, a loop, limits and guards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.methods import advantages
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

BATCH = helpers.token_batch(seed=3, B=24)
CARD_R, CARD_H = [1, 1, 0, 0], np.array([0.2, 0.4, 0.4, 0.6])


@functools.cache
def compiled(name, hyper):
  return jax.jit(functools.partial(getattr(advantages, name).function, **dict(hyper)))


def edge(return_B, entropy_BxT, group_B=None, mask_BxT=None, **hyper):
  entropy_BxT = np.asarray(entropy_BxT, np.float32)
  entropy_BxT = entropy_BxT[:, None] if entropy_BxT.ndim == 1 else entropy_BxT
  mask_BxT = np.ones(entropy_BxT.shape, bool) if mask_BxT is None else mask_BxT
  group_B = np.zeros(len(return_B), np.int32) if group_B is None else group_B
  arrays = jnp.asarray(return_B, jnp.float32), jnp.asarray(entropy_BxT), jnp.asarray(mask_BxT), jnp.asarray(group_B)
  a, metrics = compiled('edge_grpo', tuple(hyper.items()))(*arrays)
  return np.asarray(a), {key: float(value) for key, value in metrics.items()}


class TestEdgeGrpo:
  def test_card_values(self):
    # GRPO +-.5 / (.577350 + 1e-4) = +-.865875; mean h .4: scales 2, 1, 1, 2/3
    a, metrics = edge(CARD_R, CARD_H)
    np.testing.assert_allclose(a, [1.731751, 0.865875, -0.865875, -0.577250], rtol=1e-6)
    np.testing.assert_allclose([metrics['mean_scale'], metrics['max_scale']], [14 / 12, 2], rtol=1e-6)

  @pytest.mark.parametrize('over', ['group', 'batch'])
  def test_loop(self, over):
    mask, group, reward = (np.asarray(x) for x in (BATCH.mask_BxT, BATCH.group_B, BATCH.reward_B))
    mask = mask.copy()
    mask[5] = False  # a response without a token: in its group's reward statistics, not in the mean of entropies
    entropy = np.where(mask, np.asarray(BATCH.old_entropy_BxT), np.nan)
    actual, _ = edge(reward, entropy, group, mask, over=over)
    h = np.array([row[m].mean() if m.any() else np.nan for row, m in zip(entropy, mask, strict=True)])
    for i, prompt in enumerate(group):
      if i == 5:
        continue
      r = reward[prompt == group].astype(np.float64)
      base = (reward[i] - r.mean()) / (r.std(ddof=1) + 1e-4) if len(r) > 1 else reward[i] / (1 + 1e-4)
      mean = np.nanmean(h[prompt == group] if over == 'group' else h)
      np.testing.assert_allclose(actual[i], base * mean / h[i], rtol=1e-4, atol=1e-5)

  def test_equal_entropies_are_grpo(self):
    grpo = compiled('grpo', (('epsilon', 1e-4),))(BATCH.reward_B, BATCH.group_B)
    np.testing.assert_allclose(edge(BATCH.reward_B, np.full(24, 0.37), BATCH.group_B)[0], grpo, rtol=1e-6)
    np.testing.assert_allclose(edge(BATCH.reward_B, np.zeros(24), BATCH.group_B)[0], grpo, rtol=1e-6)  # certain responses too

  def test_scale_of_entropy_does_not_matter(self):
    np.testing.assert_allclose(edge(CARD_R, 7 * CARD_H)[0], edge(CARD_R, CARD_H)[0], rtol=1e-6)

  def test_within_a_reward_certainty_raises_the_size(self):
    a, _ = edge([1, 1, 1, 0, 0, 0], [0.1, 0.5, 0.9, 0.1, 0.5, 0.9])
    assert a[0] > a[1] > a[2] > 0 > a[5] > a[4] > a[3]

  @pytest.mark.parametrize('value', [0.0, 0.1, 1.0])
  def test_equal_rewards_are_exactly_zero(self, value):
    np.testing.assert_array_equal(edge(np.full(4, value), CARD_H)[0], np.zeros(4))

  def test_variance_within_a_mixed_group_rises(self):
    # the claim that it makes advantages more diverse, on the card's group: 1.03 against .75
    assert np.var(edge(CARD_R, CARD_H)[0]) > 1.3 * np.var(compiled('grpo', ())(jnp.array(CARD_R, jnp.float32), jnp.zeros(4, jnp.int32)))

  def test_a_certain_response_is_finite_and_can_be_clamped(self):
    h = [0.0, 0.4, 0.4, 0.4]
    a, metrics = edge(CARD_R, h)
    np.testing.assert_allclose(metrics['max_scale'], 0.3 / 1e-8, rtol=1e-5)
    assert np.isfinite(a).all()
    a, metrics = edge(CARD_R, h, clamp=10.0)
    np.testing.assert_allclose(a, 0.865875 * np.array([10, 0.75, -0.75, -0.75]), rtol=1e-5)
    # and from below: entropies (.01, .01, .01, 9.97) have the mean 2.5 and a scale of .25
    np.testing.assert_allclose(edge(CARD_R, [0.01, 0.01, 0.01, 9.97], clamp=2.0)[0], 0.865875 * np.array([2, 2, -2, -0.5]), rtol=1e-5)

  def test_bad_hyper_parameters(self):
    with pytest.raises(UserError, match=r'clamp=1 is outside \(1, inf\)'):
      advantages.edge_grpo(clamp=1)
    with pytest.raises(UserError, match='Did you mean'):
      advantages.edge_grpo(over='groups')
