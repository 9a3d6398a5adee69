"""data/deadline_pool.py, with workers that do what the task says."""

import os
import sys
import threading
import time

import pytest

from entropy_jax.data import deadline_pool
from entropy_jax.data.deadline_pool import DeadlinePool, Ending
from entropy_jax.types import UserError

# The protocol, with a child that adds one, sleeps, dies, or kills its parent.
WORKER = """
import json, os, signal, time
say = lambda message: os.write(1, json.dumps(message).encode() + b'\\n')
while True:
  pid = os.fork()
  if not pid:
    while line := os.read(0, 1 << 16):
      task = json.loads(line)
      if task == 'hang':
        time.sleep(1000)
      if task == 'die':
        os.kill(os.getpid(), signal.SIGSEGV)
      if task == 'kill':
        os.kill(os.getppid(), signal.SIGKILL)
        os._exit(0)
      say({'value': [task, os.getpid()] if task == 'who' else task + 1})
    os._exit(0)
  say({'ready': pid})
  os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
  say({'ended': pid})
  if not os.read(0, 1):
    break
  os.waitpid(pid, 0)
"""
DEADLINE = 0.4  # where a task hangs; elsewhere none comes near its own
SLACK = 2.0  # on a busy machine


def make(num_workers: int = 2, program: str = WORKER, deadline: float = 30.0) -> DeadlinePool:
  return DeadlinePool([sys.executable, '-I', '-S', '-c', program], num_workers=num_workers, deadline=deadline)


def alive(pid: int) -> bool:
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
  except FileNotFoundError:
    return False


def end(*pids: int) -> bool:
  """Whether all of them end soon: a kill is carried out when the process is next looked at."""
  until = time.monotonic() + 10
  while any(map(alive, pids)) and time.monotonic() < until:
    time.sleep(0.01)
  return not any(map(alive, pids))


@pytest.fixture
def pool():
  with make() as pool:
    yield pool


class TestDeadlinePool:
  def test_values_in_order_over_several_runs(self, pool):
    assert pool.run([]) == []
    assert pool.run(list(range(50))) == list(range(1, 51))
    assert pool.run([7]) == [8]

  def test_a_hanging_task_costs_its_deadline(self):
    with make(deadline=DEADLINE) as pool:
      pool.start()
      start = time.monotonic()
      assert pool.run([1, 'hang', 'hang', 2, 'hang', 3]) == [2, Ending.TIMED_OUT, Ending.TIMED_OUT, 3, Ending.TIMED_OUT, 4]
      assert DEADLINE < time.monotonic() - start < 2 * DEADLINE + SLACK  # two of them at once: two deadlines, and forks
      assert pool.run([1, 2, 3]) == [2, 3, 4]

  def test_a_crash_costs_the_task(self, pool):
    assert pool.run([1, 'die', 2, 'die', 3]) == [2, Ending.CRASHED, 3, Ending.CRASHED, 4]

  def test_a_worker_that_is_gone_is_replaced(self, pool):
    assert pool.run([1, 'kill', 2, 3]) == [2, Ending.CRASHED, 3, 4]

  def test_wall_limit(self, pool):
    pool.start()
    start = time.monotonic()
    assert pool.run([1, *['hang'] * 20], wall_limit=DEADLINE) == [2, *[Ending.TIMED_OUT] * 20]
    assert time.monotonic() - start < DEADLINE + SLACK  # without it, 10 deadlines of 30 s
    assert pool.run([1]) == [2]

  def test_close_ends_every_process(self):
    pool = make()
    who = pool.run(['who'] * 10)
    children = {pid for _, pid in who}
    workers = [worker.process.pid for worker in pool._workers]
    assert all(alive(pid) for pid in (*children, *workers))
    pool.close()
    assert end(*children, *workers)
    assert pool.run([1]) == [2]  # and it can be used again
    pool.close()

  def test_processes_end_with_the_pool(self):
    pool = make(1)
    ((_, child),) = pool.run(['who'])
    del pool
    assert end(child)

  def test_works_from_any_thread(self, pool):
    found = []
    threads = [threading.Thread(target=lambda n=n: found.append(pool.run([n, 'die', n]))) for n in range(3)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    assert sorted(found, key=str) == [[n + 1, Ending.CRASHED, n + 1] for n in range(3)]

  def test_a_stopped_worker_is_not_waited_for_forever(self, pool, monkeypatch):
    monkeypatch.setattr(deadline_pool, 'START_SECONDS', 0.1)
    silent = make(1, 'import time; time.sleep(1000)')
    with silent, pytest.raises(UserError, match='the worker ends as soon as it starts'):
      silent.run([1])

  def test_refuses(self):
    with pytest.raises(UserError, match='num_workers=0: must be at least 1'):
      make(0)
    with pytest.raises(UserError, match='deadline=inf: must be in'):
      DeadlinePool(['x'], num_workers=1, deadline=float('inf'))

  def test_says_what_a_worker_cannot_do(self):
    program = """import os; os.write(1, b'{"error": "no module named x"}\\n')"""
    with make(1, program) as pool, pytest.raises(UserError, match=r'the worker cannot start \(no module named x\)'):
      pool.run([1])
    with make(1, 'pass') as pool, pytest.raises(UserError, match='ends as soon as it starts'):
      pool.run([1])


def test_no_child_is_left_behind():
  with make() as pool:
    pool.run([1, 2])
    pids = [worker.process.pid for worker in pool._workers]
  with pytest.raises(ChildProcessError):
    os.waitpid(pids[0], os.WNOHANG)
