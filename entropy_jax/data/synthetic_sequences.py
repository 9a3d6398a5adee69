"""Two tasks for causal models that are drawn on the device and tell apart what attention is for: in-context counts, whose best attention is
uniform, and copying, whose best attention is sharp. On the first, entropy that falls is a fault; on the second, entropy that stays high is.
"""

import jax
import jax.numpy as jnp


def unigram(key: jax.Array, *, num_sequences: int, length: int, vocab_size: int, concentration: float = 0.3) -> jax.Array:
  """Sequences that each have a distribution of their own over the vocabulary, p ~ Dirichlet(concentration), and independent tokens from it.

  Args:
    key: PRNG key.
    num_sequences, length, vocab_size: B, N and V.
    concentration: > 0, of every token; the smaller, the fewer tokens a sequence has.

  Returns:
    tokens_BxN, int32 in [0, V).

  Limits: the best prediction needs the counts of the past tokens and nothing else: `unigram_log_prob` is its log-probability.
  """
  first, second = jax.random.split(key)
  # ln of gamma variables: for small concentrations the variables themselves would leave float32.
  log_p_BxV = jax.random.loggamma(first, jnp.float32(concentration), (num_sequences, vocab_size))
  return jax.random.categorical(second, log_p_BxV[:, None], axis=-1, shape=(num_sequences, length)).astype(jnp.int32)


def unigram_log_prob(tokens_BxN: jax.Array, *, vocab_size: int, concentration: float = 0.3) -> jax.Array:
  """ln p(x_n | x_1..x_{n-1}) under the process that drew the tokens: ln (c(x_n) + a) - ln (n - 1 + a V), c the counts so far.

  Args:
    tokens_BxN: int, of `unigram` with the same settings.
    vocab_size, concentration: V and a.

  Returns:
    logp_BxN, float32; no model does better than minus its mean.

  >>> [round(x, 6) for x in unigram_log_prob(jnp.array([[0, 0, 1]]), vocab_size=2, concentration=1.)[0].tolist()]   # 1/2, 2/3, 1/4
  [-0.693147, -0.405465, -1.386294]
  """
  seen_BxNxV = jax.nn.one_hot(tokens_BxN, vocab_size)
  before_BxNxV = jnp.cumsum(seen_BxNxV, axis=1) - seen_BxNxV
  count_BxN = jnp.sum(jnp.where(seen_BxNxV > 0, before_BxNxV, 0.0), axis=-1)
  total_N = jnp.arange(tokens_BxN.shape[1], dtype=jnp.float32) + concentration * vocab_size
  return jnp.log(count_BxN + concentration) - jnp.log(total_N)[None]


def copy_period(length: int) -> int:
  """After how many tokens a sequence of `copy` repeats itself: half of its length, rounded up."""
  return -(-length // 2)


def copy(key: jax.Array, *, num_sequences: int, length: int, vocab_size: int) -> jax.Array:
  """Random tokens, and the same once more: the second half can be known from the first, by attention to one place.

  Args:
    key: PRNG key.
    num_sequences, length, vocab_size: B, N and V.

  Returns:
    tokens_BxN, int32 in [0, V), tokens n and n + `copy_period` equal.
  """
  half = jax.random.randint(key, (num_sequences, copy_period(length)), 0, vocab_size, jnp.int32)
  return jnp.concatenate([half, half], axis=1)[:, :length]
