"""Rows of attention in files, and the claims about the bound, on made rows whose answers are known."""

import json
import math

import numpy as np
import pytest

from entropy_jax.analysis import attention_bound as study
from entropy_jax.analysis.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED
from entropy_jax.analysis.runs import load_metrics
from entropy_jax.types import UserError


def exact(T: float, s: float) -> float:
  """LB in float64, as the theorem writes it."""
  beta = math.exp(-s * math.sqrt(T / (T - 1)))
  return math.log1p((T - 1) * beta) + s * math.sqrt(T * (T - 1)) * beta / (1 + (T - 1) * beta)


def rows(above: float = 0.1, *, forms=tuple(study.FORMS), T=(4, 16), s=(1.0, 5.0), repeats=3, centred=0.98) -> dict[str, np.ndarray]:
  """[C, repeats] rows, a cell for each T and s, whose entropy is `above` the bound; the centred norm is a share of s."""
  cases = [(t, x) for t in T for x in s]
  spread = lambda values: np.repeat(np.array(values)[:, None], repeats, axis=1)
  entropy = spread([exact(t, x) + above for t, x in cases]).astype(np.float32)
  made = {form: spread([x * (centred if form == 'centred' else 1.0) for _, x in cases]).astype(np.float32) for form in forms}
  return {'entropy': entropy, 'num_keys': spread([t for t, _ in cases]), 'counted': np.ones(entropy.shape, bool), **made}


CELLS = [{'num_tokens': t, 's': s} for t in (4, 16) for s in (1.0, 5.0)]


@pytest.fixture
def folder(tmp_path):
  """A study: random rows above the bound, the constructed layer on it, a descent that came within 1e-6, one trained decoder."""
  study.save(tmp_path / 'random' / '4_8_4', rows(0.3), CELLS)
  study.save(tmp_path / 'tight' / 'layers', rows(0.0, centred=1.0), CELLS)
  study.save(tmp_path / 'adversarial' / 'sphere_4_8_4', rows(1e-6, forms=('query_key', 'centred'), centred=1.0), CELLS)
  cells = [{'step': 10 * i, 'logits_error': 1e-6 * i, 'loss': 3.0} for i in range(4)]
  study.save(tmp_path / 'trained' / 'learned_0.1', rows(0.2), cells)
  return tmp_path


def verdicts(folder, min_rows=10) -> dict[str, str]:
  return {claim.id: claim.verdict for claim in study.claims(study.load(folder), min_rows=min_rows)}


class TestLowerBound:
  def test_float64_in_blocks(self):
    T, s = np.full(20_000, 7), np.linspace(0, 20, 20_000).astype(np.float32)
    got = study.lower_bound(T, s)
    np.testing.assert_allclose(got[::997], [exact(7, x) for x in s[::997].astype(float)], rtol=2e-5)
    assert got.shape == (20_000,)

  def test_shapes(self):
    assert study.lower_bound(4, 0.0).shape == () and float(study.lower_bound(4, 0.0)) == pytest.approx(math.log(4), rel=1e-6)
    assert study.lower_bound(np.zeros((0,)), np.zeros((0,))).shape == (0,)
    got = study.lower_bound(np.array([[2.0], [4.0]]), np.array([1.0, 2.0]))
    np.testing.assert_allclose(got, [[0.4942, 0.215272], [1.22666, 0.790945]], rtol=1e-5)


class TestSave:
  def test_only_rows_that_count_and_a_line_for_each_cell(self, tmp_path):
    made = rows(0.1)
    made['counted'][1] = [True, False, False]
    made['entropy'][2, 1] = 0.01  # far below its bound
    made['counted'][3] = False
    study.save(tmp_path / 'random' / 'a', made, CELLS)
    part = study.load(tmp_path)['random/a']
    assert part.cell_N.tolist() == [0, 0, 0, 1, 2, 2, 2] and part.num_keys_N.tolist() == [4] * 4 + [16] * 3
    metrics = load_metrics(tmp_path / 'random' / 'a')
    assert metrics['rows'].tolist() == [3, 1, 3, 0] and metrics['s'].tolist() == [1.0, 5.0, 1.0, 5.0]
    np.testing.assert_allclose(metrics['slack/weights'][:3], [0.1, 0.1, 0.01 - exact(16, 1)], rtol=1e-4)
    assert math.isnan(metrics['entropy/smallest'][3])  # a cell without rows has none

  def test_steps_number_the_lines(self, folder):
    assert load_metrics(folder / 'trained' / 'learned_0.1')['step'].tolist() == [0, 10, 20, 30]
    assert study.is_done(folder / 'trained' / 'learned_0.1') and not study.is_done(folder / 'trained' / 'learned_0.2')

  def test_the_same_rows_make_the_same_file(self, tmp_path):
    for name in 'ab':
      study.save(tmp_path / 'random' / name, rows(), CELLS)
    assert (tmp_path / 'random' / 'a' / study.ROWS).read_bytes() == (tmp_path / 'random' / 'b' / study.ROWS).read_bytes()


class TestLoad:
  def test_sources_in_order_with_the_forms_they_have(self, folder):
    parts = study.load(folder)
    assert list(parts) == ['random/4_8_4', 'trained/learned_0.1', 'adversarial/sphere_4_8_4', 'tight/layers']
    assert list(parts['adversarial/sphere_4_8_4'].s) == ['query_key', 'centred'] and list(parts['random/4_8_4'].s) == list(study.FORMS)

  def test_nothing_there(self, tmp_path):
    with pytest.raises(UserError, match=r'holds no rows of attention: give the workdir of a run of experiments\.attention_bound'):
      study.load(tmp_path)


class TestPart:
  def part(self, entropy, T=16, s=5.0) -> study.Part:
    n = len(entropy)
    s_N = {'weights': np.full(n, s, np.float32)}
    return study.Part('random', {}, np.zeros(n, np.int32), np.full(n, T), np.array(entropy, np.float32), s_N)

  def test_below(self):
    # g = 5.16: s + 1e-5 s lowers LB by about g 1e-5 of it, and 1e-5 comes to that; 1e-3 is more than both.
    bound = exact(16, 5.0)
    assert self.part([bound, bound * (1 - 3e-5), bound * 0.999, 0.0, np.nan]).below('weights').tolist() == [False, False, True, True, True]

  def test_a_share_of_s(self):
    part = self.part([exact(16, 5.0), exact(16, 4.0)])
    assert part.below('weights', share=0.9).tolist() == [True, False]

  def test_tolerance_is_small_where_the_bound_is_flat(self):
    # T = 64, s = .5: LB is ln T - s^2 / (2 T) = ln T - .00195; half of that above ln T is seen.
    part = self.part([exact(64, 0.5), exact(64, 0.5) - 1e-4], T=64, s=0.5)
    assert part.below('weights').tolist() == [False, True]


class TestCriteria:
  def test_no_row(self):
    verdict = lambda value, n: study.NoRow(n, 100).verdict(value, (value, value))
    assert [verdict(0, 100), verdict(0, 99), verdict(1, 100), verdict(1, 5)] == [REPRODUCED, INCONCLUSIVE, NOT_REPRODUCED, NOT_REPRODUCED]
    assert study.NoRow(5, 100_000).text == 'no row of at least 100,000'

  def test_at_most(self):
    verdict = lambda value: study.AtMost(0.5).verdict(value, (value, value))
    assert [verdict(0.5), verdict(0.6), verdict(math.nan)] == [REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE]


class TestSmallestSlack:
  def test_over_parts_at_the_s_asked_for(self, tmp_path):
    study.save(tmp_path / 'adversarial' / 'a', rows(0.3), CELLS)
    made = rows(0.2)
    made['entropy'][0] = exact(4, 1.0) + np.array([0.05, 0.1, 0.4])
    study.save(tmp_path / 'adversarial' / 'b', made, CELLS)
    found = study.smallest_slack(study.load(tmp_path).values())
    assert set(found) == {(4, 1.0), (4, 5.0), (16, 1.0), (16, 5.0)}
    np.testing.assert_allclose(list(found.values()), [0.05, 0.2, 0.2, 0.2], rtol=1e-4)

  def test_rows_with_other_numbers_of_keys_are_left_out(self, tmp_path):
    made = rows(0.3)
    made['num_keys'][0, 0], made['entropy'][0, 0] = 3, 0.0
    study.save(tmp_path / 'adversarial' / 'a', made, CELLS)
    assert study.smallest_slack(study.load(tmp_path).values())[4, 1.0] == pytest.approx(0.3, rel=1e-4)


class TestClaims:
  def test_a_study_without_violations(self, folder):
    found = verdicts(folder)
    others = {'tight/attained', 'tight/in_every_form', 'tight/noticed', 'sphere/reaches', 'order/centred', 'trained/products'}
    assert set(found) == {f'holds/{form}' for form in study.FORMS} | others
    assert set(found.values()) == {REPRODUCED}
    claims = {claim.id: claim for claim in study.claims(study.load(folder), min_rows=10)}
    assert '48 (12 random, 12 trained, 12 adversarial, 12 tight)' in claims['holds/centred'].metric
    assert '36 (12 random, 12 trained, 12 tight)' in claims['holds/weights'].metric
    study.check(list(claims.values()))

  def test_too_few_rows(self, folder):
    found = verdicts(folder, min_rows=1000)
    assert {id for id, verdict in found.items() if verdict == INCONCLUSIVE} == {*(f'holds/{form}' for form in study.FORMS), 'order/centred'}

  def test_one_row_below_is_enough(self, folder):
    made = rows(0.3)
    made['entropy'][2, 1] = exact(16, 1.0) - 1e-3
    made['centred'][2, 1] = 1.0
    study.save(folder / 'random' / 'other', made, CELLS)
    claims = study.claims(study.load(folder), min_rows=100_000)
    broken = {claim.id: claim for claim in claims if claim.id.startswith('holds/')}
    assert {claim.verdict for claim in broken.values()} == {NOT_REPRODUCED} and {claim.value for claim in broken.values()} == {1.0}
    with pytest.raises(ArithmeticError, match=r'holds/weights_whole: 1 rows with H < .*; holds/weights: 1 rows'):
      study.check(claims)

  def test_a_layer_that_does_not_attain_it(self, folder):
    study.save(folder / 'tight' / 'layers', rows(2e-5, centred=1.0), CELLS)
    assert verdicts(folder)['tight/attained'] == NOT_REPRODUCED
    study.save(folder / 'tight' / 'layers', rows(0.5, centred=1.0), CELLS)
    assert verdicts(folder)['tight/noticed'] == NOT_REPRODUCED

  def test_a_form_of_the_constructed_layer_that_is_too_large(self, folder):
    # The entropy is right for the s asked for, and s from the weights is 1 % too large.
    made = rows(0.0, centred=1.0)
    made['weights'] = made['weights'] * np.float32(1.01)
    study.save(folder / 'tight' / 'layers', made, CELLS)
    found = verdicts(folder)
    assert found['tight/in_every_form'] == NOT_REPRODUCED and found['tight/attained'] == REPRODUCED

  def test_a_descent_that_stops_early(self, folder):
    study.save(folder / 'adversarial' / 'sphere_4_8_4', rows(1e-3, forms=('query_key', 'centred')), CELLS)
    assert verdicts(folder)['sphere/reaches'] == NOT_REPRODUCED

  def test_a_centred_row_that_is_longer(self, folder):
    study.save(folder / 'random' / '4_8_4', rows(0.3, centred=1.01), CELLS)
    claim = next(claim for claim in study.claims(study.load(folder), min_rows=10) if claim.id == 'order/centred')
    assert claim.verdict == NOT_REPRODUCED and claim.value == 36.0  # 12 rows against each of three forms

  def test_logits_that_are_no_products(self, folder):
    cells = [{'step': i, 'logits_error': 1e-3, 'loss': 3.0} for i in range(4)]
    study.save(folder / 'trained' / 'learned_0.1', rows(0.2), cells)
    assert verdicts(folder)['trained/products'] == NOT_REPRODUCED

  def test_metrics_are_json(self, folder):
    lines = (folder / 'random' / '4_8_4' / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line)['step'] for line in lines] == [0, 1, 2, 3]
