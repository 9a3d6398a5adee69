r"""The answer that a completion marks as its last word: in a box, between answer tags, or behind ####.

A completion has one answer or none: where it marks several that differ, none counts, so a spray of guesses earns nothing. What a model
thinks aloud before `</think>` marks nothing, and the prompt, where the completion repeats it, is removed. Time is linear in the text.
"""

import enum
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from entropy_jax.data import math_answers
from entropy_jax.types import UserError

MAX_MARKS = 32
MIN_ECHO = 16  # characters of a prompt from which on its repetition is removed
FORMS = ('tag', 'box', 'hash', 'bare')
END_OF_THINKING = '</think>'

_BOX = re.compile(r'\\(?:boxed|fbox)\s*\{')
_BRACE = re.compile(r'[{}]')
_HASH = re.compile(r'####[ \t]*([^\n]*)')
_TAG, _END_TAG = '<answer>', '</answer>'


class Found(enum.Enum):
  """What a completion marks."""

  ANSWER = 'answer'
  NOTHING = 'nothing'  # no mark, or only empty ones
  SEVERAL = 'several'  # answers that differ
  TOO_LONG = 'too_long'  # longer than math_answers.MAX_CHARACTERS
  UNBALANCED = 'unbalanced'  # braces or a tag that do not close


class Marked(NamedTuple):
  """The answer of a completion; text is '' where there is none."""

  text: str
  found: Found


def marked_answer(completion: str, *, prompt: str = '', forms: Sequence[str] = ('tag', 'box', 'hash'), conflicts: str = 'reject') -> Marked:
  r"""The one answer that a completion marks.

  Args:
    completion: what the model wrote, any string at all.
    prompt: what it was given; a repetition of it is no answer.
    forms: which marks count: 'tag' <answer>...</answer>, 'box' \boxed{...}, 'hash' what follows #### on its line, unless it reads as a
      heading, 'bare' the whole of a short completion. The first form of which there is a mark is the one that counts.
    conflicts: 'reject' finds nothing where marks differ, 'last' takes the last of them. The second rewards a spray of guesses.

  >>> marked_answer(r'so \boxed{\frac{1}{2}}.'), marked_answer(r'\boxed{1} or \boxed{2}').found.value
  (Marked(text='\\frac{1}{2}', found=<Found.ANSWER: 'answer'>), 'several')
  """
  check_forms(forms, conflicts)
  text = completion[completion.rfind(END_OF_THINKING) + len(END_OF_THINKING) :] if END_OF_THINKING in completion else completion
  if len(prompt) >= MIN_ECHO and prompt in text:
    text = text.replace(prompt, '\n')
  answers: list[str] = []
  try:
    for form in forms:
      answers = answers or [plain for mark in _MARKS[form](text) for part in _without_boxes(mark) if (plain := _unmarked(part))]
  except _FlawError as flaw:
    return Marked('', flaw.found)
  if not answers:
    return Marked('', Found.NOTHING)
  if conflicts == 'last':
    answers = answers[-1:]
  if max(map(len, answers)) > math_answers.MAX_CHARACTERS:
    return Marked('', Found.TOO_LONG)
  return Marked(answers[-1], Found.ANSWER) if _all_the_same(answers) else Marked('', Found.SEVERAL)


def check_forms(forms: Sequence[str], conflicts: str) -> None:
  """Refuses what `marked_answer` does not know."""
  unknown = [form for form in forms if form not in FORMS]
  if unknown or not forms:
    raise UserError(f'forms={list(forms)!r}: must name at least one of {", ".join(FORMS)}; give such a list.')
  if conflicts not in ('reject', 'last'):
    raise UserError(f"conflicts={conflicts!r}: must be 'reject' or 'last'; give one of these.")


def reference_answer(text: str) -> str:
  r"""The answer of a reference: what follows its last ####, else what its last box holds, else all of it.

  >>> reference_answer('3 + 4 = 7\n#### 7'), reference_answer(r'hence $\boxed{x^{2}}$.'), reference_answer(' 12 ')
  ('7', 'x^{2}', '12')
  """
  _, mark, last = text.rpartition('####')
  if mark:
    return last.split('\n')[0].strip()
  start = max(text.rfind(r'\boxed{'), text.rfind(r'\fbox{'))
  if start < 0:
    return text.strip()
  open_at = text.index('{', start)
  end = _closing(text, open_at + 1, len(text))
  return text[open_at + 1 : end].strip() if end is not None else ''


class _FlawError(Exception):
  """What makes a completion bear no answer."""

  def __init__(self, found: Found):
    super().__init__(found.value)
    self.found = found


def _first_matches(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
  """All matches; more than MAX_MARKS are too many whatever they say."""
  matches = []
  for match in pattern.finditer(text):
    matches.append(match)
    if len(matches) > MAX_MARKS:
      raise _FlawError(Found.SEVERAL)
  return matches


def _closing(text: str, start: int, stop: int) -> int | None:
  """Where the brace closes that was opened before start; None where it does not close before stop."""
  depth = 1
  for match in _BRACE.finditer(text, start, stop):
    if match.start() and text[match.start() - 1] == '\\':
      continue  # \{ is a brace that is shown
    depth += 1 if match[0] == '{' else -1
    if not depth:
      return match.start()
  return None


def _boxed(text: str) -> list[str]:
  found = []
  for match in _first_matches(_BOX, text):
    # At most MAX_MARKS times so many characters are looked at, however boxes are nested.
    limit = match.end() + 4 * math_answers.MAX_CHARACTERS
    end = _closing(text, match.end(), limit)
    if end is None:
      raise _FlawError(Found.TOO_LONG if limit < len(text) else Found.UNBALANCED)
    found.append(text[match.end() : end])
  return found


def _without_boxes(mark: str) -> list[str]:
  """What a mark says: the boxes in it, where there are any, and of boxes in boxes the inner ones."""
  if not _BOX.search(mark):
    return [mark]
  return [box for box in _boxed(mark) if not _BOX.search(box)]


def _tagged(text: str) -> list[str]:
  found: list[str] = []
  place = text.find(_TAG)
  while place >= 0:
    start = place + len(_TAG)
    end = text.find(_END_TAG, start)
    if end < 0:
      raise _FlawError(Found.UNBALANCED)
    if len(found) == MAX_MARKS:
      raise _FlawError(Found.SEVERAL)
    found.append(text[start:end])
    place = text.find(_TAG, end)
  return found


def _after_hash(text: str) -> list[str]:
  return [match[1] for match in _first_matches(_HASH, text) if not _is_heading(match[1].strip())]


def _is_heading(line: str) -> bool:
  """Whether what follows #### is a heading of the text, 'Step 1', and not an answer."""
  return line[:1].isalpha() and ' ' in line and math_answers.parse_number(line) is None


def _bare(text: str) -> list[str]:
  return [text] if len(text.strip()) <= math_answers.MAX_CHARACTERS else []


_MARKS: dict[str, Callable[[str], list[str]]] = {'tag': _tagged, 'box': _boxed, 'hash': _after_hash, 'bare': _bare}


def _unmarked(answer: str) -> str:
  """The answer without $ $ or #### around it."""
  answer = answer.strip()
  for _ in range(math_answers.MAX_WRAPPERS):
    before = answer
    answer = answer.removeprefix('####').strip()
    for dollars in ('$$', '$'):
      inside = answer[len(dollars) : -len(dollars)]
      if len(answer) > 2 * len(dollars) and answer.startswith(dollars) and answer.endswith(dollars) and '$' not in inside:
        answer = inside.strip()
    if answer == before:
      break
  return answer


def _all_the_same(answers: Sequence[str]) -> bool:
  """Whether all of them say what the last does, as texts or by value."""
  distinct = {math_answers.canonical(answer): answer for answer in answers}
  last = distinct[math_answers.canonical(answers[-1])]
  return all(math_answers.agree(answer, last) for answer in distinct.values())
