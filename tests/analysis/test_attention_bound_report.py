"""Figures and tables of the attention-bound study on made rows."""

import json

import numpy as np
import pytest

from entropy_jax.analysis import attention_bound as study
from entropy_jax.analysis import attention_bound_report as made_report

T, S = (4, 16), (1.0, 5.0)
CELLS = [{'num_tokens': t, 's': s} for t in T for s in S]


def rows(above: float, forms=tuple(study.FORMS)) -> dict[str, np.ndarray]:
  num_keys, s = (np.array([cell[name] for cell in CELLS])[:, None] * np.ones((1, 5)) for name in ('num_tokens', 's'))
  entropy = study.lower_bound(num_keys, s) + np.float32(above)
  made = {form: s.astype(np.float32) for form in forms}
  return {'entropy': entropy, 'num_keys': num_keys.astype(int), 'counted': np.ones(s.shape, bool), **made}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('bound')
  study.save(root / 'random' / '16_8_4', rows(0.3), CELLS)
  study.save(root / 'tight' / 'layers', rows(0.0), CELLS)
  study.save(root / 'adversarial' / 'sphere_16_8_4', rows(1e-6, ('query_key', 'centred')), CELLS)
  study.save(root / 'adversarial' / 'tokens_16_8_4', rows(1e-2), CELLS[:4])
  numbers = {'loss': 3.1, 'normalised_entropy': 0.5, 'lowest_layer_entropy': 0.25, 'largest_logit': 40.0, 'logits_error': 1e-6}
  study.save(root / 'trained' / 'learned_0.1', rows(0.2), [{'step': 10 * i, **numbers} for i in range(4)])
  study.save(root / 'trained' / 'rotary_0.1', rows(0.2, ('query_key', 'centred')), [{'step': 10 * i, **numbers} for i in range(4)])
  (root / 'config.json').write_text('{"min_rows": 10}')
  (root / 'environment.json').write_text('{"jax": "0"}')
  return root


class TestFigures:
  def test_a_row_of_panels_for_each_number_of_keys(self, folder):
    parts = study.load(folder)
    assert made_report.shown_keys(parts) == [4, 16]
    axes = made_report.entropy_against_s(parts).axes
    assert [panel.get_title(loc='left') for panel in axes] == ['4 keys', '4 keys', '16 keys', '16 keys']
    handles, labels = axes[0].get_legend_handles_labels()
    assert labels == ['random', 'trained', 'adversarial', 'constructed', 'lower bound']
    points = dict(zip(labels, handles))
    # Two cells of five rows have 4 keys; the searches 'tokens' alone has s of the weights.
    assert {points[source].get_xdata().size for source in ('random', 'adversarial', 'trained', 'constructed')} == {10}
    curve = points['lower bound']
    np.testing.assert_allclose(curve.get_ydata(), study.lower_bound(4, curve.get_xdata()), rtol=1e-5)
    assert len({handle.get_color() for handle in handles}) == 5

  def test_rows_of_a_crowded_panel_are_thinned(self, folder):
    parts = dict(study.load(folder))
    part = parts['random/16_8_4']
    part.entropy_N[3] = study.lower_bound(4, part.s['weights'][3]) + 1e-3  # the nearest of them
    crowd = {name: np.tile(part.s[name], 1000) for name in part.s}
    parts['random/16_8_4'] = study.Part(
      'random', part.cells, np.tile(part.cell_N, 1000), np.tile(part.num_keys_N, 1000), np.tile(part.entropy_N, 1000), crowd
    )
    axes = made_report.entropy_against_s(parts).axes
    assert 200 + 650 <= axes[0].lines[0].get_xdata().size <= 1500
    x, y = axes[0].lines[0].get_data()
    assert np.sum(np.abs(y - study.lower_bound(4, x)) < 2e-3) >= 200

  def test_shares_within_the_bound(self, folder):
    axes = made_report.slack_shares(study.load(folder)).axes
    assert [panel.get_title(loc='left') for panel in axes] == list(made_report.SHORT.values())
    shown = {line.get_label(): line.get_data() for line in axes[0].lines}
    assert set(shown) == {'random', 'trained', 'adversarial'}
    within, share = shown['random']  # all of them 0.3 above
    assert np.isnan(share[within < 0.29]).all() and np.all(share[within > 0.31] == 100.0)

  def test_rounding_below_the_bound_is_within_any_distance(self, folder):
    parts = dict(study.load(folder))
    parts['random/16_8_4'].entropy_N[:5] = 0.0
    within, share = next(x for x in made_report.slack_shares(parts).axes[0].lines if x.get_label() == 'random').get_data()
    assert np.all(share[within < 0.29] == 25.0) and share[-1] == 100.0


class TestTables:
  def test_counts(self, folder):
    table = made_report.counts(study.load(folder))
    assert all(len(row) == len(table.header) for row in table.rows)
    by_name = {(row[0], row[1]): row[2:] for row in table.rows}
    assert by_name['random', 'centred row'][:3] == ['20', '0', '3.0e-01']
    assert by_name['trained', 'query and keys'][0] == '40' and by_name['trained', 'weights, all tokens'][0] == '20'
    assert by_name['tight', 'weights, all tokens'][-1] == '1'

  def test_searches(self, folder):
    table = made_report.searches(study.load(folder))
    assert [row[:2] for row in table.rows] == [[4, '1'], [4, '5'], [16, '1'], [16, '5']]
    assert table.rows[0][2] == '1.227' and table.rows[0][4:] == ['1.0e-02', 'none']
    assert float(table.rows[0][3]) == pytest.approx(1e-6, rel=0.3)

  def test_training(self, folder):
    table = made_report.training(study.load(folder))
    assert all(len(row) == len(table.header) for row in table.rows) and len(table.rows) == 8
    assert table.rows[1] == ['learned_0.1', 10, '3.100', '0.500', '0.250', '40', '5', '5']
    assert table.rows[4][-2:] == ['none', '1']  # rotary


class TestReport:
  def test_files(self, folder):
    found = made_report.report(folder, seconds=1.4)
    assert len(json.loads((folder / 'claims.json').read_text())) == len(found) == 10
    page = (folder / 'report.html').read_text()
    assert page.count('data:image/png;base64,') == 2
    assert '120 rows of random, trained and adversarial layers' in page and ': 0 are below it' in page
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    assert len(lines) == 6 and lines[0]['random/16_8_4/rows'] == 20 and lines[0]['random/16_8_4/below/centred'] == 0
