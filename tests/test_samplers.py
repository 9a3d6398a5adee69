"""The catalog of the samplers: named data comes in the stated order, and every sampler has its row."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import document
from entropy_jax.catalog.samplers import SAMPLERS, TABLE, build
from entropy_jax.methods import samplers
from entropy_jax.types import UserError

Z = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))


def kept(sampler):
  return np.flatnonzero(np.asarray(jax.jit(sampler.bind(sampler.init()))(Z))[0] > -np.inf).tolist()


class TestBuild:
  def test_names_come_in_the_stated_order(self):
    # Chained as it is written, top-p would act before top-k: three tokens, and not two.
    spec = {'top_p': {'p': 0.75}, 'top_k': {'k': 3}}
    assert kept(build(spec)) == [0, 1]
    assert kept(build([{'name': name, 'kwargs': kwargs} for name, kwargs in spec.items()])) == [0, 1, 2]

  def test_defaults_and_nothing(self):
    assert kept(build([{'name': 'top_h'}])) == kept(samplers.top_h()) == kept(build({'top_h': {}}))
    assert kept(build({})) == kept(build([])) == [0, 1, 2, 3]

  def test_the_order_of_the_table(self):
    truncations = ['top_h', 'top_k', 'top_p', 'min_p', 'typical', 'epsilon', 'eta']  # as in Hugging Face's generate
    assert [row.name for row in TABLE] == list(SAMPLERS) == ['dual_temperature', 'adaptive_temperature', *truncations]
    assert all(getattr(samplers, name) is row.factory for name, row in SAMPLERS.items())
    made = {name for name in samplers.__all__ if f'{name}_logits' in samplers.__all__} | {'adaptive_temperature'}
    assert set(SAMPLERS) == made

  @pytest.mark.parametrize('name', SAMPLERS)
  def test_rows_agree_with_the_code(self, name):
    row, text = SAMPLERS[name], inspect.getdoc(getattr(samplers, f'{name}_logits', samplers.entropy_scaled_logits))
    assert set(row.defaults()) == set(row.ranges)
    build({name: row.defaults()})
    assert ('UNCONFIRMED' in text) is not row.confirmed
    if 'arXiv' not in row.reference and not row.reference.startswith('usual'):
      assert row.reference.split(',')[0].split(':')[0] in ' '.join(text.split())

  def test_methods_md_lists_them(self):
    section = document.markdown().split('\n## Samplers\n')[1]
    lines = {line.split('`')[1]: line for line in section.splitlines() if line.startswith('| `')}
    assert list(lines) == list(SAMPLERS)
    for name, row in SAMPLERS.items():
      assert all(f'`{key} = ' in lines[name] for key in row.defaults())
      assert len(re.findall(r'(?<!\\)\|', lines[name])) == 6, 'five cells, every other bar escaped'

  @pytest.mark.parametrize(
    'spec, message',
    [
      ({'topp': {}}, "there is no 'topp'; there are dual_temperature, .*Did you mean 'top_p'?"),
      ({'top_p': 0.9}, 'top_p=0.9 is not a dict of hyper-parameters'),
      ({'top_p': {'k': 3}}, "'k' is no hyper-parameter of top_p; allowed: p."),
      ({'top_p': {'p': 2.0}}, r'top_p: p=2.0 is outside \(0, 1\]'),
      ('top_p', "'top_p' is no description of samplers"),
      (['top_p'], "'top_p' in a list is no sampler"),
      ([{'name': 'top_p', 'p': 0.9}], 'in a list is no sampler'),
    ],
  )
  def test_mistakes(self, spec, message):
    with pytest.raises(UserError, match=message):
      build(spec)
