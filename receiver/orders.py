"""What a client may ask for, and the command line of each worker that comes of it."""

import ipaddress
import os
from collections.abc import Mapping, Sequence
from typing import Any

from aps_mini_apps.sirt.settings import SirtSettings
from ministream.base.errors import UserError
from receiver.desk import Order
from receiver.settings import ReceiverSettings
from s2cs.addresses import parse_address

_WINDOW = ("window_length", "window_step", "window_iter", "write_freq")
_ENGINE = ("center", "model", "norm", "history", "backend", "thread", "timeout")

OPTIONS = frozenset((*_WINDOW, *_ENGINE))
"""What a client may choose; where files go and what is published is the receiver's own affair."""


def check_order(order: Order, settings: ReceiverSettings) -> Order:
    """Return `order` with its listeners in one form.

    Raises
    ------
    UserError
        If its listeners are none, too many, no addresses or not where they may be, or an option is none or wrong.
    """
    listeners = [str(parse_address(listener)) for listener in order.listeners]
    if not listeners:
        raise UserError("no listeners: name HOST:PORT for each worker, as the gateway told them")
    if len(set(listeners)) != len(listeners):
        raise UserError("two workers cannot share a listener: name a different HOST:PORT for each")
    most, name = settings.workers, "workers"
    if settings.remote_workers:
        most, name = settings.remote_workers, "remote_workers"
    if len(listeners) > most:
        raise UserError(f"{len(listeners)} listeners need as many workers, but the receiver has {most} (option {name})")
    for listener in listeners:
        _check_network(listener, settings)
    reconstruction(order, settings)
    return Order(listeners=listeners, options=order.options, tunnel=order.tunnel)


def _check_network(listener: str, settings: ReceiverSettings) -> None:
    host = parse_address(listener).host
    if not settings.allowed:
        return
    try:
        if any(ipaddress.ip_address(host) in network for network in settings.allowed):
            return
    except ValueError:
        pass
    raise UserError(
        f"listener {listener} is not in the networks that this receiver may connect to: {settings.networks}"
    )


def reconstruction(order: Order, settings: ReceiverSettings) -> SirtSettings:
    """Return the reconstruction's settings as each worker will load them."""
    if strange := sorted(set(order.options) - OPTIONS):
        raise UserError(f"a client cannot choose {', '.join(strange)}: it may choose {', '.join(sorted(OPTIONS))}")
    try:
        return SirtSettings.load("sirt", config=settings.config_file, environment=os.environ, overrides=order.options)
    except UserError as error:
        raise UserError(str(error).replace("command line: ", "option ")) from error


def worker_options(order: Order, rank: int, chosen: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what worker `rank` is told, apart from where its files go."""
    return {
        **(order.options if chosen is None else chosen),
        "source": f"tcp://{order.listeners[rank]}",
        "rank": rank,
        "workers": len(order.listeners),
        "pub_addr": "",
    }


def worker_names(order: Order) -> Sequence[str]:
    """Return what the logs call each worker."""
    count = len(order.listeners)
    return ["sirt"] if count == 1 else [f"sirt{rank}" for rank in range(count)]
