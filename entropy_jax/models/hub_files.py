"""Folders of safetensors files, one tensor at a time: any slice of any tensor read, and a folder written, without a second one in memory.

Nothing but safetensors and JSON is opened: weights pickled by torch can run code when they are read.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

from entropy_jax.models import hub_names
from entropy_jax.types import UserError

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
# Names in the header of a file -> types; whatever else stands there is refused.
DTYPES = {'F32': np.dtype(np.float32), 'BF16': np.dtype(jnp.bfloat16), 'F16': np.dtype(np.float16)}
_OTHER_FORMATS = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.h5', '.msgpack', '.gguf')
_PIECE = 1 << 26  # bytes of a tensor that are turned into those of the file at once
_SHOWN = 5

Index = tuple[slice, ...]


def listed(names: Sequence[str]) -> str:
  """The first few names, and how many more there are."""
  more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
  return ', '.join(names[:_SHOWN]) + more


class Entry(NamedTuple):
  """What the header of a file says of a tensor."""

  shape: tuple[int, ...]
  dtype: str
  file: str


class Tensors:
  """The tensors of an open folder; `opened` makes one.

  Attributes:
    entries: name -> Entry, of all files.
  """

  def __init__(self, folder: Path, handles: Mapping[str, Any]):
    self._folder, self._handles = folder, handles
    self.entries: dict[str, Entry] = {}
    for file, handle in handles.items():
      for name in handle.keys():  # noqa: SIM118
        if name in self.entries:
          raise UserError(f'{folder}: {name} stands in {self.entries[name].file} and in {file}: fetch the files again.')
        header = handle.get_slice(name)
        self.entries[name] = Entry(tuple(header.get_shape()), header.get_dtype(), file)

  def read(self, name: str, index: Index) -> np.ndarray:
    """The part of a tensor at one slice an axis, in the type of the file; nothing else of it comes into memory."""
    entry = self.entries[name]
    try:
      part = self._handles[entry.file].get_slice(name)[index]
    except safetensors.SafetensorError as error:
      raise UserError(f'{self._folder / entry.file}: {name} cannot be read ({error}): fetch the file again.') from None
    return np.asarray(part)


def _files_of(folder: Path) -> list[str]:
  """The files of weights of a folder, as transformers chooses them: the one file, or those of the index."""
  if not folder.is_dir():
    raise UserError(f'{folder} is no folder: give a Hugging Face model folder that lies here (nothing is downloaded).')
  if (folder / WEIGHTS).is_file():
    return [WEIGHTS]
  if not (folder / INDEX).is_file():
    other = sorted(path.name for path in folder.iterdir() if path.suffix in _OTHER_FORMATS)
    if other:
      raise UserError(f'{folder} holds {listed(other)} and no {WEIGHTS}: only safetensors is read, as pickles can run code; convert it.')
    raise UserError(f'{folder} holds neither {WEIGHTS} nor {INDEX}: fetch the weights of the model, in safetensors.')
  table = hub_names.read_json(folder / INDEX).get('weight_map')
  if not isinstance(table, dict) or not table or not all(isinstance(file, str) for file in table.values()):
    raise UserError(f'{folder / INDEX}: weight_map is no table from tensors to files: fetch the file again.')
  files = sorted(set(table.values()))
  foreign = [file for file in files if Path(file).name != file or not file.endswith('.safetensors')]
  if foreign:
    raise UserError(f'{folder / INDEX}: weight_map names {listed(foreign)}: only safetensors files of the same folder are read.')
  absent = [file for file in files if not (folder / file).is_file()]
  if absent:
    raise UserError(f'{folder}: {INDEX} names {listed(absent)}, which are not there: fetch them.')
  return files


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Tensors]:
  """The tensors of a folder, for as long as the context lasts; headers are read here, and no values."""
  with contextlib.ExitStack() as stack:
    handles = {}
    for file in _files_of(folder):
      try:
        handles[file] = stack.enter_context(safetensors.safe_open(folder / file, framework='numpy'))
      except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f'{folder / file} is no whole safetensors file ({error}): fetch it again.') from None
    yield Tensors(folder, handles)


class Written(NamedTuple):
  """A tensor to be written: its shape, and what makes it, in any float type, when its turn comes."""

  shape: tuple[int, ...]
  make: Callable[[], np.ndarray]


def write(folder: Path, tensors: Mapping[str, Written], *, dtype: str, shard_bytes: int) -> None:
  """Writes tensors into a folder as one file or, where they take more than shard_bytes, several with an index.

  Args:
    folder: exists, and holds no weights.
    tensors: name -> Written; each is made once, in order, and let go before the next.
    dtype: 'F32', 'BF16' or 'F16'.
    shard_bytes: that no file exceeds, unless one tensor does.

  Raises:
    UserError: a number that is finite and not so in F16.
  """
  size = DTYPES[dtype].itemsize
  shards: list[list[str]] = []
  room = 0
  for name, tensor in tensors.items():
    need = math.prod(tensor.shape) * size
    if not shards or need > room:
      shards.append([])
      room = shard_bytes
    shards[-1].append(name)
    room -= need
  files = [WEIGHTS] if len(shards) == 1 else [f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors' for i in range(len(shards))]
  for file, names in zip(files, shards, strict=True):
    header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}  # transformers asks for it
    end = 0
    for name in names:
      start, end = end, end + math.prod(tensors[name].shape) * size
      header[name] = {'dtype': dtype, 'shape': list(tensors[name].shape), 'data_offsets': [start, end]}
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # values begin at a multiple of 8
    with open(folder / file, 'wb') as out:
      out.write(len(text).to_bytes(8, 'little') + text)
      for name in names:
        _append(out, name, tensors[name].make(), dtype)
  if len(shards) > 1:
    total = sum(math.prod(tensor.shape) for tensor in tensors.values()) * size
    table = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    (folder / INDEX).write_text(json.dumps({'metadata': {'total_size': total}, 'weight_map': table}, indent=2), encoding='utf-8')


def _append(out: IO[bytes], name: str, values: np.ndarray, dtype: str) -> None:
  """The values in the order and the type of the file, a piece at a time."""
  rows = max(_PIECE // max(values[:1].size * 4, 1), 1)
  for start in range(0, len(values), rows):
    part = values[start : start + rows]
    with np.errstate(over='ignore'):
      cast = np.ascontiguousarray(part.astype(DTYPES[dtype]))
    if dtype == 'F16' and not np.array_equal(np.isfinite(cast), np.isfinite(part)):
      raise UserError(f'dtype is float16, and {name} holds numbers beyond {np.finfo(np.float16).max:g}: export as bfloat16 or float32.')
    out.write(cast.view(np.uint8).data)
