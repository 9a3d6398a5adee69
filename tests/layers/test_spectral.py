import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.layers import spectral
from entropy_jax.models import transformer
from entropy_jax.types import UserError
from tests.ops.test_spectral import decomposed

normal = lambda seed, *shape: np.random.default_rng(seed).normal(size=shape).astype(np.float32)
unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
power_step, norm_along, top_singular_vector, effective_kernel = map(
  jax.jit, (spectral.power_step, spectral.norm_along, spectral.top_singular_vector, spectral.effective_kernel)
)


def decoder():
  config = transformer.DecoderConfig(
    vocab_size=11, width=8, num_layers=2, num_heads=2, num_kv_heads=1, mlp_width=12, max_length=6, qkv_bias=True
  )
  model = transformer.Decoder(config)
  tokens, mask = jnp.arange(12).reshape(2, 6) % 11, jnp.ones((2, 6), bool)
  params = jax.jit(model.init)(jax.random.key(0), tokens, mask)['params']
  # Biases start at zero: a conversion that lost them would go unseen.
  keys = iter(jax.random.split(jax.random.key(1), 100))
  params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)
  return params, jax.jit(lambda params: model.apply({'params': params}, tokens, mask))


@pytest.fixture(scope='module')
def trained():
  params, logits = decoder()
  converted, state = jax.jit(spectral.convert)(params)
  return params, logits, converted, state


class TestPowerStep:
  def test_table_of_diag_3_1(self):
    # From (1, 1) / sqrt(2) the step k gives u ~ (9^k, 1). The published table is v^T W u' with v of the old u, half a step behind
    # norm_along(u'): sqrt(82 / 10) = 2.863564 after one step, where norm_along is sqrt(730 / 82) = 2.983695.
    w, u = jnp.diag(jnp.array([3.0, 1.0])), jnp.full(2, 0.5**0.5)
    for k, want in enumerate([2.863564, 2.998173, 2.999977, 3.0], start=1):
      v = unit(w @ u)
      u = power_step(w, u)
      np.testing.assert_allclose(v @ w @ u, want, atol=1e-6)
      np.testing.assert_allclose(u, unit(np.array([9.0**k, 1.0])), rtol=1e-5)
      np.testing.assert_allclose(norm_along(w, u), np.hypot(3 * 9.0**k, 1) / np.hypot(9.0**k, 1), rtol=1e-6)

  def test_climbs_to_the_norm_from_below(self):
    w, u = normal(0, 9, 6), unit(normal(1, 6))
    norms = [float(norm_along(w, u))]
    for _ in range(100):
      u = power_step(w, u)
      norms.append(float(norm_along(w, u)))
    true = np.linalg.norm(w.astype(np.float64), 2)
    assert np.all(np.diff(norms) >= -1e-5) and max(norms) <= true * (1 + 1e-6)
    np.testing.assert_allclose(norms[-1], true, rtol=1e-5)
    assert norms[0] < 0.9 * true

  def test_stacked_maps_are_separate(self):
    w, u = normal(0, 2, 3, 5, 4), unit(normal(1, 2, 3, 4))
    got = power_step(w, u)
    for i in np.ndindex(2, 3):
      want = unit(w[i].T @ (w[i] @ u[i]))
      np.testing.assert_allclose(got[i], want, rtol=1e-5, atol=1e-6)

  def test_a_kernel_of_zeros_keeps_u(self):
    u = unit(normal(0, 3))
    np.testing.assert_array_equal(power_step(jnp.zeros((4, 3)), u), u)

  def test_no_gradient(self):
    w, u = normal(0, 4, 3), unit(normal(1, 3))
    g = jax.grad(lambda w, u: power_step(w, u)[0], argnums=(0, 1))(w, u)
    assert not any(np.any(x) for x in g)


class TestNormAlong:
  def test_gradient_is_v_u(self):
    # W u = (3, 0) with u = (1, 0): v = (1, 0), and the gradient is the matrix unit of the corner.
    g = jax.grad(norm_along, argnums=(0, 1))(jnp.diag(jnp.array([3.0, 1.0])), jnp.array([1.0, 0.0]))
    np.testing.assert_array_equal(g[0], [[1, 0], [0, 0]])
    np.testing.assert_array_equal(g[1], [0, 0])

  def test_zeros_stay_finite_in_value_and_gradient(self):
    value, g = jax.value_and_grad(norm_along)(jnp.zeros((3, 2)), jnp.array([1.0, 0.0]))
    assert value == 0 and jnp.all(jnp.isfinite(g))


class TestTopSingularVector:
  @pytest.mark.parametrize('shape', [(7, 5), (5, 7), (4, 4), (1, 3), (3, 1)])
  def test_against_numpy(self, shape):
    w = normal(3, *shape)
    u = top_singular_vector(w)
    _, s, vt = np.linalg.svd(w.astype(np.float64))
    np.testing.assert_allclose(abs(vt[0] @ u), 1, rtol=1e-5)
    np.testing.assert_allclose(norm_along(w, u), s[0], rtol=1e-5)

  def test_equal_singular_values(self):
    # An orthogonal matrix: every direction is a top one.
    q = np.linalg.qr(normal(0, 6, 6))[0]
    np.testing.assert_allclose(norm_along(q, top_singular_vector(q)), 1, rtol=1e-5)

  def test_stacked_and_zero(self):
    w = np.stack([normal(0, 3, 5), np.zeros((3, 5), np.float32)])
    u = top_singular_vector(w)
    np.testing.assert_allclose(np.linalg.norm(u, axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(norm_along(w, u), [np.linalg.norm(w[0], 2), 0], rtol=1e-5)

  def test_one_matrix_a_call_under_vmap_too(self):
    """Batched LAPACK calls of programs that run beside each other on a CPU may wait for one another for ever."""
    w, mapped = normal(0, 3, 2, 6, 5), jax.jit(jax.vmap(spectral.top_singular_vector))
    assert set(decomposed(jax.make_jaxpr(mapped)(w).jaxpr)) == {(5, 5)}
    np.testing.assert_allclose(mapped(w), top_singular_vector(w), atol=1e-6)

  def test_ideal_adam_step(self):
    # Proposition 3.2: D = mu / sqrt(mu^2 + n^2) has |D|_2 >= sqrt(w) sqrt(1 - mean n^2 / (mu^2 + n^2)).
    # mu = 1, n = 0, w = 64: |ones|_2 = 64 >= 8.
    norm = lambda d: float(norm_along(d, top_singular_vector(d)))
    np.testing.assert_allclose(norm(np.ones((64, 64), np.float32)), 64, rtol=1e-5)
    for noise in (0.0, 0.3, 3.0):
      mu, n = normal(0, 64, 64), noise * np.abs(normal(1, 64, 64))
      bound = 8 * np.sqrt(1 - np.mean(n**2 / (mu**2 + n**2)))
      assert norm(mu / np.sqrt(mu**2 + n**2)) >= bound > 0


class TestEffectiveKernel:
  def test_by_hand(self):
    # W = diag(3, 1), u = (1, 0): sigma = 3 and the kernel is diag(1, 1/3). With G = ones, <G, W> = 4 and
    # dW = (G - 4/3 v u^T) / 3 = [[-1/9, 1/3], [1/3, 1/3]], dgain = 4/3.
    w, u = jnp.diag(jnp.array([3.0, 1.0])), jnp.array([1.0, 0.0])
    np.testing.assert_allclose(effective_kernel(w, u), [[1, 0], [0, 1 / 3]], rtol=1e-6)
    dw, dgain = jax.grad(lambda w, gain: jnp.sum(effective_kernel(w, u, gain)), argnums=(0, 1))(w, 1.0)
    np.testing.assert_allclose(dw, [[-1 / 9, 1 / 3], [1 / 3, 1 / 3]], rtol=1e-6)
    np.testing.assert_allclose(dgain, 4 / 3, rtol=1e-6)

  @pytest.mark.parametrize('converged', [False, True])
  def test_gradient_in_closed_form(self, converged):
    w, cotangent, gain = normal(0, 5, 4), normal(2, 5, 4), np.float32(-1.7)
    u = top_singular_vector(w) if converged else unit(normal(1, 4))
    f = lambda w, gain: jnp.sum(cotangent * effective_kernel(w, u, gain))
    dw, dgain = jax.jit(jax.grad(f, argnums=(0, 1)))(w, gain)
    w64, u64 = w.astype(np.float64), np.asarray(u, np.float64)
    sigma = np.linalg.norm(w64 @ u64)
    inner = np.sum(cotangent * w64)
    np.testing.assert_allclose(dw, gain / sigma * (cotangent - inner / sigma * np.outer(w64 @ u64 / sigma, u64)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dgain, inner / sigma, rtol=1e-5)
    assert abs(np.sum(dw * w)) < 1e-5 * np.linalg.norm(dw) * np.linalg.norm(w)

  def test_norm_is_at_least_the_gain(self):
    w = normal(0, 6, 9)
    exact = effective_kernel(w, top_singular_vector(w), -0.5)
    np.testing.assert_allclose(np.linalg.norm(exact, 2), 0.5, rtol=1e-5)
    assert np.linalg.norm(effective_kernel(w, unit(normal(1, 9)), -0.5), 2) > 0.6

  def test_zeros_stay_finite_in_value_and_gradient(self):
    f = lambda w: jnp.sum(effective_kernel(w, jnp.array([1.0, 0.0]), 2.0))
    value, g = jax.value_and_grad(f)(jnp.zeros((3, 2)))
    assert value == 0
    np.testing.assert_array_equal(g, np.full((3, 2), 2.0))  # divided by 1

  def test_any_rank_and_stack(self):
    kernel, u, gain = normal(0, 2, 3, 4, 5), unit(normal(1, 2, 20)), np.array([1.0, 3.0], np.float32)
    got = effective_kernel(kernel, u, gain)
    for i in range(2):
      w = kernel[i].reshape(3, 20)
      np.testing.assert_allclose(got[i], gain[i] * kernel[i] / np.linalg.norm(w @ u[i]), rtol=1e-5)


class TestAdvance:
  def test_steps_every_map_and_nothing_else(self):
    params = {'a': {'kernel': normal(0, 3, 4), 'gain': jnp.float32(1), 'bias': jnp.ones(4)}, 'b': {'c': {'kernel': normal(1, 2, 5, 3)}}}
    state = {'a': {'u': unit(normal(2, 4))}, 'b': {'c': {'u': unit(normal(3, 3))}}}
    got = jax.jit(spectral.advance)(params | {'embed': jnp.ones((3, 3)), 'norm': {'scale': jnp.ones(3)}}, state)
    assert jax.tree.structure(got) == jax.tree.structure(state)
    np.testing.assert_allclose(got['a']['u'], unit(params['a']['kernel'].T @ (params['a']['kernel'] @ state['a']['u'])), rtol=1e-5)
    w = params['b']['c']['kernel'].reshape(10, 3)
    np.testing.assert_allclose(got['b']['c']['u'], unit(w.T @ (w @ state['b']['c']['u'])), rtol=1e-5)

  def test_more_steps(self):
    params, state = {'a': {'kernel': normal(0, 3, 4)}}, {'a': {'u': unit(normal(2, 4))}}
    want = state
    for _ in range(3):
      want = spectral.advance(params, want)
    np.testing.assert_allclose(spectral.advance(params, state, num_steps=3)['a']['u'], want['a']['u'], rtol=1e-6)
    with pytest.raises(UserError, match='num_steps is 0: give at least 1'):
      spectral.advance(params, state, num_steps=0)

  def test_a_model_without_maps(self):
    assert spectral.advance({'a': {'kernel': jnp.ones((2, 2))}}, {}) == {}

  def test_keeps_frozen_mappings(self):
    state = flax.core.freeze({'a': {'u': jnp.array([1.0, 0.0])}})
    got = spectral.advance(flax.core.freeze({'a': {'kernel': jnp.ones((2, 2))}}), state)
    assert jax.tree.structure(got) == jax.tree.structure(state)

  @pytest.mark.parametrize(
    'params, state, message',
    [
      ({'b': {'kernel': np.ones((2, 2))}}, {'a': {'u': np.ones(2)}}, "vector u at 'a', where params has no kernel"),
      ({'a': {'kernel': np.ones((2, 3))}}, {'a': {'u': np.ones(2)}}, r"u at 'a' has shape \(2,\).*kernel \(2, 3\)"),
      ({'a': {'kernel': np.ones((2, 3))}}, {'a': {'u': np.ones(6)}}, r"u at 'a' has shape \(6,\)"),
      ({'a': {'kernel': np.ones((2, 2, 3))}}, {'a': {'u': np.ones((4, 3))}}, r"u at 'a' has shape \(4, 3\)"),
      ({'a': {'kernel': np.ones((2, 2)), 'gain': np.ones(())}}, {}, "params has a gain at 'a', for which spectral has no u"),
    ],
  )
  def test_trees_of_two_models(self, params, state, message):
    for f in (spectral.advance, spectral.fold, spectral.spectral_norms):
      with pytest.raises(UserError, match=message):
        f(params, state)


class TestConvertAndFold:
  def test_decoder_there_and_back(self, trained):
    params, logits, converted, state = trained
    names = {path[:-1] for path in flax.traverse_util.flatten_dict(state)}
    blocks = [('block_0',), ('block_1',)]
    maps = [('attention', name) for name in ('query', 'key', 'value', 'output')] + [('mlp', name) for name in ('gate', 'up', 'down')]
    assert names == {(*block, *path) for block in blocks for path in maps}
    folded = jax.jit(spectral.fold)(converted, state)
    assert jax.tree.structure(folded) == jax.tree.structure(params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), folded, params)
    np.testing.assert_allclose(logits(folded), logits(params), atol=1e-5)

  def test_a_step_of_training_and_there_again(self, trained):
    # Kernels, gains and vectors moved: what is folded and converted again is the same function with converged vectors.
    _, logits, converted, state = trained
    keys = iter(jax.random.split(jax.random.key(2), 100))
    moved = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), converted)
    folded = jax.jit(lambda params, state: spectral.fold(params, spectral.advance(params, state)))(moved, state)
    again = jax.jit(lambda params: spectral.fold(*spectral.convert(params)))(folded)
    np.testing.assert_allclose(logits(again), logits(folded), atol=1e-5)

  def test_one_scales_every_map_to_norm_one(self):
    w = normal(0, 4, 6)
    params, state = spectral.convert({'a': {'kernel': w, 'bias': jnp.ones(6)}}, gain_init='one')
    assert params['a']['gain'] == 1
    folded = spectral.fold(params, state)['a']
    np.testing.assert_allclose(folded['kernel'], w / np.linalg.norm(w, 2), rtol=1e-5)
    np.testing.assert_array_equal(folded['bias'], np.ones(6))

  def test_is_map_chooses(self):
    params = {'a': {'kernel': normal(0, 3, 3)}, 'head': {'kernel': normal(1, 3, 2)}, 'scale': {'kernel': jnp.ones(3)}}
    got, state = spectral.convert(params, is_map=lambda path: path != 'head')
    assert set(state) == {'a'} and set(got['head']) == {'kernel'} and set(got['a']) == {'kernel', 'gain'}

  def test_axes_of_outputs_and_stacks(self):
    kernel, stack = normal(0, 4, 2, 3), normal(1, 5, 4, 3)
    _, state = spectral.convert({'a': {'kernel': kernel, 'bias': jnp.ones((2, 3))}})  # the bias tells
    np.testing.assert_allclose(np.linalg.norm(kernel.reshape(4, 6) @ state['a']['u']), np.linalg.norm(kernel.reshape(4, 6), 2), rtol=1e-5)
    _, state = spectral.convert({'a': {'kernel': kernel}})
    assert state['a']['u'].shape == (3,)
    _, state = spectral.convert({'a': {'kernel': kernel}}, num_output_axes=lambda path: 2)
    assert state['a']['u'].shape == (6,)
    for node in ({'kernel': stack}, {'kernel': stack, 'bias': jnp.ones((5, 3))}):
      params, state = spectral.convert({'a': node}, num_stacked_axes=lambda path: 1)
      np.testing.assert_allclose(params['a']['gain'], [np.linalg.norm(w, 2) for w in stack], rtol=1e-5)
      np.testing.assert_allclose(spectral.fold(params, state)['a']['kernel'], stack, rtol=1e-6)

  def test_bfloat16_kernels_stay(self):
    params, state = spectral.convert({'a': {'kernel': jnp.asarray(normal(0, 4, 4), jnp.bfloat16)}})
    assert state['a']['u'].dtype == params['a']['gain'].dtype == jnp.float32
    assert spectral.fold(params, state)['a']['kernel'].dtype == jnp.bfloat16

  def test_fold_of_spectral_normalisation(self):
    w = normal(0, 4, 3)
    folded = spectral.fold({'a': {'kernel': w}}, {'a': {'u': top_singular_vector(w)}})
    np.testing.assert_allclose(np.linalg.norm(folded['a']['kernel'], 2), 1, rtol=1e-5)

  def test_mistakes(self):
    plain = {'a': {'kernel': normal(0, 3, 3)}, 'b': {'kernel': normal(0, 3, 3)}}
    with pytest.raises(UserError, match="gain_init is 'sgima': choose one of one, sigma"):
      spectral.convert(plain, gain_init='sgima')
    with pytest.raises(UserError, match='is_map chose none of the maps of params: choose among a, b'):
      spectral.convert(plain, is_map=lambda path: path == 'c')
    with pytest.raises(UserError, match='params has no kernel'):
      spectral.convert({'embed': jnp.ones((3, 3))})
    with pytest.raises(UserError, match="params has a gain at 'a' already"):
      spectral.convert(spectral.convert(plain)[0])
    with pytest.raises(UserError, match=r"kernel at 'a' has shape \(3, 3\), which leaves no input beside 1 stacked and 1 output axes"):
      spectral.convert(plain, num_stacked_axes=lambda path: 1)


class TestSpectralNorms:
  def test_against_numpy(self, trained):
    _, _, params, state = trained
    keys = iter(jax.random.split(jax.random.key(3), 100))
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), params)
    got = jax.jit(spectral.spectral_norms)(params, state)
    folded = spectral.fold(params, state)
    assert len(got) == 2 * len(jax.tree.leaves(state))
    norm = np.linalg.norm(folded['block_1']['mlp']['up']['kernel'], 2)
    np.testing.assert_allclose(got['block_1/mlp/up/norm'], norm, rtol=1e-5)
    ratio = norm / abs(params['block_1']['mlp']['up']['gain'])
    assert ratio > 1.001
    np.testing.assert_allclose(got['block_1/mlp/up/norm_over_gain'], ratio, rtol=1e-5)

  def test_converged(self, trained):
    _, _, params, state = trained
    got = jax.jit(spectral.spectral_norms)(params, state)
    np.testing.assert_allclose([value for name, value in got.items() if name.endswith('over_gain')], 1, rtol=1e-5)

  def test_gains_of_zero_and_below_and_none(self):
    w, u = jnp.diag(jnp.array([3.0, 1.0])), jnp.array([0.0, 1.0])  # sigma = 1, a third of the norm
    for gain, want in ((0.0, 0.0), (-2.0, 6.0), (None, 3.0)):
      node = {'kernel': w} if gain is None else {'kernel': w, 'gain': jnp.float32(gain)}
      got = spectral.spectral_norms({'a': node}, {'a': {'u': u}})
      np.testing.assert_allclose([got['a/norm'], got['a/norm_over_gain']], [want, 3.0], rtol=1e-6)

  def test_kernel_of_zeros(self):
    got = spectral.spectral_norms({'kernel': jnp.zeros((2, 2))}, {'u': jnp.array([0.0, 1.0])})
    assert got == {'norm': 0, 'norm_over_gain': 1}
