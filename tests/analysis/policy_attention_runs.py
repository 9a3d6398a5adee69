"""Made runs of the study of policy entropy and attention entropy: curves with known laws, and a folder of them."""

import json
import pathlib

import numpy as np

from entropy_jax.analysis import policy_attention as study

VARIANTS = ('pre_ln', 'sigma_reparam')
NUM_STEPS = 40


def run(
  *, seed: int, a: float = 0.16, b: float = 1.16, attention_fall: float = 0.3, prediction_noise: float = 0.01, entropy_fall: float = 1.6
) -> dict[str, np.ndarray]:
  """Entropy from 1.7 nats down by `entropy_fall`, success by the law, attention in step with it, predictions with noise."""
  rng = np.random.default_rng(seed)
  noise = lambda size: size * rng.normal(size=NUM_STEPS)
  share = 1.0 - np.exp(-np.linspace(0.0, 4.0, NUM_STEPS))
  entropy = 1.7 - entropy_fall * share
  change = np.diff(entropy, append=entropy[-1:])
  change = change + noise(0.02)
  return {
    'step': np.arange(NUM_STEPS),
    study.POLICY: entropy,
    study.SUCCESS: b - a * np.exp(entropy) + noise(0.01),
    study.ATTENTION: 0.9 - attention_fall * share + noise(0.003),
    'attention/layer_0/entropy': 0.9 - attention_fall * share,
    'attention/layer_1/entropy': np.full(NUM_STEPS, 0.95),
    'attention/largest_logit': np.linspace(2.0, 6.0, NUM_STEPS),
    'attention/sink_rate': np.full(NUM_STEPS, 0.5),
    study.MEASURED: change,
    study.PREDICTED: change + noise(prediction_noise * float(np.std(change))),
    study.COVARIANCE: -change + noise(0.01),
  }


def write(folder: pathlib.Path, *, num_seeds: int = 5, **changes: dict) -> None:
  """A study's folder; changes are of the runs of a variant, by its name."""
  as_predicted = {'sigma_reparam': {'attention_fall': 0.1}, 'pre_ln_held': {'attention_fall': 0.05, 'entropy_fall': 0.1}}
  for name in (*VARIANTS, study.HELD):
    for k in range(num_seeds):
      made = run(seed=100 * len(name) + k, **(as_predicted.get(name, {}) | changes.get(name, {})))
      place = folder / name / f'seed_{k}'
      place.mkdir(parents=True)
      rows = [{key: float(x[i]) if key != 'step' else int(x[i]) for key, x in made.items()} for i in range(NUM_STEPS)]
      (place / 'metrics.jsonl').write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  config = {'variants': {name: {} for name in VARIANTS}, 'num_seeds': num_seeds, 'block': 5, 'num_steps': NUM_STEPS}
  (folder / 'config.json').write_text(json.dumps(config))
  (folder / 'environment.json').write_text('{"jax": "0"}')
