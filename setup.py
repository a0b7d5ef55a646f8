"""Generates the stubs as part of the build; everything else is in pyproject.toml."""

import subprocess
import sys

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithStubs(build_py):
    """Puts the stubs into the wheel, or beside the sources for an editable install."""

    def run(self) -> None:
        """Generate, then build as usual."""
        folder = "." if self.editable_mode else self.build_lib
        subprocess.run([sys.executable, "protos/generate.py", folder], check=True)
        super().run()


setup(cmdclass={"build_py": BuildWithStubs})
