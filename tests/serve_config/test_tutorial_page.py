"""The configuration of docs/tutorial.md is valid as it stands there, without a warning."""

from __future__ import annotations

import re
from pathlib import Path

from r2_serve.serve_config import check
from tests import ROOT

PAGE = (ROOT / "docs/tutorial.md").read_text()
KEYS = {"OPENAI_API_KEY": "key-of-one", "DEEPSEEK_API_KEY": "key-of-another"}


def test_config_of_the_tutorial_has_neither_errors_nor_warnings(tmp_path: Path) -> None:
    (config,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "hosted.yaml"
    path.write_text(config)
    assert check(path, environ=KEYS) == []
