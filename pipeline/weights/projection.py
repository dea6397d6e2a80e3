"""Which way round a single file holds OpenCLIP's text projection.

OpenCLIP multiplies by it from the right, x @ text_projection of shape (width, projection). torch.nn.Linear holds the
transposed, text_projection.weight of shape (projection, width), as transformers and so diffusers folders do. Tools that
write single files from diffusers' classes do one or the other:

- diffusers' convert_diffusers_to_original_sdxl.py of 2023, and SimpleTuner's copy of it: Linear's under Linear's name;
  ComfyUI reads that name so. Since February 2024 diffusers transposes and writes OpenCLIP's under OpenCLIP's name.
- sd-scripts renames and never transposes: what came from a single file goes back as it was, but a model that was
  loaded from a diffusers folder is written as Linear's under OpenCLIP's name. OneTrainer does so with every model.
- MindONE's converter for diffusers folders did so too, before March 2024 (its pull request 399).

SDXL's is square, so that its shape does not tell. Its values do: models are fine-tuned from sd_xl_base_1.0, and a
fine-tune moves this matrix by far less than it differs from its transposed. What is not recognised is read as its name
says."""

import numpy as np

from pipeline.weights.layout import Shape
from pipeline.weights.numeric import cast
from pipeline.weights.tensor import NUMPY, Tensor

# Rows and columns of sd_xl_base_1.0's text_projection at these places, as printed in the issue
# https://github.com/Stability-AI/generative-models/issues/111
_PLACES = (0, 1, 2, -3, -2, -1)
_SIZE = 1280
_BASE = np.array(
    [
        [-0.0348, 0.0218, -0.0025, -0.0034, -0.0138, -0.0075],
        [-0.0037, 0.0202, -0.0014, -0.0082, -0.0011, 0.0170],
        [0.0261, -0.0221, -0.0099, -0.0233, -0.0178, -0.0061],
        [0.0042, -0.0068, 0.0086, 0.0008, -0.0030, -0.0042],
        [-0.0236, 0.0094, 0.0040, -0.0098, 0.0330, 0.0147],
        [0.0084, -0.0021, -0.0049, 0.0026, -0.0055, -0.0294],
    ],
    np.float32,
)
_NEAR = 0.25  # of the distance between the two readings; the other is then three times as far at least


def is_transposed(tensor: Tensor, linear: bool, wanted: Shape) -> tuple[bool, str]:
    """Whether the tensor holds Linear's form, and by what that is known: its shape, its values, or its name.

    `linear`: it has Linear's name; `wanted`: OpenCLIP's shape."""
    if wanted != wanted[::-1] and tensor.shape in (wanted, wanted[::-1]):
        return tensor.shape != wanted, "shape"
    known = tensor.shape == wanted == (_SIZE, _SIZE) and tensor.dtype in NUMPY
    recognised = _by_values(tensor) if known else None
    return (linear, "name") if recognised is None else (recognised, "values")


def agree(one: Tensor, other: Tensor) -> bool:
    """Whether the tensors are one matrix, as it is or transposed, where need be rounded to the other's dtype."""
    if one.dtype not in NUMPY or other.dtype not in NUMPY:
        return False
    for source, target in ((one, other), (other, one)):
        values = target.array()
        for array in (source.array(), source.array().T):
            rounded = cast(np.ascontiguousarray(array), source.dtype, target.dtype)
            if array.shape == values.shape and bytes(rounded) == values.tobytes():
                return True
    return False


def _by_values(tensor: Tensor) -> bool | None:
    """Whether these are sd_xl_base_1.0's values transposed; None when they are neither."""
    corners = np.ascontiguousarray(tensor.array()[np.ix_(_PLACES, _PLACES)])
    values = np.frombuffer(cast(corners, tensor.dtype, "float32"), np.float32).reshape(_BASE.shape)
    far = np.linalg.norm(_BASE - _BASE.T)
    if np.linalg.norm(values - _BASE) < _NEAR * far:
        return False
    if np.linalg.norm(values - _BASE.T) < _NEAR * far:
        return True
    return None
