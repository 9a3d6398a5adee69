r"""data/marked_answers.py: the one answer that a completion marks."""

import time

import pytest

from entropy_jax.data import marked_answers, math_answers
from entropy_jax.data.marked_answers import Found, Marked, marked_answer, reference_answer
from entropy_jax.types import UserError


def text_of(completion: str, **settings) -> str:
  return marked_answer(completion, **settings).text


class TestMarkedAnswer:
  @pytest.mark.parametrize(
    ('completion', 'answer'),
    [
      (r'so \boxed{\frac{1}{2}}.', r'\frac{1}{2}'),
      (r'\boxed{\{1, 2\}}', r'\{1, 2\}'),
      (r'\boxed{\boxed{5}}', '5'),
      (r'$\boxed{$5$}$', '5'),
      (r'\boxed{ } \boxed{5}', '5'),
      (r'\boxed{0.5}, that is \boxed{1/2}', '1/2'),
      ('3 + 4\n#### 7\n', '7'),
      (r'#### $\boxed{7}$.', '7'),
      ('#### Step 1: add\n3 + 4\n#### 7', '7'),
      ('#### 7 eggs', '7 eggs'),
      ('\\boxed{5}\n#### Summary of it', '5'),
      ('<answer> 7 </answer>', '7'),
      (r'<answer>It is \boxed{7}</answer>', '7'),
      (r'<think>\boxed{3}</think>\boxed{5}', '5'),
    ],
  )
  def test_finds(self, completion, answer):
    assert marked_answer(completion) == Marked(answer, Found.ANSWER)

  @pytest.mark.parametrize(
    ('completion', 'found'),
    [
      ('', Found.NOTHING),
      ('the answer is 5', Found.NOTHING),
      (r'\boxed{}', Found.NOTHING),
      (r'<think>\boxed{5}</think>', Found.NOTHING),
      (r'\boxed{5} or \boxed{6}', Found.SEVERAL),
      ('#### 5\n#### 6', Found.SEVERAL),
      ('<answer>5</answer><answer>6</answer>', Found.SEVERAL),
      (r'<answer>\boxed{5} \boxed{6}</answer>', Found.SEVERAL),
      (r'\boxed{x \boxed{5} \boxed{6}}', Found.SEVERAL),
      (r'\boxed{5}' * 40, Found.SEVERAL),
      (r'\boxed{5', Found.UNBALANCED),
      ('<answer>5', Found.UNBALANCED),
      (r'\boxed{\{5}', Found.ANSWER),
      (r'\boxed{' + '5' * 2000 + '}', Found.TOO_LONG),
      ('#### ' + '5' * 300, Found.TOO_LONG),
    ],
  )
  def test_says_why_not(self, completion, found):
    assert marked_answer(completion).found is found
    assert found is Found.ANSWER or text_of(completion) == ''

  def test_forms_in_their_order(self):
    completion = '\\boxed{5}\n#### 6'
    assert text_of(completion) == '5' and text_of(completion, forms=('hash', 'box')) == '6' and text_of(completion, forms=('tag',)) == ''
    assert text_of(' 12 ', forms=('tag', 'bare')) == '12' and text_of('1' * 300, forms=('bare',)) == ''

  def test_last_of_several_if_asked_for(self):
    assert text_of(r'\boxed{5} no, \boxed{6}', conflicts='last') == '6'

  def test_the_prompt_is_no_answer(self):
    prompt = 'What is 4 + 1?\n#### 5\nWhat is 5 + 1?'
    assert text_of(prompt, prompt=prompt) == '' and text_of(prompt + prompt, prompt=prompt) == ''
    assert text_of(prompt + '\n#### 6', prompt=prompt) == '6'

  @pytest.mark.parametrize('piece', [r'\boxed{', '<answer>', '<answer></answer>', '{', '#### 1\n', '####', r'\boxed{5}', '</think>', 'a'])
  def test_time_is_linear(self, piece):
    text = piece * (2**20 // len(piece))
    start = time.process_time()
    marked_answer(text, prompt=text[:1000])
    assert time.process_time() - start < 1.0  # about 30 ms; what is quadratic would take hours

  def test_refuses_settings(self):
    with pytest.raises(UserError, match=r"forms=\['boxed'\]: must name at least one of tag, box, hash, bare"):
      marked_answer('', forms=('boxed',))
    with pytest.raises(UserError, match=r'forms=\[\]'):
      marked_answers.check_forms((), 'last')
    with pytest.raises(UserError, match="conflicts='first': must be 'reject' or 'last'"):
      marked_answer('', conflicts='first')


class TestReferenceAnswer:
  @pytest.mark.parametrize(
    ('text', 'answer'),
    [
      *(('3 + 4 = <<3+4=7>>7\n#### 1,007', '1,007'), (r'hence \boxed{1}, so $\boxed{x^{2}}$.', 'x^{2}'), (' 12 ', '12')),
      *((r'\boxed{5', ''), ('####', ''), (r'\fbox{a}', 'a'), ('a #### b\nc', 'b')),
    ],
  )
  def test_cases(self, text, answer):
    assert reference_answer(text) == answer

  def test_is_not_bounded(self):
    long = 'x' * (math_answers.MAX_CHARACTERS + 1)
    assert reference_answer(long) == long
