"""The lower bound of attention entropy against rows of attention from random, trained and adversarial weights.

Every row's entropy is held against the bound in each of its forms: from the weights and all tokens, from the weights and the tokens that a
causal query sees, from queries and keys, and from the row itself. Adversarial rows come from gradient descent on the entropy, on the sphere
of logits, through queries' and keys' weights, and through the tokens too; the layer that attains the bound is built as well. Tolerances and
criteria are code, in entropy_jax/analysis/attention_bound.py. A row below its bound ends the run with an error, after the report.

    python -m experiments.attention_bound --config=configs/attention_bound.py --workdir=DIR     # or :tiny

Leaves DIR/report.html (open it), DIR/claims.json, DIR/figures/, and DIR/SOURCE/PART/, each with metrics.jsonl (a row a cell) and rows.npz
(a number a row of attention). The same command on the same DIR does the parts that are missing.
"""

import functools
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs.attention_bound import RANGES
from entropy_jax.analysis import attention_bound as study
from entropy_jax.analysis import attention_bound_report
from entropy_jax.layers import attention as layers
from entropy_jax.measures import attention, attention_bound
from entropy_jax.models.transformer import Decoder, DecoderConfig
from entropy_jax.ops import categorical, spectral
from entropy_jax.parallel import processes
from entropy_jax.training import app, loop, ranges, tables
from entropy_jax.types import Params, UserError

Measured = dict[str, jax.Array]  # 'entropy', 'num_keys', 'counted' and some of study.FORMS, all of one shape
Found = tuple[Mapping[str, np.ndarray], list[dict[str, float]]]  # rows with a leading axis of cells, and what each cell is
NUM_HELD = 64  # sequences that the loss of a trained decoder is measured on


def main(config: Any, workdir: pathlib.Path) -> None:
  """Measures whatever part is not there yet, then writes claims, figures and the report."""
  started = time.monotonic()
  with processes.agreed():
    missing = {place: part for place, part in validate(config).items() if not study.is_done(workdir / place)}

  def run(place: str) -> None:
    measured, cells = missing[place]()
    if jax.process_index() == 0:
      study.save(workdir / place, measured, cells)

  if missing:
    tables.two_at_a_time(run, list(missing), 'attention rows, part')
  with processes.agreed():  # so that the others wait for the report
    if jax.process_index() == 0:
      claims = attention_bound_report.report(workdir, seconds=time.monotonic() - started)
      for claim in claims:
        print(f'{claim.verdict:>16}  {claim.id}: {claim.value:.3g}  ({claim.criterion})')
      print(f'report: {workdir / "report.html"}')
      study.check(claims)


def validate(config: Any) -> dict[str, Callable[[], Found]]:
  """The parts of the study by their place in the workdir; every mistake that the config can hold is found, nothing is compiled.

  Raises:
    UserError: key, value and what is allowed.
  """
  plain = app.resolve(config)
  ranges.check(plain, RANGES)
  ranges.check_launch(plain)
  key = jax.random.key(plain['seed'])
  parts: dict[str, Callable[[], Found]] = {'tight/layers': functools.partial(tight, key, plain['tight'])}
  for name in ('random', 'adversarial'):
    for i, shape in enumerate(plain[name]['shapes']):
      _check_shape(f'{name}.shapes[{i}]', shape)
  for name in ('adversarial', 'trained'):
    ranges.check_divides(f'{name}.num_snapshots', plain[name]['num_snapshots'], plain[name]['num_steps'], 'steps')
  trained = plain['trained']
  with ranges.naming('trained.decoder'):
    decoders = {kind: decoder_of(trained, kind) for kind in ('learned', 'rotary')}
  for kind, decoder in decoders.items():
    parts |= _trainings(kind, decoder, plain, slice(0, 1))
  for shape in plain['random']['shapes']:
    parts[f'random/{_name(shape)}'] = functools.partial(at_random, key, plain['random'], **shape)
  for shape in plain['adversarial']['shapes']:
    for search in SEARCHES:
      parts[f'adversarial/{search}_{_name(shape)}'] = functools.partial(descend, key, plain['adversarial'], search=search, **shape)
  for kind, decoder in decoders.items():  # last, when the program of the first rate, which is theirs too, is in the cache of compiled ones
    parts |= _trainings(kind, decoder, plain, slice(1, None))
  return parts


def _trainings(kind: str, decoder: DecoderConfig, plain: Mapping[str, Any], which: slice) -> dict[str, Callable[[], Found]]:
  rates, settings = plain['trained'][f'{kind}_rates'][which], plain['trained']
  return {f'trained/{kind}_{rate:g}': functools.partial(train, plain['seed'], settings, decoder, rate) for rate in rates}


def _name(shape: Mapping[str, int]) -> str:
  return '_'.join(str(shape[key]) for key in study.SHAPE)


def _check_shape(key: str, shape: Mapping[str, Any]) -> None:
  if set(shape) != set(study.SHAPE):
    raise UserError(f'config: {key} has the names {", ".join(sorted(shape))}; give {", ".join(study.SHAPE)}.')
  for name, value in shape.items():
    least = 2 if name == 'num_tokens' else 1
    ranges.check_value(f'{key}.{name}', value, f'int [{least}, inf)')
  if shape['head_dim'] > shape['width']:
    raise UserError(f'config: {key}.head_dim={shape["head_dim"]} is more than its width ({shape["width"]}); give at most that.')


def decoder_of(settings: Mapping[str, Any], positions: str) -> DecoderConfig:
  """The decoder to be trained; the theorem is about plain maps, logits that are products, and nothing between them and the softmax."""
  given = {'positions': positions, **settings['decoder']}
  decoder = DecoderConfig(vocab_size=settings['vocab_size'], **given)
  changed = {'linear': 'dense', 'norm': 'pre', 'qkv_bias': False, 'qk_norm': None, 'logit_cap': None, 'sink': False, 'dtype': 'float32'}
  changed |= {'softmax_temperature': None, 'entropy_abf_window': None, 'positions': positions, 'num_kv_heads': None}
  for name, value in changed.items():
    if getattr(decoder, name) != value:
      raise UserError(f'{name} is {getattr(decoder, name)!r}: this study holds logits against X W_Q W_K^T X^T; leave it out.')
  return decoder


# --- rows of one layer ------------------------------------------------------------------------------------------------


def measure(
  x_BxTxD: jax.Array,
  query_DxHxK: jax.Array,
  key_DxHxK: jax.Array,
  real_BxT: jax.Array,
  *,
  is_causal: bool,
  turn: layers.Rotation | None = None,
) -> tuple[Measured, jax.Array, jax.Array]:
  """(rows [B, H, T], logits_BxHxTxT, mask_BxTxT) of a layer that reads x; with a rotation there are no forms from the weights."""
  q, k = (jnp.einsum('BTD,DHK->BHTK', x_BxTxD, w, precision='highest') for w in (query_DxHxK, key_DxHxK))
  if turn is not None:
    q, k = layers.rotate(q, turn), layers.rotate(k, turn)
  logits, mask = layers.attention_logits(q, k), (layers.causal_mask if is_causal else layers.full_mask)(real_BxT)
  rows = {'query_key': attention_bound.query_key_scale(q, k, real_BxT, causal=is_causal), **of_logits(logits, mask, real_BxT)}
  if turn is None:
    scale = functools.partial(attention_bound.weight_scale, x_BxTxD, query_DxHxK, key_DxHxK, real_BxT)
    rows['weights_whole'] = scale(causal=False)
    rows['weights'] = scale(causal=True) if is_causal else rows['weights_whole']
  return rows, logits, mask


def of_logits(logits_BxHxQxK: jax.Array, mask_BxQxK: jax.Array, real_BxQ: jax.Array) -> Measured:
  """Entropy, number of keys, whether the row counts, and its centred norm, [B, H, Q]; a row that sees one key says nothing."""
  entropy = attention.attention_entropy(logits_BxHxQxK, mask_BxQxK)
  num_keys = jnp.sum(mask_BxQxK, axis=-1)
  spread = lambda x_BxQ: jnp.broadcast_to(x_BxQ[:, None], entropy.shape)
  centred = attention_bound.centred_row_norm(logits_BxHxQxK, mask_BxQxK)
  return {'entropy': entropy, 'num_keys': spread(num_keys), 'counted': spread(real_BxQ & (num_keys > 1)), 'centred': centred}


def _part_key(key: jax.Array, *names: str | int) -> jax.Array:
  for name in names:
    key = jax.random.fold_in(key, name if isinstance(name, int) else sum(map(ord, name)))
  return key


def _run(function: Callable[..., Any], *arguments: Any) -> Any:
  """The function compiled for these arguments; its results as numpy arrays."""
  return jax.device_get(jax.jit(function, compiler_options=tables.compiler_options())(*arguments))


# --- sources ----------------------------------------------------------------------------------------------------------


def at_random(key: jax.Array, settings: Mapping[str, Any], *, num_tokens: int, width: int, head_dim: int) -> Found:
  """Normal weights and tokens, scaled to each s; full and causal, without and with padding, which is on the left as in prompts."""
  B, H, T = settings['num_sequences'], settings['num_heads'], num_tokens
  num_draws = -(-settings['rows_per_cell'] // (B * H * T))

  def draw(key: jax.Array, s: jax.Array, is_padded: jax.Array, *, is_causal: bool) -> Measured:
    of_query, of_key, of_x, of_spread, of_size, of_length = jax.random.split(key, 6)
    query, weights = (jax.random.normal(k, (width, H, head_dim)) for k in (of_query, of_key))
    query = query * (head_dim**0.5 / attention_bound.head_norm(query, weights))[None, :, None]
    length_B = jax.random.randint(of_length, (B,), T // 2, T + 1)
    real = (jnp.arange(T)[None] >= T - length_B[:, None]) | ~is_padded
    size_BxT = jnp.exp(settings['spread'] * jax.random.uniform(of_spread, (B, 1)) * jax.random.normal(of_size, (B, T)))
    x = jnp.where(real[..., None], size_BxT[..., None] * jax.random.normal(of_x, (B, T, width)), 0.0)
    norm_B = spectral.spectral_norm(x)
    return measure(x * (jnp.sqrt(s) / norm_B)[:, None, None], query, weights, real, is_causal=is_causal)[0]

  found, cells = [], []
  for is_causal in (False, True):
    cases = [(s, is_padded) for s in settings['s'] for is_padded in (False, True)]
    keys = jax.random.split(_part_key(key, 'random', T, width, head_dim, int(is_causal)), (len(cases), num_draws))
    flat = lambda values: jnp.repeat(jnp.asarray(values), num_draws)
    one = lambda given, is_causal=is_causal: draw(*given, is_causal=is_causal)
    inputs = (keys.reshape(-1), flat([s for s, _ in cases]), flat([padded for _, padded in cases]))
    rows = _run(lambda inputs, one=one: jax.lax.map(one, inputs), inputs)
    found.append({name: x.reshape(len(cases), -1) for name, x in rows.items()})
    cells += [{'s': s, 'is_padded': float(padded), 'is_causal': float(is_causal)} for s, padded in cases]
  shape = {'num_tokens': T, 'width': width, 'head_dim': head_dim}
  return {name: np.concatenate([part[name] for part in found]) for name in found[0]}, [cell | shape for cell in cells]


def tight(key: jax.Array, settings: Mapping[str, Any]) -> Found:
  """The first row of the layer that attains the bound, for every number of tokens, s and frame."""
  frames = [None, *jax.random.split(_part_key(key, 'tight'), settings['num_frames'] - 1)]
  found, cells = [], []
  for T in settings['num_tokens']:
    built = [[attention_bound.tight_example(T, s, width=8, key=frame) for frame in frames] for s in settings['s']]
    flat = [example for row in built for example in row]

    def first(x: jax.Array, query: jax.Array, weights: jax.Array, T: int = T) -> Measured:
      rows = measure(x[None], query, weights, jnp.ones((1, T), bool), is_causal=False)[0]  # head_dim is 1: no scale
      return {name: value[0, 0, 0] for name, value in rows.items()}

    rows = _run(jax.vmap(first), *(jnp.stack(arrays) for arrays in zip(*flat)))
    found.append({name: x.reshape(len(built), -1) for name, x in rows.items()})
    cells += [{'num_tokens': T, 's': s} for s in settings['s']]
  return {name: np.concatenate([part[name] for part in found]) for name in found[0]}, cells


def _sphere(params: Params, s: jax.Array) -> tuple[jax.Array, Measured]:
  """One row of T logits with norm s: a query with those logits, and keys that are the axes."""
  row_T = params['row'] * (s / jnp.linalg.norm(params['row']))
  num_keys = row_T.shape[0]
  rows = of_logits(row_T[None, None, None], jnp.ones((1, 1, num_keys), bool), jnp.ones((1, 1), bool))
  keys = jnp.eye(num_keys)[None, None]
  rows['query_key'] = attention_bound.query_key_scale(
    row_T[None, None, None], keys, jnp.ones((1, num_keys), bool), causal=False, logit_scale=1.0
  )
  return jnp.log(rows['entropy'][0, 0, 0]), rows


def _layer(params: Params, s: jax.Array, *, through_tokens: bool) -> tuple[jax.Array, Measured]:
  """A layer of one head scaled to s: its mean log-entropy for the tokens given, or that of its first row through them too."""
  x = (params['x'] if through_tokens else jax.lax.stop_gradient(params['x']))[None]
  real = jnp.ones(x.shape[:2], bool)
  now = attention_bound.weight_scale(x, params['query'], params['key'], real, causal=False)[0, 0, 0]
  rows = measure(x, params['query'] * (s / now), params['key'], real, is_causal=False)[0]
  log_entropy_T = jnp.log(rows['entropy'][0, 0])
  return log_entropy_T[0] if through_tokens else jnp.mean(log_entropy_T), rows


SEARCHES: dict[str, Callable[[Params, jax.Array], tuple[jax.Array, Measured]]] = {
  'sphere': _sphere,
  'weights': functools.partial(_layer, through_tokens=False),
  'tokens': functools.partial(_layer, through_tokens=True),
}


def descend(key: jax.Array, settings: Mapping[str, Any], *, search: str, num_tokens: int, width: int, head_dim: int) -> Found:
  """Adam on the log-entropy from random starts at every s; the rows of the starts and of every snapshot on the way down."""
  objective, num_snapshots, num_steps = SEARCHES[search], settings['num_snapshots'], settings['num_steps']
  tx = optax.adam(optax.cosine_decay_schedule(settings['learning_rate'], num_steps))

  def start(key: jax.Array) -> Params:
    of_x, of_query, of_key = jax.random.split(key, 3)
    if search == 'sphere':
      return {'row': jax.random.normal(of_x, (num_tokens,))}
    query, weights = (jax.random.normal(k, (width, 1, head_dim)) for k in (of_query, of_key))
    return {'x': jax.random.normal(of_x, (num_tokens, width)), 'query': query, 'key': weights}

  every = num_steps // num_snapshots

  def one(key: jax.Array, s: jax.Array) -> Measured:
    def step(_: jax.Array, carry: Any) -> Any:
      params, state = carry
      updates, state = tx.update(jax.grad(objective, has_aux=True)(params, s)[0], state)
      return optax.apply_updates(params, updates), state

    def snapshot(carry: Any, i: jax.Array) -> tuple[Any, Measured]:
      # The first snapshot is that of the start, and nothing comes after the last.
      return jax.lax.fori_loop(0, jnp.where(i < num_snapshots, every, 0), step, carry), objective(carry[0], s)[1]

    params = start(key)
    return jax.lax.scan(snapshot, (params, tx.init(params)), jnp.arange(num_snapshots + 1))[1]

  s_S = np.asarray(settings['s'], np.float32)
  key = _part_key(key, 'adversarial', search, num_tokens, width, head_dim)
  keys = jax.random.split(key, (s_S.size, settings['num_starts']))
  rows = _run(jax.vmap(jax.vmap(one, (0, None))), keys, s_S)
  shape = {'num_tokens': num_tokens, 'width': width, 'head_dim': head_dim}
  return {name: x.reshape(s_S.size, -1) for name, x in rows.items()}, [{'s': float(s)} | shape for s in settings['s']]


def unigrams(seed: int, num_sequences: int, length: int, *, vocab_size: int, concentration: float) -> np.ndarray:
  """In-context unigrams, int32 [B, N]: each sequence draws a distribution from Dirichlet(concentration), and its tokens from that."""
  rng = np.random.default_rng(seed)
  edges_BxV = np.cumsum(rng.dirichlet(np.full(vocab_size, concentration), num_sequences), axis=1)
  tokens = [np.searchsorted(edges_V, rng.random(length)) for edges_V in edges_BxV]
  return np.minimum(tokens, vocab_size - 1).astype(np.int32)  # the last edge may be below 1 by rounding


def train(seed: int, settings: Mapping[str, Any], decoder: DecoderConfig, rate: float) -> Found:
  """A decoder that learns in-context unigrams without warmup: every layer's rows before it starts and at each snapshot."""
  num_steps, num_snapshots, B = settings['num_steps'], settings['num_snapshots'], settings['num_sequences']
  length, task = decoder.max_length, {name: settings[name] for name in ('vocab_size', 'concentration')}
  batches = unigrams(seed, num_steps * settings['batch_size'], length, **task).reshape(num_steps, -1, length)
  held, shown = np.split(unigrams(seed + 1, NUM_HELD + B, length, **task), [NUM_HELD])
  left_B = np.where(np.arange(B) < B // 2, np.random.default_rng(seed).integers(1, length // 2 + 1, B), 0)
  given = (batches, held, shown, np.arange(length) >= left_B[:, None])
  rows, summary = _run(_train_program(decoder, num_steps // num_snapshots, num_snapshots), jax.random.key(seed), jnp.float32(rate), *given)
  for name, values in summary.items():
    if not np.all(np.isfinite(values)):
      raise loop.NonFiniteError(f'trained with learning rate {rate:g}: {name} is not finite; give smaller rates.')
  steps = range(0, num_steps + 1, num_steps // num_snapshots)
  cells = [{'step': step, **{name: float(values[i]) for name, values in summary.items()}} for i, step in enumerate(steps)]
  return {name: x.reshape(num_snapshots + 1, -1) for name, x in rows.items()}, cells


def _train_program(decoder: DecoderConfig, every: int, num_snapshots: int) -> Callable[..., tuple[Measured, Measured]]:
  """The whole run as one program, with the learning rate as one of its inputs."""
  model = Decoder(decoder)

  def loss(params: Params, tokens_BxN: jax.Array) -> jax.Array:
    logits = model.apply({'params': params}, tokens_BxN, jnp.ones_like(tokens_BxN, bool))
    return -jnp.mean(categorical.token_log_prob(logits[:, :-1], tokens_BxN[:, 1:]))

  def whole_run(
    key: jax.Array, rate: jax.Array, batch_SxBxN: jax.Array, held_BxN: jax.Array, shown_BxN: jax.Array, real_BxN: jax.Array
  ) -> tuple[Measured, Measured]:
    tx = optax.adam(rate, b2=0.98)

    def step(index: jax.Array, carry: Any) -> Any:
      params, state = carry
      updates, state = tx.update(jax.grad(loss)(params, batch_SxBxN[index]), state)
      return optax.apply_updates(params, updates), state

    def snapshot(carry: Any, i: jax.Array) -> tuple[Any, tuple[Measured, Measured]]:
      rows, summary = decoder_rows(model, carry[0], shown_BxN, real_BxN)
      seen = rows, {'loss': loss(carry[0], held_BxN), **summary}
      return jax.lax.fori_loop(i * every, jnp.where(i < num_snapshots, (i + 1) * every, 0), step, carry), seen

    params = model.init(key, held_BxN[:1], jnp.ones((1, decoder.max_length), bool))['params']
    return jax.lax.scan(snapshot, (params, tx.init(params)), jnp.arange(num_snapshots + 1))[1]

  return whole_run


def decoder_rows(model: Decoder, params: Params, tokens_BxN: jax.Array, real_BxN: jax.Array) -> tuple[Measured, Measured]:
  """The rows of every layer, [L, B, H, N], from the logits that the decoder itself attends with, and a summary of them.

  The forms of the bound come from what its projections read and from its kernels. `logits_error` is how far the decoder's logits are from
  the products of those, over the largest of them.
  """
  c = model.config
  _, sown = model.apply(
    {'params': params}, tokens_BxN, real_BxN, method='hidden', mutable=['attention', 'intermediates'],
    capture_intermediates=lambda module, _: module.name == 'attention_norm',
  )  # fmt: skip
  names, turn = [f'block_{i}' for i in range(c.num_layers)], None
  if c.positions == 'rotary':
    frequencies = layers.rotary_frequencies(c.head_size, theta=c.rope_theta, scaling=c.rope_scaling)
    turn = layers.rotation(layers.positions(real_BxN), frequencies)
  stacked = lambda leaf: jnp.stack([leaf(name) for name in names])
  x = stacked(lambda name: sown['intermediates'][name]['attention_norm']['__call__'][0])
  shape = (c.width, c.num_heads, c.head_size)
  query, key = (stacked(lambda name, w=w: params[name]['attention'][w]['kernel'].reshape(shape)) for w in ('query', 'key'))
  logits = stacked(lambda name: sown['attention'][name]['attention']['logits'][0])
  forms, products, mask_LxBxQxK = jax.vmap(lambda x, q, k: measure(x, q, k, real_BxN, is_causal=True, turn=turn))(x, query, key)
  mask = mask_LxBxQxK[0]
  rows = forms | jax.vmap(lambda z: of_logits(z, mask, real_BxN))(logits)
  normalised = attention.normalised_entropy(rows['entropy'], mask, real_BxN)
  seen = jnp.broadcast_to((mask & real_BxN[:, :, None])[None, :, None], logits.shape)
  error = jnp.max(jnp.where(seen, jnp.abs(products - logits), 0.0)) / jnp.max(jnp.where(seen, jnp.abs(logits), 0.0))
  by_layer = attention.over_heads(normalised)
  return rows, {
    'normalised_entropy': by_layer.num.sum() / by_layer.den.sum(),
    'lowest_layer_entropy': jnp.min(by_layer.compute()),
    'largest_logit': jnp.max(attention.largest_logit(logits, mask, real_BxN)),
    'logits_error': error,
  }


if __name__ == '__main__':
  # On a processor jaxlib splits batches of eigenvalue problems over XLA's pool of threads and waits for them on threads of that pool: as
  # many batches at a time as it has threads would wait for ever. With one thread no batch is split.
  os.environ.setdefault('PJRT_NPROC', '1')
  app.run(main)
