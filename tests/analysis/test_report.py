"""The report is well-formed, holds everything it shows, loads nothing, and lets no markup in."""

import base64
import html.parser
import re

import numpy as np
import pytest

from entropy_jax.analysis import figures
from entropy_jax.analysis import report as R
from entropy_jax.analysis.claims import Above, Claim, judge, write_claims
from entropy_jax.types import UserError

NAN = float('nan')
VOID = {'meta', 'link', 'img', 'br', 'hr'}
EVIL = '<script>alert("x")</script> & \'quote\' {css}'


class Page(html.parser.HTMLParser):
  """Checks nesting while parsing; keeps the tags with their attributes and the visible text."""

  def __init__(self, source):
    super().__init__()
    self.tags, self.open, self.text = [], [], ''
    self.feed(source)
    self.close()
    assert not self.open, f'{self.open} left open'

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open and self.open[-1] == tag, f'</{tag}> closes {self.open}'
    self.open.pop()

  def handle_data(self, data):
    if 'style' not in self.open:
      self.text += data

  def of(self, name):
    return [attributes for tag, attributes in self.tags if tag == name]


def a_claim(id='a', value=0.5, interval=(0.4, 0.6), statement='Entropy falls.', threshold=0.0):
  return judge(
    id=id, paper='Cui et al., arXiv 2505.22617', statement=statement, metric='entropy (nats)', value=value,
    interval=interval, criterion=Above(threshold), baseline='GRPO',
  )  # fmt: skip


@pytest.fixture(scope='module')
def png(tmp_path_factory):
  curve = (np.arange(3), np.ones((2, 3)))
  figure = figures.curves_with_bands({'GRPO': curve}, 'entropy (nats)')
  return figures.save(figure, tmp_path_factory.mktemp('figures') / 'a.png')


@pytest.fixture
def full(png):
  shown = [R.FigureRef(png, 'Look at `GRPO`.'), R.FigureRef(png, 'b', alt='words')]
  return R.Report(
    title='Entropy mechanism',
    summary='Entropy collapses.',
    sections=[
      R.Section('Collapse', 'First.\n\nSecond with `code`.', shown),
      R.Section('The law', table=R.Table(('Method', 'R²', 'seeds'), [('GRPO', 0.98123, 5), ('KL-Cov', NAN, 5)])),
    ],
    claims=[
      a_claim('yes'),
      a_claim('no', value=-1.0, interval=(-1.5, -0.5), statement='This one fails.'),
      a_claim('open', value=NAN, interval=(NAN, NAN), statement='This one is open.'),
    ],
    config={'seed': 0, 'task': {'name': 'fork_tokens', 'vocab': 32}, 'methods': ['grpo', 'kl_cov']},
    environment={'versions': {'jax': '0.10.2'}, 'git_commit': 'abc123', 'wall_time_seconds': 52.5},
    notes=['The policy is tabular.'],
  )


class TestWriteReport:
  def test_holds_what_it_was_given(self, full, tmp_path):
    path = R.write_report(tmp_path / 'run' / 'report.html', full)
    page = Page(path.read_text(encoding='utf-8'))
    for text in ('Entropy mechanism', 'Entropy collapses.', 'Collapse', 'The policy is tabular.', 'task.vocab',
                 'fork_tokens', 'versions.jax', '0.10.2', 'abc123', '52.5', '["grpo", "kl_cov"]', '0.981',
                 '[0.4, 0.6]', 'no interval',
                 '95 % interval entirely above 0', 'against GRPO', 'arXiv 2505.22617'):  # fmt: skip
      assert text in page.text, text
    assert [p.name for p in path.parent.iterdir()] == ['report.html']

  def test_figures_are_embedded_byte_for_byte_with_words(self, full, png, tmp_path):
    page = Page(R.write_report(tmp_path / 'r.html', full).read_text(encoding='utf-8'))
    images = page.of('img')
    assert len(images) == 2 == len(page.of('figcaption'))
    for image in images:
      assert base64.b64decode(image['src'].removeprefix('data:image/png;base64,'), validate=True) == png.read_bytes()
    assert [image['alt'] for image in images] == ['Look at GRPO.', 'words']

  def test_nothing_is_loaded_from_anywhere(self, full, tmp_path):
    source = R.write_report(tmp_path / 'r.html', full).read_text(encoding='utf-8')
    page = Page(source)
    assert not re.search(r'https?://|@import|url\(', source)
    assert {tag for tag, _ in page.tags}.isdisjoint({'script', 'iframe', 'object', 'embed', 'audio', 'video'})
    for _, attributes in page.tags:
      assert attributes.get('src', 'data:').startswith('data:')
      assert attributes.get('href', '#').startswith(('#', 'data:'))
    policy = next(m['content'] for m in page.of('meta') if m.get('http-equiv') == 'Content-Security-Policy')
    assert policy.startswith("default-src 'none'")

  def test_links_lead_somewhere_and_ids_are_unique(self, full, tmp_path):
    page = Page(R.write_report(tmp_path / 'r.html', full).read_text(encoding='utf-8'))
    ids = [attributes['id'] for _, attributes in page.tags if 'id' in attributes]
    assert len(ids) == len(set(ids))
    assert {a['href'][1:] for a in page.of('a')} <= set(ids) and len(page.of('a')) == 5

  def test_verdicts_have_words_and_misses_are_told_again(self, full, tmp_path):
    page = Page(R.write_report(tmp_path / 'r.html', full).read_text(encoding='utf-8'))
    badges = [a['class'] for a in page.of('span') if 'badge' in a.get('class', '')]
    # Tally of three, three rows, and two misses.
    assert sorted(badges) == sorted(3 * ['badge open'] + 3 * ['badge no'] + 2 * ['badge yes'])
    missed = page.text.split('What did not reproduce')[-1]
    assert 'This one fails.' in missed and 'This one is open.' in missed and 'Entropy falls.' not in missed

  def test_all_reproduced(self, tmp_path):
    path = R.write_report(tmp_path / 'r.html', R.Report('t', 's', claims=[a_claim()]))
    assert 'Every claim was reproduced.' in Page(path.read_text(encoding='utf-8')).text

  def test_config_is_collapsed_and_both_colour_schemes_are_there(self, full, tmp_path):
    source = R.write_report(tmp_path / 'r.html', full).read_text(encoding='utf-8')
    details = Page(source).of('details')
    assert ['open' in attributes for attributes in details] == [True, False]
    assert 'prefers-color-scheme: dark' in source and '@media print' in source

  def test_everything_is_escaped(self, png, tmp_path):
    evil = Claim(EVIL, EVIL, EVIL, EVIL, 1.0, (0.0, 2.0), EVIL, EVIL, 'inconclusive')
    section = R.Section(EVIL, EVIL + ' `<b>`', [R.FigureRef(png, EVIL, EVIL)], R.Table([EVIL], [[EVIL]]))
    report = R.Report(EVIL, EVIL, [section], [evil], {EVIL: EVIL}, {EVIL: {EVIL: EVIL}}, [EVIL])
    path = R.write_report(tmp_path / 'r.html', report)
    source = path.read_text(encoding='utf-8')
    page = Page(source)
    assert '<script' not in source and '<b>' not in source
    assert not page.of('script') and page.of('img')[0]['alt'] == EVIL
    # title, h1, summary, navigation, heading, text, caption, table 2, claim 6, miss 3, config 2, environment 3, note
    assert page.text.count(EVIL) == 24

  def test_smallest_report(self, tmp_path):
    page = Page(R.write_report(tmp_path / 'r.html', R.Report('Title', 'Summary')).read_text(encoding='utf-8'))
    assert not page.of('section') and 'Title' in page.text and not page.of('nav')

  def test_absent_or_foreign_figure(self, tmp_path):
    (tmp_path / 'a.png').write_bytes(b'GIF89a')
    for name, says in (('none.png', 'does not exist'), ('a.png', 'is no PNG file')):
      report = R.Report('t', 's', [R.Section('x', figures=[R.FigureRef(tmp_path / name, 'c')])])
      with pytest.raises(UserError, match=says):
        R.write_report(tmp_path / 'r.html', report)
    assert not (tmp_path / 'r.html').exists()


class TestNumbers:
  @pytest.mark.parametrize(
    'value, text',
    [(0.0, '0'), (2.0, '2'), (-3.0, '−3'), (0.98123, '0.981'), (-0.0004161, '−0.000416'), (1234.6, '1,235'),
     (1e-7, '1e−07'), (NAN, 'none'), (float('-inf'), 'none')],
  )  # fmt: skip
  def test_three_significant_digits(self, value, text, tmp_path):
    section = R.Section('x', table=R.Table(['n'], [[value]]))
    path = R.write_report(tmp_path / 'r.html', R.Report('t', 's', [section]))
    assert f'<td class="number">{text}</td>' in path.read_text(encoding='utf-8')


class TestReadEntry:
  def test_of_a_report(self, tmp_path):
    path = R.write_report(tmp_path / 'a' / 'report.html', R.Report(EVIL, f'With `code` and {EVIL}.\n\nMore.', claims=[a_claim()]))
    assert R.read_entry(path) == R.IndexEntry(path, EVIL, f'With `code` and {EVIL}.')
    write_claims(path.with_name('claims.json'), [a_claim(), a_claim('b')])
    assert [claim.id for claim in R.read_entry(path).claims] == [a_claim().id, 'b']

  def test_of_another_page(self, tmp_path):
    (tmp_path / 'report.html').write_text('hello')
    assert R.read_entry(tmp_path / 'report.html') == R.IndexEntry(tmp_path / 'report.html', tmp_path.name, '')


class TestWriteIndex:
  def test_relative_links_and_tallies(self, tmp_path):
    entries = [
      R.IndexEntry(tmp_path / 'mechanism' / 'report.html', 'Mechanism', 'Collapse.', [a_claim(), a_claim('b')]),
      R.IndexEntry(tmp_path / 'two words' / 'report.html', EVIL, 'Other.'),
    ]
    page = Page(R.write_index(tmp_path / 'index.html', entries, title='Studies').read_text(encoding='utf-8'))
    assert [a['href'] for a in page.of('a')] == ['mechanism/report.html', 'two%20words/report.html']
    assert '2 reproduced' in page.text and EVIL in page.text and page.text.count('Studies') == 2

  def test_entry_outside_the_folder(self, tmp_path):
    entry = R.IndexEntry(tmp_path / 'a' / 'report.html', 'A', 'a')
    page = Page(R.write_index(tmp_path / 'pages' / 'index.html', [entry]).read_text(encoding='utf-8'))
    assert page.of('a')[0]['href'] == '../a/report.html'
