"""training/profiling.py: what FIRST-LAST may be, traces that are there whatever ends the run, and the seconds of compiling."""

import jax
import jax.numpy as jnp
import pytest

from entropy_jax.training.profiling import CompileSeconds, Profile, parse
from entropy_jax.types import UserError
from tests.training import tiny_run


def traces(workdir):
  return sorted(path for path in (workdir / 'profile').rglob('*') if path.name.endswith(('.xplane.pb', '.trace.json.gz')))


class TestParse:
  def test_first_and_last(self):
    assert parse('') is None and parse('0-0') == (0, 0) and parse('7-12') == (7, 12)

  @pytest.mark.parametrize('text', ['7', '7-', '-7', '1-2-3', 'a-b', '1 - 2', '1.0-2', ' '])
  def test_anything_else_is_refused(self, text):
    with pytest.raises(UserError, match="is not 'FIRST-LAST', two step numbers such as '10-12'"):
      parse(text)

  def test_the_wrong_way_round(self):
    with pytest.raises(UserError, match=r"profile_steps='5-3' ends before it begins; .* such as '3-5'"):
      parse('5-3')


class TestProfile:
  def test_a_run_leaves_a_trace_of_these_steps_and_the_same_numbers(self, tmp_path, capfd):
    plain = tiny_run.bits(tiny_run.run(tmp_path / 'plain', num_steps=6))
    state = tiny_run.run(tmp_path / 'traced', num_steps=6, profile_steps=(2, 3))
    assert tiny_run.bits(state) == plain
    assert (tmp_path / 'traced' / 'metrics.jsonl').read_bytes() == (tmp_path / 'plain' / 'metrics.jsonl').read_bytes()
    found = traces(tmp_path / 'traced')
    assert found and all(path.stat().st_size > 0 for path in found) and traces(tmp_path / 'plain') == []
    assert capfd.readouterr().err.count('the trace is in') == 1
    jax.profiler.start_trace(tmp_path / 'free')  # would raise if one were still open
    jax.profiler.stop_trace()

  def test_the_steps_are_marked(self, tmp_path):
    tiny_run.run(tmp_path, num_steps=6, profile_steps=(2, 3))
    plane = next(path for path in traces(tmp_path) if path.name.endswith('.xplane.pb'))
    events = [
      dict(event.stats)
      for plane in jax.profiler.ProfileData.from_file(str(plane)).planes
      for line in plane.lines
      for event in line.events
      if event.name == 'train'
    ]
    assert sorted(event['step_num'] for event in events) == [2, 3]

  def test_ends_with_the_run_that_fails_within(self, tmp_path):
    def body(state, batch, key):
      if int(state['count']) == 3:
        raise KeyError('crash')
      return tiny_run.step(state, batch, key)

    with pytest.raises(KeyError):
      tiny_run.run(tmp_path, body=body, profile_steps=(2, 100), checkpoint_every=3)
    before = traces(tmp_path)
    assert before
    tiny_run.run(tmp_path, profile_steps=(2, 100))  # resumes at 3, and traces what is left of 2..100
    assert len(traces(tmp_path)) >= len(before)

  def test_a_resumed_run_leaves_out_what_is_past(self, tmp_path):
    tiny_run.run(tmp_path, num_steps=8)
    tiny_run.run(tmp_path, num_steps=12, profile_steps=(2, 5))
    assert traces(tmp_path) == []

  def test_steps_beyond_the_run_are_said(self, tmp_path, capfd):
    tiny_run.run(tmp_path, num_steps=4, profile_steps=(4, 5))
    assert 'profile_steps 4-5 lie beyond 0-3' in capfd.readouterr().err and traces(tmp_path) == []

  def test_no_trace_is_no_reason_to_stop(self, tmp_path, capfd):
    jax.profiler.start_trace(tmp_path / 'other')
    try:
      tiny_run.run(tmp_path / 'run', num_steps=4, profile_steps=(1, 2))
    finally:
      jax.profiler.stop_trace()
    assert 'no trace is made (Profile has already been started' in capfd.readouterr().err

  def test_several_processes_write_apart(self, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda *unused: 2)
    with Profile(tmp_path, (0, 0), num_steps=1) as profile:
      with profile.step(0):
        jnp.ones(3).block_until_ready()
      profile.after(0, {})
    assert all(path.relative_to(tmp_path).parts[1] == 'process_0' for path in traces(tmp_path)) and traces(tmp_path)


class TestCompileSeconds:
  def test_what_overlaps_is_counted_once(self):
    seconds = CompileSeconds()
    # (0, 2) holds (0.5, 1); (5, 6) and (5.5, 7) share half a second: 2 + 2 = 4
    for start, end in [(0.5, 1), (0, 2), (5.5, 7), (5, 6)]:
      seconds._note('/jax/core/compile/x', start, end)
    seconds._note('/jax/something/else', 10, 20)
    assert seconds.collect() == 4 and seconds.collect() == 0

  def test_hears_of_compiling_while_it_is_entered(self):
    with CompileSeconds() as seconds:
      jax.jit(lambda x: x * 3 + 1)(jnp.ones(3))
      assert seconds.collect() > 0
    jax.jit(lambda x: x * 4 + 1)(jnp.ones(3))
    assert seconds.collect() == 0
