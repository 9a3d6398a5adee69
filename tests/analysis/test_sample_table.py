"""Coloured tokens: levels by hand, scales in OKLab and in contrast, hostile text, cuts, and the report that embeds the table."""

import html.parser
import re

import numpy as np
import pytest

from entropy_jax.analysis import report, sample_table
from entropy_jax.analysis.sample_table import Sample, table, visible
from entropy_jax.types import UserError


def sample(tokens=('a', ' b'), entropy_T=(0.0, 2.0), covariance_T=(-1.0, 0.5), **changes):
  fields = {'prompt': 'what?', 'advantage': -1.25, 'reward': 1.0, 'finished': True}
  return Sample(tokens=tokens, entropy_T=entropy_T, covariance_T=covariance_T, **fields | changes)


class Spans(html.parser.HTMLParser):
  """What a browser makes of the table: tags, and the token spans with their attributes and text."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.tokens, self.open, self.text = [], [], None, ''
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    if tag == 'span' and 'title' in dict(attributes):
      self.tokens.append([dict(attributes)['class'], dict(attributes)['title'], ''])
      self.open = self.tokens[-1]

  def handle_endtag(self, tag):
    self.open = None if tag == 'span' else self.open

  def handle_data(self, data):
    self.text += data
    if self.open is not None:
      self.open[2] += data


class TestTable:
  def test_levels_and_titles_by_hand(self):
    made = table([sample(entropy_T=[0.5, 3.0], covariance_T=[-0.25, 1.5])], entropy_limit=2.0, covariance_limit=1.0)
    tokens = Spans(made).tokens
    # 32 * .5 / 2 = 8 and 8 * .25 = 2 below; beyond both limits 32 and 8.
    assert tokens[0] == ['e8 d2', 'entropy 0.5 nats, covariance −0.25', 'a']
    assert tokens[1] == ['e32 u8', 'entropy 3 nats, covariance 1.5', '·b']

  def test_a_small_covariance_has_no_line(self):
    made = table([sample(covariance_T=[0.06, -0.06])], entropy_limit=1.0, covariance_limit=1.0)  # 8 * .06 rounds to 0
    assert [token[0] for token in Spans(made).tokens] == ['e0', 'e32']

  def test_limits_are_the_99th_percentile_of_all_rows(self):
    rng = np.random.default_rng(0)
    rows = [sample(['x'] * 50, rng.exponential(1.0, 50), rng.normal(0, 1, 50)) for _ in range(4)]
    entropy, covariance = (np.concatenate([getattr(row, name) for row in rows]) for name in ('entropy_T', 'covariance_T'))
    text = Spans(table(rows)).text
    assert f'{np.quantile(entropy, 0.99):.3g} and more' in text
    assert f'−{np.quantile(abs(covariance), 0.99):.3g} and less' in text

  def test_numbers_that_are_none_and_scales_without_any(self):
    made = table([sample(entropy_T=[np.nan, 0.0], covariance_T=[np.inf, 0.0])])
    assert [token[:2] for token in Spans(made).tokens] == [
      ['none', 'entropy none nats, covariance none'],
      ['e0', 'entropy 0 nats, covariance 0'],
    ]
    assert 'No samples.' in table([]) and '⟨empty⟩' in table([sample(['', 'b'])])

  def test_almost_all_tokens_certain(self):
    entropy_T = np.zeros(1000)
    entropy_T[7] = 0.25  # the 99th percentile is 0
    assert '0.25 and more' in table([sample(['x'] * 1000, entropy_T, np.zeros(1000))])

  def test_outcome(self):
    text = Spans(table([sample(finished=False)])).text
    assert 'reward1advantage−1.25entropy1tokens2cut off' in text

  def test_long_texts_lose_their_middle(self):
    tokens = [f'<{i}>' for i in range(100)]
    made = Spans(table([sample(tokens, np.zeros(100), np.zeros(100), prompt='p' * 50 + 'q' * 50)], max_tokens=8, max_prompt=8))
    assert [token[2] for token in made.tokens] == [f'<{i}>' for i in (0, 1, 2, 3, 4, 5, 98, 99)]
    assert '… 92 tokens cut …' in made.text and 'pppppp… 92 characters cut …qq' in made.text
    assert '… 300 characters cut …' in table([sample(['x' * 500, 'b'])])

  @pytest.mark.parametrize(
    ('change', 'text'),
    [
      ({'entropy_T': [1.0]}, r'sample 0: entropy_T has shape \[1\] for 2 tokens: give one number a token'),
      ({'covariance_T': [[1.0, 2.0]]}, r'sample 0: covariance_T has shape \[1, 2\] for 2 tokens'),
    ],
  )
  def test_arrays_that_do_not_fit(self, change, text):
    with pytest.raises(UserError, match=text):
      table([sample(**change)])

  @pytest.mark.parametrize(('key', 'value'), [('entropy_limit', 0.0), ('covariance_limit', np.nan), ('max_tokens', 3), ('max_prompt', 0)])
  def test_refused(self, key, value):
    with pytest.raises(UserError, match=f'{key} is {value}: give'):
      table([sample()], **{key: value})


HOSTILE = ['<script>alert(1)</script>', '" onmouseover="x', "</span></td></table><img src=x onerror='x'>"]
HOSTILE += ['&lt;b&gt;', '{css}', '<!--', ']]>']


class TestVisible:
  def test_markup_is_text(self):
    rows = [sample(HOSTILE, np.zeros(7), np.zeros(7), prompt=''.join(HOSTILE))]
    made, plain = Spans(table(rows)), Spans(table([sample(['x'] * 7, np.zeros(7), np.zeros(7))]))
    blank = lambda text: text.replace(' ', '·')
    assert [token[2] for token in made.tokens] == [blank(text) for text in HOSTILE]
    assert set(made.tags) == set(plain.tags) and made.text.count('onerror') == 2

  @pytest.mark.parametrize(
    ('text', 'shown'),
    [
      (' ', '·'),
      ('\t', '⇥'),
      ('\r', '⟨U+000D⟩'),
      ('\0', '⟨U+0000⟩'),
      ('\x1b', '⟨U+001B⟩'),
      ('\x7f', '⟨U+007F⟩'),
      ('\x85', '⟨U+0085⟩'),
      ('\u202e', '⟨U+202E⟩'),  # turns the reading direction round
      ('\u200b', '⟨U+200B⟩'),  # a blank without width
      ('\ufeff', '⟨U+FEFF⟩'),
      ('\u00a0', '⟨U+00A0⟩'),
      ('\u2028', '⟨U+2028⟩'),
      ('\ud800', '⟨U+D800⟩'),  # half of a surrogate pair, which no file could hold
    ],
  )
  def test_nothing_is_hidden(self, text, shown):
    assert visible(text) == f'<i>{shown}</i>'

  def test_other_characters_stay(self):
    assert visible('é漢字🎲ﬁ�') == 'é漢字🎲ﬁ�'
    assert visible('\n') == '<i>↵</i><br>'
    assert '>◌\u0301<' in table([sample(['e', '\u0301'])])


def _luminance(lab):
  return float(np.dot([0.2126, 0.7152, 0.0722], sample_table.rgb(lab)))


class TestColors:
  def test_oklab_of_white_and_grey(self):
    np.testing.assert_allclose(sample_table.rgb((1.0, 0.0, 0.0)), 1.0, atol=1e-5)
    np.testing.assert_allclose(sample_table.rgb((0.5, 0.0, 0.0)), 0.125, atol=1e-5)  # lightness is the cube root
    # Pure red of the reference, linear (1, 0, 0).
    np.testing.assert_allclose(sample_table.rgb((0.62796, 0.22486, 0.12585)), (1.0, 0.0, 0.0), atol=1e-3)

  def test_the_whole_scale_can_be_shown(self):
    """No channel is cut, or the steps would not be equal."""
    for low, high in (
      (sample_table._CALM, sample_table._UNSURE),
      (sample_table._PALE, sample_table._BELOW),
      (sample_table._PALE, sample_table._ABOVE),
    ):
      for share in np.linspace(0, 1, 9):
        assert all(0 < x < 1 for x in sample_table.rgb(sample_table.between(low, high, share))), (low, high, share)

  def test_text_keeps_its_contrast_on_every_background(self):
    ink = [int(sample_table.INK[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = np.where(np.array(ink) <= 0.04045, np.array(ink) / 12.92, ((np.array(ink) + 0.055) / 1.055) ** 2.4)
    dark = float(np.dot([0.2126, 0.7152, 0.0722], linear))
    for share in np.linspace(0, 1, 33):
      back = _luminance(sample_table.between(sample_table._CALM, sample_table._UNSURE, share))
      assert (back + 0.05) / (dark + 0.05) >= 7  # WCAG's AAA

  def test_every_class_has_its_rule(self):
    rng = np.random.default_rng(0)
    made = table([sample(['x'] * 400, rng.uniform(0, 1, 400), rng.uniform(-1, 1, 400))])
    used = {name for token in Spans(made).tokens for name in token[0].split()}
    assert len(used) == 33 + 16 and all(f'.samples .{name} ' in sample_table.CSS for name in used)


class TestReport:
  def test_a_section_embeds_it_and_the_page_stays_whole(self, tmp_path):
    section = report.Section('Samples', samples=[sample([*HOSTILE, '\ud800'], np.zeros(8), np.zeros(8))])
    path = report.write_report(tmp_path / 'report.html', report.Report('Run', 'A run.', [section]))
    text = path.read_text(encoding='utf-8')
    assert table(section.samples) in text and '.samples .e32' in text
    assert 'script' not in Spans(text).tags and not re.search(r'(src|href)="http', text)
    without = report.write_report(tmp_path / 'none.html', report.Report('Run', 'A run.', [report.Section('Samples')]))
    assert '.samples' not in without.read_text(encoding='utf-8')
