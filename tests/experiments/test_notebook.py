"""The notebook is stripped, and its cells run from top to bottom on a finished study."""

import ast
import copy
import itertools
import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / 'notebooks' / 'entropy_mechanism.ipynb'


@pytest.fixture(scope='module')
def notebook() -> nbformat.NotebookNode:
  return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def without_magics(source: str) -> str:
  return '\n'.join(line for line in source.splitlines() if not line.startswith('%'))


class TestSource:
  def test_is_valid(self, notebook):
    nbformat.validate(notebook)
    assert notebook.nbformat == 4 and notebook.metadata.kernelspec.name == 'python3'

  def test_is_stripped(self, notebook):
    assert code_cells(notebook)
    assert not [cell.id for cell in code_cells(notebook) if cell.outputs or cell.execution_count is not None]

  def test_every_code_cell_parses_and_is_told_about(self, notebook):
    for before, cell in itertools.pairwise(notebook.cells):
      if cell.cell_type == 'code':
        ast.parse(without_magics(cell.source))
        assert before.cell_type == 'markdown', f'nothing introduces cell {cell.id}'

  def test_reads_run_folders_and_imports_the_library_alone(self, notebook):
    trees = [ast.parse(without_magics(cell.source)) for cell in code_cells(notebook)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    allowed = {'os', 'pathlib', 'numpy', 'jax', 'IPython', 'entropy_jax'}
    assert {module.split('.')[0] for module in modules} <= allowed


@pytest.fixture(scope='module')
def executed(notebook: nbformat.NotebookNode, tiny_study: pathlib.Path) -> dict[str, list[nbformat.NotebookNode]]:
  """Cell id -> outputs, after one run of all cells on the tiny study."""
  patch = pytest.MonkeyPatch()
  patch.setenv('ENTROPY_JAX_RUN', str(tiny_study))  # the kernel is a process of its own and inherits it
  ran = copy.deepcopy(notebook)
  try:
    NotebookClient(ran, timeout=120, kernel_name='python3', resources={'metadata': {'path': str(ROOT)}}).execute()
  finally:
    patch.undo()
  return {cell.id: cell.outputs for cell in code_cells(ran)}


def printed(outputs: list[nbformat.NotebookNode]) -> str:
  return ''.join(output.text for output in outputs if output.output_type == 'stream')


def tables(outputs: list[nbformat.NotebookNode]) -> str:
  return '\n'.join(output.data.get('text/markdown', '') for output in outputs if output.output_type == 'display_data')


class TestExecution:
  def test_reads_the_study_it_is_given(self, executed, tiny_study):
    assert printed(executed['setup']).startswith(f'{tiny_study}: 2 tabular tasks, methods grpo, ')

  @pytest.mark.parametrize('cell', ['collapse', 'scatter', 'covariance', 'matched'])
  def test_draws(self, executed, cell: str):
    assert any('image/png' in output.get('data', {}) for output in executed[cell])

  def test_the_theorem_by_hand(self, executed):
    # p = (.5, .3, .2), A = (.5, -.5, -.5): p A = (.25, -.15, -.1), E[p A] = .5 * .25 - .3 * .15 - .2 * .1 = .06, and
    # sum_a p_a ln p_a (p_a A_a - .06) = .5 (-.693147) .19 + .3 (-1.203973) (-.21) + .2 (-1.609438) (-.16) = .061503.
    assert printed(executed['by-hand']).splitlines()[:2] == ['by hand      0.061503', 'the library  0.061503']

  def test_the_error_is_second_order(self, executed):
    rows = [line.strip('| ').split(' | ') for line in tables(executed['first-order']).splitlines()[2:]]
    errors = [abs(float(row[3])) for row in rows]
    assert len(errors) == 4 and all(3.4 < large / small < 4.6 for large, small in itertools.pairwise(errors))

  def test_a_run_too_short_for_the_law_is_refused_with_its_reason(self, executed):
    assert printed(executed['law']).startswith('No law for this run. entropy ranges over ')

  def test_lists_every_claim(self, executed):
    # The tiny study has 2 seeds, and fewer than five decide nothing.
    lines = tables(executed['claims']).splitlines()[2:]
    assert len(lines) >= 10 and all(line.endswith('| inconclusive |') for line in lines)
