"""AUC and what attention does in bags, against scipy and by hand."""

import jax
import numpy as np
import scipy.special
import scipy.stats

from entropy_jax.measures import bags

RNG = np.random.default_rng(0)
AUC, ATTENTION = jax.jit(bags.auc), jax.jit(bags.bag_attention)


class TestAuc:
  def test_against_mann_whitney(self):
    score = RNG.integers(0, 6, size=(3, 20)).astype(np.float32)  # with ties
    positive, mask = RNG.random((3, 20)) < 0.4, RNG.random((3, 20)) < 0.8
    got = AUC(np.where(mask, score, np.nan), positive, mask)
    for row in range(3):
      pos, neg = score[row, positive[row] & mask[row]], score[row, ~positive[row] & mask[row]]
      assert got.num[row] == scipy.stats.mannwhitneyu(pos, neg).statistic and got.den[row] == pos.size * neg.size

  def test_ends_and_nothing(self):
    score = np.array([[0, 1, 2], [3, 1, 2], [0, 0, 0], [0, 1, 2]], np.float32)
    positive = np.array([[False, True, True]] * 3 + [[True] * 3])
    found = AUC(score, positive, np.ones((4, 3), bool))
    np.testing.assert_array_equal(found.num, [2, 0, 1, 0])
    np.testing.assert_array_equal(found.den, [2, 2, 2, 0])


class TestBagAttention:
  MASK = np.array([[True] * 4, [True, True, True, False], [True, False, False, False], [True] * 4])
  TARGET = np.array([[True, True, False, False], [False, False, True, False], [True, False, False, False], [False] * 4])
  LOGITS = RNG.normal(size=(4, 2, 4)).astype(np.float32)

  def test_against_scipy(self):
    found = ATTENTION(np.where(self.MASK[:, None], self.LOGITS, np.nan), self.MASK, self.TARGET)
    entropy_BxH = np.zeros((4, 2))
    for b in range(4):
      entropy_BxH[b] = scipy.stats.entropy(scipy.special.softmax(self.LOGITS[b][:, self.MASK[b]], axis=-1), axis=-1)
    np.testing.assert_allclose(found['entropy'].num, entropy_BxH.mean(axis=1), rtol=1e-5, atol=1e-6)
    want = entropy_BxH.mean(axis=1) / np.log([4, 3, np.inf, 4])  # a bag of one has entropy 0
    np.testing.assert_allclose(found['relative_entropy'].num, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found['entropy'].den, 1)
    # Two bags hold both kinds, with two targets and one.
    for name in ('instance_auc', 'instances_per_target'):
      np.testing.assert_array_equal(found[name].den, [1, 1, 0, 0])
      np.testing.assert_array_equal(found[name].num[2:], 0)
    np.testing.assert_allclose(found['instances_per_target'].num[:2], np.exp(entropy_BxH[:2]).mean(axis=1) / [2, 1], rtol=1e-5)
    z = self.LOGITS[0]
    won = [np.mean([[z[h, i] > z[h, j] for j in (2, 3)] for i in (0, 1)]) for h in range(2)]
    np.testing.assert_allclose(found['instance_auc'].num[0], np.mean(won), rtol=1e-6)

  def test_the_card(self):
    """A = (2, 0, 0, 0): H = .91828377; uniform attention over 4 with 2 targets spreads over twice as many."""
    logits = np.array([[[2, 0, 0, 0]], [[0, 0, 0, 0]]], np.float32)
    target = np.array([[True, False, False, False], [True, True, False, False]])
    found = ATTENTION(logits, np.ones((2, 4), bool), target)
    np.testing.assert_allclose(found['entropy'].num, [0.91828377, np.log(4)], rtol=1e-6)
    np.testing.assert_array_equal(found['instance_auc'].num, [1.0, 0.5])
    np.testing.assert_allclose(found['instances_per_target'].num, [np.exp(0.91828377), 2.0], rtol=1e-6)
    np.testing.assert_allclose(found['relative_entropy'].num[1], 1.0, rtol=1e-6)
