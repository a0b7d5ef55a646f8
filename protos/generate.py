"""Generates the Python stubs of the contract: `python protos/generate.py FOLDER` replaces FOLDER/winnow.

Needs grpcio-tools and mypy-protobuf. The proto package path is the Python import path, so the stubs need no patching.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
PLUGIN = "protoc-gen-mypy_grpc"


def generate(folder: Path) -> None:
    """Replaces folder/winnow by new stubs. If the compiler fails, the old stubs stay."""
    folder.mkdir(parents=True, exist_ok=True)
    # In pip's isolated build the plugin is on the PATH, not beside the interpreter.
    plugin = shutil.which(PLUGIN, path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))
    if plugin is None:
        raise SystemExit(f"{PLUGIN} is not installed: pip install mypy-protobuf")
    with tempfile.TemporaryDirectory(prefix=".stubs-", dir=folder) as fresh:
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"--plugin={PLUGIN}={plugin}"]
        command += [f"--{kind}_out={fresh}" for kind in ("python", "pyi", "grpc_python")]
        command += [f"--mypy_grpc_out=quiet:{fresh}", *map(str, sorted(PROTOS.glob("winnow/*/v1/*.proto")))]
        subprocess.run(command, check=True)
        for stubs in {path.parent for path in Path(fresh).rglob("*.pyi")}:
            (stubs / "py.typed").touch()  # winnow is a namespace, so each package below it says that it has types
        shutil.rmtree(folder / "winnow", ignore_errors=True)
        (Path(fresh) / "winnow").rename(folder / "winnow")


if __name__ == "__main__":
    generate(Path(sys.argv[1]))
