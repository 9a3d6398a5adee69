"""The block: one token by arithmetic for every placement, norm, map and MLP, how kernels start, and what a configuration refuses."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.layers import block, placement
from entropy_jax.types import UserError

BASE = block.BlockConfig(width=8, num_layers=3, num_heads=2, mlp_width=12)
VARIANTS = {
  'pre, swiglu': {},
  'post, layer norm, relu': {'norm': 'post', 'norm_kind': 'layer', 'activation': 'relu'},
  'none, crrelu, sigma_reparam': {'norm': 'none', 'activation': 'crrelu', 'linear': 'sigma_reparam'},
  'deepnorm, identity': {'norm': 'deepnorm', 'activation': 'identity'},
  'fused, spectral_norm': {'norm': 'none', 'activation': 'fused', 'linear': 'spectral_norm'},
}


def one_token(config, p, x, source=None):
  """The block for one token in float64: with one key the softmax is 1, so that attention is two matrices in a row."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)

  def at(x, layer):
    kernel = layer['kernel']
    if config.has_state:
      kernel = kernel * layer.get('gain', 1.0) / np.linalg.norm(kernel, 2)
    return x @ kernel

  def norm(x, name):
    if config.norm == 'none':
      return x
    x = x - x.mean() if config.norm_kind == 'layer' else x
    return x / np.sqrt((x**2).mean() + config.norm_eps) * p[name]['scale'] + p[name].get('bias', 0)

  def add(x, branch, name):
    alpha = (2 * config.num_layers) ** 0.25 if config.norm == 'deepnorm' else 1.0
    if config.norm in ('pre', 'none'):
      return x + branch(norm(x, name))
    return norm(alpha * x + branch(x), name)

  def mlp(x):
    up = at(x, p['mlp']['up'])
    if config.activation == 'swiglu':
      gate = at(x, p['mlp']['gate'])
      up = gate / (1 + np.exp(-gate)) * up
    elif config.activation == 'crrelu':
      up = np.maximum(up, 0) + p['mlp']['between']['crrelu']['epsilon'] * up * np.exp(-(up**2) / 2)
    elif config.activation == 'relu':
      up = np.maximum(up, 0)
    return at(up, p['mlp']['down'])

  x = add(x, lambda x: at(at(x, p['attention']['value']), p['attention']['output']), 'attention_norm')
  if source is not None:
    read = at(at(source, p['cross_attention']['value']), p['cross_attention']['output'])
    x = add(x, lambda x: read, 'cross_attention_norm')
  if config.activation == 'fused':
    return p['mlp']['beta'] * x + at(x, p['mlp']['fused']) / p['mlp']['alpha']
  return add(x, mlp, 'mlp_norm')


class TestBlock:
  @pytest.mark.parametrize(('name', 'cross'), [*((name, False) for name in VARIANTS), ('pre, swiglu', True), ('deepnorm, identity', True)])
  def test_one_token(self, name, cross):
    config = dataclasses.replace(BASE, **VARIANTS[name])
    model = block.Block(config, cross=cross)
    x, other = jax.random.normal(jax.random.key(0), (2, 3, 1, 8))
    real = jnp.ones((3, 1, 1), bool)
    inputs = (x, real, jnp.zeros((3, 1), jnp.int32))
    source = block.Source(other, real) if cross else None

    @jax.jit
    def run():
      variables = model.init(jax.random.key(1), *inputs, source=source)
      keys = iter(jax.random.split(jax.random.key(2), 100))
      # Vectors too; kernels stay, whose singular vectors the state holds.
      moved = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(next(keys), a.shape) if a.ndim < 2 else a, variables['params'])
      return moved, model.apply(variables | {'params': moved}, *inputs, source=source)

    params, (got, _, _) = run()
    for b in range(3):
      want = one_token(config, params, np.asarray(x[b, 0], np.float64), np.asarray(other[b, 0], np.float64) if cross else None)
      np.testing.assert_allclose(got[b, 0], want, rtol=2e-4, atol=2e-5)

  def test_a_cross_block_needs_a_source(self):
    with pytest.raises(UserError, match='source is None'):
      jax.eval_shape(lambda: block.Block(BASE, cross=True).init(jax.random.key(0), jnp.ones((1, 1, 8)), jnp.ones((1, 1, 1), bool), None))


class TestInitOf:
  def std(self, matrix, **kwargs):
    config = dataclasses.replace(BASE, **{k: v for k, v in kwargs.items() if k in ('kernel_init', 'norm')})
    deepnorm = placement.deepnorm(8) if config.norm == 'deepnorm' else None
    start = block.init_of(config, matrix, num_branches=6, deepnorm=deepnorm)
    return float(jnp.std(start(jax.random.key(0), (400, 500))))  # 200,000 draws: its standard error is .16 %

  @pytest.mark.parametrize(
    ('matrix', 'kwargs', 'want'),
    [
      ('up', {}, 400**-0.5),
      ('down', {}, (400 * 6) ** -0.5),
      ('output', {}, (400 * 6) ** -0.5),
      ('down', {'kernel_init': 'vision'}, 0.02),
      ('down', {'kernel_init': 'speech'}, 0.1),
      # Xavier's sqrt(2 / (400 + 500)); beta of 8 layers is 64^(-1/4)
      ('query', {'norm': 'deepnorm'}, math.sqrt(2 / 900)),
      ('value', {'norm': 'deepnorm'}, math.sqrt(2 / 900) * 64**-0.25),
      ('down', {'norm': 'deepnorm'}, math.sqrt(2 / 900) * 64**-0.25),
    ],
  )
  def test_standard_deviation(self, matrix, kwargs, want):
    np.testing.assert_allclose(self.std(matrix, **kwargs), want, rtol=0.01)


class TestBlockConfig:
  @pytest.mark.parametrize(
    ('changes', 'message'),
    [
      ({'mlp_width': True}, 'mlp_width is True: give a positive integer'),
      ({'linear': 'sigma'}, "linear is 'sigma': choose one of dense, sigma_reparam, spectral_norm.*'sigma_reparam'"),
      ({'qk_norm': True}, "qk_norm is True: choose one of None, rms, layer, l2"),
      ({'activation': 'swish'}, "activation is 'swish': choose one of swiglu, relu, .*, fused"),
      ({'softmax_temperature': 'soft'}, "softmax_temperature is 'soft'.*'softplus'"),
      ({'logit_cap': 0.0}, 'logit_cap is 0.0: give a positive number'),
      ({'gain_init': 'sigma'}, "gain_init is 'sigma' while linear is 'dense'"),
      ({'kernel_init': 'speech', 'norm': 'deepnorm'}, "kernel_init is 'speech', but DeepNorm"),
      ({'activation': 'fused'}, "while norm is 'pre': give norm='none'"),
      ({'entropy_abf_window': 0}, 'entropy_abf_window is 0: give a positive integer'),
      ({'entropy_abf_window': 1}, 'give a window of at least 2'),
      ({'entropy_abf_exempt': -1}, 'entropy_abf_exempt -1'),
    ],
  )
  def test_refused(self, changes, message):
    with pytest.raises(UserError, match=message):
      dataclasses.replace(BASE, **changes)

  def test_only_reparametrised_maps_have_state(self):
    assert [dataclasses.replace(BASE, linear=name).has_state for name in ('dense', 'sigma_reparam', 'spectral_norm')] == [False, True, True]
