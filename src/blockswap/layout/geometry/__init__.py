"""Geometry: what a Wan transformer consists of, read off a checkpoint or looked up by name."""

from .infer import infer_geometry
from .naming import UnitKey, naming_of, to_diffusers_key, to_original_key, unit_of, units_in_order
from .tensors import file_names, parameter_count, tensor_names
from .values import Naming, WanGeometry
from .variants import VARIANTS, find_variant, name_variant, name_variants

__all__ = [
    "VARIANTS",
    "Naming",
    "UnitKey",
    "WanGeometry",
    "file_names",
    "find_variant",
    "infer_geometry",
    "name_variant",
    "name_variants",
    "naming_of",
    "parameter_count",
    "tensor_names",
    "to_diffusers_key",
    "to_original_key",
    "unit_of",
    "units_in_order",
]
