"""The command line of a program, made from its settings model.

Every option of the model becomes a `typer` option under its field name and its other names. All are read as
text here and judged by the model alone, so that a value is checked by the same rules, and refused in the same
words, wherever it was given.
"""

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from ministream.base import log
from ministream.base.errors import UserError
from ministream.base.lifecycle import Stopped
from ministream.base.settings import PREFIX, Settings

EXIT_USER_ERROR, EXIT_STOPPED = 2, 130

S = TypeVar("S", bound=Settings)


def new_app(help: str) -> typer.Typer:  # noqa: A002
    """Make a typer application in which `-` and `_` are the same letter of an option's name."""
    return typer.Typer(
        help=help,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={
            "token_normalize_func": lambda name: name.replace("_", "-"),
            "max_content_width": 110,
        },
    )


def add_program(
    app: typer.Typer,
    name: str,
    model: type[S],
    main: Callable[[S], int],
    *,
    arguments: Mapping[str, str] | None = None,
    section: str = "",
) -> None:
    """Add the command `name` to `app`: load `model`, call `main` with it, end with the exit code it returns.

    `arguments` names the fields that are given by position, with their help; `main` is imported code's entry,
    called inside `run_guarded`. `section` is what settings files, environment and logs call the program, if not
    `name`.
    """
    positions = dict(arguments or {})
    service = section or name

    def command(**given: Any) -> None:
        config = given.pop("config")
        raise typer.Exit(run_guarded(service, model, main, config=config, given=given))

    parameters = [_argument(field, text, model.model_fields[field]) for field, text in positions.items()]
    parameters.append(_config_option(service))
    parameters += [_option(f, info) for f, info in model.model_fields.items() if f not in positions]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    app.command(name, help=inspect.getdoc(model))(command)


def run_guarded(
    name: str, model: type[S], main: Callable[[S], int], *, config: Path | None, given: Mapping[str, Any]
) -> int:
    """Load the settings, set up the logs and call `main`; what the user can mend becomes one line of log."""
    log.configure(name)
    try:
        overrides = {key: value for key, value in given.items() if value is not None and value != []}
        settings = model.load(name, config=config, environment=os.environ, overrides=overrides)
        log.configure(name, level=settings.log_level, style=settings.log_format)
        return main(settings)
    except UserError as error:
        log.get_logger().error(str(error))
        return EXIT_USER_ERROR
    except Stopped as reason:
        log.get_logger().warning("stopped", reason=str(reason))
        return EXIT_STOPPED
    except KeyboardInterrupt:  # before the program took signals into its own hands
        log.get_logger().warning("stopped", reason="SIGINT")
        return EXIT_STOPPED
    except Exception:
        log.get_logger().exception("internal fault: please report this")
        return 1


def _argument(field: str, text: str, info: FieldInfo) -> inspect.Parameter:
    kind: Any = list[str] | None if info.annotation == tuple[str, ...] else str | None
    annotation = Annotated[kind, typer.Argument(help=text, show_default=False)]
    return inspect.Parameter(field, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _config_option(name: str) -> inspect.Parameter:
    text = f"YAML settings file; its section `{name}` is read. Environment: {PREFIX}_{name.upper()}_<OPTION>."
    annotation = Annotated[Path | None, typer.Option("--config", metavar="FILE", help=text, show_default=False)]
    return inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _option(field: str, info: FieldInfo) -> inspect.Parameter:
    extra: dict[str, Any] = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    names = [f"--{field.replace('_', '-')}", *(name.replace("_", "-") for name in extra.get("names", ()))]
    default = "" if info.default in (None, "") else str(info.default)
    kind: Any = str | None
    shape: dict[str, Any] = {"metavar": "VALUE", "show_default": default or False}
    if info.annotation in (bool, bool | None):
        kind = bool | None
        names = [f"{name}/--no-{name[2:]}" if name.startswith("--") else name for name in names]
        shape = {"show_default": "on" if info.default else "off"}
    if get_origin(_plain(info.annotation)) is dict:
        kind = list[str] | None
        shape = {"metavar": "KEY=VALUE", "show_default": False}
    declared = typer.Option(*names, help=info.description, rich_help_panel=extra.get("group"), **shape)
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(field, keyword, default=None, annotation=Annotated[kind, declared])


def _plain(annotation: Any) -> Any:
    """Return an option's type without `None` and what checks it."""
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    if get_origin(annotation) is Annotated or type(None) in get_args(annotation):
        return _plain(kinds[0])
    return annotation
