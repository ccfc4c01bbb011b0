"""Channels through an SSH connection to the inbound gateway; what `ssh_forward` loads once its listeners stand."""

import base64
import socket
import threading
from contextlib import suppress
from pathlib import Path

import paramiko
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ministream.base import log
from s2cs.addresses import Address, parse_address
from s2cs.dataservers.limits import CONNECT, HANDSHAKE, KEEPALIVE
from s2cs.trust import account_of

WINDOW, CHUNK = 16 << 20, 1 << 18
"""Bytes that a channel may have on the way, and that are moved at a time."""

CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
FAULTS = (OSError, EOFError, paramiko.SSHException)


class Gateway:
    """An SSH connection to one listener of the inbound gateway, made when it is needed."""

    def __init__(self, address: Address, index: int, key: Path, peer_certificate: Path) -> None:
        self._address, self._index = address, index
        peer = x509.load_pem_x509_certificate(peer_certificate.read_bytes())
        line = peer.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        self._account = account_of(peer)
        self._host_key = paramiko.ECDSAKey(data=base64.b64decode(line.split()[1]))
        self._key = paramiko.ECDSAKey.from_private_key_file(str(key))
        self._lock = threading.Lock()
        self._transport: paramiko.Transport | None = None
        self._target: Address | None = None

    def open_channel(self) -> paramiko.Channel:
        """Open a connection to the target; `FAULTS` if that fails."""
        with self._lock:
            if self._transport is None or not self._transport.is_active():
                self._transport = self._connect()
                self._target = self._ask_target(self._transport)
            transport, target = self._transport, self._target
        if target is None:
            raise paramiko.SSHException("the inbound gateway named no target")
        return transport.open_channel("direct-tcpip", (target.host, target.port), ("127.0.0.1", 0), timeout=CONNECT)

    def _connect(self) -> paramiko.Transport:
        connection = socket.create_connection((self._address.host, self._address.port), timeout=CONNECT)
        keep_alive(connection)
        transport = paramiko.Transport(connection, default_window_size=WINDOW, default_max_packet_size=1 << 15)
        try:
            options = transport.get_security_options()
            options.ciphers, options.key_types = CIPHERS, ("ecdsa-sha2-nistp256",)
            transport.set_keepalive(KEEPALIVE["idle"])
            transport.start_client(timeout=HANDSHAKE)
            if transport.get_remote_server_key() != self._host_key:
                raise paramiko.SSHException("the other end is not this session's inbound gateway")
            transport.auth_publickey(self._account, self._key)
        except BaseException:
            transport.close()
            raise
        return transport

    def _ask_target(self, transport: paramiko.Transport) -> Address:
        with transport.open_session(timeout=CONNECT) as channel:
            channel.settimeout(CONNECT)
            channel.exec_command("targets")  # whatever is asked, the answer is this
            lines = channel.makefile("rb").read().decode().split()
        return parse_address(lines[self._index])


def keep_alive(connection: socket.socket) -> None:
    """Let the system notice a peer that is gone, and send small messages at once."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE["idle"])
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE["interval"])
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE["count"])
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def serve(listener: socket.socket, gateway: Gateway) -> None:
    """Forward every connection that comes to `listener`, for ever."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=forward, args=(connection, gateway), daemon=True).start()


def forward(connection: socket.socket, gateway: Gateway) -> None:
    """Forward one connection to its end, in both directions."""
    with connection:
        keep_alive(connection)
        try:
            channel = gateway.open_channel()
        except (*FAULTS, ValueError, IndexError) as error:
            log.get_logger().error("no connection to the target", reason=str(error))
            return
        with channel:
            back = threading.Thread(target=_to_socket, args=(channel, connection), daemon=True)
            back.start()
            _to_channel(connection, channel)
            back.join()


def _to_channel(connection: socket.socket, channel: paramiko.Channel) -> None:
    try:
        while data := connection.recv(CHUNK):
            channel.sendall(data)
        channel.shutdown_write()
    except FAULTS:
        channel.close()


def _to_socket(channel: paramiko.Channel, connection: socket.socket) -> None:
    try:
        while data := channel.recv(CHUNK):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR if not channel.closed else socket.SHUT_RDWR)
    except FAULTS:
        channel.close()
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
