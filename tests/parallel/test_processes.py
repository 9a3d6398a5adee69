"""parallel/processes.py: two real processes on loopback, and every way of missing one another in one sentence."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from entropy_jax.parallel import processes
from entropy_jax.types import UserError
from tests import compiler

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Four host devices a process. Arguments: setting, folder. Writes what it saw to FOLDER/INDEX.
SCRIPT = """
import json, pathlib, sys
import numpy as np
from entropy_jax.parallel import processes
processes.initialize(sys.argv[1], timeout=60)
processes.initialize(sys.argv[1])  # once is enough
import jax
index = jax.process_index()
def fails(where):
  try:
    with processes.agreed():
      if index in where:
        raise processes.UserError(f'no {index}.')
  except processes.SharedError as error:
    return str(error)
seen = {
  'counts': [jax.process_count(), jax.device_count(), jax.local_device_count()],
  'preemption': jax.config.jax_enable_preemption_service,
  'sum': processes.gather_sum({'b': 2.0**40 + 0.5 * index, 'a': index}),
  'rows': processes.gather_rows(np.array([[index, 1e-30], [index, 2.0]])).tolist(),
  'flags': processes.gather_rows(np.array([index == 0])).tolist(),
  'agreed': [fails([]), fails([0]), fails([1]), fails([0, 1])],
}
pathlib.Path(sys.argv[2], str(index)).write_text(json.dumps(seen))
"""


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
  flags = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'--xla_force_host_platform_device_count=4 {compiler.QUICK}'}
  return {k: v for k, v in os.environ.items() if k not in processes.VARIABLES} | flags | more


def start(*arguments: str, **more: str) -> subprocess.Popen:
  command = [sys.executable, '-c', SCRIPT, *arguments]
  return subprocess.Popen(command, cwd=ROOT, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(autouse=True)
def nothing_in_the_environment(monkeypatch):
  for name in processes.VARIABLES:
    monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope='module')
def seen(tmp_path_factory):
  folder, address = tmp_path_factory.mktemp('two'), f'127.0.0.1:{free_port()}'
  told = dict(zip(processes.VARIABLES, (address, '2', '1')))
  both = [start(f'{address},2,0', str(folder)), start('', str(folder), **told)]
  for process in both:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
  return [json.loads((folder / index).read_text()) for index in '01']


class TestTwoProcesses:
  """One run of two processes, the second told by the environment."""

  def test_see_one_another(self, seen):
    assert [s['counts'] for s in seen] == [[2, 8, 4]] * 2
    assert [s['preemption'] for s in seen] == [False, False]

  def test_sums_are_exact_and_the_same(self, seen):
    # 2^40 + 0.5 does not fit float32, whose spacing there is 2^17
    assert [s['sum'] for s in seen] == [{'a': 1.0, 'b': 2.0**41 + 0.5}] * 2

  def test_rows_are_in_the_order_of_the_processes(self, seen):
    assert [s['rows'] for s in seen] == [[[0, 1e-30], [0, 2.0], [1, 1e-30], [1, 2.0]]] * 2
    assert [s['flags'] for s in seen] == [[True, False]] * 2

  def test_a_failure_of_one_is_that_of_all(self, seen):
    assert [s['agreed'] for s in seen] == [[None, 'no 0.', 'process 1: no 1.', 'no 0.']] * 2


class TestParse:
  def test_one_process(self):
    assert processes.parse('') is None and processes.parse('auto') == 'auto'

  def test_setting_and_environment(self, monkeypatch):
    assert processes.parse('a.b:77, 3 ,2') == processes.Setting('a.b:77', 3, 2)
    assert processes.parse('[::1]:77,1,0') == processes.Setting('[::1]:77', 1, 0)
    for name, value in zip(processes.VARIABLES, ('h:5', '4', '3')):
      monkeypatch.setenv(name, value)
    assert processes.parse('') == processes.Setting('h:5', 4, 3)
    assert processes.parse('a:77,3,2') == processes.Setting('a:77', 3, 2)  # what is said goes before what is around

  @pytest.mark.parametrize(
    ('setting', 'text'),
    [
      ('localhost', 'has 1 parts and not 3'),
      ('h:1,2', "config.distributed='h:1,2' has 2 parts"),
      ('h,2,0', "'h' is not the HOST:PORT of process 0"),
      (':99,2,0', "':99' is not the HOST:PORT"),
      ('h:70000,2,0', "'h:70000' is not the HOST:PORT of process 0, with a port in 1..65535"),
      ('h:1,0,0', "'0' is not a number of processes, at least 1"),
      ('h:1,2,2', "'2' is not the index of a process, in 0..1"),
      ('h:1,2,-1', "'-1' is not the index"),
      (3, 'config.distributed=3 is not a text'),
    ],
  )
  def test_malformed(self, setting, text):
    with pytest.raises(UserError) as caught:
      processes.check(setting)
    assert text in str(caught.value) and str(caught.value).endswith("give '', 'auto' or 'HOST:PORT,COUNT,INDEX'.")

  def test_half_an_environment(self, monkeypatch):
    monkeypatch.setenv('JAX_NUM_PROCESSES', '2')
    with pytest.raises(UserError) as caught:
      processes.parse('')
    assert str(caught.value) == (
      "config.distributed: the environment has JAX_NUM_PROCESSES='2' and no JAX_COORDINATOR_ADDRESS and no JAX_PROCESS_ID; "
      'set all three, or none.'
    )
    monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'h:1')
    monkeypatch.setenv('JAX_PROCESS_ID', 'x')
    with pytest.raises(UserError, match=r"^the environment variables .*: 'x' is not the index of a process"):
      processes.parse('')


class TestMissing:
  """Sentences instead of the runtime's abort; everything up to the meeting, so that no process is needed."""

  def message(self, setting, timeout=0.5):
    with pytest.raises(UserError) as caught:
      processes.initialize(setting, timeout=timeout)
    return str(caught.value)

  def test_one_process_touches_nothing(self):
    processes.initialize('')
    processes.initialize('nowhere.invalid:1,1,0')

  def test_nobody_listens(self):
    started, port = time.monotonic(), free_port()
    message = self.message(f'127.0.0.1:{port},2,1')
    assert f'process 0 could not be reached at 127.0.0.1:{port} within 0.5 s (Connection refused)' in message
    assert time.monotonic() - started < 5

  def test_no_such_host(self):
    assert 'could not be reached at nowhere.invalid:9' in self.message('nowhere.invalid:9,2,1')

  def test_nobody_comes(self):
    assert 'has not heard of process 1, 2 of 3; start all of them' in self.message(f'127.0.0.1:{free_port()},3,0')

  def test_the_port_is_taken(self):
    with socket.create_server(('', 0)) as taken:
      assert 'cannot be listened on' in self.message(f'127.0.0.1:{taken.getsockname()[1]},2,0')

  def meet(self, *settings):
    """What each of several threads is refused with; they meet as processes do."""
    said = [''] * len(settings)

    def one(place, setting):
      try:
        (processes._wait_for_others if setting.process_id == 0 else processes._report_to_first)(setting, 10.0)
      except UserError as error:
        said[place] = str(error)

    threads = [threading.Thread(target=one, args=(k, setting)) for k, setting in enumerate(settings)]
    for thread in threads:
      thread.start()
      time.sleep(0.1)  # in this order
    for thread in threads:
      thread.join(20)
    return said

  def test_they_meet(self):
    address = f'127.0.0.1:{free_port()}'
    # Process 1 is there before process 0.
    assert self.meet(*(processes.Setting(address, 3, k) for k in (1, 0, 2))) == ['', '', '']

  def test_they_count_differently(self):
    address = f'127.0.0.1:{free_port()}'
    said = self.meet(processes.Setting(address, 2, 0), processes.Setting(address, 3, 1))
    assert said[0] == said[1] and 'process 1 counts 3 processes and process 0 counts 2; give all the same COUNT' in said[0]

  def test_two_of_one_index(self):
    address = f'127.0.0.1:{free_port()}'
    said = self.meet(*(processes.Setting(address, 3, k) for k in (0, 1, 1)))
    assert said[0] == said[1] == said[2] and 'two processes call themselves 1 of 3' in said[0]

  def test_one_that_was_started_again_takes_its_own_place(self):
    port = free_port()
    address = f'127.0.0.1:{port}'
    first = threading.Thread(target=processes._wait_for_others, args=(processes.Setting(address, 3, 0), 10.0))
    first.start()
    time.sleep(0.2)
    with socket.create_connection(('127.0.0.1', port)) as killed, socket.create_connection(('127.0.0.1', port)) as stranger:
      killed.sendall(b'entropy_jax 3 1\n')
      stranger.sendall(b'GET / HTTP/1.1\n')  # is hung up on
      assert stranger.recv(10) == b''
    assert self.meet(processes.Setting(address, 3, 1), processes.Setting(address, 3, 2)) == ['', '']
    first.join(10)
    assert not first.is_alive()

  def test_a_listener_that_gathers_nobody(self):
    with socket.create_server(('127.0.0.1', 0)) as other:
      assert 'could not be reached' in self.message(f'127.0.0.1:{other.getsockname()[1]},2,1')

  def test_no_cluster(self):
    script = (
      'from entropy_jax.parallel import processes\n'
      "try: processes.initialize('auto', timeout=5)\n"
      'except processes.UserError as error: print(error)'
    )
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("config.distributed='auto': this is no host of a TPU pod, SLURM, Open MPI or Kubernetes"), done.stderr


class TestAlone:
  """Everything is the identity for one process."""

  def test_gathers(self):
    rows = np.arange(6).reshape(3, 2)
    assert processes.gather_rows(rows) is rows and processes.gather_sum({'a': 3}) == {'a': 3}

  def test_agreed_keeps_the_error(self):
    error = UserError('x.')
    with pytest.raises(UserError) as caught, processes.agreed():
      raise error
    assert caught.value is error
    with pytest.raises(ZeroDivisionError), processes.agreed():
      raise ZeroDivisionError
