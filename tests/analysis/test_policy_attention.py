"""What is read from runs, and the claims, on made curves whose answers are known."""

import json

import numpy as np
import pytest

from entropy_jax.analysis import policy_attention as study
from entropy_jax.analysis.claims import NOT_REPRODUCED, REPRODUCED
from tests.analysis.policy_attention_runs import VARIANTS, run, write


def trained(runs, block=10) -> study.Trained:
  return study.Trained(runs, block)


class TestTrained:
  def test_points_changes_and_falls(self):
    runs = [{'step': np.arange(6), 'x': np.array([1.0, 3, 5, 7, 0, 1])}, {'step': np.arange(6), 'x': np.array([4.0, 4, 4, 4, 2, np.nan])}]
    found = trained(runs, block=2)
    np.testing.assert_array_equal(found.points('x'), [[2, 6, 0.5], [4, 4, np.nan]])
    np.testing.assert_array_equal(found.change('x'), [-1.5, np.nan])
    np.testing.assert_array_equal(found.fall('x'), [0.75, np.nan])

  def test_levels_go_together_and_changes_need_not(self):
    # Levels 4 3 2 1 against 3 2.9 1 .9: both fall, but where the first falls evenly the second falls at another time.
    policy, attention = np.array([4.0, 3, 2, 1]), np.array([3.0, 2.9, 1, 0.9])
    found = trained([{'step': np.arange(4), study.POLICY: policy, study.ATTENTION: attention}], block=1)
    assert found.together(changes=False)[0] == pytest.approx(np.corrcoef(policy, attention)[0, 1])
    assert np.isnan(found.together(changes=True)[0])  # equal changes have no correlation
    found = trained([{'step': np.arange(4), study.POLICY: policy**2, study.ATTENTION: attention}], block=1)
    # Changes -7 -5 -3 and -.1 -1.9 -.1: uncorrelated.
    assert found.together(changes=True)[0] == pytest.approx(0.0, abs=1e-12)

  def test_correlations_over_steps(self):
    found = trained([{'step': np.arange(3), 'a': np.array([1.0, 2, 30]), 'b': np.array([-1.0, -2, -3])}])
    assert found.over_steps('a', 'b', sign=-1.0, ranks=True)[0] == pytest.approx(1.0)
    assert found.over_steps('a', 'b')[0] == pytest.approx(np.corrcoef([1, 2, 30], [-1, -2, -3])[0, 1])


class TestLaw:
  def test_coefficients_and_none(self):
    flat = run(seed=1)
    flat[study.POLICY] = np.full(40, 1.0)
    values = trained([run(seed=0, a=0.15, b=1.1), flat]).law
    assert values['a'][0] == pytest.approx(0.15, abs=0.01) and values['b'][0] == pytest.approx(1.1, abs=0.02)
    assert values['r_squared'][0] > 0.95 and all(np.isnan(x[1]) for x in values.values())


class TestClaims:
  def verdicts(self, folder) -> dict[str, str]:
    return {claim.id: claim.verdict for claim in study.claims(study.load(folder))}

  def test_a_study_as_predicted(self, tmp_path):
    write(tmp_path)
    found = self.verdicts(tmp_path)
    assert set(found.values()) == {REPRODUCED}, {id: verdict for id, verdict in found.items() if verdict != REPRODUCED}
    free = set(VARIANTS)
    for name in ('policy_entropy_collapses', 'attention_entropy_falls', 'attention_follows_policy', 'law_fits', 'change_is_predicted'):
      assert {id for id in found if id.endswith(f'/{name}')} == {f'{variant}/{name}' for variant in free}
    for name in ('law_a', 'law_b', 'law_r_squared', 'predicted_as_well', 'keeps_attention_entropy'):
      assert {id for id in found if id.endswith(f'/{name}')} == {f'{variant}/{name}' for variant in free - {study.BASELINE}}
    assert list(study.load(tmp_path)) == ['pre_ln', 'sigma_reparam', 'pre_ln_held']

  def test_another_law(self, tmp_path):
    write(tmp_path, sigma_reparam={'a': 0.25, 'b': 1.3})
    found = self.verdicts(tmp_path)
    assert found['sigma_reparam/law_a'] == found['sigma_reparam/law_b'] == NOT_REPRODUCED
    assert found['sigma_reparam/law_fits'] == found['sigma_reparam/law_r_squared'] == REPRODUCED

  def test_attention_that_does_not_move(self, tmp_path):
    write(tmp_path, pre_ln={'attention_fall': 0.0}, pre_ln_held={'attention_fall': 0.0})
    found = self.verdicts(tmp_path)
    assert found['pre_ln/attention_entropy_falls'] == found['pre_ln_held/attention_entropy_stays'] == NOT_REPRODUCED
    assert found['sigma_reparam/keeps_attention_entropy'] == NOT_REPRODUCED
    assert found['pre_ln/attention_follows_policy'] != REPRODUCED  # noise: its correlation is near 0, and 0.5 may be in the interval

  def test_a_bad_prediction(self, tmp_path):
    write(tmp_path, sigma_reparam={'prediction_noise': 1.0})
    found = self.verdicts(tmp_path)
    assert found['sigma_reparam/change_is_predicted'] == found['sigma_reparam/predicted_as_well'] == NOT_REPRODUCED
    assert found['pre_ln/change_is_predicted'] == REPRODUCED

  def test_two_seeds_support_nothing(self, tmp_path):
    write(tmp_path, num_seeds=2)
    assert set(self.verdicts(tmp_path).values()) == {'inconclusive'}
    assert json.loads((tmp_path / 'config.json').read_text())['num_seeds'] == 2
