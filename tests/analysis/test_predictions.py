"""Every published claim names a method, a metric and a setting that the study has, and no catalog method is forgotten."""

from configs import interventions as config
from entropy_jax import compose
from entropy_jax.analysis.predictions import EXCLUDED, METRICS, OURS, PREDICTIONS
from entropy_jax.catalog import CATALOG, ROOMS

SETTINGS = {f'{task}/{epochs}' for task in config.TASKS for epochs in config.EPOCHS}


def named(line: str) -> set[str]:
  spec = compose.parse(line)
  return {method['name'] for room in ROOMS for method in spec[room]}


class TestPredictions:
  def test_name_what_there_is(self):
    for prediction in PREDICTIONS:
      assert prediction.method in config.LINES and prediction.metric in METRICS, prediction
      assert prediction.against is None or prediction.against in config.LINES, prediction
      assert set(prediction.settings) <= SETTINGS and prediction.settings, prediction
      assert prediction.entry == '' or prediction.entry in named(config.LINES[prediction.method]), prediction

  def test_ids_are_unique(self):
    ids = [prediction.id(setting) for prediction in PREDICTIONS for setting in prediction.settings]
    assert len(set(ids)) == len(ids)

  def test_the_forks_are_asked_for_where_there_are_forks(self):
    assert all('fork_tokens' in setting for p in PREDICTIONS if p.metric == 'fork' for setting in p.settings)

  def test_papers_are_cited_and_our_own_say_so(self):
    assert {p.paper for p in PREDICTIONS if not p.entry} == {OURS}
    assert all(p.paper == CATALOG[p.entry].reference for p in PREDICTIONS if p.entry)

  def test_pear_thinks_on_mod_sum_alone(self):
    assert all('mod_sum' in setting for p in PREDICTIONS if p.method == 'pear' for setting in p.settings)


class TestExcluded:
  def test_every_method_has_a_line_or_a_reason(self):
    lines = set().union(*(named(line) for line in config.LINES.values()))
    missing = set(CATALOG) - lines - set(EXCLUDED)
    assert not missing, f'give {missing} a line in configs/interventions.py, or a reason in EXCLUDED'
    assert lines | set(EXCLUDED) <= set(CATALOG)
    assert not lines & set(EXCLUDED)
