"""The program of a worker of `deadline_pool` that compares answers by math-verify: run by its path, it imports nothing of this library.

    python -I math_verify_worker.py SECONDS

It loads math-verify once and then forks: the child answers requests, one JSON line [reference, answer] each, with a line {"value": ...}:
true, false, or null where math-verify reads nothing or fails. When the child dies, killed or crashed, the parent forks another in
milliseconds. What it says and waits for is the protocol of `deadline_pool`.

math-verify is given LaTeX alone, since its reader of plain expressions evaluates them. sympy evaluates even a plain number, as Python text:
a child compiles nothing but digits and what sympy itself writes; it can neither write a file, start a process nor open a connection, and
its memory and processor time are bounded.
"""

import gc
import json
import math
import os
import re
import resource
import sys
from typing import Any

MEMORY = 2 << 30  # bytes a child may map
# What a child may still do, by the names of Python's audit events; opening files is looked at in detail.
ALLOWED = frozenset(
  ('open', 'compile', 'import', 'exec', 'marshal.loads', 'code.__new__', 'sys._getframe', 'builtins.id', 'resource.setrlimit')
) | {'object.__getattr__', 'object.__setattr__', 'object.__delattr__', 'os.listdir', 'os.scandir'}
# sympy makes numbers by compiling their digits, and functions on exponents for each number of variables.
COMPILED = re.compile(
  rb"\s*(?:Integer|Float)\s*\(\s*'?[0-9.eE+-]{1,80}'?\s*\)\s*|from sympy import \*|"
  rb"def monomial_[a-z]+\([ABk, ]+\):(?:[\s(),:=+*<>-]|\b(?:[abrk]?[0-9]*|[ABk]|return|if|else|None)\b)*"
)
# What fills tables and loads modules of math-verify and sympy that are used later.
WARM_UP = (('[0,1)', '[0,1)'), ('x^2-1', '(x-1)(x+1)'), ('2\\sqrt{2}', '\\sqrt{8}'), ('\\frac{\\pi}{2}', '\\{1,2\\}'))


def say(message: dict[str, Any]) -> None:
  """One line to whoever started this; written at once, so a kill leaves all of it or nothing."""
  os.write(1, json.dumps(message).encode() + b'\n')


def hear() -> bytes:
  """One line; b'' when nobody is there any more. Never reads on, since what follows may be for another process."""
  line = b''
  while not line.endswith(b'\n'):
    part = os.read(0, 1 << 16)
    if not part:
      return b''
    line += part
  return line


def load() -> Any:
  """The function (reference, answer) -> true, false or None."""
  import logging

  import math_verify

  logging.disable(logging.CRITICAL)
  latex = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]

  def read(text: str) -> list[Any]:
    return math_verify.parse('\\boxed{' + text + '}', latex, fallback_mode='no_fallback', parsing_timeout=None)

  def compare(reference: str, answer: str) -> bool | None:
    expected, given = read(reference), read(answer)
    return bool(math_verify.verify(expected, given, timeout_seconds=None)) if expected and given else None

  for pair in WARM_UP:  # its tables fill up on first use
    compare(*pair)
  return compare


def lock_down() -> None:
  """Takes from this process what it needs for no comparison."""
  for what, limit in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(what, (limit, limit))

  def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == 'open':
      refused = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    elif event == 'compile' and arguments[0] is not None:
      refused = not isinstance(arguments[0], bytes) or not COMPILED.fullmatch(arguments[0])
    else:
      refused = event not in ALLOWED
    if refused:
      raise PermissionError(event)

  sys.addaudithook(hook)


def answer_requests(compare: Any, seconds: float) -> None:
  """The child's life: ends with its input."""
  lock_down()
  while line := hear():
    # The parent's parent may be gone before it can kill this process: processor time then ends it.
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used.ru_utime + used.ru_stime + seconds) + 2, resource.RLIM_INFINITY))
    try:
      value = compare(*json.loads(line))
    except Exception:
      value = None
    say({'value': value})


def main() -> None:
  seconds = float(sys.argv[1])
  try:
    compare = load()
  except Exception as error:
    say({'error': f'{type(error).__name__}: {error}'})
    return
  gc.freeze()
  while True:
    pid = os.fork()
    if not pid:
      try:
        answer_requests(compare, seconds)
      finally:
        os._exit(0)
    say({'ready': pid})
    # The child stays a zombie, so its number belongs to nobody else, until it is known to have ended.
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    say({'ended': pid})
    if not hear():
      return
    os.waitpid(pid, 0)


if __name__ == '__main__':
  main()
