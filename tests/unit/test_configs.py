"""The settings files that the project ships are right."""

from pathlib import Path

import pytest

from aps_mini_apps.daq.settings import DaqSettings
from aps_mini_apps.dist.settings import DistSettings
from aps_mini_apps.quality.settings import QualitySettings
from aps_mini_apps.sirt.settings import SirtSettings
from delivery.placed.settings import CheckSettings, RepairSettings, SiteSettings, UpSettings
from delivery.sync.settings import BrokerSettings
from delivery.sync.settings import ServerSettings as DeliveryServerSettings
from delivery.tickets.settings import DownloadSettings, TicketSettings
from delivery.upload.settings import IntakeSettings, UploadSettings
from ministream.base.settings import SECTIONS, Settings, read_yaml
from ministream.commands.settings import ClientSettings, RunSettings
from producer.settings import ProducerSettings
from receiver.settings import ReceiverSettings, WorkerSettings
from s2cs.settings import ServerSettings

MODELS: dict[str, type[Settings]] = {
    "run": RunSettings,
    "daq": DaqSettings,
    "dist": DistSettings,
    "sirt": SirtSettings,
    "quality": QualitySettings,
    "producer": ProducerSettings,
    "receiver": ReceiverSettings,
    "worker": WorkerSettings,
    "client": ClientSettings,
    "s2cs": ServerSettings,
    "delivery_server": DeliveryServerSettings,
    "delivery_broker": BrokerSettings,
    "delivery_tickets": TicketSettings,
    "delivery_download": DownloadSettings,
    "delivery_intake": IntakeSettings,
    "delivery_upload": UploadSettings,
    "delivery_placed_up": UpSettings,
    "delivery_placed_site": SiteSettings,
    "delivery_placed_check": CheckSettings,
    "delivery_placed_repair": RepairSettings,
}
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def test_every_section_has_its_model() -> None:
    assert set(MODELS) == set(SECTIONS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_files_load(path: Path) -> None:
    sections = read_yaml(path)
    assert sections
    for section, values in sections.items():
        settings = MODELS[section].load(section, config=path)
        assert set(values) <= settings.model_fields_set | {"d_iteration"}


@pytest.mark.parametrize(
    ("model", "defaults"),
    [
        (
            DaqSettings,
            "publisher_addr=tcp://*:50000 publisher_hwm=0 synch_count=1 repeats=1 iteration_sleep=0 "
            "projection_sleep=0.6 first_row=0 rows=0",
        ),
        (DistSettings, "data_source_hwm=0 my_publisher_freq=1"),
        (
            SirtSettings,
            "recon_output_dir=. recon_dataset_path=/data pub_addr=tcp://*:52000 pub_freq=10000 center=0 thread=1 "
            "write_freq=10000 window_length=32 window_step=1 window_iter=1 dest_port=5560",
        ),
    ],
)
def test_defaults_are_those_of_the_aps_mini_apps(model: type[Settings], defaults: str) -> None:
    settings = model()
    for pair in defaults.split():
        name, value = pair.split("=")
        default = getattr(settings, name)
        assert default == type(default)(value), name
