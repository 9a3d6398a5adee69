"""QAE: the card's numbers, the definition by a loop in fractions, its limits; and what every outcome-only advantage has in common."""

import fractions
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.methods import advantages
from entropy_jax.ops import categorical
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

BATCH = helpers.token_batch(seed=3, B=24)
GROUP, REWARD = np.asarray(BATCH.group_B), np.round(np.asarray(BATCH.reward_B), 1)


@functools.cache
def compiled(name, hyper):
  return jax.jit(functools.partial(getattr(advantages, name).function, **dict(hyper)))


def qae(return_B, group_B=None, **hyper):
  group_B = np.zeros(len(return_B), np.int32) if group_B is None else group_B
  advantage_B, metrics = compiled('qae', tuple(hyper.items()))(jnp.asarray(return_B, jnp.float32), jnp.asarray(group_B))
  return np.asarray(advantage_B), {key: float(value) for key, value in metrics.items()}


def of_eight(num_right, **hyper):
  """(A of a success, A of a failure) in a group of eight with so many successes."""
  a, _ = qae([1.0] * num_right + [0.0] * (8 - num_right), **hyper)
  assert len(set(a[:num_right].tolist())) == 1 and len(set(a[num_right:].tolist())) == 1
  return [float(a[0]), float(a[-1])]


class TestQae:
  @pytest.mark.parametrize(
    ('num_right', 'quantile', 'expected'),
    [
      (1, 0.4, (2.8284, 0.0)),  # std = sqrt(1 7 / 8 / 7) = .353553
      (4, 0.4, (1.8708, 0.0)),  # std = sqrt(4 4 / 8 / 7) = .534522
      (5, 0.4, (0.0, -1.9322)),  # std = sqrt(5 3 / 8 / 7) = .517549
      (7, 0.4, (0.0, -2.8284)),
      (4, 0.6, (0.0, -1.8708)),
      (3, 0.6, (1.9322, 0.0)),  # 5 wrong >= ceil(4.8)
    ],
  )
  def test_card_values(self, num_right, quantile, expected):
    np.testing.assert_allclose(of_eight(num_right, quantile=quantile), expected, atol=5e-5)

  def test_released_interpolation(self):
    # 5 of 8, K = .4: place 2.8 between a failure and a success, b = .8: (.2, -.8) / .517549. 3 of 8, K = .6: place 4.2, b = .2.
    np.testing.assert_allclose(of_eight(5, method='linear'), (0.38644, -1.54575), rtol=1e-4)
    np.testing.assert_allclose(of_eight(3, method='linear', quantile=0.6), (1.54575, -0.38644), rtol=1e-4)

  def test_quantile_at_the_success_rate(self):
    # p = 1 - K exactly: #wrong = 3 = ceil(.6 5), so b = 0, though 1 - .6 > .4 in floats
    a, _ = qae([1.0, 1.0, 0.0, 0.0, 0.0], quantile=0.6)
    assert (a[:2] > 0).all() and (a[2:] == 0).all()

  @pytest.mark.parametrize('method', ['lower_inf', 'linear'])
  @pytest.mark.parametrize('quantile', [0.3, 0.5])
  def test_loop(self, method, quantile):
    actual, _ = qae(REWARD, GROUP, quantile=quantile, method=method)
    level = fractions.Fraction(str(quantile))
    for i, prompt in enumerate(GROUP):
      values = np.sort(REWARD[prompt == GROUP].astype(np.float64))
      if len(values) == 1:
        expected = REWARD[i] / (1 + 1e-6)
      else:
        lower = values[math.ceil(level * len(values)) - 1]
        baseline = lower if method == 'lower_inf' else np.quantile(values, quantile)
        expected = (REWARD[i] - baseline) / (values.std(ddof=1) + 1e-6)
      np.testing.assert_allclose(actual[i], expected, rtol=1e-4, atol=1e-5)

  def test_small_and_large_quantiles_keep_one_sign(self):
    for num_right in range(1, 8):
      right, wrong = of_eight(num_right, quantile=0.125)  # K <= 1 / G
      assert right > 0 and wrong == 0
      right, wrong = of_eight(num_right, quantile=0.9)  # K > 1 - 1 / G
      assert right == 0 and wrong < 0

  def test_zero_fraction(self):
    for num_right in range(1, 8):
      a, metrics = qae([1.0] * num_right + [0.0] * (8 - num_right))
      hard = 8 - num_right >= 4  # ceil(.4 8)
      assert metrics['zero_fraction'] == np.mean(a == 0) == (1 - num_right / 8 if hard else num_right / 8)

  def test_weight_of_a_prompt(self):
    # with the population's deviation, (1 / G) sum over successes of A is sqrt(p / (1 - p)) for a hard prompt, else sqrt((1 - p) / p)
    for num_right in range(1, 8):
      p = num_right / 8
      right, wrong = of_eight(num_right)
      population = math.sqrt(8 / 7)
      if 8 - num_right >= 4:
        np.testing.assert_allclose(p * right * population, math.sqrt(p / (1 - p)), rtol=1e-5)
      else:
        np.testing.assert_allclose((1 - p) * -wrong * population, math.sqrt((1 - p) / p), rtol=1e-5)

  def test_ablations_keep_one_sign(self):
    both, _ = qae(REWARD, GROUP)
    np.testing.assert_array_equal(qae(REWARD, GROUP, keep='positive')[0], np.maximum(both, 0))
    np.testing.assert_array_equal(qae(REWARD, GROUP, keep='negative')[0], np.minimum(both, 0))

  def test_no_quantile_is_grpo(self):
    expected = compiled('grpo', ())(jnp.array(REWARD), jnp.array(GROUP))
    np.testing.assert_array_equal(qae(REWARD, GROUP, quantile=None)[0], expected)

  @pytest.mark.parametrize('method', ['lower_inf', 'linear'])
  @pytest.mark.parametrize('value', [0.0, 0.1, 1.0])
  def test_equal_rewards_are_exactly_zero(self, value, method):
    a, metrics = qae(np.full(7, value), method=method, quantile=0.3)
    np.testing.assert_array_equal(a, np.zeros(7))
    assert metrics['zero_fraction'] == 1

  def test_entropy_rises_with_the_baseline_for_the_uncentred_update_alone(self):
    # pi = (.5, .3, .2), R = (1, 0, 0): Delta z = pi (R - b) gives -Cov(ln pi, pi (R - b)), whose slope in b is Cov(ln pi, pi)
    pi, right = jnp.array([0.5, 0.3, 0.2]), jnp.array([1.0, 0.0, 0.0])
    change = lambda b, mean: -float(categorical.covariance(pi, jnp.log(pi), pi * (right - b - mean)))
    np.testing.assert_allclose([change(b, 0.0) for b in (0, 0.5, 1)], [-0.08413, -0.06150, -0.03888], atol=5e-6)
    np.testing.assert_allclose(change(1, 0.0) - change(0, 0.0), 0.045246, atol=5e-6)
    # the softmax's own gradient centres R - b, and b drops out
    np.testing.assert_allclose([change(b, 0.5 - b) for b in (0, 0.5, 1)], [-0.06150] * 3, atol=5e-6)

  @pytest.mark.parametrize('hyper', [{'quantile': 0.0}, {'quantile': 1.0}, {'epsilon': 0.0}, {'method': 'higher'}, {'keep': 'none'}])
  def test_bad_hyper_parameters(self, hyper):
    with pytest.raises(UserError, match=f'{next(iter(hyper))}='):
      advantages.qae(**hyper)


class TestOutcomeOnlyIdentity:
  """Advantages that are functions of a group's binary rewards alone: E[(1 / G) sum_i A_i grad log pi(o_i)] = c grad p, enumerated."""

  PI = np.array([0.5, 0.3, 0.15, 0.05])
  RIGHT = np.array([1.0, 0.0, 1.0, 0.0])

  def advantages_of(self, name, hyper, return_B, group_B):
    if name == 'riskpo':
      # quantiles at failure and success, bundles of one prompt
      fixed = (jnp.arange(len(return_B)), jax.random.key(0), jnp.float32(0.25), jnp.float32(0.75))
      return compiled(name, (('bundle', 1), *hyper))(return_B, group_B, *fixed)[0]
    result = compiled(name, hyper)(return_B, group_B)
    return result[0] if isinstance(result, tuple) else result

  @pytest.mark.parametrize(
    ('name', 'hyper', 'constant'),
    [
      ('dr_grpo', (), 0.75),  # (G - 1) / G
      ('grpo', (), 1.40856),
      ('qae', (('quantile', 0.4),), 1.04874),
      ('qae', (('quantile', 0.6),), 1.40338),
      ('qae', (('quantile', 0.25),), 1.38674),  # K <= 1 / G: successes alone
      ('qae', (('quantile', 0.8),), 1.79538),  # K > 1 - 1 / G: failures alone
      ('pshw', (), None),
      ('riskpo', (), None),
      ('riskpo', (('scale', 'bundle'), ('form', 'released')), None),
    ],
  )
  def test_is_along_the_gradient_of_success(self, name, hyper, constant):
    outcomes = np.array(list(itertools.product(range(4), repeat=4)))  # 256 groups of 4 responses, one token each
    rewards = self.RIGHT[outcomes]
    group_B = jnp.asarray(np.repeat(np.arange(256, dtype=np.int32), 4))
    advantage = np.asarray(self.advantages_of(name, hyper, jnp.asarray(rewards.ravel(), jnp.float32), group_B), np.float64)
    advantage = advantage.reshape(256, 4)
    score = np.eye(4)[outcomes] - self.PI  # d ln pi(o) / d logits
    chance = self.PI[outcomes].prod(axis=1)
    update = np.einsum('n,ni,niv->v', chance, advantage / 4, score)
    p = float(self.PI @ self.RIGHT)  # .65
    # a success's mean score is grad p / p, a failure's -grad p / (1 - p): c = E[(1 / G) sum_i A_i (R_i / p - (1 - R_i) / (1 - p))]
    c = np.sum(chance * np.mean(advantage * np.where(rewards > 0, 1 / p, -1 / (1 - p)), axis=1))
    np.testing.assert_allclose(update, c * self.PI * (self.RIGHT - p), rtol=1e-6, atol=1e-9)
    assert c > 0.1
    if constant is not None:
      np.testing.assert_allclose(c, constant, rtol=1e-5)

  def test_the_same_constants_by_the_binomial(self):
    # k right of 4 with A_right = (1 - b) / s_k and A_wrong = -b / s_k, s_k = sqrt(k (4 - k) / 12)
    p = 0.65
    for quantile, expected in ((0.4, 1.04874), (0.6, 1.40338)):
      c = 0.0
      for k in (1, 2, 3):
        b = 0.0 if 4 - k >= math.ceil(quantile * 4) else 1.0
        s = math.sqrt(k * (4 - k) / 12)
        chance = math.comb(4, k) * p**k * (1 - p) ** (4 - k)
        c += chance * (k / 4 * (1 - b) / s / p + (4 - k) / 4 * b / s / (1 - p))
      np.testing.assert_allclose(c, expected, rtol=1e-5)
