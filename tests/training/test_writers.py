"""training/writers.py: rows that read back exactly, and no row lost or doubled by a restart."""

import contextlib
import errno
import json
import os
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from entropy_jax.training.files import StorageError
from entropy_jax.training.writers import MetricWriter, drop_rows, format_row, read_rows
from entropy_jax.types import UserError

ROOT = Path(__file__).resolve().parents[2]
# Writes rows as fast as it can until it is killed: one child after the other, each killed at another moment.
KILLED = """
import os, signal, sys, time
from entropy_jax.training.writers import MetricWriter
for number in range(int(sys.argv[2])):
  workdir = os.path.join(sys.argv[1], str(number))
  child = os.fork()
  if child == 0:
    writer, step = MetricWriter(workdir, tensorboard=False), 0
    while True:
      writer.write(step, {'loss': 1 / (step + 3), 'entropy': step, **{f'room/metric_{i}': step / (i + 1) for i in range(30)}})
      step += 1
  path = os.path.join(workdir, 'metrics.jsonl')
  while not (os.path.exists(path) and os.path.getsize(path) > 100_000):
    time.sleep(0.002)
  time.sleep(0.0007 * number)
  os.kill(child, signal.SIGKILL)
  os.waitpid(child, 0)
"""


@contextlib.contextmanager
def full_disk(size):
  """No file can grow beyond this: the system refuses the rest of a write, as a full disk does."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


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


  def test_tensorboard_has_rows_and_timings_and_drops_what_came_later(self, tmp_path):
    writer = MetricWriter(tmp_path, 3)
    writer.write(4, {'policy/entropy': 0.5, 'flag': True})
    writer.write_timings(4, {'seconds': 2.0, 'seconds/update': 1.25})
    writer.close()
    (path,) = (tmp_path / 'tensorboard').iterdir()
    assert path.name.startswith('events.out.tfevents.')
    data, events = path.read_bytes(), []
    while data:  # records: length (8 bytes), its checksum (4), the event, its checksum (4)
      (length,) = struct.unpack('Q', data[:8])
      assert struct.unpack('I', data[8:12])[0] == masked_crc32c(data[:8])
      events.append(Event.FromString(data[12 : 12 + length]))
      data = data[16 + length :]
    assert events[0].file_version == 'brain.Event:2'
    assert events[1].session_log.status == SessionLog.START and events[1].step == 3
    shown = {value.tag: (event.step, value.simple_value) for event in events for value in event.summary.value}
    assert shown == {'policy/entropy': (4, 0.5), 'flag': (4, 1.0), 'timing/seconds': (4, 2.0), 'timing/seconds/update': (4, 1.25)}

  def test_rows_are_there_at_once(self, tmp_path):
    writer = MetricWriter(tmp_path, tensorboard=False)
    writer.write(0, {'a': 1})
    assert read_rows(tmp_path / 'metrics.jsonl') == [{'step': 0, 'a': 1}]
    writer.close()

  def test_ten_thousand_rows_a_second(self, tmp_path):
    writer = MetricWriter(tmp_path, tensorboard=False)
    values = {f'room/metric_{i}': 0.1 * i for i in range(5)}
    rates = []
    for attempt in range(5):  # the best of five: other processes may have the machine meanwhile
      begin = time.perf_counter()
      for i in range(2000):
        writer.write(attempt * 2000 + i, values)
      rates.append(2000 / (time.perf_counter() - begin))
    writer.close()
    assert max(rates) >= 10_000 and len(read_rows(tmp_path / 'metrics.jsonl')) == 10_000

  def test_killed_at_full_speed_tears_the_last_line_at_most(self, tmp_path):
    kills = 20
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
    subprocess.run([sys.executable, '-c', KILLED, str(tmp_path), str(kills)], cwd=ROOT, env=environment, check=True, timeout=120)
    for number in range(kills):
      path = tmp_path / str(number) / 'metrics.jsonl'
      whole, _, torn = path.read_bytes().rpartition(b'\n')
      lines = whole.split(b'\n')
      assert [json.loads(line)['step'] for line in lines] == list(range(len(lines))) and len(lines) > 50
      assert len(read_rows(path)) == len(lines) and (torn == b'' or torn.startswith(b'{'))
      start = len(lines) - 10
      assert drop_rows(path, start) == start and path.read_bytes() == b'\n'.join(lines[:start]) + b'\n'


class TestFullDisk:
  @pytest.mark.parametrize('room', [0, 1, 30, 61])  # bytes that are left for a line of 35: none, some; for one line and some of the next
  def test_no_line_is_torn_and_the_next_start_goes_on(self, tmp_path, room):
    writer = MetricWriter(tmp_path, tensorboard=False)
    path = tmp_path / 'metrics.jsonl'
    line = len(format_row(1000, {'a': 0.123456789})) + 1
    writer.write(1000, {'a': 0.123456789})
    fits = 1 + room // line
    with full_disk(line + room):
      for step in range(1001, 1000 + fits):
        writer.write(step, {'a': 0.123456789})
      for _ in range(2):
        with pytest.raises(StorageError, match=r'a row could not be written \(.*metrics.jsonl: File too large\); make room'):
          writer.write(1000 + fits, {'a': 0.123456789})
      assert path.stat().st_size == fits * line and writer.rows == fits
    writer.write(1000 + fits, {'a': 0.123456789})  # somebody made room
    writer.close()
    assert [row['step'] for row in read_rows(path)] == list(range(1000, 1001 + fits))
    assert drop_rows(path, 1000 + fits) == fits

  def test_a_line_that_could_not_be_cut_off_is_cut_before_the_next(self, tmp_path, monkeypatch):
    writer = MetricWriter(tmp_path, tensorboard=False)
    writer.write(0, {'a': 1})

    def broken(*unused):
      raise OSError(errno.EIO, 'Input/output error')

    with monkeypatch.context() as patch, full_disk(25):
      patch.setattr(os, 'ftruncate', broken)
      with pytest.raises(StorageError):
        writer.write(1, {'a': 2})
    assert (tmp_path / 'metrics.jsonl').stat().st_size == 25
    writer.write(1, {'a': 3})
    writer.close()
    assert read_rows(tmp_path / 'metrics.jsonl') == [{'step': 0, 'a': 1}, {'step': 1, 'a': 3}]

  def test_a_disk_that_does_not_take_the_rows_is_told(self, tmp_path, monkeypatch):
    writer = MetricWriter(tmp_path, tensorboard=False)

    def broken(*unused):
      raise OSError(errno.EIO, 'Input/output error')

    with monkeypatch.context() as patch:
      patch.setattr(os, 'fsync', broken)
      with pytest.raises(StorageError, match='rows could not be brought to the disk'):
        writer.flush()
    writer.close()

  def test_tensorboard_is_given_up_and_nothing_waits(self, tmp_path, capfd):
    writer = MetricWriter(tmp_path)
    with full_disk(5000):
      for step in range(100):
        writer.write(step, {f'a_rather_long_name/{i}': 1.0 for i in range(3)} if step % 50 else {'a': 1})
        if step % 10 == 0:
          (tmp_path / 'metrics.jsonl').write_bytes(b'')  # room for the record, none for the view
          writer._metrics._end = 0
          writer.flush()
    writer.close()
    assert capfd.readouterr().err.count('gets nothing more (File too large)') == 1


class TestDropRows:
  def test_missing_file_has_no_rows(self, tmp_path):
    assert drop_rows(tmp_path / 'metrics.jsonl', 5) == 0

  def test_a_foreign_line_is_named_and_left(self, tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"step": 0}\nhello\n{"step": 1}\n')
    with pytest.raises(UserError, match='line 2 is not a metrics row'):
      drop_rows(path, 5)
    assert path.read_text() == '{"step": 0}\nhello\n{"step": 1}\n'


  def test_a_row_glued_to_a_torn_one_is_found(self, tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"step": 0, "a": 1}\n{"step": 1, "a{"step": 2, "a": 1}\n{"step": 3, "a": 1}\n')
    with pytest.raises(UserError, match='line 2 is not a metrics row'):
      drop_rows(path, 3)

  def test_a_doubled_row_is_found(self, tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"step": 0, "a": 1}\n{"step": 1, "a": 1}\n{"step": 1, "a": 1}\n')
    with pytest.raises(UserError, match='line 3 is not a metrics row of a step after 1'):
      drop_rows(path, 3)

  def test_timings_are_mended_and_stop_nothing(self, tmp_path, capfd):
    path = tmp_path / 'timings.jsonl'
    glued, lost = b'{"step": 1, "sec{"step": 2, "seconds": 1.0}', b'\x00\x00'
    path.write_bytes(b'\n'.join([b'{"step": 0, "seconds": 1.0}', glued, lost, b'{"step": 3, "seconds": 2.0}', b'{"st']))
    writer = MetricWriter(tmp_path, 4, tensorboard=False)
    writer.write_timings(4, {'seconds': 3.0})
    writer.close()
    assert [row['step'] for row in read_rows(path)] == [0, 3, 4]
    assert 'timings.jsonl: 2 lines are no rows and are left out' in capfd.readouterr().err


def test_read_rows_leaves_out_a_torn_line(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 0, "a": 1.5}\n{"step": 1, "a"')
  assert read_rows(path) == [{'step': 0, 'a': 1.5}]
