"""UCAS: the card's numbers, a loop over responses and tokens, limits, and what its statistics are."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective
from entropy_jax.methods import advantages, surrogates
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

STATS = ('self_confidence', 'log_normalizer')
BATCH = helpers.token_batch(seed=3, B=24, old_stats=STATS)
CARD_R, CARD_C = [1, 1, 0, 0], np.array([[3.0], [1.0], [1.0], [3.0]])


@functools.cache
def compiled(name, hyper):
  return jax.jit(functools.partial(getattr(advantages, name).function, **dict(hyper)))


def ucas(return_B, confidence_BxT, logp_BxT=None, normalizer_BxT=None, mask_BxT=None, group_B=None, **hyper):
  shape = np.shape(confidence_BxT)
  mask_BxT = np.ones(shape, bool) if mask_BxT is None else mask_BxT
  zeros = np.zeros(shape, np.float32)
  group_B = np.zeros(len(return_B), np.int32) if group_B is None else group_B
  floats = [zeros if x is None else x for x in (confidence_BxT, normalizer_BxT, logp_BxT)]
  arrays = [jnp.asarray(x, jnp.float32) for x in (return_B, *floats)]
  a, metrics = compiled('ucas', tuple(hyper.items()))(*arrays, jnp.asarray(mask_BxT), jnp.asarray(group_B))
  return np.asarray(a), {key: float(value) for key, value in metrics.items()}


class TestUcas:
  def test_card_values(self):
    # A = +-.866024, z = +-1 / (sqrt(4/3) + 1e-6) = +-.866025: .866024 e^(-.25 .866025), e^(+.25 ...), -.866024 e^(-.35 ...), e^(+.35 ...)
    a, _ = ucas(CARD_R, CARD_C, token_penalty=0.0)
    np.testing.assert_allclose(a[:, 0], [0.697433, 1.075369, -0.639575, -1.172650], rtol=2e-6)

  def test_token_penalty(self):
    # logits -4, -2, -3, -1 over [0, 1]: 0, 2/3, 1/3, 1
    plain, _ = ucas(CARD_R, CARD_C, token_penalty=0.0)
    logp, normalizer = np.array([[-5.0], [-3], [-2], [-1.5]]), np.array([[1.0], [1], [-1], [0.5]])
    paid, _ = ucas(CARD_R, CARD_C, logp, normalizer)
    np.testing.assert_allclose(paid, plain - 0.05 * np.array([[0], [2 / 3], [1 / 3], [1]]), rtol=1e-5)
    # by log-probability: -5, -3, -2, -1.5 over [0, 1]: 0, 4/7, 6/7, 1
    paid, _ = ucas(CARD_R, CARD_C, logp, normalizer, score='logp')
    np.testing.assert_allclose(paid, plain - 0.05 * np.array([[0], [4 / 7], [6 / 7], [1]]), rtol=1e-5)

  @pytest.mark.parametrize('reduce', ['mean', 'sum'])
  @pytest.mark.parametrize('scale', ['group', 'none'])
  def test_loop(self, reduce, scale):
    mask, group, reward = (np.asarray(x) for x in (BATCH.mask_BxT, BATCH.group_B, BATCH.reward_B))
    mask = mask.copy()
    mask[5] = False  # a response without a token has no confidence
    s, n, lp = (np.asarray(x, np.float64) for x in (*(BATCH.old_stats[name] for name in STATS), BATCH.old_logp_BxT))
    garbage = lambda x: np.where(mask, x, np.nan)
    actual, _ = ucas(reward, garbage(s), garbage(lp), garbage(n), mask, group, reduce=reduce, scale=scale)
    logit = (lp + n)[mask]
    low, high = logit.min(), logit.max()
    over = np.mean if reduce == 'mean' else np.sum
    confidence = np.array([over(row[m]) if m.any() else np.nan for row, m in zip(s, mask, strict=True)])
    for i, prompt in enumerate(group):
      rows = np.flatnonzero(prompt == group)
      r, c = reward[rows].astype(np.float64), confidence[[j for j in rows if mask[j].any()]]
      base, z = reward[i], 0.0
      if len(rows) > 1:
        base = (reward[i] - r.mean()) / (r.std(ddof=1) + 1e-6 if scale == 'group' else 1)
      if len(c) > 1:
        z = (confidence[i] - c.mean()) / (c.std(ddof=1) + 1e-6 if scale == 'group' else 1)
      b = base * math.exp(-0.25 * z if base > 0 else 0.35 * z) if mask[i].any() else 0
      for t in np.flatnonzero(mask[i]):
        expected = b - 0.05 * (lp[i, t] + n[i, t] - low) / (high - low)
        np.testing.assert_allclose(actual[i, t], max(expected, 0) if b > 0 else expected, rtol=2e-4, atol=2e-5)
    assert not actual[~mask].any()

  @pytest.mark.parametrize(('scale', 'parent'), [('group', 'grpo'), ('none', 'dr_grpo')])
  def test_without_shaping_it_is_its_parent(self, scale, parent):
    a, _ = ucas(
      BATCH.reward_B, BATCH.old_stats['self_confidence'], BATCH.old_logp_BxT, None, None, BATCH.group_B,
      beta_positive=0.0, beta_negative=0.0, token_penalty=0.0, scale=scale,
    )  # fmt: skip
    expected = compiled(parent, ())(BATCH.reward_B, BATCH.group_B)
    np.testing.assert_allclose(a, np.broadcast_to(np.asarray(expected)[:, None], a.shape), rtol=1e-6)

  def test_equal_rewards_are_pushed_down(self):
    # A = 0 for all, so each token gets -.05 u, u over [0, 1]
    a, _ = ucas(np.ones(4), CARD_C, np.array([[-4.0], [-3], [-2], [0]]))
    np.testing.assert_allclose(a[:, 0], [0, -0.0125, -0.025, -0.05], rtol=1e-6)
    np.testing.assert_allclose(ucas(np.ones(4), CARD_C)[0], np.full((4, 1), -0.025), rtol=1e-6)  # all tokens alike: u = 1/2

  def test_successes_never_go_below_zero(self):
    a, _ = ucas(CARD_R, CARD_C, np.array([[0.0], [-4], [0], [-4]]), token_penalty=1.0)
    np.testing.assert_allclose(a[:2, 0], [0.0, 1.075369], rtol=1e-5)  # .697 - 1 < 0
    np.testing.assert_allclose(a[2:, 0], [-1.639575, -1.172650], rtol=1e-5)

  def test_hesitant_successes_count_more(self):
    a, _ = ucas([1, 1, 1, 0, 0, 0], np.array([[1.0], [2], [3], [1], [2], [3]]), token_penalty=0.0)
    assert a[0] > a[1] > a[2] > 0 > a[3] > a[4] > a[5]

  def test_a_sum_of_confidence_follows_the_length(self):
    # equal confidence per token, lengths 1 and 3: the mean tells nothing apart, the sum does
    mask = np.array([[True, False, False], [True, True, True]] * 2)
    mean = ucas([1, 1, 0, 0], np.full((4, 3), 2.0), mask_BxT=mask, token_penalty=0.0)[0][:, 0]
    np.testing.assert_allclose(mean, [0.866024, 0.866024, -0.866024, -0.866024], rtol=1e-5)
    total = ucas([1, 1, 0, 0], np.full((4, 3), 2.0), mask_BxT=mask, token_penalty=0.0, reduce='sum')[0][:, 0]
    assert total[0] > total[1] > 0 > total[2] > total[3]

  def test_large_differences_stay_finite(self):
    a, metrics = ucas(CARD_R, 500 * CARD_C, scale='none')
    assert np.isfinite(a).all()
    np.testing.assert_allclose(metrics['mean_scale'], math.exp(20) / 2, rtol=1e-5)

  def test_reads_the_behaviour_policy(self):
    transform = advantages.ucas()
    assert {(s.name, s.of) for s in transform.stats} == {(name, 'behaviour') for name in STATS}
    z = jnp.array([2.0, 0.0, -1.0])
    by_name = {s.name: float(s.fn(z)) for s in transform.stats}
    # ln(e^2 + 1 + e^-1) = 2.169846, minus the mean 1/3
    np.testing.assert_allclose([by_name[name] for name in STATS], [1.836513, 2.169846], rtol=1e-6)
    chain = objective.chain(transform, surrogates.reinforce())
    prepared, _, _ = jax.jit(chain.prepare)(chain.init(BATCH), BATCH.replace(token_reward_BxT=None))
    stats = BATCH.old_stats
    expected, _ = ucas(
      BATCH.reward_B, stats['self_confidence'], BATCH.old_logp_BxT, stats['log_normalizer'], BATCH.mask_BxT, BATCH.group_B
    )
    np.testing.assert_allclose(prepared.advantage_BxT, expected, rtol=1e-5, atol=1e-6)

  def test_bad_hyper_parameters(self):
    with pytest.raises(UserError, match=r'token_penalty=-0\.1 is outside'):
      advantages.ucas(token_penalty=-0.1)
    with pytest.raises(UserError, match="reduce='max' is not one of mean, sum"):
      advantages.ucas(reduce='max')
