"""A crash in the middle of a line of metrics.jsonl. As a script it is the process that crashes, writing rows as fast as it can:

    python -m entropy_jax.chaos.torn DIR SEED outside     # until it is killed
    python -m entropy_jax.chaos.torn DIR SEED inside      # until it dies after a part of a line
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from entropy_jax.analysis import runs
from entropy_jax.chaos.damage import quiet_absl
from entropy_jax.chaos.table import Row
from entropy_jax.training import writers
from entropy_jax.training.progress import Progress

FLUSH_EVERY = 2000
LEAST_RATE = 10_000  # rows a second


class Outcome(NamedTuple):
  """What a crash left.

  Attributes:
    rate: rows a second, up to the crash.
    synced: rows that the writer had said to be on the disk.
    whole: whole lines in the file.
    torn: bytes after the last of them.
    wrong: what the readers made of it that is not right; empty if nothing.
  """

  rate: float
  synced: int
  whole: int
  torn: int
  wrong: str


def values_of(step: int) -> dict[str, float]:
  """The row of a step, from its number alone."""
  return {'loss': 1.0 / (step + 1), 'policy/entropy': step * 0.1, 'rollout/success': float(step % 2)}


def crash(folder: Path, seed: int) -> Outcome:
  """Starts the writer, ends it (odd seeds: from outside, even ones: within a line), and reads what is left."""
  rng = random.Random(seed)
  command = [sys.executable, '-m', 'entropy_jax.chaos.torn', str(folder), str(seed), 'outside' if seed % 2 else 'inside']
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout is not None
    said = [process.stdout.readline()]
    if seed % 2 and said[0]:
      time.sleep(rng.uniform(0.05, 0.3))
      process.kill()
    said += process.stdout.readlines()
    process.wait()
  if process.returncode != -signal.SIGKILL:
    return Outcome(0.0, 0, 0, 0, f'the writer ended with {process.returncode}')
  # A line is 'rows seconds' at a flush; the last can be torn as well.
  synced, seconds = max((int(line.split()[0]), float(line.split()[1])) for line in said if line.endswith('\n') and len(line.split()) == 2)
  return _read(folder, synced, synced / seconds)


def _read(folder: Path, synced: int, rate: float) -> Outcome:
  path = folder / writers.METRICS
  content = path.read_bytes()
  whole, torn = content.count(b'\n'), len(content) - content.rfind(b'\n') - 1
  rows = writers.read_rows(path)
  wrong = ''
  if rows != [{'step': step} | values_of(step) for step in range(whole)]:
    wrong = 'a row before the last line is lost, doubled or altered'
  elif whole < synced:
    wrong = f'{synced} rows were said to be on the disk and {whole} are'
  elif _rows_of_analysis(folder) != whole:
    wrong = 'the reader of the analysis does not skip the torn line'
  else:
    writer = writers.MetricWriter(folder, whole, tensorboard=False)  # the run goes on
    writer.write(whole, values_of(whole))
    writer.close()
    if writers.read_rows(path) != [{'step': step} | values_of(step) for step in range(whole + 1)]:
      wrong = 'the run that goes on does not cut the torn line'
  return Outcome(rate, synced, whole, torn, wrong)


def _rows_of_analysis(folder: Path) -> int:
  with quiet_absl():
    return len(runs.load_metrics(folder)['step'])


def run(folder: Path, number: int) -> list[Outcome]:
  """That many crashes, each in a folder of its own."""
  bar = Progress(number, description='R15 crashes in mid-line', shown=())
  found = []
  for seed in range(number):
    found.append(crash(folder / str(seed), seed))
    bar.update(seed + 1, {})
  bar.close()
  return found


def rows(outcomes: list[Outcome], *, id: str = 'R15') -> list[Row]:
  good = sum(not o.wrong for o in outcomes)
  torn = sum(o.torn > 0 for o in outcomes)
  rates = sorted(o.rate for o in outcomes)
  slowest = rates[0]
  bad = next((o for o in outcomes if o.wrong), None)
  return [
    Row(
      id,
      f'{len(outcomes)} crashes of a metric writer at full speed, {torn} of them within a line',
      'at most the last line torn, every row that was synced is there, the readers skip the torn line and the run that goes on cuts it',
      f'{good}/{len(outcomes)}',
      good == len(outcomes) and torn > 0,
      detail=f'{sum(o.whole for o in outcomes):,} rows read back.' if bad is None else bad.wrong,
    ),
    Row(
      id,
      'rows a second of that writer',
      f'at least {LEAST_RATE:,}',
      f'{rates[len(rates) // 2]:,.0f} in the middle, {slowest:,.0f} at least',
      slowest >= LEAST_RATE,
      detail=f'Three metrics a row, flushed to the disk every {FLUSH_EVERY:,} rows.',
    ),
  ]


def main(folder: str, seed: str, how: str) -> None:
  """Writes rows until it is killed, or until it dies within the line that the seed names."""
  rng, begin, step = random.Random(int(seed)), time.perf_counter(), 0
  writer = writers.MetricWriter(folder, tensorboard=False)
  last = FLUSH_EVERY + rng.randrange(FLUSH_EVERY) if how == 'inside' else None
  while True:
    if step == last:
      line = writers.format_row(step, values_of(step)).encode() + b'\n'
      with open(Path(folder) / writers.METRICS, 'ab', buffering=0) as file:
        file.write(line[: rng.randrange(1, len(line))])
      os.kill(os.getpid(), signal.SIGKILL)
    writer.write(step, values_of(step))
    step += 1
    if step % FLUSH_EVERY == 0:
      writer.flush()
      print(step, time.perf_counter() - begin, flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
