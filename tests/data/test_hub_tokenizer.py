"""The tokenizer of a folder; benchmarks/versus_transformers.py compares texts and ids with the library itself."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tokenizers

from entropy_jax.data import hub_tokenizer
from entropy_jax.data.tokenizers import SPECIAL_CHARACTER
from entropy_jax.types import UserError

TEXTS = ['What is 12 + 7? The answer is 19.', 'the answer is the sum'] * 4
MESSAGES = [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': '3 + 4?'}]
PAD, START, END = 0, 1, 2


@pytest.fixture(scope='module')
def tokenizer():
  return hub_tokenizer.train(TEXTS, vocab_size=290)


@pytest.fixture
def folder(tmp_path, tokenizer):
  hub_tokenizer.save(tmp_path, tokenizer)
  return tmp_path


def change(folder, name, **keys):
  path = folder / name
  path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | keys))


class TestTrain:
  def test_writes_any_text(self, tokenizer):
    for text in (*TEXTS, 'Größe \N{SNOWMAN}\n\t x  y', '', ' '):
      assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0])
    assert len(tokenizer.encode('1987')) == 4  # a digit is a token

  def test_special_tokens(self, tokenizer):
    assert [tokenizer.table.id_to_token(i) for i in range(3)] == ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.stop_ids) == (PAD, END, None, (END, PAD))
    assert 259 < tokenizer.vocab_size <= 290

  def test_refused(self):
    with pytest.raises(UserError, match='vocab_size is 258: give at least 259'):
      hub_tokenizer.train(TEXTS, vocab_size=258)


class TestEncode:
  def test_special_tokens_are_asked_for(self, tokenizer):
    plain = tokenizer.encode('the sum')
    assert tokenizer.encode('the sum', eos=True) == [*plain, END]
    with_bos = dataclasses.replace(tokenizer, named={**tokenizer.named, 'bos_token': '<|im_start|>'})
    assert with_bos.encode('the sum', bos=True) == [START, *plain]
    with pytest.raises(UserError, match='bos=True: this tokenizer has no beginning of sequence'):
      tokenizer.encode('the sum', bos=True)

  def test_batch(self, tokenizer):
    a, b = tokenizer.encode('the'), tokenizer.encode('the sum 1')
    left = tokenizer.encode_batch(['the', 'the sum 1'], 8, side='left')
    assert left.tokens.tolist() == [[PAD] * (8 - len(a)) + a, [PAD] * (8 - len(b)) + b]
    np.testing.assert_array_equal(left.mask.sum(1), [len(a), len(b)])
    assert left.mask[:, -1].all() and left.tokens.dtype == np.int32
    with pytest.raises(UserError, match="length=1: text 'the sum 1' needs"):
      tokenizer.encode_batch(['the sum 1'], 1)


class TestDecode:
  def test_ends_at_the_first_stop_token(self, tokenizer):
    ids = tokenizer.encode('the sum')
    for stop in (END, PAD):
      assert tokenizer.decode([*ids, stop, *ids]) == 'the sum'
    assert tokenizer.decode_batch(np.array([[*ids, END], [END, *ids]])) == ['the sum', '']

  def test_what_is_no_text_stays_visible(self, tokenizer):
    a, b = tokenizer.encode('1'), tokenizer.encode('2')
    assert tokenizer.decode([*a, START, *b]) == '1<|im_start|>2'
    # Rows of the model beyond the tokenizer, and ids that are none.
    assert tokenizer.decode([*a, 10**6, -1, *b]) == f'1{SPECIAL_CHARACTER}{SPECIAL_CHARACTER}2'

  def test_skip_special_shows_a_padded_prompt(self, tokenizer):
    ids = tokenizer.encode(tokenizer.chat(MESSAGES))
    shown = 'system\nBe brief.\nuser\n3 + 4?\nassistant\n'
    assert tokenizer.decode([PAD, PAD, 10**6, *ids], skip_special=True) == shown


class TestChat:
  def test_turns(self, tokenizer):
    asked = '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n3 + 4?<|im_end|>\n'
    assert tokenizer.chat(MESSAGES) == asked + '<|im_start|>assistant\n'
    assert tokenizer.chat(MESSAGES, add_generation_prompt=False) == asked
    ids = tokenizer.encode(asked)
    assert ids.count(START) == 2 and ids.count(END) == 2

  @pytest.mark.parametrize(
    ('template', 'text'),
    [
      # Blocks alone on their line leave no line, as transformers sets jinja.
      ('{% for m in messages %}\n  {% if true %}\n{{ m.role }};\n  {% endif %}\n{% endfor %}\n', 'system;\nuser;\n'),
      ('{{ {"a": "<é>"} | tojson }}', '{"a": "<é>"}'),
      ('{{ messages | tojson(indent=1) | length > 20 }}', 'True'),
      ('{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}', 'Be brief.'),
      ('{% generation %}{{ messages[-1].content }}{% endgeneration %}!', '3 + 4?!'),
      ('{{ eos_token ~ (bos_token is defined) ~ (tools is none) ~ word }}', '<|im_end|>FalseTrueyes'),
      ('{{ strftime_now("%Y") | int > 2000 }}', 'True'),
    ],
  )
  def test_what_templates_use(self, tokenizer, template, text):
    assert dataclasses.replace(tokenizer, template=template).chat(MESSAGES, word='yes') == text

  @pytest.mark.parametrize(
    ('template', 'text'),
    [
      (None, 'has no chat template: give a folder with one'),
      ('{{ raise_exception("roles must\nalternate") }}', r'cannot write them \(roles must alternate\)'),
      ('{{ messages.nothing.there }}', r"cannot write them \('list object' has no attribute 'nothing'\)"),
      ('{{ 1 / 0 }}', r'cannot write them \(division by zero\)'),
      # The sandbox: no way to the interpreter, no change of what it was given, no endless range.
      ('{{ messages.__class__.__mro__ }}', r"access to attribute '__class__' of 'list' object is unsafe"),
      ('{{ messages.append(1) }}', 'is not safely callable|is unsafe'),
      ('{% for i in range(10 ** 9) %}{% endfor %}', 'Range too big'),
    ],
  )
  def test_refused(self, tokenizer, template, text):
    with pytest.raises(UserError, match=text) as found:
      dataclasses.replace(tokenizer, template=template).chat(MESSAGES)
    assert '\n' not in str(found.value)

  def test_only_plain_data_goes_in(self, tokenizer):
    with pytest.raises(UserError, match='not JSON serializable'):
      tokenizer.chat([{'role': 'user', 'content': object()}])


class TestLoad:
  def test_what_was_saved(self, folder, tokenizer):
    again = hub_tokenizer.load(folder)
    assert again.digest == tokenizer.digest and again.vocab_size == tokenizer.vocab_size
    assert (again.named, again.stop_ids, again.template) == (tokenizer.named, tokenizer.stop_ids, tokenizer.template)

  def test_the_digest_is_of_all_that_it_does(self, tokenizer):
    others = [
      dataclasses.replace(tokenizer, stop_ids=(END,)),
      dataclasses.replace(tokenizer, template='x'),
      dataclasses.replace(tokenizer, named={'eos_token': '<|im_end|>'}),
      hub_tokenizer.train([*TEXTS, 'zz zz zz'], vocab_size=290),
    ]
    assert len({tokenizer.digest, *(other.digest for other in others)}) == 5

  def test_special_tokens_as_objects_and_none_for_padding(self, folder):
    named = {'eos_token': {'content': '<|im_start|>', 'lstrip': False}, 'bos_token': '<|im_start|>', 'pad_token': None}
    change(folder, 'tokenizer_config.json', **named)
    (folder / 'generation_config.json').unlink()
    got = hub_tokenizer.load(folder)
    assert (got.eos_id, got.bos_id, got.pad_id, got.stop_ids) == (START, START, START, (START,))

  def test_where_stop_tokens_stand(self, folder):
    change(folder, 'config.json', eos_token_id=7)
    assert hub_tokenizer.load(folder).stop_ids == (END, PAD)  # generation_config.json comes first
    change(folder, 'generation_config.json', eos_token_id=5)
    assert hub_tokenizer.load(folder).stop_ids == (END, 5)
    (folder / 'generation_config.json').unlink()
    assert hub_tokenizer.load(folder).stop_ids == (END, 7)
    change(folder, 'tokenizer_config.json', eos_token=None)
    assert hub_tokenizer.load(folder).stop_ids == (7,)
    (folder / 'config.json').unlink()
    with pytest.raises(UserError, match='no file names an end of sequence'):
      hub_tokenizer.load(folder)

  def test_templates_in_their_own_file_or_among_several(self, folder):
    several = [{'name': 'tool_use', 'template': 'a'}, {'name': 'default', 'template': 'b'}]
    change(folder, 'tokenizer_config.json', chat_template=several)
    assert hub_tokenizer.load(folder).chat(MESSAGES) == 'b'
    (folder / 'chat_template.jinja').write_text('c')
    assert hub_tokenizer.load(folder).chat(MESSAGES) == 'c'
    (folder / 'chat_template.jinja').unlink()
    change(folder, 'tokenizer_config.json', chat_template=None)
    assert hub_tokenizer.load(folder).template is None

  def test_settings_of_the_table_that_cut_or_pad_are_off(self, folder, tokenizer):
    table = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
    table.enable_truncation(2)
    table.enable_padding(length=9)
    table.save(str(folder / 'tokenizer.json'))
    assert hub_tokenizer.load(folder).encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])

  def test_beginnings_that_the_table_adds_are_not_added(self, folder, tokenizer):
    table = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
    table.post_processor = tokenizers.processors.TemplateProcessing(single='<|im_start|> $A', special_tokens=[('<|im_start|>', START)])
    table.save(str(folder / 'tokenizer.json'))
    assert table.encode('the').ids[0] == START
    assert hub_tokenizer.load(folder).encode('the') == tokenizer.encode('the')

  def test_refused(self, folder, tmp_path):
    def refused(text):
      with pytest.raises(UserError, match=text) as found:
        hub_tokenizer.load(folder)
      assert '\n' not in str(found.value)

    change(folder, 'tokenizer_config.json', eos_token='</s>')
    refused("eos_token is '</s>', which tokenizer.json does not have")
    change(folder, 'tokenizer_config.json', eos_token=3)
    refused('eos_token is 3, which')
    change(folder, 'tokenizer_config.json', eos_token='<|im_end|>', chat_template='{% if %}')
    refused('the chat template is none')
    change(folder, 'tokenizer_config.json', chat_template=7)
    refused('the chat template is none')
    change(folder, 'tokenizer_config.json', chat_template=None)
    change(folder, 'generation_config.json', eos_token_id=[2, 10**6])
    refused(r'eos_token_id is \[2, 1000000\]: tokenizer.json has the ids 0 to')
    (folder / 'tokenizer.json').write_text('{"model": 1}')
    refused('tokenizer.json is no tokenizer')
    (folder / 'tokenizer_config.json').write_text('[')
    (folder / 'tokenizer.json').unlink()
    refused('tokenizer.json does not exist: give a folder with a fast tokenizer')

  def test_fits_the_model(self, tokenizer):
    tokenizer.check_fits(tokenizer.vocab_size)
    with pytest.raises(UserError, match='vocab_size is 259, and the tokenizer has ids up to'):
      tokenizer.check_fits(259)

  def test_copies_of_a_folder_are_the_same_tokenizer(self, folder, tmp_path, tokenizer):
    shutil.copytree(folder, tmp_path / 'copy')
    assert hub_tokenizer.load(tmp_path / 'copy').digest == tokenizer.digest
