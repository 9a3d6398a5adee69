"""chaos/damage.py: every type of file is harmed in every way, and harm that goes unnoticed would be counted."""

import collections

import pytest

from entropy_jax.chaos import damage
from tests.training import tiny_run


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('source')
  tiny_run.run(workdir)
  return workdir / 'checkpoints'


class TestPlan:
  def test_takes_the_types_in_turn(self, source):
    newest = source / str(tiny_run.NUM_STEPS)
    harms = damage.plan(newest, 40, seed=0)
    types = {damage.type_of(str(p.relative_to(newest))) for p in newest.rglob('*') if p.is_file()}
    assert {'manifest.json', '_CHECKPOINT_METADATA', 'state/_METADATA'} <= types and any(name.endswith('d/*') for name in types)
    counts = collections.Counter((harm.kind, damage.type_of(harm.file)) for harm in harms)
    assert {kind for kind, _ in counts} == {damage.FLIP, damage.CUT, damage.GONE} and {name for _, name in counts} == types
    flips = [count for (kind, _), count in counts.items() if kind == damage.FLIP]
    assert sum(flips) == 40 and max(flips) - min(flips) <= 1
    assert harms == damage.plan(newest, 40, seed=0) != damage.plan(newest, 40, seed=1)


class TestDo:
  def test_flips_one_bit_cuts_and_deletes(self, tmp_path):
    path = tmp_path / 'x'
    for kind, expected in ((damage.FLIP, bytes([0, 0, 8, 0])), (damage.CUT, bytes(2))):
      path.write_bytes(bytes(4))
      damage.do(damage.Harm(kind, 'x', 0.5, 3), tmp_path)
      assert path.read_bytes() == expected
    damage.do(damage.Harm(damage.GONE, 'x', 0.5, 3), tmp_path)
    assert not path.exists()


class TestRun:
  def test_all_is_detected_and_falls_back(self, source, tmp_path):
    outcomes = damage.run(source, tmp_path, 9)
    rows = damage.rows(outcomes)
    assert len(rows) == 3 and all(row.passed for row in rows), rows
    assert rows[0].measured == '9/9 detected, 9/9 fell back, 0 silent'

  def test_harm_that_goes_unnoticed_is_counted(self, source, tmp_path):
    outcomes = damage.run(source, tmp_path, 1, harm=lambda harm, folder: None)
    assert not any(o.detected or o.fell_back for o in outcomes) and all(o.silent for o in outcomes)
    rows = damage.rows(outcomes)
    assert not any(row.passed for row in rows) and rows[0].measured == '0/1 detected, 0/1 fell back, 1 silent'
    assert 'step 3' in rows[0].detail
