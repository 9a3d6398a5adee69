"""One variant of a model trained at many learning rates and from many seeds in one compiled program, without a host sync inside.

The program is a scan over updates, mapped over runs; the learning rate is a traced number, so that all rates share it. A run that diverges
stays not finite to its end, in its own numbers alone, and they are kept as they are: what diverged is a result of a sweep.

For studies: `sweep` for rates and seeds of one learner, or `train` under `over_runs` for other settings, compiled with `compiler_options`;
`of_seed` and `write_seed` then leave a run folder a seed, whose columns `column` names.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_jax.training import tables
from entropy_jax.training.files import write_atomically
from entropy_jax.training.learners import Learner
from entropy_jax.training.writers import format_row
from entropy_jax.types import Metrics, Params, PyTree, UserError

LOSS = 'loss'
# A learning rate, which may be traced -> the optimizer that uses it.
MakeOptimizer = Callable[[Any], optax.GradientTransformation]


class Curves(NamedTuple):
  """What runs leave; [...] are the axes of the runs, [R seeds, K rates] of a `sweep`.

  Attributes:
    loss_xN: loss of every update's batch, before the update; NaN or inf as it came.
    logged: name -> [..., C] or, for what every layer has, [..., C, L]: column c after (c + 1) log_every updates.
    params: of the trained models.
  """

  loss_xN: jax.Array
  logged: Metrics
  params: Params


def train(
  learner: Learner, params: Params, batches_N: PyTree, held_out: PyTree, *, tx: optax.GradientTransformation, log_every: int
) -> Curves:
  """One run: an update for every batch, then `advance`, a measure after every log_every of them.

  Args:
    learner: model and loss.
    params: at the start.
    batches_N: pytree of arrays with N as first axis, a multiple of log_every: the batches in their order.
    held_out: the batch that is measured.
    tx: optimizer; it sees the vectors u of reparametrised maps with gradient 0.
    log_every: updates between two measures.
  """
  num_steps = jax.tree.leaves(batches_N)[0].shape[0]
  if not 1 <= log_every <= num_steps or num_steps % log_every:
    raise UserError(f'log_every={log_every} does not divide num_steps={num_steps}; give a divisor, so that the last measure is of the end.')
  State = tuple[Params, optax.OptState]

  def update(state: State, batch: PyTree) -> tuple[State, jax.Array]:
    params, opt_state = state
    loss, grads = jax.value_and_grad(learner.loss)(params, batch)
    updates, opt_state = tx.update(grads, opt_state, params)
    return (learner.advance(optax.apply_updates(params, updates)), opt_state), loss

  def stretch(state: State, batches_E: PyTree) -> tuple[State, tuple[jax.Array, Metrics]]:
    state, loss_E = jax.lax.scan(update, state, batches_E)
    return state, (loss_E, learner.measure(state[0], held_out))

  stretches = jax.tree.map(lambda x: x.reshape(num_steps // log_every, log_every, *x.shape[1:]), batches_N)
  (params, _), (loss_CxE, logged) = jax.lax.scan(stretch, (params, tx.init(params)), stretches)
  return Curves(loss_CxE.reshape(-1), logged, params)


def sweep(
  learner: Learner,
  params_R: Params,
  rate_K: jax.Array,
  batches_RxN: PyTree,
  held_out: PyTree,
  *,
  make_optimizer: MakeOptimizer,
  log_every: int,
  at_a_time: int | None = None,
) -> Curves:
  """Every seed at every learning rate.

  Args:
    learner: model and loss.
    params_R: initial parameters of every seed, arrays [R, ...]; a seed starts from the same ones at every rate.
    rate_K: float32, the learning rates.
    batches_RxN: the batches of every seed, pytree of arrays [R, N, ...].
    held_out: the batch that is measured, the same for all runs.
    make_optimizer: rate -> optimizer.
    log_every: updates between two measures, a divisor of N.
    at_a_time: runs side by side; None for all, which keeps an accelerator busy. On a processor 1 is fastest: one run fits its caches.

  Returns:
    Curves with axes [R, K].
  """

  def one(index: jax.Array, rate: jax.Array) -> Curves:
    params, batches = jax.tree.map(lambda x: x[index], (params_R, batches_RxN))
    return train(learner, params, batches, held_out, tx=make_optimizer(rate), log_every=log_every)

  return over_runs(one, jax.tree.leaves(params_R)[0].shape[0], rate_K, at_a_time=at_a_time)


def over_runs(one: Callable[[jax.Array, Any], PyTree], num_seeds: int, setting_K: PyTree, *, at_a_time: int | None = None) -> PyTree:
  """one(index of the seed, setting) of every seed at every setting, in one program.

  Args:
    one: pure.
    num_seeds: R.
    setting_K: pytree of arrays with K as first axis.
    at_a_time: as of `sweep`.

  Returns:
    What one returns, with axes [R, K] before its own.
  """
  R, K = num_seeds, jax.tree.leaves(setting_K)[0].shape[0]
  runs = (jnp.repeat(jnp.arange(R), K), jax.tree.map(lambda x: jnp.tile(x, (R, *[1] * (x.ndim - 1))), setting_K))
  if at_a_time is None:
    found = jax.vmap(one)(*runs)
  else:
    found = jax.lax.map(lambda run: one(*run), runs, batch_size=None if at_a_time == 1 else at_a_time)
  return jax.tree.map(lambda x: x.reshape(R, K, *x.shape[1:]), found)


def of_seed(found: PyTree, seed: int) -> PyTree:
  """The part of one seed of arrays [R, ...]."""
  return jax.tree.map(lambda x: x[seed], found)


def compiler_options(*, once: bool = False) -> dict[str, Any] | None:
  """`tables.compiler_options`, and on a CPU each program on one thread: the products are small, and two programs run at a time.

  Args:
    once: for a program that is run once and does little, such as the start of all parameters, where compiling is all the time there is.
  """
  options = tables.compiler_options()
  if options is None:
    return None
  return options | {'xla_cpu_multi_thread_eigen': False} | ({'xla_backend_optimization_level': 0} if once else {})


def runs_at_a_time() -> int | None:
  """`at_a_time` of this machine: 1 on a CPU, all elsewhere."""
  return 1 if jax.default_backend() == 'cpu' else None


def column(run: float | str, name: str) -> str:
  """The key in metrics.jsonl of what belongs to one learning rate, or to the setting of that name."""
  return f'{run}/{name}' if isinstance(run, str) else f'rate_{run:g}/{name}'


def write_seed(file: pathlib.Path, curves: Curves, final: Metrics, rates: Sequence[float | str], *, log_every: int) -> None:
  """One seed of a sweep, curves [K, ...] and what is said of the trained models [K], as metrics.jsonl: row n is after n updates.

  Of each learning rate, or each setting by its name, as `column` has it.

  Row n has the loss of the batch that update n + 1 is made from; every log_every-th row has what is logged, and the last one `final/` too.
  Where one measure more is logged, the first of them is of the start, row 0. What every layer has is `layer_I/NAME`. A number that is not
  finite is null: it was measured, and this is what came out.
  """
  loss_KxN = np.asarray(curves.loss_xN)
  num_steps = loss_KxN.shape[1]
  rows: list[dict[str, Any]] = [{} for _ in range(num_steps + 1)]
  for k, rate in enumerate(rates):
    for n in range(num_steps):
      rows[n][column(rate, LOSS)] = loss_KxN[k, n]
    for name, values in curves.logged.items():
      for c, value in enumerate(np.asarray(values)[k]):
        named: Mapping[str, Any] = {name: value} if not value.ndim else {f'layer_{i}/{name}': x for i, x in enumerate(value)}
        rows[num_steps - (len(values[k]) - 1 - c) * log_every] |= {column(rate, key): x for key, x in named.items()}
    rows[num_steps] |= {column(rate, f'final/{name}'): np.asarray(values)[k] for name, values in final.items()}
  finite: list[dict[str, Any]] = [{key: float(x) if np.isfinite(x) else None for key, x in row.items()} for row in rows]
  text = ''.join(format_row(n, row) + '\n' for n, row in enumerate(finite))
  file.parent.mkdir(parents=True, exist_ok=True)
  if jax.process_index() == 0:  # each process computes the sweep, on its own devices
    write_atomically(file, text)
