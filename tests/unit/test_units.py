"""Sizes and times in words."""

import pytest
from pydantic import TypeAdapter, ValidationError

from ministream.base.units import Duration, Size, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5", 1.5),
        ("90 s", 90),
        ("1h 30min", 5400),
        ("1h30m", 5400),
        ("2 days", 172800),
        (" 1 Hour ", 3600),
    ],
)
def test_a_time_is_read_from_words(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1 fortnight", "-5 s", "5 s ago", "-1", "nan", "inf", "h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration(text)


def test_settings_take_words_and_numbers() -> None:
    assert TypeAdapter(Duration).validate_python("2 min") == 120
    assert TypeAdapter(Duration).validate_python(2) == 2
    assert TypeAdapter(Size).validate_python("1.5 KiB") == 1536
    with pytest.raises(ValidationError, match="is no duration"):
        TypeAdapter(Duration).validate_python("two days")
