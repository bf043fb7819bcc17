"""Check that after any fault a target is absent, unchanged or whole."""

import os
import signal

import pytest
from injection import (
    DONE,
    SAID_IN_ONE_LINE,
    FailedCall,
    FailedWrite,
    faults_of,
    in_child,
)
from writers import WRITERS

ALL = os.environ.get("FAULTS") == "all"  # as `make faults` sets it
FORMER = b"what an earlier run left"


def contents(folder):
    """Read the files below a folder by relative name, hidden ones included."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def check_status(status, fault, writer):
    """Check that the fault occurred, and that a surviving writer reported one line."""
    if isinstance(fault, FailedWrite) and fault.deadly:
        assert status == -signal.SIGXFSZ
    elif isinstance(fault, FailedCall) and isinstance(fault.how, str):
        assert status == -signal.SIGKILL
    elif isinstance(fault, FailedWrite):
        assert status == (DONE if writer.silent else SAID_IN_ONE_LINE)
    else:  # a call that need not succeed, such as making a folder that is there
        assert status in (DONE, SAID_IN_ONE_LINE)


def check_targets(folder, status, writer, former, new):
    """Check that each target is unchanged or whole; the proof only if all are whole."""
    found = contents(folder)
    for name in writer.targets:
        assert found.get(name) in (former, new[name]), name
    is_new = [found.get(name) == new[name] for name in writer.targets]
    if writer.ordered and is_new[-1]:
        assert all(is_new)
    if status == DONE and not writer.silent:
        assert all(is_new)
    visible = {name for name in found if "/." not in f"/{name}"}
    strange = visible - new.keys() - set(writer.targets)
    assert not {name for name in strange if not name.startswith("job-step-000000001")}


@pytest.mark.parametrize("name", WRITERS)
def test_a_target_is_whole_or_absent(name, world, counts, quick_folder):
    writer = WRITERS[name](world)

    def start(label, former=None):
        folder = quick_folder / label
        folder.mkdir()
        writer.prepare(folder)
        for target in writer.targets if former else ():
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            (folder / target).write_bytes(former)
        return folder

    clean = start("clean")
    status, trace = in_child(writer.write, clean)
    assert status == DONE
    writer.read(clean)
    new = contents(clean)
    assert set(writer.targets) <= new.keys()
    counts["writers"] += 1
    for number, fault in enumerate(faults_of(trace)):
        group, place = divmod(number, 3)
        if not ALL and place != group % 3:  # one of three, in turn
            continue
        counts["faults"] += 1
        former = FORMER if group % 2 else None
        folder = start(f"fault{number}", former)
        status, _ = in_child(writer.write, folder, fault)
        check_status(status, fault, writer)
        check_targets(folder, status, writer, former, new)
        writer.check(folder)
        writer.write(folder)
        assert contents(folder) == new, fault
        counts["held"] += 1
