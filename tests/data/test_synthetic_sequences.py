import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from entropy_jax.data import synthetic_sequences as sequences


@functools.cache
def drawn():
  return jax.jit(functools.partial(sequences.unigram, num_sequences=2000, length=64, vocab_size=32))(jax.random.key(0))


class TestUnigram:
  def test_loss_of_the_best_predictor(self):
    """2.815 nats a token for 64 tokens of 32 at .3, the card's number; guessing has ln 32 = 3.466."""
    tokens = drawn()
    assert tokens.shape == (2000, 64) and tokens.dtype == jnp.int32
    assert (int(tokens.min()), int(tokens.max())) == (0, 31)
    loss_B = -np.asarray(jax.jit(functools.partial(sequences.unigram_log_prob, vocab_size=32))(tokens)).mean(axis=1)
    np.testing.assert_allclose(loss_B.mean(), 2.815, atol=4 * loss_B.std() / math.sqrt(2000) + 5e-4)

  def test_tokens_of_a_sequence_are_exchangeable_and_repeat(self):
    """P(x_1 = x_2) = (a + 1) / (a V + 1): (.3 + 1) / (.3 * 32 + 1) = .12264, against 1 / 32 for tokens of one common distribution."""
    tokens = np.asarray(drawn())
    error = math.sqrt(0.1226 * 0.8774 / 2000)
    for one, other in ((0, 1), (0, 63)):
      np.testing.assert_allclose(np.mean(tokens[:, one] == tokens[:, other]), 0.12264, atol=4 * error)
    assert np.mean(tokens[:-1, 0] == tokens[1:, 0]) < 0.05  # sequences have nothing to do with each other


class TestUnigramLogProb:
  def test_against_a_loop(self):
    tokens = np.random.default_rng(0).integers(0, 5, (3, 7))
    want = np.zeros((3, 7))
    for b in range(3):
      for n in range(7):
        count = sum(tokens[b, m] == tokens[b, n] for m in range(n))
        want[b, n] = math.log((count + 0.3) / (n + 0.3 * 5))
    got = jax.jit(functools.partial(sequences.unigram_log_prob, vocab_size=5))(jnp.asarray(tokens))
    np.testing.assert_allclose(got, want, rtol=1e-5)


class TestCopy:
  def test_second_half_repeats_the_first(self):
    tokens = np.asarray(sequences.copy(jax.random.key(0), num_sequences=300, length=10, vocab_size=7))
    np.testing.assert_array_equal(tokens[:, :5], tokens[:, 5:])
    assert tokens.shape == (300, 10) and set(np.unique(tokens)) == set(range(7))
    assert abs(np.mean(tokens[:, 0] == tokens[:, 1]) - 1 / 7) < 4 * math.sqrt(6 / 49 / 300)

  def test_odd_length(self):
    tokens = np.asarray(sequences.copy(jax.random.key(0), num_sequences=4, length=9, vocab_size=50))
    assert tokens.shape == (4, 9) and sequences.copy_period(9) == 5
    np.testing.assert_array_equal(tokens[:, 5:], tokens[:, :4])
