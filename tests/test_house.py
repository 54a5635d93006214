"""The rules of the house that no linter knows: sizes, the three "only" places, and what is promised to importers.

What each floor may import is import-linter's to say (pyproject.toml; `make check` runs it), style is ruff's.
"""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import patchscopes

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "patchscopes"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
BENCH = sorted((ROOT / "bench").rglob("*.py"))

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 6

# The public verbs, whose options are fixed by the interface that scripts depend on. Commands are known by decorator.
VERBS = {("api.py", name) for name in ("load", "inspect", "stream", "prepare")}

# What a user hands over, and so may be named anywhere; every other name of Transformers stays in models/ and kv.py.
HF_NOUNS = {"PreTrainedModel", "PreTrainedTokenizerBase"}

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def room(path: Path) -> str:
    """The room that a file of the package belongs to: `models/loader.py` → `models`, `kv.py` → `kv`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def where(path: Path, node: ast.stmt | ast.expr | None = None) -> str:
    line = f":{node.lineno}" if node else ""
    return f"{path.relative_to(ROOT).as_posix()}{line}"


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))


def functions(path: Path) -> Iterator[FunctionNode]:
    return (node for node in nodes(path) if isinstance(node, FunctionNode))


def imports(path: Path) -> Iterator[tuple[ast.Import | ast.ImportFrom, str, tuple[str, ...]]]:
    """Every import as (node, module, names): `import a.b` has no names, `from a import b, c` has two."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, ()
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node, node.module, tuple(alias.name for alias in node.names)


def words(path: Path) -> Iterator[tuple[ast.stmt | ast.expr, str]]:
    """Every name, attribute and short string of the code, so that `getattr(block, "register_…")` is seen too."""
    for node in nodes(path):
        match node:
            case ast.Name(id=word) | ast.Attribute(attr=word):
                yield node, word
            case ast.Constant(value=str(word)) if word.isidentifier():
                yield node, word
            case _:
                pass


def n_parameters(function: FunctionNode) -> int:
    """How many parameters a function has, `self` and `cls` not counted."""
    args = function.args
    named = [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    bound = bool(named) and named[0] in ("self", "cls")
    return len(named) - bound + (args.vararg is not None) + (args.kwarg is not None)


def is_public_verb(path: Path, function: FunctionNode) -> bool:
    if room(path) != "cli":
        return (path.relative_to(PACKAGE).as_posix(), function.name) in VERBS
    called = (decorator.func for decorator in function.decorator_list if isinstance(decorator, ast.Call))
    return any(isinstance(func, ast.Attribute) and func.attr in ("command", "group") for func in called)


def test_every_file_of_the_package_is_found() -> None:
    assert Path(patchscopes.__file__).parent.samefile(PACKAGE), "tests run against another patchscopes than this clone"
    assert PACKAGE / "spec.py" in SOURCES
    assert Path(__file__).resolve() in TESTS


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (*SOURCES, *TESTS, *BENCH)}
    long = [f"{where(path)} has {n} lines" for path, n in lengths.items() if n > MAX_FILE_LINES]
    assert not long, f"a file has at most {MAX_FILE_LINES} lines; make a package of it: {long}"


def test_functions_are_short() -> None:
    """From `def` to the last line, docstring included, decorators not."""
    long = [
        f"{where(path, function)} {function.name} has {n} lines"
        for path in (*SOURCES, *TESTS, *BENCH)
        for function in functions(path)
        if (n := (function.end_lineno or 0) - function.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not long, f"a function has at most {MAX_FUNCTION_LINES} lines: {long}"


def test_functions_take_few_parameters() -> None:
    many = [
        f"{where(path, function)} {function.name} takes {n}"
        for path in SOURCES
        for function in functions(path)
        if (n := n_parameters(function)) > MAX_PARAMETERS and not is_public_verb(path, function)
    ]
    assert not many, f"a function takes at most {MAX_PARAMETERS} parameters; find the noun among them: {many}"


def test_only_hooks_registers_hooks() -> None:
    found = [
        f"{where(path, node)} {word}"
        for path in SOURCES
        if room(path) != "hooks"
        for node, word in words(path)
        if word.startswith("register_") and word.endswith("hook")
    ]
    assert not found, f"only hooks.py registers a hook; use its capture(...) and patch(...): {found}"


def test_only_kv_touches_the_cache_classes_of_transformers() -> None:
    found = [
        f"{where(path, node)} {module}"
        for path in SOURCES
        if room(path) != "kv" and path.name != "watch.py"  # which looks whether their methods are what they were
        for node, module, names in imports(path)
        if module.startswith("transformers")
        and (module == "transformers.cache_utils" or any(name.endswith("Cache") for name in names))
    ]
    found += [
        f"{where(path, node)} {word}"
        for path in SOURCES
        if room(path) != "kv" and path.name != "watch.py"  # which looks whether their methods are what they were
        for node, word in words(path)
        if word in {"cache_utils", "DynamicCache", "StaticCache", "HybridCache", "EncoderDecoderCache", "DynamicLayer"}
    ]
    assert not found, f"only kv.py touches the cache classes of Transformers: {found}"


def test_only_models_and_kv_import_transformers() -> None:
    """Elsewhere only the two nouns that a user may hand over are known, and no module below the package's top."""
    found = [
        f"{where(path, node)} {module}"
        for path in SOURCES
        if room(path) not in ("models", "kv")
        for node, module, names in imports(path)
        if module.split(".")[0] == "transformers"
        and not (module == "transformers" and names and HF_NOUNS.issuperset(names))
    ]
    assert not found, f"only models/ knows the classes of Transformers: {found}"


def test_rooms_import_each_other_by_their_own_door() -> None:
    """The package's front re-exports every floor, so an import through it would hide from import-linter."""
    front = set(patchscopes.__all__) - {"__version__"}
    found = [
        where(path, node)
        for path in SOURCES
        for node, module, names in imports(path)
        if module == "patchscopes" and (not names or front.intersection(names))
    ]
    assert not found, f"inside the package, import a name from the room that defines it: {found}"


def test_the_library_never_prints() -> None:
    found = [
        where(path, node)
        for path in SOURCES
        if room(path) != "cli"
        for node in nodes(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not found, f"only cli/ prints: {found}"


def test_text_files_are_read_and_written_as_utf_8() -> None:
    """What the locale says, as in a container without one, is no file's encoding."""
    takes_encoding = {"read_text", "write_text", "open", "Popen", "run", "TextIOWrapper"}
    found = [
        where(path, node)
        for path in SOURCES
        if room(path) != "models"  # which reads what pip says, in whatever encoding
        for node in nodes(path)
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) in takes_encoding
        and is_of_text(node)
    ]
    assert not found, f"say encoding='utf-8': {found}"


def is_of_text(call: ast.Call) -> bool:
    """Whether a call reads or writes text without saying in which encoding."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    words = {word.arg: word.value for word in call.keywords}
    if "encoding" in words or None in words:
        return False
    if name in ("read_text", "write_text"):
        return True
    if name in ("Popen", "run"):
        return "text" in words or "universal_newlines" in words
    modes = [value.value for value in (*call.args, *words.values()) if isinstance(value, ast.Constant)]
    is_opened = name == "open" and getattr(getattr(call.func, "value", None), "id", "") != "os"
    return is_opened and not any(isinstance(mode, str) and "b" in mode for mode in modes)


def test_the_environment_is_read_in_cli_and_settings() -> None:
    found = [
        f"{where(path, node)} {word}"
        for path in SOURCES
        if room(path) not in ("cli", "settings") and path.name != "hasher.py"  # which names what it cannot follow
        for node, word in words(path)
        if word in {"environ", "getenv", "environb"}
    ]
    assert not found, f"the environment is read in cli/ and in settings.py: {found}"


def test_properties_that_are_computed_once_hold_no_lock() -> None:
    """Python 3.11's own hold one that a forked child inherits closed (`patchscopes/cached.py`)."""
    found = [
        where(path, node)
        for path in SOURCES
        if path.name != "cached.py"
        for node, module, names in imports(path)
        if module == "functools" and "cached_property" in names
    ]
    assert not found, f"cached_property is that of patchscopes.cached: {found}"


def test_shapes_are_checked_wherever_they_are_written() -> None:
    """What `--jaxtyping-packages` lists are the rooms of the files that import jaxtyping, neither more nor less."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["addopts"]
    (listed,) = (option for option in options if option.startswith("--jaxtyping-packages="))
    *packages, checker = listed.removeprefix("--jaxtyping-packages=").split(",")
    with_shapes = {room(path) for path in SOURCES for _, module, _ in imports(path) if module == "jaxtyping"}
    assert packages == sorted(f"patchscopes.{name}" for name in with_shapes)
    assert checker == "beartype.beartype"


def test_no_file_is_a_drawer() -> None:
    drawers = {"utils", "util", "helpers", "misc", "common"}
    found = [where(path) for path in SOURCES if drawers & {*path.relative_to(PACKAGE).parts, path.stem}]
    assert not found, f"a helper lives with its only caller, or is a noun that has no name yet: {found}"


@pytest.mark.parametrize("name", sorted(patchscopes.__all__))
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(patchscopes, name) is not None
