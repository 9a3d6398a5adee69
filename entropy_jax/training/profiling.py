"""Where the time goes: a profiler trace of chosen steps, and the seconds that compiling takes."""

import contextlib
import re
from pathlib import Path
from typing import Any

import jax

from entropy_jax.training.files import say
from entropy_jax.types import UserError

FOLDER = 'profile'
_STEPS = re.compile(r'(\d+)-(\d+)')


def parse(text: str) -> tuple[int, int] | None:
  """The value of `--config.profile_steps`: 'FIRST-LAST', both traced, counted as in metrics.jsonl; '' is none.

  >>> parse('10-12'), parse('')
  ((10, 12), None)
  """
  if not text:
    return None
  found = _STEPS.fullmatch(text)
  if found is None:
    raise UserError(f"profile_steps={text!r} is not 'FIRST-LAST', two step numbers such as '10-12', or '' for no trace; give one of them.")
  first, last = int(found.group(1)), int(found.group(2))
  if first > last:
    raise UserError(f"profile_steps={text!r} ends before it begins; give FIRST-LAST with FIRST at most LAST, such as '{last}-{first}'.")
  return first, last


class Profile:
  """Traces the steps first..last into workdir/profile, for TensorBoard's profile plugin, XProf or Perfetto; a context.

  A resumed run traces those of the steps that are left. What goes wrong with a trace is said and never stops a run. With several
  processes each writes its own folder, process_INDEX.

  Args:
    workdir: gets profile/.
    steps: (first, last), or None for no trace.
    num_steps: of the run, to say so where the steps lie beyond it.
  """

  def __init__(self, workdir: Path, steps: tuple[int, int] | None, *, num_steps: int):
    self._folder = workdir / FOLDER
    if jax.process_count() > 1:
      self._folder = self._folder / f'process_{jax.process_index()}'
    self._first, self._last = (0, -1) if steps is None else steps
    if steps is not None and self._first >= num_steps:
      say(f'profile_steps {self._first}-{self._last} lie beyond 0-{num_steps - 1}, the steps of {workdir}: no trace is made.')
    self._active = False

  def __enter__(self) -> 'Profile':
    return self

  def __exit__(self, *unused: object) -> None:
    self._stop()

  def step(self, step: int) -> contextlib.AbstractContextManager[Any]:
    """The context of a step: opens the trace where it is due, and marks the step in it."""
    if not self._first <= step <= self._last:
      return contextlib.nullcontext()
    if not self._active:
      try:
        jax.profiler.start_trace(self._folder)
        self._active = True
      except (RuntimeError, OSError, ValueError) as error:
        say(f'profile_steps: no trace is made ({" ".join(str(error).split())}).')
        self._last = -1
    return jax.profiler.StepTraceAnnotation('train', step_num=step)

  def after(self, step: int, results: Any) -> None:
    """Ends the trace after the last step, once the device has computed its results."""
    if self._active and step >= self._last:
      jax.block_until_ready(results)
      self._stop()

  def _stop(self) -> None:
    if not self._active:
      return
    self._active = False
    try:
      jax.profiler.stop_trace()
      say(f'profile_steps: the trace is in {self._folder}')
    except (RuntimeError, OSError, ValueError) as error:
      say(f'profile_steps: the trace could not be written ({" ".join(str(error).split())}).')


class CompileSeconds:
  """Wall-clock seconds in which JAX traced, lowered or compiled, or read a compiled program from the cache; a context."""

  def __init__(self) -> None:
    self._spans: list[tuple[float, float]] = []

  def __enter__(self) -> 'CompileSeconds':
    jax.monitoring.register_event_time_span_listener(self._note)
    return self

  def __exit__(self, *unused: object) -> None:
    jax.monitoring.unregister_event_time_span_listener(self._note)

  def _note(self, event: str, start_time: float, end_time: float, **unused: object) -> None:
    if event.startswith('/jax/core/compile/'):
      self._spans.append((start_time, end_time))

  def collect(self) -> float:
    """Seconds since the last call. A function traced inside another is not counted twice."""
    spans, self._spans = sorted(self._spans), []
    total, reached = 0.0, -float('inf')
    for start, end in spans:
      total += max(end - max(start, reached), 0.0)
      reached = max(reached, end)
    return total
