"""Adapters around a frozen base through the step, the loop, checkpoints and every parallel mode: the base is read and never touched."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_jax import catalog
from entropy_jax.models import lora, transformer
from entropy_jax.parallel import make
from entropy_jax.rollout.batch import token_batch
from entropy_jax.rollout.generate import given
from entropy_jax.training import language, loop, state, step
from entropy_jax.training.frozen import check_digests, digests
from entropy_jax.types import Frozen, UserError, frozen_of, with_frozen, without_frozen

DECODER = transformer.DecoderConfig(vocab_size=24, width=16, num_layers=1, num_heads=2, mlp_width=32, max_length=8)
PLAIN = transformer.transformer_policy(DECODER)
CONFIG = lora.LoraConfig(rank=2)
POLICY = lora.lora_policy(PLAIN, CONFIG)
# Not Adam, which would turn the rounding error of a gradient that is 0 into a full step.
TX = optax.sgd(0.5, momentum=0.9)
OBJECTIVE = catalog.build({'advantages': [{'name': 'unit'}], 'surrogates': [{'name': 'reinforce'}]})
EXAMPLE = language.example_batch(16, 3, 4)
RNG = np.random.default_rng(0)
ROWS = {
  'prompt_tokens_BxP': RNG.integers(0, 24, (16, 3), np.int32),
  'prompt_mask_BxP': np.ones((16, 3), bool),
  'response_tokens_BxT': RNG.integers(0, 24, (16, 4), np.int32),
  'response_mask_BxT': np.arange(4) < RNG.integers(1, 5, (16, 1)),
}
initial = functools.partial(language.initial_state, policy=POLICY, key=jax.random.key(0), tx=TX, objective=OBJECTIVE, batch=EXAMPLE)


@functools.cache
def base():
  return jax.device_get(jax.jit(PLAIN.init)(jax.random.key(0)))


@functools.cache
def mode(name):
  """(mode, compiled body)"""
  layout = make(*{'jit': ('jit',), 'pmap': ('pmap', 8), 'fsdp': ('fsdp', 8)}[name])
  return layout, language.supervised_body(layout, POLICY, OBJECTIVE, TX)


def placed(layout):
  """Parameters whose base lies where the mode keeps it."""
  whole = jax.device_put(base(), None if layout.shardings is None else layout.shardings(base()))
  return lora.adapt(whole, jax.random.key(1), CONFIG)


def buffers(tree):
  return [shard.data.unsafe_buffer_pointer() for x in jax.tree.leaves(tree) for shard in x.addressable_shards]


class TestParts:
  TREE = {'a': 1, 'base': Frozen({'w': 2, 'v': (3, 4)}), 'more': [Frozen(5), 6]}

  def test_there_and_back(self):
    lean = without_frozen(self.TREE)
    assert jax.tree.leaves(lean) == [1, 6] and frozen_of(self.TREE) == ({'w': 2, 'v': (3, 4)}, 5)
    assert with_frozen(lean, frozen_of(self.TREE)) == self.TREE
    assert with_frozen({'a': 1}, ()) == {'a': 1} and without_frozen({'a': None}) == {'a': None}

  def test_another_number_of_parts_is_refused(self):
    with pytest.raises(ValueError, match='shorter'):
      with_frozen(without_frozen(self.TREE), (5,))


class TestStep:
  def batch(self):
    response = given(jnp.asarray(ROWS['response_tokens_BxT']), jnp.asarray(ROWS['response_mask_BxT']))
    prompt = (jnp.asarray(ROWS['prompt_tokens_BxP']), jnp.asarray(ROWS['prompt_mask_BxP']))
    return token_batch(*prompt, response, jnp.arange(16), jnp.ones(16), jax.random.key(0))

  def test_optimizer_knows_the_adapters_alone(self):
    start = state.create(placed(make('jit')), TX, OBJECTIVE, EXAMPLE)
    sizes = lambda tree: sorted(x.shape for x in jax.tree.leaves(tree))
    assert sizes(start.opt_state) == sizes(start.params['adapters'])  # one momentum each

  @pytest.mark.parametrize('num_slices', [1, 2])
  def test_base_is_an_argument_and_has_no_gradient(self, num_slices):
    batch, start = self.batch(), state.create(placed(make('jit')), TX, OBJECTIVE, EXAMPLE)
    learn = functools.partial(step.learn, objective=OBJECTIVE, policy=POLICY, tx=TX, num_slices=num_slices)
    made = jax.make_jaxpr(learn)(start, batch)
    assert sum(np.size(x) for x in made.consts) < 100
    # Every update is in the scan, whose carry holds no array of the base and whose constants are all of it.
    (scan,) = (eqn for eqn in made.jaxpr.eqns if eqn.primitive.name == 'scan' and eqn.params['num_carry'] > 10)
    first, last = scan.params['num_consts'], scan.params['num_consts'] + scan.params['num_carry']
    shapes = lambda variables: [v.aval.shape for v in variables]
    embed = (24, 16)
    assert embed in shapes(scan.invars[:first]) and embed not in shapes(scan.invars[first:last])

  def test_ledger_accounts_for_the_adapters(self):
    params = placed(make('jit'))
    params['adapters'] = jax.tree.map(lambda x: x + 0.1 * RNG.normal(size=x.shape).astype(np.float32), params['adapters'])
    start = state.create(params, optax.sgd(1e-2), OBJECTIVE, EXAMPLE)
    learn = functools.partial(step.learn, objective=OBJECTIVE, policy=POLICY, tx=optax.sgd(1e-2), ledger=True)
    after, metrics = jax.jit(learn)(start, self.batch())
    assert metrics['ledger/sum'] == pytest.approx(float(metrics['ledger/predicted']), rel=1e-3)
    assert metrics['ledger/measured'] == pytest.approx(float(metrics['ledger/predicted']), rel=0.1)
    assert abs(metrics['ledger/measured']) > 1e-4
    chex.assert_trees_all_equal(after.params['base'], start.params['base'])


@functools.cache
def trained(name):
  """(state after two updates, losses, buffers of the base before and after)"""
  layout, body = mode(name)
  params = placed(layout)
  before = buffers(params['base'])
  current, losses = initial(layout, params=params), []
  for k in range(2):
    current, metrics = body(current, ROWS, jax.random.key(k))
    losses.append(float(metrics['update/loss']))
  return current, losses, before, buffers(current.params['base'])


class TestModes:
  @pytest.mark.parametrize('name', ['jit', 'pmap', 'fsdp'])
  def test_base_is_shared_and_stays_where_it_was(self, name):
    current, losses, before, after = trained(name)
    assert losses[1] < losses[0] - 0.01
    # The very buffers that were given, on every device: nothing was copied or donated, and they can still be read.
    assert before == after
    chex.assert_trees_all_equal(jax.device_get(current.params['base'].tree), base())

  @pytest.mark.parametrize('name', ['pmap', 'fsdp'])
  def test_equals_one_device(self, name):
    whole, found = trained('jit')[0], trained(name)[0]
    chex.assert_trees_all_close(jax.device_get(found.params['adapters']), jax.device_get(whole.params['adapters']), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(jax.device_get(found.opt_state), jax.device_get(whole.opt_state), rtol=1e-4, atol=1e-6)
    merged = lora.merge(found.params, CONFIG)
    chex.assert_trees_all_close(jax.device_get(merged), jax.device_get(lora.merge(whole.params, CONFIG)), rtol=1e-5, atol=1e-6)

  def test_fsdp_cuts_base_and_adapters(self):
    params = trained('fsdp')[0].params
    part = lambda x: {shard.data.shape for shard in x.addressable_shards}
    assert part(params['base'].tree['embed']) == {(24, 2)}
    assert part(params['adapters']['block_0']['mlp']['up']['lora_a']) == {(2, 2)}
    merged = lora.merge(params, CONFIG)
    assert part(merged['block_0']['mlp']['up']['kernel']) == {(2, 32)}


class TestInitialState:
  @pytest.mark.parametrize('name', ['pmap', 'fsdp'])
  def test_given_parameters_are_taken_over_or_copied_once(self, name):
    layout, _ = mode(name)
    whole = layout.shardings(base())
    given = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=whole)(base())  # a buffer of numpy's could not be given away
    start = functools.partial(language.initial_state, layout, PLAIN, given, jax.random.key(0), TX, OBJECTIVE, EXAMPLE)
    before = buffers(given)
    copied = start().params
    assert not set(before) & set(buffers(copied))
    chex.assert_trees_all_equal(jax.device_get(copied), base())
    taken = start(donate=True).params
    assert sorted(buffers(taken)) == sorted(before) and given['embed'].is_deleted()
    chex.assert_trees_all_equal(jax.device_get(taken), base())
    assert all(jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), taken, whole)))


class TestLoop:
  def train(self, workdir, num_steps, params, **options):
    layout, body = mode('jit')
    return loop.train(
      workdir=workdir,
      num_steps=num_steps,
      state=initial(layout, params=params),
      body=lambda current, batch, key: body(current, ROWS, key),
      data=None,
      key=jax.random.key(5),
      checkpoint_every=2,
      progress='silent',
      tensorboard=False,
      **options,
    )

  def test_goes_on_around_the_same_base_and_no_other(self, tmp_path):
    params = placed(make('jit'))
    whole = self.train(tmp_path / 'whole', 4, params)
    self.train(tmp_path / 'cut', 2, params)
    after = self.train(tmp_path / 'cut', 4, params)
    chex.assert_trees_all_equal(jax.device_get(after), jax.device_get(whole))
    manifest = json.loads((tmp_path / 'cut' / 'checkpoints' / '4' / 'manifest.json').read_text())['content']
    assert not any('embed' in leaf['path'] for leaf in manifest['leaves']) and any('lora_a' in leaf['path'] for leaf in manifest['leaves'])
    assert manifest['host']['frozen']["0['embed']"].startswith('float32[24, 16] ')
    other = jax.tree.map(lambda x: x, params['base'].tree)
    other['final_norm']['scale'] = other['final_norm']['scale'].at[3].add(1e-6)
    with pytest.raises(UserError, match=r"was made with another frozen \['final_norm'\]\['scale'\] than is given now; give that base"):
      self.train(tmp_path / 'cut', 6, {**params, 'base': Frozen(other)})


def mixed(x):
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    x = ((x ^ (x >> shift)) * factor) % 2**32
  return x ^ (x >> 16)


class TestDigests:
  def test_against_plain_integers(self):
    x = np.arange(6, dtype=np.float32).reshape(2, 3) - 2.5
    bits = list(enumerate(int(word) for word in x.view(np.uint32).ravel()))
    words = [sum(mixed(mixed(place ^ seed) ^ word) for place, word in bits) % 2**32 for seed in (0x9E3779B9, 0x85EBCA6B)]
    assert digests([{'w': jnp.asarray(x)}]) == {"0['w']": f'float32[2, 3] {words[0]:08x}{words[1]:08x}'}

  def test_is_of_values_types_and_places_and_not_of_cuts(self):
    x = jnp.asarray(RNG.normal(size=(16, 8)), jnp.float32)
    layout = make('fsdp', 8)
    cut = jax.device_put({'embed': x}, layout.shardings({'embed': x}))
    of = lambda x: digests([{'embed': x}])["0['embed']"]
    assert len(cut['embed'].sharding.device_set) == 8 and of(cut['embed']) == of(x) == of(x + 0)
    others = [x.at[3, 4].set(-x[3, 4]), x[::-1], x.T.reshape(16, 8), x.astype(jnp.bfloat16), x > 0]
    assert len({of(x), *(of(other) for other in others)}) == 6

  def test_one_more_or_one_less_is_told(self, tmp_path):
    check_digests(tmp_path, {}, {})
    check_digests(tmp_path, {'0[a]': 'x'}, {'0[a]': 'x'})
    for saved, now in (({}, {'0[a]': 'x'}), ({'0[a]': 'x'}, {}), ({'0[a]': 'x'}, {'0[a]': 'y'})):
      with pytest.raises(UserError, match=r'another frozen \[a\] than is given now'):
        check_digests(tmp_path, saved, now)
