"""What a package index and a type checker find in the built package."""

import re
import sys
from pathlib import Path

import pytest

import blockswap

ROOT = Path(__file__).parent.parent


def test_type_checkers_are_told_that_the_package_is_typed():
    assert (Path(blockswap.__file__).parent / "py.typed").is_file()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_the_readme_of_the_package_has_no_link_into_the_repository():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    hook = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = r"\[[^\]]*\]\((?!https?:|#)[^)]+\)"
    assert re.search(targets, text)  # else this test could not fail
    for rule in hook["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert not re.findall(targets, text)
    assert "ARCHITECTURE.md tells how it works" in text


def test_links_into_the_repository_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    links = [
        (page.name, target)
        for page in pages
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert len(pages) > 8
    assert not links
