"""Sampled texts as an HTML table: every token's background says its entropy and its underline its covariance, with the numbers on hover.

Scales are shared by all rows and stand in the legend; colours are equal steps of OKLab, and the text keeps its contrast on each of them.
What a model wrote is shown and never obeyed: markup is escaped, and blanks, line ends and characters without a picture become visible.
`analysis.report.Section(samples=...)` embeds the table.
"""

import dataclasses
import html
import math
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from entropy_jax.types import UserError

Floats = NDArray[np.float64]
Lab = tuple[float, float, float]

INK = '#16181b'
NUM_LEVELS = 32  # of entropy, beside 0
NUM_SIDES = 8  # levels of covariance on each side of 0
# Ends of the scales in OKLab: white to orange; nothing to blue (dashed) below 0 and to dark red (solid) above.
_CALM, _UNSURE = (0.99, 0.0, 0.0), (0.74, 0.07, 0.13)
_PALE, _BELOW, _ABOVE = (0.80, 0.0, 0.0), (0.42, -0.03, -0.16), (0.42, 0.16, 0.05)
_SHOWN = {' ': '·', '\n': '↵', '\t': '⇥'}
_LONGEST_TOKEN = 200


@dataclasses.dataclass(frozen=True)
class Sample:
  """One response, its own tokens alone (no padding).

  Attributes:
    prompt: as text.
    tokens: [T], the text of each token.
    entropy_T: nats, of the distribution that each token was drawn from.
    covariance_T: of each token, such as `ops.covariance.token_covariance`.
    advantage, reward: of the response.
    finished: whether it ended by itself and was not cut off.
  """

  prompt: str
  tokens: Sequence[str]
  entropy_T: ArrayLike
  covariance_T: ArrayLike
  advantage: float
  reward: float
  finished: bool


@dataclasses.dataclass(frozen=True)
class _Scale:
  """Values from which on colours do not change any more."""

  entropy: float
  covariance: float


def table(
  samples: Sequence[Sample],
  *,
  max_tokens: int = 400,
  max_prompt: int = 1200,
  entropy_limit: float | None = None,
  covariance_limit: float | None = None,
) -> str:
  """The table with its legend, as HTML that needs the rules `CSS` and nothing else.

  Args:
    samples: rows, in the order in which they are read.
    max_tokens: a longer response loses its middle: a quarter of what stays is its end, where answers stand. At least 4.
    max_prompt: characters, the same for prompts.
    entropy_limit: nats with the darkest background; None for the 99th percentile of all tokens.
    covariance_limit: absolute value with the darkest underline; None for the 99th percentile of absolute values.

  Raises:
    UserError: arrays that do not fit their tokens, or limits that are not positive.
  """
  for name, value in (('max_tokens', max_tokens), ('max_prompt', max_prompt)):
    if value < 4:
      raise UserError(f'{name} is {value}: give at least 4.')
  arrays = [_arrays(number, sample) for number, sample in enumerate(samples)]
  scale = _Scale(
    _limit('entropy_limit', entropy_limit, [entropy_T for entropy_T, _ in arrays]),
    _limit('covariance_limit', covariance_limit, [covariance_T for _, covariance_T in arrays]),
  )
  rows = []
  for sample, (entropy_T, covariance_T) in zip(samples, arrays, strict=True):
    ended = 'finished' if sample.finished else 'cut off'
    numbers = (
      f'<dl><dt>reward</dt><dd>{_signed(sample.reward, 4)}</dd><dt>advantage</dt><dd>{_signed(sample.advantage, 4)}</dd>'
      f'<dt>entropy</dt><dd>{_mean(entropy_T)}</dd><dt>tokens</dt><dd>{len(sample.tokens)}</dd></dl><p>{ended}</p>'
    )
    response = _response(sample.tokens, entropy_T, covariance_T, scale, max_tokens)
    rows.append(f'<tr><td class="text">{_prompt(sample.prompt, max_prompt)}</td><td class="text">{response}</td><td>{numbers}</td></tr>')
  head = '<tr><th scope="col">Prompt</th><th scope="col">Response, token by token</th><th scope="col">Outcome</th></tr>'
  body = f'<table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>' if rows else '<p>No samples.</p>'
  return f'<div class="samples">{_legend(scale)}<div class="wide">{body}</div></div>'


def visible(text: str) -> str:
  """Escaped text in which nothing is hidden: blanks, line ends and tabs as signs, what else has no picture as its code point.

  >>> visible('a <b>\\n').replace('<i>', '[').replace('</i>', ']')
  'a[·]&lt;b&gt;[↵]<br>'
  """
  return ''.join(_visible_character(character) for character in text)


def _visible_character(character: str) -> str:
  if character in _SHOWN:
    return f'<i>{_SHOWN[character]}</i>' + ('<br>' if character == '\n' else '')
  # Control, format (which reorder text or take no room), surrogates, private, unassigned, and separators other than the blank.
  if unicodedata.category(character)[0] in 'CZ':
    return f'<i>⟨U+{ord(character):04X}⟩</i>'
  return html.escape(character, quote=True)


def _arrays(number: int, sample: Sample) -> tuple[Floats, Floats]:
  arrays = []
  for name in ('entropy_T', 'covariance_T'):
    array = np.asarray(getattr(sample, name), np.float64)
    if array.shape != (len(sample.tokens),):
      raise UserError(f'sample {number}: {name} has shape {list(array.shape)} for {len(sample.tokens)} tokens: give one number a token.')
    arrays.append(array)
  return arrays[0], arrays[1]


def _limit(name: str, given: float | None, arrays: Sequence[Floats]) -> float:
  if given is not None:
    if not (math.isfinite(given) and given > 0):
      raise UserError(f'{name} is {given!r}: give a positive number, or None for the 99th percentile.')
    return float(given)
  size = np.abs(np.concatenate([*arrays, np.zeros(0)]))
  size = size[np.isfinite(size)]
  found = float(np.quantile(size, 0.99)) if size.size else 0.0
  # Most tokens may be certain: then the largest, and where all are 0 any number will do.
  return found or float(size.max(initial=0.0)) or 1.0


def _token(text: str, entropy: float, covariance: float, scale: _Scale) -> str:
  """A token in its colours; e0 ... e32 and d8 ... d1, nothing, u1 ... u8 are classes of `CSS`."""
  if math.isfinite(entropy):
    classes = f'e{round(NUM_LEVELS * min(max(entropy / scale.entropy, 0.0), 1.0))}'
  else:
    classes = 'none'
  if math.isfinite(covariance):
    level = round(NUM_SIDES * min(max(covariance / scale.covariance, -1.0), 1.0))
    classes += f' u{level}' if level > 0 else f' d{-level}' if level < 0 else ''
  shown = text if len(text) <= _LONGEST_TOKEN else text[:_LONGEST_TOKEN]
  cut = '' if shown is text else f'<em>… {len(text) - _LONGEST_TOKEN} characters cut …</em>'
  # A mark that combines would be drawn over the token before.
  carrier = '◌' if text and unicodedata.combining(text[0]) else ''
  title = f'entropy {_signed(entropy, 6)} nats, covariance {_signed(covariance, 6)}'
  content = carrier + visible(shown) + cut if text else '<i>⟨empty⟩</i>'
  return f'<span class="{classes}" title="{title}">{content}</span>'


def _kept(length: int, most: int) -> tuple[int, int]:
  """How many of the first and of the last stay."""
  return (length, 0) if length <= most else (most - most // 4, most // 4)


def _response(tokens: Sequence[str], entropy_T: Floats, covariance_T: Floats, scale: _Scale, most: int) -> str:
  first, last = _kept(len(tokens), most)
  one = lambda t: _token(tokens[t], float(entropy_T[t]), float(covariance_T[t]), scale)
  parts = [one(t) for t in range(first)]
  if last:
    parts.append(f'<em>… {len(tokens) - first - last} tokens cut …</em>')
  return ''.join(parts + [one(t) for t in range(len(tokens) - last, len(tokens))])


def _prompt(text: str, most: int) -> str:
  first, last = _kept(len(text), most)
  if not last:
    return visible(text)
  return f'{visible(text[:first])}<em>… {len(text) - first - last} characters cut …</em>{visible(text[-last:])}'


def _signed(value: float, digits: int) -> str:
  return f'{value:.{digits}g}'.replace('-', '−') if math.isfinite(value) else 'none'


def _mean(entropy_T: Floats) -> str:
  finite = entropy_T[np.isfinite(entropy_T)]
  return _signed(float(finite.mean()), 3) if finite.size else 'none'


def _legend(scale: _Scale) -> str:
  cells = lambda names: ''.join(f'<span class="{name}"></span>' for name in names)
  sides = range(1, NUM_SIDES + 1)
  covariance = [*(f'd{i}' for i in reversed(sides)), 'zero', *(f'u{i}' for i in sides)]
  limit = _signed(scale.covariance, 3)
  return (
    f'<p class="legend"><b>Background: entropy in nats</b> 0 <span class="bar">{cells(f"e{i}" for i in range(NUM_LEVELS + 1))}</span> '
    f'{_signed(scale.entropy, 3)} and more</p><p class="legend"><b>Underline: covariance</b> −{limit} and less '
    f'<span class="bar">{cells(covariance)}</span> {limit} and more; dashed below 0, solid above, none near 0</p>'
    '<p class="legend">Hover over a token for its numbers. <i>·</i> is a blank, <i>↵</i> a line end, <i>⇥</i> a tab.</p>'
  )


def rgb(lab: Lab) -> tuple[float, float, float]:
  """Linear sRGB of a colour in OKLab (lightness in [0, 1], a, b), cut to what a screen can show.

  Reference: Ottosson, A perceptual color space for image processing (2020).
  """
  lightness, a, b = lab
  long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
  medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
  short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
  red = 4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short
  green = -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short
  blue = -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short
  return min(max(red, 0.0), 1.0), min(max(green, 0.0), 1.0), min(max(blue, 0.0), 1.0)


def _hex(lab: Lab) -> str:
  curve = lambda x: 12.92 * x if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055
  return '#' + ''.join(f'{round(255 * curve(x)):02x}' for x in rgb(lab))


def between(low: Lab, high: Lab, share: float) -> Lab:
  """The colour at this share of the way."""
  return (
    low[0] + share * (high[0] - low[0]),
    low[1] + share * (high[1] - low[1]),
    low[2] + share * (high[2] - low[2]),
  )


def _rules() -> str:
  rules = [f'.samples .e{i} {{ background: {_hex(between(_CALM, _UNSURE, i / NUM_LEVELS))}; }}' for i in range(NUM_LEVELS + 1)]
  for i in range(1, NUM_SIDES + 1):
    share = i / NUM_SIDES
    rules.append(f'.samples .d{i} {{ border-bottom: 3px dashed {_hex(between(_PALE, _BELOW, share))}; }}')
    rules.append(f'.samples .u{i} {{ border-bottom: 3px solid {_hex(between(_PALE, _ABOVE, share))}; }}')
  return '\n'.join(rules)


# Texts stay dark on white in the dark scheme too: the scales are made for that.
CSS = f"""
.samples table {{ width: 100%; min-width: 44rem; table-layout: fixed; }}
.samples th:nth-child(1) {{ width: 27%; }} .samples th:nth-child(3) {{ width: 10.5rem; }}
.samples td.text {{ background: #fff; color: {INK}; font: .82rem/1.75 ui-monospace, "DejaVu Sans Mono", monospace;
  overflow: hidden; overflow-wrap: anywhere; direction: ltr; }}
.samples td.text :where(span) {{ unicode-bidi: isolate; padding: 1px 0; margin-right: 1px; }}
.samples td.text i {{ color: #6d737b; font-style: normal; }}
.samples td.text em {{ color: #5a616b; background: #e8ebee; border-radius: 3px; padding: 0 .3em; font-style: italic; }}
.samples .none {{ background: repeating-linear-gradient(45deg, #fff 0 3px, #d5d9de 3px 5px); }}
.samples dl {{ display: grid; grid-template-columns: auto auto; gap: 0 .6rem; margin: 0; }}
.samples dt {{ color: var(--soft, #5a616b); }} .samples dd {{ margin: 0; text-align: right; font-variant-numeric: tabular-nums; }}
.samples .legend {{ max-width: none; font-size: .85rem; margin: .3rem 0; }}
.samples .bar {{ display: inline-flex; vertical-align: middle; background: #fff; border: 1px solid #b9c0c8; border-radius: 3px; }}
.samples .bar span {{ width: 6px; height: 14px; }}
.samples .bar [class^="u"], .samples .bar [class^="d"], .samples .bar .zero {{ width: 13px; height: 12px; }}
@media print {{ .samples * {{ print-color-adjust: exact; }} .samples table {{ min-width: 0; }} .samples tr {{ break-inside: auto; }} }}
{_rules()}
"""
