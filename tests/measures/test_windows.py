"""Windows of token entropies: hand values, numpy loops over lists of tokens, planted passages against spikes."""

import jax
import numpy as np
import pytest

from entropy_jax.measures import windows
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

BATCH = helpers.with_garbage(helpers.token_batch(seed=3, B=6, T=9))
H, M = np.array(BATCH.old_entropy_BxT), np.array(BATCH.mask_BxT)


window_mean = jax.jit(windows.window_mean, static_argnames=('width', 'start'))


def loop_means(width, first):
  """(mean, full) by lists, a window being `width` positions from t + first on."""
  mean, full = np.zeros(H.shape), np.zeros(H.shape, bool)
  for i, t in np.ndindex(H.shape):
    places = range(t + first, t + first + width)
    full[i, t] = M[i, t] and all(p < H.shape[1] and M[i, p] for p in places)
    mean[i, t] = np.mean([H[i, p] for p in places]) if full[i, t] else 0.0
  return mean, full


class TestWindowMean:
  @pytest.mark.parametrize(('width', 'start'), [(1, 'at'), (2, 'at'), (4, 'at'), (2, 'after'), (4, 'after')])
  def test_loop(self, width, start):
    mean, full = window_mean(H, M, width=width, start=start)
    want_mean, want_full = loop_means(width, 0 if start == 'at' else 1)
    np.testing.assert_array_equal(full, want_full)
    np.testing.assert_allclose(mean, want_mean, rtol=1e-6)
    assert want_full.any() and not want_full.all()

  def test_constant_entropy_is_its_own_mean(self):
    mean, full = window_mean(np.full((1, 7), 0.3, np.float32), np.ones((1, 7), bool))
    np.testing.assert_array_equal(full, [[True] * 4 + [False] * 3])
    np.testing.assert_allclose(mean[0, :4], 0.3, rtol=1e-6)

  def test_responses_shorter_than_the_window(self):
    for T in (1, 3):
      mean, full = window_mean(np.ones((2, T), np.float32), np.ones((2, T), bool))
      assert not full.any() and not mean.any()

  def test_gradient_is_one_over_w(self):
    grad = jax.jit(jax.grad(lambda x: windows.window_mean(x, M, width=2)[0].sum()))(H)
    count = np.zeros(H.shape)
    _, full = loop_means(2, 0)
    for i, t in np.argwhere(full):
      count[i, t : t + 2] += 0.5
    np.testing.assert_allclose(grad, count, rtol=1e-6)

  @pytest.mark.parametrize('kwargs', [{'width': 0}, {'width': 2.0}, {'start': 'before'}])
  def test_refuses(self, kwargs):
    with pytest.raises(UserError, match=f'windows: {next(iter(kwargs))}='):
      windows.window_mean(H, M, **kwargs)


class TestSequenceQuantile:
  def test_numpy_row_by_row(self):
    got = jax.jit(lambda x, m: windows.sequence_quantile(x, m, 0.95))(H, M)
    np.testing.assert_allclose(got, [np.quantile(h[m], 0.95) if m.any() else 0.0 for h, m in zip(H, M)], rtol=1e-6)

  def test_nothing_is_zero(self):
    np.testing.assert_array_equal(windows.sequence_quantile(H, np.zeros_like(M), 0.95), np.zeros(len(H)))


class TestHighEntropyThreshold:
  def test_paper_is_the_mean_of_the_percentiles(self):
    rows = [np.quantile(h[m], 0.95) for h, m in zip(H, M) if m.any()]
    np.testing.assert_allclose(windows.high_entropy_threshold(H, M), np.mean(rows), rtol=1e-6)

  def test_released_is_the_median_of_the_percentiles_of_windows(self):
    mean, full = loop_means(2, 1)
    rows = [np.quantile(h[m], 0.95) for h, m in zip(mean, full) if m.any()]
    assert 1 < len(rows) < len(H)
    got = windows.high_entropy_threshold(H, M, width=2, form='released')
    np.testing.assert_allclose(got, np.median(rows), rtol=1e-6)

  @pytest.mark.parametrize('form', ['paper', 'released'])
  def test_empty_and_padding(self, form):
    assert float(windows.high_entropy_threshold(H, np.zeros_like(M), form=form)) == 0.0
    more = helpers.padded(BATCH, 3)
    got = windows.high_entropy_threshold(more.old_entropy_BxT, more.mask_BxT, width=2, form=form)
    assert got == windows.high_entropy_threshold(H, M, width=2, form=form)

  def test_unknown_form(self):
    with pytest.raises(UserError, match=r"windows: form='code' is not one of paper, released\."):
      windows.high_entropy_threshold(H, M, form='code')


class TestHighEntropyWindows:
  def test_loop(self):
    mean, full = loop_means(2, 0)
    tau = 1.0
    assert 0 < np.sum(full & (mean > tau)) < full.sum() and np.abs(mean[full] - tau).min() > 1e-3
    np.testing.assert_array_equal(windows.high_entropy_windows(H, M, tau, width=2), full & (mean > tau))

  def test_equal_entropies_do_not_exceed_their_own_threshold(self):
    # .1 seven times: the float32 mean of the percentiles is not .1
    h, m = np.full((7, 5), 0.1, np.float32), np.ones((7, 5), bool)
    found = jax.jit(lambda h, m: windows.high_entropy_windows(h, m, windows.high_entropy_threshold(h, m)))(h, m)
    assert not found.any()

  def test_passages_are_found_and_spikes_are_not(self):
    # 40 responses of 60 tokens: certain (.05), isolated spikes of 2.5 nats, and one passage of eight tokens of 2 nats each
    rng = np.random.default_rng(0)
    h = rng.uniform(0.0, 0.1, (40, 60))
    spike, passage = np.zeros(h.shape, bool), np.zeros(h.shape, bool)
    for i in range(40):
      passage[i, 30:38] = True
      spike[i, rng.choice(np.r_[0:25, 44:60], 3, replace=False)] = True
    spike[:, 1:] &= ~spike[:, :-1]
    h = np.where(passage, rng.uniform(1.8, 2.2, h.shape), np.where(spike, 2.5, h)).astype(np.float32)
    mask = np.ones(h.shape, bool)
    tau = 1.5
    inside = np.array(windows.inside_windows(windows.high_entropy_windows(h, mask, tau)))
    alone = h > tau  # one token at a time
    assert alone[spike].all() and alone[passage].all()
    assert inside[passage].mean() == 1.0 and inside[spike].mean() < 0.02
    precision = passage[inside].mean(), passage[alone].mean()
    assert precision[0] > 0.75 > precision[1]  # a window reaches at most one certain token over each end


class TestInsideWindows:
  def test_covers_the_windows(self):
    starts = np.zeros((2, 7), bool)
    starts[0, [1, 2]] = True
    starts[1, 6] = True  # reaches over the end: cut
    np.testing.assert_array_equal(windows.inside_windows(starts, width=3), [[0, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1]])
    np.testing.assert_array_equal(windows.inside_windows(starts, width=2, start='after')[0], [0, 0, 1, 1, 1, 0, 0])


class TestWindowEntropy:
  def test_mean_over_full_windows(self):
    mean, full = loop_means(4, 0)
    ratio = windows.window_entropy(H, M)
    assert float(ratio.den) == full.sum()
    np.testing.assert_allclose(ratio.compute(), mean[full].mean(), rtol=1e-6)

  def test_slices_merge(self):
    parts = [windows.window_entropy(H[i : i + 3], M[i : i + 3]) for i in (0, 3)]
    np.testing.assert_allclose(parts[0].merge(parts[1]).compute(), windows.window_entropy(H, M).compute(), rtol=1e-6)


class TestHighWindowRate:
  def test_share_of_full_windows(self):
    mean, full = loop_means(2, 0)
    ratio = windows.high_window_rate(H, M, 1.0, width=2)
    np.testing.assert_allclose(ratio.compute(), np.mean(mean[full] > 1.0), rtol=1e-6)
    assert 0 < float(ratio.compute()) < 1
