"""Text runs: imitation raises the likelihood of the answers, a rollout step logs what it promises, evaluation counts exactly."""

import functools

import jax
import numpy as np
import optax
import pytest

from entropy_jax import catalog
from entropy_jax.data import countdown, pipeline, tokenizers, verifiers
from entropy_jax.models import presets
from entropy_jax.models.transformer import transformer_policy
from entropy_jax.parallel import make
from entropy_jax.rollout.generate import generate
from entropy_jax.training import language
from entropy_jax.training.progress import Clock

TOKENIZER = tokenizers.CharacterTokenizer(tokenizers.COUNTDOWN_ALPHABET)
POLICY = transformer_policy(presets.preset('study_tiny', vocab_size=TOKENIZER.vocab_size, num_layers=1))
PROBLEMS = sorted(countdown.enumerate_problems(num_numbers=3, max_number=3).items())
TX = optax.adam(3e-3)
JIT = make('jit')
REFERENCE = jax.jit(POLICY.init)(jax.random.key(5))


@pytest.fixture(scope='module')
def problems():
  keys, answers = zip(*PROBLEMS)
  prompts = tuple(countdown.prompt_text(*key) for key in keys)
  return pipeline.Problems(np.array([k.numbers for k in keys], np.int32), np.array([k.target for k in keys], np.int32), prompts, answers)


def verify(answers, rows):
  return verifiers.countdown_rewards(answers, pipeline.problems_of(rows))


def common(problems):
  return {'verify': verify, 'decode': TOKENIZER.decode_batch, 'num_tokens': problems.response_length(), 'stop_ids': (tokenizers.EOS,)}


class TestSupervisedBody:
  def test_imitation_raises_the_likelihood(self, problems):
    objective = catalog.build({'advantages': [{'name': 'unit'}], 'surrogates': [{'name': 'reinforce'}]})
    data = pipeline.training_batches(problems, TOKENIZER, batch_size=8, seed=0, supervised=True)
    example = language.example_batch(8, problems.prompt_length(), problems.response_length())
    state = language.initial_state(JIT, POLICY, None, jax.random.key(0), TX, objective, example)
    body = language.supervised_body(JIT, POLICY, objective, TX)
    losses = []
    for k in range(30):
      state, metrics = body(state, next(data), jax.random.key(k))
      losses.append(float(metrics['update/loss']))
    # An untrained policy is no better than the uniform one over 22 tokens, ln 22 = 3.09 nats a token.
    assert losses[0] > 3.0 and losses[-1] < 0.5 * losses[0] and losses[-1] < 2.0
    counts = {'tokens/prompt', 'tokens/scored', 'rollout/num_sequences'}
    assert set(metrics) == {'update/loss', 'update/gradient_norm', 'update/rejected', 'policy/entropy'} | counts
    assert metrics['rollout/num_sequences'] == 8 and 8 * 5 <= metrics['tokens/scored'] <= 8 * problems.response_length()


@pytest.fixture(scope='module')
def step(problems):
  """One reinforcement step from an untrained policy: (parameters before, state, metrics, what was trained on, seconds)."""
  objective = catalog.build({'advantages': [{'name': 'grpo'}], 'surrogates': [{'name': 'ppo_clip'}]})
  data = pipeline.training_batches(problems, TOKENIZER, batch_size=4, seed=0)
  example = language.example_batch(16, problems.prompt_length(), problems.response_length())
  state = language.initial_state(JIT, POLICY, None, jax.random.key(0), TX, objective, example)
  # A reward that a policy that knows nothing can earn: the answer has an even number of characters.
  even = lambda answers, rows: (np.array([len(a) % 2 == 0 for a in answers], np.float32), {'even': sum(len(a) % 2 == 0 for a in answers)})
  clock = Clock()
  more = {'reference': REFERENCE, 'answers': lambda texts: [text[:1] or None for text in texts], 'greedy_baseline': True}
  body = language.reinforcement_body(
    JIT, POLICY, objective, TX, group_size=4, clock=clock, **common(problems) | {'verify': even} | more
  )
  before = jax.device_get(state.params)
  state, metrics, inputs = body(state, next(data), jax.random.key(1))
  metrics = {name: float(value) for name, value in metrics.items()}
  return before, jax.device_get(state), metrics, jax.device_get(inputs), clock.collect()


class TestReinforcementBody:
  def test_metrics(self, step, problems):
    _, state, metrics, _, _ = step
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics['rollout/success'] == metrics['verdict/even']
    assert 1 <= metrics['rollout/response_length'] <= problems.response_length()
    assert 0 < metrics['rollout/entropy'] <= np.log(22) + 1e-3
    # At temperature 1 both entropies are of one distribution.
    assert metrics['rollout/entropy_at_temperature_1'] == metrics['rollout/entropy']
    assert int(state.num_updates) == 1 and int(state.num_rejected) == 0

  def test_counts_tokens_of_every_kind(self, step, problems):
    _, _, metrics, inputs, _ = step
    generated = inputs['sampled'].mask_BxT.sum()
    # 4 prompts, each read 4 times; one update and one pass afterwards score every generated token.
    assert metrics['tokens/prompt'] == inputs['prompt']['prompt_mask_BxP'].sum()
    assert metrics['tokens/generated'] == generated == round(metrics['rollout/response_length'] * 16)
    assert metrics['tokens/scored'] == 2 * generated and metrics['rollout/num_sequences'] == 16

  def test_gives_what_it_trained_on(self, step):
    _, _, metrics, inputs, _ = step
    assert inputs['reward_B'].shape == (16,) and inputs['reward_B'].mean() == metrics['rollout/success']

  def test_fields_that_few_objectives_read(self, step, problems):
    before, _, _, inputs, _ = step
    prompt, sampled, num_tokens = inputs['prompt'], inputs['sampled'], problems.response_length()
    tokens = np.concatenate([prompt['prompt_tokens_BxP'], sampled.tokens_BxT], axis=1)
    mask = np.concatenate([prompt['prompt_mask_BxP'], sampled.mask_BxT], axis=1)
    # Position n predicts token n + 1, so the logits of the responses end one before the end.
    logits = np.asarray(jax.jit(POLICY.logits)(REFERENCE, tokens, mask), np.float64)[:, -num_tokens - 1 : -1]
    logp_BxTxV = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    want_BxT = np.take_along_axis(logp_BxTxV, sampled.tokens_BxT[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(inputs['ref_logp_BxT'][sampled.mask_BxT], want_BxT[sampled.mask_BxT], atol=1e-5)
    texts = TOKENIZER.decode_batch(sampled.tokens_BxT)
    same = inputs['answer_B'][:, None] == inputs['answer_B'][None]
    assert same.tolist() == [[a[:1] == b[:1] for a in texts] for b in texts]
    assert [number == -1 for number in inputs['answer_B']] == [text == '' for text in texts]
    # One greedy response a prompt, drawn from the policy before the update.
    own = [prompt[f'prompt_{kind}_BxP'][::4] for kind in ('tokens', 'mask')]
    how = {'num_tokens': num_tokens, 'temperature': 0, 'stop_ids': (tokenizers.EOS,)}
    greedy = jax.jit(functools.partial(generate, POLICY, **how))(before, *own, jax.random.key(0))
    right_B = [len(text) % 2 == 0 for text in TOKENIZER.decode_batch(np.asarray(greedy.tokens_BxT))]
    assert inputs['baseline_reward_B'].tolist() == np.repeat(right_B, 4).astype(float).tolist()

  def test_measures_its_parts(self, step):
    assert {'seconds/generate', 'seconds/verify', 'seconds/update', 'seconds/score'} <= set(step[4])

  def test_parameters_move(self, step):
    before, state, *_ = step
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, state.params)
    assert max(jax.tree.leaves(moved)) > 1e-4

  def test_first_update_is_on_policy(self, step):
    # Scored again by a full forward pass, the sampled tokens keep the log-probs of the cached decoder.
    assert abs(step[2]['policy/kl_from_behaviour']) < 1e-6
    assert step[2]['surrogate/ppo_clip/clip_fraction'] == 0.0


class TestNumbered:
  def test_none_is_no_answer(self):
    assert language.numbered([None, 'a', 'b', 'a', None]).tolist() == [-1, 0, 1, 0, -1]


class TestEvaluator:
  def test_counts_only_valid_rows(self, problems):
    batches = pipeline.evaluation_batches(problems, TOKENIZER, batch_size=len(problems) + 3)
    seen = []

    def all_correct(answers, rows):
      seen.append(len(answers))
      # Correct on real rows, wrong on the rows that only fill up the batch: counting those would show.
      return rows['valid_B'].astype(np.float32), {}

    options = common(problems) | {'verify': all_correct}
    kept = []
    evaluate = language.evaluator(
      JIT, POLICY, batches, num_samples=2, key=jax.random.key(0), keep=kept.append, answers=lambda texts: ['x'] * len(texts), **options
    )
    found = evaluate(POLICY.init(jax.random.key(0)))
    assert {name: x.tolist() for name, x in kept[0].items()} == {
      'num_correct': [2] * len(problems), 'pass_at_2': [1] * len(problems), 'maj_at_2': [1] * len(problems)
    }  # fmt: skip
    assert seen == [2 * (len(problems) + 3)]
    assert found['success'] == 1.0 and found['pass_at_2'] == 1.0
    assert 0 < found['entropy'] < np.log(22) + 1e-3

  def test_majority_of_what_is_answered(self, problems):
    batches = pipeline.evaluation_batches(problems, TOKENIZER, batch_size=len(problems) + 1)
    number = len(problems)
    said = ['7', '7', '3', None] * number + ['7'] * 4  # the last row fills up the batch

    def verify(answers, rows):
      return np.array([a == '7' for a in said], np.float32), {}

    options = common(problems) | {'verify': verify, 'answers': lambda texts: said[: len(texts)]}
    found = language.evaluator(JIT, POLICY, batches, num_samples=4, key=jax.random.key(0), **options)(POLICY.init(jax.random.key(0)))
    # Of 6 pairs 77, 7- and 7- are right, the two 73 are ties, 3- is wrong; all four vote for 7.
    assert found['maj_at_2'] == pytest.approx((1 + 2 + 2 / 2) / 6) and found['maj_at_4'] == 1.0
    assert found['pass_at_2'] == pytest.approx(5 / 6)
    assert found['avg_at_4'] == found['success'] == 0.5
    half = (found['avg_at_4_high'] - found['avg_at_4_low']) / 2  # Wilson about one half: z / (2 sqrt(N + z^2))
    assert half == pytest.approx(1.959964 / (2 * np.sqrt(4 * number + 1.959964**2)), rel=1e-5)

  def test_same_key_same_numbers(self, problems):
    batches = pipeline.evaluation_batches(problems, TOKENIZER, batch_size=16)
    evaluate = language.evaluator(JIT, POLICY, batches, num_samples=1, key=jax.random.key(0), **common(problems))
    params = POLICY.init(jax.random.key(0))
    assert evaluate(params) == evaluate(params)
