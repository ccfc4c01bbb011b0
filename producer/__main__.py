"""`python -m producer` is `ministream producer`."""

from ministream.base.cli import add_program, new_app
from producer.program import main
from producer.settings import ProducerSettings

app = new_app("The producer service: play a scan to workers that connect.")
add_program(app, "producer", ProducerSettings, main)
app()
