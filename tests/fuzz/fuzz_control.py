"""Feed a coverage-guided fuzzer's bytes to all that reads what a stranger or an operator wrote: `make fuzz`.

Messages of the control protocol, addresses, destinations of a policy and whole policy files: each is either read, or
refused by `UserError` (a message that is none, by protobuf's own error). Anything else ends the run with the input.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["s2cs", "ministream.base", "yaml"]):
    from google.protobuf.message import DecodeError

    from ministream.base.errors import UserError
    from s2cs.addresses import parse_address, parse_addresses
    from s2cs.policy import load_policy, parse_destination
    from s2cs.proto import scistream_pb2 as pb
    from s2cs.sessions import check_uid

POLICY = Path(f"/proc/self/fd/{os.memfd_create('policy')}")
"""A file without a disk: the fuzzer ends the process in a way that lets nobody clean up."""

MESSAGES = (pb.Request, pb.Hello, pb.UpdateTargets, pb.Release, pb.ListRequest, pb.RenewRequest)


def read_message(data: atheris.FuzzedDataProvider) -> None:
    kind = MESSAGES[data.ConsumeIntInRange(0, len(MESSAGES) - 1)]
    message = kind.FromString(data.ConsumeBytes(data.remaining_bytes()))
    assert kind.FromString(message.SerializeToString()) == message or "nan" in str(message)
    check_uid(message.uid)
    for name in ("targets", "prod_listeners", "remote_listeners"):
        for text in getattr(message, name, ()):
            parse_address(text)


def text_of(data: atheris.FuzzedDataProvider) -> str:
    return data.ConsumeUnicodeNoSurrogates(data.remaining_bytes())


def read_address(data: atheris.FuzzedDataProvider) -> None:
    text = text_of(data)
    for address in parse_addresses(text):
        assert parse_address(str(address)) == address


def read_destination(data: atheris.FuzzedDataProvider) -> None:
    destination = parse_destination(text_of(data))
    assert parse_destination(destination.text) == destination


def read_policy(data: atheris.FuzzedDataProvider) -> None:
    POLICY.write_bytes(data.ConsumeBytes(data.remaining_bytes()))
    load_policy(POLICY, ())


READERS: tuple[Callable[[atheris.FuzzedDataProvider], None], ...] = (
    read_message,
    read_address,
    read_destination,
    read_policy,
)


def one_input(raw: bytes) -> None:
    data = atheris.FuzzedDataProvider(raw)
    with contextlib.suppress(UserError, DecodeError):
        READERS[data.ConsumeIntInRange(0, len(READERS) - 1)](data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
