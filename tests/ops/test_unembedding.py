"""ops/unembedding.py against numpy in float64 and against AD of the plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from entropy_jax.ops import categorical, unembedding
from entropy_jax.ops.unembedding import Unembedding
from entropy_jax.types import UserError

T, D, V = 7, 5, 23


def data(dtype=jnp.float32, num=T, width=D, vocab=V):
  keys = jax.random.split(jax.random.key(1), 4)
  hidden = jax.random.normal(keys[0], (num, width)).astype(dtype)
  kernel = 2.0 * jax.random.normal(keys[1], (vocab, width))
  return hidden, kernel, jax.random.randint(keys[2], (num,), 0, vocab), jax.random.normal(keys[3], (2, num))


def oracle(hidden, kernel, target, temperature=1.0, cap=None):
  """ln p(target) and H in float64, element by element of the definition."""
  z = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64).T
  z = (z if cap is None else cap * np.tanh(z / cap)) / temperature
  p = np.exp(z - z.max(1, keepdims=True))
  p /= p.sum(1, keepdims=True)
  with np.errstate(divide='ignore', invalid='ignore'):
    entropy = -np.where(p > 0, p * np.log(p), 0.0).sum(1)
  return np.log(p[np.arange(len(z)), np.asarray(target)]), entropy


def plain(hidden, kernel, target, temperature=1.0, cap=None):
  z = hidden.astype(jnp.float32) @ kernel.T
  z = z if cap is None else cap * jnp.tanh(z / cap)
  return categorical.token_log_prob_and_entropy(z / temperature, target)


def weighted(pair, weight):
  return jnp.sum(weight[0] * pair[0]) + jnp.sum(weight[1] * pair[1])


class TestLogProbAndEntropy:
  @pytest.mark.parametrize('tile', [None, 23, 40, 8, 5, 1])
  @pytest.mark.parametrize('transposed', [False, True])
  def test_values_and_gradients(self, tile, transposed):
    hidden, kernel, target, weight = data()

    def loss(hidden, kernel):
      given = Unembedding(kernel.T if transposed else kernel, transposed)
      pair = unembedding.log_prob_and_entropy(hidden, given, target, temperature=0.7, tile=tile)
      return weighted(pair, weight), pair

    (_, pair), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(hidden, kernel)
    for got, want in zip(pair, oracle(hidden, kernel, target, 0.7), strict=True):
      np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)
    wanted = jax.grad(lambda h, w: weighted(plain(h, w, target, 0.7), weight), argnums=(0, 1))(hidden, kernel)
    for got, want in zip(grads, wanted, strict=True):
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)

  def test_cap(self):
    hidden, kernel, target, weight = data()
    f = lambda h, w: weighted(unembedding.log_prob_and_entropy(h, Unembedding(w, cap=3.0), target, tile=6), weight)
    got = jax.grad(f, argnums=(0, 1))(hidden, kernel)
    want = jax.grad(lambda h, w: weighted(plain(h, w, target, cap=3.0), weight), argnums=(0, 1))(hidden, kernel)
    np.testing.assert_allclose(f(hidden, kernel), weighted(oracle(hidden, kernel, target, cap=3.0), weight), rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), got, want)

  def test_gradient_by_hand(self):
    # p = (1/2, 1/2), target 0, W = 1, h = (0, 0): d ln p_0 / dz = (1/2, -1/2), dH/dz = 0 at the uniform distribution
    f = lambda h: unembedding.log_prob_and_entropy(h, Unembedding(jnp.eye(2)), jnp.array([0]))
    np.testing.assert_allclose(jax.grad(lambda h: f(h)[0][0])(jnp.zeros((1, 2))), [[0.5, -0.5]])
    np.testing.assert_allclose(jax.grad(lambda h: f(h)[1][0])(jnp.zeros((1, 2))), [[0.0, 0.0]], atol=1e-7)

  def test_impossible_tokens(self):
    """Logits of -inf: 0 ln 0 = 0 in value and gradient, whichever tile they fill."""
    logits = jnp.array([[0.0, 0.0, -jnp.inf, -jnp.inf], [-jnp.inf, -jnp.inf, 1.0, 1.0]])
    big = jnp.where(jnp.isinf(logits), -3e38, logits)  # h W with finite factors reaches at most this
    for tile in (1, 2, 4):
      f = lambda h, tile=tile: unembedding.log_prob_and_entropy(h, Unembedding(jnp.eye(4)), jnp.array([0, 3]), temperature=1e-1, tile=tile)
      logp, entropy = f(big)
      np.testing.assert_allclose(logp, -np.log(2) * np.ones(2), rtol=1e-6)
      np.testing.assert_allclose(entropy, np.log(2) * np.ones(2), rtol=1e-6)
      grad = jax.grad(lambda h, f=f: jnp.sum(f(h)[0]) + jnp.sum(f(h)[1]))(big)
      np.testing.assert_allclose(grad, 5.0 * np.array([[1, -1, 0, 0], [0, 0, -1, 1]]), atol=1e-5)

  def test_certain_rows(self):
    logp, entropy = unembedding.log_prob_and_entropy(jnp.array([[0.0, 90.0]]), Unembedding(jnp.eye(2)), jnp.array([1]), tile=1)
    assert float(logp[0]) == 0.0 and float(entropy[0]) == 0.0

  def test_bfloat16_is_summed_in_float32(self):
    hidden, kernel, target, weight = data(jnp.bfloat16, num=64, width=32, vocab=300)
    given = Unembedding(kernel, dtype='bfloat16')
    pair = unembedding.log_prob_and_entropy(hidden, given, target, tile=64)
    assert [x.dtype for x in pair] == [jnp.float32] * 2
    for got, want in zip(pair, oracle(hidden, kernel.astype(jnp.bfloat16), target), strict=True):
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    f = lambda h, w: weighted(unembedding.log_prob_and_entropy(h, Unembedding(w, dtype='bfloat16'), target, tile=64), weight)
    grads = jax.grad(f, argnums=(0, 1))(hidden, kernel)
    assert grads[0].dtype == jnp.bfloat16 and grads[1].dtype == jnp.float32
    want = jax.grad(lambda w: weighted(plain(hidden, w, target), weight))(kernel)
    assert float(jnp.linalg.norm(grads[1] - want) / jnp.linalg.norm(want)) < 0.02

  def test_vmap_over_seeds_and_inside_a_checkpointed_scan(self):
    hidden, kernel, target, weight = data()
    f = lambda h: weighted(unembedding.log_prob_and_entropy(h, Unembedding(kernel), target, tile=9), weight)
    stack = jnp.stack([hidden, 2 * hidden])
    want = jnp.stack([jax.grad(f)(h) for h in stack])
    np.testing.assert_allclose(jax.vmap(jax.grad(f))(stack), want, rtol=1e-4, atol=1e-5)
    scanned = lambda x: jax.lax.scan(lambda c, h: (c + jax.checkpoint(f)(h), None), 0.0, x)[0]
    np.testing.assert_allclose(jax.grad(scanned)(stack), want, rtol=1e-4, atol=1e-5)

  def test_shards_of_the_vocabulary(self):
    hidden, kernel, target, weight = data(vocab=24)
    for transposed in (False, True):
      made = lambda w, t=transposed: Unembedding(w.T if t else w, t)
      f = lambda w, n, made=made: weighted(unembedding.log_prob_and_entropy(hidden, made(w), target, tile=5, num_shards=n), weight)
      one, several = (jax.value_and_grad(f)(kernel, n) for n in (1, 4))
      jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5), one, several)

  @pytest.mark.skipif(jax.device_count() < 4, reason='needs 4 devices, which tests/conftest.py makes on a processor')
  def test_no_device_gathers_a_vocabulary_that_is_cut(self):
    num, vocab = 4, 4096
    hidden, kernel, target, weight = data(vocab=vocab, width=8)
    mesh = jax.make_mesh((num,), ('model',), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:num])
    place = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    cut = place(kernel, 'model')
    f = lambda h, w, y: weighted(unembedding.log_prob_and_entropy(h, Unembedding(w), y, tile=128, num_shards=num), weight)
    step = jax.jit(jax.value_and_grad(f, argnums=(0, 1)), out_shardings=(None, (None, NamedSharding(mesh, PartitionSpec('model')))))
    arguments = (place(hidden), cut, place(target))
    text = step.lower(*arguments).compile().as_text()
    assert 'all-gather' not in text and 'all-to-all' not in text
    want = jax.value_and_grad(lambda h, w: weighted(plain(h, w, target), weight), argnums=(0, 1))(hidden, kernel)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), step(*arguments), want)

  @pytest.mark.parametrize(('num', 'width', 'vocab'), [(64, 16, 4096), (33, 8, 5000), (256, 16, 3001), (16, 32, 20000)])
  def test_rows_of_logits_are_never_held(self, num, width, vocab):
    """The compiled program, backward pass and all, has no array of T x V elements, and its temporaries do not grow with V."""
    hidden, kernel, target, weight = data(num=num, width=width, vocab=vocab)
    f = lambda h, w: weighted(unembedding.log_prob_and_entropy(h, Unembedding(w), target, tile=256), weight)
    compiled = jax.jit(jax.value_and_grad(f, argnums=(0, 1))).lower(hidden, kernel).compile()
    text = compiled.as_text()
    assert f'[{num},{vocab}]' not in text and f'[{vocab},{num}]' not in text and f'[{num * vocab}]' not in text
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    naive = jax.jit(jax.value_and_grad(lambda h, w: weighted(plain(h, w, target), weight), argnums=(0, 1))).lower(hidden, kernel).compile()
    assert temporaries <= naive.memory_analysis().temp_size_in_bytes / 4

  def test_forward_mode_is_refused(self):
    hidden, kernel, target, _ = data()
    with pytest.raises(TypeError, match='custom_vjp'):
      jax.jvp(lambda h: unembedding.log_prob_and_entropy(h, Unembedding(kernel), target)[0], (hidden,), (hidden,))

  @pytest.mark.parametrize(('kwargs', 'words'), [({'tile': 0}, 'tile is 0'), ({'num_shards': 5}, 'divisor of the vocabulary size 23')])
  def test_mistakes(self, kwargs, words):
    hidden, kernel, target, _ = data()
    with pytest.raises(UserError, match=words):
      unembedding.log_prob_and_entropy(hidden, Unembedding(kernel), target, **kwargs)


class TestUnembedding:
  def test_vocab_size(self):
    assert Unembedding(jnp.zeros((V, D))).vocab_size == Unembedding(jnp.zeros((D, V)), transposed=True).vocab_size == V
