"""data/questions.py: sets of TFDS by name, where stand-ins lie on disk, files by path, templates and tokens."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from entropy_jax.data import examples, questions
from entropy_jax.data.questions import Questions, load
from entropy_jax.data.tokenizers import CharacterTokenizer
from entropy_jax.types import UserError
from tests.data.test_named_sets import write

ROWS = [{'question': 'What is 3 + 4?', 'answer': 'It is <<3+4=7>>7.\n#### 7'}, {'question': 'And 2 + 2?', 'answer': 4}]
EXPECTED = Questions(('What is 3 + 4?', 'And 2 + 2?'), ('7', '4'))


def json_lines(path, rows) -> str:
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def parquet(path, rows) -> str:
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  return str(path)


class TestLoadNamed:
  def test_gsm8k(self, tmp_path):
    names = ('question', 'answer', 'annotation', 'short_answer')
    records = [dict(zip(names, (f'Q{n}?', f'so\n#### {n},000', 'so\n', f'{n},000'))) for n in (1, 2, 3)]
    write('gsm8k', {name: tfds.features.Text() for name in names}, records, tmp_path)
    assert load('gsm8k', data_dir=tmp_path) == Questions(('Q1?', 'Q2?', 'Q3?'), ('1,000', '2,000', '3,000'))
    assert load('gsm8k', split='train[1:]', data_dir=tmp_path, limit=1) == Questions(('Q2?',), ('2,000',))
    with pytest.raises(UserError, match=r"split='test': gsm8k has the splits train"):
      load('gsm8k', split='test', data_dir=tmp_path)

  def test_math_dataset(self, tmp_path):
    features = {'question': tfds.features.Text(), 'answer': tfds.features.Text()}
    records = [{'question': 'Solve 2*x = 3.', 'answer': '3/2'}, {'question': 'Differentiate x**2.', 'answer': '2*x'}]
    write('math_dataset', features, records, tmp_path, config='algebra__linear_1d')
    assert load('math_dataset/algebra__linear_1d', data_dir=tmp_path).references == ('3/2', '2*x')

  @pytest.mark.parametrize('name', ['gsm8k', 'math_dataset/algebra__linear_1d'])
  def test_says_what_to_do_where_it_is_not_prepared(self, tmp_path, name):
    with pytest.raises(UserError, match=f"dataset='{name}': is a TFDS dataset that is not prepared in data_dir; run `tfds build {name}"):
      load(name, data_dir=tmp_path)


class TestLoadFiles:
  def test_json_lines(self, tmp_path):
    path = json_lines(tmp_path / 'a.jsonl', ROWS)
    assert load(path) == EXPECTED
    (tmp_path / 'a.jsonl').write_text('\n' + (tmp_path / 'a.jsonl').read_text() + '\n')
    assert load(path) == EXPECTED and load(tmp_path / 'a.jsonl', limit=1) == EXPECTED.take([0])

  def test_whole_answers(self, tmp_path):
    path = tmp_path / 'solved.jsonl'
    path.write_text('{"question": "3 + 4?", "answer": "3 + 4 = 7 #### 7"}\n')
    assert questions.load(path).references == ('7',)
    assert questions.load(path, whole=True).references == ('3 + 4 = 7 #### 7',)

  def test_parquet(self, tmp_path):
    rows = [{'problem': row['question'], 'extra': {'truth': str(row['answer'])}, 'unused': n} for n, row in enumerate(ROWS)]
    assert load(parquet(tmp_path / 'a.parquet', rows), question='problem', answer='extra.truth') == EXPECTED

  @pytest.mark.parametrize('make', [json_lines, parquet])
  def test_columns_by_name(self, tmp_path, make):
    path = make(tmp_path / ('a.jsonl' if make is json_lines else 'a.parquet'), [{'prompt': 'p', 'meta': {'gold': r'so $\boxed{5}$.'}}])
    assert load(path, question='prompt', answer='meta.gold') == Questions(('p',), ('5',))
    with pytest.raises(UserError, match=r"column='promt': a\..* 1 has the columns prompt, meta; give one of these. Did you mean 'prompt'"):
      load(path, question='promt', answer='meta.gold')
    with pytest.raises(UserError, match=r"column='meta.golf': a\..* 1 has the columns gold; give one of these. Did you mean 'gold'"):
      load(path, question='prompt', answer='meta.golf')

  @pytest.mark.parametrize(
    ('text', 'message'),
    [
      ('', 'holds no question'),
      ('{"question": "a"', 'line 1 is not JSON; repair or remove it'),
      ('{"question": "a", "answer": 1}\n[1]', r'line 2 is not an object'),
      ('[' * 100_000, 'line 1 is not JSON'),
      ('{"question": " ", "answer": 1}', "question=' ': a.jsonl line 1 must hold a text"),
      ('{"question": "a", "answer": null}', 'answer=None: a.jsonl line 1 must hold a text that is not empty, or a number'),
      ('{"question": "a", "answer": true}', 'answer=True'),
      ('{"question": "a", "answer": "so ####"}', 'a.jsonl line 1 marks an empty answer'),
      ('\xff', 'line 1 is not JSON'),
    ],
  )
  def test_damaged_lines(self, tmp_path, text, message):
    path = tmp_path / 'a.jsonl'
    path.write_bytes(text.encode('latin-1'))
    with pytest.raises(UserError, match=message):
      load(path)

  def test_damaged_parquet(self, tmp_path):
    path = tmp_path / 'a.parquet'
    parquet(path, ROWS[:1])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r'cannot be read as Parquet \(.*\); give a whole file'):
      load(path)

  def test_refuses(self, tmp_path):
    with pytest.raises(UserError, match=r"source='.*b.jsonl': there is no such file"):
      load(tmp_path / 'b.jsonl')
    with pytest.raises(UserError, match=r"source='gsm8': is neither of gsm8k, math_dataset nor a path.*Did you mean 'gsm8k'"):
      load('gsm8', data_dir=tmp_path)
    with pytest.raises(UserError, match='data_dir=None: gsm8k is read from a folder'):
      load('gsm8k')
    with pytest.raises(UserError, match='limit=0: must be at least 1'):
      load(json_lines(tmp_path / 'a.jsonl', ROWS), limit=0)


class TestQuestions:
  def test_prompts(self):
    asked = Questions(('a {x} $\\frac{1}{2}$', 'b'), ('1', '2'))
    assert asked.prompts() == asked.questions
    assert asked.prompts('Q: {question}\n') == ('Q: a {x} $\\frac{1}{2}$\n', 'Q: b\n')
    for name in questions.TEMPLATES:
      assert all(question in prompt for question, prompt in zip(asked.questions, asked.prompts(name)))
    assert asked.prompts('boxed')[1].endswith('in \\boxed{}.')

  @pytest.mark.parametrize('template', ['', 'boxd', '{question} {question}', '{answer}'])
  def test_refuses_template(self, template):
    with pytest.raises(UserError, match='must be one of plain, question_answer, boxed, hash, think_answer, or a text that holds'):
      Questions(('a',), ('1',)).prompts(template)

  def test_digest_is_of_the_content(self):
    assert EXPECTED.digest == Questions(*map(tuple, (EXPECTED.questions, EXPECTED.references))).digest != EXPECTED.take([1, 0]).digest
    assert len(EXPECTED) == 2


class TestTokenised:
  def test_left_padded_and_long_ones_left_out(self):
    tokenizer = CharacterTokenizer('abc')
    rows, kept = questions.tokenised(['ab', 'abcabc', 'c'], tokenizer.encode, pad_id=0, length=3)
    assert kept.tolist() == [0, 2]
    assert rows.fields['prompt_tokens_BxP'].tolist() == [[0, 3, 4], [0, 0, 5]]
    assert rows.fields['prompt_mask_BxP'].tolist() == [[False, True, True], [False, False, True]]
    whole, kept = questions.tokenised(['ab', 'abcabc', 'c'], tokenizer.encode, pad_id=0)
    assert whole.fields['prompt_tokens_BxP'].shape == (3, 6) and kept.tolist() == [0, 1, 2]

  def test_batches_name_rows_of_what_is_kept(self):
    tokenizer = CharacterTokenizer('abc')
    rows, kept = questions.tokenised(['a', 'bbbbb', 'c', 'b'], tokenizer.encode, pad_id=0, length=2)
    batch = next(examples.training_batches(rows, batch_size=3, seed=0))
    np.testing.assert_array_equal(batch['prompt_tokens_BxP'][:, 1], np.array([3, 0, 5, 4])[kept[batch['index_B']]])

  def test_refuses_a_length_that_leaves_nothing(self):
    with pytest.raises(UserError, match='length=1: no prompt has so few tokens, the shortest has 2; give a larger length'):
      questions.tokenised(['ab', 'abc'], CharacterTokenizer('abc').encode, pad_id=0, length=1)
