"""chaos/matrix.py: what was found becomes rows that pass or do not, and a report that loads nothing."""

import json

import pytest

from entropy_jax.chaos import fuzz, kills, layouts, matrix, resume
from entropy_jax.chaos.table import Row
from tests.chaos.test_kills import ending


class TestGridRows:
  def test_counts_cells(self):
    cell = resume.Cell('scheduled', True, False)
    good, bad = resume.Outcome(cell, []), resume.Outcome(cell._replace(shuffle=False), ['metrics.jsonl'])
    (row,) = matrix.grid_rows([good, good])
    assert row.passed and row.measured == '2/2 cells equal'
    (row,) = matrix.grid_rows([good, bad])
    assert not row.passed and row.measured == '1/2 cells equal' and 'in order' in row.detail and 'metrics.jsonl' in row.detail
    assert not matrix.grid_rows([])[0].passed


class TestFuzzRows:
  RIGHT = fuzz.Result({'shipped': 2}, {'shipped': 0}, [], 1.0, 0)

  def test_refused_and_not(self):
    wrong = fuzz.Result({'unknown key': 5}, {'unknown key': 5}, [], 1.5, 0)
    assert [row.passed for row in matrix.fuzz_rows(wrong, self.RIGHT)] == [True, True]
    slipped = fuzz.Slipped(fuzz.Case('unknown key', 'k', 'v', (), ()), 'not refused')
    missed = wrong._replace(refused={'unknown key': 4}, slipped=[slipped])
    rows = matrix.fuzz_rows(missed, self.RIGHT._replace(slipped=[slipped]))
    assert [row.passed for row in rows] == [False, False] and '4/5 refused' in rows[0].measured and 'not refused' in rows[0].detail
    assert not matrix.fuzz_rows(wrong._replace(compilations=1), self.RIGHT)[0].passed


class TestLayoutRows:
  GOOD = layouts.Difference(1e-7, 0, 30, True, 20)

  @pytest.mark.parametrize(
    ('change', 'passed'), [({}, True), ({'loss': 2e-5}, False), ({'selections': 1}, False), ({'same_order': False}, False)]
  )
  def test_equality(self, change, passed):
    found = {('pmap x 8', 'kl_cov'): self.GOOD, ('pmap x 8', 'clip_cov'): self.GOOD._replace(**change), ('fsdp x 8', 'kl_cov'): self.GOOD}
    one, other = matrix.equality_rows(found)
    assert (one.passed, other.passed) == (passed, True) and 'pmap x 8' in one.what and '2 objectives' in one.what

  def test_elastic_is_stricter(self):
    assert matrix.elastic_rows(self.GOOD, (1, 8, 2))[0].what == 'stopped and resumed on 1 -> 8 -> 2 devices'
    assert matrix.elastic_rows(self.GOOD, (1, 8))[0].passed and not matrix.elastic_rows(self.GOOD._replace(loss=5e-6), (1, 8))[0].passed


class TestWrite:
  def test_report_tells_what_failed_and_draws_the_kills(self, tmp_path):
    for name in ('config.json', 'environment.json'):
      (tmp_path / name).write_text('{"seed": 0}')
    (tmp_path / 'R1').mkdir()
    endings = [ending(phase=phase) for phase in ('step', 'save', 'save')] + [ending(aim='start', phase='start')]
    (tmp_path / 'R1' / kills.ENDINGS).write_text(''.join(json.dumps(e._asdict()) + '\n' for e in endings))
    good = Row('R1', 'kills', 'all equal', '3/3', True, 65.0, 'by SIGKILL')
    results = {'R1': [good], 'R5': [Row('R5', 'disk <full>', 'a sentence', 'a traceback', False, 2.0, 'as it was')]}
    text = matrix.write(tmp_path, results, 70.0).read_text()
    assert 'Of 2 rows 1 came out as asked. 1 did not: disk &lt;full&gt;.' in text and '1 min 05 s' in text
    assert text.count('data:image/png;base64,') == 2 and 'http' not in text.replace('http-equiv', '')
    assert text.count('✗') == 1
    text = matrix.write(tmp_path, {'R1': [good]}, 70.0).read_text()
    assert 'Everything came out as asked.' in text
