"""House rules that a machine can check, for the whole tree; each test lists every place that breaks its rule."""

import ast
import functools
import pathlib
import re
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAX_LINES = 400
RUNS_TEXT = ('eval', 'exec', 'compile', '__import__', 'yaml.load', 'os.system')
PICKLES = {'pickle', 'dill', 'cloudpickle', 'shelve', 'marshal', 'joblib'}


def files(*folders: str) -> list[pathlib.Path]:
  return [path for folder in folders for path in sorted((ROOT / folder).rglob('*.py'))]


SOURCES = files('entropy_jax', 'experiments', 'configs', 'benchmarks', 'tools')
TESTS = files('tests')


def name_of(path: pathlib.Path) -> str:
  return path.relative_to(ROOT).as_posix()


@functools.cache
def nodes(path: pathlib.Path) -> tuple[ast.AST, ...]:
  return tuple(ast.walk(ast.parse(path.read_text())))


def dotted(node: ast.AST) -> str:
  """'a.b.c' of a chain of attributes; what is neither a name nor an attribute is left out."""
  if isinstance(node, ast.Attribute):
    return f'{dotted(node.value)}.{node.attr}'
  return node.id if isinstance(node, ast.Name) else ''


def calls(paths: list[pathlib.Path]) -> Iterator[tuple[str, str, ast.Call]]:
  """(place, dotted name, node) of every call."""
  for path in paths:
    for node in nodes(path):
      if isinstance(node, ast.Call):
        yield f'{name_of(path)}:{node.lineno}', dotted(node.func), node


def names(path: pathlib.Path) -> set[str]:
  """The last part of every name and attribute in the file."""
  return {dotted(node).split('.')[-1] for node in nodes(path) if isinstance(node, ast.Attribute | ast.Name)}


def is_false(node: ast.expr) -> bool:
  return isinstance(node, ast.Constant) and node.value is False


class TestSafety:
  """Nothing that is read or generated is ever run as code."""

  def test_the_rules_see_the_tree(self):
    assert len(SOURCES) > 30 and len(TESTS) > 20

  def test_nothing_evaluates_text(self):
    assert not [f'{place} calls {name}' for place, name, _ in calls(SOURCES + TESTS) if name in RUNS_TEXT]

  def test_no_shell_and_no_pickled_arrays(self):
    assert not [
      f'{place} sets {keyword.arg}'
      for place, _, call in calls(SOURCES + TESTS)
      for keyword in call.keywords
      if keyword.arg in ('allow_pickle', 'shell') and not is_false(keyword.value)
    ]

  def test_nothing_unpickles(self):
    for path in SOURCES:
      imports = [alias.name for node in nodes(path) if isinstance(node, ast.Import) for alias in node.names]
      imports += [node.module or '' for node in nodes(path) if isinstance(node, ast.ImportFrom)]
      assert not PICKLES & {module.split('.')[0] for module in imports}, name_of(path)


class TestStyle:
  """Rules of the style guide, section 1."""

  def test_files_are_short(self):
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert not {name: n for name, n in lengths.items() if n > MAX_LINES}

  def test_modules_say_what_they_are(self):
    texts = {name_of(path): path.read_text() for path in SOURCES}
    assert not [name for name, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))]

  def test_config_keys_have_no_second_default(self):
    getters = [(place, name) for place, name, _ in calls(SOURCES) if re.fullmatch(r'(.*\.)?(config|cfg)\.get', name)]
    assert not getters, 'declare the key in the config'

  def test_log_softmax_has_one_home(self):
    assert [name_of(path) for path in SOURCES if 'log_softmax' in names(path)] == ['entropy_jax/ops/categorical.py']

  def test_pmap_has_one_home(self):
    # Beside the name of the mode, which configs and tables spell as a string.
    assert {name_of(path) for path in SOURCES if 'pmap' in names(path)} == {'entropy_jax/parallel/pmapped.py'}

  def test_masks_select_and_never_multiply(self):
    products = [
      (f'{name_of(path)}:{node.lineno}', dotted(side).split('.')[-1])
      for path in SOURCES
      for node in nodes(path)
      if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)
      for side in (node.left, node.right)
    ]
    masks = [(place, name) for place, name in products if re.fullmatch(r'(\w+_)?mask(_[A-Z0-9x]+)?', name)]
    assert not masks, 'NaN * 0 is NaN: use jnp.where'

  def test_nothing_is_left_unfinished(self):
    words = re.compile('|'.join(rf'\b{word}\b' for word in ('TO' 'DO', 'FIX' 'ME', 'NotImplemented' 'Error', 'type: ' 'ignore')))
    assert not [(name_of(path), word) for path in SOURCES + TESTS for word in words.findall(path.read_text())]

  def test_a_skip_says_why(self):
    marks = ('pytest.mark.skip', 'pytest.mark.skipif', 'pytest.mark.xfail', 'pytest.importorskip')
    assert not [
      f'{place}: {name}'
      for place, name, call in calls(TESTS)
      if (name in marks and not any(k.arg == 'reason' for k in call.keywords))
      or (name == 'pytest.skip' and not call.args and not call.keywords)
    ]
    functions = [(path, node) for path in TESTS for node in nodes(path) if isinstance(node, ast.FunctionDef)]
    assert not [(name_of(path), f.name) for path, f in functions if {dotted(d) for d in f.decorator_list} & set(marks)]
