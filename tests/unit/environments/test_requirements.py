"""What a code folder says that it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefect_launch.environments.pip_config import uv_environment
from prefect_launch.environments.requirements import read_requirements
from prefect_launch.errors import SourceError


def code(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_code_that_names_no_requirements_needs_none(tmp_path: Path) -> None:
    assert read_requirements(tmp_path).lines == read_requirements(None).lines == ()


def test_key_depends_on_requirements_and_not_on_code(tmp_path: Path) -> None:
    one = read_requirements(code(tmp_path / "a", requirements_txt="numpy\n", main_py="1"))
    two = read_requirements(code(tmp_path / "b", requirements_txt="numpy  # as ever\n\n", main_py="2"))
    three = read_requirements(code(tmp_path / "c", requirements_txt="numpy==2\n", main_py="1"))
    assert one.key == two.key != three.key


def test_included_files_are_part_of_it(tmp_path: Path) -> None:
    folder = code(tmp_path, requirements_txt="-r more.txt\n-c limits.txt\na\n", more_txt="b\n-r requirements.txt\n")
    code(tmp_path, limits_txt="b<2\n")
    found = read_requirements(folder)
    assert (found.lines, found.constraints) == (("b", "a"), ("b<2",))


@pytest.mark.parametrize("line", ["-r ../secret.txt", "-r /etc/passwd", "-r nothing.txt", "./../other", "-e ../x"])
def test_what_lies_outside_of_the_code_or_is_not_there_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "secret.txt").write_text("x\n")
    with pytest.raises(SourceError, match="requirement"):
        read_requirements(code(tmp_path / "code", requirements_txt=f"{line}\n"))


def test_package_in_the_code_is_installed_as_it_is_and_keyed_by_its_content(tmp_path: Path) -> None:
    one = read_requirements(
        code(tmp_path / "a", requirements_txt="-e ./pkg[x] ; python_version > '3'\n", pkg__m_py="1")
    )
    two = read_requirements(
        code(tmp_path / "b", requirements_txt="-e ./pkg[x] ; python_version > '3'\n", pkg__m_py="1")
    )
    three = read_requirements(
        code(tmp_path / "c", requirements_txt="-e ./pkg[x] ; python_version > '3'\n", pkg__m_py="2")
    )
    assert one.lines == (f"{tmp_path / 'a' / 'pkg'}[x] ; python_version > '3'",)
    assert one.key == two.key != three.key


def test_dependencies_of_a_project_are_taken_when_there_is_no_requirements_file(tmp_path: Path) -> None:
    folder = code(tmp_path, pyproject_toml='[project]\nname="x"\ndependencies=["a>1"]\n', requirements_frozen_txt="b\n")
    assert read_requirements(folder).lines == ("a>1",)
    code(tmp_path, requirements_txt="c\n")
    assert read_requirements(folder).lines == ("c",)


def test_frozen_requirements_are_the_last_resort(tmp_path: Path) -> None:
    assert read_requirements(code(tmp_path, requirements_frozen_txt="b==1\n")).lines == ("b==1",)


def test_pyproject_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"pyproject\.toml"):
        read_requirements(code(tmp_path, pyproject_toml="[project"))


def test_uv_is_told_what_pip_is_told(tmp_path: Path) -> None:
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = https://a.example/packages\nextra-index-url =\n    https://b.example/packages\n    https://c.example/packages\n"
    )
    told = uv_environment({"PIP_FIND_LINKS": "/x /y", "PIP_CERT": "/ca.pem"}, [file])
    assert told["UV_DEFAULT_INDEX"] == "https://a.example/packages"
    assert told["UV_INDEX"] == "https://b.example/packages https://c.example/packages"
    assert told["UV_FIND_LINKS"] == "/x,/y"
    assert (told["SSL_CERT_FILE"], told["UV_SYSTEM_CERTS"], told["UV_PYTHON_DOWNLOADS"]) == ("/ca.pem", "true", "never")


def test_what_uv_is_told_itself_wins(tmp_path: Path) -> None:
    environ = {"UV_INDEX_URL": "https://mine", "PIP_INDEX_URL": "https://pip"}
    assert "UV_DEFAULT_INDEX" not in uv_environment(environ, [])
