"""InSight: beliefs and information against scipy in float64, the card's numbers, and what each score chooses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from entropy_jax.methods.selection import insight
from entropy_jax.types import UserError

gain = jax.jit(insight.information_gain, static_argnames='num_rollouts')
choose = jax.jit(insight.choose_prompts, static_argnums=2, static_argnames=('num_candidates', 'score', 'num_rollouts', 'eta', 'mu'))


def pair(a, b):
  return jnp.float32(a), jnp.float32(b)


def plain_gain(a, b, num_rollouts):
  """The definition in float64: prior entropy minus the expected posterior entropy."""
  s = np.arange(num_rollouts + 1)
  weight = scipy.stats.betabinom(num_rollouts, a, b).pmf(s)
  after = [scipy.stats.beta(a + i, b + num_rollouts - i).entropy() for i in s]
  return scipy.stats.beta(a, b).entropy() - np.dot(weight, after)


class TestBetaEntropy:
  def test_scipy(self):
    a = np.array([0.3, 1, 2, 5, 7.99, 8.01, 50, 300, 3000])
    b = np.array([0.4, 1, 2, 5, 30, 0.7, 50, 20, 9000])
    want = scipy.stats.beta(a, b).entropy()
    np.testing.assert_allclose(jax.jit(insight.beta_entropy)(jnp.array(a, jnp.float32), jnp.array(b, jnp.float32)), want, atol=3e-6)

  def test_gaussian_for_huge_counts(self):
    # H -> ln sqrt(2 pi e variance); at a + b = 4e7 the direct formula subtracts terms of 1e8 nats
    a, b = 1e7, 3e7
    variance = 0.25 * 0.75 / (a + b + 1)
    np.testing.assert_allclose(insight.beta_entropy(*pair(a, b)), 0.5 * np.log(2 * np.pi * np.e * variance), rtol=1e-6)


class TestInformationGain:
  @pytest.mark.parametrize(
    ('a', 'b', 'one', 'eight'),
    [
      (1, 1, 0.193147, 0.766390),  # ln 2 - 1 / 2 for one rollout
      (5, 5, 0.047512, 0.293033),
      (50, 50, 0.004975, 0.038479),
      (1, 9, 0.042186, 0.263367),
      (9, 1, 0.042186, 0.263367),
    ],
  )
  def test_card(self, a, b, one, eight):
    np.testing.assert_allclose([gain(*pair(a, b), num_rollouts=1), gain(*pair(a, b))], [one, eight], atol=1e-6)

  @pytest.mark.parametrize('num_rollouts', [1, 2, 8, 20])
  def test_definition(self, num_rollouts):
    a, b = np.array([0.3, 1, 2.5, 12, 40]), np.array([0.4, 6, 2.5, 3, 7])
    want = [plain_gain(x, y, num_rollouts) for x, y in zip(a, b)]
    got = gain(jnp.array(a, jnp.float32), jnp.array(b, jnp.float32), num_rollouts=num_rollouts)
    np.testing.assert_allclose(got, want, rtol=5e-6)

  def test_large_counts(self):
    # I = 1 / (2 (n + 1)) to first order for one rollout; K rollouts add up while K << n. The definition in float32 would be noise here.
    for n in (1e3, 1e5, 1e7):
      for phi in (0.5, 0.1):
        got = gain(*pair(phi * n, (1 - phi) * n), num_rollouts=1)
        np.testing.assert_allclose(got, 1 / (2 * (n + 1)), rtol=2 / (phi * n) + 1e-6)
    np.testing.assert_allclose(gain(*pair(5e6, 5e6)), 8 / 2e7, rtol=1e-5)

  def test_positive_falling_in_evidence_growing_in_rollouts(self):
    n = np.array([0.5, 2, 10, 100, 1e4, 1e6], np.float32)
    for phi in (0.5, 0.2):
      one, eight = (np.array(gain(phi * n, (1 - phi) * n, num_rollouts=k)) for k in (1, 8))
      assert np.all(one > 0) and np.all(np.diff(one) < 0) and np.all(np.diff(eight) < 0) and np.all(eight > one)

  def test_exchange_of_success_and_failure(self):
    a, b = jnp.array([0.3, 2.0, 70.0]), jnp.array([5.0, 2.0, 1.5])
    np.testing.assert_allclose(gain(a, b), gain(b, a), rtol=1e-6)

  def test_gradient(self):
    grad = jax.jit(jax.grad(lambda a: insight.information_gain(a, jnp.float32(3.0))))(jnp.float32(2.0))
    np.testing.assert_allclose(grad, (plain_gain(2.001, 3, 8) - plain_gain(1.999, 3, 8)) / 0.002, rtol=1e-3)

  @pytest.mark.parametrize('num_rollouts', [0, 2.5, True])
  def test_refuses(self, num_rollouts):
    with pytest.raises(UserError, match=f'insight: num_rollouts={num_rollouts!r} is no number'):
      insight.information_gain(*pair(1, 1), num_rollouts=num_rollouts)


class TestExpectedVarianceReduction:
  def test_card(self):
    assert float(insight.expected_variance_reduction(*pair(1, 1), num_rollouts=1)) == pytest.approx(0.027778, abs=5e-7)
    # (2, 3), K = 8: 8 * .4 * .6 / (6 * 13) = .024615
    assert float(insight.expected_variance_reduction(*pair(2, 3))) == pytest.approx(0.0246, abs=5e-5)

  def test_enumerated(self):
    a, b, K = 2.0, 3.0, 5
    s = np.arange(K + 1)
    after = np.dot(scipy.stats.betabinom(K, a, b).pmf(s), [scipy.stats.beta(a + i, b + K - i).var() for i in s])
    np.testing.assert_allclose(
      insight.expected_variance_reduction(*pair(a, b), num_rollouts=K), scipy.stats.beta(a, b).var() - after, rtol=1e-5
    )


class TestDifficultyWeight:
  def test_formula(self):
    # phi = .2: .16 exp(-3 * .09)
    np.testing.assert_allclose(insight.difficulty_weight(*pair(1, 4)), 0.16 * np.exp(-0.27), rtol=1e-6)
    np.testing.assert_allclose(insight.difficulty_weight(*pair(1, 4), eta=0.0), 0.16, rtol=1e-6)

  def test_stated_mu_prefers_easy_prompts(self):
    # the paper's mu = 3 with eta = 3: argmax phi about .93
    phi = np.linspace(0.01, 0.99, 981, dtype=np.float32)
    assert phi[np.argmax(insight.difficulty_weight(phi, 1 - phi, mu=3.0))] == pytest.approx(0.93, abs=0.01)
    assert phi[np.argmax(insight.difficulty_weight(phi, 1 - phi))] == pytest.approx(0.5, abs=2e-3)

  @pytest.mark.parametrize('kwargs', [{}, {'eta': 0.0, 'mu': 0.9}])
  def test_symmetric(self, kwargs):
    np.testing.assert_allclose(
      insight.difficulty_weight(*pair(2, 7), **kwargs), insight.difficulty_weight(*pair(7, 2), **kwargs), rtol=1e-6
    )


class TestUpdateBeliefs:
  def test_without_forgetting_it_counts(self):
    beliefs = insight.initial_beliefs(4)
    beliefs = insight.update_beliefs(beliefs, jnp.array([2, 0]), jnp.array([5, 0]), 8)
    beliefs = insight.update_beliefs(beliefs, jnp.array([2]), jnp.array([1]), jnp.array([2]))
    np.testing.assert_array_equal(beliefs.a_N, [1, 1, 7, 1])
    np.testing.assert_array_equal(beliefs.b_N, [9, 1, 5, 1])
    np.testing.assert_array_equal(beliefs.visits_N, [1, 0, 2, 0])

  def test_forgetting(self):
    beliefs = insight.Beliefs(jnp.array([11.0]), jnp.array([3.0]), jnp.array([4]))
    got = insight.update_beliefs(beliefs, jnp.array([0]), jnp.array([2]), 8, keep=0.75, prior_a=1.0, prior_b=2.0)
    # .75 * 11 + .25 * 1 + 2 and .75 * 3 + .25 * 2 + 6
    np.testing.assert_allclose([got.a_N[0], got.b_N[0]], [10.5, 8.75])

  def test_refuses(self):
    with pytest.raises(UserError, match=r'insight: keep=1\.5 is outside \[0, 1\]'):
      insight.update_beliefs(insight.initial_beliefs(1), jnp.array([0]), jnp.array([0]), 8, keep=1.5)
    with pytest.raises(UserError, match='insight: prior_b=0'):
      insight.initial_beliefs(1, prior_b=0)


class TestScores:
  BELIEFS = insight.Beliefs(jnp.array([1.0, 30.0, 5.0, 1.0, 9.0]), jnp.array([1.0, 30.0, 5.0, 9.0, 1.0]), jnp.zeros(5, jnp.int32))

  def test_insight_is_weight_times_information(self):
    got = insight.scores(self.BELIEFS, jax.random.key(0), mu=0.4, eta=2.0, num_rollouts=3)
    for i, (a, b) in enumerate(zip(self.BELIEFS.a_N, self.BELIEFS.b_N)):
      phi = float(a / (a + b))
      want = phi * (1 - phi) * np.exp(-2 * (phi - 0.4) ** 2) * plain_gain(float(a), float(b), 3)
      np.testing.assert_allclose(got[i], want, rtol=1e-5)

  def test_baselines(self):
    key = jax.random.key(0)
    np.testing.assert_allclose(
      insight.scores(self.BELIEFS, key, score='expected_difficulty'), [0, 0, 0, -0.4, -0.4], atol=1e-7
    )
    np.testing.assert_allclose(insight.scores(self.BELIEFS, key, score='inverse_evidence'), [1 / 2, 1 / 60, 0.1, 0.1, 0.1], rtol=1e-6)

  def test_mopps_draws_from_the_belief(self):
    one = insight.Beliefs(jnp.full(4000, 2.0), jnp.full(4000, 6.0), jnp.zeros(4000, jnp.int32))
    got = np.asarray(insight.scores(one, jax.random.key(1), score='mopps'), np.float64)
    belief = scipy.stats.beta(2, 6)

    def distance_cdf(x):  # of |draw - .5|
      return belief.cdf(0.5 + x) - belief.cdf(0.5 - x)

    assert scipy.stats.kstest(-got, distance_cdf).pvalue > 1e-3

  def test_unknown(self):
    with pytest.raises(UserError, match=r"insight: score='mops' is not one of insight, random, mopps.*Did you mean 'mopps'"):
      insight.scores(self.BELIEFS, jax.random.key(0), score='mops')


class TestChoosePrompts:
  def test_best_first_of_all(self):
    beliefs = TestScores.BELIEFS
    value = np.asarray(insight.scores(beliefs, jax.random.key(0)))
    np.testing.assert_array_equal(choose(beliefs, jax.random.key(3), 3), np.argsort(-value)[:3])

  def test_candidates_are_a_uniform_subset(self):
    # the best prompt of ten is a candidate with probability 4 / 10, and then it is chosen
    beliefs = insight.Beliefs(jnp.full(10, 20.0).at[7].set(1.0), jnp.full(10, 20.0).at[7].set(1.0), jnp.zeros(10, jnp.int32))
    run = jax.jit(jax.vmap(lambda key: insight.choose_prompts(beliefs, key, 2, num_candidates=4)))
    chosen = np.asarray(run(jax.random.split(jax.random.key(0), 2000)))
    assert all(len(set(row)) == 2 for row in chosen)
    assert scipy.stats.binomtest(int(np.sum(chosen[:, 0] == 7)), 2000, 0.4).pvalue > 1e-3
    assert not np.any(chosen[:, 1] == 7)
    others = np.bincount(chosen[chosen != 7], minlength=10)
    assert scipy.stats.chisquare(np.delete(others, 7)).pvalue > 1e-3  # ties: every order is as likely

  def test_sixteen_times_as_many_candidates_by_default(self):
    beliefs = insight.initial_beliefs(64)
    beliefs = beliefs.replace(a_N=beliefs.a_N.at[5].set(0.1), b_N=beliefs.b_N.at[5].set(0.1))  # the least known one
    run = jax.jit(jax.vmap(lambda key: insight.choose_prompts(beliefs, key, 2)[0]))
    found = np.asarray(run(jax.random.split(jax.random.key(0), 600))) == 5
    assert scipy.stats.binomtest(int(found.sum()), 600, 32 / 64).pvalue > 1e-3

  @pytest.mark.parametrize(('num', 'num_candidates'), [(0, None), (4, 3), (2, 6), (6, None)])
  def test_refuses(self, num, num_candidates):
    with pytest.raises(UserError, match=rf'insight: num={num} of num_candidates='):
      insight.choose_prompts(TestScores.BELIEFS, jax.random.key(0), num, num_candidates=num_candidates)

  def test_estimates_more_and_visits_more_than_expected_difficulty(self):
    # 128 prompts of mixed difficulty, 40 rounds of 8 prompts with K = 8 rollouts: mean squared error of the belief's mean, and prompts seen
    truth = jax.random.beta(jax.random.key(9), 0.7 * jnp.ones(128), 0.7 * jnp.ones(128))

    @functools.partial(jax.jit, static_argnames='score')
    def run(key, score):
      def turn(beliefs, key):
        choose_key, roll_key = jax.random.split(key)
        chosen = insight.choose_prompts(beliefs, choose_key, 8, num_candidates=64, score=score)
        correct = jnp.sum(jax.random.uniform(roll_key, (8, 8)) < truth[chosen][:, None], axis=1)
        return insight.update_beliefs(beliefs, chosen, correct, 8), None

      return jax.lax.scan(turn, insight.initial_beliefs(128), jax.random.split(key, 40))[0]

    found = {}
    for score in ('insight', 'expected_difficulty'):
      beliefs = run(jax.random.key(0), score)
      error = np.mean((np.asarray(beliefs.a_N / (beliefs.a_N + beliefs.b_N)) - np.asarray(truth)) ** 2)
      found[score] = (error, int(np.sum(np.asarray(beliefs.visits_N) > 0)))
      assert int(beliefs.visits_N.sum()) == 320
    assert found['insight'][0] < found['expected_difficulty'][0]
    assert found['insight'][1] >= found['expected_difficulty'][1]
