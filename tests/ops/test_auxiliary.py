"""Auxiliary losses: the cards' numbers, closed gradients, masks, and merging."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats

from entropy_jax.ops import auxiliary, categorical, masked
from entropy_jax.types import UserError

pytestmark = pytest.mark.usefixtures('strict_dtypes')

Y = jnp.array([2.0, 1.0, 0.0])
GARBAGE = (np.nan, np.inf, -np.inf, 3e38)
RNG = np.random.default_rng(0)


def normal(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def replaced(x, index, value):
  changed = np.array(x)
  changed[index] = value
  return changed


class TestZLoss:
  def test_card_values(self):
    # ln(e^2 + e + 1) = 2.407606; 1e-4 * 2.407606^2; 2e-4 * 2.407606 * softmax
    value, grad = jax.jit(jax.value_and_grad(auxiliary.z_loss))(Y)
    np.testing.assert_allclose(value, 5.796566e-4, rtol=1e-6)
    np.testing.assert_allclose(grad, [3.203276e-4, 1.178419e-4, 4.335163e-5], rtol=1e-6)

  def test_normalised_logits_cost_nothing(self):
    y = jnp.log(jnp.array([0.5, 0.25, 0.25]))
    value, grad = jax.jit(jax.value_and_grad(lambda y: auxiliary.z_loss(y, coef=1.0)))(y)
    np.testing.assert_allclose(value, 0.0, atol=1e-12)
    np.testing.assert_allclose(grad, jnp.zeros(3), atol=1e-6)

  def test_a_shift_changes_it(self):
    # ln Z moves with the shift: (2.407606 - 1)^2
    np.testing.assert_allclose(auxiliary.z_loss(Y - 1.0, coef=1.0), 1.407606**2, rtol=1e-5)

  def test_no_gradient_to_the_coefficient(self):
    assert jax.jit(jax.grad(lambda c: auxiliary.z_loss(Y, coef=c)))(0.5) == 0.0

  def test_impossible_tokens_and_float32(self):
    value, grad = jax.jit(jax.value_and_grad(lambda y: auxiliary.z_loss(y, coef=1.0)))(jnp.array([1.0, -jnp.inf]))
    assert value == 1.0 and grad.tolist() == [2.0, 0.0]
    assert jax.eval_shape(auxiliary.z_loss, jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.float32


class TestTokenLosses:
  def test_against_optax(self):
    logits, target = 3 * normal(2, 4, 7), RNG.integers(0, 7, (2, 4), np.int32)
    found = jax.jit(auxiliary.token_losses)(logits, target, np.ones((2, 4), bool))
    want = jax.jit(optax.softmax_cross_entropy_with_integer_labels)(logits, target)
    np.testing.assert_allclose(found.cross_entropy_BxT, want, rtol=1e-5)  # without the z term
    np.testing.assert_allclose(found.z_loss_BxT, 1e-4 * scipy.special.logsumexp(logits, axis=-1) ** 2, rtol=1e-5)

  def test_gradient_of_the_sum(self):
    # (1 + 2 c ln Z) softmax - onehot, with c = .1 and ln Z = 2.407606
    def loss(y):
      found = auxiliary.token_losses(y[None, None], jnp.array([[1]]), jnp.array([[True]]), z_coef=0.1)
      return jnp.sum(found.cross_entropy_BxT + found.z_loss_BxT)

    p = scipy.special.softmax(np.array(Y))
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(Y), (1 + 0.2 * 2.407606) * p - [0, 1, 0], rtol=1e-5)

  def test_masked_tokens_reach_nothing(self):
    mask, logits = np.array([[True, False, True]]), normal(1, 3, 5)

    def loss(logits, target):
      found = auxiliary.token_losses(logits, target, mask)
      return masked.mean_ratio(found.cross_entropy_BxT + found.z_loss_BxT, mask).compute()

    f = jax.jit(jax.value_and_grad(loss))
    value, grad = f(logits, np.array([[1, 2, 3]], np.int32))
    for garbage in GARBAGE:
      other, other_grad = f(replaced(logits, (0, 1), garbage), np.array([[1, -100, 3]], np.int32))
      assert value == other
      np.testing.assert_array_equal(grad, other_grad)

  def test_none_is_off(self):
    found = jax.jit(lambda: auxiliary.token_losses(Y[None, None], jnp.array([[0]]), jnp.array([[True]]), z_coef=None))()
    assert found.z_loss_BxT.tolist() == [[0.0]]
    np.testing.assert_allclose(found.cross_entropy_BxT, [[0.407606]], rtol=1e-5)


def penalty(entropy, r, **kwargs):
  """Of rows with T = 4, one head."""
  at = functools.partial(auxiliary.entropy_guided_penalty, num_keys=4, **kwargs)
  entropy = np.asarray(entropy, np.float32).reshape(1, 1, -1)
  return np.array(jax.jit(at)(entropy, np.array([r], np.float32), np.ones((1, entropy.size), bool)))[0, 0]


class TestEntropyGuidedPenalty:
  def test_card_values(self):
    # E = ln 4 = 1.386294, tolerance .2 E = .277259
    np.testing.assert_allclose(penalty([math.log(4), 0.0, 0.7], 0.5), [0.480453, 0.480453, 0.0], atol=1e-6)
    np.testing.assert_allclose(penalty([math.log(4)], 1.0), [0.0], atol=1e-6)
    np.testing.assert_allclose(penalty([0.7], 0.0), [0.49], atol=1e-6)

  def test_jump_and_hinge_at_the_edge(self):
    # d = .278 just outside: .278^2 against (.278 - .277259)^2
    tolerance, H = 0.2 * math.log(4), [0.278, 1.0, 0.277]
    np.testing.assert_allclose(penalty(H, 0.0), [0.278**2, 1.0, 0.0], rtol=1e-5)
    np.testing.assert_allclose(penalty(H, 0.0, edge='hinge'), [(0.278 - tolerance) ** 2, (1 - tolerance) ** 2, 0.0], rtol=1e-3)

  def test_wide_tolerance_is_off(self):
    assert not np.any(penalty(np.linspace(0, math.log(4), 9), 0.5, tolerance=0.500001))

  def test_gradients(self):
    # T = 4, r = (.5, .9): distances of head 0: .606853, -.693147, .006853; of head 1: .052336, -1.247665, -.547665
    entropy = jnp.array([[[1.3, 0.0, 0.7], [1.3, 0.0, 0.7]]])
    mask = jnp.ones((1, 3), bool)
    f = lambda h, r: jnp.sum(auxiliary.entropy_guided_penalty(h, r, mask, num_keys=4))
    to_entropy, to_r = jax.jit(jax.grad(f, argnums=(0, 1)))(entropy, jnp.array([0.5, 0.9]))
    E = math.log(4)
    d = np.array([[1.3 - 0.5 * E, -0.5 * E, 0.0], [0.0, -0.9 * E, 0.7 - 0.9 * E]])  # 0: inside the tolerance
    np.testing.assert_allclose(to_entropy[0], 2 * d, rtol=1e-5)
    np.testing.assert_allclose(to_r, -2 * E * d.sum(axis=1), rtol=1e-4, atol=1e-5)

  def test_inside_the_tolerance_there_is_no_gradient(self):
    f = lambda h, r: jnp.sum(auxiliary.entropy_guided_penalty(h, r, jnp.ones((1, 2), bool), num_keys=4))
    to_entropy, to_r = jax.jit(jax.grad(f, argnums=(0, 1)))(jnp.array([[[0.7, 0.6]]]), jnp.array([0.5]))
    assert not np.any(to_entropy) and not np.any(to_r)

  def test_maximum_of_the_row(self):
    # Rows that see 1, 2 and 8 keys, all uniform, r = 1: no distance from their own maximum; from ln 8 the first two are far.
    entropy, mask, r = np.log(np.array([[[1, 2, 8]]], np.float32)), np.ones((1, 3), bool), np.ones(1, np.float32)
    at = lambda num_keys: auxiliary.entropy_guided_penalty(entropy, r, mask, num_keys=num_keys, tolerance=0.01)
    own, same = jax.jit(lambda: (at(jnp.array([[1, 2, 8]])), at(8)))()
    np.testing.assert_array_equal(own, np.zeros((1, 1, 3)))
    np.testing.assert_allclose(np.array(same)[0, 0], [math.log(8) ** 2, math.log(4) ** 2, 0.0], rtol=1e-5)

  def test_gradient_reaches_the_logits(self):
    # An overloaded head is pushed down: the entropy falls along minus the gradient.
    z, mask = normal(1, 1, 2, 4) / 10, np.ones((1, 2), bool)
    f = lambda z: jnp.sum(auxiliary.entropy_guided_penalty(categorical.entropy(z), jnp.array([0.3]), mask, num_keys=4))
    moved = z - 0.5 * np.array(jax.jit(jax.grad(f))(z))
    entropy = lambda z: scipy.stats.entropy(scipy.special.softmax(z, axis=-1), axis=-1)
    assert np.all(entropy(moved) < entropy(z))

  @pytest.mark.parametrize('num_keys', [4, np.array([[4, 0, 2]], np.int32)])
  def test_masked_rows_reach_nothing(self, num_keys):
    mask, entropy = np.array([[True, False, True]]), np.array([[[1.3, 0.1, 0.0], [0.1, 0.2, 0.3]]], np.float32)
    f = jax.jit(jax.value_and_grad(lambda h, r: jnp.sum(auxiliary.entropy_guided_penalty(h, r, mask, num_keys=num_keys)), argnums=(0, 1)))
    value, grads = f(entropy, np.array([0.5, 0.7], np.float32))
    for garbage in GARBAGE:
      other, other_grads = f(replaced(entropy, np.s_[:, :, 1], garbage), np.array([0.5, 0.7], np.float32))
      assert value == other and value > 0
      jax.tree.map(np.testing.assert_array_equal, grads, other_grads)

  def test_refuses(self):
    with pytest.raises(UserError, match=r"edge='jmp' is not one of jump, hinge; the nearest is 'jump'"):
      penalty(0.5, 0.5, edge='jmp')


class TestEntropyGuidedLoss:
  def test_sum_over_rows_mean_over_heads_and_layers(self):
    # L = 2, H = 3, B = 2, Q = 4 penalties, by loops
    layers = RNG.uniform(size=(2, 2, 3, 4)).astype(np.float32)
    mask = np.ones((2, 4), bool)
    want = 0.01 / 2 * sum(1 / 3 * sum(layers[x, b, h, i] for h in range(3) for b in range(2) for i in range(4)) for x in range(2))
    one, two = (auxiliary.entropy_guided_loss(p, mask, coef=0.01) for p in layers)
    np.testing.assert_allclose(one.merge(two).compute(), want, rtol=1e-5)
    averaged = [auxiliary.entropy_guided_loss(p, mask, coef=0.01 * 8, reduction='mean') for p in layers]
    np.testing.assert_allclose(averaged[0].merge(averaged[1]).compute(), want, rtol=1e-5)  # 8 queries
    np.testing.assert_allclose(averaged[0].compute(), 0.08 * layers[0].mean(), rtol=1e-5)

  @pytest.mark.parametrize('reduction', ['sum', 'mean'])
  def test_slices_merge_to_the_batch(self, reduction):
    mask = np.array([[True, True], [True, False], [False, False], [True, True]])
    values = np.where(mask[:, None], RNG.uniform(size=(4, 3, 2)), 0.0).astype(np.float32)
    at = lambda rows: auxiliary.entropy_guided_loss(values[rows], mask[rows], reduction=reduction, num_sequences=4, coef=1.0)
    whole = auxiliary.entropy_guided_loss(values, mask, reduction=reduction, coef=1.0).compute()
    np.testing.assert_allclose(at(slice(0, 1)).merge(at(slice(1, 4))).compute(), whole, rtol=1e-6)

  def test_gradient_to_the_threshold(self):
    # lambda / (L H) sum (-2 E d) over rows outside the tolerance; L = 1, H = 2, d = (ln4 - .5 ln4) and (0 - .5 ln4) a head
    entropy = jnp.array([[[math.log(4), math.log(4)], [0.0, 0.7]]])
    mask = jnp.ones((1, 2), bool)

    def loss(r):
      found = auxiliary.entropy_guided_penalty(entropy, r, mask, num_keys=4)
      return auxiliary.entropy_guided_loss(found, mask, coef=1e-5).compute()

    E = math.log(4)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(jnp.full(2, 0.5)), [1e-5 / 2 * (-2 * E * E), 1e-5 / 2 * E * E], rtol=1e-5)

  def test_refuses(self):
    with pytest.raises(UserError, match="reduction='avg'"):
      auxiliary.entropy_guided_loss(jnp.zeros((1, 1, 1)), jnp.ones((1, 1), bool), reduction='avg')


class TestAttentionEntropyPenalty:
  ALL = np.ones((1, 4), bool)
  A = np.array([[[2, 0, 0, 0]]], np.float32)

  def test_card_values(self):
    a = scipy.special.softmax([2.0, 0, 0, 0])
    np.testing.assert_allclose(a, [0.71123459, 0.09625514, 0.09625514, 0.09625514], rtol=1e-6)
    f = lambda z: auxiliary.attention_entropy_penalty(z, self.ALL, coef=1.0)[0, 0]
    value, grad = jax.jit(jax.value_and_grad(f))(self.A)
    np.testing.assert_allclose(value, -0.91828377, rtol=1e-6)
    np.testing.assert_allclose(grad[0, 0], [0.41075989] + [-0.13691996] * 3, rtol=1e-5)
    np.testing.assert_allclose(np.sum(grad), 0.0, atol=1e-6)
    # Up to ln N it is the divergence from uniform attention.
    np.testing.assert_allclose(value + math.log(4), 0.46801060, rtol=1e-5)
    np.testing.assert_allclose(value + math.log(4), scipy.stats.entropy(a, [0.25] * 4), rtol=1e-5)

  def test_ends(self):
    f = lambda z: auxiliary.attention_entropy_penalty(z, self.ALL, coef=1.0)[0, 0]
    at = jax.jit(jax.value_and_grad(f))
    value, grad = at(np.zeros((1, 1, 4), np.float32))
    np.testing.assert_allclose(value, -math.log(4), rtol=1e-6)
    np.testing.assert_allclose(grad, np.zeros((1, 1, 4)), atol=1e-7)
    assert at(np.array([[[1e4, 0, 0, 0]]], np.float32))[0] == 0.0
    np.testing.assert_allclose(at(self.A + 7)[0], at(self.A)[0], rtol=1e-5)

  def test_coefficient_and_heads(self):
    z = normal(3, 2, 5)
    got = jax.jit(auxiliary.attention_entropy_penalty)(z, np.ones((3, 5), bool))
    want = -0.1 * scipy.stats.entropy(scipy.special.softmax(z, axis=-1), axis=-1)
    np.testing.assert_allclose(got, want, rtol=1e-5)

  @pytest.mark.parametrize('form', ['nats', 'relative'])
  def test_masked_instances_are_outside_the_softmax(self, form):
    mask, z = np.array([[True, True, False, True], [False] * 4, [True, False, False, False]]), normal(3, 2, 4)
    f = jax.jit(jax.value_and_grad(lambda z: jnp.sum(auxiliary.attention_entropy_penalty(z, mask, form=form))))
    want = -0.1 * np.sum(scipy.stats.entropy(scipy.special.softmax(z[0][:, [0, 1, 3]], axis=-1), axis=-1))
    for garbage in GARBAGE:
      value, grad = f(np.where(mask[:, None], z, np.float32(garbage)))
      # The empty bag and the bag of one have 0.
      np.testing.assert_allclose(value, want / (np.log(3) if form == 'relative' else 1), rtol=1e-5)
      grad = np.array(grad)
      assert np.all(np.isfinite(grad)) and not np.any(grad[1:]) and not np.any(grad[0, :, 2])

  def test_relative_to_the_bag(self):
    mask = np.array([[True, True, False, False], [True] * 4])
    got = jax.jit(lambda: auxiliary.attention_entropy_penalty(jnp.zeros((2, 1, 4)), mask, coef=1.0, form='relative'))()
    np.testing.assert_allclose(got, [[-1.0], [-1.0]], rtol=1e-6)  # ln 2 / ln 2 and ln 4 / ln 4

  def test_refuses(self):
    with pytest.raises(UserError, match="form='bits'"):
      auxiliary.attention_entropy_penalty(self.A, self.ALL, form='bits')
