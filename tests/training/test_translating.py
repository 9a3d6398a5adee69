"""The learner of sentence pairs against numpy, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_jax.data.translation import Translation
from entropy_jax.models.encoder_decoder import EncoderDecoderConfig
from entropy_jax.models.encoder_decoder import translator as model_of
from entropy_jax.training import sweeps, translating

PAIR = Translation(num_adjectives=2, num_nouns=2, num_verbs=2, max_clauses=2, max_adjectives=1)
CONFIG = EncoderDecoderConfig(
  width=8, num_layers=2, num_decoder_layers=2, num_heads=2, mlp_width=8, source_vocab_size=PAIR.source_vocab_size,
  target_vocab_size=PAIR.target_vocab_size, source_length=7, target_length=7, linear='sigma_reparam', norm='post', activation='relu',
)  # fmt: skip


@pytest.fixture(scope='module')
def measured():
  """(model, params, batch, loss, what is logged, what is logged at the end)."""
  learner, model = translating.translator(CONFIG), model_of(CONFIG, scan=True)
  batch = translating.pairs(PAIR.batch(0, np.arange(5)), (5,))

  @jax.jit
  def make():
    params = learner.init(jax.random.key(0))
    found = learner.loss(params, batch), learner.measure(params, batch), learner.finish(params)
    return params, model.logits(params, *batch.inputs), model.attention(params, *batch.inputs), *found

  return batch, *jax.device_get(make())


class TestPairs:
  def test_are_the_fields_of_the_batch(self):
    fields = PAIR.batch(3, np.arange(6))
    batch = translating.pairs(fields, (2, 3))
    source, source_mask, given, given_mask = batch.inputs
    np.testing.assert_array_equal(source.reshape(6, 7), fields['source_tokens_BxS'])
    np.testing.assert_array_equal(given.reshape(6, 7), fields['decoder_tokens_BxT'])
    np.testing.assert_array_equal(batch.target_BxT.reshape(6, 7), fields['target_tokens_BxT'])
    assert batch.target_BxT.shape == source_mask.shape == given_mask.shape == (2, 3, 7) and batch.mask_BxT.dtype == bool


class TestTranslator:
  def test_loss_and_accuracy(self, measured):
    batch, _, logits, _, loss, found, _ = measured
    log_p = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    kept = np.argwhere(np.asarray(batch.mask_BxT))
    target = np.asarray(batch.target_BxT)
    np.testing.assert_allclose([loss, found['held_out_loss']], -np.mean([log_p[b, t, target[b, t]] for b, t in kept]), rtol=1e-5)
    np.testing.assert_allclose(found['held_out_accuracy'], np.mean([log_p[b, t].argmax() == target[b, t] for b, t in kept]), rtol=1e-6)

  def test_every_kind_of_attention_is_logged_of_real_queries(self, measured):
    batch, _, _, read, _, found, _ = measured
    lengths = np.asarray(batch.mask_BxT).sum(-1)
    want = []
    for kind, keys in (('encoder', lambda n, q: n), ('decoder', lambda n, q: q + 1), ('cross', lambda n, q: n)):
      for logits in read[kind].logits_LxBxHxQxK:
        entropy, most = 0.0, 0.0
        for b, h in np.ndindex(5, 2):
          for q in range(lengths[b]):
            row = logits[b, h, q, : keys(lengths[b], q)].astype(np.float64)
            p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
            entropy, most = entropy - np.sum(p * np.log(p)), most + np.log(len(row))
        want.append(entropy / most)
    np.testing.assert_allclose(found['entropy'], want, rtol=1e-4)
    assert found['largest_logit'].shape == (6,) and found['violations'] == 0
    assert found['bounded_rows'] == 6 * 2 * 5 * 7  # queries that see nothing have an entropy of 0 and no bound to break

  def test_norms_of_all_layers(self, measured):
    assert all(x.shape == (2,) for x in measured[-1].values())
    np.testing.assert_allclose(np.stack(list(measured[-1].values())), 1.0, rtol=1e-4)

  def test_learns(self):
    learner = translating.translator(CONFIG)
    batches = translating.pairs(PAIR.batch(1, np.arange(40 * 8)), (40, 8))
    held_out = jax.tree.map(lambda x: x[0], batches)
    train = lambda key: sweeps.train(learner, learner.init(key), batches, held_out, tx=optax.adam(1e-2), log_every=40)
    curves = jax.jit(train)(jax.random.key(0))
    assert float(jnp.mean(curves.loss_xN[-5:])) < 0.8 * float(curves.loss_xN[0]) and curves.logged['entropy'].shape == (1, 6)
