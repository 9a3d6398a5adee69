"""chaos/torn.py: a writer that is really killed, in a line and between lines, and a file that lost a row is found out."""

from entropy_jax.chaos import torn
from entropy_jax.training.writers import METRICS, format_row


class TestRun:
  def test_only_the_last_line_is_torn(self, tmp_path):
    outcomes = torn.run(tmp_path, 2)
    inside, outside = outcomes
    assert inside.wrong == outside.wrong == '' and inside.torn > 0 and inside.whole >= torn.FLUSH_EVERY
    assert outside.whole >= outside.synced >= torn.FLUSH_EVERY
    correct, rate = torn.rows(outcomes)
    assert correct.passed and correct.measured == '2/2' and rate.id == 'R15'


class TestRead:
  def write(self, folder, steps, tail=''):
    lines = [format_row(step, torn.values_of(step)) + '\n' for step in steps]
    (folder / METRICS).write_text(''.join(lines) + tail)

  def test_good(self, tmp_path):
    self.write(tmp_path, range(5), '{"step": 5, "lo')
    found = torn._read(tmp_path, synced=4, rate=1.0)
    assert (found.whole, found.torn, found.wrong) == (5, 15, '')

  def test_lost_doubled_and_unsynced_rows(self, tmp_path):
    for steps in ([0, 1, 3], [0, 1, 1, 2]):
      self.write(tmp_path, steps)
      assert torn._read(tmp_path, 2, 1.0).wrong == 'a row before the last line is lost, doubled or altered'
    self.write(tmp_path, range(3))
    assert torn._read(tmp_path, 4, 1.0).wrong == '4 rows were said to be on the disk and 3 are'

  def test_slow_or_wrong_does_not_pass(self):
    good = torn.Outcome(20_000.0, 10, 12, 3, '')
    assert [row.passed for row in torn.rows([good, good])] == [True, True]
    assert [row.passed for row in torn.rows([good, good._replace(rate=9_999.0)])] == [True, False]
    assert [row.passed for row in torn.rows([good, good._replace(wrong='lost')])] == [False, True]
    assert [row.passed for row in torn.rows([good._replace(torn=0)])] == [False, True]
