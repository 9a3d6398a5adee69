"""Spectral norms against numpy's singular values, closed forms and automatic differentiation."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.ops import spectral

pytestmark = pytest.mark.usefixtures('strict_dtypes')
RNG = np.random.default_rng(0)
spectral_norm, product_norm, prefix_norms = (jax.jit(f) for f in (spectral.spectral_norm, spectral.product_norm, spectral.prefix_norms))
value_and_grad = jax.jit(jax.value_and_grad(spectral.spectral_norm))


def singular_norm(x: np.ndarray) -> np.ndarray:
  return np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)[..., 0]


class TestAsMatrix:
  def test_dense_stays_and_window_axes_join_the_input(self):
    dense, window = np.arange(6.0).reshape(2, 3), np.arange(24.0).reshape(2, 2, 3, 2)
    np.testing.assert_array_equal(spectral.as_matrix(jnp.array(dense)), dense)
    # row (a, b, i) of the matrix is a * 2 * 3 + b * 3 + i
    np.testing.assert_array_equal(spectral.as_matrix(jnp.array(window))[1 * 6 + 0 * 3 + 2], window[1, 0, 2])

  def test_norm_is_that_of_the_patchwise_map(self):
    # A convolution whose stride is its window is the matrix applied to each patch.
    kernel, patch = jnp.array(RNG.normal(size=(2, 2, 3, 4))), jnp.array(RNG.normal(size=(1, 2, 2, 3)))
    out = jax.lax.conv_general_dilated(patch, kernel, (2, 2), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    np.testing.assert_allclose(out[0, 0, 0], patch.reshape(-1) @ spectral.as_matrix(kernel), rtol=1e-4)


class TestSpectralNorm:
  def test_by_hand(self):
    # [[1, 1], [0, 1]]: W^T W = [[1, 1], [1, 2]] has eigenvalues (3 +- sqrt 5) / 2
    np.testing.assert_allclose(spectral_norm(jnp.array([[1.0, 1.0], [0.0, 1.0]])), np.sqrt((3 + np.sqrt(5)) / 2), rtol=1e-6)
    np.testing.assert_allclose(spectral_norm(jnp.ones((3, 12))), 6.0, rtol=1e-6)  # sqrt(3 * 12)

  @pytest.mark.parametrize('shape', [(3, 5, 9), (3, 9, 5), (2, 3, 4, 4), (1, 7), (7, 1)])
  def test_singular_values(self, shape: tuple[int, ...]):
    x = RNG.normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(spectral_norm(x), singular_norm(x), rtol=1e-5)

  def test_entries_whose_squares_leave_float32(self):
    x = RNG.normal(size=(4, 3)).astype(np.float32)
    for scale in (1e25, 1e-25):
      np.testing.assert_allclose(spectral_norm(jnp.array(x * np.float32(scale))), singular_norm(x) * scale, rtol=1e-5)

  def test_gradient_is_the_outer_product_of_singular_vectors(self):
    x = RNG.normal(size=(4, 3)).astype(np.float32)
    u, _, vt = np.linalg.svd(x)
    np.testing.assert_allclose(value_and_grad(jnp.array(x))[1], np.outer(u[:, 0], vt[0]), rtol=1e-3, atol=1e-5)

  def test_zero_degenerate_and_broken(self):
    value, grad = value_and_grad(jnp.zeros((3, 2)))
    assert float(value) == 0.0 and np.array_equal(grad, np.zeros((3, 2)))
    value, grad = value_and_grad(jnp.eye(3))
    np.testing.assert_allclose(value, 1.0, rtol=1e-6)
    assert np.isfinite(grad).all()
    broken = spectral_norm(jnp.stack([jnp.eye(2), jnp.full((2, 2), jnp.nan), jnp.diag(jnp.array([jnp.inf, 1.0]))]))
    assert np.array_equal(np.isnan(broken), [False, True, True]) and float(broken[0]) == 1.0

  def test_bfloat16_is_computed_in_float32(self):
    x = jnp.array(RNG.normal(size=(8, 8)), jnp.bfloat16)
    got = spectral_norm(x)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, singular_norm(np.asarray(x, np.float64)), rtol=1e-5)


class TestOneMatrixACall:
  """On the CPU of the tests. Batched LAPACK calls wait for the threads that they run on, and two of them at a time may never end."""

  @pytest.mark.parametrize('of', ['spectral_norm', 'prefix_norms', 'product_norm'])
  def test_no_batched_decomposition(self, of: str):
    x = jnp.ones((2, 3, 6, 5))
    traced = jax.make_jaxpr(getattr(spectral, of))(*([x, x] if of == 'product_norm' else [x]))
    assert (shapes := decomposed(traced.jaxpr)) and all(len(shape) == 2 for shape in shapes), shapes


def decomposed(jaxpr) -> list[tuple[int, ...]]:
  """Shapes that LAPACK is called with anywhere in a program."""
  found = []
  for eqn in jaxpr.eqns:
    if eqn.primitive.name in ('eigh', 'geqrf', 'qr', 'svd'):
      found.append(eqn.invars[0].aval.shape)
    for part in jax.extend.core.jaxprs_in_params(eqn.params):
      found += decomposed(part)
  return found


class TestProductNorm:
  @pytest.mark.parametrize('shape', [(6, 2, 6), (6, 3, 5), (3, 8, 4), (5, 5, 5)])
  def test_the_product_formed(self, shape: tuple[int, int, int]):
    i, k, j = shape
    a, b = RNG.normal(size=(2, i, k)).astype(np.float32), RNG.normal(size=(2, j, k)).astype(np.float32)
    np.testing.assert_allclose(product_norm(a, b), singular_norm(a @ np.swapaxes(b, 1, 2)), rtol=1e-5)

  def test_is_at_most_the_product_of_norms_and_may_be_zero(self):
    a, b = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 3.0]])  # rows in different directions: a b^T = 0
    assert float(product_norm(a, b)) == 0.0
    np.testing.assert_allclose(product_norm(a, a), 4.0, rtol=1e-6)


class TestPrefixNorms:
  @pytest.mark.parametrize('shape', [(2, 9, 4), (2, 4, 9), (5, 5)])
  def test_every_prefix(self, shape: tuple[int, ...]):
    x = RNG.normal(size=shape).astype(np.float32)
    want = np.stack([singular_norm(x[..., : i + 1, :]) for i in range(shape[-2])], axis=-1)
    np.testing.assert_allclose(prefix_norms(x), want, rtol=1e-5)

  def test_rows_of_zeros_change_nothing(self):
    x = RNG.normal(size=(3, 4)).astype(np.float32)
    padded = np.concatenate([np.zeros((3, 4), np.float32), x])
    got = prefix_norms(jnp.array(padded))
    np.testing.assert_allclose(got[3:], prefix_norms(jnp.array(x)), rtol=1e-5)
    assert np.array_equal(got[:3], np.zeros(3))
