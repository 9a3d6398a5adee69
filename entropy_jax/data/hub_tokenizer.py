"""The tokenizer of a Hugging Face folder: tokenizer.json, its special tokens, where generation stops, and the chat template.

It is called as `tokenizers.CharacterTokenizer` is. Templates are programs of whoever made the folder: they run in jinja's immutable
sandbox and see plain data alone.
"""

import dataclasses
import datetime
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np
import tokenizers

from entropy_jax.data.tokenizers import SPECIAL_CHARACTER, Encoded, in_rows
from entropy_jax.models.hub_names import CONFIG, read_json
from entropy_jax.types import UserError

TABLE = 'tokenizer.json'
SETTINGS = 'tokenizer_config.json'
GENERATION = 'generation_config.json'
TEMPLATE = 'chat_template.jinja'
_NAMED = ('bos_token', 'eos_token', 'pad_token', 'unk_token')
# One turn a message, each between two special tokens, as the tokenizers of `train` have it.
TURNS = (
  "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class HubTokenizer:
  """A tokenizer with the special tokens that its folder names.

  Attributes:
    table: text to ids and back.
    named: 'bos_token', 'eos_token', 'pad_token' -> the token's text, those that there are; eos_token is one of them.
    stop_ids: the tokens after which a response ends, that of eos_token first.
    template: of chats, None for none.
  """

  table: tokenizers.Tokenizer
  named: Mapping[str, str]
  stop_ids: tuple[int, ...]
  template: str | None = None

  @property
  def eos_id(self) -> int:
    return self.stop_ids[0]

  @property
  def bos_id(self) -> int | None:
    return self._id('bos_token')

  @property
  def pad_id(self) -> int:
    """What stands in padding, where no mask is True: the end of sequence for tokenizers without a token for it."""
    found = self._id('pad_token')
    return self.eos_id if found is None else found

  def _id(self, name: str) -> int | None:
    return self.table.token_to_id(self.named[name]) if name in self.named else None

  @functools.cached_property
  def vocab_size(self) -> int:
    """One more than the largest id; models often have some rows more."""
    return max(self.table.get_vocab(with_added_tokens=True).values()) + 1

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 of all that it does (hex): equal digests read each other's checkpoints."""
    parts = [self.table.to_str(), sorted(self.named.items()), self.stop_ids, self.template]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

  def check_fits(self, vocab_size: int) -> None:
    """Refuses a model that has no row for some token."""
    if self.vocab_size > vocab_size:
      raise UserError(f'vocab_size is {vocab_size}, and the tokenizer has ids up to {self.vocab_size - 1}: take both from one folder.')

  def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
    """Token ids of a text, between the special tokens asked for; special tokens that are spelt out in the text become theirs."""
    if bos and self.bos_id is None:
      raise UserError('bos=True: this tokenizer has no beginning of sequence; give False.')
    start = [] if self.bos_id is None or not bos else [self.bos_id]
    return start + self.table.encode(text, add_special_tokens=False).ids + [self.eos_id] * eos

  def encode_batch(self, texts: Sequence[str], length: int, *, side: str = 'right', bos: bool = False, eos: bool = False) -> Encoded:
    """Texts as one array of fixed length, see `CharacterTokenizer.encode_batch`."""
    return in_rows([self.encode(text, bos=bos, eos=eos) for text in texts], texts, length, side=side, pad_id=self.pad_id)

  def decode(self, tokens: Iterable[int], *, skip_special: bool = False) -> str:
    """The text of a row up to its first stop token.

    Args:
      tokens: ids; those that no token has become a replacement character each.
      skip_special: drop special tokens and such ids (to show a padded prompt) instead of spelling them out; stop tokens then end nothing.
    """
    ids = np.asarray(list(tokens), np.int64).tolist()
    if skip_special:
      return self.table.decode([i for i in ids if self._has(i)], skip_special_tokens=True)
    stop = next((n for n, i in enumerate(ids) if i in self.stop_ids), len(ids))
    runs: list[list[int]] = [[]]
    for i in ids[:stop]:
      if self._has(i):
        runs[-1].append(i)
      else:
        runs.append([])
    return SPECIAL_CHARACTER.join(self.table.decode(run, skip_special_tokens=False) for run in runs)

  def _has(self, i: int) -> bool:
    return 0 <= i < self.vocab_size and self.table.id_to_token(i) is not None

  def decode_batch(self, tokens: np.ndarray, *, skip_special: bool = False) -> list[str]:
    """The text of every row of tokens [B, length], see `decode`."""
    return [self.decode(row, skip_special=skip_special) for row in np.asarray(tokens)]

  def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any) -> str:
    """The text of a conversation, as the folder's template writes it, special tokens spelt out; encode it without bos and eos.

    Args:
      messages: such as {'role': 'user', 'content': 'What is 2 + 2?'}.
      add_generation_prompt: whether the start of the assistant's turn stands at the end.
      **variables: of the template, such as enable_thinking=False (Qwen3) or tools=[...].

    Raises:
      UserError: no template, or one that refuses these messages.

    Limits: a message that spells out a special token has it read as that token, as everywhere in these libraries. Some templates ask for
      the day: give the variable in which they keep it (Llama 3: date_string) if the text must be the same tomorrow.
    """
    if self.template is None:
      raise UserError(f'the tokenizer has no chat template: give a folder with one in {SETTINGS} or {TEMPLATE}, or write the prompt out.')
    try:
      given = json.loads(json.dumps({'messages': list(messages), 'tools': None, 'documents': None, **variables}))
      return _compiled(self.template).render(**self.named, **given, add_generation_prompt=add_generation_prompt)
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
      raise UserError(f'messages: the chat template cannot write them ({_line(error)}): give roles and contents that it knows.') from None


def _line(error: BaseException) -> str:
  return ' '.join(str(error).split()) or type(error).__name__


class _Generation(jinja2.ext.Extension):
  """{% generation %} ... {% endgeneration %} marks the assistant's words in some templates; here it writes what stands between."""

  tags = {'generation'}

  def parse(self, parser: Any) -> Any:
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    return jinja2.nodes.Scope(body, lineno=line)


def _refuse(message: str) -> NoReturn:
  raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
  # Jinja's own filter writes HTML.
  return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.lru_cache(8)
def _compiled(template: str) -> jinja2.Template:
  """The template as transformers compiles it, with what templates there may call."""
  extensions = [_Generation, jinja2.ext.loopcontrols]
  sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
  sandbox.filters['tojson'] = _tojson
  sandbox.globals['raise_exception'] = _refuse
  sandbox.globals['strftime_now'] = lambda form: datetime.datetime.now().strftime(form)
  return sandbox.from_string(template)


def load(folder: str | os.PathLike[str]) -> HubTokenizer:
  """The tokenizer of a folder: tokenizer.json; special tokens and chat template from tokenizer_config.json or chat_template.jinja; stop
  tokens from generation_config.json, or config.json.

  Raises:
    UserError: a file that is missing or damaged, a special token that the table does not have.
  """
  folder = Path(folder)
  path = folder / TABLE
  if not path.is_file():
    raise UserError(f'{path} does not exist: give a folder with a fast tokenizer, which transformers makes of others by save_pretrained.')
  try:
    table = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the package raises nothing narrower
    raise UserError(f'{path} is no tokenizer ({_line(error)}): fetch the file again.') from None
  table.no_truncation()
  table.no_padding()
  settings = _optional(folder / SETTINGS)
  named = {}
  for key in _NAMED:
    value = settings.get(key)
    text = value.get('content') if isinstance(value, dict) else value
    if text is not None and (not isinstance(text, str) or table.token_to_id(text) is None):
      raise UserError(f'{folder / SETTINGS}: {key} is {text!r}, which {TABLE} does not have: take both from one folder.')
    if text is not None:
      named[key] = text
  stops = _optional(folder / GENERATION).get('eos_token_id')
  stops = _optional(folder / CONFIG).get('eos_token_id') if stops is None else stops
  ids = [] if stops is None else stops if isinstance(stops, list) else [stops]
  size = max(table.get_vocab(with_added_tokens=True).values()) + 1
  for i in ids:
    if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < size:
      raise UserError(f'{folder}: eos_token_id is {stops!r}: {TABLE} has the ids 0 to {size - 1}; take all files from one folder.')
  if 'eos_token' in named:
    ids = [table.token_to_id(named['eos_token']), *ids]
  if not ids:
    raise UserError(f'{folder}: no file names an end of sequence: give eos_token in {SETTINGS} or eos_token_id in {GENERATION}.')
  return HubTokenizer(table, named, tuple(dict.fromkeys(ids)), _template(folder, settings))


def _optional(path: Path) -> dict[str, Any]:
  return read_json(path) if path.is_file() else {}


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
  """The chat template of a folder, in its own file or among the settings; of several, the one named default."""
  if (folder / TEMPLATE).is_file():
    found: Any = (folder / TEMPLATE).read_text(encoding='utf-8')
  else:
    found = settings.get('chat_template')
  if isinstance(found, list):
    found = {str(one.get('name')): one.get('template') for one in found if isinstance(one, dict)}.get('default')
  if found is None:
    return None
  try:
    _compiled(found)
  except (jinja2.TemplateError, TypeError, AttributeError) as error:
    raise UserError(f'{folder}: the chat template is none ({_line(error)}): fetch {SETTINGS} or {TEMPLATE} again.') from None
  return found


def save(folder: str | os.PathLike[str], tokenizer: HubTokenizer) -> None:
  """Writes the files of a tokenizer into a folder that exists, as `load` and transformers read them."""
  folder = Path(folder)
  settings: dict[str, Any] = {'tokenizer_class': 'PreTrainedTokenizerFast', 'clean_up_tokenization_spaces': False, **tokenizer.named}
  if tokenizer.template is not None:
    settings['chat_template'] = tokenizer.template
  stops = {'eos_token_id': list(tokenizer.stop_ids), 'pad_token_id': tokenizer.pad_id}
  (folder / TABLE).write_text(tokenizer.table.to_str(), encoding='utf-8')
  for name, content in ((SETTINGS, settings), (GENERATION, stops)):
    (folder / name).write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')


def train(texts: Iterable[str], *, vocab_size: int) -> HubTokenizer:
  """A byte-level BPE tokenizer of these texts, with single digits, Qwen's special tokens and its form of chats.

  Args:
    texts: what it is trained on; it writes any other text too.
    vocab_size: at least 259, the bytes and 3 special tokens; fewer ids come out where the texts have fewer pairs.
  """
  special = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
  least = 256 + len(special)
  if vocab_size < least:
    raise UserError(f'vocab_size is {vocab_size!r}: give at least {least}, the bytes and the special tokens.')
  table = tokenizers.Tokenizer(tokenizers.models.BPE())
  pieces = [tokenizers.pre_tokenizers.Digits(individual_digits=True), tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)]
  table.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(pieces)
  table.decoder = tokenizers.decoders.ByteLevel()
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
  )
  table.train_from_iterator(texts, trainer)
  named = {'eos_token': '<|im_end|>', 'pad_token': '<|endoftext|>'}
  return HubTokenizer(table, named, (special.index('<|im_end|>'), special.index('<|endoftext|>')), TURNS)  # their ids are the first
