"""The tiny victim, and its undisturbed run."""

import pathlib
import sys

import pytest

from entropy_jax.chaos import kills
from entropy_jax.chaos.victims import Victim
from tests import compiler

ROOT = pathlib.Path(__file__).resolve().parents[2]


def make_victim(*arguments: str) -> Victim:
  environment = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': compiler.QUICK, 'JAX_COMPILATION_CACHE_DIR': str(ROOT / '.cache' / 'jax-studies')}
  return Victim(lambda workdir: [sys.executable, '-m', 'tests.chaos.tiny_victim', str(workdir), *arguments], ROOT, environment)


@pytest.fixture(scope='session')
def victim() -> Victim:
  return make_victim()


@pytest.fixture(scope='session')
def whole(victim, tmp_path_factory) -> pathlib.Path:
  return kills.undisturbed(victim, tmp_path_factory.mktemp('undisturbed'), lambda workdir: None)
