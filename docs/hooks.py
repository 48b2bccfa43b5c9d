"""What the site has beside docs/: the repository's own pages, and the files that pages link to.

A page of docs/ is read in two places, in the repository and on the site. A link out of docs/ is
right in the first; here it is made one to a copy in the site.
"""

import re
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = {"ARCHITECTURE.md": "architecture.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the repository's own that are pages of the site as well."""

LINK: Final = re.compile(r"\]\(([^)#\s:]+)(#[^)]*)?\)")
"""A link without a scheme, and its anchor."""

TITLE: Final = re.compile(r"^# (.*)", re.MULTILINE)
COPIES: Final = "repository/"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the repository's pages, the list of decisions, and what pages link to outside docs/."""
    docs = Path(config.docs_dir)
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        text = LINK.sub(lambda link: f"]({link[1].removeprefix('docs/')}{link[2] or ''})", text)
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "decisions/index.md", content=_decisions(docs)))
    for outside in sorted(_linked_outside(docs)):
        text = outside.read_text(encoding="utf-8")
        files.append(File.generated(config, _copy(outside), content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have links out of docs/ lead to the copies."""
    place = Path(config.docs_dir, page.file.src_uri).parent

    def inside(link: re.Match[str]) -> str:
        target = (place / link[1]).resolve()
        if not _is_outside(target, Path(config.docs_dir)):
            return link[0]
        up = "../" * page.file.src_uri.count("/")
        there = PAGES.get(target.relative_to(ROOT).as_posix()) or _copy(target)
        return f"]({up}{there}{link[2] or ''})"

    return LINK.sub(inside, markdown)


def _decisions(docs: Path) -> str:
    lines = ["# Decisions", "", "Decisions of weight, half a page each.", ""]
    for file in sorted((docs / "decisions").glob("*.md")):
        found = TITLE.search(file.read_text(encoding="utf-8"))
        title = re.sub(r"^\d+\.? ", "", found[1]) if found else file.stem
        lines.append(f"- {file.name[:4]} [{title}]({file.name})")
    return "\n".join(lines) + "\n"


def _linked_outside(docs: Path) -> set[Path]:
    found = set()
    for page in docs.rglob("*.md"):
        for link in LINK.finditer(page.read_text(encoding="utf-8")):
            target = (page.parent / link[1]).resolve()
            if _is_outside(target, docs):
                found.add(target)
    return found


def _is_outside(target: Path, docs: Path) -> bool:
    return target.is_relative_to(ROOT) and not target.is_relative_to(docs) and target.is_file()


def _copy(target: Path) -> str:
    """Where a file's copy is in the site: as text, whatever it is, for a browser to show."""
    return f"{COPIES}{target.relative_to(ROOT).as_posix()}.txt"
