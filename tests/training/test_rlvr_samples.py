"""training/rlvr_samples.py: what is written of each response, by hand for two prompts with two responses each."""

import numpy as np
import pytest

from entropy_jax.data import hub_tokenizer
from entropy_jax.rollout.generate import Rollout
from entropy_jax.training import rlvr_samples

TOKENIZER = hub_tokenizer.train(['ab'] * 4, vocab_size=272)


def sampled() -> Rollout:
  a, b = (TOKENIZER.table.token_to_id(letter) for letter in 'cd')
  end = TOKENIZER.eos_id
  tokens = np.array([[a, end, 0], [b, end, 0], [a, b, a], [b, 271, end]], np.int32)
  mask = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]], bool)
  logp = np.where(mask, np.log(np.array([[0.5, 1, 1], [0.25, 1, 1], [1, 1, 1], [1, 1, 1]], np.float32)), 0.0).astype(np.float32)
  entropy = np.arange(12, dtype=np.float32).reshape(4, 3)
  return Rollout(tokens, mask, logp, entropy, logp, entropy, np.array([True, True, False, True]), logp, entropy)


class TestRecords:
  def test_by_hand(self):
    rewards = iter([np.array([0.0, 1.0, 0.0, 0.0])])
    seen = {}

    def verify(texts, rows):
      seen.update(texts=texts, rows=rows)
      return next(rewards), {}

    rows = {'index_B': np.array([3, 5])}
    found = rlvr_samples.records(sampled(), rows, [str(i) for i in range(6)], verify, TOKENIZER, group_size=2, shown=1)
    assert seen['texts'][:3] == ['c', 'd', 'cdc'] and seen['rows']['index_B'].tolist() == [3, 3, 5, 5]
    assert [one['prompt'] for one in found] == ['3', '5']
    best, other = found
    assert best['tokens'] == ['d', '<|im_end|>'] and best['entropy'] == [3.0, 4.0] and best['reward'] == 1.0 and best['finished']
    assert best['advantage'] == pytest.approx(0.7071, abs=1e-4)  # two responses of unequal reward
    assert other['tokens'] == ['c', 'd', 'c'] and other['advantage'] == 0.0 and not other['finished']
    # Ten tokens: the mean log-prob is ln(1/8) / 10 = -.20794, the mean advantage 0; (.7071 - 0) (ln(1/4) + .20794) = -.83322.
    assert best['covariance'] == [pytest.approx(-0.83322, abs=1e-4), pytest.approx(0.7071 * 0.20794, abs=1e-4)]
    assert other['covariance'] == [0.0, 0.0, 0.0]

  def test_best_and_worst_and_ids_without_a_token(self):
    found = rlvr_samples.records(
      sampled(), {'index_B': np.array([0, 1])}, ['p', 'q'], lambda texts, rows: (np.array([0.0, 1.0, 0.0, 2.0]), {}), TOKENIZER,
      group_size=2, shown=2,
    )  # fmt: skip
    assert [one['reward'] for one in found] == [1.0, 0.0, 2.0, 0.0]
    assert found[2]['tokens'] == ['d', '\N{REPLACEMENT CHARACTER}', '<|im_end|>']


class TestWrite:
  def test_reads_back(self, tmp_path):
    rows = [{'prompt': 'ä\n', 'tokens': ['<b>']}, {'prompt': '', 'tokens': []}]
    rlvr_samples.write(tmp_path / 'seed_0' / 'samples.jsonl', rows)
    assert rlvr_samples.read(tmp_path / 'seed_0' / 'samples.jsonl') == rows
