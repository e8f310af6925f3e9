"""Shows what a job compiles to: every process, word by word, without starting or importing anything."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from rallypoint.cli.terminal import text
from rallypoint.spec.gang import Macro
from rallypoint.worker import context

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import RenderableType

    from rallypoint.spec.gang import Gang, Role

_MACRO = re.compile(r"\$\{rallypoint:[a-z0-9_.]+\}")
_MEANINGS = {
    Macro.PYTHON: "the job's interpreter",
    Macro.RUN_DIR: "the attempt's folder, where the shipped files are",
    Macro.ATTEMPT: "the attempt's id",
    Macro.REPLICA: "the number of the process in its role, from 0",
    Macro.NODES: "how many processes of the role there are",
    Macro.HOST: "the address of the gang's first process",
    Macro.ADDRESS: "the address of the process's own host",
}
_DEFAULT = "the launcher's default"


def show_gang(gang: Gang) -> RenderableType:
    """Return a gang as tables: one of the whole, one for every role, and what its macros stand for."""
    whole = _fields(f"gang {gang.name}")
    whole.add_row("python", text(gang.python or _DEFAULT))
    whole.add_row("requires", text(", ".join(gang.requires) or "nothing but Python"))
    whole.add_row(
        "shipped files", _lines(f"{name} ({decimal(len(data))})" for name, data in sorted(gang.files.items()))
    )
    if gang.needs_files:
        whole.add_row("needs on the host", _lines(gang.needs_files))
    if gang.pickled_by:
        whole.add_row("pickled by", text(f"Python {gang.pickled_by}, which the job's Python has to be too"))
    if gang.secrets:
        whole.add_row("secrets", _lines(f"{name}=***" for name in sorted(gang.secrets)))
    stall = "never" if gang.stall_timeout is None else f"after {gang.stall_timeout:g} s without an event or output"
    whole.add_row("counts as hung", text(stall))
    if gang.service:
        lease = "until it is stopped" if gang.lease is None else f"{gang.lease:g} s after it was last used"
        whole.add_row("service", text(f"stays when it is ready, {lease}"))
    added = f"the file stage.json, {context.STAGE_FILE}, {context.EVENTS_URI} and the store's credentials"
    whole.add_row("every attempt adds", text(added))
    return Group(whole, *(_role(role) for role in gang.roles), _macros(gang))


def show_placed(placed: Mapping[str, Any]) -> RenderableType:
    """Return the processes of a gang as the local launcher's supervisor would start them."""
    tables = []
    for process in placed["processes"]:
        table = _fields(f"process {process['name']}")
        table.add_row("argv", _lines(process["argv"]))
        table.add_row("env", _lines(f"{name}={value}" for name, value in sorted(process["env"].items())))
        table.add_row("working folder", text(process["cwd"]))
        tables.append(table)
    return Group(text("\nas the local launcher would place it on this machine:"), *tables)


def _role(role: Role) -> Table:
    count = str(role.replicas) if role.least == role.replicas else f"{role.least} to {role.replicas}"
    table = _fields(f"role {role.name}: {count} process{'' if count == '1' else 'es'}")
    table.add_row("argv", _lines(role.argv))
    table.add_row("env", _lines(f"{name}={value}" for name, value in sorted(role.env.items())))
    asked = role.resources
    words = [
        f"cpus: {_DEFAULT if asked.cpus is None else f'{asked.cpus:g}'}",
        f"memory: {_DEFAULT if asked.memory is None else asked.memory}",
        f"gpus: {asked.gpus}",
    ]
    table.add_row("resources", _lines(words))
    if role.ports:
        table.add_row("ports", text(f"{', '.join(role.ports)} (free ones on the first host)"))
    return table


def _macros(gang: Gang) -> RenderableType:
    words = [word for role in gang.roles for word in (*role.argv, *role.env.values())]
    used = dict.fromkeys(macro for word in words for macro in _MACRO.findall(word))
    table = Table(title="the launcher fills in", title_justify="left", box=None, show_header=False, title_style="bold")
    for macro in used:
        table.add_row(_words(macro), text(_MEANINGS.get(macro, "a free port on the first host")))
    return table


def _fields(title: str) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _lines(values: Iterable[str]) -> Text:
    return Text("\n").join([_words(value) for value in values])


def _words(value: str) -> Text:
    """Return one word of a command line: macros stand out, and what would not be seen is quoted."""
    shown = value if value and value == value.strip() and value.isprintable() else repr(value)
    line = text(shown)
    line.highlight_regex(_MACRO, "magenta")
    return line
