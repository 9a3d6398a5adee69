import collections
import json

import numpy as np
import pytest

from entropy_jax.data import countdown, pipeline
from entropy_jax.data.tokenizers import BOS, COUNTDOWN_ALPHABET, EOS, PAD, CharacterTokenizer
from entropy_jax.data.verifiers import countdown_rewards
from entropy_jax.types import UserError

TOKENIZER = CharacterTokenizer(COUNTDOWN_ALPHABET)


def source(split='test', count=None):
  """Records as a data source gives them (numpy and bytes), of 219 problems, or of the first few."""
  problems = countdown.split_problems(countdown.enumerate_problems(), split)
  return [
    {
      'numbers': np.array(problem.numbers, np.int32),
      'target': np.int32(problem.target),
      'prompt': countdown.prompt_text(*problem).encode(),
      'solutions': [text.encode() for text in solutions],
    }
    for problem, solutions in list(problems.items())[:count]
  ]


@pytest.fixture(scope='module')
def problems():
  return pipeline.Problems.read(source())


@pytest.fixture(scope='module')
def ten():
  return pipeline.Problems.read(source(count=10))


def make(problems, **arguments):
  return pipeline.training_batches(problems, TOKENIZER, **({'batch_size': 4, 'seed': 0} | arguments))


def assert_equal(left, right):
  assert left.keys() == right.keys()
  for key in left:
    np.testing.assert_array_equal(left[key], right[key], err_msg=key)
    assert left[key].dtype == right[key].dtype


class TestProblems:
  def test_lengths(self, problems):
    # '9 9 9=81:' is 9 characters and '(9+9)*9' is 7; one special token each.
    assert (len(problems), problems.prompt_length(), problems.response_length()) == (219, 10, 8)

  def test_digest_follows_the_content(self, ten, problems):
    assert pipeline.Problems.read(source(count=10)).digest == ten.digest != problems.digest

  def test_empty_source(self):
    with pytest.raises(UserError, match='source: holds no record'):
      pipeline.Problems.read([])


class TestEpochOrder:
  def test_is_a_permutation_of_its_own(self):
    orders = [pipeline.epoch_order(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(map(tuple, orders))) == 4

  def test_is_the_same_in_every_version(self):
    # The raw stream of Philox is pinned by numpy; these values were computed once with numpy 2.4.
    assert pipeline.epoch_order(8, 7, 3).tolist() == [2, 5, 7, 3, 0, 6, 4, 1]

  def test_every_row_comes_first_equally_often(self):
    counts = np.bincount([pipeline.epoch_order(5, 11, epoch)[0] for epoch in range(1000)], minlength=5)
    # Chi-square with 4 degrees of freedom: 18.5 is exceeded with probability 0.001.
    assert ((counts - 200) ** 2 / 200).sum() < 18.5


class TestTrainingBatches:
  def test_shapes_and_content(self, problems):
    batch = next(make(problems, supervised=True, batch_size=64))
    shapes = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
    assert shapes == {
      'prompt_tokens_BxP': ((64, 10), 'int32'),
      'prompt_mask_BxP': ((64, 10), 'bool'),
      'numbers_BxM': ((64, 3), 'int32'),
      'target_B': ((64,), 'int32'),
      'index_B': ((64,), 'int32'),
      'response_tokens_BxT': ((64, 8), 'int32'),
      'response_mask_BxT': ((64, 8), 'bool'),
    }
    for b, row in enumerate(batch['index_B']):
      prompt = batch['prompt_tokens_BxP'][b][batch['prompt_mask_BxP'][b]]
      assert prompt.tolist() == [BOS, *TOKENIZER.encode(problems.prompts[row])]
      answer = batch['response_tokens_BxT'][b][batch['response_mask_BxT'][b]]
      assert answer[-1] == EOS
      assert TOKENIZER.decode(answer) in problems.solutions[row]
    assert (batch['prompt_tokens_BxP'][~batch['prompt_mask_BxP']] == PAD).all()
    assert batch['prompt_mask_BxP'][:, -1].all()  # padded on the left
    assert batch['response_mask_BxT'][:, 0].all()  # padded on the right

  def test_answers_verify(self, problems):
    batch = next(make(problems, supervised=True, shuffle_numbers=True, batch_size=200))
    answers = TOKENIZER.decode_batch(batch['response_tokens_BxT'])
    reward_B, _ = countdown_rewards(answers, pipeline.problems_of(batch))
    assert reward_B.sum() == 200

  def test_without_supervision_there_is_no_answer(self, problems):
    batch = next(make(problems))
    assert not [key for key in batch if key.startswith('response')]

  def test_lengths_given(self, problems):
    batch = next(make(problems, supervised=True, prompt_length=13, response_length=9))
    assert batch['prompt_tokens_BxP'].shape == (4, 13)
    assert batch['response_tokens_BxT'].shape == (4, 9)

  def test_every_epoch_is_another_permutation(self, ten):
    batches = make(ten)  # 10 records, batches of 4: batches 2 and 7 straddle epochs
    rows = np.concatenate([next(batches)['index_B'] for _ in range(15)]).reshape(6, 10)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(10), (6, 1)))
    assert len({tuple(epoch) for epoch in rows.tolist()}) == 6

  def test_seeds(self, problems):
    first, second = (next(make(problems, seed=seed, supervised=True)) for seed in (1, 2))
    assert first['index_B'].tolist() != second['index_B'].tolist()
    assert_equal(first, next(make(problems, seed=1, supervised=True)))
    assert len(next(make(problems, seed=2**40))['index_B']) == 4

  def test_batch_k_depends_on_seed_and_k_alone(self, ten):
    one, other = make(ten, supervised=True), make(ten, supervised=True)
    in_order = [next(one) for _ in range(8)]
    for k in (7, 2, 2, 0, 5):
      assert_equal(other.batch(k), in_order[k])
    assert_equal(next(other), in_order[0])  # batch() has not moved it

  def test_choice_of_answer_is_uniform_and_changes_between_epochs(self):
    records = [r for r in source() if len(r['solutions']) == 4][:1]
    single = pipeline.Problems.read(records)
    batches = make(single, batch_size=1, supervised=True)
    counts = collections.Counter(TOKENIZER.decode(batches.batch(k)['response_tokens_BxT'][0]) for k in range(800))
    assert set(counts) == set(single.solutions[0])
    # Chi-square with 3 degrees of freedom: 16.3 is exceeded with probability 0.001.
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 16.3

  def test_shuffled_numbers(self, problems):
    plain = make(problems, batch_size=100, supervised=True).batch(0)
    shuffled = make(problems, batch_size=100, supervised=True, shuffle_numbers=True).batch(0)
    np.testing.assert_array_equal(np.sort(shuffled['numbers_BxM'], axis=1), plain['numbers_BxM'])
    assert (shuffled['numbers_BxM'] != plain['numbers_BxM']).any()
    texts = TOKENIZER.decode_batch(shuffled['prompt_tokens_BxP'], skip_special=True)
    assert texts == [countdown.prompt_text(*problem) for problem in pipeline.problems_of(shuffled)]
    for key in ('index_B', 'target_B', 'response_tokens_BxT'):  # the order shown changes nothing else
      np.testing.assert_array_equal(shuffled[key], plain[key])

  def test_processes_share_the_batch_of_one(self, problems):
    whole = make(problems, batch_size=8, supervised=True, shuffle_numbers=True).batch(3)
    parts = [
      make(problems, batch_size=8, supervised=True, shuffle_numbers=True, process_index=i, process_count=4).batch(3)
      for i in range(4)
    ]
    assert_equal({key: np.concatenate([part[key] for part in parts]) for key in whole}, whole)

  @pytest.mark.parametrize(
    ('arguments', 'message'),
    [
      ({'batch_size': 220}, r'batch_size=220: must be in 1\.\.219'),
      ({'batch_size': 0}, 'batch_size=0'),
      ({'seed': -1}, 'seed=-1'),
      ({'prompt_length': 9}, 'prompt_length=9: the longest text of the split needs 10'),
      ({'response_length': 7, 'supervised': True}, 'response_length=7'),
      ({'process_count': 3}, 'batch_size=4: must be a multiple of process_count=3'),
      ({'process_index': 2, 'process_count': 2}, 'process_index=2'),
    ],
  )
  def test_refuses(self, problems, arguments, message):
    with pytest.raises(UserError, match=message):
      make(problems, **arguments)


class TestState:
  @pytest.mark.parametrize('stop', [0, 1, 2, 3, 5, 8])  # 10 records, batches of 4: an epoch ends inside batches 2 and 7
  def test_resume_equals_uninterrupted(self, ten, stop):
    whole = make(ten, supervised=True, shuffle_numbers=True)
    expected = [next(whole) for _ in range(12)]
    first = make(ten, supervised=True, shuffle_numbers=True)
    for k in range(stop):
      assert_equal(next(first), expected[k])
    state = first.get_state()
    next(first)  # work after the save is lost with the process
    second = make(ten, supervised=True, shuffle_numbers=True)
    second.set_state(state)
    assert second.get_state() == state
    for k in range(stop, 12):
      assert_equal(next(second), expected[k])

  def test_going_back_in_the_same_iterator(self, ten):
    batches = make(ten)
    state = batches.get_state()
    first = next(batches)
    next(batches)
    batches.set_state(state)
    assert_equal(next(batches), first)

  def test_is_json(self, ten):
    state = make(ten).get_state()
    assert set(state) == {'pipeline', 'grain'}
    assert json.loads(json.dumps(state)) == state

  def test_any_number_of_processes_resumes(self, ten):
    state = make(ten).get_state()
    make(ten, process_index=1, process_count=2).set_state(state)

  @pytest.mark.parametrize(
    'other',
    [{'seed': 1}, {'batch_size': 5}, {'supervised': True}, {'shuffle_numbers': True}, {'prompt_length': 12}],
  )
  def test_refuses_the_state_of_another_pipeline(self, ten, other):
    with pytest.raises(UserError, match='state: belongs to pipeline'):
      make(ten, **other).set_state(make(ten).get_state())

  def test_refuses_the_state_over_other_data(self, ten, problems):
    with pytest.raises(UserError, match='state: belongs to pipeline'):
      make(ten).set_state(make(problems).get_state())

  @pytest.mark.parametrize('damaged', [{}, {'pipeline': 'a'}, [1], 'pipeline', None])
  def test_refuses_damaged_state(self, ten, damaged):
    with pytest.raises(UserError, match='state='):
      make(ten).set_state(damaged)


class TestEvaluationBatches:
  def test_every_problem_once_in_order(self, problems):
    batches = pipeline.evaluation_batches(problems, TOKENIZER, batch_size=50)
    assert [batch['valid_B'].sum() for batch in batches] == [50, 50, 50, 50, 19]
    assert {batch['prompt_tokens_BxP'].shape for batch in batches} == {(50, 10)}
    rows = np.concatenate([batch['index_B'][batch['valid_B']] for batch in batches])
    np.testing.assert_array_equal(rows, np.arange(219))
    assert (batches[-1]['index_B'][~batches[-1]['valid_B']] == 218).all()  # filled up with the last problem
    assert batches[0]['valid_B'].dtype == bool

  def test_no_padding_where_it_divides(self, ten):
    batches = pipeline.evaluation_batches(ten, TOKENIZER, batch_size=5)
    assert len(batches) == 2
    assert all(batch['valid_B'].all() for batch in batches)

  def test_batch_larger_than_the_split(self, ten):
    (batch,) = pipeline.evaluation_batches(ten, TOKENIZER, batch_size=16)
    assert batch['valid_B'].tolist() == [True] * 10 + [False] * 6

  def test_supervised_takes_the_first_answer(self, ten):
    (batch,) = pipeline.evaluation_batches(ten, TOKENIZER, batch_size=10, supervised=True)
    assert TOKENIZER.decode_batch(batch['response_tokens_BxT']) == [answers[0] for answers in ten.solutions]

  def test_processes_share_the_batch_of_one(self, ten):
    (whole,) = pipeline.evaluation_batches(ten, TOKENIZER, batch_size=16)
    parts = [
      pipeline.evaluation_batches(ten, TOKENIZER, batch_size=16, process_index=i, process_count=4)[0] for i in range(4)
    ]
    assert_equal({key: np.concatenate([part[key] for part in parts]) for key in whole}, whole)

  @pytest.mark.parametrize(
    ('arguments', 'key'), [({'batch_size': 0}, 'batch_size'), ({'batch_size': 3, 'process_count': 2}, 'batch_size')]
  )
  def test_refuses(self, ten, arguments, key):
    with pytest.raises(UserError, match=f'{key}='):
      pipeline.evaluation_batches(ten, TOKENIZER, **arguments)
