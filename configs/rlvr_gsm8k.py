"""Reinforcement learning with verifiable rewards of a language model from a Hugging Face folder: GSM8K, or questions of your own.

Command:  python -m experiments.rlvr --config=configs/rlvr_gsm8k.py --workdir=DIR --config.model.folder=FOLDER
            --config.data.data_dir=TFDS                     # gsm8k as `tfds build gsm8k --file_format=array_record` leaves it
          ... --config.data.train.source=my.jsonl           # or JSON lines or Parquet; the columns are data.train.question and .answer
          ... --config.objective="grpo + clip_higher + clip_cov"        # any of METHODS.md
          `:7b` is for a pod: parameters and optimizer sharded over all devices.
          `:tiny` needs nothing: it makes a small Qwen2 folder, its tokenizer and countdown problems in DIR/example, teaches the model to
          imitate solutions for a moment, and then runs what the others run.
Expected: `:tiny`: by reinforcement learning alone, success on 592 held-out problems goes from .29 to .74 (seed 1: .33 to .75), pass@4 from
          .65 to .80, policy entropy from .66 to .10 nats a token.
Time:     `:tiny`: 3 min 20 s on 2 CPU cores, compilation included.
Memory:   default, Qwen2.5-0.5B (494 million parameters), one GPU. Parameters, gradient and two moments of Adam in float32: 4 x 1.98 = 7.9
          GB, and once more the parameters while the state is made. Key-value cache in bfloat16: 24 layers x 2 x 128 numbers x 2 bytes =
          12.3 kB a token, times 512 sequences x 768 tokens: 4.8 GB, gone before the update. An update holds a slice of 16 sequences:
          24 block inputs (remat) of 16 x 768 x 896 in bfloat16 = 0.5 GB and one block's inside, 16 x 768 x (2 x 4864 + ...) = 0.5 GB;
          rows of 151,936 logits exist for a tile at a time. 16 GB would do, 24 GB are comfortable.
          `:7b`, Qwen2.5-7B (7.6 thousand million): 4 x 30.5 = 122 GB over the devices, 3.8 GB each on 32; cache 28 layers x 2 x 512 x 2
          bytes = 57 kB a token, times 1,024 x 1,280 tokens = 75 GB, 2.3 GB each.
Claims:   success on held-out problems rises by more than 0.1; criterion in entropy_jax/analysis/rlvr.py, written before any run.

Rewards of weight 0 are logged and not trained on. A new reward is a function and a row in entropy_jax/data/rewards.py.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from configs import common
from entropy_jax.models import lora
from entropy_jax.training import optimizers, ranges
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

ConfigDict = ml_collections.ConfigDict
VARIANTS = ('', '7b', 'tiny')

# What each key may be: entropy_jax/training/ranges.py. What keys may not be together: `validate` of the experiment.
RANGES = ranges.LAUNCH | {
  'seed': 'int [0, 2147483647]',
  'num_seeds': 'int [1, 1000]',
  'ledger': 'bool',
  'entropy_change': 'bool',
  'example.write': 'bool',
  'example.num_numbers': 'int [2, 4]',
  'example.max_number': 'int [1, 99]',
  'example.max_target': 'int [1, 9999]',
  'example.num_solutions': 'int [1, inf)',
  'example.model': 'decoder',
  'model.folder': 'text',
  'model.dtype': 'float32 | bfloat16',
  'model.param_dtype': 'float32 | bfloat16',
  'model.remat': 'bool',
  'model.max_length': 'int [2, inf) or None',
  'lora.rank': 'int [1, inf) or None',
  'lora.alpha': '(0, inf)',
  'lora.targets': 'text',
  'lora.rank_stabilized': 'bool',
  'data.data_dir': 'text',
  **{
    f'data.{part}.{key}': allowed
    for part in ('train', 'evaluation')
    for key, allowed in {
      'source': 'text',
      'split': 'text',
      'question': 'text',
      'answer': 'text',
      'limit': 'int [1, inf) or None',
    }.items()
  },
  'data.template': 'text',
  'data.chat': 'bool',
  'data.system': 'text or None',
  'data.prompt_length': 'int [1, inf)',
  'rewards.*': 'reward',
  'verifier.enabled': 'bool',
  'verifier.forms': 'text',
  'verifier.conflicts': 'reject | last',
  'verifier.use_math_verify': 'bool',
  'verifier.num_workers': 'int [1, 256] or None',
  'verifier.deadline': '(0, inf)',
  'verifier.wall_limit': '(0, inf)',
  'objective': 'text',
  'sampling.response_length': 'int [1, inf)',
  'sampling.temperature': '(0, inf)',
  'sampling.stop_tokens': 'text or None',
  'sampling.num_stages': 'int [1, 16]',
  'sampling.top_k': 'int [1, inf) or None',
  'sampling.top_p': '(0, 1] or None',
  'sampling.min_p': '(0, 1) or None',
  'sampling.typical': '(0, 1] or None',
  'sampling.top_h': '(0, 1] or None',
  'warm_start.num_steps': 'int [0, inf)',
  'warm_start.source': 'text or None',
  'warm_start.question': 'text',
  'warm_start.solution': 'text',
  'warm_start.batch_size': 'int [1, inf)',
  'warm_start.num_slices': 'int [1, inf)',
  'warm_start.learning_rate': '(0, inf)',
  'warm_start.warmup_steps': 'int [0, inf)',
  'num_steps': 'int [1, inf)',
  'num_prompts': 'int [1, 65536]',
  'group_size': 'int [1, 65536]',
  'num_epochs': 'int [1, inf)',
  'num_minibatches': 'int [1, inf)',
  'num_slices': 'int [1, inf)',
  'optimizer.name': ' | '.join(optimizers.OPTIMIZERS),
  'optimizer.learning_rate': '(0, inf)',
  'optimizer.schedule': ' | '.join(optimizers.SCHEDULES),
  'optimizer.warmup_steps': 'int [0, inf)',
  'optimizer.final_fraction': '[0, 1]',
  'optimizer.max_grad_norm': '(0, inf) or None',
  'optimizer.weight_decay': '[0, inf)',
  'optimizer.b1': '[0, 1)',
  'optimizer.b2': '[0, 1)',
  'optimizer.eps': '(0, inf)',
  'checkpoint_every': 'int [1, inf)',
  'keep': 'int [1, inf)',
  'evaluation.every': 'int [1, inf)',
  'evaluation.num_samples': 'int [1, 1000]',
  'evaluation.temperature': '[0, inf)',
  'evaluation.batch_size': 'int [1, inf)',
  'evaluation.success': 'text',
  'samples.num_prompts': 'int [1, inf)',
  'samples.group_size': 'int [2, inf)',
  'samples.shown': 'int [1, inf)',
  'export.folder': 'text or None',
  'export.dtype': 'float32 | bfloat16 | float16',
}


def get_config(variant: str = '') -> ConfigDict:
  """The run; variant '', '7b' or 'tiny'."""
  if variant not in VARIANTS:
    close = nearest(variant, VARIANTS)
    raise UserError(f'--config: configs/rlvr_gsm8k.py has no variant {variant!r}; allowed: 7b, tiny, or none.{close}')
  config = ConfigDict()
  common.run_settings(config)
  config.seed = 0  # root of every key: rollouts, shuffles, evaluation
  config.num_seeds = 1  # runs from one start, in DIR/seed_K
  config.entropy_change = True  # whether each rollout's entropy is measured again after its updates; one more pass
  config.ledger = False  # whether each update accounts for its entropy change; costs about three more passes

  # A small model and countdown problems, made in DIR/example before anything else.
  config.example = ConfigDict()
  config.example.write = False
  config.example.num_numbers = 2  # of each problem
  config.example.max_number = 50
  config.example.max_target = 99
  config.example.num_solutions = 2  # of each training problem, to be imitated
  config.example.model = ConfigDict({'num_kv_heads': 2})  # fields that replace those of the preset study_tiny

  # Relative paths, here and in `data` and `warm_start`, are looked for in DIR first and then in the current folder.
  config.model = ConfigDict()
  config.model.folder = 'Qwen2.5-0.5B-Instruct'  # config.json, safetensors, tokenizer.json: nothing is downloaded
  config.model.dtype = 'bfloat16'  # of the arithmetic; sums, softmax and scores are float32
  config.model.param_dtype = 'float32'  # of the parameters; 'bfloat16' for those that are frozen (LoRA) alone
  config.model.remat = True  # recompute each block in the backward pass: less memory, more time, the same numbers
  config.model.max_length = placeholder(int)  # None: prompt and response

  config.lora = ConfigDict()
  config.lora.rank = placeholder(int)  # None trains all parameters
  config.lora.alpha = 32.0  # the adapters' sum is scaled by alpha / rank
  config.lora.targets = lora.ATTENTION_AND_MLP  # pattern searched in the path of each map, such as block_0/attention/query
  config.lora.rank_stabilized = False  # scaled by alpha / sqrt(rank) instead

  config.data = ConfigDict()
  config.data.data_dir = 'tensorflow_datasets'  # folder of the sets that TFDS has prepared
  config.data.train = ConfigDict()
  config.data.train.source = 'gsm8k'  # a set by name, or a .jsonl or .parquet file
  config.data.train.split = 'train'  # of a named set
  config.data.train.question = 'question'  # column, of a file
  config.data.train.answer = 'answer'  # column, of a file: the result, or a text whose result follows #### or stands in the last box
  config.data.train.limit = placeholder(int)  # at most so many questions, the first; None for all
  config.data.evaluation = ConfigDict(config.data.train.to_dict())
  config.data.evaluation.split = 'test'
  config.data.evaluation.limit = placeholder(int)
  config.data.template = 'boxed'  # of entropy_jax.data.questions.TEMPLATES, or a text that holds {question} once
  config.data.chat = True  # whether that is the user's turn in the folder's chat template; otherwise it is the prompt itself
  config.data.system = placeholder(str)  # the system's turn before it
  config.data.prompt_length = 256  # tokens; questions with longer prompts are left out, and counted

  config.rewards = ConfigDict()  # name of entropy_jax.data.rewards.REWARDS -> weight, or weight and settings
  config.rewards.accuracy = 1.0
  config.rewards.one_box = 0.0
  config.rewards.hash_line = 0.0
  config.rewards.think_answer = ConfigDict({'weight': 0.0, 'opened': False})
  config.rewards.finished = 0.0
  config.verifier = ConfigDict()
  config.verifier.enabled = True  # off where no reward asks for a verdict on the answer
  config.verifier.forms = 'tag,box,hash'  # which marks of an answer count, in this order
  config.verifier.conflicts = 'reject'  # where marks differ: 'last' takes the last, and rewards a spray of guesses
  config.verifier.use_math_verify = True  # what exact comparison leaves open goes to math-verify, in processes of its own
  config.verifier.num_workers = placeholder(int)  # of them; None for one less than there are cores, at most 4
  config.verifier.deadline = 3.0  # seconds for an answer
  config.verifier.wall_limit = 60.0  # seconds for the open answers of a rollout

  config.objective = 'grpo + clip_higher'  # see entropy_jax.compose and METHODS.md
  config.sampling = ConfigDict()
  config.sampling.response_length = 512  # tokens, end included
  config.sampling.temperature = 1.0  # of rollouts, and of what the objective sees
  config.sampling.stop_tokens = placeholder(str)  # more tokens that end a response, separated by blanks, such as '<|im_end|>'
  config.sampling.num_stages = 3  # batch sizes, each half of the one before, through which unfinished responses are gathered
  # What is cut off the distribution before a token is drawn, in this order; None for nothing. The objective sees the whole distribution,
  # and what the token was drawn from as the sampler's log-probabilities (sampler_importance).
  config.sampling.top_h = placeholder(float)  # alpha
  config.sampling.top_k = placeholder(int)
  config.sampling.top_p = placeholder(float)
  config.sampling.min_p = placeholder(float)
  config.sampling.typical = placeholder(float)  # mass

  config.warm_start = ConfigDict()  # imitation of solutions before reinforcement learning
  config.warm_start.num_steps = 0  # none
  config.warm_start.source = placeholder(str)  # a file as data.train.source
  config.warm_start.question = 'question'  # column
  config.warm_start.solution = 'solution'  # column of what is to be written
  config.warm_start.batch_size = 64
  config.warm_start.num_slices = 1
  config.warm_start.learning_rate = 1e-5  # AdamW's, with a cosine
  config.warm_start.warmup_steps = 10

  config.num_steps = 230  # rollouts; 117 see all of GSM8K's training questions once
  config.num_prompts = 64  # per rollout
  config.group_size = 8  # responses per prompt
  config.num_epochs = 1  # passes over a rollout
  config.num_minibatches = 4  # updates per pass; 1 is on-policy, and then no ratio is ever clipped
  config.num_slices = 8  # gradient accumulation, here of 16 sequences at a time; changes memory, not numbers
  config.optimizer = ConfigDict()
  config.optimizer.name = 'adamw'
  config.optimizer.learning_rate = 1e-6
  config.optimizer.schedule = 'constant'  # after the warm-up
  config.optimizer.warmup_steps = 10  # updates
  config.optimizer.final_fraction = 0.0  # of the rate, where linear and cosine end
  config.optimizer.max_grad_norm = 1.0  # clipping by the global norm
  config.optimizer.weight_decay = 0.0
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.95
  config.optimizer.eps = 1e-8
  config.checkpoint_every = 20  # steps, and at the end
  config.keep = 1  # checkpoints that stay

  config.evaluation = ConfigDict()
  config.evaluation.every = 20  # steps, before the first and after the last too
  config.evaluation.num_samples = 4  # responses per question
  config.evaluation.temperature = 1.0  # of sampling; 0 is greedy
  config.evaluation.batch_size = 128  # questions at a time
  config.evaluation.success = 'accuracy'  # reward that counts as success where it is 1

  config.samples = ConfigDict()  # responses that the report shows token by token, before and after
  config.samples.num_prompts = 4  # of the evaluation's questions
  config.samples.group_size = 8  # responses each, among which advantages are taken
  config.samples.shown = 2  # of them: the best and the worst

  config.export = ConfigDict()
  config.export.folder = 'export'  # Hugging Face folder of the trained model, in DIR/seed_K unless absolute; None for none
  config.export.dtype = 'bfloat16'

  if variant == '7b':
    config.parallel = 'fsdp'
    config.model.folder = 'Qwen2.5-7B-Instruct'
    config.sampling.response_length = 1024
    config.num_prompts = 128
    config.num_slices = 2  # of 256 sequences: 4 a device on 32
    config.evaluation.every = 10
    config.checkpoint_every = 10

  if variant == 'tiny':
    config.example.write = True
    config.model.folder = 'example/model'
    config.model.dtype = 'float32'
    config.model.remat = False
    for part, name in (('train', 'train'), ('evaluation', 'held_out')):
      config.data[part].source = f'example/{name}.jsonl'
    config.data.template = 'plain'
    config.data.prompt_length = 20
    config.rewards = ConfigDict({'countdown': 1.0, 'countdown_numbers': 0.0, 'finished': 0.0})
    config.verifier.enabled = False
    config.evaluation.success = 'countdown'
    config.objective = 'grpo + ppo_clip(0.2, 0.2)'
    config.sampling.response_length = 7
    config.sampling.num_stages = 1
    config.warm_start.num_steps = 100  # short on purpose: a policy that is sometimes right, as a base model is
    config.warm_start.source = 'example/solutions.jsonl'
    config.warm_start.batch_size = 128
    config.warm_start.learning_rate = 3e-3
    config.num_steps = 100
    config.num_prompts = 64
    config.group_size = 16
    config.num_minibatches = 1
    config.num_slices = 1
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.b2 = 0.999
    config.checkpoint_every = 50
    config.evaluation.every = 25
    config.evaluation.batch_size = 592  # all held-out problems
    config.export.dtype = 'float32'
  return config
