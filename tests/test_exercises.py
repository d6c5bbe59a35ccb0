"""The exercise engine, and the checkers of every chapter against right and wrong answers."""

from __future__ import annotations

import _thread
import asyncio
import gc
import importlib
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import psutil
import pytest

import support.exercises.harness as harness
from support.exercises import (
    check,
    disconnect04,
    evaluate,
    exercises,
    hint,
    predict,
    progress,
    score,
    scores,
    store,
)
from support.exercises.faults import Calls, Canceller, cancel_sweep, error_sweep
from support.exercises.harness import Failed, call, observe

sys.path.insert(0, str(Path(__file__).parent))
from answers import chapter01  # noqa: E402

CHAPTERS = [
    importlib.import_module(f"answers.{path.stem}")
    for path in sorted((Path(__file__).parent / "answers").glob("chapter??.py"))
]
IDS = [exercise.id for exercise in exercises()]
RIGHT = [(i, answer) for chapter in CHAPTERS for i, answers in chapter.RIGHT.items() for answer in answers]
STUBS = [(i, answer) for chapter in CHAPTERS for i, answers in chapter.STUBS.items() for answer in answers]
WRONG = [(i, *pair) for chapter in CHAPTERS for i, pairs in chapter.WRONG.items() for pair in pairs]


def label(value):
    return value if isinstance(value, str) else getattr(value, "__name__", None)


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "progress"))
    return tmp_path / "progress"


@pytest.fixture(autouse=True)
def nothing_is_left(capsys):
    threads, sleep, hook = threading.active_count(), time.sleep, sys.unraisablehook
    gc.freeze()  # as the engine does, so that a collection does not walk through all of pytest
    yield
    gc.unfreeze()
    assert (time.sleep, sys.unraisablehook) == (sleep, hook)
    assert threading.active_count() == threads
    assert capsys.readouterr().err == ""


# --- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("exercise_id", IDS)
def test_every_exercise_has_enough_answers(exercise_id):
    assert sum(i == exercise_id for i, _ in STUBS) >= 1
    assert sum(i == exercise_id for i, _ in RIGHT) >= 2
    assert sum(i == exercise_id for i, _, _ in WRONG) >= 5


@pytest.mark.parametrize(("exercise_id", "answer"), STUBS, ids=label)
def test_a_stub_is_not_attempted(exercise_id, answer):
    assert evaluate(exercise_id, answer).state == "not attempted"


@pytest.mark.parametrize(("exercise_id", "answer"), RIGHT, ids=label)
def test_a_right_answer_passes(exercise_id, answer):
    verdict = evaluate(exercise_id, answer)
    assert (verdict.state, verdict.lacking, verdict.sentence) == ("passed", "", "")
    assert len(verdict.proven) >= 5


@pytest.mark.parametrize(("exercise_id", "answer", "lacking"), WRONG, ids=label)
def test_a_wrong_answer_is_rejected_for_what_it_lacks(exercise_id, answer, lacking):
    verdict = evaluate(exercise_id, answer)
    assert (verdict.state, verdict.lacking) == ("failed", lacking)
    assert len(verdict.sentence) > 10
    assert " at 0x" not in verdict.sentence


@pytest.mark.parametrize("value", [None, 42, "text", [1], {"a": 1}, {1.5}, object(), ValueError("v"), b"", ()])
@pytest.mark.parametrize("exercise_id", IDS)
def test_an_answer_that_returns_anything_is_judged(exercise_id, value):
    async def answer(*arguments):
        await asyncio.sleep(0)
        return value

    def plain_answer(*arguments):
        return value

    for one in (answer, plain_answer):
        assert evaluate(exercise_id, one).state == "failed"


@pytest.mark.parametrize(
    "error",
    [ValueError("<thing at 0xdeadbeef>"), SystemExit(3), asyncio.CancelledError(), TimeoutError()],
)
@pytest.mark.parametrize("exercise_id", IDS)
def test_an_answer_that_raises_is_told_in_a_sentence(exercise_id, error):
    def answer(*arguments):
        raise error

    verdict = evaluate(exercise_id, answer)
    assert (verdict.state, verdict.lacking) == ("failed", "runs without an error")
    line = answer.__code__.co_firstlineno + 1
    assert f"{type(error).__name__}" in verdict.sentence
    assert f"(in answer, line {line})" in verdict.sentence
    assert "0x" not in verdict.sentence


@pytest.mark.parametrize("exercise_id", IDS)
def test_verdicts_are_the_same_in_every_process(exercise_id):
    program = """
    import sys; sys.path[:0] = sys.argv[2:]
    from test_exercises import WRONG, evaluate
    for i, answer, _ in WRONG:
        if i == sys.argv[1]:
            print(i, answer.__name__, evaluate(i, answer))
    """
    root = Path(__file__).parents[1]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), exercise_id, str(root), str(root / "tests")],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for seed in "12"
    ]  # fmt: skip
    said = [process.communicate(timeout=100) for process in running]
    assert [error for _, error in said] == ["", ""]
    texts = {re.sub(r"0x[0-9a-f]+", "", printed) for printed, _ in said}
    assert len(texts) == 1
    assert texts.pop().count("failed") >= 5


# --- check, hint and bad input -------------------------------------------------------------------


def test_check_of_a_stub_is_one_line_and_leaves_no_trace(capsys):
    check("1.2", chapter01.gather_stub)
    assert capsys.readouterr().out == "1.2 gather in order: not attempted.\n"
    assert store.checked() == {}


def test_check_of_a_right_answer_names_what_is_proven(capsys):
    assert check("1.2", chapter01.gather_in_order) is None
    out = capsys.readouterr().out
    assert out.startswith("1.2 gather in order: passed.\nProven: calls each function once; results in")
    assert store.checked() == {"1.2": "passed"}


def test_each_failed_check_shows_one_more_hint(capsys):
    shown = []
    for _ in range(4):
        check("1.2", chapter01.gather_one_after_another)
        out = capsys.readouterr().out
        assert out.startswith("1.2 gather in order: not yet.\nMissing: takes as long as the slowest.\nIt took 20.2 s")
        shown.append(re.search(r"^Hint (\d) of 3: ", out, re.MULTILINE)[1])
    assert shown == ["1", "2", "3", "3"]


def test_hint_shows_one_more_each_time(capsys):
    hints = [exercise.hints for exercise in exercises() if exercise.id == "1.1"][0]
    for number in (1, 2, 3, 3):
        hint("1.1")
        out = capsys.readouterr().out
        assert re.findall(r"Hint (\d) of 3", out) == [str(n) for n in range(1, number + 1)]
    assert " ".join(out.split()) == " ".join(f"Hint {n} of 3: {text}" for n, text in enumerate(hints, 1))


def test_a_pass_is_kept_when_a_later_check_fails():
    check("1.2", chapter01.gather_in_order)
    check("1.2", chapter01.gather_plain)
    assert store.checked() == {"1.2": "passed"}


def test_what_the_answer_prints_is_shown_for_the_run_that_failed(capsys):
    runs = 0

    async def gather_in_order(fns):
        nonlocal runs
        runs += 1
        print("run", runs)
        for number in range(20):
            print("line", number)
        return await asyncio.gather(*(fn() for fn in fns))

    check("1.2", gather_in_order)
    out = capsys.readouterr().out
    assert "Missing: stops the others when one fails." in out
    assert runs > 3
    assert f"in the run that failed:\n  run {runs}\n  line 0\n" in out
    assert out.endswith("  line 10\n  ... and 9 lines more\n")

    async def chatty(fns):
        print("hello")
        return await chapter01.gather_in_order(fns)

    check("1.2", chatty)
    assert "hello" not in capsys.readouterr().out


async def _one(fns):
    return []


@pytest.mark.parametrize(
    ("exercise_id", "answer", "error", "words"),
    [
        ("1.2", 42, TypeError, "check('1.2') needs your async def gather_in_order(fns), not 42."),
        ("1.4", None, TypeError, "check('1.4') needs your Background(report), not None."),
        ("1.2", lambda: 1, TypeError, "check('1.2') calls your answer as async def gather_in_order"
         "(fns), which <lambda> does not accept: too many positional arguments."),
        ("99.9", _one, ValueError, f"There is no exercise '99.9'; there are {', '.join(IDS)}."),
        (1.2, _one, ValueError, "There is no exercise 1.2; there are "),
        ([], _one, ValueError, "There is no exercise []; there are "),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_an_error_of_one_sentence(exercise_id, answer, error, words):
    with pytest.raises(error) as caught:
        check(exercise_id, answer)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_a_coroutine_in_place_of_the_function_is_named():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError, match=r"got the coroutine _one\(\.\.\.\): write check\('1.2', _one\)"):
            check("1.2", _one([]))


def test_what_lives_in_the_notebook_does_not_count_against_the_answer():
    alive = [asyncio.sleep(1) for _ in range(300)]
    gc.unfreeze()
    assert evaluate("1.4", chapter01.Background).state == "passed"
    for coroutine in alive:
        coroutine.close()


def test_a_check_works_where_a_loop_runs():
    async def cell():
        return evaluate("1.2", chapter01.gather_in_order), evaluate("1.1", chapter01.run)

    assert [verdict.state for verdict in asyncio.run(cell())] == ["passed", "passed"]


@pytest.mark.parametrize("exercise_id", IDS)
def test_an_answer_that_never_ends_is_stopped(exercise_id, monkeypatch):
    monkeypatch.setattr(harness, "REAL_LIMIT", 0.3)

    def answer(*arguments):
        while True:
            pass

    verdict = evaluate(exercise_id, answer)
    assert (verdict.state, verdict.lacking) == ("failed", "comes to an end")
    assert "still running after 0.3 s of real time" in verdict.sentence


def test_an_interrupt_ends_a_check_and_leaves_everything_as_it_was():
    def answer(*arguments):
        threading.Timer(0.05, _thread.interrupt_main).start()
        while True:
            pass

    stdout = sys.stdout
    with pytest.raises(KeyboardInterrupt):
        check("1.1", answer)
    assert sys.stdout is stdout
    assert store.checked() == {}


def test_an_answer_that_spins_on_sleep_0_is_stopped(monkeypatch):
    monkeypatch.setattr(
        "support.clock.Simulation.__init__.__kwdefaults__",
        {"limit": 1e9, "standstill": 5000, "real_limit": None},
    )

    async def gather_in_order(fns):
        while True:
            await asyncio.sleep(0)

    verdict = evaluate("1.2", gather_in_order)
    assert verdict.lacking == "comes to an end"
    assert "something repeats sleep(0) for ever" in verdict.sentence


# --- the harness ---------------------------------------------------------------------------------


def test_observe_counts_what_is_left_and_lost():
    kept = []

    async def failing():
        raise ValueError("nobody looks")

    async def lingering():
        await asyncio.sleep(100)

    async def scenario():
        asyncio.create_task(failing())
        kept.append(asyncio.create_task(lingering()))
        asyncio.sleep(1)
        await asyncio.sleep(2)
        return "value"

    run = observe(scenario)
    assert (run.result(), run.elapsed, run.left_over, run.never_awaited) == (
        "value",
        2.0,
        ["lingering"],
        ["sleep"],
    )
    assert len(run.loop_errors) == 1
    assert run.loop_errors[0].startswith("Task exception was never retrieved (ValueError: nobody looks (in failing")


def test_observe_keeps_the_exception_and_refuses_what_leaves_the_simulation():
    async def failing():
        await asyncio.sleep(1)
        raise KeyError("k")

    run = observe(failing)
    assert (type(run.error), run.elapsed, run.value) == (KeyError, 1.0, None)
    with pytest.raises(Failed) as caught:
        run.result()
    assert caught.value.sentence.startswith("It raised KeyError: 'k' (in failing, line ")

    async def threaded():
        await asyncio.to_thread(print)

    with pytest.raises(Failed, match="no network, files, threads") as caught:
        observe(threaded)
    assert caught.value.lacking == harness.ENDS


def test_observe_sees_an_error_lost_in_a_task_that_the_traceback_holds():
    async def failing():
        raise ValueError("nobody looks")

    async def scenario():
        task = asyncio.create_task(failing())
        await asyncio.sleep(1)
        raise KeyError(task.get_name())

    run = observe(scenario)
    assert isinstance(run.error, KeyError)
    assert [entry.partition(" (")[0] for entry in run.loop_errors] == ["Task exception was never retrieved"]


def test_call_counts_time_sleep_instead_of_sleeping():
    def nap(seconds):
        time.sleep(seconds)
        time.sleep(seconds)
        return "rested"

    run = call(nap, 1000)
    assert (run.result(), run.slept) == ("rested", 2000)


def test_calls_count_how_each_call_ended():
    calls = Calls(fail_at=2)

    async def scenario():
        jobs = [calls.job(f"job {n}", n / 10, n)() for n in range(1, 5)]
        tasks = [asyncio.create_task(job) for job in jobs]
        await asyncio.sleep(0.25)
        tasks[3].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    run = observe(scenario)
    assert calls.started == ["job 1", "job 2", "job 3", "job 4"]
    assert (calls.finished, calls.failed, calls.cancelled) == (
        ["job 1", "job 3"],
        ["job 2"],
        ["job 4"],
    )
    assert (calls.peak, calls.in_flight, calls.injected_at) == (4, 0, 0.2)
    assert run.result()[1] is calls.injected


def test_calls_count_what_was_dropped_in_the_middle():
    calls = Calls()

    async def scenario():
        steps = calls.job("dropped", 1)().__await__()
        steps.send(None)
        steps.close()

    observe(scenario)
    assert (calls.abandoned, calls.in_flight) == (["dropped"], 0)


def test_error_sweep_breaks_every_call_in_turn():
    async def scenario(calls):
        for name in "abc":
            await calls.job(name, 1)()

    runs = [(calls.failed, calls.finished, run.elapsed) for run, calls in error_sweep(scenario)]
    assert runs == [(["a"], [], 1.0), (["b"], ["a"], 2.0), (["c"], ["a", "b"], 3.0)]


def test_cancel_sweep_visits_every_await_at_both_moments():
    async def answer():
        await asyncio.sleep(1)
        try:
            await asyncio.sleep(1)
        finally:
            await asyncio.sleep(0)

    async def scenario(calls, drive):
        await drive(answer())

    seen = [(str(c), c.time, run.was_cancelled, run.elapsed) for run, _, c in cancel_sweep(scenario)]
    assert seen == [
        ("await number 1", 0.0, True, 0.0),
        ("await number 2", 1.0, True, 1.0),
        ("await number 3", 2.0, True, 2.0),
        ("await number 1, just woken", 1.0, True, 1.0),
        ("await number 2, just woken", 2.0, True, 2.0),
        ("await number 3, just woken", 2.0, True, 2.0),
    ]


def test_cancelled_when_just_woken_is_the_moment_a_result_is_lost():
    async def scenario(moment):
        queue = asyncio.Queue()
        queue.put_nowait("precious")
        asyncio.get_running_loop().call_later(1, permits.release)
        try:
            await Canceller(1, moment).drive(take(queue))
        except asyncio.CancelledError:
            return queue.qsize(), permits._value

    async def take(queue):
        await permits.acquire()
        return await queue.get()

    permits = asyncio.Semaphore(0)
    assert observe(scenario, "suspended").result() == (1, 0)
    permits = asyncio.Semaphore(0)
    assert observe(scenario, "woken").result() == (1, 1)  # 3.11 and later hand the permit back


def test_a_driven_coroutine_behaves_as_if_awaited():
    async def answer():
        try:
            async with asyncio.timeout(1):
                await asyncio.sleep(5)
        except TimeoutError:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(asyncio.sleep(1, "value"))
            return task.result()

    async def scenario():
        result = await Canceller(0).drive(answer())
        return result, asyncio.get_running_loop().time(), asyncio.current_task().cancelling()

    assert observe(scenario).result() == ("value", 2.0, 0)


# --- predictions ---------------------------------------------------------------------------------

OPTIONS = {
    "a": "3 s: one after another",
    "b": "1 s: they overlap",
    "c": "It depends on the machine.",
}


def test_a_prediction_without_a_guess_runs(capsys):
    prediction = predict("naps", "Three naps of 1 s in one gather: how long?", OPTIONS)
    prediction.settle("b", because="Three naps took about 1 s.")
    assert capsys.readouterr().out == textwrap.dedent("""\
        Predict: Three naps of 1 s in one gather: how long?
          a) 3 s: one after another
          b) 1 s: they overlap
          c) It depends on the machine.
        Your guess: none yet. Write guess="a" above, or run on and see.
        Measured: b) 1 s: they overlap
                  Three naps took about 1 s.
        You had not guessed.
        """)
    assert store.predicted() == {"naps": "no guess"}


@pytest.mark.parametrize(
    ("guess", "last_line", "outcome"),
    [
        ("b", "You guessed b: right.", "right"),
        (" B) ", "You guessed b: right.", "right"),
        ("a", "You guessed a) 3 s: one after another. It is b.", "wrong"),
        ("c", "You guessed c) It depends on the machine. It is b.", "wrong"),
    ],
)
def test_the_measurement_answers_the_guess(capsys, guess, last_line, outcome):
    prediction = predict("naps", "How long?", OPTIONS, guess)
    assert "Your guess: " + prediction.guess in capsys.readouterr().out
    prediction.settle("b")
    assert capsys.readouterr().out.splitlines()[-1] == last_line
    assert store.predicted() == {"naps": outcome}


@pytest.mark.parametrize("guess", ["d", "ab", 2, None, "1 s"])
def test_a_guess_that_is_no_option_is_named(guess):
    with pytest.raises(ValueError) as caught:
        predict("naps", "How long?", OPTIONS, guess)
    assert (
        str(caught.value) == f"The guess {guess!r} for 'naps' is none of the options a, b, c: "
        'write one of them in quotes, or "".'
    )


def test_only_an_option_can_be_measured():
    with pytest.raises(ValueError, match="settle\\(\\) of 'naps' got 'x', which is none of the options a, b, c."):
        predict("naps", "How long?", OPTIONS).settle("x")
    with pytest.raises(ValueError, match="needs options such as"):
        predict("naps", "How long?", ["a", "b"])


# --- what is kept --------------------------------------------------------------------------------


def test_scores_keep_the_last_value_of_each_key(capsys):
    score("speed-up", 2.9, "times", predicted=3)
    score("lag", 0.2, "s")
    score("speed-up", 2.95, "times", predicted=3)
    assert scores() == {"speed-up": (2.95, "times", 3), "lag": (0.2, "s", None)}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("value", ["3", None, float("nan"), float("inf"), True])
def test_a_score_is_a_number(value):
    with pytest.raises(ValueError, match=r"score\('x'\) needs a finite number as value, not "):
        score("x", value)


def test_a_damaged_file_costs_only_the_damaged_lines(own_progress):
    score("before", 1)
    path = own_progress / "events.jsonl"
    damage = b'{"kind": "score", "key": "torn\n\xff\xfe\x00 garbage\n[1, 2]\n"text"\n{"kind": "cut off'
    with path.open("ab") as file:
        file.write(damage)
    score("after", 2)
    assert list(scores()) == ["before", "after"]
    assert damage in path.read_bytes()


def test_two_notebooks_at_once_lose_nothing(own_progress):
    program = """if 1:
        import sys
        from support.exercises import score
        for n in range(200):
            score(f"{sys.argv[1]}-{n}", n)
    """
    root = str(Path(__file__).parents[1])
    writers = [
        subprocess.Popen([sys.executable, "-c", program, name], env={**os.environ, "PYTHONPATH": root})
        for name in "abc"
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert sorted(scores()) == sorted(f"{name}-{n}" for name in "abc" for n in range(200))
    lines = (own_progress / "events.jsonl").read_bytes().split()
    assert all(json.loads(line) for line in (own_progress / "events.jsonl").read_text().splitlines() if line)
    assert lines


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"COURSE_PROGRESS names '.*file', which cannot be written \(.*\): set it to"):
        score("x", 1)


def test_without_a_course_around_it_progress_goes_to_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("COURSE_PROGRESS")
    monkeypatch.setattr(store, "__file__", str(tmp_path / "site-packages" / "support" / "exercises" / "store.py"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert store.folder().parent == tmp_path / "tmp"
    course = tmp_path / "site-packages"
    (course / "notebooks").mkdir(parents=True)
    assert store.folder() == course / "my_work" / ".progress"


def test_progress_draws_a_box_per_exercise_and_the_same_words_for_everyone(monkeypatch):
    figures = pytest.importorskip("support.figures")
    drawn = []
    monkeypatch.setattr(figures, "show", lambda figure, alt: drawn.append((figure, alt)))
    assert progress() is None
    check("1.2", chapter01.gather_in_order)
    check("1.3", chapter01.blockers_by_name)
    predict("naps", "How long?", OPTIONS, "b").settle("b")
    progress()
    (_, alt_before), (figure, alt_after) = drawn
    assert alt_before == alt_after
    axes = figure.axes[0]
    texts = [text.get_text().strip() for text in axes.texts]
    marks = {"1.2": " ✓", "1.3": " tried"}
    assert texts == [exercise_id + marks.get(exercise_id, "") for exercise_id in IDS]
    assert axes.get_xlabel() == "predictions: 1 right"


def test_the_chapters_own_solution_is_not_the_readers_progress(capsys):
    async def double(fetch):
        return 2 * await fetch()

    async def double_solution(fetch):
        return 2 * await fetch()

    check("0.1", double_solution)
    assert "passed" in capsys.readouterr().out and store.events("check", "0.1") == []
    check("0.1", double)
    assert [event["state"] for event in store.events("check", "0.1")] == ["passed"]


def test_an_interrupt_of_real_sockets_leaves_none_open():
    async def answer(request, work):
        _thread.interrupt_main()
        await asyncio.sleep(30)

    def sockets():
        return {(one.fd, one.laddr) for one in psutil.Process().net_connections("inet")}

    before = sockets()
    gc.disable()  # the check closes them, not the collector
    try:
        with pytest.raises(KeyboardInterrupt):
            disconnect04._check_sockets(answer, harness.Prove())
        assert sockets() == before
    finally:
        gc.enable()
