"""Documents hold what they promise: every link leads somewhere, every picture is there, every command exists."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer

from bench.page import PAGE, Section, with_section
from starters.app import app
from workflows.catalog import RUNBOOKS

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What can follow a # in a link to this page: its headings as the usual renderers name them."""
    heads = re.findall(r"^#+ +(.+?) *$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCED.sub("", page.read_text())):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        place, _, anchor = target.partition("#")
        found = (page.parent / place).resolve() if place else page
        assert found.exists(), f"{page.name} links to {target}, which is not there"
        assert found.is_relative_to(ROOT), f"{page.name} links out of the repository: {target}"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), f"{page.name} links to {target}; {found.name} has no such heading"


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen:
            continue
        seen.add(page)
        links = (target.partition("#")[0] for target in LINK.findall(page.read_text()))
        todo += [(page.parent / link).resolve() for link in links if link.endswith(".md") and "://" not in link]
    lost = [str(page.relative_to(ROOT)) for page in PAGES if page not in seen]
    assert not lost, f"no page links to {', '.join(lost)}"


def test_no_picture_lies_about_unused_and_drawings_are_well_formed() -> None:
    used = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in LINK.findall(page.read_text())
        if "://" not in target
    }
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture.resolve() in used, f"{picture.name} is in no document"
        if picture.suffix == ".svg":
            ElementTree.parse(picture)


def commands() -> dict[str, set[str]]:
    """Every command of the command line with the options it has."""
    found: dict[str, set[str]] = {}

    def walk(command: object, name: str) -> None:
        for sub, inner in getattr(command, "commands", {}).items():
            walk(inner, f"{name} {sub}".strip())
        if name:
            options = {option for parameter in getattr(command, "params", ()) for option in parameter.opts}
            found[name] = options | {"--help"}

    walk(typer.main.get_command(app), "")
    return found


def typed(page: Path) -> list[str]:
    """Lines that a page tells people to type: in code, beginning with the command's name."""
    text = page.read_text()
    blocks = [
        line.strip()
        for block in re.findall(r"^```.*?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    inline = re.findall(r"`(runbooks [^`]+)`", FENCED.sub("", text))
    pieces = [piece for line in blocks if line.startswith("runbooks ") for piece in re.split(r"\s{2,}", line)]
    return [piece for piece in [*pieces, *inline] if piece.startswith("runbooks ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_documents_exist(page: Path) -> None:
    known = commands()
    for line in typed(page):
        plain = re.sub(r"\s+#.*$|[\[\]…]|\.\.\.", " ", line)
        try:
            words = shlex.split(plain)[1:]
        except ValueError:
            words = plain.split()[1:]
        if not words or words[0].startswith("-"):
            continue
        name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
        assert name in known or any(k.startswith(f"{name} ") for k in known), f"{page.name}: there is no {line!r}"
        for word in words:
            option = word.partition("=")[0]
            if re.fullmatch(r"--[a-z][a-z-]*", option) and name in known:
                assert option in known[name], f"{page.name}: {name} has no option {option} ({line!r})"


def texts(path: Path) -> Iterator[str]:
    """The strings of a module, each in one piece, with an X for what is filled in."""
    every = list(ast.walk(ast.parse(path.read_text())))
    filled = [node for node in every if isinstance(node, ast.JoinedStr)]
    pieces = {id(part) for node in filled for part in node.values}
    for node in filled:
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
    for node in every:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pieces:
            yield node.value


def starts() -> list[tuple[str, str]]:
    """Every command to start a run that people are told to type, with where it stands."""
    found = [(page.name, line) for page in PAGES for line in typed(page) if "--set" in line]
    told = "\n".join(text for path in ROOT.glob("starters/doctor_*.py") for text in texts(path))
    rules = (ROOT / "deploy/prometheus/alerts.yml").read_text()
    printed = re.findall(
        r"(runbooks start [A-Z]\w+(?: --\w+ (?:'[^']*'|[\w-]+=(?:'[^']*'|[\w-]+)))*)", f"{told}\n{rules}"
    )
    return [*found, *(("doctor and alerts", line) for line in printed)]


def test_commands_that_start_a_run_name_all_that_it_needs() -> None:
    inputs = {runbook.__name__: runbook.spec.input for runbook in RUNBOOKS}
    seen = [(where, line) for where, line in starts() if line.startswith("runbooks start ") and "--input" not in line]
    assert "doctor and alerts" in dict(seen)
    for where, line in seen:
        name = line.split()[2]
        given = set(re.findall(r"--set (\w+)=", line))
        needed = {field for field, facts in inputs[name].model_fields.items() if facts.is_required()}
        assert needed <= given, f"{where}: {line!r} lacks {', '.join(sorted(needed - given))}"
        assert given <= inputs[name].model_fields.keys(), f"{where}: {line!r}"


def test_every_runbook_has_a_page() -> None:
    assert {page.stem for page in (ROOT / "docs" / "runbooks").glob("*.md")} == {book.__name__ for book in RUNBOOKS}


def sections(page: str) -> dict[str, str]:
    _, *parts = re.split(r"^## ", page, flags=re.MULTILINE)
    return {part.partition("\n")[0]: part for part in parts}


def test_a_benchmark_made_anew_replaces_its_section_and_no_other() -> None:
    before = sections(PAGE.read_text())
    name = list(before)[1]
    page = with_section(PAGE.read_text(), Section(name, "What it is.", "one 3 ms\n", 3.2), list(before))
    after = sections(page)
    assert list(after) == list(before)
    assert {other for other in before if after[other] != before[other]} == {name}
    assert "one 3 ms" in after[name]
    assert f"`python -m bench {name}`: 3 s on 2" in after[name]
    assert with_section(page, Section(name, "What it is.", "one 3 ms\n", 3.2), list(before)) == page
