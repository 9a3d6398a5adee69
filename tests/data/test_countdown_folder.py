"""data/countdown_folder.py: what is in the folder, read by the readers of published folders and of JSON lines."""

import json

import jax
import pytest

from entropy_jax.data import countdown, countdown_folder, hub_tokenizer, questions, verifiers
from entropy_jax.models import hub
from entropy_jax.models.transformer import num_parameters

MODEL = {'width': 8, 'num_layers': 1, 'num_heads': 2, 'num_kv_heads': 1, 'mlp_width': 8}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  made = tmp_path_factory.mktemp('made') / 'example'
  countdown_folder.write(made, num_numbers=2, max_number=6, max_target=40, num_solutions=1, model=MODEL, seed=3)
  return made


class TestWrite:
  def test_model_is_a_qwen2_folder(self, folder):
    raw = json.loads((folder / 'model' / 'config.json').read_text())
    assert raw['architectures'] == ['Qwen2ForCausalLM'] and raw['eos_token_id'] == 2
    config, params = hub.load(folder / 'model')
    assert config.qkv_bias and config.kv_heads == 1 and config.vocab_size == countdown_folder.VOCAB_SIZE
    assert sum(x.size for x in jax.tree.leaves(params)) == num_parameters(config)

  def test_tokenizer_writes_chats_in_few_tokens(self, folder):
    tokenizer = hub_tokenizer.load(folder / 'model')
    tokenizer.check_fits(countdown_folder.VOCAB_SIZE)
    text = tokenizer.chat([{'role': 'user', 'content': '3 5=15:'}])
    ids = tokenizer.encode(text)
    # <|im_start|> user \n, the seven characters of the problem of which 15 has two, <|im_end|> \n <|im_start|> assistant \n
    assert len(ids) == 3 + 7 + 5 and tokenizer.decode(ids[3:10]) == '3 5=15:'

  def test_no_held_out_problem_is_trained_on(self, folder):
    parts = {name: questions.load(folder / name) for name in (countdown_folder.TRAIN, countdown_folder.HELD_OUT)}
    train, held_out = (set(part.questions) for part in parts.values())
    every = countdown.enumerate_problems(num_numbers=2, max_number=6, max_target=40)
    assert not train & held_out and len(train) + len(held_out) == len(every) and held_out
    assert all(countdown.split_of(*countdown.read_prompt(text)) == 'train' for text in train)
    assert all(part.questions == part.references for part in parts.values())  # the reference is the problem itself

  def test_solutions_are_right_and_of_training_problems(self, folder):
    solved = questions.load(folder / countdown_folder.SOLUTIONS, answer='solution', whole=True)
    train = questions.load(folder / countdown_folder.TRAIN)
    assert solved.questions == train.questions  # one of each
    for text, answer in zip(solved.questions, solved.references, strict=True):
      assert verifiers.verify_countdown(answer, *countdown.read_prompt(text)) is verifiers.Verdict.CORRECT

  def test_is_the_same_again_and_never_replaced(self, folder, tmp_path):
    countdown_folder.write(tmp_path / 'again', num_numbers=2, max_number=6, max_target=40, num_solutions=1, model=MODEL, seed=3)
    for path in sorted(p for p in folder.rglob('*') if p.is_file()):
      assert (tmp_path / 'again' / path.relative_to(folder)).read_bytes() == path.read_bytes(), path
    before = (folder / 'train.jsonl').stat().st_mtime_ns
    countdown_folder.write(folder, num_numbers=3)
    assert (folder / 'train.jsonl').stat().st_mtime_ns == before
