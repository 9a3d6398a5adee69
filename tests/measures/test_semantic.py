"""Semantic entropy: the card's numbers, scipy as oracle, the grouping inequality, clusters from equivalence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from entropy_jax.measures import semantic
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

ONE = jnp.zeros(4, jnp.int32)
CARD_P = np.array([0.4, 0.2, 0.1, 0.3])
CARD_LOGP = jnp.log(jnp.array(CARD_P, jnp.float32))
PAIRS = jnp.array([0, 0, 1, 1])
BATCH = helpers.token_batch(seed=4, B=24)
ANSWER, GROUP, LOGP = np.asarray(BATCH.answer_B), np.asarray(BATCH.group_B), np.asarray(jnp.sum(BATCH.logp_BxT, axis=1))


def partitions(prompt):
  """Row numbers of every cluster of one prompt."""
  rows = np.flatnonzero(prompt == GROUP)
  found = [[i] for i in rows if ANSWER[i] < 0]
  return found + [[i for i in rows if ANSWER[i] == a] for a in sorted({int(ANSWER[i]) for i in rows} - set(range(-9, 0)))]


class TestDiscreteSemanticEntropy:
  def test_by_hand(self):
    # ids (0, 1, 2, 1): 1/4, 1/2, 1/4: 1/2 ln 4 + 1/2 ln 2 = 1.5 ln 2
    value = semantic.discrete_semantic_entropy(jnp.array([0, 1, 2, 1]), ONE)
    np.testing.assert_allclose(value, np.full(4, 1.5 * np.log(2)), rtol=1e-6)
    np.testing.assert_allclose(semantic.discrete_semantic_entropy(jnp.arange(4), ONE), np.full(4, np.log(4)), rtol=1e-6)
    np.testing.assert_array_equal(semantic.discrete_semantic_entropy(ONE + 3, ONE), np.zeros(4))

  def test_missing_answers_do_not_agree(self):
    np.testing.assert_allclose(semantic.discrete_semantic_entropy(ONE - 1, ONE), np.full(4, np.log(4)), rtol=1e-6)

  def test_loop(self):
    actual = np.asarray(jax.jit(semantic.discrete_semantic_entropy)(BATCH.answer_B, BATCH.group_B))
    for prompt in set(GROUP.tolist()):
      expected = scipy.stats.entropy([len(rows) for rows in partitions(prompt)])
      np.testing.assert_allclose(actual[prompt == GROUP], expected, rtol=1e-5, atol=1e-6)


class TestLikelihoodSemanticEntropy:
  def test_by_hand(self):
    # clusters (.6, .4): .6 .510826 + .4 .916291
    np.testing.assert_allclose(semantic.likelihood_semantic_entropy(PAIRS, CARD_LOGP, ONE), np.full(4, 0.673012), rtol=2e-6)
    unweighted = semantic.likelihood_semantic_entropy(PAIRS, CARD_LOGP, ONE, estimator='unweighted')
    np.testing.assert_allclose(unweighted, np.full(4, 0.713558), rtol=2e-6)

  @pytest.mark.parametrize('estimator', ['shannon', 'unweighted', 'samples'])
  def test_loop(self, estimator):
    actual = np.asarray(semantic.likelihood_semantic_entropy(BATCH.answer_B, jnp.array(LOGP), BATCH.group_B, estimator=estimator))
    for prompt in set(GROUP.tolist()):
      rows = partitions(prompt)
      p = scipy.special.softmax([scipy.special.logsumexp(LOGP[i]) for i in rows])
      size = np.array([len(i) for i in rows])
      expected = {'shannon': scipy.stats.entropy(p), 'unweighted': -np.log(p).mean(), 'samples': -(size * np.log(p)).sum() / size.sum()}
      np.testing.assert_allclose(actual[prompt == GROUP], expected[estimator], rtol=1e-4, atol=1e-5)

  def test_is_at_most_the_entropy_of_the_samples(self):
    actual = np.asarray(semantic.likelihood_semantic_entropy(BATCH.answer_B, jnp.array(LOGP), BATCH.group_B))
    for i, prompt in enumerate(GROUP):
      assert actual[i] <= scipy.stats.entropy(scipy.special.softmax(LOGP[prompt == GROUP])) + 1e-5

  def test_equal_likelihoods_are_the_discrete_form(self):
    equal = semantic.likelihood_semantic_entropy(BATCH.answer_B, jnp.full(24, -3.0), BATCH.group_B)
    discrete = semantic.discrete_semantic_entropy(BATCH.answer_B, BATCH.group_B)
    np.testing.assert_allclose(equal, discrete, rtol=1e-5, atol=1e-6)

  def test_one_cluster_is_certain(self):
    np.testing.assert_allclose(semantic.likelihood_semantic_entropy(ONE, CARD_LOGP, ONE), np.zeros(4), atol=1e-6)

  def test_gradient(self):
    # p = (q, 1 - q) with q = .6: dSE / dl_i = -p_i (ln p_c(i) + SE)
    gradient = jax.grad(lambda logp: semantic.likelihood_semantic_entropy(PAIRS, logp, ONE)[0])(CARD_LOGP)
    expected = -CARD_P * (np.log([0.6, 0.6, 0.4, 0.4]) + 0.673012)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


class TestKuhnSemanticEntropy:
  def test_by_hand(self):
    # -(ln .6 + ln .4) / 2; and four of 1/4 in ids (0, 1, 2, 1): (2 ln 4 + ln 2) / 3
    np.testing.assert_allclose(semantic.kuhn_semantic_entropy(PAIRS, CARD_LOGP, ONE), np.full(4, 0.713558), rtol=2e-6)
    quarter = jnp.full(4, np.log(0.25), jnp.float32)
    np.testing.assert_allclose(semantic.kuhn_semantic_entropy(jnp.array([0, 1, 2, 1]), quarter, ONE), np.full(4, 1.155245), rtol=2e-6)

  def test_is_not_normalised(self):
    shifted = semantic.kuhn_semantic_entropy(PAIRS, CARD_LOGP - 5.0, ONE)
    np.testing.assert_allclose(shifted, np.full(4, 5.713558), rtol=2e-6)


class TestPredictiveEntropy:
  def test_by_hand(self):
    # -(ln .4 + ln .2 + ln .1 + ln .3) / 4
    np.testing.assert_allclose(semantic.predictive_entropy(CARD_LOGP, ONE), np.full(4, 1.508072), rtol=2e-6)


class TestResponseLogLikelihood:
  def test_mean_or_sum_over_valid_tokens(self):
    logp, mask = jnp.array([[-1.0, -3.0, jnp.nan], [jnp.nan] * 3]), jnp.array([[True, True, False], [False] * 3])
    assert semantic.response_log_likelihood(logp, mask).tolist() == [-2.0, 0.0]
    assert semantic.response_log_likelihood(logp, mask, per_token=False).tolist() == [-4.0, 0.0]


class TestOverGroups:
  def test_every_prompt_counts_once(self):
    value = jnp.array(GROUP, jnp.float32)
    ratio = semantic.over_groups(value, BATCH.group_B)
    np.testing.assert_allclose(ratio.compute(), np.unique(GROUP).mean(), rtol=1e-6)
    assert float(ratio.den) == len(np.unique(GROUP))


class TestEntailmentEquivalence:
  # 0 and 1: entailed one way, neutral the other. 2: contradicts 0, neutral with 1 both ways. 3 entails 0 both ways.
  LABEL = np.array([[2, 2, 0, 2], [1, 2, 1, 0], [1, 1, 2, 1], [2, 2, 1, 2]])

  def test_not_strict(self):
    expected = np.eye(4, dtype=bool)
    expected[0, 1] = expected[1, 0] = expected[0, 3] = expected[3, 0] = True  # 1 and 3: a contradiction one way
    np.testing.assert_array_equal(semantic.entailment_equivalence(self.LABEL), expected)

  def test_strict(self):
    expected = np.eye(4, dtype=bool)
    expected[0, 3] = expected[3, 0] = True
    np.testing.assert_array_equal(semantic.entailment_equivalence(self.LABEL, strict=True), expected)


class TestGreedyClusters:
  def test_first_representative_decides(self):
    # 0 ~ 1 and 1 ~ 2 but not 0 ~ 2: in order 0 takes 1, and 2 stays alone; with 1 first all are one
    table = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]], bool)
    assert semantic.greedy_clusters(table).tolist() == [0, 0, 1]
    order = [1, 0, 2]
    assert semantic.greedy_clusters(table[np.ix_(order, order)]).tolist() == [0, 0, 0]

  def test_numbers_follow_the_opening(self):
    same = np.array([4, 9, 4, 1, 9])
    assert semantic.greedy_clusters(same[:, None] == same[None, :]).tolist() == [0, 1, 0, 2, 1]

  def test_a_row_is_equivalent_to_itself(self):
    assert semantic.greedy_clusters(np.zeros((3, 3), bool)).tolist() == [0, 1, 2]

  def test_no_answers(self):
    assert semantic.greedy_clusters(np.zeros((0, 0), bool)).tolist() == []

  def test_refuses_what_is_not_square(self):
    with pytest.raises(UserError, match=r'has shape \(2, 3\): give a square table'):
      semantic.greedy_clusters(np.ones((2, 3), bool))
