"""The user's code: a script, a module or a function, run in the way that Python itself would."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.errors import InvalidEntryError
from rallypoint.spec.entry import FUNCTION_FILE, PYTHON_MINOR, Function, Module, Script, as_entry, canonical
from rallypoint.worker.entry import EntryLoadError, load_function, pack_function, run_entry, unpack_function


def _python(code, *args, **env):
    """Run code in a fresh interpreter that has none of this one's modules."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOAD = """
    import sys
    from rallypoint.worker.entry import run_entry
    print(run_entry(["function", sys.argv[1]]))
"""


@pytest.fixture
def shipped(tmp_path):
    """Writes a function's file and returns its path."""

    def ship(entry):
        path = tmp_path / FUNCTION_FILE
        path.write_bytes(entry.files()[FUNCTION_FILE])
        return str(path)

    return ship


# What is an entry ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "entry"),
    [
        ("/jobs/train.py", Script("/jobs/train.py")),
        (os.path, None),
        (os.getcwd, Function(os.getcwd)),
        (Module("pkg.train", ["--epochs", "3"]), Module("pkg.train", ["--epochs", "3"])),
        (7, None),
        (None, None),
    ],
    ids=["a path", "a module object", "a function", "an entry", "a number", "nothing"],
)
def test_a_path_is_a_script_and_a_callable_a_function(given, entry):
    if entry is None:
        with pytest.raises(InvalidEntryError, match="expected a script's path, a function, or Script, Module or Func"):
            as_entry(given)
    else:
        assert as_entry(given) == entry


@pytest.mark.parametrize(
    ("entry", "identity", "arguments"),
    [
        (Script("/jobs/train.py", ["--lr", "0.1"]), "script /jobs/train.py", {"#1": "--lr", "#2": "0.1"}),
        (Module("pkg.train", ["x"]), "module pkg.train", {"#1": "x"}),
        (Function(textwrap.dedent, ("a",), {"b": 2}), "function textwrap.dedent", {"#1": "a", "b": 2}),
    ],
)
def test_an_entry_says_which_code_and_which_arguments(entry, identity, arguments):
    assert entry.identity == identity
    assert entry.arguments() == arguments


@pytest.mark.parametrize("word", ["${rallypoint:run_dir}", "x${rallypoint:port.rdzv}y", "a\0b"])
@pytest.mark.parametrize(
    "make", [lambda word: Script("t.py", [word]), lambda word: Module("m", [word]), Script, Module],
    ids=["script argument", "module argument", "script path", "module name"],
)  # fmt: skip
def test_no_argument_can_be_a_macro(make, word):
    with pytest.raises(InvalidEntryError, match="expected one without NUL and without"):
        make(word).command()


# Scripts and modules -------------------------------------------------------------------------------------------------


def test_a_script_sees_its_arguments_its_name_and_its_neighbours(tmp_path):
    (tmp_path / "neighbour.py").write_text("value = 'beside'")
    script = tmp_path / "job.py"
    script.write_text("import sys, neighbour\nprint(__name__, sys.argv, neighbour.value, __file__)")
    out = _python("import sys; from rallypoint.worker.entry import run_entry; run_entry(sys.argv[1:])",
                  *Script(str(script), ["-x", "two words"]).command())  # fmt: skip
    assert out == f"__main__ {[str(script), '-x', 'two words']} beside {script}"


def test_a_module_sees_its_arguments_and_its_name(tmp_path):
    package = tmp_path / "jobs"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "train.py").write_text("import sys\nprint(__name__, sys.argv[1:], sys.modules['__main__'].__file__)")
    out = _python("import sys; from rallypoint.worker.entry import run_entry; run_entry(sys.argv[1:])",
                  *Module("jobs.train", ["3"]).command(), PYTHONPATH=str(tmp_path))  # fmt: skip
    assert out == f"__main__ ['3'] {package / 'train.py'}"


def test_a_missing_script_is_said():
    with pytest.raises(EntryLoadError, match=r"there is no script '/nowhere/train.py'"):
        run_entry(["script", "/nowhere/train.py"])


def test_an_unknown_kind_of_entry_is_said():
    with pytest.raises(EntryLoadError, match="got an entry of kind 'notebook'"):
        run_entry(["notebook", "x"])


# Functions -----------------------------------------------------------------------------------------------------------

DAG_FILE = '''
from dataclasses import dataclass

FACTOR = 10


@dataclass
class Settings:
    epochs: int = 2


def helper(value):
    return value * FACTOR


def train(value, *, settings=Settings(), note="none"):
    """Uses a global, a helper, a class and defaults of the DAG file."""
    return {"value": helper(value), "epochs": settings.epochs, "note": note}


def unpicklable(lock=__import__("threading").Lock()):
    return lock
'''


@pytest.fixture
def dag_module(as_dag_file):
    return as_dag_file(DAG_FILE, "flights")


def test_a_function_of_a_dag_file_travels_with_its_helpers_classes_and_defaults(dag_module, shipped, tmp_path):
    file = shipped(Function(dag_module.train, (4,), {"note": "hello"}))
    (tmp_path / "flights.py").unlink()  # the job's host has no DAG file
    assert _python(LOAD, file) == "{'value': 40, 'epochs': 2, 'note': 'hello'}"


def test_a_function_of_a_dag_file_is_known_by_the_files_name(dag_module):
    assert Function(dag_module.train).identity == "function flights.train"


def test_what_travelled_by_value_travels_by_name_afterwards(dag_module):
    import cloudpickle

    Function(dag_module.train).files()
    assert dag_module.__name__ not in cloudpickle.list_registry_pickle_by_value()


def test_a_function_of_an_importable_module_travels_by_name(shipped):
    file = shipped(Function(textwrap.indent, ("a", "> ")))
    assert _python(LOAD, file) == "> a"
    assert Path(file).stat().st_size < 300


def test_a_lambda_and_a_closure_travel(shipped):
    base = 3
    assert _python(LOAD, shipped(Function(lambda x: base + x, (4,)))) == "7"


@pytest.mark.parametrize("by", ["default", "argument", "closure"])
def test_what_cannot_travel_is_said_with_what_to_do(dag_module, by):
    lock = threading.Lock()
    entry = {
        "default": Function(dag_module.unpicklable),
        "argument": Function(dag_module.train, (lock,)),
        "closure": Function(lambda: lock),
    }[by]
    with pytest.raises(InvalidEntryError, match=r"cannot be pickled .*create locks, connections and sessions inside"):
        entry.files()


# The file of a function ----------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(), st.text() | st.integers()), st.binary())
def test_a_packed_call_is_unpacked_as_it_was(header, pickled):
    assert unpack_function(pack_function(pickled, header)) == (header, pickled)


def test_a_file_that_is_no_function_is_said(tmp_path):
    (tmp_path / "f").write_bytes(b"\x80\x04 pickled by someone else")
    with pytest.raises(EntryLoadError, match="no file of a pickled function"):
        load_function(str(tmp_path / "f"))


def test_another_python_is_refused_before_anything_is_unpickled(tmp_path):
    bomb = b"cos\nsystem\n(S'touch " + str(tmp_path / "exploded").encode() + b"'\ntR."
    (tmp_path / "f").write_bytes(pack_function(bomb, {"v": 1, "name": "train", "python": "3.8"}))
    with pytest.raises(EntryLoadError, match=rf"pickled by Python 3.8 .* job's Python {PYTHON_MINOR}") as raised:
        load_function(str(tmp_path / "f"))
    assert "use the same minor version for both" in str(raised.value)
    assert not (tmp_path / "exploded").exists()


def test_a_module_that_the_job_does_not_have_is_named(tmp_path):
    pickled = b"cno_such_module_here\ntrain\n."
    (tmp_path / "f").write_bytes(pack_function(pickled, {"v": 1, "name": "train", "python": PYTHON_MINOR}))
    with pytest.raises(EntryLoadError, match="needs the module 'no_such_module_here'"):
        load_function(str(tmp_path / "f"))


# Injected values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "result"),
    [
        (lambda: "none", (), {}, "none"),
        (lambda client: client, (), {}, "C"),
        (lambda client, path: (client, path), ("p",), {}, ("C", "p")),
        (lambda path, client: (path, client), ("p",), {}, ("p", "C")),
        (lambda a, client, b=2: (a, client, b), (1, 3), {}, (1, "C", 3)),
        (lambda a, *, client: (a, client), (1,), {}, (1, "C")),
        (lambda a, client=None: (a, client), (1,), {}, (1, "C")),
        (lambda client: client, (), {"client": "mine"}, "mine"),
        (lambda a, **more: (a, more), (1,), {}, (1, {})),
        (lambda a, b: (a, b), (1, 2), {}, (1, 2)),
        (lambda a, client, *rest: (a, client, rest), (1,), {}, (1, "C", ())),
    ],
)
def test_a_parameter_called_client_gets_the_client(function, args, kwargs, result, shipped):
    file = shipped(Function(function, args, kwargs))
    assert run_entry(["function", file], inject={"client": "C"}) == result


def test_without_a_client_the_function_gets_none(shipped):
    assert run_entry(["function", shipped(Function(lambda client="local": client))]) == "local"


@pytest.mark.parametrize("args", [(1, 2, 3)])
def test_too_many_arguments_are_the_usual_error(args, shipped):
    with pytest.raises(TypeError):
        run_entry(["function", shipped(Function(lambda a, client: a, args))], inject={"client": "C"})


# Arguments as bytes --------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(), json_values))
def test_the_order_of_keys_makes_no_difference(value):
    assert canonical(dict(reversed(value.items()))) == canonical(value)


@pytest.mark.parametrize(
    "value",
    [
        "{'epochs': 3, 'lr': 0.1}",
        "{'b', 'a', 'c', 'd', 'e', 'f'}",
        "frozenset({'b', 'a', 'c', 'd'})",
        "{'columns': {'b', 'a', 'c', 'd'}, 'n': 1}",
        "__import__('pathlib').PurePosixPath('/data')",
        "__import__('datetime').date(2026, 11, 23)",
        "b'bytes'",
        "{(1, 2): 'tuple key'}",
        "type('Settings', (), {'__module__': '__main__'})()",
    ],
)
def test_equal_arguments_are_equal_in_every_process(value):
    code = f"""
        from rallypoint.spec.entry import canonical
        print(canonical({value}))
    """
    assert _python(code, PYTHONHASHSEED="1") == _python(code, PYTHONHASHSEED="2")
