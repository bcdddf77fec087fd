"""Pages of answers are made of the archives beside them, and of nothing else."""

import shutil

import pytest
from helpers import ROOT

from analysis.answers import build_answers, main
from jbot.store.archive import SUFFIX

ANSWERS = ROOT / "docs" / "answers"


def test_every_page_says_what_its_archive_holds(tmp_path):
    for archive in ANSWERS.glob(f"*{SUFFIX}"):
        shutil.copy(archive, tmp_path)
    made = build_answers(tmp_path)
    assert {page.name for page in made} == {page.name for page in ANSWERS.glob("*.md")}
    for page in made:
        assert page.read_text() == (ANSWERS / page.name).read_text(), f"{page.name}: python -m analysis.answers"
    figures = {figure.name for figure in (tmp_path / "figures").iterdir()}
    assert figures == {figure.name for figure in (ANSWERS / "figures").iterdir()}


@pytest.mark.parametrize("content", [None, b"no archive"])
def test_a_folder_without_a_readable_archive_is_one_line(tmp_path, capsys, content):
    if content:
        (tmp_path / f"broken{SUFFIX}").write_bytes(content)
    assert main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "archive" in said
    assert not list(tmp_path.glob("*.md"))
