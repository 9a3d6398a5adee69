"""Batches of any examples: content, order, resumption and refusal of other data."""

import dataclasses
import json

import numpy as np
import pytest

from entropy_jax.data import examples, pipeline
from entropy_jax.data.examples import Examples, Records
from entropy_jax.types import UserError


def in_memory(num_rows: int = 10) -> Examples:
  return Examples({'image_BxD': np.arange(2 * num_rows).reshape(num_rows, 2).astype(np.float32), 'label_B': np.arange(num_rows) % 3})


def by_record(num_rows: int = 10) -> Records:
  """The same examples, made when they are asked for."""
  convert = lambda row: {'image_BxD': np.array([2 * row, 2 * row + 1], np.float32), 'label_B': row % 3}
  return Records(range(num_rows), convert, 'ten')


def make(rows, **arguments):
  return examples.training_batches(rows, **({'batch_size': 4, 'seed': 0} | arguments))


def assert_equal(left, right):
  assert left.keys() == right.keys()
  for key in left:
    np.testing.assert_array_equal(left[key], right[key], err_msg=key)


class TestExamples:
  def test_digest_follows_name_type_shape_and_content(self):
    made = [
      {'a': np.zeros(4, np.int32)},
      {'b': np.zeros(4, np.int32)},
      {'a': np.zeros(4, np.float32)},
      {'a': np.zeros((4, 1), np.int32)},
      {'a': np.array([0, 0, 0, 1], np.int32)},
    ]
    assert len({Examples(fields).digest for fields in made}) == 5
    assert in_memory().digest == in_memory().digest

  @pytest.mark.parametrize('fields', [{}, {'a': np.zeros(0)}, {'a': np.zeros(2), 'b': np.zeros(3)}])
  def test_refuses_fields_of_other_lengths(self, fields):
    with pytest.raises(UserError, match='fields='):
      Examples(fields)


class TestRecords:
  def test_take_stacks_the_rows(self):
    assert_equal(by_record().take(np.array([7, 0, 7])), in_memory().take(np.array([7, 0, 7])))


class TestTrainingBatches:
  @pytest.mark.parametrize('rows', [in_memory(), by_record()], ids=['in memory', 'by record'])
  def test_content_belongs_to_the_rows_named(self, rows):
    batch = next(make(rows))
    assert batch['index_B'].dtype == np.int32
    np.testing.assert_array_equal(batch['image_BxD'][:, 1], 2 * batch['index_B'] + 1)
    np.testing.assert_array_equal(batch['label_B'], batch['index_B'] % 3)

  def test_every_epoch_is_another_permutation(self):
    batches = make(in_memory())  # batches of 4 of 10 rows: 15 of them are 6 epochs
    rows = np.concatenate([next(batches)['index_B'] for _ in range(15)]).reshape(6, 10)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(10), (6, 1)))
    assert len({tuple(epoch) for epoch in rows.tolist()}) == 6

  def test_order_is_that_of_the_countdown_pipeline(self):
    first = make(in_memory(), batch_size=10, seed=5).batch(2)['index_B']
    np.testing.assert_array_equal(first, pipeline.epoch_order(10, 5, 2))

  def test_batch_k_depends_on_seed_and_k_alone(self):
    one, other = make(in_memory()), make(in_memory())
    in_order = [next(one) for _ in range(8)]
    for k in (7, 2, 2, 0, 5):
      assert_equal(other.batch(k), in_order[k])
    assert in_order[0]['index_B'].tolist() != make(in_memory(), seed=1).batch(0)['index_B'].tolist()

  @pytest.mark.parametrize('stop', [0, 2, 3, 7])
  def test_resume_equals_uninterrupted(self, stop):
    whole, first, second = make(in_memory()), make(in_memory()), make(in_memory())
    expected = [next(whole) for _ in range(10)]
    for _ in range(stop):
      next(first)
    second.set_state(json.loads(json.dumps(first.get_state())))
    for k in range(stop, 10):
      assert_equal(next(second), expected[k])

  def test_processes_share_the_batch_of_one(self):
    whole = make(in_memory()).batch(3)
    parts = [make(in_memory(), process_index=i, process_count=2).batch(3) for i in range(2)]
    assert_equal({key: np.concatenate([part[key] for part in parts]) for key in whole}, whole)
    make(in_memory(), process_index=1, process_count=2).set_state(make(in_memory()).get_state())

  def test_refuses_the_state_over_other_data_or_sizes(self):
    state = make(in_memory()).get_state()
    changed = Examples(in_memory().fields | {'label_B': np.zeros(10, np.int64)})
    renamed = dataclasses.replace(by_record(), digest='other')
    for other in (make(changed), make(in_memory(), seed=1), make(in_memory(), batch_size=5), make(renamed)):
      with pytest.raises(UserError, match='state: belongs to pipeline'):
        other.set_state(state)
    with pytest.raises(UserError, match='state: belongs to pipeline'):
      make(renamed).set_state(make(by_record()).get_state())

  @pytest.mark.parametrize(
    ('arguments', 'message'),
    [
      ({'batch_size': 11}, r'batch_size=11: must be in 1\.\.10'),
      ({'batch_size': 0}, 'batch_size=0'),
      ({'seed': -1}, 'seed=-1'),
      ({'process_count': 3}, 'batch_size=4: must be a multiple of process_count=3'),
    ],
  )
  def test_refuses(self, arguments, message):
    with pytest.raises(UserError, match=message):
      make(in_memory(), **arguments)


class TestScanRows:
  def test_are_those_of_the_batches(self):
    batches = make(in_memory(), seed=3)
    rows_KxB = examples.scan_rows(in_memory(), batch_size=4, seed=3, num_steps=6, first_step=2)
    np.testing.assert_array_equal(rows_KxB, [batches.batch(k)['index_B'] for k in range(2, 8)])


class TestEvaluationBatches:
  def test_every_example_once_in_order(self):
    batches = list(examples.evaluation_batches(in_memory(), batch_size=4))
    assert [batch['valid_B'].tolist() for batch in batches] == [[True] * 4, [True] * 4, [True, True, False, False]]
    rows = np.concatenate([batch['index_B'][batch['valid_B']] for batch in batches])
    np.testing.assert_array_equal(rows, np.arange(10))
    np.testing.assert_array_equal(batches[-1]['image_BxD'][2:], [[18, 19], [18, 19]])  # filled up with the last example

  def test_processes_share_the_batch_of_one(self):
    (whole,) = examples.evaluation_batches(in_memory(), batch_size=16)
    parts = [next(examples.evaluation_batches(in_memory(), batch_size=16, process_index=i, process_count=4)) for i in range(4)]
    assert_equal({key: np.concatenate([part[key] for part in parts]) for key in whole}, whole)

  def test_refuses_an_empty_batch_at_once(self):
    with pytest.raises(UserError, match='batch_size=0'):
      examples.evaluation_batches(in_memory(), batch_size=0)


class TestGeneratedBatches:
  @staticmethod
  def make(identity='squares', **arguments):
    square = lambda seed, index_B: {'value_B': seed + index_B**2}
    return examples.generated_batches(square, identity=identity, **({'batch_size': 4, 'seed': 100} | arguments))

  def test_indices_are_consecutive(self):
    batches = self.make()
    assert batches.batch(2)['value_B'].tolist() == [164, 181, 200, 221]  # 100 + 8^2, 9^2, 10^2, 11^2
    assert next(batches)['value_B'].tolist() == [100, 101, 104, 109]

  def test_processes_share_the_batch_of_one(self):
    parts = [self.make(process_index=i, process_count=2).batch(2)['value_B'].tolist() for i in range(2)]
    assert parts == [[164, 181], [200, 221]]

  def test_state(self):
    batches = self.make()
    next(batches)
    other = self.make()
    other.set_state(batches.get_state())
    assert_equal(next(other), self.make().batch(1))
    for different in ({'identity': 'cubes'}, {'seed': 1}, {'batch_size': 2}):
      with pytest.raises(UserError, match='state: belongs to pipeline'):
        self.make(**different).set_state(batches.get_state())
