import hashlib
import itertools
from fractions import Fraction

import numpy as np
import pytest

from entropy_jax.data import countdown
from entropy_jax.data.verifiers import Verdict, verify_countdown
from entropy_jax.types import UserError


@pytest.fixture(scope='module')
def three():
  return countdown.enumerate_problems()


def full_trees(numbers):
  """Oracle: every binary tree over every order of the numbers, as nested tuples."""
  if len(numbers) == 1:
    yield numbers[0]
  for cut in range(1, len(numbers)):
    for left, right in itertools.product(full_trees(numbers[:cut]), full_trees(numbers[cut:])):
      for operator in '+-*/':
        yield (operator, left, right)


def value(tree):
  if not isinstance(tree, tuple):
    return Fraction(tree)
  a, b = value(tree[1]), value(tree[2])
  if a is None or b is None or (tree[0] == '/' and b == 0):
    return None
  return a + b if tree[0] == '+' else a - b if tree[0] == '-' else a * b if tree[0] == '*' else a / b


def signed_terms(tree, plain, inverse):
  """The operands of a maximal chain of one binding as (sign, subtree): a+(b-c) is flattened, a-(b-c) is not."""
  if isinstance(tree, tuple) and tree[0] in (plain, inverse):
    yield from signed_terms(tree[1], plain, inverse)
    if tree[0] == plain:
      yield from signed_terms(tree[2], plain, inverse)
    else:
      yield inverse, tree[2]
  else:
    yield plain, tree


def render(tree):
  """Oracle for the fewest parentheses, written by flattening chains instead of comparing bindings."""
  if not isinstance(tree, tuple):
    return str(tree)
  pair = '+-' if tree[0] in '+-' else '*/'
  text = ''
  for sign, part in signed_terms(tree, *pair):
    same = isinstance(part, tuple) and part[0] in pair
    weaker = isinstance(part, tuple) and pair == '*/' and part[0] in '+-'
    text += sign + (f'({render(part)})' if same or weaker else render(part))
  return text[1:]


class TestExpressions:
  def test_two_numbers(self):
    assert countdown.expressions((3, 2)) == ('2*3', '2+3', '2-3', '2/3', '3*2', '3+2', '3-2', '3/2')

  def test_equal_numbers_are_not_listed_twice(self):
    assert countdown.expressions((4, 4)) == ('4*4', '4+4', '4-4', '4/4')

  @pytest.mark.parametrize('numbers', [(3, 5, 7), (2, 2, 4), (1, 1, 1), (2, 3, 6, 6)])
  def test_equals_all_trees(self, numbers):
    trees = [tree for order in set(itertools.permutations(numbers)) for tree in full_trees(order)]
    expected = {render(tree) for tree in trees if value(tree) is not None}
    assert countdown.expressions(numbers) == tuple(sorted(expected))

  def test_parentheses_are_kept_only_where_they_matter(self):
    texts = countdown.expressions((2, 3, 5))
    assert {'2-(3-5)', '2-(3+5)', '2/(3*5)', '2/(3/5)', '(2+3)*5', '2*(3-5)'} <= set(texts)
    assert not {'2+(3-5)', '(2+3)+5', '2*(3/5)', '(2*3)/5', '(2/3)*5', '2+(3*5)'} & set(texts)

  @pytest.mark.parametrize('numbers', [(5,), (1, 2, 3, 4, 5), (0, 1, 2), ()])
  def test_refuses_other_numbers(self, numbers):
    with pytest.raises(UserError, match='numbers='):
      countdown.expressions(numbers)


class TestSolutions:
  def test_hand_listed(self):
    # 3*5 + 7 = 22 in its four orders of commuting operands; no other combination of 3, 5, 7 makes 22.
    assert countdown.solutions((7, 5, 3), 22) == ('3*5+7', '5*3+7', '7+3*5', '7+5*3')

  def test_fractional_intermediate_value(self):
    # 8 / (3 - 8/3) = 8 / (1/3) = 24.
    assert countdown.solutions((3, 3, 8, 8), 24) == ('8/(3-8/3)',)

  def test_negative_intermediate_value(self):
    assert '2-3+5' in countdown.solutions((2, 3, 5), 4)

  def test_unsolvable_is_empty(self):
    assert countdown.solutions((1, 1, 1), 50) == ()


class TestEnumerateProblems:
  def test_two_numbers_against_loops(self):
    expected = set()
    for a in range(1, 10):
      for b in range(a, 10):
        values = {a + b, b - a, a * b} | ({b // a} if b % a == 0 else set())
        expected |= {((a, b), v) for v in values if 1 <= v <= 99}
    assert set(countdown.enumerate_problems(num_numbers=2)) == expected

  def test_three_numbers(self, three):
    values = {}
    for numbers in itertools.combinations_with_replacement(range(1, 10), 3):
      for order in set(itertools.permutations(numbers)):
        for tree in full_trees(order):
          v = value(tree)
          if v is not None and v.denominator == 1 and 1 <= v <= 99:
            values.setdefault((numbers, int(v)), set()).add(render(tree))
    assert {problem: set(answers) for problem, answers in three.items()} == values

  def test_is_ordered_and_agrees_with_solutions(self, three):
    assert list(three) == sorted(three)
    for problem in list(three)[::97]:
      assert three[problem] == countdown.solutions(*problem)

  def test_every_answer_verifies(self, three):
    for (numbers, target), answers in three.items():
      assert all(verify_countdown(answer, numbers, target) is Verdict.CORRECT for answer in answers)

  def test_lengths_of_prompt_and_answer(self, three):
    assert max(len(countdown.prompt_text(*problem)) for problem in three) == 9
    assert max(len(answer) for answers in three.values() for answer in answers) == 7

  def test_four_numbers_that_make_24(self):
    # The game of 24 with digits 1 to 9: 404 of the 495 hands can be solved (a known count).
    problems = countdown.enumerate_problems(num_numbers=4, min_target=24, max_target=24)
    assert len(problems) == 404
    assert problems[(3, 3, 8, 8), 24] == ('8/(3-8/3)',)

  @pytest.mark.parametrize(
    'arguments', [{'num_numbers': 5}, {'num_numbers': 1}, {'max_number': 0}, {'max_number': 100}, {'min_target': 100}]
  )
  def test_refuses_arguments_out_of_range(self, arguments):
    with pytest.raises(UserError, match=next(iter(arguments))):
      countdown.enumerate_problems(**arguments)


class TestSplitOf:
  def test_is_the_documented_hash(self):
    for target in range(1, 60):
      fraction = int(hashlib.sha256(f'2 5 9={target}:'.encode()).hexdigest()[:16], 16) / 2**64
      expected = 'train' if fraction <= 0.8 else 'validation' if fraction <= 0.9 else 'test'
      assert countdown.split_of((2, 5, 9), target) == expected

  def test_every_order_falls_together(self, three):
    for numbers, target in list(three)[::50]:
      assert len({countdown.split_of(order, target) for order in itertools.permutations(numbers)}) == 1

  def test_fractions(self, three):
    counts = {split: len(countdown.split_problems(three, split)) for split in countdown.SPLIT_ENDS}
    assert sum(counts.values()) == len(three) == 2144
    # Standard deviation of a binomial share of 2144: 0.9 % at 80 %, 0.65 % at 10 %; four of them are allowed.
    assert abs(counts['train'] / 2144 - 0.8) < 0.036
    assert abs(counts['validation'] / 2144 - 0.1) < 0.026
    assert abs(counts['test'] / 2144 - 0.1) < 0.026

  def test_unknown_split(self, three):
    with pytest.raises(UserError, match="split='dev'"):
      countdown.split_problems(three, 'dev')


class TestSolutionCounts:
  def test_counts(self):
    problems = {countdown.Problem((1, 2), 3): ('1+2', '2+1'), countdown.Problem((1, 2), 2): ('1*2', '2*1', '2/1')}
    counts = countdown.solution_counts(problems)
    np.testing.assert_array_equal(counts, [2, 3])
    assert counts.dtype == np.int64


class TestPromptText:
  def test_keeps_the_order_given(self):
    assert countdown.prompt_text((7, 3, 5), 22) == '7 3 5=22:'
    assert countdown.canonical_problem(np.array([7, 3, 5]), np.int32(22)) == ((3, 5, 7), 22)


class TestReadPrompt:
  def test_reads_what_prompt_text_writes(self):
    for numbers, target in (((7, 3, 5), 22), ((1, 1), -2), ((10, 99, 3, 4), 1000)):
      assert countdown.read_prompt(countdown.prompt_text(numbers, target)) == (numbers, target)

  @pytest.mark.parametrize('text', ['', '22', '3 5 7=22', '3  5=8:', '3 5=:', '3 x=8:', '3 5=8: ', '٣ 5=8:', '3 5=8:\n'])
  def test_refuses_anything_else(self, text):
    with pytest.raises(UserError, match="is no countdown problem; write numbers and target as '3 5 7=22:'"):
      countdown.read_prompt(text)
