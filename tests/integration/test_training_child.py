"""The training child as a process: killed at any moment, stopped, orphaned, and heard by its parent."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.test_training_runs import RESULT_WEIGHTS, curve, make_inputs, make_plan, result_digest, train
from tests.support.servers import wait_until
from tests.support.trainings import KILL_AT
from workers.training.child import ChildDied, TrainingChild
from workers.training.events import Ending, Event, Finished, Halted, Started, Stepped
from workers.training.plan import TrainingPlan

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PATIENCE_S = 60.0
STEPS = 44
PARENT = """
import sys, time
from pathlib import Path
from workers.training.child import TrainingChild
from workers.training.plan import TrainingPlan

child = TrainingChild(TrainingPlan.model_validate_json(Path(sys.argv[1]).read_bytes()))
child.start()
print(child.pid, flush=True)
while True:
    event = child.next_event(60)
    print(type(event).__name__, flush=True)
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base and the rows of every run here."""
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def hear_all(child: TrainingChild, events: list[Event]) -> None:
    """Add the events of a child to these until it has ended."""
    while event := child.next_event(PATIENCE_S):
        events.append(event)


def hear_it_die(child: TrainingChild, *, step: int) -> list[Event]:
    """Return the events of a child that kills itself at this step."""
    events: list[Event] = []
    with pytest.raises(ChildDied) as caught:
        hear_all(child, events)
    assert caught.value.returncode == -signal.SIGKILL
    assert isinstance(events[-1], Stepped), events[-1]
    assert events[-1].step == step
    return events


def hear(child: TrainingChild, *, until_step: int | None = None) -> list[Event]:
    """Return the events up to that of a step or to the final one."""
    events: list[Event] = []
    while not events or not is_over(events[-1], until_step):
        event = child.next_event(PATIENCE_S)
        assert event is not None, "the child says nothing"
        events.append(event)
    return events


def is_over(event: Event, until_step: int | None) -> bool:
    """Say whether this is the event to stop listening at."""
    return isinstance(event, Ending) or (isinstance(event, Stepped) and event.step == until_step)


def resumed_from(inputs: Path, tmp_path: Path, number: int, method: str) -> TrainingPlan:
    """Return the plan of the n-th epoch of the lease."""
    earlier = tuple(tmp_path / str(old) for old in range(number - 1, -1, -1))
    return make_plan(inputs, tmp_path / str(number), method, epochs=4, resume_dirs=earlier)


@pytest.mark.usefixtures("forked_trainings")
def test_a_run_that_is_killed_at_three_random_steps_equals_one_that_is_not(inputs: Path, tmp_path: Path) -> None:
    """Both methods at once: most of the time goes into starting processes."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    with ThreadPoolExecutor() as pool:
        running = {
            method: pool.submit(kill_thrice, inputs, tmp_path / method, method, random.Random(seed))
            for method in RESULT_WEIGHTS
        }
    for method, future in running.items():
        last, events, resumed_steps = future.result()
        whole = make_plan(inputs, tmp_path / method / "whole", method, epochs=4)
        expected, _ = train(whole)
        assert isinstance(events[-1], Finished)
        assert resumed_steps[0] == 0 < resumed_steps[1] < resumed_steps[2] < resumed_steps[3] < STEPS
        assert curve(events) == curve(expected)
        assert result_digest(last) == result_digest(whole)


def kill_thrice(
    inputs: Path, tmp_path: Path, method: str, chance: random.Random
) -> tuple[TrainingPlan, list[Event], list[int]]:
    """Return the last plan of a run that was killed three times, its events, and the steps that its four parts began at."""
    resumed_steps = []
    for number, first in enumerate((3, 15, 27)):
        step = chance.randint(first, first + 9)
        with TrainingChild(resumed_from(inputs, tmp_path, number, method), {KILL_AT: str(step)}) as child:
            child.start()
            heard = hear_it_die(child, step=step)
            resumed_steps += [event.resumed_step for event in heard if isinstance(event, Started)]
    last = resumed_from(inputs, tmp_path, 3, method)
    with TrainingChild(last) as child:
        child.start()
        events = hear(child)
    return last, events, [*resumed_steps, *(event.resumed_step for event in events if isinstance(event, Started))]


@pytest.mark.usefixtures("forked_trainings")
def test_a_child_that_is_asked_to_stop_halts_at_the_next_step(inputs: Path, tmp_path: Path) -> None:
    plan = make_plan(inputs, tmp_path, "lora", epochs=1000, checkpoint_every=100_000)
    with TrainingChild(plan) as child:
        child.start()
        events = hear(child, until_step=2)
        os.kill(child.pid, signal.SIGSTOP)
        while event := child.next_event(0.1):
            events.append(event)
        child.ask_to_stop()
        os.kill(child.pid, signal.SIGCONT)
        events += hear(child)
        assert isinstance(events[-1], Halted)
        last = max(event.step for event in events if isinstance(event, Stepped))
        assert events[-1].step == last
        assert Path(events[-1].directory, "manifest.json").is_file()
        assert child.next_event(10) is None


def test_a_child_that_dies_without_a_word_says_how(inputs: Path, tmp_path: Path) -> None:
    plan = make_plan(inputs, tmp_path, "lora", epochs=1000)
    with TrainingChild(plan) as child:
        child.start()
        os.kill(child.pid, signal.SIGSEGV)
        with pytest.raises(ChildDied) as caught:
            hear(child)
    assert caught.value.returncode == -signal.SIGSEGV


def test_what_a_dying_child_wrote_comes_back(inputs: Path, tmp_path: Path) -> None:
    with TrainingChild(make_plan(inputs, tmp_path), {"PYTHONHASHSEED": "nonsense"}) as child:
        child.start()
        with pytest.raises(ChildDied, match="ended with code 1") as caught:
            hear(child)
    assert caught.value.returncode == 1
    assert "PYTHONHASHSEED must be" in caught.value.stderr_tail


@pytest.mark.alone
def test_a_child_dies_with_its_parent_and_so_do_its_helpers(inputs: Path, tmp_path: Path) -> None:
    plan = make_plan(inputs, tmp_path, epochs=1000, dataloader_workers=2, validation_file=None)
    path = tmp_path / "given.json"
    path.write_text(plan.model_dump_json())
    with subprocess.Popen([sys.executable, "-c", PARENT, str(path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        group = int(parent.stdout.readline())
        while "Stepped" not in parent.stdout.readline():
            assert parent.poll() is None
        wait_until(lambda: len(members(group)) >= 3, what="the child and two helpers")
        parent.kill()
        # Helpers look themselves after five seconds.
        wait_until(lambda: not members(group), timeout_s=4.0, what="the end of the child and its helpers")


def members(group: int) -> list[int]:
    """Return the processes of a group that are alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = path.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(process_group) == group and state != "Z":
            found.append(int(path.parent.name))
    return found
