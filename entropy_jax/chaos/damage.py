"""Checkpoints with a flipped byte, a file cut short, a file gone: each must be noticed and the step before it used instead."""

import contextlib
import logging
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entropy_jax.chaos import compare
from entropy_jax.chaos.table import Row
from entropy_jax.training.checkpoints import Checkpoints
from entropy_jax.training.progress import Progress
from entropy_jax.types import PyTree, UserError

FLIP, CUT, GONE = 'byte flipped', 'file cut short', 'file deleted'
STEPS = (1, 2, 3)
_HASH = re.compile(r'[0-9a-f]{32}')


class Harm(NamedTuple):
  """What is done to one file of the newest step.

  Attributes:
    kind: FLIP, CUT or GONE.
    file: its path in the step's folder.
    place: the byte, or the length that is left, as a fraction of the file.
    bit: of the byte.
  """

  kind: str
  file: str
  place: float
  bit: int


class Outcome(NamedTuple):
  """What a start on the damaged folder did.

  Attributes:
    harm: to the newest step.
    detected: it was told of, once, with the file's name.
    fell_back: the step before came back, every bit of it.
    silent: the run would have gone on from something else without a word.
    seen: what happened, where it is not what is asked.
  """

  harm: Harm
  detected: bool
  fell_back: bool
  silent: bool
  seen: str


def type_of(file: str) -> str:
  """The kind of file, whatever the hash in its name.

  >>> type_of('state/d/' + '0f' * 16)
  'state/d/*'
  """
  return _HASH.sub('*', file)


def plan(folder: Path, number: int, seed: int) -> list[Harm]:
  """`number` flips, and a fifth as many cuts and deletions or one a type, in turn over the types of files in a step's folder."""
  rng = random.Random(seed)
  files: dict[str, list[str]] = {}
  for path in sorted(folder.rglob('*')):
    if path.is_file() and path.stat().st_size:
      name = str(path.relative_to(folder))
      files.setdefault(type_of(name), []).append(name)
  few = max(number // 5, len(files))
  types = list(files)
  wanted = [(kind, types[i % len(types)]) for kind, count in ((FLIP, number), (CUT, few), (GONE, few)) for i in range(count)]
  return [Harm(kind, rng.choice(files[of]), rng.random(), rng.randrange(8)) for kind, of in wanted]


def do(harm: Harm, folder: Path) -> None:
  path = folder / harm.file
  data = bytearray(path.read_bytes())
  place = int(harm.place * len(data))
  if harm.kind == GONE:
    path.unlink()
  elif harm.kind == CUT:
    path.write_bytes(data[:place])
  else:
    data[place] ^= 1 << harm.bit
    path.write_bytes(data)


@contextlib.contextmanager
def quiet_absl() -> Iterator[None]:
  """Without what libraries log about the damage that is done here on purpose."""
  logger = logging.getLogger('absl')
  before = logger.level
  logger.setLevel(logging.CRITICAL)
  try:
    yield
  finally:
    logger.setLevel(before)


def _other(state: PyTree, step: int) -> PyTree:
  """The state of a run, changed so that every step differs in every leaf that holds numbers."""

  def change(leaf: np.ndarray) -> np.ndarray:
    return leaf + np.asarray(step, leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.number) else leaf

  return jax.tree.map(change, state)


def _make(source: Path, base: Path) -> dict[int, tuple[dict[str, str], object]]:
  """A folder with three whole steps made of a real checkpoint: step -> (digests, host)."""
  _, state, host = compare.load(source)
  expected: dict[int, tuple[dict[str, str], object]] = {}
  shutil.rmtree(base, ignore_errors=True)
  checkpoints = Checkpoints(base)
  for step in STEPS:
    changed = _other(state, step)
    checkpoints.save(step, changed, host | {'rows': step})
    expected[step] = compare.digests(changed), host | {'rows': step}
  checkpoints.close()
  return expected


def _outcome(harm: Harm, directory: Path, template: PyTree, expected: tuple[dict[str, str], object]) -> Outcome:
  said: list[str] = []
  checkpoints = Checkpoints(directory, report=said.append)
  try:
    found = checkpoints.restore_latest(template)
  except UserError as error:
    return Outcome(harm, True, False, False, str(error))
  except Exception as error:  # a damaged file must not surface as anything else: that is what is being measured
    return Outcome(harm, False, False, False, f'{type(error).__name__}: {error}')
  finally:
    checkpoints.close()
  told = len(said) == 1 and 'DAMAGED' in said[0] and harm.file in said[0]
  back = found is not None and found[0] == STEPS[-2] and (compare.digests(found[1]), found[2]) == expected
  return Outcome(harm, told, back, not said and not back, '' if told and back else f'step {found and found[0]}, said {said}')


def run(source: Path, folder: Path, number: int, *, seed: int = 0, harm: Callable[[Harm, Path], None] = do) -> list[Outcome]:
  """Damages copies of checkpoints that are made of the newest one in `source`, a run's checkpoint folder."""
  base, copy = folder / 'base', folder / 'copy'
  expected = _make(source, base)[STEPS[-2]]
  template = compare.template(base)
  harms = plan(base / str(STEPS[-1]), number, seed)
  bar = Progress(len(harms), description='R4 damaged files', shown=())
  found = []
  with quiet_absl():
    for i, one in enumerate(harms):
      shutil.rmtree(copy, ignore_errors=True)
      shutil.copytree(base, copy)
      harm(one, copy / str(STEPS[-1]))
      found.append(_outcome(one, copy, template, expected))
      bar.update(i + 1, {})
  bar.close()
  shutil.rmtree(copy)
  return found


def rows(outcomes: list[Outcome], *, id: str = 'R4') -> list[Row]:
  """One row a kind of damage."""
  types = len({type_of(outcome.harm.file) for outcome in outcomes})
  made = []
  for kind in (FLIP, CUT, GONE):
    those = [outcome for outcome in outcomes if outcome.harm.kind == kind]
    detected, back = sum(o.detected for o in those), sum(o.fell_back for o in those)
    silent = sum(o.silent for o in those)
    bad = next((o for o in those if not (o.detected and o.fell_back)), None)
    made.append(
      Row(
        id,
        f'{len(those)} times a {kind} in the newest checkpoint, every type of file ({types})',
        'all detected, all fall back to the step before with its every bit, none silent',
        f'{detected}/{len(those)} detected, {back}/{len(those)} fell back, {silent} silent',
        bool(those) and detected == back == len(those),
        detail='The state is that of a real run; the message must name the file.' if bad is None else f'{bad.harm}: {bad.seen}',
      )
    )
  return made
