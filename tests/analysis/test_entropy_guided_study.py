"""The claims and the table of the entropy-guided study on made ladders whose answers are known."""

import numpy as np

from entropy_jax.analysis import entropy_guided_study
from entropy_jax.analysis.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED
from entropy_jax.analysis.entropy_guided_runs import Ladder
from tests.analysis.test_entropy_guided_runs import NAN, made

NOISE = 0.002 * np.array([-1.0, 0.0, 1.0])


def papers() -> Ladder:
  """Everything as the paper and the card have it, but for the runs that diverge."""
  two = (0.99, 0.02)
  return Ladder({
    'ln_gelu': made(2.0 + NOISE, (0.5, 0.7)),
    'ln': made(2.2 + NOISE, (0.5, 0.7)),
    'gelu': made(2.4 + NOISE, (0.8, 0.4)),
    'relu': made(2.3 + NOISE, (0.8, 0.4)),
    'softmax_only': made(2.9 + NOISE, two),
    'fused': made(2.3 - NOISE, (0.95, 0.3)),
    'fused_t': made(2.3 + NOISE, (0.95, 0.3)),
    'guided': made(2.2 + NOISE, (0.6, 0.3)),
    'guided_strong': made(2.25 + NOISE, (0.5, 0.3)),
  })


def verdicts(ladder: Ladder) -> dict[str, str]:
  return {claim.id: claim.verdict for claim in entropy_guided_study.claims(ladder)}


class TestClaims:
  def test_what_the_papers_say(self):
    found = verdicts(papers())
    # No run diverges here, and neither model has collapsed heads.
    apart = {'softmax_only_diverges', 'guided_collapse_against_fused'}
    assert {id for id, verdict in found.items() if verdict != REPRODUCED} == apart
    assert all(found[id] == NOT_REPRODUCED for id in apart) and len(found) == 23

  def test_the_opposite(self):
    ladder = papers()
    flipped = {'ln_gelu': 'softmax_only', 'softmax_only': 'ln_gelu', 'guided': 'fused', 'fused': 'guided'}
    found = verdicts(Ladder({name: ladder.variants[flipped.get(name, name)] for name in ladder.variants}))
    assert found['softmax_only_costs'] == found['softmax_only_overload_against_ln_gelu'] == NOT_REPRODUCED
    assert found['guided_beats_fused'] == found['guided_overload_against_fused'] == NOT_REPRODUCED
    assert found['p3_fused_recovers'] == INCONCLUSIVE  # nothing is lost that could be won back

  def test_a_diverged_run(self):
    ladder = papers()
    alone = ladder.variants['softmax_only']
    alone.loss_RxN[:, -3:] = NAN
    alone.held_out_RxC[:, -1] = NAN
    found = verdicts(ladder)
    assert found['softmax_only_diverges'] == REPRODUCED and found['softmax_only_costs'] == INCONCLUSIVE

  def test_two_seeds_decide_nothing(self):
    few = {name: made(x.final_loss[:2], x.late_entropy[0, :, 0]) for name, x in papers().variants.items()}
    assert set(verdicts(Ladder(few)).values()) == {INCONCLUSIVE}

  def test_only_what_the_study_has(self):
    ladder = papers()
    some = Ladder({name: ladder.variants[name] for name in ('ln_gelu', 'softmax_only')})
    assert {'softmax_only_costs', 'p1_ln_gelu_first_layer'} <= verdicts(some).keys() and len(verdicts(some)) == 8


class TestRecovered:
  def test_share_of_what_is_lost(self):
    # (2.9 - 2.3) / (2.9 - 2.2), the noise of fused being the other way round
    np.testing.assert_allclose(entropy_guided_study.recovered(papers()), (0.6 + 2 * NOISE) / 0.7)


class TestTable:
  def test_in_the_order_of_the_ladder(self):
    ladder = papers()
    variants = dict(ladder.variants) | {'guided': made(2.2 + NOISE, (0.6, 0.3), threshold=0.4)}
    table = entropy_guided_study.table(Ladder(variants))
    assert [row[0] for row in table.rows] == list(variants) and all(len(row) == len(table.header) for row in table.rows)
    assert table.rows[0][2] == 'baseline' and table.rows[1][2].startswith('22.1 [')  # e^.2 - 1
    assert table.rows[4][3:6] == ['0.5 [0.5, 0.5]', '0.5 [0.5, 0.5]', '0.99 0.02'] and table.rows[0][6] == 'none'
    assert table.rows[7][6:] == ['0.40 0.40', '7.00 7.00']


def test_summary_has_every_curve(tmp_path):
  ladder = papers()
  ladder.variants['relu'].held_out_RxC[0, -1] = NAN
  entropy_guided_study.write_summary(tmp_path / 'metrics.jsonl', ladder)
  rows = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert len(rows) == 5 and '"relu/held_out_loss": null' in rows[-1] and '"fused/held_out_loss": 2.3' in rows[-1]
