"""Adapters against the maps they stand for: the base at the start, the merged model after, its gradient, and nothing of a map's size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.models import lora, transformer
from entropy_jax.models.lora import LoraConfig
from entropy_jax.rollout.generate import generate
from entropy_jax.types import Frozen, UserError

SIZES = {'vocab_size': 20, 'width': 16, 'num_layers': 2, 'num_heads': 4, 'num_kv_heads': 2, 'mlp_width': 24, 'max_length': 32}
DECODER = transformer.DecoderConfig(**SIZES, qkv_bias=True, tie_embeddings=False, remat=True)
PLAIN = transformer.transformer_policy(DECODER)
CONFIG = LoraConfig(rank=3, alpha=6.0)
POLICY = lora.lora_policy(PLAIN, CONFIG)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 20, (2, 9)), jnp.int32)
MASK = jnp.arange(9)[None] >= jnp.array([[0], [2]])


@pytest.fixture(scope='module')
def base():
  return jax.jit(PLAIN.init)(jax.random.key(0))


@pytest.fixture(scope='module')
def trained(base):
  """Parameters whose adapters have all moved."""
  start = lora.adapt(base, jax.random.key(1), CONFIG)
  moved = jax.tree.map(lambda x: x + 0.2 * np.random.default_rng(x.size).normal(size=x.shape).astype(np.float32), start['adapters'])
  return {'adapters': moved, 'base': Frozen(base)}


@functools.cache
def compiled(policy):
  return jax.jit(policy.logits)


class TestAdapt:
  def test_tree(self, base):
    params = lora.adapt(base, jax.random.key(1), CONFIG)
    block = params['adapters']['block_1']
    assert set(params['adapters']) == {'block_0', 'block_1'}
    assert set(block['attention']) == {'query', 'key', 'value', 'output'} and set(block['mlp']) == {'gate', 'up', 'down'}
    assert block['attention']['key']['lora_a'].shape == (16, 3) and block['attention']['key']['lora_b'].shape == (3, 8)
    assert params['base'].tree is base
    a = np.asarray(block['mlp']['down']['lora_a'])
    assert a.shape == (24, 3) and 0.5 * 24**-0.5 < np.abs(a).max() <= 24**-0.5  # uniform within 1 / sqrt(inputs)
    assert all(not np.any(x) for path, x in jax.tree_util.tree_leaves_with_path(params['adapters']) if path[-1].key == 'lora_b')

  def test_a_draw_of_a_map_does_not_depend_on_the_others(self, base):
    alone = lora.adapt(base, jax.random.key(1), LoraConfig(rank=3, targets='block_1/mlp/up$'))['adapters']
    every = lora.adapt(base, jax.random.key(1), CONFIG)['adapters']
    assert jax.tree.structure(alone).num_leaves == 2
    a = lambda tree, layer, name: np.asarray(tree[layer]['mlp'][name]['lora_a'])
    np.testing.assert_array_equal(a(alone, 'block_1', 'up'), a(every, 'block_1', 'up'))
    assert np.abs(a(every, 'block_0', 'up') - a(every, 'block_1', 'up')).max() > 0.1

  def test_refused(self, base):
    with pytest.raises(UserError, match=r"lora: targets='attn' is found in no map of the model; its maps are block_0/attention/key, "):
      lora.adapt(base, jax.random.key(0), LoraConfig(targets='attn'))
    with pytest.raises(UserError, match=r'lora: rank=0 is not a whole number of at least 1'):
      LoraConfig(rank=0)
    with pytest.raises(UserError, match=r"lora: targets='\(' is no pattern"):
      LoraConfig(targets='(')
    with pytest.raises(UserError, match='lora: alpha='):
      LoraConfig(alpha=0.0)
    spectral = transformer.transformer_policy(transformer.DecoderConfig(**SIZES, linear='sigma_reparam'))
    with pytest.raises(UserError, match='lora: the maps of this model are reparametrised'):
      lora.maps(jax.eval_shape(spectral.init, jax.random.key(0)), CONFIG)


class TestPolicy:
  def test_starts_as_the_base_bit_by_bit(self, base):
    params = lora.adapt(base, jax.random.key(1), CONFIG)
    np.testing.assert_array_equal(compiled(POLICY)(params, TOKENS, MASK), compiled(PLAIN)(base, TOKENS, MASK))

  def test_is_the_merged_model(self, base, trained):
    found, merged = compiled(POLICY)(trained, TOKENS, MASK), compiled(PLAIN)(lora.merge(trained, CONFIG), TOKENS, MASK)
    assert np.abs(found - compiled(PLAIN)(base, TOKENS, MASK)).max() > 0.1
    np.testing.assert_allclose(found, merged, atol=1e-5)

  def test_decodes_as_the_merged_model(self, trained):
    def draw(policy):
      return jax.jit(lambda params: generate(policy, params, TOKENS[:, :4], MASK[:, :4] | True, jax.random.key(3), num_tokens=5))

    found, merged = draw(POLICY)(trained), draw(PLAIN)(lora.merge(trained, CONFIG))
    np.testing.assert_array_equal(found.tokens_BxT, merged.tokens_BxT)
    np.testing.assert_allclose(found.logp_BxT, merged.logp_BxT, atol=1e-5)

  def test_gradient_is_the_merged_models_and_none_has_the_size_of_a_map(self, trained):
    def loss(policy, params):
      return jnp.sum(jnp.where(MASK[..., None], policy.logits(params, TOKENS, MASK), 0.0) ** 2)

    whole = lambda adapters: {'adapters': adapters, 'base': trained['base']}
    own = jax.grad(lambda adapters: loss(POLICY, whole(adapters)))
    merged = jax.grad(lambda adapters: loss(PLAIN, lora.merge(whole(adapters), CONFIG)))
    for x, y in zip(*(jax.tree.leaves(jax.jit(g)(trained['adapters'])) for g in (own, merged))):
      np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4 * float(jnp.abs(y).max()))
    # Rows of a batch are 18, so that nothing else has the shape of a map or of its transpose.
    maps = {(16, 24), (24, 16), (16, 16), (16, 8), (8, 16)}
    made = {name: products(jax.make_jaxpr(g)(trained['adapters']).jaxpr) for name, g in (('own', own), ('merged', merged))}
    assert not made['own'] & maps and made['merged'] >= {(16, 24), (24, 16)}

  def test_the_rest_is_the_policys(self, base, trained):
    assert POLICY.unembedding(trained).kernel is base['unembed']
    assert POLICY.take is PLAIN.take
    seen = jax.jit(POLICY.attention)(trained, TOKENS, MASK)
    np.testing.assert_allclose(
      seen.logits_LxBxHxQxK, jax.jit(PLAIN.attention)(lora.merge(trained, CONFIG), TOKENS, MASK).logits_LxBxHxQxK, atol=1e-4
    )
    shapes = jax.eval_shape(POLICY.init, jax.random.key(0))
    assert jax.tree.structure(shapes) == jax.tree.structure(trained)

  def test_maps_that_the_model_does_not_call(self):
    calls_nothing = PLAIN._replace(hidden=lambda params, tokens, mask: jnp.zeros((*tokens.shape, 16)))
    policy = lora.lora_policy(calls_nothing, CONFIG)
    params = jax.eval_shape(POLICY.init, jax.random.key(0))
    with pytest.raises(UserError, match='lora: the model made no use of the map block_0/attention/key; give targets that are linen layers'):
      jax.eval_shape(policy.hidden, params, TOKENS, MASK)


def products(jaxpr):
  """Shapes of what every matrix product makes, in whatever is inside too."""
  found = {eqn.outvars[0].aval.shape for eqn in jaxpr.eqns if eqn.primitive.name == 'dot_general'}
  for eqn in jaxpr.eqns:
    for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')):
      if hasattr(inner, 'eqns') or hasattr(inner, 'jaxpr'):
        found |= products(getattr(inner, 'jaxpr', inner))
  return found


class TestMerge:
  def test_by_hand(self, base, trained):
    merged = lora.merge(trained, CONFIG)
    own = jax.device_get(trained['adapters']['block_0']['mlp']['up'])
    want = np.asarray(base['block_0']['mlp']['up']['kernel'], np.float64) + 2.0 * own['lora_a'].astype(np.float64) @ own['lora_b']  # 6 / 3
    np.testing.assert_allclose(merged['block_0']['mlp']['up']['kernel'], want, atol=1e-6)
    assert merged['embed'] is base['embed'] and jax.tree.structure(merged) == jax.tree.structure(base)

  def test_scale_by_the_root_of_the_rank(self, base, trained):
    stabilized = LoraConfig(rank=3, alpha=6.0, rank_stabilized=True)
    assert stabilized.scale == pytest.approx(6 / 3**0.5) and CONFIG.scale == 2.0
    kernel = lambda params: np.asarray(params['block_0']['mlp']['up']['kernel'])
    change = lambda config: kernel(lora.merge(trained, config)) - kernel(base)
    np.testing.assert_allclose(change(stabilized), 3**0.5 * change(CONFIG), rtol=1e-3, atol=1e-5)

  def test_keeps_the_type_and_the_places_of_the_base(self, trained):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), trained['base'].tree)
    merged = lora.merge({**trained, 'base': Frozen(half)}, CONFIG)
    assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype('bfloat16')}
