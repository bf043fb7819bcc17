"""Configuration files that cannot be used get one line; shipped ones are whole."""

import pytest
from configurations import ROOT
from wrong_configs import FILES

from prefdistill.errors import UserError
from prefdistill.pipeline.config_files import check_config_file


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_refused_in_its_one_line(name, tmp_path):
    content, line = FILES[name]
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        check_config_file(tmp_path / "mine.yaml")
    assert str(caught.value).replace(f"{tmp_path}/", "") == line


def test_a_missing_file_is_refused_in_its_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        check_config_file("mine.yaml")
    assert str(caught.value) == (
        f"config: mine.yaml: No such file or directory (seen from {tmp_path}); name a "
        "configuration file that is there"
    )


@pytest.mark.parametrize("name", ["config", "plan", "small", "demo"])
def test_shipped_files_are_whole(name):
    check_config_file(ROOT / f"config/{name}.yaml")
