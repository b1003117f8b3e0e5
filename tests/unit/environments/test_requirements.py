"""What a code folder says that it needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prefect_launch.environments.pip_config import uv_environment
from prefect_launch.environments.requirements import Requirements, read_requirements, stage
from prefect_launch.environments.venv import Environments
from prefect_launch.errors import SourceError


def code(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def asked(found: Requirements) -> dict[str, str]:
    return {name: content.decode() for name, content in found.files.items()}


def test_code_that_names_no_requirements_needs_none(tmp_path: Path) -> None:
    assert read_requirements(tmp_path).arguments == read_requirements(None).arguments == ()


def test_key_depends_on_requirements_and_not_on_code(tmp_path: Path) -> None:
    one = read_requirements(code(tmp_path / "a", requirements_txt="numpy\n", main_py="1"))
    two = read_requirements(code(tmp_path / "b", requirements_txt="numpy  # as ever\n\n", main_py="2"))
    three = read_requirements(code(tmp_path / "c", requirements_txt="numpy==2\n", main_py="1"))
    assert one.key == two.key != three.key


def test_included_files_are_part_of_it(tmp_path: Path) -> None:
    folder = code(tmp_path, requirements_txt="-r more.txt\n-c limits.txt\na\n", more_txt="b\n-r requirements.txt\n")
    code(tmp_path, limits_txt="b<2\n")
    before = read_requirements(folder)
    assert set(before.files) == {"requirements.txt", "more.txt", "limits.txt"}
    for name in ("more.txt", "limits.txt"):
        (folder / name).write_text("b==1\n")
        assert read_requirements(folder).key != before.key


@pytest.mark.parametrize(
    ("line", "written"),
    [
        ("-rreq/base.txt", "-r req/base.txt"),
        ("--requirement=req/base.txt", "--requirement=req/base.txt"),
        ("-r req/base.txt -c req/base.txt", "-c req/base.txt\n-r req/base.txt"),
        ("-e.[dev]", "-e .[dev]"),
        ('-e ".[dev]"', "-e .[dev]"),
        ("-e libs/common", "-e libs/common"),
        ("--editable='libs/common'", "-e libs/common"),
        ("libs/common", "libs/common"),
        ("common @ file:libs/common", "common @ file:libs/common"),
        (
            "-e git+https://example.com/x.git@v1#egg=x&subdirectory=y",
            "-e git+https://example.com/x.git@v1#egg=x&subdirectory=y",
        ),
        ("-f req", "--find-links ./req"),
        ("--find-links /mnt/wheels", "--find-links /mnt/wheels"),
        ("-c https://example.com/c.txt", "-c https://example.com/c.txt"),
        ("-ihttps://example.com/wheels", "--index-url https://example.com/wheels"),
        ("--extra-index-url https://example.com/wheels", "--extra-index-url https://example.com/wheels"),
        ("--use-feature=fast-deps", ""),
        ("six>=1,\\\n  <2", "six>=1,  <2\n"),
        ("six==1.16.0 \\\n  --hash=sha256:00", "six==1.16.0   --hash=sha256:00\n"),
        ('six ; python_version > "3"  # why', 'six ; python_version > "3"  # why'),
        ("torch==2.1.0+cu121", "torch==2.1.0+cu121"),
        ("x @ https://example.com/x-1.0.zip", "x @ https://example.com/x-1.0.zip"),
    ],
)
def test_line_is_brought_to_what_uv_reads_at_its_own_place(tmp_path: Path, line: str, written: str) -> None:
    folder = code(tmp_path, req__base_txt="six\n", libs__common__pyproject_toml="", pyproject_toml="")
    (folder / "requirements.txt").write_text(f"# first\n{line}\nlast\n")
    assert asked(read_requirements(folder))["requirements.txt"] == f"# first\n{written}\nlast\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be-bom", "latin-1"])
def test_file_is_decoded_as_pip_does(tmp_path: Path, encoding: str) -> None:
    text = "# -*- coding: latin-1 -*-\nsix==1.16.0  # größer\n"
    content = b"\xfe\xff" + text.encode("utf-16-be") if encoding == "utf-16-be-bom" else text.encode(encoding)
    (tmp_path / "requirements.txt").write_bytes(content)
    assert asked(read_requirements(tmp_path))["requirements.txt"] == text


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("-r ../secret.txt", "requirements.txt:2 names '../secret.txt', which lies outside"),
        ("-r /etc/passwd", "requirements.txt:2 names '/etc/passwd', which lies outside"),
        (
            "-r nothing.txt",
            "requirements.txt:2 names the requirements file 'nothing.txt', which is not",
        ),
        ("./../other", "requirements.txt:2 names './../other', which lies outside"),
        ("-e ../x", "requirements.txt:2 names '../x', which lies outside"),
        ("x @ file:///etc/x", "requirements.txt:2 names '/etc/x', which lies outside"),
        ("-e leak", "requirements.txt:2 names 'leak', which lies outside"),
        ("-e libs/none", "requirements.txt:2 names 'libs/none', which is no file and no project"),
        ("-f wheels", "requirements.txt:2 names the folder of wheels 'wheels', which is not in"),
        ("six --config-settings=a=b", "requirements.txt:2: the option --config-settings of a single requirement"),
        ("six --global-option=x", "requirements.txt:2: the option --global-option of a single requirement"),
        ("--use-magic", "requirements.txt:2: '--use-magic' is no requirement that pip takes: no such option"),
        ("six=1.0", "requirements.txt:2: 'six=1.0' is no requirement that pip takes"),
        ("${PACKAGE}==1", "requirements.txt:2: '${PACKAGE}==1' is no requirement"),
    ],
)
def test_line_that_cannot_be_had_is_refused_with_its_place(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "secret.txt").write_text("x\n")
    folder = code(tmp_path / "code", requirements_txt=f"six\n{line}\n")
    (folder / "leak").symlink_to(tmp_path)
    with pytest.raises(SourceError, match=re.escape(reason)):
        read_requirements(folder)


def test_file_of_an_unknown_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_bytes(b"six  # gr\xf6\xdfer\n")
    with pytest.raises(SourceError, match=r"'requirements.txt' of the job cannot be read: .* Save it as UTF-8"):
        read_requirements(tmp_path)


def test_file_that_an_ignore_file_leaves_out_of_the_job_is_not_there(tmp_path: Path) -> None:
    folder = code(tmp_path, requirements_txt="-r more.txt\n", more_txt="six\n")
    with pytest.raises(SourceError, match=r"requirements.txt:1 names the requirements file 'more.txt'"):
        read_requirements(folder, ["requirements.txt"])
    assert read_requirements(folder, []).arguments == ()


def test_package_in_the_code_is_keyed_by_its_content_and_copied_beside_its_file(tmp_path: Path) -> None:
    line = "-e ./pkg[x] ; python_version > '3'\n"
    one, two, three = (
        code(tmp_path / name, requirements_txt=line, pkg__setup_py=content, main_py=name)
        for name, content in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    keys = [read_requirements(folder).key for folder in (one, two, three)]
    assert keys[0] == keys[1] != keys[2]

    stage(read_requirements(one), one, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["pkg", "requirements.txt", "setup.py"]


def test_package_that_names_others_brings_all_of_the_code(tmp_path: Path) -> None:
    folder = code(tmp_path, requirements_txt="./libs/a\n", libs__b__setup_py="1")
    (folder / "libs/a").mkdir()
    (folder / "libs/a/pyproject.toml").write_text('[project]\nname = "a"\n[tool.uv.sources]\nb = { path = "../b" }\n')
    before = read_requirements(folder)
    assert before.local == (".",)
    code(folder, libs__b__setup_py="2")
    assert read_requirements(folder).key != before.key


def test_environment_variables_are_reported_with_their_place(tmp_path: Path) -> None:
    found = read_requirements(code(tmp_path, requirements_txt="six\n-i https://u:${TOKEN}@example.com/wheels\n"))
    assert dict(found.variables) == {"TOKEN": "requirements.txt:2"}
    assert any("requirements.txt:2 names the environment variable ${TOKEN}" in note for note in found.notes)


DEPENDENCIES = "requirements.pyproject.txt"
BUILT = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'


@pytest.mark.parametrize(
    ("told", "arguments", "is_built"),
    [
        ('[tool.ruff]\nline-length = 1\n', (), False),
        ('[project]\nname = "x"\ndependencies = ["a>1"]\n', ("--requirement", DEPENDENCIES), False),
        (f'{BUILT}[project]\nname = "x"\ndependencies = ["a>1"]\n', ("--requirement", DEPENDENCIES), True),
        (f'{BUILT}[project]\nname = "x"\n', (), True),
        (f'{BUILT}[project]\nname = "x"\ndynamic = ["dependencies"]\n', ("--requirement", "pyproject.toml"), True),
        (f'{BUILT}[project]\nname = "x"\ndependencies = ["a"]\n[tool.uv]\npackage = false\n',
         ("--requirement", DEPENDENCIES), False),
        (f'{BUILT}[project]\nname = "x"\ndependencies = ["a"]\n[tool.uv.sources]\na = {{ git = "https://x/a" }}\n',
         ("--requirement", "pyproject.toml"), True),
        (f'{BUILT}[tool.poetry]\nname = "x"\n[tool.poetry.dependencies]\nsix = "*"\n',
         ("--requirement", "pyproject.toml"), True),
        (f'{BUILT}[tool.poetry]\npackage-mode = false\n[tool.poetry.dependencies]\nsix = "*"\n', (), False),
        (f'{BUILT}[project]\nname = "x"\ndependencies = ["a"]\n[tool.pdm]\ndistribution = false\n',
         ("--requirement", DEPENDENCIES), False),
    ],
)  # fmt: skip
def test_build_backend_decides_what_a_project_needs(
    tmp_path: Path, told: str, arguments: tuple[str, ...], is_built: bool
) -> None:
    found = read_requirements(code(tmp_path, pyproject_toml=told))
    assert (found.arguments, found.project) == (arguments, is_built)


def test_version_of_the_repository_is_made_up_for_what_is_built_of_the_code(tmp_path: Path) -> None:
    folder = code(tmp_path, requirements_txt="-e libs/a-b\n")
    (folder / "libs/a-b").mkdir(parents=True)
    (folder / "libs/a-b/pyproject.toml").write_text(f'{BUILT}[project]\nname = "a-b"\n')
    named = {"PDM_BUILD_SCM_VERSION": "0.0.0", "SETUPTOOLS_SCM_PRETEND_VERSION_FOR_A_B": "0.0.0"}
    assert read_requirements(folder).build_variables == named
    asking = BUILT.replace('"hatchling"', '"hatchling", "hatch-vcs"', 1)
    (folder / "libs/a-b/pyproject.toml").write_text(f'{asking}[project]\nname = "a-b"\n')
    assert read_requirements(folder).build_variables == {**named, "SETUPTOOLS_SCM_PRETEND_VERSION": "0.0.0"}


def test_setup_file_is_a_project_when_a_packaging_library_is_used_in_it(tmp_path: Path) -> None:
    assert not read_requirements(code(tmp_path, setup_py="print('sets the data up')\n")).project
    found = read_requirements(code(tmp_path, setup_py="from setuptools import setup\nsetup(name='x')\n"))
    assert (found.arguments, found.project) == (("--requirement", "setup.py"), True)


def test_project_that_is_installed_is_keyed_by_the_code_and_one_that_is_not_by_its_dependencies(tmp_path: Path) -> None:
    plain = '[project]\nname = "x"\ndependencies = ["a"]\n'
    for told, differs in ((BUILT + plain, True), (plain, False)):
        before = read_requirements(code(tmp_path, pyproject_toml=told, main_py="1")).key
        assert (read_requirements(code(tmp_path, main_py="2")).key != before) is differs


@pytest.mark.parametrize(
    ("files", "note"),
    [
        ({"pyproject_toml": f'{BUILT}[project]\nname = "x"\n', "requirements_txt": "six\n"},
         "pyproject.toml is not read"),
        ({"pyproject_toml": f'{BUILT}[project]\nname = "x"\n[project.optional-dependencies]\ngpu = ["a"]\n'},
         "Not installed: the extra gpu of pyproject.toml"),
        ({"pyproject_toml": '[project]\nname = "x"\ndependencies = ["a"]\n[dependency-groups]\ndev = ["a"]\n'},
         "the dependency group dev of pyproject.toml"),
        ({"pyproject_toml": '[dependency-groups]\ndev = ["a"]\n', "main_py": ""},
         "Not installed: the dependency group dev of pyproject.toml"),
        ({"pyproject_toml": '[tool.pdm.dev-dependencies]\ntest = ["a"]\n', "main_py": ""},
         "Not installed: the dependency group test of pyproject.toml"),
        ({"pyproject_toml": '[tool.poetry]\npackage-mode = false\n[tool.poetry.dependencies]\nsix = "*"\n'},
         "[tool.poetry.dependencies]"),
        ({"pyproject_toml": '[project]\nname = "x"\ndependencies = ["a"]\n', "src__x_py": ""}, "has no [build-system]"),
        ({"poetry_lock": "", "main_py": ""}, "poetry.lock is not read, and nothing is installed"),
        ({"Pipfile": "", "requirements_txt": "six\n"}, "Pipfile is not read, and the requirements are resolved anew"),
        ({"environment_yml": "dependencies: [python=3.11, numpy]\n"},
         "The job's environment.yml asks for conda's packages (numpy)"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_said(tmp_path: Path, files: dict[str, str], note: str) -> None:
    assert any(note in said for said in read_requirements(code(tmp_path, **files)).notes)


def test_conda_file_without_packages_of_conda_is_read_as_a_requirements_file(tmp_path: Path) -> None:
    given = "dependencies:\n- python=3.11\n- conda-forge::pip>=23\n- pip:\n  - -r more.txt\n  - six==1.17.0\n"
    found = read_requirements(code(tmp_path, environment_yml=given, more_txt="toolz\n"))
    assert found.arguments == ("--requirement", "requirements.conda.txt")
    assert asked(found) == {"requirements.conda.txt": "-r more.txt\nsix==1.17.0\n", "more.txt": "toolz\n"}
    assert (found.conda, found.notes) == (None, ())


@pytest.mark.parametrize(
    ("pyproject", "counts"),
    [
        ("[tool.black]\nline-length = 100\n", True),
        (f'{BUILT}[project]\nname = "x"\nversion = "1"\n', True),
        (f'{BUILT}[project]\nname = "x"\ndependencies = ["six"]\n', False),
        ('[tool.poetry.dependencies]\npython = "^3.10"\nsix = "*"\n', False),
    ],
)
def test_conda_file_counts_beside_a_project_that_states_no_dependencies(
    tmp_path: Path, pyproject: str, counts: bool
) -> None:
    code(tmp_path, environment_yml="dependencies:\n- pip: [toolz]\n", setup_py="import setuptools\n")
    found = read_requirements(code(tmp_path, pyproject_toml=pyproject))
    assert ("requirements.conda.txt" in found.files) is counts


@pytest.mark.parametrize("given", ["- numpy\n", "dependencies: numpy\n", "dependencies: [\n"])
def test_conda_file_that_conda_does_not_read_is_refused(tmp_path: Path, given: str) -> None:
    with pytest.raises(SourceError, match=r"The job's environment\.yml (has no list|cannot be read)"):
        read_requirements(code(tmp_path, environment_yml=given))


async def test_environment_of_condas_packages_is_refused_with_what_to_do(tmp_path: Path) -> None:
    root = code(tmp_path / "code", environment_yml="dependencies:\n- nvidia::cuda-toolkit=12\n- numpy\n- pip: [six]\n")
    with pytest.raises(SourceError, match=r"asks for conda's packages \(cuda-toolkit, numpy\).*--install"):
        await Environments(tmp_path / "environments").ensure(root)


def test_code_that_is_read_whole_is_told_nothing(tmp_path: Path) -> None:
    code(tmp_path, requirements_txt="-e .\n", pyproject_toml=f'{BUILT}[project]\nname = "x"\n')
    assert read_requirements(tmp_path).notes == ()


def test_frozen_requirements_are_the_last_resort(tmp_path: Path) -> None:
    found = read_requirements(code(tmp_path, requirements_frozen_txt="b==1\n"))
    assert asked(found) == {"requirements.frozen.txt": "b==1\n"}


@pytest.mark.parametrize(
    "told",
    [
        'name = "fit"\ndependencies = ["Acme_Core>=1"]\n[tool.uv.sources]\nacme-core = { path = "../core" }\n',
        'name = "fit"\ndynamic = ["dependencies"]\n[tool.poetry.dependencies]\ncore = { path = "../core" }\n',
    ],
)
def test_project_that_needs_a_folder_outside_of_the_code_is_refused(tmp_path: Path, told: str) -> None:
    with pytest.raises(SourceError, match=r"pyproject\.toml names '\.\./core'.*--install '-e FOLDER'"):
        read_requirements(code(tmp_path, pyproject_toml=f"[project]\n{told}"))
    unused = '[project]\nname = "fit"\ndependencies = ["six"]\n[tool.uv.sources]\ncore = { path = "../core" }\n'
    assert read_requirements(code(tmp_path, pyproject_toml=unused)).arguments


def test_address_of_a_git_repository_needs_git(tmp_path: Path) -> None:
    folder = code(tmp_path, requirements_txt="-r more.txt\n", more_txt="clip @ git+https://example.com/clip@v1\n")
    assert read_requirements(folder).needs_git
    assert not read_requirements(code(folder, more_txt="digit\n")).needs_git


def test_requirements_for_jobs_alone_come_first(tmp_path: Path) -> None:
    code(tmp_path, requirements_launch_txt="a\n", requirements_txt="b\n", uv_lock="", pyproject_toml="", poetry_lock="")
    found = read_requirements(tmp_path)
    assert (asked(found), found.notes) == ({"requirements.launch.txt": "a\n"}, ())


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
