"""What every test runs under: 8 host devices, rank promotion refused, one compilation cache; warnings are errors (setup.cfg)."""

import os
import pathlib

os.environ['JAX_PLATFORMS'] = 'cpu'
# Level 0 of the compiler's optimisation and the plain emitters: programs here are compiled once and run for milliseconds, and
# compiling is most of the suite (half of it with the fusion emitters).
os.environ['XLA_FLAGS'] = ' '.join([
  os.environ.get('XLA_FLAGS', ''),
  '--xla_force_host_platform_device_count=8',
  '--xla_backend_optimization_level=0',
  '--xla_cpu_use_fusion_emitters=false',
]).strip()

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_compilation_cache_dir', str(ROOT / '.cache' / 'jax-tests'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


@pytest.fixture
def strict_dtypes():
  """Mixed dtypes raise, so a bool mask cannot be multiplied with a float (style rule F6)."""
  with jax.numpy_dtype_promotion('strict'):
    yield
