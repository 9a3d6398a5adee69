import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.layers import attention
from entropy_jax.models import encoder_decoder, policy
from entropy_jax.types import UserError

BASE = encoder_decoder.EncoderDecoderConfig(
  width=16, num_layers=1, num_heads=2, mlp_width=24, source_vocab_size=9, target_vocab_size=7, source_length=6, target_length=8
)
CONFIGS = {
  'pre': dataclasses.replace(BASE, num_kv_heads=1, positions='rotary', qk_norm='rms', tie_embeddings=False),
  'sigma_reparam, post': dataclasses.replace(
    BASE, linear='sigma_reparam', norm='post', activation='relu', qk_norm='l2', num_layers=2, num_decoder_layers=1
  ),
  'deepnorm': dataclasses.replace(BASE, norm='deepnorm', norm_kind='layer', softmax_temperature='softplus', logit_cap=3.0, sink=True),
}
SOURCE = jax.random.randint(jax.random.key(2), (3, 6), 0, 9)
SOURCE_MASK = jnp.arange(6)[None] < jnp.array([6, 3, 1])[:, None]
TARGET = jax.random.randint(jax.random.key(3), (3, 8), 0, 7)
TARGET_MASK = jnp.arange(8)[None] < jnp.array([8, 5, 2])[:, None]
INPUTS = (SOURCE, SOURCE_MASK, TARGET, TARGET_MASK)


@functools.cache
def make(name):
  """The model and parameters off their trivial start."""
  model = encoder_decoder.translator(CONFIGS[name])

  @jax.jit
  def init():
    variables = model.init(jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 200))
    moved = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), variables)
    if CONFIGS[name].has_state:
      moved['spectral'] = jax.tree.map(lambda u: u / jnp.linalg.norm(u), moved['spectral'])
    return moved

  return model, init()


class TestLogits:
  def test_who_sees_whom(self):
    model, params = make('pre')
    tokens = jnp.arange(6)[None], jnp.ones((1, 6), bool), jnp.arange(6)[None], jnp.ones((1, 6), bool)

    def f(tables):
      return jnp.sum(jnp.sin(model.logits(params | tables, *tokens)[0]), axis=-1)

    jacobian = jax.jit(jax.jacrev(f))({name: params[name] for name in ('source_embed', 'target_embed')})
    size = {name: jnp.abs(x).sum(-1)[:, :6] > 1e-6 for name, x in jacobian.items()}  # [target position, token]
    np.testing.assert_array_equal(size['target_embed'], np.tril(np.ones((6, 6), bool)))
    assert jnp.all(size['source_embed'])

  def test_padding_content_reaches_nothing(self):
    model, params = make('sigma_reparam, post')

    def f(params, source, target):
      logits = model.logits(params, source, SOURCE_MASK, target, TARGET_MASK)
      return jnp.sum(jnp.sin(logits), where=TARGET_MASK[..., None])

    f = jax.jit(jax.value_and_grad(f))
    clean = f(params, SOURCE, TARGET)
    dirty = f(params, jnp.where(SOURCE_MASK, SOURCE, 10**6), jnp.where(TARGET_MASK, TARGET, -3))
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(clean))
    assert not any(np.any(g) for g in jax.tree.leaves(clean[1]['spectral']))

  def test_more_padding_changes_nothing(self):
    model, params = make('deepnorm')
    logits = jax.jit(model.logits)
    want = logits(params, *INPUTS)
    short = logits(params, SOURCE[1:, :3], SOURCE_MASK[1:, :3], TARGET[1:, :5], TARGET_MASK[1:, :5])
    np.testing.assert_allclose(short, want[1:, :5], rtol=1e-4, atol=1e-5)


class TestGreedy:
  @pytest.mark.parametrize('name', CONFIGS)
  def test_steps_equal_the_full_pass_at_every_position(self, name):
    model, params = make(name)
    steps = policy.pure(encoder_decoder.EncoderDecoder(CONFIGS[name]), has_state=CONFIGS[name].has_state)

    @jax.jit
    def decode(params):
      cache, first = steps.call('start', params, SOURCE, SOURCE_MASK, TARGET[:, 0], 8)
      _, rest = jax.lax.scan(lambda cache, token: steps.call('step', params, cache, token), cache, TARGET[:, 1:].T)
      return jnp.concatenate([first[None], rest]).swapaxes(0, 1)

    want = jax.jit(model.logits)(params, SOURCE, SOURCE_MASK, TARGET, jnp.ones_like(TARGET_MASK))
    np.testing.assert_allclose(decode(params), want, rtol=1e-4, atol=1e-4)

  def test_is_the_most_probable_token_until_the_end(self):
    model, params = make('pre')
    run = jax.jit(lambda eos_id: model.greedy(params, SOURCE, SOURCE_MASK, 8, bos_id=1, eos_id=eos_id))
    tokens, mask = run(-1)  # never ends
    assert jnp.all(mask)
    given = jnp.concatenate([jnp.full((3, 1), 1), tokens[:, :-1]], axis=1)
    logits = jax.jit(model.logits)(params, SOURCE, SOURCE_MASK, given, jnp.ones((3, 8), bool))
    np.testing.assert_array_equal(tokens, jnp.argmax(logits, axis=-1))
    eos_id = int(tokens[0, 3])
    ended, real = run(eos_id)
    for b in range(3):
      found = np.flatnonzero(np.asarray(tokens[b]) == eos_id)
      length = found[0] + 1 if found.size else 8
      np.testing.assert_array_equal(real[b], np.arange(8) < length)
      np.testing.assert_array_equal(ended[b], np.where(np.arange(8) < length, tokens[b], 0))


class TestAttention:
  def test_shapes_masks_and_the_first_encoder_layer(self):
    model, params = make('sigma_reparam, post')
    found = jax.jit(model.attention)(params, *INPUTS)
    shapes = {name: x.logits_LxBxHxQxK.shape for name, x in found.items()}
    assert shapes == {'encoder': (2, 3, 2, 6, 6), 'decoder': (1, 3, 2, 8, 8), 'cross': (1, 3, 2, 8, 6)}
    np.testing.assert_array_equal(found['encoder'].mask_BxQxK, attention.full_mask(SOURCE_MASK))
    np.testing.assert_array_equal(found['decoder'].mask_BxQxK, attention.causal_mask(TARGET_MASK))
    np.testing.assert_array_equal(found['cross'].mask_BxQxK, np.broadcast_to(SOURCE_MASK[:, None], (3, 8, 6)))
    # l2: g times a cosine
    scale = params['params']['encoder_block_0']['attention']['query_key_norm']['scale']
    assert 0.1 < jnp.max(jnp.abs(found['encoder'].logits_LxBxHxQxK[0])) <= jnp.abs(scale) * (1 + 1e-5)


class TestDeepNorm:
  @pytest.mark.parametrize(('part', 'alpha', 'beta'), [('encoder', 1.417938, 0.496989), ('decoder', 2.059767, 0.343295)])
  def test_constants_of_six_and_six(self, part, alpha, beta):
    found = dataclasses.replace(BASE, norm='deepnorm', num_layers=6).deepnorm(part)
    np.testing.assert_allclose([found.alpha, found.beta], [alpha, beta], rtol=2e-6)  # six digits

  def test_each_stack_starts_with_its_own(self):
    # The same draws, scaled: (N, M) = (1, 1) against (1, 4), beta .87 (N^4 M)^(-1/16) and (12 M)^(-1/4).
    params = [
      jax.jit(encoder_decoder.translator(dataclasses.replace(CONFIGS['deepnorm'], num_decoder_layers=m)).init)(jax.random.key(0))
      for m in (1, 4)
    ]
    few, many = params
    ratio = lambda block, part, name: np.median(many[block][part][name]['kernel'] / few[block][part][name]['kernel'])
    np.testing.assert_allclose(ratio('encoder_block_0', 'mlp', 'up'), 4 ** (-1 / 16), rtol=1e-4)
    np.testing.assert_allclose(ratio('decoder_block_0', 'cross_attention', 'value'), 4 ** (-1 / 4), rtol=1e-4)
    np.testing.assert_allclose(ratio('decoder_block_0', 'attention', 'query'), 1, rtol=1e-4)


class TestConfig:
  @pytest.mark.parametrize(
    ('changes', 'message'),
    [
      ({'num_decoder_layers': 0}, 'num_decoder_layers is 0'),
      ({'target_length': 0}, 'target_length is 0'),
      ({'positions': 'none'}, "positions is 'none': choose one of rotary, learned"),
      ({'positions': 'rotary', 'head_dim': 5}, 'head_dim is 5: rotary'),
      ({'entropy_abf_window': 4}, 'entropy_abf_window is 4, which is for causal attention'),
    ],
  )
  def test_refused(self, changes, message):
    with pytest.raises(UserError, match=message):
      dataclasses.replace(BASE, **changes)

  def test_too_long(self):
    model, params = make('pre')
    more = jnp.zeros((3, 9), jnp.int32), jnp.ones((3, 9), bool)
    with pytest.raises(UserError, match='source_length is 6, but the sequences have 9 tokens'):
      jax.eval_shape(model.logits, params, *more, TARGET, TARGET_MASK)
    with pytest.raises(UserError, match='target_length is 8, but the sequences have 9 tokens'):
      jax.eval_shape(model.logits, params, SOURCE, SOURCE_MASK, *more)
