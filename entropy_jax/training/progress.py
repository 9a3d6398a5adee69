"""What a run shows while it runs: a tqdm bar on a terminal, lines elsewhere; and where its seconds go."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

import jax
from tqdm import tqdm

from entropy_jax.transform import nearest
from entropy_jax.types import UserError

MODES = ('auto', 'bar', 'lines', 'silent')
SHOWN = ('loss', 'entropy', 'success')


def pick(row: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
  """For each name the metric that is called so, or the first in order whose last part is.

  >>> pick({'policy/entropy': 0.5, 'loss': 1.0, 'old/entropy': 0.7}, ['loss', 'entropy', 'success'])
  {'loss': 1.0, 'entropy': 0.7}
  """
  found = {}
  for name in names:
    keys = [name] if name in row else sorted(key for key in row if key.rsplit('/', 1)[-1] == name)
    if keys:
      found[name] = row[keys[0]]
  return found


def duration(seconds: float) -> str:
  """
  >>> duration(9.6), duration(75.2), duration(7384.0)
  ('10 s', '1 min 15 s', '2 h 03 min')
  """
  whole = round(seconds)
  if whole < 60:
    return f'{whole} s'
  if whole < 3600:
    return f'{whole // 60} min {whole % 60:02d} s'
  return f'{whole // 3600} h {whole % 3600 // 60:02d} min'


class Progress:
  """Progress with an estimate of the time left, on process 0 only.

  Args:
    total: steps of the run.
    initial: steps made before, by an earlier start of the same run.
    description: stands first.
    mode: 'bar', 'lines', 'silent', or 'auto': a bar where `file` is a terminal, else lines.
    every_seconds: least time between two lines.
    shown: metrics to show, by `pick`.
    file: default stderr.
    now: the clock.
  """

  def __init__(
    self,
    total: int,
    *,
    initial: int = 0,
    description: str = 'train',
    mode: str = 'auto',
    every_seconds: float = 10.0,
    shown: Sequence[str] = SHOWN,
    file: IO[str] | None = None,
    now: Callable[[], float] = time.monotonic,
  ):
    if mode not in MODES:
      raise UserError(f'progress: mode={mode!r} is not one of {", ".join(MODES)}.{nearest(str(mode), MODES)}')
    self._file = sys.stderr if file is None else file
    if mode == 'auto':
      mode = 'bar' if self._file.isatty() else 'lines'
    self._mode = 'silent' if jax.process_index() != 0 else mode
    self._total, self._initial, self._description, self._shown = total, initial, description, tuple(shown)
    self._every_seconds, self._now = every_seconds, now
    self._started = self._last = now()
    self._latest: dict[str, float] = {}
    self._bar = None
    if self._mode == 'bar':
      self._bar = tqdm(total=total, initial=initial, desc=description, file=self._file, unit='step', dynamic_ncols=True)

  def update(self, done: int, row: Mapping[str, float], tokens_per_second: float | None = None) -> None:
    """Shows that `done` steps are made, with the newest metrics; those a row lacks keep their last value."""
    if self._mode == 'silent':
      return
    self._latest |= pick(row, self._shown)
    if tokens_per_second is not None:
      self._latest['tokens/s'] = tokens_per_second
    if self._bar is not None:
      self._bar.set_postfix({name: f'{value:.4g}' for name, value in self._latest.items()}, refresh=False)
      self._bar.update(done - self._bar.n)
      return
    now = self._now()
    if now - self._last >= self._every_seconds or done == self._total:
      self._last = now
      left = (now - self._started) / max(done - self._initial, 1) * (self._total - done)
      latest = [f'{name} {value:.4g}' for name, value in self._latest.items()]
      parts = [f'{self._description} {done}/{self._total}', *latest, f'{duration(left)} left']
      print(', '.join(parts), file=self._file, flush=True)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()


class Clock:
  """Seconds by what they were spent on.

      with clock.measure('generate'):
        ...
  """

  def __init__(self, now: Callable[[], float] = time.monotonic):
    self._now = now
    self._seconds: dict[str, float] = {}
    self._last = now()

  @contextlib.contextmanager
  def measure(self, name: str) -> Iterator[None]:
    """Adds the time inside to `name`. Compiled work is dispatched, not awaited: block on it where the split matters."""
    begin = self._now()
    try:
      yield
    finally:
      self._seconds[name] = self._seconds.get(name, 0.0) + self._now() - begin

  def collect(self) -> dict[str, float]:
    """'seconds' since the last call and 'seconds/NAME' within them; then starts again from zero."""
    now = self._now()
    found = {'seconds': now - self._last} | {f'seconds/{name}': value for name, value in self._seconds.items()}
    self._seconds, self._last = {}, now
    return found
