"""The countdown task: reach a target with the given numbers, each used exactly once, and + - * / with parentheses.

Small enough that every problem and every correct answer can be listed, so that success rates, supports and entropies
have exact references. The answers of a problem are defined so: take every binary tree whose leaves are the given
numbers in some order and whose nodes are + - * /, with exact rational values (negative and fractional intermediate
values are allowed, division by zero is not), and write it with the fewest parentheses. A left operand keeps them when
it binds weaker than its operator, a right operand also when the operator is - or / and both bind equally. The answers
are the distinct texts of the trees whose value is the target. Trees that differ by associativity alone, such as
3+(5+7) and (3+5)+7, share one text; 3+5 and 5+3 are two. A text with redundant parentheses, such as (3)+5, is accepted
by the verifier but is not among the answers listed here.
"""

import functools
import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from entropy_jax.types import UserError

# Upper end of each split's share of the hash range: 80 %, 10 %, 10 %.
SPLIT_ENDS = {'train': 0.8, 'validation': 0.9, 'test': 1.0}
MAX_NUMBERS = 4  # five numbers have about 10^6 expressions each
_PROMPT = re.compile(r'[0-9]{1,6}( [0-9]{1,6}){0,15}=-?[0-9]{1,6}:')

# An expression: its exact value num / den (not reduced, den != 0), its text, and how tightly its last operation binds.
_Node = tuple[int, int, str, int]


class Problem(NamedTuple):
  """The canonical form of a problem: its numbers in ascending order, and the target."""

  numbers: tuple[int, ...]
  target: int


def canonical_problem(numbers: Iterable[int], target: int) -> Problem:
  """The problem's identity, the same for every order of its numbers.

  >>> canonical_problem((7, 3, 5), 22)
  Problem(numbers=(3, 5, 7), target=22)
  """
  return Problem(tuple(sorted(int(n) for n in numbers)), int(target))


def prompt_text(numbers: Iterable[int], target: int) -> str:
  """The prompt, numbers in the order given.

  >>> prompt_text((3, 5, 7), 22)
  '3 5 7=22:'
  """
  return f'{" ".join(str(int(n)) for n in numbers)}={int(target)}:'


@functools.lru_cache(maxsize=1 << 14)
def read_prompt(text: str) -> tuple[tuple[int, ...], int]:
  """Numbers, in the order shown, and target of a prompt that `prompt_text` wrote.

  >>> read_prompt('3 5 7=22:')
  ((3, 5, 7), 22)
  """
  if not _PROMPT.fullmatch(text):
    raise UserError(f'problem={text!r:.60}: is no countdown problem; write numbers and target as {prompt_text((3, 5, 7), 22)!r}.')
  numbers, _, target = text.removesuffix(':').partition('=')
  return tuple(map(int, numbers.split(' '))), int(target)


def expressions(numbers: Iterable[int]) -> tuple[str, ...]:
  """Every expression over the numbers, whatever its value, in text order.

  >>> expressions((2, 3))
  ('2*3', '2+3', '2-3', '2/3', '3*2', '3+2', '3-2', '3/2')
  """
  return tuple(text for _, _, text, _ in _expressions(_checked(numbers)))


def solutions(numbers: Iterable[int], target: int) -> tuple[str, ...]:
  """Every correct answer of a problem (the set in the module docstring), in text order; empty where there is none.

  >>> solutions((3, 5, 7), 22)
  ('3*5+7', '5*3+7', '7+3*5', '7+5*3')
  """
  return tuple(text for num, den, text, _ in _expressions(_checked(numbers)) if num == target * den)


def enumerate_problems(
  *, num_numbers: int = 3, max_number: int = 9, min_target: int = 1, max_target: int = 99
) -> dict[Problem, tuple[str, ...]]:
  """Every solvable problem with all its correct answers, in order of numbers then target.

  Args:
    num_numbers: how many numbers a problem has, 2 to 4.
    max_number: numbers are 1..max_number, repetition allowed, at most 99.
    min_target: smallest target.
    max_target: largest target.

  Returns:
    problem -> its answers in text order, at least one.
  """
  if not 2 <= num_numbers <= MAX_NUMBERS:
    raise UserError(f'num_numbers={num_numbers}: must be in 2..{MAX_NUMBERS}, so that all problems can be listed.')
  if not 1 <= max_number <= 99:
    raise UserError(f'max_number={max_number}: must be in 1..99; give the largest number a problem may show.')
  if min_target > max_target:
    raise UserError(f'min_target={min_target}: exceeds max_target={max_target}; give min_target <= max_target.')
  found: dict[Problem, tuple[str, ...]] = {}
  for numbers in itertools.combinations_with_replacement(range(1, max_number + 1), num_numbers):
    by_target: dict[int, list[str]] = {}
    for num, den, text, _ in _expressions(numbers, min_target, max_target):
      by_target.setdefault(num // den, []).append(text)
    found.update({Problem(numbers, target): tuple(by_target[target]) for target in sorted(by_target)})
  return found


def split_of(numbers: Iterable[int], target: int) -> str:
  """'train', 'validation' or 'test' (80, 10, 10 %), by a hash of the canonical problem: every order falls together.

  The hash is SHA-256 of the canonical prompt as a fraction of 2^64; no seed, Python version or machine changes it.
  """
  digest = hashlib.sha256(prompt_text(*canonical_problem(numbers, target)).encode()).digest()
  fraction = int.from_bytes(digest[:8], 'big') / 2.0**64
  return next(name for name, end in SPLIT_ENDS.items() if fraction <= end)


def split_problems(problems: Mapping[Problem, tuple[str, ...]], split: str) -> dict[Problem, tuple[str, ...]]:
  """The problems of one split, in their order."""
  if split not in SPLIT_ENDS:
    raise UserError(f'split={split!r}: is not a split; use one of {", ".join(SPLIT_ENDS)}.')
  return {problem: answers for problem, answers in problems.items() if split_of(*problem) == split}


def solution_counts(problems: Mapping[Problem, tuple[str, ...]]) -> np.ndarray:
  """Number of correct answers of each problem, int64, in order.

  Its log is the largest entropy in nats that a policy can keep while every one of its answers is a listed one.
  """
  return np.array([len(answers) for answers in problems.values()], np.int64)


def _checked(numbers: Iterable[int]) -> tuple[int, ...]:
  numbers = tuple(sorted(int(n) for n in numbers))
  if not 2 <= len(numbers) <= MAX_NUMBERS or numbers[0] < 1:
    raise UserError(f'numbers={numbers}: must be 2 to {MAX_NUMBERS} integers of at least 1; give such numbers.')
  return numbers


def _join(
  lefts: Iterable[_Node], rights: Iterable[_Node], low: float, high: float, found: dict[str, _Node]
) -> None:
  """Adds every left op right (operands in this order); with finite bounds only integers in [low, high]."""
  every = low == -math.inf
  for (a, b, left, left_binding), (c, d, right, right_binding) in itertools.product(lefts, rights):
    # a/b + c/d = (ad + bc) / bd and (a/b) / (c/d) = ad / bc.
    ad, bc, bd = a * d, b * c, b * d
    for operator, num, den in (('+', ad + bc, bd), ('-', ad - bc, bd), ('*', a * c, bd), ('/', ad, bc)):
      if not den or not (every or (num % den == 0 and low <= num // den <= high)):
        continue
      # Bindings: 0 for + -, 1 for * /, 2 for a number. A weaker operand would be torn apart without parentheses,
      # and so would an equally strong one on the right of - or /.
      binding = int(operator in '*/')
      left_text = f'({left})' if left_binding < binding else left
      right_text = f'({right})' if right_binding < binding + (operator in '-/') else right
      text = f'{left_text}{operator}{right_text}'
      found[text] = (num, den, text, binding)


@functools.lru_cache(maxsize=16)
def _expressions(numbers: tuple[int, ...], low: float = -math.inf, high: float = math.inf) -> tuple[_Node, ...]:
  """Each text over all the numbers, once, in text order; with finite bounds only integers in [low, high]."""
  everything = (1 << len(numbers)) - 1
  by_subset: dict[int, list[_Node]] = {1 << i: [(n, 1, str(n), 2)] for i, n in enumerate(numbers)}
  for subset in range(1, everything + 1):
    if subset in by_subset:
      continue
    # Only the whole expression is filtered: its parts may take any value.
    bounds = (low, high) if subset == everything else (-math.inf, math.inf)
    found: dict[str, _Node] = {}
    part = (subset - 1) & subset
    while part:  # every proper non-empty part of the subset, as the left operand
      _join(by_subset[part], by_subset[subset ^ part], *bounds, found)
      part = (part - 1) & subset
    by_subset[subset] = list(found.values())
  return tuple(sorted(by_subset[everything], key=lambda node: node[2]))
