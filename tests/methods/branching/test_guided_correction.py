"""Guided error correction: who is corrected and how often, every edit token by token, and what it does for groups that all fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from entropy_jax.methods import branching
from entropy_jax.methods.branching import Correction
from entropy_jax.models import tabular
from entropy_jax.ops import groups
from entropy_jax.rollout import generate
from entropy_jax.types import UserError

PAD, EOS = -1, 9
append = jax.jit(branching.append_tokens, static_argnames='pad_id')


def rows(*responses, width):
  """(tokens, mask) of ragged lists."""
  mask = np.array([[t < len(r) for t in range(width)] for r in responses])
  tokens = np.array([list(r) + [PAD] * (width - len(r)) for r in responses], np.int32)
  return jnp.array(tokens), jnp.array(mask)


def lists(tokens, mask):
  return [np.asarray(t)[np.asarray(m)].tolist() for t, m in zip(tokens, mask)]


class TestNeedsCorrection:
  def test_reward_and_room(self):
    got = branching.needs_correction(jnp.array([2.0, 1.0, 0.0, 0.0]), jnp.array([10, 255, 256, 3]))
    np.testing.assert_array_equal(got, [False, True, False, True])


class TestChooseCorrection:
  def test_a_half_a_quarter_a_quarter(self):
    B = 20_000
    eligible = jnp.arange(B) % 4 != 0
    got = np.asarray(jax.jit(branching.choose_correction)(jax.random.key(0), eligible))
    assert np.all(got[~np.asarray(eligible)] == Correction.NONE)
    count = np.bincount(got[np.asarray(eligible)], minlength=4)
    assert count[Correction.NONE] == 0
    assert scipy.stats.chisquare(count[1:], np.array([0.5, 0.25, 0.25]) * 15_000).pvalue > 1e-3

  def test_follows_the_sequence(self):
    identity = jnp.arange(50) + 7
    order = np.random.default_rng(0).permutation(50)
    choose = jax.jit(branching.choose_correction)
    whole = choose(jax.random.key(1), jnp.ones(50, bool), identity)
    np.testing.assert_array_equal(choose(jax.random.key(1), jnp.ones(50, bool), identity[order]), whole[order])

  def test_certain_choices(self):
    for doubt, answer, want in ((1.0, 0.0, Correction.DOUBT), (0.0, 1.0, Correction.ANSWER), (0.0, 0.0, Correction.SOLUTION)):
      got = branching.choose_correction(jax.random.key(0), jnp.ones(9, bool), doubt=doubt, answer=answer)
      np.testing.assert_array_equal(got, np.full(9, want))

  @pytest.mark.parametrize('kwargs', [{'doubt': 0.9}, {'doubt': 1.5}, {'answer': -0.1}])
  def test_refuses(self, kwargs):
    with pytest.raises(UserError, match='guided_correction: '):
      branching.choose_correction(jax.random.key(0), jnp.ones(2, bool), **kwargs)


class TestAppendTokens:
  def test_lists(self):
    tokens, mask = rows([1, 2, 3], [], [4, 5, 6, 7, 8], width=6)
    more, more_mask = rows([10], [11, 12], [13, 14], width=3)
    got, got_mask, added = append(tokens, mask, more, more_mask, pad_id=PAD)
    assert lists(got, got_mask) == [[1, 2, 3, 10], [11, 12], [4, 5, 6, 7, 8, 13]]  # the last one is cut off
    assert lists(got, added) == [[10], [11, 12], [13]]
    assert np.all(np.asarray(got)[~np.asarray(got_mask)] == PAD)

  def test_holes_stay_and_gaps_close(self):
    tokens = jnp.array([[1, 99, 2, 99, 99]])
    mask = jnp.array([[True, False, True, False, False]])
    got, got_mask, _ = append(tokens, mask, jnp.array([[5, 6, 7]]), jnp.array([[False, True, True]]), pad_id=PAD)
    np.testing.assert_array_equal(got, [[1, PAD, 2, 6, 7]])
    np.testing.assert_array_equal(got_mask, [[True, False, True, True, True]])

  def test_nothing_added(self):
    tokens, mask = rows([1, 2], [3], width=4)
    got, got_mask, added = append(tokens, mask, tokens, jnp.zeros_like(mask), pad_id=PAD)
    np.testing.assert_array_equal(got, tokens)
    np.testing.assert_array_equal(got_mask, mask)
    assert not added.any()


class TestAsPrompt:
  def test_keeps_the_order(self):
    rng = np.random.default_rng(0)
    tokens, mask = rng.integers(0, 50, (20, 9)), rng.uniform(size=(20, 9)) < 0.6
    got, got_mask = jax.jit(branching.as_prompt)(tokens, mask)
    assert lists(got, got_mask) == lists(tokens, mask)
    np.testing.assert_array_equal(np.sort(got_mask, axis=1), got_mask)  # padded on the left
    assert np.all(np.asarray(got)[~np.asarray(got_mask)] == 0)


class TestGuidedCorrection:
  RESPONSES = ([1, 2, EOS], [3, 4, 5], [6, EOS], [7, 8], [1, EOS, 2])
  PHRASE = jnp.array([20, 21])

  def correct(self, correction, width=10, continued=None, **kwargs):
    tokens, mask = rows(*self.RESPONSES, width=width)
    answers = rows([30, EOS], [31], [32, EOS], [33], [34], width=2)
    solutions = rows([40, 41, EOS], [42], [43, 44], [45], [46], width=4)
    seen = []

    def go_on(tokens, mask):
      seen.append(lists(tokens, mask))
      return rows([50, 51], [52], [53, 54, 55], [56], [], width=3) if continued is None else continued

    out = branching.guided_correction(
      tokens, mask, jnp.array(correction, jnp.int32), self.PHRASE, *answers, *solutions, go_on, eos_id=EOS, pad_id=PAD, **kwargs
    )
    assert len(seen) == 1
    assert np.all(np.asarray(out.tokens_BxT)[~np.asarray(out.mask_BxT)] == PAD)
    assert not np.any(np.asarray(out.injected_BxT) & ~np.asarray(out.mask_BxT))
    return out, seen[0]

  def test_every_edit(self):
    out, seen = self.correct([Correction.DOUBT, Correction.ANSWER, Correction.SOLUTION, Correction.NONE, Correction.DOUBT])
    assert lists(out.tokens_BxT, out.mask_BxT) == [
      [1, 2, 20, 21, 50, 51],  # the end of sequence went, the phrase came, the model went on
      [3, 4, 5, 20, 21, 31],
      [43, 44],
      [7, 8],
      [1, EOS, 2, 20, 21],  # only a last token is an end; the model had nothing to add
    ]
    assert lists(out.tokens_BxT, out.injected_BxT) == [[20, 21], [20, 21, 31], [43, 44], [], [20, 21]]
    assert seen == [[1, 2, 20, 21], [3, 4, 5, 20, 21], [6, 20, 21], [7, 8, 20, 21], [1, EOS, 2, 20, 21]]
    np.testing.assert_array_equal(out.correction_B, [1, 2, 3, 0, 1])

  def test_no_correction_is_the_response(self):
    out, _ = self.correct([Correction.NONE] * 5)
    tokens, mask = rows(*self.RESPONSES, width=10)
    np.testing.assert_array_equal(out.tokens_BxT, tokens)
    np.testing.assert_array_equal(out.mask_BxT, mask)
    assert not out.injected_BxT.any()

  def test_short_of_room_and_of_budget(self):
    out, _ = self.correct([Correction.DOUBT] * 5, width=5)
    assert lists(out.tokens_BxT, out.mask_BxT)[:3] == [[1, 2, 20, 21, 50], [3, 4, 5, 20, 21], [6, 20, 21, 53, 54]]
    out, _ = self.correct([Correction.DOUBT] * 5, max_continue=1)
    assert lists(out.tokens_BxT, out.mask_BxT)[2] == [6, 20, 21, 53]

  def test_with_generate(self):
    # A policy of one row a position that always says 3; the response so far decides nothing but the position.
    policy = tabular.tabular_policy(2, 8, 5)
    params = {tabular.TABLE: jnp.zeros((2, 8, 1, 5)).at[..., 3].set(100.0)}
    prompt, tokens, mask = jnp.array([[1], [0]]), *rows([4, 2], [4], width=8)
    calls = []

    def go_on(tokens, mask):
      whole = branching.as_prompt(jnp.concatenate([prompt, tokens], axis=1), jnp.concatenate([jnp.ones((2, 1), bool), mask], axis=1))
      calls.append(whole[1].shape)
      # this toy policy reads a prompt of one token
      out = generate.generate(policy, params, prompt, jnp.ones((2, 1), bool), jax.random.key(0), num_tokens=2)
      return out.tokens_BxT, out.mask_BxT

    nothing = jnp.zeros((2, 1), jnp.int32), jnp.zeros((2, 1), bool)
    edit = jax.jit(lambda t, m: branching.guided_correction(t, m, jnp.array([1, 1]), jnp.array([2]), *nothing, *nothing, go_on))
    out = edit(tokens, mask)
    assert lists(out.tokens_BxT, out.mask_BxT) == [[4, 2, 2, 3, 3], [4, 2, 3, 3]]
    assert calls == [(2, 9)]

  def test_groups_that_all_fail_get_an_advantage(self):
    # 60 prompts of four responses that all say 0; right is the prompt's own digit. A verifier reads the last token; the model's second
    # thoughts are right one time in three. Without correction no group has an advantage.
    B, G = 240, 4
    group = jnp.arange(B) // G
    right = 1 + group % 3
    tokens, mask = jnp.zeros((B, 6), jnp.int32), jnp.tile(jnp.arange(6) < 2, (B, 1))

    def reward(tokens, mask):
      end = jnp.max(jnp.where(mask, jnp.arange(6)[None], -1), axis=1)
      return (jnp.take_along_axis(tokens, end[:, None], axis=1)[:, 0] == right).astype(jnp.float32)

    @jax.jit
    def run():
      before = reward(tokens, mask)
      eligible = branching.needs_correction(before, jnp.full(B, 5), full_reward=1.0)
      gold = right[:, None], jnp.ones((B, 1), bool)
      guess = jax.random.randint(jax.random.key(2), (B, 1), 1, 4), jnp.ones((B, 1), bool)
      chosen = branching.choose_correction(jax.random.key(0), eligible)
      out = branching.guided_correction(tokens, mask, chosen, jnp.array([7]), *gold, *gold, lambda t, m: guess)
      after = reward(out.tokens_BxT, out.mask_BxT)
      contrast = [jnp.mean((groups.centred(r, group) != 0).astype(jnp.float32)) for r in (before, after)]
      return out.correction_B, after, contrast

    correction, after, contrast = jax.tree.map(np.asarray, run())
    told = correction >= Correction.ANSWER
    assert np.all(after[told] == 1.0)
    assert scipy.stats.binomtest(int(np.sum(after[~told])), int(np.sum(~told)), 1 / 3).pvalue > 1e-3
    # all four right: (1/2 + 1/2 * 1/3)^4 = .198; all four wrong: (1/2 * 2/3)^4 = .012
    assert contrast[0] == 0.0 and contrast[1] == pytest.approx(0.79, abs=0.16)
