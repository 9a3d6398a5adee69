"""training/writers.py: rows that read back exactly, and no row lost or doubled by a restart."""

import json
import struct

import numpy as np
import pytest

from entropy_jax.training.writers import MetricWriter, drop_rows, format_row, read_rows
from entropy_jax.types import UserError


class TestFormatRow:
  def test_step_first_then_sorted(self):
    assert list(json.loads(format_row(7, {'z': 1, 'a': 2.0, 'policy/entropy': 0.5}))) == ['step', 'a', 'policy/entropy', 'z']

  def test_floats_read_back_exactly(self):
    values = [0.1, 1e-300, float(np.float32(0.1)), 2.0**60, -0.0, 5e-324]
    back = json.loads(format_row(0, {str(i): v for i, v in enumerate(values)}))
    assert [struct.pack('d', back[str(i)]) for i in range(len(values))] == [struct.pack('d', v) for v in values]

  def test_refuses_what_json_has_no_word_for_and_a_metric_named_step(self):
    with pytest.raises(ValueError, match='not JSON compliant'):
      format_row(0, {'a': float('nan')})
    with pytest.raises(ValueError, match="called 'step'"):
      format_row(0, {'step': 1})


class TestMetricWriter:
  def fill(self, workdir, start, stop, **options):
    writer = MetricWriter(workdir, start, **options)
    for step in range(start, stop):
      writer.write(step, {'loss': 1 / (step + 3), 'entropy': step})
      writer.write_timings(step, {'seconds': 0.1})
    writer.close()
    return writer

  def test_restart_at_any_step_gives_the_same_bytes(self, tmp_path):
    self.fill(tmp_path / 'whole', 0, 12, tensorboard=False)
    whole = (tmp_path / 'whole' / 'metrics.jsonl').read_bytes()
    for start in (0, 1, 7, 9, 10):  # a restart from step 9 or 10 loses no row of the ten, one from 7 drops three
      workdir = tmp_path / str(start)
      self.fill(workdir, 0, 10, tensorboard=False)
      for name in ('metrics.jsonl', 'timings.jsonl'):
        with open(workdir / name, 'a', encoding='utf-8') as file:
          file.write('{"step": 10, "entropy": 1')  # torn by a kill
      writer = self.fill(workdir, start, 12, tensorboard=False)
      assert (workdir / 'metrics.jsonl').read_bytes() == whole and writer.rows == 12
      assert [row['step'] for row in read_rows(workdir / 'timings.jsonl')] == list(range(12))

  def test_tensorboard_is_written_and_purged(self, tmp_path):
    self.fill(tmp_path, 0, 3)
    self.fill(tmp_path, 2, 3)
    events = list((tmp_path / 'tensorboard').iterdir())
    assert len(events) >= 1 and any(b'entropy' in path.read_bytes() for path in events)

  def test_flush_puts_rows_on_the_disk(self, tmp_path):
    writer = MetricWriter(tmp_path, tensorboard=False)
    writer.write(0, {'a': 1})
    writer.flush()
    assert read_rows(tmp_path / 'metrics.jsonl') == [{'step': 0, 'a': 1}]
    writer.close()
    writer.close()  # twice does no harm


class TestDropRows:
  def test_missing_file_has_no_rows(self, tmp_path):
    assert drop_rows(tmp_path / 'metrics.jsonl', 5) == 0

  def test_a_foreign_line_is_named_and_left(self, tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"step": 0}\nhello\n{"step": 1}\n')
    with pytest.raises(UserError, match='line 2 is not a metrics row'):
      drop_rows(path, 5)
    assert path.read_text() == '{"step": 0}\nhello\n{"step": 1}\n'


def test_read_rows_leaves_out_a_torn_line(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 0, "a": 1.5}\n{"step": 1, "a"')
  assert read_rows(path) == [{'step': 0, 'a': 1.5}]
