"""Exact values of mathematical answers: integers, decimals, fractions, mixed numbers, percents, scientific notation, currency, units.

The text is read by a few regular expressions without nested repetition and the value is a `fractions.Fraction`; nothing is evaluated as
code. Input is taken as hostile: characters, digits and exponent are bounded before any work grows with them, no input raises, and the time
is linear in the text. What is not a number of this grammar (roots, variables, intervals, sets) has no value here and is left to others.
"""

import re
from fractions import Fraction
from typing import NamedTuple

MAX_CHARACTERS = 256
MAX_DIGITS = 40
MAX_EXPONENT = 64
MAX_WRAPPERS = 8  # pairs of $ $, { }, \( \) around an answer

_THIN = '\u2009'  # what \, and the like become: it separates thousands, and is a space elsewhere
_GROUPED = rf'[0-9]{{1,3}}(?:[,{_THIN}][0-9]{{3}})+'
_DECIMAL = rf'(?:(?:{_GROUPED}|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)'
_OPERAND = rf'[+-]?{_DECIMAL}'
_ARGUMENT = rf'\s*(?:\{{\s*({_OPERAND})\s*\}}|([0-9]))'
_FRAC = rf'\\frac{_ARGUMENT}{_ARGUMENT}'
_TIMES = r'(?:\\times|\\cdot|[x×·*])'
# In the order in which they are tried; each begins at the first character of the number, after its sign.
_MIXED_FRAC = re.compile(rf'([0-9]+)\s*{_FRAC}')
_MIXED_SLASH = re.compile(r'([0-9]+)\s+([0-9]+)\s*/\s*([0-9]+)')
_FRACTION = re.compile(_FRAC)
_POWER = re.compile(r'10\s*(?:\^|\*\*)\s*(?:\{\s*([+-]?[0-9]+)\s*\}|([+-]?[0-9]+))')
_TIMES_POWER = re.compile(rf'({_DECIMAL})\s*{_TIMES}\s*{_POWER.pattern}')
_EXPONENT = re.compile(rf'({_DECIMAL})[eE]([+-]?[0-9]+)')
_SLASH = re.compile(rf'({_DECIMAL})\s*/\s*({_OPERAND})')
_REPEATING = re.compile(r'([0-9]*)\.([0-9]*)\\(?:overline|bar)\s*\{([0-9]+)\}')
_NUMBER = re.compile(_DECIMAL)

_NAME = re.compile(r'([A-Za-z][A-Za-z_ ]{0,23}?)\s*=\s*')
_TEXT_COMMAND = re.compile(r'\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}')
_COMMANDS = {r'\dfrac': r'\frac', r'\tfrac': r'\frac', r'\cfrac': r'\frac', r'\left': '', r'\right': '', r'\%': '%', r'\$': r'\dollar '}
_SYMBOLS = {'\u2212': '-', '\u2013': '-', '\uff0d': '-', '\u00a0': ' ', '\u202f': _THIN, r'\,': _THIN, r'\!': '', r'\;': ' ', r'\:': ' '}
_SYMBOLS |= {r'\\': r'\\', '\\ ': ' ', '~': ' ', '{,}': ',', '{ }': _THIN, '\u2044': '/', '\u2215': '/'}
_TIDY = re.compile('|'.join([*map(re.escape, _SYMBOLS), *(re.escape(command) + r'(?![A-Za-z])' for command in _COMMANDS)]))
_TIDIED = _SYMBOLS | _COMMANDS
_SUPERSCRIPTS = str.maketrans('⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺', '0123456789-+')
_SUPERSCRIPT = re.compile('[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+')
_WRAPPERS = (('$$', '$$'), ('$', '$'), (r'\(', r'\)'), (r'\[', r'\]'), ('{', '}'), ('**', '**'), ('`', '`'))

_CURRENCY = {r'\dollar': 'dollar', 'us$': 'dollar', '$': 'dollar', 'usd': 'dollar', '€': 'euro', 'eur': 'euro', r'\euro': 'euro'}
_CURRENCY |= {'£': 'sterling', 'gbp': 'sterling', r'\pounds': 'sterling', '¥': 'yen', '₹': 'rupee', '¢': 'cent'}
_BEFORE = re.compile('|'.join(re.escape(sign) for sign in sorted(_CURRENCY, key=len, reverse=True)) + r'|rs\.?(?= ?[0-9])', re.IGNORECASE)
# Spelling -> what it stands for. Two answers whose units are both of this table and differ are different.
_UNITS = {
  name: unit
  for unit, spellings in {
    'dollar': 'dollar dollars buck bucks usd',
    'cent': 'cent cents ¢ c',
    'euro': 'euro euros eur €',
    'sterling': '£ gbp',
    'mm': 'mm millimeter millimeters millimetre millimetres',
    'cm': 'cm centimeter centimeters centimetre centimetres',
    'm': 'm meter meters metre metres',
    'km': 'km kilometer kilometers kilometre kilometres',
    'inch': 'in inch inches',
    'foot': 'ft foot feet',
    'yard': 'yd yard yards',
    'mile': 'mi mile miles',
    'mg': 'mg milligram milligrams',
    'g': 'g gram grams',
    'kg': 'kg kilogram kilograms',
    'ounce': 'oz ounce ounces',
    'lb': 'lb lbs',
    'ml': 'ml milliliter milliliters millilitre millilitres',
    'l': 'l liter liters litre litres',
    'gallon': 'gal gallon gallons',
    'second': 's sec secs second seconds',
    'minute': 'min mins minute minutes',
    'hour': 'h hr hrs hour hours',
    'day': 'd day days',
    'week': 'week weeks',
    'month': 'month months',
    'year': 'yr yrs year years',
    'mph': 'mph',
    'degree': '° degree degrees',
  }.items()
  for name in spellings.split()
}
_SCALES = {'hundred': 10**2, 'thousand': 10**3, 'million': 10**6, 'billion': 10**9, 'trillion': 10**12}
# Words after a number that may change its value, so that the text is no plain number.
_NOT_UNITS = frozenset(
  word
  for line in (
    'and or not nor but if is are be was to from through of than less more least most about around roughly approximately almost nearly',
    'over under up down off plus minus times divided multiplied by squared cubed root power mod modulo half halves third thirds quarter',
    'quarters fourth fourths fifth fifths sixth sixths tenth tenths hundredth hundredths thousandth thousandths dozen dozens',
    'score zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen',
    'nineteen twenty thirty forty fifty sixty seventy eighty ninety either maybe perhaps any all every some other wrong incorrect false',
    'remainder pi infinity sqrt sin cos tan log ln exp point negative positive hundred thousand million billion trillion',
  )
  for word in line.split()
)
_WORD = re.compile(rf'[ {_THIN}]*(?:([A-Za-z]+(?:-[A-Za-z]+)?|[°¢€£])(\s*\^\s*\{{?\s*[23]\s*\}}?)?|/(?=[ A-Za-z]))')
_DEGREE = re.compile(r'\^\s*\{?\s*\\circ\s*\}?')
MAX_WORDS = 4


class Number(NamedTuple):
  """What an answer says, exactly.

  Attributes:
    value: of the number that is written, before a percent sign.
    percent: whether a percent sign follows.
    unit: its unit or currency in one spelling, or the words that follow; '' where there is none.
    name: x of 'x = 5', '' where there is none.
  """

  value: Fraction
  percent: bool = False
  unit: str = ''
  name: str = ''

  def agrees(self, other: 'Number') -> bool | None:
    """Whether both say the same; None where that depends on words that are not understood.

    A unit or a name that only one of them has is no difference, and a percent sign may be left out: 25% agrees with 25 and with 0.25.
    """
    if self.percent == other.percent:
      same = self.value == other.value
    else:
      percent, plain = (self.value, other.value) if self.percent else (other.value, self.value)
      same = plain in (percent, percent / 100)
    if not same:
      return False
    if self.unit != other.unit and self.unit and other.unit:
      return False if {self.unit, other.unit} <= set(_UNITS.values()) else None
    return None if self.name != other.name and self.name and other.name else True


def parse_number(text: str) -> Number | None:
  r"""The value of an answer that is one number, or None.

  Args:
    text: the answer alone, any string at all; TeX and plain notation.

  Returns:
    The number, or None for what is longer than MAX_CHARACTERS, has more than MAX_DIGITS digits or an exponent beyond MAX_EXPONENT, divides
    by zero, or is not one number with at most MAX_WORDS words of a unit behind it.

  >>> parse_number('$1,234.50').value, parse_number(r'-2\frac{1}{4}').value, parse_number('3.2 x 10^4').value
  (Fraction(2469, 2), Fraction(-9, 4), Fraction(32000, 1))
  >>> parse_number('12.5%'), parse_number('5 or 6'), parse_number('9^9^9')
  (Number(value=Fraction(25, 2), percent=True, unit='', name=''), None, None)
  """
  if len(text) > MAX_CHARACTERS or sum('0' <= character <= '9' for character in text) > MAX_DIGITS:
    return None
  text = tidy(text)
  named = _NAME.match(text)
  name = named[1].strip() if named else ''
  text = _unwrap(text[named.end() :]) if named else text
  sign, text = _sign(text)
  before = _BEFORE.match(text)
  currency = _CURRENCY.get(before[0].lower(), 'rupee') if before else ''
  if before:
    inner, text = _sign(text[before.end() :].lstrip())
    if inner and sign:
      return None
    sign = sign or inner
  found = _magnitude(text)
  if found is None:
    return None
  value, end = found
  after = _suffix(text[end:])
  if after is None:
    return None
  percent, scale, unit = after
  if currency and unit not in ('', currency) and unit in _UNITS.values():
    return None
  return Number((-value if sign == '-' else value) * scale, percent, currency or unit, name)


def _sign(text: str) -> tuple[str, str]:
  return (text[0], text[1:].lstrip()) if text[:1] in ('+', '-') else ('', text)


def _magnitude(text: str) -> tuple[Fraction, int] | None:
  """The unsigned number that the text begins with, and where it ends."""
  try:
    if match := _MIXED_FRAC.match(text) or _MIXED_SLASH.match(text):
      whole, num, den = (_decimal(group) for group in match.groups() if group is not None)
      part = num / den
      return (whole + part, match.end()) if 0 <= part < 1 else None  # 3 7/2 is more likely a product or a slip
    if match := _FRACTION.match(text) or _SLASH.match(text):
      num, den = (_decimal(group) for group in match.groups() if group is not None)
      return num / den, match.end()
    if match := _TIMES_POWER.match(text) or _EXPONENT.match(text):
      mantissa, exponent = (group for group in match.groups() if group is not None)
      return _decimal(mantissa) * _ten(exponent), match.end()
    if match := _POWER.match(text):
      return _ten(match[1] or match[2]), match.end()
    if match := _REPEATING.match(text):
      before, fixed, period = match.groups()
      rest = Fraction(int(period), 10 ** len(period) - 1) + int(fixed or '0')
      return int(before or '0') + rest / 10 ** len(fixed), match.end()
    match = _NUMBER.match(text)
    return (_decimal(match[0]), match.end()) if match else None
  except (ZeroDivisionError, OverflowError):
    return None


def _decimal(text: str) -> Fraction:
  return Fraction(text.replace(',', '').replace(_THIN, ''))


def _ten(exponent: str) -> Fraction:
  power = int(exponent)
  if abs(power) > MAX_EXPONENT:
    raise OverflowError
  return Fraction(10) ** power


def _suffix(text: str) -> tuple[bool, int, str] | None:
  """(percent, factor, unit) of what follows a number; None where it is more than that."""
  text = _DEGREE.sub('°', text).rstrip().removeprefix('-' if text[1:2].isalpha() else '')
  attached = text[:1].isalpha()
  text = text.lstrip()
  percent = re.match(r'%|per ?cent(?![a-z])', text, re.IGNORECASE)
  if percent:
    return (True, 1, '') if not text[percent.end() :].strip() else None
  words: list[str] = []
  scale, position = 1, 0
  while position < len(text):
    match = _WORD.match(text, position)
    if not match or len(words) == MAX_WORDS:
      return None
    position = match.end()
    if match[1] is None:
      words.append('per')
      continue
    word = match[1].lower()
    if word in _SCALES and scale == 1 and not words:
      scale = _SCALES[word]
    elif word in _NOT_UNITS or (len(word) < 3 and word not in (*_UNITS, 'sq')) or (attached and not words and not _is_attached_unit(word)):
      return None  # '5x', '5m' and '5 xy' are products, '5 or' is the beginning of something else
    else:
      words.append(_UNITS.get(word, word) + re.sub(r'[\s{}^]', '', match[2] or ''))
  return False, scale, ' '.join(words)


def _is_attached_unit(word: str) -> bool:
  return word in _UNITS and (len(word) > 1 or not word.isascii())


def tidy(text: str) -> str:
  r"""The text with one spelling of each symbol: no $ $ or braces around it, \frac for its relatives, \text{...} opened, no full stop."""
  if len(text) > MAX_CHARACTERS:
    return text
  text = _TEXT_COMMAND.sub(r' \1 ', text)
  text = _SUPERSCRIPT.sub(lambda match: '^{' + match[0].translate(_SUPERSCRIPTS) + '}', text)
  return _unwrap(_TIDY.sub(lambda match: _TIDIED[match[0]], text))


def _unwrap(text: str) -> str:
  text = text.strip()
  for _ in range(MAX_WRAPPERS):
    before = text
    if text.endswith('.'):
      text = text[:-1].rstrip()
    for left, right in _WRAPPERS:
      inside = text[len(left) : len(text) - len(right)]
      if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right) and _is_one(inside, left, right):
        text = inside.strip()
    if text == before:
      break
  return text


def _is_one(inside: str, left: str, right: str) -> bool:
  """Whether what stands inside a pair is inside that pair: '{a}{b}' is not."""
  if left == right:
    return left[0] not in inside
  depth = 0
  for match in re.finditer(re.escape(left) + '|' + re.escape(right), inside):
    depth += 1 if match[0] == left else -1
    if depth < 0:
      return False
  return depth == 0


def canonical(text: str) -> str:
  """The text tidied and without space, except between digits: equal for answers that differ in notation alone."""
  return re.sub(r'\s+', '', re.sub(r'(?<=[0-9.])\s+(?=[0-9.])', '_', tidy(text)))


def agree(answer: str, reference: str) -> bool | None:
  r"""Whether two answers are the same, decided exactly: by their values, as one text, or as words; None where none of these decides.

  >>> agree(r'\frac{1}{2}', '0.50'), agree('18 eggs', '18'), agree('0.33', '1/3'), agree(r'\sqrt{8}', r'2\sqrt{2}')
  (True, True, False, None)
  """
  if max(len(answer), len(reference)) > MAX_CHARACTERS:
    return None
  plain, expected = canonical(answer), canonical(reference)
  if not plain or not expected:
    return None
  if plain == expected:
    return True
  a, b = parse_number(answer), parse_number(reference)
  if a is not None and b is not None:
    return a.agrees(b)
  if expected.strip('()').isalpha() and expected.isascii():  # True, yes, B: a word or the letter of a choice
    plain, expected = plain.strip('()'), expected.strip('()')
    return plain == expected if len(expected) == 1 else plain.casefold() == expected.casefold()
  return None


def key(text: str) -> str:
  """What equal answers have in common, to count votes by: the exact value of a number, else the tidied text; '' for none.

  >>> key(r'\\frac{2}{4}') == key('0.5') == '1/2', key('25%'), key('$x + 1$')
  (True, '25%', 'x+1')
  """
  number = parse_number(text)
  if number is None:
    return canonical(text)
  return f'{number.value}%' if number.percent else str(number.value)
