"""Tests of entropy_jax.training.ledger: the parts are the gradient's own, they sum to the prediction, and the prediction is the change."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats

from entropy_jax import catalog
from entropy_jax.data import fork_tokens
from entropy_jax.data.tabular_task import TabularTask
from entropy_jax.measures.ledger import QUADRANTS
from entropy_jax.models.tabular import TABLE
from entropy_jax.ops import categorical
from entropy_jax.parallel import make
from entropy_jax.training import ledger, scanned, step
from tests.measures import test_dynamics
from tests.parallel.test_parallel import learned
from tests.training.test_step import COMPOSED, Setting

NAMES = ('surrogate', 'history', 'regularizer_kl_cov', 'regularizer_adaptive_entropy')
SPEC = {
  'advantages': [{'name': 'grpo'}],
  'surrogates': [{'name': 'ppo_clip'}],
  'regularizers': [{'name': 'entropy_bonus', 'kwargs': {'coef': 0.01}}],
}


@pytest.fixture(scope='module')
def composed():
  return Setting(COMPOSED)


@pytest.fixture(scope='module')
def on_one_device(composed):
  _, metrics = learned(composed, make('jit'), num_slices=2, ledger=True)
  return metrics


def bandit(key):
  """The bandit on which the theorems are tested, as a task: every state is a prompt, every response one action."""
  logits_SxV, reward_SxV = test_dynamics.TestTheoremOnABandit.LOGITS, test_dynamics.TestTheoremOnABandit.REWARD
  return TabularTask(
    num_prompts=test_dynamics.STATES,
    num_tokens=1,
    vocab_size=test_dynamics.VOCAB,
    num_states=1,
    transition=lambda state, token: state,
    table_MxTxSxV=logits_SxV[:, None, None, :],
    reward=lambda prompt_B, tokens_BxT: reward_SxV[prompt_B, tokens_BxT[:, 0]],
    success=lambda table: jnp.sum(jnp.exp(categorical.log_probs(table[:, 0, 0])) * reward_SxV, axis=-1),
    visits=lambda table: jnp.ones(table.shape[:3]),
    positions={},
  )


def learn(setting, tx=None, **options):
  tx = optax.sgd(1.0, momentum=0.9) if tx is None else tx
  state = setting.state.replace(opt_state=tx.init(setting.state.params))
  how = {'objective': setting.objective, 'policy': setting.policy, 'tx': tx}
  new, metrics = jax.jit(functools.partial(step.learn, **how, **options))(state, setting.batch)
  return new, {name: float(x) for name, x in metrics.items()}


class TestLedger:
  def test_update_is_the_same_with_and_without(self, composed):
    with_ledger, metrics = learn(composed, num_epochs=2, ledger=True)
    without, plain = learn(composed, num_epochs=2)
    chex.assert_trees_all_close(with_ledger.params, without.params, rtol=1e-6, atol=1e-7)
    assert not any(name.startswith('ledger/') for name in plain)
    assert {name for name in metrics if not name.startswith('ledger/')} == set(plain)

  @pytest.mark.parametrize('name', ['adamw', 'clipped'])
  def test_parts_sum_to_the_prediction(self, composed, name):
    rules = {
      'adamw': optax.adamw(0.03, weight_decay=0.1),
      'clipped': optax.chain(optax.clip_by_global_norm(1e-3), optax.adam(optax.linear_schedule(0.05, 0.01, 4))),
    }
    _, metrics = learn(composed, rules[name], num_epochs=2, ledger=True)
    found = {key.removeprefix('ledger/'): value for key, value in metrics.items() if key.startswith('ledger/')}
    # Where parts of opposite signs are much larger than their sum, rounding is relative to the parts.
    scale = max(abs(found['predicted']), 0.1 * sum(abs(found[f'surrogate_{q}']) for q in QUADRANTS))
    assert abs(found['sum'] - found['predicted']) <= 1e-5 * scale
    np.testing.assert_allclose(sum(found[key] for key in NAMES), found['predicted'], atol=1e-5 * scale)
    np.testing.assert_allclose(sum(found[f'surrogate_{q}'] for q in QUADRANTS), found['surrogate'], rtol=1e-4, atol=1e-6 * scale)
    np.testing.assert_allclose(found['surrogate_clipped'] + found['surrogate_unclipped'], found['surrogate'], rtol=1e-4, atol=1e-6 * scale)
    assert found['history'] != 0
    np.testing.assert_allclose(found['measured'] - found['predicted'], found['residual'], rtol=1e-5, atol=1e-7)

  def test_slices_change_nothing(self, composed):
    _, whole = learn(composed, num_epochs=2, ledger=True)
    _, sliced = learn(composed, num_epochs=2, num_slices=4, ledger=True)
    for name, value in whole.items():
      if name.startswith('ledger/'):
        np.testing.assert_allclose(sliced[name], value, rtol=1e-4, atol=3e-6, err_msg=name)

  def test_quadrants_are_those_of_a_gradient_taken_token_by_token(self):
    # One on-policy SGD step of rate 1 on the token mean: the table moves by sum_t A_t (onehot - p) / N, and the entropy of a row moves by
    # dH/dz . dz with dH/dz = -p (ln p + H), averaged over the batch's N tokens. In numpy, one token at a time.
    setting = Setting({'advantages': [{'name': 'grpo'}], 'surrogates': [{'name': 'ppo_clip'}]})
    _, metrics = learn(setting, optax.sgd(1.0), ledger=True)
    batch, table = jax.device_get(setting.batch.replace(key=None)), np.asarray(setting.state.params[TABLE], np.float64)
    reward_GxR = batch.reward_B.reshape(4, 8).astype(np.float64)
    advantage_B = ((reward_GxR - reward_GxR.mean(1, keepdims=True)) / (reward_GxR.std(1, ddof=1, keepdims=True) + 1e-6)).reshape(-1)
    num = batch.mask_BxT.sum()
    p = np.exp(table - np.log(np.exp(table).sum(-1, keepdims=True)))
    entropy = -(p * np.log(p)).sum(-1, keepdims=True)
    slope = np.zeros_like(table)  # of the batch's mean entropy
    for b, t in zip(*np.nonzero(batch.mask_BxT), strict=True):
      slope[b // 8, t, 0] += (-p * (np.log(p) + entropy))[b // 8, t, 0] / num
    expected = dict.fromkeys(QUADRANTS, 0.0)
    for b, t in zip(*np.nonzero(batch.mask_BxT), strict=True):
      prompt, token, row = b // 8, batch.tokens_BxN[b, 1 + t], p[b // 8, t, 0]
      move = advantage_B[b] * (np.eye(len(row))[token] - row) / num
      discriminator = row * (entropy[prompt, t, 0] + np.log(row))
      likely = discriminator[token] - (row * discriminator).sum() >= 0
      name = next(n for n, signs in QUADRANTS.items() if signs == (advantage_B[b] >= 0, likely))
      expected[name] += (slope[prompt, t, 0] * move).sum()
    assert metrics['ledger/history'] == 0 and metrics['ledger/surrogate'] != 0
    for name, value in expected.items():
      np.testing.assert_allclose(metrics[f'ledger/surrogate_{name}'], value, rtol=1e-4, atol=1e-8, err_msg=name)

  def test_residual_is_of_second_order(self):
    setting = Setting(SPEC)
    residual = [learn(setting, optax.sgd(rate), ledger=True)[1]['ledger/residual'] for rate in (8.0, 4.0)]
    assert 3.4 < residual[0] / residual[1] < 4.6

  def test_clipped_tokens_and_what_they_forgo(self):
    setting = Setting(SPEC)
    setting.batch = setting.batch.replace(old_logp_BxT=setting.batch.old_logp_BxT - 1.0)  # every ratio is e: all with A > 0 are clipped
    _, metrics = learn(setting, optax.sgd(1.0), ledger=True)
    assert metrics['ledger/surrogate_clipped'] == 0 and metrics['ledger/forgone'] != 0
    assert metrics['ledger/surrogate_rewarded_likely'] == metrics['ledger/surrogate_rewarded_unlikely'] == 0
    unclipped = Setting({**SPEC, 'surrogates': [{'name': 'importance'}]})
    unclipped.batch = setting.batch
    _, free = learn(unclipped, optax.sgd(1.0), ledger=True)
    rewarded = free['ledger/surrogate_rewarded_likely'] + free['ledger/surrogate_rewarded_unlikely']
    np.testing.assert_allclose(metrics['ledger/forgone'], rewarded, rtol=1e-5)

  def test_a_refused_update_measures_no_change(self):
    setting = Setting(SPEC)
    setting.batch = setting.batch.replace(reward_B=setting.batch.reward_B.at[0].set(jnp.nan))
    _, metrics = learn(setting, ledger=True)
    assert metrics['update/rejected'] == 1 and abs(metrics['ledger/measured']) < 1e-6  # two ways to add the same numbers up

  def test_prediction_follows_the_measured_change_on_fork_tokens(self):
    tx = optax.adam(0.05)
    task = functools.partial(fork_tokens.make, num_prompts=8, vocab_size=16)
    how = {'objective': catalog.build(SPEC), 'tx': tx, 'num_steps': 40, 'group_size': 8, 'num_epochs': 2, 'ledger': True}
    curves = jax.jit(lambda key: scanned.run(task, key, **how))(jax.random.key(0))
    predicted, measured = (np.asarray(curves[f'ledger/{which}'], np.float64) for which in ('predicted', 'measured'))
    assert np.corrcoef(predicted, measured)[0, 1] >= 0.99
    assert np.abs(predicted - measured).sum() <= 0.15 * np.abs(measured).sum()

  def test_prediction_is_the_exact_policy_gradient_of_a_bandit_on_average(self):
    # One position, every action sampled in proportion to its probability: the batch's gradient is the exact policy gradient, and
    # the ledger's prediction is Theorem 1 of Cui et al. with the batch's own advantages.
    p = np.array([0.5, 0.25, 0.25])
    logits = jnp.log(jnp.asarray(p, jnp.float32))
    advantage = np.array([1.0, -1.0, -1.0])
    theorem = -(np.sum(p * np.log(p) * p * advantage) - np.sum(p * np.log(p)) * np.sum(p * p * advantage))
    slope = np.asarray(categorical.entropy_gradient(logits), np.float64)
    move = p * (advantage - np.sum(p * advantage))
    np.testing.assert_allclose((slope * move).sum(), theorem, rtol=1e-6)

  @pytest.mark.parametrize(
    ('tx', 'gap', 'clips'), [(optax.adam(0.05), 0.03, False), (optax.sgd(20.0, momentum=0.9), 0.1, True)], ids=['adam', 'momentum']
  )
  def test_prediction_follows_the_exactly_measured_change_on_a_bandit(self, tx, gap, clips):
    # 60 rollouts of 8 actions in each of the 64 states, two updates each. The oracle is the entropy of every row of the tables before and
    # after a rollout's updates, by scipy in float64: with as many actions in every state, the mean over tokens is that over states.
    # Measured:                                              adam      momentum
    #   H at the start and at the end, nats                  3.01 .91  3.01 .13
    #   correlation of predicted and exact change            .9998     .9983
    #   the same of how both differ from rollout to rollout  .9999     .9950
    #   without the history, predicted from the tokens only  .939      .990
    #   sum of |predicted - exact| over that of |exact|      .013      .053
    #   largest |measured - exact|, nats                     9e-7      4e-7
    #   largest |sum - predicted|, of the parts' sizes       1.9e-7    4.4e-7
    #   the same, of |predicted|                             2.0e-7    6.5e-7
    train = functools.partial(scanned.train, bandit, objective=catalog.build(SPEC), tx=tx, num_steps=60, group_size=8, num_epochs=2)
    per_step, tables = jax.device_get(jax.jit(functools.partial(train, ledger=True))(jax.random.key(0)))
    entropy = scipy.stats.entropy(scipy.special.softmax(tables[:, :, 0, 0].astype(np.float64), axis=-1), axis=-1).mean(axis=1)
    exact = np.diff(entropy)
    # Rows are means over the rollout's two updates.
    found = {name.removeprefix('ledger/'): 2 * x.astype(np.float64) for name, x in per_step.items() if name.startswith('ledger/')}
    predicted = found['predicted']
    assert np.corrcoef(predicted, exact)[0, 1] >= 0.99
    assert np.corrcoef(np.diff(predicted), np.diff(exact))[0, 1] >= 0.99  # it is not only a common trend
    assert np.abs(predicted - exact).sum() <= gap * np.abs(exact).sum()
    np.testing.assert_allclose(found['measured'], exact, atol=5e-6)
    parts = np.stack([found[name] for name in (*(f'surrogate_{q}' for q in QUADRANTS), 'regularizer_entropy_bonus', 'history')])
    size = np.abs(parts).sum(axis=0)
    assert np.all(size > 0) and np.any(found['forgone'] != 0) == clips
    np.testing.assert_array_less(np.abs(parts.sum(axis=0) - predicted), 1e-5 * size)
    np.testing.assert_array_less(np.abs(found['sum'] - predicted), 1e-5 * size)

  @pytest.mark.parametrize('name', ['pmap', 'fsdp'])
  def test_rows_are_those_of_one_device(self, composed, on_one_device, name):
    # 4 ragged rows a device in 2 slices, two updates. Measured: the rows that sum tokens differ by at most 1.2e-10 where they are up to
    # 1.4e-3 (2e-7 of each), measured and residual, differences of entropies of 1.3 nats, by at most 3.6e-7.
    _, metrics = learned(composed, make(name, 8), num_slices=2, ledger=True)
    assert metrics.keys() == on_one_device.keys()
    rows = [row for row in metrics if row.startswith('ledger/')]
    assert len(rows) == 15 and sum(metrics[row] != 0 for row in rows) == 14  # a clipped token of ppo_clip pushes nothing
    for row in rows:
      atol = 2e-6 if row in ('ledger/measured', 'ledger/residual') else 1e-9
      np.testing.assert_allclose(metrics[row], on_one_device[row], rtol=1e-5, atol=atol, err_msg=row)


class TestAffine:
  def test_adam_by_hand(self):
    # Third update of one parameter: m, v after gradients 1 and 2, then g = -0.5; b1 = .9, b2 = .99, rate .1.
    tx, params = optax.adam(0.1, b1=0.9, b2=0.99, eps=0.0), {'x': jnp.zeros(1)}
    state = tx.init(params)
    for g in (1.0, 2.0):
      _, state = tx.update({'x': jnp.array([g])}, state, params)
    m, v = 0.9 * 0.1 * 1 + 0.1 * 2, 0.99 * 0.01 * 1 + 0.01 * 4
    v_new = 0.99 * v + 0.01 * 0.25
    scale = 0.1 / (1 - 0.9**3) / np.sqrt(v_new / (1 - 0.99**3))
    history, rate = ledger.affine(tx, state, params, {'x': jnp.array([-0.5])})
    np.testing.assert_allclose(history['x'], [-scale * 0.9 * m], rtol=1e-5)
    np.testing.assert_allclose(rate['x'], [scale * 0.1], rtol=1e-5)

  def test_weight_decay_is_history(self):
    tx, params = optax.adamw(0.1, weight_decay=0.5), {'x': jnp.array([2.0, 0.0])}
    history, rate = ledger.affine(tx, tx.init(params), params, {'x': jnp.array([1.0, 1.0])})
    np.testing.assert_allclose(history['x'], [-0.1, 0.0], rtol=1e-6)  # rate .1 times decay .5 times 2
    np.testing.assert_allclose(rate['x'], [0.1, 0.1], rtol=1e-5)  # the first step of Adam is the sign of the gradient

  def test_a_gradient_of_zero_has_the_rate_of_the_others(self):
    tx, params = optax.sgd(0.1, momentum=0.9), {'x': jnp.zeros(2)}
    _, state = tx.update({'x': jnp.array([1.0, 1.0])}, tx.init(params), params)
    history, rate = ledger.affine(tx, state, params, {'x': jnp.array([1.0, 0.0])})
    np.testing.assert_allclose(history['x'], [-0.09, -0.09], rtol=1e-6)
    np.testing.assert_allclose(rate['x'], [0.1, 0.1], rtol=1e-6)

  def test_a_cancelled_gradient_gets_no_larger_a_rate_than_ten_typical_ones(self):
    # The first step of Adam is 0.1 for both elements; the typical gradient is sqrt((1 + 1e-8) / 2) = .7071, its rate .1 / .7071 = .1414.
    tx, params = optax.adam(0.1, eps=0.0), {'x': jnp.zeros(2)}
    history, rate = ledger.affine(tx, tx.init(params), params, {'x': jnp.array([1.0, 1e-4])})
    np.testing.assert_allclose(rate['x'], [0.1, 1.41421], rtol=1e-4)
    np.testing.assert_allclose(history['x'], [0.0, -0.1 + 1.41421e-4], atol=1e-6)
