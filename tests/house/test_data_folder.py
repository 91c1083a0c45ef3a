"""The data folder, where there is one, holds what docs/howto/data-folder.md says."""

import re
from pathlib import Path

from tests.house.sources import ROOT


def test_the_data_folder_holds_what_the_page_lists(atoll_data: Path) -> None:
    page = (ROOT / "docs" / "howto" / "data-folder.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)/`", page, re.MULTILINE)
    assert listed
    assert [name for name in listed if not (atoll_data / name).is_dir()] == []
