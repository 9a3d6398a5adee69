"""The corpus of source code, on a few files in a temporary folder."""

import hashlib

import numpy as np
import pytest

from entropy_jax.data import source_bytes
from entropy_jax.data.source_bytes import SourceFile
from entropy_jax.types import UserError

KEPT = {'b.py': b'b = 1\n', 'a/z.py': b'z = 2\n', 'a/c/d.py': 'é = 3\n'.encode()}
LEFT_OUT = {
  'test/t.py': b't\n',
  'a/tests/t.py': b't\n',
  'a/idle_test/t.py': b't\n',
  'site-packages/p.py': b'p\n',
  'dist-packages/p.py': b'p\n',
  'config-3.11-x/python-config.py': b'c\n',
  '_sysconfigdata__linux.py': b's\n',
  'sitecustomize.py': b's\n',
  'note.txt': b'n\n',
  'empty.py': b'',
  'binary.py': b'a\0b',
}


@pytest.fixture
def root(tmp_path):
  for name, content in {**KEPT, **LEFT_OUT}.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(content)
  return tmp_path


class TestRead:
  def test_keeps_source_in_the_order_of_paths(self, root):
    assert source_bytes.read(root) == [SourceFile(path, KEPT[path]) for path in ('a/c/d.py', 'a/z.py', 'b.py')]

  def test_names_that_only_resemble_those_left_out_are_kept(self, tmp_path):
    (tmp_path / 'testing').mkdir()
    (tmp_path / 'testing' / 'test_case.py').write_bytes(b'x\n')
    assert [file.path for file in source_bytes.read(tmp_path)] == ['testing/test_case.py']

  def test_nothing_to_read(self, tmp_path):
    with pytest.raises(UserError, match='holds no Python source'):
      source_bytes.read(tmp_path)


class TestSplitOf:
  def test_is_the_documented_hash(self):
    found = set()
    for i in range(40):
      content = b'%d' % i
      fraction = int(hashlib.sha256(content).hexdigest()[:16], 16) / 2**64
      assert source_bytes.split_of(content) == ('train' if fraction <= 0.9 else 'test')
      found.add(source_bytes.split_of(content))
    assert found == {'train', 'test'}

  def test_files_are_in_one_split_each(self):
    files = [SourceFile(f'{i}.py', b'%d' % i) for i in range(300)]
    parts = [source_bytes.split_files(files, split) for split in ('train', 'test')]
    assert sorted(parts[0] + parts[1]) == sorted(files)
    assert 12 <= len(parts[1]) <= 48  # 30 expected, standard deviation 5.2
    assert parts[0] == sorted(parts[0], key=files.index)


class TestDigest:
  def test_follows_paths_contents_and_where_they_are_cut(self):
    corpora = [
      [SourceFile('a', b'bc')],
      [SourceFile('ab', b'c')],
      [SourceFile('a', b'bd')],
      [SourceFile('a', b'b'), SourceFile('c', b'')],
      [SourceFile('a', b'bc'), SourceFile('a', b'bc')],
    ]
    assert len({source_bytes.digest(files) for files in corpora}) == 5


class TestChunks:
  def test_stream_is_cut_and_its_end_left_out(self):
    files = [SourceFile('a', b'12'), SourceFile('b', b'345'), SourceFile('c', b'6')]
    # The stream is 0 1 2 0 3 4 5 0 6 (digits in ASCII): 9 bytes, two rows of 4.
    rows = source_bytes.chunks(files, 4)
    assert rows.tolist() == [[0, 49, 50, 0], [51, 52, 53, 0]]
    assert rows.dtype == np.uint8

  def test_too_long_a_row_gives_none(self):
    assert source_bytes.chunks([SourceFile('a', b'12')], 4).shape == (0, 4)


class TestEncode:
  def test_marks_padding_and_cut(self):
    tokens, mask = source_bytes.encode(['a', b'bcde', 'é'], 4, eos=True)
    # é is 195 169 in UTF-8; the second text is cut before its end.
    assert tokens.tolist() == [[0, 97, 0, 0], [0, 98, 99, 100], [0, 195, 169, 0]]
    assert mask.tolist() == [[True, True, True, False], [True] * 4, [True] * 4]
    assert (tokens.dtype, mask.dtype) == (np.int32, np.bool_)

  def test_without_marks(self):
    tokens, mask = source_bytes.encode(['ab'], 3, bos=False)
    assert (tokens.tolist(), mask.tolist()) == ([[97, 98, 0]], [[True, True, False]])

  def test_refuses_byte_0(self):
    with pytest.raises(UserError, match='holds byte 0'):
      source_bytes.encode(['a\0b'], 4)


class TestDecode:
  def test_inverts_encode(self):
    assert source_bytes.decode(source_bytes.encode(['def é():'], 16, eos=True).tokens[0]) == 'def é():'

  def test_shows_a_character_that_was_cut(self):
    assert source_bytes.decode([0, 97, 195]) == 'a\N{REPLACEMENT CHARACTER}'
