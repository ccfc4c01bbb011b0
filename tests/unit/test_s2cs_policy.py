"""Who may open tunnels to where: rules, limits, and targets that no rule can allow."""

import ipaddress
import re
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ministream.base.errors import UserError
from s2cs.addresses import Address, parse_address
from s2cs.auth import Identity
from s2cs.policy import Denied, Grant, Policy, Rule, default_policy, load_policy, parse_destination
from s2cs.sessions import Role

ALICE = Identity("alice@lab.org", "https://login.lab.org")
CONTROL = 5000


def reached(policy: Policy, target: str, role: Role = Role.PROD, identity: Identity = ALICE) -> str:
    [address] = policy.judge_targets(identity, role, [parse_address(target)])
    return str(address)


def refusal(policy: Policy, target: str) -> str:
    with pytest.raises(Denied) as caught:
        policy.judge_targets(ALICE, Role.PROD, [parse_address(target)])
    return str(caught.value)


def named(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let a name server of our own answer all names: the first look-up with the first of `answers`, and so on."""
    asked: list[str] = []
    remaining = list(answers)

    def look_up(host: str, *_: object, **__: object) -> list[tuple[object, object, int, str, tuple[str, int]]]:
        asked.append(host)
        answer = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in answer]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def test_without_a_network_named_by_the_operator_nothing_is_reached() -> None:
    for target in ("192.168.100.10:5560", "127.0.0.1:5560", "[::1]:5560"):
        assert "can add" in refusal(default_policy("", [CONTROL]), target)


def test_a_named_network_is_reached_on_its_ports_alone() -> None:
    policy = default_policy("192.168.100.0/24:5000-6000, [fd00:5::/64]:7", [CONTROL])
    assert reached(policy, "192.168.100.10:5560") == "192.168.100.10:5560"
    assert reached(policy, "192.168.100.255:6000") == "192.168.100.255:6000"
    assert reached(policy, "[fd00:5::1]:7") == "[fd00:5::1]:7"
    assert refusal(policy, "192.168.100.10:6001") == (
        "target 192.168.100.10:6001 is not allowed: no rule names it; "
        "the operator can add 192.168.100.10:6001 to --allow"
    )
    assert "[fd00:5:0:1::1]:7" in refusal(policy, "[fd00:5:0:1::1]:7")
    refusal(policy, "192.168.101.10:5560")
    refusal(policy, "192.168.100.10:4999")


@settings(deadline=None, max_examples=300)
@given(
    network=st.ip_addresses(v=4).flatmap(
        lambda address: st.integers(1, 32).map(lambda bits: ipaddress.IPv4Network((address, bits), strict=False))
    ),
    ports=st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(sorted),
    offset=st.integers(0, 2**32 - 1),
    port=st.integers(1, 65535),
    inside=st.booleans(),
)
def test_an_address_is_reached_exactly_if_a_rule_holds_it_and_nothing_forbids_it(
    network: ipaddress.IPv4Network, ports: list[int], offset: int, port: int, inside: bool
) -> None:
    address = network[offset % network.num_addresses] if inside else ipaddress.IPv4Address(offset)
    number = int(address)
    special = number >> 24 in {0, 127} or number >> 28 >= 0xE or number >> 16 == 0xA9FE
    special |= str(address) in {"168.63.129.16", "100.100.100.200", "192.0.0.192"}
    policy = default_policy(f"{network}:{ports[0]}-{ports[1]}", [])
    allowed = address in network and ports[0] <= port <= ports[1]
    if number >> 24 == 127:
        allowed &= str(network).startswith("127.") and network.prefixlen >= 8
        special = False
    if allowed and not special:
        assert reached(policy, f"{address}:{port}") == f"{address}:{port}"
    else:
        refusal(policy, f"{address}:{port}")


EVERYWHERE = "0.0.0.0/0:1-65535,[::/0]:1-65535"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("169.254.169.254:80", "link-local"),
        ("[fe80::1]:80", "link-local"),
        ("[fd00:ec2::254]:80", "metadata"),
        ("168.63.129.16:80", "metadata"),
        ("0.0.0.0:80", "no host in particular"),
        ("[::]:80", "no host in particular"),
        ("0:80", "no host in particular"),
        ("255.255.255.255:80", "no address of one host"),
        ("[ff02::1]:80", "no address of one host"),
        ("[::ffff:169.254.169.254]:80", "link-local"),
        ("2852039166:80", "link-local"),  # the same as one number
        ("0xa9.0xfe.0xa9.0xfe:80", "link-local"),
        ("[64:ff9b::a9fe:a9fe]:80", "hides an IPv4 address"),
        ("[2002:7f00:1::]:80", "hides an IPv4 address"),
        ("127.0.0.1:80", "no rule names it"),
        ("127.1:80", "no rule names it"),
        ("[::1]:80", "no rule names it"),
        ("[::ffff:127.0.0.1]:80", "no rule names it"),
        ("localhost:80", "no rule names it"),
    ],
)
def test_a_rule_for_the_whole_world_allows_neither_this_gateway_nor_metadata(target: str, reason: str) -> None:
    assert reason in refusal(default_policy(EVERYWHERE, []), target)


def test_loopback_is_reached_where_a_rule_names_it() -> None:
    policy = default_policy("127.0.0.0/8:6000-6010", [CONTROL])
    assert reached(policy, "127.0.0.1:6001") == "127.0.0.1:6001"
    assert reached(policy, "localhost:6001") == "127.0.0.1:6001"
    assert reached(default_policy("localhost:6000-6010", []), "LOCALHOST:6001") in {"127.0.0.1:6001", "[::1]:6001"}


@pytest.mark.parametrize("target", ["127.0.0.1:5000", "127.0.0.2:5000", "localhost:5000", "[::ffff:127.0.0.1]:5000"])
def test_the_control_server_is_never_a_target(target: str) -> None:
    assert "the control server itself" in refusal(default_policy("127.0.0.0/8:1-65535", [CONTROL]), target)


def test_another_machines_port_of_the_same_number_is_a_target() -> None:
    assert reached(default_policy("192.0.2.0/24:5000", [CONTROL]), "192.0.2.7:5000") == "192.0.2.7:5000"


def test_a_name_is_judged_and_used_as_the_address_that_it_means(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = named(monkeypatch, ["192.168.100.10"], ["169.254.169.254"])
    policy = default_policy("192.168.100.0/24:5560-5570", [])
    targets = [parse_address(f"detector.lab:{port}") for port in (5560, 5561)]
    found = policy.judge_targets(ALICE, Role.PROD, targets)
    assert found == (Address("192.168.100.10", 5560), Address("192.168.100.10", 5561))
    assert asked == ["detector.lab"]  # once: a second look-up could have another answer
    assert "(169.254.169.254) is not allowed: it is link-local" in refusal(policy, "detector.lab:5560")


def test_of_the_addresses_of_a_name_an_allowed_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, ["10.0.0.1", "192.168.100.10"])
    assert reached(default_policy("192.168.100.0/24:1-9", []), "detector.lab:5") == "192.168.100.10:5"


def test_a_rule_that_holds_a_name_lets_that_name_pass_but_not_to_this_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = default_policy("Detector.lab:5560", [])
    named(monkeypatch, ["10.9.8.7"], ["10.9.8.7"], ["127.0.0.1"], ["169.254.169.254"])
    assert reached(policy, "detector.LAB.:5560") == "10.9.8.7:5560"
    assert "no rule names it" in refusal(policy, "other.lab:5560")
    assert "no rule names it" in refusal(policy, "detector.lab:5560")
    assert "link-local" in refusal(policy, "detector.lab:5560")


def test_a_name_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = default_policy(EVERYWHERE, [])
    assert "is not known to this gateway" in refusal(policy, f"{'a' * 70}.invalid:80")  # no name has such a label
    assert "is not known to this gateway" in refusal(policy, "nul\0byte:80")

    def know_nothing(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", know_nothing)
    assert "is not known to this gateway" in refusal(policy, "no-such-host.invalid:80")


def test_one_bad_target_among_good_ones_is_named() -> None:
    policy = default_policy("192.168.100.0/24:5560", [])
    targets = [parse_address(f"192.168.100.{number}:5560") for number in (1, 2)] + [Address("10.0.0.1", 22)]
    with pytest.raises(Denied, match=re.escape("target 10.0.0.1:22 is not allowed")):
        policy.judge_targets(ALICE, Role.PROD, targets)


FILE = """
rules:
  - subjects: ["alice@*"]
    issuers: ["https://login.lab.org"]
    roles: [PROD]
    targets: ["192.168.100.0/24:5000-6000"]
    max_sessions: 2
    max_connections: 4
    max_rate: 100 MB
    max_lease: 2 days
  - subjects: ["alice@*", "bob@*"]
    targets: ["192.168.101.11:5074-5080"]
"""


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    path = tmp_path / "policy.yaml"
    path.write_text(FILE)
    return load_policy(path, [CONTROL])


def test_the_first_rule_that_matches_decides_alone(policy: Policy) -> None:
    assert reached(policy, "192.168.100.10:5560") == "192.168.100.10:5560"
    assert "policy.yaml" in refusal(policy, "192.168.101.11:5074")
    assert reached(policy, "192.168.101.11:5074", Role.CONS) == "192.168.101.11:5074"
    with pytest.raises(Denied):
        reached(policy, "192.168.100.10:5560", Role.CONS)
    namesake = Identity("alice@lab.org", "https://elsewhere.example")
    with pytest.raises(Denied):
        reached(policy, "192.168.100.10:5560", identity=namesake)


def test_who_is_in_no_rule_may_do_nothing(policy: Policy) -> None:
    mallory = Identity("mallory", "local")
    sentence = r"no rule lets mallory \(local\) open tunnels as CONS; .* the policy file .*policy\.yaml"
    with pytest.raises(Denied, match=sentence):
        policy.judge(mallory, Role.CONS, 1, 0, 0)
    with pytest.raises(Denied, match=sentence):
        policy.judge_targets(mallory, Role.CONS, [])


def test_a_grant_says_how_fast_and_how_long(policy: Policy) -> None:
    assert policy.judge(ALICE, Role.PROD, 4, 5_000_000, 1) == Grant(rate=5_000_000, max_lease=172800.0)
    assert policy.judge(ALICE, Role.PROD, 4, 0, 1) == Grant(rate=100_000_000, max_lease=172800.0)
    assert policy.judge(ALICE, Role.CONS, 4000, 0, 999) == Grant(rate=0, max_lease=0.0)


@pytest.mark.parametrize(
    ("num_conn", "rate", "live", "reason"),
    [
        (4, 0, 2, "2 sessions at once, not 3"),
        (5, 0, 1, "4 connections of a session, not 5"),
        (4, 100_000_001, 1, "100000000 bytes per second, not 100000001"),
    ],
)
def test_a_limit_is_a_limit(policy: Policy, num_conn: int, rate: int, live: int, reason: str) -> None:
    with pytest.raises(Denied, match=reason):
        policy.judge(ALICE, Role.PROD, num_conn, rate, live)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rules: [{subjects: ['*'], target: [a:1]}]", "rule 1, target: no such key; known are subjects"),
        ("rules: [{subjects: ['*']}, {subjects: []}]", "rule 2, subjects: "),
        ("rules: [{roles: [PROD]}]", "rule 1, subjects: Field required"),
        ("rules: [{subjects: ['*'], roles: [BOTH]}]", "rule 1, roles: Input should be 'PROD' or 'CONS'"),
        ("rules: [{subjects: ['*'], targets: ['10.0.0.1/8:1']}]", "rule 1, targets: '10.0.0.1/8:1' names no targets"),
        ("rules: [{subjects: ['*'], max_sessions: 0}]", "rule 1, max_sessions: "),
        ("rules: [{subjects: ['*'], max_lease: soon}]", "rule 1, max_lease: 'soon' is no duration"),
        ("rules: [{subjects: ['*'], max_rate: fast}]", "rule 1, max_rate: "),
        ("rule: []", "rule: no such key; known are rules"),
        ("", "its top level: "),
        ("rules: [", "is not YAML"),
        ("\x00", "is not YAML"),
    ],
)
def test_a_bad_policy_file_is_refused_with_the_place(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_policy(path, [])
    assert str(path) in str(caught.value)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_policy_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load_policy(tmp_path / "none.yaml", [])
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00rules")
    with pytest.raises(UserError, match="is not YAML"):
        load_policy(tmp_path / "binary.yaml", [])


NO_TARGETS = """
host|host:|:5|h:0|h:70000|h:9-5|h:1-|h:-1|h:5-6-7|fd00::1:5|h/8:5|[h]:5|10.0.0.1/8:5|10.0.0.0/33:5|10.0.0:5|ho st:5
h;x:5|h:²|[::1:5|*:5
"""


@pytest.mark.parametrize("text", ["", *NO_TARGETS.strip().replace("\n", "|").split("|")])
def test_what_names_no_targets_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="names no targets"):
        parse_destination(text)
    if text:
        with pytest.raises(UserError, match="--allow"):
            default_policy(text, [])


@settings(deadline=None)
@given(st.text() | st.from_regex(r"[\[a-f0-9:./\]]{1,12}:[0-9-]{1,11}", fullmatch=True))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_destination(text)
    except UserError:
        return
    assert found.ports
    assert (found.network is None) == bool(found.name)


def test_a_rule_of_python_values_is_the_same_as_one_of_words() -> None:
    words = Rule.model_validate({"subjects": ["*"], "targets": ["10.0.0.0/8:1-9"]})
    assert words == Rule(subjects=("*",), targets=(parse_destination("10.0.0.0/8:1-9"),))
