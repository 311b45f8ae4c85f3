"""Posteriors as netCDF files, made in memory: HDF5 ends the process where a disk is full while it writes."""

from __future__ import annotations

import io
from typing import Any

__all__ = ["netcdf"]


def netcdf(data: Any) -> bytes:
    """Return what ArviZ reads back as ``data``: the content of a netCDF file.

    :param data: an ``arviz.InferenceData`` or an ``xarray.DataTree``.
    """
    import h5netcdf
    from xarray.backends import H5NetCDFStore

    named = {name: data[name] for name in (data.groups() if callable(data.groups) else data.children)}
    content = io.BytesIO()
    with h5netcdf.File(content, "w") as file:
        for name, group in named.items():
            dataset = group.to_dataset() if hasattr(group, "to_dataset") else group
            packed = {n: {"zlib": True} for n, v in dataset.variables.items() if v.dtype.kind in "fiu"}
            dataset.dump_to_store(H5NetCDFStore(file.create_group(name)), encoding=packed)
    return content.getvalue()
