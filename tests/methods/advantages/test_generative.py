"""ProGRPO: the card's numbers, a loop over responses as oracle, what is left alone, and the sign of the shift."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.methods import advantages
from entropy_jax.methods.advantages import generative
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

LOGP = np.log([[0.9, 0.9, 0.9, 0.2, 0.5]]).astype(np.float32)


@functools.cache
def compiled(**hyper):
  return jax.jit(functools.partial(advantages.progrpo.function, **hyper))


def progrpo(advantage, p, reward, group=None, **hyper):
  """Responses of one token, filled up to six with empty ones of another group, so that one compilation serves all."""
  num = len(p)
  fill = lambda x, value, dtype: np.pad(np.asarray(x, dtype), (0, 6 - num), constant_values=value)
  group = fill(np.zeros(num) if group is None else group, 99, np.int32)
  columns = fill(advantage, 0, np.float32)[:, None], np.log(fill(p, 1, np.float32))[:, None]
  mask = fill(np.ones(num), False, bool)[:, None]
  value, metrics = compiled(**hyper)(*columns, fill(reward, 0, np.float32), group, mask)
  return np.asarray(value)[:num, 0], {k: float(v) for k, v in metrics.items()}


class TestLeastProbableConfidence:
  confidence = staticmethod(jax.jit(generative.least_probable_confidence, static_argnames='fraction'))

  def test_card_values(self):
    # the two least probable of five: sqrt(.2 * .5); all five: (.9^3 * .2 * .5)^(1/5)
    one = np.ones((1, 5), bool)
    np.testing.assert_allclose(self.confidence(LOGP, one, fraction=0.4), [0.316228], rtol=1e-5)
    np.testing.assert_allclose(self.confidence(LOGP, one, fraction=1.0), [0.592305], rtol=1e-5)

  def test_at_least_one_token(self):
    np.testing.assert_allclose(self.confidence(LOGP, np.ones((1, 5), bool), fraction=0.01), [0.2], rtol=1e-6)

  def test_masked_tokens_and_empty_responses(self):
    logp = np.concatenate([LOGP, np.full((1, 5), np.nan, np.float32)])
    mask = np.array([[True, True, True, False, True], [False] * 5])
    np.testing.assert_allclose(self.confidence(logp, mask, fraction=0.25), [0.5, 1.0], rtol=1e-6)


class TestProgrpo:
  def oracle(self, batch, coef=0.3, fraction=0.2, prompt=None, skip_all_correct=False):
    mask, group, reward = (np.asarray(x) for x in (batch.mask_BxT, batch.group_B, batch.reward_B))
    confidence = []
    for b in range(len(mask)):
      logp = sorted(np.asarray(batch.old_logp_BxT, np.float64)[b][mask[b]])
      k = max(1, math.floor(fraction * len(logp) + 1e-9))
      confidence.append(math.exp(np.mean(logp[:k])))
    result = np.where(mask, np.asarray(batch.advantage_BxT, np.float64), 0.0)
    for b in range(len(mask)):
      same = [j for j in range(len(mask)) if group[j] == group[b]]
      if all(reward[j] <= 0 for j in same) or (skip_all_correct and all(reward[j] > 0 for j in same)):
        continue
      baseline = np.mean([confidence[j] for j in same]) if prompt is None else prompt
      result[b, mask[b]] += coef * (baseline - confidence[b])
    return result

  @pytest.mark.parametrize('hyper', [{}, {'prompt': 0.5, 'fraction': 0.5}, {'coef': 1.0, 'fraction': 1.0, 'skip_all_correct': True}])
  def test_against_a_loop(self, hyper):
    batch = helpers.token_batch(seed=2, B=12, T=8)
    dirty = helpers.with_garbage(batch)
    value, _ = compiled(**hyper)(dirty.advantage_BxT, dirty.old_logp_BxT, dirty.reward_B, dirty.group_B, dirty.mask_BxT)
    np.testing.assert_allclose(value, self.oracle(batch, **hyper), rtol=1e-5, atol=1e-6)

  def test_by_hand(self):
    # confidences .9 and .1, mean .5: +-.3 * .4
    value, metrics = progrpo([0.5, -0.5], [0.9, 0.1], [1.0, 0.0])
    np.testing.assert_allclose(value, [0.38, -0.38], rtol=1e-5)
    np.testing.assert_allclose(metrics['confidence'], 0.5, rtol=1e-6)
    assert metrics['reweighted_fraction'] == 1.0

  def test_constant_prompt_confidence(self):
    value, _ = progrpo([0.5, -0.5], [0.9, 0.1], [1.0, 0.0], prompt=0.25)
    np.testing.assert_allclose(value, [0.5 + 0.3 * (0.25 - 0.9), -0.5 + 0.3 * (0.25 - 0.1)], rtol=1e-5)

  def test_groups_without_a_correct_response_are_left_alone(self):
    value, metrics = progrpo([0.0, 0.0, 0.5, -0.5], [0.9, 0.1, 0.9, 0.1], [0.0, 0.0, 1.0, 0.0], group=[3, 3, 8, 8])
    np.testing.assert_array_equal(value[:2], [0.0, 0.0])
    assert value[2] < 0.5 and metrics['reweighted_fraction'] == 0.5

  def test_all_correct_groups_become_active_unless_told_not_to(self):
    np.testing.assert_allclose(progrpo([0.0, 0.0], [0.9, 0.1], [1.0, 1.0])[0], [-0.12, 0.12], rtol=1e-5)
    np.testing.assert_array_equal(progrpo([0.0, 0.0], [0.9, 0.1], [1.0, 1.0], skip_all_correct=True)[0], [0.0, 0.0])

  def test_no_coefficient_or_equal_confidence_is_the_base(self):
    base = np.float32([0.5, -0.25, -0.25])
    np.testing.assert_array_equal(progrpo(base, [0.9, 0.3, 0.1], [1.0, 0.0, 0.0], coef=0.0)[0], base)
    np.testing.assert_array_equal(progrpo(base, [0.3, 0.3, 0.3], [1.0, 0.0, 0.0])[0], base)
    # a constant c(q) shifts all alike: .3 (.5 - .3)
    np.testing.assert_allclose(progrpo(base, [0.3, 0.3, 0.3], [1.0, 0.0, 0.0], prompt=0.5)[0] - base, 0.06, rtol=1e-4)

  def test_decreasing_in_confidence_within_a_reward_class_and_bounded(self):
    p = np.linspace(0.05, 0.95, 6)
    value, _ = progrpo([0.4] * 6, p, [1.0] * 6, coef=0.7)
    assert np.all(np.diff(value) < 0) and np.all(np.abs(value - 0.4) < 0.7)
    np.testing.assert_allclose(value.sum(), 6 * 0.4, rtol=1e-5)

  def test_empty_responses_do_not_count_in_the_mean(self):
    mask = np.arange(6)[:, None] < 2
    logp = np.log(np.float32([[0.9], [0.1], [1.0], [1.0], [1.0], [1.0]]))
    advantage, reward = np.float32([[0.5], [-0.5], [7.0], [7.0], [7.0], [7.0]]), np.float32([1.0, 0, 0, 0, 0, 0])
    value, _ = compiled()(advantage, logp, reward, np.zeros(6, np.int32), mask)
    np.testing.assert_allclose(value[:, 0], [0.38, -0.38, 0, 0, 0, 0], rtol=1e-5)

  def test_threshold_for_rewards_that_are_never_zero(self):
    # rewards of -1 and 1: the group without a 1 has nothing correct
    np.testing.assert_array_equal(progrpo([0.0, 0.0], [0.9, 0.1], [-1.0, -1.0])[0], [0.0, 0.0])
    np.testing.assert_array_equal(progrpo([0.0, 0.0], [0.9, 0.1], [0.3, 0.2], threshold=0.5)[0], [0.0, 0.0])

  def test_bad_input(self):
    with pytest.raises(UserError, match=r'^progrpo: fraction=0 is outside \(0, 1\]'):
      advantages.progrpo(fraction=0)
    with pytest.raises(UserError, match=r'^progrpo: prompt=1.5 is outside'):
      advantages.progrpo(prompt=1.5)
    assert jnp.isfinite(progrpo([0.5], [0.9], [1.0])[0]).all()
