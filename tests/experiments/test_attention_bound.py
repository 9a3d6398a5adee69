"""The attention-bound study as its users run it: the folder it leaves, what is done again, its mistakes; and each source of its rows."""

import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from configs import attention_bound as configs
from entropy_jax.analysis import attention_bound as study
from entropy_jax.training import app, ranges
from entropy_jax.types import UserError
from experiments import attention_bound as experiment
from tests.experiments.conftest import ROOT, run_here


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """The folder of a finished tiny study."""
  workdir = tmp_path_factory.mktemp('bound') / 'study'
  run_here(experiment, configs.get_config('tiny'), workdir)
  return workdir


class TestStudy:
  def test_folder_keeps_the_contract(self, tiny):
    assert json.loads((tiny / 'config.json').read_text())['min_rows'] == 100_000
    assert 'jax' in (tiny / 'environment.json').read_text()
    searches = [f'adversarial/{search}_4_4_2' for search in experiment.SEARCHES]
    trained = ['trained/learned_0.001', 'trained/learned_0.03', 'trained/rotary_0.03']
    parts = study.load(tiny)
    assert set(parts) == {'tight/layers', 'random/4_8_4', 'random/16_16_8', *trained, *searches}
    assert list(parts['trained/rotary_0.03'].s) == ['query_key', 'centred'] and list(parts['trained/learned_0.03'].s) == list(study.FORMS)

  def test_report_holds_claims_and_figures(self, tiny):
    claims = {claim['id']: claim for claim in json.loads((tiny / 'claims.json').read_text())}
    held = [claims[f'holds/{form}'] for form in study.FORMS]
    assert {claim['value'] for claim in held} == {0.0} and {claim['verdict'] for claim in held} == {'inconclusive'}  # too few rows
    for id in ('tight/attained', 'tight/in_every_form', 'tight/noticed', 'sphere/reaches', 'trained/products'):
      assert claims[id]['verdict'] == 'reproduced', claims[id]
    assert claims['order/centred']['value'] == 0.0
    page = (tiny / 'report.html').read_text()
    assert page.count('data:image/png;base64,') == len(list((tiny / 'figures').glob('*.png'))) == 2

  def test_trained_decoders_are_measured_as_they_learn(self, tiny):
    cells = study.load(tiny)['trained/learned_0.03'].cells
    assert cells['step'].tolist() == [0, 4, 8] and cells['rows'].tolist() == [cells['rows'][0]] * 3
    assert cells['loss'][2] < cells['loss'][0] and cells['logits_error'].max() < 1e-5
    slow = study.load(tiny)['trained/learned_0.001'].cells
    assert slow['loss'][0] == cells['loss'][0] and slow['loss'][2] != cells['loss'][2]

  def test_what_is_missing_is_done_again_to_the_same_bits(self, tiny, tmp_path):
    again = tmp_path / 'study'
    shutil.copytree(tiny, again)
    lost = again / 'random' / '4_8_4'
    whole = {name: (lost / name).read_bytes() for name in ('metrics.jsonl', study.ROWS)}
    (lost / 'metrics.jsonl').unlink()
    (again / 'report.html').unlink()
    kept = {p: p.stat().st_mtime_ns for p in again.rglob(study.ROWS) if p.parent != lost}
    run_here(experiment, configs.get_config('tiny'), again)
    assert whole == {name: (lost / name).read_bytes() for name in whole} and kept == {p: p.stat().st_mtime_ns for p in kept}
    assert (again / 'claims.json').read_bytes() == (tiny / 'claims.json').read_bytes() and (again / 'report.html').exists()

  def test_a_row_below_its_bound_ends_the_run_after_the_report(self, tiny, tmp_path):
    again = tmp_path / 'study'
    shutil.copytree(tiny, again)
    file = again / 'random' / '4_8_4' / study.ROWS
    arrays = dict(np.load(file))
    arrays['entropy'][3] = 0.0
    np.savez_compressed(file, **arrays)
    (again / 'report.html').unlink()
    with pytest.raises(ArithmeticError, match='holds/weights_whole: 1 rows with H <'):
      experiment.main(configs.get_config('tiny'), again)
    assert (again / 'report.html').exists()

  def test_a_mistake_is_one_sentence(self, tmp_path, capsys):
    config = ROOT / 'configs' / 'attention_bound.py'
    with pytest.raises(SystemExit) as caught:
      app.run(experiment.main, ['p', f'--config={config}:tiny', f'--workdir={tmp_path}/run', '--config.random.shapes[0].head_dim=9'])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count('\n') == 1 and 'random.shapes[0].head_dim=9 is more than its width (8)' in said
    assert not (tmp_path / 'run' / 'tight').exists()


class TestConfig:
  @pytest.mark.parametrize('variant', configs.VARIANTS)
  def test_every_key_has_a_row(self, variant):
    config = app.resolve(configs.get_config(variant))
    ranges.check(config, configs.RANGES)
    assert set(config) - {row.split('.')[0] for row in configs.RANGES} == set()

  def test_the_default_has_more_rows_than_asked_for(self):
    # Of each cell of the random source alone, the row of one key in T and about a quarter of those of padded sequences do not count.
    given = configs.get_config().random
    num_rows = sum(2 * len(given.s) * given.rows_per_cell * (1 - 1 / shape['num_tokens']) * 1.75 for shape in given.shapes)
    assert num_rows > configs.get_config().min_rows

  def test_unknown_variant(self):
    with pytest.raises(UserError, match=r"has no variant 'tini'; allowed: tiny, or none\. Did you mean 'tiny'"):
      configs.get_config('tini')


class TestValidate:
  def config(self, **changes):
    config = configs.get_config('tiny')
    config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return config

  @pytest.mark.parametrize('variant, num_parts', [('', 1 + 3 + 4 + 12), ('tiny', 1 + 3 + 2 + 3)])
  def test_shipped(self, variant, num_parts):
    assert len(experiment.validate(configs.get_config(variant))) == num_parts

  @pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
      ({'random__s': (1.0, 100.0)}, 'random.s[1]=100.0 is outside (0, 60]'),
      ({'adversarial__num_snapshots': 7}, 'adversarial.num_snapshots=7 does not divide the batch of 400 steps'),
      ({'trained__num_sequences': 1}, 'trained.num_sequences=1 is outside [2, inf)'),
      ({'trained__decoder__width': 15}, 'trained.decoder: num_heads is 2, which does not divide width (15)'),
      ({'tight__num_tokens': (1, 4)}, 'tight.num_tokens[0]=1 is outside [2, inf)'),
    ],
  )
  def test_mistakes(self, changes, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
      experiment.validate(self.config(**changes))

  @pytest.mark.parametrize(
    'name, value', [('linear', 'sigma_reparam'), ('qk_norm', 'rms'), ('qkv_bias', True), ('logit_cap', 5.0), ('positions', 'learned')]
  )
  def test_decoders_that_the_theorem_is_not_about(self, name, value):
    config = self.config()
    config.trained.decoder[name] = value
    with pytest.raises(UserError, match=f'trained.decoder: {name} is .*leave it out'):
      experiment.validate(config)

  def test_shapes(self):
    config = self.config()
    config.random.shapes = [{'num_tokens': 4, 'width': 8}]
    with pytest.raises(UserError, match=r'random\.shapes\[0\] has the names num_tokens, width; give num_tokens, width, head_dim'):
      experiment.validate(config)
    config.random.shapes = [{'num_tokens': 1, 'width': 8, 'head_dim': 4}]
    with pytest.raises(UserError, match=r'random\.shapes\[0\]\.num_tokens=1 is outside \[2, inf\)'):
      experiment.validate(config)


class TestMeasure:
  @pytest.mark.parametrize('is_causal', [False, True])
  def test_numpy_with_padding(self, is_causal):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3)).astype(np.float32)
    query, key = rng.normal(size=(2, 3, 2, 3)).astype(np.float32)
    real = np.array([[True] * 5, [False, False, True, True, True]])
    rows = jax.jit(experiment.measure, static_argnames='is_causal')(x, query, key, jnp.array(real), is_causal=is_causal)[0]
    rows = {name: np.asarray(value) for name, value in rows.items()}
    for b, h, i in np.ndindex(2, 2, 5):
      seen = [j for j in range(5) if real[b, j] and (j <= i or not is_causal)]
      assert rows['counted'][b, h, i] == (real[b, i] and len(seen) > 1)
      if not rows['counted'][b, h, i]:
        continue
      a = x[b, i] @ query[:, h] @ (x[b, seen] @ key[:, h]).T / math.sqrt(3)
      sigma = np.linalg.norm(key[:, h] @ query[:, h].T, 2) / math.sqrt(3)
      want = {
        'num_keys': len(seen),
        'entropy': scipy.stats.entropy(np.exp(a - a.max())),
        'weights_whole': sigma * np.linalg.norm(x[b, real[b]], 2) ** 2,
        'weights': sigma * np.linalg.norm(x[b, seen], 2) ** 2,
        'query_key': np.linalg.norm(x[b, i] @ query[:, h]) * np.linalg.norm(x[b, seen] @ key[:, h], 2) / math.sqrt(3),
        'centred': np.linalg.norm(a - a.mean()),
      }
      for name, value in want.items():
        np.testing.assert_allclose(rows[name][b, h, i], value, rtol=2e-5, err_msg=name)


class TestAtRandom:
  def test_s_is_that_of_the_cell(self):
    settings = {'num_sequences': 2, 'num_heads': 2, 'rows_per_cell': 40, 's': (0.5, 10.0), 'spread': 1.0}
    measured, cells = experiment.at_random(jax.random.key(0), settings, num_tokens=6, width=4, head_dim=3)
    s_C = np.array([cell['s'] for cell in cells])
    np.testing.assert_allclose(measured['weights_whole'], s_C[:, None] * np.ones((8, 48)), rtol=1e-4)
    kinds = [(cell['is_causal'], cell['is_padded']) for cell in cells]
    assert sorted(set(kinds)) == [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]
    for i, (is_causal, is_padded) in enumerate(kinds):
      share = measured['counted'][i].mean()
      assert share == ((5 / 6) if is_causal else 1.0) if not is_padded else share < 1.0
      assert np.all(measured['weights'][i] <= measured['weights_whole'][i] * (1 + 1e-5))


class TestDescend:
  @pytest.mark.parametrize('search', experiment.SEARCHES)
  def test_entropy_falls_and_s_stays(self, search):
    settings = {'num_starts': 2, 's': (2.0,), 'num_steps': 60, 'num_snapshots': 2, 'learning_rate': 0.1}
    measured, cells = experiment.descend(jax.random.key(1), settings, search=search, num_tokens=5, width=4, head_dim=2)
    entropy = measured['entropy'].reshape(2, 3, -1)  # starts, snapshots, rows
    objective = np.log(entropy[..., 0]) if search == 'tokens' else np.log(entropy).mean(-1)
    assert np.all(np.diff(objective, axis=1) < 0) and [cell['s'] for cell in cells] == [2.0]
    s = measured['query_key' if search == 'sphere' else 'weights']
    np.testing.assert_allclose(s, np.full(s.shape, 2.0), rtol=1e-4)


class TestUnigrams:
  def test_each_sequence_has_its_own_distribution(self):
    tokens = experiment.unigrams(0, 200, 64, vocab_size=8, concentration=0.3)
    assert tokens.shape == (200, 64) and tokens.min() >= 0 and tokens.max() <= 7
    share_BxV = np.stack([(tokens == v).mean(axis=1) for v in range(8)], axis=1)
    # All tokens are as likely; within a sequence E sum_v p_v^2 = (a + 1) / (V a + 1) = 1.3 / 3.4, and 1 / 64 of the rest by sampling.
    np.testing.assert_allclose(share_BxV.mean(axis=0), np.full(8, 1 / 8), atol=0.05)
    want = 1.3 / 3.4
    np.testing.assert_allclose((share_BxV**2).sum(axis=1).mean(), want + (1 - want) / 64, atol=0.03)
    np.testing.assert_array_equal(tokens, experiment.unigrams(0, 200, 64, vocab_size=8, concentration=0.3))
