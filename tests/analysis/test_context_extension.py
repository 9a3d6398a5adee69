"""The claims, table and figures of the context-extension study on made tasks whose answers are known."""

import numpy as np

from entropy_jax.analysis import context_extension
from entropy_jax.analysis.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED
from entropy_jax.analysis.context_runs import Task
from tests.analysis.test_context_runs import NAN, made, task


def papers() -> Task:
  """Everything as the paper and the card have it, and this study's questions answered with yes."""
  return task(
    none=made((1.0, 3.0, 4.0), (1.0, 2.0, 3.5), early=0.2, late=0.1),
    scale=made((1.0, 2.9, 4.0), (1.0, 1.9, 3.5), early=0.2, late=0.05),
    abf=made((1.0, 3.2, 4.0), (1.0, 1.5, 2.0), early=0.25, late=0.15),
    entropy_abf=made((1.0, 1.7, 1.7), (1.0, 1.2, 1.22), early=0.25, late=0.1),
  )


def verdicts(found: Task) -> dict[str, str]:
  return {claim.id.removeprefix('recall/'): claim.verdict for claim in context_extension.claims(found)}


class TestClaims:
  def test_what_the_papers_say(self):
    found = verdicts(papers())
    assert {id for id, verdict in found.items() if verdict != REPRODUCED} == set() and len(found) == 14

  def test_the_opposite(self):
    swapped = {'none': 'abf', 'abf': 'none', 'scale': 'entropy_abf', 'entropy_abf': 'scale'}
    right = papers()
    found = verdicts(task(**{name: right.extensions[other] for name, other in swapped.items()}))
    assert found['base_raises_growth'] == found['abf_beats_tuning_alone'] == NOT_REPRODUCED
    assert found['entropy_abf_holds_beyond_tuning'] == NOT_REPRODUCED

  def test_exempt_layers_that_change_are_seen(self):
    right = papers().extensions
    changed = made((1.0, 1.7, 1.7), (1.0, 1.2, 1.22), early=0.26, late=0.1)
    assert verdicts(task(**(right | {'entropy_abf': changed})))['exempt_layers_are_unchanged'] == NOT_REPRODUCED

  def test_a_diverged_tuning_decides_nothing(self):
    found = verdicts(task(**(papers().extensions | {'abf': made((1.0, 3.2, 4.0), (1.0, NAN, NAN), early=0.25, late=0.15)})))
    assert found[context_extension.CENTRAL] == INCONCLUSIVE and found['base_raises_growth'] == REPRODUCED

  def test_guessing_at_any_length_is_not_holding(self):
    lost = made((1.0, 1.7, 1.7), (3.5, 3.5, 3.5), early=0.25, late=0.1)
    assert verdicts(task(**(papers().extensions | {'entropy_abf': lost})))['entropy_abf_holds_beyond_tuning'] == INCONCLUSIVE

  def test_two_seeds_decide_nothing(self):
    two = np.array([0.0, 0.001])
    few = task(none=made((1.0, 3.0, 4.0), (1.0, 2.0, 3.5), seeds=two), abf=made((1.0, 3.2, 4.0), (1.0, 1.5, 2.0), seeds=two))
    assert set(verdicts(few).values()) == {INCONCLUSIVE} and len(verdicts(few)) == 4


class TestFigures:
  def test_loss_before_and_after(self):
    figure = context_extension.loss_by_position(papers())
    before, after = figure.axes
    assert before.get_legend_handles_labels()[1] == ['none', 'scale', 'abf', 'entropy_abf']
    np.testing.assert_allclose(before.lines[0].get_ydata(), np.repeat([1.0, 3.0, 4.0], [2, 6, 8]))
    marks = [line.get_xdata()[0] for line in after.lines if len(line.get_xdata()) == 2]
    assert sorted(set(marks)) == [4, 16]

  def test_entropy_with_uniform_attention(self):
    figure = context_extension.entropy_by_position(papers())
    exempt, later = figure.axes[0], figure.axes[2]
    uniform = next(line for line in exempt.lines if line.get_label() == 'uniform attention')
    np.testing.assert_allclose(uniform.get_ydata()[:2], [np.log(2) / 2, (np.log(3) + np.log(4)) / 2])  # means of a bin
    np.testing.assert_allclose(exempt.lines[0].get_ydata(), 0.2 * np.arange(1, 17))
    np.testing.assert_allclose(later.lines[0].get_ydata(), 0.1 * np.arange(1, 17))


class TestTable:
  def test_every_extension(self):
    table = context_extension.table(papers())
    assert [row[0] for row in table.rows] == ['none', 'scale', 'abf', 'entropy_abf']
    assert all(len(row) == len(table.header) == 9 for row in table.rows)
    assert table.rows[0][3].startswith('3 [') and table.rows[2][4].startswith('1.5 [') and table.rows[3][6].startswith('1.22 [')


def test_summary_has_every_curve(tmp_path):
  found = papers()
  found.extensions['abf'].loss_RxCxJ[0, 2, 3] = NAN
  context_extension.write_summary(tmp_path / 'metrics.jsonl', {'recall': found})
  rows = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert len(rows) == 3 and '"recall/abf/loss_beyond": null' in rows[-1] and '"recall/none/loss_beyond": 3.0' in rows[0]
