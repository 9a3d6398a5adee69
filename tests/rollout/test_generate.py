import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from entropy_jax.methods import samplers
from entropy_jax.models import tabular, transformer
from entropy_jax.ops import vocabulary
from entropy_jax.rollout import generate, score
from entropy_jax.types import UserError

DECODER = transformer.transformer_policy(
  transformer.DecoderConfig(vocab_size=7, width=16, num_layers=2, num_heads=2, mlp_width=24, max_length=16)
)
TABLE = tabular.tabular_policy(
  2, 3, 4, num_states=3, transition=lambda state, token: (state + token) % 3, init_fn=lambda k, s: 1.2 * jax.random.normal(k, s)
)


def sampler(policy, **kwargs):
  return jax.jit(lambda params, tokens, mask, key: generate.generate(policy, params, tokens, mask, key, **kwargs))


def prompts(B):
  return (jnp.arange(B) % 2)[:, None], jnp.ones((B, 1), bool)


def keys(B):
  return generate.row_keys(jax.random.key(0), jnp.arange(B))


def same_rollouts(a, b):
  """The same tokens; figures up to the rounding of products of another size."""
  for name in ('tokens_BxT', 'mask_BxT', 'finished_B'):
    np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), a, b)


def z_score(x, mean):
  return (np.mean(x) - mean) / (np.std(x, ddof=1) / np.sqrt(np.size(x)))


class TestSample:
  def test_temperatures(self):
    z = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
    token, logp, entropy, logp1, entropy1, *_ = jax.jit(lambda z: generate.sample(z, keys(1), temperature=0.5))(z)
    # At temperature 1/2 p is squared and normalised: (.25, .09, .04) / .38, H = .839012
    p = np.array([0.25, 0.09, 0.04]) / 0.38
    np.testing.assert_allclose(logp[0], np.log(p[token[0]]), rtol=1e-5)
    np.testing.assert_allclose(entropy[0], scipy.stats.entropy(p), rtol=1e-5)
    np.testing.assert_allclose(logp1[0], z[0, token[0]], rtol=1e-5)
    np.testing.assert_allclose(entropy1[0], 1.0296530, rtol=1e-6)

  def test_greedy(self):
    z = jnp.log(jnp.array([[0.2, 0.5, 0.3]]))
    token, logp, entropy, logp1, entropy1, *_ = generate.sample(z, keys(1), temperature=0)
    assert token[0] == 1 and logp[0] == 0 and entropy[0] == 0
    np.testing.assert_allclose([logp1[0], entropy1[0]], [np.log(0.5), 1.0296530], rtol=1e-6)

  def test_impossible_tokens_are_never_drawn(self):
    z = jnp.tile(jnp.array([[-jnp.inf, 0.0, -jnp.inf, 0.0]]), (500, 1))
    token, logp, entropy, *_ = generate.sample(z, keys(500))
    assert set(np.asarray(token).tolist()) == {1, 3}
    np.testing.assert_allclose([logp, entropy], np.full((2, 500), [[-np.log(2)], [np.log(2)]]), rtol=1e-6)


class TestGenerate:
  @pytest.mark.parametrize('temperature', [1.0, 0.7])
  def test_distribution_of_whole_responses(self, temperature):
    params = jax.jit(TABLE.init)(jax.random.key(0))
    table = np.asarray(params[tabular.TABLE], np.float64) / temperature
    p = np.exp(table) / np.exp(table).sum(-1, keepdims=True)
    B = 20_000
    out = sampler(TABLE, num_tokens=3, temperature=temperature)(params, *prompts(B), jax.random.key(5))
    tokens = np.asarray(out.tokens_BxT)
    for prompt in (0, 1):
      count = np.zeros((4, 4, 4))
      np.add.at(count, tuple(tokens[prompt::2].T), 1)
      want = np.zeros((4, 4, 4))
      for a, b, c in itertools.product(range(4), repeat=3):
        want[a, b, c] = p[prompt, 0, 0, a] * p[prompt, 1, a % 3, b] * p[prompt, 2, (a + b) % 3, c]
      assert scipy.stats.chisquare(count.ravel(), want.ravel() * B / 2).pvalue > 1e-3
    assert out.mask_BxT.all() and not out.finished_B.any()

  def test_scores_are_those_of_score(self):
    temperature = 1.7
    params = jax.jit(DECODER.init)(jax.random.key(0))
    B, P, T = 12, 5, 6
    tokens = jax.random.randint(jax.random.key(1), (B, P), 0, 7)
    mask = jnp.arange(P)[None] >= (jnp.arange(B) % (P + 1))[:, None]  # left padding, and two rows of nothing else
    stats = (vocabulary.collision_probability_stat(of='behaviour'), vocabulary.log_normalizer_stat())
    how = {'num_tokens': T, 'temperature': temperature, 'stop_ids': (2,), 'pad_id': 1, 'stats': stats}
    out = sampler(DECODER, **how)(params, tokens, mask, jax.random.key(2))
    assert out.finished_B.any() and not out.finished_B.all()
    whole = jnp.concatenate([tokens, out.tokens_BxT], 1), jnp.concatenate([mask, out.mask_BxT], 1)
    for t, logp, entropy in ((temperature, out.logp_BxT, out.entropy_BxT), (1.0, out.logp1_BxT, out.entropy1_BxT)):
      scores = jax.jit(lambda p, t=t: score.score(DECODER, p, *whole, T, temperature=t, stats=stats))(params)
      np.testing.assert_allclose(logp, scores.logp_BxT, atol=1e-5)
      np.testing.assert_allclose(entropy, scores.entropy_BxT, atol=1e-5)
      for name, stat_BxT in scores.stats.items() if t == temperature else ():
        np.testing.assert_allclose(out.stats[name], stat_BxT, atol=1e-5)

  def test_monte_carlo_entropy_is_unbiased_at_temperature_1_only(self):
    # policy_entropy.md B1: -mean(logp) against the mean exact entropy, sampled at 1 and at .8.
    params = jax.jit(TABLE.init)(jax.random.key(0))
    for temperature, low, high in ((1.0, -3, 3), (0.8, -np.inf, -3)):
      out = sampler(TABLE, num_tokens=3, temperature=temperature)(params, *prompts(4000), jax.random.key(3))
      gap = np.asarray(-out.logp1_BxT - out.entropy1_BxT).mean(1)
      assert low < z_score(gap, 0.0) < high
      own = np.asarray(-out.logp_BxT - out.entropy_BxT).mean(1)
      assert abs(z_score(own, 0.0)) < 3

  def test_against_a_plain_loop_without_early_stop(self):
    params = jax.jit(TABLE.init)(jax.random.key(4))
    tokens, mask = prompts(6)
    key = jax.random.key(11)
    out = sampler(TABLE, num_tokens=3, stop_ids=(0,), pad_id=3)(params, tokens, mask, key)
    cache, z = jax.jit(TABLE.start, static_argnums=3)(params, tokens, mask, 3)
    step = jax.jit(TABLE.step)
    done = np.zeros(6, bool)
    for t in range(3):
      noise = [jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, row), t), (z.shape[1],)) for row in range(6)]
      drawn = np.argmax(z + np.stack(noise), axis=-1)
      drawn = np.where(done, 3, drawn)
      np.testing.assert_array_equal(out.tokens_BxT[:, t], drawn)
      np.testing.assert_array_equal(out.mask_BxT[:, t], ~done)
      logp = scipy.special.log_softmax(z, axis=1)[np.arange(6), drawn]
      np.testing.assert_allclose(out.logp_BxT[:, t], np.where(done, 0, logp), atol=1e-6)
      done |= drawn == 0
      cache, z = step(params, cache, jnp.asarray(drawn))
    np.testing.assert_array_equal(out.finished_B, done)
    assert done.any() and not done.all()

  def test_a_sequence_samples_the_same_wherever_it_stands(self):
    params = jax.jit(TABLE.init)(jax.random.key(4))
    tokens, mask = prompts(6)
    whole = sampler(TABLE, num_tokens=3, stop_ids=(0,))(params, tokens, mask, jax.random.key(11))
    for rows in ([5, 0, 3], [2], [1, 0]):
      rows = np.array(rows)
      part = sampler(TABLE, num_tokens=3, stop_ids=(0,), sequence_B=jnp.asarray(rows))(params, tokens[rows], mask[rows], jax.random.key(11))
      np.testing.assert_array_equal(part.tokens_BxT, whole.tokens_BxT[rows])
    other = sampler(TABLE, num_tokens=3, stop_ids=(0,), sequence_B=jnp.arange(6, 12))(params, tokens, mask, jax.random.key(11))
    assert not np.array_equal(other.tokens_BxT, whole.tokens_BxT)

  def test_stops_when_all_rows_have_ended(self):
    steps = []

    def counted(params, cache, token):
      jax.debug.callback(lambda: steps.append(1))
      return TABLE.step(params, cache, token)

    params = {tabular.TABLE: jnp.zeros((2, 3, 3, 4)).at[:, :, :, 1].set(100.0)}  # token 1, always
    run = sampler(TABLE._replace(step=counted), num_tokens=3, stop_ids=(1,))
    out = jax.block_until_ready(run(params, *prompts(4), jax.random.key(0)))
    jax.effects_barrier()
    assert not steps and out.finished_B.all()
    np.testing.assert_array_equal(out.mask_BxT, [[True, False, False]] * 4)
    np.testing.assert_array_equal(out.tokens_BxT, [[1, 0, 0]] * 4)
    run = sampler(TABLE._replace(step=counted), num_tokens=3, stop_ids=(2,))
    jax.block_until_ready(run(params, *prompts(4), jax.random.key(0)))
    jax.effects_barrier()
    assert len(steps) == 2  # the last token is never read

  def test_masked_slots_are_empty(self):
    params = jax.jit(TABLE.init)(jax.random.key(4))
    out = sampler(TABLE, num_tokens=3, stop_ids=(0,), pad_id=9, temperature=2.0)(params, *prompts(64), jax.random.key(0))
    off = ~np.asarray(out.mask_BxT)
    assert off.any() and np.all(np.asarray(out.tokens_BxT)[off] == 9)
    for x in (out.logp_BxT, out.entropy_BxT, out.logp1_BxT, out.entropy1_BxT):
      assert not np.any(np.asarray(x)[off])
    # The mask is a prefix that holds the end of sequence, once.
    ends = np.sum((np.asarray(out.tokens_BxT) == 0) & ~off, axis=1)
    np.testing.assert_array_equal(ends, out.finished_B)
    np.testing.assert_array_equal(np.sort(off, axis=1), off)

  def test_deterministic_in_the_key(self):
    params = jax.jit(TABLE.init)(jax.random.key(0))
    run = sampler(TABLE, num_tokens=3)
    a, b, c = (run(params, *prompts(32), jax.random.key(k)).tokens_BxT for k in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert np.any(a != c)

  def test_greedy_follows_the_largest_logit(self):
    params = jax.jit(TABLE.init)(jax.random.key(0))
    table = np.asarray(params[tabular.TABLE])
    out = sampler(TABLE, num_tokens=3, temperature=0)(params, *prompts(2), jax.random.key(0))
    for prompt in (0, 1):
      state = 0
      for t in range(3):
        token = int(table[prompt, t, state].argmax())
        assert out.tokens_BxT[prompt, t] == token
        np.testing.assert_allclose(out.logp1_BxT[prompt, t], scipy.special.log_softmax(table[prompt, t, state])[token], rtol=1e-5)
        state = (state + token) % 3
    assert not out.logp_BxT.any() and not out.entropy_BxT.any()

  def test_seeds_are_vmapped(self):
    params = jax.jit(jax.vmap(TABLE.init))(jax.random.split(jax.random.key(0), 3))
    keys = jax.random.split(jax.random.key(1), 3)
    run = lambda params, key: generate.generate(TABLE, params, *prompts(8), key, num_tokens=3, stop_ids=(1,))
    together = jax.jit(jax.vmap(run))(params, keys)
    alone = jax.jit(run)(jax.tree.map(lambda x: x[2], params), keys[2])
    last = jax.tree.map(lambda x: x[2], together)
    np.testing.assert_array_equal(last.tokens_BxT, alone.tokens_BxT)
    np.testing.assert_array_equal(last.mask_BxT, alone.mask_BxT)
    np.testing.assert_allclose(last.logp_BxT, alone.logp_BxT, atol=1e-6)

  @pytest.mark.parametrize(
    'kwargs, message',
    [
      ({'num_tokens': 0}, 'num_tokens is 0'),
      ({'num_tokens': 2, 'group_size': 0}, 'group_size is 0: give a positive number, at least 1'),
      ({'num_tokens': 2, 'num_blocks': 3}, 'num_blocks is 3: give a divisor of the number of prompts, 2'),
      ({'num_tokens': 2, 'stop_ids': 1}, 'stop_ids is 1: give the token ids that end a response'),
      ({'num_tokens': 2, 'temperature': -0.5}, 'temperature is -0.5: give 0 for greedy'),
      ({'num_tokens': 2, 'temperature': float('nan')}, 'temperature is nan'),
    ],
  )
  def test_bad_arguments(self, kwargs, message):
    with pytest.raises(UserError, match=message):
      generate.generate(TABLE, jax.jit(TABLE.init)(jax.random.key(0)), *prompts(2), jax.random.key(0), **kwargs)

  def test_bad_prompts(self):
    with pytest.raises(UserError, match=r'prompt tokens have shape \(2, 0\)'):
      generate.generate(TABLE, {}, jnp.zeros((2, 0), jnp.int32), jnp.zeros((2, 0), bool), jax.random.key(0), num_tokens=1)


class TestGroups:
  """A prompt is read once; its responses are those of the prompt repeated."""

  @pytest.mark.parametrize('policy, P', [(DECODER, 5), (TABLE, 1)])
  def test_equal_to_prompts_that_are_repeated(self, policy, P):
    params = jax.jit(policy.init)(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (4, P), 0, 2)
    mask = jnp.arange(P)[None] >= (jnp.arange(4) % P)[:, None]
    how = {'num_tokens': 3, 'stop_ids': (2,), 'stats': (vocabulary.log_normalizer_stat(),)}
    together = sampler(policy, group_size=3, **how)(params, tokens, mask, jax.random.key(2))
    repeated = sampler(policy, **how)(params, jnp.repeat(tokens, 3, axis=0), jnp.repeat(mask, 3, axis=0), jax.random.key(2))
    assert together.tokens_BxT.shape == (12, 3)
    same_rollouts(together, repeated)

  def test_reads_every_prompt_once(self):
    read = []

    def start(params, tokens, mask, num):
      read.append(tokens.shape)
      return TABLE.start(params, tokens, mask, num)

    run = sampler(TABLE._replace(start=start), num_tokens=2, group_size=5)
    jax.eval_shape(run, jax.eval_shape(TABLE.init, jax.random.key(0)), *prompts(4), jax.random.key(0))
    assert read == [(4, 1)]


# Rows end after 1 to 12 tokens, so that every stage has work.
STOPPING = {'num_tokens': 12, 'stop_ids': (2, 5), 'pad_id': 6, 'temperature': 1.3}


@pytest.fixture(scope='module')
def params():
  return jax.jit(DECODER.init)(jax.random.key(0))


@pytest.fixture(scope='module')
def inputs():
  tokens = jax.random.randint(jax.random.key(1), (8, 4), 0, 7)
  return tokens, jnp.arange(4)[None] >= (jnp.arange(8) % 4)[:, None], jax.random.key(3)


@pytest.fixture(scope='module')
def whole(params, inputs):
  """32 rollouts without stages."""
  out = sampler(DECODER, group_size=4, **STOPPING)(params, *inputs)
  length = np.asarray(out.mask_BxT).sum(axis=1)
  assert 1 < np.median(length) < 6 and length.max() > 8
  return out


class TestStages:
  """Gathering the rows that have not ended into smaller batches changes nothing."""

  @pytest.mark.parametrize('num_stages, num_blocks', [(4, 1), (3, 4)])
  def test_same_rollouts(self, params, inputs, whole, num_stages, num_blocks):
    out = sampler(DECODER, group_size=4, num_stages=num_stages, num_blocks=num_blocks, **STOPPING)(params, *inputs)
    same_rollouts(out, whole)

  def test_the_table_to_the_last_bit_and_over_seeds(self):
    params = jax.jit(jax.vmap(TABLE.init))(jax.random.split(jax.random.key(0), 3))
    keys = jax.random.split(jax.random.key(1), 3)

    def run(num_stages):
      one = lambda params, key: generate.generate(TABLE, params, *prompts(16), key, num_tokens=3, stop_ids=(1,), num_stages=num_stages)
      return jax.jit(jax.vmap(one))(params, keys)

    jax.tree.map(np.testing.assert_array_equal, run(4), run(1))

  def test_steps_are_of_the_rows_that_are_left(self):
    sizes = []

    def step(params, cache, token):
      jax.debug.callback(lambda: sizes.append(token.shape[0]))
      return TABLE.step(params, cache, token)

    # Prompt 0 says token 1, which ends it; prompt 1 goes on with token 2.
    params = {tabular.TABLE: jnp.zeros((2, 3, 3, 4)).at[0, :, :, 1].set(100.0).at[1, :, :, 2].set(100.0)}
    tokens = jnp.array([0, 0, 0, 1, 0, 0, 0, 0])[:, None]
    run = sampler(TABLE._replace(step=step), num_tokens=3, stop_ids=(1,), num_stages=3)
    out = jax.block_until_ready(run(params, tokens, tokens >= 0, jax.random.key(0)))
    jax.effects_barrier()
    assert sizes == [2, 2]  # of 8, 4 and 2
    np.testing.assert_array_equal(out.tokens_BxT, [[2, 2, 2] if row == 3 else [1, 0, 0] for row in range(8)])
    np.testing.assert_array_equal(out.finished_B, np.arange(8) != 3)

  def test_no_row_leaves_its_device(self, params, inputs, whole):
    mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    cut = lambda x: jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data')))
    run = sampler(DECODER, group_size=4, num_stages=3, num_blocks=4, **STOPPING)
    tokens, mask, key = inputs
    compiled = run.lower(params, cut(tokens), cut(mask), key).compile()
    # What the devices say to each other is how many rows are left, and nothing else.
    moved = re.findall(r'= (?!s32\[\])\S+ (?:all-reduce|all-gather|all-to-all|collective-permute)\(', compiled.as_text())
    assert not moved, moved
    same_rollouts(compiled(params, cut(tokens), cut(mask), key), whole)


class TestWide:
  """Rows of WIDE logits are drawn by inverse CDF."""

  V = generate.WIDE

  def test_distribution(self):
    logits = jnp.where(jnp.arange(self.V) % 7 == 3, -jnp.inf, 2.0 * jax.random.normal(jax.random.key(0), (self.V,)))
    B, temperature = 60_000, 0.8
    draw = jax.jit(lambda z, k: generate.sample(jnp.broadcast_to(z, (B, self.V)), k, temperature=temperature))(logits, keys(B))
    p, p1 = (scipy.special.softmax(np.asarray(logits, np.float64) / t) for t in (temperature, 1.0))
    count = np.bincount(draw.token_B, minlength=self.V)
    assert not count[p == 0].any()
    order = np.argsort(p)[::-1]
    many = order[: np.sum(p * B > 10)]  # the rare ones as one
    rest = 1 - p[many].sum()
    assert scipy.stats.chisquare([*count[many], B - count[many].sum()], np.array([*p[many], rest]) * B).pvalue > 1e-3
    np.testing.assert_allclose(draw.logp_B, np.log(p[np.asarray(draw.token_B)]), atol=1e-5)
    np.testing.assert_allclose(draw.entropy_B, np.full(B, scipy.stats.entropy(p)), rtol=1e-5)
    np.testing.assert_allclose(draw.logp1_B, np.log(p1[np.asarray(draw.token_B)]), atol=1e-5)
    np.testing.assert_allclose(draw.entropy1_B, np.full(B, scipy.stats.entropy(p1)), rtol=1e-5)

  def test_greedy(self):
    logits = jax.random.normal(jax.random.key(0), (5, self.V)).at[2].set(0.0)  # the first of those that tie
    draw = generate.sample(logits, keys(5), temperature=0)
    np.testing.assert_array_equal(draw.token_B, np.argmax(logits, axis=1))
    np.testing.assert_allclose(draw.logp1_B, np.max(scipy.special.log_softmax(logits, axis=1), axis=1), atol=1e-5)
    assert not np.any(draw.logp_B) and not np.any(draw.drawn_entropy_B)

  def test_a_sampler_leaves_its_set(self):
    logits = jax.random.normal(jax.random.key(0), (64, self.V))
    adjust = samplers.top_k(k=3)
    draw = jax.jit(lambda z, k: generate.sample(z, k, adjust=adjust.bind(adjust.init())))(logits, keys(64))
    best = np.sort(np.argsort(logits, axis=1)[:, -3:], axis=1)
    assert np.all(np.any(best == np.asarray(draw.token_B)[:, None], axis=1))
    of_best = scipy.special.log_softmax(np.take_along_axis(np.asarray(logits, np.float64), best, axis=1), axis=1)
    np.testing.assert_allclose(draw.drawn_logp_B, of_best[best == np.asarray(draw.token_B)[:, None]], atol=1e-5)
    np.testing.assert_allclose(draw.drawn_entropy_B, scipy.stats.entropy(np.exp(of_best), axis=1), rtol=1e-4)


class TestAdjust:
  """A function of the logits decides what is drawn, and of what is recorded only what drawn_ says."""

  def test_identity_is_bit_identical_to_none(self):
    params = jax.jit(TABLE.init)(jax.random.key(0))
    plain, same = (
      sampler(TABLE, num_tokens=3, stop_ids=(0,), temperature=0.7, adjust=adjust)(params, *prompts(64), jax.random.key(1))
      for adjust in (None, lambda z: z)
    )
    jax.tree.map(np.testing.assert_array_equal, plain, same)

  def test_draws_from_the_adjusted_distribution_and_records_the_plain_one(self):
    z = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
    B, temperature = 20_000, 0.5
    run = jax.jit(lambda z, k: generate.sample(z, k, temperature=temperature, adjust=lambda x: -x))
    token, logp, entropy, logp1, entropy1, drawn_logp, drawn_entropy = run(jnp.tile(z, (B, 1)), keys(B))
    p = np.array([0.25, 0.09, 0.04]) / 0.38  # at temperature 1/2
    drawn = (1 / p) / np.sum(1 / p)  # of the negated logits
    assert scipy.stats.chisquare(np.bincount(token, minlength=3), drawn * B).pvalue > 1e-3
    np.testing.assert_allclose(logp, np.log(p)[token], rtol=1e-5)
    np.testing.assert_allclose(entropy, np.full(B, scipy.stats.entropy(p)), rtol=1e-5)
    np.testing.assert_allclose(logp1, np.log([0.5, 0.3, 0.2])[token], rtol=1e-5)
    np.testing.assert_allclose(entropy1, np.full(B, 1.0296530), rtol=1e-5)
    np.testing.assert_allclose(drawn_logp, np.log(drawn)[token], rtol=1e-5)
    np.testing.assert_allclose(drawn_entropy, np.full(B, scipy.stats.entropy(drawn)), rtol=1e-5)

  def test_a_truncation_in_a_rollout(self):
    # What top-p .6 leaves of the rows says drawn_*; without a sampler it is what the row says.
    params = jax.jit(TABLE.init)(jax.random.key(0))
    cut = samplers.top_p(p=0.6)
    out = sampler(TABLE, num_tokens=3, stop_ids=(0,), adjust=cut.bind(cut.init()))(params, *prompts(64), jax.random.key(1))
    mask, gain = np.asarray(out.mask_BxT), np.asarray(out.drawn_logp_BxT - out.logp_BxT)
    assert np.all(gain[mask] > -1e-6) and gain.max() > 0.05 and np.all(gain[mask] < -np.log(0.6) + 1e-5)  # -ln of the mass that is left
    assert np.all(out.drawn_entropy_BxT <= out.entropy_BxT + 1e-6)
    assert not np.any(np.asarray(out.drawn_logp_BxT)[~mask])
    plain = sampler(TABLE, num_tokens=3, stop_ids=(0,))(params, *prompts(64), jax.random.key(1))
    np.testing.assert_array_equal(plain.drawn_logp_BxT, plain.logp_BxT)
    np.testing.assert_array_equal(plain.drawn_entropy_BxT, plain.entropy_BxT)

  def test_greedy_takes_the_largest_adjusted_logit(self):
    z = jnp.log(jnp.array([[0.2, 0.5, 0.3]]))
    token, logp, _, logp1, *_ = generate.sample(z, keys(1), temperature=0, adjust=lambda x: -x)
    assert token[0] == 0 and logp[0] == 0
    np.testing.assert_allclose(logp1[0], np.log(0.2), rtol=1e-6)

  def test_dual_temperature_of_a_whole_response(self):
    # Rows above ln 2 nats nearly certain, all others nearly uniform: the responses say which rule was used.
    params = {tabular.TABLE: jnp.zeros((2, 3, 3, 4)).at[:, 1, :, 2].set(4.0).at[:, :, :, 0].add(0.1)}
    adjust = samplers.dual_temperature(level=float(np.log(2)), high=0.01, low=100.0)
    out = sampler(TABLE, num_tokens=3, adjust=adjust.bind(adjust.init()))(params, *prompts(4000), jax.random.key(2))
    share = [np.bincount(out.tokens_BxT[:, t], minlength=4) / 4000 for t in range(3)]
    assert share[0][0] > 0.99 and share[2][0] > 0.99  # uncertain rows, made certain of their largest logit
    assert np.max(np.abs(share[1] - 0.25)) < 0.05  # a certain row, made uniform
    np.testing.assert_allclose(out.entropy_BxT[:, 1], np.full(4000, scipy.stats.entropy(scipy.special.softmax([0.1, 0, 4, 0]))), rtol=1e-4)

  def test_adaptive_temperature_over_two_batches(self):
    params = jax.jit(TABLE.init)(jax.random.key(0))
    adaptive = samplers.adaptive_temperature(tau=0.9)

    @jax.jit
    def two(params, key):
      state = adaptive.init()
      first = generate.generate(TABLE, params, *prompts(64), key, num_tokens=3, adjust=adaptive.bind(state))
      state = adaptive.remember(state, first.entropy_BxT, first.mask_BxT)
      return first, generate.generate(TABLE, params, *prompts(64), key, num_tokens=3, adjust=adaptive.bind(state))

    first, second = two(params, jax.random.key(5))
    plain = sampler(TABLE, num_tokens=3)(params, *prompts(64), jax.random.key(5))
    np.testing.assert_array_equal(first.tokens_BxT, plain.tokens_BxT)  # nothing is known yet
    assert np.any(second.tokens_BxT != plain.tokens_BxT)
