r"""Whether completions end in the right answer: marked, compared exactly, and only where that does not decide, by math-verify in a pool.

What the exact comparison leaves open is sent on only if it looks like mathematics that is cheap to read: known commands, short words, few
digits, no towers of powers. What then still hangs or crashes costs its worker's deadline.
"""

import enum
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from entropy_jax.data import marked_answers, math_answers
from entropy_jax.data.deadline_pool import DeadlinePool, Ending
from entropy_jax.types import UserError

WORKER = Path(__file__).with_name('math_verify_worker.py')
MAX_CACHED = 1 << 16
MAX_DEPTH = 12
MAX_POWER = 10_000  # the product of all exponents in a text
MAX_FACTORIAL_DIGITS = 3

_COMMANDS = frozenset(
  word
  for line in (
    'frac sqrt pi cdot times div pm infty cup cap in le leq leqslant ge geq geqslant lt gt ne neq sin cos tan cot sec csc arcsin arccos',
    'arctan log ln exp theta alpha beta gamma delta lambda mu nu sigma tau phi varphi omega epsilon lfloor rfloor lceil rceil binom',
    'circ mathbb emptyset varnothing mid begin end overline bar quad qquad setminus',
  )
  for word in line.split()
)
_ENVIRONMENTS = frozenset(('pmatrix', 'bmatrix', 'vmatrix', 'matrix'))
_WORDS = frozenset(('sin', 'cos', 'tan', 'log', 'ln', 'exp', 'sqrt', 'pi'))
_COMMAND = re.compile(r'\\([A-Za-z]+)')
_LETTERS = re.compile(r'[A-Za-z]{3,}')
_SAFE = re.compile(r"[A-Za-z0-9\s\\{}()\[\]|+\-*/^_.,;:=<>!&%°']*")
_STARS = re.compile(r'\*\*\s*(?:([0-9]+|[A-Za-z])|\{?\(?(-?[0-9]+)\)?\}?)')
_TOWER = re.compile(r'[0-9)}\]]\s*\^')
_FACTORIAL = re.compile(r'([A-Za-z0-9)}\]]*)\s*!')
_EXPONENT = re.compile(r'[0-9]\s*[eE]\s*[+-]?\s*[0-9]{3}')  # 1e999 is a number to math-verify, of so many digits
_LISTED = re.compile(r'\s(?:or|and)\s')
# What an expression that stands for one number does not hold.
_MANY = re.compile(
  r'[,;:<>&]|\\[{}]|'
  r'\\(?:pm|cup|cap|in|le|leq|leqslant|ge|geq|geqslant|lt|gt|ne|neq|mid|setminus|begin|infty|mathbb|emptyset|varnothing)(?![A-Za-z])'
)


class Verdict(enum.Enum):
  """What is said of a completion."""

  CORRECT = 'correct'
  WRONG = 'wrong'
  REJECTED = 'rejected'  # it marks no answer, or one that nobody can or will read
  TIMED_OUT = 'timed_out'


class AnswerVerifier:
  """Verdicts on completions.

  Attributes:
    forms: see `marked_answers.marked_answer`.
    conflicts: see there.
    use_math_verify: whether what the exact comparison leaves open goes to math-verify; otherwise it is rejected.
    wall_limit: seconds that all open answers of one call may take; what is not done by then has timed out.
  """

  def __init__(
    self,
    *,
    forms: Sequence[str] = ('tag', 'box', 'hash'),
    conflicts: str = 'reject',
    use_math_verify: bool = True,
    num_workers: int | None = None,
    deadline: float = 3.0,
    wall_limit: float = 60.0,
  ):
    """Starts nothing yet.

    Args:
      forms, conflicts, use_math_verify, wall_limit: see the attributes.
      num_workers: processes of math-verify; None for one less than there are cores, at most 4.
      deadline: seconds that math-verify may take for one answer.
    """
    marked_answers.check_forms(forms, conflicts)
    if not wall_limit > 0:
      raise UserError(f'wall_limit={wall_limit}: must be in (0, inf]; give the seconds that the answers of a batch may take.')
    if use_math_verify and importlib.util.find_spec('math_verify') is None:
      raise UserError("use_math_verify=True: math-verify is not installed; run `pip install 'entropy_jax[verify]'` or give False.")
    self.forms, self.conflicts, self.wall_limit = tuple(forms), conflicts, wall_limit
    self.use_math_verify = use_math_verify
    workers = min(4, max(1, len(os.sched_getaffinity(0)) - 1)) if num_workers is None else num_workers
    self.pool = DeadlinePool([sys.executable, '-I', str(WORKER), str(deadline)], num_workers=workers, deadline=deadline)
    self._known: dict[tuple[str, str], Verdict] = {}

  def __enter__(self) -> 'AnswerVerifier':
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends the processes of math-verify."""
    self.pool.close()

  def answers(self, completions: Sequence[str], prompts: Sequence[str] | None = None) -> list[str]:
    """The text of the answer that each completion marks, '' for none."""
    given = [''] * len(completions) if prompts is None else prompts
    return [
      marked_answers.marked_answer(completion, prompt=prompt, forms=self.forms, conflicts=self.conflicts).text
      for completion, prompt in zip(completions, given, strict=True)
    ]

  def verify(self, completions: Sequence[str], references: Sequence[str], prompts: Sequence[str] | None = None) -> list[Verdict]:
    """A verdict on every completion.

    Args:
      completions: B texts, any strings at all.
      references: B right answers, as `marked_answers.reference_answer` gives them.
      prompts: B texts whose repetition in a completion is no answer, or None.
    """
    for name, texts in (('references', references), ('prompts', prompts)):
      if texts is not None and len(texts) != len(completions):
        raise UserError(f'{name}: {len(texts)} were given for {len(completions)} completions; give one for each.')
    return self.compare(self.answers(completions, prompts), references)

  def compare(self, answers: Sequence[str], references: Sequence[str]) -> list[Verdict]:
    """A verdict on every answer, without a completion around it; '' is rejected."""
    verdicts = [self._decide(answer, reference) for answer, reference in zip(answers, references, strict=True)]
    pairs = list(zip(answers, references, strict=True))
    self._ask(list(dict.fromkeys(pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is None)))
    return [self._known[pair] if verdict is None else verdict for pair, verdict in zip(pairs, verdicts, strict=True)]

  def _decide(self, answer: str, reference: str) -> Verdict | None:
    """None for what math-verify is to decide."""
    same = math_answers.agree(answer, reference)
    if same is not None:
      return Verdict.CORRECT if same else Verdict.WRONG
    return None if self.use_math_verify and request(answer, reference) is not None else Verdict.REJECTED

  def _ask(self, pairs: list[tuple[str, str]]) -> None:
    """Puts the verdicts on the pairs among what is known."""
    new = [pair for pair in pairs if pair not in self._known]
    for _ in range(len(self._known) + len(new) - MAX_CACHED):
      if oldest := next((pair for pair in self._known if pair not in pairs), None):
        del self._known[oldest]
    for pair, value in zip(new, self.pool.run([request(*pair) for pair in new], wall_limit=self.wall_limit), strict=True):
      if value is Ending.TIMED_OUT:
        self._known[pair] = Verdict.TIMED_OUT
      else:
        self._known[pair] = {True: Verdict.CORRECT, False: Verdict.WRONG}.get(value, Verdict.REJECTED)


def request(answer: str, reference: str) -> tuple[str, str] | None:
  r"""(reference, answer) as math-verify is to read them; None where it is not to be asked.

  Where the reference is one number the answer must be one expression: no list, relation or choice of several values, of which one
  might be right. Elsewhere it may list no more than the reference does.

  >>> request(r'$\sqrt{25}$', '5'), request('5, 6', '5'), request(r'\sqrt{9^{9^{9}}}', '5')
  (('5', '\\sqrt{25}'), None, None)
  """
  expected, given = _readable(reference), _readable(answer)
  if not expected or not given:
    return None
  if math_answers.parse_number(reference) is not None:
    left, equals, right = given.partition('=')
    if equals and (not left.strip().isalpha() or '=' in right):
      return None
    if _MANY.search(given):
      return None
  else:
    limit = len(_MANY.findall(expected))
    if len(_MANY.findall(given)) > limit or given.count('=') > expected.count('=') + limit + 1:
      return None
  return expected, given


def _readable(text: str) -> str | None:
  """The text as LaTeX that is safe and cheap to read, or None."""
  if len(text) > math_answers.MAX_CHARACTERS:
    return None
  text = _LISTED.sub(', ', math_answers.tidy(text)).replace('\u2009', ' ')
  text = _STARS.sub(lambda match: '^{' + (match[1] or match[2]) + '}', text).replace('\\%', '%').replace('%', '\\%')
  commands = [match[1] for match in _COMMAND.finditer(text)]
  environments = re.findall(r'\\(?:begin|end)\s*\{([A-Za-z]*)\}', text)
  words = _LETTERS.findall(_COMMAND.sub(' ', re.sub(r'\\(?:begin|end)\s*\{[A-Za-z]*\}', ' ', text)))
  known = set(commands) <= _COMMANDS and set(environments) <= _ENVIRONMENTS and set(words) <= _WORDS
  paired = len(environments) == commands.count('begin') + commands.count('end')
  if not text or '**' in text or not known or not paired or not _SAFE.fullmatch(text) or not _is_cheap(text):
    return None
  return text


def _is_cheap(text: str) -> bool:
  """Few digits, shallow, small powers and factorials."""
  if sum('0' <= character <= '9' for character in text) > math_answers.MAX_DIGITS:
    return False
  if _EXPONENT.search(text):
    return False
  depth = 0
  for character in text:
    depth += (character in '({[') - (character in ')}]')
    if depth > MAX_DEPTH:
      return False
  product = 1
  for start in (match.end() for match in re.finditer(r'\^', text)):
    exponent = _group(text, start)
    if exponent is None or _TOWER.search(exponent) or text[start + len(exponent) :].lstrip().startswith('^'):
      return False
    for digits in re.findall('[0-9]+', exponent):
      product *= max(1, int(digits))
  longest = max((len(digits) for digits in re.findall('[0-9]+', text)), default=0)
  if 'binom' in text and (longest > MAX_FACTORIAL_DIGITS or '^' in text):
    return False
  factorials = _FACTORIAL.findall(text)
  simple = all(len(base) <= MAX_FACTORIAL_DIGITS and base.isalnum() for base in factorials) and '!!' not in text.replace(' ', '')
  return product <= MAX_POWER and simple


def _group(text: str, start: int) -> str | None:
  """What an exponent that begins at start consists of: a group in braces, or one sign; None where braces do not close."""
  begin = start + len(text[start:]) - len(text[start:].lstrip())
  if not text.startswith('{', begin):
    return text[start : begin + 1] or None
  depth = 0
  for place in range(begin, len(text)):
    depth += (text[place] == '{') - (text[place] == '}')
    if not depth:
      return text[start : place + 1]
  return None
