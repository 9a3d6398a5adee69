"""Tokenizers of the text tasks: one token a character, over an explicit alphabet that a checkpoint names by digest."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from entropy_jax.types import UserError

COUNTDOWN_ALPHABET = '0123456789+-*/()=: '
PAD, BOS, EOS = 0, 1, 2
NUM_SPECIAL = 3
# What a special token looks like in decoded text: outside every alphabet, so a verifier rejects a text that holds one.
SPECIAL_CHARACTER = '\N{REPLACEMENT CHARACTER}'


class Encoded(NamedTuple):
  """A batch of texts of one length: tokens (int32 [B, length]) and mask (bool, True at real tokens)."""

  tokens: np.ndarray
  mask: np.ndarray


def in_rows(ids: Sequence[Sequence[int]], texts: Sequence[str], length: int, *, side: str, pad_id: int) -> Encoded:
  """Encoded texts as one array of fixed length, see `CharacterTokenizer.encode_batch`; the texts are for messages."""
  if side not in ('left', 'right'):
    raise UserError(f"side={side!r}: must be 'left' or 'right'; give the side where the padding stands.")
  tokens = np.full((len(ids), length), pad_id, np.int32)
  mask = np.zeros((len(ids), length), bool)
  for row, own in enumerate(ids):
    if len(own) > length:
      raise UserError(f'length={length}: text {texts[row]!r} needs {len(own)} tokens; give length >= {len(own)}.')
    place = slice(length - len(own), length) if side == 'left' else slice(0, len(own))
    tokens[row, place] = own
    mask[row, place] = True
  return Encoded(tokens, mask)


@dataclasses.dataclass(frozen=True)
class CharacterTokenizer:
  """One token a character: pad 0, beginning of sequence 1, end of sequence 2, then the alphabet in order.

  Attributes:
    alphabet: the characters, each once.

  >>> tokenizer = CharacterTokenizer('ab')
  >>> tokenizer.encode('ba', eos=True), tokenizer.decode([4, 3, 2, 0])
  ([4, 3, 2], 'ba')
  """

  alphabet: str

  def __post_init__(self) -> None:
    repeated = sorted({c for c in self.alphabet if self.alphabet.count(c) > 1})
    if not self.alphabet or repeated or SPECIAL_CHARACTER in self.alphabet:
      raise UserError(
        f'alphabet={self.alphabet!r}: must hold at least one character, each once and none of them '
        f'{SPECIAL_CHARACTER!r}; remove {"".join(repeated) or SPECIAL_CHARACTER!r} or give characters.'
      )

  @property
  def vocab_size(self) -> int:
    """Number of token ids, special ones included."""
    return NUM_SPECIAL + len(self.alphabet)

  @property
  def digest(self) -> str:
    """SHA-256 of the token table (hex): equal digests read each other's checkpoints."""
    return hashlib.sha256(f'pad={PAD} bos={BOS} eos={EOS} {self.alphabet}'.encode()).hexdigest()

  @functools.cached_property
  def _ids(self) -> Mapping[str, int]:
    return {character: NUM_SPECIAL + i for i, character in enumerate(self.alphabet)}

  def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
    """Token ids of a text, between the special tokens asked for."""
    try:
      return [BOS] * bos + [self._ids[character] for character in text] + [EOS] * eos
    except KeyError as error:
      raise UserError(
        f'text={text!r}: character {error.args[0]!r} is not in the alphabet {self.alphabet!r}; '
        'remove it or use a tokenizer whose alphabet holds it.'
      ) from None

  def encode_batch(
    self, texts: Sequence[str], length: int, *, side: str = 'right', bos: bool = False, eos: bool = False
  ) -> Encoded:
    """Texts as one array of fixed length.

    Args:
      texts: B texts.
      length: tokens in a row, special ones included.
      side: where the padding stands, 'left' (prompts) or 'right' (responses).
      bos: whether every text begins with the beginning-of-sequence token.
      eos: whether every text ends with the end-of-sequence token.

    Returns:
      tokens (int32 [B, length], pad where mask is False) and mask (bool [B, length]).
    """
    return in_rows([self.encode(text, bos=bos, eos=eos) for text in texts], texts, length, side=side, pad_id=PAD)

  def decode(self, tokens: Iterable[int], *, skip_special: bool = False) -> str:
    """The text of a row up to its first end of sequence.

    Args:
      tokens: ids in [0, vocab_size); any other id is treated as a special token.
      skip_special: drop special tokens (to show a padded prompt) instead of writing a replacement character for each.

    A policy can emit pad or beginning of sequence in the middle of an answer. By default they stay visible, so that
    only one token sequence decodes to a correct answer and the verifier does not reward the others.
    """
    text = []
    for token in np.asarray(list(tokens), np.int64).tolist():
      if token == EOS:
        break
      if NUM_SPECIAL <= token < self.vocab_size:
        text.append(self.alphabet[token - NUM_SPECIAL])
      elif not skip_special:
        text.append(SPECIAL_CHARACTER)
    return ''.join(text)

  def decode_batch(self, tokens: np.ndarray, *, skip_special: bool = False) -> list[str]:
    """The text of every row of tokens [B, length], see `decode`."""
    return [self.decode(row, skip_special=skip_special) for row in np.asarray(tokens)]
