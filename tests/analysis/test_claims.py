"""Criteria give the verdict that the interval supports, and claims.json has the fields of the contract."""

import dataclasses
import json

import numpy as np
import pytest

from entropy_jax.analysis import claims as C
from entropy_jax.analysis import statistics
from entropy_jax.types import UserError

NAN, INF = float('nan'), float('inf')
WORDS = {'paper': 'Cui et al., arXiv 2505.22617', 'statement': 'KL-Cov keeps entropy.', 'metric': 'entropy (nats)'}
SAMPLES = np.array([1.0, 1.1, 0.9, 1.05, 0.97])


def claim(**changes):
  fields = {
    'id': 'a', **WORDS, 'value': 1.0, 'interval': (0.5, 1.5), 'baseline': 'grpo', 'criterion': 'above 0',
    'verdict': C.REPRODUCED,
  }  # fmt: skip
  return C.Claim(**fields | changes)


class TestCriteria:
  @pytest.mark.parametrize(
    'criterion, interval, verdict',
    [
      (C.Above(0.5), (0.6, 0.9), C.REPRODUCED),
      (C.Above(0.5), (0.5, 0.9), C.INCONCLUSIVE),  # 0.5 itself is not above
      (C.Above(0.5), (0.4, 0.6), C.INCONCLUSIVE),
      (C.Above(0.5), (0.1, 0.5), C.NOT_REPRODUCED),
      (C.Above(0.0), (0.0, 0.0), C.NOT_REPRODUCED),
      (C.Below(0.5), (0.1, 0.4), C.REPRODUCED),
      (C.Below(0.5), (0.4, 0.6), C.INCONCLUSIVE),
      (C.Below(0.5), (0.5, 0.6), C.NOT_REPRODUCED),
      (C.Between(0.2, 0.4), (0.2, 0.4), C.REPRODUCED),
      (C.Between(0.2, 0.4), (0.3, 0.5), C.INCONCLUSIVE),
      (C.Between(0.2, 0.4), (0.1, 0.5), C.INCONCLUSIVE),
      (C.Between(0.2, 0.4), (0.41, 0.5), C.NOT_REPRODUCED),
      (C.Between(0.2, 0.4), (0.0, 0.19), C.NOT_REPRODUCED),
      (C.Null(0.1), (-0.05, 0.1), C.REPRODUCED),
      (C.Null(0.1), (-0.2, 0.2), C.INCONCLUSIVE),  # wide: absence is not shown
      (C.Null(0.1), (0.11, 0.2), C.NOT_REPRODUCED),
    ],
  )
  def test_verdict(self, criterion, interval, verdict):
    assert criterion.verdict(sum(interval) / 2, interval) == verdict

  @pytest.mark.parametrize('criterion', [C.Above(0.5), C.Below(0.5), C.Between(0.0, 1.0), C.Null(1.0)])
  @pytest.mark.parametrize(
    'value, interval', [(NAN, (0.6, 0.7)), (0.6, (NAN, NAN)), (INF, (0.6, INF)), (0.6, (-INF, 1.0))]
  )
  def test_not_finite_is_inconclusive(self, criterion, value, interval):
    assert criterion.verdict(value, interval) == C.INCONCLUSIVE

  def test_text_says_the_rule(self):
    assert C.Above(0.02).text == '95 % interval entirely above 0.02'
    assert C.Below(1.0).text == '95 % interval entirely below 1'
    assert C.Between(0.9, 1.1).text == '95 % interval inside [0.9, 1.1]'
    assert C.Null(0.02).text == 'expected null: 95 % interval inside [-0.02, 0.02]'

  def test_empty_criteria_are_refused(self):
    with pytest.raises(UserError, match='low must be less than high'):
      C.Between(1.0, 1.0)
    with pytest.raises(UserError, match='must be positive'):
      C.Null(0.0)


class TestDecide:
  def test_one_group(self):
    found = C.decide(id='x', **WORDS, samples=SAMPLES, criterion=C.Above(0.5))
    assert found.value == pytest.approx(SAMPLES.mean())
    assert found.interval == statistics.bootstrap_interval(SAMPLES)
    assert found.verdict == C.REPRODUCED and found.baseline == ''
    assert found.criterion == '95 % interval entirely above 0.5, at least 5 seeds'

  def test_paired(self):
    baseline = np.array([0.5, 0.65, 0.4, 0.5, 0.5])
    found = C.decide(id='x', **WORDS, samples=SAMPLES, paired_with=baseline, baseline='grpo', criterion=C.Above(0.6))
    assert found.value == pytest.approx(np.mean(SAMPLES - baseline))
    assert found.interval == statistics.paired_difference_interval(SAMPLES, baseline)
    assert found.verdict == C.NOT_REPRODUCED and found.baseline == 'grpo'

  def test_statistic_and_bounds(self):
    samples = np.array([0.99, 1.0, 0.98, 0.7, 1.0])
    found = C.decide(
      id='x', **WORDS, samples=samples, statistic=statistics.interquartile_mean, bounds=(0.0, 1.0),
      criterion=C.Above(0.5),
    )  # fmt: skip
    assert found.value == pytest.approx((0.98 + 0.99 + 1.0) / 3) and found.interval[1] <= 1.0

  def test_too_few_seeds_are_inconclusive(self):
    few = C.decide(id='x', **WORDS, samples=SAMPLES[:4], criterion=C.Above(0.0))
    assert few.verdict == C.INCONCLUSIVE and np.isfinite(few.interval).all()
    assert C.decide(id='x', **WORDS, samples=SAMPLES[:4], criterion=C.Above(0.0), min_samples=4).verdict == C.REPRODUCED
    assert np.isnan(C.decide(id='x', **WORDS, samples=np.array([]), criterion=C.Above(0.0)).value)

  def test_a_seed_that_never_arrived_is_inconclusive(self):
    found = C.decide(id='x', **WORDS, samples=np.where(np.arange(5) == 2, NAN, SAMPLES), criterion=C.Above(0.0))
    assert np.isnan(found.value) and np.isnan(found.interval).all() and found.verdict == C.INCONCLUSIVE

  def test_other_seeds_are_refused(self):
    with pytest.raises(UserError, match='claim x pairs 5 seeds with 4'):
      C.decide(id='x', **WORDS, samples=SAMPLES, paired_with=SAMPLES[:4], criterion=C.Above(0.0))

  def test_judge_takes_an_interval_made_elsewhere(self):
    found = C.judge(id='x', **WORDS, value=np.float32(0.5), interval=(np.float32(0.25), 0.75), criterion=C.Above(0.0))
    assert found == claim(
      id='x', value=0.5, interval=(0.25, 0.75), baseline='', criterion='95 % interval entirely above 0'
    )


class TestClaim:
  def test_is_frozen_and_checked(self):
    with pytest.raises(dataclasses.FrozenInstanceError):
      claim().value = 2.0
    with pytest.raises(UserError, match="verdict 'maybe'"):
      claim(verdict='maybe')
    with pytest.raises(UserError, match='empty id'):
      claim(id='')


class TestWriteAndReadClaims:
  def test_round_trip_and_fields_of_the_contract(self, tmp_path):
    written = [claim(id='a'), claim(id='b', verdict=C.INCONCLUSIVE, baseline='')]
    C.write_claims(tmp_path / 'run' / 'claims.json', written)
    assert C.read_claims(tmp_path / 'run' / 'claims.json') == written
    rows = json.loads((tmp_path / 'run' / 'claims.json').read_text())
    names = ['id', 'paper', 'statement', 'metric', 'value', 'interval', 'baseline', 'criterion', 'verdict']
    assert [list(row) for row in rows] == [names, names]
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['claims.json']

  def test_not_finite_is_null(self, tmp_path):
    path = tmp_path / 'claims.json'
    C.write_claims(path, [claim(value=NAN, interval=(-INF, NAN), verdict=C.INCONCLUSIVE)])
    row = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f'{name} is no JSON'))[0]
    assert row['value'] is None and row['interval'] == [None, None]
    found = C.read_claims(path)[0]
    assert np.isnan(found.value) and np.isnan(found.interval).all()

  def test_ids_are_unique_and_nothing_is_lost(self, tmp_path):
    path = tmp_path / 'claims.json'
    C.write_claims(path, [claim()])
    with pytest.raises(UserError, match='claim id a occurs twice'):
      C.write_claims(path, [claim(), claim()])
    assert C.read_claims(path) == [claim()]

  @pytest.mark.parametrize('content', ['{', '[{"id": "a"}]', '[1]', '{"id": "a"}', '"text"'])
  def test_damage_is_an_error(self, tmp_path, content):
    (tmp_path / 'claims.json').write_text(content)
    with pytest.raises(UserError, match='is damaged'):
      C.read_claims(tmp_path / 'claims.json')

  def test_damaged_values_and_absent_file(self, tmp_path):
    C.write_claims(tmp_path / 'claims.json', [claim()])
    rows = json.loads((tmp_path / 'claims.json').read_text())
    for bad in ({'interval': [1]}, {'interval': None}, {'value': 'high'}):
      (tmp_path / 'claims.json').write_text(json.dumps([rows[0] | bad]))
      with pytest.raises(UserError, match='is damaged'):
        C.read_claims(tmp_path / 'claims.json')
    with pytest.raises(UserError, match='does not exist'):
      C.read_claims(tmp_path / 'absent.json')
