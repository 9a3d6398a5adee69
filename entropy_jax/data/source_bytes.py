"""The source code of Python's standard library as a corpus of bytes: real, structured text that every machine with Python has.

A token is a byte. Byte 0 appears in no source file, so it marks where each begins; the vocabulary has 256 tokens and no other special one.
Tests, packages installed beside the library and files that hold the paths of the build are left out. The corpus differs between versions
of Python: its digest says which one a run has seen.
"""

import hashlib
import os
import pathlib
import sysconfig
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from entropy_jax.data.tokenizers import Encoded
from entropy_jax.types import UserError

VOCAB_SIZE = 256
BOUNDARY = 0
# Upper end of each split's share of the hash range of files: 90 % and 10 %.
SPLIT_ENDS = {'train': 0.9, 'test': 1.0}
_FOLDERS_LEFT_OUT = ('test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__')
_NAMES_LEFT_OUT = ('_sysconfigdata', 'config-', 'sitecustomize', 'usercustomize')  # beginnings; these differ from one build to the next


class SourceFile(NamedTuple):
  """A file of the corpus: its path below the root, with slashes, and its bytes."""

  path: str
  content: bytes


def read(root: str | os.PathLike[str] | None = None) -> list[SourceFile]:
  """The .py files under a folder, in the order of their paths.

  Args:
    root: folder; None takes the standard library of the running Python.

  Returns:
    The files, without those of tests, of other packages, of the build, and those that hold byte 0 or nothing.
  """
  top = pathlib.Path(sysconfig.get_path('stdlib') if root is None else root)
  found = []
  for folder, inside, names in os.walk(top):
    inside[:] = [name for name in inside if name not in _FOLDERS_LEFT_OUT and not name.startswith(_NAMES_LEFT_OUT)]
    for name in names:
      if name.endswith('.py') and not name.startswith(_NAMES_LEFT_OUT):
        path = pathlib.Path(folder, name)
        found.append(SourceFile(path.relative_to(top).as_posix(), path.read_bytes()))
  kept = sorted(file for file in found if file.content and BOUNDARY not in file.content)
  if not kept:
    raise UserError(f'root={os.fspath(top)!r}: holds no Python source; give a folder with .py files, or None for the standard library.')
  return kept


def split_of(content: bytes) -> str:
  """'train' or 'test' (90, 10 % of the files), by SHA-256 of the file: copies of a file fall together, whatever their names."""
  fraction = int.from_bytes(hashlib.sha256(content).digest()[:8], 'big') / 2.0**64
  return next(name for name, end in SPLIT_ENDS.items() if fraction <= end)


def split_files(files: Iterable[SourceFile], split: str) -> list[SourceFile]:
  """The files of one split, in their order."""
  return [file for file in files if split_of(file.content) == split]


def digest(files: Iterable[SourceFile]) -> str:
  """SHA-256 (hex) of every path and content, in order."""
  whole = hashlib.sha256()
  for path, content in files:
    for part in (path.encode(), content):
      whole.update(b'%d:' % len(part) + part)
  return whole.hexdigest()


def chunks(files: Iterable[SourceFile], length: int) -> np.ndarray:
  """The files one after another, byte 0 before each, cut into rows.

  Args:
    files: of one split.
    length: N, bytes in a row.

  Returns:
    tokens_RxN, uint8; the end of the stream that does not fill a row is left out.

  >>> chunks([SourceFile('a.py', b'12'), SourceFile('b.py', b'3456')], 3).tolist()
  [[0, 49, 50], [0, 51, 52]]
  """
  stream = np.frombuffer(b''.join(bytes([BOUNDARY]) + file.content for file in files), np.uint8)
  num_rows = len(stream) // length
  return stream[: num_rows * length].reshape(num_rows, length)


def encode(texts: Sequence[str | bytes], length: int, *, bos: bool = True, eos: bool = False) -> Encoded:
  """Texts as bytes of UTF-8 in one array, cut at a length and padded on the right.

  Args:
    texts: B texts; a byte 0 inside one is refused.
    length: N, tokens in a row, marks included.
    bos: whether every text begins with the mark, byte 0.
    eos: whether every text ends with it; a text that is cut has no end.

  Returns:
    tokens (int32 [B, N], 0 where mask is False) and mask (bool [B, N]).

  >>> encode(['ab'], 5, eos=True).tokens.tolist()
  [[0, 97, 98, 0, 0]]
  """
  tokens = np.zeros((len(texts), length), np.int32)
  mask = np.zeros((len(texts), length), bool)
  for row, text in enumerate(texts):
    content = text.encode() if isinstance(text, str) else text
    if BOUNDARY in content:
      raise UserError(f'text={content[:40]!r}: holds byte 0, which marks where a text begins and ends; remove it.')
    marked = bytes([BOUNDARY]) * bos + content + bytes([BOUNDARY]) * eos
    ids = np.frombuffer(marked, np.uint8)[:length]
    tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
  return Encoded(tokens, mask)


def decode(tokens: Iterable[int]) -> str:
  """The text of a row of tokens in 0..255 without its marks; what is no UTF-8, such as a character that was cut, becomes U+FFFD."""
  return bytes(token for token in np.asarray(list(tokens)).tolist() if token != BOUNDARY).decode(errors='replace')
