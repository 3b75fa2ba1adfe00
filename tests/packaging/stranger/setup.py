"""How somebody else compiles a kernel against an installed Lapse: nothing but Cython is needed."""

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(name="stranger", ext_modules=cythonize([Extension("stranger", ["stranger.pyx"])]))
