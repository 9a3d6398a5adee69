"""From what the parts of the matrix find to its rows, and from the rows to the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from entropy_jax.analysis import figures, runs
from entropy_jax.analysis.histograms import stacked_histogram
from entropy_jax.analysis.report import FigureRef, Report, Section, Table, write_report
from entropy_jax.chaos import fuzz, kills, layouts, resume
from entropy_jax.chaos.table import Row, failures
from entropy_jax.chaos.victims import PHASES
from entropy_jax.training.progress import duration
from entropy_jax.training.writers import read_rows

LOSS_LIMIT, ELASTIC_LIMIT = 1e-5, 1e-6


def grid_rows(outcomes: Sequence[resume.Outcome], *, id: str = 'R3') -> list[Row]:
  """One row for the whole grid."""
  table = resume.grid_table(outcomes)
  equal = sum(good for _, good in table.values())
  bad = next((outcome for outcome in outcomes if outcome.differences), None)
  methods = ', '.join(f'{method} {good}/{number}' for method, (number, good) in table.items())
  return [
    Row(
      id,
      f'resume grid: {len(table)} kinds of state, with shuffle, epoch boundaries, update epochs and accumulation, each resumed twice',
      'all cells equal, bit for bit',
      f'{equal}/{len(outcomes)} cells equal',
      bool(outcomes) and equal == len(outcomes),
      detail=f'{methods}.' if bad is None else f'{bad.cell.title}: {"; ".join(bad.differences[:5])}.',
    )
  ]


def fuzz_rows(wrong: fuzz.Result, right: fuzz.Result, *, id: str = 'R6') -> list[Row]:
  """Wrong configs, and the shipped ones."""
  cases, refused = sum(wrong.cases.values()), sum(wrong.refused.values())
  kinds = ', '.join(f'{kind} {wrong.refused[kind]}/{number}' for kind, number in wrong.cases.items())
  good = sum(right.cases.values())
  first = next((f'{slipped.case}: {slipped.what}' for slipped in (*wrong.slipped, *right.slipped)), '')
  return [
    Row(
      id,
      f'{cases} wrong configs',
      'all refused before anything compiles, with key, value and what is allowed',
      f'{refused}/{cases} refused, {wrong.compilations} compilations',
      refused == cases and not wrong.slipped and wrong.compilations == 0,
      detail=f'{kinds}; {wrong.milliseconds:.1f} ms in the middle. {first}'.strip(),
    ),
    Row(
      id,
      f'{good} right configs: shipped files and presets',
      'none refused',
      f'{len(right.slipped)} refused',
      bool(good) and not right.slipped,
      detail=first if right.slipped else '',
    ),
  ]


def equality_rows(found: Mapping[tuple[str, str], layouts.Difference], *, id: str = 'P') -> list[Row]:
  """One row a layout."""
  made = []
  for layout in dict.fromkeys(name for name, _ in found):
    by_method = {method: difference for (name, method), difference in found.items() if name == layout}
    worst = max(by_method.values(), key=lambda difference: difference.loss)
    selections = sum(difference.selections for difference in by_method.values())
    order = all(difference.same_order for difference in by_method.values())
    parts = ', '.join(f'{method} {difference.loss:.1e}' for method, difference in by_method.items())
    made.append(
      Row(
        id,
        f'{layout} against one device, {worst.num_steps} rows of {len(by_method)} objectives',
        f'losses equal to {LOSS_LIMIT:g} relative, the same tokens selected, the same data order',
        f'losses to {worst.loss:.1e}, {selections} selections and {"no" if order else "some"} orders differ',
        worst.loss <= LOSS_LIMIT and selections == 0 and order,
        detail=f'{parts}; {sum(d.num_selections for d in by_method.values())} fingerprints of selections compared.',
      )
    )
  return made


def elastic_rows(found: layouts.Difference, num_devices: Sequence[int], *, id: str = 'E') -> list[Row]:
  """The run that moves between numbers of devices."""
  return [
    Row(
      id,
      f'stopped and resumed on {" -> ".join(map(str, num_devices))} devices',
      f'loss equal to {ELASTIC_LIMIT:g} relative, data order bitwise',
      f'loss to {found.loss:.1e}, data order {"equal" if found.same_order else "different"}',
      found.loss <= ELASTIC_LIMIT and found.same_order,
      detail=f'{found.num_steps} rows; {found.selections} of {found.num_selections} fingerprints of selections differ.',
    )
  ]


def _verdict(row: Row) -> str:
  return '✓ as asked' if row.passed else '✗ not as asked'


def _kill_figures(workdir: Path) -> list[FigureRef]:
  journal = workdir / 'R1' / kills.ENDINGS
  if not journal.exists():
    return []
  endings = [ending for row in read_rows(journal) if (ending := kills.Ending(**row)).aim != 'start']
  by_phase = lambda name: {phase: [getattr(e, name) for e in endings if e.phase == phase] for phase in PHASES if phase != 'start'}
  when = stacked_histogram(by_phase('training_seconds'), 'seconds from the first step of the process to the kill', 'kills')
  lost = stacked_histogram(by_phase('lost_seconds'), 'seconds of training to do again', 'kills')
  return [
    FigureRef(
      figures.save(when, workdir / 'figures' / 'kill_moments.png'),
      'When the kills hit, by what the process was doing. A resumed process is killed again within its window, so that over the runs every '
      'part of a run is hit.',
    ),
    FigureRef(
      figures.save(lost, workdir / 'figures' / 'lost_time.png'),
      'What a kill costs in training: since the newest whole checkpoint, or since the process began to train. Starting again comes on top.',
    ),
  ]


def write(workdir: Path, results: Mapping[str, Sequence[Row]], seconds: float) -> Path:
  """The report of the matrix."""
  rows = [row for found in results.values() for row in found]
  failed = failures({name: list(found) for name, found in results.items()})
  table = [[row.id, row.what, row.asked, row.measured, _verdict(row), duration(row.seconds)] for row in rows]
  details = [[row.id, row.what, row.detail] for row in rows if row.detail]
  told = 'Everything came out as asked.' if not failed else f'{len(failed)} did not: {"; ".join(row.what for row in failed)}.'
  kill_figures = _kill_figures(workdir)
  sections = [
    Section('The matrix', table=Table(('id', 'what was done', 'asked', 'measured', 'verdict', 'time'), table)),
    *([Section('What a kill hits and what it costs', figures=kill_figures)] if kill_figures else []),
    Section('How it was done, and what else was seen', table=Table(('id', 'what was done', 'detail'), details)),
  ]
  return write_report(
    workdir / 'report.html',
    Report(
      'Reliability',
      'Real runs were killed, stopped, damaged, starved and confused on purpose, and compared bit for bit with runs that nothing '
      f'disturbed. Of {len(rows)} rows {len(rows) - len(failed)} came out as asked. {told}',
      sections,
      config=runs.load_config(workdir),
      environment=runs.load_environment(workdir) | {'wall time of this call (s)': round(seconds)},
      notes=NOTES,
    ),
  )


NOTES = (
  'Bitwise equality is promised, and tested, for the same versions, device kind and number of devices; on another number of devices losses '
  'are compared with a tolerance.',
  'The process is killed, not the machine: what the operating system has taken is not lost. Files are synced before a checkpoint counts, '
  'but no power was cut.',
  'The victim is the shipped countdown study with a small model, whose saves and evaluations take a larger share of its time than those of '
  'a real run, so that they are hit often.',
)
