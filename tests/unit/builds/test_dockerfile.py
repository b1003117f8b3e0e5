"""The generated Dockerfile, what an image needs, and the tag."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefect_launch.builds.builder import ImageBuild
from prefect_launch.builds.context import BuildContext
from prefect_launch.builds.dockerfile import Recipe, find_dependencies, write_after, write_before, write_dockerfile
from prefect_launch.errors import SourceError

LIMIT = 1024**3


def lines(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if line and not line.startswith(" ")]


def test_sections_stand_from_what_rarely_changes_to_what_often_does() -> None:
    text = write_dockerfile(Recipe(base="python:3.11-slim"))
    order = [
        "FROM python:3.11-slim",
        "COPY launch/",
        "RUN --mount=type=secret",
        "USER 1000:0",
        "COPY --chown=1000:0 code/",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_command_of_the_run_is_not_baked_in() -> None:
    assert "ENTRYPOINT []" in write_dockerfile(Recipe(base="x"))


def test_two_halves_are_the_whole_without_the_installing_step() -> None:
    recipe = Recipe(base="x", user_id=7)
    whole = [line for line in write_dockerfile(recipe).splitlines() if not line.startswith("RUN --mount")]
    halves = write_before(recipe).splitlines() + write_after(recipe).splitlines()
    assert halves == whole


def test_secrets_are_mounts_of_one_step_and_the_cache_only_where_it_is_allowed() -> None:
    recipe = Recipe(base="x")
    assert "type=cache" not in write_dockerfile(recipe)
    assert "--mount=type=cache,target=/var/cache/launch" in write_dockerfile(recipe, cache=True)
    assert "type=secret" not in write_dockerfile(recipe, secrets=())


def test_accelerator_base_gets_a_python_when_it_has_none() -> None:
    text = write_dockerfile(Recipe(base="cuda:12", brings_python=False, python_version="3.12"))
    assert "python3.12-venv" in text
    assert text.index("apt-get") < text.index("COPY launch/")


def test_conda_file_is_installed_by_micromamba() -> None:
    text = write_dockerfile(Recipe(base="micromamba", conda=True))
    assert "micromamba create --yes --prefix /opt/venv --file /opt/launch/src/environment.yml" in text
    assert "--mount" not in text


def code(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def texts(root: Path) -> dict[str, str]:
    found = find_dependencies(root, LIMIT).context.entries
    return {entry.name: entry.content.decode() if entry.source is None else "file" for entry in found}


def test_requirements_files_go_in_as_they_are_with_what_they_include(tmp_path: Path) -> None:
    root = code(tmp_path, requirements_txt="-r more.txt\nnumpy # why\n-c max.txt", more_txt="six", max_txt="six<2")
    assert texts(root) == {
        "launch/arguments": "--requirement\nrequirements.txt\n",
        "launch/build.env": "",
        "launch/project.env": "",
        "launch/src/max.txt": "six<2\n",
        "launch/src/more.txt": "six\n",
        "launch/src/requirements.txt": "-r more.txt\nnumpy # why\n-c max.txt\n",
    }


def test_package_in_the_code_goes_in_beside_the_file_that_names_it(tmp_path: Path) -> None:
    root = code(tmp_path, requirements_txt="-e ./libs/mine\n-f wheels\n", libs__mine__setup_py="1", wheels__a_whl="2")
    found = texts(root)
    assert found["launch/src/requirements.txt"] == "-e ./libs/mine\n--find-links ./wheels\n"
    assert {"launch/src/libs/mine/setup.py", "launch/src/wheels/a.whl"} < set(found)


def test_project_is_installed_in_a_layer_above_what_it_depends_on(tmp_path: Path) -> None:
    project = (
        '[build-system]\nrequires = ["hatchling"]\n[project]\nname = "a-b"\nversion = "1"\ndependencies = ["six"]\n'
    )
    root = code(tmp_path, pyproject_toml=project, src__a__b_py="1")
    before = find_dependencies(root, LIMIT)
    assert before.project
    assert texts(root)["launch/src/requirements.pyproject.txt"] == "six\n"
    assert {"project/pyproject.toml", "project/src/a/b.py"} < set(texts(root))
    assert "SETUPTOOLS_SCM_PRETEND_VERSION_FOR_A_B=0.0.0" in texts(root)["launch/project.env"]

    code(root, src__a__b_py="2")
    after = find_dependencies(root, LIMIT)
    assert after.context.below("launch/") == before.context.below("launch/")
    assert after.context.digest != before.context.digest
    text = write_dockerfile(Recipe(base="x", project=True))
    assert text.index("install.sh\n") < text.index("COPY project/") < text.index("install.sh project")


def test_project_of_dynamic_dependencies_goes_in_whole(tmp_path: Path) -> None:
    project = '[build-system]\nrequires = ["hatchling"]\n[project]\nname = "a"\ndynamic = ["dependencies", "version"]\n'
    root = code(tmp_path, pyproject_toml=project, src__a__b_py="1")
    assert not find_dependencies(root, LIMIT).project
    assert {"launch/src/pyproject.toml", "launch/src/src/a/b.py", "launch/project"} < set(texts(root))
    assert texts(root)["launch/arguments"] == "--requirement\npyproject.toml\n"


def test_requirements_that_name_an_environment_variable_are_refused_for_an_image(tmp_path: Path) -> None:
    root = code(tmp_path, requirements_txt="\n--index-url https://user:${TOKEN}@example.com/wheels\nsix")
    with pytest.raises(SourceError, match=r"requirements\.txt:2 names the environment variable \$\{TOKEN\}"):
        find_dependencies(root, LIMIT)


def test_change_of_the_code_leaves_what_is_installed_as_it_is(tmp_path: Path) -> None:
    root = code(tmp_path, requirements_txt="six", main_py="1")
    before = find_dependencies(root, LIMIT).context.digest
    code(root, main_py="2")
    assert find_dependencies(root, LIMIT).context.digest == before
    code(root, requirements_txt="six\nnumpy")
    assert find_dependencies(root, LIMIT).context.digest != before


def test_lock_of_uv_wins_over_the_project_file_and_requirements_win_over_both(tmp_path: Path) -> None:
    project = '[project]\nname = "x"\nversion = "1"\ndependencies = ["six"]\n'
    root = code(tmp_path, pyproject_toml=project)
    assert texts(root)["launch/src/requirements.pyproject.txt"] == "six\n"
    code(root, uv_lock='version = 1\nrequires-python = ">=3.10"\n[[package]]\nname = "x"\nversion = "1"\n'
        'source = { virtual = "." }\ndependencies = [{ name = "six" }]\n[[package]]\nname = "six"\nversion = "1.16.0"\n'
        'source = { registry = "https://pypi.org/simple" }\n')  # fmt: skip
    assert "six==1.16.0" in texts(root)["launch/src/requirements.uv-lock.txt"]
    code(root, requirements_txt="numpy")
    assert texts(root)["launch/src/requirements.txt"] == "numpy\n"


def test_lock_that_is_none_is_refused(tmp_path: Path) -> None:
    code(tmp_path, pyproject_toml='[project]\nname = "x"\nversion = "1"\n', uv_lock="nonsense")
    with pytest.raises(SourceError, match=r"uv\.lock"):
        find_dependencies(tmp_path, LIMIT)


@pytest.mark.parametrize("name", ["requirements_launch_txt", "requirements_txt", "requirements_frozen_txt"])
def test_conda_file_counts_when_no_pip_file_is_there(tmp_path: Path, name: str) -> None:
    root = code(tmp_path, environment_yml="dependencies: [numpy]\n", setup_py="import setuptools\n")
    assert find_dependencies(root, LIMIT).conda
    (root / "setup.py").unlink()
    assert not find_dependencies(code(root, **{name: "six"}), LIMIT).conda


def test_conda_environment_gets_what_its_pip_section_names(tmp_path: Path) -> None:
    given = "dependencies:\n- numpy\n- pip:\n  - -r req/more.txt\n  - -e libs/common\n"
    code(tmp_path, environment_yaml=given, req__more_txt="six\n", main_py="")
    code(tmp_path, libs__common__setup_py="import setuptools\n")
    found = texts(tmp_path)
    assert found["launch/src/environment.yml"] == given
    assert found["launch/src/req/more.txt"] == "six\n"
    assert found["launch/src/libs/common/setup.py"] == "file"
    assert "launch/src/main.py" not in found


def image_build(**changes: object) -> ImageBuild:
    values: dict[str, object] = {
        "context": BuildContext().plus({"code/a": b"1"}),
        "recipe": Recipe(base="b"),
        "base": "b@1",
    }
    return ImageBuild(**{**values, **changes})  # type: ignore[arg-type]


def test_tag_is_128_bits_of_all_that_goes_in() -> None:
    assert len(image_build().tag) == 32
    assert image_build().tag == image_build().tag
    changed = [
        image_build(context=BuildContext().plus({"code/a": b"2"})),
        image_build(recipe=Recipe(base="b", user_id=0)),
        image_build(base="b@2"),
        image_build(platform="linux/arm64"),
        image_build(recipe=None, dockerfile="Dockerfile"),
    ]
    assert len({one.tag for one in [image_build(), *changed]}) == 6


def test_place_that_keeps_an_image_is_no_part_of_its_tag() -> None:
    assert (
        image_build(repository="registry.example:5000/team").image == f"registry.example:5000/team:{image_build().tag}"
    )
