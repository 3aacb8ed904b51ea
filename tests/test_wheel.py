"""A wheel holds all of the package and works outside the checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (
    (ROOT / "ultramem_deploy", "ultramem_deploy"),
    (ROOT / "converters", "ultramem_deploy/converters"),
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_wheel_holds_every_source_file_once_and_nothing_else(wheel: Path) -> None:
    held = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    wanted = {
        f"{target}/{file.relative_to(folder).as_posix()}"
        for folder, target in FOLDERS
        for file in folder.rglob("*.py")
        if "converters" not in file.relative_to(folder).parts
    }
    recipes = {f"ultramem_deploy/cookbook/recipes/{file.name}" for file in (ROOT / "recipes").glob("*.yaml")}
    assert sorted(held) == sorted(wanted | recipes | {"ultramem_deploy/lib/libultramem_ort.so"})
    assert wheel.name.split("-")[2:4] == ["py3", "none"], "the native library does not depend on Python's version"


def test_installed_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    # The interpreter behind the environment, without its .pth files: an editable install must not answer for the wheel.
    python = Path(sys.base_prefix) / "bin" / "python3"
    program = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "import ultramem_deploy as um, ultramem_deploy.converters.fold.expand as fold\n"
        "from ultramem_deploy.runtime.plugins import library_info, ort_library\n"
        "from ultramem_deploy.diagnosis import doctor\n"
        "print(fold.__file__); print(ort_library()); print(library_info(ort_library())['version'])\n"
        "from ultramem_deploy.cookbook.files import load, shipped\n"
        "print([load(file).name for file in shipped()])\n"
        "print([check for check in doctor() if check['required'] and not check['ok']])\n"
    )
    command = [str(python), "-S", "-c", program, str(site), packages]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    module, library, version, recipes, failed = result.stdout.splitlines()
    assert Path(module).is_relative_to(site)
    assert Path(library) == site / "ultramem_deploy/lib/libultramem_ort.so"
    assert version == wheel.name.split("-")[1]
    assert recipes == str(sorted(file.stem for file in (ROOT / "recipes").glob("*.yaml")))
    assert failed == "[]"
