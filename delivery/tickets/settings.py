"""The options of the ticket service and of its client."""

from delivery.settings import ServiceSettings
from ministream.base.settings import Settings


class TicketSettings(ServiceSettings):
    """Serve downloads by ticket."""


class DownloadSettings(Settings):
    """Ask a ticket service for files, wait, and fetch them; a download that was cut goes on where it stopped."""
