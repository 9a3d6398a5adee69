import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.layers import attention, spectral
from entropy_jax.layers.attention import RopeScaling
from entropy_jax.models import transformer
from entropy_jax.types import UserError

BASE = transformer.DecoderConfig(vocab_size=11, width=16, num_layers=2, num_heads=4, mlp_width=24, max_length=16)
CONFIGS = {
  'plain': BASE,
  'grouped': dataclasses.replace(BASE, num_kv_heads=2, qkv_bias=True),
  'qk_norm': dataclasses.replace(BASE, num_kv_heads=1, head_dim=6, qk_norm='rms', tie_embeddings=False),
  'scaled': dataclasses.replace(BASE, rope_scaling=RopeScaling(factor=4.0, original_max_position=32), rope_theta=100.0),
  'learned': dataclasses.replace(BASE, positions='learned', norm='post', head_dim=5),
  'no_norm': dataclasses.replace(BASE, norm='none', remat=True),
  # Every option of the block in one of these; the layers' own tests say what each does.
  'sigma_reparam': dataclasses.replace(BASE, linear='sigma_reparam', qkv_bias=True, qk_norm='l2', remat=True),
  'spectral_norm, post': dataclasses.replace(BASE, linear='spectral_norm', norm='post', norm_kind='layer', sink=True, activation='gelu'),
  'deepnorm': dataclasses.replace(BASE, norm='deepnorm', positions='learned', softmax_temperature='softplus', logit_cap=3.0),
  'fused': dataclasses.replace(BASE, norm='none', activation='fused', softmax_temperature='clip', sink=True, num_kv_heads=2),
  'entropy_abf': dataclasses.replace(
    BASE, entropy_abf_window=3, entropy_abf_exempt=1, qk_norm='layer', activation='crrelu', logit_cap=3.0, final_logit_cap=5.0
  ),
}


@functools.cache
def make(name):
  """The policy and parameters with every bias and scale moved off its trivial start."""
  config = CONFIGS[name]
  policy = transformer.transformer_policy(config)

  @jax.jit
  def init():
    leaves, tree = jax.tree.flatten(policy.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = jax.tree.unflatten(tree, [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])
    if config.has_state:
      moved['spectral'] = jax.tree.map(lambda u: u / jnp.linalg.norm(u), moved['spectral'])
    return moved

  return policy, init()


def ragged(B=5, P=4, T=4):
  """Prompts of P, P-1, ... 0 real tokens on the right of their slots, then T real tokens."""
  tokens = jax.random.randint(jax.random.key(3), (B, P + T), 0, 11)
  mask = jnp.arange(P + T)[None] >= jnp.arange(B)[:, None]
  return tokens, mask


def oracle(params, c, tokens):
  """The forward pass of one sequence of real tokens, by loops in float64, rotating with complex numbers."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  rms = lambda x, s: s * x / np.sqrt(np.mean(x**2) + c.norm_eps)
  at = lambda x, layer: x @ layer['kernel'] + layer.get('bias', 0)
  heads = lambda x, n: x.reshape(n, c.head_size)

  def turned(x, n):
    half = c.head_size // 2
    f = np.array([c.rope_theta ** (-i / half) for i in range(half)])
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * n * f)
    return np.concatenate([z.real, z.imag])

  stream = [p['embed'][token] + (p['position'][n] if c.positions == 'learned' else 0) for n, token in enumerate(tokens)]
  for i in range(c.num_layers):
    b = p[f'block_{i}']
    keys, values, out = [], [], []
    for n, x in enumerate(stream):
      a = b['attention']
      y = rms(x, b['attention_norm']['scale']) if c.norm == 'pre' else x
      q, k = heads(at(y, a['query']), c.num_heads), heads(at(y, a['key']), c.kv_heads)
      if c.qk_norm:
        q = np.stack([rms(h, a['query_norm']['scale']) for h in q])
        k = np.stack([rms(h, a['key_norm']['scale']) for h in k])
      if c.positions == 'rotary':
        q, k = (np.stack([turned(h, n) for h in x]) for x in (q, k))
      keys.append(k)
      values.append(heads(at(y, a['value']), c.kv_heads))
      read = []
      for h in range(c.num_heads):
        g = h * c.kv_heads // c.num_heads
        w = np.exp([q[h] @ past[g] / np.sqrt(c.head_size) for past in keys])
        read.append(sum(w[m] * values[m][g] for m in range(n + 1)) / w.sum())
      x = x + at(np.concatenate(read), a['output'])
      x = rms(x, b['attention_norm']['scale']) if c.norm == 'post' else x
      y = rms(x, b['mlp_norm']['scale']) if c.norm == 'pre' else x
      gate, up = at(y, b['mlp']['gate']), at(y, b['mlp']['up'])
      x = x + at(gate / (1 + np.exp(-gate)) * up, b['mlp']['down'])
      out.append(rms(x, b['mlp_norm']['scale']) if c.norm == 'post' else x)
    stream = out
  head = p['embed'].T if c.tie_embeddings else p['unembed']
  return np.stack([(rms(x, p['final_norm']['scale']) if c.norm == 'pre' else x) @ head for x in stream])


class TestForward:
  @pytest.mark.parametrize('name', ['grouped', 'qk_norm', 'learned', 'no_norm'])
  def test_against_loops(self, name):
    policy, params = make(name)
    tokens, mask = ragged()
    logits = jax.jit(policy.logits)(params, tokens, mask)
    assert logits.dtype == jnp.float32
    for b in (0, 2):
      # Left padding shifts the slots, not the positions: the real tokens alone give the same logits.
      want = oracle(params, CONFIGS[name], np.asarray(tokens[b, b:]))
      np.testing.assert_allclose(logits[b, b:], want, rtol=1e-4, atol=1e-4)

  def test_parameter_names(self):
    shapes = jax.eval_shape(transformer.transformer_policy(CONFIGS['qk_norm']).init, jax.random.key(0))
    names = {'/'.join(k.key for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)}
    block = {f'attention/{n}/kernel' for n in ('query', 'key', 'value', 'output')}
    block |= {'attention/query_norm/scale', 'attention/key_norm/scale', 'attention_norm/scale', 'mlp_norm/scale'}
    block |= {f'mlp/{n}/kernel' for n in ('gate', 'up', 'down')}
    want = {f'block_{i}/{n}' for i in range(2) for n in block} | {'embed', 'final_norm/scale', 'unembed'}
    assert names == want
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(shapes))

  def test_causal_by_gradient(self):
    policy, params = make('qk_norm')  # untied: the embedding of token n enters at position n alone
    tokens, mask = jnp.arange(6)[None], jnp.ones((1, 6), bool)
    f = lambda embed: jnp.sum(jnp.sin(policy.logits(params | {'embed': embed}, tokens, mask)[0]), axis=-1)
    size = jnp.abs(jax.jit(jax.jacrev(f))(params['embed'])).sum(-1)[:, :6]  # [query position, token]
    np.testing.assert_array_equal(size > 1e-6, np.tril(np.ones((6, 6), bool)))

  @pytest.mark.parametrize('name', ['grouped', 'learned'])
  def test_padding_content_reaches_nothing(self, name):
    policy, params = make(name)
    tokens, mask = ragged()
    # Ends at 8, 7, 6, 5 and, in the last row, before anything: padding only.
    mask = mask & (jnp.arange(8)[None] < jnp.array([8, 7, 6, 5, 0])[:, None])

    def f(params, tokens):
      logits = policy.logits(params, tokens, mask)
      rows = mask | ~jnp.any(mask, axis=1, keepdims=True)  # the empty row too, for its gradient
      return jnp.sum(jnp.sin(logits), where=rows[..., None]), logits

    f = jax.jit(jax.value_and_grad(f, has_aux=True))
    (a, logits), da = f(params, tokens)
    garbage = jnp.where(mask, tokens, jnp.where(jnp.arange(8)[None] % 2 == 0, 10**6, -3))
    (b, dirty), db = f(params, garbage)
    assert a == b and jnp.all(jnp.isfinite(dirty)) and all(np.all(np.isfinite(g)) for g in jax.tree.leaves(db))
    jax.tree.map(np.testing.assert_array_equal, da, db)
    np.testing.assert_array_equal(logits, dirty)

  def test_remat_changes_nothing(self):
    tokens, mask = ragged()
    _, params = make('no_norm')

    def grad(remat):
      policy = transformer.transformer_policy(dataclasses.replace(CONFIGS['no_norm'], remat=remat))
      return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(policy.logits(p, tokens, mask)))))(params)

    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), grad(True), grad(False))

  def test_bfloat16_keeps_float32_parameters_and_logits(self):
    policy, params = make('grouped')
    half = transformer.transformer_policy(dataclasses.replace(CONFIGS['grouped'], dtype='bfloat16'))
    tokens, mask = ragged()
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0))))
    assert jax.eval_shape(half.hidden, params, tokens, mask).dtype == jnp.bfloat16
    got, want = (jax.jit(p.logits)(params, tokens, mask) for p in (half, policy))
    assert got.dtype == jnp.float32
    # bfloat16 holds 8 bits: an error of a few times 2^-8 of the size of the logits, and never none.
    error = float(jnp.sqrt(jnp.mean((got - want) ** 2) / jnp.mean(want**2)))
    assert 1e-4 < error < 0.03
    grad = jax.jit(jax.grad(lambda p: jnp.sum(half.logits(p, tokens, mask))))(params)
    assert all(g.dtype == jnp.float32 and jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grad))


class TestCache:
  @pytest.mark.parametrize('name, dtype, tol', [(n, 'float32', 1e-5) for n in CONFIGS] + [('grouped', 'bfloat16', 0.05)])
  def test_decoding_equals_the_full_pass_at_every_position(self, name, dtype, tol):
    _, params = make(name)
    policy = transformer.transformer_policy(dataclasses.replace(CONFIGS[name], dtype=dtype))
    tokens, mask = ragged()  # the last prompt is all padding

    @jax.jit
    def decode(params):
      cache, first = policy.start(params, tokens[:, :4], mask[:, :4], 4)
      _, rest = jax.lax.scan(lambda cache, token: policy.step(params, cache, token), cache, tokens[:, 4:].T)
      return jnp.concatenate([first[None], rest]).swapaxes(0, 1)

    want = jax.jit(policy.logits)(params, tokens, mask)[:, 3:]
    scale = jnp.max(jnp.abs(want))
    np.testing.assert_allclose(decode(params) / scale, want / scale, atol=tol)

  def test_cache_is_never_transposed_or_copied(self):
    policy, params = make('plain')
    cache, _ = jax.eval_shape(lambda: policy.start(params, *ragged(T=0), 4))
    step = jax.jit(policy.step, donate_argnums=1)
    text = step.lower(params, cache, jnp.zeros(5, jnp.int32)).compile().as_text()
    for shape in ('f32[5,4,4,8]', 'f32[5,4,8,4]'):  # keys [B, Hkv, head_dim, N] and values [B, Hkv, N, head_dim]
      made = [line for line in text.splitlines() if f'= {shape}' in line]
      assert made, 'the cache has another shape: mend this test'
      bad = [line for line in made if ' transpose(' in line or ' copy(' in line]
      assert not bad, bad

  def test_rows_are_taken_as_if_they_had_been_read(self):
    policy, params = make('grouped')
    tokens, mask = ragged(T=0)
    row = jnp.array([[4, 0, 0, 2]])

    @jax.jit
    def both(params):
      cache, _ = policy.start(params, tokens, mask, 2)
      again, _ = policy.start(params, tokens[row[0]], mask[row[0]], 2)
      return policy.take(cache, row), again

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *both(params))


class TestAttention:
  def test_logits_of_the_first_layer(self):
    policy, params = make('learned')  # post-norm without rotation: the first layer reads the embeddings as they are
    tokens, mask = ragged()
    got, seen = jax.jit(policy.attention)(params, tokens, mask)
    assert got.shape == (2, 5, 4, 8, 8) and got.dtype == jnp.float32
    np.testing.assert_array_equal(seen, attention.causal_mask(mask))
    p = jax.tree.map(np.asarray, params)
    places = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    x = p['embed'][np.where(mask, tokens, 0)] + p['position'][places]
    q, k = ((x @ p['block_0']['attention'][name]['kernel']).reshape(5, 8, 4, 5) for name in ('query', 'key'))
    np.testing.assert_allclose(got[0], np.einsum('bihd,bjhd->bhij', q, k) / np.sqrt(5), rtol=1e-3, atol=1e-4)

  def test_differentiable_under_remat(self):
    policy, params = make('no_norm')
    f = lambda params: jnp.sum(jnp.square(policy.attention(params, *ragged()).logits_LxBxHxQxK))
    grad = jax.jit(jax.grad(f))(params)
    assert all(np.any(grad[f'block_{i}']['attention'][name]['kernel']) for i in range(2) for name in ('query', 'key'))
    assert not np.any(grad['block_1']['attention']['value']['kernel'])  # behind the last logits


class TestReparametrised:
  def test_a_decoder_converts_and_folds_back(self):
    policy, params = make('grouped')
    tokens, mask = ragged()
    turned = transformer.transformer_policy(dataclasses.replace(CONFIGS['grouped'], linear='sigma_reparam', gain_init='sigma'))
    converted = dict(zip(('params', 'spectral'), jax.jit(spectral.convert)(params), strict=True))
    assert jax.tree.structure(converted) == jax.tree.structure(jax.eval_shape(turned.init, jax.random.key(0)))
    want = jax.jit(policy.logits)(params, tokens, mask)
    np.testing.assert_allclose(jax.jit(turned.logits)(converted, tokens, mask), want, rtol=1e-4, atol=1e-5)
    folded = jax.jit(spectral.fold)(converted['params'], converted['spectral'])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), folded, params)

  def test_every_map_of_a_block_and_nothing_else(self):
    config = CONFIGS['sigma_reparam']
    shapes = jax.eval_shape(transformer.transformer_policy(config).init, jax.random.key(0))
    found = {'/'.join(k.key for k in path[:-1]) for path, _ in jax.tree_util.tree_leaves_with_path(shapes['spectral'])}
    maps = ['attention/query', 'attention/key', 'attention/value', 'attention/output', 'mlp/gate', 'mlp/up', 'mlp/down']
    assert found == {f'block_{i}/{name}' for i in range(2) for name in maps}
    # A gain each; the vectors are no parameters.
    dense = dataclasses.replace(config, linear='dense')
    assert transformer.num_parameters(config) == transformer.num_parameters(dense) + 2 * 7

  def test_only_advance_moves_the_state(self):
    policy, params = make('sigma_reparam')
    tokens, mask = ragged()
    grad = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(policy.logits(p, tokens, mask)))))(params)
    assert not any(np.any(g) for g in jax.tree.leaves(grad['spectral']))
    assert all(np.any(g) for g in jax.tree.leaves(grad['params']))
    after = jax.jit(policy.advance)(params)
    jax.tree.map(np.testing.assert_array_equal, after['params'], params['params'])
    want = jax.jit(spectral.advance)(params['params'], params['spectral'])
    jax.tree.map(np.testing.assert_array_equal, after['spectral'], want)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 1e-3, after['spectral'], params['spectral'])
    assert all(jax.tree.leaves(moved))

  def test_a_plain_policy_has_nothing_to_advance(self):
    policy, params = make('plain')
    assert policy.advance(params) is params and 'spectral' not in params


class TestConfig:
  @pytest.mark.parametrize(
    'changes, message',
    [
      ({'vocab_size': 0}, 'vocab_size is 0: give a positive integer'),
      ({'num_layers': 1.5}, 'num_layers is 1.5'),
      ({'head_dim': -2}, 'head_dim is -2'),
      ({'positions': 'rotery'}, r"positions is 'rotery': choose one of rotary, learned.*'rotary'"),
      ({'norm': 'prenorm'}, r"norm is 'prenorm': choose one of pre, post, none, deepnorm.*'deepnorm'"),
      ({'dtype': 'float16'}, "dtype is 'float16'"),
      ({'rope_theta': 0.0}, 'rope_theta is 0.0: give a positive'),
      ({'norm_eps': -1e-6}, 'norm_eps is -1e-06'),
      ({'num_heads': 3}, r'num_heads is 3, which does not divide width \(16\)'),
      ({'num_kv_heads': 3}, 'num_kv_heads is 3: choose a divisor of num_heads'),
      ({'head_dim': 5}, 'head_dim is 5: rotary'),
      ({'final_logit_cap': 0.0}, 'final_logit_cap is 0.0: give a positive number'),
      ({'positions': 'learned', 'rope_scaling': RopeScaling()}, "rope_scaling is set while positions is 'learned'"),
    ],
  )
  def test_refused(self, changes, message):
    with pytest.raises(UserError, match=message):
      dataclasses.replace(BASE, **changes)

  def test_too_long(self):
    policy, params = make('plain')
    tokens, mask = jnp.zeros((1, 10), jnp.int32), jnp.ones((1, 10), bool)
    with pytest.raises(UserError, match='max_length is 16, but prompt and response have 17'):
      jax.eval_shape(lambda: policy.start(params, tokens, mask, 7))
    cache, _ = jax.eval_shape(lambda: policy.start(params, tokens, mask, 6))
    assert cache.real_BxN.shape == (1, 16)
