"""training/rlvr_data.py: prompts, references, solutions and rewards from the files that a config names."""

import dataclasses
import json

import numpy as np
import pytest

from entropy_jax.data import hub_tokenizer, rewards
from entropy_jax.data.answer_verifier import AnswerVerifier
from entropy_jax.training import rlvr_data
from entropy_jax.types import UserError

PART = {'source': 'asked.jsonl', 'split': 'train', 'question': 'question', 'answer': 'answer', 'limit': None}
DATA = {
  'train': PART, 'evaluation': PART, 'data_dir': 'sets', 'template': 'plain', 'chat': True, 'system': None, 'prompt_length': 16,
}  # fmt: skip


@pytest.fixture(scope='module')
def tokenizer():
  return hub_tokenizer.train(['user\n', 'assistant\n'] * 9, vocab_size=272)


@pytest.fixture
def workdir(tmp_path):
  columns = ('question', 'answer', 'solution')
  rows = [dict(zip(columns, row)) for row in (('1 + 2', 'so #### 3', '1 + 2 = 3'), ('a longer one', '7', '7'))]
  (tmp_path / 'asked.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return tmp_path


class TestPlace:
  def test_under_the_workdir_where_it_is_there(self, workdir):
    assert rlvr_data.place(workdir, 'asked.jsonl') == str(workdir / 'asked.jsonl')
    assert rlvr_data.place(workdir, 'gsm8k') == 'gsm8k' and rlvr_data.place(workdir, '/else/where') == '/else/where'


class TestReadTokenizer:
  def test_stops_at_more_tokens(self, tokenizer, tmp_path):
    hub_tokenizer.save(tmp_path, dataclasses.replace(tokenizer, stop_ids=(2,)))
    assert rlvr_data.read_tokenizer(str(tmp_path), None).stop_ids == (2,)
    assert rlvr_data.read_tokenizer(str(tmp_path), '<|endoftext|> <|im_end|>').stop_ids == (2, 0)
    with pytest.raises(UserError, match=r"stop_tokens='<\|im_ends\|>': the tokenizer has no token .* Did you mean '<\|im_end\|>'"):
      rlvr_data.read_tokenizer(str(tmp_path), '<|im_ends|>')


class TestReadPrompts:
  def test_chat(self, tokenizer, workdir):
    found = rlvr_data.read_prompts('train', DATA, tokenizer, workdir)
    assert found.texts == ('<|im_start|>user\n1 + 2<|im_end|>\n<|im_start|>assistant\n',)
    assert found.references == ('3',) and found.num_left_out == 1
    real = found.rows.fields['prompt_mask_BxP']
    # <|im_start|> user \n, five characters, <|im_end|> \n <|im_start|> assistant \n, padded on the left to 16
    assert real.tolist() == [[False] * 3 + [True] * 13]

  def test_plain_with_a_beginning_of_sequence(self, tokenizer, workdir):
    named = dataclasses.replace(tokenizer, named={**tokenizer.named, 'bos_token': '<|im_start|>'})
    found = rlvr_data.read_prompts('train', DATA | {'chat': False, 'template': 'Q: {question} A:'}, named, workdir)
    assert found.texts == ('Q: 1 + 2 A:',) and found.rows.fields['prompt_tokens_BxP'][0][4] == 1

  def test_the_system_speaks_first(self, tokenizer, workdir):
    found = rlvr_data.read_prompts('train', DATA | {'system': 'Be brief.', 'prompt_length': 64}, tokenizer, workdir)
    assert found.texts[0].startswith('<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n') and found.num_left_out == 0

  @pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
      ({'template': 'boxd'}, r"config: data\.template: template='boxd': must be one of .* Did you mean 'boxed'"),
      ({'chat': False, 'system': 'x'}, r"data\.system='x' needs data\.chat=True"),
      ({'prompt_length': 3}, r'config: data\.prompt_length: length=3: no prompt has so few tokens, the shortest has 13'),
      ({'train': PART | {'source': 'asked.json'}}, r"config: data\.train: source='asked.json': is neither of gsm8k"),
      ({'train': PART | {'answer': 'anwser'}}, r"config: data\.train: column='anwser': asked.jsonl line 1 has .* Did you mean 'answer'"),
    ],
  )
  def test_refuses(self, tokenizer, workdir, changes, sentence):
    with pytest.raises(UserError, match=sentence):
      rlvr_data.read_prompts('train', DATA | changes, tokenizer, workdir)


class TestReadSolutions:
  CONFIG = {
    'warm_start': {'num_steps': 1, 'source': 'asked.jsonl', 'question': 'question', 'solution': 'solution', 'batch_size': 1},
    'data': DATA,
    'sampling': {'response_length': 10},
  }

  def test_right_padded_and_ended(self, tokenizer, workdir):
    rows = rlvr_data.read_solutions(self.CONFIG, tokenizer, workdir).fields
    assert rows['prompt_tokens_BxP'].shape == (1, 16) and rows['response_mask_BxT'].tolist() == [[True] * 10]
    assert rows['response_tokens_BxT'][0][-1] == tokenizer.eos_id
    assert tokenizer.decode(rows['response_tokens_BxT'][0]) == '1 + 2 = 3'

  def test_refuses_more_than_there_are(self, tokenizer, workdir):
    few = self.CONFIG | {'sampling': {'response_length': 9}}
    with pytest.raises(UserError, match=r'warm_start.batch_size=1 is more than the 0 rows of asked.jsonl that fit'):
      rlvr_data.read_solutions(few, tokenizer, workdir)
    with pytest.raises(UserError, match=r'warm_start.source: None leaves nothing to imitate in num_steps=1'):
      rlvr_data.read_solutions(self.CONFIG | {'warm_start': self.CONFIG['warm_start'] | {'source': None}}, tokenizer, workdir)


class TestScorer:
  PROMPTS = rlvr_data.Prompts(None, ('p', 'q'), ('5', '6'), '', 0)
  ROWS = {'index_B': np.array([1, 0, 0]), 'finished_B': np.array([True, True, False])}

  def test_finds_references_and_adds_up(self):
    total = rewards.build({'accuracy': 1.0, 'finished': 0.5}, AnswerVerifier(use_math_verify=False))
    reward_B, counts = rlvr_data.scorer(total, self.PROMPTS)(['#### 6', '#### 6', ''], self.ROWS)
    assert reward_B.tolist() == [1.5, 0.5, 0.0]
    # Sums over the answers, to be divided by their number: means 1/3, 2/3 and 2/3, and two parsed of three.
    assert counts == {
      'reward/accuracy': 1.0, 'reward/finished': 2.0, 'reward/sum': 2.0,
      'reward/parsed': 2.0, 'reward/timed_out': 0.0, 'reward/rejected': 1.0,
    }  # fmt: skip
    success_B, _ = rlvr_data.success_of(total, 'finished', self.PROMPTS)(['', '', ''], self.ROWS)
    assert success_B.tolist() == [1.0, 1.0, 0.0]


class TestAnswersOf:
  def test_equal_where_they_say_the_same(self):
    answers = rlvr_data.answers_of(AnswerVerifier(use_math_verify=False))
    half, point, none = answers([r'\boxed{\frac{2}{4}}', '#### 0.5', 'perhaps 0.5'])
    assert half == point and none is None
    assert rlvr_data.answers_of(None)([' 3+5\n', ' ']) == ['3+5', None]
