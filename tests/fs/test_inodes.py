"""What the kernel's numbers mean, whatever it looks up and forgets."""

from __future__ import annotations

import collections
import errno
import os
import subprocess
import sys

import pyfuse3
import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from keepfs.fs.errnos import RefusedError
from keepfs.fs.inodes import HandleTable, InodeTable, Listing
from keepfs.fs.nodes import Caller, Metadata, Node, directory_mode, file_mode, new_inode
from keepfs.fs.root import RootDirectory


def a_node() -> Node:
    return Node(Metadata(file_mode(0o644), 0, 0))


def a_root() -> Node:
    return Node(Metadata(directory_mode(0o755), 0, 0), pyfuse3.ROOT_INODE)


class InodeTableModel(RuleBasedStateMachine):
    """A table against a count of lookups for each node."""

    nodes = Bundle("nodes")

    def __init__(self) -> None:
        super().__init__()
        self.root = a_root()
        self.table = InodeTable(self.root)
        self.known: dict[int, Node] = {self.root.inode: self.root}
        self.lookups = collections.Counter[int]()

    @rule(target=nodes)
    def make(self) -> Node:
        node = a_node()

        assert node.inode not in self.known
        self.known[node.inode] = node
        return node

    @rule(node=nodes)
    def remember(self, node: Node) -> None:
        self.table.remember(node)
        self.lookups[node.inode] += 1

    @rule(node=nodes, lookups=st.integers(1, 5))
    def forget(self, node: Node, lookups: int) -> None:
        self.table.forget(node.inode, lookups)
        self.lookups[node.inode] = max(0, self.lookups[node.inode] - lookups)

    @rule(lookups=st.integers(1, 5))
    def touch_the_root(self, lookups: int) -> None:
        self.table.remember(self.root)
        self.table.forget(self.root.inode, lookups)

    @rule(number=st.integers(2, 2**63))
    def forget_what_was_never_known(self, number: int) -> None:
        if number not in self.known:
            self.table.forget(number, 1)

    @invariant()
    def the_table_knows_what_the_kernel_knows(self) -> None:
        for inode, node in self.known.items():
            if self.lookups[inode] or node is self.root:
                assert self.table[inode] is node
            else:
                with pytest.raises(RefusedError) as caught:
                    self.table[inode]
                assert caught.value.errno == errno.ESTALE
        assert len(self.table) == 1 + sum(count > 0 for count in self.lookups.values())

    def teardown(self) -> None:
        for inode, count in self.lookups.items():
            self.table.forget(inode, count)

        assert len(self.table) == 1
        assert self.table[self.root.inode] is self.root


TestInodeTableModel = InodeTableModel.TestCase
TestInodeTableModel.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_node_keeps_its_number_when_it_is_looked_up_again() -> None:
    table, node = InodeTable(a_root()), a_node()
    table.remember(node)
    table.forget(node.inode, 1)

    table.remember(node)

    assert table[node.inode] is node


def test_numbers_are_never_used_twice() -> None:
    numbers = [new_inode() for _ in range(1000)]

    assert len(set(numbers)) == 1000
    assert pyfuse3.ROOT_INODE not in numbers


def test_a_handle_is_valid_until_it_is_closed() -> None:
    table = HandleTable[str]()
    number = table.add("a file")

    assert table[number] == "a file"
    assert table.remove(number) == "a file"
    assert len(table) == 0


def test_a_late_request_does_not_reach_a_newer_handle() -> None:
    table = HandleTable[str]()
    old = table.add("old")
    table.remove(old)
    table.add("new")

    with pytest.raises(RefusedError) as reading:
        table[old]
    with pytest.raises(RefusedError) as closing:
        table.remove(old)

    assert reading.value.errno == closing.value.errno == errno.EBADF


def test_an_open_directory_keeps_the_groups_that_its_opener_had() -> None:
    ask = "import os; os.setgroups([4242]); print(flush=True); input()"
    if os.geteuid():
        pytest.skip("only root can set groups")
    with subprocess.Popen(
        [sys.executable, "-c", ask], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        root, caller = RootDirectory({}, Metadata(0, 0, 0)), Caller(1, 2, process.pid)
        listing = trio.run(Listing.of, root, caller)
        process.communicate(b"\n")

    # Now the pid may be that of another process.
    assert listing.caller.may_read(0o040, 0, 4242)
