"""The checks of the chaos soak find what they are there for, and nothing else."""

from __future__ import annotations

import collections
import errno
import itertools
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.mounted.mounts import why_no_mounts
from tests.soak.chaos_agent import Step, read_steps, seen_by
from tests.soak.chaos_cluster import COPIES, Cluster
from tests.soak.chaos_content import ABSENT, Content, Recipe, Seen, identified, md5_of
from tests.soak.chaos_findings import HEALTHY_BOUND, Findings, documented_errnos, summary, table
from tests.soak.chaos_ledger import Part, Record, original_of
from tests.soak.chaos_mount import Usage, tracebacks
from tests.soak.chaos_plan import ALL, ELSEWHERE, REMEMBERED, SERVICES, Epoch, plan
from tests.soak.chaos_stage import Agent, check_copies

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OLD, NEW = (Content.of(label, identified(label, 200_000)) for label in ("f v1", "f v2"))
HALF = Seen.of(NEW.data()[:100_000])


def seen(content: Content) -> Seen:
    return Seen.of(content.data())


@pytest.fixture
def findings() -> Findings:
    return Findings(seed=7, bound=18.0, errnos=[errno.EIO])


@pytest.fixture
def agent(findings: Findings) -> Iterator[Agent]:
    it = Agent(findings)
    yield it
    it.stop()


def kinds(findings: Findings) -> list[str]:
    return [it.kind for it in findings.found]


class TestChecks:
    def test_a_wrong_byte_is_found_and_said_with_seed_time_path_and_expectation(
        self, findings: Findings, capsys: pytest.CaptureFixture[str]
    ) -> None:
        spoilt = bytearray(NEW.data())
        spoilt[150_000] ^= 1

        assert findings.content("dir/f", seen(NEW), [OLD, NEW])
        assert not findings.content("dir/f", Seen.of(bytes(spoilt)), [OLD, NEW])

        assert kinds(findings) == ["wrong bytes"]
        said = capsys.readouterr().out
        for part in ("seed 7", " s ", "dir/f", "f v1 or f v2", "200000 bytes"):
            assert part in said

    def test_a_mixture_of_two_versions_is_found(self, findings: Findings) -> None:
        mixed = NEW.data()[:65536] + OLD.data()[65536:]

        findings.content("f", Seen.of(mixed), [OLD, NEW], [NEW])

        assert kinds(findings) == ["wrong bytes"]

    def test_half_of_a_version_is_right_only_where_that_may_be(self, findings: Findings) -> None:
        assert findings.content("f", HALF, [OLD], [NEW])
        assert not findings.content("f", HALF, [OLD, NEW])

        assert "a first part of f v2" in findings.found[0].found

    def test_a_missing_file_is_found(self, findings: Findings) -> None:
        findings.content("f", None, [OLD])
        findings.content("f", None, [ABSENT])

        assert kinds(findings) == ["a file is missing"]

    def test_a_missing_copy_is_found_but_for_those_spoilt_on_purpose(
        self, findings: Findings
    ) -> None:
        findings.copied("f", OLD.md5, intact=2, spoilt=0, wanted=2)
        findings.copied("f", OLD.md5, intact=1, spoilt=1, wanted=2)
        assert findings.found == []

        findings.copied("f", OLD.md5, intact=1, spoilt=0, wanted=2)

        assert kinds(findings) == ["missing copy"]

    def test_a_late_answer_is_found(self, findings: Findings) -> None:
        findings.answered("f", "close", 17.9)
        findings.answered("f", "close", 18.1)

        assert kinds(findings) == ["late answer"]
        assert findings.figures.longest == (18.1, "close f")

    def test_a_healthy_call_that_waits_or_fails_is_found(self, findings: Findings) -> None:
        findings.healthy("f", "read", HEALTHY_BOUND - 0.1)
        findings.healthy("f", "read", HEALTHY_BOUND + 0.1)
        findings.healthy("f", "read", 0.0, errno.EIO)

        assert kinds(findings) == ["a healthy call waited", "a healthy call failed"]

    def test_an_undocumented_errno_is_found(self, findings: Findings) -> None:
        findings.failed("f", "close", errno.EIO)
        findings.failed("f", "close", errno.EBADMSG)

        assert kinds(findings) == ["undocumented errno"]
        assert "EBADMSG" in findings.found[0].found

    def test_the_documented_errnos_are_those_of_semantics(self) -> None:
        assert {errno.ENOENT, errno.EACCES, errno.ENOSPC, errno.EIO} <= documented_errnos()
        assert errno.EBADMSG not in documented_errnos()

    def test_figures_and_findings_are_shown(self, findings: Findings) -> None:
        findings.count("write")
        findings.answered("f", "close", 20.0)
        findings.answered("g", "close", 21.0)

        assert "longest request" in table(findings)
        assert "late answer 2" in table(findings)
        assert summary(findings).startswith("    2 x ")

    def test_a_traceback_is_found_in_a_log(self) -> None:
        log = (
            "12:00 WARNING it failed\nTraceback (most recent call last):\n"
            '  File "x.py", line 1, in f\n    g()\nValueError: no\n12:01 INFO goes on\n'
        )

        assert tracebacks("12:00 INFO all is well\n") == []
        (found,) = tracebacks(log)
        assert found.endswith("g() | ValueError: no")
        assert tracebacks(log, ["ValueError"]) == []

    def test_tracebacks_of_one_failure_are_one(self) -> None:
        log = (
            "Traceback (most recent call last):\n  File\nIndexError: none\n\n"
            "During handling of the above exception, another exception occurred:\n\n"
            "Traceback (most recent call last):\n  File\nMemoryError\n12:01 INFO goes on\n"
        )

        assert len(tracebacks(log)) == 1
        assert tracebacks(log, ["MemoryError"]) == []

    def test_a_traceback_of_an_exception_group_is_one(self) -> None:
        log = (
            "12:00 ERROR it failed\n"
            "  + Exception Group Traceback (most recent call last):\n"
            '  |   File "x.py", line 1, in f\n'
            "  | ExceptionGroup: Exceptions from Trio nursery (2 sub-exceptions)\n"
            "  +-+---------------- 1 ----------------\n"
            "    | Traceback (most recent call last):\n"
            '    |   File "x.py", line 2, in g\n'
            "    | OSError: [Errno 12] Cannot allocate memory\n"
            "    +---------------- 2 ----------------\n"
            "    | Traceback (most recent call last):\n"
            '    |   File "x.py", line 2, in g\n'
            "    | OSError: [Errno 12] Cannot allocate memory\n"
            "    +------------------------------------\n"
            "12:01 INFO on it goes\n"
        )

        assert len(tracebacks(log)) == 1
        assert tracebacks(log, ["Cannot allocate memory"]) == []
        assert len(tracebacks(log, ["no such text"])) == 1

    def test_a_leak_is_found(self) -> None:
        few: collections.Counter[str] = collections.Counter({"keepfs": 5})
        fresh = Usage(few, few, 2, 100 << 20)

        assert Usage(few, few, 4, 120 << 20).excess(fresh) == ""
        for threads, descriptors, connections, resident in (
            (collections.Counter({"keepfs": 50}), few, 2, 0),
            (few, collections.Counter({"/dev/fuse": 50}), 2, 0),
            (few, few, 500, 0),
            (few, few, 2, 8 << 30),
        ):
            assert Usage(threads, descriptors, connections, resident).excess(fresh) != ""


class TestLedger:
    @pytest.fixture
    def record(self) -> Record:
        it = Record("f")
        it.begin(OLD)
        it.ended(OLD)
        return it

    def after(
        self,
        record: Record,
        there: Seen | None,
        beside: dict[str, Seen] | None = None,
        *,
        orderly: bool = False,
    ) -> list[str]:
        findings = Findings(1, 18.0, [])
        record.check_after_end(there, beside or {}, findings, orderly=orderly)
        return kinds(findings)

    def test_what_was_acknowledged_outlives_a_kill(self, record: Record) -> None:
        assert self.after(record, seen(OLD)) == []
        assert self.after(record, None) == ["a file is missing"]
        assert self.after(record, seen(NEW)) == ["wrong bytes"]

    def test_what_was_in_flight_is_the_old_or_the_new_never_half(self, record: Record) -> None:
        record.begin(NEW)

        assert self.after(record, seen(OLD)) == []
        assert self.after(record, seen(NEW)) == []
        assert self.after(record, HALF) == ["wrong bytes"]
        assert self.after(record, seen(OLD), {"f~unsaved": HALF}, orderly=True) == []

    def test_half_of_a_new_file_is_right_where_the_mount_was_told_to_end(
        self, findings: Findings
    ) -> None:
        record = Record("f")
        record.begin(NEW)

        record.check_after_end(HALF, {}, findings, orderly=True, drained=True)
        assert findings.found == []
        record.check_after_end(HALF, {}, findings, orderly=False, drained=False)

        assert kinds(findings) == ["wrong bytes"]

    def test_what_was_kept_outlives_an_orderly_end(self, record: Record) -> None:
        record.begin(NEW)
        record.failed(NEW, 0.0, whole=True)

        assert self.after(record, seen(OLD), orderly=False) == []
        assert self.after(record, seen(OLD), orderly=True) == ["a kept file is lost"]
        assert self.after(record, seen(NEW), orderly=True) == []
        assert self.after(record, seen(OLD), {"f~unsaved": seen(NEW)}, orderly=True) == []

    def test_what_was_put_aside_outlives_a_kill_too(self, record: Record) -> None:
        record.begin(NEW)
        record.failed(NEW, 0.0, whole=True)
        record.put_aside()

        assert self.after(record, seen(OLD)) == ["a kept file is lost"]
        assert self.after(record, seen(NEW)) == []

    def test_a_stale_copy_beside_the_file_is_found(self, record: Record) -> None:
        assert self.after(record, seen(OLD), {"f~unsaved": seen(OLD)}) == ["stale copy"]
        assert self.after(record, seen(OLD), {"f~unsaved-2": seen(NEW)}) == ["wrong bytes"]

    def test_a_reader_of_the_running_mount_sees_what_was_written_last(
        self, record: Record, findings: Findings
    ) -> None:
        record.begin(NEW)
        record.failed(NEW, 0.0, whole=True)

        record.check_live(seen(NEW), findings)
        assert findings.found == []
        record.check_live(seen(OLD), findings)

        assert kinds(findings) == ["wrong bytes"]

    def test_after_a_write_that_failed_a_first_part_is_right(
        self, record: Record, findings: Findings
    ) -> None:
        record.begin(NEW)
        record.failed(NEW, 0.0, whole=False)

        record.check_live(HALF, findings)

        assert findings.found == []

    def test_a_write_that_failed_leaves_what_was_written_before_it_and_nothing_else(
        self, record: Record
    ) -> None:
        record.begin(NEW)
        record.part = Part(NEW, 90_000, 110_000)
        record.failed(NEW, 0.0, whole=False)

        assert self.after(record, HALF) == []
        for size in (89_999, 110_001):
            assert self.after(record, Seen.of(NEW.data()[:size])) == ["wrong bytes"]
        record.begin(NEW)
        assert self.after(record, HALF) == ["wrong bytes"]

    def test_what_was_removed_stays_away(self, record: Record) -> None:
        record.begin(ABSENT)
        record.ended(ABSENT)

        assert self.after(record, None) == []
        assert self.after(record, seen(OLD)) == ["wrong bytes"]

    def test_what_is_found_is_what_the_file_has_from_then_on(self, record: Record) -> None:
        record.begin(NEW)
        record.adopt(seen(NEW))

        assert (record.acknowledged, record.later) == (NEW, [])

    def test_names_beside_a_file_are_known(self) -> None:
        assert original_of("f1~unsaved") == "f1"
        assert original_of("f1~unsaved-12") == "f1"
        assert original_of("f1.new") is None


class TestContent:
    def test_each_piece_names_its_content_and_its_place(self) -> None:
        data = identified("w/f v3", 140_000)

        assert len(data) == 140_000
        for number in range(3):
            assert data[number * 65536 :].startswith(b"<w/f v3 #%d>" % number)

    def test_a_recipe_makes_the_same_bytes_each_time(self) -> None:
        content = Content.of("x", Recipe("x", 70_000))

        assert (content.size, content.md5) == (70_000, md5_of(identified("x", 70_000)))
        assert content.is_seen(Seen.of(content.data()))


@pytest.fixture(scope="module")
def epochs() -> list[Epoch]:
    return list(itertools.islice(plan(3), 500))


class TestPlan:
    def test_a_seed_gives_one_schedule(self, epochs: list[Epoch]) -> None:
        again = plan(3)

        assert list(itertools.islice(again, 500)) == epochs
        assert next(plan(4)) != epochs[0]

    def test_the_refuge_has_no_fault_of_its_own(self, epochs: list[Epoch]) -> None:
        for epoch in epochs:
            assert epoch.refuge not in {fault.target for fault in epoch.faults}

    def test_a_service_has_one_fault_at_a_time(self, epochs: list[Epoch]) -> None:
        for epoch in epochs:
            for service in SERVICES:
                spans = sorted(
                    (it.begin, it.end) for it in epoch.faults if it.target in {service, ALL}
                )
                assert all(one[1] <= two[0] for one, two in itertools.pairwise(spans))

    def test_a_mount_ends_after_what_it_would_remember(self, epochs: list[Epoch]) -> None:
        for epoch in epochs:
            assert epoch.end or not any(it.name in REMEMBERED for it in epoch.faults)

    def test_every_fault_and_every_end_comes(self, epochs: list[Epoch]) -> None:
        names = {str(it).partition(": ")[2] for epoch in epochs for it in epoch.faults}
        ends = {epoch.end for epoch in epochs}

        for name in ("dead", "stalled in a body", "hung PUTs", "corrupt copies", "full"):
            assert name in names
        assert {"SIGTERM", "two SIGTERM", "SIGKILL", "unmount", ""} < ends
        assert any(it.target == ELSEWHERE for epoch in epochs for it in epoch.faults)

    def test_what_is_left_out_changes_nothing_else(self, epochs: list[Epoch]) -> None:
        fewer = plan(3, without=["SIGKILL", "hung"])
        for epoch in epochs[:50]:
            less = next(fewer)
            assert less.end == ("" if "SIGKILL" in epoch.end else epoch.end)
            left = {it for it in epoch.faults if "hung" not in it.name}
            if not less.end:  # what the mount would remember is left out too
                left = {it for it in left if it.name not in REMEMBERED}
            assert set(less.faults) == left


class TestAgent:
    def test_steps_end_at_the_first_that_fails_and_the_file_is_closed(
        self, agent: Agent, tmp_path: Path
    ) -> None:
        path = tmp_path / "f"
        steps = [Step("open", (str(path), os.O_RDONLY | os.O_CREAT)), Step("write", (b"x",))]

        opened, written, closed = agent.run([*steps, Step("fsync")])

        assert (opened.error, written.error, closed.error) == (0, errno.EBADF, 0)
        assert (written.call, closed.call) == ("write", "close")

    def test_a_file_is_written_and_read_whole(self, agent: Agent, tmp_path: Path) -> None:
        path = str(tmp_path / "f")
        source = Recipe("f", 3_000_000)

        done = agent.run(
            [
                Step("open", (path, os.O_WRONLY | os.O_CREAT)),
                Step("write", (source,)),
                Step("close"),
            ]
        )
        found, error = seen_by(agent.run(read_steps(path)))

        assert [it.error for it in done] == [0, 0, 0]
        assert error == 0
        assert Content.of("f", source).is_seen(found)
        assert seen_by(agent.run(read_steps(f"{path}2"))) == (None, errno.ENOENT)

    def test_the_errno_of_cp_is_told(self, agent: Agent, tmp_path: Path) -> None:
        scratch = str(tmp_path / "s")

        good, bad = (
            agent.run([Step("copy", (b"bytes", -5, str(path), scratch))])[0]
            for path in (tmp_path / "f", tmp_path / "no" / "f")
        )

        assert (good.error, (tmp_path / "f").stat().st_mtime) == (0, -5)
        assert bad.error == errno.ENOENT

    def test_a_call_without_an_answer_is_found(self, tmp_path: Path) -> None:
        findings = Findings(1, 0.0, [])
        os.mkfifo(tmp_path / "pipe")
        writers: list[int] = []

        def let_go() -> None:
            writers.append(os.open(tmp_path / "pipe", os.O_WRONLY))

        agent = Agent(findings, on_hang=let_go)
        try:
            agent.run([Step("open", (str(tmp_path / "pipe"), os.O_RDONLY))])
        finally:
            agent.stop()
            os.close(writers[0])

        assert kinds(findings) == ["no answer"]


class _Held:
    """A stage of which only the cluster and the findings are used."""

    def __init__(self, cluster: Cluster, findings: Findings) -> None:
        self.cluster, self.findings = cluster, findings


@pytest.mark.slow
def test_copies_are_counted_at_the_services_themselves(tmp_path: Path, findings: Findings) -> None:
    with Cluster(tmp_path) as cluster:
        stage = _Held(cluster, findings)
        blocks = [cluster.place(identified(f"b{i}", 3000), (0, 2)) for i in range(3)]
        locators = ",".join(it.locator for it in blocks)

        check_copies(stage, "f", locators)
        cluster.spoil(blocks[0], 0)
        check_copies(stage, "f", locators)
        assert (findings.found, findings.figures.copies) == ([], 6)

        cluster.stores[2].remove_block(blocks[1].digest)
        cluster.stores[2].corrupt(blocks[2].digest, -1)  # not by the soak
        check_copies(stage, "f", locators)

    assert COPIES == 2
    assert kinds(findings) == ["missing copy", "missing copy"]


def test_what_is_no_number_of_minutes_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak.chaos", "--minutes", "0"],
        capture_output=True,
        check=False,
        text=True,
    )

    assert done.returncode == 2
    assert "--minutes" in done.stderr


@pytest.mark.fuse
@pytest.mark.slow
def test_a_run_that_is_told_to_end_leaves_nothing_behind(tmp_path: Path) -> None:
    if (reason := why_no_mounts()) is not None and os.environ.get("CI") != "true":
        pytest.skip(reason)
    base = tmp_path / "soak"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.soak.chaos", "--seed", "1", "--keep", str(base)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch 0" in line:
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)

    assert process.returncode != 0
    with open("/proc/self/mountinfo", "rb") as mounts:
        assert bytes(base) not in mounts.read()
