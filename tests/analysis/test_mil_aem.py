"""Claims of the AEM study on runs of which the outcome is known, both ways, and its table."""

import json

import numpy as np
import pytest

from entropy_jax.analysis import mil_aem
from entropy_jax.analysis.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED
from tests.analysis.test_mil_runs import bagged


def verdicts(found) -> dict[str, str]:
  return {claim.id.split('/')[1]: claim.verdict for claim in mil_aem.claims(found)}


class TestClaims:
  def test_where_the_method_works(self):
    got = verdicts(bagged(mean_pooling__test__auc=0.8, aem_1__test__loss=0.1))
    assert got.pop('chosen_lambda_beats_mean_pooling') == got.pop('lambda_1_beats_mean_pooling') == NOT_REPRODUCED
    assert set(got.values()) == {REPRODUCED} and got['largest_lambda_is_mean_pooling'] == REPRODUCED and len(got) == 8

  def test_where_it_does_not(self):
    got = verdicts(bagged(gain=-0.1, aem_0__train__instances_per_target=2.0, aem_1__test__loss=2.0))
    assert got['attention_leaves_targets_out'] == got['entropy_goes_with_auc'] == NOT_REPRODUCED
    # Validation bags choose lambda = 0, so that nothing is gained.
    assert got['chosen_lambda_beats_plain_attention'] == got['lambda_1_beats_plain_attention'] == NOT_REPRODUCED
    assert got['largest_lambda_is_mean_pooling'] == got['lambda_1_overfits_less'] == NOT_REPRODUCED
    assert got['entropy_grows_with_lambda'] == REPRODUCED

  def test_too_few_seeds(self):
    assert set(verdicts(bagged(4)).values()) == {INCONCLUSIVE}

  def test_values(self):
    found = bagged(5, **{'aem_0.1__train__entropy': 1.5})
    values = {claim.id: claim.value for claim in mil_aem.claims(found)}
    # 1, 1.5, 3: the smaller step is the first.
    assert values['digits/entropy_grows_with_lambda'] == pytest.approx(0.5, abs=0.01)
    # .6 against .8, and the training loss is .4 lower in both: (.3 + .4) - (.5 + .4)
    assert values['digits/lambda_1_beats_plain_attention'] == pytest.approx(0.2, abs=0.01)
    assert values['digits/lambda_1_overfits_less'] == pytest.approx(0.0, abs=0.01)
    assert values['digits/entropy_goes_with_auc'] == pytest.approx(1.0)
    # All seeds choose lambda = 1 at the last step; plain attention is best at its last step.
    assert values['digits/chosen_lambda_beats_early_stopping'] == pytest.approx(0.2, abs=0.01)


class TestTable:
  def test_rows(self):
    table = mil_aem.table(bagged())
    assert [row[0] for row in table.rows] == ['aem_0', 'aem_0.1', 'aem_1', 'annealed_0.1', 'annealed_1', 'mean_pooling']
    assert all(len(row) == len(table.header) for row in table.rows)
    assert [row[-1] for row in table.rows] == ['0 of 6', '0 of 6', '6 of 6', 'not asked', 'not asked', 'not asked']
    assert table.rows[2][1].startswith('0.8 [')


class TestWriteSummary:
  def test_rows(self, tmp_path):
    found = bagged()
    mil_aem.write_summary(tmp_path / 'metrics.jsonl', {'digits': found})
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [row['step'] for row in rows] == [20, 40]
    np.testing.assert_allclose(rows[1]['digits/aem_1/test/auc'], found.final('aem_1', 'test/auc').mean(), rtol=1e-5)
