import functools
import math

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_jax.layers import sigma_reparam, spectral
from entropy_jax.layers.sigma_reparam import SigmaReparamConv, SigmaReparamDense, SigmaReparamGeneral, SpectralNormDense
from entropy_jax.types import UserError

KEY = jax.random.key(0)
normal = lambda seed, *shape: np.random.default_rng(seed).normal(size=shape).astype(np.float32)
unit = lambda x: x / np.linalg.norm(x)
matrix_norm = lambda x: np.linalg.norm(np.asarray(x, np.float64), 2)
stale = lambda seed, num_out: {'u': jnp.asarray(unit(normal(seed, num_out)))}  # a vector that has not converged


class Net(nn.Module):
  """Two layers and one that is plain."""

  remat: bool = False

  @nn.compact
  def __call__(self, x):
    dense = nn.remat(SigmaReparamDense) if self.remat else SigmaReparamDense
    x = nn.relu(dense(6, name='up')(x))
    x = nn.LayerNorm(name='norm')(x)
    return SpectralNormDense(3, name='down')(x)


def init(model, *args):
  return jax.jit(model.init)(KEY, *args)


def apply(model, variables, x):
  return jax.jit(model.apply)(variables, x)


def started(model, *args):
  """Variables whose vectors have not converged, as they are while kernels move."""
  variables = init(model, *args)
  keys = iter(jax.random.split(jax.random.key(1), 100))
  params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), variables['params'])
  return params, variables['spectral']


class TestInitialisers:
  def test_vision(self):
    x = sigma_reparam.vision_init(0.125)(KEY, (400, 500))
    std = 0.02 * 0.125
    np.testing.assert_allclose(jnp.std(x), std, rtol=0.01)  # 200,000 draws: its standard error is .16 %
    assert 2.2 * std < jnp.max(jnp.abs(x)) <= 2 * std / 0.8796 < 2.28 * std

  def test_speech(self):
    x = sigma_reparam.speech_init()(KEY, (400, 500))
    np.testing.assert_allclose(jnp.std(x), 0.1, rtol=0.01)
    assert jnp.max(jnp.abs(x)) > 0.35  # not cut


class TestSigmaReparamDense:
  def test_by_hand(self):
    # W = diag(3, 1), u = (1, 0), gain 2, bias (1, 1): y = 2 / 3 x W + 1, so (1, 1) -> (2 + 1, 2/3 + 1).
    variables = {
      'params': {'kernel': jnp.diag(jnp.array([3.0, 1.0])), 'gain': jnp.float32(2), 'bias': jnp.ones(2)},
      'spectral': {'u': jnp.array([1.0, 0.0])},
    }
    np.testing.assert_allclose(SigmaReparamDense(2).apply(variables, jnp.ones((1, 2))), [[3, 5 / 3]], rtol=1e-6)

  def test_starts_at_norm_one_or_as_dense(self):
    x = normal(0, 4, 5)
    plain = nn.Dense(7)
    want = apply(plain, init(plain, x), x)
    for gain_init in ('one', 'sigma'):
      layer = SigmaReparamDense(7, gain_init=gain_init)
      variables = init(layer, x)
      params, state = variables['params'], variables['spectral']
      assert jax.tree.map(jnp.shape, variables) == {
        'params': {'kernel': (5, 7), 'bias': (7,), 'gain': ()},
        'spectral': {'u': (7,)},
      }
      norm = matrix_norm(params['kernel'])
      np.testing.assert_allclose(params['gain'], 1 if gain_init == 'one' else norm, rtol=1e-5)
      np.testing.assert_allclose(jnp.linalg.norm(params['kernel'] @ state['u']), norm, rtol=1e-5)  # u is exact
      np.testing.assert_allclose(apply(layer, variables, x), want / (norm if gain_init == 'one' else 1), rtol=1e-4, atol=1e-6)

  def test_takes_the_arguments_of_dense_in_their_order(self):
    x = normal(0, 2, 3)
    layer = SigmaReparamDense(4, False, jnp.bfloat16, kernel_init=nn.initializers.ones_init())
    variables = init(layer, x)
    assert 'bias' not in variables['params'] and layer.apply(variables, x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(variables['params']['kernel'], np.ones((3, 4)))

  def test_gradient_against_finite_differences(self):
    # The loss is linear in the effective kernel; central differences in float32 with steps of 1 % are good to 1e-3.
    x, cotangent, layer = normal(0, 6, 5), normal(1, 6, 4), SigmaReparamDense(4)
    params = {'kernel': normal(2, 5, 4), 'gain': np.float32(-1.3), 'bias': normal(3, 4)}
    state = stale(4, 4)
    v = state['u'] @ params['kernel'].T / jnp.linalg.norm(params['kernel'] @ state['u'])

    def loss(params):
      return jnp.sum(cotangent * layer.apply({'params': params, 'spectral': state}, x))

    def frozen(params):
      # u and v held where they are, written without the layer.
      sigma = jnp.sum(params['kernel'] * v[:, None] * state['u'][None, :])
      return jnp.sum(cotangent * (x @ params['kernel'] * params['gain'] / sigma + params['bias'][None, :]))

    gradient = jax.jit(jax.grad(loss))(params)
    moved = lambda way, sign: jax.tree.map(lambda leaf, step: leaf + sign * 0.01 * step, params, way)
    difference = jax.jit(lambda way: (frozen(moved(way, 1)) - frozen(moved(way, -1))) / 0.02)
    for seed in range(3):
      way = {name: normal(seed, *np.shape(leaf)) for name, leaf in params.items()}
      np.testing.assert_allclose(difference(way), sum(np.sum(gradient[name] * way[name]) for name in way), rtol=5e-3, atol=5e-3)

  @pytest.mark.parametrize('gain', [1.0, -0.4])
  def test_gradient_is_orthogonal_to_the_kernel_and_exact(self, gain):
    # G = x^T dy: dW = gain / sigma (G - <G, W> / sigma v u^T), <dW, W> = 0 for any u, dgain = <G, W> / sigma.
    x, cotangent, layer = normal(0, 6, 5), normal(1, 6, 4), SigmaReparamDense(4)
    params, state = {'kernel': normal(2, 5, 4), 'gain': jnp.float32(gain), 'bias': jnp.zeros(4)}, stale(4, 4)
    loss = lambda params, state: jnp.sum(cotangent * layer.apply({'params': params, 'spectral': state}, x))
    got, to_state = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, state)
    w, u, G = (np.asarray(a, np.float64) for a in (params['kernel'], state['u'], x.T @ cotangent))
    sigma = np.linalg.norm(w @ u)
    want = gain / sigma * (G - np.sum(G * w) / sigma * np.outer(w @ u / sigma, u))
    np.testing.assert_allclose(got['kernel'], want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got['gain'], np.sum(G * w) / sigma, rtol=1e-4)
    np.testing.assert_allclose(got['bias'], cotangent.sum(0), rtol=1e-4)
    assert abs(np.sum(got['kernel'] * w)) < 1e-5 * np.linalg.norm(want) * np.linalg.norm(w)
    assert not np.any(to_state['u'])

  def test_plain_sgd_adds_the_squares(self):
    # <dW, W> = 0, so |W - lr dW|^2 = |W|^2 + lr^2 |dW|^2: the norm only grows.
    x, y, layer, rate = normal(0, 16, 5), normal(1, 16, 4), SigmaReparamDense(4), 2.0
    variables = init(layer, x)
    params, state = variables['params'], variables['spectral']
    loss = lambda params, state: jnp.mean(jnp.square(layer.apply({'params': params, 'spectral': state}, x) - y))

    @jax.jit
    def update(params, state):
      state = spectral.advance(params, state)
      gradient = jax.grad(loss)(params, state)
      return jax.tree.map(lambda p, g: p - rate * g, params, gradient), state, jnp.sum(jnp.square(gradient['kernel']))

    squares = [np.sum(np.square(params['kernel'], dtype=np.float64))]
    for _ in range(20):
      params, state, step = update(params, state)
      squares.append(np.sum(np.square(params['kernel'], dtype=np.float64)))
      np.testing.assert_allclose(squares[-1] - squares[-2], rate**2 * float(step), rtol=2e-3, atol=3e-6)
    assert squares[-1] > squares[0] * 1.01

  def test_a_multiple_of_the_kernel_is_the_same_map(self):
    # What weight decay of W does: nothing to the map, gradients divided by the multiple.
    x, layer = normal(0, 3, 5), SigmaReparamDense(4)
    params, state = {'kernel': normal(2, 5, 4), 'gain': jnp.float32(1.5), 'bias': normal(3, 4)}, stale(4, 4)
    f = jax.jit(jax.value_and_grad(lambda params: jnp.sum(jnp.tanh(layer.apply({'params': params, 'spectral': state}, x)))))
    value, gradient = f(params)
    decayed, larger = f({**params, 'kernel': 0.25 * params['kernel']})
    np.testing.assert_allclose(decayed, value, rtol=1e-5)
    np.testing.assert_allclose(larger['kernel'], gradient['kernel'] / 0.25, rtol=1e-4, atol=1e-5)

  def test_norm_follows_the_gain_through_training(self):
    # The map to learn has the singular values 6, 3, 1, .5, so that the gain must grow to 6 and the kernel must turn.
    turn, other = (np.linalg.qr(normal(seed, 4, 4))[0] for seed in (5, 6))
    x, layer = normal(0, 32, 4), SigmaReparamDense(4)
    y = x @ (turn * np.array([6, 3, 1, 0.5], np.float32) @ other)
    variables = jax.jit(layer.init)(KEY, x)
    params, state, tx = variables['params'], variables['spectral'], optax.adam(1e-2)

    def loss(params, state):
      return jnp.mean(jnp.square(layer.apply({'params': params, 'spectral': state}, x) - y))

    def update(carry, _):
      params, state, moments = carry
      state = spectral.advance(params, state)
      updates, moments = tx.update(jax.grad(loss)(params, state), moments)
      params = optax.apply_updates(params, updates)
      return (params, state, moments), spectral.spectral_norms(params, state)['norm_over_gain']

    start = (params, state, tx.init(params))
    (params, state, _), ratios = jax.jit(lambda carry: jax.lax.scan(update, carry, length=1500))(start)
    np.testing.assert_allclose(params['gain'], 6, rtol=0.02)
    assert loss(params, state) < 1e-2
    assert jnp.min(ratios) >= 1 - 1e-5 and jnp.max(ratios) > 1.01  # it trails while the kernel turns
    np.testing.assert_allclose(ratios[-1], 1, rtol=1e-3)

  def test_attention_keeps_its_entropy(self):
    # Converged query and key: |a_i| <= s = |gq gk| |X|^2 / sqrt(D), and no row's entropy is below the bound at s,
    # ln(1 + (T - 1) b) + s sqrt(T (T - 1)) b / (1 + (T - 1) b), b = exp(-s sqrt(T / (T - 1))).
    T, D = 16, 8
    x = normal(0, T, 32)
    x *= 3 / matrix_norm(x)
    heads = {}
    for name, gain in (('query', 2.0), ('key', -1.5)):
      layer = SigmaReparamDense(D, use_bias=False)
      variables = jax.jit(layer.init)(jax.random.key(len(name)), x)
      params = {**variables['params'], 'gain': jnp.float32(gain)}
      heads[name] = np.asarray(layer.apply({'params': params, 'spectral': variables['spectral']}, x), np.float64)
    logits = heads['query'] @ heads['key'].T / math.sqrt(D)
    s = 2.0 * 1.5 * 9 / math.sqrt(D)
    assert np.linalg.norm(logits, axis=-1).max() <= s
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    b = math.exp(-s * math.sqrt(T / (T - 1)))
    bound = math.log(1 + (T - 1) * b) + s * math.sqrt(T * (T - 1)) * b / (1 + (T - 1) * b)
    assert 0 < bound <= np.min(-np.sum(p * np.log(p), axis=-1)) < math.log(T)

  def test_bfloat16_keeps_the_norm_in_float32(self):
    x, layer = normal(0, 4, 64), SigmaReparamDense(48, dtype=jnp.bfloat16)
    variables = init(layer, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    y, state = jax.jit(functools.partial(layer.apply, mutable=['spectral']))(variables, x)
    assert y.dtype == jnp.bfloat16 and state['spectral']['u'].dtype == jnp.float32
    # The kernel is scaled in float32 and rounded once.
    want = spectral.effective_kernel(variables['params']['kernel'], state['spectral']['u']).astype(jnp.bfloat16)
    np.testing.assert_array_equal(y, jnp.asarray(x, jnp.bfloat16) @ want)
    kernel = variables['params']['kernel']
    np.testing.assert_allclose(jnp.linalg.norm(kernel @ state['spectral']['u']), matrix_norm(kernel), rtol=1e-5)

  def test_mistakes(self):
    x = jnp.ones((2, 3))
    with pytest.raises(UserError, match=r"gain_init is 'sgima': choose one of one, sigma\. Did you mean 'sigma'"):
      init(SigmaReparamDense(4, gain_init='sgima'), x)
    params = init(Net(), x)['params']
    with pytest.raises(UserError, match="spectral has no u for 'up'"):
      Net().apply({'params': params}, x)


class TestState:
  """The vector moves once for each update, and in training only."""

  x = normal(0, 4, 5)

  def test_evaluation_leaves_u_and_repeats(self):
    params, state = started(Net(), self.x)
    call = jax.jit(lambda params, state: Net().apply({'params': params, 'spectral': state}, self.x, mutable=['losses']))
    (first, changed), (second, _) = call(params, state), call(params, state)
    assert 'spectral' not in changed
    np.testing.assert_array_equal(first, second)

  @pytest.mark.parametrize('remat', [False, True])
  def test_advance_and_forward_are_one_mutable_forward(self, remat):
    params, state = started(Net(), self.x)
    y, moved = jax.jit(lambda p, s: Net(remat).apply({'params': p, 'spectral': s}, self.x, mutable=['spectral']))(params, state)
    advanced = jax.jit(spectral.advance)(params, state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), advanced, moved['spectral'])
    np.testing.assert_allclose(apply(Net(), {'params': params, 'spectral': advanced}, self.x), y, rtol=1e-6, atol=1e-6)
    assert np.max(np.abs(advanced['up']['u'] - state['up']['u'])) > 1e-3

  def test_gradient_of_a_mutable_forward_with_and_without_remat(self):
    params, state = started(Net(), self.x)

    def loss(params, state, remat, mutable):
      if not mutable:
        return jnp.sum(jnp.square(Net(remat).apply({'params': params, 'spectral': state}, self.x))), None
      y, moved = Net(remat).apply({'params': params, 'spectral': state}, self.x, mutable=['spectral'])
      return jnp.sum(jnp.square(y)), moved['spectral']

    grad = jax.jit(jax.grad(loss, has_aux=True), static_argnums=(2, 3))
    want = grad(params, spectral.advance(params, state), False, False)[0]
    for remat in (False, True):
      got, moved = grad(params, state, remat, True)
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)
      # Computed twice under remat, stepped once.
      np.testing.assert_allclose(moved['up']['u'], spectral.advance(params, state)['up']['u'], rtol=1e-6, atol=1e-7)

  def test_microbatches_by_scan_and_vmap(self):
    params, state = started(Net(), self.x)
    state = spectral.advance(params, state)
    grad = jax.grad(lambda params, x: jnp.sum(jnp.square(Net().apply({'params': params, 'spectral': state}, x))))
    parts = self.x.reshape(2, 2, 5)
    whole = jax.jit(grad)(params, self.x)
    add = lambda sums, x: (jax.tree.map(jnp.add, sums, grad(params, x)), None)
    scanned = jax.jit(lambda zeros: jax.lax.scan(add, zeros, parts)[0])(jax.tree.map(jnp.zeros_like, params))
    mapped = jax.tree.map(lambda g: g.sum(0), jax.jit(jax.vmap(grad, in_axes=(None, 0)))(params, parts))
    for got in (scanned, mapped):
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, whole)

  def test_layers_stacked_by_scan(self):
    class Layer(nn.Module):
      @nn.compact
      def __call__(self, x, _):
        return nn.tanh(SigmaReparamDense(5, name='map')(x)), None

    stack = nn.scan(Layer, variable_axes={'params': 0, 'spectral': 0}, split_rngs={'params': True}, length=3)()
    x = self.x
    params, state = started(stack, x, None)
    assert state['map']['u'].shape == (3, 5)
    (y, _), moved = jax.jit(lambda p, s: stack.apply({'params': p, 'spectral': s}, x, None, mutable=['spectral']))(params, state)
    advanced = spectral.advance(params, state)
    np.testing.assert_allclose(moved['spectral']['map']['u'], advanced['map']['u'], rtol=1e-5, atol=1e-6)
    folded = spectral.fold(params, advanced)['map']
    norms = spectral.spectral_norms(params, advanced)['map/norm']
    for i in range(3):
      x = np.tanh(x @ np.asarray(folded['kernel'][i]) + np.asarray(folded['bias'][i]))
      np.testing.assert_allclose(norms[i], matrix_norm(folded['kernel'][i]), rtol=1e-5)
    np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-6)

  def test_seeds_by_vmap(self):
    keys = jax.random.split(KEY, 3)
    variables = jax.jit(jax.vmap(Net().init, in_axes=(0, None)))(keys, self.x)
    got = jax.jit(jax.vmap(lambda v: Net().apply(v, self.x)))(variables)
    for i in range(3):
      np.testing.assert_allclose(got[i], apply(Net(), jax.jit(Net().init)(keys[i], self.x), self.x), rtol=1e-4, atol=1e-5)


class TestSigmaReparamGeneral:
  @pytest.mark.parametrize('features, axis, bias', [((3, 2, 4), -1, True), (6, (-2, -1), True), ((2, 3), (1, -1), False)])
  def test_is_dense_general_with_the_folded_kernel(self, features, axis, bias):
    x = normal(0, 2, 3, 4)
    layer = SigmaReparamGeneral(features, axis=axis, use_bias=bias)
    variables = init(layer, x)
    params, state = variables['params'], {'u': jnp.asarray(unit(normal(1, np.prod(features))))}
    plain = nn.DenseGeneral(features, axis=axis, use_bias=bias)
    start = init(plain, x)['params']
    np.testing.assert_allclose(params['kernel'], start['kernel'], rtol=1e-6)
    assert params['gain'].shape == () and variables['spectral']['u'].shape == (np.prod(features),)
    w = np.asarray(params['kernel']).reshape(-1, np.prod(features))
    np.testing.assert_allclose(jnp.linalg.norm(w @ variables['spectral']['u']), matrix_norm(w), rtol=1e-5)
    params = {**params, 'gain': jnp.float32(1.7)}
    want = {**start, 'kernel': 1.7 * params['kernel'] / np.linalg.norm(w @ state['u'])}
    got = apply(layer, {'params': params, 'spectral': state}, x)
    np.testing.assert_allclose(got, apply(plain, {'params': want}, x), rtol=1e-5, atol=1e-6)
    folded = spectral.fold({'a': params}, {'a': state})['a']
    np.testing.assert_allclose(folded['kernel'], want['kernel'], rtol=1e-5)

  def test_is_dense_for_one_axis(self):
    x = normal(0, 2, 5)
    general, dense = SigmaReparamGeneral(4), SigmaReparamDense(4)
    params, state = {'kernel': normal(1, 5, 4), 'gain': jnp.float32(0.7), 'bias': normal(2, 4)}, stale(3, 4)
    variables = {'params': params, 'spectral': state}
    np.testing.assert_array_equal(general.apply(variables, x), dense.apply(variables, x))

  def test_no_slice_is_above_the_gain(self):
    layer = SigmaReparamGeneral((3, 2, 4), use_bias=False)
    variables = init(layer, jnp.ones((1, 8)))
    kernel = np.asarray(spectral.fold(**variables)['kernel'])
    np.testing.assert_allclose(matrix_norm(kernel.reshape(8, 24)), 1, rtol=1e-5)
    heads = [matrix_norm(kernel[:, i, j]) for i in range(3) for j in range(2)]
    assert max(heads) < 1 and min(heads) > 0.1

  def test_batch_dims_are_refused(self):
    with pytest.raises(UserError, match=r'batch_dims is \(0,\): set it to \(\)'):
      init(SigmaReparamGeneral(4, batch_dims=(0,), axis=-1), jnp.ones((2, 3)))


class TestSigmaReparamConv:
  def test_against_the_matrix_of_the_convolution(self):
    # Every output pixel is its window times (gain / sigma) W, written as one matrix from all input to all output pixels.
    H, C, F, k = 5, 2, 3, 3
    layer = SigmaReparamConv(F, (k, k), strides=2, padding='VALID')
    params = {'kernel': normal(0, k, k, C, F), 'gain': jnp.float32(-0.8), 'bias': normal(1, F)}
    state, x = stale(2, F), normal(3, 1, H, H, C)
    w = params['kernel'].reshape(k * k * C, F)
    effective = (-0.8 * w / np.linalg.norm(w @ np.asarray(state['u']))).reshape(k, k, C, F)
    matrix = np.zeros((H, H, C, 2, 2, F))
    for i, j, a, b in np.ndindex(2, 2, k, k):
      matrix[2 * i + a, 2 * j + b, :, i, j, :] = effective[a, b]
    want = x.reshape(-1) @ matrix.reshape(H * H * C, -1)
    got = apply(layer, {'params': params, 'spectral': state}, x)[0]
    np.testing.assert_allclose(got, want.reshape(2, 2, F) + params['bias'], rtol=1e-4, atol=1e-5)
    # A pixel lies in at most 4 windows: the map of images has at most sqrt(4) times the norm of the matrix.
    one = matrix_norm(effective.reshape(-1, F))
    assert one * (1 - 1e-6) <= matrix_norm(matrix.reshape(H * H * C, -1)) <= 2 * one

  def test_patches_are_dense(self):
    x = normal(0, 2, 6, 4, 3)
    layer = SigmaReparamConv(5, (2, 2), strides=(2, 2))
    variables = init(layer, x)
    patches = x.reshape(2, 3, 2, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 3, 2, 12)
    params = variables['params']
    dense = {'params': {**params, 'kernel': params['kernel'].reshape(12, 5)}, 'spectral': variables['spectral']}
    np.testing.assert_allclose(apply(layer, variables, x), apply(SigmaReparamDense(5), dense, patches), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(spectral.spectral_norms(**variables)['norm'], 1, rtol=1e-5)

  def test_one_dimension_and_gain_of_sigma(self):
    x = normal(0, 2, 7, 3)
    layer, plain = SigmaReparamConv(4, (3,), padding='CAUSAL', gain_init='sigma'), nn.Conv(4, (3,), padding='CAUSAL')
    np.testing.assert_allclose(apply(layer, init(layer, x), x), apply(plain, init(plain, x), x), rtol=1e-4, atol=1e-5)

  def test_mask_is_refused(self):
    with pytest.raises(UserError, match='mask is set'):
      init(SigmaReparamConv(4, (3,), mask=jnp.ones((3, 3, 4))), jnp.ones((2, 7, 3)))


class TestSpectralNormDense:
  def test_is_sigma_reparam_with_gain_one(self):
    x, state = normal(0, 4, 5), stale(1, 3)
    params = {'kernel': normal(2, 5, 3), 'bias': normal(3, 3)}
    f = lambda layer, params: jnp.sum(jnp.tanh(layer.apply({'params': params, 'spectral': state}, x)))
    value, gradient = jax.value_and_grad(lambda p: f(SpectralNormDense(3), p))(params)
    want, with_gain = jax.value_and_grad(lambda p: f(SigmaReparamDense(3), p))({**params, 'gain': jnp.float32(1)})
    np.testing.assert_allclose(value, want, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradient, {k: with_gain[k] for k in gradient})

  def test_starts_at_norm_one_without_a_gain(self):
    variables = init(SpectralNormDense(6), jnp.ones((1, 4)))
    assert set(variables['params']) == {'kernel', 'bias'}
    np.testing.assert_allclose(matrix_norm(spectral.fold(**variables)['kernel']), 1, rtol=1e-5)

  def test_agrees_with_flax_after_convergence(self):
    x = normal(0, 4, 5)
    layer, other = SpectralNormDense(3), nn.SpectralNorm(nn.Dense(3), n_steps=200)
    variables = jax.jit(functools.partial(other.init, update_stats=False))(KEY, x)
    want, _ = jax.jit(functools.partial(other.apply, update_stats=True, mutable=['batch_stats']))(variables, x)
    params = variables['params']['layer_instance']
    state = {'u': spectral.top_singular_vector(params['kernel'])}
    np.testing.assert_allclose(apply(layer, {'params': params, 'spectral': state}, x), want, rtol=1e-4, atol=1e-5)


class TestConversionOfModels:
  def test_plain_model_to_layers_and_back(self):
    class Model(nn.Module):
      kind: str

      @nn.compact
      def __call__(self, x):
        plain = self.kind == 'plain'
        x = (nn.Conv if plain else SigmaReparamConv)(6, (2, 2), strides=(2, 2), name='embed')(x).reshape(len(x), -1, 6)
        qkv = (nn.DenseGeneral if plain else SigmaReparamGeneral)((3, 2, 4), name='qkv')(x)
        x = (nn.DenseGeneral if plain else SigmaReparamGeneral)(6, axis=(-2, -1), name='output')(qkv.sum(2))
        return (nn.Dense if plain else SigmaReparamDense)(5, name='head')(nn.LayerNorm(name='norm')(x))

    x = normal(0, 2, 4, 4, 3)
    plain, layers = Model('plain'), Model('sigma')
    params = jax.jit(plain.init)(KEY, x)['params']
    want = jax.jit(plain.apply)({'params': params}, x)
    converted, state = jax.jit(spectral.convert)(params)
    shapes = jax.eval_shape(layers.init, KEY, x)
    assert jax.tree.map(jnp.shape, {'params': converted, 'spectral': state}) == jax.tree.map(lambda s: s.shape, shapes)
    np.testing.assert_allclose(jax.jit(layers.apply)({'params': converted, 'spectral': state}, x), want, atol=1e-5)
    # Exported after the vectors and gains moved.
    moved = jax.tree.map(lambda leaf: leaf * 1.1 + 0.05, converted)
    state = spectral.advance(moved, state)
    got = jax.jit(plain.apply)({'params': spectral.fold(moved, state)}, x)
    np.testing.assert_allclose(got, jax.jit(layers.apply)({'params': moved, 'spectral': state}, x), atol=1e-5)

  def test_frozen_variables(self):
    x = normal(0, 4, 5)
    variables = flax.core.freeze(init(Net(), x))
    state = spectral.advance(variables['params'], variables['spectral'])
    assert jax.tree.structure(state) == jax.tree.structure(variables['spectral'])
