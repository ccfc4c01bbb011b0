"""Settings are a model: one class per program, and from it its command line, YAML keys and environment.

Where a value comes from, the later winning: the model's default, the YAML file's section, the environment
(`MINISTREAM_<SECTION>_<OPTION>`), the command line. Every place knows an option by the same names: the
field's own, and the names that it has in the APS mini-apps (`option(names=...)`); `-` and `_` are one letter. An
unknown name is refused wherever it stands, with the nearest right one. (pydantic-settings reads these places
too, but applies no prefix to aliases and lets unknown variables pass: hence the forty lines here.)
"""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from ministream.base.errors import UserError
from ministream.base.log import LogFormat, LogLevel

PREFIX = "MINISTREAM"


def option(
    default: Any,
    *,
    names: str = "",
    help: str,  # noqa: A002
    group: str = "Options",
    variable: str = "",
    **constraints: Any,
) -> Any:
    """Declare an option: a pydantic field that also knows its other names and its place in `--help`.

    Parameters
    ----------
    default
        The value where nobody gives one.
    names
        Other names, as typed on a command line and divided by spaces: ``"-c --publisher_addr"``.
    help
        One sentence, with the unit.
    group
        The heading under which `--help` shows it.
    variable
        Environment variable, beside our own, that other programs know the option by; an empty one is none.
    constraints
        As pydantic's `Field` takes them: `ge`, `gt`, `le`, …
    """
    extra: dict[str, Any] = {"names": names.split(), "group": group, "variable": variable}
    return Field(default, description=help, json_schema_extra=extra, **constraints)


class Settings(BaseModel):
    """Options that every program has, and the way to load them all."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    _config: Path | None = PrivateAttr(default=None)

    log_level: LogLevel = option("info", help="Least level that is logged: debug, info, warning, error.", group="Logs")
    log_format: LogFormat = option("text", help="text for people, json for machines.", group="Logs")

    @classmethod
    def load(
        cls,
        section: str,
        *,
        config: Path | None = None,
        environment: Mapping[str, str] | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Self:
        """Merge defaults, the `section` of the YAML file `config`, environment and `overrides`.

        Raises
        ------
        UserError
            Naming the option, the place it stands in, and what is wrong with it.
        """
        names = known_names(cls)
        given = _given(section, config, environment or {}, overrides or {}, _variables(cls))
        values: dict[str, Any] = {}
        places: dict[str, str] = {}
        for place, key, value in given:
            field = names.get(_canonical(key)) or _refuse(place, key, names)
            values[field], places[field] = value, f"{place}: {key}"
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            raise UserError(_explain(error, places)) from error
        settings._config = config  # noqa: SLF001 - its own class
        return settings

    @property
    def config_file(self) -> Path | None:
        """The YAML file that these settings were read from, if any."""
        return self._config


def known_names(model: type[Settings]) -> dict[str, str]:
    """Map every name of every option of `model`, in canonical form, to its field."""
    names = {name: name for name in model.model_fields}
    for field, info in model.model_fields.items():
        extra = info.json_schema_extra
        for name in extra["names"] if isinstance(extra, dict) else ():  # type: ignore[union-attr]
            names[_canonical(str(name))] = field
    return names


def _canonical(key: str) -> str:
    return key.lstrip("-").replace("-", "_").lower()


def _variables(model: type[Settings]) -> dict[str, str]:
    """Map the environment variables of other programs to fields."""
    extras = {field: info.json_schema_extra for field, info in model.model_fields.items()}
    return {str(extra["variable"]): field for field, extra in extras.items() if isinstance(extra, dict)}


def _given(
    section: str,
    config: Path | None,
    environment: Mapping[str, str],
    overrides: Mapping[str, Any],
    variables: Mapping[str, str],
) -> Iterator[tuple[str, str, Any]]:
    """Yield (place, key, value) for all that was given, the weakest place first."""
    if config is not None:
        for key, value in read_yaml(config).get(section, {}).items():
            yield f"{config} [{section}]", str(key), value
    for key, field in variables.items():
        if environment.get(key):
            yield f"environment {key}", field, environment[key]
    prefix = f"{PREFIX}_{section.upper()}_"
    for key, value in environment.items():
        if key.startswith(prefix):
            yield f"environment {key}", key.removeprefix(prefix), value
    for key, value in overrides.items():
        yield "command line", key, value


SECTIONS = (
    "run",
    "daq",
    "dist",
    "sirt",
    "quality",
    "producer",
    "receiver",
    "worker",
    "client",
    "s2cs",
    "delivery_server",
    "delivery_broker",
    "delivery_tickets",
    "delivery_download",
    "delivery_intake",
    "delivery_upload",
    "delivery_placed_up",
    "delivery_placed_site",
    "delivery_placed_check",
    "delivery_placed_repair",
)
"""What a settings file may hold; each program reads the section of its own name."""


def read_yaml(path: Path) -> dict[str, dict[str, Any]]:
    """Read a settings file: a mapping of sections (`daq`, `dist`, …) to mappings of options."""
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise UserError(f"settings file {path}: {error.strerror}; give an existing YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"settings file {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"settings file {path}: expected sections such as {', '.join(SECTIONS)}")
    for section, values in content.items():
        if section not in SECTIONS:
            _refuse(f"settings file {path}", str(section), {name: name for name in SECTIONS})
        if values is not None and not isinstance(values, dict):
            raise UserError(f"settings file {path}: section {section} must hold `option: value` lines")
    return {section: values or {} for section, values in content.items()}


def _refuse(place: str, key: str, names: Mapping[str, str]) -> str:
    near = difflib.get_close_matches(_canonical(key), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(set(names.values())))}"
    raise UserError(f"{place}: no option is called {key!r}; {hint}")


def _explain(error: ValidationError, places: Mapping[str, str]) -> str:
    lines = []
    for problem in error.errors():
        field = str(problem["loc"][0]) if problem["loc"] else ""
        message = problem["msg"].removeprefix("Value error, ")
        given = "" if not field else f" (given: {problem['input']!r})"
        lines.append(f"{places.get(field, field or 'settings')}: {message}{given}")
    return "; ".join(lines)
