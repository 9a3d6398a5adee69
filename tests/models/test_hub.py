"""Weights of Hugging Face folders; benchmarks/versus_transformers.py compares with the library itself."""

import dataclasses
import functools
import json
import re
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from safetensors.numpy import load_file, save_file

from entropy_jax import parallel
from entropy_jax.layers.attention import RopeScaling
from entropy_jax.models import hub, hub_files, transformer
from entropy_jax.parallel import rules
from entropy_jax.types import UserError
from tests.models import hub_folders
from tests.models.hub_folders import CONFIGS

TOKENS = np.random.default_rng(1).integers(0, 24, 30).astype(np.int32)
BFLOAT16 = jnp.bfloat16
ALL = slice(None)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tmp_path_factory.mktemp('hub')


@functools.cache
def weights(name, dtype=np.float32):
  return hub_folders.tensors(hub_folders.config(name), dtype)


def folder_of(root, name, dtype=np.float32, files=1):
  path = root / f'{name} {np.dtype(dtype).name} {files}'
  return path if path.exists() else hub_folders.write(path, hub_folders.config(name), weights(name, dtype), files)


def all_tensors(folder):
  return {name: value for file in folder.glob('*.safetensors') for name, value in load_file(file).items()}


def assert_same_bits(got, want):
  assert set(got) == set(want)
  for name, value in want.items():
    assert got[name].dtype == value.dtype and got[name].shape == value.shape, name
    assert got[name].tobytes() == value.tobytes(), name


def paths(params):
  return {rules.path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


class TestLoad:
  @pytest.mark.parametrize('name', CONFIGS)
  def test_logits_against_numpy(self, root, name):
    config, params = hub.load(folder_of(root, name))
    policy = transformer.transformer_policy(config)
    # Two of left padding: a shift of the slots, not of the positions.
    tokens = jnp.asarray(np.concatenate([[0, 0], TOKENS]))[None].astype(jnp.int32)
    logits = jax.jit(policy.logits)(params, tokens, (jnp.arange(32) >= 2)[None])
    want = hub_folders.forward(hub_folders.config(name), weights(name), TOKENS)
    assert np.abs(want).max() > 1
    np.testing.assert_allclose(logits[0, 2:], want, atol=1e-4)

  def test_the_scaling_of_positions_is_heard(self):
    plain = hub_folders.config('llama', rope_scaling=None)
    with_it = hub_folders.forward(hub_folders.config('llama'), weights('llama'), TOKENS)
    assert np.abs(with_it - hub_folders.forward(plain, weights('llama'), TOKENS)).max() > 0.1

  def test_several_files_are_the_same_model(self, root):
    _, one = hub.load(folder_of(root, 'llama'))
    _, many = hub.load(folder_of(root, 'llama', files=3))
    jax.tree.map(np.testing.assert_array_equal, one, many)

  @pytest.mark.parametrize('dtype', [BFLOAT16, np.float16])
  def test_half_precision_is_widened_exactly(self, root, dtype):
    _, params = hub.load(folder_of(root, 'qwen2', dtype))
    up = params['block_1']['mlp']['up']['kernel']
    want = weights('qwen2', dtype)['model.layers.1.mlp.up_proj.weight'].astype(np.float32).T
    assert up.dtype == jnp.float32
    np.testing.assert_array_equal(up, want)

  def test_parameters_may_stay_in_half_precision(self, root):
    folder = folder_of(root, 'qwen3', BFLOAT16)
    config, params = hub.load(folder, dtype='bfloat16', param_dtype='bfloat16')
    assert config.dtype == 'bfloat16' and {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(BFLOAT16)}
    logits = jax.jit(transformer.transformer_policy(config).logits)(params, TOKENS[None], jnp.ones((1, 30), bool))
    want = hub_folders.forward(hub_folders.config('qwen3'), weights('qwen3', BFLOAT16), TOKENS)
    assert np.abs(logits[0] - want).max() < 0.1 * np.abs(want).max()
    with pytest.raises(UserError, match="param_dtype='float64' is not one of float32, bfloat16"):
      hub.load(folder, param_dtype='float64')

  def test_a_head_that_repeats_the_embedding_is_no_mistake(self, root):
    values = weights('qwen2 tied')
    c = hub_folders.config('qwen2 tied')
    same = values | {'lm_head.weight': values['model.embed_tokens.weight']}
    _, params = hub.load(hub_folders.write(root / 'repeated', c, same))
    assert 'unembed' not in params
    other = values | {'lm_head.weight': values['model.embed_tokens.weight'] + np.float32(1e-6)}
    with pytest.raises(UserError, match=r'tie_word_embeddings is true, but lm_head.weight is another matrix'):
      hub.load(hub_folders.write(root / 'repeated otherwise', c, other))

  def test_old_tables_of_frequencies_are_passed_over(self, root):
    values = weights('llama') | {'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(2, np.float32)}
    hub.load(hub_folders.write(root / 'old tables', hub_folders.config('llama'), values))


class TestShards:
  """Over 8 devices: every device reads its part, and the parts are the model."""

  @staticmethod
  def sharded(tree):
    return rules.shardings(tree, Mesh(np.array(jax.devices()), (rules.DATA,), axis_types=(AxisType.Auto,)))

  @pytest.mark.parametrize('name', ['qwen2', 'llama tied'])
  def test_is_the_model_of_one_device(self, root, name):
    folder = folder_of(root, name, BFLOAT16, files=2)
    config, params = hub.load(folder, shardings=self.sharded)
    _, whole = hub.load(folder)
    jax.tree.map(np.testing.assert_array_equal, params, whole)
    jax.tree.map(lambda x, s: np.testing.assert_equal(x.sharding, s), params, self.sharded(whole))
    up = params['block_0']['mlp']['up']['kernel']
    assert [shard.data.shape for shard in up.addressable_shards] == [(2, 24)] * 8
    mask = jnp.ones((1, 30), bool)
    logits = jax.jit(transformer.transformer_policy(config).logits)(params, TOKENS[None], mask)
    want = hub_folders.forward(hub_folders.config(name), weights(name, BFLOAT16), TOKENS)
    np.testing.assert_allclose(logits[0], want, atol=1e-4)

  @pytest.mark.parametrize('name', ['pmap', 'fsdp', 'jit'])
  def test_goes_where_a_parallel_mode_keeps_it(self, root, name):
    mode = parallel.make(name, 0)
    _, params = hub.load(folder_of(root, 'qwen2'), shardings=mode.shardings)
    up = params['block_0']['mlp']['up']['kernel']
    parts = {'pmap': ((16, 24), 8), 'fsdp': ((2, 24), 8), 'jit': ((16, 24), 1)}[name]
    assert ({shard.data.shape for shard in up.addressable_shards}, len(up.addressable_shards)) == ({parts[0]}, parts[1])
    np.testing.assert_array_equal(up, weights('qwen2')['model.layers.0.mlp.up_proj.weight'].T)

  def test_each_device_reads_its_part_and_no_more(self, root, monkeypatch):
    reads = []
    real = hub_files.Tensors.read
    monkeypatch.setattr(hub_files.Tensors, 'read', lambda self, name, index: reads.append((name, index)) or real(self, name, index))
    hub.load(folder_of(root, 'qwen2'), shardings=self.sharded)
    at = lambda name: [index for read, index in reads if read == name]
    shards = [slice(i, i + 2, 1) for i in range(0, 16, 2)]
    # [outputs, inputs] in the folder: inputs are cut, or outputs of what goes back to the stream.
    assert at('model.layers.1.mlp.up_proj.weight') == [(slice(0, 24, 1), shard) for shard in shards]
    assert at('model.layers.1.mlp.down_proj.weight') == [(shard, slice(0, 24, 1)) for shard in shards]
    assert at('model.embed_tokens.weight') == [(slice(0, 24, 1), shard) for shard in shards]
    assert at('model.norm.weight') == [(slice(0, 16, 1),)]  # everywhere, and read once

  def test_exported_as_it_was(self, root):
    folder = folder_of(root, 'qwen2', files=2)
    config, params = hub.load(folder, shardings=self.sharded)
    hub.save(root / 'of 8 devices', config, params, source=folder)
    assert_same_bits(all_tensors(root / 'of 8 devices'), weights('qwen2'))


@pytest.fixture(scope='module')
def big(root):
  """An embedding of 1 MB in float32, and 10 MB more."""
  sizes = {'vocab_size': 2048, 'hidden_size': 128, 'intermediate_size': 512, 'num_hidden_layers': 10, 'tie_word_embeddings': True}
  c = hub_folders.config('llama', **sizes)
  return hub_folders.write(root / 'big', c, hub_folders.tensors(c, BFLOAT16), files=3)


class TestMemory:
  """The host holds one tensor at a time, and of that what a device does; traced are the arrays that numpy and safetensors make."""

  @staticmethod
  def peak(act):
    """Bytes beyond those that stay: on a processor an array that happens to lie right becomes the parameter without a copy."""
    tracemalloc.start()
    try:
      made = act()
      kept, peak = tracemalloc.get_traced_memory()
      del made
      return peak - kept
    finally:
      tracemalloc.stop()

  def test_of_loading(self, big):
    largest = 2048 * 128 * 4  # the embedding, in float32; half of that in the file
    for shardings in (None, TestShards.sharded):
      load = functools.partial(hub.load, big, shardings=shardings)
      assert sum(leaf.nbytes for leaf in jax.tree.leaves(load()[1])) > 10 * largest
      # Of 8 devices each has an eighth, but all 8 are made before they are sent. The rest is of objects that are no arrays.
      assert self.peak(load) < 1.5 * largest + 400_000

  def test_of_saving(self, big, root):
    config, params = hub.load(big)
    for name in ('traces and imports what it needs', 'saved'):
      peak = self.peak(functools.partial(hub.save, root / name, config, params, shard_bytes=2_000_000))
    assert peak < 2 * 2048 * 128 * 4 + 400_000
    assert len(list((root / 'saved').glob('*.safetensors'))) > 4


class TestSave:
  @pytest.mark.parametrize('files', [1, 3])
  @pytest.mark.parametrize('dtype', [np.float32, BFLOAT16, np.float16])
  @pytest.mark.parametrize('name', CONFIGS)
  def test_round_trip_is_bitwise(self, root, tmp_path, name, dtype, files):
    folder = folder_of(root, name, dtype, files)
    config, params = hub.load(folder)
    copy = tmp_path / 'copy'
    hub.save(copy, config, params, source=folder, dtype=np.dtype(dtype).name, shard_bytes=10**9 if files == 1 else 2_000)
    assert len(list(copy.glob('*.safetensors'))) >= files
    assert_same_bits(all_tensors(copy), weights(name, dtype))
    there, again = json.loads((folder / 'config.json').read_text()), json.loads((copy / 'config.json').read_text())
    assert again == there | {'torch_dtype': np.dtype(dtype).name}
    back_config, back = hub.load(copy)
    assert back_config == config
    jax.tree.map(np.testing.assert_array_equal, back, params)

  @pytest.mark.parametrize(
    'changes',
    [
      {'qkv_bias': True},
      {'qk_norm': 'rms', 'head_dim': 6, 'tie_embeddings': False},
      {'rope_scaling': RopeScaling(factor=4.0, original_max_position=16), 'norm_eps': 1e-5, 'num_kv_heads': 2},
    ],
    ids=['Qwen2', 'Qwen3', 'Llama'],
  )
  def test_a_decoder_of_ours_comes_back(self, tmp_path, changes):
    base = transformer.DecoderConfig(vocab_size=20, width=16, num_layers=2, num_heads=4, mlp_width=24, max_length=32, kernel_init='vision')
    config = dataclasses.replace(base, **changes)
    policy, rng = transformer.transformer_policy(config), np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), jax.eval_shape(policy.init, jax.random.key(0)))
    hub.save(tmp_path / 'new', config, params, keys={'eos_token_id': 2})
    assert json.loads((tmp_path / 'new' / 'config.json').read_text())['eos_token_id'] == 2
    back_config, back = hub.load(tmp_path / 'new')
    want = dataclasses.replace(config, num_kv_heads=config.kv_heads, head_dim=config.head_size, kernel_init='fan_in')
    assert back_config == want
    jax.tree.map(np.testing.assert_array_equal, back, params)

  def test_the_files_of_the_tokenizer_come_along(self, root, tmp_path):
    source = tmp_path / 'source'
    shutil.copytree(folder_of(root, 'mistral'), source)
    for name in ('tokenizer.json', 'chat_template.jinja', 'generation_config.json', 'pytorch_model.bin'):
      (source / name).write_text(f'this is {name}')
    config, params = hub.load(source, max_length=20)
    hub.save(tmp_path / 'copy', config, params, source=source, dtype='bfloat16')
    names = {path.name for path in (tmp_path / 'copy').iterdir()}
    assert names == {'config.json', 'model.safetensors', 'tokenizer.json', 'chat_template.jinja', 'generation_config.json'}
    assert (tmp_path / 'copy' / 'tokenizer.json').read_text() == 'this is tokenizer.json'
    raw = json.loads((tmp_path / 'copy' / 'config.json').read_text())
    assert raw['max_position_embeddings'] == 64  # of the model, not of this use of it
    assert raw['architectures'] == ['MistralForCausalLM'] and raw['torch_dtype'] == 'bfloat16'

  def test_refused(self, root, tmp_path, monkeypatch):
    folder = folder_of(root, 'qwen2')
    config, params = hub.load(folder)
    save = functools.partial(hub.save, tmp_path / 'new', config)
    with pytest.raises(UserError, match=r"hub.save: dtype='int8' is not one of float32, bfloat16, float16"):
      save(params, dtype='int8')
    with pytest.raises(UserError, match=r'shard_bytes is 0: give a positive'):
      save(params, shard_bytes=0)
    with pytest.raises(UserError, match='is there already: give a folder that is new or empty'):
      hub.save(folder, config, params)
    with pytest.raises(UserError, match='params: embed is missing'):
      save({name: x for name, x in params.items() if name != 'embed'})
    with pytest.raises(UserError, match=r'params: embed has shape \[3, 16\] and not \[24, 16\]'):
      save(params | {'embed': jnp.zeros((3, 16))})
    with pytest.raises(UserError, match='params: lora/a are none of a decoder with this config: merge or drop'):
      save(params | {'lora': {'a': jnp.zeros(3)}})
    with pytest.raises(UserError, match=r'num_layers is 2 and that of .* 3: give the folder the model came from'):
      other = hub_folders.write(tmp_path / 'other', hub_folders.config('qwen2', num_hidden_layers=3), weights('qwen2'))
      save(params, source=other)
    with pytest.raises(UserError, match=r'dtype is float16, and model.norm.weight holds numbers beyond 65504'):
      save(params | {'final_norm': {'scale': jnp.full(16, 1e5)}}, dtype='float16')
    assert not (tmp_path / 'new').exists() and not (tmp_path / 'new.partial').exists()

  def test_what_is_half_written_is_no_folder(self, root, tmp_path, monkeypatch):
    config, params = hub.load(folder_of(root, 'qwen2'))
    monkeypatch.setattr(hub_files, 'write', lambda *a, **k: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError, match='No space left'):
      hub.save(tmp_path / 'new', config, params)
    assert list(tmp_path.iterdir()) == []


def without(name):
  return lambda values: values.pop(name)


def added(name, value):
  return lambda values: values.update({name: value})


UP = 'model.layers.1.mlp.up_proj.weight'
BAD_TENSORS = {
  'missing': (without(UP), rf'it lacks {UP}; fetch the weights'),
  'many missing': (lambda v: [v.pop(n) for n in list(v) if 'layers.1' in n], r'it lacks model.layers.1\S+, .* and 7 more; fetch'),
  'no head': (without('lm_head.weight'), 'it lacks lm_head.weight; fetch the whole model, or set tie_word_embeddings to true'),
  'extra': (added('model.layers.2.mlp.up_proj.weight', np.zeros(3, np.float32)), r'it has no use for model.layers.2.mlp.up_proj.weight;'),
  'misshapen': (added(UP, np.zeros((16, 24), np.float32)), rf'{UP} is \[16, 24\] and not \[24, 16\];'),
  'quantised': (added(UP, np.zeros((24, 16), np.int8)), rf'{UP} is I8, no float of 16 or 32;'),
  'two at once': (
    lambda v: (v.pop('model.norm.weight'), v.update(gain=np.zeros(2, np.float32))),
    'it lacks model.norm.weight; it has no use for gain; fetch',
  ),
}


class TestBadFolders:
  @staticmethod
  def refused(folder, text, **options):
    with pytest.raises(UserError, match=text) as found:
      hub.load(folder, **options)
    said = str(found.value).partition(' Did you mean')[0]
    assert '\n' not in said and said.endswith('.') and re.search(r'[.] [A-Z]', said) is None

  @pytest.mark.parametrize('case', BAD_TENSORS)
  def test_tensors(self, tmp_path, case):
    change, text = BAD_TENSORS[case]
    values = dict(weights('qwen2'))
    change(values)
    folder = hub_folders.write(tmp_path / 'bad', hub_folders.config('qwen2'), values)
    self.refused(folder, text)

  def test_nothing_is_read_of_a_wrong_folder(self, tmp_path, monkeypatch):
    values = dict(weights('qwen2'))
    values.pop(UP)
    monkeypatch.setattr(hub_files.Tensors, 'read', lambda *a: pytest.fail('values were read'))
    self.refused(hub_folders.write(tmp_path / 'bad', hub_folders.config('qwen2'), values), 'it lacks')

  def test_another_architecture(self, tmp_path):
    folder = hub_folders.write(tmp_path / 'bad', hub_folders.config('llama', architectures=['GemmaForCausalLM']), weights('llama'))
    self.refused(folder, "the architecture is 'GemmaForCausalLM': only Qwen2ForCausalLM, .* can be read")

  def test_weights_of_another_architecture(self, tmp_path):
    folder = hub_folders.write(tmp_path / 'bad', hub_folders.config('llama', rope_scaling=None), weights('qwen2'))
    self.refused(folder, r'it has no use for model.layers.0.self_attn.k_proj.bias, .* and 1 more;')

  def test_no_folder(self, tmp_path):
    self.refused(tmp_path / 'nowhere', r'nowhere is no folder: give a Hugging Face model folder that lies here')
    (tmp_path / 'empty').mkdir()
    self.refused(tmp_path / 'empty', r'config.json does not exist')

  def test_pickles_are_never_opened(self, root, tmp_path):
    folder = tmp_path / 'pickled'
    folder.mkdir()
    shutil.copy(folder_of(root, 'qwen2') / 'config.json', folder)
    self.refused(folder, 'holds neither model.safetensors nor model.safetensors.index.json')
    for name in ('pytorch_model.bin', 'consolidated.00.pth'):
      (folder / name).write_bytes(b'\x80\x04cposix\nsystem\n')
    self.refused(folder, r'holds consolidated.00.pth, pytorch_model.bin and no model.safetensors: only safetensors is read')

  def test_a_sliding_window(self, tmp_path):
    folder = hub_folders.write(tmp_path / 'bad', hub_folders.config('mistral', sliding_window=40), weights('mistral'))
    self.refused(folder, r'sliding_window is 40 and max_length 64: give max_length=40 or less')
    config, _ = hub.load(folder, max_length=40)
    assert config.max_length == 40
    self.refused(folder, r'max_length is 65: .* allows 1 to 64 positions', max_length=65)

  def test_damaged_files(self, root, tmp_path):
    folder = tmp_path / 'damaged'
    shutil.copytree(folder_of(root, 'qwen2'), folder)
    whole = (folder / 'model.safetensors').read_bytes()
    for bad in (whole[:-10], whole[:4], b'', b'\xff' * 200, whole + b'more'):
      (folder / 'model.safetensors').write_bytes(bad)
      self.refused(folder, r'model.safetensors is no whole safetensors file \(.*\): fetch it again')

  def test_damaged_indices(self, root, tmp_path):
    folder = tmp_path / 'damaged'
    shutil.copytree(folder_of(root, 'qwen2', files=3), folder)
    index = folder / 'model.safetensors.index.json'
    whole = json.loads(index.read_text())['weight_map']
    bad = {
      '{': 'model.safetensors.index.json is no JSON',
      '[]': 'holds a list and no JSON object',
      '{"weight_map": {}}': 'weight_map is no table',
      json.dumps({'weight_map': {'a': 1}}): 'weight_map is no table',
      json.dumps({'weight_map': whole | {'a': '../model.safetensors'}}): r'weight_map names ../model.safetensors: only safetensors files',
      json.dumps({'weight_map': whole | {'a': 'model.bin'}}): r'weight_map names model.bin: only safetensors files of the same folder',
      json.dumps({'weight_map': whole | {'a': 'm-9.safetensors'}}): r'names m-9.safetensors, which are not there: fetch them',
    }
    for text, message in bad.items():
      index.write_text(text)
      self.refused(folder, message)
    index.write_text(json.dumps({'weight_map': whole}))
    twice = folder / 'model-00001-of-00003.safetensors'
    save_file(load_file(twice) | {UP: weights('qwen2')[UP], 'model.norm.weight': weights('qwen2')['model.norm.weight']}, twice)
    self.refused(folder, r'stands in model-00001-of-00003.safetensors and in model-0000[23]-of-00003.safetensors')
