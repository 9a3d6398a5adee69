"""Questions with reference answers: sets of TFDS by name, or files of JSON lines or Parquet by path, and the prompts made of them.

The large sets are read where somebody has prepared them in the data directory; nothing here fetches them. pyarrow, which reads Parquet,
comes with tensorflow-datasets and is imported where it is needed alone.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from entropy_jax.data import tfds_builders
from entropy_jax.data.examples import Examples
from entropy_jax.data.marked_answers import reference_answer
from entropy_jax.data.tokenizers import in_rows
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

# Name -> (question, answer) as the records of TFDS call them; math_dataset has a config for each kind of question, after a slash.
SETS = {'gsm8k': ('question', 'short_answer'), 'math_dataset': ('question', 'answer')}
ENDINGS = ('.jsonl', '.parquet')
PLACE = '{question}'
TEMPLATES = {
  'plain': PLACE,
  'question_answer': f'Question: {PLACE}\nAnswer:',
  'boxed': f'{PLACE}\n\nThink step by step, then give the final answer in \\boxed{{}}.',
  'hash': f'{PLACE}\n\nThink step by step, then give the final answer alone on a last line that begins with ####.',
  'think_answer': f'{PLACE}\n\nReason between <think> and </think>, then give the final answer alone between <answer> and </answer>.',
}


@dataclasses.dataclass(frozen=True)
class Questions:
  """R questions with their reference answers.

  Attributes:
    questions: R texts.
    references: R answers, each alone: 7 of '3 + 4 = 7 #### 7'.
  """

  questions: tuple[str, ...]
  references: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.questions)

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 (hex) of every text."""
    return hashlib.sha256(json.dumps([self.questions, self.references]).encode()).hexdigest()

  def take(self, rows: Sequence[int] | np.ndarray) -> 'Questions':
    """The given rows, in their order."""
    return Questions(tuple(self.questions[row] for row in rows), tuple(self.references[row] for row in rows))

  def prompts(self, template: str = 'plain') -> tuple[str, ...]:
    """R texts: a template of `TEMPLATES` by name, or a text that holds {question} once, filled with each question."""
    text = TEMPLATES.get(template, template)
    if text.count(PLACE) != 1:
      raise UserError(
        f'template={template!r}: must be one of {", ".join(TEMPLATES)}, or a text that holds {PLACE} once; give such a text.'
        f'{nearest(template, list(TEMPLATES))}'
      )
    before, _, after = text.partition(PLACE)
    return tuple(before + question + after for question in self.questions)


def load(
  source: str | os.PathLike[str],
  *,
  split: str = 'train',
  data_dir: str | os.PathLike[str] | None = None,
  question: str = 'question',
  answer: str = 'answer',
  limit: int | None = None,
  whole: bool = False,
) -> Questions:
  """The questions of a set by name, or of a file by path.

  Args:
    source: 'gsm8k', 'math_dataset/CONFIG', or the path of a .jsonl or .parquet file.
    split: of a named set: a split or a slice of one in TFDS notation.
    data_dir: of a named set: folder of all prepared datasets.
    question: of a file: the column of the questions; a dot leads into a column of groups, 'extra.question'.
    answer: of a file: the column of the answers: numbers, or texts whose answer follows the last ####, stands in the last box, or is all.
    limit: at most so many, the first; None for all.
    whole: take answers as they stand, such as worked solutions to be imitated, and not what they mark as their result.

  Raises:
    UserError: an unknown name, a set that is not prepared, a file that is missing or damaged, a column that is missing, a question or an
      answer that is empty or no text.
  """
  if limit is not None and limit < 1:
    raise UserError(f'limit={limit}: must be at least 1 or None; give the number of questions to read.')
  name = os.fspath(source)
  kind = name.partition('/')[0]
  if kind in SETS and not name.endswith(ENDINGS):
    if data_dir is None:
      raise UserError(f'data_dir=None: {name} is read from a folder of prepared datasets; give that folder.')
    question, answer = SETS[kind]
    rows: Iterator[tuple[str, Mapping[str, Any]]] = (
      (f'{name} {split} row {row}', record) for row, record in enumerate(tfds_builders.load(name, split, data_dir))
    )
  elif name.endswith(ENDINGS):
    path = Path(source)
    if not path.is_file():
      raise UserError(f'source={name!r}: there is no such file; give the path of a .jsonl or .parquet file.')
    rows = _json_lines(path) if name.endswith('.jsonl') else _parquet(path, (question, answer))
  else:
    raise UserError(
      f'source={name!r}: is neither of {", ".join(SETS)} nor a path that ends in {" or ".join(ENDINGS)}; give one of these.'
      f'{nearest(kind, list(SETS))}'
    )
  questions: list[str] = []
  references: list[str] = []
  for place, record in rows:
    if len(questions) == limit:
      break
    questions.append(_text(record, question, place))
    text = _text(record, answer, place)
    reference = text if whole else reference_answer(text)
    if not reference:
      raise UserError(f'{answer}={record!r:.60}: {place} marks an empty answer; remove the row or give its answer.')
    references.append(reference)
  if not questions:
    raise UserError(f'source={name!r}: holds no question; give a split or a file that holds some.')
  return Questions(tuple(questions), tuple(references))


def tokenised(
  prompts: Sequence[str], encode: Callable[[str], Sequence[int]], *, pad_id: int, length: int | None = None
) -> tuple[Examples, np.ndarray]:
  """Prompts as one array, padded on the left, for `examples.training_batches`, whose index_B names rows of what is kept.

  Args:
    prompts: R texts.
    encode: text -> token ids.
    pad_id: stands where there is no token.
    length: P; None for the longest prompt. Prompts with more tokens are left out, never cut: a question without its end has no answer.

  Returns:
    Examples with prompt_tokens_BxP (int32) and prompt_mask_BxP (bool), and the kept rows of prompts (int64 [R']).
  """
  ids = [list(encode(prompt)) for prompt in prompts]
  width = max(map(len, ids), default=0) if length is None else length
  kept = np.array([row for row, found in enumerate(ids) if 0 < len(found) <= width], np.int64)
  if not len(kept):
    shortest = min(map(len, ids), default=0)
    raise UserError(f'length={length}: no prompt has so few tokens, the shortest has {shortest}; give a larger length.')
  rows = in_rows([ids[row] for row in kept], [prompts[row] for row in kept], width, side='left', pad_id=pad_id)
  return Examples({'prompt_tokens_BxP': rows.tokens, 'prompt_mask_BxP': rows.mask}), kept


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
  with path.open('rb') as file:
    for number, line in enumerate(file, 1):
      if not line.strip():
        continue
      place = f'{path.name} line {number}'
      try:
        record = json.loads(line)
      except (ValueError, RecursionError):
        raise UserError(f'source={os.fspath(path)!r}: line {number} is not JSON; repair or remove it.') from None
      if not isinstance(record, dict):
        raise UserError(f'source={os.fspath(path)!r}: line {number} is not an object; write {{"question": ..., "answer": ...}}.')
      yield place, record


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
  import pyarrow
  import pyarrow.parquet

  try:
    file = pyarrow.parquet.ParquetFile(path)
    names = file.schema_arrow.names
    wanted = [column.split('.')[0] for column in columns]
    row = 0
    for batch in file.iter_batches(columns=[column for column in dict.fromkeys(wanted) if column in names] or names):
      for record in batch.to_pylist():
        row += 1
        yield f'{path.name} row {row}', dict.fromkeys(names) | record if set(wanted) <= set(names) else dict.fromkeys(names)
  except (pyarrow.ArrowException, OSError) as error:
    reason = str(error).split('\n')[0].rstrip('.')
    raise UserError(f'source={os.fspath(path)!r}: cannot be read as Parquet ({reason}); give a whole file.') from None


def _text(record: Mapping[str, Any], column: str, place: str) -> str:
  """The text of a column; a dot leads into groups."""
  value: Any = record
  for part in column.split('.'):
    if not isinstance(value, Mapping) or part not in value:
      names = list(value) if isinstance(value, Mapping) else []
      raise UserError(f'column={column!r}: {place} has the columns {", ".join(names) or "none"}; give one of these.{nearest(part, names)}')
    value = value[part]
  if isinstance(value, bytes):
    value = value.decode(errors='replace')
  if isinstance(value, int | float | np.number) and not isinstance(value, bool):
    value = str(value)
  if not isinstance(value, str) or not value.strip():
    raise UserError(f'{column}={value!r:.60}: {place} must hold a text that is not empty, or a number; give one or remove the row.')
  return value
