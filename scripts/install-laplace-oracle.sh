#!/bin/sh
# laplace-torch, the oracle of tests/adapters/test_laplace.py, into the Python given (default: python).
#
# Everything comes without dependencies: laplace-torch asks for torchvision, linear_operator for all of gpytorch's,
# and neither is needed to build Kronecker factors with the ASDL backend. torch itself stays what it is.
set -eu
PYTHON="${1:-python}"
"$PYTHON" -m pip install --no-deps --disable-pip-version-check \
    "laplace-torch==0.3" \
    "asdfghjkl==0.1a4" \
    "backpack-for-pytorch>=1.7,<2" \
    "curvlinops-for-pytorch>=3.0.1,<4" \
    "einconv>=0.1,<1" \
    "einops>=0.8,<1" \
    "jaxtyping>=0.2" \
    "lightning-utilities>=0.11" \
    "linear-operator>=0.5" \
    "opt_einsum>=3.4,<4" \
    "torchmetrics>=1.5,<2" \
    "unfoldNd>=0.2.3,<1"
"$PYTHON" -c "import laplace; print('laplace-torch imports')"
