from setuptools import setup

setup(name="drift", version="1", py_modules=["currents"])
