"""Verifiers: from the text a policy wrote to a verdict and a reward.

The text is read by a recursive-descent parser with exact rational values; nothing is ever evaluated as code. Input is
taken as hostile: length, digits per number and depth are bounded before any work grows with them, only ASCII characters
of the grammar are accepted, and no input raises.
"""

import enum
from collections.abc import Sequence

import numpy as np

from entropy_jax.types import UserError

MAX_CHARACTERS = 64
MAX_DEPTH = 16
MAX_DIGITS = 6


class Verdict(enum.Enum):
  """What is said of an answer; the first that applies, in the order too long, malformed, wrong numbers, wrong value."""

  CORRECT = 'correct'
  WRONG_VALUE = 'wrong_value'  # the value is not the target, or there is none (division by zero)
  WRONG_NUMBERS = 'wrong_numbers'  # the numbers used are not the given ones, each exactly once
  MALFORMED = 'malformed'  # not an expression of the grammar
  TOO_LONG = 'too_long'  # more than MAX_CHARACTERS characters


class _GrammarError(Exception):
  """The text is not in the grammar."""


# An exact value num / den; den = 0 stands for "no value" and stays 0 through every operation below.
_Value = tuple[int, int]


class _Parser:
  """sum = product {(+|-) product}; product = atom {(*|/) atom}; atom = number | '(' sum ')'; number without sign."""

  __slots__ = ('depth', 'numbers', 'position', 'text')

  def __init__(self, text: str):
    self.text = text + '\n'  # a character outside the grammar ends the text, so no bound has to be checked
    self.position = 0
    self.depth = 0
    self.numbers: list[int] = []

  def whole(self) -> _Value:
    value = self.sum()
    if self.position != len(self.text) - 1:
      raise _GrammarError
    return value

  def sum(self) -> _Value:
    num, den = self.product()
    while (operator := self.text[self.position]) in '+-':
      self.position += 1
      c, d = self.product()
      num, den = (num * d + c * den if operator == '+' else num * d - c * den), den * d
    return num, den

  def product(self) -> _Value:
    num, den = self.atom()
    while (operator := self.text[self.position]) in '*/':
      self.position += 1
      c, d = self.atom()
      # Dividing by c/d multiplies by d/c; where d is 0 there is no value, and d*den keeps it so.
      num, den = (num * c, den * d) if operator == '*' else (num * d, den * c if d else 0)
    return num, den

  def atom(self) -> _Value:
    start = self.position
    if self.text[start] == '(':
      self.depth += 1
      if self.depth > MAX_DEPTH:
        raise _GrammarError
      self.position += 1
      value = self.sum()
      if self.text[self.position] != ')':
        raise _GrammarError
      self.position += 1
      self.depth -= 1
      return value
    while '0' <= self.text[self.position] <= '9':  # str.isdigit would accept other scripts
      self.position += 1
    digits = self.text[start : self.position]
    if not digits or len(digits) > MAX_DIGITS or (digits[0] == '0' and digits != '0'):
      raise _GrammarError
    self.numbers.append(int(digits))
    return self.numbers[-1], 1


def verify_countdown(answer: str, numbers: Sequence[int], target: int) -> Verdict:
  """Whether an answer uses each given number exactly once and has exactly the target's value.

  Args:
    answer: the text, any string at all.
    numbers: the given numbers, in any order.
    target: the target.

  Returns:
    A `Verdict`. Spaces, signs, leading zeros and every character other than 0-9 + - * / ( ) are malformed.

  >>> verify_countdown('3*5+7', (7, 3, 5), 22), verify_countdown('3*7+5', (7, 3, 5), 22)
  (<Verdict.CORRECT: 'correct'>, <Verdict.WRONG_VALUE: 'wrong_value'>)
  """
  if len(answer) > MAX_CHARACTERS:
    return Verdict.TOO_LONG
  parser = _Parser(answer)
  try:
    num, den = parser.whole()
  except _GrammarError:
    return Verdict.MALFORMED
  if sorted(parser.numbers) != sorted(numbers):
    return Verdict.WRONG_NUMBERS
  return Verdict.CORRECT if den and num == target * den else Verdict.WRONG_VALUE


def countdown_rewards(
  answers: Sequence[str], problems: Sequence[tuple[Sequence[int], int]]
) -> tuple[np.ndarray, dict[str, int]]:
  """Rewards of a batch: 1 for a correct answer, 0 for any other.

  Args:
    answers: B texts.
    problems: B pairs of numbers and target, one an answer (a `countdown.Problem` is such a pair).

  Returns:
    reward_B (float32) and the number of answers of every verdict, by its value, zeros included.
  """
  if len(answers) != len(problems):
    raise UserError(f'problems: {len(problems)} were given for {len(answers)} answers; give one problem an answer.')
  verdicts = [verify_countdown(answer, *problem) for answer, problem in zip(answers, problems, strict=True)]
  counts = {verdict.value: 0 for verdict in Verdict}
  for verdict in verdicts:
    counts[verdict.value] += 1
  return np.array([verdict is Verdict.CORRECT for verdict in verdicts], np.float32), counts
