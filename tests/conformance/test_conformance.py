"""What every method owes (STYLE T1, obligations 4 to 6), parametrised over the catalog: a new row is tested by being listed.

Each method stands in a minimal valid chain. One compiled function prepares, plans and differentiates the loss with respect to every
float of the batch, so that most checks share its compilation; only new shapes, dtypes and shardings compile again.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from entropy_jax import catalog
from entropy_jax.objective import Objective
from entropy_jax.ops.aggregation import AGGREGATIONS
from entropy_jax.types import Metrics, PyTree, Ratio, TokenBatch, follows_sequences, take_rows
from tests import helpers

# Compilation is nearly all of the suite's time, and nothing here is large enough to be worth optimising.
FAST_COMPILE = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
DIFFERENTIABLE = ('logp_BxT', 'entropy_BxT', 'stats')


def around(room: str) -> dict[str, Any]:
  """What a method of this room needs around it: PPO's clip, GRPO where rewards must matter; else the batch has random advantages."""
  surrounding: dict[str, Any] = {} if room == 'surrogates' else {'surrogates': [{'name': 'ppo_clip'}]}
  return {**surrounding, 'advantages': [{'name': 'grpo'}]} if room == 'rewards' else surrounding


def minimal_spec(name: str) -> dict[str, Any]:
  """The shortest chain in which the method acts."""
  entry = catalog.CATALOG[name]
  return {**around(entry.room), entry.room: [{'name': name, 'kwargs': dict(entry.example)}]}


def _aggregate_spec(aggregate: str) -> dict[str, Any]:
  constant = 6.0 if aggregate.startswith('token_sum_over') else None
  return {**minimal_spec('entropy_bonus'), 'aggregate': aggregate, 'constant': constant}


CASES = {name: minimal_spec(name) for name in catalog.CATALOG} | {f'aggregate-{a}': _aggregate_spec(a) for a in AGGREGATIONS}


class Result(NamedTuple):
  """What one update makes of a batch."""

  loss: jax.Array
  ratio: Ratio
  gradient: dict[str, Any]  # field of the batch -> gradient of the loss
  prepared: TokenBatch
  planned: PyTree
  state: PyTree
  metrics: Metrics


def _is_float(x: Any) -> bool:
  return x is not None and all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(x))


def update(objective: Objective, state: PyTree, batch: TokenBatch) -> Result:
  """prepare, plan, and the loss differentiated through both of them with respect to every float array of the batch."""
  fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}

  def loss(floats: dict[str, Any]) -> tuple[jax.Array, Any]:
    prepared, new, first = objective.prepare(state, batch.replace(**floats))
    planned, new, second = objective.plan(new, prepared)
    ratio = objective.loss(planned, prepared)
    return ratio.compute(), (ratio, prepared, planned, new, first | second)

  floats = {name: x for name, x in fields.items() if _is_float(x)}
  (value, (ratio, prepared, planned, new, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(floats)
  return Result(value, ratio, gradient, prepared, planned, new, metrics)


def in_slices(objective: Objective, planned: PyTree, batch: TokenBatch, num_slices: int) -> tuple[Ratio, dict[str, Any]]:
  """(merged ratio, gradient of its value) of the prepared batch, one slice of rows at a time, as an accumulated update makes it."""
  num_sequences = batch.mask_BxT.shape[0]
  size = num_sequences // num_slices

  def one(total: Ratio, start: jax.Array) -> tuple[Ratio, dict[str, Any]]:
    part = take_rows(batch, start, size)

    def num(fields: dict[str, Any]) -> tuple[jax.Array, Ratio]:
      ratio = objective.loss(take_rows(planned, start, size), part.replace(**fields))
      return ratio.num, ratio

    fields = {name: getattr(part, name) for name in DIFFERENTIABLE}
    gradient, ratio = jax.grad(num, has_aux=True)(fields)
    return total.merge(ratio), gradient

  nothing = Ratio(jnp.zeros(()), jnp.zeros(()))
  total, gradient = jax.lax.scan(one, nothing, jnp.arange(num_slices, dtype=jnp.int32) * size)
  gradient = jax.tree.map(lambda x: Ratio(x.reshape(num_sequences, -1), total.den).compute(), gradient)
  return total, gradient


@functools.cache
def splitter(late: str) -> Callable[..., Any]:
  """The slices of a chain given as JSON without rewards and advantages: these are settled before, so many cases share the rest."""
  objective = catalog.build(json.loads(late))
  return jax.jit(lambda planned, batch: {n: in_slices(objective, planned, batch, n) for n in (2, 8)}, compiler_options=FAST_COMPILE)


def on_devices(state: PyTree, batch: TokenBatch) -> tuple[PyTree, TokenBatch]:
  """The same, with the rows of the batch over 8 devices."""
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  rows, whole = NamedSharding(mesh, PartitionSpec('data')), NamedSharding(mesh, PartitionSpec())
  sharded = jax.device_put(batch.replace(key=None), rows).replace(key=jax.device_put(batch.key, whole))
  assert len(sharded.logp_BxT.sharding.device_set) == 8
  return jax.device_put(state, whole), sharded


class Case(NamedTuple):
  """A chain, a batch that fills everything it reads, and a state in which its controllers act."""

  spec: dict[str, Any]
  objective: Objective
  update: Callable[[PyTree, TokenBatch], Result]
  batch: TokenBatch
  state: PyTree
  result: Result


@functools.cache
def make_case(name: str) -> Case:
  objective = catalog.build(CASES[name])
  stats = {of: tuple(s.name for s in objective.stats if s.of == of) for of in ('current', 'behaviour')}
  batch = helpers.token_batch(stats=stats['current'], old_stats=stats['behaviour'])
  compiled = jax.jit(functools.partial(update, objective), compiler_options=FAST_COMPILE)
  state = compiled(objective.init(batch), batch).state
  return Case(CASES[name], objective, compiled, batch, state, compiled(state, batch))


@pytest.fixture(scope='module', autouse=True)
def strict_promotion() -> Iterator[None]:
  """`x * bool_mask` and every silent cast raise; for the module, because a promotion mode of its own would compile each case again."""
  with jax.numpy_dtype_promotion('strict'):
    yield


@pytest.fixture(params=CASES, scope='module')  # module scope makes pytest run the tests of one case in succession
def case(request: pytest.FixtureRequest) -> Case:
  return make_case(request.param)


def close(actual: Any, expected: Any, what: str, rtol: float = 1e-6) -> None:
  """Equal up to rounding: rtol of the largest entry of an array, or, for scalars, of the terms of order 0.1 that they are sums of."""
  for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    scale = np.abs(y).max(initial=0.1 if y.ndim == 0 else 0.0)
    np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * scale, err_msg=what)


def finite(result: Result, what: str) -> None:
  checked = {'loss': result.loss, 'gradient': result.gradient, 'planned': result.planned, 'metrics': result.metrics}
  for path, x in jax.tree_util.tree_leaves_with_path(checked):
    assert np.isfinite(np.asarray(x, np.float64)).all(), f'{what}: {jax.tree_util.keystr(path)} is not finite: {x}'


def carried(gradient: dict[str, Any]) -> dict[str, Any]:
  return {name: gradient[name] for name in DIFFERENTIABLE}


def selections(planned: PyTree) -> dict[str, np.ndarray]:
  """Which tokens the plan has switched off or chosen: the zeros of weights, and whatever is bool."""
  found = {}
  for path, x in jax.tree_util.tree_leaves_with_path(planned):
    x = np.asarray(x)
    if follows_sequences(str(path[-1].key)):
      found[jax.tree_util.keystr(path)] = x if x.dtype == bool else x == 0
  return found


class TestConformance:
  """One class for the catalog: each test is an obligation."""

  def test_masked_slots_reach_nothing(self, case: Case):
    result = case.update(case.state, helpers.with_garbage(case.batch))
    finite(result, 'garbage')
    close(result.loss, case.result.loss, 'loss with garbage in masked slots')
    close(result.gradient, case.result.gradient, 'gradient with garbage in masked slots')
    close(result.metrics, case.result.metrics, 'metrics with garbage in masked slots')
    outside_BxT = ~np.asarray(case.batch.mask_BxT)
    for x in jax.tree.leaves(carried(result.gradient)):
      assert not np.asarray(x)[outside_BxT].any(), 'a masked slot has a gradient'

  def test_rows_may_be_permuted(self, case: Case):
    order_B = np.random.default_rng(3).permutation(case.batch.mask_BxT.shape[0])
    result = case.update(case.state, helpers.permuted(case.batch, order_B))
    close(result.loss, case.result.loss, 'loss of permuted rows')
    expected = jax.tree.map(lambda x: x[order_B], case.result.gradient)
    close(result.gradient, expected, 'gradient of permuted rows')
    for key, chosen in selections(case.result.planned).items():
      np.testing.assert_array_equal(selections(result.planned)[key], chosen[order_B], err_msg=f'{key} of permuted rows')

  def test_slices_merge_to_the_batch(self, case: Case):
    late = {key: value for key, value in case.spec.items() if key not in ('rewards', 'advantages')}
    split = splitter(json.dumps(late))(case.result.planned, case.result.prepared)
    for num_slices, (ratio, gradient) in split.items():
      assert ratio.den == case.result.ratio.den, f'denominator merged over {num_slices} slices'
      close(ratio.compute(), case.result.loss, f'loss merged over {num_slices} slices')
      close(gradient, carried(case.result.gradient), f'gradient accumulated over {num_slices} slices')

  def test_devices_and_padding_columns_change_nothing(self, case: Case):
    # Both at once, because each is another program to compile: the batch with masked columns behind it, its rows over 8 devices.
    result = case.update(*on_devices(case.state, helpers.padded(case.batch, 3)))
    close(result.loss, case.result.loss, 'loss on 8 devices, padded')
    num_tokens = case.batch.mask_BxT.shape[1]
    cut = lambda gradient: jax.tree.map(lambda x: x[:, :num_tokens] if x.ndim == 2 else x, gradient)
    close(cut(result.gradient), case.result.gradient, 'gradient on 8 devices, padded')
    close(result.metrics, case.result.metrics, 'metrics on 8 devices, padded')
    for key, chosen in selections(case.result.planned).items():
      found = selections(result.planned)[key]
      np.testing.assert_array_equal(found[:, :num_tokens] if found.ndim == 2 else found, chosen, err_msg=f'{key} on 8 devices, padded')

  def test_degenerate_batches_stay_finite(self, case: Case):
    for what, batch in degenerate(case.batch).items():
      result = case.update(case.state, batch)
      finite(result, what)
      if what == 'all masked':
        assert result.loss == 0
        chex.assert_trees_all_equal(result.gradient, jax.tree.map(jnp.zeros_like, result.gradient))

  def test_bfloat16_is_computed_in_float32(self, case: Case):
    # Traced only: the chain casts at its entry, so what is compiled after it is what the other tests run.
    result = jax.eval_shape(functools.partial(update, case.objective), case.state, helpers.as_bfloat16(case.batch))
    expected = jax.eval_shape(lambda: case.result)
    for name in ('loss', 'ratio', 'planned', 'state', 'metrics'):
      chex.assert_trees_all_equal_shapes_and_dtypes(getattr(result, name), getattr(expected, name))
    assert {x.dtype for x in jax.tree.leaves(carried(result.gradient))} == {jnp.bfloat16.dtype}

  def test_state_keeps_its_structure(self, case: Case):
    def step(state: PyTree, _: None) -> tuple[PyTree, jax.Array]:
      result = update(case.objective, state, case.batch)
      return result.state, result.loss

    initial = case.objective.init(case.batch)
    chex.assert_trees_all_equal_structs(initial, case.state)
    chex.assert_trees_all_equal_shapes_and_dtypes(initial, case.state)
    # The scan raises while it is traced if its carry changes; nothing needs to be compiled for that.
    final, losses = jax.eval_shape(lambda state: jax.lax.scan(step, state, None, length=3), initial)
    chex.assert_trees_all_equal_structs(initial, final)
    assert losses.shape == (3,)

  def test_gradient_reaches_the_current_policy_alone(self, case: Case):
    for name, x in case.result.gradient.items():
      if name not in DIFFERENTIABLE:
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(x)), f'a gradient reaches {name}'
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(carried(case.result.gradient))), 'nothing is learnt'

  @pytest.mark.parametrize('name', [n for n, e in catalog.CATALOG.items() if e.room in ('rewards', 'weights', 'regularizers')])
  def test_it_acts(self, name: str):
    entry = catalog.CATALOG[name]
    plain = plain_gradient(entry.room)
    gradient = make_case(name).result.gradient
    # The plain chain reads no statistic, so every gradient to one is the method's.
    changes = [np.asarray(gradient[field]) - np.asarray(plain[field]) for field in ('logp_BxT', 'entropy_BxT')]
    change = max(np.abs(np.asarray(x)).max() for x in (*changes, *gradient['stats'].values()))
    assert change > 1e-4, f'{name} with {dict(entry.example)} changes no gradient: give an example that acts, or the suite tests a no-op'


@functools.cache
def plain_gradient(room: str) -> dict[str, Any]:
  """The gradient without the method."""
  objective = catalog.build(around(room))
  batch = helpers.token_batch()
  return jax.jit(functools.partial(update, objective), compiler_options=FAST_COMPILE)(objective.init(batch), batch).gradient


def degenerate(batch: TokenBatch) -> dict[str, TokenBatch]:
  """Batches that break careless arithmetic, all of one shape."""
  B, T = batch.mask_BxT.shape
  zero_B, zero_BxT = jnp.zeros(B, jnp.float32), jnp.zeros((B, T), jnp.float32)
  alternate_BxT = jnp.asarray(np.where(np.indices((B, T)).sum(0) % 2 == 0, -0.5, -50.5), jnp.float32)
  opposite_BxT = -51.0 - alternate_BxT
  flat = {'token_reward_BxT': zero_BxT, 'value_BxT': zero_BxT}
  return {
    'empty row': batch.replace(mask_BxT=batch.mask_BxT.at[0].set(False)),
    'all masked': batch.replace(mask_BxT=jnp.zeros_like(batch.mask_BxT)),
    'one token': batch.replace(mask_BxT=jnp.zeros_like(batch.mask_BxT).at[2, 0].set(True)),
    'groups of one': batch.replace(group_B=jnp.arange(B, dtype=jnp.int32)),
    'one group': batch.replace(group_B=jnp.zeros(B, jnp.int32)),
    'equal rewards': batch.replace(reward_B=zero_B + 0.7, baseline_reward_B=zero_B + 0.7, **flat),
    'zero rewards': batch.replace(reward_B=zero_B, baseline_reward_B=zero_B, **flat),
    'log-ratio 50': batch.replace(
      logp_BxT=alternate_BxT, old_logp_BxT=opposite_BxT, ref_logp_BxT=opposite_BxT, sampler_logp_BxT=alternate_BxT
    ),
    'certain tokens': batch.replace(
      logp_BxT=zero_BxT,
      old_logp_BxT=zero_BxT,
      ref_logp_BxT=zero_BxT,
      sampler_logp_BxT=zero_BxT,
      entropy_BxT=zero_BxT,
      old_entropy_BxT=zero_BxT,
      stats=dict.fromkeys(batch.stats, zero_BxT + 1.0),
      old_stats=dict.fromkeys(batch.old_stats, zero_BxT + 1.0),
    ),
    'all truncated': batch.replace(truncated_B=jnp.ones(B, bool)),
  }


def chosen_tokens(name: str, gradient_BxT: np.ndarray, batch: TokenBatch) -> np.ndarray:
  """The selected tokens, read off the gradient of the loss alone: with `reinforce` it is -w A / N plus the penalty's.

  Advantages are continuous, so the surrogate's part is 0 exactly where a weight is; KL-Cov's penalty adds +-1 / N where it acts.
  """
  mask_BxT = np.asarray(batch.mask_BxT)
  scaled_BxT = np.asarray(gradient_BxT, np.float64) * mask_BxT.sum()
  if name == 'kl_cov':
    return mask_BxT & (np.abs(scaled_BxT + np.asarray(batch.advantage_BxT)) > 0.5)
  return mask_BxT & ((scaled_BxT == 0) if name == 'clip_cov' else (scaled_BxT != 0))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
  return np.sum(a & b) / np.sum(a | b)


class TestSelectionIsGlobal:
  """Clip-Cov, KL-Cov and top-entropy act on the same tokens however the batch is split: Jaccard 1.00."""

  SPECS = {
    'clip_cov': {'weights': [{'name': 'clip_cov', 'kwargs': {'fraction': 0.1, 'low_quantile': 0.6, 'high_quantile': 1.0}}]},
    'kl_cov': {'regularizers': [{'name': 'kl_cov', 'kwargs': {'fraction': 0.1, 'coef': 1.0}}]},
    'top_entropy': {'weights': [{'name': 'top_entropy', 'kwargs': {'keep': 0.2}}]},
  }

  def expected(self, name: str, batch: TokenBatch) -> np.ndarray:
    """KL-Cov's and top-entropy's tokens, and Clip-Cov's candidates, by sorting the valid tokens in numpy."""
    mask_BxT = np.asarray(batch.mask_BxT)
    entropy, lp, advantage = (np.asarray(x, np.float64)[mask_BxT] for x in (batch.entropy_BxT, batch.logp_BxT, batch.advantage_BxT))
    score = entropy if name == 'top_entropy' else (advantage - advantage.mean()) * (lp - lp.mean())
    if name == 'clip_cov':
      ratio = np.exp(lp - np.asarray(batch.old_logp_BxT, np.float64)[mask_BxT])
      free = ~((advantage > 0) & (ratio > 2))  # low = high = 1: only a ratio above 2 is clipped, where A > 0
      selected = (score > np.quantile(score, 0.6)) & (score < score.max()) & free
    else:
      num = int(np.ceil(0.2 * score.size)) if name == 'top_entropy' else int(0.1 * score.size)
      selected = score >= np.sort(score)[-num]
    found_BxT = np.zeros(mask_BxT.shape, bool)
    found_BxT[mask_BxT] = selected
    return found_BxT

  @pytest.mark.parametrize('name', SPECS)
  def test_jaccard_is_one_for_any_split(self, name: str):
    objective = catalog.build({'surrogates': [{'name': 'reinforce'}], **self.SPECS[name]})
    batch = helpers.token_batch(seed=5, B=32, T=12)
    state = objective.init(batch)
    compiled = jax.jit(functools.partial(update, objective), compiler_options=FAST_COMPILE)
    whole = compiled(state, batch)
    reference = chosen_tokens(name, whole.gradient['logp_BxT'], batch)

    oracle, num_tokens = self.expected(name, batch), int(np.asarray(batch.mask_BxT).sum())
    if name == 'clip_cov':
      assert reference.sum() == int(0.1 * num_tokens) < oracle.sum()
      assert not (reference & ~oracle).any()
    else:
      np.testing.assert_array_equal(reference, oracle)

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def split(planned: PyTree, prepared: TokenBatch) -> dict[int, jax.Array]:
      return {n: in_slices(objective, planned, prepared, n)[1]['logp_BxT'] for n in (1, 2, 8, 32)}

    gradients = {f'{n} slices': x for n, x in split(whole.planned, whole.prepared).items()}
    gradients['8 devices'] = compiled(*on_devices(state, batch)).gradient['logp_BxT']
    for how, gradient in gradients.items():
      assert jaccard(chosen_tokens(name, gradient, batch), reference) == 1.0, how

  def test_a_selection_by_slice_would_differ(self):
    # The mistake this class guards against: planning inside each slice. It agrees with the batch on half of the tokens here.
    objective = catalog.build({'surrogates': [{'name': 'reinforce'}], **self.SPECS['kl_cov']})
    batch = helpers.token_batch(seed=5, B=32, T=12)
    state = objective.init(batch)

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def alone(start: jax.Array) -> jax.Array:
      return objective.plan(state, take_rows(batch, start, 4))[0]['kl_cov']['chosen_BxT']

    plans = np.concatenate([alone(jnp.int32(start)) for start in range(0, 32, 4)])
    assert jaccard(plans, self.expected('kl_cov', batch)) < 0.6
