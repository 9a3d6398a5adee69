"""Where blocks normalise, and DeepNorm's constants."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.layers import placement
from entropy_jax.types import UserError

RNG = np.random.default_rng(0)
X, KERNEL, WQ, WK = (RNG.normal(size=shape).astype(np.float32) for shape in ((2, 5, 8), (8, 8), (8, 4), (8, 4)))
X = 3 * X + 1
BRANCH = lambda x: np.tanh(x @ KERNEL)


def norm(x):
  """LayerNorm without parameters, in numpy."""
  return (x - np.mean(x, axis=-1, keepdims=True)) / np.sqrt(np.var(x, axis=-1, keepdims=True) + 1e-6)


class TestResidual:
  def test_by_hand(self):
    halve, triple, x = (lambda x: x / 2), (lambda x: 3 * x), jnp.array([4.0])
    at = lambda place, **kwargs: float(placement.residual(x, triple, halve, placement=place, **kwargs)[0])
    assert at('pre') == 10.0  # 4 + 3 * (4 / 2)
    assert at('post') == 8.0  # (4 + 12) / 2
    assert at('none') == 16.0  # 4 + 12
    assert at('deepnorm', alpha=3.0) == 12.0  # (3 * 4 + 12) / 2: alpha is on the skip

  def test_zero_branch_is_the_identity_before_the_norm(self):
    np.testing.assert_array_equal(placement.residual(X, lambda x: 0 * x, norm, placement='pre'), X)

  @pytest.mark.parametrize('place, alpha', [('post', None), ('deepnorm', 2.5)])
  def test_output_is_normalised_after_the_sum(self, place, alpha):
    y = placement.residual(X, BRANCH, norm, placement=place, alpha=alpha)
    np.testing.assert_allclose(np.mean(y, axis=-1), np.zeros((2, 5)), atol=1e-5)
    np.testing.assert_allclose(np.var(y, axis=-1), np.ones((2, 5)), rtol=1e-4)

  def test_deepnorm_with_alpha_one_is_post(self):
    a = placement.residual(X, BRANCH, norm, placement='deepnorm', alpha=1.0)
    np.testing.assert_array_equal(a, placement.residual(X, BRANCH, norm, placement='post'))

  def test_pre_norm_bounds_attention_logits(self):
    # |norm(x)| = sqrt(d), so |q.k| / sqrt(d_h) <= |W_Q W_K^T|_2 d / sqrt(d_h)
    seen = []
    placement.residual(1e3 * X, lambda x: seen.append(x) or x, norm, placement='pre')
    z = np.einsum('bqd,bkd->bqk', seen[0] @ WQ, seen[0] @ WK) / 2
    np.testing.assert_allclose(np.linalg.norm(seen[0], axis=-1), np.full((2, 5), np.sqrt(8)), rtol=1e-5)
    assert np.max(np.abs(z)) <= np.linalg.norm(WQ @ WK.T, 2) * 8 / 2

  def test_one_norm_a_branch_in_a_model(self):
    class Block(nn.Module):
      place: str

      @nn.compact
      def __call__(self, x):
        alpha = 2.0 if self.place == 'deepnorm' else None
        return placement.residual(x, nn.Dense(8, name='branch'), nn.LayerNorm(name='norm'), placement=self.place, alpha=alpha)

    for place in ('pre', 'post', 'none', 'deepnorm'):
      names = set(jax.eval_shape(Block(place).init, jax.random.key(0), X)['params'])
      assert names == ({'branch'} if place == 'none' else {'branch', 'norm'})

  def test_in_two_halves(self):
    for place, alpha in (('pre', None), ('post', None), ('none', None), ('deepnorm', 1.5)):
      out = BRANCH(placement.branch_input(X, norm, placement=place))
      got = placement.add_branch(X, out, norm, placement=place, alpha=alpha)
      np.testing.assert_array_equal(got, placement.residual(X, BRANCH, norm, placement=place, alpha=alpha))

  def test_keeps_bfloat16(self):
    y = placement.residual(jnp.asarray(X, jnp.bfloat16), lambda x: x, lambda x: x, placement='deepnorm', alpha=1.7)
    assert y.dtype == jnp.bfloat16

  @pytest.mark.parametrize(
    'kwargs, match',
    [
      ({'placement': 'posst'}, "Did you mean 'post'"),
      ({'placement': 'post', 'norm': None}, "'post' without a norm"),
      ({'placement': 'deepnorm'}, 'alpha is None'),
      ({'placement': 'pre', 'alpha': 2.0}, 'alpha is 2.0'),
    ],
  )
  def test_refuses(self, kwargs, match):
    with pytest.raises(UserError, match=match):
      placement.residual(X, BRANCH, **({'norm': norm} | kwargs))


class TestHasFinalNorm:
  def test_only_before_a_pre_norm_head(self):
    assert [placement.has_final_norm(p) for p in ('pre', 'post', 'none', 'deepnorm')] == [True, False, False, False]
    with pytest.raises(UserError, match='placement'):
      placement.has_final_norm('rms')


class TestDeepnorm:
  @pytest.mark.parametrize(
    'N, alpha, beta', [(2, 2**0.5, 0.5), (4, 1.681793, 0.420448), (8, 2, 0.353553), (12, 2.213364, 0.319472), (100, 3.760603, 0.188030)]
  )
  @pytest.mark.parametrize('part', ['encoder', 'decoder'])
  def test_a_stack_alone(self, N, alpha, beta, part):
    for form in ('paper', 'released'):
      np.testing.assert_allclose(placement.deepnorm(N, part=part, form=form), (alpha, beta), atol=1e-6)

  def test_encoder_decoder(self):
    # (6^4 6)^(1/16) = 6^.3125 = 1.750541
    at = lambda part, form: placement.deepnorm(6, part=part, other_layers=6, form=form)
    np.testing.assert_allclose(at('encoder', 'paper'), (1.417938, 0.496989), atol=1e-6)
    np.testing.assert_allclose(at('encoder', 'released'), (1.417938, 0.656940), atol=1e-6)
    for form in ('paper', 'released'):
      np.testing.assert_allclose(at('decoder', form), (2.059767, 0.343295), atol=1e-6)

  def test_unequal_stacks(self):
    # N = 16, M = 1: (16^4)^(1/16) = 2; N = 1, M = 256: 256^(1/16) = sqrt(2)
    np.testing.assert_allclose(placement.deepnorm(16, part='encoder', other_layers=1), (1.62, 0.435), rtol=1e-12)
    np.testing.assert_allclose(placement.deepnorm(1, part='encoder', other_layers=256), (0.81 * 2**0.5, 0.87 / 2**0.5), rtol=1e-12)
    assert placement.deepnorm(27, part='decoder', other_layers=1) == (3.0, (12 * 27) ** -0.25)

  def test_product_does_not_depend_on_depth(self):
    for N in (1, 3, 50):
      alpha, beta = placement.deepnorm(N)
      np.testing.assert_allclose(alpha * beta, 2**-0.5, rtol=1e-12)

  @pytest.mark.parametrize(
    'args, kwargs, match',
    [((0,), {}, 'num_layers is 0'), ((2,), {'other_layers': 0}, 'other_layers is 0'), ((2,), {'part': 'decode'}, "Did you mean 'decoder'")],
  )
  def test_refuses(self, args, kwargs, match):
    with pytest.raises(UserError, match=match):
      placement.deepnorm(*args, **kwargs)


class TestDeepnormGain:
  def test_which_matrices_are_scaled(self):
    gain = lambda form: [placement.deepnorm_gain(m, beta=0.5, form=form) for m in ('query', 'key', 'value', 'output', 'up', 'gate', 'down')]
    assert gain('paper') == [1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5]
    np.testing.assert_allclose(gain('released'), [2**-0.5, 2**-0.5, 0.5 * 2**-0.5, 0.5, 0.5, 0.5, 0.5], rtol=1e-12)

  def test_refuses(self):
    with pytest.raises(UserError, match="Did you mean 'output'"):
      placement.deepnorm_gain('out_put', beta=0.5)


class TestDeepnormInit:
  def test_standard_deviation(self):
    # sqrt(2 / (300 + 500)) = .05; times beta
    draw = lambda matrix: np.std(placement.deepnorm_init(matrix, beta=0.25)(jax.random.key(0), (300, 500)))
    # 150,000 draws: the standard error of a deviation is .05 / sqrt(300,000) = 9e-5
    np.testing.assert_allclose(draw('query'), 0.05, atol=4e-4)
    np.testing.assert_allclose(draw('up'), 0.0125, atol=1e-4)
