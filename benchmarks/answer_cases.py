r"""Cases for `benchmarks.verifier` and the tests of the verifier: labelled pairs of answers, hostile completions, attacks on the reward.

A pair is labelled by how it was made: an exact value is written in two notations, or one of the values is changed first. Notations are
made by text alone, without the reader under test. Hand-written hard pairs lie in tests/data/answer_pairs.jsonl. What the labels hold to:
values are exact (0.33 is not 1/3), a percent sign may be left out (25% is 25 and 0.25), and so may a unit (18 eggs is 18).
"""

import json
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

HARD = Path(__file__).resolve().parent.parent / 'tests' / 'data' / 'answer_pairs.jsonl'


class Pair(NamedTuple):
  """Two answers, and whether they are the same."""

  kind: str
  reference: str
  answer: str
  same: bool


class Case(NamedTuple):
  """A completion that must earn nothing."""

  kind: str
  completion: str
  reference: str
  prompt: str = ''


def hard_pairs() -> list[Pair]:
  """The hand-written ones."""
  return [Pair(**json.loads(line)) for line in HARD.read_text().splitlines()]


def _grouped(value: int, separator: str) -> str:
  return f'{value:,}'.replace(',', separator)


def _terminating(value: Fraction) -> str | None:
  """Decimal digits, where they end within six places."""
  scaled = value * 10**6
  if scaled.denominator != 1:
    return None
  whole, rest = divmod(abs(scaled.numerator), 10**6)
  digits = f'{rest:06d}'.rstrip('0')
  return ('-' if value < 0 else '') + str(whole) + (f'.{digits}' if digits else '')


def _notations(value: Fraction) -> dict[str, str]:
  """Kind -> the value in that notation."""
  sign, size = ('-' if value < 0 else ''), abs(value)
  num, den = size.numerator, size.denominator
  found = {'frac': rf'{sign}\frac{{{num}}}{{{den}}}', 'slash': f'{sign}{num}/{den}'}
  found['unreduced'] = rf'{sign}\dfrac{{{3 * num}}}{{{3 * den}}}'
  if den == 1:
    found |= {'integer': f'{sign}{num}', 'grouped': sign + _grouped(num, ','), 'tex_grouped': sign + _grouped(num, '{,}')}
    found |= {'money': f'{sign}${num}', 'eggs': f'{sign}{num} eggs', 'meters': rf'{sign}{num}\text{{ meters}}'}
    found['point_zero'] = f'{sign}{num}.0'
    found |= {'named': f'x = {sign}{num}', 'dollars': f'${sign}{num}$', 'bold': f'**{sign}{num}**', 'stop': f'{sign}{num}.'}
  elif num > den:
    found['mixed'] = rf'{sign}{num // den}\frac{{{num % den}}}{{{den}}}'
  if (decimal := _terminating(value)) is not None:
    found |= {'decimal': decimal, 'zeros': decimal + ('00' if '.' in decimal else '.00')}
    hundredfold, thousandth = _terminating(100 * value), _terminating(value / 1000)
    if hundredfold is not None:
      found['percent'] = hundredfold + r'\%'
    if thousandth is not None:
      found |= {'e': thousandth + 'e3', 'times': rf'{thousandth} \times 10^{{3}}'}
  return found


def _changed(value: Fraction, rng: random.Random) -> Fraction:
  """Another value, the sort of slip that a model or a loose reader makes; not 100 times or a hundredth, which a percent sign may hide."""
  slips: list[Callable[[], Fraction]] = [
    lambda: -value,
    lambda: value + 1,
    lambda: value - Fraction(1, 10),
    lambda: value * 10,
    lambda: value / 10,
    lambda: value + Fraction(1, 1000),
    lambda: 1 / value,
    lambda: Fraction(value.numerator, value.denominator + 1),
    lambda: Fraction(int(str(abs(value.numerator)) + '7'), value.denominator),
    lambda: Fraction(int(str(abs(value.numerator))[::-1]), value.denominator),
  ]
  for slip in rng.sample(slips, len(slips)):
    if slip() not in (value, 100 * value, value / 100):
      return slip()
  return value + 1


def _expressions() -> Iterator[tuple[str, str, str]]:
  """(an expression, the same written otherwise, another one) of kinds that are no plain numbers."""
  for a, b in ((2, 3), (3, 5), (4, 7), (5, 2), (6, 11)):
    yield rf'{a}\sqrt{{{b}}}', rf'\sqrt{{{a * a * b}}}', rf'{b}\sqrt{{{a}}}'
    yield f'x^2+{2 * a}x+{a * a}', f'(x+{a})^2', f'(x-{a})^2'
    yield f'{a}x+{b}', f'{b}+{a}x', f'{b}x+{a}'
    yield rf'\frac{{{a}\pi}}{{{b}}}', rf'{a}\pi/{b}', rf'\frac{{{b}\pi}}{{{a}}}'
    yield f'{a}*y**2 + {b}*y', rf'{a}y^{{2}}+{b}y', f'{a}y^3+{b}y'
    yield f'[{a},{a + b})', f'[{a}, {a + b})', f'({a}, {a + b}]'
    yield f'({a},-{b})', rf'\left({a}, -{b}\right)', f'(-{b}, {a})'
    yield rf'\{{{a}, {a + 20}\}}', rf'\{{{a + 20}, {a}\}}', rf'\{{{a}, {a + 21}\}}'


def rule_pairs(num_values: int, seed: int = 0) -> list[Pair]:
  """Pairs of num_values values, 3 that are the same and 3 that are not of each, and pairs of expressions."""
  rng = random.Random(seed)
  pairs = []
  for n in range(num_values):
    size = rng.choice((20, 1000, 10**6))
    value = Fraction(rng.choice((1, 1, 1, -1)) * rng.randint(1, size), 1 if n % 2 else rng.choice((2, 3, 4, 5, 7, 8, 12, 25)))
    ours, wrong = _notations(value), _notations(_changed(value, rng))
    for _ in range(3):
      for same, notations in ((True, ours), (False, wrong)):
        plain = rng.choice([kind for kind in ('integer', 'slash', 'frac', 'decimal') if kind in ours])
        kind = rng.choice(sorted(notations))
        pairs.append(Pair(f'{plain} {kind}', ours[plain], notations[kind], same))
  for expression, same_text, other in _expressions():
    pairs += [Pair('expression', expression, same_text, True), Pair('expression', expression, other, False)]
  return pairs


def hostile_completions(count: int, canary: str, seed: int = 0) -> list[Case]:
  """Malformed texts and texts that would do harm if anything ran or expanded them; canary is the path that code in them would create."""
  rng = random.Random(seed)
  code = [
    f"__import__('os').system('touch {canary}')",
    f"open('{canary}','w')",
    f"().__class__.__base__.__subclasses__()[0] or open('{canary}','w').write('x')",
    f"exec('open(\"{canary}\",\"w\")')",
    f"lambda: __import__('pathlib').Path('{canary}').touch()",
    f"; touch {canary} ;",
    f"$(touch {canary})",
    rf'\input{{|touch {canary}}}',
    rf'\write18{{touch {canary}}}',
    f"sympify(\"open('{canary}','w')\")",
  ]
  towers = ['9^{9^{9^{9}}}', '9^9^9^9', '(10^{9})!', r'\binom{10^9}{5\cdot 10^8}', '1e999999999', '10^{10^{10}}', '9' * 10_000, '((9!)!)!']
  wild = ['\0', '\u202e18\u202c', '\ud800', '\ufeff18', '١٨', '𝟏𝟖', '1\u0301' * 500, '\x1b[2J', '½', '∞', 'NaN', '1_8', '0x12', '-' * 999]
  wild += ['1' + '0' * 400, '2**(2**99)']
  commands = [r'\boxed{', r'\frac{', '####', '<answer>', '</answer>', r'\sqrt']
  alphabet = [*'0123456789+-*/^_={}()[]\\$%&#~.,;:<>|!?\'" \n\tabcxyz', *commands, *wild[:6]]
  marks = [(r'\boxed{', '}'), ('#### ', ''), ('<answer>', '</answer>'), (r'so $\boxed{', '}$.'), (r'\boxed{\frac{', '}{1}}')]
  marks += [(r'\boxed{\sqrt{', '}}')]

  def wrapped(text: str) -> str:
    before, after = rng.choice(marks)
    return before + text + after

  makers: dict[str, Callable[[], str]] = {
    'code': lambda: wrapped(rng.choice(code)),
    'tower': lambda: wrapped(rng.choice(towers)),
    'wild': lambda: wrapped(rng.choice(wild)),
    'noise': lambda: ''.join(rng.choices(alphabet, k=rng.randint(1, 400))),
    'noise in a box': lambda: wrapped(''.join(rng.choices(alphabet, k=rng.randint(1, 60)))),
    'unicode': lambda: wrapped(''.join(chr(rng.randrange(0x110000)) for _ in range(rng.randint(1, 80)))),
    'nested': lambda: rng.choice((r'\boxed{', '{', '(', r'\frac{', r'\sqrt{', '<answer>', '[')) * rng.choice((10, 1000, 20_000)),
    'nested in a box': lambda: wrapped('(' * (depth := rng.choice((5, 50, 3000))) + '5' + ')' * depth),
    'unclosed': lambda: rng.choice((r'\boxed{5', '<answer>5', r'\boxed{\frac{1}{', '####', r'\boxed{}}}}}{')),
  }
  kinds = list(makers)
  cases = [Case(kind, makers[kind](), '-31337') for kind in (kinds[n % len(kinds)] for n in range(count - 4))]
  megabytes = ('a' * 2**20, r'\boxed{' + '9' * 2**20 + '}', r'\boxed{' * 150_000, '#### 1\n' * 150_000)
  return cases + [Case('megabyte', text, '-31337') for text in megabytes]


def attacks(num_questions: int = 20, seed: int = 0) -> list[Case]:
  """Completions that hold no answer of their own but try to be paid for one: all of them for several questions."""
  rng = random.Random(seed)
  cases = []
  for _ in range(num_questions):
    gold = rng.randint(2, 90)
    question = f'Ann has {gold} apples and gives none away. How many apples does she have? Put the answer in \\boxed{{}}.'
    shots = f'Question: What is {gold - 1} + 1?\nAnswer: \\boxed{{{gold}}}\n#### {gold}\n\nQuestion: {question}\nAnswer:'
    near = list(range(gold - 5, gold + 6))
    spray = {
      'boxes': ' '.join(rf'\boxed{{{n}}}' for n in range(100)),
      'boxes, right one last': ' '.join(rf'\boxed{{{n}}}' for n in [*near, gold]),
      'two boxes': rf'\boxed{{{gold - 1}}} or \boxed{{{gold}}}',
      'lines': '\n'.join(f'#### {n}' for n in [*near, gold]),
      'tags': ''.join(f'<answer>{n}</answer>' for n in [*near, gold]),
      'list in a box': rf'\boxed{{{", ".join(map(str, [*near, gold]))}}}',
      'or in a box': rf'\boxed{{{gold - 1} \text{{ or }} {gold}}}',
      'set in a box': rf'\boxed{{x \in \{{{gold}, {gold + 1}\}}}}',
      'equation in a box': rf'\boxed{{{gold - 1} = {gold}}}',
      'chain in a box': rf'\boxed{{1 = 2 = {gold}}}',
      'plus or minus': rf'\boxed{{\pm {gold}}}',
      'interval': rf'\boxed{{[{gold}, {gold + 1}]}}',
      'range': rf'\boxed{{{gold}-{gold + 1}}}',
      'inequality': rf'\boxed{{x \ge {gold}}}',
      'box of boxes': r'\boxed{' + ' '.join(rf'\boxed{{{n}}}' for n in near) + '}',
      'tag of boxes': '<answer>' + ' '.join(rf'\boxed{{{n}}}' for n in near) + '</answer>',
      'matrix': rf'\boxed{{\begin{{pmatrix}} {gold} \\ {gold + 1} \end{{pmatrix}}}}',
    }
    empty = {'nothing': '', 'space': ' \n', 'box': r'\boxed{}', 'boxed space': r'\boxed{ }', 'tag': '<answer></answer>', 'hash': '####'}
    empty |= {'stop': r'\boxed{.}', 'dash': r'\boxed{-}'}
    thought = '<think>Let me think.</think>'
    formats = {'nothing in it': f'{thought}<answer></answer>', 'words in it': f'{thought}<answer>the answer</answer>'}
    leaks = {
      'gold without a mark': f'The answer is {gold}.',
      'gold while thinking': rf'<think>\boxed{{{gold}}}</think>',
      'gold while thinking, another outside': rf'<think>\boxed{{{gold}}}</think>\boxed{{{gold + 1}}}',
      'words for the gold': r'\boxed{\text{the reference answer}}',
      'words for all': r'\boxed{\text{all of the above}}',
      'number line': r'\boxed{\mathbb{R}}',
      'not a number': r'\boxed{0/0}',
      'infinity': r'\boxed{\infty}',
      'variable': r'\boxed{x}',
      'variable is itself': r'\boxed{x = x}',
      'wildcard': r'\boxed{*}',
      'not the gold': rf'\boxed{{\text{{not }} {gold}}}',
    }
    echoes = {'question': question, 'question twice': question * 2, 'prompt with examples': shots, 'and an empty box': shots + r' \boxed{}'}
    for kind, texts in (('spray', spray), ('empty', empty), ('format', formats), ('leak', leaks), ('echo', echoes)):
      cases += [Case(f'{kind}: {name}', text, str(gold), shots if kind == 'echo' else '') for name, text in texts.items()]
  return cases
