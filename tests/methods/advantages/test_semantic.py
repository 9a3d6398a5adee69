"""SEED-GRPO: the card's numbers, a loop over prompts, its shapes and limits."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from entropy_jax import objective
from entropy_jax.methods import advantages, surrogates
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

BATCH = helpers.token_batch(seed=3, B=24)
HALF = np.array([1, 0] * 4, np.float32)


@functools.cache
def compiled(hyper):
  return jax.jit(functools.partial(advantages.seed_grpo.function, **dict(hyper)))


def seed_grpo(return_B, answer_B, group_B=None, logp_BxT=None, mask_BxT=None, **hyper):
  B = len(return_B)
  logp_BxT = np.zeros((B, 1), np.float32) if logp_BxT is None else logp_BxT
  mask_BxT = np.ones(np.shape(logp_BxT), bool) if mask_BxT is None else mask_BxT
  group_B = np.zeros(B, np.int32) if group_B is None else group_B
  a, metrics = compiled(tuple(hyper.items()))(
    jnp.asarray(return_B, jnp.float32), jnp.asarray(answer_B, jnp.int32), jnp.asarray(logp_BxT), jnp.asarray(mask_BxT), jnp.asarray(group_B)
  )
  return np.asarray(a), {key: float(value) for key, value in metrics.items()}


def by_counts(*counts, **hyper):
  """(advantage of a success over Dr.GRPO's .5, semantic entropy) with four of eight right and answers in such clusters."""
  a, metrics = seed_grpo(HALF, np.repeat(np.arange(len(counts)), counts), **hyper)
  return a[0] / 0.5, metrics['semantic_entropy']


class TestSeedGrpo:
  @pytest.mark.parametrize(
    ('counts', 'unweighted', 'shannon'),
    [
      ((8,), 0.0, 0.0),
      ((1,) * 8, math.log(8), math.log(8)),
      ((7, 1), 1.106486, 0.376770),
      ((4, 4), math.log(2), math.log(2)),
      ((5, 1, 1, 1), 1.677082, 1.073543),
    ],
  )
  def test_card_values(self, counts, unweighted, shannon):
    for estimator, entropy in (('unweighted', unweighted), ('shannon', shannon)):
      factor, found = by_counts(*counts, alpha=1.0, estimator=estimator)
      np.testing.assert_allclose(found, entropy, rtol=2e-6, atol=1e-7)
      np.testing.assert_allclose(factor, 1 - entropy / 2.079442, rtol=1e-5, atol=1e-6)
    # the paper's alpha keeps the factor in [.98, 1]
    np.testing.assert_allclose(by_counts(*counts)[0], 1 - 0.02 * unweighted / 2.079442, rtol=1e-6)

  @pytest.mark.parametrize(
    ('hyper', 'f'),
    [({'shape': 'exponential'}, lambda x: math.exp(-x)), ({'shape': 'focal', 'gamma': 3.0}, lambda x: (1 - x) ** 3)],
  )
  def test_other_shapes(self, hyper, f):
    np.testing.assert_allclose(by_counts(4, 4, alpha=0.6, **hyper)[0], f(0.6 / 3), rtol=1e-5)  # ln 2 / ln 8 = 1/3

  @pytest.mark.parametrize('probability', ['frequency', 'likelihood'])
  def test_loop(self, probability):
    reward, group, answer = (np.asarray(x) for x in (BATCH.reward_B, BATCH.group_B, BATCH.answer_B))
    mask, logp = np.asarray(BATCH.mask_BxT), np.asarray(BATCH.old_logp_BxT)
    actual, _ = seed_grpo(reward, answer, group, np.where(mask, logp, np.nan), mask, alpha=0.5, probability=probability)
    total = np.where(mask, logp, 0).sum(1)
    for prompt in set(group.tolist()):
      rows = np.flatnonzero(group == prompt)
      found = {}
      for i in rows:
        found.setdefault(('none', i) if answer[i] < 0 else int(answer[i]), []).append(i)
      if probability == 'frequency':
        p = np.array([len(i) for i in found.values()]) / len(rows)
      else:
        p = scipy.special.softmax([scipy.special.logsumexp(total[i]) for i in found.values()])
      entropy = -np.log(p).mean()
      factor = max(1 - 0.5 * entropy / math.log(len(rows)), 0) if len(rows) > 1 else 1
      centred = reward[rows] - (reward[rows].mean() if len(rows) > 1 else 0)
      np.testing.assert_allclose(actual[rows], centred * factor, rtol=1e-4, atol=1e-5)

  def test_alpha_0_is_dr_grpo(self):
    expected = jax.jit(advantages.dr_grpo.function)(BATCH.reward_B, BATCH.group_B)
    np.testing.assert_array_equal(seed_grpo(BATCH.reward_B, BATCH.answer_B, BATCH.group_B, alpha=0.0)[0], expected)

  def test_keeps_sums_and_signs(self):
    group = np.asarray(BATCH.group_B)
    plain = np.asarray(jax.jit(advantages.dr_grpo.function)(BATCH.reward_B, BATCH.group_B))
    a, _ = seed_grpo(BATCH.reward_B, BATCH.answer_B, group, alpha=0.99)
    np.testing.assert_array_equal(np.sign(a), np.sign(plain))
    several = [g for g in set(group.tolist()) if np.sum(g == group) > 1]
    assert len(several) > 3
    for prompt in several:
      assert abs(a[prompt == group].sum()) < 1e-5

  @pytest.mark.parametrize('shape', ['linear', 'focal', 'exponential'])
  def test_never_turns_around(self, shape):
    # the likelihood of one answer is e^-300 of the other's: unweighted SE = 150 nats, far beyond ln 2
    logp = np.array([[0.0], [-300.0]], np.float32)
    a, metrics = seed_grpo([1, 0], [0, 1], logp_BxT=logp, alpha=1.0, shape=shape, probability='likelihood')
    np.testing.assert_allclose(metrics['semantic_entropy'], 150, rtol=1e-5)
    np.testing.assert_allclose(a, [0, 0], atol=1e-6)

  @pytest.mark.parametrize('value', [0.0, 0.1])
  def test_equal_rewards_are_exactly_zero(self, value):
    np.testing.assert_array_equal(seed_grpo(np.full(8, value), np.arange(8))[0], np.zeros(8))

  def test_needs_answers(self):
    chain = objective.chain(advantages.seed_grpo(), surrogates.reinforce())
    with pytest.raises(UserError, match='seed_grpo reads answer_B, which this run does not provide'):
      chain.prepare(chain.init(BATCH), BATCH.replace(answer_B=None))

  def test_bad_hyper_parameters(self):
    with pytest.raises(UserError, match='alpha=-1 is outside'):
      advantages.seed_grpo(alpha=-1)
    with pytest.raises(UserError, match="Did you mean 'linear'"):
      advantages.seed_grpo(shape='liner')
