"""Datasets by name: the two that are made here, and stand-ins on disk for the large ones."""

import io
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from entropy_jax.data import digits, examples, named_sets, source_bytes, tfds_builders
from entropy_jax.types import UserError

LARGE = ('cifar10', 'imagenet2012', 'lm1b', 'wmt14', 'wmt17')


def png(image_HxWxC: np.ndarray) -> io.BytesIO:
  file = io.BytesIO()
  Image.fromarray(image_HxWxC).save(file, 'PNG')
  return io.BytesIO(file.getvalue())


def write(name: str, features: dict, records: list[dict], data_dir: pathlib.Path, config: str | None = None) -> None:
  """A dataset of this name on disk, as the `tfds` command would leave it."""
  with tfds.core.registered.skip_registration():

    class Stand(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version('3.0.0')
      BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []
      code_path = None

      def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True)

      def _split_generators(self, dl_manager):
        return {'train': self._generate_examples()}

      def _generate_examples(self):
        yield from enumerate(records)

  Stand.name = name
  Stand(data_dir=str(data_dir), file_format='array_record', **({'config': config} if config else {})).download_and_prepare()


class TestNamedSet:
  def test_names_and_suggestion(self):
    assert set(named_sets.SETS) == {'digits', 'source_bytes', *LARGE}
    with pytest.raises(UserError, match=r"dataset='cifar': is not one of digits, .*Did you mean 'cifar10'"):
      named_sets.named_set('cifar')


class TestLoadDigits:
  def test_is_the_split_scaled(self, tmp_path):
    rows = named_sets.load('digits', 'test', tmp_path)
    expected = digits.split(digits.read(), 'test')
    np.testing.assert_allclose(rows.fields['image_BxHxWxC'], expected.image_RxHxWxC / 16.0, rtol=1e-6)
    np.testing.assert_array_equal(rows.fields['label_B'], expected.label_R)
    assert (rows.fields['image_BxHxWxC'].dtype, rows.fields['label_B'].dtype) == (np.float32, np.int32)
    first = named_sets.load('digits', 'test[:10]', tmp_path)
    np.testing.assert_array_equal(first.fields['label_B'], expected.label_R[:10])
    with pytest.raises(UserError, match=r"split='validation': digits has the splits"):
      named_sets.load('digits', 'validation', tmp_path)


class TestLoadSourceBytes:
  @pytest.fixture
  def data_dir(self, tmp_path, monkeypatch):
    """Where a corpus of 40 files, 4 of them of the test split, stands for the standard library."""
    root = tmp_path / 'library'
    root.mkdir()
    for i in range(40):
      (root / f'{i:02d}.py').write_text(f'{i}\n')
    config = tfds_builders.SourceBytesConfig(name='stdlib', root=root)
    monkeypatch.setattr(tfds_builders.SourceBytes, 'builder_configs', {'stdlib': config})
    return tmp_path / 'data'

  def test_rows_are_those_of_the_files(self, data_dir, tmp_path):
    rows = named_sets.load('source_bytes', 'train', data_dir, length=5)
    files = source_bytes.split_files(source_bytes.read(tmp_path / 'library'), 'train')
    np.testing.assert_array_equal(rows.fields['tokens_BxN'], source_bytes.chunks(files, 5))
    assert rows.fields['tokens_BxN'].dtype == np.int32
    text = ''.join(source_bytes.decode(row) for row in rows.fields['tokens_BxN'])
    assert text == ''.join(file.content.decode() for file in files)[: len(text)]

  def test_metadata_name_python_and_files(self, data_dir, tmp_path):
    tfds_builders.prepare('source_bytes/stdlib', data_dir)
    metadata = tfds_builders.prepare('source_bytes/stdlib', data_dir).info.metadata  # of what lies on disk
    assert metadata['digest'] == source_bytes.digest(source_bytes.read(tmp_path / 'library'))
    assert metadata['python'].startswith('3.')

  def test_what_is_prepared_is_read_although_the_library_has_changed(self, data_dir, tmp_path):
    before = named_sets.load('source_bytes', 'train', data_dir, length=5)
    for path in (tmp_path / 'library').iterdir():
      path.write_text(path.read_text().replace('\n', '!'))  # as long as before
    assert named_sets.load('source_bytes', 'train', data_dir, length=5).digest == before.digest
    # A run resumed over another corpus, prepared elsewhere, is refused.
    after = named_sets.load('source_bytes', 'train', tmp_path / 'elsewhere', length=5)
    state = examples.training_batches(before, batch_size=2, seed=0).get_state()
    with pytest.raises(UserError, match='state: belongs to pipeline'):
      examples.training_batches(after, batch_size=2, seed=0).set_state(state)

  @pytest.mark.parametrize('length', [None, 0, 1000])
  def test_refuses_length(self, data_dir, length):
    with pytest.raises(UserError, match=f'length={length}'):
      named_sets.load('source_bytes', 'train', data_dir, length=length)


class TestLoadLarge:
  @pytest.mark.parametrize('name', LARGE)
  def test_says_what_to_do_where_it_is_not_prepared(self, tmp_path, name):
    with pytest.raises(UserError) as caught:
      named_sets.load(name, 'train', tmp_path, length=8)
    tfds_name = named_sets.SETS[name].tfds_name
    assert str(caught.value) == (
      f"dataset='{tfds_name}': is a TFDS dataset that is not prepared in data_dir; run "
      f'`tfds build {tfds_name} --file_format=array_record --data_dir={tmp_path}` where TensorFlow is installed.'
    )

  def test_images(self, tmp_path):
    image_RxHxWxC = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    features = {'image': tfds.features.Image(shape=(32, 32, 3)), 'label': tfds.features.ClassLabel(num_classes=10)}
    write('cifar10', features, [{'image': png(image), 'label': 7 - i} for i, image in enumerate(image_RxHxWxC)], tmp_path)
    batch = named_sets.load('cifar10', 'train', tmp_path).take(np.array([2, 0]))
    np.testing.assert_allclose(batch['image_BxHxWxC'], image_RxHxWxC[[2, 0]] / 255.0, rtol=1e-6)
    assert batch['label_B'].tolist() == [5, 7]
    assert (batch['image_BxHxWxC'].dtype, batch['label_B'].dtype) == (np.float32, np.int32)

  def test_images_of_many_sizes(self, tmp_path):
    # The middle square of each is one colour, so what is resized is known; the margins are black.
    wide, tall = np.zeros((6, 10, 3), np.uint8), np.zeros((9, 5, 3), np.uint8)
    wide[:, 2:8], tall[2:7] = 100, 200
    features = {'image': tfds.features.Image(shape=(None, None, 3)), 'label': tfds.features.ClassLabel(num_classes=1000)}
    write('imagenet2012', features, [{'image': png(image), 'label': 999} for image in (wide, tall)], tmp_path)
    rows = named_sets.load('imagenet2012', 'train', tmp_path, image_size=4)
    batch = rows.take(np.arange(2))
    colours = np.array([100, 200])[:, None, None, None] / 255.0
    np.testing.assert_allclose(batch['image_BxHxWxC'], np.broadcast_to(colours, (2, 4, 4, 3)), rtol=1e-6)
    assert rows.digest != named_sets.load('imagenet2012', 'train', tmp_path, image_size=5).digest

  def test_text(self, tmp_path):
    write('lm1b', {'text': tfds.features.Text()}, [{'text': 'ab'}, {'text': 'cdefgh'}], tmp_path)
    batch = named_sets.load('lm1b', 'train', tmp_path, length=4).take(np.arange(2))
    assert batch['tokens_BxN'].tolist() == [[0, 97, 98, 0], [0, 99, 100, 101]]
    assert batch['mask_BxN'].tolist() == [[True, True, True, False], [True] * 4]

  def test_translation(self, tmp_path):
    features = {'de': tfds.features.Text(), 'en': tfds.features.Text()}
    write('wmt17_translate', features, [{'de': 'abc', 'en': 'x'}], tmp_path, config='de-en')
    rows = named_sets.load('wmt17', 'train', tmp_path, length=5)
    found = {name: array[0].tolist() for name, array in rows.take(np.arange(1)).items()}
    assert found == {
      'source_tokens_BxS': [120, 0, 0, 0, 0],
      'source_mask_BxS': [True, True, False, False, False],
      'target_tokens_BxT': [97, 98, 99, 0, 0],
      'target_mask_BxT': [True, True, True, True, False],
      'decoder_tokens_BxT': [0, 97, 98, 99, 0],
    }
