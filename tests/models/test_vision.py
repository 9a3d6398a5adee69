import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.layers import spectral
from entropy_jax.models import vision
from entropy_jax.types import UserError

SIZES = {'image_size': 8, 'channels': 3, 'patch_size': 4, 'num_classes': 5}
BASE = vision.VisionConfig(width=16, num_layers=1, num_heads=2, mlp_width=24, activation='gelu', norm_kind='layer', **SIZES)
CONFIGS = {
  'plain': BASE,
  'token': dataclasses.replace(BASE, pool='token', norm='post', qk_norm='layer', sink=True, softmax_temperature='clip'),
  'sigma_reparam': dataclasses.replace(BASE, linear='sigma_reparam', kernel_init='vision', gain_init='sigma', norm='none', remat=True),
}
IMAGES = jax.random.uniform(jax.random.key(7), (4, 8, 8, 3))


@functools.cache
def make(name):
  """The model and parameters off their trivial start; vectors of the state stay exact."""
  model = vision.vision_classifier(CONFIGS[name])

  @jax.jit
  def init():
    variables = model.init(jax.random.key(0))
    params = variables['params'] if CONFIGS[name].has_state else variables
    keys = iter(jax.random.split(jax.random.key(1), 200))
    moved = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape) if x.ndim < 2 else x, params)
    return variables | {'params': moved} if CONFIGS[name].has_state else moved

  return model, init()


class TestPatches:
  def test_a_linear_map_of_patches_is_a_convolution(self):
    kernel = jax.random.normal(jax.random.key(1), (4, 4, 3, 6))
    got = vision.patches(IMAGES, 4) @ kernel.reshape(1, -1, 6)
    want = jax.lax.conv_general_dilated(IMAGES, kernel, (4, 4), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    np.testing.assert_allclose(got, want.reshape(4, 4, 6), rtol=1e-4, atol=1e-5)


class TestClassifier:
  @pytest.mark.parametrize('name', CONFIGS)
  def test_every_patch_reaches_the_class(self, name):
    model, params = make(name)
    logits, grad = jax.jit(jax.value_and_grad(lambda images: jnp.sum(jnp.sin(model.logits(params, images)))))(IMAGES)
    assert jnp.isfinite(logits)
    size = jnp.abs(vision.patches(grad, 4)).sum(-1)
    assert size.shape == (4, 4) and jnp.all(size > 1e-4)
    shape = jax.eval_shape(model.logits, params, IMAGES)
    assert shape.shape == (4, 5) and shape.dtype == jnp.float32

  def test_one_token_by_arithmetic(self):
    # One patch and no norm: attention is two matrices in a row, and each branch is added.
    config = dataclasses.replace(CONFIGS['sigma_reparam'], num_layers=2, patch_size=8, activation='relu')
    model = vision.vision_classifier(config)
    params = jax.jit(model.init)(jax.random.key(2))
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), spectral.fold(params['params'], params['spectral']))
    x = np.asarray(IMAGES, np.float64).reshape(4, -1) @ p['patch']['kernel'] + p['patch']['bias'] + p['position']
    for i in range(2):
      b = p[f'block_{i}']
      x = x + x @ b['attention']['value']['kernel'] @ b['attention']['output']['kernel']
      x = x + np.maximum(x @ b['mlp']['up']['kernel'], 0) @ b['mlp']['down']['kernel']
    want = x @ p['head']['kernel'] + p['head']['bias']
    np.testing.assert_allclose(jax.jit(model.logits)(params, IMAGES), want, rtol=1e-3, atol=1e-5)

  def test_every_map_is_reparametrised_patches_and_head_too(self):
    _, params = make('sigma_reparam')
    leaves = jax.tree_util.tree_leaves_with_path(params['params'])
    kernels = {jax.tree_util.keystr(path[:-1]) for path, _ in leaves if path[-1].key == 'kernel'}
    gains = {jax.tree_util.keystr(path[:-1]) for path, _ in leaves if path[-1].key == 'gain'}
    assert gains == kernels and {"['patch']", "['head']"} < gains
    np.testing.assert_allclose(jnp.std(params['params']['block_0']['mlp']['up']['kernel']), 0.02, rtol=0.15)  # 384 draws

  def test_only_advance_moves_the_state(self):
    model, params = make('sigma_reparam')
    off = params | {'spectral': jax.tree.map(lambda u: jnp.roll(u, 1), params['spectral'])}
    after = jax.jit(model.advance)(off)
    jax.tree.map(np.testing.assert_array_equal, after['spectral'], jax.jit(spectral.advance)(off['params'], off['spectral']))
    assert after['params'] is not None and make('plain')[0].advance(params) is params
    grad = jax.jit(jax.grad(lambda p: jnp.sum(model.logits(p, IMAGES))))(off)
    assert not any(np.any(g) for g in jax.tree.leaves(grad['spectral']))


class TestAttention:
  def test_first_layer_by_hand(self):
    model, params = make('sigma_reparam')  # no norm: the first layer reads the embedded patches
    logits, mask = jax.jit(model.attention)(params, IMAGES)
    assert logits.shape == (1, 4, 2, 4, 4) and mask.shape == (4, 4, 4) and jnp.all(mask)
    p = jax.tree.map(np.asarray, spectral.fold(params['params'], params['spectral']))
    x = np.asarray(vision.patches(IMAGES, 4)) @ p['patch']['kernel'] + p['patch']['bias'] + p['position']
    q, k = ((x @ p['block_0']['attention'][name]['kernel']).reshape(4, 4, 2, 8) for name in ('query', 'key'))
    np.testing.assert_allclose(logits[0], np.einsum('bihd,bjhd->bhij', q, k) / np.sqrt(8), rtol=1e-3, atol=1e-5)

  def test_the_token_of_the_class_counts(self):
    model = vision.vision_classifier(dataclasses.replace(CONFIGS['token'], num_layers=2))
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.eval_shape(model.attention, params, IMAGES).logits_LxBxHxQxK.shape == (2, 4, 2, 5, 5)


class TestConfig:
  @pytest.mark.parametrize(
    ('changes', 'message'),
    [
      ({'patch_size': 3}, r'patch_size is 3: choose a divisor of image_size \(8\)'),
      ({'pool': 'max'}, "pool is 'max': choose one of mean, token"),
      ({'num_classes': 0}, 'num_classes is 0'),
      ({'entropy_abf_window': 4}, 'entropy_abf_window is 4, which is for causal attention'),
    ],
  )
  def test_refused(self, changes, message):
    with pytest.raises(UserError, match=message):
      dataclasses.replace(BASE, **changes)

  def test_images_of_another_shape(self):
    model, params = make('plain')
    with pytest.raises(UserError, match=r'images have shape \(8, 8, 1\): give \(8, 8, 3\)'):
      jax.eval_shape(model.logits, params, IMAGES[..., :1])
