"""data/math_answers.py: exact values of answers."""

import random
from fractions import Fraction

import pytest

from benchmarks import answer_cases
from entropy_jax.data import math_answers
from entropy_jax.data.math_answers import Number, agree, canonical, key, parse_number, tidy

VALUES = {
  '18': Fraction(18),
  '-7.': Fraction(-7),
  '\u22127': Fraction(-7),
  '+3': Fraction(3),
  '.5': Fraction(1, 2),
  '1,234,567.5': Fraction(2469135, 2),
  '10{,}000': Fraction(10000),
  r'1\,234': Fraction(1234),
  '3/4': Fraction(3, 4),
  '-3/-4': Fraction(3, 4),
  r'\frac{3}{4}': Fraction(3, 4),
  r'\dfrac34': Fraction(3, 4),
  r'-\tfrac{1.5}{-2}': Fraction(3, 4),
  r'2\frac{1}{4}': Fraction(9, 4),
  '-2 1/4': Fraction(-9, 4),
  r'0.1\overline{6}': Fraction(1, 6),
  '1.5e3': Fraction(1500),
  '1.5E-03': Fraction(3, 2000),
  r'1.5 \times 10^{3}': Fraction(1500),
  '3×10⁴': Fraction(30000),
  '10^{-3}': Fraction(1, 1000),
  '5 million': Fraction(5 * 10**6),
  r'$\$18$': Fraction(18),
  '-$5': Fraction(-5),
  '$-5': Fraction(-5),
  'US$ 5': Fraction(5),
  'Rs. 50': Fraction(50),
  '{{5}}': Fraction(5),
  r'\text{5}': Fraction(5),
}
NOT_NUMBERS = (
  *('', ' ', '-', '.', '--5', '1,23', '12,34', '1.234,5', '1 234', '1_000', '0x12', 'NaN', 'inf', '٣', '１２', '½', '5!', '2^3', '3 7/2'),
  *('3/0', r'\frac{1}{0}', '5x', '5m', '5 xy', '5 or 6', '18 dozen', '5 plus', '5, 6', '5 % off', '12:30', 'x=y=5', '5=5', '(5)', '+$-5'),
)


class TestParseNumber:
  @pytest.mark.parametrize('text', VALUES)
  def test_value(self, text):
    assert parse_number(text).value == VALUES[text]

  @pytest.mark.parametrize('text', NOT_NUMBERS)
  def test_refuses(self, text):
    assert parse_number(text) is None

  def test_percent_unit_and_name(self):
    assert parse_number(r'12.5\%') == parse_number('12.5 percent') == Number(Fraction(25, 2), percent=True)
    assert parse_number(r'x = 5\text{ cm}') == Number(Fraction(5), unit='cm', name='x')
    assert [parse_number(text).unit for text in ('$5', '5 bucks', '5 cm^2', '5 miles/hour', r'30^\circ', '18 eggs', '5 square feet')] == [
      *('dollar', 'dollar', 'cm2', 'mile per hour', 'degree', 'eggs', 'square foot')
    ]

  def test_bounds_on_characters_digits_and_exponent(self):
    digits, spaces = math_answers.MAX_DIGITS, math_answers.MAX_CHARACTERS - 1
    assert parse_number('9' * digits).value == 10**digits - 1
    assert parse_number('9' * (digits + 1)) is None
    assert parse_number(' ' * spaces + '5').value == 5
    assert parse_number(' ' * (spaces + 1) + '5') is None
    assert parse_number('1e64').value == 10**64
    assert parse_number('1e65') is parse_number('1e-65') is parse_number('10^{999999999}') is None

  def test_no_text_raises(self):
    rng = random.Random(0)
    parts = [*'0123456789.,-+/% $^{}\\ex=', r'\frac', r'\text{', r'\overline{', '\u2009', '⁴', '\0', '\ud800', 'million', 'cm', '10^']
    for _ in range(800):
      text = ''.join(rng.choices(parts, k=rng.randint(0, 30)))
      parse_number(text)
      agree(text, '5')
      key(text)


class TestAgree:
  @pytest.mark.parametrize(
    ('answer', 'reference', 'expected'),
    [
      *((r'\frac{1}{2}', '0.50', True), ('0.33', '1/3', False), ('25%', '0.25', True), ('25', '25%', True), ('0.25', '25', False)),
      *(('18 eggs', '18', True), ('5 m', '5 cm', False), ('5 apples', '5 pears', None), ('y = 5', 'x = 5', None), ('5', 'x=5', True)),
      *(('(B)', 'B', True), ('C', 'B', False), ('true', 'True', True), ('No', 'Yes', False), (r'\sqrt{8}', r'2\sqrt{2}', None)),
      *((r'$\dfrac{\pi}{2}$', r'\frac{\pi}{2}', True), ('', '', None), ('5', '', None), ('1 8', '18', None), ('21/2', '2 1/2', False)),
      *(('5' * 300, '5' * 300, None), ('x', '5', None), (r'\begin{pmatrix}1\\ 2\end{pmatrix}', r'\begin{pmatrix}1\\2\end{pmatrix}', True)),
    ],
  )
  def test_cases(self, answer, reference, expected):
    assert agree(answer, reference) is expected

  def test_pairs_made_by_rule(self):
    # Every plain value is decided, and rightly; expressions are decided only where they are the same text.
    for pair in answer_cases.rule_pairs(60, seed=3):
      found = agree(pair.answer, pair.reference)
      assert found is pair.same or (pair.kind == 'expression' and found is None), pair

  def test_hard_pairs(self):
    pairs = answer_cases.hard_pairs()
    assert len(pairs) > 200
    decided = [(pair, found) for pair in pairs if (found := agree(pair.answer, pair.reference)) is not None]
    assert not [pair for pair, found in decided if found is not pair.same]
    assert len(decided) > 0.6 * len(pairs)


class TestTidy:
  def test_one_spelling(self):
    assert tidy(r' $\left( \dfrac{1}{2} \right)$. ') == r'( \frac{1}{2} )'
    assert tidy(r'\(x^2\)') == 'x^2' and tidy('{a}{b}') == '{a}{b}'
    long = ' ' * 300
    assert tidy(long) is long


class TestCanonical:
  def test_space_stays_between_digits_alone(self):
    assert canonical('x + 1') == canonical('x+1')
    assert canonical('1 8') != canonical('18')


class TestKey:
  def test_equal_values_have_one_key(self):
    assert key('0.5') == key(r'\frac{2}{4}') == key('$0.50') != key('50%')
    assert key('$x + 1$') == key('x+1') and key(' ') == ''
