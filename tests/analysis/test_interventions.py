"""The interventions study judged on made curves whose answers are known."""

import json

import numpy as np
import pytest

from entropy_jax.analysis import interventions, mechanism
from entropy_jax.analysis.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, Above, Null, read_claims
from entropy_jax.analysis.forest import Effect
from entropy_jax.analysis.interventions import ANSWERS, HIGHER, LOWER, MISSED, OPEN, PASS, SAME
from entropy_jax.analysis.predictions import Prediction

SEEDS, STEPS, LEVEL = 5, 40, 0.6
SETTING = 'fork_tokens/epochs_4'


def curve(seed: int, *, gain: float = 0.0, slow: float = 1.0, top: float = 0.95) -> dict[str, np.ndarray]:
  """One seed: success rises in a straight line to `top`, `slow` times as late; entropy falls from 2 by the success, plus the gain."""
  noise = 0.003 * np.random.default_rng(seed).normal()
  success = np.minimum(np.linspace(0.0, top, STEPS + 1) / slow, top)
  entropy = 2.0 - success + gain + noise
  return {
    'step': np.arange(STEPS + 1),
    mechanism.SUCCESS: success,
    mechanism.ALL: entropy,
    mechanism.FORK: entropy - gain,  # whatever is gained lies off the forks
    mechanism.SETTLED: entropy + gain,
    ANSWERS: 2.0 * entropy,
    PASS: 1 - (1 - success) ** 16,
  }


def made(**methods: dict) -> interventions.Setting:
  """A setting of GRPO and methods, each from the arguments of `curve`."""
  found = {name: [curve(k, **given) for k in range(SEEDS)] for name, given in ({'grpo': {}} | methods).items()}
  return interventions.Setting(SETTING, LEVEL, found, 4, 16)


class TestEffect:
  def test_pairs_seeds(self):
    base_R = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    found = interventions.effect(base_R + 0.5, base_R)
    assert found == Effect(0.5, (0.5, 0.5))  # the spread of the seeds cancels

  def test_a_seed_that_never_got_there_leaves_no_effect(self):
    found = interventions.effect(np.array([1.0, np.nan]), np.zeros(2))
    assert np.isnan(found.value) and np.isnan(found.interval[0])


class TestJudged:
  @pytest.mark.parametrize(
    ('interval', 'verdict'),
    [((0.1, 0.3), HIGHER), ((-0.3, -0.1), LOWER), ((0.01, 0.04), SAME), ((-0.04, 0.05), SAME), ((-0.02, 0.3), OPEN), ((0.01, 0.3), HIGHER)],
  )
  def test_is_where_the_interval_lies(self, interval, verdict):
    assert interventions.judged(Effect(0.0, interval), 5) == verdict

  def test_few_seeds_decide_nothing(self):
    assert interventions.judged(Effect(0.2, (0.1, 0.3)), 4) == OPEN
    assert interventions.judged(Effect(float('nan'), (float('nan'),) * 2), 5) == MISSED


class TestRows:
  def test_rank_verdict_and_where_the_gain_lies(self):
    setting = made(keeps={'gain': 0.2}, spends={'gain': -0.3}, idle={}, late={'slow': 1.5}, never={'top': 0.5})
    rows = {row.method: row for row in interventions.rows(setting)}
    assert list(rows) == ['keeps', *[m for m in rows if m in ('grpo', 'idle', 'late')], 'spends', 'never']
    assert {m: rows[m].verdict for m in rows} == {
      'keeps': HIGHER, 'grpo': '', 'idle': SAME, 'late': SAME, 'spends': LOWER, 'never': MISSED,
    }  # fmt: skip
    assert rows['keeps'].difference.value == pytest.approx(0.2) and rows['keeps'].other.value == pytest.approx(0.0, abs=1e-9)
    assert (rows['keeps'].improvement, rows['spends'].improvement) == (1.0, 0.0)
    assert rows['never'].num_reached == 0 and np.isnan(rows['never'].at_match['entropy'])

  def test_speed_does_not_count_and_is_shown(self):
    rows = {row.method: row for row in interventions.rows(made(late={'slow': 1.5}))}
    # Success .6 on a line to .95 over 40 rollouts: rollout 25.263; one and a half times as late.
    assert rows['grpo'].at_match['rollouts'] == pytest.approx(40 * 0.6 / 0.95)
    assert rows['late'].at_match['rollouts'] == pytest.approx(1.5 * 40 * 0.6 / 0.95)
    assert rows['late'].difference.value == pytest.approx(0.0, abs=1e-9)


class TestRanked:
  def test_columns_and_costs(self):
    table = interventions.ranked(made(keeps={'gain': 0.2}))
    assert all(len(row) == len(table.header) for row in table.rows)
    first = dict(zip(table.header, table.rows[0], strict=True))
    assert (first['rank'], first['method'], first['against GRPO'], first['seeds there']) == (1, 'keeps', HIGHER, '5 of 5')
    rollouts = 40 * 0.6 / 0.95
    assert first['updates to reach it'] == pytest.approx(4 * rollouts)
    assert first['thousand tokens to reach it'] == pytest.approx(rollouts * 16 * 16 * 6 / 1000)  # 16 prompts, 16 responses, 6 tokens
    assert first['elsewhere, at success 0.6'] - first['at forks, at success 0.6'] == pytest.approx(2 * 0.2)


class TestClaims:
  def predict(self, criterion, method='keeps', metric='entropy', against='grpo'):
    return Prediction(method, 'It does.', metric, criterion, (SETTING,), against)

  def test_verdicts(self):
    setting = made(keeps={'gain': 0.2}, idle={}, late={'slow': 1.5})
    asked = [
      self.predict(Above(0.05)),
      self.predict(Above(0.05), 'idle'),
      self.predict(Null(0.05), 'idle'),
      self.predict(Above(0.0), 'late', 'rollouts'),
      self.predict(Above(0.1), 'keeps', against='idle'),
    ]
    found = [claim.verdict for claim in interventions.claims([setting], asked[:1] + asked[3:])]
    assert found == [REPRODUCED, REPRODUCED, REPRODUCED]
    assert [interventions.claims([setting], [p])[0].verdict for p in asked[1:3]] == [NOT_REPRODUCED, REPRODUCED]

  def test_what_was_not_run_is_not_judged(self):
    asked = [self.predict(Above(0.0), 'absent'), self.predict(Above(0.0), against='absent')]
    assert interventions.claims([made(keeps={'gain': 0.2})], asked) == []
    other = Prediction('keeps', 'It does.', 'entropy', Above(0.0), ('mod_sum/epochs_1',))
    assert interventions.claims([made(keeps={'gain': 0.2})], [other]) == []

  def test_success_never_reached_decides_nothing(self):
    (claim,) = interventions.claims([made(keeps={'gain': 0.2, 'top': 0.5})], [self.predict(Above(0.0))])
    assert claim.verdict == INCONCLUSIVE and np.isnan(claim.value)


class TestSample:
  def test_metrics_of_the_whole_curve(self):
    setting = made(keeps={'gain': 0.2})
    for k, value in enumerate(interventions.sample(setting, 'keeps', 'final_entropy')):
      assert value == pytest.approx(curve(k, gain=0.2)[mechanism.ALL][-1])
    np.testing.assert_allclose(interventions.sample(setting, 'keeps', 'final_success'), 0.95)
    np.testing.assert_allclose(interventions.sample(setting, 'keeps', 'pass_at_16_change'), 1 - 0.05**16)
    # The last 8 of 41 points: success .95 (33 .. 40) / 40, mean .95 * 36.5 / 40 = .866875; 2 + .2 - that = 1.333, .067 from 1.4.
    np.testing.assert_allclose(interventions.sample(setting, 'keeps', 'target_error'), 0.066875, atol=0.02)
    np.testing.assert_allclose(interventions.sample(setting, 'grpo', 'relative_fall'), 0.95 / 2, atol=0.005)


class TestAtHalfGain:
  def test_level_is_the_middle_of_the_baseline(self):
    step = np.arange(5)
    nan = np.nan
    base = {'step': step, 'eval/success': np.array([0.2, nan, 0.3, nan, 0.4]), 'eval/entropy': np.array([2.0, nan, 1.5, nan, 1.0])}
    fast = base | {'eval/success': np.array([0.2, nan, 0.4, nan, 0.6])}
    assert interventions.at_half_gain(base, base) == pytest.approx(1.5)  # success .3
    assert interventions.at_half_gain(fast, base) == pytest.approx(1.75)  # .3 lies halfway to its second point


def write_run(folder, run):
  folder.mkdir(parents=True)
  rows = [{name: float(values[i]) if name != 'step' else int(values[i]) for name, values in run.items()} for i in range(len(run['step']))]
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))


class TestReport:
  def test_a_folder_becomes_a_report(self, tmp_path):
    lines = {'grpo': 'grpo', 'clip_b': 'grpo + clip_b(mu=1.0)'}
    config = {
      'lines': lines,
      'objective': None,
      'tabular': {'num_seeds': SEEDS, 'fork_tokens': {'matched_success': LEVEL, 'group_size': 16}},
      'countdown': {'num_seeds': 0},
    }
    (tmp_path / 'config.json').write_text(json.dumps(config))
    (tmp_path / 'environment.json').write_text('{"jax": "0"}')
    for name, gain in {'grpo': 0.0, 'clip_b': 0.2}.items():
      for k in range(SEEDS):
        write_run(tmp_path / 'tabular' / SETTING / name / f'seed_{k}', curve(k, gain=gain))
    found = {claim.id: claim.verdict for claim in interventions.report(tmp_path)}
    assert found == {f'{SETTING}/clip_b_entropy': REPRODUCED}
    assert [claim.id for claim in read_claims(tmp_path / 'claims.json')] == list(found)
    record = json.loads((tmp_path / 'comparison.json').read_text())
    assert list(record) == list(lines) and record['clip_b']['objective'] == lines['clip_b'] and record['grpo']['entropy'] == {}
    assert record['clip_b']['entropy'][SETTING] == {'value': 0.2, 'interval': [0.2, 0.2], 'verdict': HIGHER}
    (claim,) = record['clip_b']['claims']
    assert (claim['setting'], claim['verdict']) == (SETTING, REPRODUCED) and claim['statement'].startswith('Clip_B keeps')
    page = (tmp_path / 'report.html').read_text()
    for text in ('Clip_B keeps more entropy', 'grpo + clip_b(mu=1.0)', 'there is no reference policy', 'against GRPO', 'P(above GRPO)'):
      assert text in page, text
    assert len(list((tmp_path / 'figures').glob('*.png'))) == 2
