"""Who may import whom (DESIGN section 2), read from the source with `ast`, and what an import of the methods loads."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'entropy_jax'

# In the order of the design: a part may import itself and what stands before it.
LAYERS = (
  'types',
  'ops',
  'transform',
  'measures',
  'layers',
  'methods',
  'objective',
  'catalog',
  'presets',
  'compose',
  'models',
  'data',
  'rollout',
  'parallel',
  'training',
  'document',
  'analysis',
  'chaos',
)

# Module -> the only places that may import it, as paths from the root of the repository.
ONLY_IN = {
  'tensorflow_datasets': ('entropy_jax/data/',),
  'grain': ('entropy_jax/data/',),
  'orbax': ('entropy_jax/training/checkpoints.py',),
  'ml_collections': ('entropy_jax/training/app.py', 'configs/', 'experiments/'),
  'matplotlib': ('entropy_jax/analysis/', 'benchmarks/'),
  'tensorboardX': ('entropy_jax/training/writers.py',),
  'tensorflow': (),
  'torch': ('benchmarks/',),
  'transformers': ('benchmarks/',),
  'sklearn': ('entropy_jax/data/',),
  'safetensors': ('entropy_jax/models/', 'benchmarks/'),
  'tokenizers': ('entropy_jax/data/',),
  'jinja2': ('entropy_jax/data/',),
  'math_verify': ('entropy_jax/data/math_verify_worker.py', 'benchmarks/'),
}
IMPORT_LIMIT_SECONDS = 3.0
NOT_LOADED_BY_METHODS = ('tensorflow_datasets', 'tensorflow', 'grain', 'orbax', 'torch', 'ml_collections')


def sources() -> list[pathlib.Path]:
  return [path for folder in ('entropy_jax', 'experiments', 'configs', 'benchmarks') for path in sorted((ROOT / folder).rglob('*.py'))]


@functools.cache
def imported(path: pathlib.Path) -> set[str]:
  """Every module that the file imports anywhere in it, with the imported names appended: `from a import b` gives a and a.b."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}:{node.lineno} is a relative import; name the package'
      found |= {node.module or ''} | {f'{node.module}.{alias.name}' for alias in node.names}
  return found


def layer_of(module: str) -> str:
  return module.split('.')[1]


def name_of(path: pathlib.Path) -> str:
  return path.relative_to(ROOT).as_posix()


LIBRARY = [path for path in sources() if path.is_relative_to(PACKAGE) and path != PACKAGE / '__init__.py']


class TestLayers:
  """types -> ops, transform -> measures, layers, methods -> objective, catalog, models, data -> rollout, parallel -> training, analysis."""

  def test_every_part_of_the_package_has_a_layer(self):
    parts = {p.stem if p.is_file() else p.name for p in PACKAGE.iterdir() if p.suffix == '.py' or (p.is_dir() and list(p.glob('*.py')))}
    assert parts - {'__init__'} <= set(LAYERS), 'a new part: say in the list of layers who may import it'

  def test_imports_go_one_way(self):
    upwards = []
    for path in LIBRARY:
      own = layer_of(name_of(path).removesuffix('.py').replace('/', '.'))
      for module in imported(path):
        outside = module.split('.')[0] in ('experiments', 'configs', 'tests', 'benchmarks')
        if outside or (module.startswith('entropy_jax.') and LAYERS.index(layer_of(module)) > LAYERS.index(own)):
          upwards.append(f'{name_of(path)} imports {module}')
    assert not upwards

  def test_a_methods_room_never_imports_another(self):
    for path in (PACKAGE / 'methods').glob('*/*.py'):
      room = f'entropy_jax.methods.{path.parent.name}'
      other = {m for m in imported(path) if m.startswith('entropy_jax.methods.') and not (m + '.').startswith(room + '.')}
      assert not other, f'{name_of(path)} imports {other}'

  def test_experiments_never_import_each_other(self):
    for path in (ROOT / 'experiments').glob('*.py'):
      assert not {m for m in imported(path) if m.split('.')[0] == 'experiments'}, name_of(path)


class TestThirdParties:
  """Heavy dependencies have one door each."""

  @pytest.mark.parametrize('module', ONLY_IN)
  def test_is_imported_where_it_may_be(self, module: str):
    doors = ONLY_IN[module]
    users = [name_of(path) for path in sources() if module in {m.split('.')[0] for m in imported(path)}]
    assert not [user for user in users if not user.startswith(doors or ('nowhere',))]


class TestImportOfMethods:
  """`import entropy_jax.methods`, all rooms included, is quick and loads nothing heavy."""

  SCRIPT = """
import sys, time
start = time.process_time()
import importlib, pkgutil
import entropy_jax.methods
rooms = [room.name for room in pkgutil.walk_packages(entropy_jax.methods.__path__, 'entropy_jax.methods.')]
for room in rooms:
  importlib.import_module(room)
print(time.process_time() - start, len(rooms), *sorted({name.split('.')[0] for name in sys.modules}))
"""

  def test_is_quick_and_light(self):
    seconds = []
    for _ in range(2):
      run = subprocess.run([sys.executable, '-c', self.SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
      spent, num_rooms, *modules = run.stdout.split()
      assert int(num_rooms) >= 15
      assert not set(NOT_LOADED_BY_METHODS) & set(modules)
      seconds.append(float(spent))  # of this process: wall time would also measure the tests that run beside this one
    assert min(seconds) <= IMPORT_LIMIT_SECONDS
