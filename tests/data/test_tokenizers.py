import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_jax.data.tokenizers import BOS, COUNTDOWN_ALPHABET, EOS, PAD, CharacterTokenizer
from entropy_jax.data.verifiers import Verdict, verify_countdown
from entropy_jax.types import UserError

TOKENIZER = CharacterTokenizer(COUNTDOWN_ALPHABET)


class TestCharacterTokenizer:
  def test_ids(self):
    # 19 characters after the three special tokens.
    assert TOKENIZER.vocab_size == 22
    assert CharacterTokenizer('ab').encode('ba', bos=True, eos=True) == [1, 4, 3, 2]

  @settings(max_examples=100, deadline=None, database=None, derandomize=True)
  @given(st.text(alphabet=COUNTDOWN_ALPHABET, max_size=30))
  def test_decode_inverts_encode(self, text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    assert TOKENIZER.decode(TOKENIZER.encode(text, eos=True)) == text

  def test_is_hashable_and_equal_by_alphabet(self):
    assert CharacterTokenizer('ab') == CharacterTokenizer('ab')
    assert len({CharacterTokenizer('ab'), CharacterTokenizer('ab'), CharacterTokenizer('ba')}) == 2

  def test_digest(self):
    assert CharacterTokenizer('ab').digest == hashlib.sha256(b'pad=0 bos=1 eos=2 ab').hexdigest()
    assert CharacterTokenizer('ab').digest != CharacterTokenizer('ba').digest

  @pytest.mark.parametrize('alphabet', ['', 'aba', 'a\N{REPLACEMENT CHARACTER}'])
  def test_refuses_alphabet(self, alphabet):
    with pytest.raises(UserError, match='alphabet='):
      CharacterTokenizer(alphabet)

  def test_unknown_character(self):
    with pytest.raises(UserError, match="text='3x5': character 'x' is not in the alphabet"):
      TOKENIZER.encode('3x5')


class TestEncodeBatch:
  def test_padding_right(self):
    tokens, mask = CharacterTokenizer('ab').encode_batch(['ab', ''], 4, eos=True)
    np.testing.assert_array_equal(tokens, [[3, 4, EOS, PAD], [EOS, PAD, PAD, PAD]])
    np.testing.assert_array_equal(mask, [[True, True, True, False], [True, False, False, False]])
    assert (tokens.dtype, mask.dtype) == (np.int32, np.bool_)

  def test_padding_left(self):
    tokens, mask = CharacterTokenizer('ab').encode_batch(['ab', 'b'], 4, side='left', bos=True)
    np.testing.assert_array_equal(tokens, [[PAD, BOS, 3, 4], [PAD, PAD, BOS, 4]])
    np.testing.assert_array_equal(mask, [[False, True, True, True], [False, False, True, True]])

  def test_text_that_fills_the_row(self):
    _, mask = CharacterTokenizer('ab').encode_batch(['ab'], 2, side='left')
    assert mask.all()

  def test_too_long(self):
    with pytest.raises(UserError, match="length=3: text '3\\*5' needs 4 tokens; give length >= 4"):
      TOKENIZER.encode_batch(['3*5'], 3, eos=True)

  def test_unknown_side(self):
    with pytest.raises(UserError, match="side='middle'"):
      TOKENIZER.encode_batch(['3'], 3, side='middle')


class TestDecode:
  def test_stops_at_the_first_end(self):
    assert CharacterTokenizer('ab').decode([3, EOS, 4, EOS]) == 'a'

  def test_special_tokens_inside_an_answer_are_not_rewarded(self):
    answer = TOKENIZER.encode('3*5+7')
    assert verify_countdown(TOKENIZER.decode([*answer, EOS, PAD]), (3, 5, 7), 22) is Verdict.CORRECT
    for special in (PAD, BOS, TOKENIZER.vocab_size, -1):
      for place in range(len(answer) + 1):
        text = TOKENIZER.decode([*answer[:place], special, *answer[place:], EOS])
        assert verify_countdown(text, (3, 5, 7), 22) is Verdict.MALFORMED

  def test_skip_special_shows_a_prompt(self):
    tokens = TOKENIZER.encode_batch(['3 5=8:', '3 5=15:'], 9, side='left', bos=True).tokens
    assert TOKENIZER.decode_batch(tokens, skip_special=True) == ['3 5=8:', '3 5=15:']
