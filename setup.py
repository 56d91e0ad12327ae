"""The compiled part of the wheel; everything else is in pyproject.toml.

Plain C, loaded through ctypes. It is optional: where it cannot be built, stages run on torch alone. The vector
instructions are those of the machine that builds; STAGEMESH_MARCH names others (say `x86-64-v3`) to build for.
"""

import os

from setuptools import Extension, setup

KERNELS = "services/stage/partition/kernels"

setup(
    ext_modules=[
        Extension(
            "stagemesh.services.stage.partition._kernels",
            [f"{KERNELS}.c"],
            depends=[
                f"{KERNELS}.h",
                "services/stage/partition/products.h",
                "services/stage/partition/chunks.h",
            ],
            extra_compile_args=[
                "-O3",
                f"-march={os.environ.get('STAGEMESH_MARCH', 'native')}",
                "-fopenmp",
                # Loops become vector code only where sums may be reordered. NaN and infinity stay what they are.
                "-fno-math-errno",
                "-fno-trapping-math",
                "-fassociative-math",
                "-fno-signed-zeros",
                "-freciprocal-math",
            ],
            extra_link_args=["-fopenmp"],
            libraries=["m"],
            optional=True,
        )
    ]
)
