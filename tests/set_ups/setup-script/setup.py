from setuptools import setup

setup(name="blobs", version="0.3", py_modules=["blobs"], install_requires=["six==1.17.0"])
