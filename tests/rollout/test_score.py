import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.models import tabular, transformer
from entropy_jax.rollout import score
from entropy_jax.types import TokenBatch, UserError, VocabStat


def decoder(vocab_size=11, max_length=256, **kwargs):
  return transformer.transformer_policy(
    transformer.DecoderConfig(
      vocab_size=vocab_size, width=16, num_layers=1, num_heads=2, mlp_width=24, max_length=max_length, **kwargs
    )
  )


def top_prob(logits_xV):
  return jnp.max(jax.nn.softmax(logits_xV), axis=-1)


def spread(logits_xV):
  return jnp.var(logits_xV, axis=-1)


STATS = (VocabStat('top', top_prob), VocabStat('spread', spread, of='behaviour'))


def batch(B=5, P=4, T=6, V=11):
  tokens = jax.random.randint(jax.random.key(3), (B, P + T), 0, V)
  n = jnp.arange(P + T)[None]
  mask = (n >= (jnp.arange(B) % P)[:, None]) & (n < P + T - (jnp.arange(B) % (T + 1))[:, None])
  return tokens, mask


def total(scores):
  """One number that moves with every score, by different amounts."""
  leaves = jax.tree.leaves(scores)
  return sum(jnp.sum(jnp.sin(3 * x + i)) for i, x in enumerate(leaves))


class TestScore:
  def test_by_hand(self):
    policy = tabular.tabular_policy(1, 2, 3)
    params = {tabular.TABLE: jnp.log(jnp.array([[[[0.5, 0.3, 0.2]], [[0.25, 0.25, 0.5]]]]))}
    tokens, mask = jnp.array([[0, 1, 2], [0, 0, 1]]), jnp.array([[True] * 3, [True, True, False]])
    scores = jax.jit(lambda p: score.score(policy, p, tokens, mask, 2, stats=(VocabStat('top', top_prob),)))(params)
    # H(.5, .3, .2) = 1.0296530; H(.25, .25, .5) = 1.5 ln 2 = 1.0397208
    np.testing.assert_allclose(scores.logp_BxT, [[np.log(0.3), np.log(0.5)], [np.log(0.5), 0]], rtol=1e-6)
    np.testing.assert_allclose(scores.entropy_BxT, [[1.0296530, 1.0397208], [1.0296530, 0]], rtol=1e-6)
    np.testing.assert_allclose(scores.stats['top'], [[0.5, 0.5], [0.5, 0]], rtol=1e-6)

  def test_temperature_divides_the_logits(self):
    policy = tabular.tabular_policy(3, 4, 5, init_fn=jax.random.normal)
    params = jax.jit(policy.init)(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (6, 5), 0, 3)
    run = lambda p, t: score.score(policy, p, tokens, jnp.ones((6, 5), bool), 4, temperature=t, stats=STATS)
    hot, half = jax.jit(lambda p: (run(p, 2.0), run(jax.tree.map(lambda x: x / 2, p), 1.0)))(params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), hot, half)

  @pytest.mark.parametrize('chunk', [7, 15])
  def test_chunks_change_neither_value_nor_gradient(self, chunk):
    policy = decoder(tie_embeddings=chunk != 7)
    params = jax.jit(policy.init)(jax.random.key(0))
    tokens, mask = batch()

    def f(params, chunk_tokens):
      scores = score.score(policy, params, tokens, mask, 6, temperature=0.9, stats=STATS, chunk_tokens=chunk_tokens)
      return total(scores), scores

    run = jax.jit(jax.value_and_grad(f, has_aux=True), static_argnums=1)
    (_, got), got_grad = run(params, chunk)
    (_, want), want_grad = run(params, 10**6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6, rtol=1e-5), got, want)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6 * 30, rtol=1e-5), got_grad, want_grad)

  def test_against_the_whole_logits_in_numpy(self):
    policy = decoder()
    params = jax.jit(policy.init)(jax.random.key(0))
    tokens, mask = batch()
    scores = jax.jit(lambda p: score.score(policy, p, tokens, mask, 6, stats=STATS, chunk_tokens=8))(params)
    z = np.asarray(jax.jit(policy.logits)(params, tokens, mask), np.float64)
    for b in range(5):
      for t in range(6):
        if not mask[b, 4 + t]:
          assert scores.logp_BxT[b, t] == scores.entropy_BxT[b, t] == scores.stats['top'][b, t] == 0
          continue
        row = z[b, 4 + t - 1]
        p = np.exp(row) / np.exp(row).sum()
        want = np.log(p[tokens[b, 4 + t]]), -(p * np.log(p)).sum(), p.max(), row.var()
        got = scores.logp_BxT[b, t], scores.entropy_BxT[b, t], scores.stats['top'][b, t], scores.stats['spread'][b, t]
        np.testing.assert_allclose(got, want, rtol=1e-4)

  @pytest.mark.parametrize('chunk', [None, 7])
  def test_padding_content_reaches_nothing(self, chunk):
    policy = decoder()
    params = jax.jit(policy.init)(jax.random.key(0))
    tokens, mask = batch()
    f = lambda p, x: total(score.score(policy, p, x, mask, 6, stats=STATS, chunk_tokens=chunk))
    run = jax.jit(jax.value_and_grad(f))
    clean, dirty = run(params, tokens), run(params, jnp.where(mask, tokens, 10**7))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(dirty))

  def test_nan_hidden_states_of_padding_reach_nothing(self):
    policy = decoder()
    params = jax.jit(policy.init)(jax.random.key(0))
    tokens, mask = batch()
    ends = jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))  # hidden n predicts n + 1
    bad = lambda p, x, m: jnp.where(ends[:, : x.shape[1], None], policy.hidden(p, x, m), jnp.nan)
    f = lambda pol: jax.jit(jax.grad(lambda p: total(score.score(pol, p, tokens, mask, 6))))(params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), f(policy._replace(hidden=bad)), f(policy))

  def test_impossible_tokens_are_safe_in_value_and_gradient(self):
    policy = tabular.tabular_policy(1, 1, 3)
    params = {tabular.TABLE: jnp.log(jnp.array([[[[0.75, 0.25, 0.0]]]]))}
    f = lambda p: (s := score.score(policy, p, jnp.array([[0, 1]]), jnp.ones((1, 2), bool), 1)).logp_BxT[0, 0] + s.entropy_BxT[0, 0]
    value, grad = jax.jit(jax.value_and_grad(f))(params)
    # H = ln 4 - .75 ln 3 = .562335; grad = onehot(1) - p - p (ln p + H)
    np.testing.assert_allclose(value, np.log(0.25) + 0.5623351, rtol=1e-6)
    p = np.array([0.75, 0.25])
    want = np.array([0, 1]) - p - p * (np.log(p) + 0.5623351)
    np.testing.assert_allclose(grad[tabular.TABLE][0, 0, 0], [*want, 0.0], rtol=1e-5, atol=1e-7)

  @pytest.mark.parametrize('chunk', [None, 5])
  def test_seeds_are_vmapped(self, chunk):
    policy = tabular.tabular_policy(3, 4, 5, init_fn=jax.random.normal)
    params = jax.jit(jax.vmap(policy.init))(jax.random.split(jax.random.key(0), 3))
    tokens = jax.random.randint(jax.random.key(1), (3, 6, 5), 0, 3)
    mask = jnp.ones((6, 5), bool)
    run = jax.value_and_grad(lambda p, x: total(score.score(policy, p, x, mask, 4, stats=STATS, chunk_tokens=chunk)))
    together = jax.jit(jax.vmap(run))(params, tokens)
    alone = jax.jit(run)(jax.tree.map(lambda x: x[1], params), tokens[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-5, atol=1e-6), together, alone)

  def test_memory_does_not_grow_with_tokens_times_vocabulary(self):
    V, T, chunk = 4096, 8, 16
    policy = decoder(vocab_size=V)
    params = jax.eval_shape(policy.init, jax.random.key(0))

    def temporary(B, chunk_tokens):
      tokens = jnp.zeros((B, 2 + T), jnp.int32)
      f = lambda p: total(score.score(policy, p, tokens, tokens == 0, T, stats=STATS, chunk_tokens=chunk_tokens))
      return jax.jit(jax.grad(f)).lower(params).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary(64, chunk), temporary(192, chunk)
    logits = 4 * T * V  # bytes of one row's logits
    assert many - few < 0.2 * (192 - 64) * logits  # hidden states and attention
    assert many < 0.3 * 192 * logits
    assert temporary(192, 10**6) > 192 * logits  # what is avoided

  @pytest.mark.parametrize(
    'change, message',
    [
      ({'num_tokens': 10}, 'num_tokens is 10: with 10 tokens a row give 1 to 9'),
      ({'num_tokens': 0}, 'num_tokens is 0'),
      ({'temperature': 0.0}, 'temperature is 0.0: scoring needs a positive one'),
      ({'chunk_tokens': 0}, 'chunk_tokens is 0'),
      ({'stats': (VocabStat('a', top_prob), VocabStat('a', spread))}, "two different functions named 'a'"),
    ],
  )
  def test_bad_arguments(self, change, message):
    policy = decoder()
    params = jax.eval_shape(policy.init, jax.random.key(0))
    with pytest.raises(UserError, match=message):
      jax.eval_shape(lambda p: score.score(policy, p, *batch(), **({'num_tokens': 6} | change)), params)

  def test_one_statistic_asked_for_twice_is_computed_once(self):
    policy = tabular.tabular_policy(1, 1, 3)
    twice = (VocabStat('top', top_prob), VocabStat('top', top_prob, of='behaviour'))
    args = jnp.array([[0, 1]]), jnp.ones((1, 2), bool), 1
    scores = jax.eval_shape(lambda p: score.score(policy, p, *args, stats=twice), policy.init(jax.random.key(0)))
    assert list(scores.stats) == ['top']


class TestFill:
  def test_replaces_the_current_policy_only(self):
    tokens, mask = batch()
    zeros, rows = jnp.zeros((5, 6)), jnp.zeros(5)
    before = TokenBatch(
      tokens_BxN=tokens,
      token_mask_BxN=mask,
      mask_BxT=mask[:, 4:],
      group_B=rows.astype(int),
      reward_B=rows,
      old_logp_BxT=zeros - 1,
      old_entropy_BxT=zeros + 2,
      logp_BxT=zeros,
      entropy_BxT=zeros,
      key=jax.random.key(0),
      old_stats={'top': zeros},
    )
    scores = score.Scores(zeros - 3, zeros + 4, {'top': zeros + 5})
    after = score.fill(before, scores)
    assert after.logp_BxT is scores.logp_BxT and after.entropy_BxT is scores.entropy_BxT
    assert after.stats['top'] is scores.stats['top']
    assert after.replace(logp_BxT=zeros, entropy_BxT=zeros, stats={}) == before.replace(logp_BxT=zeros, entropy_BxT=zeros)
