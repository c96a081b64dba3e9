"""README and docs, taken apart: tables, blocks of code, and the commands that they show."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "tests").glob("*/README.md")))


def page(name: str) -> str:
    """Return the text of a page of docs, or of one named by its path."""
    path = ROOT / "docs" / f"{name}.md"
    return (path if path.exists() else ROOT / name).read_text()


def section(text: str, title: str) -> str:
    """Return what stands under a heading, up to the next one of its level."""
    return re.split(r"^## ", text.split(f"\n## {title}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def blocks(text: str, language: str) -> list[str]:
    """Return the blocks of code in a language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, flags=re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)


def quoted(text: str) -> list[str]:
    """Return what stands in backticks within the prose."""
    return re.findall(r"`([^`]+)`", prose(text))


def tables(text: str) -> list[str]:
    """Return the tables as they are written."""
    return re.findall(r"(?:^ *\|.*\n)+", text, flags=re.MULTILINE)


def cells(line: str) -> list[str]:
    """Take a row of a table apart."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def table(text: str, first_column: str, nth: int = 0) -> list[list[str]]:
    """Return the rows of the nth table whose first column has this name, without the head."""
    parsed = [[cells(line) for line in lines.splitlines()] for lines in tables(text)]
    found = [rows[2:] for rows in parsed if rows[0][0] == first_column]
    assert len(found) > nth, f"there is no table of {first_column}"
    return found[nth]


def names(rows: list[list[str]]) -> list[str]:
    """Return what stands in backticks in the first column."""
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row[0])]


def commands(text: str, program: str) -> list[list[str]]:
    """Return the words of each call of a program: in backticks, at a prompt, and in shell scripts."""
    scripts = "\n".join(blocks(text, "sh")).replace("\\\n", " ")
    scripts = re.sub(r"<<'(\w+)'.*?^\1$", "", scripts, flags=re.DOTALL | re.MULTILINE)
    prompts = [line[2:] for line in "\n".join(blocks(text, "text")).splitlines() if line.startswith("$ ")]
    lines = [*quoted(text), *prompts, *re.split(r"&&|\||\n|\$\(|\)", scripts)]
    calls = [shlex.split(line.replace("\n", " "), comments=True) for line in lines if f"{program} " in line]
    return [call[len(program.split()) :] for call in calls if call[: len(program.split())] == program.split()]
