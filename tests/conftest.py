"""What every test runs under: 8 host devices, rank promotion refused, one compilation cache; warnings are errors (setup.cfg)."""

import gc
import os
import pathlib

from tests import compiler

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {compiler.EIGHT_DEVICES} {compiler.QUICK}'.strip()

import jax
import pytest

# Tracing makes many objects that live on, and a full collection walks all modules: 5 % of the suite's time.
gc.collect()
gc.freeze()
gc.set_threshold(50_000, 20, 50)

ROOT = pathlib.Path(__file__).resolve().parent.parent
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_compilation_cache_dir', str(ROOT / '.cache' / 'jax-tests'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


_compiled = []  # names of events, one a program
jax.monitoring.register_event_duration_secs_listener(
  lambda name, *_, **__: _compiled.append(name) if name.endswith('backend_compile_duration') else None
)


@pytest.fixture(scope='module', autouse=True)
def few_programs():
  """Drops compiled programs after a module that has left many: lowering and compiling take time in proportion to those that are kept."""
  yield
  if len(_compiled) > 100:
    _compiled.clear()
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def strict_dtypes():
  """Mixed dtypes raise, so a bool mask cannot be multiplied with a float (style rule F6)."""
  with jax.numpy_dtype_promotion('strict'):
    yield


@pytest.fixture
def vanishes(monkeypatch):
  """Folders put into it are listed by their parent, and gone when one looks into them, as a checkpoint's while a run goes on."""
  folders, scandir = set(), os.scandir

  def removed_first(path='.'):
    if str(path) in folders:
      raise FileNotFoundError(2, 'No such file or directory', str(path))
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', removed_first)
  return folders
