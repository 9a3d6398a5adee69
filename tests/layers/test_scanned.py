"""The scanned stack against the stack of separate layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.layers import block, scanned
from entropy_jax.models import encoder_decoder, policy
from entropy_jax.types import UserError

CONFIG = encoder_decoder.EncoderDecoderConfig(
  width=8, num_layers=3, num_decoder_layers=2, num_heads=2, mlp_width=12, source_vocab_size=9, target_vocab_size=7, source_length=6,
  target_length=8, linear='sigma_reparam', norm='post', activation='relu', tie_embeddings=False,
)  # fmt: skip
REAL = jnp.arange(6)[None] < jnp.array([6, 3])[:, None]
TOKENS = jnp.arange(12).reshape(2, 6) % 7
INPUTS = (TOKENS, REAL, TOKENS[:, ::-1], REAL)


@pytest.fixture(scope='module')
def models():
  """(scanned model, its parameters, separate model, the same parameters)."""
  deep, flat = encoder_decoder.translator(CONFIG, scan=True), encoder_decoder.translator(CONFIG)
  params = jax.jit(deep.init)(jax.random.key(0))
  return deep, params, flat, scanned.unstack(params)


class TestScannedBlocks:
  def test_is_the_stack_of_separate_layers(self, models):
    """Logits, their gradient, the step of power iteration and what is read of attention."""
    deep, params, flat, apart = models

    @jax.jit
    def both():
      loss = lambda model: lambda p: jnp.sum(jnp.sin(model.logits(p, *INPUTS)), where=REAL[..., None])
      made = jax.value_and_grad(loss(deep))(params), jax.value_and_grad(loss(flat))(apart)
      read = deep.attention(params, *INPUTS), flat.attention(apart, *INPUTS)
      return made, read, (deep.advance(params), flat.advance(apart))

    ((value, grads), (want, want_grads)), read, moved = jax.device_get(both())
    np.testing.assert_allclose(value, want, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), scanned.unstack(grads), want_grads)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), *read)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), scanned.unstack(moved[0]), moved[1])

  def test_every_layer_starts_as_its_own(self, models):
    _, params, flat, apart = models
    want = jax.eval_shape(flat.init, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), apart) == jax.tree.map(lambda x: (x.shape, x.dtype), want)
    up = params['params']['encoder_block_0'][scanned.LAYERS]['mlp']['up']['kernel']
    assert up.shape == (3, 8, 12) and float(jnp.abs(up[0] - up[1]).max()) > 0.1
    np.testing.assert_allclose(np.std(up), 8**-0.5, rtol=0.15)  # 288 draws of standard deviation 1 / sqrt(8)

  def test_no_cache_and_no_abf(self):
    (stack,) = scanned.stack(block.BlockConfig(width=8, num_layers=2, num_heads=2, mlp_width=8))
    inputs = jnp.zeros((1, 2, 8)), jnp.ones((1, 2, 2), bool), jnp.zeros((1, 2), jnp.int32)
    with pytest.raises(UserError, match='a scanned stack has none: decode with the model of separate layers'):
      stack.init(jax.random.key(0), *inputs, None, (jnp.zeros((1, 2, 2, 4)),) * 2)
    (stack,) = scanned.stack(block.BlockConfig(width=8, num_layers=2, num_heads=2, mlp_width=8, entropy_abf_window=4))
    with pytest.raises(UserError, match='set it to None for the scanned stack'):
      stack.init(jax.random.key(0), *inputs)

  def test_deepnorm_has_the_constants_of_the_whole_stack(self):
    config = dataclasses.replace(CONFIG, linear='dense', norm='deepnorm', num_layers=2)
    shapes = {scan: jax.eval_shape(encoder_decoder.translator(config, scan=scan).init, jax.random.key(0)) for scan in (False, True)}
    assert policy.plain_params(shapes[True]).keys() < policy.plain_params(shapes[False]).keys()
    deep, flat = (encoder_decoder.translator(config, scan=scan) for scan in (True, False))

    @jax.jit
    def gap():
      params = deep.init(jax.random.key(1))
      return deep.logits(params, *INPUTS) - flat.logits(scanned.unstack(params), *INPUTS)

    np.testing.assert_allclose(gap(), 0.0, atol=1e-5)
