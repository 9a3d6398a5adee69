"""Tests of entropy_jax.catalog and entropy_jax.presets: the table and the tree agree one to one, and named data makes objectives."""

import ast
import importlib
import inspect
import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs.interventions import LINES
from entropy_jax import catalog, compose, document, presets
from entropy_jax.catalog import CATALOG, ROOMS
from entropy_jax.training.tables import ABSENT
from entropy_jax.transform import Method
from entropy_jax.types import Room, RunFacts, UserError
from tests import helpers

ROOT = pathlib.Path(__file__).resolve().parent.parent
SURROGATE = {'surrogates': [{'name': 'ppo_clip', 'kwargs': {'high': 0.28}}]}


def public_lifts() -> dict[str, tuple[str, Method]]:
  """name -> (room's folder, method) of everything that a methods room exports and that is a lift."""
  found = {}
  for folder in sorted((ROOT / 'entropy_jax' / 'methods').iterdir()):
    if (folder / '__init__.py').exists():
      room = importlib.import_module(f'entropy_jax.methods.{folder.name}')
      found |= {name: (folder.name, getattr(room, name)) for name in room.__all__ if isinstance(getattr(room, name), Method)}
  return found


def camel_case(name: str) -> str:
  return ''.join(part.capitalize() for part in name.split('_'))


class TestCatalog:
  """Catalog, public lifts, METHODS.md and test classes, one to one."""

  def test_lists_every_public_lift_in_its_room(self):
    lifts = public_lifts()
    assert set(lifts) == set(CATALOG)
    for name, (folder, method) in lifts.items():
      entry = CATALOG[name]
      assert entry.factory is method and entry.name == method.name == name
      assert entry.room == folder and ROOMS[folder] == method.room

  def test_rooms_stand_in_the_order_of_the_data(self):
    assert list(ROOMS.values()) == sorted(Room)
    assert [entry.factory.room for entry in CATALOG.values()] == sorted(entry.factory.room for entry in CATALOG.values())
    assert len(CATALOG) == sum(map(len, catalog._TABLES))

  def test_every_method_has_its_test_class(self):
    classes = [
      (path.parent.name, node.name)
      for path in (ROOT / 'tests' / 'methods').rglob('test_*.py')
      for node in ast.walk(ast.parse(path.read_text()))
      if isinstance(node, ast.ClassDef)
    ]
    for name, entry in CATALOG.items():
      expected = (entry.room, f'Test{camel_case(name)}')
      assert classes.count(expected) == 1, f'tests/methods/{entry.room} has {classes.count(expected)} classes {expected[1]}'

  def test_methods_md_is_generated(self):
    assert (ROOT / 'METHODS.md').read_text() == document.markdown(), 'run `make docs`'

  def test_methods_md_lists_every_method_with_its_hyper_parameters(self):
    objective = document.markdown().split('\n## Samplers\n')[0]
    lines = {line.split('`')[1]: line for line in objective.splitlines() if line.startswith('| `')}
    assert list(lines) == list(CATALOG)
    for name, entry in CATALOG.items():
      assert all(f'`{key} ' in lines[name] for key in entry.factory.defaults())
      assert len(re.findall(r'(?<!\\)\|', lines[name])) == 8, 'seven cells, every other bar escaped'

  def test_methods_md_shows_what_the_study_found(self):
    record = {
      'entropy': {
        'a/epochs_4': {'value': 0.25, 'interval': [0.1, 0.4], 'verdict': 'higher'},
        'b/epochs_1': {'value': None, 'interval': [None, None], 'verdict': 'not reached'},
      },
      'claims': [
        {'statement': 'Keeps.', 'setting': 'a/epochs_4', 'verdict': 'reproduced'},
        {'statement': 'Keeps.', 'setting': 'b/epochs_1', 'verdict': 'inconclusive'},
      ],
    }
    nothing = {'entropy': {}, 'claims': []}
    text = document.markdown({'grpo': {'objective': 'grpo', **nothing}, 'ter_low': {'objective': 'grpo + ter(target=0.5)', **record}})
    found = {line.split('`')[1]: line.split(' | ')[-1] for line in text.splitlines() if line.startswith('| `')}
    assert found['ter'] == (
      '`ter_low`<br>a/epochs_4: +0.250 [0.100, 0.400] higher<br>b/epochs_1: not reached<br>'
      '"Keeps." reproduced (a/epochs_4), inconclusive (b/epochs_1) |'
    )
    assert found['grpo'] == found['ppo_clip'] == '`grpo` |' and found['clip_cov'] == ' |'

  def test_every_line_of_the_study_is_beside_a_method(self):
    comparison = json.loads(document.COMPARISON.read_text())
    assert {name: record['objective'] for name, record in comparison.items()} == LINES, 'run the study anew, and copy comparison.json'

  @pytest.mark.parametrize('name', CATALOG)
  def test_hyper_parameters_have_ranges(self, name: str):
    method = CATALOG[name].factory
    for key, default in method.defaults().items():
      assert key in method.ranges or isinstance(default, bool), f'{name}: {key} is a number or a choice without a range'

  @pytest.mark.parametrize('name', CATALOG)
  def test_docstrings_are_complete_and_agree_on_the_paper(self, name: str):
    entry = CATALOG[name]
    text = inspect.getdoc(entry.function) or ''
    for section in ('Args:', 'Returns:', 'Gradient:'):
      assert section in text, f'{name}: no {section}'
    for paper in re.findall(r'arXiv (\S+?)(?:,|$)', entry.reference):
      assert paper in text, f'{name}: the catalog cites {paper}, the docstring does not'
    assert ('UNCONFIRMED' in text) is not entry.confirmed

  def test_prints_methods_md(self):
    run = subprocess.run([sys.executable, '-m', 'entropy_jax.document'], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == (ROOT / 'METHODS.md').read_text()

  @pytest.mark.parametrize('name', CATALOG)
  def test_lines_run_where_the_document_says(self, name: str):
    entry = CATALOG[name]
    spec = compose.parse(document.line(entry))
    assert any(m['name'] == name and m['kwargs'] == dict(entry.example) for m in spec[entry.room])
    compose.objective(spec)
    if entry.factory.reads & ABSENT:
      with pytest.raises(UserError, match='does not provide'):
        catalog.check_reads(spec, ABSENT)
    else:
      catalog.check_reads(spec, ABSENT)

  def test_unconfirmed_methods_say_so(self, monkeypatch: pytest.MonkeyPatch):
    guess = catalog.Entry(CATALOG['grpo'].factory, 'A', 'nobody', confirmed=False)
    monkeypatch.setattr(document, 'CATALOG', {'grpo': guess})
    objective = document.markdown().split('\n## Samplers\n')[0]
    assert '| UNCONFIRMED |' in objective and '| confirmed |' not in objective


class TestBuild:
  def test_rooms_come_in_their_order_whatever_the_keys(self):
    spec = {
      'aggregate': 'token_sum_over_constant',
      'constant': 100.0,
      'regularizers': [{'name': 'kl_cov', 'kwargs': {'fraction': 2e-3}}, {'name': 'kl', 'kwargs': {'name': 'anchor', 'coef': 0.1}}],
      **SURROGATE,
      'weights': [],
      'advantages': [{'name': 'grpo'}],
    }
    objective = catalog.build(spec)
    assert [t.name for t in objective.transforms] == ['grpo', 'ppo_clip', 'kl_cov', 'anchor']
    assert objective.aggregate == 'token_sum_over_constant'

  def test_defaults(self):
    assert catalog.build(SURROGATE).aggregate == 'token_mean'

  def test_kwargs_arrive(self):
    batch = helpers.token_batch()
    losses = []
    for low in (0.0, 0.2):
      objective = catalog.build({'surrogates': [{'name': 'ppo_clip', 'kwargs': {'low': low}}]})
      losses.append(float(objective.loss(objective.plan(objective.init(batch), batch)[0], batch).compute()))
    assert losses[0] != losses[1]

  def refused(self, spec) -> str:
    with pytest.raises(UserError) as error:
      catalog.build(spec)
    assert '\n' not in str(error.value) and str(error.value).endswith(('.', '?'))
    return str(error.value)

  def test_unknown_room(self):
    assert self.refused({**SURROGATE, 'regularisers': []}) == (
      "objective: unknown key 'regularisers'; allowed: rewards, advantages, weights, surrogates, regularizers, aggregate, constant. "
      "Did you mean 'regularizers'?"
    )

  def test_unknown_method(self):
    message = self.refused({**SURROGATE, 'advantages': [{'name': 'gropo'}]})
    assert message == "objective: advantages[0]: there is no method 'gropo'. Did you mean 'grpo'?"
    assert 'This room has soft_overlong, kl_in_reward,' in self.refused({**SURROGATE, 'rewards': [{'name': 'zzzzzz'}]})

  def test_wrong_room(self):
    message = self.refused({**SURROGATE, 'weights': [{'name': 'kl_cov'}]})
    assert message == "objective: weights[0]: 'kl_cov' stands in the wrong room; move it to regularizers."

  def test_unknown_key_of_a_method(self):
    message = self.refused({'surrogates': [{'name': 'ppo_clip', 'high': 0.28}]})
    assert message == "objective: surrogates[0] has the unknown key 'high'; allowed: name, kwargs (hyper-parameters belong in kwargs)."

  def test_unknown_hyper_parameter(self):
    message = self.refused({'surrogates': [{'name': 'ppo_clip', 'kwargs': {'hihg': 0.28}}]})
    assert message.startswith("ppo_clip: unknown hyper-parameter 'hihg'; allowed: ") and message.endswith("Did you mean 'high'?")

  def test_out_of_range(self):
    message = self.refused({**SURROGATE, 'weights': [{'name': 'top_entropy', 'kwargs': {'keep': 20}}]})
    assert message == 'top_entropy: keep=20 is outside (0, 1]; give a value in that interval.'

  @pytest.mark.parametrize('given', ['grpo', {'kwargs': {}}, 3])
  def test_not_a_method(self, given):
    assert self.refused({**SURROGATE, 'advantages': [given]}).startswith(f'objective: advantages[0]={given!r} is not a method; write')

  def test_not_a_list(self):
    assert self.refused({'surrogates': 'ppo_clip'}).startswith("objective: surrogates='ppo_clip' is not a list of methods; write")
    assert self.refused({'surrogates': {'name': 'ppo_clip'}}).startswith('objective: surrogates={')

  def test_not_a_dict(self):
    assert self.refused([SURROGATE]).endswith('is not a dict of rooms; write {room: [{name: ..., kwargs: ...}]}.')
    assert self.refused({'surrogates': [{'name': 'reinforce', 'kwargs': [1]}]}).startswith('objective: surrogates[0]: kwargs=[1] of')

  def test_what_the_chain_refuses(self):
    assert self.refused({}) == 'objective: exactly one surrogate is needed, and 0 were given in nothing.'
    assert self.refused({**SURROGATE, 'aggregate': 'mean'}).startswith("objective: aggregate='mean' is not one of")


class TestBuildOfOddData:
  @pytest.mark.parametrize(
    ('spec', 'sentence'),
    [
      ({'surrogates': [{'name': ['ppo_clip']}]}, r"surrogates\[0\]: there is no method \['ppo_clip'\]"),
      ({'surrogates': [{'name': None}]}, r'surrogates\[0\]: there is no method None'),
      ({'surrogates': [{'name': 'ppo_clip', 'kwargs': {3: 0.2}}]}, r'3 is no hyper-parameter of ppo_clip; allowed: low, high,'),
      (SURROGATE | {'aggregate': ['token_mean']}, r"aggregate=\['token_mean'\] is not one of token_mean,"),
      (SURROGATE | {'aggregate': None}, r'aggregate=None is not one of token_mean,'),
      ({'rewards': [{'name': 'soft_overlong', 'kwargs': {'max_length': 3, 'buffer': 4}}]}, r'buffer=4 exceeds max_length=3'),
    ],
  )  # fmt: skip
  def test_is_refused_in_a_sentence(self, spec, sentence):
    with pytest.raises(UserError, match=sentence):
      catalog.build(spec)


class TestCheckReads:
  def test_refuses_what_the_run_does_not_provide(self):
    spec = SURROGATE | {'advantages': [{'name': 'grpo'}], 'regularizers': [{'name': 'kl'}]}
    catalog.check_reads(spec, {'value_BxT'})
    with pytest.raises(UserError) as error:
      catalog.check_reads(spec, {'ref_logp_BxT'})
    assert str(error.value) == (
      'objective: regularizers: kl reads ref_logp_BxT, which this run does not provide; leave kl out.'
    )

  def test_refuses_advantages_that_nothing_makes(self):
    with pytest.raises(UserError, match=r'surrogates: ppo_clip reads advantages, and advantages=\[\] makes none; give one, such as'):
      catalog.check_reads(SURROGATE, ())


class TestPreset:
  @pytest.mark.parametrize('name', presets.PRESETS)
  def test_builds_and_runs(self, name: str):
    preset = presets.preset(name)
    objective = preset.objective(max_length=6 if name == 'dr_grpo' else None)
    batch = helpers.token_batch()

    @jax.jit
    def loss(logp_BxT):
      prepared, state, _ = objective.prepare(objective.init(batch), batch.replace(logp_BxT=logp_BxT))
      planned, _, _ = objective.plan(state, prepared)
      return objective.loss(planned, prepared).compute()

    value, gradient = jax.value_and_grad(loss)(batch.logp_BxT)
    assert np.isfinite(value) and np.isfinite(gradient).all() and np.any(gradient)
    assert preset.source.endswith('.')

  def test_covariance_presets_are_fractions(self):
    # The released code takes percent: k_percent = 0.2 and 0.02.
    kwargs = {name: presets.preset(name).spec['regularizers'][0]['kwargs'] for name in ('kl_cov_7b', 'kl_cov_32b', 'kl_cov_verl')}
    assert kwargs['kl_cov_7b'] == {'fraction': 0.2 / 100, 'coef': 1.0}
    assert kwargs['kl_cov_32b'] == {'fraction': 0.02 / 100, 'coef': 1.0}
    assert kwargs['kl_cov_verl'] == {'fraction': 0.02 / 100, 'coef': 0.1}
    clip_cov = presets.preset('clip_cov_7b').spec
    assert clip_cov['weights'][0]['kwargs'] == {'fraction': 2e-4, 'cov_low': 1.0, 'cov_high': 5.0, 'clip_low': 1.0, 'clip_high': 1.0}
    assert clip_cov['surrogates'][0]['kwargs'] == {'low': 1.0, 'high': 1.0}
    assert presets.preset('clip_cov_32b').spec == clip_cov

  def test_settings_of_the_papers(self):
    dapo, cui = presets.preset('dapo').settings, presets.preset('kl_cov_7b').settings
    assert (dapo.learning_rate, dapo.group_size, dapo.num_prompts, dapo.updates_per_rollout, dapo.max_length) == (1e-6, 16, 512, 16, 20480)
    assert dapo.dynamic_sampling
    assert (cui.learning_rate, cui.group_size, cui.num_prompts, cui.updates_per_rollout) == (5e-7, 8, 512, 8)

  @pytest.mark.parametrize('name', presets.PRESETS)
  def test_nothing_to_warn_of_in_its_own_run(self, name: str):
    preset = presets.preset(name)
    settings = preset.settings
    updates = settings.updates_per_rollout or 8
    num_tokens = 512 * 16 * 20480 // updates
    objective = preset.objective(max_length=settings.max_length or 3000)
    assert objective.warnings(RunFacts(updates, settings.group_size or 8, num_tokens, objective.aggregate)) == []

  def test_length_of_the_run_divides(self):
    batch = helpers.token_batch()
    dr_grpo = presets.preset('dr_grpo')
    values = []
    for length in (6, 12):
      objective = dr_grpo.objective(max_length=length)
      values.append(float(objective.loss(objective.plan(objective.init(batch), batch)[0], batch).compute()))
    np.testing.assert_allclose(values[0], 2 * values[1], rtol=1e-6)
    with pytest.raises(UserError, match=r'divides by the largest response length, which its source leaves open; give max_length=\.$'):
      dr_grpo.objective()

  def test_is_a_copy(self):
    presets.preset('grpo').spec['surrogates'][0]['kwargs']['high'] = 9.0
    assert presets.preset('grpo').spec['surrogates'][0]['kwargs']['high'] == 0.2

  def test_unknown(self):
    with pytest.raises(UserError) as error:
      presets.preset('kl_cov_8b')
    assert str(error.value) == "preset: there is no preset 'kl_cov_8b'. Did you mean 'kl_cov_7b'?"
