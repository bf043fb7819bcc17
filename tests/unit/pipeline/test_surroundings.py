"""A user without a name or a home gets what Snakemake needs."""

import getpass
import os
import pwd

import pytest

from prefdistill.pipeline.surroundings import find_caches, name_root, name_user

NAMES = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TRITON_HOME", "MPLCONFIGDIR", "HF_HOME")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in (*NAMES, "LOGNAME", "USER", "LNAME", "USERNAME", "PREFDISTILL_ROOT"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


def unknown(_):
    raise KeyError("getpwuid(): uid not found")


def test_a_user_without_an_entry_in_passwd_gets_a_name(monkeypatch):
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    name_user()
    assert getpass.getuser() == f"uid{os.getuid()}"


def test_a_users_name_is_kept(monkeypatch):
    monkeypatch.setenv("USER", "ada")
    name_user()
    assert getpass.getuser() == "ada"
    assert "LOGNAME" not in os.environ


def test_the_projects_folder_is_named_for_jobs(tmp_path):
    name_root(tmp_path)
    assert os.environ["PREFDISTILL_ROOT"] == str(tmp_path)


@pytest.mark.parametrize("home", [None, "", "/proc/none", "/dev/null"])
def test_caches_move_into_the_run_from_a_home_that_takes_none(
    home, monkeypatch, tmp_path
):
    if home is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", home)
    find_caches(tmp_path)
    caches = str(tmp_path / ".snakemake/caches")
    assert [os.environ.get(name) for name in NAMES] == [caches] * 4 + [None]


def test_a_home_that_takes_caches_is_left(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    find_caches(tmp_path / "run")
    assert not any(name in os.environ for name in NAMES)
    assert list((tmp_path / ".cache").iterdir()) == []
