"""What all kinds of proxy agree on: times, ciphers, and where a proxy may write."""

RUN = "run"
"""Name of the folder, within a session's, that the proxy itself writes to."""

CIPHERSUITES = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384"
"""All are safe; the first is the fastest where the processor has AES instructions."""

CONNECT, HANDSHAKE = 10, 10
"""Seconds that a connection to a target, and a stranger's way through the handshake, may take."""

IDLE = 20 * 24 * 3600
"""Seconds after which a silent connection is cut: 20 days, longer than any scan pauses; 24.8 fit a 32-bit count of ms.

Who is dead is told by TCP keep-alive instead. There is no TCP_USER_TIMEOUT: Linux would count the time in which a
living, but paused, receiver keeps its window closed.
"""

KEEPALIVE = {"idle": 30, "interval": 10, "count": 3}
"""Silent for 30 s: ask every 10 s, give up after three."""

MAX_CONNECTIONS = 512
"""Connections that one session may hold: bounds what strangers at the listeners can cost."""
