"""One finished `:tiny` study for all tests that read a run folder, and the command that makes it."""

import fcntl
import os
import pathlib
import subprocess
import sys

import pytest

from entropy_jax.training import app
from tests import compiler

ROOT = pathlib.Path(__file__).resolve().parents[2]


def command(workdir: pathlib.Path, *overrides: str) -> list[str]:
  config = ROOT / 'configs' / 'entropy_mechanism.py'
  return [sys.executable, '-m', 'experiments.entropy_mechanism', f'--config={config}:tiny', f'--workdir={workdir}', *overrides]


def environment() -> dict[str, str]:
  # One device, as a user has; a cache of all studies, so that one that is started again compiles nothing, the smallest program included.
  return os.environ | {
    'XLA_FLAGS': compiler.QUICK,
    'JAX_COMPILATION_CACHE_DIR': str(ROOT / '.cache' / 'jax-studies'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  }


def run(workdir: pathlib.Path, *overrides: str) -> subprocess.CompletedProcess:
  return subprocess.run(command(workdir, *overrides), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600, check=False)


def run_here(experiment, config, workdir: pathlib.Path) -> None:
  """The study of a config in this process: it starts at once, and shares the suite's compiled programs."""
  app.prepare_workdir(workdir, config)
  experiment.main(config, workdir)


def changed(config, **changes):
  """The config with other values, a group's key as GROUP__KEY; whole groups are replaced, and what is locked may get new keys."""
  for key, value in changes.items():
    *groups, last = key.split('__')
    at = config
    for group in groups:
      at = at[group]
    with at.unlocked():
      at[last] = value
  return config


@pytest.fixture(scope='session')
def tiny_study(tmp_path_factory) -> pathlib.Path:
  """The folder of a finished tiny study, run once for all workers of the suite."""
  base = tmp_path_factory.getbasetemp()
  shared = base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base
  workdir = shared / 'tiny_study'
  with open(shared / 'tiny_study.lock', 'w', encoding='utf-8') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (workdir / 'report.html').exists():
      done = run(workdir)
      assert done.returncode == 0, done.stdout + done.stderr
  return workdir
