"""A synthetic translation task for encoder-decoders: a small grammar, read backwards, through a dictionary, with agreement.

A sentence is one to C clauses; a clause is up to A adjectives, a noun and a verb, in this order, every choice uniform. Its translation is
the sentence backwards, word by word through a dictionary, where adjectives and verbs take the form of their noun's gender: the verb then
comes before the noun that it agrees with, so a decoder must look ahead in the source. With one synonym a word the translation is a function
of the sentence and the least loss is 0; with more, the synonym is drawn uniformly and the least loss is known exactly. Sentence i depends
on the seed and i alone.
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from entropy_jax.data.pipeline import Batch
from entropy_jax.data.tokenizers import BOS, EOS, NUM_SPECIAL, PAD
from entropy_jax.types import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translation:
  """The language pair; its fields say how large it is.

  Attributes:
    num_adjectives, num_nouns, num_verbs: words of each class in the source; noun n has the gender n mod num_genders.
    num_genders: forms of every adjective and verb in the target.
    num_synonyms: target words for each source word (and form), one of which is drawn.
    max_clauses: C.
    max_adjectives: A, of one noun.
    dictionary_seed: of the dictionary, a permutation of the target words.

  >>> pair = Translation(num_adjectives=4, num_nouns=4, num_verbs=4)
  >>> pair.source_vocab_size, pair.target_vocab_size  # 3 special; 12 words; 4 nouns and two forms of 8 words
  (15, 23)
  """

  num_adjectives: int = 8
  num_nouns: int = 16
  num_verbs: int = 8
  num_genders: int = 2
  num_synonyms: int = 1
  max_clauses: int = 4
  max_adjectives: int = 2
  dictionary_seed: int = 0

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      least = 0 if field.name in ('max_adjectives', 'dictionary_seed') else 1
      if getattr(self, field.name) < least:
        raise UserError(f'{field.name}={getattr(self, field.name)}: must be at least {least}; give such an integer.')

  @property
  def source_vocab_size(self) -> int:
    """Source tokens: the three special ones, then adjectives, nouns and verbs."""
    return NUM_SPECIAL + self.num_adjectives + self.num_nouns + self.num_verbs

  @property
  def target_vocab_size(self) -> int:
    """Target tokens: the three special ones, then every form of every word with its synonyms."""
    forms = self.num_nouns + self.num_genders * (self.num_adjectives + self.num_verbs)
    return NUM_SPECIAL + self.num_synonyms * forms

  @property
  def source_length(self) -> int:
    """S, tokens of the longest sentence with its end; T, of the longest translation with its end, is the same."""
    return self.max_clauses * (self.max_adjectives + 2) + 1

  @functools.cached_property
  def source_entropy_nats(self) -> float:
    """Entropy of a sentence, exactly: a sentence can be read in one way only, so it is that of the choices.

    H = ln C + (C + 1) / 2 * (ln(A + 1) + A / 2 ln num_adjectives + ln num_nouns + ln num_verbs)
    """
    clause = math.log(self.max_adjectives + 1) + self.max_adjectives / 2 * math.log(self.num_adjectives)
    clause += math.log(self.num_nouns) + math.log(self.num_verbs)
    return math.log(self.max_clauses) + (self.max_clauses + 1) / 2 * clause

  @property
  def optimal_loss(self) -> float:
    """Least cross-entropy of a target token given the source, in nats: mean over all tokens of a corpus, ends included.

    Words carry ln num_synonyms each and ends none, so it is E[words] / (E[words] + 1) ln num_synonyms, E[words] = (C + 1) / 2 (2 + A / 2).
    """
    words = (self.max_clauses + 1) / 2 * (2 + self.max_adjectives / 2)
    return words / (words + 1) * math.log(self.num_synonyms)

  @property
  def unigram_loss(self) -> float:
    """Least cross-entropy of a target token given nothing, in nats, as of `optimal_loss`: what a decoder that reads nothing can reach.

    It is the entropy of a token: of E[words] + 1 tokens of a sentence one is its end, (C + 1) / 2 each are nouns and verbs and A / 2 times
    as many adjectives, uniform in their class, the latter two in the form of their noun's gender.
    """
    clauses = (self.max_clauses + 1) / 2
    sizes = [(self.num_nouns + self.num_genders - 1 - g) // self.num_genders for g in range(self.num_genders)]
    genders = [size / self.num_nouns for size in sizes if size]
    form = -math.fsum(share * math.log(share) for share in genders)
    classes = (
      (1.0, 0.0),
      (clauses, math.log(self.num_nouns * self.num_synonyms)),
      (clauses, math.log(self.num_verbs * self.num_synonyms) + form),
      (clauses * self.max_adjectives / 2, math.log(max(self.num_adjectives, 1) * self.num_synonyms) + form),
    )
    total = math.fsum(count for count, _ in classes)
    return math.fsum(count / total * (inside - math.log(count / total)) for count, inside in classes if count)

  @property
  def identity(self) -> dict[str, Any]:
    """What `examples.generated_batches` tells this task from others by."""
    return {'task': 'translation', **dataclasses.asdict(self)}

  @functools.cached_property
  def _dictionary(self) -> np.ndarray:
    """Target token of the k-th (word, form, synonym)."""
    num_words = self.target_vocab_size - NUM_SPECIAL
    raw = np.random.Philox(key=[self.dictionary_seed, 0]).random_raw(num_words)
    return NUM_SPECIAL + np.argsort(raw, kind='stable')

  def translate(self, source: list[int], synonyms: list[int] | None = None) -> list[int]:
    """The translation of a sentence, both without special tokens.

    Args:
      source: tokens of a sentence of the grammar.
      synonyms: for every source word the number of its synonym, in 0..num_synonyms - 1; None takes the first of each.
    """
    noun_start = NUM_SPECIAL + self.num_adjectives
    verb_start = noun_start + self.num_nouns
    target: list[int] = []
    gender = 0
    # Backwards, a clause begins with its verb, whose noun stands just before it; its adjectives come last and agree with the same noun.
    for place in range(len(source) - 1, -1, -1):
      word = source[place]
      if word >= verb_start:
        gender = (source[place - 1] - noun_start) % self.num_genders
        entry = self.num_nouns + self.num_genders * (self.num_adjectives + word - verb_start) + gender
      elif word >= noun_start:
        entry = word - noun_start
      else:
        entry = self.num_nouns + self.num_genders * (word - NUM_SPECIAL) + gender
      synonym = 0 if synonyms is None else synonyms[place]
      target.append(int(self._dictionary[entry * self.num_synonyms + synonym]))
    return target

  def batch(self, seed: int, index_B: np.ndarray) -> Batch:
    """The sentence pairs of the given indices (int [B]), a function of the seed and each index alone.

    Returns:
      source_tokens_BxS and target_tokens_BxT (int32, ended by EOS, padded on the right), their masks source_mask_BxS and target_mask_BxT
      (bool), decoder_tokens_BxT (int32: BOS, then the target without its last token: what the decoder is given), index_B (int64).
    """
    shape = (len(index_B), self.source_length)
    tokens = {'source': np.full(shape, PAD, np.int32), 'target': np.full(shape, PAD, np.int32)}
    mask_BxT = np.zeros(shape, bool)
    for b, index in enumerate(index_B.tolist()):
      raw = np.random.Philox(key=[seed, index]).random_raw(1 + 2 * (self.source_length - 1) + self.max_clauses).tolist()
      source = self._sentence(raw[: self.source_length + self.max_clauses])
      synonyms = [number % self.num_synonyms for number in raw[-len(source) :]]
      for name, words in (('source', source), ('target', self.translate(source, synonyms))):
        tokens[name][b, : len(words) + 1] = [*words, EOS]
      mask_BxT[b, : len(source) + 1] = True
    before_BxT = np.concatenate([np.full((len(index_B), 1), BOS, np.int32), tokens['target'][:, :-1]], axis=1)
    return {
      'source_tokens_BxS': tokens['source'],
      'source_mask_BxS': mask_BxT,
      'target_tokens_BxT': tokens['target'],
      'target_mask_BxT': mask_BxT.copy(),
      'decoder_tokens_BxT': np.where(mask_BxT, before_BxT, PAD).astype(np.int32),
      'index_B': np.asarray(index_B, np.int64),
    }

  def _sentence(self, raw: list[int]) -> list[int]:
    """A sentence from uniform 64-bit numbers: one for the clauses, and for each one for its adjectives and one a word."""
    numbers = iter(raw)
    sentence = []
    noun_start = NUM_SPECIAL + self.num_adjectives
    for _ in range(1 + next(numbers) % self.max_clauses):
      for _ in range(next(numbers) % (self.max_adjectives + 1)):
        sentence.append(NUM_SPECIAL + next(numbers) % self.num_adjectives)
      sentence.append(noun_start + next(numbers) % self.num_nouns)
      sentence.append(noun_start + self.num_nouns + next(numbers) % self.num_verbs)
    return sentence
