"""data/math_verify_worker.py: what a child that has begun to answer can no longer do, and that digits still compile."""

import json
import subprocess
import sys

import pytest

from entropy_jax.data import math_verify_worker
from entropy_jax.data.answer_verifier import WORKER

# Stands for math-verify: it does what the answer names.
STANDS_IN = """
import importlib.util, json, os, sys
spec = importlib.util.spec_from_file_location('worker', {worker!r})
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
import socket, subprocess
def compare(reference, answer):
  if answer == 'write':
    open(reference, 'w')
  if answer == 'start':
    subprocess.Popen(['touch', reference])
  if answer == 'system':
    os.system('touch ' + reference)
  if answer == 'connect':
    socket.socket().connect(('127.0.0.1', 9))
  if answer == 'remove':
    os.remove(reference)
  if answer == 'build':
    compile('open(' + repr(reference) + ', "w")', 'text', 'exec')
  if answer == 'memory':
    bytearray(worker.MEMORY)
  if answer == 'read':
    return bool(open(worker.__file__).read())
  if answer == 'number':
    return compile('Integer (12 )', 'text', 'single') is not None
  return True
worker.answer_requests(compare, 5)
"""


class TestLockDown:
  def test_refuses_what_no_comparison_needs(self, tmp_path):
    refused = ['write', 'start', 'system', 'connect', 'remove', 'build', 'memory']
    allowed = ['read', 'number', 'nothing']
    kept = tmp_path / 'kept'
    kept.write_text('')
    lines = [json.dumps([str(kept if name == 'remove' else tmp_path / name), name]) for name in (*refused, *allowed)]
    program = STANDS_IN.format(worker=str(WORKER))
    with subprocess.Popen([sys.executable, '-I', '-c', program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
      said = []
      for line in lines:
        process.stdin.write(line + '\n')
        process.stdin.flush()
        said.append(json.loads(process.stdout.readline())['value'])
      process.stdin.close()
    assert said == [None] * len(refused) + [True] * len(allowed)
    assert [path.name for path in tmp_path.iterdir()] == ['kept']


MONOMIAL = b'def monomial_div(A, B):\n    (a0,) = A\n    (b0,) = B\n    r0 = a0 - b0\n    if r0 < 0: return None\n    return (r0,)\n'
OTHERS = [b'open (x)', b'Integer (open ())', b'from os import *', b'def monomial_mul(A): import os', b'def monomial_mul(A): open(A)', b'5']


class TestCompiled:
  @pytest.mark.parametrize('text', [b'Integer (5 )', b"Float ('1.5' )", b'from sympy import *', MONOMIAL])
  def test_what_sympy_writes(self, text):
    assert math_verify_worker.COMPILED.fullmatch(text)

  @pytest.mark.parametrize('text', OTHERS)
  def test_nothing_else(self, text):
    assert math_verify_worker.COMPILED.fullmatch(text) is None
