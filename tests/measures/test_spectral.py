"""Which parameters are linear maps, what they are called, and their norms against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.measures import spectral
from entropy_jax.models import transformer
from entropy_jax.types import UserError

RNG = np.random.default_rng(0)


def norm(x: np.ndarray) -> float:
  return np.linalg.norm(np.asarray(x, np.float64), 2)


class TestSpectralNorms:
  def test_every_kernel_of_the_decoder(self):
    config = transformer.DecoderConfig(vocab_size=7, width=8, num_layers=2, num_heads=2, mlp_width=12, max_length=8, tie_embeddings=False)
    params = jax.jit(transformer.transformer_policy(config).init)(jax.random.key(0))
    norms = jax.jit(spectral.spectral_norms)(params)
    maps = [f'attention/{name}' for name in ('query', 'key', 'value', 'output')] + [f'mlp/{name}' for name in ('gate', 'up', 'down')]
    assert set(norms) == {f'block_{i}/{name}' for i in range(2) for name in maps}
    for path, value in norms.items():
      block, part, name = path.split('/')
      np.testing.assert_allclose(value, norm(params[block][part][name]['kernel']), rtol=1e-5)
    with_head = spectral.spectral_norms(params, leaves=('kernel', 'unembed'))
    assert set(with_head) - set(norms) == {'unembed'}
    np.testing.assert_allclose(with_head['unembed'], norm(params['unembed']), rtol=1e-5)

  def test_convolution_is_flattened_and_vectors_are_no_maps(self):
    kernel = RNG.normal(size=(3, 3, 2, 5)).astype(np.float32)
    norms = spectral.spectral_norms({'patch': {'kernel': jnp.array(kernel), 'bias': jnp.ones(5)}, 'norm': {'kernel': jnp.ones(5)}})
    assert list(norms) == ['patch']
    np.testing.assert_allclose(norms['patch'], norm(kernel.reshape(18, 5)), rtol=1e-5)

  def test_own_matrix(self):
    stacked = RNG.normal(size=(4, 6, 3)).astype(np.float32)
    norms = spectral.spectral_norms({'layers': {'kernel': jnp.array(stacked)}}, matrix=lambda path, kernel: kernel)
    np.testing.assert_allclose(norms['layers'], [norm(x) for x in stacked], rtol=1e-5)

  def test_a_name_that_is_not_there(self):
    with pytest.raises(UserError, match="leaves=\\('weight',\\)"):
      spectral.spectral_norms({'kernel': jnp.eye(2)}, leaves=('weight',))
