"""The house: imports only go down, the ground knows no torch, and `--help` imports nothing heavy."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import minitron_cli

ROOT = Path(minitron_cli.__file__).parent

FLOOR = {
    "errors": 0,
    "pace": 0,
    "__init__": 0,
    "spec": 1,
    "families": 2,
    "checkpoint": 3,
    "data": 4,
    "hf": 4,
    "importance": 5,
    "prune": 5,
    "training": 5,
    "evaluate": 5,
    "toy": 5,
    "chain": 6,
    "search": 6,
    "report": 6,
    "api": 7,
    "cli": 7,
    "__main__": 8,
}
HEAVY = ("torch", "transformers", "datasets", "lm_eval", "matplotlib", "accelerate")
GROUND = ("errors", "pace", "__init__", "spec", "families")


def _package(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def _imports(path: Path, top_level_only: bool = False) -> list[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_go_down(path: Path) -> None:
    mine = _package(path)
    for name in _imports(path):
        if name.split(".")[0] != "minitron_cli" or name in ("minitron_cli", "minitron_cli.__version__"):
            continue
        other = name.split(".")[1]
        if other != mine:
            assert FLOOR[other] < FLOOR[mine], f"{mine} imports {name}, which is not below it"


def test_names_of_modules_are_typed_in_the_tables_only() -> None:
    """Norms, blocks and projections are found through a family's table (see hf/parts and hf/hooks)."""
    names = ("input_layernorm", "post_attention_layernorm", "self_attn", "down_proj", "o_proj", "'norm' in")
    # The first draws the grammar; fused experts have attributes by transformers' own interface.
    excused = {"spec/axes.py", "hf/experts.py"}
    for path in FILES:
        where = path.relative_to(ROOT).as_posix()
        if _package(path) != "families" and where not in excused:
            code = [line for line in _code(path).splitlines() if any(name in line for name in names)]
            assert not code, f"{where} names a module of a model: {code}"


def _code(path: Path) -> str:
    """The source without docstrings and comments."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
    return ast.unparse(tree)


def test_no_file_imports_itself_through_others() -> None:
    """Lazy imports and imports for type checkers count too."""
    modules = {".".join(["minitron_cli", *p.relative_to(ROOT).with_suffix("").parts]): p for p in FILES}
    graph = {}
    for name, path in modules.items():
        imported = {known for found in _imports(path) for known in (found, found.rpartition(".")[0])}
        graph[name] = imported & modules.keys() - {name}
    TopologicalSorter(graph).prepare()  # raises a CycleError that names the files


def test_nothing_forks() -> None:
    """A fork of a process in which torch has started its threads waits for them forever: spawn, or run a new one."""
    for path in [*FILES, *(Path(__file__).parent / "benchmarks").glob("*.py")]:
        assert not [word for word in ("os.fork(", '"fork"', "'fork'", "forkserver") if word in _code(path)], path


@pytest.mark.parametrize("package", GROUND)
def test_the_ground_imports_nothing_heavy(package: str) -> None:
    for path in (p for p in FILES if _package(p) == package):
        heavy = [name for name in _imports(path) if name.split(".")[0] in (*HEAVY, "safetensors")]
        assert not heavy, f"{path}: {heavy}"


def test_cli_modules_import_nothing_heavy_at_top_level() -> None:
    for path in (p for p in FILES if _package(p) == "cli"):
        heavy = [
            name for name in _imports(path, top_level_only=True) if name.split(".")[0] in (*HEAVY, "rich", "numpy")
        ]
        assert not heavy, f"{path}: {heavy}"


def _commands() -> list[list[str]]:
    import typer.main

    from minitron_cli.cli.app import app

    found: list[list[str]] = [[]]
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        found.append([name])
        found += [[name, sub] for sub in getattr(command, "commands", {})]
    return found


@pytest.mark.parametrize("words", _commands(), ids=lambda w: " ".join(w) or "minitron")
def test_help_imports_neither_torch_nor_transformers(words: list[str]) -> None:
    code = (
        "import sys\nfrom minitron_cli.__main__ import run\n"
        f"code = run({[*words, '--help']!r})\n"
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Usage: minitron" in result.stdout
    if words and words not in (["data"], ["recipes"]):
        assert "Examples:" in result.stdout


def _literal_words(node: ast.AST) -> list[str]:
    """The string constants of a literal tuple, list or set, or the keys of a literal dict."""
    items = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
    return [item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)]


def test_axis_facts_are_in_one_table() -> None:
    """A literal collection of three or more axis names is a second copy of a fact of spec/axes.AXES."""
    from minitron_cli.spec.axes import AXES

    names = {axis.name for axis in AXES}
    assert len(set(_literal_words(ast.parse("['hidden', 'ffn', 'kv', 1]", mode="eval").body)) & names) == 3
    for path in (p for p in FILES if _package(p) != "families" and p != ROOT / "spec" / "axes.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found = names & set(_literal_words(node))
            assert len(found) < 3, f"{path.relative_to(ROOT)}:{node.lineno} lists {found}; derive it from AXES"
