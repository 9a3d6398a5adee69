"""A study of many objectives on one tabular task, written to run folders: one compiled scan an objective with all seeds vmapped, two
objectives compiling and running at a time, each finished one kept. A study that is started again does what is missing."""

import concurrent.futures
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from entropy_jax.data.tabular_task import TabularTask
from entropy_jax.objective import Objective
from entropy_jax.training import loop, scanned
from entropy_jax.training.files import say
from entropy_jax.training.progress import Progress
from entropy_jax.training.writers import METRICS, format_row
from entropy_jax.types import Metrics

# Fields of TokenBatch that no tabular task fills: there is no reference policy, no other sampler, no critic, no greedy response, no
# replay and no process model.
ABSENT = frozenset({
  'ref_logp_BxT', 'sampler_logp_BxT', 'value_BxT', 'baseline_reward_B', 'token_reward_BxT', 'process_logp_BxT', 'imitated_B',
})  # fmt: skip


class Task(NamedTuple):
  """A tabular task and the exact measures it has beside success and entropy."""

  make: Callable[[jax.Array], TabularTask]
  measures: tuple[scanned.Measure, ...] = ()


class Settings(NamedTuple):
  """How a task is run.

  Attributes:
    num_steps: rollouts.
    group_size: responses per prompt.
    num_epochs: full-batch updates per rollout.
    learning_rate: of SGD on the objective's loss.
  """

  num_steps: int
  group_size: int
  num_epochs: int
  learning_rate: float


def compiler_options() -> dict[str, Any] | None:
  """On a CPU, what compiles these programs in half the time and runs them as fast (measured), less what XLA_FLAGS sets; None elsewhere."""
  fast: dict[str, Any] = {'xla_backend_optimization_level': 1, 'xla_cpu_use_fusion_emitters': False}
  given = os.environ.get('XLA_FLAGS', '')
  return {name: value for name, value in fast.items() if name not in given} if jax.default_backend() == 'cpu' else None


def study(
  task: Task,
  objectives: Mapping[str, tuple[Objective, Mapping[str, Settings]]],
  directory: pathlib.Path,
  *,
  num_seeds: int,
  seed: int,
  description: str,
  ledger: bool = False,
  strict: bool = True,
) -> None:
  """Every objective with all of its settings and every seed: DIRECTORY/PART/NAME/seed_K/metrics.jsonl.

  Args:
    task: seed k has the same instance and the same rollout noise under every objective.
    objectives: name -> (objective, part -> settings); the settings of one objective have one group size, and share a compiled program.
    directory: of this task.
    num_seeds: seeds 0 .. num_seeds - 1.
    seed: root of every key.
    description: for the progress line and for what went wrong.
    ledger: whether each update accounts for its entropy change.
    strict: whether a curve that is not finite stops the study; otherwise it is said, and left out where it is not.
  """
  seeds, options = range(num_seeds), compiler_options()
  keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.key(seed), k))(np.arange(num_seeds))
  most = max(settings.num_steps for _, parts in objectives.values() for settings in parts.values())
  # What is measured depends on no objective: one program for all.
  measured = jax.jit(
    jax.vmap(lambda key, tables: scanned.measure(task.make, key, tables, measures=task.measures)), compiler_options=options
  )

  def run(name: str) -> None:
    objective, parts = objectives[name]
    (group_size,) = {settings.group_size for settings in parts.values()}

    def train(key: jax.Array, learning_rate: jax.Array, num_epochs: jax.Array, length: jax.Array) -> tuple[Metrics, jax.Array]:
      return scanned.train(
        task.make,
        key,
        objective=objective,
        tx=optax.sgd(learning_rate),
        num_steps=most,
        group_size=group_size,
        num_epochs=num_epochs,
        ledger=ledger,
        length=length,
      )

    compiled = jax.jit(jax.vmap(train, (0, None, None, None)), compiler_options=options)
    for part, settings in parts.items():
      files = [directory / part / name / f'seed_{k}' / METRICS for k in seeds]
      if all(file.exists() for file in files):
        continue
      numbers = np.float32(settings.learning_rate), np.int32(settings.num_epochs), np.int32(settings.num_steps)
      per_step, tables = compiled(keys, *numbers)
      curves = jax.device_get(per_step | measured(keys, tables))
      unused = most - settings.num_steps
      for k, file in zip(seeds, files):
        kept = {key: values[k, : values.shape[1] - unused] for key, values in curves.items()}
        write_curves(file, kept, ', '.join(filter(None, (description, part, name, f'seed {k}'))), strict=strict)

  two_at_a_time(run, list(objectives), f'{description}, {num_seeds} seeds, method')


def two_at_a_time(run: Callable[[str], None], names: Sequence[str], description: str) -> None:
  """Calls run with every name, two of them compiling and running at a time; the first that fails ends the study.

  Progress is shown as 'DESCRIPTION 1/N', so the description ends with what is counted.
  """
  bar = Progress(len(names), description=description, shown=())
  with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
    waiting = [pool.submit(run, name) for name in names]
    try:
      for number, done in enumerate(concurrent.futures.as_completed(waiting), start=1):
        done.result()
        bar.update(number, {})
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)  # what has not begun would only delay the message
      raise
    finally:
      bar.close()


def write_curves(file: pathlib.Path, curves: Mapping[str, np.ndarray], what: str, *, strict: bool = True) -> None:
  """One row a rollout: the exact measures of the policy before it and the metrics of its updates; the last row has the former alone.

  Raises:
    NonFiniteError: a curve has a value that is not finite, and `strict`; without it such values are left out of their rows.
  """
  for name, values in curves.items():
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
      found = f'{what}: {name} is {values[bad[0]]} at step {bad[0]}'
      if strict:
        raise loop.NonFiniteError(f'{found}; use a smaller learning_rate.')
      say(f'note: {found}, in {bad.size} steps in all; they are left out.')
  rows = [
    format_row(i, {name: float(x[i]) for name, x in curves.items() if i < len(x) and np.isfinite(x[i])})
    for i in range(max(map(len, curves.values())))
  ]
  file.parent.mkdir(parents=True, exist_ok=True)
  if jax.process_index() != 0:  # each process computes the tables, on its own devices
    return
  partial = file.with_suffix('.partial')
  partial.write_text('\n'.join(rows) + '\n')
  partial.replace(file)  # a file is whole or absent, so that its presence means done
