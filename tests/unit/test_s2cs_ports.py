"""The port pool: blocks never overlap, come back, and pass over what others listen on."""

import socket

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from ministream.base.errors import UserError
from s2cs.ports import PortPool, PortsExhausted
from tests.ports import some_port


def unused_ports(count: int) -> range:
    first = some_port(count)
    return range(first, first + count)


@pytest.fixture
def ports() -> range:
    return unused_ports(10)


def test_the_lowest_block_that_fits_is_taken_and_comes_back(ports: range) -> None:
    pool = PortPool(ports)
    first, second, third = pool.take(2), pool.take(3), pool.take(1)
    assert (first, second, third) == (ports[0:2], ports[2:5], ports[5:6])
    pool.give_back(second)
    assert pool.free == 7
    assert pool.take(4) == ports[6:10]
    assert pool.take(3) == second


def test_an_exhausted_pool_says_how_many_ports_are_left(ports: range) -> None:
    pool = PortPool(ports)
    pool.take(6)
    with pytest.raises(PortsExhausted, match=r"no 5 neighbouring ports .* leave 4 of 10; .*--port-range"):
        pool.take(5)
    with pytest.raises(PortsExhausted):
        pool.take(2**31 - 1)
    assert pool.take(4) == ports[6:10]
    with pytest.raises(PortsExhausted, match="leave 0 of 10"):
        pool.take(1)


@pytest.mark.parametrize("count", [0, -1])
def test_no_connection_is_no_wish(ports: range, count: int) -> None:
    with pytest.raises(UserError, match="num_conn of 1 or more"):
        PortPool(ports).take(count)


def test_ports_of_other_programs_are_passed_over(ports: range) -> None:
    pool = PortPool(ports)
    with socket.create_server(("127.0.0.1", ports[1])), socket.create_server(("127.0.0.1", ports[4])):
        assert pool.take(3) == ports[5:8]
        assert pool.take(2) == ports[2:4]
        with pytest.raises(PortsExhausted):
            pool.take(3)
    assert pool.take(2) == ports[0:2]


def test_a_port_whose_connections_have_just_ended_is_free(ports: range) -> None:
    address = ("127.0.0.1", ports[0])
    with socket.create_server(address) as listener, socket.create_connection(address) as client:
        server, _ = listener.accept()
        server.close()  # the side that closes first waits, and with it its port
        assert client.recv(1) == b""
    assert PortPool(ports).take(10) == ports


def test_a_session_that_comes_back_has_its_ports_though_its_proxy_listens(ports: range) -> None:
    pool = PortPool(ports)
    with socket.create_server(("127.0.0.1", ports[0])):
        pool.take_exact(ports[0:3])
        assert pool.free == 7
        assert pool.take(1) == ports[3:4]
        for block in (ports[0:3], ports[2:5], ports[1:2], ports[3:6]):
            with pytest.raises(PortsExhausted, match="held by another session"):
                pool.take_exact(block)
    pool.give_back(ports[0:3])
    assert pool.take(3) == ports[0:3]


def test_ports_outside_a_range_that_was_changed_are_kept_and_not_counted(ports: range) -> None:
    pool = PortPool(ports[0:5])
    pool.take_exact(ports[3:8])
    pool.take_exact(ports[8:10])
    assert pool.free == 3
    assert pool.take(3) == ports[0:3]
    pool.give_back(ports[3:8])
    assert pool.free == 2


def test_what_was_not_taken_is_not_given_back(ports: range) -> None:
    pool = PortPool(ports)
    block = pool.take(4)
    for other in (block[:2], block[1:], ports[5:6], ports):
        with pytest.raises(ValueError, match="not taken as one block"):
            pool.give_back(other)
    pool.give_back(block)
    with pytest.raises(ValueError, match="not taken"):
        pool.give_back(block)


def test_the_pool_looks_at_its_own_address_only(ports: range) -> None:
    with socket.create_server(("127.0.0.2", ports[0])):
        assert PortPool(ports, "127.0.0.1").take(1) == ports[0:1]
        assert PortPool(ports, "127.0.0.2").take(1) == ports[1:2]
        assert PortPool(ports, "0.0.0.0").take(1) == ports[1:2]


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "a" * 70])
def test_an_address_that_is_not_this_machines_is_refused_at_once(ports: range, host: str) -> None:
    with pytest.raises(UserError, match="give an address of this machine"):
        PortPool(ports, host)


class Pool(RuleBasedStateMachine):
    """Take, give back and restore in any order: the pool agrees with a plain set of ports."""

    blocks: Bundle[range] = Bundle("blocks")
    ports: range

    def __init__(self) -> None:
        super().__init__()
        self.pool = PortPool(self.ports)
        self.held: set[int] = set()

    @rule(target=blocks, count=st.integers(1, 8))
    def take(self, count: int) -> range:
        fitting = [s for s in range(self.ports.start, self.ports.stop - count + 1) if self.is_free(range(s, s + count))]
        if not fitting:
            with pytest.raises(PortsExhausted):
                self.pool.take(count)
            return range(0)
        block = self.pool.take(count)
        assert block == range(fitting[0], fitting[0] + count)
        self.held |= set(block)
        return block

    @rule(target=blocks, start=st.integers(0, 19), count=st.integers(1, 8))
    def take_exact(self, start: int, count: int) -> range:
        block = range(self.ports.start + start, self.ports.start + start + count)
        if not self.is_free(block):
            with pytest.raises(PortsExhausted):
                self.pool.take_exact(block)
            return range(0)
        self.pool.take_exact(block)
        self.held |= set(block)
        return block

    @rule(block=consumes(blocks))
    def give_back(self, block: range) -> None:
        if block:
            self.pool.give_back(block)
            self.held -= set(block)

    @invariant()
    def all_others_are_free(self) -> None:
        assert self.pool.free == len(set(self.ports) - self.held)

    def is_free(self, block: range) -> bool:
        return not self.held & set(block)


class TestPool(Pool.TestCase):
    settings = settings(deadline=None, max_examples=60, stateful_step_count=30)

    @classmethod
    def setUpClass(cls) -> None:
        Pool.ports = unused_ports(20)
