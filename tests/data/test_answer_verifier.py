r"""data/answer_verifier.py: verdicts; with math-verify itself, one worker for the module."""

import math
import threading
import time

import pytest

from benchmarks import answer_cases
from entropy_jax.data import answer_verifier
from entropy_jax.data.answer_verifier import AnswerVerifier, Verdict, request
from entropy_jax.data.deadline_pool import Ending
from entropy_jax.types import UserError

CORRECT, WRONG, REJECTED, TIMED_OUT = Verdict


@pytest.fixture(scope='module')
def verifier():
  with AnswerVerifier(num_workers=1, deadline=10.0) as verifier:
    yield verifier


@pytest.fixture
def exact():
  return AnswerVerifier(use_math_verify=False)


class TestVerify:
  def test_decided_exactly(self, exact):
    completions = [r'\boxed{0.5}', '#### 18 eggs', '<answer>(B)</answer>', r'\boxed{1/3}', '5', r'\boxed{1} \boxed{2}', r'\boxed{\sqrt{4}}']
    references = ['1/2', '18', 'B', '0.33', '5', '2', '2']
    assert exact.verify(completions, references) == [CORRECT, CORRECT, CORRECT, WRONG, REJECTED, REJECTED, REJECTED]

  def test_nothing_is_started_for_what_is_decided(self, exact):
    exact.verify([r'\boxed{5}'], ['5'])
    assert exact.pool._workers == []

  def test_prompts_are_no_answers(self, exact):
    prompt = 'Add 2 and 3, as in 1 + 1:\n#### 5'
    assert exact.verify([prompt, prompt + '\n#### 5'], ['5', '5'], [prompt, prompt]) == [REJECTED, CORRECT]

  def test_answers(self, exact):
    assert exact.answers([r'\boxed{5}', 'none']) == ['5', '']

  def test_open_ones_go_to_math_verify(self, verifier):
    answers = [r'\sqrt{25}', '(x-1)(x+1)', '2, 1', r'\sqrt{5}', '3x', r'\sqrt{25}', '7', r'x=1 \text{ or } x=2']
    references = ['5', 'x^2-1', r'\{1, 2\}', '5', '3y', '5', '7', '1,2']
    expected = [CORRECT, CORRECT, CORRECT, WRONG, WRONG, CORRECT, CORRECT, CORRECT]
    assert verifier.verify([rf'\boxed{{{answer}}}' for answer in answers], references) == expected
    asked = len(verifier._known)
    assert verifier.compare(answers, references) == expected and len(verifier._known) == asked == 6  # one pair stood twice

  def test_what_it_cannot_read_is_rejected(self, verifier):
    assert verifier.compare(['+', r'\sqrt{'], ['x^2', '5']) == [REJECTED] * 2

  def test_works_in_a_thread(self, verifier):
    found = []
    thread = threading.Thread(target=lambda: found.extend(verifier.compare([r'\sqrt{49}'], ['7'])))
    thread.start()
    thread.join()
    assert found == [CORRECT]

  def test_what_hangs_times_out_and_crashes_are_rejected(self, exact, monkeypatch):
    exact.use_math_verify = True
    monkeypatch.setattr(exact.pool, 'run', lambda tasks, wall_limit: [Ending.TIMED_OUT, Ending.CRASHED, None, True, False])
    answers = [rf'\sqrt{{{n}}}' for n in range(5)]
    assert exact.compare(answers, ['5'] * 5) == [TIMED_OUT, REJECTED, REJECTED, CORRECT, WRONG]

  def test_what_is_known_is_bounded(self, exact, monkeypatch):
    exact.use_math_verify = True
    monkeypatch.setattr(answer_verifier, 'MAX_CACHED', 3)
    monkeypatch.setattr(exact.pool, 'run', lambda tasks, wall_limit: [True] * len(tasks))
    for n in range(10):
      assert exact.compare([rf'\sqrt{{{n}}}', rf'\sqrt{{{n + 1}}}'], ['5', '5']) == [CORRECT, CORRECT]
      assert len(exact._known) <= 3

  def test_refuses(self, exact, monkeypatch):
    with pytest.raises(UserError, match='references: 1 were given for 2 completions'):
      exact.verify(['', ''], [''])
    with pytest.raises(UserError, match='prompts: 0 were given for 1 completions'):
      exact.verify([''], [''], [])
    with pytest.raises(UserError, match='wall_limit=0: must be in'):
      AnswerVerifier(wall_limit=0)
    with pytest.raises(UserError, match=r"forms=\['box', 'line'\]: must name"):
      AnswerVerifier(forms=('box', 'line'))
    monkeypatch.setattr(answer_verifier.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"use_math_verify=True: math-verify is not installed; run `pip install 'entropy_jax\[verify\]'`"):
      AnswerVerifier()


class TestRequest:
  @pytest.mark.parametrize(
    ('answer', 'reference', 'expected'),
    [
      (r'$\sqrt{25}$', '5', ('5', r'\sqrt{25}')),
      ('3*x**2 + 1', '3x^2', ('3x^2', '3*x^{2} + 1')),
      (r'x = \sqrt{36}', '6', ('6', r'x = \sqrt{36}')),
      ('10!', '3628800', ('3628800', '10!')),
      ('e^{-x^2}', 'x', ('x', 'e^{-x^2}')),
      (r'50\% + x', 'x', ('x', r'50\% + x')),
    ],
  )
  def test_as_latex(self, answer, reference, expected):
    assert request(answer, reference) == expected

  @pytest.mark.parametrize(
    'answer',
    [
      *('', '5, 6', r'\pm 5', '5 = 6', '1 = 2 = 5', 'x > 5', r'x \in \{5, 6\}', r'5 \text{ or } 6', r'\{5\}', '[5, 6]', '5; 6', 'not 5'),
      *(r'\infty', r'\begin{pmatrix}5\\6\end{pmatrix}', r'\mathbb{R}', "__import__('os')", 'f"{x}"', 'lambda', r'\input{x}', r'\write18'),
      *('9^{9^{9}}', '9^9^9', '(9^{999})^{999}', '(10^9)!', '(9!)!', '9!!', '99999!', '1e999', r'\binom{10^9}{5}', r'\binom{9999}{5}'),
      *('5' * 41, '√25', '(' * 13 + '5' + ')' * 13),
      *('x^{', '2**(3**4)', '\0', '٣x', r'\begin{document}x\end{document}', r'\begin x'),
    ],
  )
  def test_refuses_beside_one_number(self, answer):
    assert request(answer, '5') is None

  def test_lists_no_more_than_the_reference(self):
    assert request('2, 1', '1, 2') == ('1, 2', '2, 1')
    assert request('1, 2, 3', '1, 2') is None and request('x = 1, y = 2, z = 3', '1, 2') is None


class TestCases:
  """R7, R8, R9 at a size for every run; `benchmarks.verifier` has the large one."""

  def test_hostile_completions(self, verifier, tmp_path):
    cases = answer_cases.hostile_completions(150, str(tmp_path / 'canary'))
    start = time.process_time()
    answers = verifier.answers([case.completion for case in cases])
    asked = [answer for answer in answers if request(answer, cases[0].reference) is not None]
    assert time.process_time() - start < 5.0
    assert len(asked) < 0.15 * len(cases)
    start = time.monotonic()
    verdicts = verifier.verify([case.completion for case in cases], [case.reference for case in cases])
    assert time.monotonic() - start < math.ceil(len(cases) / verifier.pool.num_workers) * verifier.pool.deadline
    assert CORRECT not in verdicts
    assert list(tmp_path.iterdir()) == []

  def test_attacks_earn_nothing(self, verifier):
    cases = answer_cases.attacks(num_questions=2)
    assert len({case.kind for case in cases}) > 40
    columns = zip(*((case.completion, case.reference, case.prompt) for case in cases))
    accepted = {case.kind for case, verdict in zip(cases, verifier.verify(*columns)) if verdict is CORRECT}
    assert not accepted

  def test_pairs(self, verifier):
    # Comparing takes math-verify tens of milliseconds a pair: the benchmark has them all.
    pairs = [pair for pair in answer_cases.hard_pairs() if pair.kind in ('root', 'algebra', 'set')][::5]
    verdicts = verifier.compare([pair.answer for pair in pairs], [pair.reference for pair in pairs])
    assert len(pairs) > 10 and not [pair for pair, verdict in zip(pairs, verdicts) if (verdict is CORRECT) != pair.same]
