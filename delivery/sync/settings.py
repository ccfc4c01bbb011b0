"""The options of the server and of the broker."""

from delivery.settings import ServiceSettings
from ministream.base.settings import Settings


class ServerSettings(ServiceSettings):
    """Offer what is new in a folder to brokers, which mirror it."""


class BrokerSettings(Settings):
    """Fetch what is new from a server, on a timer."""
