"""Proxies (S2DS): templates for each kind, what runs them, and what keeps them running."""

from s2cs.dataservers.spec import ProxySpec, Tls, Traffic
from s2cs.dataservers.supervisor import Proxies, Proxy

__all__ = ["Proxies", "Proxy", "ProxySpec", "Tls", "Traffic"]
