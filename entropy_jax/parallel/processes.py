"""Several processes as one run: finding one another, and adding up or lining up what each has on its host.

Before jax is told of the others, the processes meet on the coordinator's port over plain sockets. There every way of missing one another
(nobody listens, one of them never starts, two have the same index, they count differently) ends in one sentence and within the timeout;
jax itself would abort the process with a stack trace of its runtime.
"""

import contextlib
import functools
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from entropy_jax.types import UserError

KEY = 'config.distributed'
VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
FORMS = "give '', 'auto' or 'HOST:PORT,COUNT,INDEX'"
AUTO = 'auto'
TIMEOUT = 300.0  # seconds until all processes have met; hosts of a pod start within a minute or two of one another
SHUTDOWN_SECONDS = 60  # that a process waits at its end for the others, which may have died
_GO, _SENTENCE_BYTES = 'go', 2048


class Setting(NamedTuple):
  """This process among the others: the address of process 0, how many there are, which one this is."""

  address: str
  num_processes: int
  process_id: int


def _make(owner: str, parts: Sequence[str], mend: str) -> Setting:
  address, count, index = parts
  host, _, port = address.rpartition(':')
  if not host or not re.fullmatch(r'\d{1,5}', port) or not 0 < int(port) < 65536:
    raise UserError(f'{owner}: {address!r} is not the HOST:PORT of process 0, with a port in 1..65535; {mend}.')
  if not re.fullmatch(r'\d{1,6}', count) or int(count) < 1:
    raise UserError(f'{owner}: {count!r} is not a number of processes, at least 1; {mend}.')
  if not re.fullmatch(r'\d{1,6}', index) or int(index) >= int(count):
    raise UserError(f'{owner}: {index!r} is not the index of a process, in 0..{int(count) - 1}; {mend}.')
  return Setting(address, int(count), int(index))


def parse(setting: str) -> Setting | str | None:
  """What a setting says: a Setting, 'auto', or None for one process alone.

  Args:
    setting: '' takes the environment variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID if they are set; 'auto' asks
      the cluster; 'HOST:PORT,COUNT,INDEX'.

  Raises:
    UserError: malformed, or some of the variables are set and others are not.

  >>> parse('10.0.0.1:1234,8,3')
  Setting(address='10.0.0.1:1234', num_processes=8, process_id=3)
  """
  if not isinstance(setting, str):
    raise UserError(f'{KEY}={setting!r} is not a text; {FORMS}.')
  if setting == AUTO:
    return AUTO
  if setting:
    parts = [part.strip() for part in setting.split(',')]
    if len(parts) != 3:
      raise UserError(f'{KEY}={setting!r} has {len(parts)} parts and not 3; {FORMS}.')
    return _make(f'{KEY}={setting!r}', parts, FORMS)
  given = {name: os.environ.get(name, '') for name in VARIABLES}
  missing = [name for name, value in given.items() if not value]
  if len(missing) == len(VARIABLES):
    return None
  if missing:
    there = ', '.join(f'{name}={value!r}' for name, value in given.items() if value)
    raise UserError(f'{KEY}: the environment has {there} and no {" and no ".join(missing)}; set all three, or none.')
  return _make(f'the environment variables {", ".join(VARIABLES)}', list(given.values()), 'set them right, or unset all three')


def check(setting: str) -> None:
  """Refuses a malformed setting."""
  parse(setting)


def initialize(setting: str, *, timeout: float = TIMEOUT) -> None:
  """Makes this process one of several, where the setting or the environment says that there are; before any device is touched.

  Args:
    setting: see `parse`.
    timeout: seconds until all must have met.

  Raises:
    UserError: a malformed setting, a coordinator that cannot be reached, processes that did not come or do not agree, no cluster.
  """
  found = parse(setting)
  if found is None or (isinstance(found, Setting) and found.num_processes == 1) or jax.distributed.is_initialized():
    return
  # The loop polls its own flag for SIGTERM; jax's service would take the signal away from it.
  jax.config.update('jax_enable_preemption_service', False)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')  # without effect on other devices
  join = functools.partial(
    jax.distributed.initialize, initialization_timeout=max(int(timeout), 1), shutdown_timeout_seconds=SHUTDOWN_SECONDS
  )
  if not isinstance(found, Setting):
    try:
      join()
    except ValueError:
      known = 'a TPU pod, SLURM, Open MPI or Kubernetes'
      raise UserError(f"{KEY}='auto': this is no host of {known} that could name the other processes; {FORMS}.") from None
    return
  if found.process_id == 0:
    _wait_for_others(found, timeout)
  else:
    _report_to_first(found, timeout)
  join(found.address, found.num_processes, found.process_id, cluster_detection_method='deactivate')


def _server(port: int) -> socket.socket:
  """Listens on every address of this host, as jax's service will on the same port."""
  if socket.has_dualstack_ipv6():
    return socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True)
  return socket.create_server(('', port))


def _wait_for_others(setting: Setting, timeout: float) -> None:
  """Process 0: hears from every other process, then lets all of them go on."""
  deadline = time.monotonic() + timeout
  port = int(setting.address.rpartition(':')[2])
  try:
    server = _server(port)
  except OSError as error:
    raise UserError(f'{KEY}: port {port} of process 0 cannot be listened on ({error.strerror}); give one that is free.') from None
  callers: dict[int, socket.socket] = {}
  refusal = None
  with server:
    while len(callers) < setting.num_processes - 1 and refusal is None:
      server.settimeout(max(deadline - time.monotonic(), 0.001))
      try:
        caller, _ = server.accept()
      except TimeoutError:
        absent = [str(k) for k in range(1, setting.num_processes) if k not in callers]
        shown = ', '.join(absent[:8]) + (', ...' if absent[8:] else '')
        waited = f'after {timeout:g} s process 0 at {setting.address} has not heard of process {shown} of {setting.num_processes}'
        refusal = f'{KEY}: {waited}; start all of them, with the address that all can reach.'
        break
      greeting = _hear(caller, 5.0).split()
      if len(greeting) != 3 or greeting[0] != 'entropy_jax' or not all(word.isdigit() for word in greeting[1:]):
        caller.close()  # somebody else
        continue
      count, index = int(greeting[1]), int(greeting[2])
      if count != setting.num_processes:
        refusal = f'{KEY}: process {index} counts {count} processes and process 0 counts {setting.num_processes}; give all the same COUNT.'
      elif not 0 < index < count or (index in callers and not _has_left(callers[index])):
        refusal = f'{KEY}: two processes call themselves {index} of {count}; give each its own INDEX, from 0.'
      place = -1 if refusal else index
      if place in callers:
        callers[place].close()
      callers[place] = caller
  for caller in callers.values():
    with caller:
      caller.settimeout(5.0)
      _tell(caller, refusal or _GO)
  if refusal:
    raise UserError(refusal)


def _report_to_first(setting: Setting, timeout: float) -> None:
  """Another process: says who it is, and waits until process 0 has heard of everybody."""
  deadline = time.monotonic() + timeout
  host, _, port = setting.address.rpartition(':')
  problem = 'no answer'
  while True:
    left = deadline - time.monotonic()
    if left <= 0:
      waited = f'process 0 could not be reached at {setting.address} within {timeout:g} s ({problem})'
      raise UserError(f'{KEY}: {waited}; start it, and give the others an address and port of its host that they can reach.')
    try:
      with socket.create_connection((host.strip('[]'), int(port)), timeout=min(left, 5.0)) as caller:
        _tell(caller, f'entropy_jax {setting.num_processes} {setting.process_id}')
        answer = _hear(caller, deadline - time.monotonic())
    except OSError as error:
      problem = error.strerror or str(error)
    else:
      if answer == _GO:
        return
      if answer.startswith(KEY):
        raise UserError(answer)
      problem = 'it listens, and does not gather processes'
    time.sleep(min(0.2, max(deadline - time.monotonic(), 0.0)))


def _has_left(caller: socket.socket) -> bool:
  """Whether a caller hung up, as one does that is started again."""
  caller.settimeout(0.0)
  try:
    return caller.recv(1) == b''
  except BlockingIOError:
    return False
  except OSError:
    return True


def _tell(to: socket.socket, line: str) -> None:
  try:
    to.sendall(line.encode() + b'\n')
  except OSError:
    return  # it went away, and will say so itself


def _hear(whom: socket.socket, seconds: float) -> str:
  """One line, or '' where none comes in time."""
  deadline, got = time.monotonic() + seconds, b''
  try:
    while not got.endswith(b'\n') and len(got) < _SENTENCE_BYTES:
      whom.settimeout(max(deadline - time.monotonic(), 0.001))
      more = whom.recv(_SENTENCE_BYTES)
      if not more:
        break
      got += more
  except OSError:
    return ''
  return got.decode(errors='replace').strip()


def gather_rows(x: np.ndarray) -> np.ndarray:
  """The rows of all processes, [sum of rows, ...], in the order of the processes; every process has as many."""
  if jax.process_count() == 1:
    return x
  x = np.ascontiguousarray(x)
  # As bytes, because jax would make float32 of float64; one row of bytes a process.
  own = np.frombuffer(x.tobytes(), np.uint8)
  gathered = np.asarray(multihost_utils.process_allgather(own))
  return np.frombuffer(gathered.tobytes(), x.dtype).reshape(-1, *x.shape[1:])


def gather_sum(counts: Mapping[str, float]) -> dict[str, float]:
  """The sum over the processes of every count, in float64 and in one order, so equal everywhere; all give the same names."""
  if jax.process_count() == 1:
    return dict(counts)
  names = sorted(counts)
  rows = gather_rows(np.array([[float(counts[name]) for name in names]]))
  return {name: float(total) for name, total in zip(names, rows.sum(axis=0))}


class SharedError(UserError):
  """A mistake that all processes know of, so that one of them says it."""


@contextlib.contextmanager
def agreed() -> Iterator[None]:
  """Around what every process does: where it fails with UserError in one, all raise its sentence; nobody goes on before all are done.

  A process that stopped on its own would leave the others waiting for it.
  """
  sentence = ''
  try:
    yield
  except UserError as error:
    if jax.process_count() == 1:
      raise
    sentence = str(error)
  if jax.process_count() == 1:
    return
  row = np.frombuffer(sentence.encode()[:_SENTENCE_BYTES].ljust(_SENTENCE_BYTES, b'\0'), np.uint8)
  sentences = [row.tobytes().rstrip(b'\0').decode(errors='ignore') for row in gather_rows(row[None])]
  for index, text in enumerate(sentences):
    if text:
      raise SharedError(f'process {index}: {text}' if index else text)
