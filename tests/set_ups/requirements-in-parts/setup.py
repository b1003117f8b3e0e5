from setuptools import find_packages, setup

setup(name="shapes", version="0.1", packages=find_packages(exclude=["tools"]))
