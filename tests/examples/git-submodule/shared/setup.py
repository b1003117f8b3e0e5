"""Installs the submodule, which the example's requirements name."""

from setuptools import setup

setup(name="shared-greeting", version="1.0", py_modules=["shared_greeting"])
