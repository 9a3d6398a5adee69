r"""Quality, safety and speed of the answer verifier beside math-verify alone.

    python -m benchmarks.verifier [--values=200] [--hostile=10000] [--workers=2] [--seed=0]

Labelled pairs of `answer_cases` give false positives (a wrong answer accepted) and false negatives (a right one not accepted) with 95 %
Wilson intervals; both read the same pairs in turns, so that what else the machine does meets both. math-verify alone is its `parse` and
`verify` with default settings on \boxed{...}, in this process and with its own time limits. Hostile completions are read by the verifier
whole, and the worst of them are sent to its pool unfiltered, which must then keep its bound. The last line is JSON.
"""

import argparse
import json
import logging
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import math_verify
import numpy as np
from scipy import stats

from benchmarks import answer_cases
from benchmarks.answer_cases import Case, Pair
from entropy_jax.data.answer_verifier import AnswerVerifier, Verdict
from entropy_jax.data.deadline_pool import Ending
from entropy_jax.data.math_answers import canonical

Accepts = Callable[[str, str], bool]
BATCH = 512
DEADLINE = 3.0
HANGS = ('9^{9^{9^{9}}}', '(10^{9})!', r'\binom{10^9}{5\cdot 10^8}', r'\sqrt{9^{9^{9^{9}}}}')  # to math-verify 0.9.0


def alone(answer: str, reference: str, *, completion: str | None = None) -> bool:
  """math-verify as its users call it."""
  given = math_verify.parse(rf'\boxed{{{answer}}}' if completion is None else completion)
  return bool(math_verify.verify(math_verify.parse(rf'\boxed{{{reference}}}'), given))


def rate(count: int, of: int) -> dict[str, Any]:
  """A share with its 95 % Wilson interval."""
  interval = stats.binomtest(count, of).proportion_ci(method='wilson')
  return {'count': count, 'of': of, 'interval': [round(interval.low, 5), round(interval.high, 5)]}


def shown(found: dict[str, Any]) -> str:
  return f'{found["count"]:4d} / {found["of"]} [{100 * found["interval"][0]:.2f} %, {100 * found["interval"][1]:.2f} %]'


def timed(accepts: Accepts, answer: str, reference: str) -> tuple[bool, float]:
  start = time.perf_counter()
  accepted = accepts(answer, reference)
  return accepted, time.perf_counter() - start


def speed(seconds: Sequence[float]) -> dict[str, float]:
  array = np.array(seconds)
  return {
    'problems_per_s': round(len(array) / float(array.sum()), 1),
    'p50_ms': round(1e3 * float(np.quantile(array, 0.5)), 3),
    'p99_ms': round(1e3 * float(np.quantile(array, 0.99)), 3),
    'max_ms': round(1e3 * float(array.max()), 3),
  }


def missed(pairs: Sequence[Pair]) -> dict[str, int]:
  """The notations that are missed most."""
  return dict(Counter(pair.kind.split()[-1] for pair in pairs).most_common(6))


def quality(pairs: Sequence[Pair], verifier: AnswerVerifier, exact: AnswerVerifier) -> dict[str, Any]:
  """Every reader on every pair, in turns."""
  readers: dict[str, Accepts] = {
    'verifier': lambda answer, reference: verifier.compare([answer], [reference]) == [Verdict.CORRECT],
    'exact part': lambda answer, reference: exact.compare([answer], [reference]) == [Verdict.CORRECT],
    'math-verify alone': alone,
    'string match': lambda answer, reference: canonical(answer) == canonical(reference),
  }
  for accepts in readers.values():
    accepts(r'\sqrt{25}', '5')  # what is loaded on first use
  found: dict[str, list[tuple[bool, float]]] = {name: [] for name in readers}
  for n, pair in enumerate(pairs):
    for name in sorted(readers, key=lambda name: (n + list(readers).index(name)) % len(readers)):
      found[name].append(timed(readers[name], pair.answer, pair.reference))
  num_same = sum(pair.same for pair in pairs)
  return {
    name: {
      'false_positives': rate(sum(accepted and not pair.same for (accepted, _), pair in zip(rows, pairs)), len(pairs) - num_same),
      'false_negatives': rate(sum(pair.same and not accepted for (accepted, _), pair in zip(rows, pairs)), num_same),
      'missed': missed([pair for (accepted, _), pair in zip(rows, pairs) if pair.same and not accepted]),
      **speed([seconds for _, seconds in rows]),
    }
    for name, rows in found.items()
  }


def hostile(count: int, verifier: AnswerVerifier, seed: int) -> dict[str, Any]:
  """Batches of hostile completions, and each alone as far as the pool."""
  with tempfile.TemporaryDirectory() as folder:
    canary = Path(folder) / 'canary'
    cases = answer_cases.hostile_completions(count, str(canary), seed)
    verdicts: list[Verdict] = []
    crashes = 0
    start = time.perf_counter()
    for first in range(0, len(cases), BATCH):
      batch = cases[first : first + BATCH]
      try:
        verdicts += verifier.verify([case.completion for case in batch], [case.reference for case in batch])
      except Exception:
        crashes += 1
    wall = time.perf_counter() - start
    seconds = []
    for case in cases:
      begin = time.perf_counter()
      verifier.answers([case.completion])
      seconds.append(time.perf_counter() - begin)
    counts = {verdict.value: verdicts.count(verdict) for verdict in Verdict}
    reading = {f'reading_{name}': value for name, value in speed(seconds).items()}
    bound = math.ceil(len(cases) / verifier.pool.num_workers) * verifier.pool.deadline
    safety = {'completions': len(cases), 'crashes': crashes, 'executed': int(canary.exists())}
  return {**safety, **counts, **reading, 'wall_s': round(wall, 2), 'bound_s': bound}


def pool_bound(verifier: AnswerVerifier, repeats: int = 2) -> dict[str, Any]:
  """Tasks that never end, straight to the pool."""
  tasks = [['5', text] for text in HANGS * repeats]
  start = time.perf_counter()
  values = verifier.pool.run(tasks)
  wall = time.perf_counter() - start
  after = verifier.pool.run([['5', r'\sqrt{25}']])
  bound = math.ceil(len(tasks) / verifier.pool.num_workers) * verifier.pool.deadline
  killed = sum(value is Ending.TIMED_OUT for value in values)
  return {'tasks': len(tasks), 'timed_out': killed, 'wall_s': round(wall, 2), 'bound_s': bound, 'works_after': after == [True]}


def attacked(cases: Sequence[Case], verifier: AnswerVerifier) -> dict[str, Any]:
  """Accepted attacks by kind; math-verify reads the completion, as its users have it."""
  columns = [list(column) for column in zip(*((case.completion, case.reference, case.prompt) for case in cases))]
  ours = [verdict is Verdict.CORRECT for verdict in verifier.verify(*columns)]
  theirs = [alone('', case.reference, completion=case.completion) for case in cases]
  kinds = [case.kind.split(':')[0] for case in cases]
  return {
    kind: {
      'verifier': rate(sum(o for o, k in zip(ours, kinds) if k == kind), kinds.count(kind)),
      'math-verify alone': rate(sum(t for t, k in zip(theirs, kinds) if k == kind), kinds.count(kind)),
    }
    for kind in dict.fromkeys(kinds)
  }


def peer_on_towers(num: int = 3) -> dict[str, float]:
  """What math-verify alone takes for texts that are made to hang it; its own limit is 5 s for each of three calls."""
  return speed([timed(alone, text, '5')[1] for text in HANGS[:num]])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--values', type=int, default=200)
  parser.add_argument('--hostile', type=int, default=10_000)
  parser.add_argument('--workers', type=int, default=2)
  parser.add_argument('--seed', type=int, default=0)
  flags = parser.parse_args()
  logging.disable(logging.CRITICAL)
  pairs = answer_cases.hard_pairs() + answer_cases.rule_pairs(flags.values, flags.seed)
  with AnswerVerifier(num_workers=flags.workers, deadline=DEADLINE) as verifier, AnswerVerifier(use_math_verify=False) as exact:
    verifier.pool.start()
    found: dict[str, Any] = {'pairs': quality(pairs, verifier, exact)}
    found['hostile'] = hostile(flags.hostile, verifier, flags.seed)
    found['pool'] = pool_bound(verifier)
    found['attacks'] = attacked(answer_cases.attacks(seed=flags.seed), verifier)
  found['math-verify alone, hanging'] = peer_on_towers()
  cores = len(os.sched_getaffinity(0))
  print(f'{len(pairs)} labelled pairs; {cores} cores, {flags.workers} workers, deadline {DEADLINE} s\n')
  print('| reader | false positives [95 %] | false negatives [95 %] | problems/s | p50 ms | p99 ms |\n|---|---|---|---|---|---|')
  for name, row in found['pairs'].items():
    errors = f'{shown(row["false_positives"])} | {shown(row["false_negatives"])}'
    print(f'| {name} | {errors} | {row["problems_per_s"]} | {row["p50_ms"]} | {row["p99_ms"]} |')
  for name in ('verifier', 'math-verify alone'):
    print(f'\n{name} misses most in: ' + ', '.join(f'{kind} {count}' for kind, count in found['pairs'][name]['missed'].items()))
  print('\n| attack | accepted by the verifier | by math-verify alone |\n|---|---|---|')
  for kind, row in found['attacks'].items():
    print(f'| {kind} | {shown(row["verifier"])} | {shown(row["math-verify alone"])} |')
  for name in ('hostile', 'pool', 'math-verify alone, hanging'):
    print(f'\n{name}: ' + ', '.join(f'{key} {value}' for key, value in found[name].items()))
  ours, theirs = (found['pairs'][name] for name in ('verifier', 'math-verify alone'))
  found['ratios'] = {
    'problems_per_s': round(ours['problems_per_s'] / theirs['problems_per_s'], 2),
    'p99_ms': round(theirs['p99_ms'] / ours['p99_ms'], 2),
    'attacks_accepted': sum(row['verifier']['count'] for row in found['attacks'].values()),
  }
  found['machine'] = {'cores': cores, 'workers': flags.workers, 'math_verify': metadata.version('math-verify')}
  print(json.dumps(found))


if __name__ == '__main__':
  main()
