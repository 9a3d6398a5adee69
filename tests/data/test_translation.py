"""The synthetic language pair: grammar, dictionary, agreement, and its exact entropies."""

import collections
import itertools
import math

import numpy as np
import pytest

from entropy_jax.data import examples
from entropy_jax.data.translation import Translation
from entropy_jax.types import UserError

PAIR = Translation(num_adjectives=3, num_nouns=4, num_verbs=2, max_clauses=3)
# Source tokens: adjectives 3..5, nouns 6..9 (genders 0 1 0 1), verbs 10, 11.


def word_class(token: int) -> str:
  return 'a' if token < 6 else 'n' if token < 10 else 'v'


def sentences(batch: dict[str, np.ndarray], side: str) -> list[list[int]]:
  tokens, mask = batch[f'{side}_tokens_Bx{"S" if side == "source" else "T"}'], batch[f'{side}_mask_Bx{"S" if side == "source" else "T"}']
  return [row[shown].tolist() for row, shown in zip(tokens, mask, strict=True)]


class TestTranslate:
  def test_is_backwards_word_by_word(self):
    whole = PAIR.translate([3, 6, 10, 7, 11])
    assert len(whole) == 5
    assert whole == PAIR.translate([7, 11]) + PAIR.translate([3, 6, 10])
    assert whole[1:2] == PAIR.translate([7])  # a noun has one form, here after its verb

  def test_adjectives_and_verbs_agree_with_their_own_noun(self):
    # Nouns 6 and 8 have gender 0, nouns 7 and 9 gender 1.
    verb, noun, adjective = zip(*(PAIR.translate([4, n, 10]) for n in (6, 7, 8, 9)), strict=True)
    assert verb[0] == verb[2] != verb[1] == verb[3]
    assert adjective[0] == adjective[2] != adjective[1] == adjective[3]
    assert len(set(noun)) == 4
    # In two clauses each word follows the noun of its clause.
    assert PAIR.translate([4, 6, 10, 4, 7, 10]) == [verb[1], noun[1], adjective[1], verb[0], noun[0], adjective[0]]

  def test_forms_and_synonyms_are_distinct_words(self):
    pair = Translation(num_adjectives=2, num_nouns=2, num_verbs=1, num_genders=2, num_synonyms=3)
    # 3 special; 3 synonyms of 2 nouns and of 2 forms of 3 words.
    assert pair.target_vocab_size == 3 + 3 * (2 + 2 * 3)
    found = [
      token
      for adjective, noun, synonym in itertools.product((3, 4), (5, 6), range(3))
      for token in pair.translate([adjective, noun, 7], [synonym] * 3)
    ]
    assert set(found) == set(range(3, pair.target_vocab_size))

  def test_dictionary_is_a_matter_of_its_seed(self):
    assert PAIR.translate([3, 6, 10]) == Translation(num_adjectives=3, num_nouns=4, num_verbs=2, max_clauses=3).translate([3, 6, 10])
    words = [Translation(dictionary_seed=seed).translate(list(range(11, 27))) for seed in range(2)]
    assert words[0] != words[1]


class TestBatch:
  def test_sentences_are_of_the_grammar_and_translated(self):
    batch = PAIR.batch(0, np.arange(200))
    assert batch['source_tokens_BxS'].shape == batch['target_tokens_BxT'].shape == (200, 13)  # 3 clauses of up to 4 words, and an end
    for source, target in zip(sentences(batch, 'source'), sentences(batch, 'target'), strict=True):
      assert source[-1] == target[-1] == 2  # EOS
      classes = ''.join(map(word_class, source[:-1]))
      clauses = classes.split('nv')
      assert clauses.pop() == '' and 1 <= len(clauses) <= 3
      assert set(clauses) <= {'', 'a', 'aa'}
      assert target[:-1] == PAIR.translate(source[:-1])

  def test_padding_and_decoder_inputs(self):
    batch = PAIR.batch(0, np.arange(50))
    mask = batch['target_mask_BxT']
    assert (mask[:, :-1] >= mask[:, 1:]).all()  # on the right
    for name in ('source_tokens_BxS', 'target_tokens_BxT', 'decoder_tokens_BxT'):
      assert batch[name].dtype == np.int32
      assert not batch[name][~mask].any()
    assert (batch['decoder_tokens_BxT'][:, 0] == 1).all()  # BOS
    np.testing.assert_array_equal(batch['decoder_tokens_BxT'][:, 1:][mask[:, 1:]], batch['target_tokens_BxT'][:, :-1][mask[:, 1:]])

  def test_a_sentence_depends_on_seed_and_index_alone(self):
    whole, part, other = PAIR.batch(3, np.arange(20)), PAIR.batch(3, np.array([17, 4])), PAIR.batch(4, np.arange(20))
    for name in whole:
      np.testing.assert_array_equal(part[name], whole[name][[17, 4]])
    assert (whole['source_tokens_BxS'] != other['source_tokens_BxS']).any()

  def test_is_the_same_in_every_version(self):
    # The raw stream of Philox is pinned by numpy; these values were computed once with numpy 2.4.
    assert sentences(PAIR.batch(7, np.arange(2)), 'source') == [[4, 5, 8, 10, 2], [3, 4, 6, 10, 6, 11, 8, 11, 2]]
    assert sentences(PAIR.batch(7, np.arange(2)), 'target') == [[15, 14, 7, 16, 2], [9, 14, 9, 3, 15, 3, 16, 4, 2]]

  def test_goes_with_generated_batches(self):
    batches = examples.generated_batches(PAIR.batch, identity=PAIR.identity, batch_size=4, seed=9)
    np.testing.assert_array_equal(batches.batch(3)['source_tokens_BxS'], PAIR.batch(9, np.arange(12, 16))['source_tokens_BxS'])
    changed = examples.generated_batches(Translation().batch, identity=Translation().identity, batch_size=4, seed=9)
    with pytest.raises(UserError, match='state: belongs to pipeline'):
      changed.set_state(batches.get_state())


class TestExactEntropies:
  TINY = Translation(num_adjectives=2, num_nouns=2, num_verbs=1, num_synonyms=2, max_clauses=2, max_adjectives=1)

  def test_source_entropy_is_that_of_enumeration(self):
    # A clause: 0 or 1 adjective (1/2), which of 2, which noun of 2, one verb; a sentence: 1 or 2 clauses (1/2).
    clauses = {(n, 7): 1 / 4 for n in (5, 6)} | {(a, n, 7): 1 / 8 for a in (3, 4) for n in (5, 6)}
    chance = collections.Counter({clause: p / 2 for clause, p in clauses.items()})
    for (first, p), (second, q) in itertools.product(clauses.items(), repeat=2):
      chance[first + second] += p * q / 2
    assert math.isclose(sum(chance.values()), 1.0)
    expected = -sum(p * math.log(p) for p in chance.values())
    assert math.isclose(self.TINY.source_entropy_nats, expected, rel_tol=1e-12)

  def test_sentences_come_as_often_as_they_should(self):
    counts = collections.Counter(map(tuple, sentences(self.TINY.batch(0, np.arange(4000)), 'source')))
    # A single clause without adjective: 1/2 * 1/4 = 1/8, so 500 of 4,000, standard deviation 21; four of them are allowed.
    assert all(abs(counts[noun, 7, 2] - 500) < 84 for noun in (5, 6))

  def test_optimal_loss(self):
    assert PAIR.optimal_loss == 0.0
    # On average 1.5 clauses of 2.5 words: 3.75 words of ln 2 each and an end that is certain.
    assert math.isclose(self.TINY.optimal_loss, 3.75 / 4.75 * math.log(2))

  @pytest.mark.parametrize('pair', [PAIR, TINY, Translation(num_nouns=3, num_adjectives=2, num_verbs=2, max_clauses=2, num_synonyms=2)])
  def test_unigram_loss_is_the_entropy_of_the_tokens_that_come(self, pair):
    batch = pair.batch(3, np.arange(3000))
    counts = np.bincount(batch['target_tokens_BxT'][batch['target_mask_BxT']])
    p = counts[counts > 0] / counts.sum()
    # Some 15,000 tokens or more: the plug-in entropy is low by (classes - 1) / 2n < 0.002, its standard deviation about 0.003.
    np.testing.assert_allclose(pair.unigram_loss, -np.sum(p * np.log(p)), atol=0.012)

  def test_synonyms_are_uniform_and_independent(self):
    batch = self.TINY.batch(1, np.arange(1000))
    pairs = zip(sentences(batch, 'source'), sentences(batch, 'target'), strict=True)
    chosen = collections.Counter(
      tuple(int(word != first) for word, first in zip(target, self.TINY.translate(source[:-1]), strict=False))
      for source, target in pairs
      if len(source) == 3
    )
    assert set(chosen) == set(itertools.product((0, 1), repeat=2))
    total = sum(chosen.values())  # about 250, a quarter of the sentences
    # Chi-square with 3 degrees of freedom: 16.3 is exceeded with probability 0.001.
    assert sum((n - total / 4) ** 2 / (total / 4) for n in chosen.values()) < 16.3

  def test_least_loss_is_reached_by_who_knows_the_language(self):
    batch = self.TINY.batch(2, np.arange(3000))
    loss_nats = [len(target[:-1]) * math.log(2) for target in sentences(batch, 'target')]
    mean = sum(loss_nats) / batch['target_mask_BxT'].sum()
    assert math.isclose(mean, self.TINY.optimal_loss, rel_tol=5e-3)  # words / tokens of a sample


class TestTranslation:
  @pytest.mark.parametrize('field', ['num_adjectives', 'num_nouns', 'num_verbs', 'num_genders', 'num_synonyms', 'max_clauses'])
  def test_refuses_sizes_below_one(self, field):
    with pytest.raises(UserError, match=f'{field}=0'):
      Translation(**{field: 0})

  def test_without_adjectives(self):
    batch = Translation(max_adjectives=0, max_clauses=1).batch(0, np.arange(5))
    assert batch['source_tokens_BxS'].shape == (5, 3)
    assert batch['source_mask_BxS'].all()
