"""Figures, tables and the report of the study of policy entropy and attention entropy, on made runs."""

import json

import numpy as np
import pytest

from entropy_jax.analysis import policy_attention as study
from entropy_jax.analysis import policy_attention_report as made_report
from tests.analysis.policy_attention_runs import write


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('policy_attention')
  write(root)
  return root


class TestFigures:
  def test_law_panels(self, folder):
    axes = made_report.law_panels(study.load(folder)).axes
    assert [panel.get_title(loc='left') for panel in axes] == ['pre_ln', 'sigma_reparam']  # the control's entropy does not move
    dots, *lines = axes[0].lines
    assert dots.get_xdata().size == 5 * 8 and len(lines) == 5
    x, y = lines[0].get_data()
    np.testing.assert_allclose((y[1] - y[0]) / (x[1] - x[0]), -0.16, rtol=0.05)
    assert 'a = 0.159' in axes[0].texts[0].get_text()

  def test_phase_starts_at_the_large_marker(self, folder):
    (axes,) = made_report.phase(study.load(folder)).axes
    _, mean, start = axes.lines[:3]
    assert mean.get_label() == 'pre_ln' and mean.get_xdata()[0] == start.get_xdata()[0] == max(mean.get_xdata())

  def test_a_panel_a_layer(self, folder):
    found = study.load(folder)
    assert [panel.get_title(loc='left') for panel in made_report.by_layer(found).axes] == ['layer 1', 'layer 2']
    one = [{name: x for name, x in run.items() if 'layer_1' not in name} for run in found['pre_ln'].runs]
    assert made_report.by_layer({'pre_ln': study.Trained(one, 5)}) is None


class TestTables:
  def test_rows(self, folder):
    found = study.load(folder)
    for table in (made_report.entropies(found), made_report.laws(found)):
      assert [row[0] for row in table.rows] == ['pre_ln', 'sigma_reparam', 'pre_ln_held']
      assert all(len(row) == len(table.header) for row in table.rows)
    assert made_report.laws(found).rows[2][1:4] == ['none'] * 3 and made_report.laws(found).rows[0][1].startswith('0.159')
    assert made_report.entropies(found).rows[0][4].startswith('2.21 → 5.79 ± 0.00')


class TestReport:
  def test_files(self, folder):
    decided = made_report.report(folder, seconds=1.4)
    assert len(json.loads((folder / 'claims.json').read_text())) == len(decided) == len(study.claims(study.load(folder)))
    page = (folder / 'report.html').read_text()
    assert page.count('data:image/png;base64,') == len(list((folder / 'figures').glob('*.png'))) == 6
    assert 'success goes from' in page and 'pre_ln_held' in page
    row = json.loads((folder / 'metrics.jsonl').read_text())
    assert row['step'] == 40 and row['pre_ln/policy/entropy'] == pytest.approx(0.15, abs=0.05)
