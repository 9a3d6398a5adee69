"""training/progress.py: what is shown, when, and the time that is left."""

import io

import pytest

from entropy_jax.training.progress import Clock, Progress, duration, pick
from entropy_jax.types import UserError


class Hand:
  """A clock turned by hand."""

  def __init__(self):
    self.time = 100.0

  def __call__(self):
    return self.time


class Terminal(io.StringIO):
  def isatty(self):
    return True


class TestProgress:
  def test_lines_every_so_many_seconds_with_time_left(self):
    hand, file = Hand(), io.StringIO()
    progress = Progress(10, initial=2, description='rl', every_seconds=5, file=file, now=hand)
    for done in range(3, 11):
      hand.time += 2
      progress.update(done, {'loss': 0.5, 'policy/entropy': 1.25}, 1000.0 if done < 6 else 2000.0)
    progress.close()
    # Steps 3..10 end 2 s apart. Lines when 5 s have passed: after 6 s (step 5) and 12 s (step 8), and at the end.
    # After step 5, 3 steps took 6 s and 5 are left: 10 s. After step 8, 2 s a step and 2 are left: 4 s.
    assert file.getvalue().splitlines() == [
      'rl 5/10, loss 0.5, entropy 1.25, tokens/s 1000, 10 s left',
      'rl 8/10, loss 0.5, entropy 1.25, tokens/s 2000, 4 s left',
      'rl 10/10, loss 0.5, entropy 1.25, tokens/s 2000, 0 s left',
    ]

  def test_values_stay_until_a_row_brings_new_ones(self):
    file = io.StringIO()
    progress = Progress(3, every_seconds=0, file=file, now=Hand())
    progress.update(1, {'eval/success': 0.25})
    progress.update(2, {'loss': 2.0})
    assert 'success 0.25' in file.getvalue().splitlines()[1] and 'loss 2' in file.getvalue().splitlines()[1]

  def test_bar_on_a_terminal(self):
    file = Terminal()
    progress = Progress(4, initial=1, description='rl', file=file)
    progress.update(3, {'loss': 0.5})
    progress.update(4, {'loss': 0.25})
    progress.close()
    assert '4/4' in file.getvalue() and 'loss=0.25' in file.getvalue()

  def test_silent_is_silent(self):
    file = Terminal()
    progress = Progress(4, mode='silent', file=file)
    progress.update(4, {'loss': 0.5})
    progress.close()
    assert file.getvalue() == ''

  def test_unknown_mode(self):
    with pytest.raises(UserError, match=r"mode='line' is not one of auto, bar, lines, silent. Did you mean 'lines'"):
      Progress(4, mode='line')


def test_pick_prefers_the_exact_name():
  assert pick({'a/loss': 1.0, 'loss': 2.0}, ['loss']) == {'loss': 2.0}
  assert pick({'b/loss': 1.0, 'a/loss': 3.0}, ['loss']) == {'loss': 3.0}
  assert pick({'lossy': 1.0}, ['loss']) == {}


def test_duration_rounds_to_the_unit_that_is_read():
  assert [duration(s) for s in (0.4, 59.4, 59.6, 3599.4, 3600)] == ['0 s', '59 s', '1 min 00 s', '59 min 59 s', '1 h 00 min']


class TestClock:
  def test_collects_parts_and_starts_again(self):
    hand = Hand()
    clock = Clock(hand)
    with clock.measure('generate'):
      hand.time += 3
    hand.time += 1
    with clock.measure('generate'):
      hand.time += 2
    assert clock.collect() == {'seconds': 6.0, 'seconds/generate': 5.0}
    hand.time += 1
    assert clock.collect() == {'seconds': 1.0}

  def test_time_up_to_an_error_counts(self):
    hand = Hand()
    clock = Clock(hand)
    with pytest.raises(KeyError), clock.measure('a'):
      hand.time += 2
      raise KeyError
    assert clock.collect()['seconds/a'] == 2
