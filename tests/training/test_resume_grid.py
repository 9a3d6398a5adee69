"""The resume grid: every cell equal bit for bit, the grid covers what it says, and a run that forgets something is caught by it."""

import itertools
import json

import numpy as np
import pytest

from entropy_jax.catalog import CATALOG
from entropy_jax.chaos import resume
from entropy_jax.training.checkpoints import Checkpoints

CELLS = resume.cells()
# Cells of one program together, so that it is compiled by one worker.
PROGRAMS = {
  key: list(group)
  for key, group in itertools.groupby(CELLS, key=lambda c: (c.method, c.num_epochs, c.num_slices, c.num_minibatches))
}
# Here: the states of all methods at once in every cell, the buffers, and some methods by themselves. `make chaos` runs all cells.
ALWAYS, ALONE = (resume.TOGETHER, resume.REPLAY, resume.DYNAMIC), ('adaptive_entropy', 'model_based_entropy', 'riskpo', resume.SCHEDULED)
HERE = [key for key in PROGRAMS if key[0] in ALWAYS or (key[0] in ALONE and key[1:3] == (2, 2))]


class TestRunCell:
  @pytest.mark.parametrize('key', HERE, ids=lambda key: '-'.join(map(str, key)))
  def test_interrupted_twice_equals_the_undisturbed_run(self, tmp_path, key):
    outcomes = resume.run_grid(tmp_path, PROGRAMS[key])
    assert {outcome.cell.title: outcome.differences for outcome in outcomes} == {cell.title: [] for cell in PROGRAMS[key]}
    assert resume.grid_table(outcomes) == {key[0]: (4, 4)}
    # Traced anew after a restore, a program would have got a leaf of another type: weak instead of strong, or another dtype.
    assert len(resume.program(PROGRAMS[key][0]).traces) == 1

  def test_dynamic_sampling_broken_off_in_every_step(self, tmp_path):
    cell = resume.Cell(resume.DYNAMIC, shuffle=True, crosses_epoch=True)
    whole = resume.run(cell, tmp_path / 'whole'), tmp_path / 'whole'
    for step in range(resume.NUM_STEPS):
      with pytest.raises(resume.KilledError, match=f'draw of step {step}'):  # after the first of the step's generation batches
        resume.run(cell, tmp_path / 'cut', resume.Trap('draw', step))
    assert resume.differences((resume.run(cell, tmp_path / 'cut'), tmp_path / 'cut'), whole) == []
    rows = [json.loads(line) for line in (tmp_path / 'whole' / 'metrics.jsonl').read_text().splitlines()]
    batches = [row['data/batches'] for row in rows[: resume.NUM_STEPS]]
    assert min(batches) >= 1 and len(set(batches)) > 1  # how many batches a step draws is what no step number tells


class TestCells:
  def test_every_combination_is_there_once(self):
    assert len(set(CELLS)) == len(CELLS) and len({cell.title for cell in CELLS}) == len(CELLS)
    for method in resume.stateful():
      seen = {(c.shuffle, c.crosses_epoch, c.num_epochs, c.num_slices) for c in CELLS if c.method == method}
      assert seen == set(itertools.product((True, False), (True, False), (1, 2), (1, 2)))
    together = {c[1:] for c in CELLS if c.method == resume.TOGETHER}
    assert together == set(itertools.product((True, False), (True, False), (1, 2), (1, 2), (2,)))
    for method in (resume.REPLAY, resume.DYNAMIC):
      assert len([c for c in CELLS if c.method == method]) == 4

  def test_every_controller_of_the_catalog_is_covered(self):
    controlled = {entry.name for entry in CATALOG.values() if entry.factory.controller is not None}
    assert {'adaptive_entropy', 'adaptive_kl'} <= controlled <= set(resume.stateful())
    assert {'siren', 'riskpo', 'epo', 'canon'} <= set(resume.stateful())
    assert set(resume.stateful()) - set(CATALOG) == {resume.SCHEDULED}
    assert {t.name for t in resume._objective(resume.TOGETHER).transforms} >= set(resume.stateful())

  def test_interruptions_come_everywhere(self):
    traps = [trap for cell in CELLS for trap in cell.traps]
    assert {trap.moment for trap in traps} == {'data', 'draw', 'step', 'row', 'evaluation'}
    assert {trap.step for trap in traps} == {1, 2, 3, 4, 5}
    assert all(cell.traps[0].step <= cell.traps[1].step for cell in CELLS)

  @pytest.mark.parametrize('shuffle', [True, False])
  def test_epochs_end_between_checkpoint_and_interruption_where_they_should(self, shuffle):
    def batches(crosses):
      data = resume._Data(resume.Cell('any', shuffle, crosses), None)
      return [index for _ in range(resume.NUM_STEPS) for index in data.next()['index_B'].tolist()]

    crossing, within = batches(True), batches(False)
    assert sorted(crossing[:10]) == sorted(crossing[10:20]) == list(range(10)) and len(set(crossing[20:])) == 4
    assert len(set(within)) == len(within) == 24
    assert (crossing[:10] == list(range(10))) != shuffle
    # Places 10 and 20 of 4 a step lie in step 2 and at the start of step 5; the checkpoints before are those of steps 2 and 4.
    assert all([trap.step for trap in cell.traps] == [3, 5] for cell in CELLS if cell.crosses_epoch)


class TestTheGridSees:
  """What a resumed run could forget: each is found, so that equal cells mean something."""

  def forget(self, monkeypatch, part):
    """Restores everything but this part of the state, which starts anew."""
    whole = Checkpoints.restore_latest

    def restore(self, template):
      found = whole(self, template)
      if found is None:
        return None
      step, state, host = found
      return (step, {**state, **part(template, state)}, host)

    monkeypatch.setattr(Checkpoints, 'restore_latest', restore)

  @pytest.mark.parametrize('name', ['objective_state', 'opt_state', 'params'])
  def test_train_state(self, tmp_path, monkeypatch, name):
    self.forget(monkeypatch, lambda new, old: {'train': old['train'].replace(**{name: getattr(new['train'], name)})})
    found = resume.run_cell(resume.Cell(resume.TOGETHER, True, True, num_minibatches=2), tmp_path)
    assert any(name in difference for difference in found.differences) and 'metrics.jsonl' in found.differences

  def test_replay_buffer(self, tmp_path, monkeypatch):
    self.forget(monkeypatch, lambda new, old: {'buffer': new['buffer']})
    found = resume.run_cell(resume.Cell(resume.REPLAY, True, True), tmp_path)
    assert any("['buffer']" in difference for difference in found.differences) and 'metrics.jsonl' in found.differences

  def test_what_a_step_of_dynamic_sampling_drew(self, tmp_path, monkeypatch):
    # A position of one batch a step, which is what the number of the step would give.
    restored = lambda self, state: (setattr(self, '_step', state[0]), setattr(self, '_position', state[0] * resume.BATCH))
    monkeypatch.setattr(resume._Data, 'set_state', restored)
    found = resume.run_cell(resume.Cell(resume.DYNAMIC, False, True), tmp_path)
    assert 'metrics.jsonl' in found.differences and 'checkpoint data' in found.differences

  @pytest.mark.parametrize('shuffle', [True, False])
  def test_data(self, tmp_path, monkeypatch, shuffle):
    monkeypatch.setattr(resume._Data, 'set_state', lambda self, state: setattr(self, '_step', state[0]))
    found = resume.run_cell(resume.Cell(resume.SCHEDULED, shuffle, True), tmp_path)
    assert 'metrics.jsonl' in found.differences and 'checkpoint data' in found.differences

  def test_a_trap_that_is_never_reached(self, tmp_path, monkeypatch):
    monkeypatch.setattr(resume.Trap, 'check', lambda *unused: None)
    with pytest.raises(AssertionError, match='nothing was interrupted'):
      resume.run_cell(resume.Cell(resume.SCHEDULED, True, True), tmp_path)


class TestGridTable:
  def test_counts(self):
    cells = [resume.Cell('a', True, True), resume.Cell('b', True, True), resume.Cell('a', False, True)]
    outcomes = [resume.Outcome(cell, differences) for cell, differences in zip(cells, ([], ['metrics.jsonl'], []))]
    assert resume.grid_table(outcomes) == {'a': (2, 2), 'b': (1, 0)}


class TestDifferences:
  def test_a_single_bit(self, tmp_path):
    cell = resume.Cell(resume.SCHEDULED, True, False)
    state = resume.run(cell, tmp_path)
    assert resume.differences((state, tmp_path), (state, tmp_path)) == []
    other = {**state, 'step': np.asarray(state['step']) ^ 1}
    assert resume.differences((state, tmp_path), (other, tmp_path)) == ["state['step']"]
