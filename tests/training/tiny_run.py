"""A run so small that it is all overhead: noisy linear regression with adam. As a script it kills itself at a named moment."""

import functools
import os
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_jax.training import checkpoints, loop

NUM_STEPS = 12
TX = optax.adam(0.1)


class Batches:
  """The k-th batch is a function of k; the state counts what was handed out."""

  def __init__(self):
    self.position = 0

  def next(self):
    rng = np.random.default_rng(self.position)
    self.position += 1
    return {'x': rng.normal(size=(4, 3)).astype(np.float32)}

  def get_state(self):
    return {'position': self.position}

  def set_state(self, state):
    self.position = state['position']


class Poisoned(Batches):
  """The same, but the batches of these steps make a loss that is not finite."""

  def __init__(self, *steps):
    super().__init__()
    self.steps = steps

  def next(self):
    batch = super().next()
    if self.position - 1 in self.steps:
      batch['x'][0, 0] = np.inf
    return batch


def start():
  params = {'w': jnp.ones((3,), jnp.float32), 'half': jnp.ones((2,), jnp.bfloat16)}
  return {'params': params, 'opt': TX.init(params), 'count': jnp.zeros((), jnp.int32), 'key': jax.random.key(5)}


@functools.partial(jax.jit, donate_argnums=0)
def step(state, batch, key):
  def loss(params):
    noise_B = jax.random.normal(key, (4,))
    return jnp.mean((batch['x'] @ params['w'] - noise_B) ** 2) + jnp.sum(params['half'].astype(jnp.float32) ** 2)

  value, grads = jax.value_and_grad(loss)(state['params'])
  updates, opt = TX.update(grads, state['opt'], state['params'])
  state = {**state, 'params': optax.apply_updates(state['params'], updates), 'opt': opt, 'count': state['count'] + 1}
  counts = {'tokens/scored': jnp.int32(16), 'rollout/num_sequences': jnp.int32(4)}
  return state, {'loss': value, 'gradient_norm': optax.tree.norm(grads), **counts}


@jax.jit
def guarded(state, batch, key):
  """The step that keeps what is not finite out of the parameters, as training.step does; its third result is what it used."""
  after, metrics = step(state, batch, key)
  fine = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['gradient_norm'])
  kept = {name: jax.tree.map(lambda new, old: jnp.where(fine, new, old), after[name], state[name]) for name in ('params', 'opt')}
  return {**after, **kept}, metrics | {'update/rejected': 1.0 - fine}, {'doubled': 2 * batch['x'], 'key': key}


@jax.jit
def evaluate(state, key):
  return {'eval/score': jnp.sum(state['params']['w']) + 0.01 * jax.random.normal(key), 'eval/big': jnp.bool_(True)}


def run(workdir, **changes):
  """Trains; `changes` replace arguments of loop.train."""
  arguments = {
    'workdir': workdir,
    'num_steps': NUM_STEPS,
    'state': start(),
    'body': step,
    'data': Batches(),
    'key': jax.random.key(0),
    'checkpoint_every': 4,
    'evaluate': evaluate,
    'evaluate_every': 2,
    'best': ('eval/score', 'max'),
    'progress': 'silent',
    'tensorboard': False,
  }
  return loop.train(**(arguments | changes))


def bits(state):
  """Every leaf as its dtype and bytes."""
  leaves = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(state)]
  return [(str(x.dtype), x.shape, np.asarray(x).tobytes()) for x in leaves]


def kill_self(*unused, **unused_too):
  os.kill(os.getpid(), signal.SIGKILL)


def main(workdir, moment):
  if moment == 'before manifest':  # orbax has committed step 8
    whole = checkpoints.write_atomically
    checkpoints.write_atomically = lambda path, text: kill_self() if path.parent.name == '8' else whole(path, text)
    run(workdir)
  elif moment == 'in first save':
    checkpoints.write_atomically = kill_self
    run(workdir)
  elif moment == 'after row':  # rows up to 9 are flushed to the disk, the newest checkpoint is of step 8, and a row is torn
    def on_metrics(step, row):
      if step == 9:
        with open(os.path.join(workdir, 'metrics.jsonl'), 'a', encoding='utf-8') as file:
          file.write('{"step": 8, "loss": 1.0}\n{"step": 9, "lo')
        kill_self()
    run(workdir, on_metrics=on_metrics)
  elif moment == 'terminated':
    def body(state, batch, key):
      if int(state['count']) == 6:
        os.kill(os.getpid(), signal.SIGTERM)
      return step(state, batch, key)
    run(workdir, body=body)


if __name__ == '__main__':
  main(*sys.argv[1:])
