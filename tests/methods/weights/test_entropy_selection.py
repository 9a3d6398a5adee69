"""The 80/20 rule: exact counts, normalisation, which tokens are kept, gradients and notes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective
from entropy_jax.methods import surrogates, weights
from entropy_jax.types import RunFacts, TokenBatch, UserError

pytestmark = pytest.mark.usefixtures('strict_dtypes')

FACTS = RunFacts(updates_per_rollout=4, group_size=8, num_tokens=4096, aggregate='token_mean')
RNG = np.random.default_rng(0)
SIX = jnp.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
ALL = jnp.ones((2, 3), bool)
ENTROPY = RNG.choice([0.0, 0.5, 1.0, 2.0], (5, 8)).astype(np.float32)  # mostly tied
MASK = np.arange(8)[None] < np.array([8, 3, 0, 6, 5])[:, None]
IDENTITY = np.array([12, 5, 33, 2, 8], np.int32)
ORDER = np.array([3, 0, 4, 1, 2])
TOP, PPO = weights.top_entropy(), surrogates.ppo_clip()
weight = jax.jit(weights.top_entropy.function, static_argnames=('keep', 'normalize', 'side', 'rule'))


@functools.cache
def loss_and_gradient(*transforms):
  """Of a batch with the entropies, mask and identities above and an off-policy ratio."""
  rng = np.random.default_rng(1)
  logp = jnp.array(rng.normal(size=(5, 8)) - 2, jnp.float32)
  batch = TokenBatch(
    tokens_BxN=jnp.zeros((5, 8), jnp.int32),
    token_mask_BxN=jnp.array(MASK),
    mask_BxT=jnp.array(MASK),
    group_B=jnp.zeros(5, jnp.int32),
    reward_B=jnp.zeros(5),
    old_logp_BxT=logp + jnp.array(0.2 * rng.normal(size=(5, 8)), jnp.float32),
    old_entropy_BxT=jnp.zeros((5, 8)),
    logp_BxT=logp,
    entropy_BxT=jnp.array(ENTROPY),
    key=jax.random.key(0),
    advantage_BxT=jnp.array(rng.normal(size=(5, 8)), jnp.float32),
    sequence_B=jnp.array(IDENTITY),
  )
  chain = objective.chain(*transforms)

  @jax.jit
  def update(logp):
    planned, _, _ = chain.plan(chain.init(batch), batch.replace(logp_BxT=logp))
    per_token = surrogates.ppo_clip.function(logp - batch.old_logp_BxT, batch.advantage_BxT)
    return jax.value_and_grad(lambda lp: chain.loss(planned, batch.replace(logp_BxT=lp)).compute())(logp), per_token

  (loss, gradient), per_token = update(logp)
  return float(loss), np.asarray(gradient), np.asarray(per_token)


class TestTopEntropy:
  def test_card_value(self):
    # N = 6: K = ceil(.2 * 6) = 2; each weighs N / K = 3
    w, metrics = weight(SIX, ALL, None)
    assert w.tolist() == [[0.0, 0.0, 0.0], [0.0, 3.0, 3.0]]
    np.testing.assert_allclose(metrics['selected_fraction'], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics['threshold'], 0.5, rtol=1e-6)

  def test_normalize_all(self):
    w, _ = weight(SIX, ALL, None, normalize='all')
    assert w.tolist() == [[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]

  def test_quantile_rule_keeps_ties(self):
    # the .8-quantile of (.1 ... .6) is .5: two tokens, where floor(.2 * 6) = 1
    w, metrics = weight(SIX, ALL, None, normalize='all', rule='quantile')
    assert w.tolist() == [[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
    np.testing.assert_allclose(metrics['threshold'], 0.5, rtol=1e-6)
    # of 22 mostly tied entropies, all that equal the quantile are kept: more than ceil(.3 * 22) = 7
    edge = np.quantile(ENTROPY[MASK], 0.7)
    kept = MASK & (edge <= ENTROPY)
    assert kept.sum() > 7
    w, _ = weight(ENTROPY, MASK, IDENTITY, keep=0.3, rule='quantile')
    np.testing.assert_allclose(w, np.where(kept, 22 / kept.sum(), 0.0), rtol=1e-6)
    edge = np.quantile(ENTROPY[MASK], 0.3)
    bottom = MASK & (edge >= ENTROPY)
    w, _ = weight(ENTROPY, MASK, IDENTITY, keep=0.3, side='bottom', rule='quantile', normalize='all')
    np.testing.assert_array_equal(np.asarray(w) > 0, bottom)
    assert not np.any(weight(SIX, ~ALL, None, rule='quantile')[0])

  def test_bottom(self):
    # K = ceil(.8 * 6) = 5: all but the largest; the edge of what is kept is its largest entropy
    w, metrics = weight(SIX, ALL, None, keep=0.8, side='bottom', normalize='all')
    assert w.tolist() == [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]
    np.testing.assert_allclose(metrics['threshold'], 0.5, rtol=1e-6)

  @pytest.mark.parametrize(('keep', 'count'), [(0.01, 1), (0.2, 5), (0.5, 11), (1.0, 22)])
  def test_exact_count_under_ties(self, keep, count):
    w, _ = weight(ENTROPY, MASK, IDENTITY, keep=keep, normalize='all')
    kept = np.asarray(w) > 0
    assert kept.sum() == count  # ceil(keep * 22)
    assert not np.any(kept & ~MASK)
    assert ENTROPY[kept].min() >= ENTROPY[MASK & ~kept].max(initial=-1.0)

  @pytest.mark.parametrize('side', ['top', 'bottom'])
  def test_same_tokens_for_permuted_rows_and_more_padding(self, side):
    w = np.asarray(weight(ENTROPY, MASK, IDENTITY, keep=0.3, side=side)[0])
    moved, _ = weight(ENTROPY[ORDER], MASK[ORDER], IDENTITY[ORDER], keep=0.3, side=side)
    np.testing.assert_array_equal(moved, w[ORDER])
    wide = np.pad(ENTROPY, ((0, 0), (0, 3)), constant_values=np.nan)
    padded, _ = weight(wide, np.pad(MASK, ((0, 0), (0, 3))), IDENTITY, keep=0.3, side=side)
    np.testing.assert_array_equal(padded[:, :8], w)
    assert not np.any(padded[:, 8:])

  def test_loss_is_the_mean_over_kept_tokens(self):
    loss, gradient, per_token = loss_and_gradient(TOP, PPO)
    kept = np.asarray(weight(ENTROPY, MASK, IDENTITY)[0]) > 0
    np.testing.assert_allclose(loss, -per_token[kept].mean(), rtol=1e-5)
    assert not np.any(gradient[~kept])  # exactly 0
    plain = loss_and_gradient(PPO)[1]
    np.testing.assert_allclose(gradient[kept], plain[kept] * 22 / 5, rtol=1e-5)

  def test_normalize_all_shrinks_the_gradient_by_the_kept_share(self):
    kept = loss_and_gradient(TOP, PPO)
    everything = loss_and_gradient(weights.top_entropy(normalize='all'), PPO)
    np.testing.assert_allclose(everything[1], kept[1] * 5 / 22, rtol=1e-5)  # ceil(.2 * 22) = 5

  @pytest.mark.parametrize('normalize', ['kept', 'all'])
  def test_keeping_everything_is_the_plain_objective(self, normalize):
    plain = loss_and_gradient(PPO)
    full = loss_and_gradient(weights.top_entropy(keep=1.0, normalize=normalize), PPO)
    np.testing.assert_array_equal(full[0], plain[0])
    np.testing.assert_array_equal(full[1], plain[1])

  def test_no_valid_token(self):
    w, metrics = weight(SIX, ~ALL, None)
    assert not np.any(w) and float(metrics['threshold']) == 0

  def test_notes(self):
    text = lambda facts, **hyper: [t for t in (n(facts) for n in weights.top_entropy(**hyper).notes) if t is not None]
    assert text(FACTS) == []
    assert 'keep=0.0001 of at most 4096 tokens' in text(FACTS, keep=1e-4)[0]
    other = FACTS._replace(aggregate='sequence_mean_token_mean')
    assert "normalize='all'" in text(other)[0]
    assert text(other, normalize='all') == []

  @pytest.mark.parametrize('hyper', [{'keep': 0.0}, {'keep': 1.1}, {'side': 'middle'}, {'normalize': 'none'}, {'rule': 'sort'}])
  def test_bad_input(self, hyper):
    with pytest.raises(UserError, match=r'is outside|is not one of'):
      weights.top_entropy(**hyper)
