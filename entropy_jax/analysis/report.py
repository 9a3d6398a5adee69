"""The report of a study as one HTML file: what was run, claims with verdicts, figures embedded, what did not reproduce.

The file loads nothing from anywhere (the content security policy in its head enforces it), reads in light and dark,
and prints.
"""

import base64
import dataclasses
import html
import json
import math
import os
import pathlib
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from entropy_jax.analysis import sample_table
from entropy_jax.analysis.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, VERDICTS, Claim, read_claims
from entropy_jax.types import UserError

PathLike = str | pathlib.Path
_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'


@dataclasses.dataclass(frozen=True)
class FigureRef:
  """A PNG file, what the reader should look at in it, and words for who cannot see it (by default the caption)."""

  path: PathLike
  caption: str
  alt: str = ''


@dataclasses.dataclass(frozen=True)
class Table:
  """A small table; numbers are written with three significant digits, everything else as text."""

  header: Sequence[str]
  rows: Sequence[Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Section:
  """A heading, paragraphs (blank lines between them, `code` in backticks), figures, a table, and texts coloured token by token."""

  title: str
  text: str = ''
  figures: Sequence[FigureRef] = ()
  table: Table | None = None
  samples: Sequence[sample_table.Sample] = ()


@dataclasses.dataclass(frozen=True)
class Report:
  """A study told to its reader.

  Attributes:
    title, summary: what was studied and, in one paragraph, what came out.
    sections: in reading order.
    claims: the table of verdicts; those that are not 'reproduced' are listed again under "What did not reproduce".
    config: the resolved config, collapsed.
    environment: versions, devices, git commit, wall time; nested values are flattened.
    notes: known limits of the study, one sentence or paragraph each.
  """

  title: str
  summary: str
  sections: Sequence[Section] = ()
  claims: Sequence[Claim] = ()
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class IndexEntry:
  """One report on the index page: the path of its report.html, its title, one paragraph and its claims."""

  path: PathLike
  title: str
  summary: str
  claims: Sequence[Claim] = ()


def write_report(path: PathLike, report: Report) -> pathlib.Path:
  """Writes the report as one self-contained HTML file, replaced at once."""
  body = [f'<h1>{_escape(report.title)}</h1>', _paragraphs(report.summary, css='summary')]
  body += [_tally(report.claims), _navigation(report)]
  if report.claims:
    body.append(f'<section id="claims"><h2>Claims</h2>{_claims_table(report.claims)}</section>')
  for number, section in enumerate(report.sections, start=1):
    figures = ''.join(_figure(figure) for figure in section.figures)
    table = '' if section.table is None else _table(section.table.header, section.table.rows)
    table += sample_table.table(section.samples) if section.samples else ''
    text = _paragraphs(section.text)
    body.append(f'<section id="section-{number}"><h2>{_escape(section.title)}</h2>{text}{figures}{table}</section>')
  body += [_notes(report), _what_was_run(report)]
  return _write(path, report.title, ''.join(body), _CSS + (sample_table.CSS if any(s.samples for s in report.sections) else ''))


def read_entry(path: PathLike) -> IndexEntry:
  """The card of a report that `write_report` wrote; its claims are those in claims.json beside it, if there are any."""
  path = pathlib.Path(path)
  page = path.read_text(encoding='utf-8')

  def first(pattern: str, default: str) -> str:
    found = re.search(pattern, page, re.DOTALL)
    return html.unescape(re.sub(r'</?code>', '`', found[1])) if found else default

  claims = path.with_name('claims.json')
  title, summary = first(r'<title>(.*?)</title>', path.parent.name), first(r'<p class="summary">(.*?)</p>', '')
  return IndexEntry(path, title, summary, read_claims(claims) if claims.exists() else ())


def write_index(path: PathLike, entries: Sequence[IndexEntry], *, title: str = 'Reports') -> pathlib.Path:
  """Writes an index page with one card a report, linked by relative paths so that the folder can be moved."""
  path = pathlib.Path(path)
  cards = []
  for entry in entries:
    link = pathlib.Path(os.path.relpath(pathlib.Path(entry.path).resolve(), path.resolve().parent)).as_posix()
    cards.append(
      f'<section class="card"><h2><a href="{_escape(urllib.parse.quote(link))}">{_escape(entry.title)}</a></h2>'
      f'<small>{_escape(link)}</small>{_paragraphs(entry.summary)}{_tally(entry.claims)}</section>'
    )
  return _write(path, title, f'<h1>{_escape(title)}</h1>' + ''.join(cards), _CSS)


def _write(path: PathLike, title: str, body: str, css: str) -> pathlib.Path:
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + '.partial')
  partial.write_text(_PAGE.format(title=_escape(title), css=css, body=body), encoding='utf-8')
  os.replace(partial, path)
  return path


def _escape(value: Any) -> str:
  return html.escape(str(value), quote=True)


def _paragraphs(text: str, css: str = '') -> str:
  attribute = f' class="{css}"' if css else ''
  parts = [part.strip() for part in re.split(r'\n\s*\n', text) if part.strip()]
  return ''.join(f'<p{attribute}>{_inline(part)}</p>' for part in parts)


def _inline(text: str) -> str:
  """Escaped text; what stands in backticks is code. The escape comes first, so no markup can enter."""
  return re.sub(r'`([^`]+)`', r'<code>\1</code>', _escape(text))


def _number(value: float) -> str:
  """Three significant digits, without an exponent where a reader needs none."""
  if not math.isfinite(value):
    return 'none'
  if value == int(value) and abs(value) < 1e6:
    return f'{int(value)}'.replace('-', '−')
  return f'{value:,.0f}'.replace('-', '−') if 1e3 <= abs(value) < 1e6 else f'{value:.3g}'.replace('-', '−')


def _cell(value: Any) -> str:
  if isinstance(value, float):
    return f'<td class="number">{_number(value)}</td>'
  if isinstance(value, int) and not isinstance(value, bool):
    return f'<td class="number">{value}</td>'
  return f'<td>{_inline(str(value))}</td>'


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  head = ''.join(f'<th scope="col">{_escape(name)}</th>' for name in header)
  body = ''.join(f'<tr>{"".join(_cell(value) for value in row)}</tr>' for row in rows)
  return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


_CSS_OF = {REPRODUCED: 'yes', NOT_REPRODUCED: 'no', INCONCLUSIVE: 'open'}
_MARK = {REPRODUCED: '✓', NOT_REPRODUCED: '✗', INCONCLUSIVE: '?'}


def _badge(verdict: str, count: int | None = None) -> str:
  shown = verdict if count is None else f'{count} {verdict}'
  return f'<span class="badge {_CSS_OF[verdict]}"><span aria-hidden="true">{_MARK[verdict]}</span> {shown}</span>'


def _tally(claims: Sequence[Claim]) -> str:
  counts = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS}
  badges = ' '.join(_badge(verdict, count) for verdict, count in counts.items() if count)
  return f'<p class="tally">{badges}</p>' if badges else ''


def _navigation(report: Report) -> str:
  places = [('claims', 'Claims')] if report.claims else []
  places += [(f'section-{number}', section.title) for number, section in enumerate(report.sections, start=1)]
  if report.claims or report.notes:
    places.append(('notes', 'What did not reproduce' if report.claims else 'Known limits'))
  if report.environment or report.config:
    places.append(('run', 'What was run'))
  if len(places) < 2:
    return ''
  links = ''.join(f'<li><a href="#{place}">{_escape(title)}</a></li>' for place, title in places)
  return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'


def _interval(claim: Claim) -> str:
  if not all(math.isfinite(end) for end in claim.interval):
    return 'no interval'
  low, high = (_number(end) for end in claim.interval)
  return f'[{low}, {high}]'


def _claims_table(claims: Sequence[Claim]) -> str:
  rows = []
  for claim in claims:
    baseline = f'<br><small>against {_escape(claim.baseline)}</small>' if claim.baseline else ''
    rows.append(
      f'<tr id="claim-{_escape(claim.id)}"><td>{_inline(claim.statement)}'
      f'<br><small><code>{_escape(claim.id)}</code> · {_escape(claim.paper)}</small></td>'
      f'<td>{_inline(claim.metric)}{baseline}</td>'
      f'<td class="number"><strong>{_number(claim.value)}</strong><br><small>{_interval(claim)}</small></td>'
      f'<td>{_escape(claim.criterion)}</td><td>{_badge(claim.verdict)}</td></tr>'
    )
  names = ('Statement', 'Metric', 'Value [95 % interval]', 'Criterion, set before the run', 'Verdict')
  head = ''.join(f'<th scope="col">{name}</th>' for name in names)
  table = f'<table class="claims"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
  return f'<div class="wide">{table}</div>'


def _figure(figure: FigureRef) -> str:
  path = pathlib.Path(figure.path)
  if not path.is_file():
    raise UserError(f'figure {path} does not exist: save it before the report is written.')
  content = path.read_bytes()
  if not content.startswith(_PNG_SIGNATURE):
    raise UserError(f'figure {path} is no PNG file: save it with analysis.figures.save.')
  encoded = base64.b64encode(content).decode('ascii')
  alt = _escape(figure.alt or figure.caption.replace('`', ''))
  return (
    f'<figure><img src="data:image/png;base64,{encoded}" alt="{alt}">'
    f'<figcaption>{_inline(figure.caption)}</figcaption></figure>'
  )


def _notes(report: Report) -> str:
  missed = [claim for claim in report.claims if claim.verdict != REPRODUCED]
  items = [
    f'<li>{_badge(claim.verdict)} {_inline(claim.statement)} <small>{_inline(claim.metric)}: {_number(claim.value)}, '
    f'{_interval(claim)}; criterion: {_escape(claim.criterion)}.</small></li>'
    for claim in missed
  ]
  limits = ''.join(f'<li>{_inline(note)}</li>' for note in report.notes)
  if not report.claims and not limits:
    return ''
  parts = []
  if report.claims:
    told = f'<ul class="plain">{"".join(items)}</ul>' if items else '<p>Every claim was reproduced.</p>'
    parts.append(f'<h2>What did not reproduce</h2>{told}')
  if limits:
    parts.append(f'<h2>Known limits</h2><ul>{limits}</ul>')
  return f'<section id="notes">{"".join(parts)}</section>'


def _what_was_run(report: Report) -> str:
  parts = []
  for title, values, is_open in (('Environment', report.environment, True), ('Config', report.config, False)):
    if values:
      table = _table(('Key', 'Value'), list(_flat(values)))
      parts.append(f'<details{" open" if is_open else ""}><summary>{title}</summary>{table}</details>')
  return f'<section id="run"><h2>What was run</h2>{"".join(parts)}</section>' if parts else ''


def _flat(values: Mapping[str, Any], prefix: str = '') -> list[tuple[str, Any]]:
  """Nested mappings as rows of dotted keys; lists and the like as JSON."""
  rows: list[tuple[str, Any]] = []
  for key, value in values.items():
    name = f'{prefix}{key}'
    if isinstance(value, Mapping) and value:
      rows += _flat(value, f'{name}.')
    else:
      rows.append((name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)))
  return rows


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{css}</style>
</head>
<body><main>{body}</main></body>
</html>
"""

_CSS = """
:root { --ink: #1c1e21; --soft: #5a616b; --paper: #ffffff; --panel: #f4f6f8; --line: #d9dee4; --link: #0b5cad;
  --yes: #12693a; --yes-back: #dff3e6; --no: #9c1c1c; --no-back: #fbe3e1; --open: #6b4e00; --open-back: #fbeecb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #a3abb5; --paper: #15181c; --panel: #1e2329; --line: #343b44; --link: #7db8f5;
    --yes: #8fdcae; --yes-back: #163a26; --no: #f5a9a3; --no-back: #481b1a; --open: #ecca72; --open-back: #40330f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .8rem; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2.6rem 0 .6rem; }
p, li, figcaption { max-width: 46rem; }
p { margin: .6rem 0; }
a { color: var(--link); }
small { color: var(--soft); font-size: .82rem; }
code { font: .88em ui-monospace, "DejaVu Sans Mono", monospace; background: var(--panel);
  border-radius: 3px; padding: .05em .3em; }
.summary { font-size: 1.08rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: .6rem 0; margin: 1rem 0;
  border-block: 1px solid var(--line); font-size: .92rem; }
ul.plain { list-style: none; padding: 0; }
ul.plain li { margin: .5rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; line-height: 1.4; margin: .5rem 0; }
th, td { text-align: left; vertical-align: top; padding: .5rem .7rem; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; font-size: .82rem; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
table.claims { min-width: 48rem; width: 100%; }
table.claims td:first-child { width: 34%; }
table.claims code { overflow-wrap: anywhere; }
.badge { display: inline-block; white-space: nowrap; border-radius: 1rem; padding: .1rem .65rem;
  font-size: .82rem; font-weight: 600; }
.yes { color: var(--yes); background: var(--yes-back); }
.no { color: var(--no); background: var(--no-back); }
.open { color: var(--open); background: var(--open-back); }
figure { margin: 1.4rem 0 2rem; }
figure img { display: block; width: 100%; max-width: 46rem; height: auto; background: #fff;
  border: 1px solid var(--line); border-radius: 6px; padding: .5rem; }
figcaption { color: var(--soft); font-size: .92rem; margin-top: .5rem; }
details { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .9rem; margin: .7rem 0; }
summary { cursor: pointer; font-weight: 600; }
.card { background: var(--panel); border-radius: 8px; padding: .4rem 1.2rem 1rem; margin: 1.2rem 0; }
.card h2 { margin-top: .8rem; }
@media print {
  :root { --ink: #000; --soft: #444; --paper: #fff; --panel: #f4f4f4; --line: #bbb; }
  body { font-size: 11pt; } main { max-width: none; padding: 0; } nav { display: none; }
  figure, tr, .card { break-inside: avoid; } h2 { break-after: avoid; }
  .wide { overflow: visible; } table.claims { min-width: 0; }
  details::details-content { content-visibility: visible; block-size: auto; } }
"""
