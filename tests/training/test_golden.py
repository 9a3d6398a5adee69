"""Golden curve: three rollouts of a composed objective, to the digit. A change here is a change of the numbers that users get.

To regenerate, after making sure that the new numbers are the right ones: `python -m tests.training.test_golden`; the commit says why.
"""

import json
import pathlib

import jax
import numpy as np
import optax

from entropy_jax import catalog
from entropy_jax.data import fork_tokens
from entropy_jax.training import scanned

FILE = pathlib.Path(__file__).resolve().parents[1] / 'golden' / 'fork_tokens.json'
NAMES = ('exact/success', 'exact/entropy_all', 'exact/entropy_fork', 'update/loss', 'update/gradient_norm', 'policy/kl_from_behaviour')
SPEC = {
  'advantages': [{'name': 'grpo'}],
  'weights': [{'name': 'clip_cov', 'kwargs': {'fraction': 0.02, 'low_quantile': 0.9, 'cov_high': 1e9}}],
  'surrogates': [{'name': 'ppo_clip', 'kwargs': {'low': 0.2, 'high': 0.28}}],
  'regularizers': [
    {'name': 'kl_cov', 'kwargs': {'fraction': 0.02, 'coef': 1.0}},
    {'name': 'adaptive_entropy', 'kwargs': {'target': 3.0, 'initial': 0.01}},
  ],
}


def curves() -> dict[str, list[float]]:
  study = lambda key: scanned.run(
    fork_tokens.make, key, objective=catalog.build(SPEC), tx=optax.sgd(20.0), num_steps=3, group_size=16, num_epochs=2
  )
  found = jax.jit(study, compiler_options={'xla_backend_optimization_level': 0})(jax.random.key(0))
  return {name: [float(x) for x in found[name]] for name in NAMES}


class TestGolden:
  def test_curve(self):
    golden = json.loads(FILE.read_text())
    found = curves()
    for name in NAMES:
      np.testing.assert_allclose(
        found[name], golden['curves'][name], rtol=2e-4, atol=1e-6, err_msg=f'{name} (made with {golden["versions"]}): see the docstring'
      )


if __name__ == '__main__':
  FILE.write_text(json.dumps({'versions': {'jax': jax.__version__}, 'curves': curves()}, indent=1) + '\n')
