"""sigmaReparam without what transformers are trained with: recipes for images, and deep post-norm encoder-decoders.

Images (`digits`): every recipe of the config, a model with an optimizer, is trained at each learning rate of its grid on a part of the
training set, the rate is chosen on the rest of it, and models from other seeds are trained on all of it and measured on the test set.
Translation: every variant of a narrow encoder-decoder at every depth and learning rate. Criteria are code, in
entropy_jax/analysis/recipes_study.py.

    python -m experiments.sigma_reparam_recipes --config=configs/sigma_reparam_recipes.py --workdir=DIR     # or :tiny

Leaves DIR/report.html (open it), DIR/claims.json, DIR/figures/, and the runs: DIR/digits/RECIPE/{tuning,final}/seed_K and
DIR/translation/VARIANT/depth_D/seed_K. The same command on the same DIR goes on where it stopped.
"""

import functools
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs.sigma_reparam_recipes import PARTS, RANGES
from entropy_jax.analysis import recipes_runs, recipes_study
from entropy_jax.data import digits, examples
from entropy_jax.models.encoder_decoder import EncoderDecoderConfig
from entropy_jax.models.vision import VisionConfig
from entropy_jax.parallel import processes
from entropy_jax.training import app, learners, optimizers, ranges, sweeps, tables, translating
from entropy_jax.training.learners import Batch, Learner
from entropy_jax.training.writers import METRICS
from entropy_jax.types import UserError

# What a recipe or a variant may set: it changes how blocks work, not how large they are.
FIELDS = ('linear', 'gain_init', 'kernel_init', 'norm', 'norm_kind', 'norm_eps', 'qk_norm', 'logit_cap', 'activation')
BLOCK = {'norm_kind': 'layer', 'activation': 'relu'}
HELD_OUT = 2**40  # index of the first sentence pair that no run is trained on
TUNING_SEED = 1_000_000_000  # more than there are seeds
FEW_STEPS = 50  # runs up to so many updates take less than compiling them, and are compiled as what is run once


class Study(NamedTuple):
  """The models that a config asks for: of every recipe, and of every (variant, depth)."""

  recipes: dict[str, VisionConfig]
  deep: dict[tuple[str, int], EncoderDecoderConfig]


def main(config: Any, workdir: pathlib.Path) -> None:
  """Runs whatever of the study is not done yet, then writes claims, figures and the report."""
  started = time.monotonic()
  with processes.agreed():
    study = validate(config)
  run_study(config, study, workdir)
  with processes.agreed():  # so that the others wait for the report
    if jax.process_index() == 0:
      for claim in recipes_study.report(workdir, seconds=time.monotonic() - started):
        print(f'{claim.verdict:>16}  {claim.id}: {claim.value:.3g} [{claim.interval[0]:.3g}, {claim.interval[1]:.3g}]  ({claim.criterion})')
      print(f'report: {workdir / "report.html"}')


def validate(config: Any) -> Study:
  """Every mistake that the config can hold; compiles nothing.

  Raises:
    UserError: key, value and what is allowed.
  """
  plain = app.resolve(config)
  ranges.check(plain, RANGES)
  ranges.check_launch(plain)
  images, pairs = plain['digits'], plain['translation']
  for part in PARTS:
    num_steps, log_every = plain[part]['num_steps'], plain[part]['log_every']
    if num_steps % log_every:
      raise UserError(f'config: {part}.log_every={log_every} does not divide {part}.num_steps={num_steps}; give a divisor.')
  if not images['num_steps'] + pairs['num_steps']:
    raise UserError('config: num_steps=0 of digits and translation leaves nothing to run; give one of them at least 1.')
  if pairs['num_steps'] and pairs['tail'] > pairs['num_steps']:
    raise UserError(f'config: translation.tail={pairs["tail"]} is more than translation.num_steps={pairs["num_steps"]}; give at most that.')
  for depth in pairs['depths']:
    ranges.check_value('translation.depths', depth, 'int [1, inf)')
  for group, baseline in (('digits.recipes', recipes_runs.TUNED), ('translation.variants', recipes_runs.POST)):
    part, names = group.split('.')
    if baseline not in plain[part][names]:
      raise UserError(f'config: {group} has no {baseline}, which all others are compared with; add it.')
  recipes = {name: _vision(name, images) for name in (images['recipes'] if images['num_steps'] else ())}
  deep = {(name, depth): _deep(name, depth, pairs) for name in pairs['variants'] for depth in pairs['depths'] if pairs['num_steps']}
  return Study(recipes, deep)


def _checked(owner: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
  for field in fields:
    if field not in FIELDS:
      raise UserError(f'config: {owner}.{field} is not for it to set; it may set {", ".join(FIELDS)}.')
  return BLOCK | dict(fields)


def _vision(name: str, settings: Mapping[str, Any]) -> VisionConfig:
  owner, recipe = f'digits.recipes.{name}', settings['recipes'][name]
  if sorted(recipe) != ['model', 'optimizer', 'rates']:
    raise UserError(f'config: {owner} has {", ".join(sorted(recipe))}; give model, optimizer and rates.')
  baseline = settings['recipes'][recipes_runs.TUNED]
  if len(recipe['rates']) != len(baseline['rates']):
    sizes = f'{len(recipe["rates"])}, and {len(baseline["rates"])} of {recipes_runs.TUNED}'
    raise UserError(f'config: {owner}.rates has {sizes}; give as many, so that all are tuned alike.')
  with ranges.naming(f'{owner}.optimizer'):
    for rate in recipe['rates']:
      make_optimizer(recipe['optimizer'], rate, settings['num_steps'])
  fields = _checked(f'{owner}.model', recipe['model'])
  with ranges.naming(owner):
    shape = {key: settings[key] for key in ('width', 'num_heads', 'mlp_width', 'num_layers', 'patch_size')}
    return VisionConfig(**shape, image_size=8, channels=1, num_classes=digits.NUM_CLASSES, **fields)


def _deep(name: str, depth: int, settings: Mapping[str, Any]) -> EncoderDecoderConfig:
  owner, pair = f'translation.variants.{name}', recipes_runs.pair_of(settings)
  fields = _checked(owner, settings['variants'][name])
  with ranges.naming(owner):
    return EncoderDecoderConfig(
      **{key: settings[key] for key in ('width', 'num_heads', 'mlp_width')}, num_layers=depth,
      source_vocab_size=pair.source_vocab_size, target_vocab_size=pair.target_vocab_size,
      source_length=pair.source_length, target_length=pair.source_length, tie_embeddings=False, **fields,
    )  # fmt: skip


def make_optimizer(settings: Mapping[str, Any], rate: Any, num_steps: int) -> Any:
  """A recipe's optimizer at a rate, which may be traced, with the cosine decay that all recipes have."""
  given = dict(settings)
  return optimizers.make_optimizer(given.pop('name'), rate, schedule='cosine', num_steps=num_steps, **given)


def image_parts() -> dict[str, tuple[examples.Examples, examples.Examples]]:
  """'tuning' and 'final' -> (what is trained on, what is measured): the validation part has as many images as the test set."""
  whole = digits.read()
  train, test = (digits.split(whole, name) for name in ('train', 'test'))
  cut = len(train.label_R) - len(test.label_R)
  of = lambda part, kept: examples.Examples({'image': part.image_RxHxWxC[kept], 'label': part.label_R[kept]})
  every = slice(None)
  return {'tuning': (of(train, slice(cut)), of(train, slice(cut, None))), 'final': (of(train, every), of(test, every))}


def image_batch(found: Mapping[str, np.ndarray]) -> Batch:
  """Images with levels in [-1, 1]."""
  return learners.classes(jnp.asarray(found['image'] / (digits.MAX_LEVEL / 2) - 1.0, jnp.float32), jnp.asarray(found['label']))


def sentence_batches(settings: Mapping[str, Any], *, seed: int) -> tuple[Batch, Batch]:
  """The batches of every seed, arrays [R, N, B, ...], and those that are measured."""
  pair, R, N, B = recipes_runs.pair_of(settings), settings['num_seeds'], settings['num_steps'], settings['batch_size']
  drawn = [translating.pairs(pair.batch(seed + k, np.arange(N * B)), (N, B)) for k in range(R)]
  held_out = pair.batch(seed, HELD_OUT + np.arange(settings['num_held_out']))
  return jax.tree.map(lambda *x: jnp.stack(x), *drawn), translating.pairs(held_out, (settings['num_held_out'],))


def run_study(config: Any, study: Study, workdir: pathlib.Path) -> None:
  """Every recipe, and every variant at every depth, two of them compiling and running at a time, the deepest first."""
  plain = app.resolve(config)
  jobs: dict[str, Callable[[], None]] = {}
  if study.deep:
    data = sentence_batches(plain['translation'], seed=plain['seed'])
    for name, depth in sorted(study.deep, key=lambda pair: -pair[1]):
      folder = workdir / 'translation' / name / f'depth_{depth}'
      if missing(folder, plain['translation']['num_seeds']):
        jobs[f'translation/{name}/{depth}'] = functools.partial(run_deep, plain, study.deep[name, depth], data, folder)
  if study.recipes:
    parts = image_parts()
    for name, model in study.recipes.items():
      folder = workdir / 'digits' / name
      if missing(folder / 'final', plain['digits']['num_seeds']):
        jobs[f'digits/{name}'] = functools.partial(run_recipe, plain, name, model, parts, folder)
  tables.two_at_a_time(lambda label: jobs[label](), list(jobs), 'recipes and depths, program')


def missing(folder: pathlib.Path, num_seeds: int) -> list[int]:
  """The seeds that have not left their file."""
  return [k for k in range(num_seeds) if not (folder / f'seed_{k}' / METRICS).exists()]


def run_recipe(
  plain: Mapping[str, Any],
  name: str,
  model: VisionConfig,
  parts: Mapping[str, tuple[examples.Examples, examples.Examples]],
  folder: pathlib.Path,
) -> None:
  """One compiled run for all learning rates and seeds, called for each: first to choose the rate, then for the figures."""
  settings, recipe = plain['digits'], plain['digits']['recipes'][name]
  N, log_every = settings['num_steps'], settings['log_every']
  learner = learners.classifier(model)
  start = jax.jit(learner.init, compiler_options=sweeps.compiler_options(once=True))

  @functools.partial(jax.jit, compiler_options=sweeps.compiler_options(once=N <= FEW_STEPS))
  def train(params: Any, rate: jax.Array, batches: Batch, held_out: Batch) -> Any:
    tx = make_optimizer(recipe['optimizer'], rate, N)
    curves = sweeps.train(learner, params, batches, held_out, tx=tx, log_every=log_every)
    return curves._replace(params=()), learner.finish(curves.params)

  def make(part: str, rates: Iterable[float], seeds: Iterable[int], *, first: int) -> None:
    train_on, measured_on = parts[part]
    held_out = image_batch(measured_on.fields)
    for k in seeds:
      rows = examples.scan_rows(train_on, batch_size=settings['batch_size'], seed=plain['seed'] + first + k, num_steps=N)
      batches, params = image_batch(train_on.take(rows)), start(jax.random.fold_in(jax.random.key(plain['seed']), first + k))
      found = [jax.device_get(train(params, jnp.float32(rate), batches, held_out)) for rate in rates]
      curves, final = jax.tree.map(lambda *x: np.stack(x), *found)
      sweeps.write_seed(folder / part / f'seed_{k}' / METRICS, curves, final, list(rates), log_every=log_every)

  shape = {'log_every': log_every, 'num_steps': N}
  make('tuning', recipe['rates'], missing(folder / 'tuning', settings['num_tuning_seeds']), first=TUNING_SEED)
  tuning = recipes_runs.rates_of(folder / 'tuning', recipe['rates'], num_seeds=settings['num_tuning_seeds'], **shape)
  make('final', [float(tuning.rate_K[recipes_runs.chosen(tuning)])], missing(folder / 'final', settings['num_seeds']), first=0)


def run_deep(plain: Mapping[str, Any], model: EncoderDecoderConfig, data: tuple[Batch, Batch], folder: pathlib.Path) -> None:
  """One compiled program for all learning rates and seeds."""
  settings = plain['translation']
  learner: Learner = translating.translator(model)
  key_R = jax.vmap(lambda k: jax.random.fold_in(jax.random.key(plain['seed']), k))(jnp.arange(settings['num_seeds']))
  adam = functools.partial(optimizers.make_optimizer, 'adam', b1=settings['b1'], b2=settings['b2'])
  train = functools.partial(
    sweeps.sweep, learner, make_optimizer=adam, log_every=settings['log_every'], at_a_time=sweeps.runs_at_a_time()
  )  # fmt: skip
  params_R = jax.jit(jax.vmap(learner.init), compiler_options=sweeps.compiler_options(once=True))(key_R)
  options = sweeps.compiler_options(once=settings['num_steps'] <= FEW_STEPS)
  curves = jax.jit(train, compiler_options=options)(params_R, jnp.asarray(settings['rates'], jnp.float32), *data)
  found = jax.device_get(curves._replace(params=()))
  for k in missing(folder, settings['num_seeds']):
    file = folder / f'seed_{k}' / METRICS
    sweeps.write_seed(file, sweeps.of_seed(found, k), {}, settings['rates'], log_every=settings['log_every'])


if __name__ == '__main__':
  app.run(main)
